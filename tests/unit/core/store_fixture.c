/* store_fixture.c - see store_fixture.h. */
#include "store_fixture.h"

#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "clock.h"
#include "decorators/delay.h"
#include "decorators/far.h"
#include "decorators/fault.h"
#include "disk/disk_tier.h"
#include "memory/memory_tier.h"

#define WAIT_NS_MAX 60000000000ull

static const struct kvl_geometry geometry = {
    .layers = 4, .kv_heads = 16, .k_dim = 128, .v_dim = 128, .block_tokens = BLOCK_TOKENS};

static struct kvl_tier *wrap(struct kvl_tier *inner, bool fault) {
    struct kvl_tier *outer = inner;
    if (fault)
        assert_int_equal(kvl_fault_tier_create(inner, 1, NULL, 0, &outer), KVL_OK);
    return outer;
}

static struct kvl_tier *memory_tier(enum kvl_tier_kind kind, uint32_t blocks) {
    /* An arena cuts its memory into slabs of its own choosing: capacity is what it may use. */
    struct kvl_memory_tier_options options = {
        .kind = kind, .capacity_bytes = (uint64_t)blocks * BLOCK_BYTES};
    struct kvl_tier *tier = NULL;
    struct kvl_errmsg msg = {{0}};
    assert_int_equal(kvl_memory_tier_create(&options, &tier, &msg), KVL_OK);
    kvl_memory_tier_wait_touched(tier);
    return tier;
}

static bool device_is(const char *kind) {
    const char *wanted = getenv("KVL_STORE_DEVICE");
    return wanted != NULL && strcmp(wanted, kind) == 0;
}

static bool device_is_twin(void) {
    return device_is("twin") || device_is("pinned");
}

static struct kvl_tier *innermost(struct fixture *f, const struct fixture_options *options) {
    if (!device_is_twin())
        return memory_tier(KVL_TIER_DEVICE, options->device_blocks);
    twin_device_open(&f->twin, (uint64_t)options->device_blocks * BLOCK_BYTES);
    return f->twin.tier;
}

/* fault(delay(far(memory))) or fault(delay(twin)), as far as they are wanted. */
static void open_device(struct fixture *f, const struct fixture_options *options) {
    f->device_memory = innermost(f, options);
    f->device = f->device_memory;
    if ((options->far_device && !device_is_twin()) || device_is("far")) {
        assert_int_equal(kvl_far_tier_create(f->device, &f->far), KVL_OK);
        f->device = f->far;
    }
    if (options->delay_device) {
        assert_int_equal(
            kvl_delay_tier_create(f->device, &(struct kvl_delay_options){0}, &f->delay), KVL_OK);
        f->device = f->delay;
    }
    f->device = wrap(f->device, options->fault_device);
}

static void open_client(
    struct fixture *f, uint32_t tenant, const char *name, uint32_t pid, uint32_t *client) {
    struct kvl_client_info info = {.pid = pid, .attached = true, .tenant = tenant};
    strcpy(info.name, name);
    assert_int_equal(kvl_store_client_open(f->store, &info, client), KVL_OK);
}

static void open_namespace(struct fixture *f, uint32_t tenant, uint32_t window_tokens) {
    struct kvl_namespace_desc desc = {.geometry = geometry,
        .dtype = KVL_DTYPE_F16,
        .arithmetic_id = "test",
        .fidelity = "lossless",
        .adapter = {&tenant, tenant == 0 ? 0 : sizeof(tenant)}};
    struct kvl_namespace_request request = {
        .geometry = geometry, .dtype = KVL_DTYPE_F16, .label = "test model"};
    assert_int_equal(kvl_key_of_namespace(&desc, &request.key), KVL_OK);
    request.geometry.layer_group = window_tokens;
    if (window_tokens != 0) { /* keys are made of keys as clients know them */
        struct kvl_key salt = kvl_store_salt(f->store, tenant), first = request.key;
        kvl_tenant_turn_key(&salt, &first);
        assert_int_equal(kvl_key_of_layer_group(&first, &request.geometry, &request.key), KVL_OK);
        kvl_tenant_turn_key(&salt, &request.key);
    }
    assert_int_equal(kvl_store_namespace_open(f->store, tenant, &request, &f->ns), KVL_OK);
    assert_int_equal(f->ns.layout.payload_bytes, BLOCK_BYTES);
}

