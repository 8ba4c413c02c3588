/* cache_test.c - where a sequence's blocks go when the daemon has no slot, no space or bad bytes
 * for them, and how they come back to it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "engine_fixture.h"

enum {
    BLOCK = FIXTURE_BLOCK_TOKENS,
    PROMPT = 5 * BLOCK + 10,
    SEED = 3,
    DEVICE_BLOCKS = 12,
    HELD = 10
};

static struct fixture fixture;
static uint32_t prompt[PROMPT];
static const struct engine_options stored = {.stored = true};

static int set_up(void **state) {
    (void)state;
    fixture_init(&fixture);
    fixture_tokens(&fixture, SEED, prompt, PROMPT);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    fixture_deinit(&fixture);
    return 0;
}

/* Keys of the prompt's whole blocks. */
static void name_blocks(const struct engine *engine, struct kvl_key keys[PROMPT / BLOCK]) {
    assert_int_equal(
        kvl_key_chain(&engine->connection.request.key, prompt, PROMPT, BLOCK, keys), KVL_OK);
}

/* Every block that the daemon has is what it was when it was sealed, also when the engine that
 * filled it is gone. */
static void assert_stored_blocks_are_whole(void) {
    struct engine checker;
    engine_open(&checker, &fixture, &stored);
    struct kvl_client *client = checker.connection.client;
    struct kvl_key keys[PROMPT / BLOCK];
    uint8_t found[PROMPT / BLOCK];
    uint32_t hits = 0;
    name_blocks(&checker, keys);
    for (int tries = 0; hits < PROMPT / BLOCK && tries < 5000; ++tries) { /* hashed behind a seal */
        assert_int_equal(kvl_lookup(client, keys, PROMPT / BLOCK, found, &hits), KVL_OK);
        if (hits < PROMPT / BLOCK)
            usleep(1000);
    }
    assert_int_equal(hits, PROMPT / BLOCK);
    struct kvl_ticket ticket;
    struct kvl_progress progress;
    assert_int_equal(kvl_verify(client, &ticket), KVL_OK);
    assert_int_equal(kvl_ticket_wait(client, ticket, UINT32_MAX, 10000, &progress), KVL_OK);
    assert_true(progress.values[0] > 0);
    assert_int_equal(progress.values[1], 0);
    engine_close(&checker);
}

/* What an engine alone answers in two turns, the second without new text; to the last bit. */
static void assert_answers_as_alone(
    const struct kvl_turn_report *first, const struct kvl_turn_report *second) {
    struct engine alone;
    struct kvl_turn_report report;
    engine_open(&alone, &fixture, &(struct engine_options){0});
    assert_int_equal(
        engine_turn(&alone, prompt, PROMPT, (uint32_t)first->output.count, &report), KVL_OK);
    assert_true(same_logits(&report, first));
    kvl_turn_report_deinit(&report);
    assert_int_equal(engine_turn(&alone, NULL, 0, (uint32_t)second->output.count, &report), KVL_OK);
    assert_true(same_logits(&report, second));
    kvl_turn_report_deinit(&report);
    engine_close(&alone);
}

/* The daemon hears of it a little later. */
static void close_other(struct engine *other, const struct engine *engine) {
    struct kvl_store_report report = {0};
    engine_close(other);
    for (int tries = 0; report.clients != 1 && tries < 5000; ++tries, usleep(1000))
        assert_int_equal(kvl_stats(engine->connection.client, &report, NULL), KVL_OK);
    assert_int_equal(report.clients, 1);
}

/* A block that another engine began to fill and never finished: computed at once in private
 * memory, and handed over when that engine has died. */
static void test_block_of_a_dead_filler_is_handed_over(void **state) {
    (void)state;
    struct engine filler, engine;
    struct kvl_key keys[PROMPT / BLOCK];
    struct kvl_allocated granted;
    struct kvl_ticket ticket;
    struct kvl_turn_report first, second;
    fixture_start(&fixture, 32, 0, false);
    engine_open(&filler, &fixture, &stored);
    name_blocks(&filler, keys);
    assert_int_equal(kvl_alloc(filler.connection.client, filler.connection.space.id,
                         KVL_TIER_DEVICE, keys, 1, false, &granted, &ticket),
        KVL_OK);
    assert_int_equal(granted.status, KVL_ALLOC_GRANTED);
    engine_open(&engine, &fixture, &stored);
    assert_int_equal(engine_turn(&engine, prompt, PROMPT, 4, &first), KVL_OK);
    assert_int_equal(first.private_tokens, BLOCK);
    close_other(&filler, &engine);
    assert_int_equal(engine_turn(&engine, NULL, 0, 2 * BLOCK, &second), KVL_OK);
    assert_int_equal(second.private_tokens, 0);
    assert_answers_as_alone(&first, &second);
    engine_close(&engine);
    assert_stored_blocks_are_whole();
    kvl_turn_report_deinit(&first);
    kvl_turn_report_deinit(&second);
}

