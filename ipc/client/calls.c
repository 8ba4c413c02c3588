/* calls.c - requests on their way: queued, sent, repeated, answered, given up. */
#include <errno.h>
#include <nanomsg/nn.h>
#include <nanomsg/reqrep.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "client_internal.h"
#include "clock.h"

#define NS_PER_MS 1000000u

struct kvl_mapping *kvl_client_mapping(const struct kvl_client *client) {
    return atomic_load_explicit(&client->mapping, memory_order_acquire);
}

struct kvl_mapping *kvl_client_current(const struct kvl_client *client) {
    return client->joining ? client->joining : kvl_client_mapping(client);
}

static int attach_fd(const struct kvl_client *client) {
    const struct kvl_mapping *mapping = kvl_client_current(client);
    return mapping ? mapping->attach_fd : -1;
}

/* ---- connection --------------------------------------------------------------------------- */

static void epoll_change(struct kvl_client *client, int op, int fd) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.fd = fd};
    (void)epoll_ctl(client->epoll_fd, op, fd, &event); /* fails only for what is not there */
}

kvl_err kvl_client_connect(struct kvl_client *client, struct kvl_errmsg *msg) {
    int max_bytes = KVL_WIRE_MESSAGE_BYTES_MAX + 4096;
    int buffer_bytes = 1 << 20; /* a large request leaves in one go */
    size_t fd_bytes = sizeof client->receive_fd;
    client->socket = nn_socket(AF_SP_RAW, NN_REQ);
    if (client->socket < 0)
        return kvl_fail(msg, KVL_ERR_NOMEM, "nanomsg socket: %s", nn_strerror(nn_errno()));
    if (nn_setsockopt(client->socket, NN_SOL_SOCKET, NN_RCVMAXSIZE, &max_bytes, sizeof max_bytes) !=
            0 ||
        nn_setsockopt(
            client->socket, NN_SOL_SOCKET, NN_SNDBUF, &buffer_bytes, sizeof buffer_bytes) != 0 ||
        nn_getsockopt(client->socket, NN_SOL_SOCKET, NN_RCVFD, &client->receive_fd, &fd_bytes) !=
            0 ||
        nn_getsockopt(client->socket, NN_SOL_SOCKET, NN_SNDFD, &client->send_fd, &fd_bytes) != 0 ||
        nn_connect(client->socket, client->address.text) < 0) {
        kvl_err err =
            kvl_fail(msg, KVL_ERR_INVALID, "%s: %s", client->address.text, nn_strerror(nn_errno()));
        kvl_client_disconnect(client);
        return err;
    }
    epoll_change(client, EPOLL_CTL_ADD, client->receive_fd);
    if (attach_fd(client) >= 0)
        epoll_change(client, EPOLL_CTL_ADD, attach_fd(client));
    return KVL_OK;
}

void kvl_client_disconnect(struct kvl_client *client) {
    if (client->socket < 0)
        return;
    epoll_change(client, EPOLL_CTL_DEL, client->receive_fd);
    if (client->waiting_for_send_fd)
        epoll_change(client, EPOLL_CTL_DEL, client->send_fd);
    if (attach_fd(client) >= 0)
        epoll_change(client, EPOLL_CTL_DEL, attach_fd(client));
    nn_close(client->socket);
    client->waiting_for_send_fd = false;
    client->socket = client->receive_fd = client->send_fd = -1;
}

/* ---- the queue ---------------------------------------------------------------------------- */

static struct kvl_call *queue_pop(struct kvl_client *client) {
    struct kvl_call *call = client->queue;
    client->queue = call->next;
    if (!client->queue)
        client->queue_end = &client->queue;
    return call;
}

static void call_free(struct kvl_client *client, struct kvl_call *call) {
    if (call->request.capacity > KVL_CLIENT_REQUEST_KEEP_BYTES)
        kvl_wire_buffer_free(&call->request);
    call->next = client->free_calls;
    client->free_calls = call;
}

/* Frees the call before its callback runs, which may submit another one. */
static void call_end(struct kvl_client *client, struct kvl_call *call, kvl_err err,
    const union kvl_wire_reply *reply) {
    kvl_call_done done = call->done;
    kvl_plain_done plain = call->plain;
    void *context = call->context;
    call_free(client, call);
    if (done)
        done(client, context, err, reply);
    if (plain)
        plain(context, err);
}

/* A GPU's memory is free for the next daemon only when no descriptor of it is open. A memfd's costs
 * nothing beside its mappings. */
