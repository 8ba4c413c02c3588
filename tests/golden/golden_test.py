#!/usr/bin/env python3
"""Compares kvloft-decode on the demo model with the references that llama.cpp made.

    golden_test.py (tokens | greedy | perplexity) --decode PATH [--model FILE] [--quick]
        [--device DEVICE]

Exit status 77 is a skip, with the reason on stderr: no model in the cache of scripts/fetch-model,
no such device, or another edition of the license text than the references were made on. --quick
(sanitizer builds): short prompts and few tokens. Standard library only.
"""
import argparse
import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import corpus  # noqa: E402
import prompts  # noqa: E402

QUICK_PROMPT_TOKENS = 64
QUICK_NEW_TOKENS = 12


class Skip(Exception):
    pass


class Failure(Exception):
    pass


def reference(name):
    with open(os.path.join(HERE, "data", name), encoding="utf-8") as file:
        return json.load(file)


def license_checked():
    """The license text, when it is the edition that the references were made on."""
    expected = reference("perplexity.json")["file_sha256"]
    try:
        text = prompts.license_text()
    except OSError as error:
        raise Skip(f"no license text to read: {error}") from error
    if hashlib.sha256(text).hexdigest() != expected:
        raise Skip(f"{prompts.LICENSE} is another edition than the references were made on")
    return text


class Decode:
    """Runs kvloft-decode on a text and returns its JSON object."""

    def __init__(self, program, model, device):
        self.program = program
        self.model = model
        self.device = device

    def run(self, text, *options):
        with tempfile.NamedTemporaryFile(suffix=".txt") as file:
            file.write(text)
            file.flush()
            command = [self.program, "--model", self.model, "--prompt-file", file.name,
                       "--device", self.device, *options, "--json"]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                  check=False)
        if done.returncode != 0:
            raise Failure(f"exit status {done.returncode} from {' '.join(command)}\n"
                          + done.stderr.decode(errors="replace"))
        try:
            return json.loads(done.stdout)
        except ValueError as error:
            raise Failure(f"no JSON object from {' '.join(command)}: {error}") from error


def first_difference(ours, theirs):
    for index, (a, b) in enumerate(zip(ours, theirs)):
        if a != b:
            return index
    return min(len(ours), len(theirs))


