#!/usr/bin/env python3
"""Many sequences at once: what a common prefix and decoding together save.

    bench/batch_speed.py --build build/release --model FILE [--json] [--threads N] [--prefix N]
                         [--tokens N] [--sequences N] [--rounds N]

First: N sequences with a common prefix, at once, beside the same one after another, each computing
its prefix anew (--no-offload --parallel 1). Then decode speed of 1, 2, 4, ... sequences behind a
short common prefix, beside one alone. All alternate in one run, so that the machine's mood is the
same for all; figures are medians. Both ways must choose the same tokens from the same logits. With
--threads 1 the first is timed by the CPU time it took, so that it can be measured on a busy machine
too; the decode speeds on such a one are those of `kvl_bench_together MODEL 1`."""
import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import tempfile

TEXT = ("A cache keeps what was computed once, in case it is wanted again. Whoever asks first waits, "
        "and everybody behind is served at once; so the second visitor of a library finds the book "
        "open on the table, and the third does not even notice that it was ever on a shelf. ")


def cpu_seconds():
    """Of the programs that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Bench:
    def __init__(self, options):
        self.options = options
        self.program = pathlib.Path(options.build).resolve() / "bin/kvloft-decode"
        self.folder = tempfile.TemporaryDirectory(prefix="kvloft-batch-")
        text = pathlib.Path(self.folder.name) / "text"
        text.write_text(TEXT * (options.prefix // 40 + 2))
        self.ids = json.loads(self.run("--tokenize", "--prompt-file", text))["tokens"]

    def run(self, *words):
        return subprocess.run([str(word) for word in (self.program, "--model", self.options.model,
                                                      "--json", *words)],
                              check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout

    def answer(self, prefix, sequences, tokens, *words):
        """-> results in order of their lines, the summary."""
        file = pathlib.Path(self.folder.name) / "prompts.jsonl"
        with file.open("w") as out:
            for i in range(sequences):
                ids = self.ids[:prefix] + self.ids[i:i + 12]
                out.write(json.dumps({"prompt": ids, "max_tokens": tokens}) + "\n")
        lines = [json.loads(line) for line in self.run(
            "--prompts", file, "--threads", self.options.threads, "--hash-logits", *words
        ).splitlines()]
        return sorted(lines[:-1], key=lambda line: line["line"]), lines[-1]["summary"]

    def speed(self, summary, cpu_s):
        seconds = cpu_s if self.options.threads == 1 else summary["wall_ms"] * 1e-3
        return summary["output_tokens"] / seconds

    def with_prefix(self):
        """-> tokens/s of the answers: at once with sharing, one after another without."""
        options = self.options
        speeds = ([], [])
        for _ in range(options.rounds):
            ways = []
            for way, words in enumerate((("--parallel", options.sequences),
                                         ("--no-offload", "--parallel", 1))):
                before_s = cpu_seconds()
                lines, summary = self.answer(options.prefix, options.sequences, options.tokens,
                                             *words)
                speeds[way].append(self.speed(summary, cpu_seconds() - before_s))
                ways.append([line["logits_sha256"] for line in lines])
            if ways[0] != ways[1]:
                raise SystemExit("batch_speed: the two ways do not give the same logits")
        return [statistics.median(way) for way in speeds]

    def decode(self):
        """-> {sequences: tokens/s of all of them while they decode}"""
        counts = [1]
        while counts[-1] * 2 <= self.options.sequences:
            counts.append(counts[-1] * 2)
        speeds = {count: [] for count in counts}
        for _ in range(self.options.rounds):
            for count in counts:
                lines, _ = self.answer(256, count, 4 * self.options.tokens, "--parallel", count)
                speeds[count].append(sum(line["decode_tokens_per_s"] for line in lines))
        return {count: statistics.median(speeds[count]) for count in counts}

    def results(self):
        shared, alone = self.with_prefix()
        options = self.options
        pairs = [(f"{options.sequences} sequences, common prefix of {options.prefix}, "
                  f"{options.tokens} new tokens each", shared, alone)]
        decode = self.decode() if options.threads != 1 else {}
        pairs += [(f"decoding {count} at once", speed, decode[1])
                  for count, speed in decode.items()]
        return [{"name": name, "value": value, "unit": "tokens/s", "limit": limit,
                 "ratio": value / limit} for name, value, limit in pairs]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", default="build/release")
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--prefix", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = Bench(options).results()
    if options.json:
        print(json.dumps({"results": results}))
        return
    for result in results:
        print("{name:66} {value:8.1f} {unit}  alone {limit:8.1f}  {ratio:.2f}x".format(**result))


main()
