/* power_loss_image.c - draws what a power loss may leave, and makes the files so. */
#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "power_loss_disk_private.h"

#define SECTOR 512u

enum style { NONE, ALL, HALF, FEW, MOST, LAST, ALL_BUT_LAST, STYLES };
enum fate { DROPPED, KEPT, TORN };

/* How one image is drawn. */
struct draw {
    uint64_t random;
    enum style style;
    bool tear;
    uint32_t journal; /* so many are there */
};

/* A file below root while it is made. */
struct target {
    struct node *node;
    int fd;
    uint64_t size;
};

static void put(struct target *target, const uint8_t *data, uint64_t from, uint64_t end) {
    REQUIRE(pwrite(target->fd, data, end - from, (off_t)from) == (ssize_t)(end - from));
    power_node_mark(target->node, from, end - from);
    if (end > target->size)
        target->size = end;
}

/* Runs of sectors, kept and lost in turn. */
static void put_torn(struct target *target, const struct power_log *log,
    const struct power_entry *entry, uint64_t *random) {
    uint64_t end = entry->offset + entry->bytes, at = entry->offset;
    uint64_t inside = end < target->size ? end : target->size;
    uint64_t run_max = 1 + power_random(random) % (entry->bytes / SECTOR / 2 + 1);
    const uint8_t *data = log->bytes + entry->data;
    bool keep = power_random(random) % 2 == 0;
    for (; at < inside; keep = !keep) {
        uint64_t run = (1 + power_random(random) % run_max) * SECTOR;
        uint64_t stop = at / SECTOR * SECTOR + run;
        if (stop > inside)
            stop = inside;
        if (keep)
            put(target, data + (at - entry->offset), at, stop);
        at = stop;
    }
    uint64_t grown = at < end
                         ? at / POWER_PAGE * POWER_PAGE +
                               power_random(random) % ((end - at) / POWER_PAGE + 1) * POWER_PAGE
                         : 0;
    if (grown > at)
        put(target, data + (at - entry->offset), at, grown < end ? grown : end);
}

static void resize(struct target *target, uint64_t size) {
    REQUIRE(ftruncate(target->fd, (off_t)size) == 0);
    uint64_t from = size < target->size ? size : target->size;
    power_node_mark(target->node, from, UINT64_MAX);
    target->size = size;
}

static void put_metadata(struct target *target, const struct power_entry *entry) {
    uint64_t end = entry->offset + entry->bytes;
    if (entry->kind == POWER_SIZE)
        resize(target, entry->bytes);
    if (entry->kind == POWER_ZERO) {
        REQUIRE(fallocate(target->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                    (off_t)entry->offset, (off_t)entry->bytes) == 0);
        power_node_mark(target->node, entry->offset, entry->bytes);
    }
    if (entry->kind != POWER_SIZE && entry->flags != 0 && end > target->size)
        resize(target, end);
}

static enum fate fate_of(struct draw *draw, bool last) {
    bool kept = false;
    switch (draw->style) {
    case NONE:
    case ALL:
        return draw->style == ALL ? KEPT : DROPPED;
    case LAST:
    case ALL_BUT_LAST:
        kept = last == (draw->style == LAST);
        break;
    case HALF:
        kept = power_random(&draw->random) % 2 == 0;
        break;
    default:
        kept = (power_random(&draw->random) % 8 != 0) == (draw->style == MOST);
        break;
    }
    if (draw->tear && power_random(&draw->random) % 4 == 0)
        return TORN;
    return kept ? KEPT : DROPPED;
}

static void put_pending(struct target *target, const struct power_log *log, struct draw *draw) {
    const struct node *node = target->node;
    for (uint32_t i = 0; i < node->pending_count; i++) {
        const struct pending *pending = &node->pending[i];
        const struct power_entry *entry = &log->entries[pending->entry];
        if (pending->journal != 0) {
            if (pending->journal <= draw->journal)
                put_metadata(target, entry);
            continue;
        }
        enum fate fate = pending->must ? KEPT : fate_of(draw, i + 1 == node->pending_count);
        if (fate == KEPT && entry->bytes > 0)
            put(target, log->bytes + entry->data, entry->offset, entry->offset + entry->bytes);
        else if (fate == TORN)
            put_torn(target, log, entry, &draw->random);
    }
}

static bool is_zero(const uint8_t *bytes, uint64_t count) {
    return count == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, count - 1) == 0);
}

