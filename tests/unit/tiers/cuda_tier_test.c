/* The tier of GPU memory on the twin of its driver: order, faults, sizes, cancel, drain. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "cuda_twin.h"
#include "device_cuda/cuda_tier.h"

#define MIB (UINT64_C(1) << 20)
#define PIECE_BYTES 65536u
#define STAGING_BYTES (12 * PIECE_BYTES)
#define PIECES 6u
#define PIN_BYTES (MIB + 12288) /* ends in the midst of blocks, and of frames */
#define BLOCKS_MAX 64u
#define COPIES_MAX 4096u
#define LARGE_BYTES (8 * MIB)

struct block {
    struct kvl_io io;
    struct fixture *fixture;
    uint64_t right_hash;
    uint32_t completions;
    uint32_t completed_as;
    uint32_t frames;
};

struct fixture {
    struct cuda_twin *twin;
    struct kvl_tier *tier;
    struct kvl_log *log;
    atomic_uint lost_lines, open_lines, fallback_lines; /* counted on the driver thread */
    struct kvl_layout small;                            /* one frame of 8 KiB */
    struct kvl_layout layers;                           /* four frames of 256 KiB */
    uint8_t *host;                                      /* the buffers: a slot of `layers` each */
    uint64_t host_bytes;
    uint8_t *arena; /* the device's memory as an engine maps it */
    uint32_t completed;
    struct block blocks[BLOCKS_MAX];
};

/* ---- the fixture ---------------------------------------------------------------------------- */

static void on_line(void *arg, enum kvl_log_level level, const char *line) {
    struct fixture *fixture = arg;
    (void)level;
    fixture->lost_lines += strstr(line, "event=gpu_lost") != NULL;
    fixture->open_lines += strstr(line, "event=gpu_copies_open") != NULL;
    fixture->fallback_lines += strstr(line, "not pinned") != NULL;
}

static void on_complete(struct kvl_io *io) {
    struct block *block = io->owner;
    block->completions++;
    block->completed_as = block->fixture->completed++;
}

static void on_frame_ready(struct kvl_io *io, uint32_t frames) {
    struct block *block = io->owner;
    const struct fixture *fixture = block->fixture;
    assert_true(frames > block->frames && frames <= io->layout->frame_count);
    assert_int_equal(block->completions, 0);
    block->frames = frames;
    if (io->op == KVL_IO_STORE) /* what is told is there */
        assert_memory_equal(
            fixture->arena + io->location, io->buffer, frames * io->layout->frame_bytes);
}

