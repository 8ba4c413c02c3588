#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "decorators/delay.h"
#include "decorators/fault.h"
#include "memory/memory_tier.h"

#define PAYLOAD_BYTES UINT64_C(12288)

struct test_io {
    struct kvl_io io;
    uint32_t completions;
    uint8_t buffer[PAYLOAD_BYTES];
};

static struct kvl_layout layout;

static struct kvl_tier *make_memory(void) {
    const struct kvl_memory_tier_options options = {
        .kind = KVL_TIER_HOST, .capacity_bytes = 1 << 20, .copy_threads = 1};
    struct kvl_tier *tier;
    assert_int_equal(kvl_memory_tier_create(&options, &tier, NULL), KVL_OK);
    kvl_memory_tier_wait_touched(tier);
    return tier;
}

static struct kvl_tier *make_fault(const struct kvl_fault_rule *rules, uint32_t count) {
    struct kvl_tier *tier;
    assert_int_equal(kvl_fault_tier_create(make_memory(), 7, rules, count, &tier), KVL_OK);
    return tier;
}

static struct kvl_tier *make_delay(uint64_t store_ns, uint64_t load_ns) {
    const struct kvl_delay_options options = {
        .store_latency_ns = store_ns, .load_latency_ns = load_ns};
    struct kvl_tier *tier;
    assert_int_equal(kvl_delay_tier_create(make_memory(), &options, &tier), KVL_OK);
    return tier;
}

static void on_complete(struct kvl_io *io) {
    ((struct test_io *)io->owner)->completions++;
}

static void io_make(struct test_io *test, struct kvl_tier *tier, uint8_t fill) {
    assert_int_equal(kvl_layout_of_bytes(PAYLOAD_BYTES, &layout), KVL_OK);
    memset(test, 0, sizeof *test);
    memset(test->buffer, fill, PAYLOAD_BYTES);
    test->io = (struct kvl_io){
        .layout = &layout, .buffer = test->buffer, .complete = on_complete, .owner = test};
    test->io.record.content_hash = kvl_content_hash(&layout, test->buffer, NULL);
    assert_int_equal(tier->ops->alloc(tier, layout.slot_bytes, &test->io.location), KVL_OK);
}

static void wait_for(struct kvl_tier *tier, const uint32_t *completions, uint32_t count) {
    while (*completions < count) {
        struct pollfd poller = {.fd = tier->ops->fd(tier), .events = POLLIN};
        assert_int_equal(poll(&poller, 1, 20000), 1);
        tier->ops->poll(tier);
    }
}

/* Submits, and waits for the end when it was taken. */
static kvl_err transfer(struct kvl_tier *tier, struct test_io *test, enum kvl_io_op op) {
    test->io.op = op;
    uint32_t before = test->completions;
    kvl_err err = tier->ops->submit(tier, &test->io);
    assert_int_equal(test->completions, before); /* never from inside submit */
    if (err != KVL_OK)
        return err;
    wait_for(tier, &test->completions, before + 1);
    assert_int_equal(test->completions, before + 1);
    return test->io.status;
}

/* ---- fault -------------------------------------------------------------------------------- */

