/* connection_test.c - what an engine is told when a daemon cannot hold its model's blocks. The
 * device here is one that the CPU cannot address, as a GPU's. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "connection.h"
#include "decorators/far.h"
#include "memory/memory_tier.h"
#include "server.h"
#include "tiny_model.h"

#define DEVICE_BYTES (16u << 20)
#define BLOCK_TOKENS 64u

struct world {
    struct kvl_tier *device, *host;
    struct kvl_store *store;
    struct kvl_server *server;
    pthread_t thread;
};

static char folder[] = "/tmp/kvl-connection-XXXXXX", address[64];

static void *serve(void *arg) {
    struct world *world = arg;
    return (void *)(intptr_t)kvl_server_run(world->server);
}

static struct kvl_tier *memory_tier(enum kvl_tier_kind kind, uint64_t bytes) {
    const struct kvl_memory_tier_options options = {.kind = kind, .capacity_bytes = bytes};
    struct kvl_tier *tier = NULL;
    assert_int_equal(kvl_memory_tier_create(&options, &tier, NULL), KVL_OK);
    return tier;
}

static void start(struct world *world, uint64_t host_bytes) {
    struct kvl_errmsg msg = {{0}};
    *world = (struct world){.host = memory_tier(KVL_TIER_HOST, host_bytes)};
    assert_int_equal(
        kvl_far_tier_create(memory_tier(KVL_TIER_DEVICE, DEVICE_BYTES), &world->device), KVL_OK);
    const struct kvl_store_options store = {.device = world->device, .host = world->host};
    assert_int_equal(kvl_store_create(&store, &world->store, &msg), KVL_OK);
    const struct kvl_server_options server = {.address = address, .store = world->store};
    assert_int_equal(kvl_server_create(&server, &world->server, &msg), KVL_OK);
    assert_int_equal(pthread_create(&world->thread, NULL, serve, world), 0);
}

static void stop(struct world *world) {
    kvl_server_stop(world->server);
    pthread_join(world->thread, NULL);
    kvl_server_destroy(world->server);
    assert_int_equal(kvl_store_drain(world->store, UINT64_MAX), KVL_OK);
    kvl_store_destroy(world->store);
    world->host->ops->deinit(world->host);
    world->device->ops->deinit(world->device);
}

static kvl_err connect_engine(
    const struct kvl_model *model, struct kvl_backend *backend, struct kvl_errmsg *msg) {
    struct kvl_connection connection;
    const struct kvl_connection_options options = {.address = address,
        .tenant = "",
        .secret_file = "",
        .client_name = "connection_test",
        .label = "tiny",
        .model = model,
        .backend = backend,
        .kv_dtype = KVL_KV_F16,
        .block_tokens = BLOCK_TOKENS};
    kvl_err err = kvl_connection_open(&connection, &options, msg);
    if (err == KVL_OK) /* never: nobody here can compute in that device's memory */
        kvl_connection_close(&connection);
    return err;
}

static void a_host_too_small_to_pass_through_is_what_is_blamed(void **state) {
    (void)state;
    struct world world;
    struct kvl_errmsg msg = {{0}};
    struct kvl_model *model = NULL;
    struct kvl_backend *backend = NULL;
    struct tiny_shape shape = tiny_shape_default();
    char *path = tiny_model_file(&shape);
    const struct kvl_backend_options options = {.threads = 1, .context_max = BLOCK_TOKENS};
    assert_int_equal(kvl_model_load(path, &model, &msg), KVL_OK);
    assert_int_equal(kvl_backend_cpu.create(model, &options, &backend, &msg), KVL_OK);
    assert_non_null(mkdtemp(folder));
    snprintf(address, sizeof address, "ipc://%s/d.sock", folder);
    uint64_t block_bytes = kvl_block_bytes(&model->hparams, BLOCK_TOKENS, KVL_KV_F16);
    start(&world, (KVL_FAR_HOST_BLOCKS_MIN - 1) * block_bytes);
    assert_int_equal(connect_engine(model, backend, &msg), KVL_ERR_NOSPC);
    assert_non_null(strstr(msg.text, "--host-bytes"));
    assert_null(strstr(msg.text, "--disk-bytes"));
    stop(&world);
    start(&world, (KVL_FAR_HOST_BLOCKS_MIN + 1) * (block_bytes + 4096));
    assert_int_not_equal(connect_engine(model, backend, &msg), KVL_ERR_NOSPC);
    stop(&world);
    rmdir(folder);
    backend->ops->destroy(backend);
    kvl_model_free(model);
    free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_host_too_small_to_pass_through_is_what_is_blamed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
