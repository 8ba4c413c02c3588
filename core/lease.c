/* lease.c - see lease.h.
 *
 *   number: u32 uses of the place << 32 | place + 1 */
#include "lease.h"

#include <assert.h>
#include <stdlib.h>

#include "policy.h"

#define KVL_LEASE_CHUNK 256u
#define KVL_LEASE_CHUNKS_MAX 16384u /* 4 Mi leases */

struct kvl_lease_table {
    struct kvl_lease *chunks[KVL_LEASE_CHUNKS_MAX];
    uint32_t end;
    uint32_t first_free;
    uint32_t count;
    uint32_t seed;
};

kvl_err kvl_lease_table_create(uint32_t seed, struct kvl_lease_table **out) {
    struct kvl_lease_table *table = calloc(1, sizeof(*table));
    if (table == NULL)
        return KVL_ERR_NOMEM;
    table->first_free = KVL_LEASE_NONE;
    table->seed = seed;
    *out = table;
    return KVL_OK;
}

void kvl_lease_table_destroy(struct kvl_lease_table *table) {
    if (table == NULL)
        return;
    for (uint32_t i = 0; i < KVL_LEASE_CHUNKS_MAX && table->chunks[i] != NULL; i++)
        free(table->chunks[i]);
    free(table);
}

static struct kvl_lease *lease_at(const struct kvl_lease_table *table, uint32_t place) {
    return &table->chunks[place / KVL_LEASE_CHUNK][place % KVL_LEASE_CHUNK];
}

static kvl_err take_place(struct kvl_lease_table *table, uint32_t *place) {
    if (table->first_free != KVL_LEASE_NONE) {
        *place = table->first_free;
        table->first_free = lease_at(table, *place)->next;
        return KVL_OK;
    }
    uint32_t chunk = table->end / KVL_LEASE_CHUNK;
    if (chunk >= KVL_LEASE_CHUNKS_MAX)
        return KVL_ERR_LIMIT;
    if (table->chunks[chunk] == NULL) {
        table->chunks[chunk] = calloc(KVL_LEASE_CHUNK, sizeof(struct kvl_lease));
        if (table->chunks[chunk] == NULL)
            return KVL_ERR_NOMEM;
    }
    *place = table->end++;
    lease_at(table, *place)->number = (uint64_t)table->seed << 32;
    return KVL_OK;
}

kvl_err kvl_lease_take(
    struct kvl_lease_table *table, struct kvl_lease_list *list, struct kvl_lease **out) {
    uint32_t place = 0;
    kvl_err err = take_place(table, &place);
    if (err != KVL_OK)
        return err;
    struct kvl_lease *lease = lease_at(table, place);
    uint64_t uses = (lease->number >> 32) + 1;
    *lease = (struct kvl_lease){
        .number = uses << 32 | (place + 1),
        .block = KVL_BLOCK_NONE,
        .next = list->first,
        .prev = KVL_LEASE_NONE,
    };
    if (list->first != KVL_LEASE_NONE)
        lease_at(table, list->first)->prev = place;
    list->first = place;
    table->count++;
    *out = lease;
    return KVL_OK;
}

void kvl_lease_give_back(
    struct kvl_lease_table *table, struct kvl_lease_list *list, struct kvl_lease *lease) {
    assert(lease->kind != KVL_LEASE_FREE && table->count > 0);
    uint32_t place = (uint32_t)lease->number - 1;
    if (lease->prev != KVL_LEASE_NONE)
        lease_at(table, lease->prev)->next = lease->next;
    else
        list->first = lease->next;
    if (lease->next != KVL_LEASE_NONE)
        lease_at(table, lease->next)->prev = lease->prev;
    lease->kind = KVL_LEASE_FREE;
    lease->next = table->first_free;
    table->first_free = place;
    table->count--;
}

struct kvl_lease *kvl_lease_find(const struct kvl_lease_table *table, uint64_t number) {
    uint32_t place = (uint32_t)number - 1;
    if ((uint32_t)number == 0 || place >= table->end)
        return NULL;
    struct kvl_lease *lease = lease_at(table, place);
    return lease->number == number && lease->kind != KVL_LEASE_FREE ? lease : NULL;
}

struct kvl_lease *kvl_lease_first(
    const struct kvl_lease_table *table, const struct kvl_lease_list *list) {
    return list->first == KVL_LEASE_NONE ? NULL : lease_at(table, list->first);
}

uint32_t kvl_lease_count(const struct kvl_lease_table *table) {
    return table->count;
}
