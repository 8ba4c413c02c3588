/* driver_real.c - the table over libcuda.so.1, found at run time, so that one program runs with and
 * without a GPU.
 *
 * cuda.h renames calls to the version that its prototypes are of (cuMemHostRegister is
 * cuMemHostRegister_v2): those names are looked up, so that prototype and function agree. */
#include <cuda.h>
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device_cuda/cuda_driver.h"

#define NEEDED_VERSION 12000 /* cuStreamWriteValue32_v2, which needs no module parameter */
#define BATCH_MAX 128u

/* X(call): as cuda.h has it. */
#define CALLS(X)                                                                                   \
    X(cuInit)                                                                                      \
    X(cuDriverGetVersion)                                                                          \
    X(cuGetErrorName)                                                                              \
    X(cuGetErrorString)                                                                            \
    X(cuDeviceGetCount)                                                                            \
    X(cuDeviceGet)                                                                                 \
    X(cuDeviceGetName)                                                                             \
    X(cuDeviceGetUuid)                                                                             \
    X(cuDeviceGetAttribute)                                                                        \
    X(cuDevicePrimaryCtxRetain)                                                                    \
    X(cuDevicePrimaryCtxRelease)                                                                   \
    X(cuCtxPushCurrent)                                                                            \
    X(cuCtxPopCurrent)                                                                             \
    X(cuCtxGetStreamPriorityRange)                                                                 \
    X(cuMemGetInfo)                                                                                \
    X(cuMemGetAllocationGranularity)                                                               \
    X(cuMemCreate)                                                                                 \
    X(cuMemRelease)                                                                                \
    X(cuMemExportToShareableHandle)                                                                \
    X(cuMemImportFromShareableHandle)                                                              \
    X(cuMemAddressReserve)                                                                         \
    X(cuMemAddressFree)                                                                            \
    X(cuMemMap)                                                                                    \
    X(cuMemUnmap)                                                                                  \
    X(cuMemSetAccess)                                                                              \
    X(cuMemHostRegister)                                                                           \
    X(cuMemHostUnregister)                                                                         \
    X(cuMemHostAlloc)                                                                              \
    X(cuMemFreeHost)                                                                               \
    X(cuMemHostGetDevicePointer)                                                                   \
    X(cuStreamCreateWithPriority)                                                                  \
    X(cuStreamDestroy)                                                                             \
    X(cuStreamQuery)                                                                               \
    X(cuStreamWriteValue32)                                                                        \
    X(cuMemcpyHtoDAsync)                                                                           \
    X(cuMemcpyDtoHAsync)

#define TEXT_OF(name) #name
#define NAME_OF(name) TEXT_OF(name) /* after cuda.h's renaming */
#define PASTE(a, b) a##b
#define POINTER(name) PASTE(call_, name)

/* From 13.0 on; 12.8 and later have an older form, which also says which copy failed. */
typedef CUresult (*batch_call)(CUdeviceptr *to, CUdeviceptr *from, size_t *bytes, size_t count,
    CUmemcpyAttributes *attributes, size_t *firsts, size_t attribute_count, CUstream stream);
typedef CUresult (*old_batch_call)(CUdeviceptr *to, CUdeviceptr *from, size_t *bytes, size_t count,
    CUmemcpyAttributes *attributes, size_t *firsts, size_t attribute_count, size_t *failed,
    CUstream stream);

struct real_driver {
    struct kvl_cuda_driver base;
    char name[64];
#define X(call) __typeof__(&(call)) POINTER(call);
    CALLS(X)
#undef X
    batch_call batch;
    old_batch_call old_batch;
    atomic_bool batch_refused;
};

#define REAL(driver) ((struct real_driver *)(uintptr_t)(driver))
#define CALL(driver, call) REAL(driver)->POINTER(call)

/* ---- statuses ------------------------------------------------------------------------------- */

/* Those of which cuda.h says that further work returns the same error, that the context cannot be
 * used or is gone, or that the driver or its server ends; and the two of hardware, after which
 * nothing that the device holds is to be trusted. */
