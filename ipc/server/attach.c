/* attach.c - the attach socket: who is there, what memory they map, and when they are dead.
 *
 * A connection is half open until its hello came; there are few places for those, the oldest one
 * gives way, and the timer drops what stays silent. After the hello the client sends one message
 * more, its goodbye; what ends a client otherwise: server_clients.c. */
#include "server_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "clock.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

#define BACKLOG 64

/* ---- hello -------------------------------------------------------------------------------- */

static bool peer_credentials(int fd, struct ucred *out) {
    socklen_t bytes = sizeof *out;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, out, &bytes) == 0 && bytes == sizeof *out;
}

static int peer_pidfd(int fd, pid_t pid) {
    int pidfd = -1;
    socklen_t bytes = sizeof pidfd;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &bytes) == 0)
        return pidfd;
    return pid > 0 ? (int)syscall(SYS_pidfd_open, pid, 0) : -1; /* kernels before 6.5 */
}

static struct kvl_arena_info describe(struct kvl_tier *tier) {
    struct kvl_arena_info info = {.memory = KVL_ARENA_MEMFD};
    if (tier->ops->describe_arena)
        tier->ops->describe_arena(tier, &info);
    info.bytes = tier->ops->stats(tier).capacity_bytes;
    return info;
}

/* Descriptors of what a client maps, in the order of the reply. */
static uint32_t list_arenas(
    struct kvl_server *server, struct kvl_attach_reply *reply, int fds[KVL_TIER_COUNT + 1]) {
    static const enum kvl_tier_kind kinds[] = {KVL_TIER_DEVICE, KVL_TIER_HOST};
    uint32_t count = 0;
    for (uint32_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        struct kvl_tier *tier = kvl_store_tier(server->store, kinds[i]);
        int fd = tier && tier->ops->share_fd ? tier->ops->share_fd(tier) : -1;
        if (fd < 0)
            continue;
        const struct kvl_arena_info info = describe(tier);
        reply->arenas[count].kind = kinds[i];
        reply->arenas[count].memory = info.memory;
        reply->arenas[count].bytes = info.bytes;
        memcpy(reply->arenas[count].device_uuid, info.device_uuid, sizeof info.device_uuid);
        fds[count++] = fd;
    }
    reply->arena_count = count;
    reply->ticket_words = KVL_TICKET_WORDS;
    fds[count++] = kvl_ticket_pool_fd(kvl_store_tickets(server->store));
    return count;
}

static bool send_reply(int fd, struct kvl_attach_reply *reply, const int *fds, uint32_t fd_count) {
    uint8_t data[KVL_ATTACH_BYTES_MAX];
    struct iovec part = {.iov_base = data, .iov_len = kvl_attach_encode_reply(reply, data)};
    union {
        struct cmsghdr header;
        uint8_t bytes[CMSG_SPACE(sizeof(int) * (KVL_TIER_COUNT + 1))];
    } control = {0};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd_count != 0) {
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * fd_count);
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof(int) * fd_count);
        memcpy(CMSG_DATA(rights), fds, sizeof(int) * fd_count);
    }
    return sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)part.iov_len;
}

static void refuse(struct kvl_server *server, struct kvl_half_open *half, kvl_err status) {
    struct kvl_attach_reply reply = {
        .magic = KVL_ATTACH_MAGIC, .version = KVL_WIRE_VERSION, .status = (uint32_t)status};
    if (!send_reply(half->source.fd, &reply, NULL, 0))
        KVL_DEBUG(server->log, "event=attach_refusal_unsent");
    kvl_server_unwatch(server, &half->source);
}

static kvl_err check_tenant(
    struct kvl_server *server, const struct kvl_attach_hello *hello, struct kvl_client_info *info) {
    uint8_t proof[KVL_WIRE_PROOF_BYTES];
    if (hello->tenant[0] == 0)
        return kvl_door_admit(server, "", info);
    kvl_err err = kvl_secret_proof(
        kvl_door_secret(server, hello->tenant), KVL_PROVER_TENANT, hello->nonce, proof);
    if (err == KVL_OK && !kvl_secret_equal(proof, hello->proof, sizeof proof))
        err = KVL_ERR_PERM;
    return err == KVL_OK ? kvl_door_admit(server, hello->tenant, info) : err;
}

/* The connection leaves its half-open place and belongs to the client from here on. */
static void accept_client(struct kvl_server *server, struct kvl_half_open *half,
    const struct kvl_attach_hello *hello, const struct ucred *peer) {
    int fd = half->source.fd;
    struct kvl_client_info info = {.pid = peer->pid > 0 ? (uint32_t)peer->pid : hello->pid,
        .uid = peer->uid,
        .attached = (hello->flags & KVL_ATTACH_LOOK_ONLY) == 0};
    snprintf(info.name, sizeof info.name, "%s", hello->name);
    kvl_err err = check_tenant(server, hello, &info);
    if (err != KVL_OK) {
        KVL_WARN(server->log, "event=attach_refused pid=%u reason=tenant", info.pid);
        refuse(server, half, err);
        return;
    }
    epoll_ctl(server->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
    struct kvl_client_proof proof = {.attach_fd = fd, .pidfd = peer_pidfd(fd, peer->pid)};
    struct kvl_server_client *client = NULL;
    err = kvl_clients_open(server, &info, hello->tenant, proof, &client);
    if (err != KVL_OK) {
        if (proof.pidfd >= 0)
            close(proof.pidfd);
        refuse(server, half, err);
        return;
    }
    half->source.fd = -1;
    struct kvl_attach_reply reply = {.magic = KVL_ATTACH_MAGIC,
        .version = KVL_WIRE_VERSION,
        .client = client->number,
        .epoch = kvl_store_epoch(server->store)};
    memcpy(reply.token, client->token, sizeof reply.token);
    int fds[KVL_TIER_COUNT + 1];
    uint32_t fd_count = info.attached ? list_arenas(server, &reply, fds) : 0;
    if (!send_reply(fd, &reply, fds, fd_count))
        kvl_clients_close(server, client);
}

static void on_half_open(struct kvl_server *server, struct kvl_source *source) {
    struct kvl_half_open *half = kvl_container_of(source, struct kvl_half_open, source);
    uint8_t data[KVL_ATTACH_BYTES_MAX];
    ssize_t got = recv(source->fd, data, sizeof data, MSG_DONTWAIT | MSG_TRUNC);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) {
        kvl_server_unwatch(server, source);
        return;
    }
    struct ucred peer = {0};
    struct kvl_attach_hello hello;
    if (!peer_credentials(source->fd, &peer) || peer.uid != geteuid()) {
        refuse(server, half, KVL_ERR_PERM);
        return;
    }
    kvl_err err = (size_t)got > sizeof data ? KVL_ERR_INVALID
                                            : kvl_attach_decode_hello(data, (uint64_t)got, &hello);
    if (err != KVL_OK) {
        KVL_INFO(
            server->log, "event=attach_refused pid=%d status=%s", (int)peer.pid, kvl_err_name(err));
        refuse(server, half, err);
        return;
    }
    accept_client(server, half, &hello, &peer);
}