void fixture_near_only(void) {
    if (getenv("KVL_STORE_DEVICE") != NULL)
        skip();
}

void fixture_open(struct fixture *f, const struct fixture_options *options) {
    *f = (struct fixture){0};
    struct kvl_catalog *catalog = NULL;
    struct fixture_options far = *options;
    if (getenv("KVL_STORE_DEVICE") != NULL && far.host_blocks == 0) {
        far.host_blocks = far.device_blocks;
        options = &far;
    }
    open_device(f, options);
    if (options->host_blocks > 0)
        f->host = wrap(memory_tier(KVL_TIER_HOST, options->host_blocks), options->fault_host);
    if (device_is("pinned"))
        twin_device_pin(&f->twin, f->host);
    struct kvl_errmsg msg = {{0}};
    if (options->disk_path != NULL) {
        struct kvl_disk_options disk = {.path = options->disk_path,
            .capacity_bytes = options->disk_bytes != 0 ? options->disk_bytes : 256ull << 20,
            /* memcheck does not see what io_uring reads */
            .io = getenv("KVL_MEMCHECK") != NULL ? KVL_DISK_IO_POSIX : KVL_DISK_IO_AUTO,
            .persist_ms = 20};
        if (kvl_disk_tier_create(&disk, &f->disk, &catalog, &msg) != KVL_OK)
            fail_msg("disk tier: %s", msg.text);
        f->disk = wrap(f->disk, options->fault_disk);
        if (options->delay_disk)
            assert_int_equal(
                kvl_delay_tier_create(f->disk, &(struct kvl_delay_options){0}, &f->disk), KVL_OK);
    }
    struct kvl_store_options store = {.device = f->device,
        .host = f->host,
        .disk = f->disk,
        .catalog = catalog,
        .client_lease_bytes_max = options->client_lease_bytes_max,
        .log = options->log,
        .tenants = options->tenants,
        .tenant_count = options->tenant_count};
    if (kvl_store_create(&store, &f->store, &msg) != KVL_OK)
        fail_msg("store: %s", msg.text);
    uint64_t start = kvl_clock_ns();
    while (!kvl_store_is_loaded(f->store)) {
        assert_true(kvl_clock_ns() - start < WAIT_NS_MAX);
        fixture_poll_for(f, 1);
    }
    open_namespace(f, KVL_TENANT_DEFAULT, 0);
    open_client(f, KVL_TENANT_DEFAULT, "a", 11, &f->a);
    open_client(f, KVL_TENANT_DEFAULT, "b", 12, &f->b);
}

uint32_t fixture_enter(struct fixture *f, uint32_t tenant) {
    uint32_t client = 0;
    open_namespace(f, tenant, 0);
    open_client(f, tenant, "tenant", 13, &client);
    return client;
}

void fixture_enter_window(struct fixture *f, uint32_t tenant, uint32_t window_tokens) {
    open_namespace(f, tenant, window_tokens);
}

static void end_tier(struct kvl_tier *tier) {
    if (tier == NULL)
        return;
    assert_int_equal(tier->ops->drain(tier), KVL_OK);
    tier->ops->deinit(tier);
}

void fixture_close(struct fixture *f) {
    kvl_store_destroy(f->store);
    end_tier(f->disk);
    end_tier(f->device); /* its copies end, and its pins are gone, before the host's memory */
    end_tier(f->host);
    if (f->twin.twin != NULL)
        twin_device_close(&f->twin);
}

static void poll_once(struct fixture *f, int milliseconds) {
    struct pollfd ready = {.fd = kvl_store_fd(f->store), .events = POLLIN};
    (void)poll(&ready, 1, milliseconds);
    kvl_store_poll(f->store);
}

void fixture_poll_for(struct fixture *f, uint32_t milliseconds) {
    uint64_t end = kvl_clock_ns() + milliseconds * 1000000ull;
    do
        poll_once(f, 1);
    while (kvl_clock_ns() < end);
}

