/* far_backend.c - see far_backend.h. */
#include "far_backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kvl_types.h"

/* Bit 56 alone is not canonical on x86-64, with four levels of pages or five; bit 55 is the
 * kernel's half on arm64, which ignores the byte above it. */
#define FAR (UINT64_C(3) << 55)

/* A daemon that was told too early to read what a copy writes has done so by then. */
#define LATE_US 3000

struct far_copy {
    uint8_t *to;
    const uint8_t *from; /* NULL: zeros */
    struct kvl_runs runs;
    struct far_copy *next;
};

struct far {
    struct kvl_backend base;
    struct kvl_backend *cpu;
    struct far_copy *first, **last; /* queued */
    bool in_forward;
    uint64_t arenas;
};

static struct far *far_of(struct kvl_backend *backend) {
    return (struct far *)(void *)backend;
}

static void demand(bool holds, const char *what) {
    if (!holds) {
        fprintf(stderr, "far backend: %s\n", what);
        abort();
    }
}

static uint8_t *to_far(void *near) {
    return near != NULL ? (uint8_t *)((uintptr_t)near | FAR) : NULL; /* NOLINT(performance-*) */
}

static uint8_t *to_near(const uint8_t *far) {
    demand(((uintptr_t)far & FAR) == FAR, "an address that is not this backend's");
    return (uint8_t *)((uintptr_t)far & ~FAR); /* NOLINT(performance-*) */
}

/* ---- copies ---- */

static void copy_now(const struct far_copy *copy) {
    for (uint64_t i = 0; i < copy->runs.count; ++i) {
        uint64_t at = i * copy->runs.stride_bytes;
        if (copy->from != NULL)
            memcpy(copy->to + at, copy->from + at, copy->runs.bytes);
        else
            memset(copy->to + at, 0, copy->runs.bytes);
    }
}

static void run_copies(struct far *far) {
    while (far->first != NULL) {
        struct far_copy *copy = far->first;
        far->first = copy->next;
        copy_now(copy);
        free(copy);
    }
    far->last = &far->first;
}

static kvl_err queue(struct far *far, struct far_copy wanted) {
    demand(!far->in_forward, "a copy from inside a forward call");
    struct far_copy *copy = malloc(sizeof *copy);
    if (copy == NULL)
        return KVL_ERR_NOMEM;
    *copy = wanted;
    copy->next = NULL;
    *far->last = copy;
    far->last = &copy->next;
    return KVL_OK;
}

static kvl_err far_copy(
    struct kvl_backend *backend, uint8_t *to, const uint8_t *from, struct kvl_runs runs) {
    struct far_copy copy = {.to = to_near(to), .from = to_near(from), .runs = runs};
    return queue(far_of(backend), copy);
}

static kvl_err far_zero(struct kvl_backend *backend, uint8_t *to, uint64_t bytes) {
    struct far_copy copy = {.to = to_near(to), .runs = {.bytes = bytes, .count = 1}};
    return queue(far_of(backend), copy);
}

static kvl_err far_finish(struct kvl_backend *backend) {
    demand(!far_of(backend)->in_forward, "a wait for copies from inside a forward call");
    run_copies(far_of(backend));
    return KVL_OK;
}

/* ---- memory ---- */

static kvl_err far_map_arena(struct kvl_backend *backend, const struct kvl_arena_info *arena,
    int fd, uint8_t **base, struct kvl_errmsg *msg) {
    if (arena->memory != KVL_ARENA_MEMFD)
        return kvl_fail(msg, KVL_ERR_UNSUPPORTED, "not the CPU's memory");
    void *mapped = mmap(NULL, arena->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED)
        return kvl_fail(msg, KVL_ERR_NOMEM, "cannot map the arena");
    ++far_of(backend)->arenas;
    *base = to_far(mapped);
    return KVL_OK;
}