/* A slot whose seal the daemon refuses stays this engine's, and goes back with its block. */
static void test_slot_of_a_refused_seal_goes_back(void **state) {
    (void)state;
    struct engine engine, watcher;
    struct kvl_store_report report;
    uint32_t end, others[BLOCK];
    fixture_start(&fixture, 32, 0, false);
    engine_open(&engine, &fixture, &stored);
    engine_open(&watcher, &fixture, &stored);
    struct kvl_cache *cache = NULL;
    const struct kvl_cache_options options = {.backend = engine.backend,
        .connection = &engine.connection,
        .hparams = &fixture.model->hparams,
        .kv_dtype = KVL_KV_F16,
        .block_tokens = BLOCK,
        .context_max = FIXTURE_CONTEXT};
    assert_int_equal(kvl_cache_create(&options, &cache), KVL_OK);
    const struct kvl_cache_span span = {
        .end = 1, .left_first = 0, .left_end = 1, .patience_ms = 10000};
    assert_int_equal(kvl_cache_name_blocks(cache, prompt, BLOCK), KVL_OK);
    assert_int_equal(kvl_cache_prepare(cache, &span, &end), KVL_OK);
    assert_false(kvl_cache_is_private(cache, 0));
    for (uint32_t i = 0; i < BLOCK; ++i) /* of which the key is another */
        others[i] = prompt[BLOCK - 1 - i] + 1;
    kvl_cache_settle(cache, others, 1, false);
    assert_int_equal(kvl_client_drain(engine.connection.client), KVL_OK);
    assert_true(kvl_cache_is_private(cache, 0));
    assert_int_equal(kvl_stats(watcher.connection.client, &report, NULL), KVL_OK);
    assert_int_equal(report.leases, 1);
    kvl_cache_destroy(cache); /* the connection stays */
    assert_int_equal(kvl_stats(watcher.connection.client, &report, NULL), KVL_OK);
    assert_int_equal(report.leases, 0);
    engine_close(&engine);
    engine_close(&watcher);
}

/* Takes most of a tier's slots. */
static void hold_slots(struct engine *holder) {
    struct kvl_key no_keys[HELD] = {{{0}}};
    struct kvl_allocated granted[HELD];
    struct kvl_ticket ticket;
    fixture_start(&fixture, DEVICE_BLOCKS, 0, false);
    engine_open(holder, &fixture, &stored);
    assert_int_equal(kvl_alloc(holder->connection.client, holder->connection.space.id,
                         KVL_TIER_DEVICE, no_keys, HELD, false, granted, &ticket),
        KVL_OK);
    assert_int_equal(granted[HELD - 1].status, KVL_ALLOC_GRANTED);
}

/* Offered behind the last token of a turn: copied, sealed, and no forward call in between. */
static void test_private_blocks_move_in_at_the_end_of_a_turn(void **state) {
    (void)state;
    struct engine holder, engine;
    struct kvl_turn_report first, second;
    hold_slots(&holder);
    engine_open(&engine, &fixture, &stored);
    assert_int_equal(engine_turn(&engine, prompt, PROMPT, 2, &first), KVL_OK);
    assert_true(first.private_tokens >= 3 * BLOCK);
    close_other(&holder, &engine);
    assert_int_equal(engine_turn(&engine, NULL, 0, 2, &second), KVL_OK);
    assert_true(second.private_tokens < BLOCK);
    assert_answers_as_alone(&first, &second);
    engine_close(&engine);
    assert_stored_blocks_are_whole();
    kvl_turn_report_deinit(&first);
    kvl_turn_report_deinit(&second);
}

