/* requests.c - from a nanomsg message to its reply: checked, executed once, answered or held.
 *
 * A request is known by its client's token and its sequence number. The same number again gets
 * the kept reply; a lower one is answered STALE (its client has moved on). Replies that cannot be
 * delivered are dropped by nanomsg; the client will ask again. */
#include "server_internal.h"

#include <errno.h>
#include <nanomsg/nn.h>
#include <string.h>

#include "clock.h"

#define MESSAGES_PER_WAKE 32 /* then tiers and attach connections get their turn */

/* ---- sending ------------------------------------------------------------------------------ */

static void send_reply(
    struct kvl_server *server, const struct kvl_wire_buffer *reply, const struct kvl_route *route) {
    struct kvl_route echo = *route;
    struct nn_iovec part = {.iov_base = reply->data, .iov_len = reply->bytes};
    struct nn_msghdr message = {.msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = echo.control,
        .msg_controllen = echo.bytes};
    if (nn_sendmsg(server->socket, &message, NN_DONTWAIT) < 0)
        KVL_DEBUG(server->log, "event=reply_unsent reason=\"%s\"", nn_strerror(nn_errno()));
}

/* To somebody who has no reply buffer: unknown, of another version, or not to be remembered. */
static void send_status(struct kvl_server *server, const struct kvl_wire_header *request,
    const struct kvl_route *route, kvl_err status) {
    struct kvl_wire_header header = {.version = KVL_WIRE_VERSION,
        .verb = request->verb,
        .status = (uint32_t)status,
        .client = request->client,
        .epoch = kvl_store_epoch(server->store),
        .sequence = request->sequence};
    if (kvl_wire_encode(&server->anonymous_reply, &header, NULL, NULL) == KVL_OK)
        send_reply(server, &server->anonymous_reply, route);
}

/* ---- hello over tcp: the only request that makes a client ---------------------------------- */

static kvl_err remote_client(
    struct kvl_server *server, const struct kvl_wire_hello *hello, struct kvl_server_client **out) {
    uint8_t proof[KVL_WIRE_PROOF_BYTES];
    struct kvl_client_info info = {.pid = hello->pid, .uid = UINT32_MAX};
    kvl_err err = kvl_secret_proof(
        kvl_door_secret(server, hello->tenant), KVL_PROVER_CLIENT, hello->nonce, proof);
    if (err != KVL_OK)
        return KVL_ERR_PERM;
    if (!kvl_secret_equal(proof, hello->proof, sizeof proof))
        return KVL_ERR_PERM;
    *out = kvl_clients_find_nonce(server, hello->nonce);
    if (*out) /* another tenant's nonce may have been seen on the network */
        return strcmp((*out)->tenant, hello->tenant) == 0 ? KVL_OK : KVL_ERR_PERM;
    err = kvl_door_admit(server, hello->tenant, &info);
    if (err != KVL_OK)
        return err;
    kvl_clients_expire_remote(server, kvl_clock_ns(), 1);
    memcpy(info.name, hello->name, sizeof info.name);
    err = kvl_clients_open(
        server, &info, hello->tenant, (struct kvl_client_proof){.attach_fd = -1, .pidfd = -1}, out);
    if (err == KVL_OK)
        memcpy((*out)->nonce, hello->nonce, sizeof hello->nonce);
    return err;
}

static void remote_hello(struct kvl_server *server, const struct kvl_wire_header *header,
    const uint8_t *body, const struct kvl_route *route) {
    struct kvl_wire_hello hello = {0};
    struct kvl_server_client *client = NULL;
    kvl_err err = kvl_wire_decode(kvl_wire_hello, body, header->body_bytes, &hello);
    if (err == KVL_OK)
        err = remote_client(server, &hello, &client);
    struct kvl_wire_hello_reply reply = {.epoch = kvl_store_epoch(server->store)};
    if (err == KVL_OK)
        err = kvl_secret_proof(
            kvl_door_secret(server, hello.tenant), KVL_PROVER_DAEMON, hello.nonce, reply.proof);
    if (err != KVL_OK) {
        send_status(server, header, route, err);
        return;
    }
    reply.client = client->number;
    memcpy(reply.token, client->token, sizeof reply.token);
    struct kvl_wire_header out = {.version = KVL_WIRE_VERSION,
        .verb = header->verb,
        .epoch = reply.epoch,
        .sequence = header->sequence};
    if (kvl_wire_encode(&server->anonymous_reply, &out, kvl_wire_hello_reply, &reply) == KVL_OK)
        send_reply(server, &server->anonymous_reply, route);
}

/* ---- executing ---------------------------------------------------------------------------- */

