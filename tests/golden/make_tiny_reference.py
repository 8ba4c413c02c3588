#!/usr/bin/env python3
"""Writes data/tiny_*.gguf and tiny_reference.json.

Random models of every architecture and kind of RoPE, small enough to keep, and what a forward pass
in plain numpy float64 gives for them: K (after RoPE) and V of every layer at some positions, and the
last logits. K and V of layer l depend on the hidden state that enters layer l, so comparing them
layer by layer finds the first layer that is wrong. Then the tokens that llama.cpp chooses greedily
after them. Run by scripts/make-references.

The pass is written from the definition of the models (RMS norm; attention with rotary embedding,
grouped query heads; SwiGLU; what the architecture adds), reads its weights back from the GGUF file
with dequantisers of its own, and is itself compared with llama.cpp on the same file. llama.cpp has
no models whose keys and values differ in length: there (tiny_dims) numpy is the only reference. Its
CPU code takes GELU from a table of f16, so that tiny_gemma* may differ from it by llama_limit.
"""
import argparse
import json
import os
import struct
import sys
import tempfile

import gguf
import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "scripts"))
from llama_session import LlamaSession, requantize_to_f32, version  # noqa: E402

BLOCK_TOKENS = 16
TOKEN_COUNT = 37
POSITIONS = [0, 1, 15, 16, 17, 31, 32, 36]  # around the block edges, and the last one
LOGIT_ROWS = 3
GREEDY_TOKENS = 24

# The second has more than one 32-element block a row, and heads * head_dim other than the width.
# From the third on: one for each difference between architectures. Llama 3's factors leave quick
# pairs as they are and slow the others down; YaRN's ramp begins and ends within the pairs.
SMALL = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn": 64,
         "rope_base": 10000.0, "epsilon": 1e-5, "tied": True, "brief": True}
SHAPES = {
    "tiny_f32": {"layers": 3, "width": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 64,
                 "rope_base": 10000.0, "epsilon": 1e-5, "tied": False, "seed": 11},
    "tiny_mixed": {"layers": 2, "width": 64, "heads": 6, "kv_heads": 2, "head_dim": 16, "ffn": 96,
                   "rope_base": 100000.0, "epsilon": 1e-6, "tied": True, "seed": 12},
    "tiny_linear": {**SMALL, "scaling": {"type": "linear", "factor": 4.0}, "seed": 13},
    "tiny_llama3": {**SMALL, "rope_base": 500000.0, "seed": 14, "tied": False,
                    "factors": [1.0, 1.0, 1.5, 3.0, 6.0, 8.0, 8.0, 8.0]},
    "tiny_yarn": {**SMALL, "scaling": {"type": "yarn", "factor": 4.0, "original_context": 64},
                  "seed": 15},
    "tiny_qwen2": {**SMALL, "architecture": "qwen2", "halves": True, "bias": True,
                   "head_dim": 8, "rope_base": 1000000.0, "seed": 16,
                   "scaling": {"type": "yarn", "factor": 8.0, "original_context": 512}},
    "tiny_qwen3": {**SMALL, "architecture": "qwen3", "halves": True, "qk_norm": True,
                   "rope_base": 1000000.0, "epsilon": 1e-6, "kv_heads": 1, "seed": 17},
    "tiny_gemma2": {**SMALL, "architecture": "gemma2", "halves": True, "post_norms": True,
                    "embedding_scale": 32 ** 0.5, "gelu": True, "attention_softcap": 8.0,
                    "logit_softcap": 6.0, "window": 12, "layers": 3, "seed": 19,
                    "llama_limit": 1e-3},
    "tiny_gemma": {**SMALL, "architecture": "gemma", "halves": True, "gelu": True,
                   "embedding_scale": 32 ** 0.5, "seed": 20, "llama_limit": 1e-3},
    "tiny_gemma3": {**SMALL, "architecture": "gemma3", "halves": True, "gelu": True,
                    "qk_norm": True, "post_norms": True, "embedding_scale": 32 ** 0.5,
                    "rope_base": 1000000.0, "windowed_rope_base": 10000.0, "window": 12,
                    "scaling": {"type": "linear", "factor": 8.0}, "layers": 3, "seed": 21,
                    "window_pattern": 2, "llama_limit": 1e-3},
    "tiny_dims": {**SMALL, "architecture": "qwen3", "halves": True, "qk_norm": True,
                  "head_dim": 24, "v_dim": 16, "rope_dims": 12, "numpy_only": True, "seed": 18},
}

