/* reclaim.c - at the cap the next segment comes from an old one, one at a time:
 *   RESOLVING  the index thread says which keys its records have
 *   ASKING     the owner says which of its blocks may not be lost
 *   CARRYING   those are copied behind the newest records, and the index moved to the copies
 *   DELETING   the index forgets the others and notes the segment's new generation: committed
 *   TELLING    the owner heard, so nothing it asked for under an old location is still to come
 *   RELEASING  reads under way end; only then may the bytes be used again
 *
 * How much room there is says space.c, which segment goes victim.c. */
#include <stdlib.h>

#include "clock.h"
#include "disk.h"
#include "planted.h"

/* Each round of carrying frees an eighth of a segment or more, unless large records leave gaps that
 * none of them fits. After so many rounds without room for one store there is nothing to gain, and
 * carrying on would rewrite the disk for ever. */
#define CARRIED_ROUNDS_MAX 16u
/* Carrying a quarter of a segment over is cheap enough to look no further; of so many others the
 * one with the fewest kept bytes is taken. */
#define CHEAP_SHARE 4u
#define ASKED_MAX 8u
#define CARRY_RETRY_NS 60000000000ull

/* False: out of memory. */
static bool resolve(struct kvl_disk *disk, const struct kvl_segment *victim) {
    struct kvl_disk_resolve *resolve = NULL;
    resolve = malloc(sizeof(*resolve) + victim->entry_count * sizeof(resolve->names[0]));
    if (resolve == NULL)
        return false;
    resolve->node = (struct kvl_node){.kind = KVL_NODE_RESOLVE};
    resolve->count = victim->entry_count;
    for (uint64_t i = 0; i < victim->entry_count; i++)
        resolve->names[i] = (struct kvl_index_name){.key_head = victim->entries[i].key_head,
            .location = kvl_segment_location(victim, &victim->entries[i])};
    free(disk->reclaim.resolved);
    disk->reclaim.resolved = resolve;
    kvl_mailbox_post(&disk->index_inbox, &resolve->node);
    return true;
}

static bool ask(struct kvl_disk *disk, struct kvl_segment *victim) {
    const struct kvl_index_name *names = disk->reclaim.resolved->names;
    struct kvl_disk_ask *question = NULL;
    uint64_t bytes = sizeof(*question) + victim->entry_count * sizeof(question->items[0]);
    question = malloc(bytes);
    if (question == NULL)
        return false;
    question->node = (struct kvl_node){.kind = KVL_NODE_ASK};
    question->count = 0;
    for (uint64_t i = 0; i < victim->entry_count; i++) {
        victim->entries[i].keep = false;
        if (!victim->entries[i].live || !names[i].found)
            continue;
        question->items[question->count].key = names[i].key;
        question->items[question->count].page = victim->entries[i].page;
        question->items[question->count++].keep = false;
    }
    kvl_mailbox_post(&disk->outbox, &question->node);
    return true;
}

/* Planted: the segment is released now, its deletions go when the next one is reclaimed. */
static void delete_late(struct kvl_disk *disk) {
    static struct kvl_disk_ops late;
    const struct kvl_disk_ops *ops = &disk->reclaim.commit.ops;
    for (uint64_t i = 0; i < late.count; i++)
        *kvl_disk_ops_add(&disk->pending) = late.items[i];
    late.count = 0;
    for (uint64_t i = 0; i < ops->count; i++)
        *kvl_disk_ops_add(&late) = ops->items[i];
    kvl_disk_reclaim_committed(disk);
}

