/* verbs_operate.c - sessions, and what people ask a daemon for. */
#include "server_internal.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define VERB_ARGS                                                                                  \
    struct kvl_server *server, struct kvl_server_client *client,                                   \
        const union kvl_wire_request *request, union kvl_wire_reply *reply

_Static_assert(KVL_WIRE_SESSION_TOKENS_MAX * sizeof(uint32_t) <= KVL_SERVER_SCRATCH_BYTES,
    "a session's tokens fit");
_Static_assert(KVL_WIRE_LIST_MAX * sizeof(struct kvl_block_report) <= KVL_SERVER_SCRATCH_BYTES,
    "a page of blocks fits");

/* ---- sessions ----------------------------------------------------------------------------- */

static kvl_err verb_session_open(VERB_ARGS) {
    const struct kvl_wire_session *session = &request->session;
    return kvl_store_session_open(
        server->store, client->store_client, session->name, &session->key, &reply->session);
}

static kvl_err verb_session_read(VERB_ARGS) {
    (void)client;
    const struct kvl_wire_session *session = &request->session;
    struct kvl_wire_session_tokens *out = &reply->session_tokens;
    out->tokens = server->scratch;
    return kvl_store_session_read(server->store, session->name, session->from_token, session->count,
        server->scratch, &out->count, &out->info);
}

static kvl_err verb_session_append(VERB_ARGS) {
    (void)reply;
    const struct kvl_wire_session *session = &request->session;
    memcpy(server->scratch, session->tokens, session->count * sizeof(uint32_t));
    return kvl_store_session_append(server->store, client->store_client, session->name,
        session->from_token, server->scratch, session->count);
}

static kvl_err verb_session_tail(VERB_ARGS) {
    (void)reply;
    const struct kvl_wire_session *session = &request->session;
    return kvl_store_session_tail(
        server->store, client->store_client, session->name, &session->key, session->tail_tokens);
}

static kvl_err verb_session_close(VERB_ARGS) {
    (void)reply;
    return kvl_store_session_close(server->store, client->store_client, request->session.name);
}

static kvl_err verb_session_drop(VERB_ARGS) {
    return kvl_store_session_drop(
        server->store, client->store_client, request->session.name, &reply->session);
}

static kvl_err verb_session_at(VERB_ARGS) {
    bool there = kvl_store_session_at(server->store, client->view, request->u32, &reply->session);
    return there ? KVL_OK : KVL_ERR_NOTFOUND;
}

/* ---- clear, flush, verify ----------------------------------------------------------------- */

static kvl_err verb_clear(VERB_ARGS) {
    const struct kvl_wire_clear *clear = &request->clear;
    if (clear->scope < KVL_CLEAR_ALL || clear->scope > KVL_CLEAR_TENANT)
        return KVL_ERR_INVALID;
    const struct kvl_clear_request ask = {.client = client->store_client,
        .scope = (enum kvl_clear_scope)clear->scope,
        .namespace_id = clear->namespace_id,
        .name = clear->name[0] ? clear->name : NULL};
    if (ask.scope == KVL_CLEAR_SESSION && !ask.name)
        return KVL_ERR_INVALID;
    return kvl_store_clear(server->store, &ask, &reply->ticket);
}

static kvl_err verb_flush(VERB_ARGS) {
    (void)request;
    return kvl_store_flush(server->store, client->store_client, &reply->ticket);
}

static kvl_err verb_verify(VERB_ARGS) {
    (void)request;
    return kvl_store_verify(server->store, client->store_client, &reply->ticket);
}

/* For who cannot map the words. The daemon reads only what it wrote: engines map them read-only.
 */
static kvl_err verb_ticket_ask(VERB_ARGS) {
    const struct kvl_completion *word =
        kvl_ticket_word(kvl_store_tickets(server->store), request->ticket);
    if (!word || !kvl_store_ticket_is_of(server->store, client->view, request->ticket))
        return KVL_ERR_STALE;
    struct kvl_wire_progress *out = &reply->progress;
    out->status = atomic_load(&word->status);
    out->blocks_ready = atomic_load(&word->blocks_ready);
    out->layers_ready = atomic_load(&word->layers_ready);
    for (uint32_t i = 0; i < 5; i++)
        out->values[i] = atomic_load(&word->values[i]);
    return KVL_OK;
}

