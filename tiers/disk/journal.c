/* journal.c - writing the journal; journal_read.c reads it. */
#include "journal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "journal_private.h"
#include "little_endian.h"

#define NEW_NAME KVL_JOURNAL_NAME ".new"
#define FLUSH_BYTES (256u << 10) /* frames of a new file */

void kvl_journal_init(struct kvl_journal *journal, int directory_fd, uint64_t limit_bytes,
    struct kvl_index_state *state) {
    *journal = (struct kvl_journal){.directory_fd = directory_fd,
        .fd = -1,
        .new_fd = -1,
        .limit_bytes = limit_bytes,
        .state = state};
}

void kvl_journal_deinit(struct kvl_journal *journal) {
    kvl_journal_abandon(journal);
    kvl_journal_outdate(journal);
    free(journal->frame);
    journal->frame = NULL;
}

/* ---- the frame under way ------------------------------------------------------------------ */

void kvl_journal_forget_frame(struct kvl_journal *journal) {
    journal->frame_bytes = 0;
    journal->status = KVL_OK;
}

static bool has_entries(const struct kvl_journal *journal) {
    return journal->frame_bytes > KVL_JOURNAL_FRAME_BYTES || journal->status != KVL_OK;
}

/* Room for so many bytes behind what is there; NULL: status says why. */
static uint8_t *extend(struct kvl_journal *journal, uint64_t bytes) {
    if (journal->frame_bytes == 0)
        journal->frame_bytes = KVL_JOURNAL_FRAME_BYTES;
    uint64_t needed = journal->frame_bytes + bytes + 8;
    if (needed > UINT32_MAX)
        journal->status = KVL_ERR_NOSPC;
    if (journal->status == KVL_OK && needed > journal->frame_capacity) {
        uint8_t *frame = realloc(journal->frame, needed * 2);
        journal->frame = frame != NULL ? frame : journal->frame;
        journal->frame_capacity = frame != NULL ? needed * 2 : journal->frame_capacity;
        journal->status = frame != NULL ? KVL_OK : KVL_ERR_NOMEM;
    }
    if (journal->status != KVL_OK)
        return NULL;
    uint8_t *at = journal->frame + journal->frame_bytes;
    journal->frame_bytes += bytes;
    return at;
}

