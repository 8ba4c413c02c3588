/* disk_offline.c - rebuilding a folder's index without a daemon. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "disk.h"

struct offline {
    struct kvl_disk_rebuilt *out;
    bool loaded;
    kvl_err status;
};

static void on_found(void *arg, const struct kvl_block_record *record, uint64_t location,
    uint64_t stored_bytes, uint64_t last_use_wall_ns) {
    struct offline *offline = arg;
    (void)record, (void)location, (void)stored_bytes, (void)last_use_wall_ns;
    offline->out->blocks++;
}

static void on_record(void *arg, enum kvl_catalog_kind kind, const void *key, uint32_t key_bytes,
    const void *value, uint32_t value_bytes) {
    struct offline *offline = arg;
    (void)kind, (void)key, (void)key_bytes, (void)value, (void)value_bytes;
    offline->out->catalog_records++;
}

static void on_loaded(void *arg, kvl_err status) {
    struct offline *offline = arg;
    offline->loaded = true;
    offline->status = status;
}

/* The capacity that the folder had last. */
static kvl_err find_capacity(struct kvl_disk_options *options, struct kvl_errmsg *msg) {
    struct kvl_journal_found found;
    char *path = NULL;
    if (asprintf(&path, "%s/segments", options->path) < 0)
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int error = errno;
    free(path);
    if (fd < 0)
        return kvl_fail(msg, kvl_err_from_errno(error), "%s is no disk folder of kvloft: %s",
            options->path, strerror(error));
    kvl_err err = kvl_journal_look(fd, &found);
    close(fd);
    if (err != KVL_OK && err != KVL_ERR_VERSION)
        return kvl_fail(
            msg, err, "%s: the journal cannot be read: %s", options->path, kvl_err_text(err));
    if (options->capacity_bytes == 0)
        options->capacity_bytes = found.capacity_bytes;
    if (options->capacity_bytes == 0)
        return kvl_fail(msg, KVL_ERR_CORRUPT,
            "%s: the journal is missing or damaged: nothing to rebuild from; start the daemon on "
            "it, which goes on with what is sound",
            options->path);
    return KVL_OK;
}

kvl_err kvl_disk_rebuild(
    const struct kvl_disk_options *options, struct kvl_disk_rebuilt *out, struct kvl_errmsg *msg) {
    struct kvl_disk_options wanted = *options;
    struct offline offline = {.out = out};
    struct kvl_tier *tier = NULL;
    struct kvl_catalog *catalog = NULL;
    *out = (struct kvl_disk_rebuilt){0};
    wanted.rebuild = true;
    kvl_err err = find_capacity(&wanted, msg);
    if (err == KVL_OK)
        err = kvl_disk_tier_create(&wanted, &tier, &catalog, msg);
    if (err != KVL_OK)
        return err;
    tier->events =
        (struct kvl_tier_events){.arg = &offline, .found = on_found, .loaded = on_loaded};
    catalog->found = on_record;
    catalog->found_arg = &offline;
    struct pollfd ready = {.fd = tier->ops->fd(tier), .events = POLLIN};
    while (!offline.loaded) {
        poll(&ready, 1, -1);
        tier->ops->poll(tier);
    }
    const struct kvl_disk *disk = kvl_container_of(tier, struct kvl_disk, tier);
    out->unreadable = disk->rebuilt.unreadable;
    out->left_out = disk->rebuilt.left_out;
    out->whole = disk->rebuilt.journal_whole;
    err = tier->ops->drain(tier);
    tier->ops->deinit(tier);
    err = offline.status != KVL_OK ? offline.status : err;
    return err == KVL_OK ? KVL_OK
                         : kvl_fail(msg, err, "%s: the rebuilt index cannot be read: %s",
                               options->path, kvl_err_text(err));
}
