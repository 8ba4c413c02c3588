/* power_loss_disk.c - what is durable, what waits, and the journal; images: power_loss_image.c. */
#include "power_loss_disk_private.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SAME_RANGE_MAX 3u /* unsynced writes of one range that are remembered */

uint64_t power_random(uint64_t *state) {
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static void *checked(void *memory) {
    REQUIRE(memory != NULL);
    return memory;
}

/* ---- nodes -------------------------------------------------------------------------------- */

static struct node *add_node(struct power_disk *disk, uint32_t number, bool folder) {
    REQUIRE(number < POWER_NODES_MAX && disk->nodes[number] == NULL);
    struct node *node = checked(calloc(1, sizeof(*node)));
    node->folder = folder;
    disk->nodes[number] = node;
    return node;
}

static void free_node(struct node *node) {
    if (node == NULL)
        return;
    free(node->bytes);
    free(node->dirty);
    free(node->pending);
    free(node);
}

void power_node_mark(struct node *node, uint64_t offset, uint64_t bytes) {
    uint64_t pages = node->capacity / POWER_PAGE, first = offset / POWER_PAGE;
    uint64_t end = bytes > UINT64_MAX - offset - POWER_PAGE
                       ? pages
                       : (offset + bytes + POWER_PAGE - 1) / POWER_PAGE;
    if (end > pages)
        end = pages;
    if (end > first)
        memset(node->dirty + first, 1, end - first);
}

/* Room for so many bytes of content. */
static void reach(struct node *node, uint64_t bytes) {
    if (bytes <= node->capacity)
        return;
    uint64_t capacity = (bytes + bytes / 4 + POWER_PAGE - 1) / POWER_PAGE * POWER_PAGE;
    uint8_t *larger = checked(calloc(1, capacity)); /* untouched pages cost nothing */
    if (node->size > 0)
        memcpy(larger, node->bytes, node->size);
    free(node->bytes);
    node->bytes = larger;
    node->dirty = checked(realloc(node->dirty, capacity / POWER_PAGE));
    memset(node->dirty + node->capacity / POWER_PAGE, 1, (capacity - node->capacity) / POWER_PAGE);
    node->capacity = capacity;
}

static void set_size(struct node *node, uint64_t size) {
    reach(node, size);
    if (size < node->size)
        memset(node->bytes + size, 0, node->size - size);
    power_node_mark(node, size < node->size ? size : node->size, UINT64_MAX);
    node->size = size;
}

static void absorb(struct node *node, const struct power_log *log, uint32_t index) {
    const struct power_entry *entry = &log->entries[index];
    uint64_t end = entry->offset + entry->bytes;
    switch (entry->kind) {
    case POWER_WRITE:
        reach(node, end);
        memcpy(node->bytes + entry->offset, log->bytes + entry->data, entry->bytes);
        break;
    case POWER_ZERO:
        reach(node, end);
        memset(node->bytes + entry->offset, 0, entry->bytes);
        break;
    case POWER_SIZE:
        set_size(node, entry->bytes);
        return;
    default:
        break;
    }
    power_node_mark(node, entry->offset, entry->bytes);
    if ((entry->kind == POWER_WRITE || entry->flags != 0) && end > node->size)
        set_size(node, end);
}

/* ---- what waits --------------------------------------------------------------------------- */

static void range_of(const struct power_entry *entry, uint64_t *from, uint64_t *end) {
    bool size = entry->kind == POWER_SIZE;
    *from = size ? entry->bytes : entry->offset;
    *end = size ? UINT64_MAX : entry->kind == POWER_RESERVE ? *from : *from + entry->bytes;
}

static bool overlap(const struct power_log *log, uint32_t left, uint32_t right) {
    uint64_t left_from, left_end, right_from, right_end;
    range_of(&log->entries[left], &left_from, &left_end);
    range_of(&log->entries[right], &right_from, &right_end);
    return left_from < right_end && right_from < left_end;
}

static void remove_pending(struct node *node, uint32_t at) {
    memmove(node->pending + at, node->pending + at + 1,
        (node->pending_count - at - 1) * sizeof(*node->pending));
    node->pending_count--;
}

/* What is never synced and written again and again: the last few values are enough. */
static void forget_oldest_of_range(struct node *node, const struct power_log *log) {
    uint32_t last = node->pending_count - 1, same = 0, oldest = last;
    const struct power_entry *now = &log->entries[node->pending[last].entry];
    for (uint32_t i = last; i-- > 0;) {
        const struct power_entry *entry = &log->entries[node->pending[i].entry];
        if (entry->kind != POWER_WRITE || entry->offset != now->offset ||
            entry->bytes != now->bytes || node->pending[i].done_at == 0)
            continue;
        same++;
        oldest = i;
    }
    if (same >= SAME_RANGE_MAX)
        remove_pending(node, oldest);
}

static void add_pending(
    struct power_disk *disk, const struct power_log *log, uint32_t index, uint32_t journal_number) {
    struct node *node = disk->nodes[log->entries[index].node];
    if (node == NULL)
        return;
    if (node->pending_count == node->pending_capacity) {
        node->pending_capacity = node->pending_capacity * 2 + 16;
        node->pending =
            checked(realloc(node->pending, node->pending_capacity * sizeof(*node->pending)));
    }
    node->pending[node->pending_count++] =
        (struct pending){.entry = index, .journal = journal_number};
    if (journal_number == 0)
        forget_oldest_of_range(node, log);
}

/* Durable entries become content, unless an earlier one of the same place may still come or not. */
static void settle_node(struct power_disk *disk, struct node *node, const struct power_log *log) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < node->pending_count; i++) {
        struct pending now = node->pending[i];
        bool must = now.must || (now.journal != 0 && now.journal <= disk->journal_must);
        for (uint32_t j = 0; must && j < kept; j++)
            must = !overlap(log, node->pending[j].entry, now.entry);
        if (must)
            absorb(node, log, now.entry);
        else
            node->pending[kept++] = now;
    }
    node->pending_count = kept;
}

