#!/usr/bin/env python3
"""The demo's story, told with the real programs. Called by scripts/demo.

One conversation about a long text is held under several names, so that its fourth question can be
asked in the same state again and again: with the blocks in device memory, in host memory, on disk,
on disk after kill -9 and a restart, and with nothing cached at all. Every answer's logits must be
the same bits."""
import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

TEXT = pathlib.Path("/usr/share/common-licenses/GPL-3")
TURNS = [
    "What is this text, and who published it?",
    "What must I pass on to the recipients when I convey copies of a program under it?",
    "May I charge money for each copy that I convey?",
    "What happens to my rights under this License if I violate it?",
]
SCENARIOS = ["cold", "warm (device)", "host", "disk", "disk, kill -9, restart"]


def fail(message):
    print(f"demo: {message}", file=sys.stderr)
    sys.exit(1)


class Story:
    def __init__(self, options):
        self.bin = pathlib.Path(options.bin).resolve()
        self.model = options.model
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="kvloft-demo-", dir=options.work))
        self.folder.chmod(0o700)
        self.address = f"ipc://{self.folder}/kvloft.sock"
        self.daemon = None

    def start_daemon(self):
        log = open(self.folder / "kvloftd.log", "a")
        self.daemon = subprocess.Popen(
            [self.bin / "kvloftd", "--listen", self.address, "--device", "cpu",
             "--device-bytes", "320M", "--host-bytes", "320M",
             "--disk-path", self.folder / "disk", "--disk-bytes", "2G"], stderr=log)
        self.tool("status", "--wait", "20")

    def kill_daemon(self, number):
        self.daemon.send_signal(number)
        self.daemon.wait()

    def tool(self, *words):
        command = [self.bin / "kvloft", *words, "--connect", self.address, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            fail(f"`kvloft {' '.join(words)}` failed; the daemon's log: {self.folder}/kvloftd.log")
        return json.loads(done.stdout) if done.stdout.strip() else {}

    def decode(self, *words):
        command = [self.bin / "kvloft-decode", "--model", self.model, "--json", *words]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            fail("kvloft-decode failed")
        return json.loads(done.stdout)

    def ask(self, session, turn, text, tokens):
        prompt = TURNS[turn] if turn else f"{text}\n\n{TURNS[0]}"
        file = self.folder / "prompt.txt"
        file.write_text(prompt)
        return self.decode("--connect", self.address, "--session", session, "--chat",
                           "--prompt-file", str(file), "--max-tokens", str(tokens),
                           "--hash-logits")

    def first_tokens(self, count):
        """The text's longest prefix of whole lines that has at most `count` tokens."""
        lines = TEXT.read_text().splitlines(keepends=True)
        low, high = 0, len(lines)
        while low < high:
            middle = (low + high + 1) // 2
            file = self.folder / "text.txt"
            file.write_text("".join(lines[:middle]))
            tokens = len(self.decode("--prompt-file", str(file), "--tokenize")["tokens"])
            low, high = (middle, high) if tokens <= count else (low, middle - 1)
        return "".join(lines[:low])

    def clean(self):
        if self.daemon and self.daemon.poll() is None:
            self.kill_daemon(signal.SIGTERM)
        shutil.rmtree(self.folder)


def say(text):
    print(f"\n== {text}", flush=True)


def hold_conversation(story, session, text, tokens, show):
    for turn in range(3):
        answer = story.ask(session, turn, text, tokens)
        if not show:
            continue
        restored = sum(answer["restored_tokens"].values())
        print(f"  you    {TURNS[turn]}")
        print(f"  model  {' '.join(answer['text'].split())[:300]}")
        print(f"         {answer['prompt_tokens']} tokens in context, {restored} restored, "
              f"{answer['computed_tokens']} computed, first token after "
              f"{answer['ttft_ms'] / 1000:.2f} s", flush=True)


REHEARSAL = "demo-rehearsal"  # all four turns, so that every scenario finds the same blocks


def prepare(story, name):
    """Brings the conversation's blocks where the scenario wants them."""
    if name == "cold":
        story.tool("clear", "--all")
    elif name == "host":
        story.tool("demote", "--session", REHEARSAL, "--tier", "host")
    elif name.startswith("disk"):
        story.tool("flush")
        story.tool("demote", "--session", REHEARSAL, "--tier", "disk")
    if name.endswith("restart"):
        story.kill_daemon(signal.SIGKILL)
        story.start_daemon()


def run_scenarios(story, text, tokens):
    rows = []
    hold_conversation(story, REHEARSAL, text, tokens, False)
    story.ask(REHEARSAL, 3, text, tokens)
    order = SCENARIOS[1:] + ["cold"]  # cold forgets every block, so it comes last
    for name in order:
        session = "demo-" + "".join(c for c in name if c.isalnum())
        hold_conversation(story, session, text, tokens, False)
        prepare(story, name)
        answer = story.ask(session, 3, text, tokens)
        rows.append((name, answer))
        print(f"  {name}: first token after {answer['ttft_ms']:.0f} ms", flush=True)
    rows.sort(key=lambda row: SCENARIOS.index(row[0]))
    return rows


def print_table(rows, cache_rows):
    cold = rows[0][1]
    print(f"\n{'':24} {'TTFT ms':>9} {'speed-up':>9} {'restored tokens (from)':>26} "
          f"{'computed':>9} {'MB moved':>9} {'decode t/s':>10}  same bits")
    for name, r in rows:
        places = "+".join(k for k, v in r["restored_tokens"].items() if v) or "-"
        restored = sum(r["restored_tokens"].values())
        same = "yes" if r["logits_sha256"] == cold["logits_sha256"] else "NO"
        print(f"{name:24} {r['ttft_ms']:9.0f} {cold['ttft_ms'] / r['ttft_ms']:8.1f}x "
              f"{restored:>12} {places:>13} {r['computed_tokens']:9} "
              f"{r['restored_bytes'] / 1e6:9.1f} {r['decode_tokens_per_s']:10.1f}  {same}")
    print(f"\n{'100-token prompt':24} {'TTFT ms':>9} {'decode t/s':>11} {'speed-up':>9}  same bits")
    base = cache_rows[1][1]
    for name, r in cache_rows:
        same = "yes" if r["logits_sha256"] == base["logits_sha256"] else "NO"
        ratio = r["decode_tokens_per_s"] / base["decode_tokens_per_s"]
        print(f"{name:24} {r['ttft_ms']:9.0f} {r['decode_tokens_per_s']:11.1f} {ratio:8.1f}x  {same}")


def plot(rows, cache_rows, folder):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(12, 4.2), gridspec_kw={"width_ratios": [3, 3, 1.4]}, constrained_layout=True)
    names = [name.replace(", ", ",\n").replace(" (", "\n(") for name, _ in rows]
    ttft = [r["ttft_ms"] / 1000 for _, r in rows]
    speed = [r["decode_tokens_per_s"] for _, r in rows]
    bars = left.bar(names, ttft, color=["#8a8a8a"] + ["#2f6f9f"] * (len(rows) - 1))
    left.bar_label(bars, [f"{t:.2f} s" if t >= 1 else f"{t * 1000:.0f} ms" for t in ttft], padding=2)
    left.set_yscale("log")
    left.set_ylim(top=max(ttft) * 2.5)
    left.set_title(f"Time to first token, {rows[0][1]['prompt_tokens']:,} tokens (log scale)")
    left.set_ylabel("seconds")
    bars = middle.bar(names, speed, color="#2f6f9f")
    middle.bar_label(bars, [f"{s:.1f}" for s in speed], padding=2)
    middle.set_title("Decode speed there")
    middle.set_ylabel("tokens per second")
    bars = right.bar([name for name, _ in cache_rows],
                     [r["decode_tokens_per_s"] for _, r in cache_rows], color=["#2f6f9f", "#8a8a8a"])
    right.bar_label(bars, [f"{r['decode_tokens_per_s']:.1f}" for _, r in cache_rows], padding=2)
    right.set_title("200 tokens after 100")
    for axis in (left, middle, right):
        axis.tick_params(axis="x", labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for kind in ("png", "svg"):
        figure.savefig(folder / f"demo.{kind}", dpi=120)
    print(f"\nplot: {folder}/demo.png and {folder}/demo.svg")


def compare_no_cache(story, text):
    file = story.folder / "short.txt"
    file.write_text(text)
    words = ["--prompt-file", str(file), "--prompt-tokens", "100", "--max-tokens", "200",
             "--hash-logits"]
    return [("cache", story.decode(*words, "--connect", story.address)),
            ("--no-cache", story.decode(*words, "--no-cache"))]


def main():
    parser = argparse.ArgumentParser(prog="scripts/demo")
    parser.add_argument("--bin", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--model", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="a text of 2,000 tokens, not 7,000")
    parser.add_argument("--out", default=".", help="folder for the plots (default: here)")
    parser.add_argument("--work", default=None, help="folder for the daemon's disk tier")
    options = parser.parse_args()
    if not TEXT.exists():
        fail(f"{TEXT} is not there; install base-files")
    out = pathlib.Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    story = Story(options)
    try:
        text = story.first_tokens(2000 if options.quick else 7000)
        tokens = 24 if options.quick else 48
        story.start_daemon()
        say("a conversation about the GNU General Public License, read for the first time")
        hold_conversation(story, "demo", text, tokens, True)
        say("the fourth question, asked with the cache in each place")
        rows = run_scenarios(story, text, tokens)
        say("a short prompt, with a KV cache and without any")
        cache_rows = compare_no_cache(story, text)
        print_table(rows, cache_rows)
        plot(rows, cache_rows, out)
    finally:
        story.clean()
    print(f"\n{time.monotonic() - started:.0f} s in all")
    hashes = {r["logits_sha256"] for _, r in rows}
    if len(hashes) != 1 or len({r["logits_sha256"] for _, r in cache_rows}) != 1:
        fail("the logits were not bit-identical")


main()
