/* service.c - see service.h. */
#include "service.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "disk/disk_tier.h"
#include "memory/memory_tier.h"
#include "server.h"
#include "store.h"
#include "tenants_file.h"

#define LEASE_SHARE_NONE 0u /* one uid is one trust domain: a client may lease the whole tier */

struct kvl_service {
    struct kvl_service_options options;
    struct kvl_log *log;
    char address[128];
    struct kvl_tier *device, *host, *disk;
    struct kvl_catalog *catalog;
    struct kvl_store *store;
    struct kvl_server *server;
    /* A service on a thread of its own. */
    pthread_t thread;
    bool has_thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool is_ready, has_ended;
    kvl_err result;
    struct kvl_errmsg msg;
};

static kvl_err check_options(const struct kvl_service_options *options, struct kvl_errmsg *msg) {
    if (strncmp(options->device, "cuda", 4) == 0)
        return kvl_fail(
            msg, KVL_ERR_UNSUPPORTED, "this build has no CUDA device tier; use --device cpu");
    if (strcmp(options->device, "cpu") != 0)
        return kvl_fail(
            msg, KVL_ERR_INVALID, "--device %s: it is cpu or cuda[:N]", options->device);
    if (options->device_bytes < KVL_PAGE_BYTES)
        return kvl_fail(msg, KVL_ERR_INVALID,
            "--device-bytes %llu is too small: at least %u, and at least one block of the model",
            (unsigned long long)options->device_bytes, KVL_PAGE_BYTES);
    if (options->host_bytes != 0 && options->host_bytes < KVL_PAGE_BYTES)
        return kvl_fail(msg, KVL_ERR_INVALID,
            "--host-bytes %llu is too small: at least %u, or 0 for no host tier",
            (unsigned long long)options->host_bytes, KVL_PAGE_BYTES);
    return KVL_OK;
}

static kvl_err create_memory_tier(struct kvl_service *service, enum kvl_tier_kind kind,
    uint64_t capacity_bytes, struct kvl_tier **out, struct kvl_errmsg *msg) {
    struct kvl_memory_tier_options options = {
        .kind = kind, .capacity_bytes = capacity_bytes, .log = service->log};
    return kvl_memory_tier_create(&options, out, msg);
}

static void register_arena(struct kvl_service *service, struct kvl_tier *tier) {
    if (tier == NULL)
        return;
    uint64_t bytes = tier->ops->stats(tier).capacity_bytes;
    kvl_disk_tier_register_memory(service->disk, tier->ops->address(tier, 0), bytes);
}

static kvl_err create_disk_tier(struct kvl_service *service, struct kvl_errmsg *msg) {
    const struct kvl_service_options *options = &service->options;
    if (options->disk_path == NULL)
        return KVL_OK;
    struct kvl_disk_options disk = {
        .path = options->disk_path,
        .capacity_bytes = options->disk_bytes,
        .persist_ms = options->persist_ms,
        .holder_name = options->holder_name,
        .log = service->log,
    };
    kvl_err err = kvl_disk_tier_create(&disk, &service->disk, &service->catalog, msg);
    if (err == KVL_OK) {
        register_arena(service, service->device);
        register_arena(service, service->host);
    }
    return err;
}

static kvl_err create_tiers(struct kvl_service *service, struct kvl_errmsg *msg) {
    const struct kvl_service_options *options = &service->options;
    kvl_err err =
        create_memory_tier(service, KVL_TIER_DEVICE, options->device_bytes, &service->device, msg);
    if (err == KVL_OK && options->host_bytes > 0)
        err = create_memory_tier(service, KVL_TIER_HOST, options->host_bytes, &service->host, msg);
    return err == KVL_OK ? create_disk_tier(service, msg) : err;
}

static kvl_err create_server(struct kvl_service *service, struct kvl_errmsg *msg) {
    static const struct kvl_tenants none;
    const struct kvl_tenants *tenants =
        service->options.tenants != NULL ? service->options.tenants : &none;
    struct kvl_store_options store = {
        .device = service->device,
        .host = service->host,
        .disk = service->disk,
        .catalog = service->catalog,
        .client_lease_bytes_max = LEASE_SHARE_NONE,
        .tenants = tenants->store,
        .tenant_count = tenants->store_count,
        .log = service->log,
    };
    kvl_err err = kvl_store_create(&store, &service->store, msg);
    if (err != KVL_OK)
        return err;
    struct kvl_server_options server = {
        .address = service->address,
        .secret_file = service->options.secret_file,
        .store = service->store,
        .log = service->log,
        .device_name = service->device->ops->name,
        .disk_path = service->options.disk_path,
        .persist_ms = service->options.persist_ms,
        .tenants = tenants->server,
        .tenant_count = tenants->server_count,
    };
    return kvl_server_create(&server, &service->server, msg);
}

static kvl_err init(
    struct kvl_service *service, const struct kvl_service_options *options, struct kvl_log *log) {
    static atomic_uint embedded_count;
    service->options = *options;
    service->log = log;
    if (service->options.persist_ms == 0)
        service->options.persist_ms = KVL_SERVICE_PERSIST_MS_DEFAULT;
    int bytes = options->address != NULL
                    ? snprintf(service->address, sizeof service->address, "%s", options->address)
                    : snprintf(service->address, sizeof service->address, "inproc://kvloft-%ld-%u",
                          (long)getpid(), atomic_fetch_add(&embedded_count, 1));
    return bytes < (int)sizeof service->address ? KVL_OK : KVL_ERR_TOOBIG;
}

