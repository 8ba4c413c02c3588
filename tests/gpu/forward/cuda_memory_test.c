/* cuda_memory_test.c - the memory that blocks live in: slabs, copies, an arena of another owner. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gpu_context.h"
#include "kvl_types.h"

enum { BYTES = 1 << 20 };

static struct gpu_context *open_tiny(void) {
    const struct tiny_shape shape = tiny_shape_default();
    return gpu_context_open(&shape, (struct gpu_setting){64, KVL_KV_F16, false});
}

static void fill_bytes(uint8_t *bytes, uint64_t count, uint32_t seed) {
    for (uint64_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        bytes[i] = (uint8_t)(seed >> 24);
    }
}

void copies_zeros_and_slabs(void **state) {
    (void)state;
    struct gpu_context *c = open_tiny();
    struct kvl_backend *backend = c->gpu.backend;
    const struct kvl_backend_ops *ops = backend->ops;
    uint8_t *from, *to, *host = malloc(BYTES), *expected = calloc(1, BYTES);
    uint8_t *back = malloc(BYTES);
    assert_true(host != NULL && expected != NULL && back != NULL);
    assert_int_equal(ops->take_memory(backend, BYTES, &from), KVL_OK);
    assert_int_equal(ops->take_memory(backend, BYTES, &to), KVL_OK);
    assert_int_equal((uintptr_t)from % 4096, 0);
    assert_int_equal((uintptr_t)to % 4096, 0);
    fill_bytes(host, BYTES, 1);
    assert_int_equal(cudaMemcpy(from, host, BYTES, cudaMemcpyHostToDevice), cudaSuccess);
    static const struct kvl_runs runs[] = {
        {1000, 1, 0}, {256, 100, 4096}, {1, 3, 1}, {4096, 17, 4096}};
    for (size_t i = 0; i < sizeof runs / sizeof runs[0]; i++) {
        const uint64_t offset = 8192 + 2 * i;
        memset(expected, 0, BYTES);
        for (uint64_t r = 0; r < runs[i].count; r++) {
            const uint64_t at = offset + r * runs[i].stride_bytes;
            memcpy(expected + at, host + at, runs[i].bytes);
        }
        assert_int_equal(ops->zero(backend, to, BYTES), KVL_OK);
        assert_int_equal(ops->copy(backend, to + offset, from + offset, runs[i]), KVL_OK);
        assert_int_equal(ops->finish(backend), KVL_OK);
        assert_int_equal(cudaMemcpy(back, to, BYTES, cudaMemcpyDeviceToHost), cudaSuccess);
        assert_memory_equal(back, expected, BYTES);
    }
    ops->give_memory_back(backend, from, BYTES);
    ops->give_memory_back(backend, to, BYTES);
    free(host);
    free(expected);
    free(back);
    gpu_context_close(c);
}

void too_much_memory_is_refused(void **state) {
    (void)state;
    struct gpu_context *c = open_tiny();
    struct kvl_backend *backend = c->gpu.backend;
    uint8_t *memory;
    assert_int_equal(backend->ops->take_memory(backend, 1ull << 46, &memory), KVL_ERR_NOMEM);
    gpu_run(c, &c->gpu, (struct gpu_call){.count = 5}); /* and nothing else minds */
    gpu_context_close(c);
}

/* ---- an arena as a daemon makes it ---- */

struct owner {
    CUresult (*create)(CUmemGenericAllocationHandle *handle, size_t bytes,
        const CUmemAllocationProp *properties, unsigned long long flags);
    CUresult (*export_handle)(void *out, CUmemGenericAllocationHandle handle,
        CUmemAllocationHandleType type, unsigned long long flags);
    CUmemGenericAllocationHandle handle;
    size_t bytes;
    int fd;
};

static void look_up(const char *name, void *function) {
    void *found = NULL;
    enum cudaDriverEntryPointQueryResult result;
    assert_int_equal(
        cudaGetDriverEntryPointByVersion(name, &found, 10020, cudaEnableDefault, &result),
        cudaSuccess);
    assert_non_null(found);
    memcpy(function, &found, sizeof found);
}

