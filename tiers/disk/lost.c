/* lost.c - blocks that a healing could not take into the new index.
 *
 * Their keys stood in the old index and in headers that cannot be read: all that is known is where
 * they were. From the index thread the places go to the disk thread, which forgets its entries, and
 * on to the owner, whose table knows whose they were. */
#include <stdlib.h>

#include "disk.h"

void kvl_disk_lost_add(void *arg, uint64_t location) {
    struct kvl_disk_lost **lost = arg;
    uint64_t count = *lost == NULL ? 0 : (*lost)->count;
    if ((count & (count - 1)) == 0) { /* room for a power of two */
        uint64_t capacity = count == 0 ? 1 : 2 * count;
        struct kvl_disk_lost *more =
            realloc(*lost, sizeof(*more) + capacity * sizeof(more->locations[0]));
        if (more == NULL)
            return; /* a load of it finds out, and tells */
        *lost = more;
    }
    (*lost)->locations[count] = location;
    (*lost)->count = count + 1;
}

void kvl_disk_lost_tell(struct kvl_disk *disk, struct kvl_disk_lost *lost) {
    if (lost == NULL)
        return;
    lost->node = (struct kvl_node){.kind = KVL_NODE_LOST};
    kvl_mailbox_post(&disk->inbox, &lost->node);
}

static bool forget(struct kvl_disk *disk, uint64_t location) {
    struct kvl_segment *segment =
        kvl_segments_find(&disk->segments, kvl_location_segment(location));
    struct kvl_segment_entry *entry =
        segment == NULL ? NULL : kvl_segment_at(segment, kvl_location_page(location));
    if (entry == NULL || !entry->live)
        return false;
    kvl_segment_kill(segment, entry);
    return true;
}

/* A place without an entry is that of a store, or a copy, which has not ended yet: it was committed
 * in a step before the one that met the damage, and is not committed again. */
static void fail_staged(struct kvl_disk *disk, uint64_t location) {
    for (struct kvl_disk_batch *batch = disk->commit.batches; batch != NULL; batch = batch->next) {
        for (uint32_t i = 0; i < batch->staged_count; i++) {
            struct kvl_disk_staged *staged = &batch->staged[i];
            if (staged->op_index != UINT64_MAX && staged->block.location == location)
                staged->status = KVL_ERR_CORRUPT;
        }
    }
}

void kvl_disk_lost_taken(struct kvl_disk *disk, struct kvl_disk_lost *lost) {
    uint64_t kept = 0;
    for (uint64_t i = 0; i < lost->count; i++) {
        if (forget(disk, lost->locations[i]))
            lost->locations[kept++] = lost->locations[i];
        else
            fail_staged(disk, lost->locations[i]);
    }
    lost->count = kept;
    disk->reclaim.futile = false;
    kvl_mailbox_post(&disk->outbox, &lost->node);
}
