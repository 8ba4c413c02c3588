/* kvl_key.c - block keys and namespaces: SHA-256 over the byte format that kvl_key.h fixes.
 *
 * The digest is fetched once per call and its context reused over a chain: no state outlives a
 * call, so any thread may call and nothing leaks at exit. */
#include "kvl_key.h"

#include <openssl/evp.h>
#include <string.h>

#include "little_endian.h"

#define KVL_LAYERS_MAX 4096u
#define KVL_HEADS_MAX 65536u
#define KVL_FIELD_BYTES_MAX (1u << 20)
#define KVL_GEOMETRY_FIELDS 7u

/* ok turns false at the first failure and stays so: callers check once, at the end. */
struct hasher {
    EVP_MD *digest;
    EVP_MD_CTX *context;
    bool ok;
};

static void hasher_init(struct hasher *hasher) {
    hasher->digest = EVP_MD_fetch(NULL, "SHA256", NULL);
    hasher->context = EVP_MD_CTX_new();
    hasher->ok = hasher->digest != NULL && hasher->context != NULL;
}

static void hasher_deinit(struct hasher *hasher) {
    EVP_MD_CTX_free(hasher->context);
    EVP_MD_free(hasher->digest);
}

static void hash_begin(struct hasher *hasher) {
    hasher->ok = hasher->ok && EVP_DigestInit_ex2(hasher->context, hasher->digest, NULL) == 1;
}

static void hash_bytes(struct hasher *hasher, const void *data, size_t bytes) {
    hasher->ok = hasher->ok && EVP_DigestUpdate(hasher->context, data, bytes) == 1;
}

static void hash_end(struct hasher *hasher, struct kvl_key *out) {
    hasher->ok = hasher->ok && EVP_DigestFinal_ex(hasher->context, out->bytes, NULL) == 1;
}

static void hash_u32(struct hasher *hasher, uint32_t value) {
    uint8_t bytes[4];
    kvl_le_put(bytes, value, sizeof(bytes));
    hash_bytes(hasher, bytes, sizeof(bytes));
}

static void hash_field(struct hasher *hasher, const void *data, uint32_t bytes) {
    hash_u32(hasher, bytes);
    if (bytes > 0)
        hash_bytes(hasher, data, bytes);
}

static void hash_u32_field(struct hasher *hasher, uint32_t value) {
    uint8_t bytes[4];
    kvl_le_put(bytes, value, sizeof(bytes));
    hash_field(hasher, bytes, sizeof(bytes));
}

static void hash_text_field(struct hasher *hasher, const char *text) {
    hash_field(hasher, text, (uint32_t)strlen(text));
}

static bool bytes_valid(struct kvl_bytes bytes) {
    return bytes.bytes <= KVL_FIELD_BYTES_MAX && (bytes.data != NULL || bytes.bytes == 0);
}

static bool text_valid(const char *text) {
    return text != NULL && strnlen(text, KVL_FIELD_BYTES_MAX + 1) <= KVL_FIELD_BYTES_MAX;
}

static kvl_err hasher_result(struct hasher *hasher) {
    bool ok = hasher->ok;
    hasher_deinit(hasher);
    return ok ? KVL_OK : KVL_ERR_NOMEM;
}

static void geometry_encode(
    const struct kvl_geometry *geometry, uint8_t out[4 * KVL_GEOMETRY_FIELDS]) {
    const uint32_t fields[KVL_GEOMETRY_FIELDS] = {geometry->layers, geometry->kv_heads,
        geometry->k_dim, geometry->v_dim, geometry->block_tokens, geometry->layer_group,
        geometry->shard};
    for (unsigned i = 0; i < KVL_GEOMETRY_FIELDS; i++)
        out = kvl_le_put(out, fields[i], 4);
}

