/* index_check.c - whether the index is as it was written, and the journal that follows from it. */
#include <string.h>

#include "index_private.h"

static bool note_live(void *arg, const struct kvl_index_block *block) {
    struct kvl_index *index = arg;
    kvl_live_map_add(&index->map, block->location, block->stored_bytes);
    if (block->record.generation > index->generation_max)
        index->generation_max = block->record.generation;
    kvl_index_give_turn(index);
    return true;
}

static bool pass_catalog(void *arg, enum kvl_catalog_kind kind, const void *key, uint32_t key_bytes,
    const void *value, uint32_t value_bytes) {
    (void)arg, (void)kind, (void)key, (void)key_bytes, (void)value, (void)value_bytes;
    return true;
}

/* LMDB's list of free pages: u64 count, then page numbers, falling. A number that is none would
 * have it write over live pages. */
static bool list_is_sane(const MDB_val *value, uint64_t last_page) {
    const uint8_t *bytes = value->mv_data;
    uint64_t count, before = last_page + 1;
    if (value->mv_size < sizeof(count))
        return false;
    memcpy(&count, bytes, sizeof(count));
    if (count > value->mv_size / sizeof(count) - 1)
        return false;
    for (uint64_t i = 1; i <= count; i++) {
        uint64_t page;
        memcpy(&page, bytes + i * sizeof(page), sizeof(page));
        if (page < 2 || page >= before)
            return false;
        before = page;
    }
    return true;
}

static int check_free_list(struct kvl_index *index, MDB_txn *txn) {
    MDB_envinfo info;
    MDB_stat stat;
    MDB_cursor *cursor = NULL;
    MDB_val key, value;
    uint64_t visited = 0;
    int rc = mdb_env_info(index->env, &info);
    if (rc == 0)
        rc = mdb_stat(txn, 0, &stat);
    if (rc == 0)
        rc = mdb_cursor_open(txn, 0, &cursor);
    while (rc == 0 && (rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) == 0) {
        if (visited++ == stat.ms_entries || !list_is_sane(&value, info.me_last_pgno))
            rc = MDB_CORRUPTED;
    }
    if (cursor != NULL)
        mdb_cursor_close(cursor);
    if (rc == MDB_NOTFOUND)
        return visited == stat.ms_entries ? 0 : MDB_CORRUPTED;
    return rc;
}

static kvl_err check_pages(struct kvl_index *index) {
    MDB_txn *txn = NULL;
    kvl_index_enter(index->state, KVL_INDEX_WALKING);
    int rc = mdb_txn_begin(index->env, NULL, MDB_RDONLY, &txn);
    if (rc == 0) {
        rc = check_free_list(index, txn);
        mdb_txn_abort(txn);
    }
    kvl_index_leave(index->state);
    return kvl_index_err_from(rc);
}

uint64_t kvl_index_generation_max(const struct kvl_index *index) {
    return index->generation_max;
}

kvl_err kvl_index_check(struct kvl_index *index) {
    uint64_t bad = 0;
    index->generation_max = 0;
    kvl_err err = check_pages(index);
    if (err == KVL_OK)
        err = kvl_index_walk_catalog(index, pass_catalog, NULL, &bad);
    if (err == KVL_OK)
        err = kvl_index_walk_blocks(index, note_live, index, &bad);
    if (err == KVL_OK && bad > 0)
        err = KVL_ERR_CORRUPT;
    index->map_whole = err == KVL_OK;
    return kvl_index_noted(index, err);
}

static bool write_catalog(void *arg, enum kvl_catalog_kind kind, const void *key,
    uint32_t key_bytes, const void *value, uint32_t value_bytes) {
    kvl_journal_add(arg, &(struct kvl_journal_entry){
                             .kind = KVL_JOURNAL_PUT,
                             .catalog_kind = kind,
                             .key = key,
                             .key_bytes = key_bytes,
                             .value = value,
                             .value_bytes = value_bytes,
                         });
    return true;
}

kvl_err kvl_index_write_journal(
    struct kvl_index *index, const struct kvl_live_map *map, MDB_txn *txn) {
    struct kvl_journal *journal = index->journal;
    uint64_t bad = 0;
    kvl_err err = kvl_journal_begin(journal);
    if (err == KVL_OK) {
        kvl_journal_add_map(journal, map);
        err = kvl_index_walk_catalog_in(index, txn, write_catalog, journal, &bad);
    }
    if (err == KVL_OK && bad > 0)
        err = KVL_ERR_CORRUPT;
    if (err == KVL_OK)
        return kvl_journal_end(journal);
    kvl_journal_abandon(journal);
    return err;
}