static void sleep_ms(long ms) {
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

static void layouts_init(struct fixture *fixture) {
    const struct kvl_geometry geometry = {
        .layers = 4, .kv_heads = 8, .k_dim = 128, .v_dim = 128, .block_tokens = 64};
    assert_int_equal(kvl_layout_of_bytes(8192, &fixture->small), KVL_OK);
    assert_int_equal(kvl_layout_of_geometry(&geometry, KVL_DTYPE_F16, &fixture->layers), KVL_OK);
    assert_int_equal(fixture->layers.frame_count, 4);
    assert_int_equal(fixture->layers.frame_bytes, 262144);
}

static uint32_t lost_wait_ms, driver_threads;
static void make_tier(struct fixture *fixture, uint64_t staging_bytes, uint32_t hash_threads) {
    const struct kvl_cuda_tier_options options = {.capacity_bytes = 72 * MIB,
        .staging_bytes = staging_bytes,
        .pin_bytes = PIN_BYTES,
        .hash_threads = hash_threads,
        .driver_threads = driver_threads,
        .lost_wait_ms = lost_wait_ms,
        .log = fixture->log,
        .driver = cuda_twin_driver(fixture->twin)};
    struct kvl_errmsg msg = {""};
    if (kvl_cuda_tier_create(&options, &fixture->tier, &msg) != KVL_OK)
        fail_msg("%s", msg.text);
    fixture->arena = mmap(NULL, 72 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED,
        fixture->tier->ops->share_fd(fixture->tier), 0);
    assert_true(fixture->arena != MAP_FAILED);
}

static int setup(void **state) {
    struct fixture *fixture = calloc(1, sizeof *fixture);
    assert_non_null(fixture);
    *state = fixture;
    layouts_init(fixture);
    fixture->twin = cuda_twin_create(80 * MIB);
    fixture->log = kvl_log_create(KVL_LOG_INFO, on_line, fixture);
    make_tier(fixture, STAGING_BYTES, 2);
    fixture->host_bytes = BLOCKS_MAX * fixture->layers.slot_bytes;
    fixture->host =
        mmap(NULL, fixture->host_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(fixture->host != MAP_FAILED);
    return 0;
}

static int setup_impatient(void **state) {
    lost_wait_ms = 1;
    int failed = setup(state);
    lost_wait_ms = 0;
    return failed;
}

static int teardown(void **state) {
    struct fixture *fixture = *state;
    cuda_twin_hold(fixture->twin, false);
    cuda_twin_stall(fixture->twin, KVL_CUDA_TO_DEVICE, false);
    cuda_twin_stall(fixture->twin, KVL_CUDA_TO_HOST, false);
    assert_int_equal(fixture->tier->ops->drain(fixture->tier), KVL_OK);
    fixture->tier->ops->deinit(fixture->tier);
    const char *violation = cuda_twin_violation(fixture->twin);
    if (violation != NULL)
        fail_msg("the driver was misused: %s", violation);
    assert_int_equal(cuda_twin_leaks(fixture->twin), 0);
    cuda_twin_destroy(fixture->twin);
    kvl_log_destroy(fixture->log);
    munmap(fixture->arena, 72 * MIB);
    munmap(fixture->host, fixture->host_bytes);
    free(fixture);
    return 0;
}

/* ---- blocks --------------------------------------------------------------------------------- */

static void fill(uint8_t *at, uint64_t bytes, uint32_t number) {
    for (uint64_t i = 0; i < bytes / 4; i++)
        ((uint32_t *)(void *)at)[i] = (uint32_t)i * 2654435761u + number;
}

/* With a slot and its content in the buffer. */
static struct block *make(
    struct fixture *fixture, uint32_t number, const struct kvl_layout *layout) {
    struct block *block = &fixture->blocks[number];
    *block = (struct block){.fixture = fixture};
    block->io = (struct kvl_io){.layout = layout,
        .buffer = fixture->host + number * fixture->layers.slot_bytes,
        .complete = on_complete,
        .frame_ready = on_frame_ready,
        .owner = block};
    fill(block->io.buffer, layout->payload_bytes, number);
    block->right_hash = kvl_content_hash(layout, block->io.buffer, NULL);
    block->io.record.content_hash = block->right_hash;
    assert_int_equal(
        fixture->tier->ops->alloc(fixture->tier, layout->slot_bytes, &block->io.location), KVL_OK);
    return block;
}

static void submit(struct block *block, enum kvl_io_op op, enum kvl_io_priority priority) {
    struct kvl_tier *tier = block->fixture->tier;
    block->io.op = op;
    block->io.priority = priority;
    block->completions = block->frames = 0;
    assert_int_equal(tier->ops->submit(tier, &block->io), KVL_OK);
}

static void poll_once(struct fixture *fixture, int timeout_ms) {
    struct pollfd poller = {.fd = fixture->tier->ops->fd(fixture->tier), .events = POLLIN};
    if (poll(&poller, 1, timeout_ms) == 1)
        fixture->tier->ops->poll(fixture->tier);
}

static kvl_err finish(struct block *block) {
    for (int i = 0; i < 3000 && block->completions == 0; i++)
        poll_once(block->fixture, 10);
    assert_int_equal(block->completions, 1);
    return block->io.status;
}

static kvl_err store(struct block *block) {
    submit(block, KVL_IO_STORE, KVL_IO_BEHIND);
    return finish(block);
}

static kvl_err load(struct block *block) {
    memset(block->io.buffer, 0xEE, block->io.layout->payload_bytes);
    submit(block, KVL_IO_LOAD, KVL_IO_BEHIND);
    return finish(block);
}

static void wait_for_calls(struct fixture *fixture, uint32_t calls) {
    for (int i = 0; i < 3000 && cuda_twin_calls(fixture->twin) < calls; i++)
        sleep_ms(1);
    assert_int_equal(cuda_twin_calls(fixture->twin), calls);
}

/* Fills the way to the device with pieces that stand still, so that what is submitted next waits.
 */
static struct block *hold_all_pieces(struct fixture *fixture, enum kvl_io_op op) {
    struct block *dummy = make(fixture, BLOCKS_MAX - 1, &fixture->layers);
    assert_int_equal(store(dummy), KVL_OK);
    cuda_twin_hold(fixture->twin, true);
    const uint32_t before = cuda_twin_calls(fixture->twin);
    submit(dummy, op, KVL_IO_PREFETCH);
    wait_for_calls(fixture, before + PIECES);
    return dummy;
}

static void wait_pinned(struct fixture *fixture) {
    for (int i = 0; i < 3000 && kvl_cuda_tier_pinned_bytes(fixture->tier) < fixture->host_bytes;
         i++)
        sleep_ms(5);
    assert_int_equal(kvl_cuda_tier_pinned_bytes(fixture->tier), fixture->host_bytes);
}

static void pin_host(struct fixture *fixture) {
    memset(fixture->host, 0, fixture->host_bytes);
    assert_int_equal(
        kvl_cuda_tier_pin_host(fixture->tier, fixture->host, fixture->host_bytes), KVL_OK);
    wait_pinned(fixture);
}

/* ---- order ---------------------------------------------------------------------------------- */

static void check_layer_by_layer(struct fixture *fixture, enum kvl_io_priority priority) {
    static struct cuda_twin_copy copies[COPIES_MAX];
    enum { BLOCKS = 8 };
    struct block *dummy = hold_all_pieces(fixture, KVL_IO_STORE);
    for (uint32_t i = 0; i < BLOCKS; i++)
        submit(make(fixture, i, &fixture->layers), KVL_IO_STORE, priority);
    cuda_twin_take_copies(fixture->twin, copies, COPIES_MAX);
    cuda_twin_hold(fixture->twin, false);
    for (uint32_t i = 0; i < BLOCKS; i++)
        assert_int_equal(finish(&fixture->blocks[i]), KVL_OK);
    assert_int_equal(finish(dummy), KVL_OK);
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
        make(fixture, i, &fixture->layers);
    const uint32_t before = cuda_twin_calls(fixture->twin);
    cuda_twin_hold(fixture->twin, true);
    for (uint32_t i = 0; i < early; i++)
        submit(&fixture->blocks[i], KVL_IO_STORE, KVL_IO_RESTORE);
    wait_for_calls(fixture, before + PIECES);
    for (uint32_t i = early; i < BLOCKS; i++)
        submit(&fixture->blocks[i], KVL_IO_STORE, KVL_IO_RESTORE);
    cuda_twin_hold(fixture->twin, false);
    for (uint32_t i = 0; i < BLOCKS; i++)
        assert_int_equal(finish(&fixture->blocks[i]), KVL_OK);
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
    struct block *layers = make(fixture, 0, &fixture->layers);
    small[0] = *make(fixture, 1, &fixture->small);
    cuda_twin_hold(fixture->twin, true);
    for (uint32_t i = 0; i < SMALL; i++) {
        small[i] = small[0];
        small[i].io.owner = &small[i];
        small[i].io.frame_ready = NULL;
        submit(&small[i], KVL_IO_STORE, KVL_IO_RESTORE);
        if (i == SMALL / 2)
            submit(layers, KVL_IO_STORE, KVL_IO_RESTORE);
    }
    fixture->completed = 0;
    cuda_twin_hold(fixture->twin, false);
    while (fixture->completed < ENOUGH && layers->completions == 0) {
        poll_once(fixture, 10);
        for (uint32_t i = 0; i < SMALL && layers->completions == 0; i++)
            if (small[i].completions > 0)
                submit(&small[i], KVL_IO_STORE, KVL_IO_RESTORE);
    }
    assert_int_equal(finish(layers), KVL_OK);
    assert_in_range(layers->completed_as, 0, ENOUGH);
    for (uint32_t i = 0; i < SMALL; i++)
        assert_int_equal(finish(&small[i]), KVL_OK);
}

/* on_frame_ready compares the bytes; copies are slow, and made last to first. */
static void what_is_told_is_there(void **state) {
    struct fixture *fixture = *state;
    enum { BLOCKS = 6 };
    cuda_twin_set_delay(fixture->twin, 300000);
    for (uint32_t i = 0; i < BLOCKS; i++)
        submit(make(fixture, i, &fixture->layers), KVL_IO_STORE, KVL_IO_RESTORE);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        assert_int_equal(finish(&fixture->blocks[i]), KVL_OK);
        assert_int_equal(fixture->blocks[i].frames, fixture->layers.frame_count);
        assert_memory_equal(fixture->arena + fixture->blocks[i].io.location,
            fixture->blocks[i].io.buffer, fixture->layers.payload_bytes);
    }
}

static void nothing_ends_before_its_bytes_are_there(void **state) {
    struct fixture *fixture = *state;
    struct block *block = make(fixture, 0, &fixture->layers);
    cuda_twin_hold(fixture->twin, true);
    submit(block, KVL_IO_STORE, KVL_IO_RESTORE);
    for (int i = 0; i < 10; i++)
        poll_once(fixture, 5);
    assert_int_equal(block->completions, 0);
    assert_int_equal(block->frames, 0);
    cuda_twin_hold(fixture->twin, false);
    assert_int_equal(finish(block), KVL_OK);
}

static void what_is_urgent_overtakes_all_but_what_is_on_its_way(void **state) {
    struct fixture *fixture = *state;
    static struct cuda_twin_copy copies[COPIES_MAX];
    enum { BEHIND = 40 };
    for (uint32_t i = 0; i <= BEHIND; i++)
        assert_int_equal(store(make(fixture, i, &fixture->small)), KVL_OK);
    struct block *dummy = hold_all_pieces(fixture, KVL_IO_LOAD);
    for (uint32_t i = 0; i < BEHIND; i++)
        submit(&fixture->blocks[i], KVL_IO_LOAD, KVL_IO_BEHIND);
    submit(&fixture->blocks[BEHIND], KVL_IO_LOAD, KVL_IO_RESTORE);
    cuda_twin_take_copies(fixture->twin, copies, COPIES_MAX);
    cuda_twin_hold(fixture->twin, false);
    for (uint32_t i = 0; i <= BEHIND; i++)
        assert_int_equal(finish(&fixture->blocks[i]), KVL_OK);
    assert_int_equal(finish(dummy), KVL_OK);
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
    assert_int_equal(store(make(fixture, 0, &large)), KVL_OK);
    for (uint32_t i = 1; i < BLOCKS; i++) { /* all of one slot, which they only read */
        fixture->blocks[i] = fixture->blocks[0];
        fixture->blocks[i].io.owner = &fixture->blocks[i];
    }
    struct block *behind = &fixture->blocks[BEHIND];
    const uint32_t before = cuda_twin_calls(fixture->twin);
    cuda_twin_hold(fixture->twin, true);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        submit(&fixture->blocks[i], KVL_IO_HASH, i == BEHIND ? KVL_IO_BEHIND : KVL_IO_RESTORE);
        wait_for_calls(fixture, before + (i < PIECES ? i + 1 : PIECES));
    }
    fixture->completed = 0;
    cuda_twin_skip_copies(fixture->twin, true);
    cuda_twin_hold(fixture->twin, false);
    while (fixture->completed < ENOUGH && behind->completions == 0) {
        poll_once(fixture, 10);
        for (uint32_t i = 0; i < BLOCKS; i++)
            if (i != BEHIND && fixture->blocks[i].completions > 0)
                submit(&fixture->blocks[i], KVL_IO_HASH, KVL_IO_RESTORE);
    }
    assert_int_equal(behind->completions, 1);
    for (uint32_t i = 0; i < BLOCKS; i++)
        assert_int_equal(finish(&fixture->blocks[i]), KVL_OK);
}

