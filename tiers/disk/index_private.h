/* index_private.h - what index.c and index_walk.c share: the handle and the packing of values. */
#ifndef KVL_DISK_INDEX_PRIVATE_H
#define KVL_DISK_INDEX_PRIVATE_H

#include <lmdb.h>

#include "index.h"

#define KVL_INDEX_BLOCK_BYTES 96u
#define KVL_INDEX_SEGMENT_BYTES 24u

struct kvl_index {
    MDB_env *env;
    MDB_dbi blocks, segments, catalog[KVL_CATALOG_KINDS];
    int fd; /* LMDB's */
    uint64_t map_bytes;
    uint32_t page_bytes;
    char *path;
};

kvl_err kvl_index_err_from(int code);

void kvl_index_put(uint8_t *out, uint64_t value, uint32_t bytes);
uint64_t kvl_index_get(const void *in, uint32_t bytes);
uint64_t kvl_index_checksum(const MDB_val *key, const void *value, uint64_t value_bytes);
void kvl_index_pack_block(
    const struct kvl_index_block *block, uint8_t packed[KVL_INDEX_BLOCK_BYTES]);
bool kvl_index_unpack_block(
    const MDB_val *key, const MDB_val *value, struct kvl_index_block *block);

#endif
