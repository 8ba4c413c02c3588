/* cuda_tier_fixture.c - see cuda_tier_fixture.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "cuda_tier_fixture.h"

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

void sleep_ms(long ms) {
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

uint32_t fixture_driver_threads;
static uint32_t lost_wait_ms;

void make_tier(struct fixture *fixture, uint64_t staging_bytes, uint32_t hash_threads) {
    const struct kvl_cuda_tier_options options = {.capacity_bytes = 72 * MIB,
        .staging_bytes = staging_bytes,
        .pin_bytes = PIN_BYTES,
        .hash_threads = hash_threads,
        .driver_threads = fixture_driver_threads,
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

int fixture_setup(void **state) {
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

int fixture_setup_impatient(void **state) {
    lost_wait_ms = 1;
    int failed = fixture_setup(state);
    lost_wait_ms = 0;
    return failed;
}

int fixture_teardown(void **state) {
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

void fill_bytes(uint8_t *at, uint64_t bytes, uint32_t number) {
    for (uint64_t i = 0; i < bytes / 4; i++)
        ((uint32_t *)(void *)at)[i] = (uint32_t)i * 2654435761u + number;
}

struct block *make_block(
    struct fixture *fixture, uint32_t number, const struct kvl_layout *layout) {
    struct block *block = &fixture->blocks[number];
    *block = (struct block){.fixture = fixture};
    block->io = (struct kvl_io){.layout = layout,
        .buffer = fixture->host + number * fixture->layers.slot_bytes,
        .complete = on_complete,
        .frame_ready = on_frame_ready,
        .owner = block};
    fill_bytes(block->io.buffer, layout->payload_bytes, number);
    block->right_hash = kvl_content_hash(layout, block->io.buffer, NULL);
    block->io.record.content_hash = block->right_hash;
    assert_int_equal(
        fixture->tier->ops->alloc(fixture->tier, layout->slot_bytes, &block->io.location), KVL_OK);
    return block;
}

void submit_io(struct block *block, enum kvl_io_op op, enum kvl_io_priority priority) {
    struct kvl_tier *tier = block->fixture->tier;
    block->io.op = op;
    block->io.priority = priority;
    block->completions = block->frames = 0;
    assert_int_equal(tier->ops->submit(tier, &block->io), KVL_OK);
}

void poll_once(struct fixture *fixture, int timeout_ms) {
    struct pollfd poller = {.fd = fixture->tier->ops->fd(fixture->tier), .events = POLLIN};
    if (poll(&poller, 1, timeout_ms) == 1)
        fixture->tier->ops->poll(fixture->tier);
}

kvl_err finish_io(struct block *block) {
    for (int i = 0; i < 3000 && block->completions == 0; i++)
        poll_once(block->fixture, 10);
    assert_int_equal(block->completions, 1);
    return block->io.status;
}

kvl_err store_block(struct block *block) {
    submit_io(block, KVL_IO_STORE, KVL_IO_BEHIND);
    return finish_io(block);
}

kvl_err load_block(struct block *block) {
    memset(block->io.buffer, 0xEE, block->io.layout->payload_bytes);
    submit_io(block, KVL_IO_LOAD, KVL_IO_BEHIND);
    return finish_io(block);
}

void wait_for_calls(struct fixture *fixture, uint32_t calls) {
    for (int i = 0; i < 3000 && cuda_twin_calls(fixture->twin) < calls; i++)
        sleep_ms(1);
    assert_int_equal(cuda_twin_calls(fixture->twin), calls);
}

struct block *hold_all_pieces(struct fixture *fixture, enum kvl_io_op op) {
    struct block *dummy = make_block(fixture, BLOCKS_MAX - 1, &fixture->layers);
    assert_int_equal(store_block(dummy), KVL_OK);
    cuda_twin_hold(fixture->twin, true);
    const uint32_t before = cuda_twin_calls(fixture->twin);
    submit_io(dummy, op, KVL_IO_PREFETCH);
    wait_for_calls(fixture, before + PIECES);
    return dummy;
}

void wait_pinned(struct fixture *fixture) {
    for (int i = 0; i < 3000 && kvl_cuda_tier_pinned_bytes(fixture->tier) < fixture->host_bytes;
         i++)
        sleep_ms(5);
    assert_int_equal(kvl_cuda_tier_pinned_bytes(fixture->tier), fixture->host_bytes);
}

void pin_host(struct fixture *fixture) {
    memset(fixture->host, 0, fixture->host_bytes);
    assert_int_equal(
        kvl_cuda_tier_pin_host(fixture->tier, fixture->host, fixture->host_bytes), KVL_OK);
    wait_pinned(fixture);
}
