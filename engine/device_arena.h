/* device_arena.h - a daemon's device arena, at the addresses of the backend that computes in it.
 *
 * Where the backend maps arenas by itself (GPU memory), an address is base + offset; otherwise the
 * client library has mapped the arena, and is asked for it. An arena outlives its daemon: each
 * block in it holds it, and the last one that lets go unmaps it. That matters on a GPU, where a new
 * daemon may find no memory before the old one's arena has lost its last mapping and descriptor
 * (the client library closes its own when it loses the daemon).
 *
 * Owns:    the backend's mapping; backend and client are borrowed. Threads: the engine's one. */
#ifndef KVL_DEVICE_ARENA_H
#define KVL_DEVICE_ARENA_H

#include <stdbool.h>
#include <stdint.h>

#include "backend.h"
#include "kvloft.h"

struct kvl_device_arena {
    struct kvl_backend *backend;
    struct kvl_client *client;
    uint8_t *base; /* NULL: the client library's mapping serves */
    uint64_t bytes;
    uint64_t users;
    uint64_t *count; /* arenas there are; counted down at the end of this one */
};

/* The device arena of the daemon that the client is connected to; ++*count. The caller is its first
 * user. Errors: UNSUPPORTED (memory that this backend cannot compute in; msg says what to do),
 * those of kvl_client_arena and map_arena, NOMEM. */
KVL_MUST_CHECK kvl_err kvl_device_arena_open(struct kvl_backend *backend, struct kvl_client *client,
    uint64_t *count, struct kvl_device_arena **out, struct kvl_errmsg *msg);
struct kvl_device_arena *kvl_device_arena_hold(struct kvl_device_arena *arena);
/* The last one waits for copies under way and unmaps. NULL is fine. */
void kvl_device_arena_let_go(struct kvl_device_arena *arena);

/* A slot's address; NULL when outside, or arena is NULL. While the client is connected to the
 * arena's daemon only. Where there are two views of the memory, writing through the one for reading
 * is a fault. */
uint8_t *kvl_device_arena_block(
    const struct kvl_device_arena *arena, uint64_t offset_bytes, bool writable);

#endif
