/* lease.h - who may read or fill which slot: numbered leases, in one list per client.
 *
 * A lease's number is its place in the table and a count of that place's uses, so that a number
 * used up, or one of an earlier start, never names another lease.
 * Owns: the leases; pointers live until the lease is given back. Threads: one. Blocks: never. */
#ifndef KVL_LEASE_H
#define KVL_LEASE_H

#include <stdint.h>

#include "kvl_err.h"
#include "kvl_key.h"

#define KVL_LEASE_NONE UINT32_MAX

enum kvl_lease_kind {
    KVL_LEASE_FREE,
    KVL_LEASE_READ,    /* of a sealed block, counted in its entry */
    KVL_LEASE_WRITE,   /* of a slot being filled, which no entry knows yet */
    KVL_LEASE_PRIVATE, /* of a slot whose key somebody else sealed first */
};

struct kvl_lease {
    uint64_t number;
    uint64_t generation; /* of the block, or what it will have: tells seals of one key apart */
    uint64_t location;
    uint64_t slot_bytes;
    struct kvl_key key; /* write: what alloc was told, or zero */
    uint32_t block;     /* KVL_BLOCK_NONE: no entry */
    uint32_t client;
    uint32_t namespace_id;
    uint32_t next, prev; /* places, in the client's list */
    uint8_t kind;        /* enum kvl_lease_kind */
    uint8_t tier;
};

struct kvl_lease_list {
    uint32_t first; /* KVL_LEASE_NONE: empty */
};

struct kvl_lease_table;

KVL_MUST_CHECK kvl_err kvl_lease_table_create(uint32_t seed, struct kvl_lease_table **out);
void kvl_lease_table_destroy(struct kvl_lease_table *table); /* NULL is fine */

/* A zeroed lease with a number, first in the list. Errors: NOMEM, LIMIT. */
KVL_MUST_CHECK kvl_err kvl_lease_take(
    struct kvl_lease_table *table, struct kvl_lease_list *list, struct kvl_lease **out);
void kvl_lease_give_back(
    struct kvl_lease_table *table, struct kvl_lease_list *list, struct kvl_lease *lease);
/* NULL for a number that names no lease now. */
struct kvl_lease *kvl_lease_find(const struct kvl_lease_table *table, uint64_t number);
struct kvl_lease *kvl_lease_first(
    const struct kvl_lease_table *table, const struct kvl_lease_list *list);
uint32_t kvl_lease_count(const struct kvl_lease_table *table);

#endif
