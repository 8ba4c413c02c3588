/* store_tenant_test.c - what tenants share a store for: keys apart, quotas that hold, own counts.
 *
 * The seed is printed; KVL_SEED gives it back, KVL_ROUNDS says how long the last test goes on. */
#include "store_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "clock.h"
#include "decorators/delay.h"

#define ACME 1u
#define BLUE 2u
/* A record on disk: the payload does not compress, header and padding are two pages at most. */
#define RECORD_BYTES (BLOCK_BYTES + 8192ull)

static char folder[64];

static int make_folder(void **state) {
    (void)state;
    strcpy(folder, "/tmp/kvl-tenant-XXXXXX");
    return mkdtemp(folder) == NULL;
}

static int remove_folder(void **state) {
    (void)state;
    char command[128];
    snprintf(command, sizeof(command), "rm -rf '%s'", folder);
    return system(command);
}

static struct kvl_tenant_report tenant_report(struct fixture *f, uint32_t tenant) {
    struct kvl_tenant_report report;
    assert_true(kvl_store_tenant_at(f->store, tenant, 0, &report));
    assert_false(kvl_store_tenant_at(f->store, tenant, 1, &report));
    return report;
}

static uint64_t used(struct fixture *f, uint32_t tenant, enum kvl_tier_kind tier) {
    return tenant_report(f, tenant).tiers[tier].used_bytes;
}

static void clear(struct fixture *f, uint32_t client, enum kvl_clear_scope scope) {
    const struct kvl_clear_request request = {.client = client, .scope = scope};
    struct kvl_ticket ticket;
    assert_int_equal(kvl_store_clear(f->store, &request, &ticket), KVL_OK);
    assert_int_equal(fixture_wait(f, ticket), KVL_OK);
    kvl_store_release(f->store, client, NULL, 0, &ticket, 1);
}

/* ---- salts -------------------------------------------------------------------------------- */

static void a_salt_follows_from_name_and_secret(void **state) {
    (void)state;
    const char *const names[] = {"acme", "acme", "acm", "blue"};
    const char *const secrets[] = {"secret", "Secret", "esecret", "secret"};
    struct kvl_key salts[4], again, key = {{1, 2, 3}}, zero = {{0}};
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(
            kvl_tenant_salt(names[i], secrets[i], (uint32_t)strlen(secrets[i]), &salts[i]), KVL_OK);
        assert_false(kvl_key_is_zero(&salts[i]));
        for (unsigned k = 0; k < i; k++)
            assert_false(kvl_key_equal(&salts[k], &salts[i]));
    }
    /* SHA-256("kvloft tenant salt 1\0" "\4\0\0\0acme" "\6\0\0\0secret"), by sha256sum */
    static const char expected[] =
        "660932e3b87dde9fc03101e4733483a6f7c5f9341e13723dfe280285f0c9a3e8";
    char hex[2 * KVL_KEY_BYTES + 1];
    kvl_key_hex(&salts[0], hex);
    assert_string_equal(hex, expected);
    again = key;
    kvl_tenant_turn_key(&salts[0], &again);
    assert_false(kvl_key_equal(&again, &key));
    kvl_tenant_turn_key(&salts[0], &again);
    assert_true(kvl_key_equal(&again, &key));
    kvl_tenant_turn_key(&salts[0], &zero);
    assert_true(kvl_key_is_zero(&zero));
}

