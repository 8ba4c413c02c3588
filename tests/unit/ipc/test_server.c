/* test_server.c - a small daemon for tests: real memory tiers, a real disk tier when asked for.
 *
 *   kvl_test_server ADDRESS DEVICE_MIB HOST_MIB [DISK_DIR]
 *
 * With KVL_TEST_TENANTS in the environment: acme (2 MiB of device) and blue, with secrets "NAME's
 * secret, long enough", ops, an operator, and who names no tenant.
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

static struct kvl_tenant_options store_tenants[] = {
    {.name = "acme", .quota_bytes = {2u << 20}}, {.name = "blue"}, {.name = ""}};
static struct kvl_server_tenant server_tenants[] = {
    {.name = "acme"}, {.name = "blue"}, {.name = ""}, {.name = "ops", .sees_all = true}};

static kvl_err make_tenants(struct kvl_store_options *options) {
    static char secrets[4][64];
    kvl_err err = KVL_OK;
    options->tenants = store_tenants;
    options->tenant_count = sizeof store_tenants / sizeof *store_tenants;
    for (uint32_t i = 0; i < 4 && err == KVL_OK; i++) {
        struct kvl_bytes *secret = &server_tenants[i].secret;
        if (server_tenants[i].name[0] == 0)
            continue;
        snprintf(secrets[i], sizeof secrets[i], "%s's secret, long enough", server_tenants[i].name);
        *secret = (struct kvl_bytes){secrets[i], (uint32_t)strlen(secrets[i])};
        if (i < 2)
            err = kvl_tenant_salt(
                store_tenants[i].name, secret->data, secret->bytes, &store_tenants[i].salt);
    }
    return err;
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
    bool with_tenants = getenv("KVL_TEST_TENANTS") != NULL;
    if (with_tenants && make_tenants(&options) != KVL_OK)
        return 1;
    if (kvl_store_create(&options, &store, &msg) != KVL_OK)
        return fail("store", &msg);
    const struct kvl_server_options server_options = {.address = argv[1],
        .secret_file = getenv("KVL_TEST_SECRET"),
        .store = store,
        .device_name = "cpu",
        .disk_path = argc > 4 ? argv[4] : NULL,
        .persist_ms = 200,
        .tenants = server_tenants,
        .tenant_count = with_tenants ? sizeof server_tenants / sizeof *server_tenants : 0};
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
