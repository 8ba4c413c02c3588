#include "cuda_contract.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "contract_fixture.h"
#include "cuda_device.h"
#include "device_cuda/cuda_tier.h"

#define MIB (UINT64_C(1) << 20)
#define SCHEDULE_BLOCKS 24u
#define SCHEDULE_STEPS 60u
#define POOL_BYTES (8 * MIB)

static const struct cuda_contract_options *running; /* one at a time */
static struct kvl_tier *current;                    /* made last */

/* ---- the suite ------------------------------------------------------------------------------ */

static kvl_err make(const struct kvl_tier_contract *contract, struct kvl_tier **out) {
    const struct kvl_cuda_tier_options options = {.capacity_bytes = contract->capacity_bytes,
        .staging_bytes = running->staging_bytes,
        .copy_streams = running->copy_streams,
        .hash_threads = running->hash_threads,
        .driver = running->driver};
    struct kvl_errmsg msg = {""};
    kvl_err err = kvl_cuda_tier_create(&options, out, &msg);
    if (err != KVL_OK)
        print_message("%s\n", msg.text);
    current = *out;
    return err;
}

/* As an engine that writes where it must not. */
static void damage(const struct kvl_tier_contract *contract, uint64_t location) {
    struct cuda_device device;
    struct kvl_arena_info arena;
    uint8_t byte;
    (void)contract;
    current->ops->describe_arena(current, &arena);
    assert_int_equal(
        cuda_device_open(running->driver, 0, current->ops->share_fd(current), arena.bytes, &device),
        KVL_OK);
    assert_int_equal(cuda_device_read(&device, location + 777, &byte, 1), KVL_OK);
    byte ^= 0x10;
    assert_int_equal(cuda_device_write(&device, location + 777, &byte, 1), KVL_OK);
    cuda_device_close(&device);
}

/* ---- hash ----------------------------------------------------------------------------------- */

static void hash_in_place(struct test_block *block) {
    void *buffer = block->io.buffer;
    block->io.buffer = NULL;
    block->io.record.content_hash = 0;
    block_submit(block, KVL_IO_HASH, KVL_IO_BEHIND);
    block_wait(block);
    block->io.buffer = buffer;
}

static void a_hash_is_that_of_the_bytes(void **state) {
    struct contract_fixture *fixture = *state;
    const struct kvl_geometry geometry = {
        .layers = 9, .kv_heads = 2, .k_dim = 64, .v_dim = 64, .block_tokens = 64};
    struct kvl_layout layouts[4];
    assert_int_equal(kvl_layout_of_bytes(1, &layouts[0]), KVL_OK);
    assert_int_equal(kvl_layout_of_bytes(70001, &layouts[1]), KVL_OK);
    assert_int_equal(kvl_layout_of_bytes(MIB + 12345, &layouts[2]), KVL_OK);
    assert_int_equal(kvl_layout_of_geometry(&geometry, KVL_DTYPE_F32, &layouts[3]), KVL_OK);
    assert_true(layouts[3].frame_count > 1);
    for (uint32_t i = 0; i < 4; i++) {
        struct test_block *block = block_make(fixture, i, &layouts[i]);
        const uint64_t right = block->io.record.content_hash;
        assert_int_equal(block_store(block), KVL_OK);
        hash_in_place(block);
        assert_int_equal(block->io.status, KVL_OK);
        assert_true(block->io.record.content_hash == right);
        assert_int_equal(block_load(block), KVL_OK);
    }
}

static void a_hash_shows_damage(void **state) {
    struct contract_fixture *fixture = *state;
    struct test_block *block = block_make(fixture, 1, &fixture->layout);
    const uint64_t right = block->io.record.content_hash;
    assert_int_equal(block_store(block), KVL_OK);
    damage(fixture->contract, block->io.location);
    hash_in_place(block);
    assert_int_equal(block->io.status, KVL_OK);
    assert_true(block->io.record.content_hash != right);
}

static void what_is_stored_is_what_an_engine_maps(void **state) {
    struct contract_fixture *fixture = *state;
    struct kvl_tier *tier = fixture->tier;
    struct cuda_device device;
    struct kvl_arena_info arena;
    struct test_block *block = block_make(fixture, 1, &fixture->layout);
    uint8_t *seen = malloc(fixture->layout.payload_bytes);
    assert_non_null(seen);
    assert_int_equal(block_store(block), KVL_OK);
    tier->ops->describe_arena(tier, &arena);
    assert_int_equal(arena.memory, KVL_ARENA_CUDA);
    assert_int_equal(
        cuda_device_open(running->driver, 0, tier->ops->share_fd(tier), arena.bytes, &device),
        KVL_OK);
    assert_int_equal(
        cuda_device_read(&device, block->io.location, seen, fixture->layout.payload_bytes), KVL_OK);
    assert_memory_equal(seen, block->io.buffer, fixture->layout.payload_bytes);
    cuda_device_close(&device);
    free(seen);
}

