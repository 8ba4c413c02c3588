/* The tier of GPU memory on the real driver: the contract, 200 random schedules, memory given back,
 * the host arena pinned and used in place, engines in other processes that map the arena.
 *
 *   cuda_tier_contract                        the tests; KVL_GPU_SMALL=1: fewer, for checkers
 *   cuda_tier_contract --engine FD BYTES AT   one such engine: see engine_main */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cuda_contract.h"
#include "cuda_device.h"
#include "device_cuda/cuda_tier.h"
#include "memory/memory_tier.h"

#define MIB (UINT64_C(1) << 20)
#define BLOCK_BYTES (2 * MIB)
#define BLOCKS 24u
#define ENGINES 2u
#define SKIPPED 77
#define SLACK_BYTES (4 * MIB) /* what the driver keeps for itself between two tiers */

static const char *program;
static struct kvl_cuda_driver *driver;

static void fill(uint8_t *at, uint32_t number) {
    for (uint64_t i = 0; i < BLOCK_BYTES / 8; i++)
        ((uint64_t *)(void *)at)[i] = (i + ((uint64_t)number << 32)) * UINT64_C(0x9E3779B97F4A7C15);
}

/* ---- a tier and a host arena ---------------------------------------------------------------- */

struct rig {
    struct kvl_tier *tier, *host;
    struct kvl_layout layout;
    uint32_t left;
    kvl_err worst;
    struct kvl_io ios[BLOCKS];
    uint64_t places[BLOCKS]; /* in the host arena */
};

static void on_complete(struct kvl_io *io) {
    struct rig *rig = io->owner;
    rig->left--;
    if (io->status != KVL_OK) {
        print_message("an io ended with %s\n", kvl_err_name(io->status));
        rig->worst = io->status;
    }
}

static struct kvl_tier *make_tier(uint64_t capacity_bytes) {
    const struct kvl_cuda_tier_options options = {
        .capacity_bytes = capacity_bytes, .driver = driver};
    struct kvl_tier *tier = NULL;
    struct kvl_errmsg msg = {""};
    if (kvl_cuda_tier_create(&options, &tier, &msg) != KVL_OK)
        fail_msg("%s", msg.text);
    return tier;
}

static void rig_init(struct rig *rig) {
    memset(rig, 0, sizeof *rig);
    rig->tier = make_tier(2 * BLOCKS * BLOCK_BYTES);
    const struct kvl_memory_tier_options options = {
        .kind = KVL_TIER_HOST, .capacity_bytes = 2 * BLOCKS * BLOCK_BYTES};
    assert_int_equal(kvl_memory_tier_create(&options, &rig->host, NULL), KVL_OK);
    kvl_memory_tier_wait_touched(rig->host);
    assert_int_equal(kvl_layout_of_bytes(BLOCK_BYTES, &rig->layout), KVL_OK);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        struct kvl_io *io = &rig->ios[i];
        *io = (struct kvl_io){.layout = &rig->layout, .complete = on_complete, .owner = rig};
        assert_int_equal(rig->host->ops->alloc(rig->host, BLOCK_BYTES, &rig->places[i]), KVL_OK);
        assert_int_equal(rig->tier->ops->alloc(rig->tier, BLOCK_BYTES, &io->location), KVL_OK);
        io->buffer = rig->host->ops->address(rig->host, rig->places[i]);
        fill(io->buffer, i);
        io->record.content_hash = kvl_content_hash(&rig->layout, io->buffer, NULL);
    }
}

static void rig_deinit(struct rig *rig) {
    rig->tier->ops->deinit(rig->tier); /* first: it unpins the other's memory */
    rig->host->ops->deinit(rig->host);
}

static void rig_run(struct rig *rig, enum kvl_io_op op) {
    rig->left = BLOCKS;
    rig->worst = KVL_OK;
    for (uint32_t i = 0; i < BLOCKS; i++) {
        rig->ios[i].op = op;
        assert_int_equal(rig->tier->ops->submit(rig->tier, &rig->ios[i]), KVL_OK);
    }
    for (int i = 0; rig->left > 0 && i < 1000; i++) {
        struct pollfd poller = {.fd = rig->tier->ops->fd(rig->tier), .events = POLLIN};
        if (poll(&poller, 1, 20) == 1)
            rig->tier->ops->poll(rig->tier);
    }
    assert_int_equal(rig->left, 0);
    assert_int_equal(rig->worst, KVL_OK);
}

