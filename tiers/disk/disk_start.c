/* disk_start.c - what a start finds: index, segments, and a capacity that may be smaller now. */
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "disk.h"

struct found_segments {
    struct kvl_disk *disk;
    struct kvl_index_op *missing; /* rows without a file */
    uint64_t missing_count, missing_capacity;
    kvl_err status;
};

static bool attach(void *arg, const struct kvl_index_segment *row) {
    struct found_segments *found = arg;
    kvl_err err = kvl_segments_attach(&found->disk->segments, row);
    if (row->generation > found->disk->generation)
        found->disk->generation = row->generation;
    if (err != KVL_ERR_NOTFOUND) {
        found->status = err;
        return err == KVL_OK;
    }
    if (found->missing_count == found->missing_capacity) {
        uint64_t capacity = found->missing_capacity * 2 + 16;
        struct kvl_index_op *missing = realloc(found->missing, capacity * sizeof(*found->missing));
        if (missing == NULL) {
            found->status = KVL_ERR_NOMEM;
            return false;
        }
        found->missing = missing;
        found->missing_capacity = capacity;
    }
    found->missing[found->missing_count++] =
        (struct kvl_index_op){.kind = KVL_INDEX_SEGMENT_REMOVE, .segment = *row};
    return true;
}

static kvl_err attach_all(struct kvl_disk *disk, struct kvl_errmsg *msg) {
    struct found_segments found = {.disk = disk, .status = KVL_OK};
    uint64_t bad = 0;
    kvl_err err = kvl_index_walk_segments(disk->index, attach, &found, &bad);
    if (err == KVL_OK)
        err = bad > 0 ? KVL_ERR_CORRUPT : found.status;
    if (err == KVL_OK && found.missing_count > 0) {
        KVL_WARN(disk->log, "disk segments missing=%llu: their blocks are dropped",
            (unsigned long long)found.missing_count);
        err = kvl_index_commit(disk->index, found.missing, found.missing_count);
    }
    free(found.missing);
    if (err != KVL_OK)
        return kvl_fail(
            msg, err, "%s: cannot open the segments: %s", disk->dir.path, kvl_err_text(err));
    kvl_segments_remove_strangers(&disk->segments);
    return KVL_OK;
}

static bool in_dropped_segment(void *arg, const struct kvl_index_block *block) {
    const struct kvl_disk *disk = arg;
    const struct kvl_segment *segment =
        kvl_segments_find(&disk->segments, kvl_location_segment(block->location));
    return segment == NULL || segment->state == KVL_SEGMENT_RECLAIMING;
}

static bool weigh(void *arg, const struct kvl_index_block *block) {
    struct kvl_disk *disk = arg;
    struct kvl_segment *segment =
        kvl_segments_find(&disk->segments, kvl_location_segment(block->location));
    if (segment != NULL)
        segment->live_bytes += block->stored_bytes;
    return true;
}

/* An empty one may well be the youngest. */
static bool goes_before(const struct kvl_segment *a, const struct kvl_segment *b) {
    if ((a->live_bytes == 0) != (b->live_bytes == 0))
        return a->live_bytes == 0;
    return a->generation < b->generation;
}

/* Marks those without blocks, then the oldest, until the rest fits, and one more segment, without
 * which no block could be carried to another; returns how many. */
static uint32_t mark_excess(struct kvl_disk *disk) {
    uint64_t room_bytes = kvl_disk_plan_segments_bytes(&disk->plan) - disk->plan.segment_bytes;
    uint64_t left_bytes = disk->segments.total_bytes;
    uint32_t marked = 0;
    while (left_bytes > room_bytes) {
        struct kvl_segment *oldest = NULL;
        for (uint32_t id = 0; id < disk->segments.slots; id++) {
            struct kvl_segment *segment = disk->segments.items[id];
            if (segment != NULL && segment->state != KVL_SEGMENT_RECLAIMING &&
                (oldest == NULL || goes_before(segment, oldest)))
                oldest = segment;
        }
        if (oldest == NULL)
            break; /* the rest is being given up already */
        oldest->state = KVL_SEGMENT_RECLAIMING;
        left_bytes -= oldest->bytes;
        marked++;
    }
    return marked;
}

/* Blocks first, then the row, then the file: a cut in between leaves nothing dangling. */
static kvl_err drop_marked(struct kvl_disk *disk) {
    kvl_err err = kvl_index_drop_blocks(disk->index, in_dropped_segment, disk);
    for (uint32_t id = 0; err == KVL_OK && id < disk->segments.slots; id++) {
        struct kvl_segment *segment = disk->segments.items[id];
        if (segment == NULL || segment->state != KVL_SEGMENT_RECLAIMING)
            continue;
        struct kvl_index_op op = {.kind = KVL_INDEX_SEGMENT_REMOVE, .segment.id = id};
        err = kvl_index_commit(disk->index, &op, 1);
        if (err == KVL_OK) {
            kvl_segments_detach(&disk->segments, segment);
            err = kvl_segment_file_remove(disk->segments.directory_fd, id);
        }
    }
    return err;
}

