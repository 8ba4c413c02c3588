/* private_memory.c - see private_memory.h. A free block's first bytes link the free list. */
#include "private_memory.h"

#include <stdlib.h>
#include <string.h>

#include "huge_memory.h"

#define PAGE_BYTES 4096u
#define SLAB_BYTES (UINT64_C(32) << 20) /* at least one block */

struct slab {
    void *base;
    uint64_t bytes;
    struct slab *next;
};

struct kvl_private_memory {
    uint64_t block_bytes; /* rounded up to pages */
    struct slab *slabs;
    uint64_t used_bytes; /* of the newest slab */
    uint8_t *free_blocks;
};

kvl_err kvl_private_memory_create(uint64_t block_bytes, struct kvl_private_memory **out) {
    *out = NULL;
    if (block_bytes == 0 || block_bytes > UINT64_MAX / 4)
        return KVL_ERR_INVALID;
    struct kvl_private_memory *memory = calloc(1, sizeof *memory);
    if (memory == NULL)
        return KVL_ERR_NOMEM;
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
        kvl_huge_unmap(slab->base, slab->bytes);
        free(slab);
    }
    free(memory);
}

static kvl_err add_slab(struct kvl_private_memory *memory) {
    uint64_t bytes = memory->block_bytes > SLAB_BYTES ? memory->block_bytes : SLAB_BYTES;
    struct slab *slab = malloc(sizeof *slab);
    if (slab == NULL)
        return KVL_ERR_NOMEM;
    *slab = (struct slab){.base = kvl_huge_map(bytes), .bytes = bytes, .next = memory->slabs};
    if (slab->base == NULL) {
        free(slab);
        return KVL_ERR_NOMEM;
    }
    memory->slabs = slab;
    memory->used_bytes = 0;
    return KVL_OK;
}

kvl_err kvl_private_memory_take(struct kvl_private_memory *memory, uint8_t **block) {
    if (memory->free_blocks != NULL) {
        *block = memory->free_blocks;
        memcpy(&memory->free_blocks, *block, sizeof memory->free_blocks);
        return KVL_OK;
    }
    if (memory->slabs == NULL || memory->slabs->bytes - memory->used_bytes < memory->block_bytes) {
        kvl_err err = add_slab(memory);
        if (err != KVL_OK)
            return err;
    }
    *block = (uint8_t *)memory->slabs->base + memory->used_bytes;
    memory->used_bytes += memory->block_bytes;
    return KVL_OK;
}

void kvl_private_memory_give_back(struct kvl_private_memory *memory, uint8_t *block) {
    memcpy(block, &memory->free_blocks, sizeof memory->free_blocks);
    memory->free_blocks = block;
}
