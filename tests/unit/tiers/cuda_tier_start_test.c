/* The tier of GPU memory on the twin of its driver: what is refused at the start, and why. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <dirent.h>
#include <sched.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cuda_tier_fixture.h"

static void check_refused(struct cuda_twin *twin, struct kvl_cuda_tier_options options,
    kvl_err expected, const char *says) {
    struct kvl_tier *tier = NULL;
    struct kvl_errmsg msg = {""};
    options.driver = cuda_twin_driver(twin);
    assert_int_equal(kvl_cuda_tier_create(&options, &tier, &msg), expected);
    assert_null(tier);
    if (strstr(msg.text, says) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", msg.text, says);
    assert_int_equal(cuda_twin_leaks(twin), 0);
    assert_null(cuda_twin_violation(twin));
}

static void what_cannot_be_is_refused_with_a_reason(void **state) {
    (void)state;
    struct cuda_twin *twin = cuda_twin_create(10 * MIB + 5000);
    struct kvl_cuda_tier_options options = {.capacity_bytes = 4 * MIB};
    options.capacity_bytes = 11 * MIB;
    check_refused(twin, options, KVL_ERR_NOMEM, "10490760 are free, 10485760 fit");
    options.capacity_bytes = CUDA_TWIN_GRANULE_BYTES - 1;
    check_refused(twin, options, KVL_ERR_INVALID, "at least 65536 bytes");
    options.capacity_bytes = 4 * MIB;
    options.staging_bytes = STAGING_BYTES - 1;
    check_refused(twin, options, KVL_ERR_INVALID, "at least 786432 bytes");
    options.staging_bytes = 0;
    options.device = 1;
    check_refused(twin, options, KVL_ERR_UNSUPPORTED, "no GPU 1: the driver shows 1");
    options.device = 0;
    cuda_twin_refuse_export(twin, true);
    check_refused(twin, options, KVL_ERR_UNSUPPORTED, "file descriptor");
    cuda_twin_destroy(twin);
}

static void what_a_gpu_lacks_is_said(void **state) {
    (void)state;
    const struct kvl_cuda_device_info good = {
        .maps_memory = true, .exports_fds = true, .pins_host = true, .is_addressed = true};
    struct kvl_cuda_device_info info = good;
    assert_null(kvl_cuda_device_lacks(&info));
    info.maps_memory = false;
    assert_non_null(strstr(kvl_cuda_device_lacks(&info), "virtual memory"));
    info = good;
    info.exports_fds = false;
    assert_non_null(strstr(kvl_cuda_device_lacks(&info), "file descriptor"));
    info = good;
    info.pins_host = false;
    assert_non_null(strstr(kvl_cuda_device_lacks(&info), "pinning"));
    info = good;
    info.is_addressed = false;
    assert_non_null(strstr(kvl_cuda_device_lacks(&info), "unified addressing"));
}

static void a_driver_that_fails_at_any_call_is_refused(void **state) {
    (void)state;
    struct cuda_twin *twin = cuda_twin_create(10 * MIB);
    const struct kvl_cuda_tier_options options = {.capacity_bytes = 4 * MIB};
    cuda_twin_lose_calls(twin);
    check_refused(twin, options, KVL_ERR_IO, "GPU 0 (twin): cannot ask for");
    cuda_twin_lose(twin, 0);
    check_refused(twin, options, KVL_ERR_IO, "GPU 0: cannot count GPUs");
    cuda_twin_destroy(twin);
}

static int cpus_shown; /* 0: those of this machine */

/* For all of this program: what a container of so many CPUs says. */
__attribute__((no_sanitize("address", "thread", "undefined"))) int sched_getaffinity(
    pid_t id, size_t bytes, cpu_set_t *set) {
    if (cpus_shown == 0)
        return syscall(SYS_sched_getaffinity, id, bytes, set) < 0 ? -1 : 0;
    CPU_ZERO_S(bytes, set);
    for (int i = 0; i < cpus_shown; i++)
        CPU_SET_S((size_t)i, bytes, set);
    return 0;
}

static int thread_count(void) {
    int count = 0;
    DIR *tasks = opendir("/proc/self/task");
    assert_non_null(tasks);
    for (const struct dirent *task; (task = readdir(tasks)) != NULL;)
        count += task->d_name[0] != '.';
    closedir(tasks);
    return count;
}

/* A machine's other CPUs, which a container may not use, do not count. */
static void there_are_hash_threads_for_our_cpus(void **state) {
    static const struct {
        int cpus, threads;
    } cases[] = {{1, 1}, {1, 1}, {2, 1}, {3, 2}, {8, 6}, {64, 12}};
    enum { COUNT = sizeof cases / sizeof cases[0] };
    struct cuda_twin *twins[COUNT];
    struct kvl_tier *tiers[COUNT];
    int others = 0;
    (void)state;
    for (int i = 0; i < COUNT; i++) {
        const int before = thread_count();
        twins[i] = cuda_twin_create(10 * MIB);
        cpus_shown = cases[i].cpus;
        const struct kvl_cuda_tier_options options = {
            .capacity_bytes = 4 * MIB, .driver = cuda_twin_driver(twins[i])};
        assert_int_equal(kvl_cuda_tier_create(&options, &tiers[i], NULL), KVL_OK);
        cpus_shown = 0;
        const int made = thread_count() - before;
        if (i <= 1) /* with the program's first thread a sanitizer may make one of its own */
            others = made - cases[i].threads;
        assert_int_equal(made, cases[i].threads + others);
    }
    for (int i = 0; i < COUNT; i++) {
        tiers[i]->ops->deinit(tiers[i]);
        cuda_twin_destroy(twins[i]);
    }
}

static void a_capacity_is_never_passed(void **state) {
    (void)state;
    struct cuda_twin *twin = cuda_twin_create(10 * MIB);
    const struct kvl_cuda_tier_options options = {
        .capacity_bytes = 3 * MIB + 70000, .driver = cuda_twin_driver(twin)};
    struct kvl_tier *tier = NULL;
    struct kvl_arena_info arena;
    assert_int_equal(kvl_cuda_tier_create(&options, &tier, NULL), KVL_OK);
    struct kvl_tier_stats stats = tier->ops->stats(tier);
    assert_int_equal(stats.capacity_bytes, 3 * MIB + CUDA_TWIN_GRANULE_BYTES);
    tier->ops->describe_arena(tier, &arena);
    assert_int_equal(arena.bytes, stats.capacity_bytes);
    assert_string_equal((const char *)arena.device_uuid, "twin of a GPU");
    uint64_t location;
    assert_int_equal(tier->ops->alloc(tier, 5000, &location), KVL_OK);
    assert_null(tier->ops->address(tier, location));
    assert_int_equal(tier->ops->stats(tier).used_bytes, 8192); /* rounded, as it is taken */
    tier->ops->deinit(tier);
    assert_int_equal(cuda_twin_leaks(twin), 0);
    cuda_twin_destroy(twin);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(there_are_hash_threads_for_our_cpus), /* first: it counts threads */
        cmocka_unit_test(what_a_gpu_lacks_is_said),
        cmocka_unit_test(what_cannot_be_is_refused_with_a_reason),
        cmocka_unit_test(a_driver_that_fails_at_any_call_is_refused),
        cmocka_unit_test(a_capacity_is_never_passed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
