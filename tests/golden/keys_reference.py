#!/usr/bin/env python3
"""Prints golden vectors of block keys as JSON: DESIGN.md's definition, written down a second time.

    ns = SHA-256 over fields, each a u32le length and its bytes:
         fingerprint 32 | geometry 28 (layers, kv_heads, k_dim, v_dim, block_tokens, layer_group,
         shard: u32le) | dtype u32le | rope | layout version u32le | arithmetic id | fidelity |
         tenant salt | adapter
    key[0] = SHA-256(ns || tokens[0]);  key[i] = SHA-256(key[i-1] || tokens[i])
    tokens = u32le count || u32le ids || extra bytes

Offload clients' own keys (core/kvl_key.h): ns = SHA-256 over the fields "opaque" | u64le
block_bytes | name | fidelity | tenant salt; key = SHA-256(ns || the client's 32 bytes).

Further layer groups of a model (ditto): ns = SHA-256 over the fields "layer group" | the first
group's ns | geometry.

Standard library only. Never change it to agree with the C code: one of the two is wrong then.
"""
import hashlib
import json
import struct

GEOMETRY = ["layers", "kv_heads", "k_dim", "v_dim", "block_tokens", "layer_group", "shard"]
DTYPES = {"f16": 1, "bf16": 2, "f32": 3}
LAYOUT_VERSION = 1

BASE = {
    "fingerprint": bytes(range(32)).hex(),
    "geometry": {"layers": 30, "kv_heads": 3, "k_dim": 64, "v_dim": 64, "block_tokens": 64,
                 "layer_group": 0, "shard": 0},
    "dtype": "f16",
    "rope": struct.pack("<If", 64, 100000.0).hex(),
    "layout_version": LAYOUT_VERSION,
    "arithmetic_id": "cpu-f32-seq-1",
    "fidelity": "lossless",
    "salt": "",
    "adapter": "",
}


def field(data):
    return struct.pack("<I", len(data)) + data


def u32(value):
    return struct.pack("<I", value)


def namespace(desc):
    fields = [
        bytes.fromhex(desc["fingerprint"]),
        b"".join(u32(desc["geometry"][name]) for name in GEOMETRY),
        u32(DTYPES[desc["dtype"]]),
        bytes.fromhex(desc["rope"]),
        u32(desc["layout_version"]),
        desc["arithmetic_id"].encode("ascii"),
        desc["fidelity"].encode("ascii"),
        bytes.fromhex(desc["salt"]),
        bytes.fromhex(desc["adapter"]),
    ]
    return hashlib.sha256(b"".join(field(data) for data in fields)).digest()


def block_key(parent, block):
    tokens = block["tokens"]
    data = u32(len(tokens)) + struct.pack(f"<{len(tokens)}I", *tokens)
    return hashlib.sha256(parent + data + bytes.fromhex(block["extra"])).digest()


def vector(name, blocks, **changes):
    desc = dict(BASE, **changes)
    parent = namespace(desc)
    chain = [{"tokens": tokens, "extra": extra.hex()} for tokens, extra in blocks]
    result = {"name": name, "desc": desc, "namespace": parent.hex(), "blocks": chain}
    for block in chain:
        parent = block_key(parent, block)
        block["key"] = parent.hex()
    return result


def ids(start, count, step=7, vocab=49152):
    return [(start + i * step) % vocab for i in range(count)]


def geometry(**changes):
    return dict(BASE["geometry"], **changes)


def vectors():
    whole = (ids(1, 64), b"")
    return [
        vector("one block", [whole]),
        vector("chain of three with a tail", [whole, (ids(500, 64), b""), (ids(9, 5), b"")]),
        vector("the same block twice in a chain", [whole, whole]),
        vector("tail of one token", [([49151], b"")]),
        vector("ids over 16 bits and the largest",
               [([0, 65535, 65536, 1 << 31, (1 << 32) - 1], b"")]),
        vector("extra bytes", [(ids(1, 64), hashlib.sha256(b"image").digest())]),
        vector("extra bytes in the middle of a chain",
               [whole, (ids(2, 64), b"\x00"), (ids(3, 64), b"")]),
        vector("salt", [whole], salt=b"tenant-a".hex()),
        vector("the same bytes as adapter, not salt", [whole], adapter=b"tenant-a".hex()),
        vector("binary salt of 300 bytes", [whole], salt=bytes(i % 256 for i in range(300)).hex()),
        vector("blocks of 16", [(ids(1, 16), b""), (ids(113, 16), b"")],
               geometry=geometry(block_tokens=16)),
        vector("block of 512", [(ids(1, 512), b"")], geometry=geometry(block_tokens=512)),
        vector("other dtype", [whole], dtype="bf16"),
        vector("f32", [whole], dtype="f32"),
        vector("unlike K and V, a layer group and a shard", [whole],
               geometry=geometry(k_dim=192, v_dim=128, layer_group=1, shard=3)),
        vector("no rope bytes", [whole], rope=""),
        vector("other arithmetic", [whole], arithmetic_id="cuda-f16-1"),
        vector("lossy codec", [whole], fidelity="int8-channel"),
        vector("other weights", [whole], fingerprint=hashlib.sha256(b"weights").hexdigest()),
    ]


def opaque_vector(name, block_bytes, salt=b"", fidelity="lossless"):
    fields = [b"opaque", struct.pack("<Q", block_bytes), name.encode("utf-8"),
              fidelity.encode("ascii"), salt]
    ns = hashlib.sha256(b"".join(field(data) for data in fields)).digest()
    opaque = hashlib.sha256(name.encode("utf-8")).digest()
    return {"name": name, "block_bytes": block_bytes, "salt": salt.hex(), "fidelity": fidelity,
            "namespace": ns.hex(), "opaque": opaque.hex(),
            "key": hashlib.sha256(ns + opaque).hexdigest()}


def opaque_vectors():
    return [
        opaque_vector("vllm", 1 << 20),
        opaque_vector("vllm", 1 << 20, salt=b"tenant-a"),
        opaque_vector("over 4 GiB", (1 << 32) + 4096),
        opaque_vector("", 1),
    ]


def group_vector(**changes):
    first = namespace(BASE)
    group = geometry(**changes)
    fields = [b"layer group", first, b"".join(u32(group[name]) for name in GEOMETRY)]
    return {"first": first.hex(), "geometry": group,
            "namespace": hashlib.sha256(b"".join(field(data) for data in fields)).hexdigest()}


def group_vectors():
    return [
        group_vector(layer_group=1024),
        group_vector(layer_group=4096, layers=13),
    ]


def lines(entries):
    """One vector a line."""
    return ",\n".join("  " + json.dumps(entry) for entry in entries)


if __name__ == "__main__":
    print("{\"made_by\": \"tests/golden/keys_reference.py\", \"vectors\": [\n" + lines(vectors())
          + "\n], \"opaque\": [\n" + lines(opaque_vectors())
          + "\n], \"groups\": [\n" + lines(group_vectors()) + "\n]}")
