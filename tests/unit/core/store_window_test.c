/* store_window_test.c - blocks of layers that see a window only: which of them leave first, and
 * what a session's are. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "store_fixture.h"

#define ACME 1u
#define WINDOW_TOKENS 40u
#define RECORD_BYTES (BLOCK_BYTES + 16384u) /* at the most */

/* How many blocks of the chain are missing at its beginning; none may be missing behind them. */
static uint32_t missing_in_front(
    struct fixture *f, uint32_t seed, uint32_t count, enum kvl_tier_kind tier) {
    struct kvl_key keys[64];
    uint8_t found[64];
    fixture_keys(f, seed, count, keys);
    kvl_store_lookup_each(f->store, keys, count, found);
    uint32_t missing = 0;
    while (missing < count && (found[missing] & 1u << tier) == 0)
        missing++;
    for (uint32_t i = missing; i < count; i++)
        assert_true((found[i] & 1u << tier) != 0);
    return missing;
}

static void a_chain_leaves_memory_from_its_beginning(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, &(struct fixture_options){.device_blocks = 16});
    fixture_enter_window(&f, KVL_TENANT_DEFAULT, WINDOW_TOKENS);
    fixture_store_chain(&f, f.a, 1, 8);
    fixture_store_chain(&f, f.a, 100000, 13);
    uint32_t missing = missing_in_front(&f, 1, 8, KVL_TIER_DEVICE);
    assert_true(missing >= 5 && missing < 8);
    assert_int_equal(missing_in_front(&f, 100000, 13, KVL_TIER_DEVICE), 0);
    /* A restore uses the end of the first chain: the other one's beginning is the oldest now. */
    struct kvl_key keys[8];
    struct kvl_restored blocks[8];
    struct kvl_restore_reply reply;
    uint64_t leases[8];
    fixture_keys(&f, 1, 8, keys);
    struct kvl_restore_request request = {
        .client = f.a, .target = KVL_TIER_DEVICE, .keys = keys + missing, .count = 8 - missing};
    assert_int_equal(kvl_store_restore(f.store, &request, blocks, &reply), KVL_OK);
    assert_int_equal(reply.count, 8 - missing); /* without the parents of the first of them */
    for (uint32_t i = 0; i < reply.count; i++)
        leases[i] = blocks[i].lease;
    kvl_store_release(f.store, f.a, leases, reply.count, NULL, 0);
    fixture_store_chain(&f, f.a, 200000, 8);
    assert_int_equal(missing_in_front(&f, 1, 8, KVL_TIER_DEVICE), missing);
    assert_true(missing_in_front(&f, 100000, 13, KVL_TIER_DEVICE) >= 8);
    assert_int_equal(missing_in_front(&f, 200000, 8, KVL_TIER_DEVICE), 0);
    /* Released together, the first one is the oldest: it and no other makes room next. */
    uint32_t room = 13 - missing_in_front(&f, 100000, 13, KVL_TIER_DEVICE);
    fixture_store_chain(&f, f.a, 300000, room + 1);
    assert_int_equal(missing_in_front(&f, 1, 8, KVL_TIER_DEVICE), missing + 1);
    fixture_close(&f);
}

static void a_demoted_chain_leaves_from_its_beginning(void **state) {
    (void)state;
    struct fixture f;
    fixture_open(&f, &(struct fixture_options){.device_blocks = 16, .host_blocks = 32});
    fixture_enter_window(&f, KVL_TENANT_DEFAULT, WINDOW_TOKENS);
    fixture_store_chain(&f, f.a, 1, 24);
    fixture_settle(&f);
    uint32_t missing = missing_in_front(&f, 1, 24, KVL_TIER_DEVICE);
    assert_true(missing >= 8 && missing < 24);
    assert_int_equal(missing_in_front(&f, 1, missing, KVL_TIER_HOST), 0); /* none is lost */
    fixture_close(&f);
}

/* However many of a chain's blocks were used in one second. */
static void a_full_quota_of_the_disk_takes_the_beginning(void **state) {
    (void)state;
    char folder[] = "/tmp/kvloft-window-XXXXXX";
    char command[64];
    struct fixture f;
    struct kvl_tenant_options acme = {
        .name = "acme", .quota_bytes = {4 * BLOCK_BYTES, 0, 8 * RECORD_BYTES}};
    assert_non_null(mkdtemp(folder));
    fixture_open(
        &f, &(struct fixture_options){
                .device_blocks = 8, .disk_path = folder, .tenants = &acme, .tenant_count = 1});
    uint32_t client = fixture_enter(&f, ACME);
    fixture_enter_window(&f, ACME, WINDOW_TOKENS);
    fixture_store_chain(&f, client, 1, 32);
    fixture_settle(&f);
    uint32_t missing = missing_in_front(&f, 1, 32, KVL_TIER_DISK);
    assert_true(missing >= 24 && missing < 32);
    fixture_close(&f);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    assert_int_equal(system(command), 0);
}

