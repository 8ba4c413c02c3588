/* segment.c - segment files and their entries. */
#include "segment.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void kvl_segment_file_name(uint32_t id, char name[KVL_SEGMENT_NAME_BYTES]) {
    snprintf(name, KVL_SEGMENT_NAME_BYTES, "%08u.seg", id);
}

static void destroy_segment(struct kvl_segment *segment) {
    if (segment->file.fd >= 0)
        close(segment->file.fd);
    free(segment->entries);
    free(segment->moved_to);
    free(segment);
}

void kvl_segments_deinit(struct kvl_segments *segments) {
    for (uint32_t id = 0; id < segments->slots; id++) {
        if (segments->items[id] != NULL)
            destroy_segment(segments->items[id]);
    }
    free(segments->items);
    segments->items = NULL;
    segments->slots = 0;
    segments->count = 0;
}

struct kvl_segment *kvl_segments_find(const struct kvl_segments *segments, uint32_t id) {
    return id < segments->slots ? segments->items[id] : NULL;
}

uint32_t kvl_segments_unused_id(const struct kvl_segments *segments, uint32_t above) {
    uint32_t id = above + 1;
    while (kvl_segments_find(segments, id) != NULL)
        id++;
    return id;
}

uint32_t kvl_segments_count_state(
    const struct kvl_segments *segments, enum kvl_segment_state state) {
    uint32_t count = 0;
    for (uint32_t id = 0; id < segments->slots; id++)
        count += segments->items[id] != NULL && segments->items[id]->state == state;
    return count;
}

struct kvl_segment *kvl_segments_next_free(const struct kvl_segments *segments, uint32_t above) {
    for (uint32_t id = above + 1; id < segments->slots; id++) {
        if (segments->items[id] != NULL && segments->items[id]->state == KVL_SEGMENT_FREE)
            return segments->items[id];
    }
    return NULL;
}

static bool reserve_slot(struct kvl_segments *segments, uint32_t id) {
    if (id < segments->slots)
        return true;
    uint32_t slots = id + 64;
    struct kvl_segment **items = realloc(segments->items, slots * sizeof(*items));
    if (items == NULL)
        return false;
    memset(items + segments->slots, 0, (slots - segments->slots) * sizeof(*items));
    segments->items = items;
    segments->slots = slots;
    return true;
}

kvl_err kvl_segments_attach(struct kvl_segments *segments, const struct kvl_index_segment *known) {
    char name[KVL_SEGMENT_NAME_BYTES];
    struct stat file;
    if (known->id == 0 || known->id > 1u << 20 || kvl_segments_find(segments, known->id) != NULL)
        return KVL_ERR_NOTFOUND;
    if (!reserve_slot(segments, known->id))
        return KVL_ERR_NOMEM;
    kvl_segment_file_name(known->id, name);
    int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW | (segments->direct ? O_DIRECT : 0);
    int fd = openat(segments->directory_fd, name, flags);
    if (fd < 0)
        return errno == ENOENT ? KVL_ERR_NOTFOUND : kvl_err_from_errno(errno);
    struct kvl_segment *segment = calloc(1, sizeof(*segment));
    if (segment == NULL || fstat(fd, &file) != 0 || (uint64_t)file.st_size != known->bytes) {
        kvl_err err = segment == NULL ? KVL_ERR_NOMEM : KVL_ERR_NOTFOUND;
        free(segment);
        close(fd);
        return err;
    }
    segment->id = known->id;
    segment->file.fd = fd;
    segment->bytes = known->bytes;
    segment->generation = known->generation;
    segment->state = KVL_SEGMENT_FREE;
    segments->items[known->id] = segment;
    segments->count++;
    segments->total_bytes += known->bytes;
    return KVL_OK;
}

void kvl_segments_detach(struct kvl_segments *segments, struct kvl_segment *segment) {
    segments->items[segment->id] = NULL;
    segments->count--;
    segments->total_bytes -= segment->bytes;
    destroy_segment(segment);
}