/* The stream has work with two pieces, so the others become one. */
static void what_trickles_in_waits_for_company(void **state) {
    struct fixture *fixture = *state;
    enum { BLOCKS = 6 };
    for (uint32_t i = 0; i < BLOCKS; i++)
        assert_int_equal(store(make(fixture, i, &fixture->small)), KVL_OK);
    const uint32_t before = cuda_twin_calls(fixture->twin);
    cuda_twin_hold(fixture->twin, true);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        submit(&fixture->blocks[i], KVL_IO_LOAD, KVL_IO_BEHIND);
        wait_for_calls(fixture, before + (i < 2 ? i + 1 : 2));
    }
    sleep_ms(20);
    wait_for_calls(fixture, before + 2);
    cuda_twin_hold(fixture->twin, false);
    for (uint32_t i = 0; i < BLOCKS; i++)
        assert_int_equal(finish(&fixture->blocks[i]), KVL_OK);
    wait_for_calls(fixture, before + 3);
}

/* ---- driver threads ------------------------------------------------------------------------- */

/* The driver is in a call of one direction: the other has a thread of its own. */
static void check_the_other_way_is_free(struct fixture *fixture, enum kvl_cuda_direction stalled) {
    enum { BLOCKS = 20 };
    const bool stores = stalled == KVL_CUDA_TO_DEVICE;
    for (uint32_t i = 0; i <= BLOCKS; i++)
        assert_int_equal(store(make(fixture, i, &fixture->layers)), KVL_OK);
    struct block *held = &fixture->blocks[BLOCKS];
    cuda_twin_stall(fixture->twin, stalled, true);
    submit(held, stores ? KVL_IO_STORE : KVL_IO_LOAD, KVL_IO_RESTORE);
    sleep_ms(5);
    for (uint32_t i = 0; i < BLOCKS; i++)
        submit(&fixture->blocks[i], stores ? KVL_IO_LOAD : KVL_IO_STORE, KVL_IO_BEHIND);
    for (uint32_t i = 0; i < BLOCKS; i++)
        assert_int_equal(finish(&fixture->blocks[i]), KVL_OK);
    assert_int_equal(held->completions, 0);
    cuda_twin_stall(fixture->twin, stalled, false);
    assert_int_equal(finish(held), KVL_OK);
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
            store(make(fixture, i, i % 3 ? &fixture->small : &fixture->layers)), KVL_OK);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        if (round == ROUNDS / 4)
            assert_int_equal(
                kvl_cuda_tier_pin_host(fixture->tier, fixture->host, fixture->host_bytes), KVL_OK);
        for (uint32_t i = 0; i < BLOCKS; i++)
            submit(&fixture->blocks[i], (enum kvl_io_op)((i + round) % 3),
                (enum kvl_io_priority)(i % 3));
        struct block *canceled = &fixture->blocks[round % BLOCKS];
        fixture->tier->ops->cancel(fixture->tier, &canceled->io);
        for (uint32_t i = 0; i < BLOCKS; i++) {
            struct block *block = &fixture->blocks[i];
            const kvl_err err = finish(block);
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
        assert_int_equal(store(make(fixture, i, &fixture->small)), KVL_OK);
    const uint32_t pieces = 2 * (uint32_t)(fixture->layers.payload_bytes / PIECE_BYTES) +
                            BLOCKS / BLOCKS_A_PIECE; /* of the dummy, stored and moved, and these */
    const uint32_t calls = cuda_twin_calls(fixture->twin);
    const uint32_t words = cuda_twin_words(fixture->twin);
    struct block *dummy = hold_all_pieces(fixture, op);
    for (uint32_t i = 0; i < BLOCKS; i++)
        submit(&fixture->blocks[i], op, KVL_IO_RESTORE);
    cuda_twin_hold(fixture->twin, false);
    for (uint32_t i = 0; i < BLOCKS; i++)
        assert_int_equal(finish(&fixture->blocks[i]), KVL_OK);
    assert_int_equal(finish(dummy), KVL_OK);
    assert_int_equal(cuda_twin_calls(fixture->twin) - calls, pieces);
    assert_int_equal(cuda_twin_words(fixture->twin) - words, pieces);
}

