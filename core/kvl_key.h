/* kvl_key.h - what a KV block is called: namespaces and block keys.
 *
 * Public: installed beside kvloft.h.
 *
 *   namespace = SHA-256 over length-prefixed fields (u32le length, then the bytes), in this order:
 *     model fingerprint 32 | geometry 28: u32le layers, kv_heads, k_dim, v_dim, block_tokens,
 *     layer_group, shard | dtype u32le | rope bytes | layout version u32le | arithmetic id |
 *     fidelity | tenant salt | adapter
 *   of a further layer group of the same model = SHA-256 over, length-prefixed: "layer group" |
 *     namespace of the model's first group 32 | geometry 28
 *   opaque namespace = the same with fingerprint, geometry, dtype, rope and arithmetic id replaced
 *     by: "opaque" | u64le block_bytes | name | fidelity | tenant salt
 *   key[0] = SHA-256(namespace, tokens[0]); key[i] = SHA-256(key[i-1], tokens[i]);
 *   a block's tokens: u32le count, u32le ids, then optional extra bytes
 *   opaque key = SHA-256(namespace, the client's 32 bytes)
 *
 * Equal keys mean equal prefixes under equal arithmetic; nothing else makes two keys equal.
 * Threads: any. Errors: NOMEM when libcrypto cannot allocate; INVALID for a NULL or absurd field.
 */
#ifndef KVL_KEY_H
#define KVL_KEY_H

#include <stdbool.h>
#include <stdint.h>

#include "kvl_err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define KVL_KEY_BYTES 32
#define KVL_LAYOUT_VERSION 1u
#define KVL_BLOCK_TOKENS_DEFAULT 64u
#define KVL_BLOCK_TOKENS_MAX 512u

struct kvl_key {
    uint8_t bytes[KVL_KEY_BYTES];
};

struct kvl_geometry {
    uint32_t layers;
    uint32_t kv_heads;
    uint32_t k_dim; /* elements per head */
    uint32_t v_dim;
    uint32_t block_tokens;
    /* What the layers of this group see: 0: all tokens before them; else that many, their own
     * included, and then a block is of use without its parent. */
    uint32_t layer_group;
    uint32_t shard; /* 0 unless the model is cut over devices */
};

enum kvl_dtype { KVL_DTYPE_F16 = 1, KVL_DTYPE_BF16 = 2, KVL_DTYPE_F32 = 3 };

struct kvl_bytes {
    const void *data;
    uint32_t bytes;
};

/* Everything that makes the bytes of a token block what they are. All pointers are borrowed. */
struct kvl_namespace_desc {
    uint8_t fingerprint[32]; /* over the weights */
    struct kvl_geometry geometry;
    enum kvl_dtype dtype;
    struct kvl_bytes rope; /* RoPE parameters, any unambiguous encoding */
    const char *arithmetic_id;
    const char *fidelity; /* "lossless", or the lossy codec */
    struct kvl_bytes salt;
    struct kvl_bytes adapter;
};

KVL_MUST_CHECK kvl_err kvl_key_of_namespace(
    const struct kvl_namespace_desc *desc, struct kvl_key *out);
/* Unlike layers of a model form groups, each with blocks of its own in a namespace of its own. The
 * first group's is kvl_key_of_namespace's; those of the others follow from it, so that whoever
 * knows one namespace of a session can tell which ones belong to it. */
KVL_MUST_CHECK kvl_err kvl_key_of_layer_group(
    const struct kvl_key *first, const struct kvl_geometry *geometry, struct kvl_key *out);
/* Whether a namespace is of one model with the first group's: that very one, or what follows from
 * it by the namespace's geometry. */
bool kvl_key_is_of_model(
    const struct kvl_key *ns, const struct kvl_geometry *geometry, const struct kvl_key *first);
KVL_MUST_CHECK kvl_err kvl_key_of_opaque_namespace(
    const char *name, uint64_t block_bytes, struct kvl_bytes salt, struct kvl_key *out);

/* parent: the key of the block before, or the namespace for a chain's first block. */
KVL_MUST_CHECK kvl_err kvl_key_of_block(const struct kvl_key *parent, const uint32_t *tokens,
    uint32_t token_count, struct kvl_bytes extra, struct kvl_key *out);
KVL_MUST_CHECK kvl_err kvl_key_of_opaque(
    const struct kvl_key *ns, const uint8_t opaque[32], struct kvl_key *out);
/* Keys of all whole blocks of tokens: token_count / block_tokens entries go to out. */
KVL_MUST_CHECK kvl_err kvl_key_chain(const struct kvl_key *ns, const uint32_t *tokens,
    uint64_t token_count, uint32_t block_tokens, struct kvl_key *out);

/* Bytes of one block, unpadded; 0 when the geometry is absurd or overflows. */
uint64_t kvl_block_payload_bytes(const struct kvl_geometry *geometry, enum kvl_dtype dtype);

/* The first block that a token at this position, or a later one, sees something of: later than 0
 * only where the layers see a window. The geometry must have block_tokens. */
uint64_t kvl_block_first_seen(const struct kvl_geometry *geometry, uint64_t position);

bool kvl_key_equal(const struct kvl_key *a, const struct kvl_key *b);
bool kvl_key_is_zero(const struct kvl_key *key);
/* Writes 2 * KVL_KEY_BYTES hex digits and a NUL. */
void kvl_key_hex(const struct kvl_key *key, char hex[2 * KVL_KEY_BYTES + 1]);
/* Exactly 64 hex digits, or false. */
bool kvl_key_from_hex(const char *hex, struct kvl_key *out);

#ifdef __cplusplus
}
#endif
#endif
