/* server_internal.h - what the server's files share. See server.h. */
#ifndef KVL_SERVER_INTERNAL_H
#define KVL_SERVER_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "address.h"
#include "secret.h"
#include "server.h"
#include "session.h"
#include "wire.h"

#define KVL_SERVER_CLIENTS_MAX 1024u
#define KVL_SERVER_HALF_OPEN_MAX 64u
#define KVL_SERVER_HALF_OPEN_NS 5000000000u /* until a silent connection is dropped */
#define KVL_SERVER_REMOTE_MAX 256u          /* clients over tcp, which end by idling */
#define KVL_SERVER_REMOTE_IDLE_NS 600000000000u
#define KVL_SERVER_HELD_MAX 64u /* requests waiting for the store to load */
#define KVL_SERVER_HELD_BYTES_MAX (16u << 20)
#define KVL_SERVER_REPLY_KEEP_BYTES (256u << 10) /* larger reply buffers are given back */
#define KVL_SERVER_CONTROL_BYTES 128u            /* nanomsg's routing header, as ancillary data */

/* One descriptor in the epoll set. Memory of sources outlives the server's loop, so an event that
 * was fetched before its source was closed finds fd -1, or a fresh fd with nothing to read. */
struct kvl_source {
    int fd;
    void (*on_ready)(struct kvl_server *server, struct kvl_source *source);
};

/* Where a request came from: goes back with its reply. */
struct kvl_route {
    _Alignas(16) uint8_t control[KVL_SERVER_CONTROL_BYTES];
    uint32_t bytes;
};

struct kvl_held {
    void *message; /* nanomsg's; NULL: none */
    uint32_t bytes;
    struct kvl_route route;
    uint64_t sequence;
    struct kvl_seek seek;
};

struct kvl_server_client {
    bool used;
    bool attached;         /* may lease */
    bool remote;           /* over tcp */
    bool leaving;          /* asks for nothing any more; its leases end with its process */
    uint32_t number;       /* on the wire: generation << 16 | slot */
    uint32_t store_client; /* the store's */
    uint8_t token[KVL_WIRE_TOKEN_BYTES];
    uint8_t nonce[KVL_WIRE_PROOF_BYTES]; /* remote: a repeated hello finds its client */
    struct kvl_source attach;            /* -1: remote */
    struct kvl_source pidfd;             /* -1: remote, or not to be had */
    uint64_t seen_ns;                    /* remote */
    uint64_t sequence;                   /* of the last request taken up */
    struct kvl_wire_buffer reply;        /* to it; empty while it is held back */
    struct kvl_held held;
    char name[KVL_WIRE_NAME_BYTES];
    uint32_t pid;
    uint32_t view;                    /* the tenant that it sees, or KVL_TENANT_ALL */
    char tenant[KVL_WIRE_NAME_BYTES]; /* as it said hello */
    struct kvl_key salt;
    bool is_turned; /* the salt is not zero */
};

struct kvl_half_open {
    struct kvl_source source;
    uint64_t since_ns;
};

struct kvl_server {
    struct kvl_address address;
    struct kvl_store *store;
    struct kvl_log *log;
    char device_name[32];
    char disk_path[256];
    uint32_t persist_ms;
    struct kvl_secret secret; /* tcp */
    const struct kvl_server_tenant *tenants;
    uint32_t tenant_count;
    uint8_t nobodys_secret[KVL_WIRE_PROOF_BYTES];
    struct kvl_key *keys; /* a chain as the store knows it; NULL without tenants */

    int epoll_fd, socket, lock_fd;
    bool bound, socket_bound; /* the attach path, the nanomsg path are ours to unlink */
    bool stopping;
    bool loaded;
    bool listener_paused; /* out of descriptors */
    struct kvl_source receive, stop, listener, store_source, timer;

    struct kvl_half_open half_open[KVL_SERVER_HALF_OPEN_MAX];
    struct kvl_server_client clients[KVL_SERVER_CLIENTS_MAX];
    uint16_t generations[KVL_SERVER_CLIENTS_MAX];
    uint32_t held_count;
    uint64_t held_bytes;
    uint64_t seek_news;                     /* of the store, when what is held was looked at last */
    struct kvl_wire_buffer anonymous_reply; /* to who is no client */
    void *scratch;                          /* arrays of a reply being made */
};

