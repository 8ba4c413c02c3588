/* driver_none.c - the driver of a build without the CUDA toolkit. */
#include "device_cuda/cuda_driver.h"

kvl_err kvl_cuda_driver_open(struct kvl_cuda_driver **out, struct kvl_errmsg *msg) {
    *out = NULL;
    return kvl_fail(msg, KVL_ERR_UNSUPPORTED,
        "this build has no CUDA: build it where the CUDA toolkit is, or use --device cpu");
}

void kvl_cuda_driver_close(struct kvl_cuda_driver *driver) {
    (void)driver; /* there is none */
}
