/* index.c - LMDB behind plain structs: open, commit, compact. Walks are in index_walk.c. */
#include "index.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "index_private.h"

kvl_err kvl_index_err_from(int code) {
    switch (code) {
    case MDB_SUCCESS:
        return KVL_OK;
    case MDB_NOTFOUND:
        return KVL_ERR_NOTFOUND;
    case MDB_MAP_FULL:
    case MDB_TXN_FULL:
        return KVL_ERR_NOSPC;
    case MDB_CORRUPTED:
    case MDB_PAGE_NOTFOUND:
    case MDB_INVALID:
        return KVL_ERR_CORRUPT;
    case MDB_VERSION_MISMATCH:
        return KVL_ERR_VERSION;
    default:
        return code > 0 ? kvl_err_from_errno(code) : KVL_ERR_IO;
    }
}

static const char *const catalog_names[KVL_CATALOG_KINDS] = {
    "catalog.0", "catalog.1", "catalog.2", "catalog.3", "catalog.4"};

/* The first start writes the format version; later ones compare it. */
static int open_databases(struct kvl_index *index, MDB_txn *txn, uint32_t *format) {
    MDB_dbi meta;
    int rc = mdb_dbi_open(txn, "meta", MDB_CREATE, &meta);
    if (rc == 0)
        rc = mdb_dbi_open(txn, "blocks", MDB_CREATE, &index->blocks);
    if (rc == 0)
        rc = mdb_dbi_open(txn, "segments", MDB_CREATE, &index->segments);
    for (uint32_t kind = 0; rc == 0 && kind < KVL_CATALOG_KINDS; kind++)
        rc = mdb_dbi_open(txn, catalog_names[kind], MDB_CREATE, &index->catalog[kind]);
    if (rc != 0)
        return rc;
    uint8_t bytes[4];
    MDB_val key = {6, "format"}, value;
    rc = mdb_get(txn, meta, &key, &value);
    if (rc == 0 && value.mv_size == 4) {
        *format = (uint32_t)kvl_index_get(value.mv_data, 4);
        return 0;
    }
    if (rc != MDB_NOTFOUND)
        return rc == 0 ? MDB_CORRUPTED : rc;
    kvl_index_put(bytes, KVL_DISK_FORMAT, 4);
    value = (MDB_val){4, bytes};
    *format = KVL_DISK_FORMAT;
    return mdb_put(txn, meta, &key, &value, 0);
}

static kvl_err check_databases(struct kvl_index *index, struct kvl_errmsg *msg) {
    MDB_txn *txn = NULL;
    uint32_t format = 0;
    int rc = mdb_txn_begin(index->env, NULL, 0, &txn);
    if (rc == 0) {
        rc = open_databases(index, txn, &format);
        if (rc != 0 || format > KVL_DISK_FORMAT)
            mdb_txn_abort(txn);
        else
            rc = mdb_txn_commit(txn);
    }
    if (rc != 0)
        return kvl_fail(msg, kvl_index_err_from(rc), "index %s: %s; move it away to start empty",
            index->path, mdb_strerror(rc));
    if (format > KVL_DISK_FORMAT)
        return kvl_fail(msg, KVL_ERR_VERSION,
            "%s has disk format %u, this program reads up to %u; use a newer kvloft or another "
            "--disk-path",
            index->path, format, KVL_DISK_FORMAT);
    return KVL_OK;
}

/* LMDB maps the file: one that ends before its last page would be a SIGBUS, not an error. */
static kvl_err check_file(struct kvl_index *index, struct kvl_errmsg *msg) {
    MDB_envinfo info;
    MDB_stat stat;
    if (mdb_env_info(index->env, &info) != 0 || mdb_env_stat(index->env, &stat) != 0)
        return kvl_fail(msg, KVL_ERR_IO, "index %s: cannot be read", index->path);
    uint64_t needed = ((uint64_t)info.me_last_pgno + 1) * stat.ms_psize;
    struct stat file;
    if (fstat(index->fd, &file) != 0 || (uint64_t)file.st_size < needed)
        return kvl_fail(msg, KVL_ERR_CORRUPT,
            "index %s is cut off (%llu bytes, %llu needed); move it away to start empty",
            index->path, (unsigned long long)file.st_size, (unsigned long long)needed);
    index->page_bytes = stat.ms_psize;
    return KVL_OK;
}

/* The file's blocks are reserved, so that a full file system never stops a delete; those that a
 * larger capacity had reserved behind its end are given back. Without either it works too. It has
 * its whole length at once: LMDB leaves out a last page that a transaction took and gave back, and
 * a sound file would seem cut off. */
static void reserve_blocks(struct kvl_index *index) {
    struct stat file;
    if (fstat(index->fd, &file) == 0 && (uint64_t)file.st_blocks * 512 > index->map_bytes &&
        ftruncate(index->fd, file.st_size) != 0)
        return;
    if (fallocate(index->fd, 0, 0, (off_t)index->map_bytes) != 0 && fstat(index->fd, &file) == 0 &&
        (uint64_t)file.st_size < index->map_bytes &&
        ftruncate(index->fd, (off_t)index->map_bytes) != 0)
        return;
}

