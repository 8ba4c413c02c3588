/* huge_memory.c - see huge_memory.h. */
#include "huge_memory.h"

#include <stddef.h>
#include <sys/mman.h>

#define HUGE_BYTES (UINT64_C(2) << 20)

/* 0 when it overflows. */
static uint64_t whole_pages(uint64_t bytes) {
    uint64_t padded;
    if (__builtin_add_overflow(bytes, HUGE_BYTES - 1, &padded)) {
        return 0;
    }
    return padded / HUGE_BYTES * HUGE_BYTES;
}

/* Maps 2 MiB more than needed and unmaps what stands out of the alignment. */
void *kvl_huge_map(uint64_t bytes) {
    const uint64_t whole = whole_pages(bytes);
    if (whole == 0 || whole > SIZE_MAX - HUGE_BYTES) {
        return NULL;
    }
    uint8_t *base =
        mmap(NULL, whole + HUGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) {
        return NULL;
    }
    const uint64_t head = (HUGE_BYTES - (uintptr_t)base % HUGE_BYTES) % HUGE_BYTES;
    if (head > 0) {
        (void)munmap(base, head);
    }
    (void)munmap(base + head + whole, HUGE_BYTES - head);
    (void)madvise(base + head, whole, MADV_HUGEPAGE);
    return base + head;
}

void kvl_huge_unmap(void *memory, uint64_t bytes) {
    if (memory != NULL) {
        (void)munmap(memory, whole_pages(bytes));
    }
}
