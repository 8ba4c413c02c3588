/* cuda_device_name.c - "cuda" and "cuda:N", in every build. */
#include <string.h>

#include "cuda_device.h"
#include "size.h"

bool kvl_cuda_device_parse(const char *text, uint32_t *number) {
    uint64_t value = 0;
    *number = 0;
    if (strcmp(text, "cuda") == 0)
        return true;
    if (strncmp(text, "cuda:", 5) != 0 || !kvl_parse_number(text + 5, KVL_CUDA_DEVICE_MAX, &value))
        return false;
    *number = (uint32_t)value;
    return true;
}
