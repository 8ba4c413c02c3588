/* store_report.c - what people and engines look at: counters, clients, blocks, events. */
#include <string.h>

#include "clock.h"
#include "store_private.h"

static void report_tier(struct kvl_tier_state *state, struct kvl_tier_report *out) {
    struct kvl_tier_stats stats = state->tier->ops->stats(state->tier);
    *out = (struct kvl_tier_report){
        .capacity_bytes = stats.capacity_bytes,
        .used_bytes = stats.used_bytes,
        .blocks = state->blocks,
        .hits = state->hits,
        .misses = state->misses,
        .read_bytes = stats.read_bytes,
        .written_bytes = stats.written_bytes,
        .evicted_blocks = state->evicted,
        .corrupt_blocks = state->corrupt,
        .errors = state->errors,
        .inflight = stats.inflight,
    };
}

void kvl_store_report(struct kvl_store *store, struct kvl_store_report *out) {
    bool disk = store->tiers[KVL_TIER_DISK].tier != NULL;
    *out = (struct kvl_store_report){
        .epoch = store->epoch,
        .uptime_ns = kvl_clock_ns() - store->start_ns,
        .blocks = store->visible_blocks,
        .ghost_blocks = kvl_table_count(store->table) - store->visible_blocks,
        .table_bytes = kvl_table_bytes(store->table),
        .leases = kvl_lease_count(store->leases),
        .leased_bytes = store->leased_bytes,
        .clients = store->client_count,
        .sessions = kvl_session_count(store->sessions),
        .pins = store->pins,
        .unpersisted_blocks = disk ? store->persist_pending + store->store_failed_blocks : 0,
        .sealed_blocks = store->sealed_blocks,
        .refused_seals = store->refused_seals,
        .hash_mismatches = store->hash_mismatches,
        .stale_releases = store->stale_releases,
        .shed_blocks = store->shed_blocks,
        .loaded = store->loaded,
    };
    for (unsigned tier = 0; tier < KVL_TIER_COUNT; tier++)
        if (store->tiers[tier].tier != NULL)
            report_tier(&store->tiers[tier], &out->tiers[tier]);
}

bool kvl_store_client_at(struct kvl_store *store, uint32_t index, struct kvl_client_report *out) {
    for (uint32_t i = 0; i < KVL_CLIENTS_MAX; i++) {
        const struct kvl_client *client = &store->clients[i];
        if (!client->open || index-- > 0)
            continue;
        *out = (struct kvl_client_report){
            .client = client->id,
            .pid = client->info.pid,
            .uid = client->info.uid,
            .read_leases = client->read_leases,
            .write_leases = client->write_leases,
            .leased_bytes = client->leased_bytes,
        };
        memcpy(out->name, client->info.name, sizeof(out->name));
        return true;
    }
    return false;
}

static void report_block(struct kvl_store *store, uint32_t block, struct kvl_block_report *out) {
    const struct kvl_entry *entry = kvl_table_at(store->table, block);
    struct kvl_block_record record;
    kvl_entry_record(store, block, &record);
    uint32_t leases = (uint32_t)entry->leases[KVL_TIER_DEVICE] + entry->leases[KVL_TIER_HOST];
    *out = (struct kvl_block_report){
        .key = entry->key,
        .parent = record.parent,
        .namespace_id = entry->namespace_id,
        .token_count = entry->token_count,
        .tiers = entry->tiers,
        .pinned = (entry->flags & KVL_ENTRY_PINNED) != 0,
        .leases = leases > UINT16_MAX ? UINT16_MAX : (uint16_t)leases,
        .hits = entry->hits,
        .last_use_wall_ns = (uint64_t)entry->last_use_s * 1000000000u,
        .disk_bytes = kvl_entry_is_in(entry, KVL_TIER_DISK) ? entry->disk_bytes : 0,
    };
}

uint32_t kvl_store_list(
    struct kvl_store *store, uint64_t *cursor, uint32_t max, struct kvl_block_report *out) {
    uint32_t end = kvl_table_end(store->table);
    uint32_t listed = 0;
    for (; *cursor < end && listed < max; (*cursor)++)
        if (kvl_table_at(store->table, (uint32_t)*cursor)->tiers != 0)
            report_block(store, (uint32_t)*cursor, &out[listed++]);
    return listed;
}

void kvl_event_add(
    struct kvl_store *store, enum kvl_event_kind kind, unsigned tier, const struct kvl_key *key) {
    uint64_t sequence = ++store->event_sequence;
    store->events[sequence % KVL_EVENTS_KEPT] =
        (struct kvl_event){.sequence = sequence, .kind = kind, .tier = tier, .key = *key};
}

uint32_t kvl_store_events(struct kvl_store *store, uint64_t after, uint32_t max,
    struct kvl_event *out, uint64_t *oldest) {
    uint64_t last = store->event_sequence;
    *oldest = last >= KVL_EVENTS_KEPT ? last - KVL_EVENTS_KEPT + 1 : 1;
    uint64_t next = after >= *oldest ? after + 1 : *oldest;
    uint32_t count = 0;
    for (; next <= last && count < max; next++)
        out[count++] = store->events[next % KVL_EVENTS_KEPT];
    return count;
}
