/* session_test.c - names, tokens in chunks, and what a crash between two records leaves. */
#include "session.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static void names_are_checked(void **state) {
    (void)state;
    char longest[258];
    memset(longest, 'x', sizeof(longest));
    longest[255] = '\0';
    assert_true(kvl_session_name_is_valid("work"));
    assert_true(kvl_session_name_is_valid("caf\xc3\xa9 \xe6\x97\xa5 \xf0\x9f\x98\x80"));
    assert_true(kvl_session_name_is_valid(longest));
    longest[255] = 'x';
    longest[256] = '\0';
    assert_false(kvl_session_name_is_valid(longest));
    assert_false(kvl_session_name_is_valid(""));
    assert_false(kvl_session_name_is_valid("a/b"));
    assert_false(kvl_session_name_is_valid("a\nb"));
    assert_false(kvl_session_name_is_valid("\x7f"));
    assert_false(kvl_session_name_is_valid("\xc2\x85"));         /* a control character */
    assert_false(kvl_session_name_is_valid("\xc0\xaf"));         /* overlong '/' */
    assert_false(kvl_session_name_is_valid("\xed\xa0\x80"));     /* half a surrogate pair */
    assert_false(kvl_session_name_is_valid("\xf4\x90\x80\x80")); /* past the last character */
    assert_false(kvl_session_name_is_valid("\xe6\x97"));         /* cut short */
    assert_false(kvl_session_name_is_valid("\xff"));
}

static void tenants_have_names_of_their_own(void **state) {
    (void)state;
    /* In the order that they stand in: the default tenant's first, "a" before "a.b". */
    const char *const names[] = {"a", "z", "\xf4\x8f\xbf\xbd", "a/a", "a/z", "a.b/a", "b/a"};
    const uint32_t order[] = {6, 3, 1, 5, 0, 4, 2};
    struct kvl_session_set *set = NULL;
    struct kvl_session *session = NULL;
    assert_int_equal(kvl_session_set_create(&set), KVL_OK);
    for (unsigned i = 0; i < 7; i++)
        assert_int_equal(kvl_session_add(set, names[order[i]], &session), KVL_OK);
    for (unsigned i = 0; i < 7; i++) {
        assert_string_equal(kvl_session_set_at(set, i)->info.name, names[i]);
        assert_ptr_equal(kvl_session_find(set, names[i]), kvl_session_set_at(set, i));
    }
    const struct {
        const char *tenant;
        uint32_t first, count;
    } ranges[] = {{"", 0, 3}, {"a", 3, 2}, {"a.b", 5, 1}, {"b", 6, 1}, {"aa", 6, 0}, {"c", 7, 0}};
    for (unsigned i = 0; i < 6; i++) {
        struct kvl_session_range range = kvl_session_range(set, ranges[i].tenant);
        assert_int_equal(range.count, ranges[i].count);
        if (range.count > 0)
            assert_int_equal(range.first, ranges[i].first);
    }
    kvl_session_set_destroy(set);
    assert_true(kvl_session_full_name_is_valid("work"));
    assert_true(kvl_session_full_name_is_valid("acme/work"));
    assert_false(kvl_session_full_name_is_valid("/work"));
    assert_false(kvl_session_full_name_is_valid("acme/"));
    assert_false(kvl_session_full_name_is_valid("acme/a/b"));
    assert_false(kvl_session_full_name_is_valid("a me/work"));
    char longest[258] = "acme/";
    memset(longest + 5, 'x', 250);
    assert_true(kvl_session_full_name_is_valid(longest));
    longest[255] = 'x';
    assert_false(kvl_session_full_name_is_valid(longest));
}

static void sessions_stand_in_order_of_name(void **state) {
    (void)state;
    struct kvl_session_set *set = NULL;
    struct kvl_session *session = NULL;
    assert_int_equal(kvl_session_set_create(&set), KVL_OK);
    for (unsigned i = 0; i < 100; i++) {
        char name[8];
        snprintf(name, sizeof(name), "%02u", i * 37 % 100);
        assert_int_equal(kvl_session_add(set, name, &session), KVL_OK);
    }
    for (unsigned i = 0; i < 100; i++) {
        char name[8];
        snprintf(name, sizeof(name), "%02u", i);
        assert_string_equal(kvl_session_set_at(set, i)->info.name, name);
    }
    kvl_session_remove(set, kvl_session_find(set, "50"));
    assert_null(kvl_session_find(set, "50"));
    assert_string_equal(kvl_session_set_at(set, 50)->info.name, "51");
    assert_int_equal(kvl_session_count(set), 99);
    kvl_session_set_destroy(set);
}

