/* index_commit.c - one transaction: first what a rebuild must know goes to the journal, then LMDB
 * commits. */
#include <errno.h>
#include <string.h>

#include "index_private.h"
#include "planted.h"
#include "segment.h"

static void note_dead(struct kvl_index *index, uint64_t location) {
    if (index->journal != NULL)
        kvl_journal_add_dead(index->journal, location);
}

static int put_block(struct kvl_index *index, MDB_txn *txn, const struct kvl_index_block *block) {
    uint8_t packed[KVL_INDEX_BLOCK_BYTES];
    kvl_index_pack_block(block, packed);
    MDB_val key = {KVL_KEY_BYTES, (void *)block->record.key.bytes};
    MDB_val value = {sizeof(packed), packed};
    return mdb_put(txn, index->blocks, &key, &value, 0);
}

/* The block of the key. */
static int get_block(struct kvl_index *index, MDB_txn *txn, const struct kvl_key *wanted,
    struct kvl_index_block *now) {
    MDB_val key = {KVL_KEY_BYTES, (void *)wanted->bytes}, value;
    int rc = mdb_get(txn, index->blocks, &key, &value);
    return rc == 0 && !kvl_index_unpack_block(&key, &value, now) ? MDB_CORRUPTED : rc;
}

/* By seal; a block that was stored again, by when. */
static bool is_younger(const struct kvl_index_block *a, const struct kvl_index_block *b) {
    if (a->record.generation != b->record.generation)
        return a->record.generation > b->record.generation;
    return a->last_use_wall_ns > b->last_use_wall_ns;
}

/* PUT, RECOVER: the record that the key named before is dead; op->old_location says so. */
static int add_block(struct kvl_index *index, MDB_txn *txn, struct kvl_index_op *op) {
    struct kvl_index_block now;
    int rc = get_block(index, txn, &op->block.record.key, &now);
    if (rc != 0 && rc != MDB_NOTFOUND)
        return rc;
    if (op->kind == KVL_INDEX_RECOVER && rc == 0 && !is_younger(&op->block, &now))
        return 0;
    op->applied = true;
    op->old_location = rc == 0 ? now.location : op->block.location;
    if (op->old_location != op->block.location)
        note_dead(index, op->old_location);
    return put_block(index, txn, &op->block);
}

static bool is_of_its_segment(const struct kvl_live_map *map, const struct kvl_index_op *op) {
    const struct kvl_live_segment *segment =
        kvl_live_map_find(map, kvl_location_segment(op->old_location));
    return segment != NULL && segment->row.generation == op->segment.generation;
}

/* The row of a block at this location whose key begins with the head, by a walk over those few
 * that do. */
static int find_by_head(
    MDB_cursor *cursor, uint32_t key_head, uint64_t location, struct kvl_index_block *block) {
    MDB_val key = {sizeof(key_head), &key_head}, value;
    int rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
    while (rc == 0 && key.mv_size == KVL_KEY_BYTES &&
           memcmp(key.mv_data, &key_head, sizeof(key_head)) == 0) {
        if (!kvl_index_unpack_block(&key, &value, block))
            return MDB_CORRUPTED;
        if (block->location == location)
            return 0;
        rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
    }
    if (rc == 0 && key.mv_size != KVL_KEY_BYTES)
        return MDB_CORRUPTED;
    return rc == 0 ? MDB_NOTFOUND : rc;
}

/* A row that the map has and LMDB does not find is lost, not deleted. */
static bool is_missing(const struct kvl_index *index, uint64_t location) {
    const struct kvl_live_segment *segment =
        kvl_live_map_find(&index->map, kvl_location_segment(location));
    uint32_t page = kvl_location_page(location);
    return index->map_whole && segment != NULL && page < segment->end_page &&
           kvl_live_segment_bit(segment, page);
}

