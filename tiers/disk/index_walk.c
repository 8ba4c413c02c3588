/* index_walk.c - the packing of index values, and walks over whole databases at start. */
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "index_private.h"

/* Deletes of one transaction: few enough that the pages it copies fit the reserve of the map. */
#define DROPS_PER_TRANSACTION 512u

void kvl_index_put(uint8_t *out, uint64_t value, uint32_t bytes) {
    for (uint32_t i = 0; i < bytes; i++)
        out[i] = (uint8_t)(value >> (8 * i));
}

uint64_t kvl_index_get(const void *in, uint32_t bytes) {
    const uint8_t *from = in;
    uint64_t value = 0;
    for (uint32_t i = 0; i < bytes; i++)
        value |= (uint64_t)from[i] << (8 * i);
    return value;
}

uint64_t kvl_index_checksum(const MDB_val *key, const void *value, uint64_t value_bytes) {
    return XXH3_64bits_withSeed(value, value_bytes, XXH3_64bits(key->mv_data, key->mv_size));
}

void kvl_index_pack_block(
    const struct kvl_index_block *block, uint8_t packed[KVL_INDEX_BLOCK_BYTES]) {
    const struct kvl_block_record *record = &block->record;
    MDB_val key = {KVL_KEY_BYTES, (void *)record->key.bytes};
    kvl_index_put(packed, record->generation, 8);
    kvl_index_put(packed + 8, record->content_hash, 8);
    kvl_index_put(packed + 16, block->location, 8);
    kvl_index_put(packed + 24, block->stored_bytes, 8);
    kvl_index_put(packed + 32, block->last_use_wall_ns, 8);
    memcpy(packed + 40, record->parent.bytes, KVL_KEY_BYTES);
    kvl_index_put(packed + 72, record->namespace_id, 4);
    kvl_index_put(packed + 76, record->token_count, 4);
    kvl_index_put(packed + 80, block->raw ? 1 : 0, 4);
    kvl_index_put(packed + 84, 0, 4);
    kvl_index_put(packed + 88, kvl_index_checksum(&key, packed, 88), 8);
}

bool kvl_index_unpack_block(
    const MDB_val *key, const MDB_val *value, struct kvl_index_block *block) {
    const uint8_t *packed = value->mv_data;
    if (key->mv_size != KVL_KEY_BYTES || value->mv_size != KVL_INDEX_BLOCK_BYTES)
        return false;
    if (kvl_index_get(packed + 88, 8) != kvl_index_checksum(key, packed, 88))
        return false;
    memset(block, 0, sizeof(*block));
    memcpy(block->record.key.bytes, key->mv_data, KVL_KEY_BYTES);
    block->record.generation = kvl_index_get(packed, 8);
    block->record.content_hash = kvl_index_get(packed + 8, 8);
    block->location = kvl_index_get(packed + 16, 8);
    block->stored_bytes = kvl_index_get(packed + 24, 8);
    block->last_use_wall_ns = kvl_index_get(packed + 32, 8);
    memcpy(block->record.parent.bytes, packed + 40, KVL_KEY_BYTES);
    block->record.namespace_id = (uint32_t)kvl_index_get(packed + 72, 4);
    block->record.token_count = (uint32_t)kvl_index_get(packed + 76, 4);
    block->raw = (kvl_index_get(packed + 80, 4) & 1) != 0;
    return true;
}

/* visit: false ends the walk. */
typedef bool (*visit_pair)(void *arg, const MDB_val *key, const MDB_val *value);

static bool in_order(const MDB_val *before, const MDB_val *after) {
    size_t common = before->mv_size < after->mv_size ? before->mv_size : after->mv_size;
    int order = memcmp(before->mv_data, after->mv_data, common);
    return order < 0 || (order == 0 && before->mv_size < after->mv_size);
}

/* Keys rise and there are as many as the database says: else the walk goes through pages that are
 * not its own, and would perhaps never end. */
static int visit_all(MDB_cursor *cursor, uint64_t entries, visit_pair visit, void *arg) {
    MDB_val key, value, before = {0, NULL};
    uint64_t visited = 0;
    int rc;
    while ((rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) == 0) {
        if (visited++ == entries || (visited > 1 && !in_order(&before, &key)))
            return MDB_CORRUPTED;
        before = key;
        if (!visit(arg, &key, &value))
            return 0;
    }
    if (rc == MDB_NOTFOUND)
        return visited == entries ? 0 : MDB_CORRUPTED;
    return rc;
}

static kvl_err walk_in(MDB_txn *txn, MDB_dbi database, visit_pair visit, void *arg) {
    MDB_cursor *cursor = NULL;
    MDB_stat stat;
    int rc = mdb_stat(txn, database, &stat);
    if (rc == 0)
        rc = mdb_cursor_open(txn, database, &cursor);
    if (rc == 0)
        rc = visit_all(cursor, stat.ms_entries, visit, arg);
    if (cursor != NULL)
        mdb_cursor_close(cursor);
    return kvl_index_err_from(rc);
}