static void a_piece_is_two_calls_of_the_driver(void **state) {
    check_calls_of_a_batch(*state, KVL_IO_STORE);
    check_calls_of_a_batch(*state, KVL_IO_LOAD);
}

/* ---- the check ------------------------------------------------------------------------------ */

static void check_a_bit_of(struct block *block, uint64_t at) {
    uint8_t *byte = block->fixture->arena + block->io.location + at;
    *byte ^= 1;
    assert_int_equal(load(block), KVL_ERR_CORRUPT);
    submit(block, KVL_IO_HASH, KVL_IO_PREFETCH);
    assert_int_equal(finish(block), KVL_OK);
    assert_true(block->io.record.content_hash != block->right_hash);
    block->io.record.content_hash = block->right_hash;
    *byte ^= 1;
    assert_int_equal(load(block), KVL_OK);
}

/* In the first byte of each frame and in the last; frames that fit a piece, and such as do not. */
static void check_all_frames(struct fixture *fixture) {
    const struct kvl_layout *layouts[] = {&fixture->small, &fixture->layers};
    for (uint32_t i = 0; i < 2; i++) {
        struct block *block = make(fixture, i, layouts[i]);
        assert_int_equal(store(block), KVL_OK);
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
        submit(make(fixture, i, &fixture->layers), KVL_IO_STORE, KVL_IO_RESTORE);
    for (uint32_t i = 0; i < 8; i++)
        assert_int_equal(finish(&fixture->blocks[i]), KVL_OK);
    for (uint32_t i = 0; i < 8; i++)
        assert_int_equal(load(&fixture->blocks[i]), KVL_OK);
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
        struct block *block = make(fixture, i, &fixture->small);
        block->io.buffer = fixture->host + i * fixture->small.slot_bytes;
        fill(block->io.buffer, fixture->small.payload_bytes, i);
        submit(block, KVL_IO_STORE, KVL_IO_RESTORE);
    }
    cuda_twin_take_copies(fixture->twin, copies, COPIES_MAX);
    cuda_twin_hold(fixture->twin, false);
    for (uint32_t i = 0; i < BLOCKS; i++)
        assert_int_equal(finish(&fixture->blocks[i]), KVL_OK);
    assert_int_equal(finish(dummy), KVL_OK);
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
    assert_int_equal(store(make(fixture, 0, &fixture->layers)), KVL_OK);
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
        struct block *block = make(fixture, 0, &fixture->layers);
        assert_int_equal(store(block), KVL_OK);
        assert_int_equal(load(block), KVL_OK);
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
        submit(make(fixture, i, &fixture->small), KVL_IO_STORE, KVL_IO_BEHIND);
    for (uint32_t i = 0; i < BLOCKS; i += 2)
        fixture->tier->ops->cancel(fixture->tier, &fixture->blocks[i].io);
    for (uint32_t i = 0; i < BLOCKS; i += 2) /* while the device stands still */
        assert_int_equal(finish(&fixture->blocks[i]), KVL_ERR_CANCELED);
    cuda_twin_hold(fixture->twin, false);
    for (uint32_t i = 1; i < BLOCKS; i += 2)
        assert_int_equal(finish(&fixture->blocks[i]), KVL_OK);
    assert_int_equal(finish(dummy), KVL_OK);
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
    assert_int_equal(finish(dummy), KVL_ERR_CANCELED);
}