kvl_err fixture_wait(struct fixture *f, struct kvl_ticket ticket) {
    struct kvl_completion *word = kvl_ticket_word(kvl_store_tickets(f->store), ticket);
    assert_non_null(word);
    uint64_t start = kvl_clock_ns();
    while (atomic_load(&word->status) == KVL_ERR_PENDING) {
        if (kvl_clock_ns() - start > WAIT_NS_MAX)
            fail_msg("a ticket did not end");
        poll_once(f, 20);
    }
    return (kvl_err)atomic_load(&word->status);
}

void fixture_settle(struct fixture *f) {
    kvl_err err = kvl_store_drain(f->store, UINT64_MAX);
    assert_true(err == KVL_OK || err == KVL_ERR_IO);
    fixture_poll_for(f, 1);
    err = kvl_store_drain(f->store, UINT64_MAX);
    assert_true(err == KVL_OK || err == KVL_ERR_IO);
}

/* ---- chains ------------------------------------------------------------------------------- */

static void tokens_of(uint32_t seed, uint32_t i, uint32_t tokens[BLOCK_TOKENS]) {
    for (uint32_t t = 0; t < BLOCK_TOKENS; t++)
        tokens[t] = seed + i * BLOCK_TOKENS + t;
}

void fixture_keys(const struct fixture *f, uint32_t seed, uint32_t count, struct kvl_key *keys) {
    for (uint32_t i = 0; i < count; i++) {
        uint32_t tokens[BLOCK_TOKENS];
        tokens_of(seed, i, tokens);
        assert_int_equal(kvl_key_of_block(i == 0 ? &f->ns.key : &keys[i - 1], tokens, BLOCK_TOKENS,
                             (struct kvl_bytes){0}, &keys[i]),
            KVL_OK);
    }
}

static uint64_t word_of(const struct kvl_key *key, uint64_t i) {
    uint64_t base;
    memcpy(&base, key->bytes, sizeof(base));
    return (base + i) * 0x9e3779b97f4a7c15u;
}

uint8_t *fixture_address(struct fixture *f, enum kvl_tier_kind kind, uint64_t offset) {
    if (kind == KVL_TIER_DEVICE && f->twin.twin != NULL)
        return f->twin.memory + offset;
    struct kvl_tier *tier = kind == KVL_TIER_DEVICE ? f->device_memory : f->host;
    return tier->ops->address(tier, offset);
}

void fixture_fill(struct fixture *f, uint64_t offset, const struct kvl_key *key) {
    uint64_t *words = (uint64_t *)fixture_address(f, KVL_TIER_DEVICE, offset);
    for (uint64_t i = 0; i < BLOCK_BYTES / 8; i++)
        words[i] = word_of(key, i);
}

bool fixture_is_filled(
    struct fixture *f, enum kvl_tier_kind kind, uint64_t offset, const struct kvl_key *key) {
    const uint64_t *words = (const uint64_t *)fixture_address(f, kind, offset);
    for (uint64_t i = 0; i < BLOCK_BYTES / 8; i++)
        if (words[i] != word_of(key, i))
            return false;
    return true;
}

kvl_err fixture_seal(struct fixture *f, uint32_t client, uint64_t lease, uint64_t offset,
    uint32_t seed, uint32_t i) {
    struct kvl_key *keys = calloc(i + 1, sizeof(keys[0]));
    uint32_t tokens[BLOCK_TOKENS];
    struct kvl_key key;
    fixture_keys(f, seed, i + 1, keys);
    tokens_of(seed, i, tokens);
    fixture_fill(f, offset, &keys[i]);
    struct kvl_seal_request request = {.client = client,
        .lease = lease,
        .parent = i == 0 ? f->ns.key : keys[i - 1],
        .tokens = tokens,
        .token_count = BLOCK_TOKENS};
    kvl_err err = kvl_store_seal(f->store, &request, &key);
    if (err == KVL_OK)
        assert_true(kvl_key_equal(&key, &keys[i]));
    free(keys);
    return err;
}

static uint64_t copies_under_way(const struct fixture *f) {
    struct kvl_tier *const tiers[] = {f->device, f->host};
    uint64_t count = 0;
    for (unsigned i = 0; i < 2; i++)
        count += tiers[i] != NULL ? tiers[i]->ops->stats(tiers[i]).inflight : 0;
    return count;
}