kvl_err kvl_key_of_namespace(const struct kvl_namespace_desc *desc, struct kvl_key *out) {
    if (desc == NULL || out == NULL || kvl_block_payload_bytes(&desc->geometry, desc->dtype) == 0 ||
        !bytes_valid(desc->rope) || !bytes_valid(desc->salt) || !bytes_valid(desc->adapter) ||
        !text_valid(desc->arithmetic_id) || !text_valid(desc->fidelity))
        return KVL_ERR_INVALID;
    uint8_t geometry[4 * KVL_GEOMETRY_FIELDS];
    geometry_encode(&desc->geometry, geometry);
    struct hasher hasher;
    hasher_init(&hasher);
    hash_begin(&hasher);
    hash_field(&hasher, desc->fingerprint, sizeof(desc->fingerprint));
    hash_field(&hasher, geometry, sizeof(geometry));
    hash_u32_field(&hasher, (uint32_t)desc->dtype);
    hash_field(&hasher, desc->rope.data, desc->rope.bytes);
    hash_u32_field(&hasher, KVL_LAYOUT_VERSION);
    hash_text_field(&hasher, desc->arithmetic_id);
    hash_text_field(&hasher, desc->fidelity);
    hash_field(&hasher, desc->salt.data, desc->salt.bytes);
    hash_field(&hasher, desc->adapter.data, desc->adapter.bytes);
    hash_end(&hasher, out);
    return hasher_result(&hasher);
}

kvl_err kvl_key_of_layer_group(
    const struct kvl_key *first, const struct kvl_geometry *geometry, struct kvl_key *out) {
    if (first == NULL || kvl_block_payload_bytes(geometry, KVL_DTYPE_F16) == 0 || out == NULL)
        return KVL_ERR_INVALID;
    uint8_t encoded[4 * KVL_GEOMETRY_FIELDS];
    geometry_encode(geometry, encoded);
    struct hasher hasher;
    hasher_init(&hasher);
    hash_begin(&hasher);
    hash_text_field(&hasher, "layer group");
    hash_field(&hasher, first->bytes, sizeof(first->bytes));
    hash_field(&hasher, encoded, sizeof(encoded));
    hash_end(&hasher, out);
    return hasher_result(&hasher);
}

bool kvl_key_is_of_model(
    const struct kvl_key *ns, const struct kvl_geometry *geometry, const struct kvl_key *first) {
    struct kvl_key made;
    if (kvl_key_equal(ns, first))
        return true;
    return geometry->layer_group != 0 && kvl_key_of_layer_group(first, geometry, &made) == KVL_OK &&
           kvl_key_equal(ns, &made);
}

kvl_err kvl_key_of_opaque_namespace(
    const char *name, uint64_t block_bytes, struct kvl_bytes salt, struct kvl_key *out) {
    if (!text_valid(name) || block_bytes == 0 || !bytes_valid(salt) || out == NULL)
        return KVL_ERR_INVALID;
    uint8_t size[8];
    kvl_le_put(size, block_bytes, sizeof(size));
    struct hasher hasher;
    hasher_init(&hasher);
    hash_begin(&hasher);
    hash_text_field(&hasher, "opaque");
    hash_field(&hasher, size, sizeof(size));
    hash_text_field(&hasher, name);
    hash_text_field(&hasher, "lossless");
    hash_field(&hasher, salt.data, salt.bytes);
    hash_end(&hasher, out);
    return hasher_result(&hasher);
}

static void hash_tokens(struct hasher *hasher, const uint32_t *tokens, uint32_t count) {
    hash_u32(hasher, count);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    hash_bytes(hasher, tokens, (size_t)count * sizeof(tokens[0]));
#else
    for (uint32_t i = 0; i < count; i++)
        hash_u32(hasher, tokens[i]);
#endif
}

static void hash_block(struct hasher *hasher, const struct kvl_key *parent, const uint32_t *tokens,
    uint32_t count, struct kvl_bytes extra, struct kvl_key *out) {
    hash_begin(hasher);
    hash_bytes(hasher, parent->bytes, KVL_KEY_BYTES);
    hash_tokens(hasher, tokens, count);
    if (extra.bytes > 0)
        hash_bytes(hasher, extra.data, extra.bytes);
    hash_end(hasher, out);
}

kvl_err kvl_key_of_block(const struct kvl_key *parent, const uint32_t *tokens, uint32_t token_count,
    struct kvl_bytes extra, struct kvl_key *out) {
    if (parent == NULL || tokens == NULL || token_count == 0 ||
        token_count > KVL_BLOCK_TOKENS_MAX || !bytes_valid(extra) || out == NULL)
        return KVL_ERR_INVALID;
    struct hasher hasher;
    hasher_init(&hasher);
    hash_block(&hasher, parent, tokens, token_count, extra, out);
    return hasher_result(&hasher);
}

