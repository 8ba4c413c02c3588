/* server.c - life cycle and the epoll loop. */
#include "server_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <nanomsg/nn.h>
#include <nanomsg/reqrep.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "clock.h"

#define EVENTS_PER_WAIT 64
#define TICK_SECONDS 1

kvl_err kvl_server_watch(struct kvl_server *server, struct kvl_source *source) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.ptr = source};
    if (epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, source->fd, &event) != 0)
        return kvl_err_from_errno(errno);
    return KVL_OK;
}

void kvl_server_unwatch(struct kvl_server *server, struct kvl_source *source) {
    if (source->fd < 0)
        return;
    /* close alone would not do while a forked child holds a copy of the descriptor */
    epoll_ctl(server->epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
    close(source->fd);
    source->fd = -1;
}

static void drain_counter(int fd) {
    uint64_t count;
    while (read(fd, &count, sizeof count) == (ssize_t)sizeof count)
        ;
}

static void on_stop(struct kvl_server *server, struct kvl_source *source) {
    drain_counter(source->fd);
    server->stopping = true;
}

static void on_store(struct kvl_server *server, struct kvl_source *source) {
    (void)source;
    kvl_store_poll(server->store);
}

static void on_timer(struct kvl_server *server, struct kvl_source *source) {
    drain_counter(source->fd);
    uint64_t now_ns = kvl_clock_ns();
    kvl_attach_tick(server, now_ns);
    kvl_clients_expire_remote(server, now_ns, 0);
}

/* ---- opening ------------------------------------------------------------------------------ */

/* The lock file belongs to the daemon that lives at the address, and is unlinked under the lock:
 * so a lock on a file that has no name any more counts for nothing. */
static kvl_err lock_address(struct kvl_server *server, struct kvl_errmsg *msg) {
    const char *path = server->address.lock_path;
    for (;;) {
        int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0)
            return kvl_fail(msg, kvl_err_from_errno(errno), "%s: %s", path, strerror(errno));
        if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
            kvl_err err = errno == EWOULDBLOCK ? KVL_ERR_BUSY : kvl_err_from_errno(errno);
            close(fd);
            return kvl_fail(msg, err, "%s: another daemon listens there", server->address.text);
        }
        struct stat opened, named;
        if (fstat(fd, &opened) == 0 && stat(path, &named) == 0 && opened.st_ino == named.st_ino) {
            server->lock_fd = fd;
            return KVL_OK;
        }
        close(fd);
    }
}

static kvl_err prepare_address(
    struct kvl_server *server, const char *secret_file, struct kvl_errmsg *msg) {
    const struct kvl_address *address = &server->address;
    if (address->transport == KVL_TRANSPORT_TCP && !secret_file && server->tenant_count != 0)
        return KVL_OK; /* then only tenants come in, each with its own secret */
    if (address->transport == KVL_TRANSPORT_TCP)
        return kvl_secret_read(secret_file, &server->secret, msg);
    if (mkdir(address->directory, 0700) != 0 && errno != EEXIST)
        return kvl_fail(msg, kvl_err_from_errno(errno), "cannot make the socket's folder %s: %s",
            address->directory, strerror(errno));
    kvl_err err = kvl_address_check_directory(address, msg);
    return err == KVL_OK ? lock_address(server, msg) : err;
}

static kvl_err open_socket(struct kvl_server *server, struct kvl_errmsg *msg) {
    int max_bytes = KVL_WIRE_MESSAGE_BYTES_MAX + 4096; /* routing headers come on top */
    size_t fd_bytes = sizeof server->receive.fd;
    server->socket = nn_socket(AF_SP_RAW, NN_REP);
    if (server->socket < 0)
        return kvl_fail(msg, KVL_ERR_NOMEM, "nanomsg socket: %s", nn_strerror(nn_errno()));
    if (nn_setsockopt(server->socket, NN_SOL_SOCKET, NN_RCVMAXSIZE, &max_bytes, sizeof max_bytes) !=
            0 ||
        nn_getsockopt(server->socket, NN_SOL_SOCKET, NN_RCVFD, &server->receive.fd, &fd_bytes) != 0)
        return kvl_fail(msg, KVL_ERR_IO, "nanomsg socket: %s", nn_strerror(nn_errno()));
    /* nanomsg unlinks a socket file that nobody listens on by itself */
    server->socket_bound = nn_bind(server->socket, server->address.text) >= 0;
    if (server->socket_bound)
        return KVL_OK;
    int error = nn_errno();
    kvl_err err = error == EADDRINUSE                  ? KVL_ERR_BUSY
                  : error == EINVAL || error == ENODEV ? KVL_ERR_INVALID
                  : error == EACCES || error == EPERM  ? KVL_ERR_PERM
                  : error == ENAMETOOLONG              ? KVL_ERR_TOOBIG
                                                       : kvl_err_from_errno(error);
    return kvl_fail(msg, err, "%s: %s", server->address.text, nn_strerror(error));
}

static kvl_err open_own_descriptors(struct kvl_server *server, const int *stop_fd) {
    server->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    server->stop.fd =
        stop_fd ? fcntl(*stop_fd, F_DUPFD_CLOEXEC, 0) : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    server->timer.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (server->epoll_fd < 0 || server->stop.fd < 0 || server->timer.fd < 0)
        return kvl_err_from_errno(errno);
    struct itimerspec tick = {.it_interval.tv_sec = TICK_SECONDS, .it_value.tv_sec = TICK_SECONDS};
    if (timerfd_settime(server->timer.fd, 0, &tick, NULL) != 0)
        return kvl_err_from_errno(errno);
    return KVL_OK;
}

