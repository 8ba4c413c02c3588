/* tenant.h - who shares a store: what keeps their keys apart, how much each may take, what it has.
 *
 * Every key inside the store (table, disk, catalog) is the key that the client knows XOR its
 * tenant's salt, zeros staying zeros:
 *
 *   salt = SHA-256("kvloft tenant salt 1" NUL | u32le bytes | name | u32le bytes | secret)
 *   tag  = the first 8 bytes of SHA-256("kvloft tenant tag 1" NUL | salt)
 *
 * So equal prompts of two tenants are unlike keys, and a key of another tenant, even one that is
 * known, stands for nothing that could be there: it is answered as any absent key is, without a
 * check that could be forgotten. Tenant 0 is the default one, without a name and with a zero salt.
 *
 * A namespace remembers name and tag of its tenant. A tenant that is no longer admitted, or comes
 * with another secret, leaves its blocks behind under an entry that nobody can enter: they age out,
 * or are cleared by name.
 *
 * Owns: the tenants; they live as long as the set. Threads: one. Blocks: never. */
#ifndef KVL_TENANT_H
#define KVL_TENANT_H

#include <stdbool.h>
#include <stdint.h>

#include "kvl_err.h"
#include "kvl_types.h"

#define KVL_TENANTS_MAX 1024u /* those that are left behind included */
#define KVL_TENANT_DEFAULT 0u
#define KVL_TENANT_ALL UINT32_MAX
#define KVL_EVENTS_KEPT 8192u

/* The last KVL_EVENTS_KEPT things that happened; numbered from 1. */
struct kvl_event_ring {
    struct kvl_event *events;
    uint64_t last;
};

struct kvl_tenant_tier {
    uint64_t quota_bytes; /* 0: as much as there is */
    uint64_t used_bytes;  /* slots, or bytes of records */
    uint64_t blocks, hits, misses, evicted, corrupt, errors, read_bytes, written_bytes;
};

struct kvl_tenant {
    char name[KVL_TENANT_NAME_MAX + 1];
    uint32_t id;
    bool admitted;
    bool demote_rests; /* as kvl_store's, for its own quota */
    struct kvl_key salt;
    uint64_t tag;
    struct kvl_tenant_tier tiers[KVL_TIER_COUNT];
    uint64_t demoting_bytes;
    uint64_t storing_bytes; /* on their way to disk, at the most they can take there */
    uint64_t wanted_bytes;  /* the disk quota has no room for these: see quota.c */
    uint64_t stuck_until_ns;
    uint64_t persist_pending, store_failed_blocks;
    uint64_t blocks, pins, leases, leased_bytes, clients;
    uint64_t sealed_blocks, refused_seals, hash_mismatches, stale_releases, shed_blocks;
    struct kvl_event_ring events; /* none unless admitted by name */
};

struct kvl_tenant_options {
    const char *name;    /* "": the default tenant, whose salt stays zero */
    struct kvl_key salt; /* from kvl_tenant_salt */
    uint64_t quota_bytes[KVL_TIER_COUNT];
};

struct kvl_tenant_set {
    struct kvl_tenant **tenants; /* by id */
    uint32_t count;
};

/* Errors: NOMEM (libcrypto). */
KVL_MUST_CHECK kvl_err kvl_tenant_salt(
    const char *name, const void *secret, uint32_t secret_bytes, struct kvl_key *salt);
/* 1..KVL_TENANT_NAME_MAX bytes of letters, digits, '.', '_' and '-'. */
bool kvl_tenant_name_is_valid(const char *name);

/* With the default tenant and those of options. Errors: NOMEM, LIMIT, INVALID (a name twice). */
KVL_MUST_CHECK kvl_err kvl_tenant_set_init(
    struct kvl_tenant_set *set, const struct kvl_tenant_options *options, uint32_t count);
void kvl_tenant_set_deinit(struct kvl_tenant_set *set);
/* The admitted one of that name; NULL: none. */
struct kvl_tenant *kvl_tenant_find(const struct kvl_tenant_set *set, const char *name);
/* The one a record names, made when it is not known. Errors: NOMEM, LIMIT. */
KVL_MUST_CHECK kvl_err kvl_tenant_of_record(
    struct kvl_tenant_set *set, const char *name, uint64_t tag, struct kvl_tenant **out);

/* Outside to inside, and back. */
void kvl_tenant_turn_key(const struct kvl_key *salt, struct kvl_key *key);

KVL_MUST_CHECK kvl_err kvl_event_ring_init(struct kvl_event_ring *ring);
void kvl_event_ring_add(struct kvl_event_ring *ring, const struct kvl_event *event);
uint32_t kvl_event_ring_read(const struct kvl_event_ring *ring, uint64_t after, uint32_t max,
    struct kvl_event *out, uint64_t *oldest);

#endif