F32, F16 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16
Q4_1, Q8_0 = gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0

MIXED_TYPES = {"token_embd": Q8_0, "attn_q": Q4_1, "attn_k": Q8_0, "attn_v": F16,
               "attn_output": F32, "ffn_gate": Q4_1, "ffn_up": F16, "ffn_down": Q8_0}

MERGES = ["t h", "th e", "i n", "e r", "a n", "o n", "\u0120 t", "\u0120 the", "\u0120 a", "r e",
          "\u0120 \u0120", "e n", "o r", "\u0120 w", "i s", "a t", "in g", "o u", "\u0120 s",
          "\u0120s t", "e s", "\u0120 o", "\u0120o f", "l l", "e d", "i t", "\u010a \u010a",
          "\u0120a n", "\u0120an d"]
TEMPLATE = ("{%- for turn in messages -%}{{- '<|im_start|>' + turn.role + '\n' -}}"
            "{{- turn.content + '<|im_end|>\n' -}}{%- endfor -%}"
            "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}")


def byte_characters():
    """GPT-2's printable stand-ins of the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    table = {b: chr(b) for b in printable}
    table.update({b: chr(256 + i) for i, b in enumerate(others)})
    return [table[b] for b in range(256)]


def vocabulary():
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    merged = [m.replace(" ", "") for m in MERGES]
    tokens = special + byte_characters() + merged
    control, normal = 3, 1
    return tokens, [control] * len(special) + [normal] * (len(tokens) - len(special))


def random_weights(shape, vocab):
    """name -> float32 [rows][columns]; scaled so that attention is neither flat nor one-hot."""
    rng = np.random.default_rng(shape["seed"])

    def matrix(rows, columns, gain=1.0):
        return (rng.standard_normal((rows, columns)) * gain / columns ** 0.5).astype(np.float32)

    def norm(n):
        return (1.0 + 0.2 * rng.standard_normal(n)).astype(np.float32)

    def bias(n):
        return (0.5 * rng.standard_normal(n)).astype(np.float32)

    width, ffn, head = shape["width"], shape["ffn"], shape["head_dim"]
    v_head = shape.get("v_dim", head)
    gain = 2.0 / shape.get("embedding_scale", 1)
    weights = {"token_embd": matrix(vocab, width, gain), "output_norm": norm(width)}
    if not shape["tied"]:
        weights["output"] = matrix(vocab, width, 2.0)
    for layer in range(shape["layers"]):
        weights.update({f"blk.{layer}.{name}": value for name, value in {
            "attn_norm": norm(width), "ffn_norm": norm(width),
            "attn_q": matrix(shape["heads"] * head, width, 2.0),
            "attn_k": matrix(shape["kv_heads"] * head, width, 2.0),
            "attn_v": matrix(shape["kv_heads"] * v_head, width),
            "attn_output": matrix(width, shape["heads"] * v_head),
            "ffn_gate": matrix(ffn, width, 1.5), "ffn_up": matrix(ffn, width),
            "ffn_down": matrix(width, ffn)}.items()})
        if shape.get("bias"):
            weights.update({f"blk.{layer}.attn_{part}.bias": bias(heads * dim)
                            for part, heads, dim in (("q", shape["heads"], head),
                                                     ("k", shape["kv_heads"], head),
                                                     ("v", shape["kv_heads"], v_head))})
        if shape.get("qk_norm"):
            weights.update({f"blk.{layer}.attn_{part}_norm": norm(head) for part in "qk"})
        if shape.get("post_norms"):
            weights.update({f"blk.{layer}.post_{half}_norm": norm(width)
                            for half in ("attention", "ffw")})
    if "factors" in shape:
        weights["rope_freqs"] = np.array(shape["factors"], np.float32)
    return weights


def quantise(values, kind):
    """Rows of 32-element blocks as ggml stores them."""
    blocks = values.reshape(values.shape[0], -1, 32).astype(np.float32)
    if kind == Q8_0:
        scale = (np.abs(blocks).max(-1, keepdims=True) / 127).astype(np.float16)
        quants = np.round(blocks / scale.astype(np.float32)).clip(-127, 127).astype(np.int8)
        parts = [scale.view(np.uint8), quants.view(np.uint8)]
    else:  # Q4_1: element i in the low nibble of byte i, element i + 16 in the high one
        low = blocks.min(-1, keepdims=True).astype(np.float16)
        scale = ((blocks.max(-1, keepdims=True) - low) / 15).astype(np.float16)
        quants = np.round((blocks - low) / scale.astype(np.float32)).clip(0, 15).astype(np.uint8)
        parts = [scale.view(np.uint8), low.view(np.uint8), quants[..., :16] | quants[..., 16:] << 4]
    return np.concatenate(parts, -1).reshape(values.shape[0], -1)


def dequantise(raw, kind, rows, columns):
    """float64 [rows][columns] from a tensor's bytes in the file."""
    if kind == F32:
        return np.frombuffer(raw, "<f4").astype(np.float64).reshape(rows, columns)
    if kind == F16:
        return np.frombuffer(raw, "<f2").astype(np.float64).reshape(rows, columns)
    out = []
    size = {Q8_0: 34, Q4_1: 20}[kind]
    for at in range(0, len(raw), size):
        if kind == Q8_0:
            scale, *quants = struct.unpack_from("<e32b", raw, at)
            out.extend(scale * q for q in quants)
        else:
            scale, low, *packed = struct.unpack_from("<ee16B", raw, at)
            out.extend(scale * (q & 15) + low for q in packed)
            out.extend(scale * (q >> 4) + low for q in packed)
    return np.array(out, np.float64).reshape(rows, columns)


