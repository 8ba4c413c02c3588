/* index_seek.c - single blocks by their keys, while the index is being read as a whole.
 *
 * LMDB has no checksums of its own: damage to a page may hide rows, so that "not found" proves
 * nothing by itself. What proves that a key is absent: the rows before and behind its place are
 * sound and stand next to each other on one page. A search that a damaged page leads astray ends at
 * an unsound row, at rows that the key is not between, or at the edge of a page; so does one on a
 * page whose number of rows is damaged. (A page that is whole, but as it was before a write that
 * the disk said it had synced, would deceive this; the check of everything finds it by the number
 * of rows.) */
#include <string.h>
#include <unistd.h>

#include "index_private.h"

void kvl_index_set_between(struct kvl_index *index, void (*between)(void *arg), void *arg) {
    index->between = between;
    index->between_arg = arg;
}

static bool on_one_page(const struct kvl_index *index, const MDB_val *a, const MDB_val *b) {
    uintptr_t bytes = index->page_bytes;
    return bytes == (uintptr_t)sysconf(_SC_PAGESIZE) &&
           (uintptr_t)a->mv_data / bytes == (uintptr_t)b->mv_data / bytes;
}

/* The cursor stands at the row `behind` the key's place. */
static int weigh_absence(struct kvl_index *index, MDB_cursor *cursor, const MDB_val *behind,
    const struct kvl_key *wanted, enum kvl_index_answer *answer) {
    MDB_val before, value;
    struct kvl_index_block block;
    int rc = mdb_cursor_get(cursor, &before, &value, MDB_PREV);
    if (rc != 0)
        return rc == MDB_NOTFOUND ? 0 : rc;
    if (!kvl_index_unpack_block(&before, &value, &block))
        return MDB_CORRUPTED;
    if (memcmp(before.mv_data, wanted->bytes, KVL_KEY_BYTES) >= 0)
        return MDB_CORRUPTED;
    if (on_one_page(index, &before, behind))
        *answer = KVL_INDEX_ABSENT;
    return 0;
}

static int seek_one(struct kvl_index *index, MDB_cursor *cursor, const struct kvl_key *wanted,
    enum kvl_index_answer *answer, struct kvl_index_block *block) {
    MDB_val key = {KVL_KEY_BYTES, (void *)wanted->bytes}, value;
    *answer = KVL_INDEX_NOT_FOUND;
    int rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
    if (rc != 0)
        return rc == MDB_NOTFOUND ? 0 : rc;
    if (!kvl_index_unpack_block(&key, &value, block))
        return MDB_CORRUPTED;
    int order = memcmp(key.mv_data, wanted->bytes, KVL_KEY_BYTES);
    if (order < 0)
        return MDB_CORRUPTED;
    if (order > 0)
        return weigh_absence(index, cursor, &key, wanted, answer);
    *answer = KVL_INDEX_FOUND;
    return 0;
}

static int seek_in(struct kvl_index *index, MDB_cursor *cursor, const struct kvl_key *keys,
    uint32_t count, kvl_index_visit_key visit, void *arg) {
    bool more = true;
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && more && i < count; i++) {
        enum kvl_index_answer answer;
        struct kvl_index_block block;
        rc = seek_one(index, cursor, &keys[i], &answer, &block);
        kvl_index_leave(index->state); /* the visitor may wait */
        more = rc != 0 || visit(arg, answer, &block);
        kvl_index_enter(index->state, KVL_INDEX_WALKING);
    }
    return rc;
}

kvl_err kvl_index_seek(struct kvl_index *index, const struct kvl_key *keys, uint32_t count,
    kvl_index_visit_key visit, void *arg) {
    MDB_txn *txn = NULL;
    MDB_cursor *cursor = NULL;
    if (index->env == NULL)
        return KVL_ERR_CLOSED;
    kvl_index_enter(index->state, KVL_INDEX_WALKING);
    int rc = mdb_txn_begin(index->env, NULL, MDB_RDONLY, &txn);
    if (rc == 0)
        rc = mdb_cursor_open(txn, index->blocks, &cursor);
    if (rc == 0)
        rc = seek_in(index, cursor, keys, count, visit, arg);
    if (cursor != NULL)
        mdb_cursor_close(cursor);
    if (txn != NULL)
        mdb_txn_abort(txn);
    kvl_index_leave(index->state);
    return kvl_index_err_from(rc);
}
