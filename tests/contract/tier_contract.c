#include "tier_contract.h"

#include <stdlib.h>
#include <string.h>

#include "contract_fixture.h"

static bool has_slots(const struct contract_fixture *fixture) {
    return fixture->tier->ops->alloc != NULL;
}

/* ---- whole transfers ---------------------------------------------------------------------- */

static void what_is_loaded_is_what_was_stored(void **state) {
    struct contract_fixture *fixture = *state;
    const struct kvl_geometry geometry = {
        .layers = 7, .kv_heads = 2, .k_dim = 64, .v_dim = 64, .block_tokens = 64};
    struct kvl_layout layouts[4];
    assert_int_equal(kvl_layout_of_bytes(1, &layouts[0]), KVL_OK);
    assert_int_equal(kvl_layout_of_bytes(4096, &layouts[1]), KVL_OK);
    assert_int_equal(kvl_layout_of_bytes(100001, &layouts[2]), KVL_OK);
    assert_int_equal(kvl_layout_of_geometry(&geometry, KVL_DTYPE_F32, &layouts[3]), KVL_OK);
    for (uint32_t i = 0; i < 4; i++) {
        struct test_block *block = block_make(fixture, i, &layouts[i]);
        assert_int_equal(block_store(block), KVL_OK);
        assert_true(block->io.stored_bytes > 0);
    }
    for (uint32_t i = 0; i < 4; i++) {
        struct test_block *block = &fixture->blocks[i];
        assert_int_equal(block_load(block), KVL_OK);
        block_assert_content(block);
        assert_int_equal(block->frames, layouts[i].frame_count); /* all were announced */
        block->io.frame_ready = NULL;                            /* and need not be */
        assert_int_equal(block_load(block), KVL_OK);
    }
}

static void many_in_flight_complete_once_each(void **state) {
    struct contract_fixture *fixture = *state;
    enum { BLOCKS = 200 };
    struct kvl_layout layout;
    assert_int_equal(kvl_layout_of_bytes(8192, &layout), KVL_OK);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        struct test_block *block = block_make(fixture, i, &layout);
        assert_int_equal(block_slot(block), KVL_OK);
        block_submit(block, KVL_IO_STORE, (enum kvl_io_priority)(i % 3));
    }
    for (uint32_t i = 0; i < BLOCKS; i++) {
        block_wait(&fixture->blocks[i]);
        assert_int_equal(fixture->blocks[i].io.status, KVL_OK);
        memset(fixture->blocks[i].io.buffer, 0, 8192);
    }
    for (uint32_t i = 0; i < BLOCKS; i++)
        block_submit(&fixture->blocks[i], KVL_IO_LOAD, (enum kvl_io_priority)(i % 3));
    for (uint32_t i = 0; i < BLOCKS; i++) {
        block_wait(&fixture->blocks[i]);
        assert_int_equal(fixture->blocks[i].io.status, KVL_OK);
        block_assert_content(&fixture->blocks[i]);
        assert_int_equal(fixture->blocks[i].completions, 2);
    }
    assert_int_equal(fixture_stats(fixture).inflight, 0);
}

static void drain_ends_everything(void **state) {
    struct contract_fixture *fixture = *state;
    struct kvl_layout layout;
    assert_int_equal(kvl_layout_of_bytes(8192, &layout), KVL_OK);
    for (uint32_t i = 0; i < 50; i++) {
        struct test_block *block = block_make(fixture, i, &layout);
        assert_int_equal(block_slot(block), KVL_OK);
        block_submit(block, KVL_IO_STORE, KVL_IO_BEHIND);
    }
    fixture->tier->ops->quiesce(fixture->tier);
    assert_int_equal(fixture->tier->ops->drain(fixture->tier), KVL_OK);
    for (uint32_t i = 0; i < 50; i++) {
        assert_int_equal(fixture->blocks[i].completions, 1);
        assert_int_equal(fixture->blocks[i].io.status, KVL_OK);
    }
    assert_int_equal(fixture_stats(fixture).inflight, 0);
    assert_int_equal(fixture->tier->ops->drain(fixture->tier), KVL_OK); /* and of nothing */
}

