/* wire_attach.c - the three messages of the attach socket.
 *
 *   hello, 208 bytes: 0 u32 magic "KVLA" | 4 u16 version | 6 u16 flags | 8 u32 pid | 12 u32 zero
 *                    16 name 64 | 80 tenant 64 | 144 nonce 32 | 176 proof 32
 *   reply, 144 bytes: 0 u32 magic | 4 u16 version | 6 u16 zero | 8 u32 status | 12 u32 client
 *                    16 token 16 | 32 u64 epoch | 40 u32 ticket words | 44 u32 arenas
 *                    48 three times: u32 kind, u32 memory, u64 bytes, uuid 16
 *   goodbye, 8 bytes: 0 u32 magic "KVLG" | 4 u32 zero */
#include <string.h>

#include "wire.h"

#define PREFIX_BYTES 12u /* magic, version, flags, status: the same in every version */

static void code_hello(struct kvl_wire *wire, struct kvl_attach_hello *hello) {
    kvl_wire_u32(wire, &hello->magic);
    kvl_wire_u16(wire, &hello->version);
    kvl_wire_u16(wire, &hello->flags);
    kvl_wire_u32(wire, &hello->pid);
    kvl_wire_zero(wire, 4);
    kvl_wire_fixed_text(wire, hello->name, sizeof hello->name);
    kvl_wire_fixed_text(wire, hello->tenant, sizeof hello->tenant);
    kvl_wire_raw(wire, hello->nonce, sizeof hello->nonce);
    kvl_wire_raw(wire, hello->proof, sizeof hello->proof);
}

static void code_reply(struct kvl_wire *wire, struct kvl_attach_reply *reply) {
    kvl_wire_u32(wire, &reply->magic);
    kvl_wire_u16(wire, &reply->version);
    kvl_wire_zero(wire, 2);
    kvl_wire_u32(wire, &reply->status);
    kvl_wire_u32(wire, &reply->client);
    kvl_wire_raw(wire, reply->token, sizeof reply->token);
    kvl_wire_u64(wire, &reply->epoch);
    kvl_wire_u32(wire, &reply->ticket_words);
    kvl_wire_count(wire, &reply->arena_count, KVL_TIER_COUNT);
    for (uint32_t i = 0; i < KVL_TIER_COUNT; i++) {
        kvl_wire_count(wire, &reply->arenas[i].kind, KVL_TIER_COUNT - 1);
        kvl_wire_u32(wire, &reply->arenas[i].memory);
        kvl_wire_u64(wire, &reply->arenas[i].bytes);
        kvl_wire_raw(wire, reply->arenas[i].device_uuid, sizeof reply->arenas[i].device_uuid);
    }
}

uint32_t kvl_attach_encode_hello(struct kvl_attach_hello *hello, uint8_t *data) {
    struct kvl_wire wire = {.out = data, .bytes = KVL_ATTACH_BYTES_MAX, .encoding = true};
    code_hello(&wire, hello);
    return (uint32_t)wire.used;
}

uint32_t kvl_attach_encode_reply(struct kvl_attach_reply *reply, uint8_t *data) {
    struct kvl_wire wire = {.out = data, .bytes = KVL_ATTACH_BYTES_MAX, .encoding = true};
    code_reply(&wire, reply);
    return (uint32_t)wire.used;
}

void kvl_attach_encode_goodbye(uint8_t data[KVL_GOODBYE_BYTES]) {
    struct kvl_wire wire = {.out = data, .bytes = KVL_GOODBYE_BYTES, .encoding = true};
    uint32_t magic = KVL_GOODBYE_MAGIC;
    kvl_wire_u32(&wire, &magic);
    kvl_wire_zero(&wire, 4);
}

bool kvl_attach_is_goodbye(const void *data, uint64_t bytes) {
    struct kvl_wire wire = {.in = data, .bytes = bytes};
    uint32_t magic = 0;
    kvl_wire_u32(&wire, &magic);
    kvl_wire_zero(&wire, 4);
    return wire.err == KVL_OK && wire.used == bytes && magic == KVL_GOODBYE_MAGIC;
}

kvl_err kvl_attach_decode_hello(const void *data, uint64_t bytes, struct kvl_attach_hello *out) {
    struct kvl_wire wire = {.in = data, .bytes = bytes};
    memset(out, 0, sizeof *out);
    if (bytes < PREFIX_BYTES)
        return KVL_ERR_INVALID;
    code_hello(&wire, out);
    if (out->magic != KVL_ATTACH_MAGIC)
        return KVL_ERR_INVALID;
    if (out->version != KVL_WIRE_VERSION)
        return KVL_ERR_VERSION;
    return wire.err == KVL_OK && wire.used == bytes ? KVL_OK : KVL_ERR_INVALID;
}

static bool is_zero(const uint8_t *bytes, uint32_t count) {
    for (uint32_t i = 0; i < count; i++)
        if (bytes[i] != 0)
            return false;
    return true;
}

/* A GPU's arena names its GPU, a memfd none, and places without an arena are empty. */
static bool arenas_are_sound(const struct kvl_attach_reply *reply) {
    for (uint32_t i = 0; i < KVL_TIER_COUNT; i++) {
        bool named = !is_zero(reply->arenas[i].device_uuid, sizeof reply->arenas[i].device_uuid);
        uint32_t memory = reply->arenas[i].memory;
        bool empty = reply->arenas[i].kind == 0 && memory == 0 && reply->arenas[i].bytes == 0;
        if ((i >= reply->arena_count && !empty) || (memory == KVL_ARENA_MEMFD && named) ||
            (memory == KVL_ARENA_CUDA && !named))
            return false;
    }
    return true;
}

kvl_err kvl_attach_decode_reply(const void *data, uint64_t bytes, struct kvl_attach_reply *out) {
    struct kvl_wire wire = {.in = data, .bytes = bytes};
    memset(out, 0, sizeof *out);
    if (bytes < PREFIX_BYTES)
        return KVL_ERR_INVALID;
    code_reply(&wire, out);
    if (out->magic != KVL_ATTACH_MAGIC)
        return KVL_ERR_INVALID;
    if (out->version != KVL_WIRE_VERSION)
        return KVL_ERR_VERSION;
    return wire.err == KVL_OK && wire.used == bytes && arenas_are_sound(out) ? KVL_OK
                                                                             : KVL_ERR_INVALID;
}
