/* The tier of GPU memory on the twin of its driver: in which order copies are made, and by whom. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "cuda_tier_fixture.h"

/* ---- order ---------------------------------------------------------------------------------- */

static void check_layer_by_layer(struct fixture *fixture, enum kvl_io_priority priority) {
    static struct cuda_twin_copy copies[COPIES_MAX];
    enum { BLOCKS = 8 };
    struct block *dummy = hold_all_pieces(fixture, KVL_IO_STORE);
    for (uint32_t i = 0; i < BLOCKS; i++)
        submit_io(make_block(fixture, i, &fixture->layers), KVL_IO_STORE, priority);
    cuda_twin_take_copies(fixture->twin, copies, COPIES_MAX);
    cuda_twin_hold(fixture->twin, false);
    for (uint32_t i = 0; i < BLOCKS; i++)
        assert_int_equal(finish_io(&fixture->blocks[i]), KVL_OK);
    assert_int_equal(finish_io(dummy), KVL_OK);
    const uint32_t count = cuda_twin_take_copies(fixture->twin, copies, COPIES_MAX);
    uint64_t last_frame = 0, bytes = 0;
    for (uint32_t c = 0; c < count; c++) {
        for (uint32_t i = 0; i < BLOCKS; i++) {
            const uint64_t location = fixture->blocks[i].io.location;
            const uint64_t at = copies[c].device_offset - location;
            if (copies[c].device_offset < location || at >= fixture->layers.payload_bytes)
                continue;
            assert_true(at / fixture->layers.frame_bytes >= last_frame);
            last_frame = at / fixture->layers.frame_bytes;
            bytes += copies[c].copy_bytes;
        }
    }
    assert_int_equal(bytes, BLOCKS * fixture->layers.payload_bytes);
    assert_int_equal(last_frame, fixture->layers.frame_count - 1);
}

static void a_chains_layers_go_one_after_another(void **state) {
    check_layer_by_layer(*state, KVL_IO_RESTORE);
}

static void so_they_do_from_pinned_memory(void **state) {
    pin_host(*state);
    check_layer_by_layer(*state, KVL_IO_PREFETCH);
}

/* Whether a copy is of one of these blocks, and of which frame. */
static bool is_copy_of(const struct fixture *fixture, const struct cuda_twin_copy *copy,
    uint32_t first, uint32_t end, uint64_t *frame) {
    for (uint32_t i = first; i < end; i++) {
        const uint64_t location = fixture->blocks[i].io.location;
        *frame = (copy->device_offset - location) / fixture->layers.frame_bytes;
        if (copy->device_offset >= location && *frame < fixture->layers.frame_count)
            return true;
    }
    return false;
}

/* From `call` on: first the late ones' first layer, then all go layer by layer. */
static void check_catching_up(
    struct fixture *fixture, uint32_t call, uint32_t early, uint32_t blocks) {
    static struct cuda_twin_copy copies[COPIES_MAX];
    const uint64_t first_layers_bytes = (blocks - early) * fixture->layers.frame_bytes;
    const uint32_t count = cuda_twin_take_copies(fixture->twin, copies, COPIES_MAX);
    uint64_t frame = 0, last_frame = 0, late_bytes = 0;
    for (uint32_t c = 0; c < count; c++) {
        assert_true(is_copy_of(fixture, &copies[c], 0, blocks, &frame));
        if (copies[c].call >= call) {
            assert_true(frame >= last_frame && (frame == 0 || late_bytes == first_layers_bytes));
            last_frame = frame;
        }
        if (is_copy_of(fixture, &copies[c], early, blocks, &frame) && frame == 0)
            late_bytes += copies[c].copy_bytes;
    }
    assert_int_equal(last_frame, fixture->layers.frame_count - 1);
}

/* A batch is under way, and stands still with all pieces out; others come, and it goes on. What
 * was decided meanwhile, while they were on their way to the thread that decides, is at most all
 * pieces once more. */
