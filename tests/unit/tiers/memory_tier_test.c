#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "memory/memory_tier.h"

#define PAYLOAD_BYTES UINT64_C(4096)
#define CAPACITY_BYTES (UINT64_C(8) << 20)

static struct kvl_tier *make(enum kvl_tier_kind kind, uint64_t capacity_bytes) {
    const struct kvl_memory_tier_options options = {
        .kind = kind, .capacity_bytes = capacity_bytes, .copy_threads = 1};
    struct kvl_tier *tier;
    assert_int_equal(kvl_memory_tier_create(&options, &tier, NULL), KVL_OK);
    kvl_memory_tier_wait_touched(tier);
    return tier;
}

static void names_and_errors_of_create(void **state) {
    (void)state;
    struct kvl_tier *device = make(KVL_TIER_DEVICE, CAPACITY_BYTES);
    struct kvl_tier *host = make(KVL_TIER_HOST, CAPACITY_BYTES);
    assert_string_equal(device->ops->name, "device-cpu");
    assert_string_equal(host->ops->name, "host");
    device->ops->deinit(device);
    host->ops->deinit(host);

    struct kvl_tier *tier;
    struct kvl_errmsg msg = {""};
    struct kvl_memory_tier_options options = {.kind = KVL_TIER_DISK, .capacity_bytes = 4096};
    assert_int_equal(kvl_memory_tier_create(&options, &tier, &msg), KVL_ERR_INVALID);
    options = (struct kvl_memory_tier_options){.kind = KVL_TIER_HOST, .capacity_bytes = 100};
    assert_int_equal(kvl_memory_tier_create(&options, &tier, &msg), KVL_ERR_INVALID);
    assert_non_null(strstr(msg.text, "host tier needs at least 4096 bytes"));
    options.capacity_bytes = UINT64_C(1) << 50;
    assert_int_equal(kvl_memory_tier_create(&options, &tier, &msg), KVL_ERR_NOMEM);
    assert_null(tier);
}

