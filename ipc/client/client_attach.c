/* client_attach.c - says hello at the attach socket and maps what comes back.
 *
 * Each arena of the CPU's memory is mapped twice: a view for reading, and one for filling slots
 * under a write lease. One of a GPU is not mapped here: whoever computes there maps its descriptor.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include "client_internal.h"

#define FDS_MAX (KVL_TIER_COUNT + 1)
#define HUGE_PAGE_BYTES (UINT64_C(2) << 20)

struct received {
    uint8_t data[KVL_ATTACH_BYTES_MAX];
    ssize_t bytes;
    int fds[FDS_MAX];
    uint32_t fd_count;
};

/* So that the daemon need not wait for this process' death to give its slots to others. A forked
 * child says nothing: its parent goes on. A daemon that is gone does not hear it. */
static void say_goodbye(const struct kvl_mapping *mapping) {
    uint8_t data[KVL_GOODBYE_BYTES];
    if (mapping->greeter != getpid())
        return;
    kvl_attach_encode_goodbye(data);
    ssize_t sent = send(mapping->attach_fd, data, sizeof data, MSG_NOSIGNAL | MSG_DONTWAIT);
    (void)sent;
}

void kvl_mapping_free(struct kvl_mapping *mapping) {
    if (!mapping)
        return;
    for (uint32_t i = 0; i < KVL_TIER_COUNT; i++) {
        if (mapping->arenas[i].read)
            munmap(mapping->arenas[i].read, mapping->arenas[i].info.bytes);
        if (mapping->arenas[i].write)
            munmap(mapping->arenas[i].write, mapping->arenas[i].info.bytes);
        if (mapping->arenas[i].fd >= 0)
            close(mapping->arenas[i].fd);
    }
    if (mapping->words)
        munmap(
            (void *)(uintptr_t)mapping->words, mapping->word_count * sizeof(struct kvl_completion));
    if (mapping->attach_fd >= 0) {
        say_goodbye(mapping);
        close(mapping->attach_fd);
    }
    free(mapping);
}

/* ---- connection --------------------------------------------------------------------------- */

/* Waits at most timeout_ms for a daemon whose queue of connections is full. */
static kvl_err connect_attach(
    const struct kvl_address *address, uint32_t timeout_ms, int *out, struct kvl_errmsg *msg) {
    const struct timeval limit = {.tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000};
    const struct sockaddr_un where = kvl_address_attach_sockaddr(address);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return kvl_fail(msg, kvl_err_from_errno(errno), "socket: %s", strerror(errno));
    struct ucred peer = {0};
    socklen_t peer_bytes = sizeof peer;
    kvl_err err = KVL_OK;
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (connect(fd, (const struct sockaddr *)&where, sizeof where) != 0)
        err = errno == ECONNREFUSED || errno == ENOENT
                  ? kvl_fail(msg, KVL_ERR_NOTFOUND, "%s: no daemon listens there", address->text)
              : errno == EAGAIN
                  ? kvl_fail(msg, KVL_ERR_TIMEOUT, "%s: the daemon does not answer", address->text)
                  : kvl_fail(
                        msg, kvl_err_from_errno(errno), "%s: %s", where.sun_path, strerror(errno));
    else if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &peer_bytes) != 0 ||
             peer.uid != geteuid())
        err = kvl_fail(msg, KVL_ERR_PERM, "%s: the daemon belongs to another user", address->text);
    if (err != KVL_OK) {
        close(fd);
        return err;
    }
    *out = fd;
    return KVL_OK;
}

static kvl_err open_channel(struct kvl_client *client, int *out, struct kvl_errmsg *msg) {
    kvl_err err = kvl_address_check_directory(&client->address, msg);
    if (err == KVL_ERR_NOTFOUND)
        return kvl_fail(msg, err, "%s: no daemon listens there", client->address.text);
    return err == KVL_OK ? connect_attach(&client->address, client->timeout_ms, out, msg) : err;
}

