#!/usr/bin/env python3
"""What this machine can do at most, for bench/engine_vs_llamacpp to print a share of.

    machine_peak.py THREADS      -> {"gemm_gflops": ..., "read_gb_per_s": ...}

The GEMM is OpenBLAS's sgemm, through numpy, on square and on prompt-shaped matrices. The read is a
plain pass over memory that no cache holds, by as many threads: OpenBLAS's sdot of a vector with
itself, or numpy's maximum. Of each the best of several counts, so that a busy moment does not
lower it."""
import json
import os
import sys
import threading
import time

THREADS = int(sys.argv[1])
os.environ["OPENBLAS_NUM_THREADS"] = str(THREADS)
import numpy as np  # noqa: E402 (OpenBLAS reads the variable when it is loaded)

GEMM_SHAPES = ((2048, 2048, 2048), (512, 1536, 576), (2048, 3072, 1024))  # rows, columns, depth
GEMM_SECONDS = 1.0
READ_BYTES = 512 << 20
READ_RUNS = 6


def gemm_gflops(rows, columns, depth):
    random = np.random.default_rng(1)
    left = random.random((rows, depth), dtype=np.float32)
    right = random.random((depth, columns), dtype=np.float32)
    out = np.empty((rows, columns), dtype=np.float32)
    best = float("inf")
    until = time.perf_counter() + GEMM_SECONDS
    while time.perf_counter() < until:
        start = time.perf_counter()
        np.matmul(left, right, out=out)
        best = min(best, time.perf_counter() - start)
    return 2e-9 * rows * columns * depth / best


def seconds_of(read, parts):
    """Each thread reads its own part; numpy lets go of the interpreter meanwhile."""
    threads = [threading.Thread(target=read, args=(part,)) for part in parts]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


def read_gb_per_s():
    memory = np.ones(READ_BYTES // 4, dtype=np.float32)
    parts = np.array_split(memory, THREADS)
    seconds = [seconds_of(read, parts) for read in (lambda part: part.dot(part), np.max)
               for _ in range(READ_RUNS)]
    return 1e-9 * READ_BYTES / min(seconds)


print(json.dumps({"gemm_gflops": max(gemm_gflops(*shape) for shape in GEMM_SHAPES),
                  "read_gb_per_s": read_gb_per_s()}))