/* A sealed block's key is made of outside keys, and stands in the store turned. */
static void blocks_are_kept_under_turned_keys(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_tenant_options acme = {.name = "acme"};
    assert_int_equal(kvl_tenant_salt("acme", "secret", 6, &acme.salt), KVL_OK);
    fixture_open(
        &f, &(struct fixture_options){.device_blocks = 8, .tenants = &acme, .tenant_count = 1});
    uint32_t client = fixture_enter(&f, ACME);
    struct kvl_key outside = f.ns.key, inside, sealed;
    kvl_tenant_turn_key(&acme.salt, &outside); /* as if a client had named it so */
    const uint32_t tokens[] = {1, 2, 3};
    assert_int_equal(kvl_key_of_block(&outside, tokens, 3, (struct kvl_bytes){0}, &inside), KVL_OK);
    uint8_t found;
    struct kvl_key known = inside;
    kvl_tenant_turn_key(&acme.salt, &inside);
    struct kvl_allocated block;
    struct kvl_ticket ticket;
    const struct kvl_alloc_request alloc = {.client = client,
        .namespace_id = f.ns.id,
        .target = KVL_TIER_DEVICE,
        .keys = &inside,
        .count = 1};
    assert_int_equal(kvl_store_alloc(f.store, &alloc, &block, &ticket), KVL_OK);
    const struct kvl_seal_request seal = {.client = client,
        .lease = block.lease,
        .parent = f.ns.key,
        .tokens = tokens,
        .token_count = 3};
    assert_int_equal(kvl_store_seal(f.store, &seal, &sealed), KVL_OK);
    assert_true(kvl_key_equal(&sealed, &inside));
    fixture_settle(&f);
    assert_int_equal(kvl_store_lookup(f.store, &known, 1, &found), 0);
    assert_int_equal(kvl_store_lookup(f.store, &inside, 1, &found), 1);
    fixture_close(&f);
}

/* ---- quotas of memory --------------------------------------------------------------------- */

static void a_tenant_stays_within_its_share_of_memory(void **state) {
    (void)state;
    struct fixture f;
    const struct kvl_tenant_options tenants[] = {
        {.name = "acme", .quota_bytes = {4 * BLOCK_BYTES, 3 * BLOCK_BYTES, 0}}, {.name = "blue"}};
    uint8_t found[16];
    fixture_open(
        &f, &(struct fixture_options){
                .device_blocks = 16, .host_blocks = 16, .tenants = tenants, .tenant_count = 2});
    struct kvl_namespace_info plain = f.ns;
    uint32_t blue = fixture_enter(&f, BLUE);
    struct kvl_namespace_info blue_ns = f.ns;
    fixture_store_chain(&f, blue, 1000, 4);
    uint32_t acme = fixture_enter(&f, ACME);
    for (uint32_t chain = 0; chain < 6; chain++) {
        fixture_store_chain(&f, acme, chain * 100, 3);
        assert_true(used(&f, ACME, KVL_TIER_DEVICE) <= 4 * BLOCK_BYTES);
        assert_true(used(&f, ACME, KVL_TIER_HOST) <= 3 * BLOCK_BYTES);
    }
    fixture_settle(&f);
    assert_int_equal(fixture_lookup(&f, 500, 3, found), 3); /* the newest is there */
    assert_int_equal(fixture_lookup(&f, 0, 3, found), 0);   /* the oldest made room */
    assert_true(tenant_report(&f, ACME).tiers[KVL_TIER_DEVICE].evicted_blocks > 0);
    assert_int_equal(tenant_report(&f, BLUE).tiers[KVL_TIER_DEVICE].evicted_blocks, 0);
    f.ns = blue_ns;
    assert_int_equal(fixture_check_chain(&f, blue, 1000, 4, KVL_TIER_DEVICE), 4);
    f.ns = plain;
    fixture_store_chain(&f, f.a, 7, 4); /* nobody's quota is in its way */
    fixture_close(&f);
}

