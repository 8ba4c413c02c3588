/* store_report.c - what people and engines look at: counters, clients, blocks, events. */
#include <string.h>

#include "clock.h"
#include "store_private.h"

/* ---- sums over tenants -------------------------------------------------------------------- */

/* The next one of a view (NULL: all), from *index on; NULL past the last. */
static const struct kvl_tenant *next_tenant(
    struct kvl_store *store, const struct kvl_tenant *view, uint32_t *index) {
    while (*index < store->tenants.count) {
        const struct kvl_tenant *tenant = store->tenants.tenants[(*index)++];
        if (view == NULL || view == tenant)
            return tenant;
    }
    return NULL;
}

uint64_t kvl_visible_blocks(struct kvl_store *store, const struct kvl_tenant *view) {
    const struct kvl_tenant *tenant;
    uint64_t blocks = 0;
    for (uint32_t i = 0; (tenant = next_tenant(store, view, &i)) != NULL;)
        blocks += tenant->blocks;
    return blocks;
}

static void add_tier(struct kvl_tier_report *out, const struct kvl_tenant_tier *mine) {
    out->used_bytes += mine->used_bytes;
    out->block_bytes += mine->used_bytes;
    out->blocks += mine->blocks;
    out->hits += mine->hits;
    out->misses += mine->misses;
    out->read_bytes += mine->read_bytes;
    out->written_bytes += mine->written_bytes;
    out->evicted_blocks += mine->evicted;
    out->corrupt_blocks += mine->corrupt;
    out->errors += mine->errors;
}

static void add_tenant(struct kvl_store_report *out, const struct kvl_tenant *tenant) {
    for (unsigned tier = 0; tier < KVL_TIER_COUNT; tier++)
        add_tier(&out->tiers[tier], &tenant->tiers[tier]);
    out->blocks += tenant->blocks;
    out->leases += tenant->leases;
    out->leased_bytes += tenant->leased_bytes;
    out->clients += tenant->clients;
    out->pins += tenant->pins;
    out->unpersisted_blocks += tenant->persist_pending + tenant->store_failed_blocks;
    out->sealed_blocks += tenant->sealed_blocks;
    out->refused_seals += tenant->refused_seals;
    out->hash_mismatches += tenant->hash_mismatches;
    out->stale_releases += tenant->stale_releases;
    out->shed_blocks += tenant->shed_blocks;
}

/* What a tier says itself: of all tenants, the truth about bytes; of one, the bound above it. */
static void report_tier(
    struct kvl_tier *tier, const struct kvl_tenant_tier *mine, struct kvl_tier_report *out) {
    struct kvl_tier_stats stats = tier->ops->stats(tier);
    out->capacity_bytes = stats.capacity_bytes;
    if (mine != NULL) {
        if (mine->quota_bytes != 0 && mine->quota_bytes < stats.capacity_bytes)
            out->capacity_bytes = mine->quota_bytes;
        return;
    }
    out->used_bytes = stats.used_bytes;
    out->read_bytes = stats.read_bytes;
    out->written_bytes = stats.written_bytes;
    out->inflight = stats.inflight;
    out->reserved_bytes = stats.reserved_bytes;
}

void kvl_store_report(struct kvl_store *store, uint32_t tenant, struct kvl_store_report *out) {
    const struct kvl_tenant *view = kvl_view_of(store, tenant), *at;
    *out = (struct kvl_store_report){
        .epoch = store->epoch,
        .uptime_ns = kvl_clock_ns() - store->start_ns,
        .sessions = kvl_sessions_of(store, view),
        .loaded = store->loaded,
    };
    for (uint32_t i = 0; (at = next_tenant(store, view, &i)) != NULL;)
        add_tenant(out, at);
    for (unsigned tier = 0; tier < KVL_TIER_COUNT; tier++)
        if (store->tiers[tier].tier != NULL)
            report_tier(store->tiers[tier].tier, view == NULL ? NULL : &view->tiers[tier],
                &out->tiers[tier]);
    if (store->tiers[KVL_TIER_DISK].tier == NULL)
        out->unpersisted_blocks = 0;
    if (view != NULL)
        return;
    out->ghost_blocks = kvl_table_count(store->table) - out->blocks;
    out->table_bytes = kvl_table_bytes(store->table);
}

bool kvl_store_tenant_at(
    struct kvl_store *store, uint32_t tenant, uint32_t index, struct kvl_tenant_report *out) {
    const struct kvl_tenant *view = kvl_view_of(store, tenant), *at;
    uint32_t i = 0;
    do
        at = next_tenant(store, view, &i);
    while (at != NULL && index-- > 0);
    if (at == NULL)
        return false;
    *out = (struct kvl_tenant_report){
        .clients = at->clients, .sessions = kvl_sessions_of(store, at), .admitted = at->admitted};
    memcpy(out->name, at->name, sizeof(out->name));
    for (unsigned tier = 0; tier < KVL_TIER_COUNT; tier++) {
        const struct kvl_tenant_tier *mine = &at->tiers[tier];
        out->tiers[tier].quota_bytes = mine->quota_bytes;
        out->tiers[tier].used_bytes = mine->used_bytes;
        out->tiers[tier].blocks = mine->blocks;
        out->tiers[tier].hits = mine->hits;
        out->tiers[tier].misses = mine->misses;
        out->tiers[tier].evicted_blocks = mine->evicted;
    }
    return true;
}

/* ---- lists -------------------------------------------------------------------------------- */

bool kvl_store_client_at(
    struct kvl_store *store, uint32_t tenant, uint32_t index, struct kvl_client_report *out) {
    for (uint32_t i = 0; i < KVL_CLIENTS_MAX; i++) {
        const struct kvl_client *client = &store->clients[i];
        bool seen = tenant == KVL_TENANT_ALL || client->info.tenant == tenant;
        if (!client->open || !seen || index-- > 0)
            continue;
        *out = (struct kvl_client_report){
            .client = client->id,
            .pid = client->info.pid,
            .uid = client->info.uid,
            .leaving = client->leaving,
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

uint32_t kvl_store_list(struct kvl_store *store, uint32_t tenant, uint64_t *cursor, uint32_t max,
    struct kvl_block_report *out) {
    const struct kvl_tenant *view = kvl_view_of(store, tenant);
    uint32_t end = kvl_table_end(store->table);
    uint32_t listed = 0;
    for (; *cursor < end && listed < max; (*cursor)++) {
        const struct kvl_entry *entry = kvl_table_at(store->table, (uint32_t)*cursor);
        if (entry->tiers != 0 && (view == NULL || view == kvl_entry_tenant(store, entry)))
            report_block(store, (uint32_t)*cursor, &out[listed++]);
    }
    return listed;
}

void kvl_event_add(struct kvl_store *store, enum kvl_event_kind kind, unsigned tier,
    const struct kvl_entry *entry) {
    const struct kvl_event event = {.kind = kind, .tier = tier, .key = entry->key};
    kvl_event_ring_add(&store->events, &event);
    kvl_event_ring_add(&kvl_entry_tenant(store, entry)->events, &event);
}

uint32_t kvl_store_events(struct kvl_store *store, uint32_t tenant, uint64_t after, uint32_t max,
    struct kvl_event *out, uint64_t *oldest) {
    const struct kvl_tenant *view = kvl_view_of(store, tenant);
    return kvl_event_ring_read(
        view == NULL ? &store->events : &view->events, after, max, out, oldest);
}
