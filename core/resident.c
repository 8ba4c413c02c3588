#include "resident.h"

#include <sys/mman.h>

#include "block.h"

#define SAMPLE_BYTES (UINT64_C(2) << 20)

static bool page_is_resident(uint8_t *address) {
    unsigned char state = 0;
    return mincore(address, KVL_PAGE_BYTES, &state) == 0 && (state & 1) != 0;
}

bool kvl_memory_is_resident(void *address, uint64_t range_bytes) {
    uint8_t *base = address;
    for (uint64_t end = SAMPLE_BYTES; end < range_bytes; end += SAMPLE_BYTES)
        if (!page_is_resident(base + end - KVL_PAGE_BYTES))
            return false;
    return page_is_resident(base + (range_bytes - 1) / KVL_PAGE_BYTES * KVL_PAGE_BYTES);
}
