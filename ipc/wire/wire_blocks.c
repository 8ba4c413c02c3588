/* wire_blocks.c - messages about namespaces, chains of blocks, leases and tickets.
 *
 * Arrays of plain structs cross as they stand in memory: the asserts below pin their layout. */
#include <stddef.h>
#include <string.h>

#include "wire.h"

_Static_assert(sizeof(struct kvl_key) == 32, "32 bytes");
_Static_assert(sizeof(struct kvl_ticket) == 8, "number, generation");
_Static_assert(sizeof(struct kvl_restored) == 24, "lease, offset, tier, tokens");
_Static_assert(offsetof(struct kvl_restored, found_tier) == 16, "lease, offset, tier, tokens");
_Static_assert(sizeof(struct kvl_allocated) == 24, "status, zero, lease, offset");
_Static_assert(offsetof(struct kvl_allocated, lease) == 8, "status, zero, lease, offset");
_Static_assert(sizeof(struct kvl_wire_sealed_item) == 36, "status, key");
_Static_assert(sizeof(struct kvl_geometry) == 28, "seven numbers");

#define EXTRA_BYTES_MAX 65536u

void kvl_wire_empty(struct kvl_wire *wire, void *message) {
    (void)wire;
    (void)message;
}

void kvl_wire_u32_message(struct kvl_wire *wire, void *message) {
    kvl_wire_u32(wire, message);
}

void kvl_wire_blob(struct kvl_wire *wire, void *message) {
    struct kvl_wire_blob *blob = message;
    const void *data = blob->data;
    kvl_wire_count(wire, &blob->bytes, KVL_WIRE_MESSAGE_BYTES_MAX);
    kvl_wire_array(wire, &data, blob->bytes, 1);
    blob->data = data;
}

void kvl_wire_ticket(struct kvl_wire *wire, void *message) {
    struct kvl_ticket *ticket = message;
    kvl_wire_u32(wire, &ticket->number);
    kvl_wire_u32(wire, &ticket->generation);
}

void kvl_wire_hello(struct kvl_wire *wire, void *message) {
    struct kvl_wire_hello *hello = message;
    kvl_wire_u32(wire, &hello->pid);
    kvl_wire_fixed_text(wire, hello->name, sizeof hello->name);
    kvl_wire_fixed_text(wire, hello->tenant, sizeof hello->tenant);
    kvl_wire_raw(wire, hello->nonce, sizeof hello->nonce);
    kvl_wire_raw(wire, hello->proof, sizeof hello->proof);
}

void kvl_wire_hello_reply(struct kvl_wire *wire, void *message) {
    struct kvl_wire_hello_reply *reply = message;
    kvl_wire_u32(wire, &reply->client);
    kvl_wire_zero(wire, 4);
    kvl_wire_u64(wire, &reply->epoch);
    kvl_wire_raw(wire, reply->token, sizeof reply->token);
    kvl_wire_raw(wire, reply->proof, sizeof reply->proof);
}

static void code_geometry(struct kvl_wire *wire, struct kvl_geometry *geometry) {
    kvl_wire_u32(wire, &geometry->layers);
    kvl_wire_u32(wire, &geometry->kv_heads);
    kvl_wire_u32(wire, &geometry->k_dim);
    kvl_wire_u32(wire, &geometry->v_dim);
    kvl_wire_u32(wire, &geometry->block_tokens);
    kvl_wire_u32(wire, &geometry->layer_group);
    kvl_wire_u32(wire, &geometry->shard);
}

void kvl_wire_namespace(struct kvl_wire *wire, void *message) {
    struct kvl_namespace_request *request = message;
    kvl_wire_key(wire, &request->key);
    code_geometry(wire, &request->geometry);
    kvl_wire_u32(wire, &request->dtype);
    kvl_wire_u64(wire, &request->block_bytes);
    kvl_wire_fixed_text(wire, request->label, sizeof request->label);
}

void kvl_wire_namespace_info(struct kvl_wire *wire, void *message) {
    struct kvl_namespace_info *info = message;
    kvl_wire_u32(wire, &info->id);
    kvl_wire_u32(wire, &info->dtype);
    kvl_wire_key(wire, &info->key);
    code_geometry(wire, &info->geometry);
    kvl_wire_u32(wire, &info->layout.frame_count);
    kvl_wire_u64(wire, &info->layout.payload_bytes);
    kvl_wire_u64(wire, &info->layout.slot_bytes);
    kvl_wire_u64(wire, &info->layout.frame_bytes);
    kvl_wire_u32(wire, &info->layout.layers);
    kvl_wire_u32(wire, &info->layout.layers_per_frame);
    kvl_wire_u32(wire, &info->layout.element_bytes);
    kvl_wire_zero(wire, 4);
    kvl_wire_u64(wire, &info->blocks);
    kvl_wire_fixed_text(wire, info->label, sizeof info->label);
}

