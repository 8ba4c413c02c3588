"""What the tokenizer references are made on, and how ids are compared; read by their maker and by
the test."""
import functools
import hashlib
import struct

import corpus

TEXT_BYTES = 1000000
BLOCK_TOKENS = 4096  # a difference is found to within a block
RUNS = [("corpus", False), ("special", True), ("special", False)]


@functools.lru_cache(maxsize=None)
def text_of(name):
    return corpus.special_text() if name == "special" else corpus.corpus(size_bytes=TEXT_BYTES)


def digest(ids):
    return hashlib.sha256(struct.pack(f"<{len(ids)}I", *ids)).hexdigest()


def block_digests(ids):
    """Six hex digits for each block: 24 bits find a difference, the whole digest excludes one."""
    return [digest(ids[i:i + BLOCK_TOKENS])[:6] for i in range(0, len(ids), BLOCK_TOKENS)]
