/* none.c - what a build without CUDA says of its CUDA backend. */
#include "../backend.h"

const struct kvl_backend_ops *const kvl_backend_cuda = NULL;
