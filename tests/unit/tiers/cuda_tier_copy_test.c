/* The tier of GPU memory on the twin of its driver: what copies are checked for, pinned memory,
 * cancel and drain. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cuda_tier_fixture.h"

/* ---- the check ------------------------------------------------------------------------------ */

static void check_a_bit_of(struct block *block, uint64_t at) {
    uint8_t *byte = block->fixture->arena + block->io.location + at;
    *byte ^= 1;
    assert_int_equal(load_block(block), KVL_ERR_CORRUPT);
    submit_io(block, KVL_IO_HASH, KVL_IO_PREFETCH);
    assert_int_equal(finish_io(block), KVL_OK);
    assert_true(block->io.record.content_hash != block->right_hash);
    block->io.record.content_hash = block->right_hash;
    *byte ^= 1;
    assert_int_equal(load_block(block), KVL_OK);
}

/* In the first byte of each frame and in the last; frames that fit a piece, and such as do not. */
static void check_all_frames(struct fixture *fixture) {
    const struct kvl_layout *layouts[] = {&fixture->small, &fixture->layers};
    for (uint32_t i = 0; i < 2; i++) {
        struct block *block = make_block(fixture, i, layouts[i]);
        assert_int_equal(store_block(block), KVL_OK);
        uint64_t at = 0;
        for (uint32_t frame = 0; frame < layouts[i]->frame_count; frame++) {
            check_a_bit_of(block, at);
            at += kvl_layout_frame_bytes(layouts[i], frame);
            check_a_bit_of(block, at - 1);
        }
    }
}

static void one_wrong_bit_in_any_frame_is_found(void **state) {
    check_all_frames(*state);
}

static void so_it_is_in_pinned_memory(void **state) {
    pin_host(*state);
    check_all_frames(*state);
}

/* ---- pinned memory -------------------------------------------------------------------------- */

static void pinned_buffers_are_copied_in_place(void **state) {
    struct fixture *fixture = *state;
    static struct cuda_twin_copy copies[COPIES_MAX];
    pin_host(fixture);
    cuda_twin_take_copies(fixture->twin, copies, COPIES_MAX);
    for (uint32_t i = 0; i < 8; i++)
        submit_io(make_block(fixture, i, &fixture->layers), KVL_IO_STORE, KVL_IO_RESTORE);
    for (uint32_t i = 0; i < 8; i++)
        assert_int_equal(finish_io(&fixture->blocks[i]), KVL_OK);
    for (uint32_t i = 0; i < 8; i++)
        assert_int_equal(load_block(&fixture->blocks[i]), KVL_OK);
    const uint32_t count = cuda_twin_take_copies(fixture->twin, copies, COPIES_MAX);
    for (uint32_t c = 0; c < count; c++)
        assert_in_range(copies[c].host, fixture->host, fixture->host + fixture->host_bytes);
    assert_true(count > 0);
}

/* Neighbours on both sides are one copy: a piece of eight small blocks. */
static void neighbours_are_one_copy(void **state) {
    struct fixture *fixture = *state;
    static struct cuda_twin_copy copies[COPIES_MAX];
    enum { BLOCKS = 16 };
    pin_host(fixture);
    struct block *dummy = hold_all_pieces(fixture, KVL_IO_STORE);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        struct block *block = make_block(fixture, i, &fixture->small);
        block->io.buffer = fixture->host + i * fixture->small.slot_bytes;
        fill_bytes(block->io.buffer, fixture->small.payload_bytes, i);
        submit_io(block, KVL_IO_STORE, KVL_IO_RESTORE);
    }
    cuda_twin_take_copies(fixture->twin, copies, COPIES_MAX);
    cuda_twin_hold(fixture->twin, false);
    for (uint32_t i = 0; i < BLOCKS; i++)
        assert_int_equal(finish_io(&fixture->blocks[i]), KVL_OK);
    assert_int_equal(finish_io(dummy), KVL_OK);
    const uint32_t count = cuda_twin_take_copies(fixture->twin, copies, COPIES_MAX);
    uint32_t of_blocks = 0;
    for (uint32_t c = 0; c < count; c++)
        of_blocks += copies[c].host < fixture->host + BLOCKS * fixture->small.slot_bytes;
    assert_int_equal(of_blocks, BLOCKS * fixture->small.slot_bytes / PIECE_BYTES);
}

static void memory_is_not_pinned_before_it_has_come(void **state) {
    struct fixture *fixture = *state;
    assert_int_equal(
        kvl_cuda_tier_pin_host(fixture->tier, fixture->host, fixture->host_bytes), KVL_OK);
    sleep_ms(60);
    assert_int_equal(kvl_cuda_tier_pinned_bytes(fixture->tier), 0);
    assert_int_equal(store_block(make_block(fixture, 0, &fixture->layers)), KVL_OK);
    memset(fixture->host, 0, fixture->host_bytes);
    wait_pinned(fixture);
}

