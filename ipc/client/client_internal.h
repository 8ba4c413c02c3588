/* client_internal.h - what the client library's files share. See kvloft.h.
 *
 * One request is in flight at a time (nanomsg drops what a peer's pipe has no room for); the rest
 * waits in a queue. A call that timed out for its caller stays in flight until its reply comes,
 * so that the daemon executes nothing out of order, and leases that arrive too late go back. */
#ifndef KVL_CLIENT_INTERNAL_H
#define KVL_CLIENT_INTERNAL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "address.h"
#include "kvloft.h"
#include "secret.h"
#include "ticket.h"
#include "wire.h"

#define KVL_CLIENT_CALLS_MAX 64u
#define KVL_CLIENT_TIMEOUT_MS 10000u
#define KVL_CLIENT_REPEAT_MS_MAX 1000u
#define KVL_CLIENT_AGAIN_MS 10u                    /* until a request is repeated that got AGAIN */
#define KVL_CLIENT_REQUEST_KEEP_BYTES (256u << 10) /* larger request buffers are given back */

/* What one hello mapped. Kept until kvl_client_unmap_old, so that other threads may read on. */
struct kvl_mapping {
    struct kvl_mapping *older;
    uint64_t epoch;
    int attach_fd; /* -1 over tcp; readable once the daemon is dead */
    pid_t greeter; /* who said hello there, and so says goodbye; 0: nobody yet */
    _Atomic bool lost;
    struct {
        struct kvl_arena_info info; /* bytes 0: no such arena */
        int fd;                     /* -1: none */
        uint8_t *read, *write;      /* NULL: the CPU cannot address it */
    } arenas[KVL_TIER_COUNT];
    const struct kvl_completion *words;
    uint32_t word_count;
};

struct kvl_call;
/* reply: the verb's member, NULL unless there is one (always with KVL_OK). */
typedef void (*kvl_call_done)(
    struct kvl_client *client, void *context, kvl_err err, const union kvl_wire_reply *reply);

struct kvl_call {
    struct kvl_call *next;
    uint16_t verb;
    bool sent;      /* at least once */
    bool abandoned; /* its caller was told TIMEOUT */
    uint64_t sequence;
    uint64_t since_ns, deadline_ns, repeat_ns;
    struct kvl_wire_buffer request;
    kvl_call_done done;   /* this */
    kvl_plain_done plain; /* or this; or neither */
    void *context;
};

struct kvl_client {
    struct kvl_address address;
    char name[KVL_WIRE_NAME_BYTES];
    char tenant[KVL_WIRE_NAME_BYTES]; /* empty: none is named */
    char secret_file[4096];
    uint32_t timeout_ms;
    bool look_only;

    int socket, receive_fd, send_fd; /* nanomsg's; -1 when lost */
    int epoll_fd, timer_fd;
    bool waiting_for_send_fd; /* it is in the epoll set */
    uint64_t timer_ns;        /* what timer_fd is set to; 0: off */

    uint32_t number;
    uint8_t token[KVL_WIRE_TOKEN_BYTES];
    uint64_t sequence;
    _Atomic(struct kvl_mapping *) mapping; /* newest; NULL before the first hello */
    struct kvl_mapping *joining;           /* while a hello is under way: nobody else sees it yet */

    struct kvl_call calls[KVL_CLIENT_CALLS_MAX];
    struct kvl_call *free_calls;
    struct kvl_call *queue, **queue_end; /* the head is the one in flight */
    uint32_t refused_version;            /* the daemon's, after VERSION */
};

/* credentials.c */
KVL_MUST_CHECK kvl_err kvl_credentials_take(
    struct kvl_client *client, const struct kvl_client_options *options, struct kvl_errmsg *msg);
KVL_MUST_CHECK kvl_err kvl_credentials_nonce(
    uint8_t nonce[KVL_WIRE_PROOF_BYTES], struct kvl_errmsg *msg);
/* Under the tenant's secret, or the one that tcp clients share. */
KVL_MUST_CHECK kvl_err kvl_credentials_prove(const struct kvl_client *client,
    enum kvl_prover prover, const uint8_t nonce[KVL_WIRE_PROOF_BYTES],
    uint8_t proof[KVL_WIRE_PROOF_BYTES], struct kvl_errmsg *msg);
/* PERM, and what to do about it. */
kvl_err kvl_credentials_refused(const struct kvl_client *client, struct kvl_errmsg *msg);

/* client_attach.c */
KVL_MUST_CHECK kvl_err kvl_client_attach(
    struct kvl_client *client, struct kvl_mapping *mapping, struct kvl_errmsg *msg);
/* Unmaps this one, and says goodbye: nothing of this process may use its memory any more. NULL is
 * fine. */
void kvl_mapping_free(struct kvl_mapping *mapping);

/* calls.c */
KVL_MUST_CHECK kvl_err kvl_client_connect(struct kvl_client *client, struct kvl_errmsg *msg);
void kvl_client_disconnect(struct kvl_client *client);
/* Marks the daemon lost and ends all calls with CLOSED. */
void kvl_client_lose(struct kvl_client *client);
/* Queues a request. Errors: CLOSED, AGAIN, TOOBIG, NOMEM; done fires iff OK. */
KVL_MUST_CHECK kvl_err kvl_call_submit(
    struct kvl_client *client, uint16_t verb, void *request, kvl_call_done done, void *context);
/* Submits and runs until done. take (may be NULL) sees the reply before it is gone. */
KVL_MUST_CHECK kvl_err kvl_call_run(struct kvl_client *client, uint16_t verb, void *request,
    void (*take)(void *context, const union kvl_wire_reply *reply), void *context);
/* For verbs whose reply says nothing but its status. done may be NULL. */
KVL_MUST_CHECK kvl_err kvl_call_submit_plain(
    struct kvl_client *client, uint16_t verb, void *request, kvl_plain_done done, void *arg);
/* late.c: releases what an answer grants that nobody waits for any more. */
void kvl_late_reply(struct kvl_client *client, uint16_t verb, const union kvl_wire_reply *reply);
struct kvl_mapping *kvl_client_mapping(const struct kvl_client *client);
/* What requests go by: the one that is joining, else the newest. The client's own thread only. */
struct kvl_mapping *kvl_client_current(const struct kvl_client *client);

#endif
