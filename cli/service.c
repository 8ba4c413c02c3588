/* service.c - see service.h. */
#include "service.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "address.h"
#include "clock.h"
#include "cuda_device.h"
#include "disk/disk_tier.h"
#include "memory/memory_tier.h"
#include "server.h"
#include "store.h"
#include "tenants_file.h"
#include "thread.h"

#define LEASE_SHARE_NONE 0u /* one uid is one trust domain: a client may lease the whole tier */

struct kvl_service {
    struct kvl_service_options options;
    struct kvl_log *log;
    char address[128];
    char folder[64];      /* of a socket of its own; empty: none */
    char device_name[32]; /* for status */
    struct kvl_tier *device, *host, *disk;
    struct kvl_catalog *catalog;
    struct kvl_store *store;
    struct kvl_server *server;
    int interrupt_fd; /* an eventfd */
    /* A service on a thread of its own. */
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool is_ready, has_ended;
    kvl_err result;
    struct kvl_errmsg msg;
};

kvl_err kvl_service_check(const struct kvl_service_options *options, struct kvl_errmsg *msg) {
    uint32_t number = 0;
    bool is_gpu = kvl_cuda_device_parse(options->device, &number);
    if (!is_gpu && strcmp(options->device, "cpu") != 0)
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
    if (is_gpu && options->host_bytes == 0)
        return kvl_fail(msg, KVL_ERR_INVALID,
            "--device %s needs a host tier: --host-bytes with room for at least %u blocks of the "
            "model, which pass through it",
            options->device, KVL_FAR_HOST_BLOCKS_MIN);
    if (options->disk_path != NULL && options->disk_path[0] == '\0')
        return kvl_fail(msg, KVL_ERR_INVALID, "the disk's folder is an empty text: give a path");
    if (options->disk_path != NULL && options->disk_bytes < KVL_DISK_CAPACITY_BYTES_MIN)
        return kvl_fail(msg, KVL_ERR_INVALID, "--disk-bytes %llu is too small: at least %llu (6M)",
            (unsigned long long)options->disk_bytes, KVL_DISK_CAPACITY_BYTES_MIN);
    return KVL_OK;
}

static kvl_err disk_io_of(const char *name, enum kvl_disk_io *out, struct kvl_errmsg *msg) {
    static const char *const names[] = {"auto", "uring", "posix", "buffered"};
    *out = KVL_DISK_IO_AUTO;
    for (int i = 0; i < (int)(sizeof names / sizeof names[0]); ++i)
        if (name == NULL || strcmp(name, names[i]) == 0) {
            *out = (enum kvl_disk_io)i;
            return KVL_OK;
        }
    return kvl_fail(
        msg, KVL_ERR_INVALID, "--disk-io %s: it is auto, uring, posix or buffered", name);
}

static kvl_err create_memory_tier(struct kvl_service *service, enum kvl_tier_kind kind,
    uint64_t capacity_bytes, struct kvl_tier **out, struct kvl_errmsg *msg) {
    struct kvl_memory_tier_options options = {
        .kind = kind, .capacity_bytes = capacity_bytes, .log = service->log};
    return kvl_memory_tier_create(&options, out, msg);
}

static kvl_err create_device(struct kvl_service *service, struct kvl_errmsg *msg) {
    const struct kvl_service_options *options = &service->options;
    struct kvl_cuda_device_options gpu = {
        .capacity_bytes = options->device_bytes, .log = service->log};
    if (!kvl_cuda_device_parse(options->device, &gpu.number)) {
        kvl_err err = create_memory_tier(
            service, KVL_TIER_DEVICE, options->device_bytes, &service->device, msg);
        if (err == KVL_OK)
            snprintf(service->device_name, sizeof service->device_name, "%s",
                service->device->ops->name);
        return err;
    }
    snprintf(service->device_name, sizeof service->device_name, "cuda:%u", gpu.number);
    return kvl_cuda_device_create(&gpu, &service->device, msg);
}

/* A GPU's memory is nothing to read files into. */
static void register_arena(struct kvl_service *service, struct kvl_tier *tier) {
    if (tier == NULL || tier->ops->address(tier, 0) == NULL)
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
    kvl_err err = disk_io_of(options->disk_io, &disk.io, msg);
    if (err == KVL_OK)
        err = kvl_disk_tier_create(&disk, &service->disk, &service->catalog, msg);
    if (err == KVL_OK) {
        register_arena(service, service->device);
        register_arena(service, service->host);
    }
    return err;
}