static bool ends_context(kvl_cuda_status status) {
    switch (status) {
    case CUDA_ERROR_DEINITIALIZED:
    case CUDA_ERROR_ECC_UNCORRECTABLE:
    case CUDA_ERROR_NVLINK_UNCORRECTABLE:
    case CUDA_ERROR_CONTAINED:
    case CUDA_ERROR_ILLEGAL_ADDRESS:
    case CUDA_ERROR_LAUNCH_TIMEOUT:
    case CUDA_ERROR_CONTEXT_IS_DESTROYED:
    case CUDA_ERROR_ASSERT:
    case CUDA_ERROR_HARDWARE_STACK_ERROR:
    case CUDA_ERROR_ILLEGAL_INSTRUCTION:
    case CUDA_ERROR_MISALIGNED_ADDRESS:
    case CUDA_ERROR_INVALID_ADDRESS_SPACE:
    case CUDA_ERROR_INVALID_PC:
    case CUDA_ERROR_LAUNCH_FAILED:
    case CUDA_ERROR_TENSOR_MEMORY_LEAK:
    case CUDA_ERROR_MPS_CLIENT_TERMINATED:
    case CUDA_ERROR_EXTERNAL_DEVICE:
        return true;
    default:
        return false;
    }
}

static kvl_err cuda_err_from(kvl_cuda_status status) {
    switch (status) {
    case CUDA_SUCCESS:
        return KVL_OK;
    case CUDA_ERROR_NOT_READY:
        return KVL_ERR_AGAIN;
    case CUDA_ERROR_OUT_OF_MEMORY:
        return KVL_ERR_NOMEM;
    case CUDA_ERROR_INVALID_VALUE:
    case CUDA_ERROR_INVALID_HANDLE:
    case CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED:
    case CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED:
        return KVL_ERR_INVALID;
    case CUDA_ERROR_NOT_SUPPORTED:
    case CUDA_ERROR_NO_DEVICE:
    case CUDA_ERROR_INVALID_DEVICE:
    case CUDA_ERROR_STUB_LIBRARY:
        return KVL_ERR_UNSUPPORTED;
    case CUDA_ERROR_NOT_PERMITTED:
        return KVL_ERR_PERM;
    case CUDA_ERROR_SYSTEM_DRIVER_MISMATCH:
    case CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE:
    case CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER:
        return KVL_ERR_VERSION;
    default:
        return ends_context(status) ? KVL_ERR_CLOSED : KVL_ERR_IO;
    }
}

static const char *cuda_text(const struct kvl_cuda_driver *driver, kvl_cuda_status status) {
    const char *text = NULL;
    if (CALL(driver, cuGetErrorString)((CUresult)status, &text) == CUDA_SUCCESS && text != NULL)
        return text;
    return "an error that the driver has no text for";
}

/* ---- devices and contexts ------------------------------------------------------------------- */

static kvl_cuda_status device_count(const struct kvl_cuda_driver *driver, uint32_t *count) {
    int found = 0;
    CUresult status = CALL(driver, cuDeviceGetCount)(&found);
    *count = found > 0 ? (uint32_t)found : 0;
    return (int)status;
}

static CUresult has_attribute(
    const struct kvl_cuda_driver *driver, CUdevice device, CUdevice_attribute which, bool *has) {
    int value = 0;
    CUresult status = CALL(driver, cuDeviceGetAttribute)(&value, which, device);
    *has = value != 0;
    return status;
}

static CUresult read_abilities(
    const struct kvl_cuda_driver *driver, CUdevice device, struct kvl_cuda_device_info *out) {
    CUresult status = has_attribute(
        driver, device, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, &out->maps_memory);
    if (status == CUDA_SUCCESS)
        status = has_attribute(driver, device,
            CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED, &out->exports_fds);
    if (status == CUDA_SUCCESS)
        status = has_attribute(
            driver, device, CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED, &out->pins_host);
    if (status == CUDA_SUCCESS)
        status = has_attribute(
            driver, device, CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING, &out->is_addressed);
    return status;
}