static void leases_to_the_quota_end_in_no_space(void **state) {
    (void)state;
    struct fixture f;
    const struct kvl_tenant_options acme = {.name = "acme", .quota_bytes = {2 * BLOCK_BYTES, 0, 0}};
    fixture_open(
        &f, &(struct fixture_options){.device_blocks = 8, .tenants = &acme, .tenant_count = 1});
    struct kvl_namespace_info plain = f.ns;
    uint32_t client = fixture_enter(&f, ACME);
    const struct kvl_key keys[4] = {{{0}}};
    struct kvl_allocated blocks[4];
    struct kvl_ticket ticket;
    struct kvl_alloc_request alloc = {.client = client,
        .namespace_id = f.ns.id,
        .target = KVL_TIER_DEVICE,
        .keys = keys,
        .count = 4};
    assert_int_equal(kvl_store_alloc(f.store, &alloc, blocks, &ticket), KVL_OK);
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(blocks[i].status, i < 2 ? KVL_ALLOC_GRANTED : KVL_ALLOC_NOSPC);
    /* Another tenant's namespace is not there, for an alloc. */
    alloc.namespace_id = plain.id;
    assert_int_equal(kvl_store_alloc(f.store, &alloc, blocks, &ticket), KVL_ERR_NOTFOUND);
    alloc.client = f.a;
    assert_int_equal(kvl_store_alloc(f.store, &alloc, blocks, &ticket), KVL_OK);
    assert_int_equal(blocks[3].status, KVL_ALLOC_GRANTED);
    kvl_store_client_close(f.store, client);
    assert_int_equal(used(&f, ACME, KVL_TIER_DEVICE), 0);
    assert_int_equal(used(&f, KVL_TENANT_DEFAULT, KVL_TIER_DEVICE), 4 * BLOCK_BYTES);
    fixture_close(&f);
}

/* ---- quotas of disk ----------------------------------------------------------------------- */

static void store_on_disk(struct fixture *f, uint32_t client, uint32_t first, uint32_t end) {
    for (uint32_t chain = first; chain < end; chain++) {
        fixture_store_chain(f, client, chain * 100, 2);
        assert_true(used(f, ACME, KVL_TIER_DISK) <= 8 * RECORD_BYTES);
    }
    fixture_settle(f);
}

static void the_disk_quota_evicts_the_tenants_oldest(void **state) {
    (void)state;
    struct fixture f;
    uint8_t found[4];
    struct kvl_tenant_options acme = {
        .name = "acme", .quota_bytes = {4 * BLOCK_BYTES, 0, 8 * RECORD_BYTES}};
    struct fixture_options options = {
        .device_blocks = 8, .disk_path = folder, .tenants = &acme, .tenant_count = 1};
    fixture_open(&f, &options);
    fixture_store_chain(&f, f.a, 5000, 3);
    struct kvl_namespace_info plain = f.ns;
    uint32_t client = fixture_enter(&f, ACME);
    store_on_disk(&f, client, 0, 16);
    fixture_poll_for(&f, 1100); /* recency is kept in seconds */
    uint64_t second = kvl_clock_wall_ns() / 1000000000;
    store_on_disk(&f, client, 20, 23);
    bool in_one_second = kvl_clock_wall_ns() / 1000000000 == second;
    assert_true(used(&f, ACME, KVL_TIER_DISK) <= 8 * RECORD_BYTES);
    assert_true(tenant_report(&f, ACME).tiers[KVL_TIER_DISK].evicted_blocks > 0);
    for (uint32_t chain = 20; chain < 23; chain++)
        assert_int_equal(fixture_lookup(&f, chain * 100, 2, found), 2);
    uint64_t before = used(&f, ACME, KVL_TIER_DISK);
    f.ns = plain;
    assert_int_equal(fixture_lookup(&f, 5000, 3, found), 3);
    fixture_close(&f);
    /* The same after a restart; under a smaller quota what is over it leaves. */
    fixture_open(&f, &options);
    assert_int_equal(used(&f, ACME, KVL_TIER_DISK), before);
    fixture_close(&f);
    acme.quota_bytes[KVL_TIER_DISK] = before / 2;
    fixture_open(&f, &options);
    fixture_poll_for(&f, 50);
    assert_true(used(&f, ACME, KVL_TIER_DISK) <= before / 2);
    assert_true(used(&f, ACME, KVL_TIER_DISK) >= before / 4);
    client = fixture_enter(&f, ACME);
    uint32_t left = 0, first = fixture_check_chain(&f, client, 2000, 1, KVL_TIER_DEVICE);
    for (uint32_t chain = 20; chain < 23; chain++)
        left += fixture_check_chain(&f, client, chain * 100, 2, KVL_TIER_DEVICE);
    assert_true(left > 0);
    assert_true(first == 1 || !in_one_second); /* of one second, what was sealed last went first */
    f.ns = plain;
    assert_int_equal(fixture_check_chain(&f, f.a, 5000, 3, KVL_TIER_DEVICE), 3);
    fixture_close(&f);
}

