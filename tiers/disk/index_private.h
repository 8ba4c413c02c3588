/* index_private.h - what index.c and index_walk.c share: the handle and the packing of values. */
#ifndef KVL_DISK_INDEX_PRIVATE_H
#define KVL_DISK_INDEX_PRIVATE_H

#include <lmdb.h>

#include "index.h"
#include "journal.h"

#define KVL_INDEX_BLOCK_BYTES 96u
#define KVL_INDEX_SEGMENT_BYTES 24u

struct kvl_index {
    MDB_env *env; /* NULL: it could not be opened again; calls say CLOSED */
    MDB_dbi meta, blocks, segments, catalog[KVL_CATALOG_KINDS];
    int fd; /* LMDB's */
    uint64_t map_bytes;
    uint32_t page_bytes;
    uint32_t format; /* as found */
    uint64_t generation_max;
    char *path;
    struct kvl_index_state *state;
    struct kvl_live_map map;     /* segments, and what is live in them */
    bool damaged;                /* LMDB or a checksum said so */
    bool map_whole;              /* the map has all that is live: everything was read once */
    struct kvl_journal *journal; /* NULL: nothing is written down yet */
    void (*between)(void *arg);  /* NULL: nobody wants a turn */
    void *between_arg;
};

kvl_err kvl_index_err_from(int code);
static inline void kvl_index_give_turn(const struct kvl_index *index) {
    if (index->between != NULL)
        index->between(index->between_arg);
}
/* Remembers damage for the next start. */
kvl_err kvl_index_noted(struct kvl_index *index, kvl_err err);
/* A new index with only the path set; nothing is opened. */
kvl_err kvl_index_allocate(
    const struct kvl_index_options *options, struct kvl_index **out, struct kvl_errmsg *msg);
/* Opens LMDB at index->path. fast: nothing is synced until kvl_index_sync_to. */
kvl_err kvl_index_open_env(
    struct kvl_index *index, bool expected, bool fast, struct kvl_errmsg *msg);
int kvl_index_put_format(struct kvl_index *index, MDB_txn *txn);
/* Syncs, closes, and renames the file to path, which becomes the index's. */
kvl_err kvl_index_settle_at(struct kvl_index *index, const char *path);
/* As kvl_index_walk_catalog, of what the transaction sees. */
kvl_err kvl_index_walk_catalog_in(
    struct kvl_index *index, MDB_txn *txn, kvl_index_visit_catalog visit, void *arg, uint64_t *bad);
/* A new journal: the catalog that the transaction sees, and what the map says. */
kvl_err kvl_index_write_journal(
    struct kvl_index *index, const struct kvl_live_map *map, MDB_txn *txn);

void kvl_index_put(uint8_t *out, uint64_t value, uint32_t bytes);
uint64_t kvl_index_get(const void *in, uint32_t bytes);
uint64_t kvl_index_checksum(const MDB_val *key, const void *value, uint64_t value_bytes);
void kvl_index_pack_block(
    const struct kvl_index_block *block, uint8_t packed[KVL_INDEX_BLOCK_BYTES]);
bool kvl_index_unpack_block(
    const MDB_val *key, const MDB_val *value, struct kvl_index_block *block);

#endif
