/* table.c - see table.h.
 *
 *   index slot: 0: empty | 1: gone (in the old index only)
 *               low 26 bits: number + 2, high 6: tag, from the key's byte 4
 *
 * A tag lets 63 of 64 unlike keys be passed over without a look at their entries.
 *
 * Growth: a new index is made, inserts go there, and every change moves KVL_MOVE_SLOTS slots of
 * the old one over; a find looks into both. Zeroed memory is an empty index, so making one costs
 * no more than its pages as they are touched: huge ones where the system has them, for a look-up
 * goes all over this memory. A removal moves the rest of its run up instead of leaving a mark, so
 * that blocks may come and go for ever in one index. */
#include "table.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define KVL_CHUNK_ENTRIES (1u << 20)
#define KVL_CHUNK_BYTES (KVL_CHUNK_ENTRIES * sizeof(struct kvl_entry))
#define KVL_CHUNKS_MAX 64u
#define KVL_HUGE_BYTES (UINT64_C(2) << 20)
#define KVL_INDEX_SLOTS_MIN 1024u
#define KVL_MOVE_SLOTS 32u
#define KVL_NUMBER_BITS 26u
#define KVL_NUMBER_MASK ((1u << KVL_NUMBER_BITS) - 1)
#define KVL_TABLE_ENTRIES_MAX (KVL_NUMBER_MASK - 2)
_Static_assert(KVL_TABLE_ENTRIES_MAX <= KVL_CHUNKS_MAX * KVL_CHUNK_ENTRIES, "chunks for all");
#define KVL_SLOT_EMPTY 0u
#define KVL_SLOT_GONE 1u
#define KVL_SLOT_FIRST 2u
#define KVL_FIND_BATCH 16u

struct index {
    uint32_t *slots;
    uint32_t mask;
    uint32_t filled;
};

struct kvl_table {
    struct index now;
    struct index old; /* slots NULL: none */
    uint32_t old_moved;
    struct kvl_entry *chunks[KVL_CHUNKS_MAX];
    uint32_t chunk_count;
    uint32_t end;
    uint32_t first_free;
    uint32_t count;
};

/* Zeroed memory that takes room as it is touched. NULL: none. */
static void *map_memory(uint64_t bytes) {
    uint64_t reserved = bytes < KVL_HUGE_BYTES ? bytes : bytes + KVL_HUGE_BYTES;
    uint8_t *at = mmap(
        NULL, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED)
        return NULL;
    if (bytes < KVL_HUGE_BYTES)
        return at;
    uint64_t before = -(uintptr_t)at % KVL_HUGE_BYTES;
    if (before > 0)
        (void)munmap(at, before);
    if (before < KVL_HUGE_BYTES)
        (void)munmap(at + before + bytes, KVL_HUGE_BYTES - before);
    (void)madvise(at + before, bytes, MADV_HUGEPAGE);
    return at + before;
}

static uint64_t index_bytes(const struct index *index) {
    return index->slots == NULL ? 0 : ((uint64_t)index->mask + 1) * sizeof(index->slots[0]);
}

static void index_free(struct index *index) {
    if (index->slots != NULL)
        (void)munmap(index->slots, index_bytes(index));
    *index = (struct index){0};
}

static kvl_err index_init(struct index *index, uint32_t slots) {
    index->slots = map_memory((uint64_t)slots * sizeof(index->slots[0]));
    index->mask = slots - 1;
    index->filled = 0;
    return index->slots == NULL ? KVL_ERR_NOMEM : KVL_OK;
}

kvl_err kvl_table_create(struct kvl_table **out) {
    struct kvl_table *table = calloc(1, sizeof(*table));
    if (table == NULL)
        return KVL_ERR_NOMEM;
    if (index_init(&table->now, KVL_INDEX_SLOTS_MIN) != KVL_OK) {
        free(table);
        return KVL_ERR_NOMEM;
    }
    table->first_free = KVL_BLOCK_NONE;
    *out = table;
    return KVL_OK;
}

void kvl_table_destroy(struct kvl_table *table) {
    if (table == NULL)
        return;
    for (uint32_t i = 0; i < table->chunk_count; i++)
        (void)munmap(table->chunks[i], KVL_CHUNK_BYTES);
    index_free(&table->now);
    index_free(&table->old);
    free(table);
}