static void the_host_arena_is_pinned_and_used_in_place(void **state) {
    (void)state;
    static struct rig rig;
    rig_init(&rig);
    const uint64_t bytes = kvl_memory_tier_arena_stats(rig.host).capacity_bytes;
    assert_int_equal(
        kvl_cuda_tier_pin_host(rig.tier, rig.host->ops->address(rig.host, 0), bytes), KVL_OK);
    for (int i = 0; i < 2000 && kvl_cuda_tier_pinned_bytes(rig.tier) < bytes; i++)
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    assert_int_equal(kvl_cuda_tier_pinned_bytes(rig.tier), bytes);
    rig_run(&rig, KVL_IO_STORE);
    for (uint32_t i = 0; i < BLOCKS; i++)
        memset(rig.ios[i].buffer, 0xEE, BLOCK_BYTES);
    rig_run(&rig, KVL_IO_LOAD); /* compares the hash */
    static uint8_t expected[BLOCK_BYTES] __attribute__((aligned(8)));
    for (uint32_t i = 0; i < BLOCKS; i++) {
        fill(expected, i);
        assert_memory_equal(rig.ios[i].buffer, expected, BLOCK_BYTES);
    }
    rig_deinit(&rig);
}

/* ---- engines -------------------------------------------------------------------------------- */

struct engine {
    pid_t pid;
    int to, from;
};

/* Maps the arena at descriptor FD, and compares BLOCKS blocks; says so on stdout, waits for a byte
 * on stdin, and compares again. Exit 0: both times all was right. */
static bool engine_compare(const struct cuda_device *device, char **locations) {
    static uint8_t seen[BLOCK_BYTES], expected[BLOCK_BYTES] __attribute__((aligned(8)));
    for (uint32_t i = 0; i < BLOCKS; i++) {
        const uint64_t location = strtoull(locations[i], NULL, 10);
        fill(expected, i);
        if (cuda_device_read(device, location, seen, BLOCK_BYTES) != KVL_OK)
            return false;
        if (memcmp(seen, expected, BLOCK_BYTES) != 0) {
            fprintf(stderr, "engine: block %u has other bytes\n", i);
            return false;
        }
    }
    return true;
}

static int engine_main(int fd, uint64_t arena_bytes, char **locations) {
    struct cuda_device device;
    struct kvl_errmsg msg = {""};
    char byte = 'r';
    if (kvl_cuda_driver_open(&driver, &msg) != KVL_OK) {
        fprintf(stderr, "engine: %s\n", msg.text);
        return 1;
    }
    if (cuda_device_open(driver, 0, fd, arena_bytes, &device) != KVL_OK)
        return 1;
    if (!engine_compare(&device, locations) || write(STDOUT_FILENO, &byte, 1) != 1)
        return 1;
    if (read(STDIN_FILENO, &byte, 1) != 1 || !engine_compare(&device, locations))
        return 1;
    cuda_device_close(&device);
    kvl_cuda_driver_close(driver);
    return 0;
}

/* fork and exec: a forked process cannot use the driver of its parent. */
static struct engine engine_start(char **words, int arena_fd) {
    int to[2], from[2];
    assert_int_equal(pipe2(to, O_CLOEXEC), 0);
    assert_int_equal(pipe2(from, O_CLOEXEC), 0);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(to[0], STDIN_FILENO);
        dup2(from[1], STDOUT_FILENO);
        fcntl(arena_fd, F_SETFD, 0);
        execv(program, words);
        _exit(127);
    }
    assert_true(pid > 0);
    close(to[0]);
    close(from[1]);
    return (struct engine){.pid = pid, .to = to[1], .from = from[0]};
}

static void engine_end(struct engine *engine) {
    int status = 0;
    assert_int_equal(write(engine->to, "g", 1), 1);
    assert_int_equal(waitpid(engine->pid, &status, 0), engine->pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    close(engine->to);
    close(engine->from);
}

/* The memory lives as long as a mapping of it: engines go on when the daemon is gone. */
static void engines_map_the_arena_and_outlive_the_tier(void **state) {
    (void)state;
    static struct rig rig;
    static char numbers[BLOCKS + 2][24], engine_word[] = "--engine";
    char *words[BLOCKS + 5] = {(char *)(uintptr_t)program, engine_word, numbers[0], numbers[1]};
    struct engine engines[ENGINES];
    struct kvl_arena_info arena;
    rig_init(&rig);
    rig_run(&rig, KVL_IO_STORE);
    rig.tier->ops->describe_arena(rig.tier, &arena);
    snprintf(numbers[0], sizeof numbers[0], "%d", rig.tier->ops->share_fd(rig.tier));
    snprintf(numbers[1], sizeof numbers[1], "%llu", (unsigned long long)arena.bytes);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        snprintf(
            numbers[i + 2], sizeof numbers[i + 2], "%llu", (unsigned long long)rig.ios[i].location);
        words[i + 4] = numbers[i + 2];
    }
    for (uint32_t i = 0; i < ENGINES; i++)
        engines[i] = engine_start(words, rig.tier->ops->share_fd(rig.tier));
    for (uint32_t i = 0; i < ENGINES; i++) {
        char byte = 0;
        assert_int_equal(read(engines[i].from, &byte, 1), 1); /* 0: it ended, and said why */
    }
    rig_deinit(&rig);
    for (uint32_t i = 0; i < ENGINES; i++)
        engine_end(&engines[i]);
}