/* ---- status ------------------------------------------------------------------------------- */

static kvl_err verb_stats(VERB_ARGS) {
    (void)request;
    struct kvl_wire_stats *stats = &reply->stats;
    kvl_store_report(server->store, client->view, &stats->report);
    stats->pid = (uint32_t)getpid();
    stats->persist_ms = server->persist_ms;
    snprintf(stats->version, sizeof stats->version, "%s", KVL_VERSION);
    snprintf(stats->device, sizeof stats->device, "%s", server->device_name);
    snprintf(stats->address, sizeof stats->address, "%.107s", server->address.text);
    snprintf(stats->disk_path, sizeof stats->disk_path, "%s", server->disk_path);
    return KVL_OK;
}

static kvl_err verb_stats_client(VERB_ARGS) {
    bool there = kvl_store_client_at(server->store, client->view, request->u32, &reply->client);
    return there ? KVL_OK : KVL_ERR_NOTFOUND;
}

static kvl_err verb_stats_tenant(VERB_ARGS) {
    bool there = kvl_store_tenant_at(server->store, client->view, request->u32, &reply->tenant);
    return there ? KVL_OK : KVL_ERR_NOTFOUND;
}

static kvl_err verb_stats_warning(VERB_ARGS) {
    (void)client;
    if (!kvl_log_fallback_at(server->log, request->u32, server->scratch, 512))
        return KVL_ERR_NOTFOUND;
    reply->blob.data = server->scratch;
    reply->blob.bytes = (uint32_t)strlen(server->scratch);
    return KVL_OK;
}

static kvl_err verb_list_blocks(VERB_ARGS) {
    struct kvl_wire_items *items = &reply->items;
    items->cursor = request->page.cursor;
    items->data = server->scratch;
    memset(server->scratch, 0, request->page.max * sizeof(struct kvl_block_report));
    items->count = kvl_store_list(
        server->store, client->view, &items->cursor, request->page.max, server->scratch);
    return KVL_OK;
}

static kvl_err verb_events(VERB_ARGS) {
    struct kvl_wire_items *items = &reply->items;
    items->data = server->scratch;
    memset(server->scratch, 0, request->page.max * sizeof(struct kvl_event));
    items->count = kvl_store_events(server->store, client->view, request->page.cursor,
        request->page.max, server->scratch, &items->cursor);
    return KVL_OK;
}

kvl_verb_fn kvl_verb_operate_function(uint32_t verb) {
    static const kvl_verb_fn functions[KVL_VERB_COUNT] = {
        [KVL_VERB_SESSION_OPEN] = verb_session_open,
        [KVL_VERB_SESSION_READ] = verb_session_read,
        [KVL_VERB_SESSION_APPEND] = verb_session_append,
        [KVL_VERB_SESSION_TAIL] = verb_session_tail,
        [KVL_VERB_SESSION_CLOSE] = verb_session_close,
        [KVL_VERB_SESSION_DROP] = verb_session_drop,
        [KVL_VERB_SESSION_AT] = verb_session_at,
        [KVL_VERB_CLEAR] = verb_clear,
        [KVL_VERB_FLUSH] = verb_flush,
        [KVL_VERB_VERIFY] = verb_verify,
        [KVL_VERB_TICKET_ASK] = verb_ticket_ask,
        [KVL_VERB_STATS] = verb_stats,
        [KVL_VERB_STATS_CLIENT] = verb_stats_client,
        [KVL_VERB_STATS_TENANT] = verb_stats_tenant,
        [KVL_VERB_STATS_WARNING] = verb_stats_warning,
        [KVL_VERB_LIST_BLOCKS] = verb_list_blocks,
        [KVL_VERB_EVENTS] = verb_events,
    };
    return functions[verb];
}
