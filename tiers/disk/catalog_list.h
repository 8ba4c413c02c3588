/* catalog_list.h - the catalog as a journal tells it: the last word on each key, in LMDB's order.
 *
 * Put into an empty index in this order, each record behind the one before, the catalog fills its
 * pages: it fits wherever an index ever held it.
 *
 * Threads: one at a time, the index's. */
#ifndef KVL_DISK_CATALOG_LIST_H
#define KVL_DISK_CATALOG_LIST_H

#include "journal.h"

struct kvl_catalog_list {
    struct kvl_journal_entry *items; /* keys and values are borrowed from the journal's bytes */
    uint64_t count, capacity;
};

void kvl_catalog_list_deinit(struct kvl_catalog_list *list);
/* A PUT or REMOVE; where two have one key, the one that stands behind in memory holds. */
KVL_MUST_CHECK kvl_err kvl_catalog_list_add(
    struct kvl_catalog_list *list, const struct kvl_journal_entry *entry);
/* What is left are PUTs, by kind and key, each key once. */
void kvl_catalog_list_settle(struct kvl_catalog_list *list);

#endif