/* ---- start and end -------------------------------------------------------------------------- */

static void the_gpus_memory_comes_back(void **state) {
    (void)state;
    if (getenv("KVL_GPU_SMALL") != NULL)
        skip(); /* checkers run side by side, and take memory themselves */
    struct kvl_tier *tier = make_tier(1024 * MIB);
    tier->ops->deinit(tier); /* what the driver takes at the first, and keeps */
    const uint64_t before = cuda_device_free_bytes(driver, 0);
    tier = make_tier(1024 * MIB);
    const uint64_t between = cuda_device_free_bytes(driver, 0);
    tier->ops->deinit(tier);
    const uint64_t after = cuda_device_free_bytes(driver, 0);
    print_message("free: %llu MiB before, %llu with a tier of 1024, %llu after\n",
        (unsigned long long)(before / MIB), (unsigned long long)(between / MIB),
        (unsigned long long)(after / MIB));
    assert_true(before > 0 && between + 1024 * MIB <= before + SLACK_BYTES);
    assert_true(after + SLACK_BYTES >= before);
}

static void check_refused(
    struct kvl_cuda_tier_options options, kvl_err expected, const char *says) {
    struct kvl_tier *tier = NULL;
    struct kvl_errmsg msg = {""};
    options.driver = driver;
    assert_int_equal(kvl_cuda_tier_create(&options, &tier, &msg), expected);
    print_message("refused: %s\n", msg.text);
    if (strstr(msg.text, says) == NULL)
        fail_msg("it does not say \"%s\"", says);
}

static void what_cannot_be_is_refused_with_a_reason(void **state) {
    (void)state;
    check_refused(
        (struct kvl_cuda_tier_options){.capacity_bytes = UINT64_C(1) << 44}, KVL_ERR_NOMEM, "fit");
    check_refused((struct kvl_cuda_tier_options){.device = 99, .capacity_bytes = 64 * MIB},
        KVL_ERR_UNSUPPORTED, "no GPU 99");
    check_refused(
        (struct kvl_cuda_tier_options){.capacity_bytes = 4096}, KVL_ERR_INVALID, "at least");
}

/* ------------------------------------------------------------------------------------------- */

static int say_skipped(const char *why) {
    printf("skipped: %s\n", why);
    return SKIPPED;
}

static int run(void) {
    const bool small = getenv("KVL_GPU_SMALL") != NULL;
    const struct cuda_contract_options options = {.driver = driver,
        .staging_bytes = 12 * MIB,
        .hash_threads = 2, /* so that they are slower than the link */
        .order_block_bytes = 256u << 10,
        .schedules = small ? 3 : 200};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_cannot_be_is_refused_with_a_reason),
        cmocka_unit_test(the_gpus_memory_comes_back),
        cmocka_unit_test(the_host_arena_is_pinned_and_used_in_place),
        cmocka_unit_test(engines_map_the_arena_and_outlive_the_tier),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    failed += small ? cuda_contract_run_own(&options) : cuda_contract_run(&options);
    return failed;
}

int main(int argc, char **argv) {
    struct kvl_errmsg msg = {""};
    struct kvl_cuda_device_info info;
    uint32_t count = 0;
    void *context;
    program = "/proc/self/exe";
    if (argc == 4 + (int)BLOCKS && strcmp(argv[1], "--engine") == 0)
        return engine_main(atoi(argv[2]), strtoull(argv[3], NULL, 10), argv + 4);
    kvl_err err = kvl_cuda_driver_open(&driver, &msg);
    if (err == KVL_ERR_UNSUPPORTED || err == KVL_ERR_VERSION)
        return say_skipped(msg.text);
    if (err != KVL_OK) {
        fprintf(stderr, "%s\n", msg.text);
        return 1;
    }
    if (driver->device_count(driver, &count) != KVL_CUDA_OK || count == 0)
        return say_skipped("the driver shows no GPU");
    /* Kept open over all tests: to open a context takes a while. */
    if (driver->device_info(driver, 0, &info) != KVL_CUDA_OK ||
        driver->context_open(driver, 0, &context) != KVL_CUDA_OK) {
        fprintf(stderr, "GPU 0 does not open\n");
        return 1;
    }
    printf("%s, %s\n", info.name, driver->name);
    fflush(stdout);
    int failed = run();
    driver->context_close(driver, 0);
    kvl_cuda_driver_close(driver);
    return failed;
}
