#!/usr/bin/env python3
"""The table that scripts/gpu-check ends with: made here of files as a run leaves them."""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

TABLE = pathlib.Path(__file__).resolve().parents[2] / "bench/gpu_table.py"
KINDS = ["128 KiB", "512 KiB", "2048 KiB", "8192 KiB", "128 KiB neighbours", "8192 KiB opaque",
         "128 KiB 8 batches", "128 KiB 1 driver thread", "128 KiB no pauses"]


def row(name, value, limit=0.0):
    return {"name": name, "value": value, "unit": "GB/s", "limit": limit,
            "ratio": value / limit if limit else 0.0}


def bench():
    rows = [row("gpu.link, sum of both ways alone", 110.0),
            row("gpu.plain store, 128 KiB", 53.2, 55.0), row("gpu.plain load, 128 KiB", 53.1, 55.0)]
    rows += [row(f"gpu.{what}, {kind}", 40.0, 50.0) for kind in KINDS
             for what in ("store", "load", "hash", "both", "both, to host")]
    return rows + [row(f"another figure {i}", i, 10.0) for i in range(16)]


class Table(unittest.TestCase):
    def setUp(self):
        self.kept = tempfile.TemporaryDirectory()
        self.addCleanup(self.kept.cleanup)
        self.folder = pathlib.Path(self.kept.name)

    def write(self, name, value):
        (self.folder / name).write_text(value if isinstance(value, str) else json.dumps(value))

    def lines(self):
        done = subprocess.run([sys.executable, TABLE, self.folder], check=True,
                              stdout=subprocess.PIPE, text=True)
        return done.stdout.splitlines()

    def whole_run(self):
        outcomes = ["   Passed    2.70 sec", "***Failed    1.00 sec", "***Not Run   0.00 sec"] + [
            "   Passed   11.30 sec"] * 11
        self.write("tests.log", "".join(
            f"{i + 1:2d}/14 Test  #{i + 50}: a_test_number_{i} ........{outcome}\n"
            for i, outcome in enumerate(outcomes)))
        for i in range(7):
            self.write(f"memcheck-{i}.result", f"memcheck {i}: clean\n")
        self.write("bench.json", {"results": bench()})
        self.write("session.json", {"results": [row(f"TTFT {i}", 89.0, 125.0) for i in range(8)]})
        self.write("timeline.json", {
            "restored_tokens": 32768, "computed_tokens": 1024, "rounds_ms": [96.0] * 5,
            "first_layer_ms": [5.0, 6.0, 7.0, 8.0, 9.0],
            "layers": [{"arrived_ms": i, "ended_ms": i + 2.0} for i in range(32)]})

    def test_whole_run_is_told_uncut(self):
        self.whole_run()
        lines = self.lines()
        self.assertLessEqual(len(lines), 58)
        self.assertEqual(lines, (self.folder / "table.txt").read_text().splitlines())
        text = "\n".join(lines)
        self.assertIn("first layer whole after 5.0, 6.0, 7.0, 8.0, 9.0 ms", text)
        for kind in KINDS + ["128 KiB plain batches"]:
            self.assertEqual(sum(line.startswith(f"copy     {kind}  ") for line in lines), 1, kind)
        self.assertIn("another figure 15", text)

    def test_what_did_not_pass_comes_first(self):
        self.whole_run()
        self.assertIn("a_test_number_1: Failed", self.lines()[0])
        self.assertIn("a_test_number_2: Not Run", self.lines()[1])
        self.assertIn("12 passed", self.lines()[2])

    def test_too_much_is_cut_and_says_so(self):
        self.write("bench.json", {"results": [row(f"figure {i}", i) for i in range(80)]})
        lines = self.lines()
        self.assertEqual(len(lines), 58)
        self.assertIn("23 more lines", lines[-1])
        self.assertEqual(len((self.folder / "table.txt").read_text().splitlines()), 80)

    def test_what_is_not_there_is_left_out(self):
        self.write("bench.json", "")
        self.write("timeline.json", "{")
        self.write("not_run.txt", "kvl_bench_gpu: exit 1: no GPU\n")
        self.assertEqual(self.lines(), ["not run  kvl_bench_gpu: exit 1: no GPU"])


if __name__ == "__main__":
    unittest.main()