def kind_of(name, shape, tensor, values):
    if name == "tiny_mixed":
        return MIXED_TYPES.get(tensor.rsplit(".", 1)[-1], F32)
    return Q8_0 if shape.get("brief") and values.ndim == 2 else F32


def write_model(path, name, shape, weights):
    writer = gguf.GGUFWriter(path, shape.get("architecture", "llama"))
    tokens, types = vocabulary()
    writer.add_name(name)
    writer.add_block_count(shape["layers"])
    writer.add_context_length(4096)
    writer.add_embedding_length(shape["width"])
    writer.add_feed_forward_length(shape["ffn"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_key_length(shape["head_dim"])
    writer.add_value_length(shape.get("v_dim", shape["head_dim"]))
    writer.add_rope_dimension_count(shape.get("rope_dims", shape["head_dim"]))
    writer.add_rope_freq_base(shape["rope_base"])
    if "scaling" in shape:
        writer.add_rope_scaling_type(gguf.RopeScalingType(shape["scaling"]["type"]))
        writer.add_rope_scaling_factor(shape["scaling"]["factor"])
        if "original_context" in shape["scaling"]:
            writer.add_rope_scaling_orig_ctx_len(shape["scaling"]["original_context"])
    writer.add_layer_norm_rms_eps(shape["epsilon"])
    if "window" in shape:
        writer.add_sliding_window(shape["window"])
    if "window_pattern" in shape:
        writer.add_sliding_window_pattern(shape["window_pattern"])
    if "attention_softcap" in shape:
        writer.add_attn_logit_softcapping(shape["attention_softcap"])
        writer.add_final_logit_softcapping(shape["logit_softcap"])
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for tensor, values in weights.items():
        file_name = tensor if tensor.endswith(".bias") else tensor + ".weight"
        kind = kind_of(name, shape, tensor, values)
        if kind in (F32, F16):
            writer.add_tensor(file_name, values.astype([np.float32, np.float16][kind]))
        else:
            writer.add_tensor(file_name, quantise(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_weights(path):
    weights = {}
    for tensor in gguf.GGUFReader(path).tensors:
        columns, rows = [int(n) for n in tensor.shape] + [1] * (2 - len(tensor.shape))
        values = dequantise(tensor.data.tobytes(), tensor.tensor_type, rows, columns)
        weights[tensor.name.removesuffix(".weight")] = values
    return weights


def rms_norm(x, gain, epsilon):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * gain


def frequencies(shape, is_windowed):
    """-> radians a position of each pair, magnitude. YaRN as its paper has it (section 3.4)."""
    dims, base = shape.get("rope_dims", shape["head_dim"]), shape["rope_base"]
    if is_windowed and "windowed_rope_base" in shape:
        return shape["windowed_rope_base"] ** (-np.arange(0, dims, 2) / dims), 1.0
    plain = base ** (-np.arange(0, dims, 2) / dims)
    scaling = shape.get("scaling", {"type": "none"})
    if "factors" in shape:
        return plain / np.array(shape["factors"]), 1.0
    if scaling["type"] == "linear":
        return plain / scaling["factor"], 1.0
    if scaling["type"] == "none":
        return plain, 1.0

    def pair_of(rotations):
        return (dims * np.log(scaling["original_context"] / (rotations * 2 * np.pi))
                / (2 * np.log(base)))

    low, high = max(np.floor(pair_of(32)), 0), min(np.ceil(pair_of(1)), dims - 1)
    interpolated = ((np.arange(dims // 2) - low) / max(high - low, 0.001)).clip(0, 1)
    return (plain * (1 - interpolated) + plain / scaling["factor"] * interpolated,
            0.1 * np.log(scaling["factor"]) + 1.0)


def is_windowed(shape, layer):
    return "window" in shape and layer % 2 == 0


def rotate(x, shape, layer):
    """x [token][head][dim]: pair i at position p turns by p * frequency i. Pairs are adjacent, or
    the two halves of the rotated dims; what lies behind those stays."""
    angles, magnitude = frequencies(shape, is_windowed(shape, layer))
    angles = np.outer(np.arange(len(x)), angles)[:, None, :]
    cosines, sines = np.cos(angles) * magnitude, np.sin(angles) * magnitude
    pairs = angles.shape[-1]
    first, second = ((slice(0, pairs), slice(pairs, 2 * pairs)) if shape.get("halves")
                     else (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)))
    out = x.copy()
    out[..., first] = x[..., first] * cosines - x[..., second] * sines
    out[..., second] = x[..., first] * sines + x[..., second] * cosines
    return out


def softcap(x, cap):
    return cap * np.tanh(x / cap) if cap else x


def attend(q, k, v, cap, window):
    """Causal attention; query head h reads KV head h // (heads / kv_heads). window: positions that
    a token sees, its own included; 0 is all."""
    count, heads, dim = q.shape
    group = heads // k.shape[1]
    mask = np.triu(np.full((count, count), -np.inf), 1)
    if window:
        mask += np.tril(np.full((count, count), -np.inf), -window)
    out = np.empty((count, heads, v.shape[-1]))
    for head in range(heads):
        scores = softcap(q[:, head] @ k[:, head // group].T / dim ** 0.5, cap) + mask
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, head] = scores / scores.sum(-1, keepdims=True) @ v[:, head // group]
    return out.reshape(count, -1)


def project(x, weights, layer, part, shape):
    """Q, K or V of a layer: [token][head][dim]."""
    dim = shape.get("v_dim", shape["head_dim"]) if part == "v" else shape["head_dim"]
    out = x @ weights[f"blk.{layer}.attn_{part}"].T
    if shape.get("bias"):
        out = out + weights[f"blk.{layer}.attn_{part}.bias"].ravel()
    out = out.reshape(len(x), -1, dim)
    if part == "v":
        return out
    if shape.get("qk_norm"):
        gain = weights[f"blk.{layer}.attn_{part}_norm"].ravel()
        out = rms_norm(out, gain, float(np.float32(shape["epsilon"])))
    return rotate(out, shape, layer)


def activate(x, shape):
    if shape.get("gelu"):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x ** 3)))
    return x / (1 + np.exp(-x))


def forward(weights, shape, tokens):
    """-> K and V per layer [token][kv_head][dim], logits [token][vocab]."""
    epsilon = float(np.float32(shape["epsilon"]))
    hidden = weights["token_embd"][tokens] * shape.get("embedding_scale", 1)

    def add(given, layer, half):
        if shape.get("post_norms"):
            given = rms_norm(given, weights[f"blk.{layer}.post_{half}_norm"].ravel(), epsilon)
        return hidden + given

    keys, values = [], []
    for layer in range(shape["layers"]):
        w = {n: weights[f"blk.{layer}.{n}"] for n in (
            "attn_norm", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")}
        x = rms_norm(hidden, w["attn_norm"].ravel(), epsilon)
        q, k, v = (project(x, weights, layer, part, shape) for part in "qkv")
        keys.append(k)
        values.append(v)
        window = shape["window"] if is_windowed(shape, layer) else 0
        attended = attend(q, k, v, shape.get("attention_softcap"), window)
        hidden = add(attended @ w["attn_output"].T, layer, "attention")
        x = rms_norm(hidden, w["ffn_norm"].ravel(), epsilon)
        gate = x @ w["ffn_gate"].T
        hidden = add((activate(gate, shape) * (x @ w["ffn_up"].T)) @ w["ffn_down"].T, layer, "ffw")
    x = rms_norm(hidden, weights["output_norm"].ravel(), epsilon)
    logits = x @ weights.get("output", weights["token_embd"]).T
    return keys, values, softcap(logits, shape.get("logit_softcap"))


def margin(logits):
    """Between the first and the second, as a share of the largest logit."""
    second, first = np.sort(logits)[-2:]
    return float((first - second) / np.abs(logits).max())


def ask_llama(path, tokens, logits, limit):
    """Largest difference of the last logits from llama.cpp's, over the largest logit; then the
    tokens that it chooses, and their margins."""
    with tempfile.TemporaryDirectory() as folder:
        f32 = os.path.join(folder, "f32.gguf")
        requantize_to_f32(path, f32, 1)
        session = LlamaSession(f32, 256, 1, kv_f32=True)
        theirs = session.last_logits(tokens)
        difference = float(np.abs(theirs - logits[-1]).max() / np.abs(logits[-1]).max())
        chosen, margins = [], []
        for _ in range(GREEDY_TOKENS):
            chosen.append(int(theirs.argmax()))
            margins.append(margin(theirs))
            theirs = session.last_logits(chosen[-1:])
        session.close()
    assert difference < limit, f"{path}: numpy and llama.cpp differ by {difference}"
    return difference, chosen, margins


def ask_numpy(weights, shape, tokens):
    chosen, margins = [], []
    for _ in range(GREEDY_TOKENS):
        logits = forward(weights, shape, tokens + chosen)[2][-1]
        chosen.append(int(logits.argmax()))
        margins.append(margin(logits))
    return chosen, margins


def rounded(values, digits=9):
    return [float(f"{value:.{digits}g}") for value in np.asarray(values).ravel()]


def make(name, shape, out):
    path = os.path.join(out, name + ".gguf")
    write_model(path, name, shape, random_weights(shape, len(vocabulary()[0])))
    rng = np.random.default_rng(3)
    tokens = [int(t) for t in rng.integers(3, len(vocabulary()[0]), TOKEN_COUNT)]
    weights = read_weights(path)
    keys, values, logits = forward(weights, shape, tokens)
    difference = None
    if shape.get("numpy_only"):
        chosen, margins = ask_numpy(weights, shape, tokens)
    else:
        difference, chosen, margins = ask_llama(path, tokens, logits, shape.get("llama_limit", 1e-5))
    positions = POSITIONS[1::3] + POSITIONS[-1:] if shape.get("brief") else POSITIONS
    rows = 1 if shape.get("brief") else LOGIT_ROWS
    return {"file": name + ".gguf", "tokens": tokens, "block_tokens": BLOCK_TOKENS,
            "positions": positions, "largest_difference_from_llama_cpp":
                difference if difference is None else float(f"{difference:.2g}"),
            "greedy": chosen, "margins": rounded(margins, 3),
            "k": [rounded(k[positions]) for k in keys],
            "v": [rounded(v[positions]) for v in values],
            "logits": [rounded(row) for row in logits[-rows:]]}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    out = parser.parse_args().out
    models = [make(name, shape, out) for name, shape in SHAPES.items()]
    lines = ",\n".join(json.dumps(model).replace(", \"", ",\n  \"") for model in models)
    with open(os.path.join(out, "tiny_reference.json"), "w", encoding="utf-8") as file:
        file.write("{\"made_by\": " + json.dumps(dict(version(), numpy=np.__version__))
                   + ",\n\"models\": [\n" + lines + "\n]}\n")
    for model in models:
        print(model["file"], "differs from llama.cpp by",
              model["largest_difference_from_llama_cpp"], "of the largest logit")


if __name__ == "__main__":
    main()
