/* victim.c - which segment is reclaimed next: one with nothing live, or the one used longest ago on
 * the average, weighted with how much of it is live. */
#include "clock.h"
#include "disk.h"

/* Times of use are whole seconds, in which a fast disk writes many segments: among those, the one
 * opened first is the older. 0..1 s. */
static double order_of(const struct kvl_disk *disk, const struct kvl_segment *segment) {
    double since = (double)(disk->generation - segment->generation) / disk->segments.count;
    return since < 1 ? since : 1;
}

/* Lower is a better victim. */
static double value_of(const struct kvl_disk *disk, const struct kvl_segment *segment) {
    double sum = 0, live = 0;
    if (segment->live_bytes == 0)
        return 0;
    for (uint64_t i = 0; i < segment->entry_count; i++) {
        if (!segment->entries[i].live)
            continue;
        sum += segment->entries[i].last_use_s;
        live += 1;
    }
    double age = (double)(kvl_clock_wall_ns() / UINT64_C(1000000000)) - sum / live;
    double share = (double)segment->live_bytes / (double)segment->bytes;
    return share / (1 + (age > 0 ? age : 0) + order_of(disk, segment));
}

struct kvl_segment *kvl_disk_filled_last(const struct kvl_disk *disk) {
    struct kvl_segment *last = NULL;
    for (uint32_t id = 0; id < disk->segments.slots; id++) {
        struct kvl_segment *segment = disk->segments.items[id];
        if (segment != NULL && segment->state == KVL_SEGMENT_FULL &&
            (last == NULL || segment->generation > last->generation))
            last = segment;
    }
    return last;
}

/* spared: nobody had time yet to use its blocks, so that they look as if nobody would. wait: one
 * may become a victim once its batches are committed. */
struct kvl_segment *kvl_disk_choose_victim(
    struct kvl_disk *disk, const struct kvl_segment *spared, bool *wait) {
    struct kvl_segment *best = NULL;
    double best_value = 0;
    for (uint32_t id = 0; id < disk->segments.slots; id++) {
        struct kvl_segment *segment = disk->segments.items[id];
        if (segment == NULL || segment->state != KVL_SEGMENT_FULL ||
            segment->tried == disk->reclaim.number ||
            (segment == spared && segment->live_bytes > 0))
            continue;
        if (segment->batches > 0) {
            *wait = true;
            continue;
        }
        double value = value_of(disk, segment);
        if (best == NULL || value < best_value) {
            best = segment;
            best_value = value;
        }
    }
    return best;
}
