/* table.h - every block the store knows, by key: one small entry each, all in RAM.
 *
 * Entries never move (they stand in chunks of memory mapped for them, on huge pages if possible)
 * and are named by u32 numbers; a free list reuses them. The index is an open-addressing hash of
 * tagged numbers over the key's first 8 bytes; it grows by moving a few slots at each insert, so
 * that no call stalls. A child that is known before its parent makes a "ghost": an entry with a key
 * and children, but in no tier.
 *
 * Owns: the entries. Threads: one. Blocks: never. */
#ifndef KVL_TABLE_H
#define KVL_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kvl_err.h"
#include "kvl_key.h"
#include "policy.h"

#define KVL_MEMORY_TIERS 2u /* KVL_TIER_DEVICE and KVL_TIER_HOST: those with slots */

enum kvl_entry_flag {
    KVL_ENTRY_USED = 1 << 0,
    KVL_ENTRY_FILLING = 1 << 1, /* a write lease fills this key */
    KVL_ENTRY_SEALING = 1 << 2, /* sealed, hash under way: not visible yet */
    KVL_ENTRY_WAITED = 1 << 3,  /* a ticket waits for the seal */
    KVL_ENTRY_PINNED = 1 << 4,
    KVL_ENTRY_UNPERSISTED = 1 << 5,  /* on its way to disk */
    KVL_ENTRY_STORE_FAILED = 1 << 6, /* disk refused it: memory only */
    KVL_ENTRY_OVER_QUOTA = 1 << 7,   /* its tenant's disk quota has no room: memory only */
    KVL_ENTRY_SLOT = 1 << 8,         /* << tier: slot_page[tier] is taken (8, 9) */
    KVL_ENTRY_LISTED = 1 << 12,      /* << tier: the tier's policy knows it (12, 13) */
};

/* Packed to 4 bytes: a hole of 4 in each of millions would be a lot. */
struct __attribute__((packed, aligned(4))) kvl_entry {
    /* What a look-up reads stands together: KVL_ENTRY_LOOKUP_BYTES. */
    struct kvl_key key;
    uint16_t namespace_id;
    uint16_t flags;
    uint8_t tiers;   /* 1 << enum kvl_tier_kind: whole and verified there; 0: not visible */
    uint8_t busy[3]; /* transfers and checks that use that tier's copy now */
    uint64_t disk_location;
    uint64_t content_hash;
    uint64_t generation;                  /* which seal of this key; 0: ghost */
    uint32_t slot_page[KVL_MEMORY_TIERS]; /* location / KVL_PAGE_BYTES */
    uint32_t parent;                      /* or KVL_BLOCK_NONE; next free while unused */
    uint32_t children;                    /* entries whose parent this is */
    uint32_t last_use_s;                  /* wall clock */
    uint32_t disk_bytes;
    uint16_t tier_children[KVL_MEMORY_TIERS]; /* those children in that tier; at MAX: many */
    uint16_t leases[KVL_MEMORY_TIERS];        /* on that tier's slot */
    uint16_t token_count;
    uint16_t hits; /* saturating */
};
#define KVL_ENTRY_LOOKUP_BYTES offsetof(struct kvl_entry, disk_location)
_Static_assert(sizeof(struct kvl_entry) == 100, "RAM per block is a promise (docs)");

struct kvl_table;

KVL_MUST_CHECK kvl_err kvl_table_create(struct kvl_table **out);
void kvl_table_destroy(struct kvl_table *table); /* NULL is fine */

/* KVL_BLOCK_NONE when absent. */
uint32_t kvl_table_find(const struct kvl_table *table, const struct kvl_key *key);
/* The same for many keys at once, with the memory fetched ahead. */
void kvl_table_find_many(
    const struct kvl_table *table, const struct kvl_key *keys, uint32_t count, uint32_t *blocks);
/* A new zeroed entry without parent. The key must be absent. Errors: NOMEM, LIMIT. */
KVL_MUST_CHECK kvl_err kvl_table_insert(
    struct kvl_table *table, const struct kvl_key *key, uint32_t *block);
/* The entry must have no children; its parent link must be gone. */
void kvl_table_remove(struct kvl_table *table, uint32_t block);
/* The entry of a number below kvl_table_end, used or not. Stays where it is until destroy. */
struct kvl_entry *kvl_table_at(const struct kvl_table *table, uint32_t block);

/* A child of the parent (NONE: nobody's) came into the tier or left it. A parent that once had
 * UINT16_MAX of them counts no more: it has many until it has no children at all. */
void kvl_table_child_came(struct kvl_table *table, uint32_t parent, unsigned tier);
void kvl_table_child_left(struct kvl_table *table, uint32_t parent, unsigned tier);

/* Keeps the parent's child count. */
void kvl_table_link(struct kvl_table *table, uint32_t block, uint32_t parent);
uint32_t kvl_table_unlink(struct kvl_table *table, uint32_t block); /* the former parent */

uint32_t kvl_table_end(const struct kvl_table *table); /* numbers are below this */
uint32_t kvl_table_count(const struct kvl_table *table);
uint64_t kvl_table_bytes(const struct kvl_table *table); /* RAM, index included */

#endif
