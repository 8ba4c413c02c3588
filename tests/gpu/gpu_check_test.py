#!/usr/bin/env python3
"""scripts/gpu-check builds one target, gpu_check: it has to build every program that a test of
label gpu, the checkers and the benchmarks run there. A missing one shows only where there is a GPU.

    gpu_check_test.py SOURCE BUILD      (BUILD/gpu_check_programs.txt: what the target builds)"""
import pathlib
import re
import sys
import unittest

SOURCE, BUILD = (pathlib.Path(word).resolve() for word in sys.argv[1:3])
# What CMake writes of tests, a line each: add_test([=[name]=] "program" "word"...)
ADDED = re.compile(r"^add_test\((\S+) (.*)\)$", re.MULTILINE)
LABELED = re.compile(r'^set_tests_properties\((\S+) PROPERTIES .*LABELS "([^"]*)"', re.MULTILINE)
# Programs that scripts run by name, from the folder of programs.
NAMED = re.compile(r'(?:BIN|self\.bin) / "([\w-]+)"|\$build/bin/([\w-]+)')
# Tests that scripts/gpu-check keeps from racecheck.
NOT_RACED = re.compile(r"^ +(\w+)\) continue ;;", re.MULTILINE)
LAUNCHER = re.compile(r"^cudaError_t (kvl_cuda_\w+)\(", re.MULTILINE)
KIND = re.compile(r"^ +(KVL_CUDA_GEMV_\w+),", re.MULTILINE)
SCRIPTS = ["scripts/gpu-check", "bench/gpu_session.py", "tests/gpu/engine_gpu_test.py",
           "tests/e2e/harness.py"]


def gpu_tests():
    """name -> words of its command"""
    tests = {}
    for path in (BUILD / "tests").rglob("CTestTestfile.cmake"):
        text = path.read_text()
        labels = dict(LABELED.findall(text))
        for name, words in ADDED.findall(text):
            if "gpu" in labels.get(name, "").split(";"):
                tests[name] = re.findall(r'"([^"]*)"', words)
    return tests


class GpuCheck(unittest.TestCase):
    built = set((BUILD / "gpu_check_programs.txt").read_text().split())

    def test_builds_the_programs_of_all_gpu_tests(self):
        tests = gpu_tests()
        self.assertTrue(tests, "no test of label gpu was found: has CMake's format changed?")
        for name, words in tests.items():
            programs = [word for word in words if word.startswith(f"{BUILD}/")]
            self.assertTrue(programs or words[0].endswith("python3"), f"{name}: {words}")
            for program in programs:
                self.assertIn(program, self.built, f"{name} runs what gpu_check does not build")

    def test_builds_what_scripts_run(self):
        if not (BUILD / "gpu_sanitized_tests.txt").exists():
            self.skipTest("built without CUDA: there is no benchmark of a GPU")
        for script in SCRIPTS:
            names = {a or b for a, b in NAMED.findall((SOURCE / script).read_text())}
            self.assertTrue(names, f"{script} runs no program: have its words changed?")
            for name in names:
                self.assertIn(f"{BUILD}/bin/{name}", self.built, f"{script} runs {name}")

    def test_builds_what_the_checkers_run(self):
        path = BUILD / "gpu_sanitized_tests.txt"
        if not path.exists():
            self.skipTest("built without CUDA: nothing runs under compute-sanitizer")
        commands = path.read_text().splitlines()
        self.assertTrue(commands)
        for command in commands:
            self.assertIn(command.split()[0], self.built)

    def test_racecheck_watches_all_kernels_of_ours(self):
        path = BUILD / "gpu_sanitized_tests.txt"
        if not path.exists():
            self.skipTest("built without CUDA: nothing runs under compute-sanitizer")
        checked = {pathlib.Path(line.split()[0]).name for line in path.read_text().splitlines()}
        without = set(NOT_RACED.findall((SOURCE / "scripts/gpu-check").read_text()))
        self.assertTrue(without, "all is raced: have the script's words changed?")
        self.assertLessEqual(without, checked, "what is left out is not checked at all")
        self.assertLessEqual({"cuda_attention_test", "cuda_kernels_test"}, checked - without)
        header = (SOURCE / "engine/cuda/kernels.h").read_text()
        launchers, kinds = LAUNCHER.findall(header), KIND.findall(header)
        self.assertTrue(len(launchers) > 9 and len(kinds) > 3, "have the header's words changed?")
        tests = "".join(path.read_text() for path in (SOURCE / "tests/gpu/kernels").glob("*.c"))
        for name in [f"{launcher}(" for launcher in launchers] + kinds:
            self.assertTrue(name in tests, f"cuda_kernels_test does not run {name}")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