static void far_unmap_arena(struct kvl_backend *backend, uint8_t *base, uint64_t bytes) {
    struct far *far = far_of(backend);
    demand(far->first == NULL, "an arena is unmapped under copies");
    demand(far->arenas > 0, "an arena is unmapped that is not mapped");
    --far->arenas;
    (void)munmap(to_near(base), bytes);
}

static kvl_err far_take_memory(struct kvl_backend *backend, uint64_t bytes, uint8_t **out) {
    struct kvl_backend *cpu = far_of(backend)->cpu;
    uint8_t *near = NULL;
    kvl_err err = cpu->ops->take_memory(cpu, bytes, &near);
    *out = to_far(near);
    return err;
}

static void far_give_memory_back(struct kvl_backend *backend, uint8_t *memory, uint64_t bytes) {
    struct far *far = far_of(backend);
    demand(far->first == NULL, "memory is given back under copies");
    far->cpu->ops->give_memory_back(far->cpu, to_near(memory), bytes);
}

/* ---- computing ---- */

static uint64_t blocks_of(const struct kvl_batch *batch) {
    uint64_t tokens = (uint64_t)batch->position + batch->count;
    return (tokens + batch->block_tokens - 1) / batch->block_tokens;
}

/* The batches, with block tables that the CPU can follow; to be freed, the tables too. */
static struct kvl_batch *bring_near(const struct kvl_batch *batches, uint32_t count) {
    struct kvl_batch *moved = calloc(count, sizeof *moved);
    for (uint32_t i = 0; moved != NULL && i < count; ++i) {
        uint64_t blocks = blocks_of(&batches[i]);
        const bool has_windows = batches[i].window_blocks != NULL;
        uint8_t **near = malloc(2 * blocks * sizeof *near);
        demand(near != NULL, "out of memory");
        for (uint64_t b = 0; b < blocks; ++b) {
            near[b] = to_near(batches[i].blocks[b]);
            if (has_windows)
                near[blocks + b] = to_near(batches[i].window_blocks[b]);
        }
        moved[i] = batches[i];
        moved[i].blocks = near;
        moved[i].window_blocks = has_windows ? near + blocks : NULL;
    }
    return moved;
}

static kvl_err far_forward(
    struct kvl_backend *backend, const struct kvl_batch *batches, uint32_t count) {
    struct far *far = far_of(backend);
    struct kvl_batch *moved = bring_near(batches, count);
    if (moved == NULL)
        return KVL_ERR_NOMEM;
    if (far->first != NULL)
        usleep(LATE_US);
    run_copies(far);
    far->in_forward = true;
    kvl_err err = far->cpu->ops->forward(far->cpu, moved, count);
    far->in_forward = false;
    for (uint32_t i = 0; i < count; ++i)
        free((void *)moved[i].blocks);
    free(moved);
    return err;
}

static void far_destroy(struct kvl_backend *backend) {
    struct far *far = far_of(backend);
    if (far == NULL)
        return;
    demand(far->first == NULL, "copies are left over");
    demand(far->arenas == 0, "an arena is left mapped");
    far->cpu->ops->destroy(far->cpu);
    free(far);
}

static kvl_err far_create(const struct kvl_model *model, const struct kvl_backend_options *options,
    struct kvl_backend **out, struct kvl_errmsg *msg) {
    struct far *far = calloc(1, sizeof *far);
    if (far == NULL)
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
    kvl_err err = kvl_backend_cpu.create(model, options, &far->cpu, msg);
    if (err != KVL_OK) {
        free(far);
        return err;
    }
    far->base = *far->cpu;
    far->base.ops = &far_backend;
    far->base.copies_within_forward = false;
    far->last = &far->first;
    *out = &far->base;
    return KVL_OK;
}

const struct kvl_backend_ops far_backend = {
    .name = "far",
    .create = far_create,
    .forward = far_forward,
    .destroy = far_destroy,
    .map_arena = far_map_arena,
    .unmap_arena = far_unmap_arena,
    .take_memory = far_take_memory,
    .give_memory_back = far_give_memory_back,
    .copy = far_copy,
    .zero = far_zero,
    .finish = far_finish,
};
