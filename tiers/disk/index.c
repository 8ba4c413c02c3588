/* index.c - LMDB behind plain structs: open, compact. Transactions: index_commit.c. */
#include "index.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "index_private.h"

/* The kernel takes no more than a device's largest transfer of one such wish, and says nothing. */
#define READ_AHEAD_BYTES (128u << 10)
#define READ_AHEAD_TURN_BYTES (1u << 20) /* then others have a turn */
#define LOCK_BYTES 8192                  /* as LMDB makes it: a head and 126 readers */

kvl_err kvl_index_err_from(int code) {
    switch (code) {
    case MDB_SUCCESS:
        return KVL_OK;
    case MDB_NOTFOUND:
        return KVL_ERR_NOTFOUND;
    case MDB_MAP_FULL:
    case MDB_TXN_FULL:
        return KVL_ERR_NOSPC;
    case MDB_VERSION_MISMATCH:
        return KVL_ERR_VERSION;
    case MDB_PANIC: /* a head could not be written: nothing more is until the file is opened anew */
        return KVL_ERR_CLOSED;
    default: /* what else LMDB may say of its own, it says of a file that makes no sense */
        return code > 0 ? kvl_err_from_errno(code) : KVL_ERR_CORRUPT;
    }
}

static const char *const catalog_names[KVL_CATALOG_KINDS] = {
    "catalog.0", "catalog.1", "catalog.2", "catalog.3", "catalog.4"};

kvl_err kvl_index_noted(struct kvl_index *index, kvl_err err) {
    if (err == KVL_ERR_CORRUPT)
        index->damaged = true;
    if (err == KVL_ERR_CORRUPT && index->state != NULL)
        index->state->damaged = 1;
    return err;
}

static int open_databases(struct kvl_index *index, MDB_txn *txn, unsigned flags) {
    int rc = mdb_dbi_open(txn, "meta", flags, &index->meta);
    if (rc == 0)
        rc = mdb_dbi_open(txn, "blocks", flags, &index->blocks);
    if (rc == 0)
        rc = mdb_dbi_open(txn, "segments", flags, &index->segments);
    for (uint32_t kind = 0; rc == 0 && kind < KVL_CATALOG_KINDS; kind++)
        rc = mdb_dbi_open(txn, catalog_names[kind], flags, &index->catalog[kind]);
    return rc;
}

int kvl_index_put_format(struct kvl_index *index, MDB_txn *txn) {
    uint8_t bytes[4];
    kvl_index_put(bytes, KVL_DISK_FORMAT, 4);
    MDB_val key = {6, "format"}, value = {4, bytes};
    index->format = KVL_DISK_FORMAT;
    return mdb_put(txn, index->meta, &key, &value, 0);
}

static int get_format(struct kvl_index *index, MDB_txn *txn) {
    MDB_val key = {6, "format"}, value;
    int rc = mdb_get(txn, index->meta, &key, &value);
    if (rc == 0 && value.mv_size != 4)
        rc = MDB_CORRUPTED;
    if (rc == 0)
        index->format = (uint32_t)kvl_index_get(value.mv_data, 4);
    return rc;
}

/* The first start creates the databases and writes the format's version; later ones compare it. An
 * index that was there before and has lost its databases is not a new one. */
static int find_databases(struct kvl_index *index, bool expected) {
    MDB_stat all;
    MDB_txn *txn = NULL;
    int rc = mdb_env_stat(index->env, &all);
    bool is_new = rc == 0 && all.ms_entries == 0 && !expected;
    if (rc == 0)
        rc = mdb_txn_begin(index->env, NULL, is_new ? 0 : MDB_RDONLY, &txn);
    if (rc != 0)
        return rc;
    rc = open_databases(index, txn, is_new ? MDB_CREATE : 0);
    if (rc == 0)
        rc = is_new ? kvl_index_put_format(index, txn) : get_format(index, txn);
    if (rc != 0) {
        mdb_txn_abort(txn);
        return rc == MDB_NOTFOUND || rc == MDB_INCOMPATIBLE ? MDB_CORRUPTED : rc;
    }
    return mdb_txn_commit(txn);
}

