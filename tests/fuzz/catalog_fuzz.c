/* catalog_fuzz.c - what a start finds on disk, in any order and of any content: records of the
 * catalog (sessions and their tokens, namespaces, pins, counters) and blocks of the index. What is
 * sound is taken in, the rest left out; what was taken in can be written down and read again.
 *
 *   repeated: u8 kind (enum kvl_catalog_kind; more: a block found) | u8 key bytes |
 *             u16le value bytes | key | value */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "little_endian.h"
#include "store_private.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes);

/* The part of a disk tier that the owner calls while it is being told. */
static void discard(struct kvl_tier *tier, const struct kvl_key *key, uint64_t location) {
    (void)tier, (void)key, (void)location;
}

static const struct kvl_tier_ops disk_ops = {.name = "disk", .discard = discard};

static void need(kvl_err err) {
    if (err != KVL_OK)
        abort();
}

static struct kvl_store *begin(struct kvl_tier *disk, struct kvl_catalog *catalog) {
    struct kvl_store *store = calloc(1, sizeof(*store));
    if (store == NULL)
        abort();
    need(kvl_event_ring_init(&store->events));
    need(kvl_tenant_set_init(&store->tenants, NULL, 0));
    store->tiers[KVL_TIER_DISK].tier = disk;
    store->catalog = catalog;
    need(kvl_table_create(&store->table));
    need(kvl_session_set_create(&store->sessions));
    kvl_recovery_listen(store);
    return store;
}

static void end(struct kvl_store *store) {
    kvl_orphans_free(store);
    kvl_namespaces_free(store);
    kvl_session_set_destroy(store->sessions);
    kvl_table_destroy(store->table);
    free(store->events.events);
    kvl_tenant_set_deinit(&store->tenants);
    free(store);
}

/* key 32 | parent 32 | generation, content hash, location, stored bytes, last use u64le |
 * namespace, tokens u32le; what is missing is zero */
static void find_block(struct kvl_store *store, const uint8_t *data, uint32_t data_bytes) {
    uint8_t bytes[2 * KVL_KEY_BYTES + 5 * 8 + 2 * 4] = {0};
    struct kvl_block_record record = {0};
    const uint8_t *at = bytes + 2 * KVL_KEY_BYTES;
    if (data_bytes > 0)
        memcpy(bytes, data, data_bytes < sizeof(bytes) ? data_bytes : sizeof(bytes));
    memcpy(record.key.bytes, bytes, KVL_KEY_BYTES);
    memcpy(record.parent.bytes, bytes + KVL_KEY_BYTES, KVL_KEY_BYTES);
    record.generation = kvl_le_get(&at, 8);
    record.content_hash = kvl_le_get(&at, 8);
    uint64_t location = kvl_le_get(&at, 8);
    uint64_t stored_bytes = kvl_le_get(&at, 8);
    uint64_t last_use_wall_ns = kvl_le_get(&at, 8);
    record.namespace_id = (uint32_t)kvl_le_get(&at, 4);
    record.token_count = (uint32_t)kvl_le_get(&at, 4);
    struct kvl_tier_events *events = &store->tiers[KVL_TIER_DISK].tier->events;
    events->found(events->arg, &record, location, stored_bytes, last_use_wall_ns);
}

static void tell(struct kvl_store *store, const uint8_t *data, size_t data_bytes) {
    while (data_bytes >= 4) {
        uint32_t kind = data[0], key_bytes = data[1], value_bytes = data[2] | data[3] * 256u;
        data += 4;
        data_bytes -= 4;
        key_bytes = key_bytes < data_bytes ? key_bytes : (uint32_t)data_bytes;
        uint32_t left = (uint32_t)data_bytes - key_bytes;
        value_bytes = value_bytes < left ? value_bytes : left;
        const uint8_t *value = data + key_bytes;
        if (kind < KVL_CATALOG_KINDS)
            store->catalog->found(store->catalog->found_arg, (enum kvl_catalog_kind)kind, data,
                key_bytes, value, value_bytes);
        else
            find_block(store, value, value_bytes);
        data += key_bytes + value_bytes;
        data_bytes -= key_bytes + value_bytes;
    }
}

/* Chunks and record of one session, as an append writes them, into another set. */
static void write_again(const struct kvl_session *session, struct kvl_session_set *set) {
    uint8_t key[KVL_SESSION_CHUNK_KEY_BYTES_MAX], value[KVL_SESSION_CHUNK_BYTES];
    uint8_t record[KVL_SESSION_RECORD_BYTES];
    kvl_session_record(session, record);
    need(kvl_session_load_record(
        set, session->info.name, (uint32_t)strlen(session->info.name), record, sizeof(record)));
    for (uint32_t chunk = 0; chunk < kvl_session_chunks(session->info.token_count); chunk++) {
        uint32_t key_bytes = kvl_session_chunk_key(session, chunk, key);
        uint32_t value_bytes = kvl_session_chunk(session, chunk, value);
        need(kvl_session_load_chunk(set, key, key_bytes, value, value_bytes));
    }
}

static void check_sessions(const struct kvl_session_set *sessions) {
    struct kvl_session_set *copies = NULL;
    need(kvl_session_set_create(&copies));
    for (uint32_t i = 0; i < kvl_session_count(sessions); i++) {
        const struct kvl_session *session = kvl_session_set_at(sessions, i);
        uint64_t count = session->info.token_count;
        if (!kvl_session_full_name_is_valid(session->info.name) || count > KVL_SESSION_TOKENS_MAX ||
            kvl_session_find(sessions, session->info.name) != session)
            abort();
        write_again(session, copies);
        struct kvl_session *copy = kvl_session_find(copies, session->info.name);
        if (copy == NULL || !kvl_session_load_finish(copy) || copy->info.token_count != count ||
            (count > 0 && memcmp(copy->tokens, session->tokens, count * 4) != 0) ||
            !kvl_key_equal(&copy->info.tail, &session->info.tail))
            abort();
    }
    kvl_session_set_destroy(copies);
}

static void check_blocks(struct kvl_store *store) {
    struct kvl_block_report blocks[16];
    struct kvl_namespace_info info;
    uint64_t cursor = 0, blocks_in_namespaces = 0, seen = 0;
    for (uint32_t i = 0; kvl_store_namespace_at(store, KVL_TENANT_ALL, i, &info); i++)
        blocks_in_namespaces += info.blocks;
    for (uint32_t count; (count = kvl_store_list(store, KVL_TENANT_ALL, &cursor, 16, blocks)) > 0;)
        for (uint32_t i = 0; i < count; i++)
            seen += blocks[i].tiers != 0;
    if (seen != kvl_visible_blocks(store, NULL) || seen != blocks_in_namespaces)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes) {
    struct kvl_tier disk = {.ops = &disk_ops};
    struct kvl_catalog catalog = {0};
    struct kvl_store *store = begin(&disk, &catalog);
    tell(store, data, data_bytes);
    disk.events.loaded(disk.events.arg, KVL_OK);
    check_sessions(store->sessions);
    check_blocks(store);
    end(store);
    return 0;
}