static void a_write_cuts_and_appends(void **state) {
    (void)state;
    struct kvl_session_set *set = NULL;
    struct kvl_session *session = NULL;
    const uint32_t tokens[] = {1, 2, 3, 4, 5};
    assert_int_equal(kvl_session_set_create(&set), KVL_OK);
    assert_int_equal(kvl_session_add(set, "s", &session), KVL_OK);
    assert_int_equal(kvl_session_write(session, 1, tokens, 5), KVL_ERR_INVALID);
    assert_int_equal(kvl_session_write(session, 0, tokens, 5), KVL_OK);
    session->info.tail_tokens = 3;
    assert_int_equal(kvl_session_write(session, 5, tokens, 2), KVL_OK);
    assert_int_equal(session->info.tail_tokens, 3); /* still the same beginning */
    assert_int_equal(kvl_session_write(session, 3, tokens + 3, 1), KVL_OK);
    assert_int_equal(session->info.tail_tokens, 0);
    assert_int_equal(session->info.token_count, 4);
    assert_memory_equal(session->tokens, tokens, 16);
    assert_int_equal(kvl_session_write(session, 4, tokens, UINT32_MAX), KVL_ERR_TOOBIG);
    assert_int_equal(session->info.token_count, 4);
    kvl_session_set_destroy(set);
}

/* ---- records: what was put, and how much of it became durable ----------------------------- */

struct written {
    uint8_t record[KVL_SESSION_RECORD_BYTES];
    uint8_t chunks[4][KVL_SESSION_CHUNK_BYTES];
    uint32_t chunk_bytes[4]; /* 0: not there */
};

static void write_all(const struct kvl_session *session, struct written *to) {
    kvl_session_record(session, to->record);
    memset(to->chunk_bytes, 0, sizeof(to->chunk_bytes));
    for (uint32_t i = 0; i < kvl_session_chunks(session->info.token_count); i++)
        to->chunk_bytes[i] = kvl_session_chunk(session, i, to->chunks[i]);
}

static struct kvl_session *load(struct kvl_session_set *set, const struct written *from) {
    struct kvl_session name = {.info.name = "s"};
    for (uint32_t i = 0; i < 4; i++) {
        uint8_t key[KVL_SESSION_CHUNK_KEY_BYTES_MAX];
        uint32_t key_bytes = kvl_session_chunk_key(&name, i, key);
        if (from->chunk_bytes[i] > 0)
            assert_int_equal(
                kvl_session_load_chunk(set, key, key_bytes, from->chunks[i], from->chunk_bytes[i]),
                KVL_OK);
    }
    assert_int_equal(
        kvl_session_load_record(set, "s", 1, from->record, sizeof(from->record)), KVL_OK);
    struct kvl_session *session = kvl_session_find(set, "s");
    assert_non_null(session);
    assert_true(kvl_session_load_finish(session));
    return session;
}

static void a_crash_between_records_leaves_a_true_beginning(void **state) {
    (void)state;
    static uint32_t before[3000], after[3000];
    struct kvl_session_set *set = NULL, *again = NULL;
    struct kvl_session *session = NULL;
    static struct written old, new, mixed;
    for (uint32_t i = 0; i < 3000; i++) {
        before[i] = i;
        after[i] = i < 1500 ? i : 100000 + i;
    }
    assert_int_equal(kvl_session_set_create(&set), KVL_OK);
    assert_int_equal(kvl_session_add(set, "s", &session), KVL_OK);
    assert_int_equal(kvl_session_write(session, 0, before, 3000), KVL_OK);
    write_all(session, &old);
    assert_int_equal(kvl_session_write(session, 1500, after + 1500, 1400), KVL_OK);
    write_all(session, &new);
    /* Puts go out as chunk 1, chunk 2, record. Stop after each of them. */
    for (uint32_t done = 0; done <= 3; done++) {
        mixed = old;
        for (uint32_t chunk = 1; chunk <= 2 && chunk <= done; chunk++) {
            memcpy(mixed.chunks[chunk], new.chunks[chunk], sizeof(mixed.chunks[0]));
            mixed.chunk_bytes[chunk] = new.chunk_bytes[chunk];
        }
        if (done == 3)
            memcpy(mixed.record, new.record, sizeof(mixed.record));
        assert_int_equal(kvl_session_set_create(&again), KVL_OK);
        const struct kvl_session *found = load(again, &mixed);
        const uint32_t expected[] = {3000, 2048, 2900, 2900};
        assert_int_equal(found->info.token_count, expected[done]);
        assert_memory_equal(found->tokens, done == 0 ? before : after, found->info.token_count * 4);
        kvl_session_set_destroy(again);
    }
    kvl_session_set_destroy(set);
}