static void the_nth_operation_fails_and_no_other(void **state) {
    (void)state;
    const struct kvl_fault_rule rules[] = {
        {.kind = KVL_FAULT_ERROR, .ops = KVL_FAULT_STORE, .error = KVL_ERR_NOSPC, .nth = 2},
        {.kind = KVL_FAULT_ERROR, .ops = KVL_FAULT_LOAD, .error = KVL_ERR_SHORT, .nth = 1},
        {.kind = KVL_FAULT_AGAIN, .ops = KVL_FAULT_LOAD, .nth = 3},
        {.kind = KVL_FAULT_ERROR, .ops = KVL_FAULT_ALLOC, .error = KVL_ERR_NOSPC, .nth = 2},
    };
    static struct test_io test;
    struct kvl_tier *tier = make_fault(rules, 4);
    io_make(&test, tier, 0x11);
    uint64_t location;
    assert_int_equal(tier->ops->alloc(tier, 4096, &location), KVL_ERR_NOSPC);
    assert_int_equal(transfer(tier, &test, KVL_IO_STORE), KVL_OK);
    assert_int_equal(transfer(tier, &test, KVL_IO_STORE), KVL_ERR_NOSPC);
    assert_int_equal(transfer(tier, &test, KVL_IO_STORE), KVL_OK);
    assert_int_equal(transfer(tier, &test, KVL_IO_LOAD), KVL_ERR_SHORT);
    assert_int_not_equal(test.buffer[0], 0x11); /* a failed load leaves garbage */
    assert_int_equal(transfer(tier, &test, KVL_IO_LOAD), KVL_OK);
    assert_int_equal(test.buffer[0], 0x11);
    assert_int_equal(transfer(tier, &test, KVL_IO_LOAD), KVL_ERR_AGAIN);
    assert_int_equal(transfer(tier, &test, KVL_IO_LOAD), KVL_OK);
    assert_int_equal(kvl_fault_tier_injected(tier), 4);
    assert_int_equal(tier->ops->stats(tier).errors, 2);
    assert_int_equal(tier->ops->stats(tier).stores, 2);
    tier->ops->deinit(tier);
}

static void a_flipped_bit_is_found_by_the_tier_inside(void **state) {
    (void)state;
    const struct kvl_fault_rule rule = {.kind = KVL_FAULT_FLIP, .ops = KVL_FAULT_LOAD, .nth = 2};
    static struct test_io test;
    struct kvl_tier *tier = make_fault(&rule, 1);
    io_make(&test, tier, 0x33);
    assert_int_equal(transfer(tier, &test, KVL_IO_STORE), KVL_OK);
    assert_int_equal(transfer(tier, &test, KVL_IO_LOAD), KVL_OK);
    assert_int_equal(transfer(tier, &test, KVL_IO_LOAD), KVL_ERR_CORRUPT);
    assert_int_equal(transfer(tier, &test, KVL_IO_LOAD), KVL_ERR_CORRUPT); /* it stays damaged */
    assert_int_equal(tier->ops->stats(tier).corrupt, 2);
    tier->ops->deinit(tier);
}

static uint64_t count_faults(uint64_t seed, uint64_t *pattern) {
    const struct kvl_fault_rule rule = {.kind = KVL_FAULT_ERROR,
        .ops = KVL_FAULT_STORE,
        .error = KVL_ERR_IO,
        .per_million = 300000};
    static struct test_io test;
    struct kvl_tier *tier;
    assert_int_equal(kvl_fault_tier_create(make_memory(), seed, &rule, 1, &tier), KVL_OK);
    io_make(&test, tier, 0x44);
    *pattern = 0;
    for (int i = 0; i < 64; i++)
        *pattern = *pattern << 1 | (transfer(tier, &test, KVL_IO_STORE) == KVL_ERR_IO);
    uint64_t injected = kvl_fault_tier_injected(tier);
    assert_int_equal(injected, (uint64_t)__builtin_popcountll(*pattern));
    tier->ops->deinit(tier);
    return injected;
}

static void the_same_seed_gives_the_same_faults(void **state) {
    (void)state;
    uint64_t first, second, other;
    uint64_t faults = count_faults(99, &first);
    assert_true(faults > 5 && faults < 40); /* 19 expected of 64 */
    count_faults(99, &second);
    count_faults(100, &other);
    assert_true(first == second);
    assert_true(first != other);
}

static void drain_ends_failed_ones_and_rules_can_change(void **state) {
    (void)state;
    const struct kvl_fault_rule all = {.kind = KVL_FAULT_ERROR,
        .ops = KVL_FAULT_STORE | KVL_FAULT_LOAD,
        .error = KVL_ERR_IO,
        .per_million = 1000000};
    static struct test_io test;
    struct kvl_tier *tier = make_fault(&all, 1);
    io_make(&test, tier, 0x55);
    test.io.op = KVL_IO_STORE;
    assert_int_equal(tier->ops->submit(tier, &test.io), KVL_OK);
    assert_int_equal(tier->ops->stats(tier).inflight, 1);
    tier->ops->cancel(tier, &test.io); /* too late: keeps its status */
    assert_int_equal(tier->ops->drain(tier), KVL_OK);
    assert_int_equal(test.completions, 1);
    assert_int_equal(test.io.status, KVL_ERR_IO);
    assert_int_equal(tier->ops->stats(tier).inflight, 0);
    assert_int_equal(kvl_fault_tier_set_rules(tier, NULL, 0), KVL_OK);
    assert_int_equal(transfer(tier, &test, KVL_IO_STORE), KVL_OK);
    tier->ops->deinit(tier);
}