static kvl_err call_verb(struct kvl_server *server, struct kvl_server_client *client,
    const struct kvl_wire_header *header, const uint8_t *body, union kvl_wire_reply *reply) {
    const struct kvl_wire_verb *verb = kvl_wire_verb(header->verb);
    kvl_verb_fn function = kvl_verb_function(header->verb);
    if (!verb || !function)
        return KVL_ERR_UNSUPPORTED;
    union kvl_wire_request request;
    memset(&request, 0, sizeof request);
    kvl_err err = kvl_wire_decode(verb->request, body, header->body_bytes, &request);
    if (err != KVL_OK)
        return err;
    if ((verb->flags & KVL_WIRE_LEASING) && !client->attached)
        return KVL_ERR_PERM;
    err = kvl_door_in(server, client, header->verb, &request);
    if (err != KVL_OK)
        return err;
    err = function(server, client, &request, reply);
    kvl_door_out(server, client, header->verb, reply);
    return err;
}

static void execute_new(struct kvl_server *server, struct kvl_server_client *client,
    const struct kvl_wire_header *header, const uint8_t *body, const struct kvl_route *route) {
    client->sequence = header->sequence;
    client->reply.bytes = 0;
    union kvl_wire_reply reply;
    memset(&reply, 0, sizeof reply);
    kvl_err status = call_verb(server, client, header, body, &reply);
    const struct kvl_wire_verb *verb = kvl_wire_verb(header->verb);
    if (status == KVL_ERR_AGAIN) { /* nothing was done: not remembered, the client asks again */
        send_status(server, header, route, status);
        return;
    }
    bool with_body = verb && (status == KVL_OK || (verb->flags & KVL_WIRE_BODY_ON_ERROR));
    struct kvl_wire_header out = {.version = KVL_WIRE_VERSION,
        .verb = header->verb,
        .status = (uint32_t)status,
        .client = client->number,
        .epoch = kvl_store_epoch(server->store),
        .sequence = header->sequence};
    if (client->reply.capacity > KVL_SERVER_REPLY_KEEP_BYTES)
        kvl_wire_buffer_free(&client->reply);
    kvl_err err = kvl_wire_encode(&client->reply, &out, with_body ? verb->reply : NULL, &reply);
    if (err != KVL_OK) { /* what was leased comes back when the client ends */
        send_status(server, header, route, err);
        return;
    }
    send_reply(server, &client->reply, route);
}

/* ---- holding back while the store loads ---------------------------------------------------- */

/* True when the message was kept and is not the caller's any more. */
static bool hold(
    struct kvl_server *server, struct kvl_server_client *client, const struct kvl_held *request) {
    kvl_clients_drop_held(server, client);
    if (server->held_count >= KVL_SERVER_HELD_MAX ||
        server->held_bytes + request->bytes > KVL_SERVER_HELD_BYTES_MAX)
        return false;
    client->held = *request;
    server->held_count++;
    server->held_bytes += request->bytes;
    return true;
}

/* Whether the store knows of what the request names all that there is to know. What is wrong with a
 * request is said by its execution. */
static bool is_sought(struct kvl_server *server, struct kvl_server_client *client,
    const struct kvl_wire_header *header, const uint8_t *body, struct kvl_seek *seek) {
    union kvl_wire_request request;
    if (kvl_store_seek_waits(server->store, seek))
        return false;
    memset(&request, 0, sizeof request);
    if (kvl_wire_decode(kvl_wire_verb(header->verb)->request, body, header->body_bytes, &request) !=
            KVL_OK ||
        kvl_door_in(server, client, header->verb, &request) != KVL_OK)
        return true;
    if (header->verb == KVL_VERB_NAMESPACE_OPEN)
        return kvl_store_is_checked(server->store) ||
               kvl_store_namespace_is_known(server->store, &request.namespace_open.key);
    if (header->verb == KVL_VERB_SEAL)
        return kvl_store_seek(server->store, server->scratch,
            kvl_verb_seal_keys(server, client, &request.seals, server->scratch), seek);
    bool each = header->verb == KVL_VERB_ALLOC || header->verb == KVL_VERB_PIN;
    seek->leading = !each && (header->verb != KVL_VERB_LOOKUP || !request.chain.flag);
    return kvl_store_seek(server->store, request.chain.keys, request.chain.count, seek);
}

static bool must_wait(struct kvl_server *server, struct kvl_server_client *client,
    const struct kvl_wire_header *header, const uint8_t *body, struct kvl_seek *seek) {
    if (server->loaded)
        return false;
    const struct kvl_wire_verb *verb = kvl_wire_verb(header->verb);
    server->loaded = kvl_store_is_loaded(server->store);
    if (server->loaded || !verb || (verb->flags & KVL_WIRE_EARLY))
        return false;
    if (!(verb->flags & (KVL_WIRE_SOUGHT | KVL_WIRE_CHECKED)) ||
        ((verb->flags & KVL_WIRE_CHECKED) && !kvl_store_is_checked(server->store)))
        return true;
    return (verb->flags & KVL_WIRE_SOUGHT) && !is_sought(server, client, header, body, seek);
}

