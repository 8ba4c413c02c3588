/* disk_dir.c - mkdir, file system checks, lock, and the shares of a capacity. */
#include "disk_dir.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "block.h"

#define MIB (1ull << 20)
#define GIB (1ull << 30)
#define SEGMENT_STEP_BYTES (64ull << 10)
#define SEGMENT_BYTES_MIN (2 * MIB)
#define SEGMENT_BYTES_SMALL (8 * MIB) /* up to here, an eighth of the capacity */
#define SEGMENTS_WANTED 28u
#define MAP_STEP_BYTES (64ull << 10)
#define JOURNAL_BYTES_MIN (640ull << 10)

static uint64_t clamp(uint64_t value, uint64_t low, uint64_t high) {
    return value < low ? low : value > high ? high : value;
}

/* At most some 500 segments: each costs a descriptor. At least some 26, for one is kept in reserve
 * and one is half full: of 7 that is a fifth of the space, and overwriting pays for it with copies
 * (docs/decisions/0021). All of the space goes into as many equal ones. */
static uint64_t segment_bytes_for(const struct kvl_disk_plan *plan) {
    uint64_t capacity_bytes = plan->capacity_bytes;
    uint64_t largest = clamp(capacity_bytes / 512, 256 * MIB, 4 * GIB);
    uint64_t smallest = clamp(capacity_bytes / 8, SEGMENT_BYTES_MIN, SEGMENT_BYTES_SMALL);
    uint64_t wanted = clamp(capacity_bytes / SEGMENTS_WANTED, smallest, largest);
    uint64_t space = kvl_disk_plan_segments_bytes(plan);
    return space / (space / wanted) / SEGMENT_STEP_BYTES * SEGMENT_STEP_BYTES;
}

kvl_err kvl_disk_plan_make(
    uint64_t capacity_bytes, struct kvl_disk_plan *plan, struct kvl_errmsg *msg) {
    if (capacity_bytes < KVL_DISK_CAPACITY_BYTES_MIN)
        return kvl_fail(msg, KVL_ERR_INVALID,
            "a disk tier of %llu bytes is too small; the smallest that works is %llu (6M)",
            (unsigned long long)capacity_bytes, KVL_DISK_CAPACITY_BYTES_MIN);
    plan->capacity_bytes = capacity_bytes;
    plan->map_bytes = clamp(capacity_bytes / 32 / MAP_STEP_BYTES * MAP_STEP_BYTES, MIB, 4 * GIB);
    plan->journal_bytes =
        clamp(capacity_bytes / 32 / MAP_STEP_BYTES * MAP_STEP_BYTES, JOURNAL_BYTES_MIN, 4 * GIB);
    plan->overhead_bytes = MIB / 4 + capacity_bytes / 2048;
    plan->segment_bytes = segment_bytes_for(plan);
    return KVL_OK;
}

uint64_t kvl_disk_plan_capacity_for(uint64_t record_bytes) {
    uint64_t segment_bytes =
        (record_bytes + SEGMENT_BYTES_MIN - 1) / SEGMENT_BYTES_MIN * SEGMENT_BYTES_MIN;
    uint64_t shares = segment_bytes > 256 * MIB             ? 512
                      : segment_bytes > SEGMENT_BYTES_SMALL ? SEGMENTS_WANTED
                                                            : 8;
    return clamp(segment_bytes * shares, KVL_DISK_CAPACITY_BYTES_MIN, UINT64_MAX);
}

uint64_t kvl_disk_plan_reserved_bytes(const struct kvl_disk_plan *plan) {
    return plan->map_bytes + plan->journal_bytes + plan->overhead_bytes;
}

uint64_t kvl_disk_plan_segments_bytes(const struct kvl_disk_plan *plan) {
    return plan->capacity_bytes - kvl_disk_plan_reserved_bytes(plan);
}

static kvl_err make_directory(const char *path, struct kvl_errmsg *msg) {
    if (mkdir(path, 0700) == 0 || errno == EEXIST)
        return KVL_OK;
    return kvl_fail(
        msg, kvl_err_from_errno(errno), "cannot create directory %s: %s", path, strerror(errno));
}

static kvl_err make_with_parents(char *path, struct kvl_errmsg *msg) {
    for (char *slash = strchr(path + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        kvl_err err = access(path, F_OK) == 0 ? KVL_OK : make_directory(path, msg);
        *slash = '/';
        if (err != KVL_OK)
            return err;
    }
    return make_directory(path, msg);
}

/* LMDB's and our locks, and O_DIRECT's promises, do not hold over a network. */
static kvl_err check_file_system(const char *path, struct kvl_log *log, struct kvl_errmsg *msg) {
    static const struct {
        uint64_t magic;
        const char *name;
    } refused[] = {{0x6969, "nfs"}, {0x517b, "smb"}, {0xff534d42, "cifs"}, {0xfe534d42, "smb2"},
        {0x01021997, "9p"}, {0x00c36400, "ceph"}, {0x0bd00bd0, "lustre"}, {0x5346414f, "afs"}};
    struct statfs fs;
    if (statfs(path, &fs) != 0)
        return kvl_fail(msg, kvl_err_from_errno(errno), "%s: %s", path, strerror(errno));
    uint64_t magic = (uint64_t)fs.f_type & 0xffffffffu;
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        if (magic == refused[i].magic)
            return kvl_fail(msg, KVL_ERR_UNSUPPORTED,
                "%s is on a network file system (%s); use a local disk for --disk-path", path,
                refused[i].name);
    }
    if (magic == 0x65735546)
        kvl_log_fallback(
            log, "disk path=%s is a FUSE file system: durability is its promise", path);
    if ((fs.f_flags & ST_RDONLY) != 0)
        return kvl_fail(msg, KVL_ERR_PERM, "%s is on a read-only file system", path);
    return KVL_OK;
}

