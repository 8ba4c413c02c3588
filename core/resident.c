#include "resident.h"

#include <sys/mman.h>
#include <unistd.h>

#define SAMPLE_BYTES (UINT64_C(2) << 20)

/* mincore refuses an address inside a page, and pages may have 64 KiB. */
static bool is_resident_at(uint8_t *address) {
    unsigned char state = 0;
    uint8_t *page = address - (uintptr_t)address % (uintptr_t)sysconf(_SC_PAGESIZE);
    return mincore(page, 1, &state) == 0 && (state & 1) != 0;
}

bool kvl_memory_is_resident(void *address, uint64_t range_bytes) {
    uint8_t *base = address;
    for (uint64_t end = SAMPLE_BYTES; end < range_bytes; end += SAMPLE_BYTES)
        if (!is_resident_at(base + end - 1))
            return false;
    return is_resident_at(base + range_bytes - 1);
}
