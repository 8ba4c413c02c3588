/* cuda_err.c - see cuda_err.h. */
#include "cuda_err.h"

kvl_err kvl_cuda_err_from(cudaError_t error) {
    switch (error) {
    case cudaSuccess:
        return KVL_OK;
    case cudaErrorMemoryAllocation:
        return KVL_ERR_NOMEM;
    case cudaErrorNotSupported:
    case cudaErrorStreamCaptureUnsupported:
        return KVL_ERR_UNSUPPORTED;
    default:
        return KVL_ERR_IO;
    }
}

kvl_err kvl_cuda_check(struct kvl_errmsg *msg, cudaError_t error, const char *what) {
    if (error == cudaSuccess) {
        return KVL_OK;
    }
    return kvl_fail(msg, kvl_cuda_err_from(error), "%.300s: %s (%s)", what, cudaGetErrorName(error),
        cudaGetErrorString(error));
}
