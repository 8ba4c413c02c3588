#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "arena.h"

#define MIB (UINT64_C(1) << 20)
#define SMOLLM2_BLOCK_BYTES UINT64_C(1474560) /* 64 tokens of f16 KV */

static struct kvl_arena *make(uint64_t capacity_bytes) {
    struct kvl_arena_options options = {
        .name = "test", .capacity_bytes = capacity_bytes, .touch_threads = 2};
    struct kvl_arena *arena = NULL;
    struct kvl_errmsg msg = {""};
    kvl_err err = kvl_arena_create(&options, &arena, &msg);
    assert_string_equal(msg.text, "");
    assert_int_equal(err, KVL_OK);
    return arena;
}

static struct kvl_arena *make_touched(uint64_t capacity_bytes) {
    struct kvl_arena *arena = make(capacity_bytes);
    kvl_arena_wait_touched(arena);
    return arena;
}

/* Allocates until NOSPC; returns how many. */
static uint64_t fill(
    struct kvl_arena *arena, uint64_t slot_bytes, uint64_t *offsets, uint64_t max) {
    uint64_t count = 0, offset;
    kvl_err err;
    while ((err = kvl_arena_alloc(arena, slot_bytes, &offset)) == KVL_OK) {
        assert_true(count < max);
        offsets[count++] = offset;
    }
    assert_int_equal(err, KVL_ERR_NOSPC);
    return count;
}

