/* disk_alternatives.c - see disk_alternatives.h. */
#include "disk_alternatives.h"

#include <fcntl.h>
#include <lmdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clock.h"

#define GROUP_BYTES (16ull << 20)

static double seconds_since(uint64_t since_ns) {
    return (double)(kvl_clock_ns() - since_ns) / 1e9;
}

static uint32_t blocks_of_group(const struct alternative_run *run) {
    uint64_t blocks = GROUP_BYTES / run->block_bytes;
    return blocks == 0 ? 1 : (uint32_t)blocks;
}

static bool forget_pages(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool good = fd >= 0 && fsync(fd) == 0 && posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0;
    if (fd >= 0)
        close(fd);
    return good;
}

/* ---- payloads as values of LMDB ------------------------------------------------------------ */

static int lmdb_open(const struct alternative_run *run, MDB_env **env) {
    int rc = mdb_env_create(env);
    if (rc == 0)
        rc = mdb_env_set_mapsize(*env, run->block_bytes * run->blocks * 2 + (64u << 20));
    return rc == 0 ? mdb_env_open(*env, run->folder, 0, 0600) : rc;
}

static int lmdb_store(const struct alternative_run *run, MDB_env *env) {
    int rc = 0;
    for (uint32_t at = 0; at < run->blocks && rc == 0;) {
        MDB_txn *txn = NULL;
        MDB_dbi dbi;
        uint32_t end = at + blocks_of_group(run);
        rc = mdb_txn_begin(env, NULL, 0, &txn);
        if (rc == 0)
            rc = mdb_dbi_open(txn, NULL, 0, &dbi);
        for (; at < end && at < run->blocks && rc == 0; at++) {
            MDB_val key = {sizeof at, &at};
            MDB_val value = {run->block_bytes, run->memory + at * run->block_bytes};
            rc = mdb_put(txn, dbi, &key, &value, 0);
        }
        if (rc == 0)
            rc = mdb_txn_commit(txn);
        else if (txn != NULL)
            mdb_txn_abort(txn);
    }
    return rc;
}

static int lmdb_retrieve(const struct alternative_run *run, MDB_env *env) {
    MDB_txn *txn = NULL;
    MDB_dbi dbi;
    int rc = mdb_txn_begin(env, NULL, MDB_RDONLY, &txn);
    if (rc != 0)
        return rc;
    rc = mdb_dbi_open(txn, NULL, 0, &dbi);
    for (uint32_t i = 0; i < run->blocks && rc == 0; i++) {
        MDB_val key = {sizeof i, &i}, value;
        rc = mdb_get(txn, dbi, &key, &value);
        if (rc == 0)
            memcpy(run->memory + i * run->block_bytes, value.mv_data, run->block_bytes);
    }
    mdb_txn_abort(txn);
    return rc;
}

bool alternative_lmdb(struct alternative_run *run) {
    char path[400];
    MDB_env *env = NULL;
    snprintf(path, sizeof path, "%s/data.mdb", run->folder);
    if (mkdir(run->folder, 0700) != 0)
        return false;
    int rc = lmdb_open(run, &env);
    uint64_t since_ns = kvl_clock_ns();
    if (rc == 0)
        rc = lmdb_store(run, env);
    run->store_seconds = seconds_since(since_ns);
    /* Pages that are mapped are not forgotten: the map must go, too. */
    mdb_env_close(env);
    env = NULL;
    if (rc == 0)
        rc = forget_pages(path) ? lmdb_open(run, &env) : -1;
    since_ns = kvl_clock_ns();
    if (rc == 0)
        rc = lmdb_retrieve(run, env);
    run->retrieve_seconds = seconds_since(since_ns);
    if (env != NULL)
        mdb_env_close(env);
    return rc == 0;
}

/* ---- one file a block ----------------------------------------------------------------------- */

static void file_name(const struct alternative_run *run, uint32_t number, char path[400]) {
    snprintf(path, 400, "%s/%08u", run->folder, number);
}

static bool transfer(int fd, uint8_t *at, uint64_t bytes, bool write_it) {
    while (bytes > 0) {
        ssize_t done = write_it ? write(fd, at, bytes) : read(fd, at, bytes);
        if (done <= 0)
            return false;
        at += done;
        bytes -= (uint64_t)done;
    }
    return true;
}

static bool write_group(const struct alternative_run *run, uint32_t first, uint32_t end) {
    int *fds = malloc((end - first) * sizeof *fds);
    bool good = fds != NULL;
    uint32_t at = first;
    for (; at < end && good; at++) {
        char path[400];
        file_name(run, at, path);
        fds[at - first] = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        good =
            fds[at - first] >= 0 &&
            transfer(fds[at - first], run->memory + at * run->block_bytes, run->block_bytes, true);
    }
    for (uint32_t i = first; i < at; i++) {
        good = fdatasync(fds[i - first]) == 0 && good;
        close(fds[i - first]);
    }
    free(fds);
    return good;
}

static bool sync_folder(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool good = fd >= 0 && fsync(fd) == 0;
    if (fd >= 0)
        close(fd);
    return good;
}

static bool read_file(const struct alternative_run *run, uint32_t number) {
    char path[400];
    file_name(run, number, path);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    bool good = transfer(fd, run->memory + number * run->block_bytes, run->block_bytes, false);
    close(fd);
    return good;
}

bool alternative_files(struct alternative_run *run) {
    char path[400];
    if (mkdir(run->folder, 0700) != 0)
        return false;
    bool good = true;
    uint64_t since_ns = kvl_clock_ns();
    for (uint32_t at = 0; at < run->blocks && good;) {
        uint32_t end =
            at + blocks_of_group(run) < run->blocks ? at + blocks_of_group(run) : run->blocks;
        good = write_group(run, at, end) && sync_folder(run->folder);
        at = end;
    }
    run->store_seconds = seconds_since(since_ns);
    for (uint32_t i = 0; i < run->blocks && good; i++) {
        file_name(run, i, path);
        good = forget_pages(path);
    }
    since_ns = kvl_clock_ns();
    for (uint32_t i = 0; i < run->blocks && good; i++)
        good = read_file(run, i);
    run->retrieve_seconds = seconds_since(since_ns);
    return good;
}