static kvl_cuda_status device_info(
    const struct kvl_cuda_driver *driver, uint32_t ordinal, struct kvl_cuda_device_info *out) {
    CUdevice device;
    CUuuid uuid;
    memset(out, 0, sizeof *out);
    CUresult status = CALL(driver, cuDeviceGet)(&device, (int)ordinal);
    if (status == CUDA_SUCCESS)
        status = CALL(driver, cuDeviceGetName)(out->name, (int)sizeof out->name, device);
    if (status == CUDA_SUCCESS)
        status = CALL(driver, cuDeviceGetUuid)(&uuid, device);
    if (status != CUDA_SUCCESS)
        return (int)status;
    _Static_assert(sizeof uuid == sizeof out->uuid, "a UUID has 16 bytes");
    memcpy(out->uuid, &uuid, sizeof out->uuid);
    return (int)read_abilities(driver, device, out);
}

static kvl_cuda_status context_open(
    const struct kvl_cuda_driver *driver, uint32_t ordinal, void **context) {
    CUdevice device;
    CUcontext made = NULL;
    CUresult status = CALL(driver, cuDeviceGet)(&device, (int)ordinal);
    if (status == CUDA_SUCCESS)
        status = CALL(driver, cuDevicePrimaryCtxRetain)(&made, device);
    *context = made;
    return (int)status;
}

static void context_close(const struct kvl_cuda_driver *driver, uint32_t ordinal) {
    CUdevice device;
    if (CALL(driver, cuDeviceGet)(&device, (int)ordinal) == CUDA_SUCCESS)
        (void)CALL(driver, cuDevicePrimaryCtxRelease)(device);
}

static kvl_cuda_status context_enter(const struct kvl_cuda_driver *driver, void *context) {
    return (int)CALL(driver, cuCtxPushCurrent)(context);
}

static void context_leave(const struct kvl_cuda_driver *driver) {
    CUcontext left;
    (void)CALL(driver, cuCtxPopCurrent)(&left);
}

/* ---- memory --------------------------------------------------------------------------------- */

static CUmemAllocationProp exportable_memory(uint32_t ordinal) {
    CUmemAllocationProp wanted;
    memset(&wanted, 0, sizeof wanted);
    wanted.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    wanted.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    wanted.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    wanted.location.id = (int)ordinal;
    return wanted;
}

static kvl_cuda_status memory_free_bytes(const struct kvl_cuda_driver *driver, uint64_t *bytes) {
    size_t left = 0, total = 0;
    CUresult status = CALL(driver, cuMemGetInfo)(&left, &total);
    *bytes = left;
    return (int)status;
}

static kvl_cuda_status memory_granularity(
    const struct kvl_cuda_driver *driver, uint32_t ordinal, uint64_t *bytes) {
    const CUmemAllocationProp wanted = exportable_memory(ordinal);
    size_t granule = 0;
    CUresult status = CALL(driver, cuMemGetAllocationGranularity)(
        &granule, &wanted, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED);
    *bytes = granule;
    return (int)status;
}

static kvl_cuda_status memory_create(
    const struct kvl_cuda_driver *driver, uint32_t ordinal, uint64_t bytes, uint64_t *handle) {
    const CUmemAllocationProp wanted = exportable_memory(ordinal);
    CUmemGenericAllocationHandle made = 0;
    CUresult status = CALL(driver, cuMemCreate)(&made, bytes, &wanted, 0);
    *handle = made;
    return (int)status;
}

static void memory_release(const struct kvl_cuda_driver *driver, uint64_t handle) {
    (void)CALL(driver, cuMemRelease)(handle);
}