struct kvl_entry *kvl_table_at(const struct kvl_table *table, uint32_t block) {
    assert(block < table->end);
    return &table->chunks[block / KVL_CHUNK_ENTRIES][block % KVL_CHUNK_ENTRIES];
}

/* Of all of the first 8 bytes: a disk's blocks come in the order of their keys, and while the first
 * bytes rise, places made of those alone would fill up one after the other (46 steps for a find
 * where now there are 4). */
static uint32_t key_home(const struct kvl_key *key) {
    uint64_t head;
    memcpy(&head, key->bytes, sizeof(head));
    return (uint32_t)(head * 0x9e3779b97f4a7c15u >> 32);
}

static uint32_t key_tag(const struct kvl_key *key) {
    return (uint32_t)key->bytes[4] << KVL_NUMBER_BITS;
}

static bool slot_has_tag(uint32_t slot, uint32_t tag) {
    return (slot & ~KVL_NUMBER_MASK) == tag && slot != KVL_SLOT_GONE;
}

static uint32_t slot_number(uint32_t slot) {
    return (slot & KVL_NUMBER_MASK) - KVL_SLOT_FIRST;
}

/* The slot that holds the key, or NULL. */
static uint32_t *index_find(
    const struct kvl_table *table, const struct index *index, const struct kvl_key *key) {
    uint32_t tag = key_tag(key);
    for (uint32_t at = key_home(key) & index->mask;; at = (at + 1) & index->mask) {
        uint32_t *slot = &index->slots[at];
        if (*slot == KVL_SLOT_EMPTY)
            return NULL;
        if (slot_has_tag(*slot, tag) &&
            kvl_key_equal(&kvl_table_at(table, slot_number(*slot))->key, key))
            return slot;
    }
}

static void index_add(struct index *index, const struct kvl_key *key, uint32_t block) {
    uint32_t at = key_home(key) & index->mask;
    while (index->slots[at] != KVL_SLOT_EMPTY)
        at = (at + 1) & index->mask;
    index->slots[at] = key_tag(key) | (block + KVL_SLOT_FIRST);
    index->filled++;
}

/* Every slot behind, up to an empty one, moves up unless that would put it before its home. */
static void index_take(const struct kvl_table *table, struct index *index, uint32_t *slot) {
    uint32_t hole = (uint32_t)(slot - index->slots);
    for (uint32_t at = (hole + 1) & index->mask; index->slots[at] != KVL_SLOT_EMPTY;
         at = (at + 1) & index->mask) {
        const struct kvl_entry *entry = kvl_table_at(table, slot_number(index->slots[at]));
        uint32_t from_home = (at - key_home(&entry->key)) & index->mask;
        if (from_home < ((at - hole) & index->mask))
            continue;
        index->slots[hole] = index->slots[at];
        hole = at;
    }
    index->slots[hole] = KVL_SLOT_EMPTY;
    index->filled--;
}

static uint32_t *find_slot(const struct kvl_table *table, const struct kvl_key *key) {
    uint32_t *slot = index_find(table, &table->now, key);
    if (slot == NULL && table->old.slots != NULL)
        slot = index_find(table, &table->old, key);
    return slot;
}

uint32_t kvl_table_find(const struct kvl_table *table, const struct kvl_key *key) {
    const uint32_t *slot = find_slot(table, key);
    return slot == NULL ? KVL_BLOCK_NONE : slot_number(*slot);
}

/* First slot of the key's probe run with its tag; the entry may still be another's. */
static uint32_t guess(const struct index *index, const struct kvl_key *key) {
    uint32_t tag = key_tag(key);
    for (uint32_t at = key_home(key) & index->mask;; at = (at + 1) & index->mask) {
        uint32_t slot = index->slots[at];
        if (slot == KVL_SLOT_EMPTY)
            return KVL_BLOCK_NONE;
        if (slot_has_tag(slot, tag))
            return slot_number(slot);
    }
}