static void forget_weights(struct kvl_disk *disk) {
    for (uint32_t id = 0; id < disk->segments.slots; id++) {
        if (disk->segments.items[id] != NULL)
            disk->segments.items[id]->live_bytes = 0;
    }
}

static kvl_err evict_excess(struct kvl_disk *disk, struct kvl_errmsg *msg) {
    uint64_t bad = 0;
    kvl_err err = kvl_index_walk_blocks(disk->index, weigh, disk, &bad);
    if (err == KVL_OK && bad > 0)
        err = KVL_ERR_CORRUPT;
    uint32_t excess = mark_excess(disk);
    forget_weights(disk);
    if (err == KVL_OK && excess > 0) {
        KVL_INFO(disk->log, "disk capacity is smaller now: evicting segments=%u", excess);
        err = drop_marked(disk);
    }
    if (err != KVL_OK)
        return kvl_fail(msg, err, "%s: cannot evict to the smaller capacity: %s", disk->dir.path,
            kvl_err_text(err));
    return KVL_OK;
}

static kvl_err compact(struct kvl_disk *disk, struct kvl_errmsg *msg) {
    kvl_err err = kvl_index_compact(&disk->index, msg);
    if (err != KVL_OK)
        return err;
    if (kvl_index_file_bytes(disk->index) > disk->plan.map_bytes)
        return kvl_fail(msg, KVL_ERR_INVALID,
            "%s: the index needs %llu bytes, a capacity of %llu leaves it %llu; the smallest that "
            "works is %llu",
            disk->dir.path, (unsigned long long)kvl_index_file_bytes(disk->index),
            (unsigned long long)disk->plan.capacity_bytes, (unsigned long long)disk->plan.map_bytes,
            (unsigned long long)kvl_index_file_bytes(disk->index) * 33);
    return KVL_OK;
}

static bool is_too_large(const struct kvl_disk *disk) {
    return disk->segments.total_bytes > kvl_disk_plan_segments_bytes(&disk->plan);
}

static bool index_is_too_large(const struct kvl_disk *disk) {
    return kvl_index_file_bytes(disk->index) > disk->plan.map_bytes;
}

/* What a start otherwise does behind the first answer comes first here: eviction goes by the index,
 * and what it does not show would be lost. */
static kvl_err fit_capacity(struct kvl_disk *disk, struct kvl_errmsg *msg) {
    if (!is_too_large(disk) && !index_is_too_large(disk))
        return KVL_OK;
    kvl_err err = kvl_disk_index_read(disk, msg);
    if (err == KVL_OK && is_too_large(disk))
        err = evict_excess(disk, msg);
    if (err == KVL_OK && index_is_too_large(disk))
        err = compact(disk, msg);
    return err;
}

static uint64_t journal_blocks_bytes(const struct kvl_disk *disk) {
    struct stat file;
    bool there = fstatat(disk->dir.segments_fd, KVL_JOURNAL_NAME, &file, AT_SYMLINK_NOFOLLOW) == 0;
    return there ? (uint64_t)file.st_blocks * 512 : 0;
}

/* A cap above what the file system has left is no error: the segments that there is room for are
 * recycled then. But whoever chose it should know. */
static void compare_with_free_space(struct kvl_disk *disk) {
    struct statvfs fs;
    if (fstatvfs(disk->dir.segments_fd, &fs) != 0)
        return;
    uint64_t ours_bytes =
        disk->segments.total_bytes + kvl_index_file_bytes(disk->index) + journal_blocks_bytes(disk);
    uint64_t free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
    if (disk->plan.capacity_bytes <= ours_bytes + free_bytes)
        return;
    kvl_log_fallback(disk->log,
        "the disk tier may have %" PRIu64 " MiB, its file system has room for %" PRIu64
        " MiB of them: it will recycle the segments it has",
        disk->plan.capacity_bytes >> 20, (ours_bytes + free_bytes) >> 20);
}

kvl_err kvl_disk_open_store(struct kvl_disk *disk, struct kvl_errmsg *msg) {
    disk->segments.directory_fd = disk->dir.segments_fd;
    disk->segments.direct = disk->dir.direct && disk->options.io != KVL_DISK_IO_BUFFERED;
    if (!disk->dir.direct && disk->options.io != KVL_DISK_IO_BUFFERED)
        kvl_log_fallback(disk->log, "disk io is buffered: %s refuses O_DIRECT", disk->dir.path);
    kvl_err err = kvl_disk_index_open(disk, msg);
    if (err == KVL_OK)
        err = attach_all(disk, msg);
    if (err == KVL_OK)
        err = fit_capacity(disk, msg);
    if (err == KVL_OK)
        compare_with_free_space(disk);
    kvl_disk_account(disk);
    disk->index_permille = err == KVL_OK ? kvl_index_usage_permille(disk->index) : 0;
    return err;
}
