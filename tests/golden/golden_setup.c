/* golden_setup.c - see golden_setup.h. */
#include "golden_setup.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <unistd.h>

enum { BLOCKS_MAX = FIXTURE_CONTEXT / FIXTURE_BLOCK_TOKENS };

struct fixture fixture;
uint32_t prompt[FIXTURE_CONTEXT];
struct kvl_turn_report expected;
bool quick;

int expect_answer(uint64_t seed, uint32_t token_count, uint32_t max_tokens) {
    fixture_init(&fixture);
    fixture_tokens(&fixture, seed, prompt, FIXTURE_CONTEXT);
    kvl_err err = engine_run(
        &fixture, &(struct engine_options){0}, prompt, token_count, max_tokens, &expected);
    return err == KVL_OK ? 0 : -1;
}

int tear_down_all(void **state) {
    (void)state;
    kvl_turn_report_deinit(&expected);
    fixture_deinit(&fixture);
    return 0;
}

int stop_service(void **state) {
    (void)state;
    fixture_stop(&fixture);
    return 0;
}

static bool is_hashing(const uint8_t *found, uint32_t blocks) {
    for (uint32_t i = 0; i < blocks; ++i)
        if (found[i] == KVL_FOUND_SEALING)
            return true;
    return false;
}

/* Of another layer group than the first one, the daemon need not have all. */
static void wait_for_hashes(struct engine *engine, uint32_t group, uint32_t blocks) {
    struct kvl_key keys[BLOCKS_MAX];
    uint8_t found[BLOCKS_MAX];
    assert_int_equal(kvl_key_chain(kvl_connection_namespace(&engine->connection, group), prompt,
                         blocks * FIXTURE_BLOCK_TOKENS, FIXTURE_BLOCK_TOKENS, keys),
        KVL_OK);
    for (int tries = 0; tries < 5000; ++tries, usleep(1000)) {
        assert_int_equal(kvl_lookup_each(engine->connection.client, keys, blocks, found), KVL_OK);
        if (!is_hashing(found, blocks))
            break;
    }
    assert_false(is_hashing(found, blocks));
    for (uint32_t i = 0; group == 0 && i < blocks; ++i)
        assert_int_not_equal(found[i], 0);
}

void store_prompt(uint32_t token_count) {
    struct engine engine;
    struct kvl_turn_report report;
    uint32_t blocks = token_count / FIXTURE_BLOCK_TOKENS;
    engine_open(&engine, &fixture, &(struct engine_options){.stored = true});
    assert_int_equal(engine_turn(&engine, prompt, token_count, 0, &report), KVL_OK);
    for (uint32_t group = 0; blocks > 0 && group < engine.connection.group_count; ++group)
        wait_for_hashes(&engine, group, blocks);
    engine_close(&engine);
    kvl_turn_report_deinit(&report);
}
