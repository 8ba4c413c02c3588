/* wire.c - fields, the header and the table of verbs.
 *
 *   header, 56 bytes, little-endian:
 *     0 u32 magic "KVLM" | 4 u16 version | 6 u16 verb | 8 u32 status | 12 u32 client
 *    16 token 16 | 32 u64 epoch | 40 u64 sequence | 48 u32 body bytes | 52 u32 zero */
#include "wire.h"

#include <stdlib.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "fields are copied as they stand");

/* ---- fields ------------------------------------------------------------------------------- */

static void wire_fail(struct kvl_wire *wire) {
    if (wire->err == KVL_OK)
        wire->err = KVL_ERR_INVALID;
}

/* The next `bytes` bytes of a message being read, or NULL. */
static const uint8_t *wire_take(struct kvl_wire *wire, uint64_t bytes) {
    if (wire->err != KVL_OK || bytes > wire->bytes - wire->used) {
        wire_fail(wire);
        return NULL;
    }
    const uint8_t *at = wire->in + wire->used;
    wire->used += bytes;
    return at;
}

void kvl_wire_raw(struct kvl_wire *wire, void *value, uint64_t bytes) {
    if (wire->encoding) {
        if (bytes != 0 && wire->used + bytes <= wire->bytes)
            memcpy(wire->out + wire->used, value, bytes);
        wire->used += bytes;
        return;
    }
    const uint8_t *at = wire_take(wire, bytes);
    if (at && bytes != 0)
        memcpy(value, at, bytes);
    else if (bytes != 0)
        memset(value, 0, bytes);
}

void kvl_wire_u16(struct kvl_wire *wire, uint16_t *value) {
    kvl_wire_raw(wire, value, sizeof *value);
}

void kvl_wire_u32(struct kvl_wire *wire, uint32_t *value) {
    kvl_wire_raw(wire, value, sizeof *value);
}

void kvl_wire_u64(struct kvl_wire *wire, uint64_t *value) {
    kvl_wire_raw(wire, value, sizeof *value);
}

void kvl_wire_key(struct kvl_wire *wire, struct kvl_key *key) {
    kvl_wire_raw(wire, key->bytes, sizeof key->bytes);
}

void kvl_wire_flag(struct kvl_wire *wire, bool *value) {
    uint32_t number = wire->encoding && *value ? 1 : 0;
    kvl_wire_count(wire, &number, 1);
    if (!wire->encoding)
        *value = number != 0;
}

void kvl_wire_zero(struct kvl_wire *wire, uint32_t bytes) {
    for (uint32_t i = 0; i < bytes; i++) {
        uint8_t zero = 0;
        kvl_wire_raw(wire, &zero, 1);
        if (zero != 0)
            wire_fail(wire);
    }
}

void kvl_wire_count(struct kvl_wire *wire, uint32_t *count, uint32_t max) {
    kvl_wire_u32(wire, count);
    if (wire->encoding || *count <= max)
        return;
    wire_fail(wire);
    *count = 0;
}

void kvl_wire_array(
    struct kvl_wire *wire, const void **items, uint64_t count, uint64_t item_bytes) {
    uint64_t bytes = count * item_bytes; /* counts are bounded, items are small */
    if (wire->encoding)
        kvl_wire_raw(wire, (void *)(uintptr_t)*items, bytes);
    else
        *items = wire_take(wire, bytes);
    kvl_wire_zero(wire, (uint32_t)(-bytes & 3));
}

void kvl_wire_fixed_text(struct kvl_wire *wire, char *text, uint32_t text_bytes) {
    if (wire->encoding) { /* what stands behind the NUL is nobody's business */
        size_t length = strnlen(text, text_bytes - 1);
        kvl_wire_raw(wire, text, length);
        kvl_wire_zero(wire, text_bytes - (uint32_t)length);
        return;
    }
    kvl_wire_raw(wire, text, text_bytes);
    size_t length = strnlen(text, text_bytes);
    for (size_t i = length; i < text_bytes; i++)
        if (text[i] != 0)
            length = text_bytes;
    if (length == text_bytes) {
        wire_fail(wire);
        text[0] = 0;
    }
}