/* A block that is being copied down may not leave, and then a newer one has to. */
static void wait_for_copies(struct fixture *f) {
    uint64_t start = kvl_clock_ns();
    fixture_poll_for(f, 2);
    while (copies_under_way(f) > 0 && kvl_clock_ns() - start < WAIT_NS_MAX)
        poll_once(f, 5);
}

void fixture_store_chain(struct fixture *f, uint32_t client, uint32_t seed, uint32_t count) {
    struct kvl_key *keys = calloc(count, sizeof(keys[0]));
    fixture_keys(f, seed, count, keys);
    for (uint32_t i = 0; i < count; i++) {
        struct kvl_allocated block;
        struct kvl_ticket ticket;
        struct kvl_alloc_request request = {.client = client,
            .namespace_id = f->ns.id,
            .target = KVL_TIER_DEVICE,
            .keys = &keys[i],
            .count = 1};
        uint64_t start = kvl_clock_ns();
        assert_int_equal(kvl_store_alloc(f->store, &request, &block, &ticket), KVL_OK);
        /* Blocks on their way to disk hold their slots: in a tier this small that may be all. */
        while (block.status == KVL_ALLOC_NOSPC && kvl_clock_ns() - start < WAIT_NS_MAX) {
            poll_once(f, 5);
            assert_int_equal(kvl_store_alloc(f->store, &request, &block, &ticket), KVL_OK);
        }
        assert_int_equal(block.status, KVL_ALLOC_GRANTED);
        assert_int_equal(fixture_seal(f, client, block.lease, block.offset_bytes, seed, i), KVL_OK);
        kvl_store_release(f->store, client, &block.lease, 1, NULL, 0);
        uint8_t found[1];
        start = kvl_clock_ns();
        while (kvl_store_lookup(f->store, &keys[i], 1, found) == 0) {
            assert_true(kvl_clock_ns() - start < WAIT_NS_MAX);
            poll_once(f, 5);
        }
        wait_for_copies(f);
    }
    free(keys);
}

uint32_t fixture_check_chain(
    struct fixture *f, uint32_t client, uint32_t seed, uint32_t count, enum kvl_tier_kind tier) {
    struct kvl_key *keys = calloc(count, sizeof(keys[0]));
    struct kvl_restored *blocks = calloc(count, sizeof(blocks[0]));
    struct kvl_restore_reply reply;
    fixture_keys(f, seed, count, keys);
    struct kvl_restore_request request = {
        .client = client, .target = tier, .keys = keys, .count = count};
    assert_int_equal(kvl_store_restore(f->store, &request, blocks, &reply), KVL_OK);
    uint32_t ready = reply.count;
    bool ticket = reply.ticket.generation != 0 || reply.ticket.number != 0;
    if (ticket) {
        kvl_err status = fixture_wait(f, reply.ticket);
        struct kvl_completion *word = kvl_ticket_word(kvl_store_tickets(f->store), reply.ticket);
        ready = atomic_load(&word->blocks_ready);
        assert_true(ready <= reply.count);
        assert_true((status == KVL_OK) == (ready == reply.count));
        assert_int_equal(atomic_load(&word->layers_ready) == 4, status == KVL_OK);
    }
    for (uint32_t i = 0; i < ready; i++) {
        assert_int_equal(blocks[i].token_count, BLOCK_TOKENS);
        assert_true(fixture_is_filled(f, tier, blocks[i].offset_bytes, &keys[i]));
    }
    for (uint32_t i = 0; i < reply.count; i++)
        kvl_store_release(f->store, client, &blocks[i].lease, 1, NULL, 0);
    if (ticket)
        kvl_store_release(f->store, client, NULL, 0, &reply.ticket, 1);
    free(blocks);
    free(keys);
    return ready;
}

uint32_t fixture_lookup(struct fixture *f, uint32_t seed, uint32_t count, uint8_t *found) {
    struct kvl_key *keys = calloc(count, sizeof(keys[0]));
    fixture_keys(f, seed, count, keys);
    uint32_t known = kvl_store_lookup(f->store, keys, count, found);
    free(keys);
    return known;
}
