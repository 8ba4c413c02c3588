/* client.c - opening, losing, reconnecting and closing; the mapped arenas. */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "client_internal.h"
#include "clock.h"

kvl_err kvl_default_address(char *address, size_t address_bytes) {
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    int need;
    if (runtime && runtime[0] == '/')
        need = snprintf(address, address_bytes, "ipc://%s/kvloft/kvloft.sock", runtime);
    else
        need = snprintf(
            address, address_bytes, "ipc:///tmp/kvloft-%u/kvloft.sock", (unsigned)geteuid());
    return need >= 0 && (size_t)need < address_bytes ? KVL_OK : KVL_ERR_TOOBIG;
}

/* ---- hello -------------------------------------------------------------------------------- */

static void take_hello(void *context, const union kvl_wire_reply *reply) {
    *(struct kvl_wire_hello_reply *)context = reply->hello;
}

static kvl_err prove(
    struct kvl_client *client, struct kvl_wire_hello *hello, struct kvl_errmsg *msg) {
    memcpy(hello->tenant, client->tenant, sizeof hello->tenant);
    kvl_err err = kvl_credentials_nonce(hello->nonce, msg);
    return err == KVL_OK
               ? kvl_credentials_prove(client, KVL_PROVER_CLIENT, hello->nonce, hello->proof, msg)
               : err;
}

/* Over tcp the daemon must know the secret too. */
static kvl_err check_daemon(struct kvl_client *client, const struct kvl_wire_hello *hello,
    const struct kvl_wire_hello_reply *reply, struct kvl_errmsg *msg) {
    uint8_t proof[KVL_WIRE_PROOF_BYTES];
    kvl_err err = kvl_credentials_prove(client, KVL_PROVER_DAEMON, hello->nonce, proof, msg);
    if (err != KVL_OK)
        return err;
    if (!kvl_secret_equal(proof, reply->proof, sizeof proof))
        return kvl_fail(
            msg, KVL_ERR_PERM, "%s: the daemon has another secret", client->address.text);
    client->number = reply->client;
    memcpy(client->token, reply->token, sizeof client->token);
    kvl_client_current(client)->epoch = reply->epoch;
    return KVL_OK;
}

static kvl_err say_hello(struct kvl_client *client, struct kvl_errmsg *msg) {
    bool remote = client->address.transport == KVL_TRANSPORT_TCP;
    struct kvl_wire_hello hello = {.pid = (uint32_t)getpid()};
    struct kvl_wire_hello_reply reply = {0};
    memcpy(hello.name, client->name, sizeof hello.name);
    kvl_err err = remote ? prove(client, &hello, msg) : KVL_OK;
    if (err != KVL_OK)
        return err;
    err = kvl_call_run(client, KVL_VERB_HELLO, &hello, take_hello, &reply);
    if (err == KVL_ERR_VERSION)
        return kvl_fail(msg, err,
            "%s: the daemon speaks protocol version %u, this library %u; update the older one",
            client->address.text, client->refused_version, KVL_WIRE_VERSION);
    if (err == KVL_ERR_TIMEOUT && remote)
        return kvl_fail(msg, KVL_ERR_NOTFOUND, "%s: no daemon answers", client->address.text);
    if (err == KVL_ERR_PERM && remote && client->tenant[0])
        return kvl_credentials_refused(client, msg);
    if (err != KVL_OK)
        return kvl_fail(msg, err, "%s: hello: %s", client->address.text, kvl_err_text(err));
    return remote ? check_daemon(client, &hello, &reply, msg) : KVL_OK;
}

static struct kvl_mapping *new_mapping(void) {
    struct kvl_mapping *mapping = calloc(1, sizeof *mapping);
    if (!mapping)
        return NULL;
    mapping->attach_fd = -1;
    for (uint32_t i = 0; i < KVL_TIER_COUNT; i++)
        mapping->arenas[i].fd = -1;
    return mapping;
}

static kvl_err join(struct kvl_client *client, struct kvl_errmsg *msg) {
    kvl_err err = KVL_OK;
    client->number = 0;
    memset(client->token, 0, sizeof client->token);
    if (client->address.transport != KVL_TRANSPORT_TCP)
        err = kvl_client_attach(client, client->joining, msg);
    if (err == KVL_OK)
        err = kvl_client_connect(client, msg);
    return err == KVL_OK ? say_hello(client, msg) : err;
}

/* A mapping is seen by other threads once it is of use: of what failed nothing is left. */
static kvl_err establish(struct kvl_client *client, struct kvl_errmsg *msg) {
    struct kvl_mapping *mapping = new_mapping();
    if (!mapping)
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
    client->joining = mapping;
    kvl_err err = join(client, msg);
    if (err != KVL_OK)
        kvl_client_lose(client);
    client->joining = NULL;
    if (err != KVL_OK) {
        kvl_mapping_free(mapping);
        return err;
    }
    mapping->older = kvl_client_mapping(client);
    atomic_store_explicit(&client->mapping, mapping, memory_order_release);
    return KVL_OK;
}

/* ---- life --------------------------------------------------------------------------------- */

void kvl_client_set_timeout(struct kvl_client *client, uint32_t timeout_ms) {
    client->timeout_ms = timeout_ms == 0        ? KVL_CLIENT_TIMEOUT_MS
                         : timeout_ms > INT_MAX ? INT_MAX
                                                : timeout_ms;
}

uint64_t kvl_client_silence_ms(const struct kvl_client *client) {
    return client->queue != NULL ? (kvl_clock_ns() - client->queue->since_ns) / 1000000u : 0;
}