/* ---- a session of a model with two layer groups ------------------------------------------- */

/* Seals a block of the group that the fixture is in; keys are as clients know them. */
static struct kvl_key store_block(struct fixture *f, uint32_t client, const struct kvl_key *salt,
    const struct kvl_key *parent, const uint32_t *tokens, uint32_t count) {
    struct kvl_key key, sealed;
    struct kvl_allocated block;
    struct kvl_ticket ticket;
    const struct kvl_key unnamed = {{0}};
    struct kvl_key inside = *parent;
    kvl_tenant_turn_key(salt, &inside);
    assert_int_equal(kvl_key_of_block(parent, tokens, count, (struct kvl_bytes){0}, &key), KVL_OK);
    struct kvl_alloc_request request = {.client = client,
        .namespace_id = f->ns.id,
        .target = KVL_TIER_DEVICE,
        .keys = &unnamed,
        .count = 1};
    assert_int_equal(kvl_store_alloc(f->store, &request, &block, &ticket), KVL_OK);
    fixture_fill(f, block.offset_bytes, &key);
    struct kvl_seal_request seal = {.client = client,
        .lease = block.lease,
        .parent = inside,
        .tokens = tokens,
        .token_count = count};
    assert_int_equal(kvl_store_seal(f->store, &seal, &sealed), KVL_OK);
    kvl_store_release(f->store, client, &block.lease, 1, NULL, 0);
    fixture_settle(f);
    return key;
}

static bool is_there(struct fixture *f, struct kvl_key key, const struct kvl_key *salt) {
    uint8_t found = 0;
    kvl_tenant_turn_key(salt, &key);
    kvl_store_lookup_each(f->store, &key, 1, &found);
    return found != 0;
}

enum { WHOLE = 3, TOKENS = WHOLE * BLOCK_TOKENS + 9 };

/* The same chain in both groups, and tails of 4 and 7 tokens behind it. */
struct both {
    struct kvl_namespace_info spaces[2];
    struct kvl_key salt;
    struct kvl_key keys[2][WHOLE], tails[2][2];
};

static void store_both(struct fixture *f, uint32_t client, uint32_t tenant, struct both *both) {
    uint32_t tokens[TOKENS];
    for (uint32_t i = 0; i < TOKENS; i++)
        tokens[i] = 70 + i;
    both->salt = kvl_store_salt(f->store, tenant);
    both->spaces[0] = f->ns;
    fixture_enter_window(f, tenant, WINDOW_TOKENS);
    both->spaces[1] = f->ns;
    for (uint32_t group = 0; group < 2; group++) {
        f->ns = both->spaces[group];
        struct kvl_key root = f->ns.key;
        kvl_tenant_turn_key(&both->salt, &root); /* as clients know it, and what follows */
        assert_int_equal(
            kvl_key_chain(&root, tokens, TOKENS, BLOCK_TOKENS, both->keys[group]), KVL_OK);
        struct kvl_key parent = root;
        for (uint32_t i = 0; i < WHOLE; i++)
            parent = store_block(
                f, client, &both->salt, &parent, tokens + i * BLOCK_TOKENS, BLOCK_TOKENS);
        for (uint32_t tail = 0; tail < 2; tail++)
            both->tails[group][tail] = store_block(
                f, client, &both->salt, &parent, tokens + WHOLE * BLOCK_TOKENS, 4 + 3 * tail);
        for (uint32_t tail = 0; tail < 2; tail++)
            assert_true(is_there(f, both->tails[group][tail], &both->salt));
    }
}

static void open_session(
    struct fixture *f, uint32_t client, const char *name, const struct both *both, uint32_t count) {
    struct kvl_session_info info;
    uint32_t tokens[TOKENS];
    struct kvl_key root = both->spaces[0].key;
    kvl_tenant_turn_key(&both->salt, &root);
    for (uint32_t i = 0; i < count; i++)
        tokens[i] = 70 + i;
    assert_int_equal(kvl_store_session_open(f->store, client, name, &root, &info), KVL_OK);
    assert_int_equal(kvl_store_session_append(f->store, client, name, 0, tokens, count), KVL_OK);
}