static void try_held(struct kvl_server *server, struct kvl_server_client *client) {
    struct kvl_held *held = &client->held;
    const uint8_t *body = (const uint8_t *)held->message + KVL_WIRE_HEADER_BYTES;
    struct kvl_wire_header header;
    bool is_whole = kvl_wire_decode_header(held->message, held->bytes, &header) == KVL_OK;
    if (is_whole && must_wait(server, client, &header, body, &held->seek))
        return;
    if (is_whole)
        execute_new(server, client, &header, body, &held->route);
    kvl_clients_drop_held(server, client);
}

void kvl_requests_release_held(struct kvl_server *server) {
    if (server->held_count == 0 || server->seek_news == kvl_store_seek_news(server->store))
        return;
    server->seek_news = kvl_store_seek_news(server->store);
    for (uint32_t i = 0; i < KVL_SERVER_CLIENTS_MAX && server->held_count != 0; i++) {
        if (server->clients[i].held.message)
            try_held(server, &server->clients[i]);
    }
}

/* ---- receiving ---------------------------------------------------------------------------- */

/* Returns true when it kept the message. */
static bool take_up(struct kvl_server *server, struct kvl_server_client *client,
    const struct kvl_wire_header *header, void *message, uint32_t bytes,
    const struct kvl_route *route) {
    client->seen_ns = client->remote ? kvl_clock_ns() : 0;
    if (header->sequence < client->sequence) {
        send_status(server, header, route, KVL_ERR_STALE);
        return false;
    }
    if (header->sequence == client->sequence && !client->held.message && client->reply.bytes != 0) {
        send_reply(server, &client->reply, route);
        return false;
    }
    const uint8_t *body = (const uint8_t *)message + KVL_WIRE_HEADER_BYTES;
    struct kvl_held request = {
        .message = message, .bytes = bytes, .route = *route, .sequence = header->sequence};
    if (client->held.message && client->held.sequence == header->sequence)
        request.seek = client->held.seek; /* asked again: it goes on */
    if (must_wait(server, client, header, body, &request.seek)) {
        bool held = hold(server, client, &request);
        if (!held)
            send_status(server, header, route, KVL_ERR_AGAIN); /* not remembered: ask again */
        return held;
    }
    kvl_clients_drop_held(server, client);
    execute_new(server, client, header, body, route);
    return false;
}

static bool handle(
    struct kvl_server *server, void *message, uint32_t bytes, const struct kvl_route *route) {
    struct kvl_wire_header header;
    kvl_err err = kvl_wire_decode_header(message, bytes, &header);
    if (err != KVL_OK) {
        send_status(server, &header, route, err);
        return false;
    }
    const uint8_t *body = (const uint8_t *)message + KVL_WIRE_HEADER_BYTES;
    if (header.verb == KVL_VERB_HELLO && server->address.transport == KVL_TRANSPORT_TCP) {
        remote_hello(server, &header, body, route);
        return false;
    }
    if (header.epoch != kvl_store_epoch(server->store)) {
        send_status(server, &header, route, KVL_ERR_STALE);
        return false;
    }
    struct kvl_server_client *client = kvl_clients_find(server, header.client, header.token);
    if (!client) { /* over tcp it may have idled too long: CLOSED makes it say hello again */
        bool remote = server->address.transport == KVL_TRANSPORT_TCP;
        send_status(server, &header, route, remote ? KVL_ERR_CLOSED : KVL_ERR_PERM);
        return false;
    }
    return take_up(server, client, &header, message, bytes, route);
}

/* False when nothing was there. */
static bool receive_one(struct kvl_server *server) {
    struct kvl_route route = {0};
    void *message = NULL;
    struct nn_iovec part = {.iov_base = &message, .iov_len = NN_MSG};
    struct nn_msghdr header = {.msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = route.control,
        .msg_controllen = sizeof route.control};
    int bytes = nn_recvmsg(server->socket, &header, NN_DONTWAIT);
    if (bytes < 0)
        return false;
    struct nn_cmsghdr first;
    memcpy(&first, route.control, sizeof first);
    /* a routing header too long for us leaves it zero: nobody to answer */
    bool routed = first.cmsg_level == PROTO_SP && first.cmsg_type == SP_HDR &&
                  first.cmsg_len <= sizeof route.control;
    route.bytes = routed ? (uint32_t)first.cmsg_len : 0;
    if (!routed || !handle(server, message, (uint32_t)bytes, &route))
        nn_freemsg(message);
    return true;
}

void kvl_requests_receive(struct kvl_server *server, struct kvl_source *source) {
    (void)source;
    for (uint32_t i = 0; i < MESSAGES_PER_WAKE && receive_one(server); i++)
        ;
}