/* ---- random schedules ----------------------------------------------------------------------- */

struct schedule {
    struct contract_fixture *fixture;
    struct kvl_layout layouts[4];
    uint64_t random;
    uint8_t *pool; /* pinned, half of the buffers are in it */
    struct schedule_block {
        struct test_block *block;
        void *own_buffer; /* while the buffer is in the pool */
        uint64_t right_hash;
        bool has_slot, is_whole, under_way;
        enum kvl_io_op op;
    } blocks[SCHEDULE_BLOCKS];
};

static uint32_t below(struct schedule *schedule, uint32_t limit) {
    schedule->random = schedule->random * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (uint32_t)(schedule->random >> 33) % limit;
}

static uint8_t *pool_buffer(const struct schedule *schedule, uint32_t number) {
    return schedule->pool + number * (POOL_BYTES / SCHEDULE_BLOCKS / 4096 * 4096);
}

/* The fixture frees what it gave. */
static void give_buffer_back(struct schedule_block *one) {
    if (one->own_buffer != NULL)
        one->block->io.buffer = one->own_buffer;
    one->own_buffer = NULL;
}

static void schedule_make(struct schedule *schedule, uint32_t number) {
    struct schedule_block *one = &schedule->blocks[number];
    give_buffer_back(one);
    struct test_block *block =
        block_make(schedule->fixture, number, &schedule->layouts[below(schedule, 4)]);
    *one = (struct schedule_block){.block = block, .right_hash = block->io.record.content_hash};
    if (schedule->pool != NULL && number % 2 == 0) {
        one->own_buffer = block->io.buffer;
        memcpy(pool_buffer(schedule, number), one->own_buffer, block->layout->payload_bytes);
        block->io.buffer = pool_buffer(schedule, number);
    }
}

static void schedule_check(struct schedule_block *one) {
    struct test_block *block = one->block;
    const kvl_err status = block->io.status;
    one->under_way = false;
    if (status != KVL_OK && status != KVL_ERR_CANCELED)
        fail_msg(
            "block %u: op %d ended with %s", block->number, (int)one->op, kvl_err_name(status));
    if (one->op == KVL_IO_STORE)
        one->is_whole = status == KVL_OK;
    if (one->op == KVL_IO_LOAD && status == KVL_OK)
        block_assert_content(block);
    if (one->op == KVL_IO_HASH && status == KVL_OK)
        assert_true(block->io.record.content_hash == one->right_hash);
}

static void schedule_wait(struct schedule *schedule, uint32_t number) {
    struct schedule_block *one = &schedule->blocks[number];
    if (!one->under_way)
        return;
    block_wait(one->block);
    schedule_check(one);
}

static void schedule_submit(
    struct schedule *schedule, struct schedule_block *one, enum kvl_io_op op) {
    struct test_block *block = one->block;
    one->op = op;
    block->io.record.content_hash = op == KVL_IO_HASH ? 0 : one->right_hash;
    if (op == KVL_IO_LOAD)
        memset(block->io.buffer, 0xEE, block->layout->payload_bytes);
    block_submit(block, op, (enum kvl_io_priority)below(schedule, 3));
    one->under_way = true;
}

/* A canceled LOAD leaves anything in the buffer. */
static void schedule_store(struct schedule *schedule, uint32_t number) {
    struct schedule_block *one = &schedule->blocks[number];
    if (one->block == NULL || !one->has_slot) {
        schedule_make(schedule, number);
        kvl_err err = block_slot(one->block);
        if (err != KVL_OK) {
            assert_int_equal(err, KVL_ERR_NOSPC);
            return;
        }
        one->has_slot = true;
    }
    if (!one->is_whole)
        block_refill(one->block);
    if (!one->is_whole)
        schedule_submit(schedule, one, KVL_IO_STORE);
}

static void schedule_step(struct schedule *schedule) {
    struct contract_fixture *fixture = schedule->fixture;
    const uint32_t number = below(schedule, SCHEDULE_BLOCKS);
    struct schedule_block *one = &schedule->blocks[number];
    const uint32_t what = below(schedule, 10);
    if (one->under_way && what < 3)
        fixture->tier->ops->cancel(fixture->tier, &one->block->io);
    schedule_wait(schedule, number);
    if (!one->is_whole)
        schedule_store(schedule, number);
    else if (what < 5)
        schedule_submit(schedule, one, KVL_IO_LOAD);
    else if (what < 8)
        schedule_submit(schedule, one, KVL_IO_HASH);
    else {
        block_discard(one->block);
        one->has_slot = one->is_whole = false;
    }
}

