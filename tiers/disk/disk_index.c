/* disk_index.c - which index a start goes on with: the one that is there, or one rebuilt.
 *
 * LMDB's file is trusted until it opens badly, reads back otherwise than it was written, or two
 * processes in a row died inside it. Then it is made anew from the segments and their journal;
 * where the journal is damaged, too, the folder starts without blocks. */
#include <sys/random.h>

#include "clock.h"
#include "disk.h"
#include "planted.h"

#define HEAL_RETRY_NS 2000000000ull /* after one that failed */
#define SERVED_NS 10000000000ull    /* deaths further apart than this are no loop */

static struct kvl_index_options options_of(const struct kvl_disk *disk, bool expected) {
    return (struct kvl_index_options){
        .directory = disk->dir.index_path,
        .map_bytes = disk->plan.map_bytes,
        .state = disk->index_state,
        .expected = expected,
    };
}

static void tell_rebuilt(struct kvl_disk *disk, const char *reason) {
    const struct kvl_rebuilt *rebuilt = &disk->rebuilt;
    if (rebuilt->journal_whole)
        kvl_log_fallback(disk->log,
            "disk index rebuilt from the segments: %s; blocks=%llu unreadable=%llu left_out=%llu",
            reason, (unsigned long long)rebuilt->blocks, (unsigned long long)rebuilt->unreadable,
            (unsigned long long)rebuilt->left_out);
    else
        kvl_log_fallback(disk->log,
            "disk index made anew without blocks: %s; and the journal is %s, so that nobody knows "
            "which blocks were cleared",
            reason, rebuilt->journal_exists ? "damaged" : "missing");
}

/* Why the index is not even to be opened; NULL: it is. */
static const char *reason_to_rebuild(
    const struct kvl_disk *disk, const struct kvl_journal_found *journal) {
    const struct kvl_index_state *state = disk->index_state;
    if (disk->options.rebuild && journal->whole)
        return "asked for";
    if (state == NULL)
        return NULL;
    if (state->damaged != 0)
        return "it was found damaged";
    uint32_t limit = journal->whole ? KVL_INDEX_DEATHS : 2 * KVL_INDEX_DEATHS;
    return state->deaths >= limit ? "processes died inside it" : NULL;
}

static kvl_err rebuild_at_start(struct kvl_disk *disk, const char *reason, struct kvl_errmsg *msg) {
    struct kvl_index_options options = options_of(disk, true);
    kvl_err err = kvl_index_rebuild_unopened(
        &options, disk->dir.segments_fd, &disk->index, &disk->rebuilt, msg);
    if (err == KVL_OK)
        tell_rebuilt(disk, reason);
    return err;
}

static kvl_err open_or_rebuild(
    struct kvl_disk *disk, const struct kvl_journal_found *journal, struct kvl_errmsg *msg) {
    struct kvl_errmsg damage = {""};
    const char *reason = reason_to_rebuild(disk, journal);
    if (reason != NULL)
        return rebuild_at_start(disk, reason, msg);
    struct kvl_index_options options = options_of(disk, journal->exists);
    kvl_err err = kvl_index_open(&options, &disk->index, &damage);
    if (err == KVL_ERR_CORRUPT)
        return rebuild_at_start(disk, damage.text, msg);
    if (err != KVL_OK)
        return kvl_fail(msg, err, "%s", damage.text);
    if (disk->options.rebuild)
        return kvl_fail(msg, KVL_ERR_CORRUPT,
            "%s: the journal is %s and the index can be opened: nothing to rebuild it from; start "
            "the daemon, which writes the journal anew",
            disk->dir.path, journal->exists ? "damaged" : "missing");
    return KVL_OK;
}

static kvl_err begin_run(struct kvl_disk *disk, uint64_t sequence, struct kvl_errmsg *msg) {
    struct kvl_journal *journal = &disk->journal;
    kvl_journal_init(
        journal, disk->dir.segments_fd, disk->plan.journal_bytes / 2, disk->index_state);
    journal->capacity_bytes = disk->plan.capacity_bytes;
    journal->sequence = sequence;
    if (getrandom(&journal->run, sizeof(journal->run), 0) != (ssize_t)sizeof(journal->run))
        return kvl_fail(msg, KVL_ERR_IO, "the kernel gives no random number");
    return KVL_OK;
}

kvl_err kvl_disk_index_open(struct kvl_disk *disk, struct kvl_errmsg *msg) {
    struct kvl_journal_found found = {0};
    disk->index_state = kvl_index_state_open(disk->dir.index_path);
    disk->index_since_ns = kvl_clock_ns();
    kvl_journal_trim(disk->dir.segments_fd);
    kvl_err err = kvl_journal_look(disk->dir.segments_fd, &found);
    if (err == KVL_ERR_VERSION)
        return kvl_fail(msg, err,
            "%s has disk format %u, this program reads up to %u; use a newer kvloft or another "
            "--disk-path",
            disk->dir.path, found.format, KVL_DISK_FORMAT);
    if (err != KVL_OK)
        return kvl_fail(
            msg, err, "%s: the journal cannot be read: %s", disk->dir.path, kvl_err_text(err));
    uint64_t sequence = found.sequence;
    if (disk->index_state != NULL && disk->index_state->journal_sequence > sequence)
        sequence = disk->index_state->journal_sequence;
    err = begin_run(disk, sequence, msg);
    return err == KVL_OK ? open_or_rebuild(disk, &found, msg) : err;
}