kvl_err kvl_index_resolve(struct kvl_index *index, struct kvl_index_name *names, uint64_t count) {
    MDB_txn *txn = NULL;
    MDB_cursor *cursor = NULL;
    struct kvl_index_block block;
    if (index->env == NULL)
        return KVL_ERR_CLOSED;
    kvl_index_enter(index->state, KVL_INDEX_WALKING);
    int rc = mdb_txn_begin(index->env, NULL, MDB_RDONLY, &txn);
    if (rc == 0)
        rc = mdb_cursor_open(txn, index->blocks, &cursor);
    for (uint64_t i = 0; rc == 0 && i < count; i++) {
        rc = find_by_head(cursor, names[i].key_head, names[i].location, &block);
        names[i].found = rc == 0;
        if (rc == 0) {
            names[i].key = block.record.key;
            names[i].generation = block.record.generation;
        }
        if (rc == MDB_NOTFOUND)
            rc = is_missing(index, names[i].location) ? MDB_CORRUPTED : 0;
    }
    if (cursor != NULL)
        mdb_cursor_close(cursor);
    if (txn != NULL)
        mdb_txn_abort(txn);
    kvl_index_leave(index->state);
    return kvl_index_noted(index, kvl_index_err_from(rc));
}

static int touch_block(struct kvl_index *index, MDB_txn *txn, struct kvl_index_op *op) {
    MDB_cursor *cursor = NULL;
    struct kvl_index_block now;
    int rc = mdb_cursor_open(txn, index->blocks, &cursor);
    if (rc != 0)
        return rc;
    rc = find_by_head(cursor, op->key_head, op->old_location, &now);
    mdb_cursor_close(cursor);
    if (rc != 0)
        return rc == MDB_NOTFOUND ? 0 : rc;
    op->applied = true;
    now.last_use_wall_ns = op->block.last_use_wall_ns;
    return put_block(index, txn, &now);
}

/* MOVE, DELETE: only while the block is where the caller thinks it is. A move that was made before
 * the index was rebuilt, and is asked for again, has been made. */
static int change_block(struct kvl_index *index, MDB_txn *txn, struct kvl_index_op *op) {
    struct kvl_index_block now;
    int rc = get_block(index, txn, &op->block.record.key, &now);
    if (rc != 0 && rc != MDB_NOTFOUND)
        return rc;
    if (rc != 0 && op->kind == KVL_INDEX_MOVE && is_missing(index, op->old_location))
        return MDB_CORRUPTED;
    bool there = rc == 0 && now.location == op->old_location;
    bool moved = rc == 0 && op->kind == KVL_INDEX_MOVE && now.location == op->block.location;
    op->applied = there || moved;
    /* Also a record that is named by nobody; but not what came into its place since. */
    if (op->kind == KVL_INDEX_DELETE && is_of_its_segment(&index->map, op))
        note_dead(index, op->old_location);
    if (op->kind == KVL_INDEX_MOVE)
        note_dead(index, op->applied ? op->old_location : op->block.location);
    if (!there)
        return 0;
    if (op->kind == KVL_INDEX_DELETE) {
        MDB_val key = {KVL_KEY_BYTES, op->block.record.key.bytes};
        return mdb_del(txn, index->blocks, &key, NULL);
    }
    now.location = op->block.location;
    return put_block(index, txn, &now);
}

static void note_catalog(struct kvl_index *index, const struct kvl_index_op *op) {
    bool put = op->kind == KVL_INDEX_CATALOG_PUT;
    if (index->journal == NULL)
        return;
    kvl_journal_add(index->journal, &(struct kvl_journal_entry){
                                        .kind = put ? KVL_JOURNAL_PUT : KVL_JOURNAL_REMOVE,
                                        .catalog_kind = op->catalog_kind,
                                        .key = op->data,
                                        .key_bytes = op->key_bytes,
                                        .value = op->data + op->key_bytes,
                                        .value_bytes = put ? op->value_bytes : 0,
                                    });
}

static int change_catalog(struct kvl_index *index, MDB_txn *txn, const struct kvl_index_op *op) {
    MDB_dbi database = index->catalog[op->catalog_kind];
    note_catalog(index, op);
    MDB_val key = {op->key_bytes, op->data};
    if (op->kind == KVL_INDEX_CATALOG_REMOVE) {
        int rc = mdb_del(txn, database, &key, NULL);
        return rc == MDB_NOTFOUND ? 0 : rc;
    }
    MDB_val value = {op->value_bytes + 8u, NULL};
    int rc = mdb_put(txn, database, &key, &value, MDB_RESERVE | (op->append ? MDB_APPEND : 0));
    if (rc != 0)
        return rc;
    if (op->value_bytes > 0)
        memcpy(value.mv_data, op->data + op->key_bytes, op->value_bytes);
    kvl_index_put((uint8_t *)value.mv_data + op->value_bytes,
        kvl_index_checksum(&key, value.mv_data, op->value_bytes), 8);
    return 0;
}