static bool remember_segment(void *arg, const struct kvl_index_segment *row) {
    struct kvl_index *index = arg;
    return kvl_live_map_put(&index->map, row);
}

static kvl_err check_databases(struct kvl_index *index, bool expected, struct kvl_errmsg *msg) {
    uint64_t bad = 0;
    int rc = find_databases(index, expected);
    kvl_err err = kvl_index_err_from(rc);
    if (err == KVL_OK && index->format > KVL_DISK_FORMAT)
        return kvl_fail(msg, KVL_ERR_VERSION,
            "%s has disk format %u, this program reads up to %u; use a newer kvloft or another "
            "--disk-path",
            index->path, index->format, KVL_DISK_FORMAT);
    if (err == KVL_OK)
        err = kvl_index_walk_segments(index, remember_segment, index, &bad);
    if (err == KVL_OK && bad > 0)
        err = KVL_ERR_CORRUPT;
    if (err != KVL_OK)
        return kvl_fail(
            msg, err, "index %s: %s", index->path, rc != 0 ? mdb_strerror(rc) : kvl_err_text(err));
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
        return kvl_fail(msg, KVL_ERR_CORRUPT, "index %s is cut off (%llu bytes, %llu needed)",
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

/* LMDB ends the process when its pages contradict each other: the next start rebuilds them. */
static void on_damage(MDB_env *env, const char *text) {
    struct kvl_index_state *state = mdb_env_get_userctx(env);
    const char *path = NULL;
    (void)mdb_env_get_path(env, &path);
    if (state != NULL)
        state->damaged = 1;
    fprintf(stderr, "kvloft: index %s is damaged (%s); start again: it is then rebuilt\n",
        path != NULL ? path : "?", text);
    _exit(1);
}

/* LMDB maps its lock file, too, and grows it without blocks: on a full file system writing there
 * would be a SIGBUS. LMDB takes a file that is there as large as it is. */
static kvl_err reserve_lock(const struct kvl_index *index) {
    char *path = NULL;
    if (asprintf(&path, "%s-lock", index->path) < 0)
        return KVL_ERR_NOMEM;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    int error = fd < 0 ? errno : posix_fallocate(fd, 0, LOCK_BYTES);
    if (fd >= 0)
        close(fd);
    free(path);
    return error == 0 || error == EOPNOTSUPP ? KVL_OK : kvl_err_from_errno(error);
}

static int create_env(struct kvl_index *index, bool fast) {
    struct stat file;
    uint64_t map_bytes = index->map_bytes;
    unsigned flags = MDB_NOSUBDIR | MDB_NOTLS | MDB_NORDAHEAD | (fast ? MDB_NOSYNC : 0);
    if (stat(index->path, &file) == 0 && (uint64_t)file.st_size > map_bytes)
        map_bytes = (uint64_t)file.st_size + index->map_bytes;
    int rc = mdb_env_create(&index->env);
    if (rc == 0)
        rc = mdb_env_set_userctx(index->env, index->state);
    if (rc == 0)
        rc = mdb_env_set_assert(index->env, on_damage);
    if (rc == 0)
        rc = mdb_env_set_maxdbs(index->env, 3 + KVL_CATALOG_KINDS);
    if (rc == 0)
        rc = mdb_env_set_mapsize(index->env, map_bytes);
    if (rc == 0)
        rc = mdb_env_open(index->env, index->path, flags, 0600);
    if (rc == 0)
        rc = mdb_env_get_fd(index->env, &index->fd);
    return rc;
}

/* What LMDB says of numbers in its head that make no sense; a file of ours never has such. */
static bool is_nonsense(int rc) {
    return rc == MDB_VERSION_MISMATCH || rc == EINVAL || rc == ENOMEM || rc == EFBIG;
}

kvl_err kvl_index_open_env(
    struct kvl_index *index, bool expected, bool fast, struct kvl_errmsg *msg) {
    kvl_err err = reserve_lock(index);
    if (err != KVL_OK)
        return kvl_fail(msg, err, "index %s-lock: %s", index->path, kvl_err_text(err));
    kvl_index_enter(index->state, KVL_INDEX_OPENING);
    kvl_live_map_deinit(&index->map);
    index->map_whole = false;
    int rc = create_env(index, fast);
    if (rc != 0)
        err = kvl_fail(msg, expected && is_nonsense(rc) ? KVL_ERR_CORRUPT : kvl_index_err_from(rc),
            "index %s: %s", index->path, mdb_strerror(rc));
    if (err == KVL_OK)
        err = check_file(index, msg);
    if (err == KVL_OK)
        err = check_databases(index, expected, msg);
    kvl_index_leave(index->state);
    if (err == KVL_OK)
        reserve_blocks(index);
    return err;
}

kvl_err kvl_index_allocate(
    const struct kvl_index_options *options, struct kvl_index **out, struct kvl_errmsg *msg) {
    struct kvl_index *index = calloc(1, sizeof(*index));
    if (index == NULL || asprintf(&index->path, "%s/data.mdb", options->directory) < 0) {
        free(index);
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
    }
    index->map_bytes = options->map_bytes;
    index->state = options->state;
    *out = index;
    return KVL_OK;
}

/* What a cut left of a rebuild or of compacting would take its space for ever. */
static void remove_leftovers(const struct kvl_index *index) {
    static const char *const suffixes[] = {".new", ".new-lock"};
    for (uint32_t i = 0; i < sizeof(suffixes) / sizeof(suffixes[0]); i++) {
        char *name = NULL;
        if (asprintf(&name, "%s%s", index->path, suffixes[i]) < 0)
            return;
        (void)unlink(name);
        free(name);
    }
}

kvl_err kvl_index_open(
    const struct kvl_index_options *options, struct kvl_index **out, struct kvl_errmsg *msg) {
    struct kvl_index *index = NULL;
    kvl_err err = kvl_index_allocate(options, &index, msg);
    if (err == KVL_OK) {
        remove_leftovers(index);
        err = kvl_index_open_env(index, options->expected, false, msg);
    }
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
    kvl_live_map_deinit(&index->map);
    free(index->path);
    free(index);
}

void kvl_index_read_ahead(struct kvl_index *index) {
    MDB_envinfo info;
    if (mdb_env_info(index->env, &info) != 0)
        return;
    uint64_t bytes = ((uint64_t)info.me_last_pgno + 1) * index->page_bytes;
    for (uint64_t at = 0; at < bytes; at += READ_AHEAD_BYTES) {
        if (at % READ_AHEAD_TURN_BYTES == 0)
            kvl_index_give_turn(index);
        (void)posix_fadvise(index->fd, (off_t)at, READ_AHEAD_BYTES, POSIX_FADV_WILLNEED);
    }
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

kvl_err kvl_index_settle_at(struct kvl_index *index, const char *path) {
    char *lock_path = NULL;
    int rc = mdb_env_sync(index->env, 1);
    mdb_env_close(index->env);
    index->env = NULL;
    if (rc == 0 && asprintf(&lock_path, "%s-lock", index->path) < 0)
        rc = ENOMEM;
    if (rc == 0 && unlink(lock_path) != 0 && errno != ENOENT)
        rc = errno;
    if (rc == 0)
        rc = rename(index->path, path) == 0 ? sync_directory_of(path) : errno;
    free(lock_path);
    return kvl_index_err_from(rc);
}

kvl_err kvl_index_compact(struct kvl_index **index, struct kvl_errmsg *msg) {
    struct kvl_index *old = *index;
    kvl_index_enter(old->state, KVL_INDEX_WALKING);
    char *copy_path = NULL;
    if (asprintf(&copy_path, "%s.new", old->path) < 0)
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
    int rc = copy_compacted(old, copy_path);
    kvl_index_leave(old->state);
    mdb_env_close(old->env);
    old->env = NULL;
    if (rc == 0)
        rc = rename(copy_path, old->path) == 0 ? sync_directory_of(old->path) : errno;
    else
        unlink(copy_path);
    free(copy_path);
    kvl_err err = rc == 0 ? kvl_index_open_env(old, true, false, msg)
                          : kvl_fail(msg, kvl_index_err_from(rc), "index %s: compacting failed: %s",
                                old->path, mdb_strerror(rc));
    if (err != KVL_OK) {
        kvl_index_close(old);
        *index = NULL;
    }
    return err;
}