static kvl_err refuse_held(struct kvl_disk_dir *dir, struct kvl_errmsg *msg) {
    char holder[128] = "";
    ssize_t got = pread(dir->lock_fd, holder, sizeof(holder) - 1, 0);
    holder[got > 0 ? got : 0] = '\0';
    holder[strcspn(holder, "\n")] = '\0';
    return kvl_fail(msg, KVL_ERR_BUSY, "%s is held by process %s; one process holds a directory",
        dir->path, holder[0] != '\0' ? holder : "(unknown)");
}

/* A lock file that was unlinked between open and flock is nobody's: then again. */
static kvl_err take_lock(struct kvl_disk_dir *dir, const char *holder, struct kvl_errmsg *msg) {
    for (;;) {
        struct stat opened, named;
        dir->lock_fd = open(dir->lock_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (dir->lock_fd < 0)
            return kvl_fail(msg, kvl_err_from_errno(errno), "cannot open %s: %s", dir->lock_path,
                strerror(errno));
        if (flock(dir->lock_fd, LOCK_EX | LOCK_NB) != 0) {
            kvl_err err = refuse_held(dir, msg);
            close(dir->lock_fd);
            dir->lock_fd = -1;
            return err;
        }
        if (fstat(dir->lock_fd, &opened) == 0 && stat(dir->lock_path, &named) == 0 &&
            opened.st_ino == named.st_ino)
            break;
        close(dir->lock_fd);
    }
    /* The text is for people; a full file system has no room for it, but for a start. */
    bool written = ftruncate(dir->lock_fd, 0) == 0 &&
                   dprintf(dir->lock_fd, "%d %s\n", (int)getpid(), holder) >= 0;
    if (!written && errno != ENOSPC)
        return kvl_fail(
            msg, kvl_err_from_errno(errno), "cannot write %s: %s", dir->lock_path, strerror(errno));
    return KVL_OK;
}

/* Some file systems open with O_DIRECT and then refuse the transfer, so one is made. */
static bool probe_direct(int segments_fd) {
    void *page = NULL;
    int fd = openat(segments_fd, "probe", O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
    if (fd < 0)
        return false;
    bool direct = posix_memalign(&page, KVL_PAGE_BYTES, KVL_PAGE_BYTES) == 0;
    if (direct) {
        memset(page, 0, KVL_PAGE_BYTES);
        direct = pwrite(fd, page, KVL_PAGE_BYTES, 0) == (ssize_t)KVL_PAGE_BYTES || errno == ENOSPC;
    }
    free(page);
    close(fd);
    unlinkat(segments_fd, "probe", 0);
    return direct;
}

static kvl_err open_subdirectories(struct kvl_disk_dir *dir, struct kvl_errmsg *msg) {
    char *segments_path = NULL;
    if (asprintf(&segments_path, "%s/segments", dir->path) < 0)
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
    kvl_err err = make_directory(dir->index_path, msg);
    if (err == KVL_OK)
        err = make_directory(segments_path, msg);
    if (err == KVL_OK) {
        dir->segments_fd = open(segments_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (dir->segments_fd < 0)
            err = kvl_fail(msg, kvl_err_from_errno(errno), "cannot open %s: %s", segments_path,
                strerror(errno));
    }
    free(segments_path);
    return err;
}

kvl_err kvl_disk_dir_open(
    const struct kvl_disk_options *options, struct kvl_disk_dir *dir, struct kvl_errmsg *msg) {
    const char *holder = options->holder_name != NULL ? options->holder_name : "kvloft";
    *dir = (struct kvl_disk_dir){.lock_fd = -1, .segments_fd = -1};
    if (options->path == NULL || options->path[0] == '\0')
        return kvl_fail(msg, KVL_ERR_INVALID, "a disk tier needs a path");
    dir->path = strdup(options->path);
    if (dir->path == NULL || asprintf(&dir->lock_path, "%s/lock", options->path) < 0 ||
        asprintf(&dir->index_path, "%s/index", options->path) < 0)
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
    kvl_err err = make_with_parents(dir->path, msg);
    if (err == KVL_OK)
        err = check_file_system(dir->path, options->log, msg);
    if (err == KVL_OK)
        err = take_lock(dir, holder, msg);
    if (err == KVL_OK)
        err = open_subdirectories(dir, msg);
    if (err == KVL_OK)
        dir->direct = probe_direct(dir->segments_fd);
    return err;
}

void kvl_disk_dir_close(struct kvl_disk_dir *dir) {
    if (dir->segments_fd >= 0)
        close(dir->segments_fd);
    if (dir->lock_fd >= 0) {
        unlink(dir->lock_path);
        close(dir->lock_fd);
    }
    dir->segments_fd = dir->lock_fd = -1;
    free(dir->path);
    free(dir->lock_path);
    free(dir->index_path);
    dir->path = dir->lock_path = dir->index_path = NULL;
}
