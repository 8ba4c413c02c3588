/* kvloft.h - libkvloft, the client library: keep KV blocks in a kvloft daemon and get them back.
 *
 * Two ways of use, one library:
 *   resident  blocks live in the daemon's device arena, mapped here: alloc, fill in place, seal;
 *             restore, read in place, release. No copy on either side.
 *   offload   the caller owns its KV memory: alloc on the host tier, copy in, seal; restore to the
 *             host tier, copy out, release.
 *
 *   struct kvl_client *client;
 *   struct kvl_errmsg msg;
 *   kvl_client_open(&(struct kvl_client_options){.address = NULL, .name = "mine"}, &client, &msg);
 *   kvl_client_namespace(client, &request, &ns);
 *   kvl_restore(client, KVL_TIER_HOST, keys, count, blocks, &reply);
 *   kvl_ticket_wait(client, reply.ticket, UINT32_MAX, 5000, &progress);
 *   memcpy(mine, kvl_client_block(client, KVL_TIER_HOST, blocks[0].offset_bytes), bytes);
 *
 * Threads: one client object per thread, or the caller's lock; kvl_ticket_poll, kvl_ticket_wait and
 * the block addresses may be used from any thread. A forked child must not use its parent's
 * client. Callbacks may make calls, but not close or reconnect their client.
 * Losing the daemon: every call then returns CLOSED, at once and for ever, until
 * kvl_client_reconnect succeeds. What was mapped stays mapped and readable (blocks under a lease
 * keep their content), so a computation under way can end. Leases and tickets of an earlier epoch
 * are void: releasing them does nothing.
 * A daemon that has just started answers at once what it is sure of: known blocks are found and
 * restored, unknown ones mostly known to be so. Other calls wait until it has read its index, a
 * second or so for each million blocks, and may time out (docs/operations.md).
 * Leases end by release, by goodbye (kvl_client_close, kvl_client_unmap_old), or with the process.
 * Releasing and saying goodbye promise that nothing of this process uses the memory any more: end
 * what a GPU or another thread does there first. A connection that ends without goodbye (its
 * descriptor closed, an exec) proves nothing, so its leases stay until the process has ended.
 * Repeats: a request that got no answer is sent again with its old sequence number; the daemon
 * executes nothing twice. A call that timed out has not been taken back; leases that its late reply
 * brings are released by the library.
 * Errors: kvl_err.h; calls that can say more take a kvl_errmsg (may be NULL). */
#ifndef KVLOFT_H
#define KVLOFT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kvl_err.h"
#include "kvl_key.h"
#include "kvl_types.h"