static kvl_err write_all(int fd, const uint8_t *bytes, uint64_t count, uint64_t at) {
    for (uint64_t done = 0; done < count;) {
        ssize_t got = pwrite(fd, bytes + done, count - done, (off_t)(at + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 ? kvl_err_from_errno(errno) : KVL_ERR_IO;
        done += (uint64_t)got;
    }
    return KVL_OK;
}

/* Completes the frame's head and writes it behind the others. */
static kvl_err write_frame(struct kvl_journal *journal, int fd) {
    uint64_t payload = journal->frame_bytes - KVL_JOURNAL_FRAME_BYTES;
    uint64_t padded = kvl_journal_padded(journal->frame_bytes);
    memset(journal->frame + journal->frame_bytes, 0, padded - journal->frame_bytes);
    uint8_t *at = kvl_le_put(journal->frame, KVL_JOURNAL_MAGIC, 4);
    at = kvl_le_put(at, payload, 4);
    at = kvl_le_put(at, journal->sequence + 1, 8);
    at = kvl_le_put(at, XXH3_64bits(journal->frame + KVL_JOURNAL_FRAME_BYTES, payload), 8);
    kvl_le_put(at, XXH3_64bits(journal->frame, 24), 8);
    kvl_err err = write_all(fd, journal->frame, padded, journal->bytes);
    if (err != KVL_OK)
        return err;
    journal->bytes += padded;
    journal->sequence++;
    return KVL_OK;
}

static void flush_if_large(struct kvl_journal *journal) {
    if (journal->new_fd < 0 || journal->status != KVL_OK || journal->frame_bytes < FLUSH_BYTES)
        return;
    kvl_err err = write_frame(journal, journal->new_fd);
    kvl_journal_forget_frame(journal);
    journal->status = err;
}

void kvl_journal_add(struct kvl_journal *journal, const struct kvl_journal_entry *entry) {
    uint8_t *at = extend(journal, 8 + (uint64_t)entry->key_bytes + entry->value_bytes);
    if (at == NULL)
        return;
    at = kvl_le_put(at, entry->kind, 1);
    at = kvl_le_put(at, entry->catalog_kind, 1);
    at = kvl_le_put(at, entry->key_bytes, 2);
    at = kvl_le_put(at, entry->value_bytes, 4);
    if (entry->key_bytes > 0)
        memcpy(at, entry->key, entry->key_bytes);
    if (entry->value_bytes > 0)
        memcpy(at + entry->key_bytes, entry->value, entry->value_bytes);
    flush_if_large(journal);
}

void kvl_journal_add_dead(struct kvl_journal *journal, uint64_t location) {
    uint8_t value[8];
    kvl_le_put(value, location, 8);
    kvl_journal_add(
        journal, &(struct kvl_journal_entry){
                     .kind = KVL_JOURNAL_DEAD, .value = value, .value_bytes = sizeof(value)});
}

void kvl_journal_add_removed(struct kvl_journal *journal, uint32_t id) {
    uint8_t value[4];
    kvl_le_put(value, id, 4);
    kvl_journal_add(
        journal, &(struct kvl_journal_entry){
                     .kind = KVL_JOURNAL_REMOVED, .value = value, .value_bytes = sizeof(value)});
}

void kvl_journal_add_segment(struct kvl_journal *journal, const struct kvl_live_segment *segment) {
    uint64_t bits_bytes = kvl_live_segment_bits_bytes(segment->end_page);
    uint8_t *at = extend(journal, 8 + KVL_JOURNAL_SEGMENT_BYTES + bits_bytes);
    if (at == NULL)
        return;
    at = kvl_le_put(at, KVL_JOURNAL_SEGMENT, 4);
    at = kvl_le_put(at, KVL_JOURNAL_SEGMENT_BYTES + bits_bytes, 4);
    at = kvl_le_put(at, segment->row.bytes, 8);
    at = kvl_le_put(at, segment->row.generation, 8);
    at = kvl_le_put(at, segment->row.id, 4);
    at = kvl_le_put(at, segment->end_page, 4);
    if (bits_bytes > 0)
        memcpy(at, segment->bits, bits_bytes);
    flush_if_large(journal);
}

void kvl_journal_add_map(struct kvl_journal *journal, const struct kvl_live_map *map) {
    for (uint32_t id = 0; id < map->slots; id++) {
        const struct kvl_live_segment *segment = kvl_live_map_find(map, id);
        if (segment != NULL)
            kvl_journal_add_segment(journal, segment);
    }
}

/* ---- the file ----------------------------------------------------------------------------- */

/* Small against what it holds, and far enough from the limit that a new file always fits. Without a
 * file nothing may be committed, whatever it is: the blocks of this run are none to the one before.
 */
bool kvl_journal_is_full(const struct kvl_journal *journal) {
    uint64_t after = journal->bytes + journal->frame_bytes;
    return journal->fd < 0 || (has_entries(journal) &&
                                  (after > journal->limit_bytes / 100 * 85 ||
                                      after > 2 * journal->live_bytes + journal->limit_bytes / 4));
}

static void note_sequence(struct kvl_journal *journal) {
    if (journal->state != NULL)
        journal->state->journal_sequence = journal->sequence;
}

kvl_err kvl_journal_append(struct kvl_journal *journal) {
    if (!has_entries(journal))
        return KVL_OK;
    uint64_t before = journal->bytes;
    kvl_err err = journal->status;
    if (err == KVL_OK)
        err = journal->fd < 0 ? KVL_ERR_IO : write_frame(journal, journal->fd);
    if (err == KVL_OK && fdatasync(journal->fd) != 0)
        err = kvl_err_from_errno(errno);
    kvl_journal_forget_frame(journal);
    if (err == KVL_OK) {
        note_sequence(journal);
        return KVL_OK;
    }
    /* What may be half there must not stand before what follows. */
    if (journal->fd >= 0 && (journal->bytes != before || ftruncate(journal->fd, (off_t)before)))
        kvl_journal_outdate(journal);
    journal->bytes = before;
    return err;
}

kvl_err kvl_journal_begin(struct kvl_journal *journal) {
    uint8_t head[24];
    kvl_journal_abandon(journal);
    kvl_journal_forget_frame(journal);
    journal->new_fd = openat(
        journal->directory_fd, NEW_NAME, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (journal->new_fd < 0)
        return kvl_err_from_errno(errno);
    /* Reserved, so that a full file system never stops a deletion; without that it works too. */
    (void)fallocate(journal->new_fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)journal->limit_bytes);
    journal->bytes = 0;
    uint8_t *at = kvl_le_put(head, KVL_DISK_FORMAT, 4);
    at = kvl_le_put(at, 0, 4);
    at = kvl_le_put(at, journal->run, 8);
    kvl_le_put(at, journal->capacity_bytes, 8);
    kvl_journal_add(
        journal, &(struct kvl_journal_entry){
                     .kind = KVL_JOURNAL_HEAD, .value = head, .value_bytes = sizeof(head)});
    return KVL_OK;
}

static kvl_err publish_new(struct kvl_journal *journal) {
    if (fsync(journal->new_fd) != 0)
        return kvl_err_from_errno(errno);
    if (renameat(journal->directory_fd, NEW_NAME, journal->directory_fd, KVL_JOURNAL_NAME) != 0 ||
        fsync(journal->directory_fd) != 0)
        return kvl_err_from_errno(errno);
    return KVL_OK;
}

kvl_err kvl_journal_end(struct kvl_journal *journal) {
    kvl_err err = journal->status;
    if (err == KVL_OK && has_entries(journal))
        err = write_frame(journal, journal->new_fd);
    kvl_journal_forget_frame(journal);
    if (err == KVL_OK && journal->bytes > journal->limit_bytes)
        err = KVL_ERR_NOSPC;
    if (err == KVL_OK)
        err = publish_new(journal);
    /* Which of the two a failed rename left is not known: the next change writes it anew. */
    kvl_journal_outdate(journal);
    if (err != KVL_OK) {
        kvl_journal_abandon(journal);
        return err;
    }
    journal->fd = journal->new_fd;
    journal->new_fd = -1;
    journal->live_bytes = journal->bytes;
    note_sequence(journal);
    return KVL_OK;
}

void kvl_journal_outdate(struct kvl_journal *journal) {
    if (journal->fd >= 0)
        close(journal->fd);
    journal->fd = -1;
}

void kvl_journal_abandon(struct kvl_journal *journal) {
    if (journal->new_fd < 0)
        return;
    close(journal->new_fd);
    journal->new_fd = -1;
    kvl_journal_outdate(journal);
    (void)unlinkat(journal->directory_fd, NEW_NAME, 0);
}

void kvl_journal_trim(int directory_fd) {
    (void)unlinkat(directory_fd, NEW_NAME, 0);
    int fd = openat(directory_fd, KVL_JOURNAL_NAME, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return;
    off_t end = lseek(fd, 0, SEEK_END);
    if (end >= 0 && ftruncate(fd, end) != 0)
        end = -1; /* then it stays reserved until it is written anew */
    close(fd);
}
