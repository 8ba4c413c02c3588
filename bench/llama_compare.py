#!/usr/bin/env python3
"""kvloft-decode beside llama.cpp: the same model file, prompts and threads, in one run.

    python=$(scripts/make-references --python-only)
    $python bench/llama_compare.py --decode build/release/bin/kvloft-decode [--json]

Measures prefill and decode speed behind prompts of several lengths, and how long it takes to have a
saved context back: llama.cpp's sequence-state file, page-cold, against kvloft's restore from disk.
Every measurement alternates between the two programs, so that a busy machine troubles both alike;
figures are medians. Without --decode only llama.cpp is measured.

The prompt is the GPL-3 text of /usr/share/common-licenses, or --text FILE, over and over until it
is long enough (the GPL-3 has 7,639 tokens).
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
sys.path.insert(0, os.path.join(ROOT, "scripts"))
try:
    import numpy as np
    from llama_session import LlamaSession, version
except ImportError as error:
    sys.exit(f"llama_compare: {error}; run it with the python that"
             " `scripts/make-references --python-only` prints")

BLOCK_TOKENS = 64
SETTLE_S = 2  # neither program pays for what the other left the disk and the cores to do


def note(text):
    print(time.strftime("%H:%M:%S ") + text, file=sys.stderr, flush=True)


def drop_from_page_cache(path):
    """Writes the file's pages out and lets the system forget them."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


class Llama:
    def __init__(self, args):
        self.args = args
        self.session = LlamaSession(args.model, args.context, args.threads, args.flash_attention)
        with open(args.prompt, "rb") as file:
            self.ids = self.session.tokenize(file.read())
        if len(self.ids) < max(args.sizes + [args.state_tokens]):
            sys.exit(f"llama_compare: {args.text} repeated has only {len(self.ids)} tokens")

    def speeds(self, size):
        """-> prefill tokens/s, decode tokens/s behind it, greedily."""
        self.session.clear()
        start = time.perf_counter()
        logits = self.session.last_logits(self.ids[:size])
        prefilled = time.perf_counter()
        for _ in range(self.args.new_tokens):
            logits = self.session.last_logits([int(np.argmax(logits))])
        done = time.perf_counter()
        return size / (prefilled - start), self.args.new_tokens / (done - prefilled)

    def save_state(self, path):
        tokens = self.ids[:self.args.state_tokens]
        self.session.clear()
        self.session.last_logits(tokens)
        return self.session.save_state(path, tokens)

    def load_state_ms(self, path):
        self.session.clear()
        drop_from_page_cache(path)
        start = time.perf_counter()
        count = self.session.load_state(path, self.args.state_tokens)
        elapsed_ms = 1000 * (time.perf_counter() - start)
        if count != self.args.state_tokens:
            sys.exit(f"llama_compare: llama.cpp restored {count} tokens")
        return elapsed_ms