static void check_late_ones_catch_up(struct fixture *fixture, uint32_t early) {
    enum { BLOCKS = 9 };
    for (uint32_t i = 0; i < BLOCKS; i++)
        make_block(fixture, i, &fixture->layers);
    const uint32_t before = cuda_twin_calls(fixture->twin);
    cuda_twin_hold(fixture->twin, true);
    for (uint32_t i = 0; i < early; i++)
        submit_io(&fixture->blocks[i], KVL_IO_STORE, KVL_IO_RESTORE);
    wait_for_calls(fixture, before + PIECES);
    for (uint32_t i = early; i < BLOCKS; i++)
        submit_io(&fixture->blocks[i], KVL_IO_STORE, KVL_IO_RESTORE);
    cuda_twin_hold(fixture->twin, false);
    for (uint32_t i = 0; i < BLOCKS; i++)
        assert_int_equal(finish_io(&fixture->blocks[i]), KVL_OK);
    check_catching_up(fixture, before + 2 * PIECES, early, BLOCKS);
}

static void late_ones_catch_up_with_a_batch_under_way(void **state) {
    check_late_ones_catch_up(*state, 5); /* in its first layer, */
}

static void so_they_do_in_its_later_layers(void **state) {
    check_late_ones_catch_up(*state, 1); /* or behind it */
}

static void and_from_pinned_memory(void **state) {
    pin_host(*state);
    check_late_ones_catch_up(*state, 3);
}

/* Blocks of one frame keep coming, more than pieces hold: a batch does not take them in for ever.
 */
static void layers_are_not_starved_by_blocks_of_one_frame(void **state) {
    struct fixture *fixture = *state;
    enum { SMALL = 200, ENOUGH = 20000 };
    static struct block small[SMALL]; /* all of one slot, and of the same bytes */
    struct block *layers = make_block(fixture, 0, &fixture->layers);
    small[0] = *make_block(fixture, 1, &fixture->small);
    cuda_twin_hold(fixture->twin, true);
    for (uint32_t i = 0; i < SMALL; i++) {
        small[i] = small[0];
        small[i].io.owner = &small[i];
        small[i].io.frame_ready = NULL;
        submit_io(&small[i], KVL_IO_STORE, KVL_IO_RESTORE);
        if (i == SMALL / 2)
            submit_io(layers, KVL_IO_STORE, KVL_IO_RESTORE);
    }
    fixture->completed = 0;
    cuda_twin_hold(fixture->twin, false);
    while (fixture->completed < ENOUGH && layers->completions == 0) {
        poll_once(fixture, 10);
        for (uint32_t i = 0; i < SMALL && layers->completions == 0; i++)
            if (small[i].completions > 0)
                submit_io(&small[i], KVL_IO_STORE, KVL_IO_RESTORE);
    }
    assert_int_equal(finish_io(layers), KVL_OK);
    assert_in_range(layers->completed_as, 0, ENOUGH);
    for (uint32_t i = 0; i < SMALL; i++)
        assert_int_equal(finish_io(&small[i]), KVL_OK);
}

/* on_frame_ready compares the bytes; copies are slow, and made last to first. */
static void what_is_told_is_there(void **state) {
    struct fixture *fixture = *state;
    enum { BLOCKS = 6 };
    cuda_twin_set_delay(fixture->twin, 300000);
    for (uint32_t i = 0; i < BLOCKS; i++)
        submit_io(make_block(fixture, i, &fixture->layers), KVL_IO_STORE, KVL_IO_RESTORE);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        assert_int_equal(finish_io(&fixture->blocks[i]), KVL_OK);
        assert_int_equal(fixture->blocks[i].frames, fixture->layers.frame_count);
        assert_memory_equal(fixture->arena + fixture->blocks[i].io.location,
            fixture->blocks[i].io.buffer, fixture->layers.payload_bytes);
    }
}

static void nothing_ends_before_its_bytes_are_there(void **state) {
    struct fixture *fixture = *state;
    struct block *block = make_block(fixture, 0, &fixture->layers);
    cuda_twin_hold(fixture->twin, true);
    submit_io(block, KVL_IO_STORE, KVL_IO_RESTORE);
    for (int i = 0; i < 10; i++)
        poll_once(fixture, 5);
    assert_int_equal(block->completions, 0);
    assert_int_equal(block->frames, 0);
    cuda_twin_hold(fixture->twin, false);
    assert_int_equal(finish_io(block), KVL_OK);
}