static void find_batch(
    const struct kvl_table *table, const struct kvl_key *keys, uint32_t count, uint32_t *blocks) {
    bool growing = table->old.slots != NULL;
    for (uint32_t i = 0; i < count; i++) {
        __builtin_prefetch(&table->now.slots[key_home(&keys[i]) & table->now.mask]);
        if (growing)
            __builtin_prefetch(&table->old.slots[key_home(&keys[i]) & table->old.mask]);
    }
    for (uint32_t i = 0; i < count; i++) {
        blocks[i] = guess(&table->now, &keys[i]);
        if (blocks[i] == KVL_BLOCK_NONE && growing)
            blocks[i] = guess(&table->old, &keys[i]);
        if (blocks[i] != KVL_BLOCK_NONE) {
            const struct kvl_entry *entry = kvl_table_at(table, blocks[i]);
            __builtin_prefetch(entry);
            __builtin_prefetch((const uint8_t *)entry + KVL_ENTRY_LOOKUP_BYTES - 1);
        }
    }
    for (uint32_t i = 0; i < count; i++)
        if (blocks[i] != KVL_BLOCK_NONE &&
            !kvl_key_equal(&kvl_table_at(table, blocks[i])->key, &keys[i]))
            blocks[i] = kvl_table_find(table, &keys[i]); /* equal tags, unlike keys */
}

static bool is_entry_of(const struct kvl_table *table, uint32_t block, const struct kvl_key *key) {
    if (block >= table->end)
        return false;
    const struct kvl_entry *entry =
        &table->chunks[block / KVL_CHUNK_ENTRIES][block % KVL_CHUNK_ENTRIES];
    return (entry->flags & KVL_ENTRY_USED) && memcmp(&entry->key, key, sizeof(*key)) == 0;
}

/* A chain that was stored in one go has one number after the other: then the next entry is the next
 * key's, and the index need not be asked. How many of the keys have the numbers from `next` on. */
static uint32_t find_in_a_row(const struct kvl_table *table, const struct kvl_key *keys,
    uint32_t count, uint32_t next, uint32_t *blocks) {
    uint32_t found = 0;
    for (; found < count && is_entry_of(table, next + found, &keys[found]); found++)
        blocks[found] = next + found;
    return found;
}

void kvl_table_find_many(
    const struct kvl_table *table, const struct kvl_key *keys, uint32_t count, uint32_t *blocks) {
    for (uint32_t i = 0; i < count;) {
        uint32_t batch = count - i < KVL_FIND_BATCH ? count - i : KVL_FIND_BATCH;
        find_batch(table, keys + i, batch, blocks + i);
        i += batch;
        if (batch > 1 && blocks[i - 1] != KVL_BLOCK_NONE && blocks[i - 1] == blocks[i - 2] + 1)
            i += find_in_a_row(table, keys + i, count - i, blocks[i - 1] + 1, blocks + i);
    }
}

/* Entries, then new slots, are fetched ahead: each lies anywhere in memory. */
static void move_some(struct kvl_table *table) {
    uint32_t blocks[KVL_MOVE_SLOTS], count = 0;
    if (table->old.slots == NULL)
        return;
    for (uint32_t i = 0; i < KVL_MOVE_SLOTS && table->old_moved <= table->old.mask; i++) {
        uint32_t *slot = &table->old.slots[table->old_moved++];
        if (*slot == KVL_SLOT_EMPTY || *slot == KVL_SLOT_GONE)
            continue;
        blocks[count] = slot_number(*slot);
        __builtin_prefetch(&kvl_table_at(table, blocks[count++])->key);
        *slot = KVL_SLOT_GONE; /* not empty: runs that pass over it go on */
    }
    for (uint32_t i = 0; i < count; i++) {
        uint32_t home = key_home(&kvl_table_at(table, blocks[i])->key);
        __builtin_prefetch(&table->now.slots[home & table->now.mask], 1);
    }
    for (uint32_t i = 0; i < count; i++)
        index_add(&table->now, &kvl_table_at(table, blocks[i])->key, blocks[i]);
    if (table->old_moved > table->old.mask)
        index_free(&table->old);
}

static bool index_is_full(const struct index *index) {
    return index->filled >= index->mask / 4 * 3;
}

/* A move is always over before the new index fills: it takes slots / KVL_MOVE_SLOTS inserts, and
 * the new index has room for three quarters of the old one's slots more. */
static kvl_err make_room(struct kvl_table *table) {
    if (!index_is_full(&table->now))
        return KVL_OK;
    while (table->old.slots != NULL)
        move_some(table);
    struct index bigger;
    if (index_init(&bigger, (table->now.mask + 1) * 2) != KVL_OK)
        return KVL_ERR_NOMEM;
    table->old = table->now;
    table->old_moved = 0;
    table->now = bigger;
    return KVL_OK;
}