static kvl_err watch_all(struct kvl_server *server) {
    struct kvl_source *sources[] = {
        &server->receive, &server->stop, &server->timer, &server->store_source};
    for (size_t i = 0; i < sizeof sources / sizeof *sources; i++) {
        kvl_err err = kvl_server_watch(server, sources[i]);
        if (err != KVL_OK)
            return err;
    }
    return KVL_OK;
}

static void copy_text(char *to, size_t to_bytes, const char *from) {
    snprintf(to, to_bytes, "%s", from ? from : "");
}

static void init_fields(struct kvl_server *server, const struct kvl_server_options *options) {
    server->store = options->store;
    server->log = options->log;
    server->persist_ms = options->persist_ms;
    server->tenants = options->tenants;
    server->tenant_count = options->tenant_count;
    copy_text(server->device_name, sizeof server->device_name, options->device_name);
    copy_text(server->disk_path, sizeof server->disk_path, options->disk_path);
    server->epoll_fd = server->socket = server->lock_fd = -1;
    server->receive = (struct kvl_source){.fd = -1, .on_ready = kvl_requests_receive};
    server->stop = (struct kvl_source){.fd = -1, .on_ready = on_stop};
    server->store_source =
        (struct kvl_source){.fd = kvl_store_fd(options->store), .on_ready = on_store};
    server->timer = (struct kvl_source){.fd = -1, .on_ready = on_timer};
    server->listener.fd = -1;
    for (uint32_t i = 0; i < KVL_SERVER_HALF_OPEN_MAX; i++)
        server->half_open[i].source.fd = -1;
    for (uint32_t i = 0; i < KVL_SERVER_CLIENTS_MAX; i++)
        server->clients[i].attach.fd = server->clients[i].pidfd.fd = -1;
}

kvl_err kvl_server_create(
    const struct kvl_server_options *options, struct kvl_server **out, struct kvl_errmsg *msg) {
    *out = NULL;
    struct kvl_server *server = calloc(1, sizeof *server);
    if (!server)
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
    init_fields(server, options);
    kvl_err err = kvl_address_parse(options->address, &server->address, msg);
    if (err != KVL_OK)
        goto cleanup;
    server->scratch = malloc(KVL_SERVER_SCRATCH_BYTES);
    /* Ahead, so that a status can be told when memory has run out. */
    struct kvl_wire_header status = {.version = KVL_WIRE_VERSION};
    err = kvl_wire_encode(&server->anonymous_reply, &status, NULL, NULL);
    if (err == KVL_OK)
        err = server->scratch ? open_own_descriptors(server, options->stop_fd) : KVL_ERR_NOMEM;
    if (err == KVL_OK)
        err = kvl_door_open(server);
    if (err != KVL_OK) {
        err = kvl_fail(msg, err, "server: %s", kvl_err_text(err));
        goto cleanup;
    }
    if ((err = prepare_address(server, options->secret_file, msg)) != KVL_OK ||
        (err = kvl_attach_listen(server, msg)) != KVL_OK ||
        (err = open_socket(server, msg)) != KVL_OK)
        goto cleanup;
    if ((err = watch_all(server)) != KVL_OK) {
        err = kvl_fail(msg, err, "server: epoll: %s", kvl_err_text(err));
        goto cleanup;
    }
    KVL_INFO(server->log, "event=listen address=%s", server->address.text);
    *out = server;
    server = NULL;
cleanup:
    kvl_server_destroy(server);
    return err;
}

/* ---- running ------------------------------------------------------------------------------ */

kvl_err kvl_server_run(struct kvl_server *server) {
    struct epoll_event events[EVENTS_PER_WAIT];
    while (!server->stopping) {
        int count = epoll_wait(server->epoll_fd, events, EVENTS_PER_WAIT, -1);
        if (count < 0 && errno != EINTR)
            return kvl_err_from_errno(errno);
        for (int i = 0; i < count; i++) {
            struct kvl_source *source = events[i].data.ptr;
            if (source->fd >= 0)
                source->on_ready(server, source);
        }
        kvl_requests_release_held(server);
    }
    server->stopping = false;
    return KVL_OK;
}

void kvl_server_stop(struct kvl_server *server) {
    int saved = errno; /* may be called from a signal handler */
    uint64_t one = 1;
    ssize_t written = write(server->stop.fd, &one, sizeof one);
    (void)written; /* fails only when a stop is pending already */
    errno = saved;
}

void kvl_server_set_persist_ms(struct kvl_server *server, uint32_t persist_ms) {
    server->persist_ms = persist_ms;
}

void kvl_server_destroy(struct kvl_server *server) {
    if (!server)
        return;
    for (uint32_t i = 0; i < KVL_SERVER_CLIENTS_MAX; i++)
        if (server->clients[i].used)
            kvl_clients_close(server, &server->clients[i]);
    if (server->socket >= 0)
        nn_close(server->socket); /* closes receive.fd, and unlinks the socket file below */
    kvl_attach_close(server);
    kvl_server_unwatch(server, &server->stop);
    kvl_server_unwatch(server, &server->timer);
    if (server->epoll_fd >= 0)
        close(server->epoll_fd);
    if (server->socket_bound && server->address.transport == KVL_TRANSPORT_IPC)
        unlink(server->address.socket_path);
    if (server->lock_fd >= 0) {
        unlink(server->address.lock_path);
        close(server->lock_fd);
    }
    kvl_wire_buffer_free(&server->anonymous_reply);
    free(server->scratch);
    free(server->keys);
    explicit_bzero(&server->secret, sizeof server->secret);
    free(server);
}