static void drain_waits_for_all(void **state) {
    struct fixture *fixture = *state;
    cuda_twin_set_delay(fixture->twin, 200000);
    for (uint32_t i = 0; i < 30; i++)
        submit(make(fixture, i, i % 2 ? &fixture->small : &fixture->layers), KVL_IO_STORE,
            (enum kvl_io_priority)(i % 3));
    assert_int_equal(fixture->tier->ops->drain(fixture->tier), KVL_OK);
    for (uint32_t i = 0; i < 30; i++)
        assert_int_equal(fixture->blocks[i].completions, 1);
}

static void no_more_than_its_places_are_taken(void **state) {
    struct fixture *fixture = *state;
    enum { MORE = 3000 };
    static struct kvl_io ios[MORE];
    struct block *block = make(fixture, 0, &fixture->small);
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

/* ---- faults --------------------------------------------------------------------------------- */

static void a_refused_copy_fails_its_blocks_alone(void **state) {
    struct fixture *fixture = *state;
    struct block *bad = make(fixture, 0, &fixture->small);
    cuda_twin_fail_copies(fixture->twin, 0);
    assert_int_equal(store(bad), KVL_ERR_IO);
    assert_int_equal(fixture->lost_lines, 0);
    struct block *good = make(fixture, 1, &fixture->layers);
    assert_int_equal(store(good), KVL_OK);
    for (uint32_t call = 0; call < 5; call++) { /* of a block of many pieces, each in turn */
        cuda_twin_fail_copies(fixture->twin, call);
        assert_int_equal(load(good), KVL_ERR_IO);
        assert_int_equal(load(good), KVL_OK);
    }
    assert_int_equal(fixture->tier->ops->stats(fixture->tier).errors, 6);
}

static void all_end_with_closed(struct fixture *fixture, uint32_t count) {
    for (uint32_t i = 0; i < count; i++)
        assert_int_equal(finish(&fixture->blocks[i]), KVL_ERR_CLOSED);
}

static void a_lost_device_ends_everything(void **state) {
    struct fixture *fixture = *state;
    enum { BLOCKS = 20 };
    struct block *dummy = hold_all_pieces(fixture, KVL_IO_STORE);
    for (uint32_t i = 0; i < BLOCKS; i++)
        submit(make(fixture, i, &fixture->layers), i % 2 ? KVL_IO_STORE : KVL_IO_LOAD,
            (enum kvl_io_priority)(i % 3));
    cuda_twin_lose(fixture->twin, 0);
    all_end_with_closed(fixture, BLOCKS);
    assert_int_equal(finish(dummy), KVL_ERR_CLOSED);
    uint64_t location;
    assert_int_equal(fixture->tier->ops->alloc(fixture->tier, 4096, &location), KVL_ERR_CLOSED);
    submit(dummy, KVL_IO_LOAD, KVL_IO_RESTORE); /* and so does what comes later */
    assert_int_equal(finish(dummy), KVL_ERR_CLOSED);
    assert_int_equal(fixture->lost_lines, 1);
}

/* Between any two copies, by the ring or not. */
static void so_it_is_whenever_it_is_lost(void **state) {
    for (uint32_t calls = 1; calls < 40; calls += 3) {
        struct fixture *fixture = *state;
        if (calls % 2 == 0)
            pin_host(fixture);
        for (uint32_t i = 0; i < 8; i++)
            make(fixture, i, &fixture->layers);
        cuda_twin_lose(fixture->twin, calls);
        for (uint32_t i = 0; i < 8; i++)
            submit(&fixture->blocks[i], KVL_IO_STORE, KVL_IO_RESTORE);
        for (uint32_t i = 0; i < 8; i++) {
            struct block *block = &fixture->blocks[i];
            kvl_err err = finish(block);
            assert_true(err == KVL_OK || err == KVL_ERR_CLOSED);
            if (err == KVL_OK) /* it was there before */
                assert_memory_equal(fixture->arena + block->io.location, block->io.buffer,
                    fixture->layers.payload_bytes);
        }
        assert_int_equal(fixture->lost_lines, 1);
        teardown(state);
        setup(state);
    }
}

/* Its pieces land by the words of later ones, or when the stream is idle. */
static void words_that_are_refused_lose_nothing(void **state) {
    struct fixture *fixture = *state;
    struct block *block = make(fixture, 0, &fixture->layers);
    cuda_twin_refuse_words(fixture->twin, true);
    assert_int_equal(store(block), KVL_OK);
    assert_int_equal(load(block), KVL_OK);
    submit(block, KVL_IO_HASH, KVL_IO_RESTORE);
    cuda_twin_refuse_words(fixture->twin, false);
    assert_int_equal(finish(block), KVL_OK);
    assert_int_equal(load(block), KVL_OK);
    assert_int_equal(fixture->lost_lines, 0);
}

/* Loses the device with the copies of block 0 to its buffer under way, which go on. */
static struct block *lose_in_flight(struct fixture *fixture) {
    struct block *flying = make(fixture, 0, &fixture->small);
    struct block *other = make(fixture, 1, &fixture->small);
    assert_int_equal(store(flying), KVL_OK);
    memset(flying->io.buffer, 0xEE, flying->io.layout->payload_bytes);
    cuda_twin_hold(fixture->twin, true);
    const uint32_t before = cuda_twin_calls(fixture->twin);
    submit(flying, KVL_IO_LOAD, KVL_IO_RESTORE);
    wait_for_calls(fixture, before + 1);
    cuda_twin_lose_calls(fixture->twin);
    submit(other, KVL_IO_STORE, KVL_IO_RESTORE);
    assert_int_equal(finish(other), KVL_ERR_CLOSED);
    assert_int_equal(fixture->lost_lines, 1);
    return flying;
}

static void a_copy_under_way_ends_when_it_has_stopped(void **state) {
    struct fixture *fixture = *state;
    pin_host(fixture);
    struct block *flying = lose_in_flight(fixture);
    poll_once(fixture, 50); /* its stream was asked meanwhile */
    assert_int_equal(flying->completions, 0);
    cuda_twin_hold(fixture->twin, false);
    const kvl_err err = finish(flying);
    assert_true(err == KVL_OK || err == KVL_ERR_CLOSED);
    fill(fixture->host + 2 * fixture->layers.slot_bytes, 8192, 0);
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
    assert_int_equal(finish(flying), KVL_ERR_CLOSED);
    assert_int_equal(fixture->open_lines, 0);
}

/* ---- start ---------------------------------------------------------------------------------- */

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
#define WITH_TIER(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
#define IMPATIENT(test) cmocka_unit_test_setup_teardown(test, setup_impatient, teardown)
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
        WITH_TIER(what_trickles_in_waits_for_company),
        WITH_TIER(both_ways_at_once_keep_their_bytes),
        WITH_TIER(a_piece_is_two_calls_of_the_driver),
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
        WITH_TIER(a_refused_copy_fails_its_blocks_alone),
        WITH_TIER(a_lost_device_ends_everything),
        WITH_TIER(so_it_is_whenever_it_is_lost),
        WITH_TIER(words_that_are_refused_lose_nothing),
        WITH_TIER(a_copy_under_way_ends_when_it_has_stopped),
        IMPATIENT(one_that_does_not_stop_keeps_its_buffer_until_drain),
        IMPATIENT(one_by_the_ring_ends_all_the_same),
        cmocka_unit_test(what_a_gpu_lacks_is_said),
        cmocka_unit_test(what_cannot_be_is_refused_with_a_reason),
        cmocka_unit_test(a_driver_that_fails_at_any_call_is_refused),
        cmocka_unit_test(a_capacity_is_never_passed),
    };
    const struct CMUnitTest of_two[] = {WITH_TIER(a_call_one_way_holds_up_that_way_alone)};
    int failed = cmocka_run_group_tests_name("a driver thread a direction", tests, NULL, NULL);
    failed += cmocka_run_group_tests(of_two, NULL, NULL);
    driver_threads = 1;
    failed += cmocka_run_group_tests_name("one driver thread for both", tests, NULL, NULL);
    return failed;
}