void kvl_wire_chain(struct kvl_wire *wire, void *message) {
    struct kvl_wire_chain *chain = message;
    const void *keys = chain->keys;
    kvl_wire_u32(wire, &chain->namespace_id);
    kvl_wire_u32(wire, &chain->target);
    kvl_wire_flag(wire, &chain->flag);
    kvl_wire_count(wire, &chain->count, KVL_CHAIN_BLOCKS_MAX);
    kvl_wire_array(wire, &keys, chain->count, sizeof(struct kvl_key));
    chain->keys = keys;
}

static void code_items(
    struct kvl_wire *wire, struct kvl_wire_items *items, uint32_t max, uint32_t item_bytes) {
    kvl_wire_count(wire, &items->count, max);
    kvl_wire_flag(wire, &items->flag);
    kvl_wire_ticket(wire, &items->ticket);
    kvl_wire_u64(wire, &items->cursor);
    kvl_wire_array(wire, &items->data, items->count, item_bytes);
}

void kvl_wire_found(struct kvl_wire *wire, void *message) {
    code_items(wire, message, KVL_CHAIN_BLOCKS_MAX, 1);
}

void kvl_wire_restored(struct kvl_wire *wire, void *message) {
    code_items(wire, message, KVL_CHAIN_BLOCKS_MAX, sizeof(struct kvl_restored));
}

void kvl_wire_allocated(struct kvl_wire *wire, void *message) {
    code_items(wire, message, KVL_CHAIN_BLOCKS_MAX, sizeof(struct kvl_allocated));
}

void kvl_wire_sealed(struct kvl_wire *wire, void *message) {
    code_items(wire, message, KVL_CHAIN_BLOCKS_MAX, sizeof(struct kvl_wire_sealed_item));
}

static void code_seal(struct kvl_wire *wire, struct kvl_wire_seal *seal) {
    const void *tokens = seal->tokens, *extra = seal->extra;
    kvl_wire_u64(wire, &seal->lease);
    kvl_wire_key(wire, &seal->parent);
    kvl_wire_raw(wire, seal->opaque_key, sizeof seal->opaque_key);
    kvl_wire_flag(wire, &seal->opaque);
    kvl_wire_count(wire, &seal->token_count, KVL_BLOCK_TOKENS_MAX);
    kvl_wire_count(wire, &seal->extra_bytes, EXTRA_BYTES_MAX);
    kvl_wire_zero(wire, 4);
    kvl_wire_array(wire, &tokens, seal->token_count, sizeof(uint32_t));
    kvl_wire_array(wire, &extra, seal->extra_bytes, 1);
    seal->tokens = tokens;
    seal->extra = extra;
}

void kvl_wire_seals(struct kvl_wire *wire, void *message) {
    struct kvl_wire_seals *seals = message;
    kvl_wire_count(wire, &seals->count, KVL_CHAIN_BLOCKS_MAX);
    kvl_wire_zero(wire, 4);
    uint64_t begin = wire->used;
    for (uint32_t i = 0; i < seals->count && wire->err == KVL_OK; i++) {
        struct kvl_wire_seal seen = {0};
        code_seal(wire, wire->encoding ? &seals->items[i] : &seen);
    }
    if (!wire->encoding) {
        seals->items = NULL;
        seals->data = wire->err == KVL_OK ? wire->in + begin : NULL;
        seals->data_bytes = wire->err == KVL_OK ? wire->used - begin : 0;
    }
}

void kvl_wire_seal_next(
    const struct kvl_wire_seals *seals, uint64_t *cursor, struct kvl_wire_seal *out) {
    struct kvl_wire wire = {.in = seals->data, .bytes = seals->data_bytes, .used = *cursor};
    code_seal(&wire, out);
    *cursor = wire.used;
}

void kvl_wire_release(struct kvl_wire *wire, void *message) {
    struct kvl_wire_release *release = message;
    const void *leases = release->leases, *tickets = release->tickets;
    kvl_wire_count(wire, &release->lease_count, KVL_CHAIN_BLOCKS_MAX);
    kvl_wire_count(wire, &release->ticket_count, KVL_CHAIN_BLOCKS_MAX);
    kvl_wire_array(wire, &leases, release->lease_count, sizeof(uint64_t));
    kvl_wire_array(wire, &tickets, release->ticket_count, sizeof(struct kvl_ticket));
    release->leases = leases;
    release->tickets = tickets;
}

void kvl_wire_progress(struct kvl_wire *wire, void *message) {
    struct kvl_wire_progress *progress = message;
    kvl_wire_u32(wire, &progress->status);
    kvl_wire_u32(wire, &progress->blocks_ready);
    kvl_wire_u32(wire, &progress->layers_ready);
    kvl_wire_zero(wire, 4);
    for (uint32_t i = 0; i < 5; i++)
        kvl_wire_u64(wire, &progress->values[i]);
}
