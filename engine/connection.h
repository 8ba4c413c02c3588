/* connection.h - the engine's line to a daemon: one client, one namespace, and what happens when
 * the daemon dies.
 *
 * Losing the daemon is an ordinary event. It is noted once (`lost_ever`, and `notice` is told),
 * every user of the connection goes on with the memory it has, and kvl_connection_revive brings it
 * back when a daemon answers again. `generation` changes with each daemon, so that a block or a
 * session knows whether its lease is of this one.
 *
 * A daemon that lives but does not answer (stopped, swapped out) is waited for once: for up to
 * KVL_DECODE_PATIENCE_MS in a decode step, up to the client's default of 10 s elsewhere. From then
 * on, until it answers, kvl_connection_answers says no and nobody waits for it again.
 *
 * Owns:    the client, and a hold on the daemon's device arena; both end with kvl_connection_close.
 * Threads: the engine's one thread. */
#ifndef KVL_CONNECTION_H
#define KVL_CONNECTION_H

#include <stdbool.h>
#include <stdint.h>

#include "backend.h"
#include "device_arena.h"
#include "kvloft.h"
#include "model.h"

#define KVL_DECODE_PATIENCE_MS 250u
#define KVL_PATIENCE_MS 10000u

struct kvl_connection {
    struct kvl_client *client;
    struct kvl_namespace_request request; /* of layer group 0 */
    struct kvl_namespace_info space;
    uint32_t group_count;
    struct kvl_namespace_request window_request; /* of layer group 1, where there is one */
    struct kvl_namespace_info window_space;
    uint64_t generation; /* 1 for the first daemon */
    struct kvl_backend *backend;
    struct kvl_device_arena *arena; /* NULL while the daemon is lost */
    uint64_t arena_count;           /* this one, and lost ones that blocks still live in */
    bool unmap_due;                 /* the client library keeps mappings of lost daemons */
    bool connected;
    bool lost_ever;
    bool given_up; /* the daemon that came back cannot hold this model's blocks */
    uint64_t next_attempt_ns;
    uint64_t held_up_ns; /* by attempts before their time, since a daemon answered last */
    /* Told in one line what happened; may be NULL. */
    void (*notice)(void *arg, const char *text);
    void *notice_arg;
};

struct kvl_connection_options {
    const char *address; /* NULL: the default */
    const char *tenant;  /* NULL: what the environment says, as for the secret */
    const char *secret_file;
    const char *client_name;
    const char *label; /* the model's name, for people */
    const struct kvl_model *model;
    struct kvl_backend *backend; /* borrowed; outlives the connection */
    enum kvl_kv_dtype kv_dtype;
    uint32_t block_tokens;
    void (*notice)(void *arg, const char *text);
    void *notice_arg;
};

/* The block keys' namespace of a model under one backend's arithmetic: of its layer group 0. */
KVL_MUST_CHECK kvl_err kvl_engine_namespace(const struct kvl_model *model,
    const char *arithmetic_id, enum kvl_kv_dtype kv_dtype, uint32_t block_tokens,
    struct kvl_namespace_request *out);
/* Of layer group 1, which the model must have; it follows from that of group 0. */
KVL_MUST_CHECK kvl_err kvl_engine_window_namespace(const struct kvl_model *model,
    const struct kvl_namespace_request *first, struct kvl_namespace_request *out);

static inline const struct kvl_key *kvl_connection_namespace(
    const struct kvl_connection *connection, uint32_t group) {
    return group == 0 ? &connection->request.key : &connection->window_request.key;
}
static inline const struct kvl_namespace_info *kvl_connection_space(
    const struct kvl_connection *connection, uint32_t group) {
    return group == 0 ? &connection->space : &connection->window_space;
}

/* Errors: those of kvl_client_open; NOSPC (the daemon's device tier holds not even one block of
 * each layer group, or its host tier too few to pass through); TOOBIG (nor the disk tier; msg says
 * what to enlarge); UNSUPPORTED (its memory is another device's than the backend's; msg says what
 * to do). */
KVL_MUST_CHECK kvl_err kvl_connection_open(struct kvl_connection *connection,
    const struct kvl_connection_options *options, struct kvl_errmsg *msg);
/* After everything that holds the arena. */
void kvl_connection_close(struct kvl_connection *connection); /* zeroed is fine */

/* Looks at the result of a call: CLOSED and STALE mean that the daemon is gone. Returns err. */
kvl_err kvl_connection_check(struct kvl_connection *connection, kvl_err err);
/* True unless there is no daemon, or what it was asked first has waited patience_ms: ask before
 * every call that waits. */
bool kvl_connection_answers(const struct kvl_connection *connection, uint32_t patience_ms);
/* At most once a second and only while the daemon is lost: tries to reach one again. True when
 * that just succeeded. Attempts take at most a fortieth of the time. One that answers but cannot
 * serve this engine (UNSUPPORTED, TOOBIG, NOSPC) ends them for good; notice is told why. */
bool kvl_connection_revive(struct kvl_connection *connection);
/* The same, however short ago the last attempt was: for a turn's end. What daemons that do not
 * answer take of these attempts is a second in all; from then on it is as the other. */
bool kvl_connection_revive_now(struct kvl_connection *connection);
/* Sends, receives and runs callbacks, without waiting; unmaps arenas that nothing lives in. */
void kvl_connection_dispatch(struct kvl_connection *connection);

#endif