static void canceled_ones_complete_too(void **state) {
    struct contract_fixture *fixture = *state;
    enum { BLOCKS = 100 };
    struct kvl_layout layout;
    assert_int_equal(kvl_layout_of_bytes(8192, &layout), KVL_OK);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        struct test_block *block = block_make(fixture, i, &layout);
        assert_int_equal(block_slot(block), KVL_OK);
        block_submit(block, KVL_IO_STORE, KVL_IO_BEHIND);
    }
    for (uint32_t i = 0; i < BLOCKS; i += 2) {
        struct test_block *block = &fixture->blocks[i];
        if (block->completions == 0)
            fixture->tier->ops->cancel(fixture->tier, &block->io);
        assert_false(fixture->in_submit);
    }
    uint32_t ok = 0;
    for (uint32_t i = 0; i < BLOCKS; i++) {
        struct test_block *block = &fixture->blocks[i];
        block_wait(block);
        if (block->io.status == KVL_OK) {
            ok++;
            assert_int_equal(block_load(block), KVL_OK);
            block_assert_content(block);
        } else {
            assert_int_equal(block->io.status, KVL_ERR_CANCELED);
            assert_int_equal(i % 2, 0); /* none but the canceled ones */
        }
    }
    assert_true(ok >= BLOCKS / 2);
}

/* ---- order -------------------------------------------------------------------------------- */

static void store_some(
    struct contract_fixture *fixture, uint32_t count, struct kvl_layout *layout) {
    const uint64_t block_bytes = fixture->contract->order_block_bytes;
    assert_int_equal(kvl_layout_of_bytes(block_bytes ? block_bytes : 8192, layout), KVL_OK);
    for (uint32_t i = 0; i < count; i++) {
        struct test_block *block = block_make(fixture, i, layout);
        assert_int_equal(block_slot(block), KVL_OK);
        block_submit(block, KVL_IO_STORE, KVL_IO_BEHIND);
    }
    for (uint32_t i = 0; i < count; i++)
        block_wait(&fixture->blocks[i]);
}

static void a_restore_overtakes_what_runs_behind(void **state) {
    struct contract_fixture *fixture = *state;
    enum { BLOCKS = 301 };
    struct kvl_layout layout;
    store_some(fixture, BLOCKS, &layout);
    for (uint32_t i = 0; i < BLOCKS - 1; i++)
        block_submit(&fixture->blocks[i], KVL_IO_LOAD, KVL_IO_BEHIND);
    struct test_block *restore = &fixture->blocks[BLOCKS - 1];
    block_submit(restore, KVL_IO_LOAD, KVL_IO_RESTORE);
    for (uint32_t i = 0; i < BLOCKS; i++)
        block_wait(&fixture->blocks[i]);
    assert_true(restore->completed_as + 1 < fixture->completed);
}

/* RESTORE loads without end: each one that completes is submitted again. */
static void what_runs_behind_is_not_starved(void **state) {
    struct contract_fixture *fixture = *state;
    enum { STREAM = 40, ROUNDS_MAX = 500 };
    struct kvl_layout layout;
    store_some(fixture, STREAM + 1, &layout);
    struct test_block *behind = &fixture->blocks[STREAM];
    for (uint32_t i = 0; i < STREAM; i++)
        block_submit(&fixture->blocks[i], KVL_IO_LOAD, KVL_IO_RESTORE);
    block_submit(behind, KVL_IO_LOAD, KVL_IO_BEHIND);
    uint32_t rounds = 0;
    while (behind->completions < behind->submits && rounds++ < ROUNDS_MAX) {
        fixture_poll(fixture, 1000);
        for (uint32_t i = 0; i < STREAM; i++) {
            struct test_block *block = &fixture->blocks[i];
            if (block->completions == block->submits)
                block_submit(block, KVL_IO_LOAD, KVL_IO_RESTORE);
        }
    }
    assert_int_equal(behind->completions, behind->submits);
    assert_int_equal(behind->io.status, KVL_OK);
    for (uint32_t i = 0; i < STREAM; i++)
        block_wait(&fixture->blocks[i]);
}

