/* hot_path_test.c - a million stores and retrieves of a full host tier: not one allocation of ours,
 * and the process as large after them as before.
 *
 * Every malloc, calloc and realloc in our own code comes through here (the linker's --wrap). */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <poll.h>
#include <unistd.h>

#include "memory/memory_tier.h"
#include "store.h"

#define BATCH 256u
#define WARM_BATCHES 400u
#define BATCHES (1000000u / 2 / BATCH) /* a store and a retrieve each */
#define GROWTH_BYTES_MAX (1ull << 20)

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__real_realloc(void *memory, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_realloc(void *memory, size_t bytes);

static atomic_ulong allocations;

void *__wrap_malloc(size_t bytes) {
    atomic_fetch_add(&allocations, 1);
    return __real_malloc(bytes);
}

void *__wrap_calloc(size_t count, size_t bytes) {
    atomic_fetch_add(&allocations, 1);
    return __real_calloc(count, bytes);
}

void *__wrap_realloc(void *memory, size_t bytes) {
    atomic_fetch_add(&allocations, 1);
    return __real_realloc(memory, bytes);
}

struct run {
    struct kvl_tier *device, *host;
    struct kvl_store *store;
    struct kvl_namespace_info ns;
    uint32_t client;
    uint64_t named;
};

static void open_run(struct run *run) {
    struct kvl_memory_tier_options device = {.kind = KVL_TIER_DEVICE, .capacity_bytes = 1u << 20};
    struct kvl_memory_tier_options host = {.kind = KVL_TIER_HOST, .capacity_bytes = 8u << 20};
    struct kvl_client_info info = {.name = "hot", .attached = true};
    struct kvl_namespace_request request = {.block_bytes = 4096, .label = "hot"};
    assert_int_equal(kvl_memory_tier_create(&device, &run->device, NULL), KVL_OK);
    assert_int_equal(kvl_memory_tier_create(&host, &run->host, NULL), KVL_OK);
    kvl_memory_tier_wait_touched(run->device);
    kvl_memory_tier_wait_touched(run->host);
    struct kvl_store_options options = {.device = run->device, .host = run->host};
    assert_int_equal(kvl_store_create(&options, &run->store, NULL), KVL_OK);
    assert_int_equal(kvl_store_client_open(run->store, &info, &run->client), KVL_OK);
    assert_int_equal(
        kvl_key_of_opaque_namespace("hot", 4096, (struct kvl_bytes){NULL, 0}, &request.key),
        KVL_OK);
    assert_int_equal(
        kvl_store_namespace_open(run->store, KVL_TENANT_DEFAULT, &request, &run->ns), KVL_OK);
}

static void close_run(struct run *run) {
    kvl_store_client_close(run->store, run->client);
    kvl_store_destroy(run->store);
    run->host->ops->deinit(run->host);
    run->device->ops->deinit(run->device);
}

static void wait_visible(struct run *run, const struct kvl_key *keys) {
    static uint8_t found[BATCH];
    while (kvl_store_lookup(run->store, keys, BATCH, found) < BATCH) {
        struct pollfd ready = {.fd = kvl_store_fd(run->store), .events = POLLIN};
        poll(&ready, 1, 1000);
        kvl_store_poll(run->store);
    }
}

static void store_batch(struct run *run, struct kvl_key *keys) {
    static struct kvl_allocated slots[BATCH];
    static uint64_t leases[BATCH];
    static const struct kvl_key unknown[BATCH];
    struct kvl_ticket ticket;
    struct kvl_alloc_request request = {.client = run->client,
        .namespace_id = run->ns.id,
        .target = KVL_TIER_HOST,
        .keys = unknown,
        .count = BATCH};
    assert_int_equal(kvl_store_alloc(run->store, &request, slots, &ticket), KVL_OK);
    for (uint32_t i = 0; i < BATCH; i++) {
        struct kvl_seal_request seal = {
            .client = run->client, .lease = slots[i].lease, .opaque = true};
        assert_int_equal(slots[i].status, KVL_ALLOC_GRANTED);
        run->named++;
        memcpy(seal.opaque_key, &run->named, sizeof run->named);
        memcpy(run->host->ops->address(run->host, slots[i].offset_bytes), &run->named, 8);
        assert_int_equal(kvl_store_seal(run->store, &seal, &keys[i]), KVL_OK);
        leases[i] = slots[i].lease;
    }
    wait_visible(run, keys);
    kvl_store_release(run->store, run->client, leases, BATCH, NULL, 0);
}

static void retrieve_batch(struct run *run, const struct kvl_key *keys) {
    static struct kvl_restored blocks[BATCH];
    static uint64_t leases[BATCH];
    struct kvl_restore_reply reply;
    struct kvl_restore_request request = {
        .client = run->client, .target = KVL_TIER_HOST, .keys = keys, .count = BATCH};
    assert_int_equal(kvl_store_restore(run->store, &request, blocks, &reply), KVL_OK);
    assert_int_equal(reply.count, BATCH);
    for (uint32_t i = 0; i < BATCH; i++) {
        uint64_t number = run->named - BATCH + 1 + i;
        assert_memory_equal(
            run->host->ops->address(run->host, blocks[i].offset_bytes), &number, sizeof number);
        leases[i] = blocks[i].lease;
    }
    kvl_store_release(run->store, run->client, leases, BATCH, NULL, 0);
}

static uint64_t resident_bytes(void) {
    unsigned long long pages = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%llu %llu", &pages, &resident), 2);
    fclose(file);
    return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void a_million_operations_allocate_nothing(void **state) {
    (void)state;
    static struct kvl_key keys[BATCH];
    struct run run = {0};
    open_run(&run);
    for (uint32_t i = 0; i < WARM_BATCHES; i++) {
        store_batch(&run, keys);
        retrieve_batch(&run, keys);
    }
    uint64_t before_bytes = resident_bytes();
    atomic_store(&allocations, 0);
    for (uint32_t i = 0; i < BATCHES; i++) {
        store_batch(&run, keys);
        retrieve_batch(&run, keys);
    }
    unsigned long made = atomic_load(&allocations);
    uint64_t after_bytes = resident_bytes();
    printf("allocations=%lu resident_before=%llu resident_after=%llu\n", made,
        (unsigned long long)before_bytes, (unsigned long long)after_bytes);
    assert_int_equal(made, 0);
    if (getenv("KVL_MEMCHECK") == NULL) /* valgrind itself grows */
        assert_true(after_bytes <= before_bytes + GROWTH_BYTES_MAX);
    close_run(&run);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_million_operations_allocate_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
