/* server.h - serves one store over nanomsg and the attach socket; owns the event loop.
 *
 * The loop: one epoll over nanomsg's receive fd, the attach listener and its connections, the
 * store's fd and timers. It never blocks on a client: what cannot be sent is dropped (the client
 * repeats), what cannot be understood gets a clear error.
 *
 * Threads: create, run and destroy on the owner thread (the store's); stop from any thread and
 * from a signal handler. Errors of create: BUSY (somebody listens at the address), PERM, INVALID
 * (address), NOMEM; a stale socket file nobody listens on is replaced. */
#ifndef KVL_SERVER_H
#define KVL_SERVER_H

#include "kvl_err.h"
#include "log.h"
#include "store.h"

struct kvl_server;

/* Who may come in. Borrowed: name and secret outlive the server. */
struct kvl_server_tenant {
    const char *name;        /* "": clients that name none; the store's default tenant */
    struct kvl_bytes secret; /* none for "" */
    bool sees_all;           /* an operator: no tenant of the store, looks at and clears all */
};

struct kvl_server_options {
    const char *address; /* ipc://, or tcp:// (needs secret_file) */
    const char *secret_file;
    struct kvl_store *store;
    struct kvl_log *log;
    const char *device_name; /* for status */
    const char *disk_path;   /* for status; NULL: none */
    uint32_t persist_ms;     /* for status */
    const int *stop_fd; /* an eventfd that stops a run, too; the server makes a copy. NULL: none */
    /* None: every client is the default tenant's, and an operator. */
    const struct kvl_server_tenant *tenants;
    uint32_t tenant_count;
};

KVL_MUST_CHECK kvl_err kvl_server_create(
    const struct kvl_server_options *options, struct kvl_server **out, struct kvl_errmsg *msg);
/* Serves until kvl_server_stop; may be called again then. */
KVL_MUST_CHECK kvl_err kvl_server_run(struct kvl_server *server);
void kvl_server_stop(struct kvl_server *server);
void kvl_server_set_persist_ms(struct kvl_server *server, uint32_t persist_ms); /* for status */
void kvl_server_destroy(struct kvl_server *server);                             /* NULL is fine */

#endif
