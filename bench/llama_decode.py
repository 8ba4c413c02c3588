#!/usr/bin/env python3
"""llama.cpp behind the options and JSON fields of kvloft-decode, so that bench/engine_vs_llamacpp
runs both alike: a process of its own for each measurement. Needs the python that
`scripts/make-references --python-only` prints.

    llama_decode.py decode   --model FILE --prompt-file FILE --prompt-tokens N --max-tokens N
                             --ctx N --threads N --flash on|off [--save-state FILE]
    llama_decode.py restore  --model FILE --prompt-tokens N --ctx N --threads N --flash on|off
                             --state FILE
    llama_decode.py quantize --model FILE --type F16|Q8_0|Q4_K_M --out FILE --threads N
    llama_decode.py version

What differs is in llama.cpp's favour: it decodes one token to warm up before it is timed, and what
Python took before the model was loaded does not count as its memory."""
import argparse
import json
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "scripts"))
import llama_session  # noqa: E402
from engines import drop_from_page_cache  # noqa: E402


def memory_bytes(field):
    """VmHWM: the most that was ever resident; VmRSS: what is."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith(field + ":"):
                return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def milliseconds_since(start):
    return 1000 * (time.perf_counter() - start)


def open_session(args):
    """-> the session and the fields that tell of its loading."""
    before = memory_bytes("VmRSS")
    start = time.perf_counter()
    session = llama_session.LlamaSession(args.model, args.ctx, args.threads, args.flash)
    return session, {"load_ms": milliseconds_since(start), "before_bytes": before}


def close_report(report):
    report["peak_bytes"] = memory_bytes("VmHWM") - report.pop("before_bytes")
    print(json.dumps(report))


def decode(args):
    with open(args.prompt_file, "rb") as file:
        text = file.read()
    session, report = open_session(args)
    ids = session.tokenize(text)[:args.prompt_tokens]
    session.last_logits(ids[:1])
    session.clear()
    start = time.perf_counter()
    logits = session.last_logits(ids)
    report.update(prompt_tokens=len(ids), prefill_ms=milliseconds_since(start))
    if args.save_state:
        report["state_bytes"] = session.save_state(args.save_state, ids)
    start = time.perf_counter()
    for _ in range(args.max_tokens - 1):  # the first came out of the prefill
        logits = session.last_logits([int(logits.argmax())])
    if args.max_tokens > 1:
        report["decode_tokens_per_s"] = 1000 * (args.max_tokens - 1) / milliseconds_since(start)
    close_report(report)


def restore(args):
    session, report = open_session(args)
    drop_from_page_cache(args.state)
    start = time.perf_counter()
    report["restored_tokens"] = session.load_state(args.state, args.prompt_tokens)
    report["restore_ms"] = milliseconds_since(start)
    close_report(report)


def quantize(args):
    part = args.out + ".part"
    llama_session.requantize(args.model, part, args.type, args.threads)
    os.rename(part, args.out)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("decode", "restore"):
        command = commands.add_parser(name)
        command.add_argument("--model", required=True)
        command.add_argument("--prompt-tokens", type=int, required=True)
        command.add_argument("--ctx", type=int, required=True)
        command.add_argument("--threads", type=int, required=True)
        command.add_argument("--flash", choices=("on", "off"), required=True)
        if name == "decode":
            command.add_argument("--prompt-file", required=True)
            command.add_argument("--max-tokens", type=int, required=True)
            command.add_argument("--save-state")
        else:
            command.add_argument("--state", required=True)
    command = commands.add_parser("quantize")
    command.add_argument("--model", required=True)
    command.add_argument("--type", choices=sorted(llama_session.FILE_TYPES), required=True)
    command.add_argument("--out", required=True)
    command.add_argument("--threads", type=int, required=True)
    commands.add_parser("version")
    return parser.parse_args()


def main():
    args = parse_arguments()
    if args.command == "version":
        print(json.dumps(llama_session.version()))
    else:
        {"decode": decode, "restore": restore, "quantize": quantize}[args.command](args)


if __name__ == "__main__":
    main()