/* Nothing of it may leave: new blocks stay in memory, a flush says so, a stop is clean. */
static void a_disk_quota_full_of_pins_refuses(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_tenant_options acme = {.name = "acme"};
    const struct fixture_options options = {
        .device_blocks = 8, .disk_path = folder, .tenants = &acme, .tenant_count = 1};
    struct kvl_key keys[2];
    struct kvl_ticket ticket;
    struct kvl_store_report report;
    fixture_open(&f, &options);
    uint32_t client = fixture_enter(&f, ACME);
    fixture_store_chain(&f, client, 1, 2);
    fixture_settle(&f);
    uint64_t quota = used(&f, ACME, KVL_TIER_DISK) + RECORD_BYTES;
    fixture_close(&f);
    acme.quota_bytes[KVL_TIER_DISK] = quota; /* a page short of what a third may take at most */
    fixture_open(&f, &options);
    client = fixture_enter(&f, ACME);
    fixture_keys(&f, 1, 2, keys);
    assert_int_equal(kvl_store_pin(f.store, keys, 2, true), 2);
    fixture_store_chain(&f, client, 900, 1);
    assert_int_equal(kvl_store_flush(f.store, client, &ticket), KVL_OK);
    assert_int_equal(fixture_wait(&f, ticket), KVL_ERR_NOSPC);
    kvl_store_report(f.store, ACME, &report);
    assert_int_equal(report.unpersisted_blocks, 1);
    assert_int_equal(report.pins, 2);
    assert_int_equal(report.tiers[KVL_TIER_DISK].capacity_bytes, quota);
    /* Another tenant's flush is none of its business. */
    assert_int_equal(kvl_store_flush(f.store, f.a, &ticket), KVL_OK);
    assert_int_equal(fixture_wait(&f, ticket), KVL_OK);
    assert_int_equal(kvl_store_drain(f.store, UINT64_MAX), KVL_OK);
    /* With room again, a flush stores it after all. */
    assert_int_equal(kvl_store_pin(f.store, keys, 2, false), 2);
    assert_int_equal(kvl_store_flush(f.store, client, &ticket), KVL_OK);
    assert_int_equal(fixture_wait(&f, ticket), KVL_OK);
    fixture_close(&f);
}