/* Room for the largest array of any reply. */
#define KVL_SERVER_SCRATCH_BYTES (1u << 20)

/* server.c */
KVL_MUST_CHECK kvl_err kvl_server_watch(struct kvl_server *server, struct kvl_source *source);
/* Takes it out of the epoll set and closes it; -1 is fine. */
void kvl_server_unwatch(struct kvl_server *server, struct kvl_source *source);

/* attach.c */
KVL_MUST_CHECK kvl_err kvl_attach_listen(struct kvl_server *server, struct kvl_errmsg *msg);
void kvl_attach_close(struct kvl_server *server);
void kvl_attach_tick(struct kvl_server *server, uint64_t now_ns);

/* server_clients.c */
struct kvl_client_proof { /* how a client's death will show */
    int attach_fd;        /* taken over on success */
    int pidfd;            /* taken over on success */
};
KVL_MUST_CHECK kvl_err kvl_clients_open(struct kvl_server *server,
    const struct kvl_client_info *info, const char *tenant, struct kvl_client_proof proof,
    struct kvl_server_client **out);
/* After its proven death or its goodbye: its leases end. */
void kvl_clients_close(struct kvl_server *server, struct kvl_server_client *client);
/* NULL unless the token is right too. */
struct kvl_server_client *kvl_clients_find(
    struct kvl_server *server, uint32_t number, const uint8_t token[KVL_WIRE_TOKEN_BYTES]);
struct kvl_server_client *kvl_clients_find_nonce(
    struct kvl_server *server, const uint8_t nonce[KVL_WIRE_PROOF_BYTES]);
/* Drops remote clients that idled, and the one idling longest where `wanted` more would be too
 * many. */
void kvl_clients_expire_remote(struct kvl_server *server, uint64_t now_ns, uint32_t wanted);
void kvl_clients_drop_held(struct kvl_server *server, struct kvl_server_client *client);

/* door.c */
KVL_MUST_CHECK kvl_err kvl_door_open(struct kvl_server *server);
/* Fills in info's tenant. PERM: nobody comes in by that name; the proof is the caller's to check,
 * first. */
KVL_MUST_CHECK kvl_err kvl_door_admit(
    struct kvl_server *server, const char *name, struct kvl_client_info *info);
/* What a client of that tenant proves to know; of no tenant, the secret that tcp clients share. */
struct kvl_bytes kvl_door_secret(struct kvl_server *server, const char *name);
void kvl_door_enter(struct kvl_server *server, struct kvl_server_client *client,
    const struct kvl_client_info *info, const char *name);
/* A decoded request becomes the store's, its reply the client's. INVALID: a session's name. */
KVL_MUST_CHECK kvl_err kvl_door_in(struct kvl_server *server,
    const struct kvl_server_client *client, uint32_t verb, union kvl_wire_request *request);
void kvl_door_out(struct kvl_server *server, const struct kvl_server_client *client, uint32_t verb,
    union kvl_wire_reply *reply);

/* requests.c */
void kvl_requests_receive(struct kvl_server *server, struct kvl_source *source);
/* Executes of what was held back what the store can answer by now. */
void kvl_requests_release_held(struct kvl_server *server);

/* verbs.c, verbs_operate.c: one function per verb, called by number. */
typedef kvl_err (*kvl_verb_fn)(struct kvl_server *server, struct kvl_server_client *client,
    const union kvl_wire_request *request, union kvl_wire_reply *reply);
kvl_verb_fn kvl_verb_function(uint32_t verb);
kvl_verb_fn kvl_verb_operate_function(uint32_t verb);
/* The keys that a seal would make visible: at most one each of its blocks; returns how many. */
uint32_t kvl_verb_seal_keys(struct kvl_server *server, struct kvl_server_client *client,
    const struct kvl_wire_seals *seals, struct kvl_key *keys);

#endif
