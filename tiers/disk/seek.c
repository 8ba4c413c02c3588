/* seek.c - blocks that somebody waits for, found in the index ahead of the walk over all of it.
 *
 *   owner --seeker.inbox--> index thread --inbox--> disk thread --outbox--> owner
 *                           found blocks, then the seek itself: it is over
 *
 * Loading gives a turn between its own steps: one portion of the keys. What seeks take beyond a
 * first second, loading has before they go on, so that whoever asks without end delays it to twice
 * the time and a second at most. Until the index was read as a whole a key is said to be absent
 * only where its neighbours prove it (index_seek.c); a seek that leaves a doubt ends uncertain, and
 * is asked for again. After an error nothing is answered until the check is over, or `loaded`
 * answers everybody. */
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "disk.h"
#include "planted.h"

#define PORTION_KEYS 256u
#define CREDIT_NS 1000000000ull
#define TOLD_MAX 65536u /* before the index was read as a whole */

/* Of a block that is told before the index is known to be sound. */
static bool remember(struct kvl_disk_seeker *seeker, const struct kvl_index_block *block) {
    uint64_t count = seeker->told == NULL ? 0 : seeker->told->count;
    if (count == TOLD_MAX)
        return false;
    if (seeker->told == NULL || count == seeker->told_room) {
        uint64_t room = count * 2 + 64;
        struct kvl_disk_notices *told =
            realloc(seeker->told, sizeof(*told) + room * sizeof(told->items[0]));
        if (told == NULL)
            return false;
        seeker->told = told;
        seeker->told_room = room;
    }
    seeker->told->items[count] =
        (struct kvl_disk_notice){.key = block->record.key, .location = block->location};
    seeker->told->count = count + 1;
    return true;
}

/* What the walk has passed is on its way already. False: it cannot be told. */
static bool tell_block(struct kvl_disk *disk, const struct kvl_index_block *block) {
    struct kvl_disk_seeker *seeker = &disk->seeker;
    if (seeker->walking &&
        memcmp(block->record.key.bytes, seeker->walked.bytes, KVL_KEY_BYTES) <= 0)
        return true;
    seeker->answering =
        (seeker->certain || remember(seeker, block)) && kvl_disk_found_add(disk, block, true);
    return seeker->answering;
}

static bool take_answer(
    void *arg, enum kvl_index_answer answer, const struct kvl_index_block *block) {
    struct kvl_disk *disk = arg;
    struct kvl_disk_seek *seek = disk->seeker.current;
    if (answer == KVL_INDEX_FOUND)
        return tell_block(disk, block);
    bool doubtful = answer == KVL_INDEX_NOT_FOUND && !KVL_PLANTED("miss-before-certain");
    seek->doubtful = seek->doubtful || doubtful;
    seek->over = seek->leading;
    return !seek->over;
}

static void end_seek(struct kvl_disk *disk, struct kvl_disk_seek *seek) {
    kvl_disk_found_send(disk);
    kvl_mailbox_post(&disk->inbox, &seek->node);
}

static void answer_portion(struct kvl_disk *disk, struct kvl_disk_seek *seek) {
    uint32_t left = seek->count - seek->done;
    uint32_t count = left < PORTION_KEYS ? left : PORTION_KEYS;
    kvl_err err = kvl_index_seek(disk->index, seek->keys + seek->done, count, take_answer, disk);
    if (err != KVL_OK)
        disk->seeker.answering = false;
    if (!disk->seeker.answering)
        return; /* perhaps again, once the index was checked */
    seek->done += count;
    if (seek->done < seek->count && !seek->over)
        return;
    disk->seeker.current = NULL;
    atomic_fetch_sub(&disk->seeks, 1);
    seek->certain = disk->seeker.certain || !seek->doubtful;
    end_seek(disk, seek);
}

void kvl_disk_seek_step(void *arg) {
    struct kvl_disk *disk = arg;
    struct kvl_disk_seeker *seeker = &disk->seeker;
    struct kvl_node *node;
    if (atomic_load_explicit(&disk->seeks, memory_order_relaxed) == 0 || !seeker->answering)
        return;
    uint64_t since_ns = kvl_clock_ns();
    if (2 * seeker->spent_ns > since_ns - seeker->begun_ns + CREDIT_NS)
        return;
    if (seeker->current == NULL && kvl_mailbox_take(&seeker->inbox) &&
        (node = kvl_mailbox_next(&seeker->inbox)) != NULL)
        seeker->current = kvl_container_of(node, struct kvl_disk_seek, node);
    if (seeker->current == NULL)
        return;
    answer_portion(disk, seeker->current);
    seeker->spent_ns += kvl_clock_ns() - since_ns;
}

void kvl_disk_seek_answer(struct kvl_disk *disk, bool certain) {
    struct kvl_disk_seek *news = calloc(1, sizeof(*news));
    if (disk->seeker.begun_ns == 0)
        disk->seeker.begun_ns = kvl_clock_ns();
    disk->seeker.answering = true;
    disk->seeker.certain = certain;
    if (disk->seeker.current != NULL) /* what was not found may be there after all */
        disk->seeker.current->done = disk->seeker.current->over = 0;
    if (news == NULL)
        return; /* then nobody asks before something else happens */
    news->node.kind = KVL_NODE_SOUGHT;
    news->certain = certain;
    news->generation_max = kvl_index_generation_max(disk->index);
    end_seek(disk, news);
}

void kvl_disk_seek_recant(struct kvl_disk *disk) {
    struct kvl_disk_notices *told = disk->seeker.told;
    disk->seeker.answering = false;
    disk->seeker.told = NULL;
    if (told == NULL)
        return;
    told->node = (struct kvl_node){.kind = KVL_NODE_RECANT};
    told->ack = false;
    kvl_disk_found_send(disk);
    kvl_mailbox_post(&disk->inbox, &told->node);
}

void kvl_disk_seek_ended(struct kvl_disk *disk) {
    disk->seeker.answering = false;
    free(disk->seeker.told);
    disk->seeker.told = NULL;
}

void kvl_disk_seeker_deinit(struct kvl_disk *disk) {
    free(disk->seeker.current);
    free(disk->seeker.chunk);
    free(disk->seeker.told);
}
