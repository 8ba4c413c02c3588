#!/usr/bin/env python3
"""clang_test.py COMPILE_COMMANDS: clang, which the presets tidy and fuzz build with, takes every C
file without a warning, as gcc does."""
import concurrent.futures
import json
import os
import shlex
import shutil
import subprocess
import sys

# What gcc is told and clang does not know, and what only matters to an object file.
DROPPED = {"-c", "-fno-var-tracking-assignments"}


def clang_command(clang, entry):
    words = shlex.split(entry["command"])
    while os.path.basename(words[0]) in ("ccache", "cc", "gcc"):
        words.pop(0)
    out = words.index("-o")
    words = [word for word in words[:out] + words[out + 2:] if word not in DROPPED]
    return [clang, "-fsyntax-only", "-Wno-unknown-warning-option"] + words


def check(command, folder):
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          check=False)
    return done.returncode, done.stdout.decode(errors="replace")


def main():
    clang = shutil.which("clang-14") or shutil.which("clang")
    if clang is None:
        print("skipped: no clang")
        return 77
    with open(sys.argv[1], encoding="utf-8") as file:
        entries = [entry for entry in json.load(file) if entry["file"].endswith(".c")]
    by_file = {entry["file"]: entry for entry in entries}
    if not by_file:
        print("no C file in", sys.argv[1])
        return 1
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(check, clang_command(clang, entry), entry["directory"])
                for entry in by_file.values()]
        for job in jobs:
            status, output = job.result()
            if status != 0:
                failed += 1
                print(output)
    print(f"{len(by_file)} files, {failed} that clang does not take")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
