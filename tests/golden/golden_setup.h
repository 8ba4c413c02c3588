/* golden_setup.h - what the tests of one golden program share: a fixture, a prompt, and what an
 * engine alone answers to it. Variables of the program; its main thread only. */
#ifndef KVL_TESTS_GOLDEN_SETUP_H
#define KVL_TESTS_GOLDEN_SETUP_H

#include "engine_fixture.h"
#include "quick.h"

extern struct fixture fixture;
extern uint32_t prompt[FIXTURE_CONTEXT];
extern struct kvl_turn_report expected;
extern bool quick; /* what matters is how threads meet; main sets it */

/* The prompt of this seed, and the answer to its first tokens. 0, or -1: there is none. */
int expect_answer(uint64_t seed, uint32_t token_count, uint32_t max_tokens);
int tear_down_all(void **state);
int stop_service(void **state); /* a test's teardown */

/* Stores the whole blocks of the prompt's first tokens, and waits until others can see them: a
 * sealed block is hashed behind the answer. */
void store_prompt(uint32_t token_count);

#endif