static void close_gpu_descriptors(struct kvl_mapping *mapping) {
    for (uint32_t i = 0; i < KVL_TIER_COUNT; i++) {
        if (mapping->arenas[i].info.memory != KVL_ARENA_CUDA || mapping->arenas[i].fd < 0)
            continue;
        close(mapping->arenas[i].fd);
        mapping->arenas[i].fd = -1;
    }
}

void kvl_client_lose(struct kvl_client *client) {
    struct kvl_mapping *mapping = kvl_client_current(client);
    if (mapping) {
        atomic_store(&mapping->lost, true);
        close_gpu_descriptors(mapping);
    }
    kvl_client_disconnect(client);
    while (client->queue)
        call_end(client, queue_pop(client), KVL_ERR_CLOSED, NULL);
}

/* ---- sending ------------------------------------------------------------------------------ */

static uint64_t repeat_ns(const struct kvl_client *client) {
    uint64_t ms = client->timeout_ms / 10;
    ms = ms < 20 ? 20 : ms > KVL_CLIENT_REPEAT_MS_MAX ? KVL_CLIENT_REPEAT_MS_MAX : ms;
    return ms * NS_PER_MS;
}

static void watch_send_fd(struct kvl_client *client, bool watch) {
    if (watch == client->waiting_for_send_fd)
        return;
    epoll_change(client, watch ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, client->send_fd);
    client->waiting_for_send_fd = watch;
}

/* Routing header of a raw request: its length, and a request id with the top bit set. */
static int send_message(struct kvl_client *client, const struct kvl_call *call) {
    uint32_t id = (uint32_t)call->sequence | 0x80000000u;
    const uint8_t id_bytes[4] = {
        (uint8_t)(id >> 24), (uint8_t)(id >> 16), (uint8_t)(id >> 8), (uint8_t)id};
    const size_t id_length = sizeof id_bytes;
    _Alignas(struct nn_cmsghdr) uint8_t control[NN_CMSG_SPACE(sizeof(size_t) + 4)] = {0};
    struct nn_cmsghdr header = {.cmsg_len = NN_CMSG_SPACE(sizeof(size_t) + sizeof id_bytes),
        .cmsg_level = PROTO_SP,
        .cmsg_type = SP_HDR};
    memcpy(control, &header, sizeof header);
    memcpy(control + sizeof header, &id_length, sizeof id_length);
    memcpy(control + sizeof header + sizeof id_length, id_bytes, sizeof id_bytes);
    struct nn_iovec part = {.iov_base = call->request.data, .iov_len = call->request.bytes};
    struct nn_msghdr message = {.msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = control,
        .msg_controllen = sizeof control};
    return nn_sendmsg(client->socket, &message, NN_DONTWAIT);
}

/* Sends the head of the queue when it is due. */
static void send_due(struct kvl_client *client, uint64_t now_ns) {
    struct kvl_call *call = client->queue;
    if (!call || client->socket < 0 || (call->sent && now_ns < call->repeat_ns)) {
        if (client->waiting_for_send_fd)
            watch_send_fd(client, false);
        return;
    }
    if (send_message(client, call) < 0) {
        watch_send_fd(client, true);
        call->repeat_ns = now_ns + repeat_ns(client);
        return;
    }
    watch_send_fd(client, false);
    call->sent = true;
    call->repeat_ns = now_ns + repeat_ns(client);
}

/* ---- receiving ---------------------------------------------------------------------------- */

/* The caller has gone; what it would have had to release is released for it. */
static void end_abandoned(struct kvl_client *client, struct kvl_call *call, kvl_err err,
    const union kvl_wire_reply *reply) {
    uint16_t verb = call->verb;
    call_free(client, call);
    if (err == KVL_OK)
        kvl_late_reply(client, verb, reply);
}

static void answer(
    struct kvl_client *client, const struct kvl_wire_header *header, const uint8_t *body) {
    struct kvl_call *call = client->queue;
    const struct kvl_wire_verb *verb = kvl_wire_verb(call->verb);
    union kvl_wire_reply reply;
    memset(&reply, 0, sizeof reply);
    kvl_err err = (kvl_err)header->status;
    bool has_body = err == KVL_OK || header->body_bytes != 0;
    kvl_err decoded =
        has_body ? kvl_wire_decode(verb->reply, body, header->body_bytes, &reply) : KVL_OK;
    if (decoded != KVL_OK)
        err = decoded;
    queue_pop(client);
    if (call->abandoned)
        end_abandoned(client, call, err, &reply);
    else
        call_end(client, call, err, has_body && decoded == KVL_OK ? &reply : NULL);
}

