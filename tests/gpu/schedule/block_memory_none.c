/* block_memory_none.c - for builds without CUDA. */
#include "block_memory.h"

kvl_err block_memory_open_cuda(
    struct kvl_client *client, struct block_memory *out, struct kvl_errmsg *msg) {
    (void)client;
    *out = (struct block_memory){0};
    return kvl_fail(msg, KVL_ERR_UNSUPPORTED, "this build has no CUDA");
}
