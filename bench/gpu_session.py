#!/usr/bin/env python3
"""What a user of a GPU feels, in one run, each figure beside its limit: a long prompt restored from
device, host and disk against computing it, and decoding while blocks are demoted behind.

    bench/gpu_session.py --bin build/release/bin [--model llama-8b] [--tokens 32768] [--json]

The weights are random (no model file is needed): figures are of speed only, and marked so. Limits:
the link's bandwidth as kvl_bench_gpu measures it, one decode step, --no-offload.
With --device cpu and a small shape the same steps run without a GPU, to try them out; the link is
then what --link-gb-s says."""
import argparse
import json
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile


class Bench:
    def __init__(self, options):
        self.options = options
        self.bin = pathlib.Path(options.bin).resolve()
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="kvloft-gpu-", dir=options.work))
        self.folder.chmod(0o700)
        self.address = f"ipc://{self.folder}/run/kvloft.sock"
        self.daemon = None
        self.results = []

    def start(self, device_bytes):
        self.daemon = subprocess.Popen(
            [self.bin / "kvloftd", "--listen", self.address, "--device", self.options.device,
             "--device-bytes", device_bytes, "--host-bytes", self.options.host_bytes,
             "--disk-path", self.folder / "disk", "--disk-bytes", self.options.disk_bytes],
            stderr=open(self.folder / "log", "a"))
        self.tool("status", "--wait", "60")

    def stop(self, number=signal.SIGKILL):
        if self.daemon and self.daemon.poll() is None:
            self.daemon.send_signal(number)
        if self.daemon:
            self.daemon.wait()
        self.daemon = None

    def tool(self, *words):
        done = subprocess.run([self.bin / "kvloft", *words, "--connect", self.address, "--json"],
                              check=True, stdout=subprocess.PIPE)
        return json.loads(done.stdout) if done.stdout.strip() else {}

    def decode(self, tokens, new, *words):
        done = subprocess.run(
            [self.bin / "kvloft-decode", "--random-model", self.options.model, "--device",
             self.options.device, "--prompt-tokens", str(tokens), "--max-tokens", str(new),
             "--ctx", str(tokens + new), "--json", *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if done.returncode != 0:
            sys.exit(f"gpu_session: kvloft-decode failed: {done.stderr.decode()[-2000:]}\n"
                     f"{(self.folder / 'log').read_text()[-2000:]}")
        return json.loads(done.stdout)

    def connected(self, tokens, new, *words):
        return self.decode(tokens, new, "--connect", self.address, *words)

    def leaf(self):
        """The key of the last block of the chain: the one that is nobody's parent."""
        blocks = self.tool("ls")["blocks"]
        parents = {block["parent"] for block in blocks}
        return next(block["key"] for block in blocks if block["key"] not in parents)

    def link_gb_s(self):
        """Host to device at most, by the driver's single copies."""
        if self.options.link_gb_s:
            return self.options.link_gb_s
        if self.options.bench:
            told = pathlib.Path(self.options.bench).read_text()
        else:
            told = subprocess.run([self.bin / "kvl_bench_gpu", "--json", "copy"], check=True,
                                  stdout=subprocess.PIPE).stdout
        results = json.loads(told)["results"]
        return max(r["limit"] for r in results if r["name"].startswith("gpu.store"))

    def add(self, name, value, unit, limit=0.0):
        self.results.append({"name": name, "value": value, "unit": unit, "limit": limit,
                             "ratio": value / limit if limit else 0.0})
        print(f"  {name}: {value:.2f} {unit}" + (f" (limit {limit:.2f})" if limit else ""),
              file=sys.stderr, flush=True)

    def restored(self, tier, run, cold):
        where = run["restored_tokens"]
        whole = (run["prompt_tokens"] - 1) // 64 * 64
        if where[tier] != whole:
            sys.exit(f"gpu_session: {whole} tokens should have come from {tier}: {where}")
        if run["logits_sha256"] != cold["logits_sha256"]:
            sys.exit(f"gpu_session: restored from {tier}, the logits are not the same bits")
        return run["ttft_ms"]

    def restores(self):
        tokens = self.options.tokens + 1  # one is left to compute
        label = f"{self.options.model} (random), {tokens} tokens"
        cold = self.connected(tokens, 16, "--hash-logits")
        step = 1000 / cold["decode_tokens_per_s"]
        self.add(f"{label}: cold TTFT", cold["ttft_ms"], "ms")
        self.add(f"{label}: prefill", tokens / cold["prefill_ms"] * 1e3, "tok/s")
        leaf = self.leaf()
        link = self.link_gb_s()
        warm = [self.connected(tokens, 16, "--hash-logits") for _ in range(2)]
        self.add(f"{label}: TTFT, device", statistics.median(
            self.restored("device", run, cold) for run in warm), "ms", step)
        host, moved = [], 0
        for _ in range(3):
            self.tool("demote", leaf, "--tier", "host")
            run = self.connected(tokens, 16, "--hash-logits")
            host.append(self.restored("host", run, cold))
            moved = run["restored_bytes"]
        bound = 1.5 * (moved / link / 1e6 + step)
        self.add(f"{label}: TTFT, host", statistics.median(host), "ms", bound)
        self.add("speed-up against cold", cold["ttft_ms"] / statistics.median(host), "x")
        self.tool("flush")
        self.stop()
        self.start(self.options.device_bytes)
        run = self.connected(tokens, 16, "--hash-logits")
        self.add(f"{label}: TTFT, disk after kill -9", self.restored("disk", run, cold), "ms")
        self.add("disk to GPU, as restored", run["restored_bytes"] / run["restore_ms"] / 1e6, "GB/s",
                 link)

    def decode_behind(self):
        """8k context, new blocks sealed, hashed, persisted behind; against no daemon."""
        self.stop()
        shutil.rmtree(self.folder / "disk")
        self.start("2G")
        with_daemon, alone = [], []
        for _ in range(2):
            self.tool("clear", "--all")
            with_daemon.append(self.connected(8192, 256))
            alone.append(self.decode(8192, 256, "--no-offload"))
        self.add("decode at 8k context, demoting behind", statistics.median(
            run["decode_tokens_per_s"] for run in with_daemon), "tok/s", statistics.median(
            run["decode_tokens_per_s"] for run in alone))

    def close(self):
        self.stop()
        shutil.rmtree(self.folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", default="build/release/bin")
    parser.add_argument("--model", default="llama-8b")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--link-gb-s", type=float, help="instead of measuring it")
    parser.add_argument("--bench", help="what kvl_bench_gpu --json just told, for the same")
    parser.add_argument("--device-bytes", default="6G")
    parser.add_argument("--host-bytes", default="6G")
    parser.add_argument("--disk-bytes", default="12G")
    parser.add_argument("--work", default=".", help="folder for the disk tier; not a tmpfs")
    parser.add_argument("--json", action="store_true")
    bench = Bench(parser.parse_args())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("gpu_session: told to end"))
    try:
        bench.start(bench.options.device_bytes)
        bench.restores()
        bench.decode_behind()
    finally:
        bench.close()
    if bench.options.json:
        print(json.dumps({"results": bench.results}))
        return
    for r in bench.results:
        limit = f"{r['limit']:10.2f} {r['ratio']:6.2f}" if r["limit"] else ""
        print(f"{r['name']:56} {r['value']:10.2f} {r['unit']:6} {limit}")


main()
