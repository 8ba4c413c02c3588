/* driver.c - see driver.h. */
#include "driver.h"

#include <string.h>

kvl_err kvl_cuda_calls_open(struct kvl_cuda_calls *out, struct kvl_errmsg *msg) {
    /* version: the interface that cuda.h declares under the name, 1000 * major + 10 * minor */
    const struct {
        const char *name;
        unsigned version;
        void *function; /* where its pointer goes */
    } calls[] = {
        {"cuGetErrorName", 6000, &out->get_error_name},
        {"cuStreamWaitValue32", 11070, &out->stream_wait_value32},
        {"cuMemImportFromShareableHandle", 10020, &out->import_handle},
        {"cuMemGetAllocationPropertiesFromHandle", 10020, &out->properties_of},
        {"cuMemGetAllocationGranularity", 10020, &out->granularity},
        {"cuMemAddressReserve", 10020, &out->reserve},
        {"cuMemMap", 10020, &out->map},
        {"cuMemSetAccess", 10020, &out->set_access},
        {"cuMemRelease", 10020, &out->release},
        {"cuMemUnmap", 10020, &out->unmap},
        {"cuMemAddressFree", 10020, &out->free_address},
    };
    for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++) {
        void *found = NULL;
        enum cudaDriverEntryPointQueryResult result;
        const cudaError_t error = cudaGetDriverEntryPointByVersion(
            calls[i].name, &found, calls[i].version, cudaEnableDefault, &result);
        if (error != cudaSuccess || result != cudaDriverEntryPointSuccess || found == NULL) {
            return kvl_fail(msg, KVL_ERR_UNSUPPORTED,
                "the NVIDIA driver has no %s; install a driver of CUDA %d.0 or newer",
                calls[i].name, CUDART_VERSION / 1000);
        }
        memcpy(calls[i].function, &found, sizeof found);
    }
    return KVL_OK;
}

static kvl_err err_from(CUresult result) {
    return result == CUDA_ERROR_OUT_OF_MEMORY ? KVL_ERR_NOMEM
           : result == CUDA_ERROR_NOT_SUPPORTED || result == CUDA_ERROR_INVALID_DEVICE
               ? KVL_ERR_UNSUPPORTED
               : KVL_ERR_IO;
}

kvl_err kvl_cuda_driver_check(const struct kvl_cuda_calls *driver, struct kvl_errmsg *msg,
    CUresult result, const char *what) {
    if (result == CUDA_SUCCESS) {
        return KVL_OK;
    }
    const char *name = NULL;
    if (driver->get_error_name(result, &name) != CUDA_SUCCESS || name == NULL) {
        name = "unknown";
    }
    return kvl_fail(msg, err_from(result), "%s: %s (%d)", what, name, (int)result);
}
