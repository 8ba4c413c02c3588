/* kill -9 at random moments under load, on one folder: after each, everything that was said to be
 * durable is there, what was cleared stays cleared, and whatever the index names reads back right.
 *
 * The seed is printed; KVL_SEED gives it back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "disk_fixture.h"

#define MIB (1ull << 20)
#define NUMBERS 2048u
#define IN_FLIGHT 24u

enum { UNKNOWN, STORED, CLEARING, CLEARED };

/* What the child was told, readable after its death. */
struct witness {
    atomic_int ready;
    atomic_int state[NUMBERS];
};

static struct disk_fixture fixture;

static void make_block(struct disk_block *block, uint64_t number) {
    if (number % 3 == 0)
        block_init_kv(block, &fixture, number, 8, 1);
    else
        block_init_bytes(block, &fixture, number, 1 + number * 8191 % 200000);
}

struct clear_done {
    struct witness *witness;
    uint64_t number;
};

static void cleared(void *arg, kvl_err status) {
    struct clear_done *done = arg;
    if (status == KVL_OK)
        atomic_store(&done->witness->state[done->number], CLEARED);
    free(done);
}

/* Every fifth block is cleared again a while after it was stored. */
static void clear_one(struct witness *witness, struct disk_block *block) {
    struct clear_done *done = malloc(sizeof(*done));
    *done = (struct clear_done){witness, block->number};
    atomic_store(&witness->state[block->number], CLEARING);
    fixture.tier->ops->discard(fixture.tier, &block->io.record.key, block->io.location);
    if (fixture.catalog->ops->flush(fixture.catalog, cleared, done) != KVL_OK)
        free(done);
}

static void child_main(struct witness *witness, uint64_t first) {
    static struct disk_block blocks[IN_FLIGHT];
    if (fixture_open(&fixture) != KVL_OK)
        _exit(3);
    fixture_wait_loaded(&fixture);
    atomic_store(&witness->ready, 1);
    for (uint64_t number = first;; number = (number + 1) % NUMBERS) {
        struct disk_block *block = &blocks[number % IN_FLIGHT];
        if (block->bytes != NULL) {
            if (block_end(block) == KVL_OK)
                atomic_store(&witness->state[block->number], STORED);
            if (block->status == KVL_OK && block->number % 5 == 0)
                clear_one(witness, block);
            block_free(block);
        }
        if (atomic_load(&witness->state[number]) != UNKNOWN)
            break; /* all numbers used: wait for the end */
        make_block(block, number);
        block_begin(block, KVL_IO_STORE);
    }
    for (;;)
        fixture_poll(&fixture);
}

static void run_and_kill(struct witness *witness, uint64_t first, uint32_t run_ms) {
    atomic_store(&witness->ready, 0);
    pid_t child = fork();
    if (child == 0)
        child_main(witness, first);
    int status = 0;
    while (!atomic_load(&witness->ready) && waitpid(child, &status, WNOHANG) == 0)
        usleep(1000);
    assert_int_equal(atomic_load(&witness->ready), 1);
    usleep(run_ms * 1000);
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* complete: nothing was evicted, so all that was stored must be there. */
static void check(struct witness *witness, bool complete) {
    if (fixture_open(&fixture) != KVL_OK)
        fail_msg("%s", fixture.msg.text);
    fixture_wait_loaded(&fixture);
    assert_int_equal(fixture.loaded_status, KVL_OK);
    for (uint32_t i = 0; i < fixture.found_count; i++) {
        struct disk_block block;
        if (!fixture.found[i].live)
            continue;
        uint64_t number = block_number_of(&fixture.found[i].record.key);
        assert_true(number < NUMBERS);
        assert_int_not_equal(atomic_load(&witness->state[number]), CLEARED);
        make_block(&block, number);
        block.io.location = fixture.found[i].location;
        kvl_err status;
        bool same = block_load_same(&block, &status);
        /* Room is made a little ahead of need; what that evicts was said to be lost. */
        bool evicted = status == KVL_ERR_NOTFOUND && !fixture.found[i].live;
        if (!same && (complete || !evicted))
            fail_msg("block %d: %s", (int)number, kvl_err_name(status));
        block_free(&block);
    }
    for (uint32_t number = 0; complete && number < NUMBERS; number++) {
        if (atomic_load(&witness->state[number]) == STORED)
            assert_non_null(fixture_find(&fixture, number));
    }
    assert_int_equal(fixture.tier->ops->stats(fixture.tier).corrupt, 0);
    fixture_close(&fixture, true);
}

static void crash_rounds(uint64_t capacity_bytes, uint32_t rounds, bool complete) {
    struct witness *witness =
        mmap(NULL, sizeof(*witness), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(witness != MAP_FAILED);
    fixture_init(&fixture, capacity_bytes, NULL);
    for (uint32_t round = 0; round < rounds; round++) {
        uint64_t first = 0;
        while (first < NUMBERS - 1 && atomic_load(&witness->state[first]) != UNKNOWN)
            first++;
        run_and_kill(witness, first, (uint32_t)rand() % 120);
        check(witness, complete);
        assert_true(fixture_disk_usage(&fixture) <= capacity_bytes);
    }
    fixture_remove(&fixture);
    munmap(witness, sizeof(*witness));
}

static void all_that_was_durable_survives(void **state) {
    (void)state;
    crash_rounds(512 * MIB, 20, true);
}

/* Segments are reclaimed and reused all the time. */
static void what_survives_eviction_is_right(void **state) {
    (void)state;
    crash_rounds(12 * MIB, 10, false);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_that_was_durable_survives),
        cmocka_unit_test(what_survives_eviction_is_right),
    };
    const char *given = getenv("KVL_SEED");
    unsigned seed = given != NULL ? (unsigned)strtoul(given, NULL, 10) : (unsigned)time(NULL);
    printf("KVL_SEED=%u\n", seed);
    srand(seed);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
