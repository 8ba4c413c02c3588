#!/usr/bin/env python3
"""What a token costs, from a GGUF file's shapes alone, for bench/engine_vs_llamacpp.

    model_cost.py FILE      -> one JSON object

    matrix_flops      of a prompt's token outside attention, two for a multiply-add; the output
                      matrix is multiplied for a prompt's last token only and left out
    attention_flops   times the tokens in context: scores and the sum of values
    weight_bytes      that a decoded token reads: every matrix, and the output one
    kv_bytes          that it reads of each token in context, of f16
    types             the file's bytes by weight type

Needs PyPI's gguf (the python that `scripts/make-references --python-only` prints)."""
import collections
import json
import sys

from gguf import GGUFReader

KV_ELEMENT_BYTES = 2
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"


def number(reader, architecture, name, default=None):
    field = reader.get_field(f"{architecture}.{name}")
    if field is None and default is None:
        sys.exit(f"model_cost: the file does not say {architecture}.{name}")
    return default if field is None else int(field.contents())


def cost(reader):
    architecture = reader.get_field("general.architecture").contents()
    layers = number(reader, architecture, "block_count")
    heads = number(reader, architecture, "attention.head_count")
    kv_heads = number(reader, architecture, "attention.head_count_kv", heads)
    head_dim = number(reader, architecture, "embedding_length") // heads
    k_dim = number(reader, architecture, "attention.key_length", head_dim)
    v_dim = number(reader, architecture, "attention.value_length", head_dim)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    types = collections.Counter()
    for tensor in tensors.values():
        types[tensor.tensor_type.name] += int(tensor.n_bytes)
    matrix_weights = sum(int(tensor.n_elements) for name, tensor in tensors.items()
                         if name.startswith("blk.") and len(tensor.shape) == 2)
    gathered = int(tensors[EMBEDDING].n_bytes) if OUTPUT in tensors else 0  # one row of it
    return {"matrix_flops": 2 * matrix_weights,
            "attention_flops": 2 * layers * heads * (k_dim + v_dim),
            "weight_bytes": sum(types.values()) - gathered,
            "kv_bytes": layers * kv_heads * (k_dim + v_dim) * KV_ELEMENT_BYTES,
            "types": dict(types.most_common())}


print(json.dumps(cost(GGUFReader(sys.argv[1]))))