static void start_deleting(struct kvl_disk *disk) {
    struct kvl_disk_reclaim *reclaim = &disk->reclaim;
    struct kvl_segment *victim = reclaim->victim;
    const struct kvl_disk_resolve *resolved = reclaim->resolved;
    struct kvl_index_op *op = NULL;
    bool all = true;
    reclaim->state = KVL_RECLAIM_DELETING;
    reclaim->commit.node.kind = KVL_NODE_COMMIT;
    reclaim->commit.done_ops = 0;
    reclaim->commit.status = KVL_OK;
    kvl_disk_ops_clear(disk, &reclaim->commit.ops);
    /* Dead ones too: their own deletions may not be committed yet. */
    for (uint64_t i = 0; i < resolved->count && all; i++) {
        if (!resolved->names[i].found)
            continue;
        op = kvl_disk_ops_add(&reclaim->commit.ops);
        all = op != NULL;
        if (!all)
            break;
        op->kind = KVL_INDEX_DELETE;
        op->block.record.key = resolved->names[i].key;
        op->old_location = resolved->names[i].location;
        op->segment.generation = victim->generation;
    }
    op = all ? kvl_disk_ops_add(&reclaim->commit.ops) : NULL;
    if (op == NULL) {
        reclaim->commit.status = KVL_ERR_NOMEM;
        kvl_disk_reclaim_committed(disk);
        return;
    }
    op->kind = KVL_INDEX_SEGMENT_PUT;
    op->segment = (struct kvl_index_segment){victim->id, victim->bytes, ++disk->generation};
    if (KVL_PLANTED("reuse-before-commit"))
        delete_late(disk);
    else
        kvl_mailbox_post(&disk->index_inbox, &reclaim->commit.node);
}

/* Nothing to be had: those who wait for it are told, and nobody tries again until it makes sense;
 * ahead of need, not before the next segment is begun. */
static void give_up(struct kvl_disk *disk) {
    disk->reclaim.state = KVL_RECLAIM_IDLE;
    disk->reclaim.victim = NULL;
    free(disk->reclaim.resolved);
    disk->reclaim.resolved = NULL;
    if (disk->reclaim.ahead) {
        disk->reclaim.ahead_failed = disk->active == NULL ? 0 : disk->active->generation;
        return;
    }
    disk->reclaim.futile = true;
    if (disk->commit_parked)
        kvl_disk_commit_strip(disk);
    if (disk->want_segment || disk->index_permille > KVL_INDEX_PRESSURE_PERMILLE)
        kvl_disk_fail_waiting_stores(disk, KVL_ERR_NOSPC);
}

static void start_carrying(struct kvl_disk *disk, struct kvl_segment *victim) {
    if (victim->moved_to == NULL && victim->live_bytes > 0)
        victim->moved_to = calloc(victim->entry_count, sizeof(victim->moved_to[0]));
    if (victim->moved_to == NULL && victim->live_bytes > 0) {
        victim->state = KVL_SEGMENT_FULL;
        give_up(disk);
        return;
    }
    disk->reclaim.victim = victim;
    disk->reclaim.state = KVL_RECLAIM_CARRYING;
    disk->reclaim.next_entry = 0;
    disk->reclaim.carrying = 0;
    disk->reclaim.carry_failed = disk->reclaim.unreadable = false;
    disk->reclaim.carried = false;
    victim->state = KVL_SEGMENT_RECLAIMING;
}

static bool pick(struct kvl_disk *disk) {
    struct kvl_disk_reclaim *reclaim = &disk->reclaim;
    bool wait = false;
    reclaim->ahead = reclaim->ahead && !disk->want_segment; /* somebody waits by now */
    bool enough = reclaim->asked >= ASKED_MAX && (reclaim->best != NULL || reclaim->ahead);
    struct kvl_segment *victim =
        enough ? NULL : kvl_disk_choose_victim(disk, kvl_disk_filled_last(disk), &wait);
    bool nothing_else = disk->commit_parked || (!wait && reclaim->best == NULL);
    if (victim == NULL && !enough && nothing_else && !reclaim->ahead)
        victim = kvl_disk_choose_victim(disk, NULL, &wait);
    /* While a commit is parked no batch is committed: waiting for one would be for ever. Ahead of
     * need nobody is asked twice. */
    bool asked_in_vain = reclaim->ahead && reclaim->asked > 0;
    if (victim == NULL && wait && !disk->commit_parked && !asked_in_vain) {
        reclaim->state = KVL_RECLAIM_IDLE;
        reclaim->waits = true;
        return false;
    }
    reclaim->waits = false;
    /* Copies are committed, too: they cannot wait for a commit that waits for them. */
    if (victim == NULL && !disk->commit_parked && !reclaim->ahead)
        victim = reclaim->best; /* its keys are asked for again, its owner is not */
    if (victim == NULL) {
        give_up(disk);
        return true;
    }
    victim->tried = reclaim->number;
    reclaim->victim = victim;
    victim->state = KVL_SEGMENT_RECLAIMING;
    reclaim->state = KVL_RECLAIM_RESOLVING;
    if (!resolve(disk, victim)) {
        victim->state = KVL_SEGMENT_FULL;
        give_up(disk);
    }
    return true;
}

