/* device_arena.c - see device_arena.h. */
#include "device_arena.h"

#include <stdio.h>
#include <stdlib.h>

static kvl_err refuse(
    const struct kvl_backend *backend, enum kvl_arena_memory memory, struct kvl_errmsg *msg) {
    if (memory == KVL_ARENA_CUDA)
        return kvl_fail(msg, KVL_ERR_UNSUPPORTED,
            "this daemon keeps its device tier in a GPU's memory, and --device %s computes in the "
            "CPU's: use --device cuda, or a daemon with --device cpu",
            backend->ops->name);
    return kvl_fail(msg, KVL_ERR_UNSUPPORTED,
        "this daemon keeps its device tier in the CPU's memory, and --device %s computes in a "
        "GPU's: use --device cpu, or a daemon with --device cuda",
        backend->ops->name);
}

/* The backend's own words go on with what to do. */
static kvl_err explain(kvl_err err, const struct kvl_arena_info *info, const char *why,
    const struct kvl_backend *backend, struct kvl_errmsg *msg) {
    if (err == KVL_ERR_UNSUPPORTED && info->memory != KVL_ARENA_CUDA)
        return refuse(backend, info->memory, msg);
    if (err == KVL_ERR_UNSUPPORTED)
        return kvl_fail(msg, err,
            "cannot use the memory of the daemon's GPU: %s; give daemon and engine the same "
            "--device cuda:N",
            why[0] != '\0' ? why : "it is another GPU");
    return kvl_fail(msg, err, "cannot map the daemon's device tier: %s",
        why[0] != '\0' ? why : kvl_err_text(err));
}

static kvl_err map(struct kvl_device_arena *arena, struct kvl_errmsg *msg) {
    struct kvl_backend *backend = arena->backend;
    struct kvl_arena_info info = {0};
    struct kvl_errmsg why = {{0}};
    int fd = -1;
    kvl_err err = kvl_client_arena(arena->client, KVL_TIER_DEVICE, &info, &fd);
    if (err != KVL_OK)
        return kvl_fail(msg, err, "the daemon offers no device tier: %s", kvl_err_text(err));
    arena->bytes = info.bytes;
    if (backend->ops->map_arena == NULL)
        return info.memory == KVL_ARENA_CUDA ? refuse(backend, info.memory, msg) : KVL_OK;
    err = backend->ops->map_arena(backend, &info, fd, &arena->base, &why);
    return err == KVL_OK ? KVL_OK : explain(err, &info, why.text, backend, msg);
}

kvl_err kvl_device_arena_open(struct kvl_backend *backend, struct kvl_client *client,
    uint64_t *count, struct kvl_device_arena **out, struct kvl_errmsg *msg) {
    *out = NULL;
    struct kvl_device_arena *arena = calloc(1, sizeof *arena);
    if (arena == NULL)
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
    arena->backend = backend;
    arena->client = client;
    kvl_err err = map(arena, msg);
    if (err != KVL_OK) {
        free(arena);
        return err;
    }
    arena->users = 1;
    arena->count = count;
    ++*count;
    *out = arena;
    return KVL_OK;
}

struct kvl_device_arena *kvl_device_arena_hold(struct kvl_device_arena *arena) {
    ++arena->users;
    return arena;
}

void kvl_device_arena_let_go(struct kvl_device_arena *arena) {
    if (arena == NULL || --arena->users > 0)
        return;
    const struct kvl_backend_ops *ops = arena->backend->ops;
    if (arena->base != NULL) {
        /* An error is a lost device, on which nothing is under way any more. */
        kvl_err err = ops->finish(arena->backend);
        (void)err;
        ops->unmap_arena(arena->backend, arena->base, arena->bytes);
    }
    --*arena->count;
    free(arena);
}

uint8_t *kvl_device_arena_block(
    const struct kvl_device_arena *arena, uint64_t offset_bytes, bool writable) {
    if (arena == NULL)
        return NULL;
    if (arena->base != NULL)
        return offset_bytes < arena->bytes ? arena->base + offset_bytes : NULL;
    if (writable)
        return kvl_client_block_writable(arena->client, KVL_TIER_DEVICE, offset_bytes);
    return (uint8_t *)(uintptr_t)kvl_client_block(arena->client, KVL_TIER_DEVICE, offset_bytes);
}