static kvl_err walk(struct kvl_index *index, MDB_dbi database, visit_pair visit, void *arg) {
    MDB_txn *txn = NULL;
    kvl_index_enter(index->state, KVL_INDEX_WALKING);
    kvl_err err = kvl_index_err_from(mdb_txn_begin(index->env, NULL, MDB_RDONLY, &txn));
    if (err == KVL_OK) {
        err = walk_in(txn, database, visit, arg);
        mdb_txn_abort(txn);
    }
    kvl_index_leave(index->state);
    return kvl_index_noted(index, err);
}

struct walk_arg {
    kvl_index_visit_block block;
    kvl_index_visit_segment segment;
    kvl_index_visit_catalog catalog;
    enum kvl_catalog_kind kind;
    void *arg;
    uint64_t *bad;
    struct kvl_index_state *state;
};

/* The caller's visitor may wait: a process that is ended then did not die inside. Reading what
 * LMDB points at is inside, until it has passed its checks. */
static bool back_inside(const struct walk_arg *walk_arg, bool more) {
    kvl_index_enter(walk_arg->state, KVL_INDEX_WALKING);
    return more;
}

static bool visit_segment(void *arg, const MDB_val *key, const MDB_val *value) {
    struct walk_arg *walk_arg = arg;
    const uint8_t *id = key->mv_data;
    if (key->mv_size != 4 || value->mv_size != KVL_INDEX_SEGMENT_BYTES ||
        kvl_index_get((uint8_t *)value->mv_data + 16, 8) !=
            kvl_index_checksum(key, value->mv_data, 16)) {
        ++*walk_arg->bad;
        return true;
    }
    struct kvl_index_segment segment = {
        .id = (uint32_t)id[0] << 24 | (uint32_t)id[1] << 16 | (uint32_t)id[2] << 8 | id[3],
        .bytes = kvl_index_get(value->mv_data, 8),
        .generation = kvl_index_get((uint8_t *)value->mv_data + 8, 8),
    };
    kvl_index_leave(walk_arg->state);
    return back_inside(walk_arg, walk_arg->segment(walk_arg->arg, &segment));
}

static bool visit_block(void *arg, const MDB_val *key, const MDB_val *value) {
    struct walk_arg *walk_arg = arg;
    struct kvl_index_block block;
    if (!kvl_index_unpack_block(key, value, &block)) {
        ++*walk_arg->bad;
        return true;
    }
    kvl_index_leave(walk_arg->state);
    return back_inside(walk_arg, walk_arg->block(walk_arg->arg, &block));
}

static bool visit_catalog(void *arg, const MDB_val *key, const MDB_val *value) {
    struct walk_arg *walk_arg = arg;
    uint64_t bytes = value->mv_size < 8 ? 0 : value->mv_size - 8;
    if (value->mv_size < 8 || bytes > KVL_CATALOG_VALUE_BYTES_MAX ||
        kvl_index_get((uint8_t *)value->mv_data + bytes, 8) !=
            kvl_index_checksum(key, value->mv_data, bytes)) {
        ++*walk_arg->bad;
        return true;
    }
    kvl_index_leave(walk_arg->state);
    return back_inside(walk_arg, walk_arg->catalog(walk_arg->arg, walk_arg->kind, key->mv_data,
                                     (uint32_t)key->mv_size, value->mv_data, (uint32_t)bytes));
}

kvl_err kvl_index_walk_segments(
    struct kvl_index *index, kvl_index_visit_segment visit, void *arg, uint64_t *bad) {
    struct walk_arg walk_arg = {.segment = visit, .arg = arg, .bad = bad, .state = index->state};
    return walk(index, index->segments, visit_segment, &walk_arg);
}

kvl_err kvl_index_walk_blocks(
    struct kvl_index *index, kvl_index_visit_block visit, void *arg, uint64_t *bad) {
    struct walk_arg walk_arg = {.block = visit, .arg = arg, .bad = bad, .state = index->state};
    return walk(index, index->blocks, visit_block, &walk_arg);
}

kvl_err kvl_index_walk_catalog_in(struct kvl_index *index, MDB_txn *txn,
    kvl_index_visit_catalog visit, void *arg, uint64_t *bad) {
    struct walk_arg walk_arg = {.catalog = visit, .arg = arg, .bad = bad, .state = index->state};
    kvl_err err = KVL_OK;
    for (uint32_t kind = 0; err == KVL_OK && kind < KVL_CATALOG_KINDS; kind++) {
        walk_arg.kind = (enum kvl_catalog_kind)kind;
        err = walk_in(txn, index->catalog[kind], visit_catalog, &walk_arg);
    }
    return err;
}