/* ---- connections -------------------------------------------------------------------------- */

static struct kvl_half_open *take_half_open(struct kvl_server *server) {
    struct kvl_half_open *oldest = &server->half_open[0];
    for (uint32_t i = 0; i < KVL_SERVER_HALF_OPEN_MAX; i++) {
        struct kvl_half_open *half = &server->half_open[i];
        if (half->source.fd < 0)
            return half;
        if (half->since_ns < oldest->since_ns)
            oldest = half;
    }
    kvl_server_unwatch(server, &oldest->source);
    return oldest;
}

static void add_half_open(struct kvl_server *server, int fd) {
    struct kvl_half_open *half = take_half_open(server);
    half->source = (struct kvl_source){.fd = fd, .on_ready = on_half_open};
    half->since_ns = kvl_clock_ns();
    if (kvl_server_watch(server, &half->source) != KVL_OK)
        kvl_server_unwatch(server, &half->source);
}

/* Without a free descriptor the listener would stay readable and spin: it rests until the next
 * tick. */
static void pause_listener(struct kvl_server *server) {
    KVL_WARN(server->log, "event=attach_paused reason=\"%s\"", strerror(errno));
    epoll_ctl(server->epoll_fd, EPOLL_CTL_DEL, server->listener.fd, NULL);
    server->listener_paused = true;
}

static void on_listener(struct kvl_server *server, struct kvl_source *source) {
    for (uint32_t i = 0; i < BACKLOG; i++) {
        int fd = accept4(source->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0) {
            add_half_open(server, fd);
            continue;
        }
        if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS)
            pause_listener(server);
        return;
    }
}

void kvl_attach_tick(struct kvl_server *server, uint64_t now_ns) {
    for (uint32_t i = 0; i < KVL_SERVER_HALF_OPEN_MAX; i++) {
        struct kvl_half_open *half = &server->half_open[i];
        if (half->source.fd >= 0 && now_ns - half->since_ns > KVL_SERVER_HALF_OPEN_NS)
            kvl_server_unwatch(server, &half->source);
    }
    if (server->listener_paused && kvl_server_watch(server, &server->listener) == KVL_OK)
        server->listener_paused = false;
}

/* A daemon that left no lock, of another version perhaps, still answers at its attach socket. */
static bool somebody_listens(const struct sockaddr_un *address) {
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return false;
    int rc = connect(fd, (const struct sockaddr *)address, sizeof *address);
    bool listens = rc == 0 || errno == EAGAIN;
    close(fd);
    return listens;
}

static kvl_err listen_at(struct kvl_server *server, struct kvl_errmsg *msg) {
    const struct sockaddr_un address = kvl_address_attach_sockaddr(&server->address);
    if (somebody_listens(&address))
        return kvl_fail(
            msg, KVL_ERR_BUSY, "%s: another daemon listens there", server->address.text);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return kvl_fail(msg, kvl_err_from_errno(errno), "attach socket: %s", strerror(errno));
    server->listener = (struct kvl_source){.fd = fd, .on_ready = on_listener};
    unlink(address.sun_path);
    if (bind(fd, (const struct sockaddr *)&address, sizeof address) != 0)
        return kvl_fail(
            msg, kvl_err_from_errno(errno), "%s: %s", address.sun_path, strerror(errno));
    server->bound = true;
    if (listen(fd, BACKLOG) != 0)
        return kvl_fail(
            msg, kvl_err_from_errno(errno), "%s: %s", address.sun_path, strerror(errno));
    kvl_err err = kvl_server_watch(server, &server->listener);
    return err == KVL_OK ? KVL_OK : kvl_fail(msg, err, "attach socket: epoll");
}

/* ---- life --------------------------------------------------------------------------------- */

kvl_err kvl_attach_listen(struct kvl_server *server, struct kvl_errmsg *msg) {
    return server->address.transport == KVL_TRANSPORT_IPC ? listen_at(server, msg) : KVL_OK;
}

void kvl_attach_close(struct kvl_server *server) {
    for (uint32_t i = 0; i < KVL_SERVER_HALF_OPEN_MAX; i++)
        kvl_server_unwatch(server, &server->half_open[i].source);
    kvl_server_unwatch(server, &server->listener);
    if (server->bound)
        unlink(server->address.attach_path);
}
