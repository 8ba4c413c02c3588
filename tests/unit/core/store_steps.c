/* store_steps.c - what tests of the store do in many places. See store_fixture.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "store_fixture.h"

struct kvl_store_report fixture_report(struct fixture *f) {
    struct kvl_store_report report;
    kvl_store_report(f->store, KVL_TENANT_ALL, &report);
    return report;
}

struct kvl_allocated fixture_alloc(
    struct fixture *f, uint32_t client, const struct kvl_key *key, struct kvl_ticket *ticket) {
    struct kvl_allocated block;
    struct kvl_alloc_request request = {.client = client,
        .namespace_id = f->ns.id,
        .target = KVL_TIER_DEVICE,
        .keys = key,
        .count = 1,
        .wait = ticket != NULL};
    struct kvl_ticket none;
    assert_int_equal(
        kvl_store_alloc(f->store, &request, &block, ticket != NULL ? ticket : &none), KVL_OK);
    return block;
}

struct kvl_restore_reply fixture_restore(struct fixture *f, uint32_t client,
    enum kvl_tier_kind target, uint32_t seed, uint32_t count, struct kvl_restored *blocks) {
    struct kvl_key keys[64];
    struct kvl_restore_reply reply;
    fixture_keys(f, seed, count, keys);
    struct kvl_restore_request request = {
        .client = client, .target = target, .keys = keys, .count = count};
    assert_int_equal(kvl_store_restore(f->store, &request, blocks, &reply), KVL_OK);
    return reply;
}

void fixture_release(
    struct fixture *f, uint32_t client, const struct kvl_restored *blocks, uint32_t count) {
    for (uint32_t i = 0; i < count; i++)
        kvl_store_release(f->store, client, &blocks[i].lease, 1, NULL, 0);
}

kvl_err fixture_flush(struct fixture *f) {
    struct kvl_ticket ticket;
    assert_int_equal(kvl_store_flush(f->store, f->a, &ticket), KVL_OK);
    kvl_err err = fixture_wait(f, ticket);
    kvl_store_release(f->store, f->a, NULL, 0, &ticket, 1);
    return err;
}

void fixture_demote(struct fixture *f, uint32_t seed, uint32_t count, enum kvl_tier_kind target) {
    struct kvl_key keys[64];
    struct kvl_ticket ticket;
    fixture_keys(f, seed, count, keys);
    assert_int_equal(kvl_store_demote(f->store, f->a, keys, count, target, &ticket), KVL_OK);
    assert_int_equal(fixture_wait(f, ticket), KVL_OK);
    kvl_store_release(f->store, f->a, NULL, 0, &ticket, 1);
}