static kvl_cuda_status memory_export(
    const struct kvl_cuda_driver *driver, uint64_t handle, int *fd) {
    return (int)CALL(driver, cuMemExportToShareableHandle)(
        fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
}

static kvl_cuda_status memory_import(
    const struct kvl_cuda_driver *driver, int fd, uint64_t *handle) {
    CUmemGenericAllocationHandle made = 0;
    CUresult status = CALL(driver, cuMemImportFromShareableHandle)(
        &made, (void *)(uintptr_t)fd, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
    *handle = made;
    return (int)status;
}

static kvl_cuda_status memory_map(const struct kvl_cuda_driver *driver, uint32_t ordinal,
    uint64_t handle, uint64_t bytes, uint64_t *address) {
    CUdeviceptr at = 0;
    CUmemAccessDesc access;
    memset(&access, 0, sizeof access);
    access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    access.location.id = (int)ordinal;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    *address = 0;
    CUresult status = CALL(driver, cuMemAddressReserve)(&at, bytes, 0, 0, 0);
    if (status != CUDA_SUCCESS)
        return (int)status;
    status = CALL(driver, cuMemMap)(at, bytes, 0, handle, 0);
    if (status == CUDA_SUCCESS) {
        status = CALL(driver, cuMemSetAccess)(at, bytes, &access, 1);
        if (status != CUDA_SUCCESS)
            (void)CALL(driver, cuMemUnmap)(at, bytes);
    }
    if (status != CUDA_SUCCESS)
        (void)CALL(driver, cuMemAddressFree)(at, bytes);
    else
        *address = at;
    return (int)status;
}

static void memory_unmap(const struct kvl_cuda_driver *driver, uint64_t address, uint64_t bytes) {
    (void)CALL(driver, cuMemUnmap)(address, bytes);
    (void)CALL(driver, cuMemAddressFree)(address, bytes);
}

static kvl_cuda_status host_register(
    const struct kvl_cuda_driver *driver, void *address, uint64_t bytes) {
    return (int)CALL(driver, cuMemHostRegister)(address, bytes, CU_MEMHOSTREGISTER_PORTABLE);
}

static void host_unregister(const struct kvl_cuda_driver *driver, void *address) {
    (void)CALL(driver, cuMemHostUnregister)(address);
}

static kvl_cuda_status host_alloc(
    const struct kvl_cuda_driver *driver, uint64_t bytes, void **address, uint64_t *device) {
    CUdeviceptr seen = 0;
    CUresult status = CALL(driver, cuMemHostAlloc)(
        address, bytes, CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP);
    if (status != CUDA_SUCCESS)
        return (int)status;
    status = CALL(driver, cuMemHostGetDevicePointer)(&seen, *address, 0);
    if (status != CUDA_SUCCESS)
        (void)CALL(driver, cuMemFreeHost)(*address);
    *device = seen;
    return (int)status;
}

static void host_free(const struct kvl_cuda_driver *driver, void *address) {
    (void)CALL(driver, cuMemFreeHost)(address);
}

/* ---- streams -------------------------------------------------------------------------------- */

static kvl_cuda_status stream_create(
    const struct kvl_cuda_driver *driver, bool urgent, void **stream) {
    int least = 0, greatest = 0;
    CUstream made = NULL;
    CUresult status = CALL(driver, cuCtxGetStreamPriorityRange)(&least, &greatest);
    if (status == CUDA_SUCCESS)
        status = CALL(driver, cuStreamCreateWithPriority)(
            &made, CU_STREAM_NON_BLOCKING, urgent ? greatest : least);
    *stream = made;
    return (int)status;
}

static void stream_destroy(const struct kvl_cuda_driver *driver, void *stream) {
    (void)CALL(driver, cuStreamDestroy)(stream);
}

static kvl_cuda_status stream_query(const struct kvl_cuda_driver *driver, void *stream) {
    return (int)CALL(driver, cuStreamQuery)(stream);
}

static CUresult copy_one_by_one(const struct kvl_cuda_driver *driver, CUstream stream,
    enum kvl_cuda_direction direction, const struct kvl_cuda_copy *copies, uint32_t count) {
    CUresult status = CUDA_SUCCESS;
    for (uint32_t i = 0; i < count && status == CUDA_SUCCESS; i++) {
        const struct kvl_cuda_copy *copy = &copies[i];
        if (direction == KVL_CUDA_TO_DEVICE)
            status =
                CALL(driver, cuMemcpyHtoDAsync)(copy->device, copy->host, copy->copy_bytes, stream);
        else
            status =
                CALL(driver, cuMemcpyDtoHAsync)(copy->host, copy->device, copy->copy_bytes, stream);
    }
    return status;
}

static CUresult copy_batch(const struct kvl_cuda_driver *driver, CUstream stream,
    enum kvl_cuda_direction direction, const struct kvl_cuda_copy *copies, uint32_t count) {
    CUdeviceptr device[BATCH_MAX], host[BATCH_MAX];
    size_t bytes[BATCH_MAX], first = 0, failed = 0;
    CUmemcpyAttributes attributes;
    memset(&attributes, 0, sizeof attributes);
    attributes.srcAccessOrder = CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
    for (uint32_t i = 0; i < count; i++) {
        device[i] = copies[i].device;
        host[i] = (CUdeviceptr)(uintptr_t)copies[i].host;
        bytes[i] = copies[i].copy_bytes;
    }
    CUdeviceptr *to = direction == KVL_CUDA_TO_DEVICE ? device : host;
    CUdeviceptr *from = direction == KVL_CUDA_TO_DEVICE ? host : device;
    if (REAL(driver)->batch != NULL)
        return REAL(driver)->batch(to, from, bytes, count, &attributes, &first, 1, stream);
    return REAL(driver)->old_batch(to, from, bytes, count, &attributes, &first, 1, &failed, stream);
}

static bool has_batch(const struct kvl_cuda_driver *driver) {
    return (REAL(driver)->batch != NULL || REAL(driver)->old_batch != NULL) &&
           !atomic_load(&REAL(driver)->batch_refused);
}

/* One copy is one call either way. Where the driver has batches but refuses them, copies go one by
 * one for good; those that a refused batch made are made again. */
static kvl_cuda_status copy(const struct kvl_cuda_driver *driver, void *stream,
    enum kvl_cuda_direction direction, const struct kvl_cuda_copy *copies, uint32_t count) {
    CUresult status = CUDA_SUCCESS;
    for (uint32_t i = 0; i < count && status == CUDA_SUCCESS; i += BATCH_MAX) {
        const uint32_t some = count - i < BATCH_MAX ? count - i : BATCH_MAX;
        if (some > 1 && has_batch(driver)) {
            status = copy_batch(driver, stream, direction, copies + i, some);
            if (status != CUDA_ERROR_INVALID_VALUE && status != CUDA_ERROR_NOT_SUPPORTED)
                continue;
            atomic_store(&REAL(driver)->batch_refused, true);
        }
        status = copy_one_by_one(driver, stream, direction, copies + i, some);
    }
    return (int)status;
}

static const char *shortfall(const struct kvl_cuda_driver *driver) {
    if (atomic_load(&REAL(driver)->batch_refused))
        return "the NVIDIA driver refuses batches of copies: they go one by one";
    return has_batch(driver)
               ? NULL
               : "the NVIDIA driver has no batches of copies (12.8 has them): they go one by one";
}

static kvl_cuda_status write_word(
    const struct kvl_cuda_driver *driver, void *stream, uint64_t device, uint32_t value) {
    return (int)CALL(driver, cuStreamWriteValue32)(
        stream, device, value, CU_STREAM_WRITE_VALUE_DEFAULT);
}

static const struct kvl_cuda_driver real_table = {
    .err_from = cuda_err_from,
    .text = cuda_text,
    .device_count = device_count,
    .device_info = device_info,
    .context_open = context_open,
    .context_close = context_close,
    .context_enter = context_enter,
    .context_leave = context_leave,
    .memory_free_bytes = memory_free_bytes,
    .memory_granularity = memory_granularity,
    .memory_create = memory_create,
    .memory_release = memory_release,
    .memory_export = memory_export,
    .memory_import = memory_import,
    .memory_map = memory_map,
    .memory_unmap = memory_unmap,
    .host_register = host_register,
    .host_unregister = host_unregister,
    .host_alloc = host_alloc,
    .host_free = host_free,
    .stream_create = stream_create,
    .stream_destroy = stream_destroy,
    .stream_query = stream_query,
    .copy = copy,
    .shortfall = shortfall,
    .write_word = write_word,
};

/* ---- opening -------------------------------------------------------------------------------- */

static void find_batch(struct real_driver *driver, void *library) {
    *(void **)(void *)&driver->batch = dlsym(library, "cuMemcpyBatchAsync_v2");
    if (driver->batch == NULL)
        *(void **)(void *)&driver->old_batch = dlsym(library, "cuMemcpyBatchAsync");
}

/* The name of the first call that is not there; NULL: all are. */
static const char *find_calls(struct real_driver *driver, void *library) {
    const char *missing = NULL;
#define X(call)                                                                                    \
    *(void **)(void *)&driver->POINTER(call) = dlsym(library, NAME_OF(call));                      \
    if (driver->POINTER(call) == NULL && missing == NULL)                                          \
        missing = NAME_OF(call);
    CALLS(X)
#undef X
    find_batch(driver, library);
    return missing;
}

static kvl_err check_version(
    struct real_driver *driver, const char *missing, struct kvl_errmsg *msg) {
    int version = 0;
    if (driver->POINTER(cuDriverGetVersion) == NULL ||
        driver->POINTER(cuDriverGetVersion)(&version) != CUDA_SUCCESS)
        return kvl_fail(msg, KVL_ERR_UNSUPPORTED, "libcuda.so.1 does not say which version it is");
    snprintf(
        driver->name, sizeof driver->name, "libcuda %d.%d", version / 1000, version % 1000 / 10);
    if (version < NEEDED_VERSION)
        return kvl_fail(msg, KVL_ERR_VERSION,
            "the NVIDIA driver is too old: it supports CUDA %d.%d, needed is %d.%d or later",
            version / 1000, version % 1000 / 10, NEEDED_VERSION / 1000, NEEDED_VERSION % 1000 / 10);
    if (missing != NULL)
        return kvl_fail(msg, KVL_ERR_VERSION, "the NVIDIA driver (%s) has no %s: update it",
            driver->name, missing);
    return KVL_OK;
}

static kvl_err start(struct real_driver *driver, void *library, struct kvl_errmsg *msg) {
    kvl_err err = check_version(driver, find_calls(driver, library), msg);
    if (err != KVL_OK)
        return err;
    CUresult status = driver->POINTER(cuInit)(0);
    if (status == CUDA_SUCCESS)
        return KVL_OK;
    err = cuda_err_from((int)status);
    return kvl_fail(msg, err == KVL_ERR_CLOSED ? KVL_ERR_IO : err,
        "the NVIDIA driver (%s) does not start: %s", driver->name,
        cuda_text(&driver->base, (int)status));
}

kvl_err kvl_cuda_driver_open(struct kvl_cuda_driver **out, struct kvl_errmsg *msg) {
    *out = NULL;
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        return kvl_fail(msg, KVL_ERR_UNSUPPORTED,
            "no NVIDIA driver is installed (%s): use --device cpu", dlerror());
    struct real_driver *driver = calloc(1, sizeof *driver);
    if (driver == NULL)
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory for a driver's table");
    driver->base = real_table;
    driver->base.name = driver->name;
    kvl_err err = start(driver, library, msg);
    if (err != KVL_OK) {
        free(driver);
        return err;
    }
    *out = &driver->base;
    return KVL_OK;
}

/* The library stays loaded: it may have threads, and others in the process may use it. */
void kvl_cuda_driver_close(struct kvl_cuda_driver *driver) {
    free(driver);
}
