/* journal_read.c - reading a journal that may be damaged anywhere. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "journal.h"
#include "journal_private.h"
#include "little_endian.h"

struct frame {
    const uint8_t *payload;
    uint32_t payload_bytes;
    uint64_t sequence;
};

static bool read_frame(const uint8_t *at, uint64_t left, struct frame *frame) {
    const uint8_t *next = at;
    if (left < KVL_JOURNAL_FRAME_BYTES || kvl_le_get(&next, 4) != KVL_JOURNAL_MAGIC)
        return false;
    frame->payload_bytes = (uint32_t)kvl_le_get(&next, 4);
    frame->sequence = kvl_le_get(&next, 8);
    uint64_t payload_checksum = kvl_le_get(&next, 8);
    if (kvl_le_get(&next, 8) != XXH3_64bits(at, 24))
        return false;
    frame->payload = next;
    return kvl_journal_padded(frame->payload_bytes) <= left - KVL_JOURNAL_FRAME_BYTES &&
           payload_checksum == XXH3_64bits(frame->payload, frame->payload_bytes);
}

/* False: malformed. */
static bool read_entry(const uint8_t **at, uint64_t *left, struct kvl_journal_entry *entry) {
    if (*left < KVL_JOURNAL_ENTRY_BYTES)
        return false;
    entry->kind = (enum kvl_journal_kind)kvl_le_get(at, 1);
    uint64_t catalog_kind = kvl_le_get(at, 1);
    entry->key_bytes = (uint32_t)kvl_le_get(at, 2);
    entry->value_bytes = (uint32_t)kvl_le_get(at, 4);
    *left -= KVL_JOURNAL_ENTRY_BYTES;
    bool of_catalog = entry->kind == KVL_JOURNAL_PUT || entry->kind == KVL_JOURNAL_REMOVE;
    if (entry->kind < KVL_JOURNAL_HEAD || entry->kind > KVL_JOURNAL_REMOVE ||
        catalog_kind >= KVL_CATALOG_KINDS || entry->key_bytes > KVL_CATALOG_KEY_BYTES_MAX ||
        (of_catalog && entry->key_bytes == 0) ||
        (of_catalog && entry->value_bytes > KVL_CATALOG_VALUE_BYTES_MAX) ||
        (uint64_t)entry->key_bytes + entry->value_bytes > *left)
        return false;
    entry->catalog_kind = (enum kvl_catalog_kind)catalog_kind;
    entry->key = *at;
    entry->value = *at + entry->key_bytes;
    *at += entry->key_bytes + entry->value_bytes;
    *left -= (uint64_t)entry->key_bytes + entry->value_bytes;
    return true;
}

static bool take_head(const struct kvl_journal_entry *entry, struct kvl_journal_found *found) {
    const uint8_t *at = entry->value;
    if (entry->kind != KVL_JOURNAL_HEAD || entry->value_bytes != 24)
        return false;
    found->format = (uint32_t)kvl_le_get(&at, 4);
    at += 4;
    found->run = kvl_le_get(&at, 8);
    found->capacity_bytes = kvl_le_get(&at, 8);
    return found->format == KVL_DISK_FORMAT;
}

static kvl_err visit_frame(const struct frame *frame, bool first, kvl_journal_visit visit,
    void *arg, struct kvl_journal_found *found) {
    const uint8_t *at = frame->payload;
    uint64_t left = frame->payload_bytes;
    kvl_err err = KVL_OK;
    for (bool begins = first; left > 0 && err == KVL_OK; begins = false) {
        struct kvl_journal_entry entry;
        if (!read_entry(&at, &left, &entry)) {
            found->whole = false;
            return KVL_OK;
        }
        if (begins && !take_head(&entry, found))
            found->whole = false;
        if (found->format > KVL_DISK_FORMAT)
            return KVL_ERR_VERSION;
        err = visit(arg, &entry);
    }
    return err;
}

kvl_err kvl_journal_parse(const uint8_t *bytes, uint64_t count, kvl_journal_visit visit, void *arg,
    struct kvl_journal_found *found) {
    kvl_err err = KVL_OK;
    uint64_t at = 0;
    bool torn = false;
    *found = (struct kvl_journal_found){.exists = true, .whole = true};
    while (err == KVL_OK && at < count && count - at >= KVL_JOURNAL_FRAME_BYTES) {
        struct frame frame;
        if (!read_frame(bytes + at, count - at, &frame)) {
            torn = true;
            at += 8;
            continue;
        }
        /* Damage in the middle, one missing, or one left over from another time. */
        found->whole = found->whole && !torn && (at == 0 || frame.sequence == found->sequence + 1);
        if (at == 0 || frame.sequence > found->sequence) {
            err = visit_frame(&frame, at == 0, visit, arg, found);
            found->sequence = frame.sequence;
        }
        at += KVL_JOURNAL_FRAME_BYTES + kvl_journal_padded(frame.payload_bytes);
    }
    found->whole = found->whole && found->format != 0;
    return err;
}

static kvl_err read_file(int fd, uint8_t **bytes, uint64_t *count) {
    struct stat file;
    if (fstat(fd, &file) != 0)
        return kvl_err_from_errno(errno);
    *count = (uint64_t)file.st_size;
    *bytes = malloc(*count + 1);
    if (*bytes == NULL)
        return KVL_ERR_NOMEM;
    for (uint64_t done = 0; done < *count;) {
        ssize_t got = pread(fd, *bytes + done, *count - done, (off_t)done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 ? kvl_err_from_errno(errno) : KVL_ERR_SHORT;
        done += (uint64_t)got;
    }
    return KVL_OK;
}

kvl_err kvl_journal_load(int directory_fd, uint8_t **bytes, uint64_t *count) {
    *bytes = NULL;
    *count = 0;
    int fd = openat(directory_fd, KVL_JOURNAL_NAME, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return errno == ENOENT ? KVL_OK : kvl_err_from_errno(errno);
    kvl_err err = read_file(fd, bytes, count);
    close(fd);
    if (err == KVL_OK)
        return KVL_OK;
    free(*bytes);
    *bytes = NULL;
    return err;
}

static kvl_err visit_nothing(void *arg, const struct kvl_journal_entry *entry) {
    (void)arg, (void)entry;
    return KVL_OK;
}

kvl_err kvl_journal_look(int directory_fd, struct kvl_journal_found *found) {
    uint8_t *bytes;
    uint64_t count;
    *found = (struct kvl_journal_found){0};
    kvl_err err = kvl_journal_load(directory_fd, &bytes, &count);
    if (err == KVL_OK && bytes != NULL)
        err = kvl_journal_parse(bytes, count, visit_nothing, NULL, found);
    free(bytes);
    return err;
}

bool kvl_journal_read_segment(
    const struct kvl_journal_entry *entry, struct kvl_index_segment *row, uint32_t *end_page) {
    const uint8_t *at = entry->value;
    if (entry->value_bytes < KVL_JOURNAL_SEGMENT_BYTES)
        return false;
    row->bytes = kvl_le_get(&at, 8);
    row->generation = kvl_le_get(&at, 8);
    row->id = (uint32_t)kvl_le_get(&at, 4);
    *end_page = (uint32_t)kvl_le_get(&at, 4);
    return *end_page <= row->bytes / KVL_PAGE_BYTES &&
           entry->value_bytes == KVL_JOURNAL_SEGMENT_BYTES + kvl_live_segment_bits_bytes(*end_page);
}