static void rules_that_cannot_work_are_refused(void **state) {
    (void)state;
    const struct kvl_fault_rule no_error = {.kind = KVL_FAULT_ERROR, .ops = KVL_FAULT_LOAD};
    const struct kvl_fault_rule flip_store = {.kind = KVL_FAULT_FLIP, .ops = KVL_FAULT_STORE};
    struct kvl_tier *memory = make_memory();
    struct kvl_tier *tier;
    assert_int_equal(kvl_fault_tier_create(memory, 1, &no_error, 1, &tier), KVL_ERR_INVALID);
    assert_int_equal(kvl_fault_tier_create(memory, 1, &flip_store, 1, &tier), KVL_ERR_INVALID);
    assert_null(tier);
    memory->ops->deinit(memory); /* still ours */
}

/* ---- delay -------------------------------------------------------------------------------- */

static void a_transfer_takes_at_least_its_latency(void **state) {
    (void)state;
    static struct test_io test;
    struct kvl_tier *tier = make_delay(0, 30000000);
    io_make(&test, tier, 0x66);
    assert_int_equal(transfer(tier, &test, KVL_IO_STORE), KVL_OK);
    uint64_t before_ns = kvl_clock_ns();
    assert_int_equal(transfer(tier, &test, KVL_IO_LOAD), KVL_OK);
    assert_true(kvl_clock_ns() - before_ns >= 30000000);
    assert_int_equal(test.buffer[0], 0x66);
    tier->ops->deinit(tier);
}

static void held_ones_wait_until_they_are_let_go(void **state) {
    (void)state;
    static struct test_io tests[3];
    struct kvl_tier *tier = make_delay(KVL_DELAY_HOLD, 0);
    for (int i = 0; i < 3; i++) {
        io_make(&tests[i], tier, (uint8_t)i);
        assert_int_equal(tier->ops->submit(tier, &tests[i].io), KVL_OK);
    }
    struct pollfd poller = {.fd = tier->ops->fd(tier), .events = POLLIN};
    assert_int_equal(poll(&poller, 1, 20), 0);
    tier->ops->poll(tier);
    assert_int_equal(tier->ops->stats(tier).inflight, 3);
    tier->ops->cancel(tier, &tests[1].io);
    wait_for(tier, &tests[1].completions, 1);
    assert_int_equal(tests[1].io.status, KVL_ERR_CANCELED);
    assert_int_equal(tests[0].completions + tests[2].completions, 0);
    const struct kvl_delay_options none = {0};
    kvl_delay_tier_set_latency(tier, &none);
    wait_for(tier, &tests[0].completions, 1);
    wait_for(tier, &tests[2].completions, 1);
    assert_int_equal(tests[0].io.status, KVL_OK);
    assert_int_equal(tests[2].io.status, KVL_OK);
    assert_int_equal(tier->ops->stats(tier).stores, 2);
    tier->ops->deinit(tier);
}

static void drain_does_not_wait_for_what_is_held(void **state) {
    (void)state;
    static struct test_io test;
    struct kvl_tier *tier = make_delay(KVL_DELAY_HOLD, KVL_DELAY_HOLD);
    io_make(&test, tier, 0x77);
    assert_int_equal(tier->ops->submit(tier, &test.io), KVL_OK);
    assert_int_equal(tier->ops->drain(tier), KVL_OK);
    assert_int_equal(test.completions, 1);
    assert_int_equal(test.io.status, KVL_OK);
    tier->ops->deinit(tier);
}