/* While all of it is being read nothing may leave: new blocks wait, and are not refused. */
static void a_disk_quota_waits_for_reads(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_tenant_options acme = {.name = "acme"};
    const struct fixture_options options = {.device_blocks = 8,
        .disk_path = folder,
        .delay_disk = true,
        .tenants = &acme,
        .tenant_count = 1};
    const struct kvl_delay_options held = {.load_latency_ns = KVL_DELAY_HOLD}, flowing = {0};
    struct kvl_key keys[2];
    struct kvl_restored blocks[2];
    struct kvl_restore_reply reply;
    fixture_open(&f, &options);
    uint32_t client = fixture_enter(&f, ACME);
    fixture_store_chain(&f, client, 1, 2);
    fixture_settle(&f);
    acme.quota_bytes[KVL_TIER_DISK] = used(&f, ACME, KVL_TIER_DISK) + RECORD_BYTES / 2;
    fixture_close(&f);
    fixture_open(&f, &options);
    client = fixture_enter(&f, ACME);
    kvl_delay_tier_set_latency(f.disk, &held);
    fixture_keys(&f, 1, 2, keys);
    const struct kvl_restore_request restore = {
        .client = client, .target = KVL_TIER_DEVICE, .keys = keys, .count = 2};
    assert_int_equal(kvl_store_restore(f.store, &restore, blocks, &reply), KVL_OK);
    assert_int_equal(reply.count, 2);
    fixture_store_chain(&f, client, 900, 1);
    fixture_poll_for(&f, 50);
    kvl_delay_tier_set_latency(f.disk, &flowing);
    assert_int_equal(fixture_wait(&f, reply.ticket), KVL_OK);
    fixture_settle(&f);
    struct kvl_tenant_report report = tenant_report(&f, ACME);
    assert_int_equal(report.tiers[KVL_TIER_DISK].blocks, 2);
    assert_int_equal(report.tiers[KVL_TIER_DISK].evicted_blocks, 1);
    struct kvl_store_report own;
    kvl_store_report(f.store, ACME, &own);
    assert_int_equal(own.unpersisted_blocks, 0);
    fixture_close(&f);
}

/* ---- own counts --------------------------------------------------------------------------- */

static void each_sees_its_own(void **state) {
    (void)state;
    struct fixture f;
    const struct kvl_tenant_options tenants[] = {{.name = "acme"}, {.name = "blue"}};
    struct kvl_store_report report;
    struct kvl_block_report page[16];
    struct kvl_event events[16];
    struct kvl_client_report client;
    struct kvl_namespace_info space;
    struct kvl_session_info session;
    uint64_t cursor = 0, oldest;
    fixture_open(
        &f, &(struct fixture_options){.device_blocks = 16, .tenants = tenants, .tenant_count = 2});
    uint32_t blue = fixture_enter(&f, BLUE);
    fixture_store_chain(&f, blue, 1, 3);
    uint32_t acme = fixture_enter(&f, ACME);
    fixture_store_chain(&f, acme, 1, 2);
    assert_int_equal(fixture_check_chain(&f, acme, 1, 2, KVL_TIER_DEVICE), 2);
    assert_int_equal(
        kvl_store_session_open(f.store, acme, "acme/talk", &f.ns.key, &session), KVL_OK);
    assert_int_equal(kvl_store_session_open(f.store, blue, "talk", &f.ns.key, &session), KVL_OK);
    kvl_store_report(f.store, ACME, &report);
    assert_int_equal(report.blocks, 2);
    assert_int_equal(report.sealed_blocks, 2);
    assert_int_equal(report.clients, 1);
    assert_int_equal(report.sessions, 1);
    assert_int_equal(report.tiers[KVL_TIER_DEVICE].hits, 2);
    assert_int_equal(report.tiers[KVL_TIER_DEVICE].used_bytes, 2 * BLOCK_BYTES);
    assert_int_equal(report.ghost_blocks + report.table_bytes, 0);
    kvl_store_report(f.store, KVL_TENANT_ALL, &report);
    assert_int_equal(report.blocks, 5);
    assert_int_equal(report.clients, 4);
    assert_int_equal(report.sessions, 2);
    assert_int_equal(kvl_store_list(f.store, ACME, &cursor, 16, page), 2);
    cursor = 0;
    assert_int_equal(kvl_store_list(f.store, KVL_TENANT_ALL, &cursor, 16, page), 5);
    assert_int_equal(kvl_store_events(f.store, ACME, 0, 16, events, &oldest), 2);
    assert_int_equal(events[1].sequence, 2); /* numbered for itself: others do not show as gaps */
    assert_int_equal(kvl_store_events(f.store, KVL_TENANT_ALL, 0, 16, events, &oldest), 5);
    assert_true(kvl_store_client_at(f.store, ACME, 0, &client));
    assert_int_equal(client.client, acme);
    assert_false(kvl_store_client_at(f.store, ACME, 1, &client));
    assert_true(kvl_store_namespace_at(f.store, BLUE, 0, &space));
    assert_int_equal(space.blocks, 3);
    assert_false(kvl_store_namespace_at(f.store, BLUE, 1, &space));
    assert_true(kvl_store_session_at(f.store, ACME, 0, &session));
    assert_string_equal(session.name, "acme/talk");
    assert_false(kvl_store_session_at(f.store, ACME, 1, &session));
    fixture_close(&f);
}

