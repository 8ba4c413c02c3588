#!/usr/bin/env python3
"""Compares kvloft-decode's tokenizers with the references that llama.cpp made (README.md here).

    tokenizers_test.py (trained | real) --decode PATH [--quick]

trained: the small vocabularies of data/, each pre-tokenizer on 1 MB. real: vocabularies of real
models, from the folder where scripts/make-references keeps them; exit status 77 without them.
--quick (sanitizer builds): the beginning of the text only. Standard library only.
"""
import argparse
import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import tokenizer_texts  # noqa: E402

DATA = os.path.join(HERE, "data")
QUICK_BYTES = 60000


class Skip(Exception):
    pass


class Failure(Exception):
    pass


def gguf_string(text):
    return struct.pack("<Q", len(text)) + text


def with_pre(vocabulary, pre):
    """The same file with another tokenizer.ggml.pre; it has no tensors whose places could move."""
    key = gguf_string(b"tokenizer.ggml.pre") + struct.pack("<I", 8)
    at = vocabulary.index(key) + len(key)
    (old_bytes,) = struct.unpack_from("<Q", vocabulary, at)
    return vocabulary[:at] + gguf_string(pre.encode()) + vocabulary[at + 8 + old_bytes:]


def real_folder():
    work = os.environ.get("KVLOFT_REFERENCE_DIR")
    if not work:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        work = os.path.join(cache, "kvloft", "references")
    return os.path.join(work, "llama.cpp", "models")


def vocabulary_of(entry):
    if "vocab" in entry:
        with open(os.path.join(DATA, entry["vocab"]), "rb") as file:
            vocabulary = file.read()
        return with_pre(vocabulary, entry["pre"]) if "pre" in entry else vocabulary
    path = os.path.join(real_folder(), entry["real"])
    try:
        with open(path, "rb") as file:
            vocabulary = file.read()
    except OSError as error:
        raise Skip(f"no {path}: scripts/make-references --only tokenizers gets it") from error
    if hashlib.sha256(vocabulary).hexdigest() != entry["file_sha256"]:
        raise Failure(f"{path} is another file than the references were made with")
    return vocabulary


def tokenize(decode, folder, vocabulary, text, special):
    paths = [os.path.join(folder, name) for name in ("vocabulary.gguf", "text")]
    for path, content in zip(paths, (vocabulary, text)):
        with open(path, "wb") as file:
            file.write(content)
    command = [decode, "--model", paths[0], "--prompt-file", paths[1], "--tokenize", "--json"]
    done = subprocess.run(command + (["--special"] if special else []), stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise Failure(done.stderr.decode(errors="replace"))
    return json.loads(done.stdout)["tokens"]


def compare(ours, entry, whole):
    """What is wrong, or None."""
    theirs = [entry["blocks"][i:i + 6] for i in range(0, len(entry["blocks"]), 6)]
    blocks = tokenizer_texts.block_digests(ours)
    if not whole:  # the last words of a cut text may differ
        blocks = blocks[:-1]
        theirs = theirs[:len(blocks)]
    for index, (a, b) in enumerate(zip(blocks, theirs)):
        if a != b:
            first = index * tokenizer_texts.BLOCK_TOKENS
            return f"ids {first} to {first + tokenizer_texts.BLOCK_TOKENS} differ"
    if len(blocks) != len(theirs):
        return f"{len(blocks)} blocks, not {len(theirs)}"
    if whole and tokenizer_texts.digest(ours) != entry["ids_sha256"]:
        return f"{len(ours)} ids, not {entry['tokens']}, or others"
    return None


def check_entry(decode, folder, entry, quick):
    text = tokenizer_texts.text_of(entry["text"])
    whole = not quick or len(text) <= QUICK_BYTES
    part = text if whole else text[:QUICK_BYTES].decode("utf-8", "ignore").encode("utf-8")
    name = " ".join(str(entry[key]) for key in ("vocab", "real", "pre") if key in entry)
    ours = tokenize(decode, folder, vocabulary_of(entry), part, entry["special"])
    wrong = compare(ours, entry, whole)
    if wrong:
        raise Failure(f"{name}, {entry['text']}, special {entry['special']}: {wrong}")
    print(f"{name}: {len(part)} bytes, {len(ours)} tokens equal")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", choices=["trained", "real"])
    parser.add_argument("--decode", required=True, metavar="PATH")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    with open(os.path.join(DATA, "tokenizers.json"), encoding="utf-8") as file:
        reference = json.load(file)
    for name, digest in reference["texts_sha256"].items():
        if hashlib.sha256(tokenizer_texts.text_of(name)).hexdigest() != digest:
            raise Failure(f"{name}: corpus.py makes another text than the references were made on")
    key = "vocab" if args.which == "trained" else "real"
    with tempfile.TemporaryDirectory() as folder:
        for entry in reference["entries"]:
            if key in entry:
                check_entry(args.decode, folder, entry, args.quick)


if __name__ == "__main__":
    try:
        main()
    except Skip as reason:
        print(f"skipped: {reason}", file=sys.stderr)
        sys.exit(77)
    except Failure as failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        sys.exit(1)