static void hostile_records_are_left_out(void **state) {
    (void)state;
    struct kvl_session_set *set = NULL;
    uint8_t record[KVL_SESSION_RECORD_BYTES] = {1};
    assert_int_equal(kvl_session_set_create(&set), KVL_OK);
    assert_int_equal(kvl_session_load_record(set, "s", 1, record, 92), KVL_ERR_INVALID);
    assert_int_equal(kvl_session_load_record(set, "/b", 2, record, 93), KVL_ERR_INVALID);
    assert_int_equal(kvl_session_load_record(set, "a\0b", 3, record, 93), KVL_ERR_INVALID);
    assert_int_equal(kvl_session_load_chunk(set, "s", 1, record, 12), KVL_ERR_INVALID);
    assert_int_equal(kvl_session_load_chunk(set, "s\0\0\0\0\0", 6, record, 7), KVL_ERR_INVALID);
    assert_int_equal(kvl_session_load_chunk(set, "s\0\0\0\0\0", 6, record, 12), KVL_OK);
    assert_false(kvl_session_load_finish(kvl_session_find(set, "s"))); /* no record */
    kvl_session_set_destroy(set);
}

static void a_tail_is_found_where_its_key_is_made(void **state) {
    (void)state;
    enum { BLOCK = 8, TOKENS = 5 * BLOCK + 3, TAIL = 3 };
    uint32_t tokens[TOKENS];
    struct kvl_key keys[TOKENS / BLOCK];
    struct kvl_session_info info = {.namespace_key = {{7}}, .tail_tokens = TAIL};
    for (uint32_t i = 0; i < TOKENS; i++)
        tokens[i] = 100 + i;
    info.token_count = TOKENS;
    const struct kvl_session_place begin = {.parent = info.namespace_key};
    struct kvl_session_place at = begin, walked = begin;
    assert_int_equal(kvl_session_tail_place(&info, tokens, BLOCK, &at), KVL_ERR_NOTFOUND);
    assert_int_equal(kvl_key_chain(&info.namespace_key, tokens, TOKENS, BLOCK, keys), KVL_OK);
    for (uint32_t place = 0; place <= TOKENS / BLOCK; place++) { /* the session went on behind it */
        assert_int_equal(kvl_key_of_block(place > 0 ? &keys[place - 1] : &info.namespace_key,
                             tokens + place * BLOCK, TAIL, (struct kvl_bytes){0}, &info.tail),
            KVL_OK);
        info.token_count = TOKENS;
        at = begin;
        assert_int_equal(kvl_session_tail_place(&info, tokens, BLOCK, &at), KVL_OK);
        assert_int_equal(at.whole, place);
        assert_int_equal(kvl_session_tail_place(&info, tokens, BLOCK, &walked), KVL_OK);
        assert_int_equal(walked.whole, place);
        assert_true(kvl_key_equal(&walked.parent, &at.parent));
        info.token_count = (uint64_t)place * BLOCK + TAIL - 1; /* cut in front of its end */
        assert_int_equal(kvl_session_tail_place(&info, tokens, BLOCK, &at), KVL_ERR_NOTFOUND);
        assert_int_equal(at.whole, place); /* as it was */
        at = begin;
        assert_int_equal(kvl_session_tail_place(&info, tokens, BLOCK, &at), KVL_ERR_NOTFOUND);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_are_checked),
        cmocka_unit_test(tenants_have_names_of_their_own),
        cmocka_unit_test(sessions_stand_in_order_of_name),
        cmocka_unit_test(a_write_cuts_and_appends),
        cmocka_unit_test(a_crash_between_records_leaves_a_true_beginning),
        cmocka_unit_test(hostile_records_are_left_out),
        cmocka_unit_test(a_tail_is_found_where_its_key_is_made),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
