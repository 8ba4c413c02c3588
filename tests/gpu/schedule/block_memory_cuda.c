/* block_memory_cuda.c - blocks in a GPU's memory: the arena is mapped as the engine maps it, and
 * kernels write and read it. */
#include <stdio.h>

#include "block_kernels.h"
#include "block_memory.h"
#include "cuda/cuda_backend.h"

/* As much of the backend as mapping an arena needs; no model. A process has one. */
static struct kvl_cuda cuda;

#define TRY(call) KVL_CUDA_TRY(&cuda.last, (call))

static kvl_err say(kvl_err err) {
    if (err != KVL_OK)
        fprintf(stderr, "schedule engine: %s\n", cuda.last.text);
    return err;
}

static kvl_err run_fill(uint8_t *block, uint64_t bytes, uint64_t seed) {
    TRY(block_kernel_fill((uint64_t *)(void *)block, bytes / sizeof(uint64_t), seed, cuda.stream));
    TRY(cudaStreamSynchronize(cuda.stream));
    return KVL_OK;
}

static kvl_err fill(
    struct block_memory *memory, uint64_t offset_bytes, uint64_t bytes, uint64_t seed) {
    return say(run_fill(memory->base + offset_bytes, bytes, seed));
}

static kvl_err run_check(struct block_memory *memory, const uint8_t *block, uint64_t bytes,
    uint64_t seed, unsigned long long *wrong) {
    TRY(cudaMemsetAsync(memory->found, 0xFF, sizeof *memory->found, cuda.stream));
    TRY(block_kernel_check((const uint64_t *)(const void *)block, bytes / sizeof(uint64_t), seed,
        memory->found, cuda.stream));
    TRY(cudaMemcpyAsync(wrong, memory->found, sizeof *wrong, cudaMemcpyDeviceToHost, cuda.stream));
    TRY(cudaStreamSynchronize(cuda.stream));
    return KVL_OK;
}

static kvl_err check(struct block_memory *memory, uint64_t offset_bytes, uint64_t bytes,
    uint64_t seed, uint64_t *wrong) {
    unsigned long long first = 0;
    kvl_err err = say(run_check(memory, memory->base + offset_bytes, bytes, seed, &first));
    *wrong = first; /* all ones: BLOCK_IS_RIGHT */
    return err;
}

static void close_cuda(struct block_memory *memory) {
    kvl_cuda_unmap_arena(&cuda.base, memory->base, 0);
    (void)cudaFree(memory->found);
    (void)cudaStreamDestroy(cuda.stream);
}

static kvl_err open_device(struct block_memory *memory) {
    TRY(cudaSetDevice(0));
    TRY(cudaGetDeviceProperties(&cuda.device, 0));
    TRY(cudaStreamCreateWithFlags(&cuda.stream, cudaStreamNonBlocking));
    TRY(cudaMalloc((void **)&memory->found, sizeof *memory->found));
    return kvl_cuda_calls_open(&cuda.driver, &cuda.last);
}

kvl_err block_memory_open_cuda(
    struct kvl_client *client, struct block_memory *out, struct kvl_errmsg *msg) {
    struct kvl_arena_info info;
    int fd = -1;
    *out =
        (struct block_memory){.fill = fill, .check = check, .close = close_cuda, .client = client};
    kvl_err err = open_device(out);
    if (err != KVL_OK)
        return kvl_fail(msg, err, "%s", cuda.last.text);
    err = kvl_client_arena(client, KVL_TIER_DEVICE, &info, &fd);
    if (err != KVL_OK)
        return kvl_fail(msg, err, "no device arena");
    return kvl_cuda_map_arena(&cuda.base, &info, fd, &out->base, msg);
}
