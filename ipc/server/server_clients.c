/* server_clients.c - who is connected, with which token; and the end of each of them.
 *
 * A lease ends by release, by goodbye, or by its owner's proven death. End of file on the attach
 * socket proves nothing: a dying process closes its descriptors last opened first, so this one
 * before those of a GPU, whose kernels may write on until the driver has torn them down; and a
 * process may close it and live. What proves it is the pidfd, which is ready once all descriptors
 * are gone. Between the two a client is leaving.
 *
 * On the wire a client's number is its slot and how often that slot was used, so that a number is
 * not soon used again. */
#include "server_internal.h"

#include <errno.h>
#include <nanomsg/nn.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "clock.h"
#include "planted.h"

static bool is_readable(int fd) {
    struct pollfd poller = {.fd = fd, .events = POLLIN};
    return poll(&poller, 1, 0) == 1 && (poller.revents & (POLLIN | POLLHUP)) != 0;
}

/* Without a pidfd the end of its connection has to do. */
static void leave(struct kvl_server *server, struct kvl_server_client *client) {
    if (client->pidfd.fd < 0 || !kvl_store_client_leave(server->store, client->store_client)) {
        kvl_clients_close(server, client);
        return;
    }
    KVL_INFO(server->log, "event=leave client=%u pid=%u name=\"%s\"", client->number, client->pid,
        client->name);
    client->leaving = true;
    kvl_clients_drop_held(server, client);
    kvl_server_unwatch(server, &client->attach);
}

static void on_attached(struct kvl_server *server, struct kvl_source *source) {
    struct kvl_server_client *client = kvl_container_of(source, struct kvl_server_client, attach);
    uint8_t data[KVL_GOODBYE_BYTES];
    ssize_t got = recv(source->fd, data, sizeof data, MSG_DONTWAIT | MSG_TRUNC);
    if (got < 0 && (errno == EAGAIN || errno == EINTR || errno == ECONNRESET))
        return; /* reset: it left our reply unread; what it said itself comes next */
    if (got > 0 && kvl_attach_is_goodbye(data, (uint64_t)got)) {
        kvl_clients_close(server, client);
        return;
    }
    if (got > 0)
        KVL_WARN(server->log, "event=attach_breach client=%u pid=%u", client->number, client->pid);
    leave(server, client);
}

static void on_pidfd(struct kvl_server *server, struct kvl_source *source) {
    struct kvl_server_client *client = kvl_container_of(source, struct kvl_server_client, pidfd);
    if (is_readable(source->fd)) /* the event may be of the slot's former owner */
        kvl_clients_close(server, client);
}

static struct kvl_server_client *free_slot(struct kvl_server *server) {
    for (uint32_t i = 0; i < KVL_SERVER_CLIENTS_MAX; i++)
        if (!server->clients[i].used)
            return &server->clients[i];
    return NULL;
}

static kvl_err watch_proof(
    struct kvl_server *server, struct kvl_server_client *client, struct kvl_client_proof proof) {
    client->attach = (struct kvl_source){.fd = proof.attach_fd, .on_ready = on_attached};
    client->pidfd = (struct kvl_source){.fd = proof.pidfd, .on_ready = on_pidfd};
    kvl_err err = proof.attach_fd >= 0 ? kvl_server_watch(server, &client->attach) : KVL_OK;
    if (err == KVL_OK && proof.pidfd >= 0)
        err = kvl_server_watch(server, &client->pidfd);
    if (err != KVL_OK)
        client->attach.fd = client->pidfd.fd = -1; /* they stay the caller's */
    return err;
}