static kvl_err add_chunk(struct kvl_table *table) {
    struct kvl_entry *chunk = map_memory(KVL_CHUNK_BYTES);
    if (chunk == NULL)
        return KVL_ERR_NOMEM;
    table->chunks[table->chunk_count++] = chunk;
    return KVL_OK;
}

static kvl_err take_number(struct kvl_table *table, uint32_t *block) {
    if (table->first_free != KVL_BLOCK_NONE) {
        *block = table->first_free;
        table->first_free = kvl_table_at(table, *block)->parent;
        return KVL_OK;
    }
    if (table->end >= KVL_TABLE_ENTRIES_MAX)
        return KVL_ERR_LIMIT;
    if (table->end == table->chunk_count * KVL_CHUNK_ENTRIES && add_chunk(table) != KVL_OK)
        return KVL_ERR_NOMEM;
    *block = table->end++;
    return KVL_OK;
}

kvl_err kvl_table_insert(struct kvl_table *table, const struct kvl_key *key, uint32_t *block) {
    kvl_err err = make_room(table);
    if (err == KVL_OK)
        err = take_number(table, block);
    if (err != KVL_OK)
        return err;
    struct kvl_entry *entry = kvl_table_at(table, *block);
    *entry = (struct kvl_entry){.key = *key, .parent = KVL_BLOCK_NONE, .flags = KVL_ENTRY_USED};
    index_add(&table->now, key, *block);
    table->count++;
    move_some(table);
    return KVL_OK;
}

void kvl_table_remove(struct kvl_table *table, uint32_t block) {
    struct kvl_entry *entry = kvl_table_at(table, block);
    assert(entry->flags & KVL_ENTRY_USED);
    assert(entry->children == 0 && entry->parent == KVL_BLOCK_NONE);
    uint32_t *slot = index_find(table, &table->now, &entry->key);
    if (slot != NULL) {
        index_take(table, &table->now, slot);
    } else {
        slot = index_find(table, &table->old, &entry->key);
        assert(slot != NULL);
        *slot = KVL_SLOT_GONE;
    }
    *entry = (struct kvl_entry){.parent = table->first_free};
    table->first_free = block;
    table->count--;
    move_some(table);
}

void kvl_table_link(struct kvl_table *table, uint32_t block, uint32_t parent) {
    struct kvl_entry *entry = kvl_table_at(table, block);
    assert(entry->parent == KVL_BLOCK_NONE && parent != block);
    entry->parent = parent;
    kvl_table_at(table, parent)->children++;
}

uint32_t kvl_table_unlink(struct kvl_table *table, uint32_t block) {
    struct kvl_entry *entry = kvl_table_at(table, block);
    uint32_t parent = entry->parent;
    if (parent != KVL_BLOCK_NONE) {
        assert(kvl_table_at(table, parent)->children > 0);
        struct kvl_entry *above = kvl_table_at(table, parent);
        if (--above->children == 0)
            memset(above->tier_children, 0, sizeof(above->tier_children));
        entry->parent = KVL_BLOCK_NONE;
    }
    return parent;
}

void kvl_table_child_came(struct kvl_table *table, uint32_t parent, unsigned tier) {
    struct kvl_entry *above = parent == KVL_BLOCK_NONE ? NULL : kvl_table_at(table, parent);
    if (above != NULL && above->tier_children[tier] < UINT16_MAX)
        above->tier_children[tier]++;
}

void kvl_table_child_left(struct kvl_table *table, uint32_t parent, unsigned tier) {
    struct kvl_entry *above = parent == KVL_BLOCK_NONE ? NULL : kvl_table_at(table, parent);
    if (above == NULL || above->tier_children[tier] == UINT16_MAX)
        return;
    assert(above->tier_children[tier] > 0);
    above->tier_children[tier]--;
}

uint32_t kvl_table_end(const struct kvl_table *table) {
    return table->end;
}

uint32_t kvl_table_count(const struct kvl_table *table) {
    return table->count;
}

uint64_t kvl_table_bytes(const struct kvl_table *table) {
    return sizeof(*table) + (uint64_t)table->end * sizeof(struct kvl_entry) +
           index_bytes(&table->now) + index_bytes(&table->old);
}