/* What is whole at the end is read back. */
static void schedule_end(struct schedule *schedule) {
    struct contract_fixture *fixture = schedule->fixture;
    for (uint32_t i = 0; i < SCHEDULE_BLOCKS; i++) {
        struct schedule_block *one = &schedule->blocks[i];
        schedule_wait(schedule, i);
        if (one->is_whole) {
            schedule_submit(schedule, one, KVL_IO_LOAD);
            schedule_wait(schedule, i);
        }
        if (one->has_slot)
            block_discard(one->block);
        give_buffer_back(one);
    }
    assert_int_equal(fixture_stats(fixture).used_bytes, 0);
    assert_int_equal(fixture_stats(fixture).inflight, 0);
    memset(schedule->blocks, 0, sizeof schedule->blocks);
}

static uint64_t the_seed(void) {
    const char *given = getenv("KVL_SEED");
    if (running->seed != 0)
        return running->seed;
    return given != NULL ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);
}

/* Memory that is pinned, once the tier has seen that it is there. */
static uint8_t *pinned_pool(struct kvl_tier *tier) {
    uint8_t *pool =
        mmap(NULL, POOL_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(pool != MAP_FAILED);
    memset(pool, 0, POOL_BYTES);
    assert_int_equal(kvl_cuda_tier_pin_host(tier, pool, POOL_BYTES), KVL_OK);
    for (int i = 0; i < 2000 && kvl_cuda_tier_pinned_bytes(tier) < POOL_BYTES; i++)
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    assert_int_equal(kvl_cuda_tier_pinned_bytes(tier), POOL_BYTES);
    return pool;
}

/* The tier unpins at its end, so the pool outlives it: cleaned up with the contract. */
static uint8_t *pool_left;

static void random_schedules_never_give_a_wrong_byte(void **state) {
    struct contract_fixture *fixture = *state;
    static struct schedule schedule;
    const struct kvl_geometry geometry = {
        .layers = 8, .kv_heads = 1, .k_dim = 64, .v_dim = 64, .block_tokens = 64};
    const uint64_t seed = the_seed();
    print_message("schedules: KVL_SEED=%llu\n", (unsigned long long)seed);
    schedule = (struct schedule){.fixture = fixture, .random = seed};
    pool_left = schedule.pool = pinned_pool(fixture->tier);
    assert_int_equal(kvl_layout_of_bytes(4097, &schedule.layouts[0]), KVL_OK);
    assert_int_equal(kvl_layout_of_bytes(131072, &schedule.layouts[1]), KVL_OK);
    assert_int_equal(kvl_layout_of_bytes(300001, &schedule.layouts[2]), KVL_OK);
    assert_int_equal(
        kvl_layout_of_geometry(&geometry, KVL_DTYPE_F16, &schedule.layouts[3]), KVL_OK);
    for (uint32_t round = 0; round < running->schedules; round++) {
        for (uint32_t step = 0; step < SCHEDULE_STEPS; step++)
            schedule_step(&schedule);
        schedule_end(&schedule);
    }
}

static void clean(const struct kvl_tier_contract *contract) {
    (void)contract;
    current = NULL;
    if (pool_left != NULL)
        munmap(pool_left, POOL_BYTES);
    pool_left = NULL;
}

/* --------------------------------------------------------------------------------------------- */

static struct kvl_tier_contract the_contract(void) {
    return (struct kvl_tier_contract){.name = "device-cuda",
        .capacity_bytes = 8 * MIB,
        .block_bytes = 200000,
        .trusts_stores = true,
        .make = make,
        .damage = damage,
        .clean = clean};
}

int cuda_contract_run_own(const struct cuda_contract_options *options) {
    const struct kvl_tier_contract contract = the_contract();
    struct contract_fixture fixture = {.contract = &contract, .wrap = WRAP_NONE};
#define OVER_CUDA(test)                                                                            \
    { #test, test, contract_setup, contract_teardown, &fixture }
    const struct CMUnitTest tests[] = {
        OVER_CUDA(a_hash_is_that_of_the_bytes),
        OVER_CUDA(a_hash_shows_damage),
        OVER_CUDA(what_is_stored_is_what_an_engine_maps),
        OVER_CUDA(random_schedules_never_give_a_wrong_byte),
    };
    running = options;
    return cmocka_run_group_tests(tests, NULL, NULL);
}

int cuda_contract_run(const struct cuda_contract_options *options) {
    struct kvl_tier_contract contract = the_contract();
    contract.capacity_bytes = 302 * options->order_block_bytes + 8 * MIB;
    contract.block_bytes = contract.capacity_bytes / 100;
    contract.order_block_bytes = options->order_block_bytes;
    running = options;
    int failed = kvl_tier_contract_run(&contract);
    return failed + cuda_contract_run_own(options);
}
