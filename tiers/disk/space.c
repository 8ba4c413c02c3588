/* space.c - how much room the capacity leaves, and new segments below the cap.
 *
 * As much stays free for carrying as the kept blocks of any victim need: one segment, or several
 * where there are larger ones, made for another capacity or before today's shares. Without it
 * pinned blocks would block everything. */
#include "clock.h"
#include "disk.h"
#include "planted.h"

#define AHEAD_BYTES_MAX (128ull << 20)
/* Kept free for stores at the cap: what the disk writes while a segment is reclaimed. */
#define ROOM_AHEAD_SHARE 32u
#define ROOM_AHEAD_MAX (64ull << 20)
#define PREPARE_RETRY_NS 2000000000ull

static uint64_t used_bytes(const struct kvl_disk *disk) {
    return disk->segments.total_bytes + kvl_disk_plan_reserved_bytes(&disk->plan);
}

void kvl_disk_account(struct kvl_disk *disk) {
    atomic_store(&disk->used_bytes, used_bytes(disk));
}

/* How many more segments the capacity has room for. */
static uint64_t more_count(const struct kvl_disk *disk) {
    uint64_t capacity_bytes = disk->plan.capacity_bytes;
    uint64_t bytes =
        KVL_PLANTED("cap-without-index") ? disk->segments.total_bytes : used_bytes(disk);
    return bytes > capacity_bytes ? 0 : (capacity_bytes - bytes) / disk->plan.segment_bytes;
}

/* How many of them may be made now. */
static uint64_t unmade_count(const struct kvl_disk *disk) {
    return kvl_clock_ns() < disk->prepare_after_ns ? 0 : more_count(disk);
}

bool kvl_disk_at_cap(const struct kvl_disk *disk) {
    return unmade_count(disk) == 0;
}

uint64_t kvl_disk_kept_bytes_max(uint64_t segment_bytes) {
    return segment_bytes / 8 * 7;
}

/* Free segments, made or not, that are for carrying alone. */
static uint64_t reserve_count(const struct kvl_disk *disk) {
    uint64_t segment_bytes = disk->plan.segment_bytes, largest_bytes = segment_bytes;
    for (uint32_t id = 0; id < disk->segments.slots; id++) {
        const struct kvl_segment *segment = disk->segments.items[id];
        if (segment != NULL && segment->bytes > largest_bytes)
            largest_bytes = segment->bytes;
    }
    return (kvl_disk_kept_bytes_max(largest_bytes) + segment_bytes - 1) / segment_bytes;
}

/* A victim whose blocks are gone is as good as free. An active segment of another capacity's size
 * is filled up whatever there is: only then does it become a victim itself, and the reserve
 * smaller. */
bool kvl_disk_has_reserve(const struct kvl_disk *disk) {
    enum kvl_reclaim_state state = disk->reclaim.state;
    bool coming = state == KVL_RECLAIM_TELLING || state == KVL_RECLAIM_RELEASING;
    bool odd = disk->active != NULL && disk->active->bytes != disk->plan.segment_bytes;
    uint64_t unused = kvl_segments_count_state(&disk->segments, KVL_SEGMENT_FREE);
    return odd || disk->segments.count < 2 ||
           unused + more_count(disk) + coming >= reserve_count(disk);
}

bool kvl_disk_may_take_segment(const struct kvl_disk *disk, bool carrying) {
    uint32_t unused = kvl_segments_count_state(&disk->segments, KVL_SEGMENT_FREE);
    uint64_t reserve = carrying || disk->segments.count < 2 ? 0 : reserve_count(disk);
    return unused > 0 && unused + unmade_count(disk) > reserve;
}

/* Reclaiming takes as long as writing some MiB. */
bool kvl_disk_nearly_full(const struct kvl_disk *disk) {
    const struct kvl_segment *active = disk->active;
    if (active == NULL || !kvl_disk_at_cap(disk))
        return false;
    uint64_t unused = kvl_segments_count_state(&disk->segments, KVL_SEGMENT_FREE);
    uint64_t reserve = reserve_count(disk);
    uint64_t for_stores = unused > reserve ? unused - reserve : 0;
    uint64_t room_bytes = active->bytes - active->append_bytes - active->reserved_bytes +
                          for_stores * disk->plan.segment_bytes;
    uint64_t wanted_bytes = disk->plan.capacity_bytes / ROOM_AHEAD_SHARE;
    return room_bytes < (wanted_bytes < ROOM_AHEAD_MAX ? wanted_bytes : ROOM_AHEAD_MAX);
}

/* Small ones are made together: each by itself would hold up the index thread at every turn. */
static uint32_t count_ahead(const struct kvl_disk *disk) {
    uint64_t capacity_bytes = disk->plan.capacity_bytes, unmade = unmade_count(disk);
    uint64_t bytes = capacity_bytes / 8 < AHEAD_BYTES_MAX ? capacity_bytes / 8 : AHEAD_BYTES_MAX;
    uint64_t wanted = bytes / disk->plan.segment_bytes;
    wanted = wanted < unmade ? wanted : unmade;
    return wanted < 1 ? 1 : wanted < KVL_SEGMENTS_AHEAD ? (uint32_t)wanted : KVL_SEGMENTS_AHEAD;
}

bool kvl_disk_prepare_ahead(struct kvl_disk *disk) {
    struct kvl_disk_prepare *prepare = &disk->prepare;
    uint32_t id = 0;
    if (disk->preparing || kvl_disk_at_cap(disk) ||
        kvl_segments_count_state(&disk->segments, KVL_SEGMENT_FREE) >= reserve_count(disk))
        return false;
    prepare->node.kind = KVL_NODE_PREPARE;
    prepare->count = count_ahead(disk);
    for (uint32_t i = 0; i < prepare->count; i++) {
        id = kvl_segments_unused_id(&disk->segments, id);
        prepare->segments[i] = (struct kvl_index_segment){
            .id = id, .bytes = disk->plan.segment_bytes, .generation = ++disk->generation};
    }
    disk->preparing = true;
    kvl_mailbox_post(&disk->index_inbox, &prepare->node);
    return true;
}

void kvl_disk_prepared(struct kvl_disk *disk) {
    kvl_err status = disk->prepare.status;
    disk->preparing = false;
    for (uint32_t i = 0; status == KVL_OK && i < disk->prepare.count; i++) {
        const struct kvl_index_segment *made = &disk->prepare.segments[i];
        status = kvl_segments_attach(&disk->segments, made);
        if (status == KVL_OK)
            disk->backend->ops->register_file(
                disk->backend, &kvl_segments_find(&disk->segments, made->id)->file);
    }
    kvl_disk_account(disk);
    if (status == KVL_OK)
        return;
    if (disk->prepare_after_ns == 0)
        kvl_log_fallback(disk->log,
            "the disk tier cannot grow to its capacity (%s): it recycles the segments it has",
            kvl_err_text(status));
    disk->prepare_after_ns = kvl_clock_ns() + PREPARE_RETRY_NS;
}

/* An empty segment of another capacity's size gives its file back; its row goes with the next
 * segment of its id, or at the next start. */
void kvl_disk_drop_odd(struct kvl_disk *disk, struct kvl_segment *segment) {
    uint32_t id = segment->id;
    if (segment->bytes == disk->plan.segment_bytes)
        return;
    disk->backend->ops->forget_file(disk->backend, &segment->file);
    kvl_segments_detach(&disk->segments, segment);
    if (kvl_segment_file_remove(disk->segments.directory_fd, id) != KVL_OK)
        KVL_WARN(disk->log, "disk segment=%u file stays behind", id);
    kvl_disk_account(disk);
}
