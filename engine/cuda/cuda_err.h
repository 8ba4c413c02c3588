/* cuda_err.h - what the CUDA runtime, driver and cuBLASLt answer, as kvl_err. */
#ifndef KVL_CUDA_ERR_H
#define KVL_CUDA_ERR_H

#include <cuda_runtime_api.h>

#include "kvl_err.h"

/* NOMEM (device or pinned memory), UNSUPPORTED, IO (a lost device, a failed launch, ...). */
kvl_err kvl_cuda_err_from(cudaError_t error);
/* As kvl_fail: "what: name (text)". cudaSuccess: KVL_OK. */
KVL_MUST_CHECK kvl_err kvl_cuda_check(struct kvl_errmsg *msg, cudaError_t error, const char *what);

/* Leaves the function with the error when the call fails; msg names the call. */
#define KVL_CUDA_TRY(msg, call)                                                                    \
    do {                                                                                           \
        const kvl_err kvl_try_err = kvl_cuda_check((msg), (call), #call);                          \
        if (kvl_try_err != KVL_OK) {                                                               \
            return kvl_try_err;                                                                    \
        }                                                                                          \
    } while (0)

/* The same of a call that says itself what went wrong. */
#define KVL_CUDA_TRY_ERR(call)                                                                     \
    do {                                                                                           \
        const kvl_err kvl_try_err = (call);                                                        \
        if (kvl_try_err != KVL_OK) {                                                               \
            return kvl_try_err;                                                                    \
        }                                                                                          \
    } while (0)

#endif
