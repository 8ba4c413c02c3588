/* block_memory_cpu.c - blocks of a daemon whose device tier is the CPU's memory. */
#include "block_memory.h"
#include "block_pattern.h"

static kvl_err fill(
    struct block_memory *memory, uint64_t offset_bytes, uint64_t bytes, uint64_t seed) {
    uint64_t *words = (uint64_t *)(void *)kvl_client_block_writable(
        memory->client, KVL_TIER_DEVICE, offset_bytes);
    if (words == NULL)
        return KVL_ERR_INVALID;
    for (uint64_t i = 0; i < bytes / sizeof *words; i++)
        words[i] = block_word(seed, i);
    return KVL_OK;
}

static kvl_err check(struct block_memory *memory, uint64_t offset_bytes, uint64_t bytes,
    uint64_t seed, uint64_t *wrong) {
    const uint64_t *words = (const uint64_t *)(const void *)kvl_client_block(
        memory->client, KVL_TIER_DEVICE, offset_bytes);
    *wrong = BLOCK_IS_RIGHT;
    if (words == NULL)
        return KVL_ERR_INVALID;
    for (uint64_t i = 0; i < bytes / sizeof *words && *wrong == BLOCK_IS_RIGHT; i++)
        if (words[i] != block_word(seed, i))
            *wrong = i;
    return KVL_OK;
}

static void close_cpu(struct block_memory *memory) {
    (void)memory;
}

void block_memory_open_cpu(struct kvl_client *client, struct block_memory *out) {
    *out =
        (struct block_memory){.fill = fill, .check = check, .close = close_cpu, .client = client};
}
