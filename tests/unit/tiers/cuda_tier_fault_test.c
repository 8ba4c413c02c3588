/* The tier of GPU memory on the twin of its driver: copies that fail, and a device that is lost. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <string.h>

#include "cuda_tier_fixture.h"

/* The thread that finds out tells the log after it has told the other thread, which ends ios at
 * once. */
static void assert_told_once(const struct fixture *fixture) {
    for (int i = 0; i < 3000 && fixture->lost_lines == 0; i++)
        sleep_ms(1);
    assert_int_equal(fixture->lost_lines, 1);
}

static void a_refused_copy_fails_its_blocks_alone(void **state) {
    struct fixture *fixture = *state;
    struct block *bad = make_block(fixture, 0, &fixture->small);
    cuda_twin_fail_copies(fixture->twin, 0);
    assert_int_equal(store_block(bad), KVL_ERR_IO);
    assert_int_equal(fixture->lost_lines, 0);
    struct block *good = make_block(fixture, 1, &fixture->layers);
    assert_int_equal(store_block(good), KVL_OK);
    for (uint32_t call = 0; call < 5; call++) { /* of a block of many pieces, each in turn */
        cuda_twin_fail_copies(fixture->twin, call);
        assert_int_equal(load_block(good), KVL_ERR_IO);
        assert_int_equal(load_block(good), KVL_OK);
    }
    assert_int_equal(fixture->tier->ops->stats(fixture->tier).errors, 6);
}

static void all_end_with_closed(struct fixture *fixture, uint32_t count) {
    for (uint32_t i = 0; i < count; i++)
        assert_int_equal(finish_io(&fixture->blocks[i]), KVL_ERR_CLOSED);
}

static void a_lost_device_ends_everything(void **state) {
    struct fixture *fixture = *state;
    enum { BLOCKS = 20 };
    struct block *dummy = hold_all_pieces(fixture, KVL_IO_STORE);
    for (uint32_t i = 0; i < BLOCKS; i++)
        submit_io(make_block(fixture, i, &fixture->layers), i % 2 ? KVL_IO_STORE : KVL_IO_LOAD,
            (enum kvl_io_priority)(i % 3));
    cuda_twin_lose(fixture->twin, 0);
    all_end_with_closed(fixture, BLOCKS);
    assert_int_equal(finish_io(dummy), KVL_ERR_CLOSED);
    uint64_t location;
    assert_int_equal(fixture->tier->ops->alloc(fixture->tier, 4096, &location), KVL_ERR_CLOSED);
    submit_io(dummy, KVL_IO_LOAD, KVL_IO_RESTORE); /* and so does what comes later */
    assert_int_equal(finish_io(dummy), KVL_ERR_CLOSED);
    assert_told_once(fixture);
}

/* Between any two copies, by the ring or not. */
static void so_it_is_whenever_it_is_lost(void **state) {
    for (uint32_t calls = 1; calls < 40; calls += 3) {
        struct fixture *fixture = *state;
        if (calls % 2 == 0)
            pin_host(fixture);
        for (uint32_t i = 0; i < 8; i++)
            make_block(fixture, i, &fixture->layers);
        cuda_twin_lose(fixture->twin, calls);
        for (uint32_t i = 0; i < 8; i++)
            submit_io(&fixture->blocks[i], KVL_IO_STORE, KVL_IO_RESTORE);
        for (uint32_t i = 0; i < 8; i++) {
            struct block *block = &fixture->blocks[i];
            kvl_err err = finish_io(block);
            assert_true(err == KVL_OK || err == KVL_ERR_CLOSED);
            if (err == KVL_OK) /* it was there before */
                assert_memory_equal(fixture->arena + block->io.location, block->io.buffer,
                    fixture->layers.payload_bytes);
        }
        assert_told_once(fixture);
        fixture_teardown(state);
        fixture_setup(state);
    }
}

