/* memory.c - the memory that blocks live in: a daemon's arena mapped from its descriptor, slabs of
 * the engine's own, and copies within them on the stream that forward uses. */
#include <stdlib.h>
#include <string.h>

#include "cuda_backend.h"
#include "kernels.h"
#include "kvl_types.h"

enum { SLAB_ALIGN = 4096 };

/* ---- a daemon's arena ---- */

static kvl_err check_device(
    const struct kvl_cuda *cuda, const struct kvl_arena_info *arena, struct kvl_errmsg *msg) {
    if (arena->memory != KVL_ARENA_CUDA) {
        return kvl_fail(msg, KVL_ERR_UNSUPPORTED,
            "the daemon keeps blocks in the CPU's memory, the engine runs on a GPU; give both the "
            "same --device");
    }
    if (memcmp(arena->device_uuid, cuda->device.uuid.bytes, sizeof arena->device_uuid) != 0) {
        return kvl_fail(msg, KVL_ERR_UNSUPPORTED,
            "the daemon's arena lies on another GPU than cuda:%d (%s); give both the same --device",
            cuda->device_index, cuda->device.name);
    }
    return KVL_OK;
}

#define DRIVER_TRY(call)                                                                           \
    do {                                                                                           \
        const kvl_err try_err = kvl_cuda_driver_check(driver, msg, (call), #call);                 \
        if (try_err != KVL_OK) {                                                                   \
            return try_err;                                                                        \
        }                                                                                          \
    } while (0)

/* The whole allocation is mapped: its size in whole granules. */
static kvl_err round_to_granules(const struct kvl_cuda_calls *driver,
    CUmemGenericAllocationHandle handle, uint64_t *bytes, struct kvl_errmsg *msg) {
    CUmemAllocationProp properties;
    size_t granule = 0;
    DRIVER_TRY(driver->properties_of(&properties, handle));
    DRIVER_TRY(driver->granularity(&granule, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM));
    if (granule != 0) {
        *bytes = (*bytes + granule - 1) / granule * granule;
    }
    return KVL_OK;
}

static kvl_err map_handle(const struct kvl_cuda *cuda, CUmemGenericAllocationHandle handle,
    struct kvl_cuda_mapping *mapping, struct kvl_errmsg *msg) {
    const struct kvl_cuda_calls *driver = &cuda->driver;
    const CUmemAccessDesc access = {
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = cuda->device_index},
        .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    CUdeviceptr address = 0;
    kvl_err err = round_to_granules(driver, handle, &mapping->bytes, msg);
    if (err != KVL_OK) {
        return err;
    }
    DRIVER_TRY(driver->reserve(&address, mapping->bytes, 0, 0, 0));
    err = kvl_cuda_driver_check(
        driver, msg, driver->map(address, mapping->bytes, 0, handle, 0), "cuMemMap");
    if (err == KVL_OK) {
        err = kvl_cuda_driver_check(
            driver, msg, driver->set_access(address, mapping->bytes, &access, 1), "cuMemSetAccess");
        if (err != KVL_OK) {
            (void)driver->unmap(address, mapping->bytes);
        }
    }
    if (err != KVL_OK) {
        (void)driver->free_address(address, mapping->bytes);
        return err;
    }
    mapping->base = (uint8_t *)(uintptr_t)address;
    return KVL_OK;
}

kvl_err kvl_cuda_map_arena(struct kvl_backend *backend, const struct kvl_arena_info *arena, int fd,
    uint8_t **base, struct kvl_errmsg *msg) {
    struct kvl_cuda *cuda = kvl_cuda_of(backend);
    const struct kvl_cuda_calls *driver = &cuda->driver;
    kvl_err err = check_device(cuda, arena, msg);
    if (err != KVL_OK) {
        return err;
    }
    KVL_CUDA_TRY(msg, cudaSetDevice(cuda->device_index));
    struct kvl_cuda_mapping *mapping = calloc(1, sizeof *mapping);
    if (mapping == NULL) {
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
    }
    mapping->bytes = arena->bytes;
    CUmemGenericAllocationHandle handle = 0;
    err = kvl_cuda_driver_check(driver, msg,
        driver->import_handle(
            &handle, (void *)(uintptr_t)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
        "cuMemImportFromShareableHandle");
    if (err == KVL_OK) {
        err = map_handle(cuda, handle, mapping, msg);
        (void)driver->release(handle); /* the mapping keeps the memory */
    }
    if (err != KVL_OK) {
        free(mapping);
        return err;
    }
    mapping->next = cuda->mappings;
    cuda->mappings = mapping;
    *base = mapping->base;
    return KVL_OK;
}

static void unmap(const struct kvl_cuda *cuda, struct kvl_cuda_mapping *mapping) {
    const CUdeviceptr address = (CUdeviceptr)(uintptr_t)mapping->base;
    (void)cuda->driver.unmap(address, mapping->bytes);
    (void)cuda->driver.free_address(address, mapping->bytes);
    free(mapping);
}

void kvl_cuda_unmap_arena(struct kvl_backend *backend, uint8_t *base, uint64_t bytes) {
    (void)bytes;
    struct kvl_cuda *cuda = kvl_cuda_of(backend);
    (void)cudaSetDevice(cuda->device_index);
    (void)cudaStreamSynchronize(cuda->stream); /* nothing reads there any more */
    for (struct kvl_cuda_mapping **at = &cuda->mappings; *at != NULL; at = &(*at)->next) {
        struct kvl_cuda_mapping *mapping = *at;
        if (mapping->base == base) {
            *at = mapping->next;
            unmap(cuda, mapping);
            return;
        }
    }
}

/* ---- slabs ---- */

kvl_err kvl_cuda_take_memory(struct kvl_backend *backend, uint64_t bytes, uint8_t **out) {
    struct kvl_cuda *cuda = kvl_cuda_of(backend);
    KVL_CUDA_TRY(&cuda->last, cudaSetDevice(cuda->device_index));
    struct kvl_cuda_slab *slab = calloc(1, sizeof *slab);
    if (slab == NULL || bytes > UINT64_MAX - SLAB_ALIGN) {
        free(slab);
        return KVL_ERR_NOMEM;
    }
    const cudaError_t error = cudaMalloc(&slab->taken, bytes + SLAB_ALIGN);
    if (error != cudaSuccess) {
        (void)cudaGetLastError(); /* out of memory is no reason to fail later launches */
        free(slab);
        return kvl_cuda_check(&cuda->last, error, "cudaMalloc of a slab");
    }
    const uintptr_t taken = (uintptr_t)slab->taken;
    slab->memory = (uint8_t *)((taken + SLAB_ALIGN - 1) / SLAB_ALIGN * SLAB_ALIGN);
    slab->next = cuda->slabs;
    cuda->slabs = slab;
    *out = slab->memory;
    return KVL_OK;
}

void kvl_cuda_give_memory_back(struct kvl_backend *backend, uint8_t *memory, uint64_t bytes) {
    (void)bytes;
    struct kvl_cuda *cuda = kvl_cuda_of(backend);
    (void)cudaSetDevice(cuda->device_index);
    for (struct kvl_cuda_slab **at = &cuda->slabs; *at != NULL; at = &(*at)->next) {
        struct kvl_cuda_slab *slab = *at;
        if (slab->memory == memory) {
            *at = slab->next;
            (void)cudaFree(slab->taken); /* waits for the device */
            free(slab);
            return;
        }
    }
}

void kvl_cuda_free_memory(struct kvl_cuda *cuda) {
    while (cuda->slabs != NULL) {
        kvl_cuda_give_memory_back(&cuda->base, cuda->slabs->memory, 0);
    }
    while (cuda->mappings != NULL) {
        kvl_cuda_unmap_arena(&cuda->base, cuda->mappings->base, 0);
    }
}

/* ---- copies ---- */

static kvl_err copy_each(
    struct kvl_cuda *cuda, uint8_t *to, const uint8_t *from, struct kvl_runs runs) {
    for (uint64_t i = 0; i < runs.count; i++) {
        const uint64_t offset = i * runs.stride_bytes;
        KVL_CUDA_TRY(&cuda->last, cudaMemcpyAsync(to + offset, from + offset, runs.bytes,
                                      cudaMemcpyDefault, cuda->stream));
    }
    return KVL_OK;
}

kvl_err kvl_cuda_copy(
    struct kvl_backend *backend, uint8_t *to, const uint8_t *from, struct kvl_runs runs) {
    struct kvl_cuda *cuda = kvl_cuda_of(backend);
    KVL_CUDA_TRY(&cuda->last, cudaSetDevice(cuda->device_index));
    if (runs.count < 2 || runs.stride_bytes < runs.bytes ||
        runs.stride_bytes > cuda->device.memPitch) {
        return copy_each(cuda, to, from, runs);
    }
    KVL_CUDA_TRY(&cuda->last, cudaMemcpy2DAsync(to, runs.stride_bytes, from, runs.stride_bytes,
                                  runs.bytes, runs.count, cudaMemcpyDefault, cuda->stream));
    return KVL_OK;
}

kvl_err kvl_cuda_zero(struct kvl_backend *backend, uint8_t *to, uint64_t bytes) {
    struct kvl_cuda *cuda = kvl_cuda_of(backend);
    KVL_CUDA_TRY(&cuda->last, cudaSetDevice(cuda->device_index));
    KVL_CUDA_TRY(&cuda->last, cudaMemsetAsync(to, 0, bytes, cuda->stream));
    return KVL_OK;
}

kvl_err kvl_cuda_finish(struct kvl_backend *backend) {
    struct kvl_cuda *cuda = kvl_cuda_of(backend);
    KVL_CUDA_TRY(&cuda->last, cudaSetDevice(cuda->device_index));
    KVL_CUDA_TRY(&cuda->last, cudaStreamSynchronize(cuda->stream));
    return KVL_OK;
}
