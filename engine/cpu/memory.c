/* memory.c - the memory that blocks live in, where the device is the CPU: huge pages, memcpy. */
#include <string.h>

#include "../huge_memory.h"
#include "cpu.h"

kvl_err kvl_cpu_take_memory(struct kvl_backend *backend, uint64_t bytes, uint8_t **out) {
    (void)backend;
    *out = kvl_huge_map(bytes);
    return *out != NULL ? KVL_OK : KVL_ERR_NOMEM;
}

void kvl_cpu_give_memory_back(struct kvl_backend *backend, uint8_t *memory, uint64_t bytes) {
    (void)backend;
    kvl_huge_unmap(memory, bytes);
}

kvl_err kvl_cpu_copy(
    struct kvl_backend *backend, uint8_t *to, const uint8_t *from, struct kvl_runs runs) {
    (void)backend;
    for (uint64_t i = 0; i < runs.count; i++) {
        memcpy(to + i * runs.stride_bytes, from + i * runs.stride_bytes, runs.bytes);
    }
    return KVL_OK;
}

kvl_err kvl_cpu_zero(struct kvl_backend *backend, uint8_t *to, uint64_t bytes) {
    (void)backend;
    memset(to, 0, bytes);
    return KVL_OK;
}

kvl_err kvl_cpu_finish(struct kvl_backend *backend) {
    (void)backend;
    return KVL_OK;
}
