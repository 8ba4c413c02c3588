/* Which memory has come, on pages of the system's size: this one's, and one of 64 KiB, where
 * mincore refuses the addresses between. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "resident.h"

#define MIB (UINT64_C(1) << 20)
#define LARGE_PAGE_BYTES 65536u

static long page_bytes; /* as the code under test is told */

long __real_sysconf(int name);
long __wrap_sysconf(int name);
int __real_mincore(void *address, size_t bytes, unsigned char *state);
int __wrap_mincore(void *address, size_t bytes, unsigned char *state);

long __wrap_sysconf(int name) {
    return name == _SC_PAGESIZE ? page_bytes : __real_sysconf(name);
}

int __wrap_mincore(void *address, size_t bytes, unsigned char *state) {
    if ((uintptr_t)address % (uintptr_t)page_bytes == 0)
        return __real_mincore(address, bytes, state);
    errno = EINVAL;
    return -1;
}

/* Touches whole large pages, so that the answer is the same for both sizes. */
static void touch(uint8_t *from, uint64_t bytes) {
    for (uint64_t i = 0; i < bytes; i += 4096)
        from[i] = 1;
}

static void look_at_memory(void) {
    const uint64_t bytes = 5 * MIB + 12288; /* ends within a large page */
    uint8_t *mapped = mmap(NULL, bytes + 2 * LARGE_PAGE_BYTES, PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(mapped != MAP_FAILED);
    (void)madvise(mapped, bytes + 2 * LARGE_PAGE_BYTES, MADV_NOHUGEPAGE);
    uint8_t *base = mapped + -(uintptr_t)mapped % LARGE_PAGE_BYTES;
    assert_false(kvl_memory_is_resident(base, bytes));
    touch(base, 4 * MIB - LARGE_PAGE_BYTES);
    touch(base + 4 * MIB, MIB + LARGE_PAGE_BYTES);
    assert_false(kvl_memory_is_resident(base, bytes)); /* the second chunk's end is missing */
    touch(base + 4 * MIB - LARGE_PAGE_BYTES, LARGE_PAGE_BYTES);
    assert_true(kvl_memory_is_resident(base, bytes));
    assert_true(kvl_memory_is_resident(base, 2 * MIB));
    munmap(mapped, bytes + 2 * LARGE_PAGE_BYTES);
}

static void on_this_systems_pages(void **state) {
    (void)state;
    page_bytes = __real_sysconf(_SC_PAGESIZE);
    look_at_memory();
}

static void on_pages_of_64_kib(void **state) {
    (void)state;
    page_bytes = LARGE_PAGE_BYTES;
    look_at_memory();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(on_this_systems_pages), cmocka_unit_test(on_pages_of_64_kib)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
