/* cuda_device_none.c - of a build without CUDA. */
#include <stdio.h>

#include "cuda_device.h"

kvl_err kvl_cuda_device_create(
    const struct kvl_cuda_device_options *options, struct kvl_tier **out, struct kvl_errmsg *msg) {
    (void)options;
    *out = NULL;
    return kvl_fail(
        msg, KVL_ERR_UNSUPPORTED, "this build has no CUDA device tier; use --device cpu");
}

void kvl_cuda_device_pin(struct kvl_tier *device, struct kvl_tier *host, struct kvl_log *log) {
    (void)device;
    (void)host;
    (void)log;
}

bool kvl_cuda_device_look(uint32_t number, struct kvl_cuda_device_view *out) {
    *out = (struct kvl_cuda_device_view){0};
    snprintf(out->text, sizeof out->text, "this build has no CUDA");
    return number == 0;
}