static int compare(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void capacity_of_exactly_n_slots_gives_n_disjoint_slots(void **state) {
    (void)state;
    const uint64_t slot_bytes[] = {4096, 12288, 69632, SMOLLM2_BLOCK_BYTES};
    for (size_t s = 0; s < 4; s++) {
        struct kvl_arena *arena = make_touched(13 * slot_bytes[s]);
        uint64_t offsets[13];
        assert_int_equal(fill(arena, slot_bytes[s], offsets, 13), 13);
        qsort(offsets, 13, sizeof offsets[0], compare);
        for (uint64_t i = 0; i < 13; i++)
            assert_int_equal(offsets[i], i * slot_bytes[s]);
        assert_int_equal(kvl_arena_stats(arena).used_bytes, 13 * slot_bytes[s]);
        kvl_arena_destroy(arena);
    }
}

static void little_is_wasted_for_blocks_of_a_real_model(void **state) {
    (void)state;
    static uint64_t offsets[200];
    const uint64_t capacities[] = {64 * MIB, 100 * MIB, 200 * MIB};
    for (size_t i = 0; i < 3; i++) {
        struct kvl_arena *arena = make_touched(capacities[i]);
        uint64_t count = fill(arena, SMOLLM2_BLOCK_BYTES, offsets, 200);
        assert_int_equal(count, capacities[i] / SMOLLM2_BLOCK_BYTES);
        kvl_arena_destroy(arena);
    }
}

static void small_and_odd_capacities_work(void **state) {
    (void)state;
    struct kvl_arena *arena = make_touched(64 * 1024 + 5);
    assert_int_equal(kvl_arena_stats(arena).capacity_bytes, 64 * 1024);
    uint64_t offsets[16], offset;
    assert_int_equal(kvl_arena_alloc(arena, 64 * 1024 + 1, &offset), KVL_ERR_TOOBIG);
    assert_int_equal(kvl_arena_alloc(arena, UINT64_MAX, &offset), KVL_ERR_TOOBIG);
    assert_int_equal(kvl_arena_alloc(arena, 0, &offset), KVL_ERR_INVALID);
    assert_int_equal(fill(arena, 4000, offsets, 16), 16); /* rounded to 4096 */
    kvl_arena_destroy(arena);
    struct kvl_errmsg msg = {""};
    const struct kvl_arena_options none = {.name = "device", .capacity_bytes = 4095};
    assert_int_equal(kvl_arena_create(&none, &arena, &msg), KVL_ERR_INVALID);
    assert_non_null(strstr(msg.text, "device"));
    assert_null(arena);
}

static void empty_slabs_serve_other_slot_sizes(void **state) {
    (void)state;
    static uint64_t offsets[1024];
    struct kvl_arena *arena = make_touched(4 * MIB);
    for (int round = 0; round < 3; round++) {
        uint64_t count = fill(arena, 4096, offsets, 1024);
        assert_int_equal(count, 1024);
        for (uint64_t i = 0; i < count; i++)
            kvl_arena_free(arena, offsets[(i * 7) % count]);
        assert_int_equal(kvl_arena_stats(arena).used_bytes, 0);
        assert_int_equal(fill(arena, 4 * MIB, offsets, 1), 1); /* the whole of it as one slot */
        kvl_arena_free(arena, offsets[0]);
        count = fill(arena, 3 * 4096, offsets, 1024);
        assert_true(count >= 1024 / 3 - 1);
        for (uint64_t i = 0; i < count; i++)
            kvl_arena_free(arena, offsets[i]);
    }
    kvl_arena_destroy(arena);
}

/* Random allocs and frees of three sizes against a map of pages: no overlap, no byte lost. */
static void random_use_never_overlaps_and_never_passes_the_cap(void **state) {
    (void)state;
    enum { PAGES = 512, LIVE = 512 };
    const uint64_t sizes[] = {4096, 5 * 4096, 23 * 4096};
    static uint8_t owner[PAGES];
    static struct { uint64_t offset, pages; } live[LIVE];
    const char *given = getenv("KVL_TEST_SEED");
    unsigned seed = given ? (unsigned)strtoul(given, NULL, 10) : 12345u;
    print_message("seed %u (KVL_TEST_SEED)\n", seed);
    struct kvl_arena *arena = make_touched(PAGES * 4096);
    uint64_t count = 0, used = 0;
    for (int step = 0; step < 20000; step++) {
        seed = seed * 1664525u + 1013904223u;
        if ((seed >> 16) % 5 < 3) {
            uint64_t bytes = sizes[(seed >> 8) % 3], offset;
            kvl_err err = kvl_arena_alloc(arena, bytes, &offset);
            if (err == KVL_ERR_NOSPC)
                continue;
            assert_int_equal(err, KVL_OK);
            assert_true(offset % 4096 == 0 && offset + bytes <= PAGES * 4096);
            for (uint64_t page = offset / 4096; page < (offset + bytes) / 4096; page++)
                assert_int_equal(owner[page]++, 0);
            live[count].offset = offset;
            live[count++].pages = bytes / 4096;
            used += bytes;
        } else if (count > 0) {
            uint64_t i = (seed >> 4) % count;
            kvl_arena_free(arena, live[i].offset);
            memset(&owner[live[i].offset / 4096], 0, live[i].pages);
            used -= live[i].pages * 4096;
            live[i] = live[--count];
        }
        assert_int_equal(kvl_arena_stats(arena).used_bytes, used);
    }
    kvl_arena_destroy(arena);
}

static void only_touched_slots_are_handed_out_lowest_first(void **state) {
    (void)state;
    struct kvl_arena *arena = make(32 * MIB);
    uint64_t offset, expected = 0;
    while (expected < 32 * MIB) {
        kvl_err err = kvl_arena_alloc(arena, MIB, &offset);
        if (err == KVL_ERR_AGAIN)
            continue;
        assert_int_equal(err, KVL_OK);
        assert_int_equal(offset, expected);
        assert_true(kvl_arena_stats(arena).touched_bytes > 0);
        memset(kvl_arena_address(arena, offset), 0x5A, MIB);
        expected += MIB;
    }
    assert_int_equal(kvl_arena_alloc(arena, MIB, &offset), KVL_ERR_NOSPC);
    kvl_arena_wait_touched(arena);
    assert_int_equal(kvl_arena_stats(arena).touched_bytes, 32 * MIB);
    assert_int_equal((uintptr_t)kvl_arena_address(arena, 0) % (2 * MIB), 0);
    kvl_arena_destroy(arena);
}

/* What the kernel says is mapped by huge pages of shared memory in this process. */
static uint64_t huge_mapped_bytes(void) {
    FILE *smaps = fopen("/proc/self/smaps", "re");
    assert_non_null(smaps);
    char line[512];
    uint64_t total = 0, kib;
    while (fgets(line, sizeof line, smaps)) {
        if (sscanf(line, "ShmemPmdMapped: %lu kB", &kib) == 1)
            total += kib * 1024;
    }
    fclose(smaps);
    return total;
}

static void huge_bytes_are_real_or_the_fallback_is_said(void **state) {
    (void)state;
    struct kvl_log *log = kvl_log_create(KVL_LOG_INFO, NULL, NULL);
    const struct kvl_arena_options options = {
        .name = "test", .capacity_bytes = 16 * MIB + 4096, .log = log};
    struct kvl_arena *arena;
    assert_int_equal(kvl_arena_create(&options, &arena, NULL), KVL_OK);
    kvl_arena_wait_touched(arena);
    struct kvl_arena_stats stats = kvl_arena_stats(arena);
    char text[256];
    assert_int_equal(stats.touched_bytes, 16 * MIB + 4096);
    if (stats.huge_bytes == 0)
        assert_int_equal(kvl_log_fallback_at(log, 0, text, sizeof text), 1);
    assert_true(stats.huge_bytes <= 16 * MIB);
    assert_true(huge_mapped_bytes() >= stats.huge_bytes);
    kvl_arena_destroy(arena);
    kvl_log_destroy(log);
}

static void without_huge_pages_it_works_and_warns_once(void **state) {
    (void)state;
    struct kvl_log *log = kvl_log_create(KVL_LOG_INFO, NULL, NULL);
    const struct kvl_arena_options options = {
        .name = "test", .capacity_bytes = 40 * MIB, .touch_threads = 2, .log = log};
    struct kvl_arena *arena;
    assert_int_equal(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0), 0);
    assert_int_equal(kvl_arena_create(&options, &arena, NULL), KVL_OK);
    kvl_arena_wait_touched(arena);
    assert_int_equal(prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0), 0);
    struct kvl_arena_stats stats = kvl_arena_stats(arena);
    assert_int_equal(stats.touched_bytes, 40 * MIB);
    assert_int_equal(stats.huge_bytes, 0);
    char text[256];
    assert_int_equal(kvl_log_fallback_at(log, 0, text, sizeof text), 1);
    assert_non_null(strstr(text, "no huge pages for the test arena"));
    assert_int_equal(kvl_log_fallback_at(log, 1, text, sizeof text), 0);
    uint64_t offset;
    assert_int_equal(kvl_arena_alloc(arena, 40 * MIB, &offset), KVL_OK);
    memset(kvl_arena_address(arena, offset), 1, 40 * MIB);
    kvl_arena_destroy(arena);
    kvl_log_destroy(log);
}

