#!/usr/bin/env python3
"""Writes data/weights.gguf: blocks of every weight type, and what PyPI's gguf makes of them.

For each type a tensor named after it ("Q4_K", 256 columns) and one of its values as F32
("Q4_K.f32"), by gguf.quants.dequantize. Rows: random bits with ordinary scales (two rows); random
bits in all of a block, scales too (NaN and infinite ones among them); the largest scales; the
smallest ones, negative; zeros, of both signs. With --seeds also a file of two blocks of each type,
for the fuzzer's corpus. Run by scripts/make-references.
"""
import argparse
import os

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

COLUMNS = 256
SEED = 17
PLAIN = [T.F32, T.F16, T.BF16]
# Where the f16 scales stand in a block.
SCALES_AT = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
             T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
             T.IQ4_NL: [0], T.IQ4_XS: [0]}


def ordinary(rng, blocks):
    return rng.uniform(0.0005, 0.05, blocks)


# The f16 scales of a row's blocks; None leaves random bits.
ROWS = [ordinary, ordinary, None,
        lambda rng, n: np.full(n, 65504.0),
        lambda rng, n: -rng.integers(1, 40, n) * 2.0 ** -24,
        lambda rng, n: np.where(np.arange(n) % 2 == 0, -0.0, 0.0)]


def make_row(rng, kind, scale_of):
    block, size = gguf.GGML_QUANT_SIZES[kind]
    row = rng.integers(0, 256, (COLUMNS // block, size), dtype=np.uint8)
    for at in SCALES_AT.get(kind, []):
        if scale_of is not None:
            scales = scale_of(rng, len(row)).astype("<f2").reshape(-1, 1)
            row[:, at:at + 2] = scales.view(np.uint8)
    return row.ravel()


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_reference(path):
    rng = np.random.default_rng(SEED)
    writer = gguf.GGUFWriter(path, "weights")
    for kind in PLAIN + list(SCALES_AT):
        rows = [None, None] if kind in PLAIN else ROWS
        raw = np.stack([make_row(rng, kind, scale_of) for scale_of in rows])
        with np.errstate(all="ignore"):
            values = gguf.quants.dequantize(raw, kind).reshape(len(rows), COLUMNS)
        writer.add_tensor(kind.name, raw, raw_dtype=kind)
        writer.add_tensor(kind.name + ".f32", values.astype(np.float32))
    finish(writer)


def write_seed(path, kind):
    rng = np.random.default_rng(SEED)
    size = gguf.GGML_QUANT_SIZES[kind][1]
    writer = gguf.GGUFWriter(path, "seed")
    raw = make_row(rng, kind, ordinary)[:size].reshape(1, size)
    writer.add_tensor("w", np.concatenate([raw, raw[:, ::-1]]), raw_dtype=kind)
    finish(writer)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--seeds", metavar="FOLDER")
    options = parser.parse_args()
    write_reference(os.path.join(options.out, "weights.gguf"))
    for kind in [*PLAIN, *SCALES_AT] if options.seeds else []:
        write_seed(os.path.join(options.seeds, f"type_{kind.name.lower()}.gguf"), kind)


if __name__ == "__main__":
    main()