/* Others' leases fill the tier; when they end, private blocks move in. */
static void test_private_blocks_move_in_when_space_comes_back(void **state) {
    (void)state;
    struct engine holder, engine;
    struct kvl_turn_report first, second;
    hold_slots(&holder);
    engine_open(&engine, &fixture, &stored);
    assert_int_equal(engine_turn(&engine, prompt, PROMPT, 4, &first), KVL_OK);
    assert_true(first.private_tokens >= 3 * BLOCK);
    close_other(&holder, &engine);
    assert_int_equal(engine_turn(&engine, NULL, 0, 2 * BLOCK, &second), KVL_OK);
    assert_int_equal(second.private_tokens, 0);
    assert_answers_as_alone(&first, &second);
    engine_close(&engine);
    assert_stored_blocks_are_whole();
    kvl_turn_report_deinit(&first);
    kvl_turn_report_deinit(&second);
}

/* The blocks of a dead daemon go on in its memory, or move out of it where that memory has to come
 * back before there can be another daemon; and then into the next daemon's. */
static void test_blocks_of_a_lost_daemon_move_to_the_next(void **state) {
    (void)state;
    struct engine engine;
    struct kvl_turn_report first, second, third;
    char address[128];
    snprintf(address, sizeof address, "ipc://%s/socket", fixture.disk_path);
    fixture.address = address;
    fixture_start(&fixture, 32, 0, false);
    engine_open(&engine, &fixture, &stored);
    assert_int_equal(engine_turn(&engine, prompt, PROMPT, 4, &first), KVL_OK);
    assert_true(first.private_tokens < BLOCK);
    assert_int_equal(engine.connection.arena_count, 1);
    fixture_stop(&fixture);
    assert_int_equal(engine_turn(&engine, NULL, 0, 4, &second), KVL_OK);
    assert_true(second.daemon_lost);
    assert_int_equal(engine.connection.arena_count, engine.backend->ops->map_arena != NULL ? 0 : 1);
    assert_answers_as_alone(&first, &second);
    fixture_start(&fixture, 32, 0, false);
    assert_int_equal(engine_turn(&engine, NULL, 0, 2 * BLOCK, &third), KVL_OK);
    assert_true(third.private_tokens < BLOCK);
    assert_int_equal(engine.connection.arena_count, 1);
    assert_false(engine.connection.unmap_due);
    engine_close(&engine);
    assert_stored_blocks_are_whole();
    fixture_stop(&fixture);
    fixture.address = NULL;
    kvl_turn_report_deinit(&first);
    kvl_turn_report_deinit(&second);
    kvl_turn_report_deinit(&third);
}

struct notices {
    uint32_t count;
    char last[1024];
};

static void note(void *arg, const char *text) {
    struct notices *notices = arg;
    ++notices->count;
    snprintf(notices->last, sizeof notices->last, "%s", text);
}

static kvl_err map_refusal;

static kvl_err refuse_map(struct kvl_backend *backend, const struct kvl_arena_info *arena, int fd,
    uint8_t **base, struct kvl_errmsg *msg) {
    (void)backend;
    (void)arena;
    (void)fd;
    (void)base;
    return kvl_fail(msg, map_refusal, "refused by the test");
}

/* The daemon's too, which closes its own a little later. */
static uint32_t open_descriptors(void) {
    glob_t files;
    assert_int_equal(glob("/proc/self/fd/*", 0, NULL, &files), 0);
    uint32_t count = (uint32_t)files.gl_pathc;
    globfree(&files);
    return count;
}

static bool wait_for_descriptors(uint32_t count) {
    for (int tries = 0; tries < 5000; ++tries, usleep(1000))
        if (open_descriptors() == count)
            return true;
    return false;
}

/* The one who asks is one. */
static uint64_t clients_of_the_daemon(void) {
    struct kvl_client *client = NULL;
    struct kvl_store_report report;
    const struct kvl_client_options options = {.address = fixture.address, .look_only = true};
    assert_int_equal(kvl_client_open(&options, &client, NULL), KVL_OK);
    assert_int_equal(kvl_stats(client, &report, NULL), KVL_OK);
    kvl_client_close(client);
    return report.clients;
}

static bool wait_for_clients(uint64_t clients) {
    for (int tries = 0; tries < 5000; ++tries, usleep(1000))
        if (clients_of_the_daemon() == clients)
            return true;
    return false;
}

/* A daemon that came back of no use: nothing of the attempts is left, and after an answer that no
 * other attempt would change there is none. */