/* Pages that may differ, as they are durable. */
static void put_durable(struct target *target, bool fresh) {
    struct node *node = target->node;
    uint64_t pages = (node->size + POWER_PAGE - 1) / POWER_PAGE;
    REQUIRE(ftruncate(target->fd, (off_t)node->size) == 0);
    for (uint64_t page = 0; page < pages; page++) {
        uint64_t at = page * POWER_PAGE,
                 bytes = node->size - at < POWER_PAGE ? node->size - at : POWER_PAGE;
        if (node->dirty[page] && !(fresh && is_zero(node->bytes + at, bytes)))
            REQUIRE(pwrite(target->fd, node->bytes + at, bytes, (off_t)at) == (ssize_t)bytes);
    }
    if (node->capacity > 0)
        memset(node->dirty, 0, node->capacity / POWER_PAGE);
    target->size = node->size;
}

static void make_file(struct power_disk *disk, const struct power_log *log,
    const struct power_name *name, struct draw *draw) {
    char path[400];
    struct stat file;
    struct target target = {.node = disk->nodes[name->node]};
    snprintf(path, sizeof(path), "%s/%s", disk->root, name->path);
    bool fresh = stat(path, &file) != 0 || file.st_ino != target.node->ino;
    if (fresh)
        unlink(path);
    target.fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    REQUIRE(target.fd >= 0 && fstat(target.fd, &file) == 0);
    target.node->ino = file.st_ino;
    if (fresh)
        power_node_mark(target.node, 0, UINT64_MAX);
    put_durable(&target, fresh);
    put_pending(&target, log, draw);
    close(target.fd);
}

static const struct power_name *image_name(const struct power_disk *disk, const char *path) {
    for (uint32_t i = 0; i < disk->image_name_count; i++) {
        if (strcmp(disk->image_names[i].path, path) == 0)
            return &disk->image_names[i];
    }
    return NULL;
}

/* Removes what the image does not name; folder is relative, "" for root. */
static void remove_others(const struct power_disk *disk, const char *folder) {
    char path[700];
    snprintf(path, sizeof(path), "%s/%s", disk->root, folder);
    DIR *directory = opendir(path);
    struct dirent *found;
    while (directory != NULL && (found = readdir(directory)) != NULL) {
        char name[330];
        if (strcmp(found->d_name, ".") == 0 || strcmp(found->d_name, "..") == 0)
            continue;
        snprintf(name, sizeof(name), "%s%s%s", folder, folder[0] != '\0' ? "/" : "", found->d_name);
        if (found->d_type == DT_DIR)
            remove_others(disk, name);
        if (image_name(disk, name) == NULL) {
            snprintf(path, sizeof(path), "%s/%s", disk->root, name);
            REQUIRE((found->d_type == DT_DIR ? rmdir(path) : unlink(path)) == 0);
        }
    }
    if (directory != NULL)
        closedir(directory);
}

static void make_image(struct power_disk *disk, const struct power_log *log, struct draw *draw) {
    memcpy(disk->image_names, disk->names, sizeof(disk->names));
    disk->image_name_count = disk->name_count;
    for (uint32_t i = disk->journal_done; i < draw->journal; i++) {
        const struct power_entry *entry = &log->entries[disk->journal[i].entry];
        if (power_entry_is_name(entry))
            power_names_apply(disk->image_names, &disk->image_name_count, log, entry);
    }
    remove_others(disk, "");
    for (uint32_t i = 0; i < disk->image_name_count; i++) {
        char path[400];
        const struct power_name *name = &disk->image_names[i];
        snprintf(path, sizeof(path), "%s/%s", disk->root, name->path);
        if (disk->nodes[name->node]->folder)
            (void)mkdir(path, 0700);
        else
            make_file(disk, log, name, draw);
    }
}

void power_disk_image(struct power_disk *disk, const struct power_log *log, uint64_t seed) {
    struct draw draw = {.random = seed};
    uint32_t open = disk->journal_count - disk->journal_must;
    uint64_t how = power_random(&draw.random) % 4;
    draw.style = (enum style)(power_random(&draw.random) % STYLES);
    draw.tear = power_random(&draw.random) % 2 == 0;
    draw.journal = disk->journal_must +
                   (how == 0      ? 0
                       : how == 1 ? open
                                  : (uint32_t)(power_random(&draw.random) % (open + 1ull)));
    make_image(disk, log, &draw);
}

void power_disk_image_of_all(struct power_disk *disk, const struct power_log *log) {
    struct draw draw = {.style = ALL, .journal = disk->journal_count};
    make_image(disk, log, &draw);
}
