#!/usr/bin/env python3
"""Writes data/tokens.json, corpus_ids.bin.z, greedy.json and perplexity.json with llama.cpp.

Run by scripts/make-references inside its virtual environment. The weights are the demo model's,
requantised to F32: with the quantised file llama.cpp rounds activations to 8 bits, which moves
logit margins by up to 0.5 and would make the comparison meaningless.
"""
import argparse
import hashlib
import json
import os
import re
import struct
import sys
import zlib

import jinja2
import llama_cpp
import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.path.insert(0, os.path.join(HERE, "..", "..", "scripts"))
import corpus  # noqa: E402
import prompts  # noqa: E402
from llama_session import LlamaSession, requantize, version  # noqa: E402

OFFSET_STRIDE = 256


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def ids_digest(ids):
    return sha256(struct.pack(f"<{len(ids)}I", *ids))


def token_entry(session, text, special):
    ids = session.tokenize(text, special)
    offsets, position, total = [], 0, 0
    for index, token in enumerate(ids):
        if index % OFFSET_STRIDE == 0:
            offsets.append(position)
        position += len(session.piece(token))
        total += 1
    return ids, {"special": special, "text_sha256": sha256(text), "text_bytes": len(text),
                 "tokens": total, "ids_sha256": ids_digest(ids),
                 "text_bytes_without_token": len(text) - position,
                 "offset_stride_tokens": OFFSET_STRIDE, "approximate_offsets": offsets}


def make_tokens(session, out):
    packed, entries = b"", {}
    for name, text, special in (("corpus", corpus.corpus(), False),
                                ("special", corpus.special_text(), True),
                                ("special_as_text", corpus.special_text(), False)):
        ids, entry = token_entry(session, text, special)
        entry["first_id"] = len(packed) // 2
        packed += struct.pack(f"<{len(ids)}H", *ids)
        entries[name] = entry
    with open(os.path.join(out, "token_ids.bin.z"), "wb") as file:
        file.write(zlib.compress(packed, 9))
    write_json(os.path.join(out, "tokens.json"), {"made_by": version(), "entries": entries})


def template_of(session):
    source = llama_cpp.llama_model_chat_template(session.model, None).decode("utf-8")
    return jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(source)


def chat_ids(session, text):
    """The template's markers become special tokens, the user's text never does."""
    slot = "\ue000"
    rendered = template_of(session).render(
        messages=[{"role": "user", "content": slot}], add_generation_prompt=True)
    ids = []
    for part in re.split(r"(<\|im_start\|>|<\|im_end\|>)", rendered):
        is_marker = part.startswith("<|im_")
        ids += session.tokenize(part.replace(slot, text).encode("utf-8"), special=is_marker)
    return ids


def prompt_ids(session, prompt):
    text = prompts.text_of(prompt)
    if prompt.get("chat"):
        return chat_ids(session, text.decode("utf-8"))
    ids = session.tokenize(text)
    return ids[:prompt.get("prompt_tokens", len(ids))]


def continue_greedily(session, ids, count):
    session.clear()
    logits = session.last_logits(ids)
    tokens, margins, top_logits = [], [], []
    while True:
        second, first = np.argsort(logits)[-2:]
        tokens.append(int(first))
        margins.append(round(float(logits[first]) - float(logits[second]), 5))
        top_logits.append(round(float(logits[first]), 5))
        if len(tokens) == count or session.is_end(int(first)):
            return tokens, margins, top_logits
        logits = session.last_logits([int(first)])


def make_greedy(session, out):
    results = []
    for prompt in prompts.PROMPTS:
        ids = prompt_ids(session, prompt)
        tokens, margins, top = continue_greedily(session, ids, prompts.NEW_TOKENS)
        results.append({"name": prompt["name"], "prompt_tokens": len(ids),
                        "prompt_ids_sha256": ids_digest(ids), "tokens": tokens,
                        "ended": session.is_end(tokens[-1]), "margins": margins,
                        "top_logits": top})
        text = b"".join(session.piece(t) for t in tokens).decode(errors="replace")
        compared = next((i for i, m in enumerate(margins) if m < prompts.MARGIN), len(margins))
        print(f"{prompt['name']}: {len(ids)} tokens, compared {compared}, {text!r}")
    write_json(os.path.join(out, "greedy.json"), {"made_by": version(), "prompts": results})


def make_perplexity(session, out):
    text = prompts.license_text()
    ids = session.tokenize(text)[:prompts.PERPLEXITY_TOKENS]
    session.clear()
    nll, seen = [], 0
    for rows in session.feed(ids, all_logits=True):
        for row in rows.astype(np.float64):
            seen += 1
            if seen < len(ids):
                top = row.max()
                nll.append(top + np.log(np.exp(row - top).sum()) - row[ids[seen]])
    mean = float(np.mean(nll))
    print(f"nll_mean {mean:.6f} over {len(nll)} positions, ppl {np.exp(mean):.4f}")
    write_json(os.path.join(out, "perplexity.json"), {
        "made_by": version(), "file_sha256": sha256(text), "tokens": len(ids),
        "ids_sha256": ids_digest(ids), "nll_mean": mean, "ppl": float(np.exp(mean))})


def write_json(path, value):
    """One array element of the top two levels a line: small diffs, and not a line a number."""
    with open(path, "w", encoding="utf-8") as file:
        text = json.dumps(value, indent=1)
        file.write(collapse(text) + "\n")


def collapse(text):
    return re.sub(r"\[\s*(-?[0-9][^\[\]{}]*?)\s*\]",
                  lambda m: "[" + re.sub(r"\s+", " ", m.group(1)) + "]", text)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", required=True, help="folder for the F32 model (650 MB)")
    parser.add_argument("--out", required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    f32 = os.path.join(args.work, "model-f32.gguf")
    if not os.path.exists(f32):
        requantize(args.model, f32 + ".part", "F32", args.threads)
        os.rename(f32 + ".part", f32)
    session = LlamaSession(f32, 4096, args.threads)
    make_tokens(session, args.out)
    make_greedy(session, args.out)
    make_perplexity(session, args.out)
    session.close()


if __name__ == "__main__":
    main()