static bool reserve_entry(struct kvl_segment *segment) {
    if (segment->entry_count < segment->entry_capacity)
        return true;
    uint64_t capacity = segment->entry_capacity == 0 ? 64 : segment->entry_capacity * 2;
    struct kvl_segment_entry *entries = realloc(segment->entries, capacity * sizeof(*entries));
    if (entries == NULL)
        return false;
    segment->entries = entries;
    segment->entry_capacity = capacity;
    return true;
}

static struct kvl_segment_entry entry_of(const struct kvl_index_block *block) {
    return (struct kvl_segment_entry){
        .key_head = kvl_index_key_head(&block->record.key),
        .page = kvl_location_page(block->location),
        .pages = (uint32_t)(block->stored_bytes / KVL_PAGE_BYTES) & 0xffffffu,
        .live = true,
        .raw = block->raw,
        .last_use_s = (uint32_t)(block->last_use_wall_ns / 1000000000u),
    };
}

bool kvl_segment_add(struct kvl_segment *segment, const struct kvl_index_block *block) {
    if (!reserve_entry(segment))
        return false;
    uint64_t count = segment->entry_count++;
    struct kvl_segment_entry *entry = &segment->entries[count];
    *entry = entry_of(block);
    if (segment->sorted_count == count && (count == 0 || entry[-1].page < entry->page))
        segment->sorted_count++;
    segment->live_bytes += block->stored_bytes;
    return true;
}