static void run_session(uint32_t tenant, const char *name, const char *other) {
    struct fixture f;
    struct both both;
    struct kvl_tenant_options acme = {.name = "acme", .salt = {{3, 1, 4}}};
    struct kvl_ticket ticket;
    fixture_open(
        &f, &(struct fixture_options){.device_blocks = 32, .tenants = &acme, .tenant_count = 1});
    uint32_t client = tenant == KVL_TENANT_DEFAULT ? f.a : fixture_enter(&f, tenant);
    store_both(&f, client, tenant, &both);
    open_session(&f, client, name, &both, TOKENS);
    open_session(&f, client, other, &both, BLOCK_TOKENS + 1); /* has the first block, too */
    /* The second tail takes the place of the first in both groups. */
    assert_int_equal(kvl_store_session_tail(f.store, client, name, &both.tails[0][0], 4), KVL_OK);
    assert_int_equal(kvl_store_session_tail(f.store, client, name, &both.tails[0][1], 7), KVL_OK);
    for (uint32_t group = 0; group < 2; group++) {
        assert_false(is_there(&f, both.tails[group][0], &both.salt));
        assert_true(is_there(&f, both.tails[group][1], &both.salt));
    }
    /* Clearing takes what only it uses, in both. */
    struct kvl_clear_request clear = {.client = client, .scope = KVL_CLEAR_SESSION, .name = name};
    assert_int_equal(kvl_store_clear(f.store, &clear, &ticket), KVL_OK);
    assert_int_equal(fixture_wait(&f, ticket), KVL_OK);
    assert_int_equal(
        kvl_ticket_word(kvl_store_tickets(f.store), ticket)->values[0], 2 * (WHOLE - 1 + 1));
    for (uint32_t group = 0; group < 2; group++) {
        assert_false(is_there(&f, both.tails[group][1], &both.salt));
        for (uint32_t i = 0; i < WHOLE; i++)
            assert_int_equal(is_there(&f, both.keys[group][i], &both.salt), i == 0);
    }
    fixture_close(&f);
}

static void a_session_has_its_blocks_in_both_groups(void **state) {
    (void)state;
    run_session(KVL_TENANT_DEFAULT, "talk", "other");
    run_session(ACME, "acme/talk", "acme/other");
}

/* ---- what a tail costs -------------------------------------------------------------------- */

static uint32_t hashed_tokens;

kvl_err __real_kvl_key_of_block(const struct kvl_key *parent, const uint32_t *tokens,
    uint32_t count, struct kvl_bytes extra, struct kvl_key *out);
kvl_err __wrap_kvl_key_of_block(const struct kvl_key *parent, const uint32_t *tokens,
    uint32_t count, struct kvl_bytes extra, struct kvl_key *out);
kvl_err __wrap_kvl_key_of_block(const struct kvl_key *parent, const uint32_t *tokens,
    uint32_t count, struct kvl_bytes extra, struct kvl_key *out) {
    hashed_tokens += count;
    return __real_kvl_key_of_block(parent, tokens, count, extra, out);
}

enum { TURNS = 40, TURN_BLOCKS = 2, TURN = TURN_BLOCKS * BLOCK_TOKENS, TAIL = 5 };

/* A session that goes on turn by turn, and where its tails stand in both groups. */
struct talk {
    struct fixture *f;
    struct kvl_namespace_info spaces[2];
    uint32_t tokens[TURNS * TURN + TAIL];
    struct kvl_key keys[2][TURNS * TURN_BLOCKS];
    struct kvl_key last; /* the window group's tail */
};

static void open_talk(struct talk *talk, struct fixture *f) {
    struct kvl_session_info info;
    talk->f = f;
    talk->spaces[0] = f->ns;
    fixture_enter_window(f, KVL_TENANT_DEFAULT, WINDOW_TOKENS);
    talk->spaces[1] = f->ns;
    for (uint32_t i = 0; i < TURNS * TURN + TAIL; i++)
        talk->tokens[i] = 1000 + i;
    for (uint32_t group = 0; group < 2; group++)
        assert_int_equal(kvl_key_chain(&talk->spaces[group].key, talk->tokens, TURNS * TURN,
                             BLOCK_TOKENS, talk->keys[group]),
            KVL_OK);
    assert_int_equal(
        kvl_store_session_open(f->store, f->a, "talk", &talk->spaces[0].key, &info), KVL_OK);
}

static const struct kvl_key *before(const struct talk *talk, uint32_t group, uint32_t blocks) {
    return blocks > 0 ? &talk->keys[group][blocks - 1] : &talk->spaces[group].key;
}