static void make_arena(struct owner *owner, const struct kvl_cuda *cuda) {
    const CUmemAllocationProp properties = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
        .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
        .location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = cuda->device_index}};
    size_t granule = 0;
    look_up("cuMemCreate", &owner->create);
    look_up("cuMemExportToShareableHandle", &owner->export_handle);
    assert_int_equal(
        cuda->driver.granularity(&granule, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM),
        CUDA_SUCCESS);
    owner->bytes = 3 * granule;
    assert_int_equal(owner->create(&owner->handle, owner->bytes, &properties, 0), CUDA_SUCCESS);
    assert_int_equal(owner->export_handle(
                         &owner->fd, owner->handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
        CUDA_SUCCESS);
}

void an_arena_is_mapped_from_its_descriptor(void **state) {
    (void)state;
    struct gpu_context *c = open_tiny();
    struct kvl_backend *backend = c->gpu.backend;
    struct owner owner = {.fd = -1};
    struct kvl_errmsg msg = {{0}};
    make_arena(&owner, c->cuda);
    struct kvl_arena_info info = {.memory = KVL_ARENA_CUDA, .bytes = owner.bytes - 4096};
    memcpy(info.device_uuid, c->cuda->device.uuid.bytes, sizeof info.device_uuid);
    uint8_t *first, *second;
    for (int i = 0; i < 2; i++) { /* the same memory twice */
        const kvl_err err =
            backend->ops->map_arena(backend, &info, owner.fd, i == 0 ? &first : &second, &msg);
        if (err != KVL_OK) {
            fail_msg("%s: %s", kvl_err_name(err), msg.text);
        }
    }
    assert_int_equal(close(owner.fd), 0);
    assert_int_equal(c->cuda->driver.release(owner.handle), CUDA_SUCCESS); /* the owner dies */
    uint8_t *host = malloc(owner.bytes), *back = malloc(owner.bytes);
    assert_true(host != NULL && back != NULL);
    fill_bytes(host, owner.bytes, 3);
    assert_int_equal(cudaMemcpy(first, host, info.bytes, cudaMemcpyHostToDevice), cudaSuccess);
    assert_int_equal(cudaMemcpy(back, second, info.bytes, cudaMemcpyDeviceToHost), cudaSuccess);
    assert_memory_equal(host, back, info.bytes);
    const struct kvl_runs runs = {64, 10, 4096};
    assert_int_equal(backend->ops->copy(backend, first + (1 << 20), second, runs), KVL_OK);
    assert_int_equal(backend->ops->finish(backend), KVL_OK);
    assert_int_equal(
        cudaMemcpy(back, second + (1 << 20) + 9 * 4096, 64, cudaMemcpyDeviceToHost), cudaSuccess);
    assert_memory_equal(host + 9 * 4096, back, 64);
    backend->ops->unmap_arena(backend, first, info.bytes);
    backend->ops->unmap_arena(backend, second, info.bytes);
    free(host);
    free(back);
    gpu_context_close(c);
}

void a_foreign_arena_is_refused(void **state) {
    (void)state;
    struct gpu_context *c = open_tiny();
    struct kvl_backend *backend = c->gpu.backend;
    struct kvl_errmsg msg = {{0}};
    struct kvl_arena_info info = {.memory = KVL_ARENA_MEMFD, .bytes = 4096};
    uint8_t *base;
    assert_int_equal(backend->ops->map_arena(backend, &info, -1, &base, &msg), KVL_ERR_UNSUPPORTED);
    assert_non_null(strstr(msg.text, "--device"));
    info.memory = KVL_ARENA_CUDA; /* a UUID of zeros is nobody's */
    assert_int_equal(backend->ops->map_arena(backend, &info, -1, &base, &msg), KVL_ERR_UNSUPPORTED);
    assert_non_null(strstr(msg.text, "another GPU"));
    memcpy(info.device_uuid, c->cuda->device.uuid.bytes, sizeof info.device_uuid);
    assert_int_not_equal(backend->ops->map_arena(backend, &info, -1, &base, &msg), KVL_OK);
    gpu_context_close(c);
}
