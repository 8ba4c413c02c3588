#include "contract_fixture.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "decorators/delay.h"
#include "decorators/far.h"
#include "decorators/fault.h"

#define WAIT_MS 30000

/* ---- content ------------------------------------------------------------------------------ */

/* splitmix64: no codec shrinks it, and every block's is its own. */
static uint64_t content_word(uint32_t number, uint64_t i) {
    uint64_t z = ((uint64_t)number << 40) + i * UINT64_C(0x9E3779B97F4A7C15) + 1;
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

static void content_fill(uint8_t *buffer, uint32_t number, uint64_t bytes) {
    for (uint64_t i = 0; i < bytes; i += 8) {
        uint64_t word = content_word(number, i / 8);
        memcpy(buffer + i, &word, bytes - i < 8 ? bytes - i : 8);
    }
}

void block_assert_content(const struct test_block *block) {
    const uint8_t *got = block->io.buffer;
    for (uint64_t i = 0; i < block->layout->payload_bytes; i += 8) {
        uint64_t word = content_word(block->number, i / 8);
        uint64_t left = block->layout->payload_bytes - i;
        if (memcmp(got + i, &word, left < 8 ? left : 8) != 0)
            fail_msg("block %u differs at byte %llu", block->number, (unsigned long long)i);
    }
}

/* ---- events and completions --------------------------------------------------------------- */

static void on_complete(struct kvl_io *io) {
    struct test_block *block = io->owner;
    assert_false(block->fixture->in_submit);
    block->completions++;
    assert_true(block->completions <= block->submits);
    block->completed_as = block->fixture->completed++;
}

static void on_frame_ready(struct kvl_io *io, uint32_t frames) {
    struct test_block *block = io->owner;
    assert_false(block->fixture->in_submit);
    assert_true(block->completions < block->submits); /* never after complete */
    assert_true(frames > block->frames && frames <= block->layout->frame_count);
    block->frames = frames;
}

static void on_loaded(void *arg, kvl_err status) {
    struct contract_fixture *fixture = arg;
    assert_int_equal(status, KVL_OK);
    assert_false(fixture->loaded);
    fixture->loaded = true;
}

static void on_lost(void *arg, const struct kvl_key *key, uint64_t location) {
    (void)location;
    struct contract_fixture *fixture = arg;
    for (uint32_t i = 0; i < BLOCKS_MAX; i++) {
        struct test_block *block = &fixture->blocks[i];
        if (block->fixture && kvl_key_equal(&block->io.record.key, key))
            block->lost = true;
    }
}

static void on_moved(void *arg, const struct kvl_key *key, uint64_t location) {
    struct contract_fixture *fixture = arg;
    for (uint32_t i = 0; i < BLOCKS_MAX; i++) {
        struct test_block *block = &fixture->blocks[i];
        if (block->fixture && kvl_key_equal(&block->io.record.key, key))
            block->io.location = location;
    }
}

/* ---- the fixture -------------------------------------------------------------------------- */

static kvl_err wrap_tier(struct contract_fixture *fixture, struct kvl_tier *inner) {
    const struct kvl_delay_options no_delay = {0};
    switch (fixture->wrap) {
    case WRAP_FAULT:
        return kvl_fault_tier_create(inner, 1, NULL, 0, &fixture->tier);
    case WRAP_DELAY:
        return kvl_delay_tier_create(inner, &no_delay, &fixture->tier);
    case WRAP_FAR:
        return kvl_far_tier_create(inner, &fixture->tier);
    default:
        fixture->tier = inner;
        return KVL_OK;
    }
}

int contract_setup(void **state) {
    struct contract_fixture *fixture = *state;
    struct kvl_tier *inner = NULL;
    assert_int_equal(fixture->contract->make(fixture->contract, &inner), KVL_OK);
    fixture->inner = inner;
    assert_int_equal(wrap_tier(fixture, inner), KVL_OK);
    assert_int_equal(kvl_layout_of_bytes(fixture->contract->block_bytes, &fixture->layout), KVL_OK);
    fixture->tier->events = (struct kvl_tier_events){
        .arg = fixture, .loaded = on_loaded, .moved = on_moved, .lost = on_lost};
    fixture->loaded = !fixture->contract->persistent;
    fixture->completed = 0;
    fixture->blocks = calloc(BLOCKS_MAX, sizeof fixture->blocks[0]);
    assert_non_null(fixture->blocks);
    for (int i = 0; !fixture->loaded && i < WAIT_MS / 10; i++)
        fixture_poll(fixture, 10);
    assert_true(fixture->loaded);
    return 0;
}

int contract_teardown(void **state) {
    struct contract_fixture *fixture = *state;
    assert_int_equal(fixture->tier->ops->drain(fixture->tier), KVL_OK);
    fixture->tier->ops->deinit(fixture->tier);
    for (uint32_t i = 0; i < BLOCKS_MAX; i++) {
        assert_int_equal(fixture->blocks[i].submits, fixture->blocks[i].completions);
        free(fixture->blocks[i].io.buffer);
    }
    free(fixture->blocks);
    if (fixture->contract->clean)
        fixture->contract->clean(fixture->contract);
    return 0;
}

void fixture_poll(struct contract_fixture *fixture, int timeout_ms) {
    struct pollfd poller = {.fd = fixture->tier->ops->fd(fixture->tier), .events = POLLIN};
    if (poll(&poller, 1, timeout_ms) == 1)
        fixture->tier->ops->poll(fixture->tier);
}

struct kvl_tier_stats fixture_stats(struct contract_fixture *fixture) {
    struct kvl_tier_stats stats = fixture->tier->ops->stats(fixture->tier);
    assert_true(stats.used_bytes <= stats.capacity_bytes);
    assert_true(stats.capacity_bytes <= fixture->contract->capacity_bytes);
    return stats;
}

/* ---- blocks ------------------------------------------------------------------------------- */

struct test_block *block_make(
    struct contract_fixture *fixture, uint32_t number, const struct kvl_layout *layout) {
    assert_true(number < BLOCKS_MAX);
    struct test_block *block = &fixture->blocks[number];
    free(block->io.buffer);
    *block = (struct test_block){.fixture = fixture, .own_layout = *layout, .number = number};
    block->layout = layout = &block->own_layout;
    struct kvl_io *io = &block->io;
    io->buffer = aligned_alloc(KVL_PAGE_BYTES, layout->slot_bytes);
    assert_non_null(io->buffer);
    memset(io->buffer, 0, layout->slot_bytes);
    content_fill(io->buffer, number, layout->payload_bytes);
    io->layout = layout;
    io->owner = block;
    io->complete = on_complete;
    io->frame_ready = on_frame_ready;
    io->record.generation = number + 1u;
    io->record.token_count = 64;
    memset(io->record.key.bytes, 0x42, KVL_KEY_BYTES);
    memcpy(io->record.key.bytes, &number, sizeof number);
    io->record.content_hash = kvl_content_hash(layout, io->buffer, NULL);
    return block;
}

void block_submit(struct test_block *block, enum kvl_io_op op, enum kvl_io_priority priority) {
    struct contract_fixture *fixture = block->fixture;
    struct kvl_tier *tier = fixture->tier;
    block->io.op = op;
    block->io.priority = priority;
    block->frames = 0;
    block->submits++; /* before: complete must not fire inside, and would be noticed */
    kvl_err err;
    do {
        fixture->in_submit = true;
        err = tier->ops->submit(tier, &block->io);
        fixture->in_submit = false;
        if (err == KVL_ERR_AGAIN)
            fixture_poll(fixture, WAIT_MS);
    } while (err == KVL_ERR_AGAIN);
    assert_int_equal(err, KVL_OK);
}

kvl_err block_slot(struct test_block *block) {
    struct kvl_tier *tier = block->fixture->tier;
    if (!tier->ops->alloc)
        return KVL_OK;
    kvl_err err;
    do
        err = tier->ops->alloc(tier, block->layout->slot_bytes, &block->io.location);
    while (err == KVL_ERR_AGAIN);
    return err;
}

void block_wait(struct test_block *block) {
    for (int i = 0; block->completions < block->submits; i++) {
        if (i == 1000)
            fail_msg("block %u was never completed", block->number);
        fixture_poll(block->fixture, WAIT_MS / 1000);
    }
}

kvl_err block_store(struct test_block *block) {
    kvl_err err = block_slot(block);
    if (err != KVL_OK)
        return err;
    block_submit(block, KVL_IO_STORE, KVL_IO_BEHIND);
    block->fixture->tier->ops->quiesce(block->fixture->tier); /* rather than the persist bound */
    block_wait(block);
    block->stored = block->io.status == KVL_OK;
    return block->io.status;
}

kvl_err block_hash(struct test_block *block, uint64_t *content_hash) {
    const uint64_t expected = block->io.record.content_hash;
    void *buffer = block->io.buffer;
    block->io.record.content_hash = 0;
    block->io.buffer = NULL;
    block_submit(block, KVL_IO_HASH, KVL_IO_PREFETCH);
    block_wait(block);
    *content_hash = block->io.record.content_hash;
    block->io.record.content_hash = expected;
    block->io.buffer = buffer;
    return block->io.status;
}

kvl_err block_load(struct test_block *block) {
    memset(block->io.buffer, 0xEE, block->layout->slot_bytes);
    block_submit(block, KVL_IO_LOAD, KVL_IO_RESTORE);
    block_wait(block);
    return block->io.status;
}

void block_refill(struct test_block *block) {
    content_fill(block->io.buffer, block->number, block->layout->payload_bytes);
}

void block_discard(struct test_block *block) {
    struct kvl_tier *tier = block->fixture->tier;
    tier->ops->discard(tier, &block->io.record.key, block->io.location);
    block->stored = false;
}