/* ---- space -------------------------------------------------------------------------------- */

static void load_and_check_the_kept_ones(struct contract_fixture *fixture, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        struct test_block *block = &fixture->blocks[i];
        if (!block->stored || block->lost)
            continue;
        assert_int_equal(block_load(block), KVL_OK);
        block_assert_content(block);
    }
}

/* Slots run out with NOSPC; a persistent tier may instead give up old blocks, and says which. */
static void overfilling_never_passes_the_cap(void **state) {
    struct contract_fixture *fixture = *state;
    const uint64_t fits = fixture->contract->capacity_bytes / fixture->contract->block_bytes;
    const uint32_t blocks = (uint32_t)(2 * fits < BLOCKS_MAX ? 2 * fits : BLOCKS_MAX);
    assert_true(blocks > fits);
    uint32_t stored = 0, refused = 0;
    for (uint32_t i = 0; i < blocks; i++) {
        kvl_err err = block_store(block_make(fixture, i, &fixture->layout));
        stored += err == KVL_OK;
        refused += err == KVL_ERR_NOSPC;
        assert_true(err == KVL_OK || err == KVL_ERR_NOSPC);
        fixture_stats(fixture); /* asserts the cap */
    }
    assert_true(stored > 0);
    uint32_t lost = 0;
    for (uint32_t i = 0; i < blocks; i++)
        lost += fixture->blocks[i].stored && fixture->blocks[i].lost;
    assert_true((uint64_t)(stored - lost) <= fits);
    if (has_slots(fixture)) {
        assert_true(refused > 0);
        assert_true(stored >= fits - fits / 14); /* at least 93 % are slots */
    }
    load_and_check_the_kept_ones(fixture, blocks);
}

static void discard_gives_the_space_back(void **state) {
    struct contract_fixture *fixture = *state;
    const uint32_t fits =
        (uint32_t)(fixture->contract->capacity_bytes / fixture->contract->block_bytes / 2);
    for (uint32_t round = 0; round < 6; round++) {
        for (uint32_t i = 0; i < fits; i++)
            assert_int_equal(block_store(block_make(fixture, i, &fixture->layout)), KVL_OK);
        fixture_stats(fixture);
        load_and_check_the_kept_ones(fixture, fits);
        for (uint32_t i = 0; i < fits; i++) {
            if (!fixture->blocks[i].lost)
                block_discard(&fixture->blocks[i]);
        }
        assert_int_equal(fixture->tier->ops->drain(fixture->tier), KVL_OK);
        if (has_slots(fixture))
            assert_int_equal(fixture_stats(fixture).used_bytes, 0);
    }
}

static void a_block_larger_than_the_tier_is_refused(void **state) {
    struct contract_fixture *fixture = *state;
    if (!has_slots(fixture))
        return; /* what a disk says of one is its own test */
    uint64_t location;
    const uint64_t more = fixture->contract->capacity_bytes + 1;
    assert_int_equal(fixture->tier->ops->alloc(fixture->tier, more, &location), KVL_ERR_TOOBIG);
}

/* ---- never a wrong block ------------------------------------------------------------------ */

static void a_store_of_other_bytes_than_were_hashed_is_corrupt(void **state) {
    struct contract_fixture *fixture = *state;
    struct test_block *block = block_make(fixture, 1, &fixture->layout);
    uint8_t *bytes = block->io.buffer;
    bytes[fixture->layout.payload_bytes - 1] ^= 1;
    if (fixture->contract->trusts_stores) {
        assert_int_equal(block_store(block), KVL_OK);
        assert_int_equal(block_load(block), KVL_ERR_CORRUPT);
        assert_int_equal(fixture_stats(fixture).corrupt, 1);
        return;
    }
    assert_int_equal(block_store(block), KVL_ERR_CORRUPT);
    assert_int_equal(fixture_stats(fixture).corrupt, 1);
    assert_int_equal(fixture_stats(fixture).stores, 0);
}