static kvl_err take_options(
    struct kvl_client *client, const struct kvl_client_options *options, struct kvl_errmsg *msg) {
    char address[sizeof client->address.text];
    const char *text = options->address;
    if (!text) {
        kvl_err err = kvl_default_address(address, sizeof address);
        if (err != KVL_OK)
            return kvl_fail(msg, err, "XDG_RUNTIME_DIR is too long for a socket path");
        text = address;
    }
    snprintf(client->name, sizeof client->name, "%s",
        options->name ? options->name : program_invocation_short_name);
    kvl_client_set_timeout(client, options->timeout_ms);
    client->look_only = options->look_only;
    kvl_err err = kvl_address_parse(text, &client->address, msg);
    if (err == KVL_OK)
        err = kvl_credentials_take(client, options, msg);
    return err;
}

static kvl_err open_descriptors(struct kvl_client *client, struct kvl_errmsg *msg) {
    client->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    client->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = client->timer_fd};
    if (client->epoll_fd < 0 || client->timer_fd < 0 ||
        epoll_ctl(client->epoll_fd, EPOLL_CTL_ADD, client->timer_fd, &event) != 0)
        return kvl_fail(msg, kvl_err_from_errno(errno), "epoll: %s", strerror(errno));
    return KVL_OK;
}

kvl_err kvl_client_open(
    const struct kvl_client_options *options, struct kvl_client **out, struct kvl_errmsg *msg) {
    *out = NULL;
    struct kvl_client *client = calloc(1, sizeof *client);
    if (!client)
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
    client->socket = client->receive_fd = client->send_fd = -1;
    client->epoll_fd = client->timer_fd = -1;
    client->queue_end = &client->queue;
    for (uint32_t i = 0; i < KVL_CLIENT_CALLS_MAX; i++) {
        client->calls[i].next = client->free_calls;
        client->free_calls = &client->calls[i];
    }
    kvl_err err = take_options(client, options, msg);
    if (err == KVL_OK)
        err = open_descriptors(client, msg);
    if (err == KVL_OK)
        err = establish(client, msg);
    if (err != KVL_OK) {
        kvl_client_close(client);
        return err;
    }
    *out = client;
    return KVL_OK;
}

void kvl_client_unmap_old(struct kvl_client *client) {
    struct kvl_mapping *mapping = kvl_client_mapping(client);
    while (mapping && mapping->older) {
        struct kvl_mapping *old = mapping->older;
        mapping->older = old->older;
        kvl_mapping_free(old);
    }
}

void kvl_client_close(struct kvl_client *client) {
    if (!client)
        return;
    kvl_client_lose(client);
    kvl_client_unmap_old(client);
    kvl_mapping_free(kvl_client_mapping(client));
    for (uint32_t i = 0; i < KVL_CLIENT_CALLS_MAX; i++)
        kvl_wire_buffer_free(&client->calls[i].request);
    const int fds[] = {client->epoll_fd, client->timer_fd};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    free(client);
}

kvl_err kvl_client_reconnect(struct kvl_client *client, struct kvl_errmsg *msg) {
    kvl_client_lose(client);
    return establish(client, msg);
}

void kvl_client_undo_reconnect(struct kvl_client *client) {
    struct kvl_mapping *mapping = kvl_client_mapping(client);
    kvl_client_lose(client);
    if (!mapping->older)
        return;
    atomic_store_explicit(&client->mapping, mapping->older, memory_order_release);
    kvl_mapping_free(mapping);
}

bool kvl_client_is_connected(struct kvl_client *client) {
    if (client->socket < 0)
        return false;
    struct pollfd poller = {
        .fd = kvl_client_mapping(client)->attach_fd, .events = POLLIN | POLLRDHUP};
    if (poll(&poller, 1, 0) == 1)
        kvl_client_dispatch(client); /* loses it, with all that goes with it */
    return client->socket >= 0;
}

uint64_t kvl_client_epoch(const struct kvl_client *client) {
    return kvl_client_mapping(client)->epoch;
}

int kvl_client_fd(const struct kvl_client *client) {
    return client->epoll_fd;
}

/* ---- memory ------------------------------------------------------------------------------- */

uint64_t kvl_client_arena_bytes(const struct kvl_client *client, enum kvl_tier_kind tier) {
    return (unsigned)tier < KVL_TIER_COUNT ? kvl_client_mapping(client)->arenas[tier].info.bytes
                                           : 0;
}

kvl_err kvl_client_arena(const struct kvl_client *client, enum kvl_tier_kind tier,
    struct kvl_arena_info *info, int *fd) {
    *info = (struct kvl_arena_info){0};
    *fd = -1;
    if (kvl_client_arena_bytes(client, tier) == 0)
        return KVL_ERR_NOTFOUND;
    *info = kvl_client_mapping(client)->arenas[tier].info;
    *fd = kvl_client_mapping(client)->arenas[tier].fd;
    return *fd >= 0 ? KVL_OK : KVL_ERR_CLOSED;
}

static uint8_t *slot(uint8_t *base, uint64_t arena_bytes, uint64_t offset_bytes) {
    return base && offset_bytes < arena_bytes ? base + offset_bytes : NULL;
}

const uint8_t *kvl_client_block(
    const struct kvl_client *client, enum kvl_tier_kind tier, uint64_t offset_bytes) {
    uint64_t bytes = kvl_client_arena_bytes(client, tier); /* 0 for what is no tier */
    return bytes == 0 ? NULL
                      : slot(kvl_client_mapping(client)->arenas[tier].read, bytes, offset_bytes);
}

uint8_t *kvl_client_block_writable(
    const struct kvl_client *client, enum kvl_tier_kind tier, uint64_t offset_bytes) {
    uint64_t bytes = kvl_client_arena_bytes(client, tier);
    return bytes == 0 ? NULL
                      : slot(kvl_client_mapping(client)->arenas[tier].write, bytes, offset_bytes);
}