#ifdef __cplusplus
extern "C" {
#endif

struct kvl_client;

struct kvl_client_options {
    const char *address; /* ipc://PATH, tcp://HOST:PORT; NULL: the default */
    const char *name;    /* shown to people; NULL: the program's name */
    uint32_t timeout_ms; /* of one call until TIMEOUT, repeats included; 0: 10,000 */
    /* As which tenant; NULL: $KVLOFT_TENANT, "": none is named. Its secret, or the one that tcp
     * clients without a tenant share: NULL: $KVLOFT_SECRET_FILE, or $KVLOFT_SECRET itself. */
    const char *tenant;
    const char *secret_file;
    bool look_only; /* do not attach: no arenas, no leases (what tcp always is) */
};

/* ipc://$XDG_RUNTIME_DIR/kvloft/kvloft.sock, or below /tmp/kvloft-UID without that variable.
 * TOOBIG when the buffer is too small. */
KVL_MUST_CHECK kvl_err kvl_default_address(char *address, size_t address_bytes);

/* Errors: NOTFOUND (nobody listens there), PERM (also: no such tenant, or another secret), VERSION,
 * TIMEOUT, INVALID (address). */
KVL_MUST_CHECK kvl_err kvl_client_open(
    const struct kvl_client_options *options, struct kvl_client **out, struct kvl_errmsg *msg);
/* Unmaps everything and says goodbye, which ends this client's leases at once. NULL is fine. */
void kvl_client_close(struct kvl_client *client);
/* A fresh hello at the same address. Pointers into arenas of earlier connections stay valid until
 * kvl_client_unmap_old or close; so do their leases, when the daemon is the same after all. On an
 * error nothing of the attempt is left. */
KVL_MUST_CHECK kvl_err kvl_client_reconnect(struct kvl_client *client, struct kvl_errmsg *msg);
/* After a reconnect to a daemon that turned out to be of no use (another device, too small): says
 * goodbye, unmaps what it mapped, and is as lost as before. No thread may use that any more. */
void kvl_client_undo_reconnect(struct kvl_client *client);
/* Unmaps the arenas of earlier connections and says goodbye to their daemons. */
void kvl_client_unmap_old(struct kvl_client *client);
/* False once the daemon's death was noticed (looks at the attach socket; costs one poll). */
bool kvl_client_is_connected(struct kvl_client *client);
/* Of calls made from now on; 0: the default again. */
void kvl_client_set_timeout(struct kvl_client *client, uint32_t timeout_ms);
/* How long the request that is under way has waited for its answer; 0: none is. A daemon that is
 * alive and does not answer (stopped, swapped out) shows here only. */
uint64_t kvl_client_silence_ms(const struct kvl_client *client);
uint64_t kvl_client_epoch(const struct kvl_client *client); /* changes with each daemon start */

/* Asynchronous use: wait until the fd is readable, then dispatch, which sends what is queued, reads
 * replies and runs callbacks. Callbacks run inside dispatch or inside any synchronous call. They
 * fire exactly once per accepted call, with CLOSED when the daemon is lost, also from close. */
int kvl_client_fd(const struct kvl_client *client);
void kvl_client_dispatch(struct kvl_client *client);
/* Runs dispatch until no call is under way. TIMEOUT. */
KVL_MUST_CHECK kvl_err kvl_client_drain(struct kvl_client *client);

/* ---- memory ------------------------------------------------------------------------------- */

/* Capacity of an arena, 0 when the tier is absent or this client is not attached. */
uint64_t kvl_client_arena_bytes(const struct kvl_client *client, enum kvl_tier_kind tier);
/* What the tier's arena is, and *fd its descriptor (borrowed), for a caller that maps it by itself.
 * Arenas of the CPU's memory are mapped already; those of a GPU never are. A GPU's descriptor lives
 * until the daemon is lost or reconnect is called: its memory would stay allocated with it, and the
 * next daemon find none. A memfd's lives until the client closes or, after a reconnect,
 * kvl_client_unmap_old. NOTFOUND: no such arena; CLOSED: the descriptor is gone (fd -1). */
KVL_MUST_CHECK kvl_err kvl_client_arena(
    const struct kvl_client *client, enum kvl_tier_kind tier, struct kvl_arena_info *info, int *fd);
/* Read-only view of a slot; NULL when outside the arena, or when the CPU cannot address it (a
 * GPU's). Content is valid under a lease only. */
const uint8_t *kvl_client_block(
    const struct kvl_client *client, enum kvl_tier_kind tier, uint64_t offset_bytes);
/* Writable view: for slots under a write lease only. */
uint8_t *kvl_client_block_writable(
    const struct kvl_client *client, enum kvl_tier_kind tier, uint64_t offset_bytes);
/* memcpy for whole blocks, between a slot and memory of the caller's own: past the caches, which
 * blocks do not fit. What is read again at once is better copied by memcpy. Threads: any. */
void kvl_copy_block(void *to, const void *from, uint64_t bytes);

/* ---- blocks (the semantics of each verb: core/store.h says the same to the server) ---------- */

/* TOOBIG: a block does not fit a segment of the disk tier; NOSPC: too few of them fit the host
 * tier, through which those of a GPU pass. INVALID: the key belongs to another geometry, or tenant.
 */
KVL_MUST_CHECK kvl_err kvl_client_namespace(struct kvl_client *client,
    const struct kvl_namespace_request *request, struct kvl_namespace_info *out);
/* By position; NOTFOUND past the last. */
KVL_MUST_CHECK kvl_err kvl_client_namespace_at(
    struct kvl_client *client, uint32_t index, struct kvl_namespace_info *out);

/* found: count entries, bit mask of 1 << enum kvl_tier_kind. *hits: leading keys that are
 * somewhere. One round trip. */
KVL_MUST_CHECK kvl_err kvl_lookup(struct kvl_client *client, const struct kvl_key *keys,
    uint32_t count, uint8_t *found, uint32_t *hits);
/* The same of every key, whether those before it are anywhere or not; 0: nowhere, or
 * KVL_FOUND_SEALING. */
KVL_MUST_CHECK kvl_err kvl_lookup_each(
    struct kvl_client *client, const struct kvl_key *keys, uint32_t count, uint8_t *found);

struct kvl_restore_result {
    uint32_t count;           /* leading blocks leased: that many entries of blocks are set */
    bool out_of_space;        /* more were there, but leases fill the target tier */
    struct kvl_ticket ticket; /* none (generation 0) when nothing has to be waited for */
};
/* Leases the leading known blocks of a chain in the target tier (DEVICE resident, HOST offload)
 * and starts bringing them there. blocks: count entries. */
KVL_MUST_CHECK kvl_err kvl_restore(struct kvl_client *client, enum kvl_tier_kind target,
    const struct kvl_key *keys, uint32_t count, struct kvl_restored *blocks,
    struct kvl_restore_result *result);

struct kvl_progress {
    kvl_err status; /* PENDING while under way */
    uint32_t blocks_ready;
    uint32_t layers_ready;
    uint64_t values[5];
};
/* Reads the shared word; no message. STALE for a ticket of another epoch or given back. */
KVL_MUST_CHECK kvl_err kvl_ticket_poll(
    const struct kvl_client *client, struct kvl_ticket ticket, struct kvl_progress *out);
/* Waits until at least `layers` layers are ready, or the ticket has ended, or timeout_ms passed
 * (TIMEOUT), or the daemon is lost (CLOSED). layers = UINT32_MAX: until the end. */
KVL_MUST_CHECK kvl_err kvl_ticket_wait(struct kvl_client *client, struct kvl_ticket ticket,
    uint32_t layers, uint32_t timeout_ms, struct kvl_progress *out);

KVL_MUST_CHECK kvl_err kvl_prefetch(struct kvl_client *client, enum kvl_tier_kind target,
    const struct kvl_key *keys, uint32_t count, struct kvl_ticket *ticket);

/* Pushes the blocks of a chain down to HOST or DISK, out of every tier above; leased ones stay.
 * values[0]: blocks that left a tier. */
KVL_MUST_CHECK kvl_err kvl_demote(struct kvl_client *client, enum kvl_tier_kind target,
    const struct kvl_key *keys, uint32_t count, struct kvl_ticket *ticket);

/* keys[i] zero: not known yet. wait: a ticket for the first PENDING block. */
KVL_MUST_CHECK kvl_err kvl_alloc(struct kvl_client *client, uint32_t namespace_id,
    enum kvl_tier_kind target, const struct kvl_key *keys, uint32_t count, bool wait,
    struct kvl_allocated *blocks, struct kvl_ticket *ticket);

struct kvl_seal {
    uint64_t lease;
    struct kvl_key parent; /* the block before, or the namespace's key for the first */
    const uint32_t *tokens;
    uint32_t token_count; /* block_tokens, or fewer for a tail */
    struct kvl_bytes extra;
    bool opaque; /* opaque_key instead of parent and tokens */
    uint8_t opaque_key[32];
};
struct kvl_sealed {
    kvl_err status; /* OK, EXISTS (the slot stays private), INVALID, STALE */
    struct kvl_key key;
};
KVL_MUST_CHECK kvl_err kvl_seal(struct kvl_client *client, const struct kvl_seal *blocks,
    uint32_t count, struct kvl_sealed *sealed);

KVL_MUST_CHECK kvl_err kvl_release(struct kvl_client *client, const uint64_t *leases,
    uint32_t lease_count, const struct kvl_ticket *tickets, uint32_t ticket_count);

/* Asynchronous twins. Arguments are copied before the call returns (tokens too). The callback's
 * pointers live until it returns. AGAIN: too many calls under way (64). */
typedef void (*kvl_alloc_done)(void *arg, kvl_err err, const struct kvl_allocated *blocks,
    uint32_t count, struct kvl_ticket ticket);
typedef void (*kvl_seal_done)(
    void *arg, kvl_err err, const struct kvl_sealed *sealed, uint32_t count);
typedef void (*kvl_plain_done)(void *arg, kvl_err err); /* any of these may be NULL */
KVL_MUST_CHECK kvl_err kvl_alloc_async(struct kvl_client *client, uint32_t namespace_id,
    enum kvl_tier_kind target, const struct kvl_key *keys, uint32_t count, bool wait,
    kvl_alloc_done done, void *arg);
KVL_MUST_CHECK kvl_err kvl_seal_async(struct kvl_client *client, const struct kvl_seal *blocks,
    uint32_t count, kvl_seal_done done, void *arg);
KVL_MUST_CHECK kvl_err kvl_release_async(struct kvl_client *client, const uint64_t *leases,
    uint32_t lease_count, const struct kvl_ticket *tickets, uint32_t ticket_count,
    kvl_plain_done done, void *arg);

/* ---- sessions ----------------------------------------------------------------------------- */

/* Opens for writing, creates when absent. BUSY: info's holder fields say who has it. INVALID: the
 * name belongs to another namespace (another model). */
KVL_MUST_CHECK kvl_err kvl_session_open(struct kvl_client *client, const char *name,
    const struct kvl_key *namespace_key, struct kvl_session_info *info);
/* Any client may read. *count: tokens written to tokens (max entries). */
KVL_MUST_CHECK kvl_err kvl_session_read(struct kvl_client *client, const char *name,
    uint64_t from_token, uint32_t max, uint32_t *tokens, uint32_t *count,
    struct kvl_session_info *info);
/* Cuts to from_token tokens, then appends. Durable within the persist bound. */
KVL_MUST_CHECK kvl_err kvl_session_append(struct kvl_client *client, const char *name,
    uint64_t from_token, const uint32_t *tokens, uint32_t count);
KVL_MUST_CHECK kvl_err kvl_session_append_async(struct kvl_client *client, const char *name,
    uint64_t from_token, const uint32_t *tokens, uint32_t count, kvl_plain_done done, void *arg);
KVL_MUST_CHECK kvl_err kvl_session_tail(
    struct kvl_client *client, const char *name, const struct kvl_key *tail, uint32_t tail_tokens);
KVL_MUST_CHECK kvl_err kvl_session_close(struct kvl_client *client, const char *name);
/* BUSY while someone holds it (info says who). */
KVL_MUST_CHECK kvl_err kvl_session_drop(
    struct kvl_client *client, const char *name, struct kvl_session_info *info);
/* By position in order of name; NOTFOUND past the last. */
KVL_MUST_CHECK kvl_err kvl_session_at(
    struct kvl_client *client, uint32_t index, struct kvl_session_info *out);

/* ---- operating ---------------------------------------------------------------------------- */

KVL_MUST_CHECK kvl_err kvl_pin(struct kvl_client *client, const struct kvl_key *keys,
    uint32_t count, bool pinned, uint32_t *changed);
/* name: of the session, or of the tenant (NULL: this client's own). A tenant clears its own only,
 * whatever the scope; an operator everybody's. */
KVL_MUST_CHECK kvl_err kvl_clear(struct kvl_client *client, enum kvl_clear_scope scope,
    uint32_t namespace_id, const char *name, struct kvl_ticket *ticket);
KVL_MUST_CHECK kvl_err kvl_flush(struct kvl_client *client, struct kvl_ticket *ticket);
KVL_MUST_CHECK kvl_err kvl_verify(struct kvl_client *client, struct kvl_ticket *ticket);
/* Ticket state by message: for clients that are not attached. */
KVL_MUST_CHECK kvl_err kvl_ticket_ask(
    struct kvl_client *client, struct kvl_ticket ticket, struct kvl_progress *out);

struct kvl_daemon_info {
    char version[32];
    uint32_t pid;
    char device[32]; /* name of the device tier */
    char address[108];
    char disk_path[256]; /* empty: none */
    uint32_t persist_ms;
};
KVL_MUST_CHECK kvl_err kvl_stats(
    struct kvl_client *client, struct kvl_store_report *report, struct kvl_daemon_info *daemon);
/* Lists by position; NOTFOUND past the last. */
KVL_MUST_CHECK kvl_err kvl_stats_client(
    struct kvl_client *client, uint32_t index, struct kvl_client_report *out);
/* A tenant sees itself, an operator all of them. */
KVL_MUST_CHECK kvl_err kvl_stats_tenant(
    struct kvl_client *client, uint32_t index, struct kvl_tenant_report *out);
KVL_MUST_CHECK kvl_err kvl_stats_warning(
    struct kvl_client *client, uint32_t index, char *text, size_t text_bytes);
/* Pages: *cursor 0 at first; *count 0 at the end. */
KVL_MUST_CHECK kvl_err kvl_list_blocks(struct kvl_client *client, uint64_t *cursor, uint32_t max,
    struct kvl_block_report *out, uint32_t *count);
KVL_MUST_CHECK kvl_err kvl_events(struct kvl_client *client, uint64_t after, uint32_t max,
    struct kvl_event *out, uint32_t *count, uint64_t *oldest);

/* Plain echo of `bytes` bytes, for measuring the connection. */
KVL_MUST_CHECK kvl_err kvl_ping(struct kvl_client *client, uint32_t bytes);

#ifdef __cplusplus
}
#endif
#endif