static kvl_err create_tiers(struct kvl_service *service, struct kvl_errmsg *msg) {
    const struct kvl_service_options *options = &service->options;
    uint32_t number;
    kvl_err err = create_device(service, msg);
    if (err == KVL_OK && options->host_bytes > 0)
        err = create_memory_tier(service, KVL_TIER_HOST, options->host_bytes, &service->host, msg);
    if (err == KVL_OK && kvl_cuda_device_parse(options->device, &number))
        kvl_cuda_device_pin(service->device, service->host, service->log);
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
        .device_name = service->device_name,
        .disk_path = service->options.disk_path,
        .persist_ms = service->options.persist_ms,
        .stop_fd = &service->interrupt_fd,
        .tenants = tenants->server,
        .tenant_count = tenants->server_count,
    };
    return kvl_server_create(&server, &service->server, msg);
}

static uint32_t persist_ms_of(const struct kvl_service_options *options) {
    return options->persist_ms != 0 ? options->persist_ms : KVL_SERVICE_PERSIST_MS_DEFAULT;
}

/* False, with errno, when it cannot be there. */
static bool make_folder(struct kvl_service *service, const char *where) {
    errno = ENAMETOOLONG;
    if (snprintf(service->folder, sizeof service->folder, "%s/kvloft-XXXXXX", where) <
            (int)sizeof service->folder &&
        mkdtemp(service->folder) != NULL)
        return true;
    service->folder[0] = '\0';
    return false;
}

static kvl_err make_address(struct kvl_service *service, struct kvl_errmsg *msg) {
    const char *given = getenv("TMPDIR");
    if (!(given != NULL && given[0] == '/' && make_folder(service, given)) &&
        !make_folder(service, "/tmp") && !make_folder(service, "/dev/shm"))
        return kvl_fail(msg, kvl_err_from_errno(errno),
            "neither $TMPDIR nor /tmp nor /dev/shm takes a folder for the socket of a service in "
            "this process: %s",
            strerror(errno));
    snprintf(service->address, sizeof service->address, "ipc://%s/kvloft.sock", service->folder);
    return KVL_OK;
}

static kvl_err init(struct kvl_service *service, const struct kvl_service_options *options,
    struct kvl_log *log, struct kvl_errmsg *msg) {
    service->options = *options;
    service->log = log;
    service->options.persist_ms = persist_ms_of(options);
    service->interrupt_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (service->interrupt_fd < 0)
        return kvl_fail(msg, KVL_ERR_LIMIT, "eventfd: %s", strerror(errno));
    if (options->address == NULL)
        return make_address(service, msg);
    if (snprintf(service->address, sizeof service->address, "%s", options->address) >=
        (int)sizeof service->address)
        return kvl_fail(msg, KVL_ERR_TOOBIG, "the address is too long: %s", options->address);
    return KVL_OK;
}

static void deinit_tier(struct kvl_tier *tier) {
    if (tier != NULL)
        tier->ops->deinit(tier);
}

/* Clients are gone, what was sealed is written. */
static kvl_err drain(struct kvl_service *service, struct kvl_errmsg *msg) {
    uint32_t seconds = service->options.stop_seconds;
    kvl_err err = kvl_store_drain(service->store,
        seconds != 0 ? kvl_clock_ns() + seconds * UINT64_C(1000000000) : UINT64_MAX);
    if (err == KVL_OK)
        return KVL_OK;
    struct kvl_store_report report;
    kvl_store_report(service->store, KVL_TENANT_ALL, &report);
    KVL_ERROR(service->log, "event=drain_failed err=%s unpersisted_blocks=%llu", kvl_err_name(err),
        (unsigned long long)report.unpersisted_blocks);
    if (err != KVL_ERR_TIMEOUT)
        return kvl_fail(msg, err, "not everything could be flushed: %s", kvl_err_text(err));
    return kvl_fail(msg, err,
        "the disk did not take everything within --stop-seconds %u: %llu blocks, and the sessions' "
        "last changes, may be lost",
        seconds, (unsigned long long)report.unpersisted_blocks);
}

/* Disk last to be created, first to go: its transfers use the arenas. The device goes before the
 * host, whose memory it has pinned. */
static void deinit(struct kvl_service *service) {
    kvl_store_destroy(service->store);
    deinit_tier(service->disk);
    deinit_tier(service->device);
    deinit_tier(service->host);
}

static kvl_err run(struct kvl_service *service, void *arg, struct kvl_errmsg *msg) {
    const struct kvl_service_options *options = &service->options;
    kvl_err err;
    do
        err = kvl_server_run(service->server);
    while (err == KVL_OK && options->goes_on != NULL && options->goes_on(arg, service));
    return err == KVL_OK ? KVL_OK
                         : kvl_fail(msg, err, "the server's loop failed: %s", kvl_err_text(err));
}