static void a_clear_stays_within_the_tenant(void **state) {
    (void)state;
    struct fixture f;
    const struct kvl_tenant_options tenants[] = {{.name = "acme"}, {.name = "blue"}};
    struct kvl_session_info session;
    struct kvl_ticket ticket;
    uint8_t found[4];
    fixture_open(
        &f, &(struct fixture_options){.device_blocks = 16, .tenants = tenants, .tenant_count = 2});
    uint32_t blue = fixture_enter(&f, BLUE);
    struct kvl_namespace_info blue_ns = f.ns;
    fixture_store_chain(&f, blue, 1, 3);
    uint32_t acme = fixture_enter(&f, ACME);
    fixture_store_chain(&f, acme, 1, 2);
    assert_int_equal(
        kvl_store_session_open(f.store, blue, "blue/talk", &f.ns.key, &session), KVL_OK);
    clear(&f, acme, KVL_CLEAR_ALL);
    assert_int_equal(fixture_lookup(&f, 1, 2, found), 0);
    f.ns = blue_ns;
    assert_int_equal(fixture_lookup(&f, 1, 3, found), 3);
    struct kvl_clear_request request = {
        .client = acme, .scope = KVL_CLEAR_NAMESPACE, .namespace_id = blue_ns.id};
    assert_int_equal(kvl_store_clear(f.store, &request, &ticket), KVL_ERR_NOTFOUND);
    request = (struct kvl_clear_request){.client = acme, .scope = KVL_CLEAR_TENANT, .name = "blue"};
    assert_int_equal(kvl_store_clear(f.store, &request, &ticket), KVL_ERR_NOTFOUND);
    /* An operator may, once nobody holds a session of it. */
    const struct kvl_client_info info = {.pid = 1, .sees_all = true};
    assert_int_equal(kvl_store_client_open(f.store, &info, &request.client), KVL_OK);
    assert_int_equal(kvl_store_clear(f.store, &request, &ticket), KVL_ERR_BUSY);
    assert_int_equal(kvl_store_session_close(f.store, blue, "blue/talk"), KVL_OK);
    assert_int_equal(kvl_store_clear(f.store, &request, &ticket), KVL_OK);
    assert_int_equal(fixture_wait(&f, ticket), KVL_OK);
    assert_int_equal(fixture_lookup(&f, 1, 3, found), 0);
    assert_false(kvl_store_session_at(f.store, BLUE, 0, &session));
    fixture_close(&f);
}

