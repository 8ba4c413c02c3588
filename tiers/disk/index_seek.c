/* index_seek.c - single blocks by their keys, while the index is being read as a whole. */
#include "index_private.h"

void kvl_index_set_between(struct kvl_index *index, void (*between)(void *arg), void *arg) {
    index->between = between;
    index->between_arg = arg;
}

static int seek_in(struct kvl_index *index, MDB_txn *txn, const struct kvl_key *wanted,
    struct kvl_index_block *block) {
    MDB_val key = {KVL_KEY_BYTES, (void *)wanted->bytes}, value;
    int rc = mdb_get(txn, index->blocks, &key, &value);
    return rc == 0 && !kvl_index_unpack_block(&key, &value, block) ? MDB_CORRUPTED : rc;
}

kvl_err kvl_index_seek(struct kvl_index *index, const struct kvl_key *keys, uint32_t count,
    kvl_index_visit_block visit, void *arg) {
    MDB_txn *txn = NULL;
    bool more = true;
    if (index->env == NULL)
        return KVL_ERR_CLOSED;
    kvl_index_enter(index->state, KVL_INDEX_WALKING);
    int rc = mdb_txn_begin(index->env, NULL, MDB_RDONLY, &txn);
    for (uint32_t i = 0; rc == 0 && more && i < count; i++) {
        struct kvl_index_block block;
        rc = seek_in(index, txn, &keys[i], &block);
        kvl_index_leave(index->state);
        more = rc != 0 || visit(arg, &block);
        kvl_index_enter(index->state, KVL_INDEX_WALKING);
        rc = rc == MDB_NOTFOUND ? 0 : rc;
    }
    if (txn != NULL)
        mdb_txn_abort(txn);
    kvl_index_leave(index->state);
    return kvl_index_err_from(rc);
}