/* Where the page is among the sorted entries, or would be. */
static uint64_t place_of(const struct kvl_segment *segment, uint32_t page) {
    uint64_t low = 0, high = segment->sorted_count;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (segment->entries[middle].page < page)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* NULL: it was not sought. */
static struct kvl_segment_entry *sought_at(const struct kvl_segment *segment, uint32_t page) {
    if (segment->sought_count == 0)
        return NULL;
    uint64_t place = place_of(segment, page);
    struct kvl_segment_entry *entry = &segment->entries[place];
    return place < segment->sorted_count && entry->page == page && entry->sought ? entry : NULL;
}

kvl_err kvl_segment_add_sought(struct kvl_segment *segment, const struct kvl_index_block *block) {
    uint32_t page = kvl_location_page(block->location);
    if (sought_at(segment, page) != NULL)
        return KVL_ERR_EXISTS;
    if (!reserve_entry(segment))
        return KVL_ERR_NOMEM;
    uint64_t place = place_of(segment, page), sorted = segment->sorted_count++;
    struct kvl_segment_entry *entries = segment->entries;
    entries[segment->entry_count++] = entries[sorted]; /* the first without order goes last */
    memmove(&entries[place + 1], &entries[place], (sorted - place) * sizeof(*entries));
    entries[place] = entry_of(block);
    entries[place].sought = true;
    segment->sought_count++;
    segment->live_bytes += block->stored_bytes;
    return KVL_OK;
}

bool kvl_segment_was_sought(const struct kvl_segment *segment, uint32_t page) {
    return sought_at(segment, page) != NULL;
}

void kvl_segment_forget_sought(struct kvl_segment *segment, uint32_t page) {
    struct kvl_segment_entry *entry = sought_at(segment, page);
    if (entry == NULL)
        return;
    kvl_segment_kill(segment, entry);
    uint64_t behind = segment->entry_count - (uint64_t)(entry - segment->entries) - 1;
    memmove(entry, entry + 1, behind * sizeof(*entry));
    segment->entry_count--;
    segment->sorted_count--;
    segment->sought_count--;
}

static int by_page(const void *left, const void *right) {
    const struct kvl_segment_entry *a = left, *b = right;
    return (a->page > b->page) - (a->page < b->page);
}

void kvl_segment_sort(struct kvl_segment *segment) {
    if (segment->entry_count > 1)
        qsort(segment->entries, segment->entry_count, sizeof(struct kvl_segment_entry), by_page);
    segment->sorted_count = segment->entry_count;
}

void kvl_segment_trim(struct kvl_segment *segment) {
    uint64_t bytes = segment->entry_count * sizeof(struct kvl_segment_entry);
    struct kvl_segment_entry *entries = bytes > 0 ? realloc(segment->entries, bytes) : NULL;
    if (entries == NULL)
        return;
    segment->entries = entries;
    segment->entry_capacity = segment->entry_count;
}

struct kvl_segment_entry *kvl_segment_at(const struct kvl_segment *segment, uint32_t page) {
    uint64_t place = place_of(segment, page);
    if (place < segment->sorted_count && segment->entries[place].page == page)
        return &segment->entries[place];
    for (uint64_t i = segment->sorted_count; i < segment->entry_count; i++) {
        if (segment->entries[i].page == page)
            return &segment->entries[i];
    }
    return NULL;
}

void kvl_segment_kill(struct kvl_segment *segment, struct kvl_segment_entry *entry) {
    if (!entry->live)
        return;
    entry->live = false;
    segment->live_bytes -= (uint64_t)entry->pages * KVL_PAGE_BYTES;
}

void kvl_segment_reset(struct kvl_segment *segment, uint64_t generation) {
    segment->state = KVL_SEGMENT_FREE;
    segment->generation = generation;
    segment->append_bytes = 0;
    segment->live_bytes = 0;
    segment->entry_count = segment->sorted_count = segment->sought_count = 0;
    free(segment->moved_to);
    segment->moved_to = NULL;
}

/* An errno; 0: fd is the file's. */
static int create_reserved(int directory_fd, const struct kvl_index_segment *segment, int *fd) {
    char name[KVL_SEGMENT_NAME_BYTES];
    kvl_segment_file_name(segment->id, name);
    *fd = openat(directory_fd, name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (*fd < 0)
        return errno;
    int error = posix_fallocate(*fd, 0, (off_t)segment->bytes);
    if (error != 0) {
        close(*fd);
        unlinkat(directory_fd, name, 0);
    }
    return error;
}

static void unlink_all(int directory_fd, const struct kvl_index_segment *segments, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        char name[KVL_SEGMENT_NAME_BYTES];
        kvl_segment_file_name(segments[i].id, name);
        unlinkat(directory_fd, name, 0);
    }
}

/* All are made before the first is synced: one commit of the file system's journal has them all. */
kvl_err kvl_segment_files_create(
    int directory_fd, const struct kvl_index_segment *segments, uint32_t count, uint32_t *made) {
    int fds[KVL_SEGMENTS_AHEAD], error = 0, sync_error = 0;
    for (*made = 0; *made < count && *made < KVL_SEGMENTS_AHEAD; ++*made) {
        error = create_reserved(directory_fd, &segments[*made], &fds[*made]);
        if (error != 0)
            break;
    }
    for (uint32_t i = 0; i < *made; i++) {
        if (fsync(fds[i]) != 0)
            sync_error = errno;
        close(fds[i]);
    }
    if (*made > 0 && sync_error == 0 && fsync(directory_fd) != 0)
        sync_error = errno;
    if (sync_error == 0)
        return *made > 0 ? KVL_OK : kvl_err_from_errno(error);
    unlink_all(directory_fd, segments, *made);
    *made = 0;
    return kvl_err_from_errno(sync_error);
}

kvl_err kvl_segment_file_remove(int directory_fd, uint32_t id) {
    char name[KVL_SEGMENT_NAME_BYTES];
    kvl_segment_file_name(id, name);
    if (unlinkat(directory_fd, name, 0) != 0 && errno != ENOENT)
        return kvl_err_from_errno(errno);
    return fsync(directory_fd) == 0 ? KVL_OK : kvl_err_from_errno(errno);
}

void kvl_segments_remove_strangers(const struct kvl_segments *segments) {
    int fd = openat(segments->directory_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    if (directory == NULL) {
        if (fd >= 0)
            close(fd);
        return;
    }
    struct dirent *found;
    while ((found = readdir(directory)) != NULL) {
        char *end = NULL;
        unsigned long id = strtoul(found->d_name, &end, 10);
        if (end == found->d_name || strcmp(end, ".seg") != 0)
            continue;
        if (id > UINT32_MAX || kvl_segments_find(segments, (uint32_t)id) == NULL)
            unlinkat(segments->directory_fd, found->d_name, 0);
    }
    closedir(directory);
}