static void destroy_while_touching_and_of_nothing(void **state) {
    (void)state;
    kvl_arena_destroy(make(512 * MIB));
    kvl_arena_destroy(NULL);
}

static void others_map_the_same_bytes_and_cannot_resize_them(void **state) {
    (void)state;
    struct kvl_arena *arena = make_touched(MIB);
    uint64_t offset;
    assert_int_equal(kvl_arena_alloc(arena, 8192, &offset), KVL_OK);
    memcpy(kvl_arena_address(arena, offset), "block", 6);
    int fd = kvl_arena_fd(arena);
    const char *other = mmap(NULL, MIB, PROT_READ, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(other, MAP_FAILED);
    assert_string_equal(other + offset, "block");
    assert_int_equal(ftruncate(fd, 4096), -1);
    assert_int_equal(ftruncate(fd, (off_t)(2 * MIB)), -1);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
    assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    munmap((void *)(uintptr_t)other, MIB);
    kvl_arena_destroy(arena);
}

static void more_than_the_machine_has_is_refused_with_its_size(void **state) {
    (void)state;
    struct kvl_arena *arena;
    struct kvl_errmsg msg = {""};
    const struct kvl_arena_options options = {.name = "host", .capacity_bytes = UINT64_C(1) << 46};
    assert_int_equal(kvl_arena_create(&options, &arena, &msg), KVL_ERR_NOMEM);
    assert_non_null(strstr(msg.text, "host tier asks for 70368744177664 bytes"));
    assert_null(arena);
}

/* In a child, as the limit would stay; sanitizers need more address space than any limit. */
static void an_address_space_limit_is_named(void **state) {
    (void)state;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    skip();
#else
    if (getenv("KVL_MEMCHECK") != NULL) /* valgrind itself would not fit */
        skip();
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        const struct rlimit limit = {.rlim_cur = 64 * MIB, .rlim_max = 64 * MIB};
        struct kvl_arena *arena;
        struct kvl_errmsg msg = {""};
        const struct kvl_arena_options options = {.name = "host", .capacity_bytes = 128 * MIB};
        int bad = setrlimit(RLIMIT_AS, &limit) != 0 ||
                  kvl_arena_create(&options, &arena, &msg) != KVL_ERR_NOMEM ||
                  !strstr(msg.text, "ulimit -v");
        _exit(bad);
    }
    int status = -1;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
#endif
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(capacity_of_exactly_n_slots_gives_n_disjoint_slots),
        cmocka_unit_test(little_is_wasted_for_blocks_of_a_real_model),
        cmocka_unit_test(small_and_odd_capacities_work),
        cmocka_unit_test(empty_slabs_serve_other_slot_sizes),
        cmocka_unit_test(random_use_never_overlaps_and_never_passes_the_cap),
        cmocka_unit_test(only_touched_slots_are_handed_out_lowest_first),
        cmocka_unit_test(huge_bytes_are_real_or_the_fallback_is_said),
        cmocka_unit_test(without_huge_pages_it_works_and_warns_once),
        cmocka_unit_test(destroy_while_touching_and_of_nothing),
        cmocka_unit_test(others_map_the_same_bytes_and_cannot_resize_them),
        cmocka_unit_test(more_than_the_machine_has_is_refused_with_its_size),
        cmocka_unit_test(an_address_space_limit_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