static int change_segment(struct kvl_index *index, MDB_txn *txn, const struct kvl_index_op *op) {
    uint8_t id[4], packed[KVL_INDEX_SEGMENT_BYTES];
    for (uint32_t i = 0; i < 4; i++)
        id[i] = (uint8_t)(op->segment.id >> (24 - 8 * i));
    MDB_val key = {sizeof(id), id};
    if (op->kind == KVL_INDEX_SEGMENT_REMOVE) {
        if (index->journal != NULL)
            kvl_journal_add_removed(index->journal, op->segment.id);
        int rc = mdb_del(txn, index->segments, &key, NULL);
        return rc == MDB_NOTFOUND ? 0 : rc;
    }
    const struct kvl_live_segment empty = {.row = op->segment};
    if (index->journal != NULL)
        kvl_journal_add_segment(index->journal, &empty);
    kvl_index_put(packed, op->segment.bytes, 8);
    kvl_index_put(packed + 8, op->segment.generation, 8);
    kvl_index_put(packed + 16, kvl_index_checksum(&key, packed, 16), 8);
    MDB_val value = {sizeof(packed), packed};
    return mdb_put(txn, index->segments, &key, &value, 0);
}

static int apply(struct kvl_index *index, MDB_txn *txn, struct kvl_index_op *op) {
    switch (op->kind) {
    case KVL_INDEX_PUT:
    case KVL_INDEX_RECOVER:
        return add_block(index, txn, op);
    case KVL_INDEX_MOVE:
    case KVL_INDEX_DELETE:
        return change_block(index, txn, op);
    case KVL_INDEX_TOUCH:
        return touch_block(index, txn, op);
    case KVL_INDEX_CATALOG_PUT:
    case KVL_INDEX_CATALOG_REMOVE:
        op->applied = true;
        return change_catalog(index, txn, op);
    default:
        op->applied = true;
        return change_segment(index, txn, op);
    }
}

/* What the change means for the records in the segments. */
static bool settle_op(struct kvl_live_map *map, const struct kvl_index_op *op) {
    switch (op->kind) {
    case KVL_INDEX_PUT:
        if (op->old_location != op->block.location)
            kvl_live_map_drop(map, op->old_location);
        kvl_live_map_add(map, op->block.location, op->block.stored_bytes);
        return true;
    case KVL_INDEX_MOVE:
        if (op->applied) {
            kvl_live_map_drop(map, op->old_location);
            kvl_live_map_add(map, op->block.location, op->block.stored_bytes);
        } else {
            kvl_live_map_bury(map, op->block.location);
        }
        return true;
    case KVL_INDEX_DELETE:
        if (op->applied || is_of_its_segment(map, op))
            kvl_live_map_bury(map, op->old_location);
        return true;
    case KVL_INDEX_SEGMENT_PUT:
        return kvl_live_map_put(map, &op->segment);
    case KVL_INDEX_SEGMENT_REMOVE:
        kvl_live_map_remove(map, op->segment.id);
        return true;
    default:
        return true;
    }
}

/* False: out of memory for a segment that was not reserved. */
static bool settle_ops(struct kvl_live_map *map, const struct kvl_index_op *ops, uint64_t count) {
    bool settled = true;
    for (uint64_t i = 0; i < count; i++)
        settled = settle_op(map, &ops[i]) && settled;
    return settled;
}

/* What settling needs, before anything is committed. */
static bool reserve_ops(struct kvl_live_map *map, const struct kvl_index_op *ops, uint64_t count) {
    bool reserved = true;
    for (uint64_t i = 0; reserved && i < count; i++)
        reserved =
            ops[i].kind != KVL_INDEX_SEGMENT_PUT || kvl_live_map_reserve(map, &ops[i].segment);
    return reserved;
}

/* What the map will be. */
static kvl_err map_after(struct kvl_index *index, const struct kvl_index_op *ops, uint64_t count,
    struct kvl_live_map *after) {
    if (kvl_live_map_copy(after, &index->map) && settle_ops(after, ops, count))
        return KVL_OK;
    kvl_live_map_deinit(after);
    return KVL_ERR_NOMEM;
}