/* Puts the tail behind so many blocks; its predecessor goes. Returns the tokens hashed for it. */
static uint32_t put_tail(struct talk *talk, uint32_t blocks) {
    const struct kvl_key none = {{0}};
    struct fixture *f = talk->f;
    const uint32_t *tokens = talk->tokens + blocks * BLOCK_TOKENS;
    struct kvl_key tail, replaced = talk->last;
    assert_int_equal(
        kvl_key_of_block(before(talk, 0, blocks), tokens, TAIL, (struct kvl_bytes){0}, &tail),
        KVL_OK);
    talk->last = store_block(f, f->a, &none, before(talk, 1, blocks), tokens, TAIL);
    uint32_t hashed_before = hashed_tokens;
    assert_int_equal(kvl_store_session_tail(f->store, f->a, "talk", &tail, TAIL), KVL_OK);
    assert_true(is_there(f, talk->last, &none));
    assert_true(kvl_key_is_zero(&replaced) || !is_there(f, replaced, &none));
    return hashed_tokens - hashed_before;
}

/* All layer groups' tails are found, wherever they stand, and each token is hashed once a group and
 * once to see whether the tail stands there. */
static void a_tail_costs_what_its_turn_has_added(void **state) {
    (void)state;
    struct fixture f;
    struct talk talk = {.f = NULL};
    fixture_open(&f, &(struct fixture_options){.device_blocks = 16});
    open_talk(&talk, &f);
    for (uint32_t turn = 0; turn < TURNS; turn++) {
        uint32_t from = turn * TURN + (turn > 0 ? TAIL : 0), end = (turn + 1) * TURN + TAIL;
        assert_int_equal(
            kvl_store_session_append(f.store, f.a, "talk", from, talk.tokens + from, end - from),
            KVL_OK);
        uint32_t hashed = put_tail(&talk, (turn + 1) * TURN_BLOCKS);
        assert_true(hashed <= 2 * TURN + (TURN_BLOCKS + 2) * TAIL);
    }
    (void)put_tail(&talk, 3); /* of a turn that was interrupted */
    (void)put_tail(&talk, 20);
    (void)put_tail(&talk, 7);
    fixture_close(&f);
}

/* ---- what is counted and pinned of a chain with holes ------------------------------------- */

static uint64_t misses(struct fixture *f) {
    struct kvl_store_report report;
    kvl_store_report(f->store, KVL_TENANT_ALL, &report);
    return report.tiers[KVL_TIER_DEVICE].misses;
}

static void look(struct fixture *f, uint32_t client, const struct kvl_key *keys, uint32_t count) {
    uint8_t found[8];
    kvl_store_lookup_each(f->store, keys, count, found);
    kvl_store_count_looked(f->store, client, keys, count, found);
}

static void what_a_lookup_of_each_key_lacks_is_missed_once(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_key keys[8];
    fixture_open(&f, &(struct fixture_options){.device_blocks = 16});
    fixture_enter_window(&f, KVL_TENANT_DEFAULT, WINDOW_TOKENS);
    fixture_keys(&f, 1, 8, keys);
    look(&f, f.a, keys, 8);
    look(&f, f.a, keys, 8);
    look(&f, f.a, keys + 2, 6); /* the rest of the prompt */
    assert_int_equal(misses(&f), 8);
    fixture_store_chain(&f, f.b, 1, 8);
    fixture_settle(&f);
    look(&f, f.b, keys, 8);
    assert_int_equal(misses(&f), 8);
    look(&f, 12345, keys, 8); /* of nobody */
    fixture_close(&f);
}

static void pins_behind_a_hole_are_taken_back(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_key keys[8];
    struct kvl_store_report report;
    fixture_open(&f, &(struct fixture_options){.device_blocks = 16});
    fixture_enter_window(&f, KVL_TENANT_DEFAULT, WINDOW_TOKENS);
    fixture_store_chain(&f, f.a, 1, 8);
    fixture_settle(&f);
    fixture_keys(&f, 1, 8, keys);
    keys[0].bytes[0] ^= 1; /* is nowhere */
    assert_int_equal(kvl_store_pin(f.store, keys, 8, true), 0);
    assert_int_equal(kvl_store_pin(f.store, keys + 4, 2, true), 2);
    kvl_store_report(f.store, KVL_TENANT_ALL, &report);
    assert_int_equal(report.pins, 2);
    assert_int_equal(kvl_store_pin(f.store, keys, 8, false), 2);
    kvl_store_report(f.store, KVL_TENANT_ALL, &report);
    assert_int_equal(report.pins, 0);
    fixture_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_chain_leaves_memory_from_its_beginning),
        cmocka_unit_test(a_demoted_chain_leaves_from_its_beginning),
        cmocka_unit_test(a_session_has_its_blocks_in_both_groups),
        cmocka_unit_test(a_tail_costs_what_its_turn_has_added),
        cmocka_unit_test(a_full_quota_of_the_disk_takes_the_beginning),
        cmocka_unit_test(what_a_lookup_of_each_key_lacks_is_missed_once),
        cmocka_unit_test(pins_behind_a_hole_are_taken_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
