/* disk_dir.h - the directory of a disk tier: made, checked and held by one process. */
#ifndef KVL_DISK_DIR_H
#define KVL_DISK_DIR_H

#include <stdbool.h>
#include <stdint.h>

#include "disk_tier.h"

struct kvl_disk_dir {
    char *path;
    char *lock_path;
    char *index_path;
    int lock_fd; /* flock is held while open; -1 when not */
    int segments_fd;
    bool direct; /* the file system takes O_DIRECT */
};

/* How a capacity is shared out. */
struct kvl_disk_plan {
    uint64_t capacity_bytes;
    uint64_t map_bytes;      /* LMDB's file at most */
    uint64_t journal_bytes;  /* its file, and the one that is to replace it */
    uint64_t overhead_bytes; /* directories, lock files, extents */
    uint64_t segment_bytes;  /* of new segments */
};

/* INVALID with the smallest capacity that works. */
KVL_MUST_CHECK kvl_err kvl_disk_plan_make(
    uint64_t capacity_bytes, struct kvl_disk_plan *plan, struct kvl_errmsg *msg);
/* A capacity whose segments hold a record of these bytes; a little less may do. */
uint64_t kvl_disk_plan_capacity_for(uint64_t record_bytes);
/* What is set aside for the index and the journal, and what is left for segments. */
uint64_t kvl_disk_plan_reserved_bytes(const struct kvl_disk_plan *plan);
uint64_t kvl_disk_plan_segments_bytes(const struct kvl_disk_plan *plan);

KVL_MUST_CHECK kvl_err kvl_disk_dir_open(
    const struct kvl_disk_options *options, struct kvl_disk_dir *dir, struct kvl_errmsg *msg);
/* Releases and removes the lock. Accepts a dir that was never opened, with fds -1. */
void kvl_disk_dir_close(struct kvl_disk_dir *dir);

#endif