static void where_pinning_fails_the_ring_serves(void **state) {
    struct fixture *fixture = *state;
    cuda_twin_refuse_pins(fixture->twin, true);
    memset(fixture->host, 0, fixture->host_bytes);
    assert_int_equal(
        kvl_cuda_tier_pin_host(fixture->tier, fixture->host, fixture->host_bytes), KVL_OK);
    for (int i = 0; i < 3000 && fixture->fallback_lines == 0; i++) {
        struct block *block = make_block(fixture, 0, &fixture->layers);
        assert_int_equal(store_block(block), KVL_OK);
        assert_int_equal(load_block(block), KVL_OK);
        fixture->tier->ops->discard(fixture->tier, &block->io.record.key, block->io.location);
    }
    assert_int_equal(fixture->fallback_lines, 1);
    assert_int_equal(kvl_cuda_tier_pinned_bytes(fixture->tier), 0);
}

/* ---- cancel and drain ----------------------------------------------------------------------- */

static void what_waits_ends_when_canceled(void **state) {
    struct fixture *fixture = *state;
    enum { BLOCKS = 20 };
    struct block *dummy = hold_all_pieces(fixture, KVL_IO_STORE);
    for (uint32_t i = 0; i < BLOCKS; i++)
        submit_io(make_block(fixture, i, &fixture->small), KVL_IO_STORE, KVL_IO_BEHIND);
    for (uint32_t i = 0; i < BLOCKS; i += 2)
        fixture->tier->ops->cancel(fixture->tier, &fixture->blocks[i].io);
    for (uint32_t i = 0; i < BLOCKS; i += 2) /* while the device stands still */
        assert_int_equal(finish_io(&fixture->blocks[i]), KVL_ERR_CANCELED);
    cuda_twin_hold(fixture->twin, false);
    for (uint32_t i = 1; i < BLOCKS; i += 2)
        assert_int_equal(finish_io(&fixture->blocks[i]), KVL_OK);
    assert_int_equal(finish_io(dummy), KVL_OK);
    assert_int_equal(fixture->tier->ops->stats(fixture->tier).errors, 0);
}

/* Part of it is on its way: its buffer is the tier's until that has landed. */
static void what_is_on_its_way_lands_before_it_ends(void **state) {
    struct fixture *fixture = *state;
    struct block *dummy = hold_all_pieces(fixture, KVL_IO_LOAD);
    fixture->tier->ops->cancel(fixture->tier, &dummy->io);
    for (int i = 0; i < 10; i++)
        poll_once(fixture, 5);
    assert_int_equal(dummy->completions, 0);
    cuda_twin_hold(fixture->twin, false);
    assert_int_equal(finish_io(dummy), KVL_ERR_CANCELED);
}

static void drain_waits_for_all(void **state) {
    struct fixture *fixture = *state;
    cuda_twin_set_delay(fixture->twin, 200000);
    for (uint32_t i = 0; i < 30; i++)
        submit_io(make_block(fixture, i, i % 2 ? &fixture->small : &fixture->layers), KVL_IO_STORE,
            (enum kvl_io_priority)(i % 3));
    assert_int_equal(fixture->tier->ops->drain(fixture->tier), KVL_OK);
    for (uint32_t i = 0; i < 30; i++)
        assert_int_equal(fixture->blocks[i].completions, 1);
}

static void no_more_than_its_places_are_taken(void **state) {
    struct fixture *fixture = *state;
    enum { MORE = 3000 };
    static struct kvl_io ios[MORE];
    struct block *block = make_block(fixture, 0, &fixture->small);
    uint32_t taken = 0;
    cuda_twin_hold(fixture->twin, true);
    for (uint32_t i = 0; i < MORE; i++) {
        ios[i] = block->io;
        ios[i].op = KVL_IO_STORE;
        ios[i].frame_ready = NULL;
        kvl_err err = fixture->tier->ops->submit(fixture->tier, &ios[i]);
        assert_true(err == KVL_OK || err == KVL_ERR_AGAIN);
        taken += err == KVL_OK;
    }
    assert_true(taken >= 1024 && taken < MORE);
    cuda_twin_hold(fixture->twin, false);
    assert_int_equal(fixture->tier->ops->drain(fixture->tier), KVL_OK);
    assert_int_equal(block->completions, taken);
}

int main(void) {
#define WITH_TIER(test) cmocka_unit_test_setup_teardown(test, fixture_setup, fixture_teardown)
    const struct CMUnitTest tests[] = {
        WITH_TIER(one_wrong_bit_in_any_frame_is_found),
        WITH_TIER(so_it_is_in_pinned_memory),
        WITH_TIER(pinned_buffers_are_copied_in_place),
        WITH_TIER(neighbours_are_one_copy),
        WITH_TIER(memory_is_not_pinned_before_it_has_come),
        WITH_TIER(where_pinning_fails_the_ring_serves),
        WITH_TIER(what_waits_ends_when_canceled),
        WITH_TIER(what_is_on_its_way_lands_before_it_ends),
        WITH_TIER(drain_waits_for_all),
        WITH_TIER(no_more_than_its_places_are_taken),
    };
    int failed = cmocka_run_group_tests_name("a driver thread a direction", tests, NULL, NULL);
    fixture_driver_threads = 1;
    failed += cmocka_run_group_tests_name("one driver thread for both", tests, NULL, NULL);
    return failed;
}