static void slots_are_the_bytes_that_engines_map(void **state) {
    (void)state;
    struct kvl_tier *tier = make(KVL_TIER_DEVICE, CAPACITY_BYTES);
    uint64_t location;
    assert_int_equal(tier->ops->alloc(tier, PAYLOAD_BYTES, &location), KVL_OK);
    int fd = tier->ops->share_fd(tier);
    char *engine = mmap(NULL, CAPACITY_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(engine, MAP_FAILED);
    memcpy(engine + location, "from the engine", 16);
    assert_string_equal((char *)tier->ops->address(tier, location), "from the engine");
    munmap(engine, CAPACITY_BYTES);
    tier->ops->deinit(tier);
}

static void alloc_tells_nospc_from_toobig(void **state) {
    (void)state;
    struct kvl_tier *tier = make(KVL_TIER_HOST, 3 * 4096);
    uint64_t location[3], more;
    for (int i = 0; i < 3; i++)
        assert_int_equal(tier->ops->alloc(tier, 4096, &location[i]), KVL_OK);
    assert_int_equal(tier->ops->alloc(tier, 4096, &more), KVL_ERR_NOSPC);
    assert_int_equal(tier->ops->alloc(tier, 4 * 4096, &more), KVL_ERR_TOOBIG);
    tier->ops->discard(tier, NULL, location[1]);
    assert_int_equal(tier->ops->alloc(tier, 4096, &more), KVL_OK);
    assert_int_equal(more, location[1]);
    assert_int_equal(tier->ops->stats(tier).used_bytes, 3 * 4096);
    tier->ops->deinit(tier);
}

static uint32_t completions;

static void count_complete(struct kvl_io *io) {
    (void)io;
    completions++;
}

struct load {
    struct kvl_io io;
    _Alignas(8) uint8_t buffer[PAYLOAD_BYTES];
};

/* One sealed block that all loads read. */
static void store_one(struct kvl_tier *tier, struct load *store, struct kvl_layout *layout) {
    assert_int_equal(kvl_layout_of_bytes(PAYLOAD_BYTES, layout), KVL_OK);
    memset(store->buffer, 0x21, PAYLOAD_BYTES);
    store->io = (struct kvl_io){
        .op = KVL_IO_STORE, .layout = layout, .buffer = store->buffer, .complete = count_complete};
    store->io.record.content_hash = kvl_content_hash(layout, store->buffer, NULL);
    assert_int_equal(tier->ops->alloc(tier, PAYLOAD_BYTES, &store->io.location), KVL_OK);
    assert_int_equal(tier->ops->submit(tier, &store->io), KVL_OK);
    assert_int_equal(tier->ops->drain(tier), KVL_OK);
    assert_int_equal(store->io.status, KVL_OK);
}

static void a_full_queue_says_again_and_recovers(void **state) {
    (void)state;
    enum { MANY = 1100 };
    static struct load loads[MANY];
    static struct load store;
    struct kvl_tier *tier = make(KVL_TIER_HOST, CAPACITY_BYTES);
    struct kvl_layout layout;
    store_one(tier, &store, &layout);
    completions = 0;
    uint32_t taken = 0;
    kvl_err err = KVL_OK;
    while (taken < MANY && err == KVL_OK) {
        loads[taken].io = store.io;
        loads[taken].io.op = KVL_IO_LOAD;
        loads[taken].io.priority = KVL_IO_PREFETCH;
        loads[taken].io.buffer = loads[taken].buffer;
        err = tier->ops->submit(tier, &loads[taken].io);
        taken += err == KVL_OK;
    }
    assert_int_equal(err, KVL_ERR_AGAIN);
    assert_int_equal(taken, 1024);
    assert_int_equal(tier->ops->stats(tier).inflight, 1024);
    assert_int_equal(tier->ops->drain(tier), KVL_OK);
    assert_int_equal(completions, 1024);
    assert_int_equal(tier->ops->submit(tier, &loads[0].io), KVL_OK);
    assert_int_equal(tier->ops->drain(tier), KVL_OK);
    assert_memory_equal(loads[0].buffer, store.buffer, PAYLOAD_BYTES);
    tier->ops->deinit(tier);
}

/* With one worker two loads at most have been handed out: the third can still be canceled. */
static void a_waiting_load_is_canceled_without_a_copy(void **state) {
    (void)state;
    static struct load loads[3];
    static struct load store;
    struct kvl_tier *tier = make(KVL_TIER_HOST, CAPACITY_BYTES);
    struct kvl_layout layout;
    store_one(tier, &store, &layout);
    completions = 0;
    for (int i = 0; i < 3; i++) {
        loads[i].io = store.io;
        loads[i].io.op = KVL_IO_LOAD;
        loads[i].io.buffer = loads[i].buffer;
        assert_int_equal(tier->ops->submit(tier, &loads[i].io), KVL_OK);
    }
    tier->ops->cancel(tier, &loads[2].io);
    assert_int_equal(completions, 0);
    while (completions < 3) {
        struct pollfd poller = {.fd = tier->ops->fd(tier), .events = POLLIN};
        assert_int_equal(poll(&poller, 1, 20000), 1);
        tier->ops->poll(tier);
    }
    assert_int_equal(loads[0].io.status, KVL_OK);
    assert_int_equal(loads[1].io.status, KVL_OK);
    assert_int_equal(loads[2].io.status, KVL_ERR_CANCELED);
    assert_int_equal(loads[2].buffer[0], 0);
    assert_int_equal(tier->ops->stats(tier).errors, 0);
    tier->ops->deinit(tier);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_and_errors_of_create),
        cmocka_unit_test(slots_are_the_bytes_that_engines_map),
        cmocka_unit_test(alloc_tells_nospc_from_toobig),
        cmocka_unit_test(a_full_queue_says_again_and_recovers),
        cmocka_unit_test(a_waiting_load_is_canceled_without_a_copy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