class Kvloft:
    def __init__(self, args):
        self.args = args

    def run(self, tokens, new_tokens, *options):
        command = [self.args.decode, "--model", self.args.model, "--prompt-file", self.args.prompt,
                   "--prompt-tokens", str(tokens), "--max-tokens", str(new_tokens),
                   "--temperature", "0", "--ctx", str(self.args.context), "--kv-dtype", "f16",
                   "--threads", str(self.args.threads), *options, "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        if done.returncode != 0:
            sys.exit(f"llama_compare: {' '.join(command)}: exit status {done.returncode}: "
                     + done.stderr.decode(errors="replace").strip())
        return json.loads(done.stdout)

    def speeds(self, size):
        """The first of the new tokens comes out of the prefill, so one more is asked for."""
        result = self.run(size, self.args.new_tokens + 1, "--no-offload")
        return (1000 * result["computed_tokens"] / result["prefill_ms"],
                result["decode_tokens_per_s"])

    def with_daemon(self, folder, flush=False):
        """A daemon that starts on the folder, serves one run and dies by SIGKILL."""
        programs = os.path.dirname(os.path.abspath(self.args.decode))
        address = f"ipc://{os.path.abspath(folder)}/run/kvloft.sock"
        daemon = subprocess.Popen(
            [os.path.join(programs, "kvloftd"), "--listen", address, "--device-bytes", "512M",
             "--host-bytes", "512M", "--disk-path", os.path.join(folder, "disk"), "--disk-bytes",
             "2G"], stderr=subprocess.DEVNULL)
        tool = [os.path.join(programs, "kvloft")]
        subprocess.run(tool + ["status", "--wait", "20", "--connect", address], check=True,
                       stdout=subprocess.DEVNULL)
        try:
            result = self.run(self.args.state_tokens, 1, "--connect", address)
            if flush:
                subprocess.run(tool + ["flush", "--connect", address], check=True)
        finally:
            daemon.kill()
            daemon.wait()
        return result

    def restore(self, folder):
        """After SIGKILL and restart, page-cold -> the JSON object, everything restored from disk."""
        for base, _, names in os.walk(os.path.join(folder, "disk")):
            for name in names:
                drop_from_page_cache(os.path.join(base, name))
        result = self.with_daemon(folder)
        wanted = (self.args.state_tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        if result["restored_tokens"]["disk"] != wanted:
            sys.exit(f"llama_compare: restored_tokens {result['restored_tokens']},"
                     f" not {wanted} from disk")
        return result


def result_entry(name, unit, ours, theirs):
    """value: kvloft's median, limit: llama.cpp's, as in `kvloft bench --json`."""
    entry = {"name": name, "unit": unit, "value": None, "limit": None, "ratio": None,
             "value_runs": [round(v, 3) for v in ours], "limit_runs": [round(v, 3) for v in theirs]}
    if ours:
        entry["value"] = round(statistics.median(ours), 3)
    if theirs:
        entry["limit"] = round(statistics.median(theirs), 3)
    if ours and theirs:
        entry["ratio"] = round(statistics.median(ours) / statistics.median(theirs), 3)
    return entry


def measure_speeds(llama, kvloft, size, runs):
    theirs, ours = [], []
    for run in range(runs):
        note(f"{size} tokens, run {run + 1} of {runs}: llama.cpp")
        theirs.append(llama.speeds(size))
        if kvloft:
            note(f"{size} tokens, run {run + 1} of {runs}: kvloft")
            ours.append(kvloft.speeds(size))
    return [result_entry(f"{name} {size}", "tokens/s", [o[i] for o in ours], [t[i] for t in theirs])
            for i, name in enumerate(("prefill", "decode"))]


def measure_restore(llama, kvloft, folder, tokens, runs):
    state = os.path.join(folder, "llama-sequence-state")
    store = os.path.join(folder, "kvloft")
    note(f"{tokens} tokens: llama.cpp prefills and saves its sequence state")
    state_bytes = llama.save_state(state)
    if kvloft:
        note(f"{tokens} tokens: kvloft prefills and stores")
        os.mkdir(store, 0o700)
        kvloft.with_daemon(store, flush=True)
    loads, restores, first_tokens = [], [], []
    for run in range(runs):
        note(f"page-cold restore, run {run + 1} of {runs}")
        time.sleep(SETTLE_S)
        loads.append(llama.load_state_ms(state))
        if kvloft:
            time.sleep(SETTLE_S)
            result = kvloft.restore(store)
            restores.append(result["restore_ms"])
            first_tokens.append(result["ttft_ms"])
    entries = [result_entry(f"page-cold restore {tokens}", "ms", restores, loads),
               result_entry(f"ttft after restore {tokens}", "ms", first_tokens, [])]
    entries[0]["limit_file_bytes"] = state_bytes
    return entries


def print_table(results):
    print(f"{'':28}{'unit':>10}{'llama.cpp':>12}{'kvloft':>12}{'ratio':>8}")
    for entry in results:
        cells = [f"{entry[key]:.{digits}f}" if entry[key] is not None else "-"
                 for key, digits in (("limit", 1), ("value", 1), ("ratio", 2))]
        print(f"{entry['name']:28}{entry['unit']:>10}{cells[0]:>12}{cells[1]:>12}{cells[2]:>8}")


def default_model():
    done = subprocess.run([os.path.join(ROOT, "scripts", "fetch-model")], stdout=subprocess.PIPE,
                          check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return done.stdout.decode().splitlines()[-1]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decode", metavar="PATH", help="kvloft-decode (none: only llama.cpp)")
    parser.add_argument("--model", metavar="FILE", help="default: what scripts/fetch-model prints")
    parser.add_argument("--text", metavar="FILE", default="/usr/share/common-licenses/GPL-3")
    parser.add_argument("--sizes", default="512,2048,7900", help="prompt lengths (%(default)s)")
    parser.add_argument("--state-tokens", type=int, default=7937, help="restored (%(default)s)")
    parser.add_argument("--new-tokens", type=int, default=32, help="decoded (%(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="of each speed (%(default)s)")
    parser.add_argument("--restore-runs", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--flash-attention", choices=sorted(LlamaSession.FLASH), default="auto")
    parser.add_argument("--folder", help="where states are written (default: a temporary folder"
                        " in the current one; tmpfs has no page cache to drop)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.sizes = [int(size) for size in args.sizes.split(",") if size]
    args.model = args.model or default_model()
    return args


def write_prompt(path, text_path, tokens):
    """Eight bytes a token are more than enough: English text has 4.6."""
    with open(text_path, "rb") as file:
        text = file.read()
    with open(path, "wb") as file:
        file.write(text * (8 * tokens // max(len(text), 1) + 1))


def measure(args, folder):
    args.prompt = os.path.join(folder, "prompt.txt")
    write_prompt(args.prompt, args.text, max(args.sizes + [args.state_tokens]))
    llama = Llama(args)
    kvloft = Kvloft(args) if args.decode else None
    results = []
    for size in args.sizes:
        results += measure_speeds(llama, kvloft, size, args.runs)
    if args.state_tokens:
        results += measure_restore(llama, kvloft, folder, args.state_tokens, args.restore_runs)
    return results


def main():
    args = parse_arguments()
    folder = tempfile.mkdtemp(prefix="llama-compare.", dir=args.folder or ".")
    try:
        results = measure(args, folder)
    finally:
        shutil.rmtree(folder)
    settings = {"model": os.path.basename(args.model), "threads": args.threads,
                "context": args.context, "flash_attention": args.flash_attention,
                "batch": LlamaSession.BATCH, "new_tokens": args.new_tokens}
    if args.json:
        print(json.dumps({"made_by": version(), "settings": settings, "results": results}))
    else:
        print_table(results)


if __name__ == "__main__":
    main()
