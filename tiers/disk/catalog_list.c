/* catalog_list.c - see catalog_list.h. */
#include "catalog_list.h"

#include <stdlib.h>
#include <string.h>

void kvl_catalog_list_deinit(struct kvl_catalog_list *list) {
    free(list->items);
    *list = (struct kvl_catalog_list){0};
}

kvl_err kvl_catalog_list_add(struct kvl_catalog_list *list, const struct kvl_journal_entry *entry) {
    if (list->count == list->capacity) {
        uint64_t capacity = list->capacity * 2 + 64;
        struct kvl_journal_entry *items = realloc(list->items, capacity * sizeof(items[0]));
        if (items == NULL)
            return KVL_ERR_NOMEM;
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->count++] = *entry;
    return KVL_OK;
}

/* As LMDB compares keys: bytes, then the shorter one first. */
static int compare_keys(const struct kvl_journal_entry *a, const struct kvl_journal_entry *b) {
    if (a->catalog_kind != b->catalog_kind)
        return a->catalog_kind < b->catalog_kind ? -1 : 1;
    uint32_t common = a->key_bytes < b->key_bytes ? a->key_bytes : b->key_bytes;
    int order = memcmp(a->key, b->key, common);
    return order != 0 ? order : (a->key_bytes > b->key_bytes) - (a->key_bytes < b->key_bytes);
}

static int compare(const void *left, const void *right) {
    const struct kvl_journal_entry *a = left, *b = right;
    int order = compare_keys(a, b);
    return order != 0 ? order : (a->key > b->key) - (a->key < b->key);
}

void kvl_catalog_list_settle(struct kvl_catalog_list *list) {
    uint64_t kept = 0;
    if (list->count > 1)
        qsort(list->items, list->count, sizeof(list->items[0]), compare);
    for (uint64_t i = 0; i < list->count; i++) {
        const struct kvl_journal_entry *entry = &list->items[i];
        bool last = i + 1 == list->count || compare_keys(entry, &entry[1]) != 0;
        if (last && entry->kind == KVL_JOURNAL_PUT)
            list->items[kept++] = *entry;
    }
    list->count = kept;
}
