/* contract_fixture.h - a tier under test, and test blocks that are stored in it and loaded back.
 * Everything runs on the test's thread, so asserting anywhere is fine. */
#ifndef KVL_CONTRACT_FIXTURE_H
#define KVL_CONTRACT_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>

#include "tier_contract.h"

enum contract_wrap { WRAP_NONE, WRAP_FAULT, WRAP_DELAY, WRAP_FAR, WRAP_COUNT };

#define BLOCKS_MAX 512u

struct contract_fixture {
    const struct kvl_tier_contract *contract;
    enum contract_wrap wrap;
    struct kvl_tier *tier;
    struct kvl_tier *inner;   /* what was wrapped, or tier itself */
    struct kvl_layout layout; /* one opaque block of contract->block_bytes */
    bool loaded;
    bool in_submit;
    uint64_t completed; /* of all blocks, counted up */
    struct test_block *blocks;
};

/* One block: its content follows from its number. */
struct test_block {
    struct kvl_io io;
    struct contract_fixture *fixture;
    struct kvl_layout own_layout; /* a test that fails leaves ios behind, and its own is gone */
    const struct kvl_layout *layout;
    uint32_t number;
    uint32_t submits, completions;
    uint64_t completed_as; /* fixture->completed at that moment */
    uint32_t frames;
    bool stored; /* location is valid */
    bool lost;   /* the tier said so */
};

int contract_setup(void **state);
int contract_teardown(void **state);

/* Makes block `number` ready: a buffer with its content, record and hash. */
struct test_block *block_make(
    struct contract_fixture *fixture, uint32_t number, const struct kvl_layout *layout);
/* submit; polls while it says AGAIN. Memory tiers: store needs a slot (block_slot) first. */
void block_submit(struct test_block *block, enum kvl_io_op op, enum kvl_io_priority priority);
/* Memory tiers: takes a slot, waiting out AGAIN. Others: OK. */
kvl_err block_slot(struct test_block *block);
/* Slot, submit, wait; sets stored. */
kvl_err block_store(struct test_block *block);
/* Memory tiers: takes the hash in place. */
kvl_err block_hash(struct test_block *block, uint64_t *content_hash);
/* Clears the buffer, loads, waits. */
kvl_err block_load(struct test_block *block);
/* Its content into the buffer again. */
void block_refill(struct test_block *block);
void block_discard(struct test_block *block);
void block_assert_content(const struct test_block *block);
/* Waits on the tier's fd and polls until the block's last submit was completed. */
void block_wait(struct test_block *block);
void fixture_poll(struct contract_fixture *fixture, int timeout_ms);
struct kvl_tier_stats fixture_stats(struct contract_fixture *fixture);

#endif