static void handle_reply(struct kvl_client *client, const uint8_t *data, uint64_t bytes) {
    struct kvl_wire_header header;
    kvl_err err = kvl_wire_decode_header(data, bytes, &header);
    struct kvl_call *call = client->queue;
    if (!call || !call->sent)
        return; /* a late repeat of something answered */
    if (err == KVL_ERR_VERSION) {
        client->refused_version = header.version;
        call_end(client, queue_pop(client), KVL_ERR_VERSION, NULL);
        return;
    }
    if (err != KVL_OK || header.sequence != call->sequence || header.verb != call->verb)
        return;
    bool anonymous = header.status == KVL_ERR_STALE || header.status == KVL_ERR_PERM;
    const struct kvl_mapping *mapping = kvl_client_current(client);
    bool other_daemon = anonymous && mapping->epoch != 0 && header.epoch != mapping->epoch;
    if (other_daemon || header.status == KVL_ERR_CLOSED) { /* or it has forgotten us */
        kvl_client_lose(client);
        return;
    }
    if (header.status == KVL_ERR_AGAIN && header.body_bytes == 0 && !call->abandoned) {
        call->repeat_ns = kvl_clock_ns() + KVL_CLIENT_AGAIN_MS * NS_PER_MS;
        return;
    }
    answer(client, &header, data + KVL_WIRE_HEADER_BYTES);
}

static void receive_all(struct kvl_client *client) {
    while (client->socket >= 0) {
        void *data = NULL;
        int bytes = nn_recv(client->socket, &data, NN_MSG, NN_DONTWAIT);
        if (bytes < 0)
            return;
        handle_reply(client, data, (uint64_t)bytes);
        nn_freemsg(data);
    }
}

/* ---- time --------------------------------------------------------------------------------- */

/* Tells the callers whose time is up. The call in flight stays there, abandoned. */
static void expire(struct kvl_client *client, uint64_t now_ns) {
    struct kvl_call **link = &client->queue;
    while (*link) {
        struct kvl_call *call = *link;
        if (now_ns < call->deadline_ns || call->abandoned) {
            link = &call->next;
            continue;
        }
        struct kvl_call ended = *call;
        if (call->sent) {
            call->abandoned = true;
            call->done = NULL;
            call->plain = NULL;
        } else {
            *link = call->next;
            if (client->queue_end == &call->next)
                client->queue_end = link;
            call_free(client, call);
        }
        if (ended.done)
            ended.done(client, ended.context, KVL_ERR_TIMEOUT, NULL);
        if (ended.plain)
            ended.plain(ended.context, KVL_ERR_TIMEOUT);
        link = &client->queue; /* the callback may have changed the queue */
    }
}

/* When something has to happen next; UINT64_MAX: never. */
static uint64_t next_event_ns(const struct kvl_client *client) {
    uint64_t next = UINT64_MAX;
    for (const struct kvl_call *call = client->queue; call; call = call->next) {
        if (!call->abandoned && call->deadline_ns < next)
            next = call->deadline_ns;
        if (call == client->queue && call->sent && call->repeat_ns < next)
            next = call->repeat_ns;
    }
    return next;
}

/* The timer may be set earlier than needed, never later: so it is seldom set at all. */
static void arm_timer(struct kvl_client *client) {
    uint64_t next = next_event_ns(client);
    if (next == UINT64_MAX || (client->timer_ns != 0 && client->timer_ns <= next))
        return;
    struct itimerspec when = {.it_value = {.tv_sec = (time_t)(next / 1000000000u),
                                  .tv_nsec = (long)(next % 1000000000u)}};
    if (timerfd_settime(client->timer_fd, TFD_TIMER_ABSTIME, &when, NULL) == 0)
        client->timer_ns = next;
}

static void drain_timer(struct kvl_client *client) {
    uint64_t count;
    if (client->timer_ns != 0 && read(client->timer_fd, &count, sizeof count) > 0)
        client->timer_ns = 0;
}

/* ---- pumping ------------------------------------------------------------------------------ */