static void test_attempts_at_a_useless_daemon_leave_nothing(void **state) {
    (void)state;
    struct engine engine;
    struct kvl_turn_report first, second;
    struct notices notices = {0};
    char address[128];
    snprintf(address, sizeof address, "ipc://%s/socket", fixture.disk_path);
    fixture.address = address;
    fixture_start(&fixture, 32, 0, false);
    engine_open(&engine, &fixture, &stored);
    engine.connection.notice = note;
    engine.connection.notice_arg = &notices;
    assert_int_equal(engine_turn(&engine, prompt, PROMPT, 4, &first), KVL_OK);
    fixture_stop(&fixture);
    kvl_connection_dispatch(&engine.connection);
    assert_false(engine.connection.connected);
    assert_int_equal(notices.count, 1);
    fixture_start(&fixture, 32, 0, false);

    const struct kvl_backend_ops *ops = engine.backend->ops;
    struct kvl_backend_ops refusing = *ops;
    refusing.map_arena = refuse_map;
    engine.backend->ops = &refusing;
    map_refusal = KVL_ERR_IO;
    uint32_t open_before = open_descriptors();
    for (int i = 0; i < 5; ++i)
        assert_false(kvl_connection_revive_now(&engine.connection));
    assert_true(wait_for_clients(1));
    assert_true(wait_for_descriptors(open_before));
    assert_int_equal(notices.count, 1);
    map_refusal = KVL_ERR_UNSUPPORTED;
    for (int i = 0; i < 5; ++i)
        assert_false(kvl_connection_revive_now(&engine.connection));
    assert_int_equal(notices.count, 2);
    assert_non_null(strstr(notices.last, "--device"));
    engine.backend->ops = ops;
    assert_false(kvl_connection_revive_now(&engine.connection)); /* for good */
    assert_true(wait_for_descriptors(open_before));

    assert_int_equal(engine_turn(&engine, NULL, 0, 4, &second), KVL_OK); /* with what it has */
    assert_answers_as_alone(&first, &second);
    engine_close(&engine);
    fixture_stop(&fixture);
    fixture.address = NULL;
    kvl_turn_report_deinit(&first);
    kvl_turn_report_deinit(&second);
}

/* Takes connections and never answers. */
static int open_stuck_daemon(void) {
    struct sockaddr_un where = {.sun_family = AF_UNIX};
    snprintf(where.sun_path, sizeof where.sun_path, "%s/socket.attach", fixture.disk_path);
    (void)unlink(where.sun_path);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (const struct sockaddr *)&where, sizeof where), 0);
    assert_int_equal(listen(fd, 64), 0);
    return fd;
}

static uint32_t count_attempts(int listener) {
    uint32_t count = 0;
    for (int fd; (fd = accept(listener, NULL, NULL)) >= 0; ++count)
        close(fd);
    return count;
}

/* Ends of turns follow one another faster than a daemon that does not answer lets them: all of them
 * together wait for it as long as the limit says, which four attempts of 250 ms fill. */
static void test_a_stuck_daemon_holds_up_ends_of_turns_for_a_second_in_all(void **state) {
    (void)state;
    struct engine engine;
    struct kvl_turn_report first, second;
    char address[128];
    snprintf(address, sizeof address, "ipc://%s/socket", fixture.disk_path);
    fixture.address = address;
    fixture_start(&fixture, 32, 0, false);
    engine_open(&engine, &fixture, &stored);
    assert_int_equal(engine_turn(&engine, prompt, PROMPT, 4, &first), KVL_OK);
    fixture_stop(&fixture);
    kvl_connection_dispatch(&engine.connection);
    assert_false(engine.connection.connected);
    int listener = open_stuck_daemon();
    for (int i = 0; i < 12; ++i)
        kvl_caches_finish(engine.sequence.cache, engine.sequence.tokens,
            kvl_sequence_whole_blocks(&engine.sequence));
    assert_in_range(count_attempts(listener), 1, 4);
    close(listener);
    assert_int_equal(engine_turn(&engine, NULL, 0, 4, &second), KVL_OK); /* with what it has */
    assert_answers_as_alone(&first, &second);
    engine_close(&engine);
    fixture.address = NULL;
    kvl_turn_report_deinit(&first);
    kvl_turn_report_deinit(&second);
}

