#!/usr/bin/env python3
"""What a user feels, in one run, each figure beside its limit: restore after kill -9, decode with
the daemon behind it, a KV cache against none.

    bench/session_figures.py --bin build/release/bin --model FILE [--json] [--runs N] [--tokens N]

Limits: raw io_uring O_DIRECT bandwidth and one decode step for the restore, the same engine without
a daemon for decode. The comparison with llama.cpp is bench/engine_vs_llamacpp's."""
import argparse
import json
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile

TEXT = "/usr/share/common-licenses/GPL-3"


class Bench:
    def __init__(self, options):
        self.options = options
        self.bin = pathlib.Path(options.bin).resolve()
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="kvloft-figures-", dir=options.work))
        self.address = f"ipc://{self.folder}/run/kvloft.sock"
        self.text = self.folder / "text.txt"
        self.text.write_text(pathlib.Path(TEXT).read_text() * 2)
        self.daemon = None
        self.results = []

    def start(self):
        self.daemon = subprocess.Popen(
            [self.bin / "kvloftd", "--listen", self.address, "--device-bytes", "384M",
             "--host-bytes", "256M", "--disk-path", self.folder / "disk", "--disk-bytes", "2G"],
            stderr=open(self.folder / "log", "a"))
        self.tool("status", "--wait", "20")

    def kill(self):
        self.daemon.send_signal(signal.SIGKILL)
        self.daemon.wait()

    def tool(self, *words):
        subprocess.run([self.bin / "kvloft", *words, "--connect", self.address, "--json"],
                       check=True, stdout=subprocess.PIPE)

    def decode(self, tokens, new, *words):
        done = subprocess.run(
            [self.bin / "kvloft-decode", "--model", self.options.model, "--prompt-file", self.text,
             "--prompt-tokens", str(tokens), "--max-tokens", str(new), "--threads", "2", "--json",
             *words], check=True, stdout=subprocess.PIPE)
        return json.loads(done.stdout)

    def connected(self, tokens, new, *words):
        return self.decode(tokens, new, "--connect", self.address, *words)

    def raw_read_gb_s(self):
        """Raw io_uring with O_DIRECT at the blocks' size, as kvl_bench_disk measures it."""
        done = subprocess.run([self.bin / "kvl_bench_disk", "--json", self.folder], check=True,
                              stdout=subprocess.PIPE)
        return statistics.median(r["limit"] for r in json.loads(done.stdout)["results"]
                                 if r["name"].startswith("disk load"))

    def add(self, name, value, unit, limit=0.0):
        self.results.append({"name": name, "value": value, "unit": unit, "limit": limit,
                             "ratio": value / limit if limit else 0.0})
        print(f"  {name}: {value:.2f} {unit}" + (f" (limit {limit:.2f})" if limit else ""),
              file=sys.stderr, flush=True)

    def restore_after_kill(self):
        tokens = self.options.tokens
        cold = self.connected(tokens, 2, "--hash-logits")
        self.add(f"cold TTFT, {tokens} tokens", cold["ttft_ms"], "ms")
        self.tool("flush")
        runs, raw = [], [self.raw_read_gb_s()]
        for _ in range(self.options.runs):
            self.kill()
            self.start()
            runs.append(self.connected(tokens, 16))
            assert runs[-1]["restored_tokens"]["disk"] == (tokens - 1) // 64 * 64, runs[-1]
        raw.append(self.raw_read_gb_s())
        step = 1000 / statistics.median(r["decode_tokens_per_s"] for r in runs)
        ttft = statistics.median(r["ttft_ms"] for r in runs)
        read = statistics.median(r["restored_bytes"] for r in runs)
        raw_ms = read / (statistics.median(raw) * 1e9) * 1e3
        self.add("raw io_uring read", statistics.median(raw), "GB/s")
        self.add("restore from disk after kill -9",
                 statistics.median(r["restore_ms"] for r in runs), "ms", raw_ms)
        self.add("TTFT from disk after kill -9", ttft, "ms", 2 * (raw_ms + step))
        self.add("speed-up against cold", cold["ttft_ms"] / ttft, "x")
        warm = [self.connected(tokens, 16) for _ in range(self.options.runs)]
        assert all(r["restored_bytes"] == 0 for r in warm), "a resident hit must copy nothing"
        self.add("TTFT, resident", statistics.median(r["ttft_ms"] for r in warm), "ms", step)

    def decode_with_daemon(self):
        with_daemon, alone = [], []
        for turn in range(self.options.runs):
            self.tool("clear", "--all")
            with_daemon.append(self.connected(512, 192))
            alone.append(self.decode(512, 192, "--no-offload"))
        for name, field, unit in (("decode", "decode_tokens_per_s", "tok/s"),
                                  ("slowest decode step", "decode_step_ms_max", "ms")):
            self.add(f"{name} with the daemon, 512 tokens",
                     statistics.median(r[field] for r in with_daemon), unit,
                     statistics.median(r[field] for r in alone))

    def cache_or_none(self):
        cached = self.connected(100, 200, "--hash-logits")
        bare = self.decode(100, 200, "--no-cache", "--hash-logits")
        assert cached["logits_sha256"] == bare["logits_sha256"], "other bits without a cache"
        self.add("200 tokens after 100, cache against --no-cache",
                 cached["decode_tokens_per_s"] / bare["decode_tokens_per_s"], "x", 5.0)

    def close(self):
        if self.daemon and self.daemon.poll() is None:
            self.kill()
        shutil.rmtree(self.folder)


def print_table(results):
    for r in results:
        limit = f"{r['limit']:10.2f} {r['ratio']:6.2f}" if r["limit"] else ""
        print(f"{r['name']:48} {r['value']:10.2f} {r['unit']:6} {limit}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", default="build/release/bin")
    parser.add_argument("--model", required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=7937)
    parser.add_argument("--work", default=".", help="folder for the disk tier; not a tmpfs")
    parser.add_argument("--json", action="store_true")
    bench = Bench(parser.parse_args())
    try:
        bench.start()
        bench.restore_after_kill()
        bench.decode_with_daemon()
        bench.cache_or_none()
    finally:
        bench.close()
    if bench.options.json:
        print(json.dumps({"results": bench.results}))
    else:
        print_table(bench.results)


main()