static void damage(struct contract_fixture *fixture, uint64_t location) {
    if (fixture->contract->damage)
        fixture->contract->damage(fixture->contract, location);
    else
        fixture->inner->ops->address(fixture->inner, location)[777] ^= 0x10;
}

static void a_damaged_block_is_never_loaded(void **state) {
    struct contract_fixture *fixture = *state;
    struct test_block *block = block_make(fixture, 1, &fixture->layout);
    assert_int_equal(block_store(block), KVL_OK);
    damage(fixture, block->io.location);
    assert_int_equal(block_load(block), KVL_ERR_CORRUPT);
    assert_int_equal(fixture_stats(fixture).corrupt, 1);
    assert_int_equal(fixture_stats(fixture).loads, 0);
}

static void a_hash_is_that_of_the_bytes_in_the_slot(void **state) {
    struct contract_fixture *fixture = *state;
    if (!has_slots(fixture))
        return;
    const struct kvl_geometry geometry = {
        .layers = 7, .kv_heads = 2, .k_dim = 64, .v_dim = 64, .block_tokens = 64};
    struct kvl_layout layouts[3];
    assert_int_equal(kvl_layout_of_bytes(1, &layouts[0]), KVL_OK);
    assert_int_equal(kvl_layout_of_bytes(100001, &layouts[1]), KVL_OK);
    assert_int_equal(kvl_layout_of_geometry(&geometry, KVL_DTYPE_F32, &layouts[2]), KVL_OK);
    for (uint32_t i = 0; i < 3; i++) {
        struct test_block *block = block_make(fixture, i, &layouts[i]);
        assert_int_equal(block_store(block), KVL_OK);
        uint64_t hash = 0;
        assert_int_equal(block_hash(block, &hash), KVL_OK);
        assert_true(hash == kvl_content_hash(&layouts[i], block->io.buffer, NULL));
        assert_int_equal(block->frames, 0); /* nothing moved */
    }
    damage(fixture, fixture->blocks[1].io.location);
    uint64_t hash = 0;
    assert_int_equal(block_hash(&fixture->blocks[1], &hash), KVL_OK);
    assert_true(hash != kvl_content_hash(&layouts[1], fixture->blocks[1].io.buffer, NULL));
    assert_int_equal(fixture_stats(fixture).corrupt, 0); /* a hash compares with nothing */
    for (uint32_t i = 0; i < 3; i++)
        block_discard(&fixture->blocks[i]);
    assert_int_equal(fixture_stats(fixture).used_bytes, 0);
}

static void canceled_hashes_complete_too(void **state) {
    struct contract_fixture *fixture = *state;
    enum { BLOCKS = 100 };
    struct kvl_layout layout;
    if (!has_slots(fixture))
        return;
    store_some(fixture, BLOCKS, &layout);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        fixture->blocks[i].io.record.content_hash = 0;
        block_submit(&fixture->blocks[i], KVL_IO_HASH, KVL_IO_BEHIND);
    }
    for (uint32_t i = 0; i < BLOCKS; i += 2)
        if (fixture->blocks[i].completions < fixture->blocks[i].submits)
            fixture->tier->ops->cancel(fixture->tier, &fixture->blocks[i].io);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        struct test_block *block = &fixture->blocks[i];
        block_wait(block);
        bool ok = block->io.status == KVL_OK;
        assert_true(ok || (block->io.status == KVL_ERR_CANCELED && i % 2 == 0));
        uint64_t expected = ok ? kvl_content_hash(&layout, block->io.buffer, NULL) : 0;
        assert_true(block->io.record.content_hash == expected);
    }
}

/* Persistent tiers know their keys, and may say that this one is not there. */
static void assert_not_loaded(const struct contract_fixture *fixture, kvl_err err) {
    if (!fixture->contract->persistent || err != KVL_ERR_NOTFOUND)
        assert_int_equal(err, KVL_ERR_CORRUPT);
}