/* Begins a restore of the whole blocks from disk, and has another daemon answer before it ends. */
static void begin_and_change_daemons(struct kvl_cache *cache, struct engine *engine) {
    uint32_t tokens = 0;
    assert_int_equal(kvl_cache_restore_begin(cache, 0, PROMPT / BLOCK, NULL, &tokens), KVL_OK);
    assert_int_equal(tokens, PROMPT / BLOCK * BLOCK);
    fixture_stop(&fixture);
    kvl_connection_dispatch(&engine->connection);
    assert_false(engine->connection.connected);
    fixture_start(&fixture, 32, 0, true);
    assert_true(kvl_connection_revive_now(&engine->connection));
}

/* A restore whose daemon is gone is not waited for at the next one, nor held against it. */
static void test_a_restore_ends_with_its_daemon(void **state) {
    (void)state;
    struct engine engine;
    struct kvl_turn_report report;
    struct kvl_cache *cache = NULL;
    char address[128];
    snprintf(address, sizeof address, "ipc://%s/socket", fixture.disk_path);
    fixture.address = address;
    fixture_start(&fixture, 32, 0, true);
    assert_int_equal(engine_run(&fixture, &stored, prompt, PROMPT, 1, &report), KVL_OK);
    kvl_turn_report_deinit(&report);
    fixture_stop(&fixture);
    fixture_start(&fixture, 32, 0, true);
    engine_open(&engine, &fixture, &stored);
    const struct kvl_cache_options options = {.backend = engine.backend,
        .connection = &engine.connection,
        .hparams = &fixture.model->hparams,
        .kv_dtype = KVL_KV_F16,
        .block_tokens = BLOCK,
        .context_max = FIXTURE_CONTEXT};
    assert_int_equal(kvl_cache_create(&options, &cache), KVL_OK);
    assert_int_equal(kvl_cache_name_blocks(cache, prompt, PROMPT), KVL_OK);
    begin_and_change_daemons(cache, &engine);
    uint32_t blocks = PROMPT;
    assert_false(kvl_cache_restore_end(cache, &blocks));
    assert_int_equal(blocks, 0); /* nobody saw any of them arrive */
    assert_true(engine.connection.connected);
    kvl_cache_destroy(cache);
    engine_close(&engine);
    fixture_stop(&fixture);
    fixture.address = NULL;
}

/* Overwrites the middle of every segment file. */
static void damage_segments(void) {
    char pattern[256];
    glob_t files;
    snprintf(pattern, sizeof pattern, "%s/segments/*.seg", fixture.disk_path);
    assert_int_equal(glob(pattern, 0, NULL, &files), 0);
    for (size_t i = 0; i < files.gl_pathc; ++i) {
        static const uint8_t noise[4096] = {0x5a, 0xa5};
        int fd = open(files.gl_pathv[i], O_WRONLY);
        assert_true(fd >= 0);
        for (off_t at = 100000; at < 250000; at += 5000)
            assert_int_equal(pwrite(fd, noise, sizeof noise, at), sizeof noise);
        close(fd);
    }
    globfree(&files);
}

/* Blocks that turn out damaged while they are restored are computed instead. */
static void test_damaged_blocks_are_computed(void **state) {
    (void)state;
    struct kvl_turn_report first, second;
    fixture_start(&fixture, 16, 0, true);
    assert_int_equal(engine_run(&fixture, &stored, prompt, PROMPT, 8, &first), KVL_OK);
    fixture_stop(&fixture);
    damage_segments();
    fixture_start(&fixture, 16, 0, true);
    assert_int_equal(engine_run(&fixture, &stored, prompt, PROMPT, 8, &second), KVL_OK);
    assert_true(restored_tokens(&second) < 5 * BLOCK);
    assert_int_equal(restored_tokens(&second) % BLOCK, 0);
    assert_true(same_logits(&first, &second));
    kvl_turn_report_deinit(&first);
    kvl_turn_report_deinit(&second);
}

/* A forward call that another sequence's restore ends after the first layer: the tail's other
 * layers were never copied. What came whole is kept, the tail comes again or is computed. */