/* Nothing of it was handed out yet but what was sought, so it may still be replaced. */
kvl_err kvl_disk_index_read(struct kvl_disk *disk, struct kvl_errmsg *msg) {
    kvl_err err = kvl_index_check(disk->index);
    if (err == KVL_ERR_CORRUPT) {
        kvl_disk_seek_recant(disk);
        err = kvl_index_rebuild(disk->index, disk->dir.segments_fd, &disk->rebuilt, msg);
        if (err != KVL_OK)
            return err;
        tell_rebuilt(disk, "it does not read back as it was written");
        err = kvl_index_check(disk->index);
    }
    return err == KVL_OK
               ? KVL_OK
               : kvl_fail(msg, err, "index %s: %s", disk->dir.index_path, kvl_err_text(err));
}

kvl_err kvl_disk_index_check(struct kvl_disk *disk) {
    struct kvl_errmsg msg = {""};
    kvl_err err = kvl_disk_index_read(disk, &msg);
    if (err != KVL_OK) {
        KVL_ERROR(disk->log, "disk index cannot be read: %s", msg.text);
        return err;
    }
    err = kvl_index_keep_journal(disk->index, &disk->journal);
    if (err != KVL_OK)
        KVL_WARN(disk->log, "disk journal cannot be written yet: %s", kvl_err_text(err));
    atomic_store(&disk->journal_bytes, disk->journal.bytes);
    return KVL_OK;
}

static void take_rebuilt(struct kvl_disk *disk) {
    kvl_log_fallback(disk->log,
        "disk index rebuilt from the segments: it was found damaged at work; blocks=%llu "
        "unreadable=%llu left_out=%llu%s",
        (unsigned long long)disk->rebuilt.blocks, (unsigned long long)disk->rebuilt.unreadable,
        (unsigned long long)disk->rebuilt.left_out,
        disk->rebuilt.journal_whole
            ? ""
            : "; the journal is damaged, too: sessions and pins may be missing after a restart");
    if (kvl_index_keep_journal(disk->index, &disk->journal) != KVL_OK)
        KVL_WARN(disk->log, "disk journal cannot be written yet");
    atomic_store(&disk->journal_bytes, disk->journal.bytes);
}

/* Nobody but this thread waits: the owner's table answers, and records are read without LMDB. */
static bool heal(struct kvl_disk *disk, kvl_err why) {
    struct kvl_disk_lost *lost = NULL;
    struct kvl_errmsg msg = {""};
    uint64_t since_ns = kvl_clock_ns();
    if (since_ns < disk->heal_after_ns || KVL_PLANTED("index-not-healed"))
        return false;
    KVL_ERROR(disk->log, "disk index is %s; blocks on disk are served meanwhile, new ones wait",
        why == KVL_ERR_CORRUPT ? "damaged: it is rebuilt from the segments"
                               : "closed after an error: it is opened again");
    kvl_err err = kvl_index_heal(
        disk->index, disk->dir.segments_fd, &disk->rebuilt, kvl_disk_lost_add, &lost, &msg);
    if (err != KVL_OK) {
        disk->heal_after_ns = kvl_clock_ns() + HEAL_RETRY_NS;
        kvl_log_fallback(disk->log,
            "disk index cannot be mended now (%s): until it is, nothing more is stored on disk",
            msg.text);
        return false;
    }
    if (disk->rebuilt.opened_again)
        kvl_log_fallback(disk->log, "disk index was closed after a failed write and opened again");
    else
        take_rebuilt(disk);
    kvl_disk_lost_tell(disk, lost);
    KVL_INFO(disk->log, "disk index mended ms=%llu",
        (unsigned long long)((kvl_clock_ns() - since_ns) / 1000000));
    return true;
}

static bool is_to_be_healed(kvl_err err) {
    return err == KVL_ERR_CORRUPT || err == KVL_ERR_CLOSED;
}

/* Damaged again at once: something is wrong that rebuilding does not mend. */
static kvl_err settled(struct kvl_disk *disk, kvl_err err) {
    if (!is_to_be_healed(err))
        return err;
    if (kvl_clock_ns() >= disk->heal_after_ns)
        disk->heal_after_ns = kvl_clock_ns() + HEAL_RETRY_NS;
    return KVL_ERR_IO;
}

kvl_err kvl_disk_index_commit(struct kvl_disk *disk, struct kvl_index_op *ops, uint64_t count) {
    kvl_err err = kvl_index_commit(disk->index, ops, count);
    if (is_to_be_healed(err) && heal(disk, err))
        err = kvl_index_commit(disk->index, ops, count);
    return settled(disk, err);
}

kvl_err kvl_disk_index_resolve(
    struct kvl_disk *disk, struct kvl_index_name *names, uint64_t count) {
    kvl_err err = kvl_index_resolve(disk->index, names, count);
    if (is_to_be_healed(err) && heal(disk, err))
        err = kvl_index_resolve(disk->index, names, count);
    return settled(disk, err);
}

void kvl_disk_index_served(struct kvl_disk *disk) {
    if (kvl_clock_ns() - disk->index_since_ns >= SERVED_NS)
        kvl_index_state_served(disk->index_state);
}