kvl_err kvl_clients_open(struct kvl_server *server, const struct kvl_client_info *info,
    const char *tenant, struct kvl_client_proof proof, struct kvl_server_client **out) {
    *out = NULL;
    struct kvl_server_client *client = free_slot(server);
    if (!client)
        return KVL_ERR_LIMIT;
    uint32_t slot = (uint32_t)(client - server->clients);
    struct kvl_client_info known = *info;
    kvl_err err = kvl_store_client_open(server->store, &known, &client->store_client);
    if (err != KVL_OK)
        return err;
    if (getrandom(client->token, sizeof client->token, 0) != (ssize_t)sizeof client->token)
        err = KVL_ERR_IO;
    else
        err = watch_proof(server, client, proof);
    if (err != KVL_OK) {
        kvl_store_client_close(server->store, client->store_client);
        return err;
    }
    if (++server->generations[slot] == 0)
        server->generations[slot] = 1; /* number 0 is nobody */
    client->number = (uint32_t)server->generations[slot] << 16 | slot;
    client->used = true;
    client->attached = info->attached;
    client->remote = proof.attach_fd < 0;
    client->seen_ns = kvl_clock_ns();
    client->sequence = 0;
    client->pid = info->pid;
    snprintf(client->name, sizeof client->name, "%s", info->name);
    kvl_door_enter(server, client, info, tenant);
    KVL_INFO(server->log, "event=attach client=%u pid=%u name=\"%s\" tenant=\"%s\" leases=%d",
        client->number, client->pid, client->name, tenant, client->attached);
    *out = client;
    return KVL_OK;
}

void kvl_clients_drop_held(struct kvl_server *server, struct kvl_server_client *client) {
    if (!client->held.message)
        return;
    nn_freemsg(client->held.message);
    server->held_bytes -= client->held.bytes;
    server->held_count--;
    client->held.message = NULL;
}

void kvl_clients_close(struct kvl_server *server, struct kvl_server_client *client) {
    KVL_INFO(server->log, "event=detach client=%u pid=%u name=\"%s\"", client->number, client->pid,
        client->name);
    kvl_clients_drop_held(server, client);
    kvl_server_unwatch(server, &client->attach);
    kvl_server_unwatch(server, &client->pidfd);
    kvl_wire_buffer_free(&client->reply);
    kvl_store_client_close(server->store, client->store_client);
    *client = (struct kvl_server_client){.attach.fd = -1, .pidfd.fd = -1};
}

struct kvl_server_client *kvl_clients_find(
    struct kvl_server *server, uint32_t number, const uint8_t token[KVL_WIRE_TOKEN_BYTES]) {
    uint32_t slot = number & 0xffff;
    if (slot >= KVL_SERVER_CLIENTS_MAX)
        return NULL;
    struct kvl_server_client *client = &server->clients[slot];
    bool right = client->used && !client->leaving && client->number == number &&
                 kvl_secret_equal(client->token, token, KVL_WIRE_TOKEN_BYTES);
    return right ? client : NULL;
}

struct kvl_server_client *kvl_clients_find_nonce(
    struct kvl_server *server, const uint8_t nonce[KVL_WIRE_PROOF_BYTES]) {
    for (uint32_t i = 0; i < KVL_SERVER_CLIENTS_MAX; i++) {
        struct kvl_server_client *client = &server->clients[i];
        if (client->used && client->remote &&
            memcmp(client->nonce, nonce, sizeof client->nonce) == 0)
            return client;
    }
    return NULL;
}

static bool is_stopped(uint32_t pid) {
    char path[32], state = 0;
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    FILE *file = fopen(path, "re");
    bool stopped = file && fscanf(file, "%*d %*s %c", &state) == 1 && state == 'T';
    if (file)
        fclose(file);
    return stopped;
}

void kvl_clients_expire_remote(struct kvl_server *server, uint64_t now_ns, uint32_t wanted) {
    struct kvl_server_client *oldest = NULL;
    uint32_t count = 0;
    for (uint32_t i = 0; i < KVL_SERVER_CLIENTS_MAX; i++) {
        struct kvl_server_client *client = &server->clients[i];
        if (client->used && KVL_PLANTED("lease-freed-at-sigstop") && is_stopped(client->pid))
            kvl_clients_close(server, client);
        if (!client->used || !client->remote)
            continue;
        if (now_ns - client->seen_ns > KVL_SERVER_REMOTE_IDLE_NS) {
            kvl_clients_close(server, client);
            continue;
        }
        count++;
        if (!oldest || client->seen_ns < oldest->seen_ns)
            oldest = client;
    }
    if (count + wanted > KVL_SERVER_REMOTE_MAX)
        kvl_clients_close(server, oldest);
}
