#!/usr/bin/env python3
"""Decode speed and lookup latency while every disk access of the daemon takes 200 ms, LMDB's too,
beside the same without delay, in one run.

    bench/stall.py --build build/release --model FILE [--json] [--rounds N] [--tokens N] [--ms N]"""
import argparse
import ctypes
import json
import os
import pathlib
import shutil
import statistics
import struct
import subprocess
import tempfile
import threading
import time

KEYS = 1000


class Bench:
    def __init__(self, options):
        self.options = options
        self.build = pathlib.Path(options.build).resolve()
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="kvloft-stall-"))
        self.address = f"ipc://{self.folder}/run/kvloft.sock"
        self.control = self.folder / "slow"
        self.control.write_bytes(bytes(16))
        self.prompts = 0

    def start(self):
        env = {**os.environ, "LD_PRELOAD": str(self.build / "lib/libkvl_slow_disk.so"),
               "KVL_SLOW_FOLDER": str(self.folder / "disk"), "KVL_SLOW_CONTROL": str(self.control)}
        self.daemon = subprocess.Popen(
            [self.build / "bin/kvloftd", "--listen", self.address, "--device-bytes", "256M",
             "--host-bytes", "128M", "--disk-path", self.folder / "disk", "--disk-bytes", "1G",
             "--disk-io", "posix"], env=env, stderr=open(self.folder / "log", "a"))
        subprocess.run([self.build / "bin/kvloft", "status", "--wait", "20", "--json", "--connect",
                        self.address], check=True, stdout=subprocess.DEVNULL)
        self.library = ctypes.CDLL(str(self.build / "lib/libkvloft.so"))
        client = ctypes.c_void_p()
        words = ctypes.create_string_buffer(512)  # kvl_client_options: the address, zeros
        address = ctypes.create_string_buffer(self.address.encode())
        struct.pack_into("P", words, 0, ctypes.addressof(address))
        if self.library.kvl_client_open(words, ctypes.byref(client), None) != 0:
            raise SystemExit("cannot connect to the daemon")
        self.client = client

    def slow(self, milliseconds):
        with self.control.open("r+b") as file:
            file.write(struct.pack("<I", milliseconds))

    def lookup_ms(self):
        found, hits = ctypes.create_string_buffer(KEYS), ctypes.c_uint32()
        since = time.perf_counter()
        status = self.library.kvl_lookup(self.client, self.keys, KEYS, found, ctypes.byref(hits))
        if status != 0:
            raise SystemExit(f"lookup: error {status}")
        return (time.perf_counter() - since) * 1e3

    def decode(self, latencies):
        """A prompt of its own, so that there is something to write; lookups go on meanwhile."""
        self.prompts += 1
        self.keys = os.urandom(32 * KEYS)
        engine = subprocess.Popen(
            [self.build / "bin/kvloft-decode", "--model", self.options.model, "--json", "--threads",
             "1", "--prompt", f"Tell me about number {self.prompts}. " * 40, "--max-tokens",
             str(self.options.tokens), "--connect", self.address], stdout=subprocess.PIPE)
        done = threading.Event()

        def look():
            while not done.wait(0.01):
                latencies.append(self.lookup_ms())
        looking = threading.Thread(target=look)
        looking.start()
        result = json.loads(engine.communicate()[0])
        done.set()
        looking.join()
        return result["decode_tokens_per_s"], result["decode_step_ms_max"]

    def run(self):
        speeds, steps, latencies = {0: [], 1: []}, {0: [], 1: []}, {0: [], 1: []}
        self.decode([])  # warm
        for _ in range(self.options.rounds):
            for delayed in (0, 1):  # in turn, so that the machine's mood is the same for both
                self.slow(self.options.ms * delayed)
                speed, step = self.decode(latencies[delayed])
                speeds[delayed].append(speed)
                steps[delayed].append(step)
        self.slow(0)
        p99 = [statistics.quantiles(latencies[delayed], n=100)[98] for delayed in (0, 1)]
        pairs = [("decode", statistics.median(speeds[1]), "tokens/s", statistics.median(speeds[0])),
                 ("longest decode step", max(steps[1]), "ms", max(steps[0])),
                 ("lookup of 1,000 blocks, p99", p99[1], "ms", p99[0])]
        return [{"name": name, "value": value, "unit": unit, "limit": limit,
                 "ratio": value / limit} for name, value, unit, limit in pairs]

    def end(self):
        self.daemon.terminate()
        self.daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", default="build/release")
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--ms", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    bench = Bench(parser.parse_args())
    bench.start()
    try:
        results = bench.run()
    finally:
        bench.end()
    if bench.options.json:
        print(json.dumps({"results": results}))
        return
    for result in results:
        print("{name:30} {value:10.2f} {unit:9} undelayed {limit:10.2f}  {ratio:.3f}".format(**result))


main()
