/* operate.c - the calls that people's tools make: status, lists, clear, flush, verify, events. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client_internal.h"

static void take_ticket(void *context, const union kvl_wire_reply *reply) {
    *(struct kvl_ticket *)context = reply->ticket;
}

kvl_err kvl_clear(struct kvl_client *client, enum kvl_clear_scope scope, uint32_t namespace_id,
    const char *name, struct kvl_ticket *ticket) {
    struct kvl_wire_clear clear = {.scope = (uint32_t)scope, .namespace_id = namespace_id};
    *ticket = (struct kvl_ticket){0};
    if (name && strlen(name) > KVL_SESSION_NAME_MAX)
        return KVL_ERR_INVALID;
    if (name)
        strcpy(clear.name, name);
    return kvl_call_run(client, KVL_VERB_CLEAR, &clear, take_ticket, ticket);
}

kvl_err kvl_flush(struct kvl_client *client, struct kvl_ticket *ticket) {
    *ticket = (struct kvl_ticket){0};
    return kvl_call_run(client, KVL_VERB_FLUSH, NULL, take_ticket, ticket);
}

kvl_err kvl_verify(struct kvl_client *client, struct kvl_ticket *ticket) {
    *ticket = (struct kvl_ticket){0};
    return kvl_call_run(client, KVL_VERB_VERIFY, NULL, take_ticket, ticket);
}

static void take_progress(void *context, const union kvl_wire_reply *reply) {
    struct kvl_progress *out = context;
    out->status = (kvl_err)reply->progress.status;
    out->blocks_ready = reply->progress.blocks_ready;
    out->layers_ready = reply->progress.layers_ready;
    memcpy(out->values, reply->progress.values, sizeof out->values);
}

kvl_err kvl_ticket_ask(
    struct kvl_client *client, struct kvl_ticket ticket, struct kvl_progress *out) {
    memset(out, 0, sizeof *out);
    return kvl_call_run(client, KVL_VERB_TICKET_ASK, &ticket, take_progress, out);
}

/* ---- status ------------------------------------------------------------------------------- */

static void take_stats(void *context, const union kvl_wire_reply *reply) {
    *(struct kvl_wire_stats *)context = reply->stats;
}

kvl_err kvl_stats(
    struct kvl_client *client, struct kvl_store_report *report, struct kvl_daemon_info *daemon) {
    struct kvl_wire_stats stats = {0};
    kvl_err err = kvl_call_run(client, KVL_VERB_STATS, NULL, take_stats, &stats);
    if (err != KVL_OK)
        return err;
    if (report)
        *report = stats.report;
    if (!daemon)
        return KVL_OK;
    *daemon = (struct kvl_daemon_info){.pid = stats.pid, .persist_ms = stats.persist_ms};
    memcpy(daemon->version, stats.version, sizeof daemon->version);
    memcpy(daemon->device, stats.device, sizeof daemon->device);
    memcpy(daemon->address, stats.address, sizeof daemon->address);
    memcpy(daemon->disk_path, stats.disk_path, sizeof daemon->disk_path);
    return KVL_OK;
}

static void take_client(void *context, const union kvl_wire_reply *reply) {
    *(struct kvl_client_report *)context = reply->client;
}

kvl_err kvl_stats_client(struct kvl_client *client, uint32_t index, struct kvl_client_report *out) {
    return kvl_call_run(client, KVL_VERB_STATS_CLIENT, &index, take_client, out);
}

static void take_tenant(void *context, const union kvl_wire_reply *reply) {
    *(struct kvl_tenant_report *)context = reply->tenant;
}

kvl_err kvl_stats_tenant(struct kvl_client *client, uint32_t index, struct kvl_tenant_report *out) {
    return kvl_call_run(client, KVL_VERB_STATS_TENANT, &index, take_tenant, out);
}

struct text_target {
    char *text;
    size_t text_bytes;
};

static void take_text(void *context, const union kvl_wire_reply *reply) {
    struct text_target *target = context;
    if (target->text_bytes == 0)
        return;
    size_t bytes = reply->blob.bytes;
    bytes = bytes < target->text_bytes ? bytes : target->text_bytes - 1;
    memcpy(target->text, reply->blob.data, bytes);
    target->text[bytes] = 0;
}

kvl_err kvl_stats_warning(
    struct kvl_client *client, uint32_t index, char *text, size_t text_bytes) {
    struct text_target target = {.text = text, .text_bytes = text_bytes};
    return kvl_call_run(client, KVL_VERB_STATS_WARNING, &index, take_text, &target);
}

/* ---- pages -------------------------------------------------------------------------------- */

struct page_target {
    void *items;
    uint32_t item_bytes, max, count;
    uint64_t cursor;
    bool too_many;
};

static void take_page(void *context, const union kvl_wire_reply *reply) {
    struct page_target *target = context;
    target->too_many = reply->items.count > target->max;
    if (target->too_many)
        return;
    target->count = reply->items.count;
    target->cursor = reply->items.cursor;
    if (target->count != 0)
        memcpy(target->items, reply->items.data, (uint64_t)target->count * target->item_bytes);
}

static kvl_err run_page(
    struct kvl_client *client, uint16_t verb, uint64_t cursor, struct page_target *target) {
    struct kvl_wire_page page = {.cursor = cursor};
    page.max = target->max < KVL_WIRE_LIST_MAX ? target->max : KVL_WIRE_LIST_MAX;
    kvl_err err = kvl_call_run(client, verb, &page, take_page, target);
    return err == KVL_OK && target->too_many ? KVL_ERR_INVALID : err;
}

kvl_err kvl_list_blocks(struct kvl_client *client, uint64_t *cursor, uint32_t max,
    struct kvl_block_report *out, uint32_t *count) {
    struct page_target target = {.items = out, .item_bytes = sizeof *out, .max = max};
    kvl_err err = run_page(client, KVL_VERB_LIST_BLOCKS, *cursor, &target);
    *count = target.count;
    if (err == KVL_OK)
        *cursor = target.cursor;
    return err;
}

kvl_err kvl_events(struct kvl_client *client, uint64_t after, uint32_t max, struct kvl_event *out,
    uint32_t *count, uint64_t *oldest) {
    struct page_target target = {.items = out, .item_bytes = sizeof *out, .max = max};
    kvl_err err = run_page(client, KVL_VERB_EVENTS, after, &target);
    *count = target.count;
    *oldest = target.cursor;
    return err;
}

/* ---- ping --------------------------------------------------------------------------------- */

struct echo {
    const uint8_t *sent;
    uint32_t bytes;
    bool same;
};

static void take_echo(void *context, const union kvl_wire_reply *reply) {
    struct echo *echo = context;
    echo->same =
        reply->blob.bytes == echo->bytes && memcmp(reply->blob.data, echo->sent, echo->bytes) == 0;
}

kvl_err kvl_ping(struct kvl_client *client, uint32_t bytes) {
    if (bytes > KVL_WIRE_MESSAGE_BYTES_MAX - KVL_WIRE_HEADER_BYTES - 8)
        return KVL_ERR_TOOBIG;
    uint8_t *data = malloc(bytes + 1u);
    if (!data)
        return KVL_ERR_NOMEM;
    for (uint32_t i = 0; i < bytes; i++)
        data[i] = (uint8_t)(i * 7u + 1u);
    struct kvl_wire_blob blob = {.bytes = bytes, .data = data};
    struct echo echo = {.sent = data, .bytes = bytes};
    kvl_err err = kvl_call_run(client, KVL_VERB_PING, &blob, take_echo, &echo);
    free(data);
    return err == KVL_OK && !echo.same ? KVL_ERR_CORRUPT : err;
}