void kvl_disk_reclaim_resolved(struct kvl_disk *disk) {
    struct kvl_disk_reclaim *reclaim = &disk->reclaim;
    struct kvl_segment *victim = reclaim->victim;
    reclaim->state = KVL_RECLAIM_ASKING;
    bool best = victim == reclaim->best;
    bool good = reclaim->resolved->status == KVL_OK;
    if (good && victim->live_bytes == 0) {
        start_deleting(disk);
    } else if (good && best && !disk->commit_parked) {
        reclaim->best = NULL;
        start_carrying(disk, victim);
    } else if (!good || best || !ask(disk, victim)) {
        victim->state = KVL_SEGMENT_FULL;
        give_up(disk);
    }
}

static bool is_to_be_carried(
    const struct kvl_segment *victim, const struct kvl_segment_entry *entry) {
    return entry->live && entry->keep && kvl_segment_moved_to(victim, entry) == 0;
}

/* Whether the copies find room, one behind the other as carry_over places them: a record lies in
 * one segment, so that each but the last may end in a gap. */
static bool copies_fit(const struct kvl_disk *disk, const struct kvl_segment *victim) {
    const struct kvl_segment *target = NULL;
    uint64_t room = 0;
    if (disk->active != NULL)
        room = disk->active->bytes - disk->active->append_bytes - disk->active->reserved_bytes;
    for (uint64_t i = 0; i < victim->entry_count; i++) {
        uint64_t bytes = (uint64_t)victim->entries[i].pages * KVL_PAGE_BYTES;
        if (!is_to_be_carried(victim, &victim->entries[i]))
            continue;
        if (room < bytes) {
            target = kvl_segments_next_free(&disk->segments, target == NULL ? 0 : target->id);
            if (target == NULL || target->bytes < bytes)
                return false;
            room = target->bytes;
        }
        room -= bytes;
    }
    return true;
}

static bool may_carry_more(struct kvl_disk_reclaim *reclaim) {
    if (reclaim->carried_rounds >= CARRIED_ROUNDS_MAX &&
        kvl_clock_ns() >= reclaim->carried_since_ns + CARRY_RETRY_NS)
        reclaim->carried_rounds = 0;
    return reclaim->carried_rounds < CARRIED_ROUNDS_MAX;
}

void kvl_disk_reclaim_answered(struct kvl_disk *disk, struct kvl_disk_ask *question) {
    struct kvl_disk_reclaim *reclaim = &disk->reclaim;
    struct kvl_segment *victim = reclaim->victim;
    uint64_t kept_bytes = 0;
    for (uint64_t i = 0; i < question->count; i++) {
        struct kvl_segment_entry *entry = kvl_segment_at(victim, question->items[i].page);
        entry->keep = question->items[i].keep;
        if (entry->keep && entry->live)
            kept_bytes += (uint64_t)entry->pages * KVL_PAGE_BYTES;
    }
    free(question);
    /* Copies are committed, too: they cannot wait for a commit that waits for them. */
    bool may_carry = kept_bytes == 0 || (!disk->commit_parked && may_carry_more(reclaim));
    reclaim->asked++;
    may_carry = may_carry && kept_bytes <= kvl_disk_kept_bytes_max(victim->bytes) &&
                copies_fit(disk, victim);
    if (may_carry && kept_bytes <= victim->bytes / CHEAP_SHARE) {
        start_carrying(disk, victim);
        return;
    }
    /* Copying much of a segment gains little: another one first. Ahead of need it is not done. */
    victim->state = KVL_SEGMENT_FULL;
    if (may_carry && (reclaim->best == NULL || kept_bytes < reclaim->best_kept_bytes)) {
        reclaim->best = victim;
        reclaim->best_kept_bytes = kept_bytes;
    }
    pick(disk);
}