/* ---- the journal -------------------------------------------------------------------------- */

static void forget_name(struct power_name *names, uint32_t *count, const char *path) {
    for (uint32_t i = 0; i < *count; i++) {
        if (strcmp(names[i].path, path) == 0) {
            memmove(names + i, names + i + 1, (--*count - i) * sizeof(*names));
            return;
        }
    }
}

void power_names_apply(struct power_name *names, uint32_t *count, const struct power_log *log,
    const struct power_entry *entry) {
    const char *path = (const char *)log->bytes + entry->data;
    const char *to = entry->kind == POWER_RENAME ? path + strlen(path) + 1 : path;
    forget_name(names, count, path);
    forget_name(names, count, to);
    if (entry->kind == POWER_REMOVE)
        return;
    REQUIRE(*count < POWER_NAMES_MAX);
    snprintf(names[*count].path, sizeof(names[0].path), "%s", to);
    names[(*count)++].node = entry->node;
}

bool power_entry_is_name(const struct power_entry *entry) {
    return entry->kind == POWER_CREATE || entry->kind == POWER_RENAME ||
           entry->kind == POWER_REMOVE;
}

static void add_journal(struct power_disk *disk, const struct power_log *log, uint32_t index) {
    const struct power_entry *entry = &log->entries[index];
    if (disk->journal_count == disk->journal_capacity) {
        disk->journal_capacity = disk->journal_capacity * 2 + 64;
        disk->journal =
            checked(realloc(disk->journal, disk->journal_capacity * sizeof(*disk->journal)));
    }
    /* A rename or a removal is the folder's business only. */
    bool own = entry->kind != POWER_RENAME && entry->kind != POWER_REMOVE;
    disk->journal[disk->journal_count++] = (struct journal_op){index,
        own ? entry->node : UINT32_MAX, power_entry_is_name(entry) ? entry->folder : UINT32_MAX};
    if (entry->kind == POWER_CREATE)
        add_node(disk, entry->node, entry->flags != 0);
    if (!power_entry_is_name(entry))
        add_pending(disk, log, index, disk->journal_count);
}

/* A node without a name that any image could have is gone. */
static void drop_nameless(struct power_disk *disk, uint32_t number) {
    for (uint32_t i = 0; i < disk->name_count; i++) {
        if (disk->names[i].node == number)
            return;
    }
    free_node(disk->nodes[number]);
    disk->nodes[number] = NULL;
}

static void settle_journal(
    struct power_disk *disk, const struct power_log *log, uint32_t node, uint32_t before) {
    uint32_t must = disk->journal_must;
    for (uint32_t i = disk->journal_count; i > must; i--) {
        const struct journal_op *op = &disk->journal[i - 1];
        if (op->entry < before && (op->node == node || op->folder == node))
            must = i;
    }
    disk->journal_must = must;
    for (; disk->journal_done < must; disk->journal_done++) {
        const struct power_entry *entry = &log->entries[disk->journal[disk->journal_done].entry];
        if (!power_entry_is_name(entry)) {
            if (disk->nodes[entry->node] != NULL)
                settle_node(disk, disk->nodes[entry->node], log);
            continue;
        }
        uint32_t replaced[POWER_NAMES_MAX], replaced_count = disk->name_count;
        for (uint32_t i = 0; i < disk->name_count; i++)
            replaced[i] = disk->names[i].node;
        power_names_apply(disk->names, &disk->name_count, log, entry);
        for (uint32_t i = 0; entry->kind != POWER_CREATE && i < replaced_count; i++)
            drop_nameless(disk, replaced[i]);
    }
}

/* ---- going forward ------------------------------------------------------------------------ */