kvl_err kvl_index_walk_kind(struct kvl_index *index, enum kvl_catalog_kind kind,
    kvl_index_visit_catalog visit, void *arg, uint64_t *bad) {
    struct walk_arg walk_arg = {
        .catalog = visit, .kind = kind, .arg = arg, .bad = bad, .state = index->state};
    return walk(index, index->catalog[kind], visit_catalog, &walk_arg);
}

kvl_err kvl_index_walk_catalog(
    struct kvl_index *index, kvl_index_visit_catalog visit, void *arg, uint64_t *bad) {
    kvl_err err = KVL_OK;
    for (uint32_t kind = 0; err == KVL_OK && kind < KVL_CATALOG_KINDS; kind++)
        err = kvl_index_walk_kind(index, (enum kvl_catalog_kind)kind, visit, arg, bad);
    return err;
}

struct drop_arg {
    kvl_index_visit_block drop;
    void *arg;
    struct kvl_key last; /* where the next transaction goes on */
    bool any, done;
};

/* One transaction of at most DROPS_PER_TRANSACTION deletes. */
static int drop_some(struct kvl_index *index, MDB_txn *txn, struct drop_arg *state) {
    MDB_cursor *cursor = NULL;
    MDB_val key = {KVL_KEY_BYTES, state->last.bytes}, value;
    uint32_t dropped = 0;
    int rc = mdb_cursor_open(txn, index->blocks, &cursor);
    if (rc != 0)
        return rc;
    rc = mdb_cursor_get(cursor, &key, &value, state->any ? MDB_SET_RANGE : MDB_FIRST);
    while (rc == 0 && dropped < DROPS_PER_TRANSACTION) {
        struct kvl_index_block block;
        if (key.mv_size == KVL_KEY_BYTES)
            memcpy(state->last.bytes, key.mv_data, KVL_KEY_BYTES);
        state->any = key.mv_size == KVL_KEY_BYTES;
        if (!kvl_index_unpack_block(&key, &value, &block))
            rc = MDB_CORRUPTED; /* it names a block all the same */
        else if (state->drop(state->arg, &block)) {
            rc = mdb_cursor_del(cursor, 0);
            dropped++;
        }
        if (rc == 0)
            rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
    }
    mdb_cursor_close(cursor);
    state->done = rc == MDB_NOTFOUND;
    return rc == MDB_NOTFOUND ? 0 : rc;
}

kvl_err kvl_index_drop_blocks(struct kvl_index *index, kvl_index_visit_block drop, void *arg) {
    struct drop_arg state = {.drop = drop, .arg = arg};
    int rc = 0;
    kvl_index_enter(index->state, KVL_INDEX_COMMITTING);
    while (rc == 0 && !state.done) {
        MDB_txn *txn = NULL;
        rc = mdb_txn_begin(index->env, NULL, 0, &txn);
        if (rc != 0)
            break;
        rc = drop_some(index, txn, &state);
        if (rc == 0)
            rc = mdb_txn_commit(txn);
        else
            mdb_txn_abort(txn);
    }
    kvl_index_leave(index->state);
    return kvl_index_noted(index, kvl_index_err_from(rc));
}

/* LMDB keeps its free pages in database 0: each value begins with how many it lists. */
static uint64_t free_pages(struct kvl_index *index) {
    MDB_txn *txn = NULL;
    MDB_cursor *cursor = NULL;
    MDB_val key, value;
    uint64_t pages = 0;
    if (mdb_txn_begin(index->env, NULL, MDB_RDONLY, &txn) != 0)
        return 0;
    if (mdb_cursor_open(txn, 0, &cursor) == 0) {
        while (mdb_cursor_get(cursor, &key, &value, MDB_NEXT) == 0) {
            size_t listed = 0;
            if (value.mv_size >= sizeof(listed))
                memcpy(&listed, value.mv_data, sizeof(listed));
            pages += listed;
        }
        mdb_cursor_close(cursor);
    }
    mdb_txn_abort(txn);
    return pages;
}

uint32_t kvl_index_usage_permille(struct kvl_index *index) {
    MDB_envinfo info;
    if (index->env == NULL)
        return 0;
    if (mdb_env_info(index->env, &info) != 0)
        return 1000;
    uint64_t map_pages = index->map_bytes / index->page_bytes;
    uint64_t high = (uint64_t)info.me_last_pgno + 1;
    if (high * 1000 / map_pages < KVL_INDEX_PRESSURE_PERMILLE)
        return (uint32_t)(high * 1000 / map_pages);
    kvl_index_enter(index->state, KVL_INDEX_WALKING);
    uint64_t listed = free_pages(index);
    kvl_index_leave(index->state);
    return (uint32_t)((high - (listed < high ? listed : high)) * 1000 / map_pages);
}