static void a_tenant_that_left_is_cleared_by_name(void **state) {
    (void)state;
    struct fixture f;
    struct kvl_tenant_options acme = {.name = "acme"};
    struct fixture_options options = {
        .device_blocks = 8, .disk_path = folder, .tenants = &acme, .tenant_count = 1};
    struct kvl_tenant_report report;
    uint8_t found[4];
    fixture_open(&f, &options);
    uint32_t client = fixture_enter(&f, ACME);
    fixture_store_chain(&f, client, 1, 3);
    fixture_settle(&f);
    fixture_close(&f);
    fixture_open(&f, &options); /* the same name and secret: everything is there */
    client = fixture_enter(&f, ACME);
    assert_int_equal(fixture_lookup(&f, 1, 3, found), 3);
    assert_int_equal(tenant_report(&f, ACME).tiers[KVL_TIER_DISK].blocks, 3);
    fixture_close(&f);
    acme.salt.bytes[0] = 1; /* another secret: a tenant of its own, beside what the first left */
    fixture_open(&f, &options);
    assert_int_equal(tenant_report(&f, ACME).tiers[KVL_TIER_DISK].blocks, 0);
    assert_true(kvl_store_tenant_at(f.store, KVL_TENANT_ALL, 2, &report));
    assert_string_equal(report.name, "acme");
    assert_false(report.admitted);
    assert_int_equal(report.tiers[KVL_TIER_DISK].blocks, 3);
    const struct kvl_client_info info = {.pid = 1, .tenant = ACME};
    assert_int_equal(kvl_store_client_open(f.store, &info, &client), KVL_OK);
    clear(&f, client, KVL_CLEAR_TENANT);
    assert_true(kvl_store_tenant_at(f.store, KVL_TENANT_ALL, 2, &report));
    assert_int_equal(
        report.tiers[KVL_TIER_DISK].blocks + report.tiers[KVL_TIER_DISK].used_bytes, 0);
    fixture_close(&f);
}

static uint32_t test_seed, rounds = 400;

/* ---- no drift ----------------------------------------------------------------------------- */