kvl_err kvl_service_create(const struct kvl_service_options *options, struct kvl_log *log,
    struct kvl_service **out, struct kvl_errmsg *msg) {
    *out = NULL;
    struct kvl_service *service = calloc(1, sizeof *service);
    if (service == NULL)
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
    service->interrupt_fd = -1;
    pthread_mutex_init(&service->lock, NULL);
    pthread_cond_init(&service->changed, NULL);
    kvl_err err = init(service, options, log, msg);
    if (err != KVL_OK) {
        kvl_service_destroy(service);
        return err;
    }
    *out = service;
    return KVL_OK;
}

void kvl_service_destroy(struct kvl_service *service) {
    if (service == NULL)
        return;
    if (service->interrupt_fd >= 0)
        close(service->interrupt_fd);
    if (service->folder[0] != '\0')
        rmdir(service->folder);
    pthread_cond_destroy(&service->changed);
    pthread_mutex_destroy(&service->lock);
    free(service);
}

kvl_err kvl_service_run(struct kvl_service *service,
    void (*ready)(void *arg, struct kvl_service *service), void *arg, struct kvl_errmsg *msg) {
    kvl_thread_begin(NULL, KVL_THREAD_PROMPT);
    kvl_err err = kvl_service_check(&service->options, msg);
    if (err == KVL_OK)
        err = create_tiers(service, msg);
    if (err == KVL_OK)
        err = create_server(service, msg);
    if (err == KVL_OK) {
        ready(arg, service);
        err = run(service, arg, msg);
    }
    kvl_server_destroy(service->server);
    service->server = NULL;
    if (service->store != NULL) {
        struct kvl_errmsg unused;
        kvl_err drained = drain(service, err == KVL_OK ? msg : &unused);
        if (drained == KVL_ERR_TIMEOUT)
            return drained;
        err = err == KVL_OK ? drained : err;
    }
    deinit(service);
    return err;
}

/* What has ended hears nothing; what has not begun hears it then. */
void kvl_service_interrupt(struct kvl_service *service) {
    int saved = errno; /* may be called from a signal handler */
    uint64_t one = 1;
    ssize_t written = write(service->interrupt_fd, &one, sizeof one);
    (void)written; /* fails only at a full counter, which wakes as well */
    errno = saved;
}

void kvl_service_adopt(struct kvl_service *service, const struct kvl_service_options *options) {
    service->options.persist_ms = persist_ms_of(options);
    service->options.stop_seconds = options->stop_seconds;
    kvl_server_set_persist_ms(service->server, service->options.persist_ms);
    if (service->disk != NULL)
        kvl_disk_tier_set_persist_ms(service->disk, service->options.persist_ms);
}

void kvl_service_hide(struct kvl_service *service) {
    struct kvl_address address;
    struct kvl_errmsg unused;
    if (service->folder[0] == '\0' ||
        kvl_address_parse(service->address, &address, &unused) != KVL_OK)
        return;
    unlink(address.socket_path);
    unlink(address.attach_path);
    unlink(address.lock_path);
    rmdir(service->folder);
    service->folder[0] = '\0'; /* the name may become somebody else's */
}

const char *kvl_service_address(const struct kvl_service *service) {
    return service->address;
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
    kvl_err err = kvl_service_run(service, thread_ready, NULL, &service->msg);
    pthread_mutex_lock(&service->lock);
    service->result = err;
    service->has_ended = true;
    pthread_cond_signal(&service->changed);
    pthread_mutex_unlock(&service->lock);
    return NULL;
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

static void join_and_destroy(struct kvl_service *service) {
    pthread_join(service->thread, NULL);
    kvl_service_destroy(service);
}

kvl_err kvl_service_start(const struct kvl_service_options *options, struct kvl_log *log,
    struct kvl_service **out, struct kvl_errmsg *msg) {
    struct kvl_service *service;
    *out = NULL;
    kvl_err err = kvl_service_create(options, log, &service, msg);
    if (err != KVL_OK)
        return err;
    int error_number = pthread_create(&service->thread, NULL, thread_main, service);
    if (error_number != 0) {
        kvl_service_destroy(service);
        return kvl_fail(msg, KVL_ERR_NOMEM, "cannot start a thread: %s", strerror(error_number));
    }
    err = wait_ready(service, msg);
    if (err != KVL_OK) {
        join_and_destroy(service);
        return err;
    }
    *out = service;
    return KVL_OK;
}

void kvl_service_stop(struct kvl_service *service) {
    if (service == NULL)
        return;
    kvl_service_interrupt(service);
    join_and_destroy(service);
}