void kvl_wire_text(struct kvl_wire *wire, char *text, uint32_t capacity) {
    uint32_t length = wire->encoding ? (uint32_t)strnlen(text, capacity - 1) : 0;
    const void *at = text;
    kvl_wire_count(wire, &length, capacity - 1);
    kvl_wire_array(wire, &at, length, 1);
    if (wire->encoding)
        return;
    text[0] = 0;
    if (!at || (length != 0 && memchr(at, 0, length))) {
        wire_fail(wire);
        return;
    }
    memcpy(text, at, length);
    text[length] = 0;
}

/* ---- whole messages ------------------------------------------------------------------------ */

static void code_header(struct kvl_wire *wire, struct kvl_wire_header *header, uint32_t *magic) {
    kvl_wire_u32(wire, magic);
    kvl_wire_u16(wire, &header->version);
    kvl_wire_u16(wire, &header->verb);
    kvl_wire_u32(wire, &header->status);
    kvl_wire_u32(wire, &header->client);
    kvl_wire_raw(wire, header->token, sizeof header->token);
    kvl_wire_u64(wire, &header->epoch);
    kvl_wire_u64(wire, &header->sequence);
    kvl_wire_u32(wire, &header->body_bytes);
    kvl_wire_zero(wire, 4);
}

static uint64_t encode_into(struct kvl_wire_buffer *buffer, struct kvl_wire_header *header,
    kvl_wire_coder coder, void *message) {
    uint32_t magic = KVL_WIRE_MAGIC;
    struct kvl_wire wire = {.out = buffer->data, .bytes = buffer->capacity, .encoding = true};
    wire.used = KVL_WIRE_HEADER_BYTES;
    if (coder)
        coder(&wire, message);
    uint64_t total = wire.used;
    header->body_bytes = (uint32_t)(total - KVL_WIRE_HEADER_BYTES);
    wire.used = 0;
    code_header(&wire, header, &magic);
    return total;
}

kvl_err kvl_wire_encode(struct kvl_wire_buffer *buffer, struct kvl_wire_header *header,
    kvl_wire_coder coder, void *message) {
    buffer->bytes = 0;
    uint64_t need = encode_into(buffer, header, coder, message);
    if (need > KVL_WIRE_MESSAGE_BYTES_MAX)
        return KVL_ERR_TOOBIG;
    if (need > buffer->capacity) {
        uint64_t capacity = need < 1024 ? 1024 : need + need / 4;
        uint8_t *data = realloc(buffer->data, capacity);
        if (!data)
            return KVL_ERR_NOMEM;
        buffer->data = data;
        buffer->capacity = capacity;
        need = encode_into(buffer, header, coder, message);
    }
    buffer->bytes = need;
    return KVL_OK;
}

void kvl_wire_buffer_free(struct kvl_wire_buffer *buffer) {
    free(buffer->data);
    *buffer = (struct kvl_wire_buffer){0};
}

kvl_err kvl_wire_decode_header(const void *data, uint64_t bytes, struct kvl_wire_header *out) {
    uint32_t magic = 0;
    struct kvl_wire wire = {.in = data, .bytes = bytes};
    memset(out, 0, sizeof *out);
    if (bytes < KVL_WIRE_HEADER_BYTES)
        return KVL_ERR_INVALID;
    code_header(&wire, out, &magic);
    if (magic != KVL_WIRE_MAGIC)
        return KVL_ERR_INVALID;
    if (out->version != KVL_WIRE_VERSION)
        return KVL_ERR_VERSION;
    if (wire.err != KVL_OK || out->body_bytes != bytes - KVL_WIRE_HEADER_BYTES)
        return KVL_ERR_INVALID;
    return KVL_OK;
}

kvl_err kvl_wire_decode(kvl_wire_coder coder, const void *data, uint64_t bytes, void *message) {
    struct kvl_wire wire = {.in = data, .bytes = bytes};
    coder(&wire, message);
    return wire.err == KVL_OK && wire.used == bytes ? KVL_OK : KVL_ERR_INVALID;
}

static const struct kvl_wire_verb verbs[KVL_VERB_COUNT] = {
#define KVL_WIRE_VERB_ENTRY(name, number, request, reply, flags)                                   \
    [number] = {#name, request, reply, flags},
    KVL_WIRE_VERB_LIST(KVL_WIRE_VERB_ENTRY)
#undef KVL_WIRE_VERB_ENTRY
};

const struct kvl_wire_verb *kvl_wire_verb(uint32_t number) {
    return number < KVL_VERB_COUNT && verbs[number].name ? &verbs[number] : NULL;
}