/* Its pieces land by the words of later ones, or when the stream is idle. */
static void words_that_are_refused_lose_nothing(void **state) {
    struct fixture *fixture = *state;
    struct block *block = make_block(fixture, 0, &fixture->layers);
    cuda_twin_refuse_words(fixture->twin, true);
    assert_int_equal(store_block(block), KVL_OK);
    assert_int_equal(load_block(block), KVL_OK);
    submit_io(block, KVL_IO_HASH, KVL_IO_RESTORE);
    cuda_twin_refuse_words(fixture->twin, false);
    assert_int_equal(finish_io(block), KVL_OK);
    assert_int_equal(load_block(block), KVL_OK);
    assert_int_equal(fixture->lost_lines, 0);
}

/* Loses the device with the copies of block 0 to its buffer under way, which go on. */
static struct block *lose_in_flight(struct fixture *fixture) {
    struct block *flying = make_block(fixture, 0, &fixture->small);
    struct block *other = make_block(fixture, 1, &fixture->small);
    assert_int_equal(store_block(flying), KVL_OK);
    memset(flying->io.buffer, 0xEE, flying->io.layout->payload_bytes);
    cuda_twin_hold(fixture->twin, true);
    const uint32_t before = cuda_twin_calls(fixture->twin);
    submit_io(flying, KVL_IO_LOAD, KVL_IO_RESTORE);
    wait_for_calls(fixture, before + 1);
    cuda_twin_lose_calls(fixture->twin);
    submit_io(other, KVL_IO_STORE, KVL_IO_RESTORE);
    assert_int_equal(finish_io(other), KVL_ERR_CLOSED);
    assert_told_once(fixture);
    return flying;
}

static void a_copy_under_way_ends_when_it_has_stopped(void **state) {
    struct fixture *fixture = *state;
    pin_host(fixture);
    struct block *flying = lose_in_flight(fixture);
    poll_once(fixture, 50); /* its stream was asked meanwhile */
    assert_int_equal(flying->completions, 0);
    cuda_twin_hold(fixture->twin, false);
    const kvl_err err = finish_io(flying);
    assert_true(err == KVL_OK || err == KVL_ERR_CLOSED);
    fill_bytes(fixture->host + 2 * fixture->layers.slot_bytes, 8192, 0);
    assert_memory_equal(
        flying->io.buffer, fixture->host + 2 * fixture->layers.slot_bytes, 8192); /* it was made */
}

static void one_that_does_not_stop_keeps_its_buffer_until_drain(void **state) {
    struct fixture *fixture = *state;
    pin_host(fixture);
    struct block *flying = lose_in_flight(fixture);
    for (int i = 0; i < 3000 && fixture->open_lines == 0; i++)
        sleep_ms(1);
    poll_once(fixture, 50);
    assert_int_equal(flying->completions, 0);
    assert_int_equal(fixture->tier->ops->drain(fixture->tier), KVL_OK);
    assert_int_equal(flying->completions, 1);
    assert_int_equal(flying->io.status, KVL_ERR_CLOSED);
    assert_int_equal(fixture->open_lines, 1);
}

static void one_by_the_ring_ends_all_the_same(void **state) {
    struct fixture *fixture = *state;
    struct block *flying = lose_in_flight(fixture);
    assert_int_equal(finish_io(flying), KVL_ERR_CLOSED);
    assert_int_equal(fixture->open_lines, 0);
}

int main(void) {
#define WITH_TIER(test) cmocka_unit_test_setup_teardown(test, fixture_setup, fixture_teardown)
#define IMPATIENT(test)                                                                            \
    cmocka_unit_test_setup_teardown(test, fixture_setup_impatient, fixture_teardown)
    const struct CMUnitTest tests[] = {
        WITH_TIER(a_refused_copy_fails_its_blocks_alone),
        WITH_TIER(a_lost_device_ends_everything),
        WITH_TIER(so_it_is_whenever_it_is_lost),
        WITH_TIER(words_that_are_refused_lose_nothing),
        WITH_TIER(a_copy_under_way_ends_when_it_has_stopped),
        IMPATIENT(one_that_does_not_stop_keeps_its_buffer_until_drain),
        IMPATIENT(one_by_the_ring_ends_all_the_same),
    };
    int failed = cmocka_run_group_tests_name("a driver thread a direction", tests, NULL, NULL);
    fixture_driver_threads = 1;
    failed += cmocka_run_group_tests_name("one driver thread for both", tests, NULL, NULL);
    return failed;
}
