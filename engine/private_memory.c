/* private_memory.c - see private_memory.h. The free list has room for every block of every slab, so
 * giving one back cannot fail. */
#include "private_memory.h"

#include <stdlib.h>

#define PAGE_BYTES 4096u
#define SLAB_BYTES (UINT64_C(32) << 20) /* at least one block */

struct slab {
    uint8_t *base;
    uint64_t bytes;
    struct slab *next;
};

struct kvl_private_memory {
    struct kvl_backend *backend;
    uint64_t block_bytes; /* rounded up to pages */
    struct slab *slabs;
    uint64_t used_bytes;   /* of the newest slab */
    uint8_t **free_blocks; /* room for block_count */
    uint64_t free_count;
    uint64_t block_count; /* of all slabs */
};

kvl_err kvl_private_memory_create(
    struct kvl_backend *backend, uint64_t block_bytes, struct kvl_private_memory **out) {
    *out = NULL;
    if (block_bytes == 0 || block_bytes > UINT64_MAX / 4)
        return KVL_ERR_INVALID;
    struct kvl_private_memory *memory = calloc(1, sizeof *memory);
    if (memory == NULL)
        return KVL_ERR_NOMEM;
    memory->backend = backend;
    memory->block_bytes = (block_bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    *out = memory;
    return KVL_OK;
}

void kvl_private_memory_destroy(struct kvl_private_memory *memory) {
    if (memory == NULL)
        return;
    while (memory->slabs != NULL) {
        struct slab *slab = memory->slabs;
        memory->slabs = slab->next;
        memory->backend->ops->give_memory_back(memory->backend, slab->base, slab->bytes);
        free(slab);
    }
    free(memory->free_blocks);
    free(memory);
}

static kvl_err add_slab(struct kvl_private_memory *memory) {
    uint64_t bytes = memory->block_bytes > SLAB_BYTES ? memory->block_bytes : SLAB_BYTES;
    uint64_t blocks = memory->block_count + bytes / memory->block_bytes;
    uint8_t **free_blocks = realloc(memory->free_blocks, blocks * sizeof *free_blocks);
    if (free_blocks == NULL)
        return KVL_ERR_NOMEM;
    memory->free_blocks = free_blocks;
    struct slab *slab = malloc(sizeof *slab);
    if (slab == NULL)
        return KVL_ERR_NOMEM;
    *slab = (struct slab){.bytes = bytes, .next = memory->slabs};
    kvl_err err = memory->backend->ops->take_memory(memory->backend, bytes, &slab->base);
    if (err != KVL_OK) {
        free(slab);
        return err;
    }
    memory->slabs = slab;
    memory->used_bytes = 0;
    memory->block_count = blocks;
    return KVL_OK;
}

kvl_err kvl_private_memory_take(struct kvl_private_memory *memory, uint8_t **block) {
    if (memory->free_count > 0) {
        *block = memory->free_blocks[--memory->free_count];
        return KVL_OK;
    }
    if (memory->slabs == NULL || memory->slabs->bytes - memory->used_bytes < memory->block_bytes) {
        kvl_err err = add_slab(memory);
        if (err != KVL_OK)
            return err;
    }
    *block = memory->slabs->base + memory->used_bytes;
    memory->used_bytes += memory->block_bytes;
    return KVL_OK;
}

void kvl_private_memory_give_back(struct kvl_private_memory *memory, uint8_t *block) {
    memory->free_blocks[memory->free_count++] = block;
}