static void test_tail_of_an_ended_forward_call_is_not_taken(void **state) {
    (void)state;
    struct engine saver, engine, alone;
    struct kvl_errmsg msg = {{0}};
    struct kvl_turn_report first, second, report;
    fixture_start(&fixture, 32, 0, false);
    engine_open(&saver, &fixture, &stored);
    assert_int_equal(
        kvl_saved_session_open(&saver.session, &saver.connection, "talk", &saver.sequence, &msg),
        KVL_OK);
    assert_int_equal(engine_turn(&saver, prompt, PROMPT, 4, &first), KVL_OK);
    engine_close(&saver);

    engine_open(&engine, &fixture, &stored);
    assert_int_equal(
        kvl_saved_session_open(&engine.session, &engine.connection, "talk", &engine.sequence, &msg),
        KVL_OK);
    assert_int_equal(kvl_sequence_append(&engine.sequence, prompt, BLOCK), KVL_OK);
    float *logits = malloc(fixture.model->hparams.vocab * sizeof *logits);
    assert_non_null(logits);
    struct kvl_wanted wanted = {.rows = 1, .logits = logits};
    struct kvl_advance advance;
    struct kvl_batch batch = {0};
    assert_int_equal(kvl_advance_init(&advance, &engine.sequence, &wanted), KVL_OK);
    for (int tries = 0; batch.count == 0 && tries < 5; ++tries)
        assert_int_equal(kvl_advance_begin(&advance, &batch), KVL_OK);
    assert_true(batch.position > 5 * BLOCK && batch.layers_arrive);
    assert_int_equal(batch.before_layer(batch.before_layer_arg, 0), KVL_OK);
    assert_int_equal(kvl_advance_end(&advance, KVL_ERR_CANCELED), KVL_OK);
    if (engine.backend->copies_within_forward)
        assert_int_equal(engine.sequence.computed, 5 * BLOCK);
    free(logits);
    assert_int_equal(engine_turn(&engine, NULL, 0, 8, &second), KVL_OK);
    engine_close(&engine);

    engine_open(&alone, &fixture, &(struct engine_options){0});
    assert_int_equal(engine_turn(&alone, prompt, PROMPT, 4, &report), KVL_OK);
    assert_true(same_logits(&report, &first));
    kvl_turn_report_deinit(&report);
    assert_int_equal(engine_turn(&alone, prompt, BLOCK, 8, &report), KVL_OK);
    assert_true(same_logits(&report, &second));
    kvl_turn_report_deinit(&report);
    engine_close(&alone);
    kvl_turn_report_deinit(&first);
    kvl_turn_report_deinit(&second);
}

static void test_session_longer_than_the_context_is_refused(void **state) {
    (void)state;
    struct engine engine, small;
    struct kvl_errmsg msg = {{0}};
    struct kvl_turn_report report;
    fixture_start(&fixture, 16, 0, false);
    engine_open(&engine, &fixture, &stored);
    assert_int_equal(
        kvl_saved_session_open(&engine.session, &engine.connection, "long", &engine.sequence, &msg),
        KVL_OK);
    assert_int_equal(engine_turn(&engine, prompt, PROMPT, 1, &report), KVL_OK);
    engine_close(&engine);
    engine_open(&small, &fixture, &stored);
    small.sequence.options.context_max = 100;
    assert_int_equal(
        kvl_saved_session_open(&small.session, &small.connection, "long", &small.sequence, &msg),
        KVL_ERR_LIMIT);
    assert_non_null(strstr(msg.text, "331"));
    assert_non_null(strstr(msg.text, "100"));
    engine_close(&small);
    kvl_turn_report_deinit(&report);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(
            test_block_of_a_dead_filler_is_handed_over, set_up, tear_down),
        cmocka_unit_test_setup_teardown(
            test_private_blocks_move_in_when_space_comes_back, set_up, tear_down),
        cmocka_unit_test_setup_teardown(
            test_private_blocks_move_in_at_the_end_of_a_turn, set_up, tear_down),
        cmocka_unit_test_setup_teardown(
            test_blocks_of_a_lost_daemon_move_to_the_next, set_up, tear_down),
        cmocka_unit_test_setup_teardown(
            test_attempts_at_a_useless_daemon_leave_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(
            test_a_stuck_daemon_holds_up_ends_of_turns_for_a_second_in_all, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_restore_ends_with_its_daemon, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_slot_of_a_refused_seal_goes_back, set_up, tear_down),
        cmocka_unit_test_setup_teardown(
            test_tail_of_an_ended_forward_call_is_not_taken, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_damaged_blocks_are_computed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(
            test_session_longer_than_the_context_is_refused, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
