#!/usr/bin/env python3
"""planted.py build SOURCE FOLDER: builds what the proofs need, with the planted bugs compiled in.
planted.py check SOURCE FOLDER NAME: turns one bug on and runs its proof, which must catch it."""
import os
import pathlib
import re
import subprocess
import sys
import tempfile


def bugs(source):
    for line in (source / "tests/planted/bugs.list").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            name, command, says = line.split(" | ", 2)
            yield name.strip(), command.split(), says.strip()


def build(source, folder):
    configure = ["cmake", "-S", source, "-B", folder, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
                 "-DCMAKE_C_FLAGS_RELEASE=-O1", "-DKVL_CUDA=OFF", "-DKVL_PLANTED_BUGS=ON"]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    targets = sorted({command[0] for _, command, _ in bugs(source)})
    subprocess.run(["cmake", "--build", folder, "--target", *targets], check=True)


def check(source, folder, wanted):
    command, says = next((c, s) for name, c, s in bugs(source) if name == wanted)
    with tempfile.TemporaryDirectory(prefix="kvloft-planted-") as tmp:  # what was found is kept there
        done = subprocess.run([folder / "tests" / command[0], *command[1:]], timeout=590,
                              env={**os.environ, "KVL_PLANTED": wanted, "TMPDIR": tmp},
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
    output = done.stdout.decode(errors="replace")
    found = re.search(says, output)
    print(output[-2000:])
    if done.returncode == 0 or not found:
        sys.exit(f"{wanted} was not caught: status {done.returncode}, and nothing says '{says}'")
    print(f"caught: {found.group(0)}")


if __name__ == "__main__":
    verb, source, folder = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    build(source, folder) if verb == "build" else check(source, folder, sys.argv[4])