/* AGAIN and errors of the tier inside come out through the delay: as a retry, as a status. */
static void decorators_stack(void **state) {
    (void)state;
    const struct kvl_fault_rule rules[] = {
        {.kind = KVL_FAULT_AGAIN, .ops = KVL_FAULT_STORE, .nth = 1},
        {.kind = KVL_FAULT_ERROR, .ops = KVL_FAULT_STORE, .error = KVL_ERR_IO, .nth = 3},
    };
    static struct test_io test;
    const struct kvl_delay_options short_delay = {.store_latency_ns = 1000};
    struct kvl_tier *tier;
    assert_int_equal(kvl_delay_tier_create(make_fault(rules, 2), &short_delay, &tier), KVL_OK);
    assert_string_equal(tier->ops->name, "host");
    io_make(&test, tier, 0x78);
    assert_int_equal(transfer(tier, &test, KVL_IO_STORE), KVL_OK);
    assert_int_equal(transfer(tier, &test, KVL_IO_STORE), KVL_ERR_IO);
    test.io.location = UINT64_MAX; /* what submit would have refused */
    assert_int_equal(transfer(tier, &test, KVL_IO_STORE), KVL_ERR_INVALID);
    tier->ops->deinit(tier);
}

/* ---- events ------------------------------------------------------------------------------- */

static bool keep_all(void *arg, const struct kvl_key *key) {
    (void)key;
    ++*(int *)arg;
    return true;
}

static void record_found(void *arg, const struct kvl_block_record *record, uint64_t location,
    uint64_t stored_bytes, uint64_t last_use_wall_ns) {
    *(int *)arg += (int)(record->generation + location + stored_bytes + last_use_wall_ns);
}

static void record_checked(void *arg, uint64_t generation_max) {
    *(int *)arg += (int)generation_max;
}

static void record_sought(void *arg, uint64_t number, bool certain) {
    *(int *)arg += (int)number + (certain ? 50000 : 0);
}

/* The memory tier fires none, so they are fired here as a tier inside would. */
static void events_come_through_with_the_owners_argument(void **state) {
    (void)state;
    struct kvl_tier *memory = make_memory();
    struct kvl_tier *fault, *tier;
    const struct kvl_delay_options none = {0};
    assert_int_equal(kvl_fault_tier_create(memory, 1, NULL, 0, &fault), KVL_OK);
    assert_int_equal(kvl_delay_tier_create(fault, &none, &tier), KVL_OK);
    struct kvl_key key = {{1}};
    struct kvl_block_record record = {.generation = 1000};
    assert_false(memory->events.keep(memory->events.arg, &key)); /* nobody asked to keep it */
    memory->events.loaded(memory->events.arg, KVL_OK);           /* nobody listens */
    memory->events.sought(memory->events.arg, 1, true);
    memory->events.checked(memory->events.arg, 1);
    assert_null(tier->ops->seek); /* a memory tier has nothing to load */
    int seen = 0;
    tier->events = (struct kvl_tier_events){.arg = &seen,
        .keep = keep_all,
        .found = record_found,
        .sought = record_sought,
        .checked = record_checked};
    assert_true(memory->events.keep(memory->events.arg, &key));
    memory->events.found(memory->events.arg, &record, 200, 30, 4);
    memory->events.sought(memory->events.arg, 300, true);
    memory->events.checked(memory->events.arg, 600000);
    assert_int_equal(seen, 1 + 1234 + 50300 + 600000);
    tier->ops->deinit(tier);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_nth_operation_fails_and_no_other),
        cmocka_unit_test(a_flipped_bit_is_found_by_the_tier_inside),
        cmocka_unit_test(the_same_seed_gives_the_same_faults),
        cmocka_unit_test(drain_ends_failed_ones_and_rules_can_change),
        cmocka_unit_test(rules_that_cannot_work_are_refused),
        cmocka_unit_test(a_transfer_takes_at_least_its_latency),
        cmocka_unit_test(held_ones_wait_until_they_are_let_go),
        cmocka_unit_test(drain_does_not_wait_for_what_is_held),
        cmocka_unit_test(decorators_stack),
        cmocka_unit_test(events_come_through_with_the_owners_argument),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