def explain(index, ours, theirs, entry, text):
    stride = entry["offset_stride_tokens"]
    at = entry["approximate_offsets"]
    near = at[min(index // stride, len(at) - 1)] if at else 0
    return (f"token {index} differs (of {len(theirs)}, ours {len(ours)}):\n"
            f"  ours   {ours[max(0, index - 3):index + 6]}\n"
            f"  theirs {theirs[max(0, index - 3):index + 6]}\n"
            f"  up to {stride} tokens after byte {near}: {text[near:near + 600]!r}")


def check_tokens(decode, _quick):
    with open(os.path.join(HERE, "data", "token_ids.bin.z"), "rb") as file:
        packed = zlib.decompress(file.read())
    texts = {"corpus": corpus.corpus(), "special": corpus.special_text(),
             "special_as_text": corpus.special_text()}
    for name, entry in reference("tokens.json")["entries"].items():
        text = texts[name]
        if hashlib.sha256(text).hexdigest() != entry["text_sha256"]:
            raise Failure(f"{name}: corpus.py makes another text than the references were made on")
        theirs = list(struct.unpack_from(f"<{entry['tokens']}H", packed, 2 * entry["first_id"]))
        options = ["--tokenize"] + (["--special"] if entry["special"] else [])
        ours = decode.run(text, *options)["tokens"]
        if ours != theirs:
            index = first_difference(ours, theirs)
            raise Failure(f"{name}: " + explain(index, ours, theirs, entry, text))
        print(f"{name}: {len(text)} bytes, {len(ours)} tokens equal")


def comparable(expected, limit):
    """How many of the reference's tokens must come out: none from the first doubtful one on."""
    tokens, margins = expected["tokens"][:limit], expected["margins"]
    if expected["ended"] and len(tokens) == len(expected["tokens"]):
        tokens = tokens[:-1]  # whether the end token itself is listed is the program's to say
    for index in range(len(tokens)):
        if margins[index] < prompts.MARGIN:
            return index
    return len(tokens)


def check_prompt(decode, prompt, expected, limit):
    options = ["--max-tokens", str(limit), "--temperature", "0", "--no-offload"]
    if "prompt_tokens" in prompt:
        options += ["--prompt-tokens", str(prompt["prompt_tokens"])]
    if prompt.get("chat"):
        options.append("--chat")
    result = decode.run(prompts.text_of(prompt), *options)
    name = prompt["name"]
    if result["prompt_tokens"] != expected["prompt_tokens"]:
        raise Failure(f"{name}: prompt_tokens {result['prompt_tokens']}, "
                      f"not {expected['prompt_tokens']}")
    count = comparable(expected, limit)
    ours = result["output_tokens"]
    if ours[:count] != expected["tokens"][:count]:
        index = first_difference(ours[:count], expected["tokens"][:count])
        raise Failure(f"{name}: output token {index} differs, margin "
                      f"{expected['margins'][index]}\n  ours   {ours}\n"
                      f"  theirs {expected['tokens']}")
    whole = count == len(expected["tokens"]) - 1 and expected["margins"][-1] >= prompts.MARGIN
    if expected["ended"] and whole and limit > count and len(ours) > count + 1:
        raise Failure(f"{name}: goes on after the end of the turn: {ours[count:]}")
    print(f"{name}: {expected['prompt_tokens']} tokens in, {count} compared, equal")
    return count


def check_greedy(decode, quick):
    license_text = None
    try:
        license_text = license_checked()
    except Skip as reason:
        print(f"without the prompts from the license text: {reason}", file=sys.stderr)
    expected_by_name = {entry["name"]: entry for entry in reference("greedy.json")["prompts"]}
    compared = 0
    for prompt in prompts.PROMPTS:
        expected = expected_by_name[prompt["name"]]
        if "file" in prompt and license_text is None:
            continue
        if quick and expected["prompt_tokens"] > QUICK_PROMPT_TOKENS:
            continue
        limit = QUICK_NEW_TOKENS if quick else prompts.NEW_TOKENS
        compared += check_prompt(decode, prompt, expected, limit)
    print(f"{compared} greedy tokens equal")


def check_perplexity(decode, _quick):
    text = license_checked()
    expected = reference("perplexity.json")
    result = decode.run(text, "--prompt-tokens", str(expected["tokens"]), "--perplexity")
    if result["tokens"] != expected["tokens"]:
        raise Failure(f"tokens {result['tokens']}, not {expected['tokens']}")
    ratio = result["ppl"] / expected["ppl"]
    print(f"ppl {result['ppl']:.5f}, llama.cpp {expected['ppl']:.5f}, ratio {ratio:.6f}")
    if not abs(ratio - 1) <= prompts.PERPLEXITY_TOLERANCE:
        raise Failure(f"perplexity is off by {100 * (ratio - 1):.3f} %, allowed is 0.3 %")


CHECKS = {"tokens": check_tokens, "greedy": check_greedy, "perplexity": check_perplexity}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("check", choices=sorted(CHECKS))
    parser.add_argument("--decode", required=True, metavar="PATH")
    parser.add_argument("--model", default=prompts.cached_model(), metavar="FILE")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if not os.path.exists(args.model):
        raise Skip(f"no model at {args.model}: run scripts/fetch-model")
    if args.device.startswith("cuda") and not os.path.exists("/dev/nvidiactl"):
        raise Skip("no NVIDIA GPU")
    CHECKS[args.check](Decode(args.decode, args.model, args.device), args.quick)


if __name__ == "__main__":
    try:
        main()
    except Skip as reason:
        print(f"skipped: {reason}", file=sys.stderr)
        sys.exit(77)
    except Failure as failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        sys.exit(1)