static void carry_over(struct kvl_disk *disk) {
    struct kvl_disk_reclaim *reclaim = &disk->reclaim;
    struct kvl_segment *victim = reclaim->victim;
    const struct kvl_index_name *names = reclaim->resolved->names;
    while (reclaim->next_entry < victim->entry_count && !reclaim->carry_failed) {
        struct kvl_segment_entry *entry = &victim->entries[reclaim->next_entry];
        uint64_t bytes = (uint64_t)entry->pages * KVL_PAGE_BYTES;
        if (is_to_be_carried(victim, entry)) {
            if (!kvl_disk_has_room(disk, bytes, true)) {
                reclaim->carry_failed = true;
                break;
            }
            if (!kvl_disk_stage_carried(disk, victim, &names[reclaim->next_entry]))
                return;
            reclaim->carrying++;
            reclaim->carried = true;
        }
        reclaim->next_entry++;
    }
    if (reclaim->carrying > 0)
        return;
    if (reclaim->carried && reclaim->carried_rounds++ == 0)
        reclaim->carried_since_ns = kvl_clock_ns();
    if (!reclaim->carry_failed) {
        start_deleting(disk);
        return;
    }
    victim->state = KVL_SEGMENT_FULL;
    if (reclaim->unreadable)
        pick(disk);
    else
        give_up(disk);
}

void kvl_disk_carried(struct kvl_disk *disk, struct kvl_disk_staged *staged, bool moved) {
    struct kvl_segment *victim = disk->reclaim.victim;
    disk->reclaim.carrying--;
    if (moved || victim == NULL)
        return;
    struct kvl_segment_entry *entry = kvl_segment_at(victim, kvl_location_page(staged->from));
    if (entry == NULL || !entry->live)
        return; /* discarded meanwhile: nothing to keep */
    if (staged->status == KVL_OK || staged->status == KVL_ERR_CORRUPT)
        entry->keep = false; /* replaced meanwhile, or bad on disk: there is nothing to carry */
    else
        disk->reclaim.carry_failed = true;
    disk->reclaim.unreadable = disk->reclaim.unreadable || staged->op.status != KVL_OK;
}

static void tell_lost(struct kvl_disk *disk) {
    struct kvl_segment *victim = disk->reclaim.victim;
    const struct kvl_index_name *names = disk->reclaim.resolved->names;
    struct kvl_disk_notices *notices =
        malloc(sizeof(*notices) + victim->entry_count * sizeof(struct kvl_disk_notice));
    disk->reclaim.state = KVL_RECLAIM_TELLING;
    if (notices == NULL) {
        KVL_ERROR(disk->log, "disk out of memory: evicted blocks are not announced");
        disk->reclaim.state = KVL_RECLAIM_RELEASING;
        return;
    }
    notices->node = (struct kvl_node){.kind = KVL_NODE_NOTICES};
    notices->ack = true;
    notices->count = 0;
    for (uint64_t i = 0; i < victim->entry_count; i++) {
        struct kvl_segment_entry *entry = &victim->entries[i];
        if (!entry->live || !names[i].found || kvl_segment_moved_to(victim, entry) != 0)
            continue;
        notices->items[notices->count++] =
            (struct kvl_disk_notice){.key = names[i].key, .location = names[i].location};
    }
    kvl_mailbox_post(&disk->outbox, &notices->node);
}