kvl_err kvl_key_of_opaque(const struct kvl_key *ns, const uint8_t opaque[32], struct kvl_key *out) {
    if (ns == NULL || opaque == NULL || out == NULL)
        return KVL_ERR_INVALID;
    struct hasher hasher;
    hasher_init(&hasher);
    hash_begin(&hasher);
    hash_bytes(&hasher, ns->bytes, KVL_KEY_BYTES);
    hash_bytes(&hasher, opaque, 32);
    hash_end(&hasher, out);
    return hasher_result(&hasher);
}

kvl_err kvl_key_chain(const struct kvl_key *ns, const uint32_t *tokens, uint64_t token_count,
    uint32_t block_tokens, struct kvl_key *out) {
    if (ns == NULL || block_tokens == 0 || block_tokens > KVL_BLOCK_TOKENS_MAX)
        return KVL_ERR_INVALID;
    uint64_t count = token_count / block_tokens;
    if (count > 0 && (tokens == NULL || out == NULL))
        return KVL_ERR_INVALID;
    struct hasher hasher;
    hasher_init(&hasher);
    for (uint64_t i = 0; i < count; i++)
        hash_block(&hasher, i == 0 ? ns : &out[i - 1], tokens + i * block_tokens, block_tokens,
            (struct kvl_bytes){0}, &out[i]);
    return hasher_result(&hasher);
}

uint64_t kvl_block_payload_bytes(const struct kvl_geometry *geometry, enum kvl_dtype dtype) {
    if (geometry == NULL || geometry->layers == 0 || geometry->layers > KVL_LAYERS_MAX ||
        geometry->kv_heads == 0 || geometry->kv_heads > KVL_HEADS_MAX || geometry->k_dim == 0 ||
        geometry->k_dim > KVL_HEADS_MAX || geometry->v_dim > KVL_HEADS_MAX ||
        geometry->block_tokens == 0 || geometry->block_tokens > KVL_BLOCK_TOKENS_MAX)
        return 0;
    uint64_t element_bytes = 2;
    if (dtype == KVL_DTYPE_F32)
        element_bytes = 4;
    else if (dtype != KVL_DTYPE_F16 && dtype != KVL_DTYPE_BF16)
        return 0;
    /* At most 2^2 * 2^17 * 2^16 * 2^9 * 2^12 = 2^56. */
    return element_bytes * ((uint64_t)geometry->k_dim + geometry->v_dim) * geometry->kv_heads *
           geometry->block_tokens * geometry->layers;
}

uint64_t kvl_block_first_seen(const struct kvl_geometry *geometry, uint64_t position) {
    uint64_t window = geometry->layer_group;
    if (window == 0 || position < window)
        return 0;
    return (position + 1 - window) / geometry->block_tokens;
}

bool kvl_key_equal(const struct kvl_key *a, const struct kvl_key *b) {
    return memcmp(a->bytes, b->bytes, KVL_KEY_BYTES) == 0;
}

bool kvl_key_is_zero(const struct kvl_key *key) {
    static const struct kvl_key zero;
    return kvl_key_equal(key, &zero);
}

void kvl_key_hex(const struct kvl_key *key, char hex[2 * KVL_KEY_BYTES + 1]) {
    static const char digits[] = "0123456789abcdef";
    for (unsigned i = 0; i < KVL_KEY_BYTES; i++) {
        hex[2 * i] = digits[key->bytes[i] >> 4];
        hex[2 * i + 1] = digits[key->bytes[i] & 15];
    }
    hex[2 * KVL_KEY_BYTES] = '\0';
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

bool kvl_key_from_hex(const char *hex, struct kvl_key *out) {
    if (hex == NULL || out == NULL || strnlen(hex, 2 * KVL_KEY_BYTES + 1) != 2 * KVL_KEY_BYTES)
        return false;
    struct kvl_key key;
    for (unsigned i = 0; i < KVL_KEY_BYTES; i++) {
        int high = hex_digit(hex[2 * i]);
        int low = hex_digit(hex[2 * i + 1]);
        if (high < 0 || low < 0)
            return false;
        key.bytes[i] = (uint8_t)(high << 4 | low);
    }
    *out = key;
    return true;
}