static void a_location_that_holds_another_block_is_not_loaded(void **state) {
    struct contract_fixture *fixture = *state;
    struct test_block *one = block_make(fixture, 1, &fixture->layout);
    struct test_block *two = block_make(fixture, 2, &fixture->layout);
    assert_int_equal(block_store(one), KVL_OK);
    assert_int_equal(block_store(two), KVL_OK);
    const uint64_t right = one->io.location;
    one->io.location = two->io.location;
    assert_not_loaded(fixture, block_load(one));
    one->io.location = right;
    if (fixture->contract->persistent) {
        two->io.record.generation++;
        assert_not_loaded(fixture, block_load(two));
    }
}

static void nonsense_is_invalid(void **state) {
    struct contract_fixture *fixture = *state;
    if (fixture->wrap == WRAP_DELAY || !has_slots(fixture))
        return; /* delay hands on later, and says it then; a disk may find out when it reads */
    struct kvl_tier *tier = fixture->tier;
    struct test_block *block = block_make(fixture, 1, &fixture->layout);
    block->io.op = KVL_IO_LOAD;
    block->io.location = fixture->contract->capacity_bytes;
    assert_int_equal(tier->ops->submit(tier, &block->io), KVL_ERR_INVALID);
    block->io.location = UINT64_MAX;
    assert_int_equal(tier->ops->submit(tier, &block->io), KVL_ERR_INVALID);
    block->io.location = fixture->contract->capacity_bytes - KVL_PAGE_BYTES; /* ends past it */
    assert_int_equal(tier->ops->submit(tier, &block->io), KVL_ERR_INVALID);
}

static void stats_count_what_was_done(void **state) {
    struct contract_fixture *fixture = *state;
    struct test_block *block = block_make(fixture, 3, &fixture->layout);
    assert_int_equal(block_store(block), KVL_OK);
    for (int i = 0; i < 3; i++)
        assert_int_equal(block_load(block), KVL_OK);
    struct kvl_tier_stats stats = fixture_stats(fixture);
    assert_int_equal(stats.stores, 1);
    assert_int_equal(stats.loads, 3);
    assert_int_equal(stats.errors, 0);
    assert_int_equal(stats.inflight, 0);
    assert_true(stats.written_bytes >= fixture->contract->block_bytes);
    assert_true(stats.read_bytes >= 3 * fixture->contract->block_bytes);
    assert_true(stats.used_bytes >= block->io.stored_bytes);
}

/* ------------------------------------------------------------------------------------------- */

int kvl_tier_contract_run(const struct kvl_tier_contract *contract) {
    static const char *const wraps[WRAP_COUNT] = {"plain", "in fault", "in delay", "far"};
    int failed = 0;
    for (int wrap = 0; wrap < WRAP_COUNT; wrap++) {
        if (wrap == WRAP_FAR && contract->persistent)
            continue; /* no memory to hide */
        struct contract_fixture fixture = {.contract = contract, .wrap = (enum contract_wrap)wrap};
#define CONTRACT(test)                                                                             \
    { #test, test, contract_setup, contract_teardown, &fixture }
        const struct CMUnitTest tests[] = {
            CONTRACT(what_is_loaded_is_what_was_stored),
            CONTRACT(many_in_flight_complete_once_each),
            CONTRACT(drain_ends_everything),
            CONTRACT(canceled_ones_complete_too),
            CONTRACT(a_restore_overtakes_what_runs_behind),
            CONTRACT(what_runs_behind_is_not_starved),
            CONTRACT(overfilling_never_passes_the_cap),
            CONTRACT(discard_gives_the_space_back),
            CONTRACT(a_block_larger_than_the_tier_is_refused),
            CONTRACT(a_store_of_other_bytes_than_were_hashed_is_corrupt),
            CONTRACT(a_damaged_block_is_never_loaded),
            CONTRACT(a_hash_is_that_of_the_bytes_in_the_slot),
            CONTRACT(canceled_hashes_complete_too),
            CONTRACT(a_location_that_holds_another_block_is_not_loaded),
            CONTRACT(nonsense_is_invalid),
            CONTRACT(stats_count_what_was_done),
        };
        print_message("%s, %s\n", contract->name, wraps[wrap]);
        failed += cmocka_run_group_tests(tests, NULL, NULL);
    }
    return failed;
}