static uint32_t next_random(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

static void store_something(struct fixture *f, uint32_t client, uint32_t *random) {
    struct kvl_allocated blocks[3];
    struct kvl_key keys[3];
    struct kvl_ticket ticket;
    uint32_t seed = 100 * (next_random(random) % 12);
    fixture_keys(f, seed, 3, keys);
    const struct kvl_alloc_request alloc = {.client = client,
        .namespace_id = f->ns.id,
        .target = next_random(random) % 4 == 0 ? KVL_TIER_HOST : KVL_TIER_DEVICE,
        .keys = keys,
        .count = 3};
    assert_int_equal(kvl_store_alloc(f->store, &alloc, blocks, &ticket), KVL_OK);
    for (uint32_t i = 0; i < 3; i++) {
        if (blocks[i].status != KVL_ALLOC_GRANTED)
            continue;
        if (next_random(random) % 4 != 0 && alloc.target == KVL_TIER_DEVICE)
            assert_int_equal(
                fixture_seal(f, client, blocks[i].lease, blocks[i].offset_bytes, seed, i), KVL_OK);
        kvl_store_release(f->store, client, &blocks[i].lease, 1, NULL, 0);
    }
}

static void restore_something(struct fixture *f, uint32_t client, uint32_t *random) {
    struct kvl_restored blocks[3];
    struct kvl_restore_reply reply;
    struct kvl_key keys[3];
    fixture_keys(f, 100 * (next_random(random) % 12), 3, keys);
    const struct kvl_restore_request request = {.client = client,
        .target = (enum kvl_tier_kind)(next_random(random) % 2),
        .keys = keys,
        .count = 3};
    kvl_err err = kvl_store_restore(f->store, &request, blocks, &reply);
    assert_true(err == KVL_OK || err == KVL_ERR_AGAIN);
    for (uint32_t i = 0; i < reply.count; i++)
        kvl_store_release(f->store, client, &blocks[i].lease, 1, NULL, 0);
    if (reply.ticket.generation != 0)
        kvl_store_release(f->store, client, NULL, 0, &reply.ticket, 1);
}

static void check_sums(struct fixture *f, struct kvl_tier *const *tiers) {
    for (unsigned tier = 0; tier < KVL_TIER_DISK; tier++) {
        uint64_t sum = 0;
        for (uint32_t tenant = 0; tenant < 3; tenant++)
            sum += used(f, tenant, tier);
        assert_int_equal(sum, tiers[tier]->ops->stats(tiers[tier]).used_bytes);
    }
    assert_true(used(f, ACME, KVL_TIER_DEVICE) <= 5 * BLOCK_BYTES);
    assert_true(used(f, ACME, KVL_TIER_HOST) <= 4 * BLOCK_BYTES);
    assert_true(used(f, ACME, KVL_TIER_DISK) <= 8 * RECORD_BYTES);
}

static void counts_do_not_drift(void **state) {
    (void)state;
    struct fixture f;
    const struct kvl_tenant_options tenants[] = {
        {.name = "acme", .quota_bytes = {5 * BLOCK_BYTES, 4 * BLOCK_BYTES, 8 * RECORD_BYTES}},
        {.name = "blue"}};
    struct kvl_namespace_info spaces[3];
    uint32_t clients[3], random = test_seed;
    fixture_open(&f, &(struct fixture_options){.device_blocks = 12,
                         .host_blocks = 8,
                         .disk_path = folder,
                         .tenants = tenants,
                         .tenant_count = 2});
    struct kvl_tier *const tiers[] = {f.device, f.host};
    spaces[0] = f.ns;
    clients[0] = f.a;
    for (uint32_t tenant = 1; tenant < 3; tenant++) {
        clients[tenant] = fixture_enter(&f, tenant);
        spaces[tenant] = f.ns;
    }
    for (uint32_t round = 0; round < rounds; round++) {
        uint32_t who = next_random(&random) % 3;
        f.ns = spaces[who];
        switch (next_random(&random) % 8) {
        case 0:
            if (next_random(&random) % 8 == 0)
                clear(&f, clients[who], KVL_CLEAR_ALL);
            break;
        case 1:
        case 2:
            restore_something(&f, clients[who], &random);
            break;
        default:
            store_something(&f, clients[who], &random);
        }
        check_sums(&f, tiers);
        if (round % 4 == 0)
            fixture_poll_for(&f, 1);
    }
    f.ns = spaces[ACME];
    fixture_store_chain(&f, clients[ACME], 5000, 2);
    fixture_settle(&f);
    check_sums(&f, tiers);
    assert_true(tenant_report(&f, ACME).tiers[KVL_TIER_DISK].blocks > 0);
    for (uint32_t tenant = 0; tenant < 3; tenant++)
        clear(&f, clients[tenant], KVL_CLEAR_ALL);
    fixture_settle(&f);
    for (uint32_t tenant = 0; tenant < 3; tenant++) {
        struct kvl_store_report report;
        kvl_store_report(f.store, tenant, &report);
        assert_int_equal(report.blocks + report.leases + report.leased_bytes + report.pins, 0);
        assert_int_equal(report.unpersisted_blocks, 0);
        for (unsigned tier = 0; tier < KVL_TIER_COUNT; tier++)
            assert_int_equal(report.tiers[tier].used_bytes + report.tiers[tier].blocks, 0);
    }
    fixture_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_salt_follows_from_name_and_secret),
        cmocka_unit_test(blocks_are_kept_under_turned_keys),
        cmocka_unit_test(a_tenant_stays_within_its_share_of_memory),
        cmocka_unit_test(leases_to_the_quota_end_in_no_space),
        cmocka_unit_test_setup_teardown(
            the_disk_quota_evicts_the_tenants_oldest, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(
            a_disk_quota_full_of_pins_refuses, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(a_disk_quota_waits_for_reads, make_folder, remove_folder),
        cmocka_unit_test(each_sees_its_own),
        cmocka_unit_test(a_clear_stays_within_the_tenant),
        cmocka_unit_test_setup_teardown(
            a_tenant_that_left_is_cleared_by_name, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(counts_do_not_drift, make_folder, remove_folder),
    };
    const char *given_seed = getenv("KVL_SEED"), *given_rounds = getenv("KVL_ROUNDS");
    test_seed = given_seed != NULL ? (uint32_t)strtoul(given_seed, NULL, 10) : (uint32_t)time(NULL);
    rounds = given_rounds != NULL ? (uint32_t)strtoul(given_rounds, NULL, 10) : rounds;
    printf("KVL_SEED=%u\n", test_seed);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    printf("rounds=%u\n", rounds);
    return failed;
}