static void what_is_urgent_overtakes_all_but_what_is_on_its_way(void **state) {
    struct fixture *fixture = *state;
    static struct cuda_twin_copy copies[COPIES_MAX];
    enum { BEHIND = 40 };
    for (uint32_t i = 0; i <= BEHIND; i++)
        assert_int_equal(store_block(make_block(fixture, i, &fixture->small)), KVL_OK);
    struct block *dummy = hold_all_pieces(fixture, KVL_IO_LOAD);
    for (uint32_t i = 0; i < BEHIND; i++)
        submit_io(&fixture->blocks[i], KVL_IO_LOAD, KVL_IO_BEHIND);
    submit_io(&fixture->blocks[BEHIND], KVL_IO_LOAD, KVL_IO_RESTORE);
    cuda_twin_take_copies(fixture->twin, copies, COPIES_MAX);
    cuda_twin_hold(fixture->twin, false);
    for (uint32_t i = 0; i <= BEHIND; i++)
        assert_int_equal(finish_io(&fixture->blocks[i]), KVL_OK);
    assert_int_equal(finish_io(dummy), KVL_OK);
    const uint32_t count = cuda_twin_take_copies(fixture->twin, copies, COPIES_MAX);
    const uint32_t first = copies[0].call;
    uint32_t found = 0;
    for (uint32_t c = 0; c < count; c++) {
        if (copies[c].device_offset != fixture->blocks[BEHIND].io.location)
            continue;
        found++;
        assert_true(copies[c].call <= first + PIECES);
    }
    assert_int_equal(found, 1);
}

/* RESTORE keeps coming, and CPUs are slower than the link, so that pieces wait for them: the one of
 * BEHIND that was copied early is hashed all the same. */
static void what_was_copied_is_not_starved_of_a_cpu(void **state) {
    struct fixture *fixture = *state;
    enum { BLOCKS = 30, BEHIND = 2, ENOUGH = 300 };
    fixture->tier->ops->deinit(fixture->tier);
    munmap(fixture->arena, 72 * MIB);
    make_tier(fixture, 12 * LARGE_BYTES, 1); /* a block is a piece */
    static struct kvl_layout large;          /* outlives a test that fails */
    assert_int_equal(kvl_layout_of_bytes(LARGE_BYTES, &large), KVL_OK);
    assert_int_equal(store_block(make_block(fixture, 0, &large)), KVL_OK);
    for (uint32_t i = 1; i < BLOCKS; i++) { /* all of one slot, which they only read */
        fixture->blocks[i] = fixture->blocks[0];
        fixture->blocks[i].io.owner = &fixture->blocks[i];
    }
    struct block *behind = &fixture->blocks[BEHIND];
    const uint32_t before = cuda_twin_calls(fixture->twin);
    cuda_twin_hold(fixture->twin, true);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        submit_io(&fixture->blocks[i], KVL_IO_HASH, i == BEHIND ? KVL_IO_BEHIND : KVL_IO_RESTORE);
        wait_for_calls(fixture, before + (i < PIECES ? i + 1 : PIECES));
    }
    fixture->completed = 0;
    cuda_twin_skip_copies(fixture->twin, true);
    cuda_twin_hold(fixture->twin, false);
    while (fixture->completed < ENOUGH && behind->completions == 0) {
        poll_once(fixture, 10);
        for (uint32_t i = 0; i < BLOCKS; i++)
            if (i != BEHIND && fixture->blocks[i].completions > 0)
                submit_io(&fixture->blocks[i], KVL_IO_HASH, KVL_IO_RESTORE);
    }
    assert_int_equal(behind->completions, 1);
    for (uint32_t i = 0; i < BLOCKS; i++)
        assert_int_equal(finish_io(&fixture->blocks[i]), KVL_OK);
}

/* Four threads that look for work, go to sleep and are woken, at every distance from a block that
 * comes: none is left with nobody awake, and all are hashed right. */