static void deinit_tier(struct kvl_tier *tier) {
    if (tier != NULL)
        tier->ops->deinit(tier);
}

/* Disk last to be created, first to go: its transfers use the arenas. */
static kvl_err deinit(struct kvl_service *service) {
    kvl_server_destroy(service->server);
    kvl_err err = service->store != NULL ? kvl_store_drain(service->store, UINT64_MAX) : KVL_OK;
    if (err != KVL_OK)
        KVL_ERROR(service->log, "event=drain_failed err=%s", kvl_err_name(err));
    kvl_store_destroy(service->store);
    deinit_tier(service->disk);
    deinit_tier(service->host);
    deinit_tier(service->device);
    return err;
}

static kvl_err serve(struct kvl_service *service,
    void (*ready)(void *arg, struct kvl_service *service), void *arg, struct kvl_errmsg *msg) {
    kvl_err err = check_options(&service->options, msg);
    if (err == KVL_OK)
        err = create_tiers(service, msg);
    if (err == KVL_OK)
        err = create_server(service, msg);
    if (err == KVL_OK) {
        ready(arg, service);
        err = kvl_server_run(service->server);
        if (err != KVL_OK)
            (void)kvl_fail(msg, err, "the server's loop failed: %s", kvl_err_text(err));
    }
    bool ran = err == KVL_OK;
    kvl_err drained = deinit(service);
    if (ran && drained != KVL_OK)
        err = kvl_fail(msg, drained, "not everything could be flushed: %s", kvl_err_text(drained));
    return err;
}

kvl_err kvl_service_run(const struct kvl_service_options *options, struct kvl_log *log,
    void (*ready)(void *arg, struct kvl_service *service), void *arg, struct kvl_errmsg *msg) {
    struct kvl_service service = {0};
    kvl_err err = init(&service, options, log);
    if (err != KVL_OK)
        return kvl_fail(msg, err, "the address is too long: %s", options->address);
    return serve(&service, ready, arg, msg);
}

void kvl_service_interrupt(struct kvl_service *service) {
    kvl_server_stop(service->server);
}

const char *kvl_service_address(const struct kvl_service *service) {
    return service->address;
}

kvl_err kvl_service_attach(struct kvl_service *service, int *attach_fd) {
    return kvl_server_attach_pair(service->server, attach_fd);
}

/* ---- on a thread of its own ------------------------------------------------------------------ */

static void thread_ready(void *arg, struct kvl_service *service) {
    (void)arg;
    pthread_mutex_lock(&service->lock);
    service->is_ready = true;
    pthread_cond_signal(&service->changed);
    pthread_mutex_unlock(&service->lock);
}

static void *thread_main(void *arg) {
    struct kvl_service *service = arg;
    kvl_err err = serve(service, thread_ready, NULL, &service->msg);
    pthread_mutex_lock(&service->lock);
    service->result = err;
    service->has_ended = true;
    pthread_cond_signal(&service->changed);
    pthread_mutex_unlock(&service->lock);
    return NULL;
}

static void free_service(struct kvl_service *service) {
    if (service->has_thread)
        pthread_join(service->thread, NULL);
    pthread_cond_destroy(&service->changed);
    pthread_mutex_destroy(&service->lock);
    free(service);
}

/* OK once it serves, or what ended it before. */
static kvl_err wait_ready(struct kvl_service *service, struct kvl_errmsg *msg) {
    pthread_mutex_lock(&service->lock);
    while (!service->is_ready && !service->has_ended)
        pthread_cond_wait(&service->changed, &service->lock);
    bool failed = service->has_ended;
    pthread_mutex_unlock(&service->lock);
    if (!failed)
        return KVL_OK;
    kvl_err err = service->result == KVL_OK ? KVL_ERR_CLOSED : service->result;
    return kvl_fail(
        msg, err, "%s", service->msg.text[0] != 0 ? service->msg.text : kvl_err_text(err));
}

kvl_err kvl_service_start(const struct kvl_service_options *options, struct kvl_log *log,
    struct kvl_service **out, struct kvl_errmsg *msg) {
    *out = NULL;
    struct kvl_service *service = calloc(1, sizeof *service);
    if (service == NULL)
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
    pthread_mutex_init(&service->lock, NULL);
    pthread_cond_init(&service->changed, NULL);
    kvl_err err = init(service, options, log);
    int error_number =
        err == KVL_OK ? pthread_create(&service->thread, NULL, thread_main, service) : 0;
    service->has_thread = err == KVL_OK && error_number == 0;
    if (error_number != 0)
        err = kvl_fail(msg, KVL_ERR_NOMEM, "cannot start a thread: %s", strerror(error_number));
    else if (err != KVL_OK)
        err = kvl_fail(msg, err, "the address is too long");
    else
        err = wait_ready(service, msg);
    if (err != KVL_OK) {
        free_service(service);
        return err;
    }
    *out = service;
    return KVL_OK;
}

void kvl_service_stop(struct kvl_service *service) {
    if (service == NULL)
        return;
    kvl_service_interrupt(service);
    free_service(service);
}
