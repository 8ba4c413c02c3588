/* test_server.c - a small daemon for tests: real memory tiers, a real disk tier when asked for.
 *
 *   kvl_test_server ADDRESS DEVICE_MIB HOST_MIB [DISK_DIR]
 *
 * Prints "ready" once it listens, or one line that says why not; SIGTERM drains and ends it. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "disk/disk_tier.h"
#include "memory/memory_tier.h"
#include "server.h"

static struct kvl_server *server;

static void on_signal(int number) {
    (void)number;
    kvl_server_stop(server);
}

static int fail(const char *what, const struct kvl_errmsg *msg) {
    printf("%s: %s\n", what, msg->text);
    fflush(stdout);
    return 1;
}

static kvl_err make_tiers(
    char **argv, int argc, struct kvl_store_options *options, struct kvl_errmsg *msg) {
    struct kvl_memory_tier_options memory = {.kind = KVL_TIER_DEVICE,
        .capacity_bytes = strtoull(argv[2], NULL, 10) << 20,
        .log = options->log};
    kvl_err err = kvl_memory_tier_create(&memory, &options->device, msg);
    memory.kind = KVL_TIER_HOST;
    memory.capacity_bytes = strtoull(argv[3], NULL, 10) << 20;
    if (err == KVL_OK && memory.capacity_bytes != 0)
        err = kvl_memory_tier_create(&memory, &options->host, msg);
    if (err != KVL_OK || argc < 5)
        return err;
    struct kvl_disk_options disk = {
        .path = argv[4], .capacity_bytes = 256u << 20, .log = options->log};
    return kvl_disk_tier_create(&disk, &options->disk, &options->catalog, msg);
}

static void deinit(struct kvl_tier *tier) {
    if (tier)
        tier->ops->deinit(tier);
}

int main(int argc, char **argv) {
    if (argc < 4)
        return 2;
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* no test leaves one behind */
    struct kvl_errmsg msg = {{0}};
    struct kvl_store_options options = {0};
    if (make_tiers(argv, argc, &options, &msg) != KVL_OK)
        return fail("tiers", &msg);
    struct kvl_store *store = NULL;
    if (kvl_store_create(&options, &store, &msg) != KVL_OK)
        return fail("store", &msg);
    const struct kvl_server_options server_options = {.address = argv[1],
        .secret_file = getenv("KVL_TEST_SECRET"),
        .store = store,
        .device_name = "cpu",
        .disk_path = argc > 4 ? argv[4] : NULL,
        .persist_ms = 200};
    kvl_err err = kvl_server_create(&server_options, &server, &msg);
    if (err != KVL_OK)
        return fail(kvl_err_name(err), &msg);
    signal(SIGTERM, on_signal);
    printf("ready\n");
    fflush(stdout);
    err = kvl_server_run(server);
    kvl_server_destroy(server);
    if (err == KVL_OK)
        err = kvl_store_drain(store, UINT64_MAX);
    kvl_store_destroy(store);
    deinit(options.disk);
    deinit(options.host);
    deinit(options.device);
    return err == KVL_OK ? 0 : 1;
}