/* One that is written anew says what will be after the change. */
static kvl_err tell_journal(
    struct kvl_index *index, MDB_txn *txn, const struct kvl_index_op *ops, uint64_t count) {
    struct kvl_live_map after = {0};
    if (index->journal == NULL)
        return KVL_OK;
    if (!kvl_journal_is_full(index->journal))
        return kvl_journal_append(index->journal);
    kvl_err err = map_after(index, ops, count, &after);
    if (err == KVL_OK)
        err = kvl_index_write_journal(index, &after, txn);
    kvl_live_map_deinit(&after);
    return err;
}

/* The journal hears of it first, the map follows last. A power cut or a kill after the journal
 * leaves one that says more than the index. While the index is sound it is not asked; and of what
 * nobody was told to be done, both what was and what was to be is right. But when LMDB fails and
 * the process goes on, the blocks that were to be removed, moved or replaced are where they were
 * and stay there: then the journal must say so, too, before it says anything else. */
static kvl_err commit_after_journal(
    struct kvl_index *index, MDB_txn *txn, const struct kvl_index_op *ops, uint64_t count) {
    uint64_t sequence = index->journal != NULL ? index->journal->sequence : 0;
    kvl_err err =
        reserve_ops(&index->map, ops, count) ? tell_journal(index, txn, ops, count) : KVL_ERR_NOMEM;
    if (err != KVL_OK) {
        mdb_txn_abort(txn);
        return err;
    }
    err = kvl_index_err_from(mdb_txn_commit(txn));
    if (err == KVL_OK)
        (void)settle_ops(&index->map, ops, count);
    else if (index->journal != NULL && index->journal->sequence != sequence &&
             !KVL_PLANTED("journal-ahead"))
        kvl_journal_outdate(index->journal);
    return err;
}

static kvl_err commit_ops(struct kvl_index *index, struct kvl_index_op *ops, uint64_t count) {
    MDB_txn *txn = NULL;
    int rc = mdb_txn_begin(index->env, NULL, 0, &txn);
    if (rc != 0)
        return kvl_index_err_from(rc);
    for (uint64_t i = 0; rc == 0 && i < count; i++) {
        ops[i].applied = false;
        rc = apply(index, txn, &ops[i]);
    }
    kvl_err err = kvl_index_err_from(rc);
    if (err == KVL_OK)
        err = commit_after_journal(index, txn, ops, count);
    else
        mdb_txn_abort(txn);
    if (err != KVL_OK && index->journal != NULL)
        kvl_journal_forget_frame(index->journal);
    kvl_live_map_unreserve(&index->map);
    return err;
}

kvl_err kvl_index_commit(struct kvl_index *index, struct kvl_index_op *ops, uint64_t count) {
    if (index->env == NULL)
        return KVL_ERR_CLOSED;
    kvl_index_enter(index->state, KVL_INDEX_COMMITTING);
    kvl_err err = commit_ops(index, ops, count);
    kvl_index_leave(index->state);
    return kvl_index_noted(index, err);
}

static kvl_err save_format(struct kvl_index *index) {
    MDB_txn *txn = NULL;
    int rc = mdb_txn_begin(index->env, NULL, 0, &txn);
    if (rc != 0)
        return kvl_index_err_from(rc);
    rc = kvl_index_put_format(index, txn);
    if (rc != 0) {
        mdb_txn_abort(txn);
        return kvl_index_err_from(rc);
    }
    return kvl_index_err_from(mdb_txn_commit(txn));
}

kvl_err kvl_index_keep_journal(struct kvl_index *index, struct kvl_journal *journal) {
    MDB_txn *txn = NULL;
    index->journal = journal;
    kvl_index_enter(index->state, KVL_INDEX_WALKING);
    kvl_err err = kvl_index_err_from(mdb_txn_begin(index->env, NULL, MDB_RDONLY, &txn));
    if (err == KVL_OK) {
        err = kvl_index_write_journal(index, &index->map, txn);
        mdb_txn_abort(txn);
    }
    if (err == KVL_OK && index->format < KVL_DISK_FORMAT)
        err = save_format(index);
    kvl_index_leave(index->state);
    return kvl_index_noted(index, err);
}