/* The first steps were committed, and one failed: those blocks are gone. */
static void tell_deleted(struct kvl_disk *disk) {
    const struct kvl_disk_commit *commit = &disk->reclaim.commit;
    struct kvl_segment *victim = disk->reclaim.victim;
    for (uint64_t i = 0; i < commit->done_ops; i++) {
        const struct kvl_index_op *op = &commit->ops.items[i];
        struct kvl_segment_entry *entry =
            kvl_segment_at(victim, kvl_location_page(op->old_location));
        if (entry == NULL || !entry->live || kvl_segment_moved_to(victim, entry) != 0)
            continue;
        kvl_disk_notify(disk, &op->block.record.key, op->old_location, false);
        kvl_segment_kill(victim, entry);
    }
}

void kvl_disk_reclaim_committed(struct kvl_disk *disk) {
    struct kvl_disk_commit *commit = &disk->reclaim.commit;
    if (commit->status == KVL_OK) {
        disk->index_permille = commit->usage_permille;
        tell_lost(disk);
        return;
    }
    tell_deleted(disk);
    KVL_ERROR(disk->log, "disk cannot evict: index status=%s", kvl_err_name(commit->status));
    disk->reclaim.victim->state = KVL_SEGMENT_FULL;
    give_up(disk);
}

void kvl_disk_reclaim_told(struct kvl_disk *disk) {
    if (disk->reclaim.state == KVL_RECLAIM_TELLING)
        disk->reclaim.state = KVL_RECLAIM_RELEASING;
}

static bool release(struct kvl_disk *disk) {
    struct kvl_disk_reclaim *reclaim = &disk->reclaim;
    struct kvl_segment *victim = reclaim->victim;
    if (victim->refs > 0)
        return false;
    struct kvl_disk_ops *ops = &reclaim->commit.ops;
    kvl_segment_reset(victim, ops->items[ops->count - 1].segment.generation);
    kvl_disk_ops_clear(disk, ops);
    free(reclaim->resolved);
    reclaim->resolved = NULL;
    kvl_disk_drop_odd(disk, victim);
    kvl_disk_account(disk);
    reclaim->victim = NULL;
    reclaim->state = KVL_RECLAIM_IDLE;
    reclaim->made_room = true;
    reclaim->futile = false;
    return true;
}

/* ahead: nobody waits for it yet. */
static bool needed(const struct kvl_disk *disk, bool *ahead) {
    *ahead = false;
    /* One that is there is not taken while the map is full: that is what is to be mended then. */
    if (disk->want_segment && !kvl_disk_may_take_segment(disk, false))
        return !disk->preparing && kvl_disk_at_cap(disk);
    if (disk->commit_parked && !disk->commit.busy)
        return !disk->reclaim.made_room;
    if (disk->index_permille > KVL_INDEX_PRESSURE_PERMILLE && !disk->commit.busy)
        return disk->stores_waiting.head != NULL || !disk->reclaim.futile;
    *ahead = true;
    return !disk->reclaim.futile && kvl_disk_nearly_full(disk) &&
           disk->active->generation != disk->reclaim.ahead_failed;
}

/* A new attempt, or the one that waited goes on: whom it asked, it does not ask again. */
static void begin(struct kvl_disk_reclaim *reclaim, bool ahead) {
    if (reclaim->waits) {
        reclaim->ahead = reclaim->ahead && ahead;
        return;
    }
    reclaim->number++;
    reclaim->ahead = ahead;
    reclaim->best = NULL;
    reclaim->asked = 0;
}

bool kvl_disk_reclaim_advance(struct kvl_disk *disk) {
    struct kvl_disk_reclaim *reclaim = &disk->reclaim;
    if (!disk->loaded)
        return false;
    bool progress = kvl_disk_prepare_ahead(disk), ahead;
    enum kvl_reclaim_state before = reclaim->state;
    switch (before) {
    case KVL_RECLAIM_IDLE:
        if (!needed(disk, &ahead)) {
            reclaim->waits = false;
            return progress;
        }
        begin(reclaim, ahead);
        return pick(disk) || progress;
    case KVL_RECLAIM_CARRYING:
        carry_over(disk);
        return progress || reclaim->state != before;
    case KVL_RECLAIM_RELEASING:
        return release(disk) || progress;
    default:
        return progress;
    }
}