static kvl_err receive(int fd, uint32_t timeout_ms, struct received *out) {
    union {
        struct cmsghdr header;
        uint8_t bytes[CMSG_SPACE(sizeof(int) * FDS_MAX)];
    } control = {0};
    struct iovec part = {.iov_base = out->data, .iov_len = sizeof out->data};
    struct msghdr message = {.msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = &control,
        .msg_controllen = sizeof control};
    struct pollfd poller = {.fd = fd, .events = POLLIN};
    int ready;
    do
        ready = poll(&poller, 1, (int)timeout_ms);
    while (ready < 0 && errno == EINTR);
    if (ready == 0)
        return KVL_ERR_TIMEOUT;
    out->bytes = recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (out->bytes <= 0)
        return KVL_ERR_CLOSED;
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    if (rights && rights->cmsg_level == SOL_SOCKET && rights->cmsg_type == SCM_RIGHTS) {
        out->fd_count = (uint32_t)((rights->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(out->fds, CMSG_DATA(rights), sizeof(int) * out->fd_count);
    }
    return KVL_OK;
}

static kvl_err exchange(struct kvl_client *client, struct kvl_mapping *mapping,
    struct received *received, struct kvl_attach_reply *reply, struct kvl_errmsg *msg) {
    const int fd = mapping->attach_fd;
    struct kvl_attach_hello hello = {.magic = KVL_ATTACH_MAGIC,
        .version = KVL_WIRE_VERSION,
        .flags = client->look_only ? KVL_ATTACH_LOOK_ONLY : 0,
        .pid = (uint32_t)getpid()};
    memcpy(hello.name, client->name, sizeof hello.name);
    memcpy(hello.tenant, client->tenant, sizeof hello.tenant);
    kvl_err err = client->tenant[0] ? kvl_credentials_nonce(hello.nonce, msg) : KVL_OK;
    if (err == KVL_OK && client->tenant[0])
        err = kvl_credentials_prove(client, KVL_PROVER_TENANT, hello.nonce, hello.proof, msg);
    if (err != KVL_OK)
        return err;
    uint8_t data[KVL_ATTACH_BYTES_MAX];
    uint32_t bytes = kvl_attach_encode_hello(&hello, data);
    if (send(fd, data, bytes, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)bytes)
        return KVL_ERR_CLOSED;
    mapping->greeter = getpid();
    err = receive(fd, client->timeout_ms, received);
    return err == KVL_OK ? kvl_attach_decode_reply(received->data, (uint64_t)received->bytes, reply)
                         : err;
}

/* ---- mapping ------------------------------------------------------------------------------ */

/* Mapping more than the file has would end in SIGBUS. */
static bool file_has(int fd, uint64_t bytes) {
    struct stat info;
    return bytes != 0 && fstat(fd, &info) == 0 && (uint64_t)info.st_size >= bytes;
}

static void *map(int fd, uint64_t bytes, int protection) {
    void *at = mmap(NULL, bytes, protection, MAP_SHARED, fd, 0);
    return at == MAP_FAILED ? NULL : at;
}

/* At a multiple of a huge page, without which no huge page of the file maps as one: reserves one
 * more than asked for, and gives back what lies before and behind. */
static void *map_arena(int fd, uint64_t bytes, int protection) {
    const uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    uint8_t *from = mmap(NULL, bytes + HUGE_PAGE_BYTES, PROT_NONE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (from == MAP_FAILED)
        return NULL;
    const uint64_t before = -(uintptr_t)from & (HUGE_PAGE_BYTES - 1);
    const uint64_t end = (before + bytes + page_bytes - 1) / page_bytes * page_bytes;
    void *at = mmap(from + before, bytes, protection, MAP_SHARED | MAP_FIXED, fd, 0);
    if (at == MAP_FAILED) {
        munmap(from, bytes + HUGE_PAGE_BYTES);
        return NULL;
    }
    if (before != 0)
        munmap(from, before);
    if (end < bytes + HUGE_PAGE_BYTES)
        munmap(from + end, bytes + HUGE_PAGE_BYTES - end);
    /* where refused, small pages serve as well */
    (void)madvise(at, bytes, MADV_HUGEPAGE);
    return at;
}

static kvl_err map_memfd(struct kvl_mapping *mapping, uint32_t kind) {
    const uint64_t bytes = mapping->arenas[kind].info.bytes;
    const int fd = mapping->arenas[kind].fd;
    if (!file_has(fd, bytes))
        return KVL_ERR_INVALID;
    mapping->arenas[kind].read = map_arena(fd, bytes, PROT_READ);
    mapping->arenas[kind].write = map_arena(fd, bytes, PROT_READ | PROT_WRITE);
    return mapping->arenas[kind].read && mapping->arenas[kind].write ? KVL_OK : KVL_ERR_NOMEM;
}

/* Takes the descriptor over. */
static kvl_err take_arena(struct kvl_mapping *mapping, const struct kvl_attach_reply *reply,
    uint32_t i, int *fd, struct kvl_errmsg *msg) {
    const uint32_t kind = reply->arenas[i].kind;
    if (mapping->arenas[kind].info.bytes != 0 || reply->arenas[i].bytes == 0)
        return KVL_ERR_INVALID;
    struct kvl_arena_info *info = &mapping->arenas[kind].info;
    info->memory = (enum kvl_arena_memory)reply->arenas[i].memory;
    info->bytes = reply->arenas[i].bytes;
    memcpy(info->device_uuid, reply->arenas[i].device_uuid, sizeof info->device_uuid);
    mapping->arenas[kind].fd = *fd;
    *fd = -1;
    switch (reply->arenas[i].memory) {
    case KVL_ARENA_MEMFD:
        return map_memfd(mapping, kind);
    case KVL_ARENA_CUDA:
        return KVL_OK;
    default:
        return kvl_fail(msg, KVL_ERR_UNSUPPORTED,
            "the daemon's %s tier is in memory of a kind (%u) that this library does not know; "
            "update the library",
            kind == KVL_TIER_DEVICE ? "device" : "host", reply->arenas[i].memory);
    }
}

static kvl_err map_all(struct kvl_mapping *mapping, const struct kvl_attach_reply *reply,
    struct received *received, struct kvl_errmsg *msg) {
    if (received->fd_count != reply->arena_count + 1)
        return KVL_ERR_INVALID;
    for (uint32_t i = 0; i < reply->arena_count; i++) {
        kvl_err err = take_arena(mapping, reply, i, &received->fds[i], msg);
        if (err != KVL_OK)
            return err;
    }
    int words_fd = received->fds[reply->arena_count];
    uint64_t bytes = (uint64_t)reply->ticket_words * sizeof(struct kvl_completion);
    if (!file_has(words_fd, bytes))
        return KVL_ERR_INVALID;
    mapping->word_count = reply->ticket_words;
    mapping->words = map(words_fd, bytes, PROT_READ);
    return mapping->words ? KVL_OK : KVL_ERR_NOMEM;
}

static kvl_err explain(struct kvl_client *client, kvl_err err, const struct kvl_attach_reply *reply,
    struct kvl_errmsg *msg) {
    if (err == KVL_ERR_VERSION)
        return kvl_fail(msg, err,
            "%s: the daemon speaks protocol version %u, this library %u; update the older one",
            client->address.text, reply->version, KVL_WIRE_VERSION);
    if (reply->status == KVL_ERR_PERM)
        return kvl_credentials_refused(client, msg);
    if (msg && msg->text[0]) /* said already */
        return err;
    return kvl_fail(msg, err, "%s: attach: %s", client->address.text, kvl_err_text(err));
}

kvl_err kvl_client_attach(
    struct kvl_client *client, struct kvl_mapping *mapping, struct kvl_errmsg *msg) {
    struct received received = {0};
    struct kvl_attach_reply reply = {0};
    if (msg)
        msg->text[0] = 0;
    kvl_err err = open_channel(client, &mapping->attach_fd, msg);
    if (err != KVL_OK)
        return err;
    err = exchange(client, mapping, &received, &reply, msg);
    if (err == KVL_OK)
        err = (kvl_err)reply.status;
    if (err == KVL_OK && !client->look_only)
        err = map_all(mapping, &reply, &received, msg);
    for (uint32_t i = 0; i < received.fd_count; i++)
        if (received.fds[i] >= 0)
            close(received.fds[i]);
    if (err != KVL_OK)
        return explain(client, err, &reply, msg);
    mapping->epoch = reply.epoch;
    client->number = reply.client;
    memcpy(client->token, reply.token, sizeof client->token);
    return KVL_OK;
}