static void hash_threads_are_found_awake_or_woken(void **state) {
    struct fixture *fixture = *state;
    enum { ROUNDS = 240, STEP_US = 5 };
    fixture->tier->ops->deinit(fixture->tier);
    munmap(fixture->arena, 72 * MIB);
    make_tier(fixture, STAGING_BYTES, 4);
    struct block *block = make_block(fixture, 0, &fixture->layers);
    assert_int_equal(store_block(block), KVL_OK);
    for (uint32_t i = 0; i < ROUNDS; i++) {
        nanosleep(&(struct timespec){.tv_nsec = (long)(i % 60) * STEP_US * 1000}, NULL);
        assert_int_equal(load_block(block), KVL_OK);
        assert_true(block->io.record.content_hash == block->right_hash);
    }
}

/* The stream has work with two pieces, so the others become one. */
static void what_trickles_in_waits_for_company(void **state) {
    struct fixture *fixture = *state;
    enum { BLOCKS = 6 };
    for (uint32_t i = 0; i < BLOCKS; i++)
        assert_int_equal(store_block(make_block(fixture, i, &fixture->small)), KVL_OK);
    const uint32_t before = cuda_twin_calls(fixture->twin);
    cuda_twin_hold(fixture->twin, true);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        submit_io(&fixture->blocks[i], KVL_IO_LOAD, KVL_IO_BEHIND);
        wait_for_calls(fixture, before + (i < 2 ? i + 1 : 2));
    }
    sleep_ms(20);
    wait_for_calls(fixture, before + 2);
    cuda_twin_hold(fixture->twin, false);
    for (uint32_t i = 0; i < BLOCKS; i++)
        assert_int_equal(finish_io(&fixture->blocks[i]), KVL_OK);
    wait_for_calls(fixture, before + 3);
}

/* ---- driver threads ------------------------------------------------------------------------- */

/* The driver is in a call of one direction: the other has a thread of its own. */
static void check_the_other_way_is_free(struct fixture *fixture, enum kvl_cuda_direction stalled) {
    enum { BLOCKS = 20 };
    const bool stores = stalled == KVL_CUDA_TO_DEVICE;
    for (uint32_t i = 0; i <= BLOCKS; i++)
        assert_int_equal(store_block(make_block(fixture, i, &fixture->layers)), KVL_OK);
    struct block *held = &fixture->blocks[BLOCKS];
    cuda_twin_stall(fixture->twin, stalled, true);
    submit_io(held, stores ? KVL_IO_STORE : KVL_IO_LOAD, KVL_IO_RESTORE);
    sleep_ms(5);
    for (uint32_t i = 0; i < BLOCKS; i++)
        submit_io(&fixture->blocks[i], stores ? KVL_IO_LOAD : KVL_IO_STORE, KVL_IO_BEHIND);
    for (uint32_t i = 0; i < BLOCKS; i++)
        assert_int_equal(finish_io(&fixture->blocks[i]), KVL_OK);
    assert_int_equal(held->completions, 0);
    cuda_twin_stall(fixture->twin, stalled, false);
    assert_int_equal(finish_io(held), KVL_OK);
}

static void a_call_one_way_holds_up_that_way_alone(void **state) {
    check_the_other_way_is_free(*state, KVL_CUDA_TO_HOST);
    check_the_other_way_is_free(*state, KVL_CUDA_TO_DEVICE);
}