/* LMDB ends the process when its pages contradict each other. It does not say where, or what a
 * person can do: this does, and then there is nothing left to save. */
static void on_damage(MDB_env *env, const char *text) {
    const char *path = NULL;
    (void)mdb_env_get_path(env, &path);
    fprintf(stderr, "kvloft: index %s is damaged (%s); move it away to start empty\n",
        path != NULL ? path : "?", text);
    _exit(1);
}

static kvl_err open_env(struct kvl_index *index, struct kvl_errmsg *msg) {
    struct stat file;
    uint64_t map_bytes = index->map_bytes;
    if (stat(index->path, &file) == 0 && (uint64_t)file.st_size > map_bytes)
        map_bytes = (uint64_t)file.st_size + index->map_bytes;
    int rc = mdb_env_create(&index->env);
    if (rc == 0)
        rc = mdb_env_set_assert(index->env, on_damage);
    if (rc == 0)
        rc = mdb_env_set_maxdbs(index->env, 3 + KVL_CATALOG_KINDS);
    if (rc == 0)
        rc = mdb_env_set_mapsize(index->env, map_bytes);
    if (rc == 0)
        rc = mdb_env_open(index->env, index->path, MDB_NOSUBDIR | MDB_NOTLS | MDB_NORDAHEAD, 0600);
    if (rc == 0)
        rc = mdb_env_get_fd(index->env, &index->fd);
    if (rc == MDB_INVALID || rc == MDB_CORRUPTED || rc == MDB_VERSION_MISMATCH)
        return kvl_fail(msg, kvl_index_err_from(rc), "index %s: %s; move it away to start empty",
            index->path, mdb_strerror(rc));
    if (rc != 0)
        return kvl_fail(msg, kvl_index_err_from(rc), "index %s: %s", index->path, mdb_strerror(rc));
    kvl_err err = check_file(index, msg);
    if (err == KVL_OK)
        err = check_databases(index, msg);
    if (err == KVL_OK)
        reserve_blocks(index);
    return err;
}

kvl_err kvl_index_open(
    const char *directory, uint64_t map_bytes, struct kvl_index **out, struct kvl_errmsg *msg) {
    struct kvl_index *index = calloc(1, sizeof(*index));
    if (index == NULL || asprintf(&index->path, "%s/data.mdb", directory) < 0) {
        free(index);
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
    }
    index->map_bytes = map_bytes;
    kvl_err err = open_env(index, msg);
    if (err != KVL_OK) {
        kvl_index_close(index);
        return err;
    }
    *out = index;
    return KVL_OK;
}

void kvl_index_close(struct kvl_index *index) {
    if (index == NULL)
        return;
    if (index->env != NULL)
        mdb_env_close(index->env);
    free(index->path);
    free(index);
}

static int put_block(struct kvl_index *index, MDB_txn *txn, const struct kvl_index_block *block) {
    uint8_t packed[KVL_INDEX_BLOCK_BYTES];
    kvl_index_pack_block(block, packed);
    MDB_val key = {KVL_KEY_BYTES, (void *)block->record.key.bytes};
    MDB_val value = {sizeof(packed), packed};
    return mdb_put(txn, index->blocks, &key, &value, 0);
}

/* The row of a block at this location whose key begins with the head, by a walk over those few
 * that do. */
static int find_by_head(
    MDB_cursor *cursor, uint32_t key_head, uint64_t location, struct kvl_index_block *block) {
    MDB_val key = {sizeof(key_head), &key_head}, value;
    int rc = mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE);
    while (rc == 0 && memcmp(key.mv_data, &key_head, sizeof(key_head)) == 0) {
        if (kvl_index_unpack_block(&key, &value, block) && block->location == location)
            return 0;
        rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT);
    }
    return rc == 0 ? MDB_NOTFOUND : rc;
}

