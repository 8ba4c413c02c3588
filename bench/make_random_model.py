#!/usr/bin/env python3
"""Writes a random llama model whose matrices are all of one weight type, to measure their speed.

    make_random_model.py FILE TYPE        (Q4_K, F16, ...)
    kvl_bench_engine FILE 1 96

56.6 million weights: 8 layers of width 768 (a multiple of a K-quant's 256), feed-forward 2,048, 12
heads, 4 KV heads, vocabulary 8,192, tied. Needs PyPI's gguf: scripts/make-references --python-only.
"""
import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T

WIDTH, FFN, LAYERS, HEADS, KV_HEADS, DIM, VOCAB = 768, 2048, 8, 12, 4, 64, 8192
SCALES_AT = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
             T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
             T.IQ4_NL: [0], T.IQ4_XS: [0]}


def matrix(rng, kind, rows, columns):
    if kind not in SCALES_AT:
        values = rng.standard_normal((rows, columns), np.float32) * np.float32(0.02)
        return gguf.quants.quantize(values, kind)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (rows * columns // block, size), dtype=np.uint8)
    for at in SCALES_AT[kind]:
        raw[:, at:at + 2] = np.array([1e-5], np.float16).view(np.uint8)
    return raw.reshape(rows, -1)


def main():
    if len(sys.argv) != 3 or sys.argv[2] not in T.__members__:
        sys.exit(__doc__)
    kind, rng = T[sys.argv[2]], np.random.default_rng(1)
    writer = gguf.GGUFWriter(sys.argv[1], "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(8192)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    ones = np.ones(WIDTH, np.float32)
    writer.add_tensor("output_norm.weight", ones)
    shapes = {"token_embd": (VOCAB, WIDTH)}
    for layer in range(LAYERS):
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", ones)
        writer.add_tensor(f"blk.{layer}.ffn_norm.weight", ones)
        shapes.update({f"blk.{layer}.{name}": shape for name, shape in {
            "attn_q": (HEADS * DIM, WIDTH), "attn_k": (KV_HEADS * DIM, WIDTH),
            "attn_v": (KV_HEADS * DIM, WIDTH), "attn_output": (WIDTH, HEADS * DIM),
            "ffn_gate": (FFN, WIDTH), "ffn_up": (FFN, WIDTH), "ffn_down": (WIDTH, FFN)}.items()})
    for name, shape in shapes.items():
        writer.add_tensor(name + ".weight", matrix(rng, kind, *shape),
                          raw_dtype=None if kind in (T.F32, T.F16) else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