/* Ring first, then pinned memory, chunk by chunk; cancels meanwhile. */
static void both_ways_at_once_keep_their_bytes(void **state) {
    struct fixture *fixture = *state;
    enum { BLOCKS = 40, ROUNDS = 20 };
    memset(fixture->host, 0, fixture->host_bytes);
    for (uint32_t i = 0; i < BLOCKS; i++)
        assert_int_equal(
            store_block(make_block(fixture, i, i % 3 ? &fixture->small : &fixture->layers)),
            KVL_OK);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        if (round == ROUNDS / 4)
            assert_int_equal(
                kvl_cuda_tier_pin_host(fixture->tier, fixture->host, fixture->host_bytes), KVL_OK);
        for (uint32_t i = 0; i < BLOCKS; i++)
            submit_io(&fixture->blocks[i], (enum kvl_io_op)((i + round) % 3),
                (enum kvl_io_priority)(i % 3));
        struct block *canceled = &fixture->blocks[round % BLOCKS];
        fixture->tier->ops->cancel(fixture->tier, &canceled->io);
        for (uint32_t i = 0; i < BLOCKS; i++) {
            struct block *block = &fixture->blocks[i];
            const kvl_err err = finish_io(block);
            assert_true(err == KVL_OK || (err == KVL_ERR_CANCELED && block == canceled));
            assert_int_equal(block->io.record.content_hash, block->right_hash);
            assert_memory_equal(fixture->arena + block->io.location, block->io.buffer,
                block->io.layout->payload_bytes);
        }
    }
    assert_null(cuda_twin_violation(fixture->twin));
}

/* A full piece is one call of copies and one word, either way. */
static void check_calls_of_a_batch(struct fixture *fixture, enum kvl_io_op op) {
    enum { BLOCKS = 56, BLOCKS_A_PIECE = PIECE_BYTES / 8192 };
    for (uint32_t i = 0; i < BLOCKS; i++)
        assert_int_equal(store_block(make_block(fixture, i, &fixture->small)), KVL_OK);
    const uint32_t pieces = 2 * (uint32_t)(fixture->layers.payload_bytes / PIECE_BYTES) +
                            BLOCKS / BLOCKS_A_PIECE; /* of the dummy, stored and moved, and these */
    const uint32_t calls = cuda_twin_calls(fixture->twin);
    const uint32_t words = cuda_twin_words(fixture->twin);
    struct block *dummy = hold_all_pieces(fixture, op);
    for (uint32_t i = 0; i < BLOCKS; i++)
        submit_io(&fixture->blocks[i], op, KVL_IO_RESTORE);
    cuda_twin_hold(fixture->twin, false);
    for (uint32_t i = 0; i < BLOCKS; i++)
        assert_int_equal(finish_io(&fixture->blocks[i]), KVL_OK);
    assert_int_equal(finish_io(dummy), KVL_OK);
    assert_int_equal(cuda_twin_calls(fixture->twin) - calls, pieces);
    assert_int_equal(cuda_twin_words(fixture->twin) - words, pieces);
}

static void a_piece_is_two_calls_of_the_driver(void **state) {
    check_calls_of_a_batch(*state, KVL_IO_STORE);
    check_calls_of_a_batch(*state, KVL_IO_LOAD);
}

int main(void) {
#define WITH_TIER(test) cmocka_unit_test_setup_teardown(test, fixture_setup, fixture_teardown)
    const struct CMUnitTest tests[] = {
        WITH_TIER(a_chains_layers_go_one_after_another),
        WITH_TIER(so_they_do_from_pinned_memory),
        WITH_TIER(late_ones_catch_up_with_a_batch_under_way),
        WITH_TIER(so_they_do_in_its_later_layers),
        WITH_TIER(and_from_pinned_memory),
        WITH_TIER(layers_are_not_starved_by_blocks_of_one_frame),
        WITH_TIER(what_is_told_is_there),
        WITH_TIER(nothing_ends_before_its_bytes_are_there),
        WITH_TIER(what_is_urgent_overtakes_all_but_what_is_on_its_way),
        WITH_TIER(what_was_copied_is_not_starved_of_a_cpu),
        WITH_TIER(hash_threads_are_found_awake_or_woken),
        WITH_TIER(what_trickles_in_waits_for_company),
        WITH_TIER(both_ways_at_once_keep_their_bytes),
        WITH_TIER(a_piece_is_two_calls_of_the_driver),
    };
    const struct CMUnitTest of_two[] = {WITH_TIER(a_call_one_way_holds_up_that_way_alone)};
    int failed = cmocka_run_group_tests_name("a driver thread a direction", tests, NULL, NULL);
    failed += cmocka_run_group_tests(of_two, NULL, NULL);
    fixture_driver_threads = 1;
    failed += cmocka_run_group_tests_name("one driver thread for both", tests, NULL, NULL);
    return failed;
}