/* Waits up to until_ns (0: not at all) for something to happen, and handles it. */
static void pump(struct kvl_client *client, uint64_t until_ns) {
    uint64_t next = next_event_ns(client);
    uint64_t now_ns = kvl_clock_ns();
    until_ns = next < until_ns ? next : until_ns;
    int wait_ms = until_ns > now_ns ? (int)((until_ns - now_ns) / NS_PER_MS + 1) : 0;
    struct pollfd fds[3] = {{.fd = client->receive_fd, .events = POLLIN},
        {.fd = attach_fd(client), .events = POLLIN | POLLRDHUP},
        {.fd = client->waiting_for_send_fd ? client->send_fd : -1, .events = POLLIN}};
    if (poll(fds, 3, wait_ms) < 0)
        return; /* EINTR: the caller comes again */
    if (fds[0].revents)
        receive_all(client);
    if (fds[1].revents && client->socket >= 0) {
        receive_all(client); /* what it answered before it died */
        kvl_client_lose(client);
    }
    if (wait_ms != 0)
        now_ns = kvl_clock_ns();
    expire(client, now_ns);
    send_due(client, now_ns);
}

void kvl_client_dispatch(struct kvl_client *client) {
    drain_timer(client);
    if (client->socket >= 0)
        pump(client, 0);
    arm_timer(client);
}

kvl_err kvl_client_drain(struct kvl_client *client) {
    uint64_t deadline_ns = kvl_clock_ns() + (uint64_t)client->timeout_ms * NS_PER_MS;
    while (client->queue) {
        if (kvl_clock_ns() >= deadline_ns)
            return KVL_ERR_TIMEOUT;
        pump(client, deadline_ns);
    }
    return KVL_OK;
}

/* ---- calls -------------------------------------------------------------------------------- */

struct sync_call {
    bool done;
    kvl_err err;
    void (*take)(void *context, const union kvl_wire_reply *reply);
    void *context;
};

static void sync_done(
    struct kvl_client *client, void *context, kvl_err err, const union kvl_wire_reply *reply) {
    (void)client;
    struct sync_call *sync = context;
    sync->done = true;
    sync->err = err;
    if (reply && sync->take)
        sync->take(sync->context, reply);
}

struct ending {
    kvl_call_done done;
    kvl_plain_done plain;
    void *context;
};

static kvl_err submit(
    struct kvl_client *client, uint16_t verb, void *request, struct ending ending) {
    const struct kvl_mapping *mapping = kvl_client_current(client);
    if (client->socket < 0)
        return KVL_ERR_CLOSED;
    struct kvl_call *call = client->free_calls;
    if (!call)
        return KVL_ERR_AGAIN;
    struct kvl_wire_header header = {.version = KVL_WIRE_VERSION,
        .verb = verb,
        .client = client->number,
        .epoch = mapping->epoch,
        .sequence = client->sequence + 1};
    memcpy(header.token, client->token, sizeof header.token);
    kvl_err err = kvl_wire_encode(&call->request, &header, kvl_wire_verb(verb)->request, request);
    if (err != KVL_OK)
        return err;
    client->free_calls = call->next;
    client->sequence++;
    uint64_t now_ns = kvl_clock_ns();
    call->next = NULL;
    call->verb = verb;
    call->sent = call->abandoned = false;
    call->sequence = header.sequence;
    call->since_ns = now_ns;
    call->deadline_ns = now_ns + (uint64_t)client->timeout_ms * NS_PER_MS;
    call->done = ending.done;
    call->plain = ending.plain;
    call->context = ending.context;
    *client->queue_end = call;
    client->queue_end = &call->next;
    if (client->queue == call)
        send_due(client, now_ns);
    if (ending.done != sync_done) /* a synchronous call looks at the clock itself */
        arm_timer(client);
    return KVL_OK;
}

kvl_err kvl_call_submit(
    struct kvl_client *client, uint16_t verb, void *request, kvl_call_done done, void *context) {
    return submit(client, verb, request, (struct ending){.done = done, .context = context});
}

kvl_err kvl_call_submit_plain(
    struct kvl_client *client, uint16_t verb, void *request, kvl_plain_done done, void *arg) {
    return submit(client, verb, request, (struct ending){.plain = done, .context = arg});
}

kvl_err kvl_call_run(struct kvl_client *client, uint16_t verb, void *request,
    void (*take)(void *context, const union kvl_wire_reply *reply), void *context) {
    struct sync_call sync = {.take = take, .context = context};
    uint64_t deadline_ns = kvl_clock_ns() + (uint64_t)client->timeout_ms * NS_PER_MS;
    kvl_err err;
    while ((err = kvl_call_submit(client, verb, request, sync_done, &sync)) ==
           KVL_ERR_AGAIN) { /* asynchronous calls fill the queue: they go first */
        if (kvl_clock_ns() >= deadline_ns)
            return KVL_ERR_TIMEOUT;
        pump(client, deadline_ns);
    }
    if (err != KVL_OK)
        return err;
    while (!sync.done)
        pump(client, UINT64_MAX);
    if (client->queue)
        arm_timer(client);
    return sync.err;
}