static void take_done(struct power_disk *disk, const struct power_log *log, uint32_t index) {
    uint32_t of = log->entries[index].of;
    const struct power_entry *begun = &log->entries[of];
    struct node *node = disk->nodes[begun->node];
    bool sync = begun->kind == POWER_SYNC;
    if (node == NULL && begun->node != POWER_ROOT)
        return;
    for (uint32_t i = 0; node != NULL && i < node->pending_count; i++) {
        struct pending *pending = &node->pending[i];
        if (pending->entry == of) {
            pending->done_at = index;
            pending->must = begun->flags != 0;
        } else if (sync && pending->done_at != 0 && pending->done_at < of) {
            pending->must = true;
        }
    }
    if (!sync && begun->flags == 0)
        return;
    settle_journal(disk, log, begun->node, of);
    if (disk->nodes[begun->node] != NULL)
        settle_node(disk, disk->nodes[begun->node], log);
}

void power_disk_advance(struct power_disk *disk, const struct power_log *log, uint32_t until) {
    for (; disk->next < until; disk->next++) {
        switch (log->entries[disk->next].kind) {
        case POWER_WRITE:
            add_pending(disk, log, disk->next, 0);
            break;
        case POWER_DONE:
            take_done(disk, log, disk->next);
            break;
        case POWER_NOTHING:
        case POWER_SYNC:
        case POWER_EVENT:
            break;
        default:
            add_journal(disk, log, disk->next);
            break;
        }
    }
}

void power_disk_touched(struct power_disk *disk, const struct power_log *log) {
    for (uint32_t i = 0; i < log->count; i++) {
        const struct power_entry *entry = &log->entries[i];
        bool content = entry->kind == POWER_WRITE || entry->kind == POWER_ZERO;
        if (!content && entry->kind != POWER_SIZE)
            continue;
        struct node *node = disk->nodes[entry->node];
        if (node != NULL)
            power_node_mark(node, content ? entry->offset : 0, content ? entry->bytes : UINT64_MAX);
    }
}

void power_disk_lost_sight(struct power_disk *disk) {
    for (uint32_t i = 0; i < POWER_NODES_MAX; i++) {
        if (disk->nodes[i] != NULL)
            disk->nodes[i]->ino = 0;
    }
}

uint32_t power_disk_names(const struct power_disk *disk, const struct power_name **names) {
    *names = disk->image_names;
    return disk->image_name_count;
}

/* ---- made and ended ----------------------------------------------------------------------- */

struct power_disk *power_disk_create(const char *root) {
    struct power_disk *disk = checked(calloc(1, sizeof(*disk)));
    snprintf(disk->root, sizeof(disk->root), "%s", root);
    return disk;
}

void power_disk_destroy(struct power_disk *disk) {
    if (disk == NULL)
        return;
    for (uint32_t i = 0; i < POWER_NODES_MAX; i++)
        free_node(disk->nodes[i]);
    free(disk->journal);
    free(disk);
}

static void read_file(struct node *node, const char *path) {
    struct stat file;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    REQUIRE(fd >= 0 && fstat(fd, &file) == 0);
    node->ino = file.st_ino;
    set_size(node, (uint64_t)file.st_size);
    REQUIRE(pread(fd, node->bytes, node->size, 0) == (ssize_t)node->size);
    if (node->capacity > 0)
        memset(node->dirty, 0, node->capacity / POWER_PAGE);
    close(fd);
}

static void snapshot_folder(struct power_disk *disk, const char *folder) {
    char path[700];
    snprintf(path, sizeof(path), "%s/%s", disk->root, folder);
    DIR *directory = opendir(path);
    struct dirent *found;
    while (directory != NULL && (found = readdir(directory)) != NULL) {
        if (strcmp(found->d_name, ".") == 0 || strcmp(found->d_name, "..") == 0)
            continue;
        REQUIRE(disk->name_count < POWER_NAMES_MAX);
        struct power_name *name = &disk->names[disk->name_count++];
        int bytes = snprintf(name->path, sizeof(name->path), "%s%s%s", folder,
            folder[0] != '\0' ? "/" : "", found->d_name);
        REQUIRE(bytes < (int)sizeof(name->path));
        name->node = disk->name_count;
        struct node *node = add_node(disk, name->node, found->d_type == DT_DIR);
        snprintf(path, sizeof(path), "%s/%s", disk->root, name->path);
        if (node->folder)
            snapshot_folder(disk, name->path);
        else
            read_file(node, path);
    }
    if (directory != NULL)
        closedir(directory);
}

struct power_disk *power_disk_snapshot(const char *root) {
    struct power_disk *disk = power_disk_create(root);
    snapshot_folder(disk, "");
    memcpy(disk->image_names, disk->names, sizeof(disk->names));
    disk->image_name_count = disk->name_count;
    return disk;
}
