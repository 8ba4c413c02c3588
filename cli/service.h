/* service.h - tiers, store and server wired into one running service.
 *
 * kvloftd runs it on its main thread; --embedded runs it on a thread of its own, behind a socket
 * that has no name any more once the engine is there. Everything is created on the thread that
 * serves, as the store demands.
 *
 *   options -> memory tiers (device, host), disk tier + catalog -> store -> server
 *
 * Stopping drains: what was sealed is durable when the service has ended, or the error says what is
 * not. */
#ifndef KVL_SERVICE_H
#define KVL_SERVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "kvl_err.h"
#include "log.h"

struct kvl_service;
struct kvl_tenants;

struct kvl_service_options {
    const char *address;     /* NULL: embedded, in a new folder below $TMPDIR, /tmp or /dev/shm */
    const char *secret_file; /* tcp:// addresses only */
    const char *device;      /* "cpu"; "cuda[:N]": UNSUPPORTED in a build without CUDA */
    uint64_t device_bytes;
    uint64_t host_bytes;   /* 0: no host tier, which a GPU needs */
    const char *disk_path; /* NULL: nothing outlives the service */
    uint64_t disk_bytes;
    uint32_t persist_ms;               /* 0: the default, 200 */
    const char *disk_io;               /* "auto" (NULL too), "uring", "posix", "buffered" */
    uint32_t stop_seconds;             /* the drain of kvl_service_run at most; 0: however long */
    const struct kvl_tenants *tenants; /* NULL: everybody is the default tenant's */
    const char *holder_name;           /* shown to another process that wants disk_path */
    /* kvl_service_run: on the serving thread after an interrupt; true goes on. NULL: it ends. */
    bool (*goes_on)(void *arg, struct kvl_service *service);
};

#define KVL_SERVICE_DEVICE_BYTES_DEFAULT (UINT64_C(512) << 20)
#define KVL_SERVICE_HOST_BYTES_DEFAULT (UINT64_C(512) << 20)
#define KVL_SERVICE_DISK_BYTES_DEFAULT (UINT64_C(8) << 30)
#define KVL_SERVICE_PERSIST_MS_DEFAULT 200u
#define KVL_SERVICE_STOP_SECONDS_DEFAULT 30u

/* What can be said of options before anything is created. INVALID. */
KVL_MUST_CHECK kvl_err kvl_service_check(
    const struct kvl_service_options *options, struct kvl_errmsg *msg);

/* A service that can be interrupted, and nothing of it else: the disk's folder and the sockets are
 * opened by run. log is borrowed, and what the options point to, until the end. Errors: TOOBIG
 * (address), LIMIT (descriptors), NOMEM; where no folder for a socket can be made, mkdtemp's. */
KVL_MUST_CHECK kvl_err kvl_service_create(const struct kvl_service_options *options,
    struct kvl_log *log, struct kvl_service **out, struct kvl_errmsg *msg);
/* Serves on the calling thread until kvl_service_interrupt, also one that came before; then drains.
 * Once. `ready` is told once clients can connect; arg is goes_on's too. Errors: those of the parts;
 * msg names the option to change. TIMEOUT: the drain took longer than stop_seconds. Then nothing
 * was torn down, for the disk may hang for ever: the process must end with _exit. */
KVL_MUST_CHECK kvl_err kvl_service_run(struct kvl_service *service,
    void (*ready)(void *arg, struct kvl_service *service), void *arg, struct kvl_errmsg *msg);
/* Any thread, and a signal handler; from create to destroy. */
void kvl_service_interrupt(struct kvl_service *service);
void kvl_service_destroy(struct kvl_service *service); /* after run; NULL is fine */
/* Takes over what can change while it serves: persist_ms and stop_seconds. The serving thread. */
void kvl_service_adopt(struct kvl_service *service, const struct kvl_service_options *options);

/* The same on a thread of its own. On OK it serves, until kvl_service_stop has drained and joined
 * it. options and log are borrowed until then. */
KVL_MUST_CHECK kvl_err kvl_service_start(const struct kvl_service_options *options,
    struct kvl_log *log, struct kvl_service **out, struct kvl_errmsg *msg);
void kvl_service_stop(struct kvl_service *service); /* NULL is fine */

/* The address that clients open; lives as long as the service. */
const char *kvl_service_address(const struct kvl_service *service);
/* Embedded: takes the address away from the file system, so that nobody else comes, and a killed
 * process leaves nothing. Who is connected stays so. While it serves. */
void kvl_service_hide(struct kvl_service *service);

#endif
