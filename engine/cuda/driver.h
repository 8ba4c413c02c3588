/* driver.h - the few calls of the CUDA driver that the runtime has no equal of, looked up through
 * the runtime, so that nothing links libcuda. */
#ifndef KVL_CUDA_DRIVER_H
#define KVL_CUDA_DRIVER_H

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "kvl_err.h"

struct kvl_cuda_calls {
    CUresult (*get_error_name)(CUresult error, const char **name);
    CUresult (*stream_wait_value32)(
        CUstream stream, CUdeviceptr address, cuuint32_t value, unsigned flags);
    CUresult (*import_handle)(
        CUmemGenericAllocationHandle *handle, void *os_handle, CUmemAllocationHandleType type);
    CUresult (*properties_of)(CUmemAllocationProp *properties, CUmemGenericAllocationHandle handle);
    CUresult (*granularity)(size_t *bytes, const CUmemAllocationProp *properties,
        CUmemAllocationGranularity_flags option);
    CUresult (*reserve)(CUdeviceptr *address, size_t bytes, size_t alignment, CUdeviceptr hint,
        unsigned long long flags);
    CUresult (*map)(CUdeviceptr address, size_t bytes, size_t offset,
        CUmemGenericAllocationHandle handle, unsigned long long flags);
    CUresult (*set_access)(
        CUdeviceptr address, size_t bytes, const CUmemAccessDesc *access, size_t count);
    CUresult (*release)(CUmemGenericAllocationHandle handle);
    CUresult (*unmap)(CUdeviceptr address, size_t bytes);
    CUresult (*free_address)(CUdeviceptr address, size_t bytes);
};

/* Errors: UNSUPPORTED (a driver without one of them, or none at all). */
KVL_MUST_CHECK kvl_err kvl_cuda_calls_open(struct kvl_cuda_calls *out, struct kvl_errmsg *msg);
/* As kvl_cuda_check. */
KVL_MUST_CHECK kvl_err kvl_cuda_driver_check(
    const struct kvl_cuda_calls *driver, struct kvl_errmsg *msg, CUresult result, const char *what);

#endif