kvl_err kvl_index_resolve(struct kvl_index *index, struct kvl_index_name *names, uint64_t count) {
    MDB_txn *txn = NULL;
    MDB_cursor *cursor = NULL;
    struct kvl_index_block block;
    int rc = mdb_txn_begin(index->env, NULL, MDB_RDONLY, &txn);
    if (rc != 0)
        return kvl_index_err_from(rc);
    rc = mdb_cursor_open(txn, index->blocks, &cursor);
    for (uint64_t i = 0; rc == 0 && i < count; i++) {
        rc = find_by_head(cursor, names[i].key_head, names[i].location, &block);
        names[i].found = rc == 0;
        if (rc == 0) {
            names[i].key = block.record.key;
            names[i].generation = block.record.generation;
        }
        rc = rc == MDB_NOTFOUND ? 0 : rc;
    }
    if (cursor != NULL)
        mdb_cursor_close(cursor);
    mdb_txn_abort(txn);
    return kvl_index_err_from(rc);
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

/* MOVE, DELETE: only while the block is where the caller thinks it is. A block whose value
 * is damaged is deleted whatever its location. */
static int change_block(struct kvl_index *index, MDB_txn *txn, struct kvl_index_op *op) {
    struct kvl_index_block now;
    MDB_val key = {KVL_KEY_BYTES, op->block.record.key.bytes}, value;
    int rc = mdb_get(txn, index->blocks, &key, &value);
    if (rc == MDB_NOTFOUND)
        return 0;
    if (rc != 0)
        return rc;
    bool sound = kvl_index_unpack_block(&key, &value, &now);
    if (sound && now.location != op->old_location)
        return 0;
    op->applied = sound;
    if (!sound || op->kind == KVL_INDEX_DELETE)
        return mdb_del(txn, index->blocks, &key, NULL);
    now.location = op->block.location;
    return put_block(index, txn, &now);
}

static int change_catalog(struct kvl_index *index, MDB_txn *txn, const struct kvl_index_op *op) {
    MDB_dbi database = index->catalog[op->catalog_kind];
    MDB_val key = {op->key_bytes, op->data};
    if (op->kind == KVL_INDEX_CATALOG_REMOVE) {
        int rc = mdb_del(txn, database, &key, NULL);
        return rc == MDB_NOTFOUND ? 0 : rc;
    }
    MDB_val value = {op->value_bytes + 8u, NULL};
    int rc = mdb_put(txn, database, &key, &value, MDB_RESERVE);
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
        int rc = mdb_del(txn, index->segments, &key, NULL);
        return rc == MDB_NOTFOUND ? 0 : rc;
    }
    kvl_index_put(packed, op->segment.bytes, 8);
    kvl_index_put(packed + 8, op->segment.generation, 8);
    kvl_index_put(packed + 16, kvl_index_checksum(&key, packed, 16), 8);
    MDB_val value = {sizeof(packed), packed};
    return mdb_put(txn, index->segments, &key, &value, 0);
}

static int apply(struct kvl_index *index, MDB_txn *txn, struct kvl_index_op *op) {
    switch (op->kind) {
    case KVL_INDEX_PUT:
        op->applied = true;
        return put_block(index, txn, &op->block);
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

kvl_err kvl_index_commit(struct kvl_index *index, struct kvl_index_op *ops, uint64_t count) {
    MDB_txn *txn = NULL;
    int rc = mdb_txn_begin(index->env, NULL, 0, &txn);
    if (rc != 0)
        return kvl_index_err_from(rc);
    for (uint64_t i = 0; rc == 0 && i < count; i++) {
        ops[i].applied = false;
        rc = apply(index, txn, &ops[i]);
    }
    if (rc == 0)
        rc = mdb_txn_commit(txn);
    else
        mdb_txn_abort(txn);
    return kvl_index_err_from(rc);
}

void kvl_index_read_ahead(struct kvl_index *index) {
    (void)posix_fadvise(index->fd, 0, (off_t)kvl_index_file_bytes(index), POSIX_FADV_WILLNEED);
}

uint64_t kvl_index_file_bytes(struct kvl_index *index) {
    struct stat file;
    return fstat(index->fd, &file) == 0 ? (uint64_t)file.st_size : 0;
}

/* Makes a renamed or new file findable after a power cut. */
static int sync_directory_of(const char *path) {
    char *copy = strdup(path);
    if (copy == NULL)
        return ENOMEM;
    *strrchr(copy, '/') = '\0';
    int fd = open(copy, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(copy);
    if (fd < 0)
        return errno;
    int rc = fsync(fd) == 0 ? 0 : errno;
    close(fd);
    return rc;
}

static int copy_compacted(struct kvl_index *index, const char *copy_path) {
    int rc = unlink(copy_path) == 0 || errno == ENOENT ? 0 : errno;
    if (rc == 0)
        rc = mdb_env_copy2(index->env, copy_path, MDB_CP_COMPACT);
    if (rc != 0)
        return rc;
    int fd = open(copy_path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno;
    rc = fsync(fd) == 0 ? 0 : errno;
    close(fd);
    return rc;
}

kvl_err kvl_index_compact(struct kvl_index **index, struct kvl_errmsg *msg) {
    struct kvl_index *old = *index;
    char *copy_path = NULL;
    if (asprintf(&copy_path, "%s.new", old->path) < 0)
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
    int rc = copy_compacted(old, copy_path);
    mdb_env_close(old->env);
    old->env = NULL;
    if (rc == 0)
        rc = rename(copy_path, old->path) == 0 ? sync_directory_of(old->path) : errno;
    else
        unlink(copy_path);
    free(copy_path);
    kvl_err err = rc == 0 ? open_env(old, msg)
                          : kvl_fail(msg, kvl_index_err_from(rc), "index %s: compacting failed: %s",
                                old->path, mdb_strerror(rc));
    if (err != KVL_OK) {
        kvl_index_close(old);
        *index = NULL;
    }
    return err;
}
