/* wire_operate.c - messages about sessions and for operators: status, clear, lists, events. */
#include <stddef.h>
#include <string.h>

#include "wire.h"

_Static_assert(sizeof(struct kvl_block_report) == 96, "see docs/wire.md");
_Static_assert(offsetof(struct kvl_block_report, hits) == 76, "see docs/wire.md");
_Static_assert(sizeof((struct kvl_tenant_report){0}.tiers[0]) == 6 * sizeof(uint64_t), "six");
_Static_assert(sizeof(struct kvl_event) == 48, "sequence, kind, tier, key");
_Static_assert(sizeof(struct kvl_tier_report) == 13 * sizeof(uint64_t), "thirteen numbers");
_Static_assert(offsetof(struct kvl_store_report, loaded) ==
                   3 * sizeof(struct kvl_tier_report) + 16 * sizeof(uint64_t),
    "sixteen numbers after the tiers");

/* ---- sessions ----------------------------------------------------------------------------- */

void kvl_wire_session_name(struct kvl_wire *wire, void *message) {
    struct kvl_wire_session *session = message;
    kvl_wire_text(wire, session->name, sizeof session->name);
}

void kvl_wire_session_open(struct kvl_wire *wire, void *message) {
    struct kvl_wire_session *session = message;
    kvl_wire_key(wire, &session->key);
    kvl_wire_session_name(wire, message);
}

void kvl_wire_session_read(struct kvl_wire *wire, void *message) {
    struct kvl_wire_session *session = message;
    kvl_wire_u64(wire, &session->from_token);
    kvl_wire_count(wire, &session->count, KVL_WIRE_SESSION_TOKENS_MAX);
    kvl_wire_session_name(wire, message);
}

void kvl_wire_session_append(struct kvl_wire *wire, void *message) {
    struct kvl_wire_session *session = message;
    const void *tokens = session->tokens;
    kvl_wire_u64(wire, &session->from_token);
    kvl_wire_count(wire, &session->count, KVL_WIRE_SESSION_TOKENS_MAX);
    kvl_wire_session_name(wire, message);
    kvl_wire_array(wire, &tokens, session->count, sizeof(uint32_t));
    session->tokens = tokens;
}

void kvl_wire_session_tail(struct kvl_wire *wire, void *message) {
    struct kvl_wire_session *session = message;
    kvl_wire_key(wire, &session->key);
    kvl_wire_u32(wire, &session->tail_tokens);
    kvl_wire_session_name(wire, message);
}

void kvl_wire_session_info(struct kvl_wire *wire, void *message) {
    struct kvl_session_info *info = message;
    kvl_wire_key(wire, &info->namespace_key);
    kvl_wire_u64(wire, &info->token_count);
    kvl_wire_key(wire, &info->tail);
    kvl_wire_u32(wire, &info->tail_tokens);
    kvl_wire_u32(wire, &info->holder_pid);
    kvl_wire_fixed_text(wire, info->holder_name, sizeof info->holder_name);
    kvl_wire_u64(wire, &info->updated_wall_ns);
    kvl_wire_text(wire, info->name, sizeof info->name);
}

void kvl_wire_session_tokens(struct kvl_wire *wire, void *message) {
    struct kvl_wire_session_tokens *reply = message;
    const void *tokens = reply->tokens;
    kvl_wire_session_info(wire, &reply->info);
    kvl_wire_count(wire, &reply->count, KVL_WIRE_SESSION_TOKENS_MAX);
    kvl_wire_array(wire, &tokens, reply->count, sizeof(uint32_t));
    reply->tokens = tokens;
}

/* ---- operating ---------------------------------------------------------------------------- */

void kvl_wire_clear(struct kvl_wire *wire, void *message) {
    struct kvl_wire_clear *clear = message;
    kvl_wire_u32(wire, &clear->scope);
    kvl_wire_u32(wire, &clear->namespace_id);
    kvl_wire_text(wire, clear->name, sizeof clear->name);
}

void kvl_wire_stats(struct kvl_wire *wire, void *message) {
    struct kvl_wire_stats *stats = message;
    kvl_wire_raw(wire, &stats->report, offsetof(struct kvl_store_report, loaded));
    kvl_wire_flag(wire, &stats->report.loaded);
    kvl_wire_u32(wire, &stats->pid);
    kvl_wire_u32(wire, &stats->persist_ms);
    kvl_wire_zero(wire, 4);
    kvl_wire_fixed_text(wire, stats->version, sizeof stats->version);
    kvl_wire_fixed_text(wire, stats->device, sizeof stats->device);
    kvl_wire_fixed_text(wire, stats->address, sizeof stats->address);
    kvl_wire_fixed_text(wire, stats->disk_path, sizeof stats->disk_path);
}

void kvl_wire_client_report(struct kvl_wire *wire, void *message) {
    struct kvl_client_report *report = message;
    kvl_wire_u32(wire, &report->client);
    kvl_wire_u32(wire, &report->pid);
    kvl_wire_u32(wire, &report->uid);
    kvl_wire_flag(wire, &report->leaving);
    kvl_wire_fixed_text(wire, report->name, sizeof report->name);
    kvl_wire_u64(wire, &report->read_leases);
    kvl_wire_u64(wire, &report->write_leases);
    kvl_wire_u64(wire, &report->leased_bytes);
}

void kvl_wire_tenant_report(struct kvl_wire *wire, void *message) {
    struct kvl_tenant_report *report = message;
    kvl_wire_fixed_text(wire, report->name, sizeof report->name);
    for (uint32_t tier = 0; tier < KVL_TIER_COUNT; tier++)
        kvl_wire_raw(wire, &report->tiers[tier], sizeof report->tiers[tier]);
    kvl_wire_u64(wire, &report->clients);
    kvl_wire_u64(wire, &report->sessions);
    kvl_wire_flag(wire, &report->admitted);
}

void kvl_wire_page(struct kvl_wire *wire, void *message) {
    struct kvl_wire_page *page = message;
    kvl_wire_u64(wire, &page->cursor);
    kvl_wire_count(wire, &page->max, KVL_WIRE_LIST_MAX);
    kvl_wire_zero(wire, 4);
}

static void code_list(struct kvl_wire *wire, struct kvl_wire_items *items, uint32_t item_bytes) {
    kvl_wire_u64(wire, &items->cursor);
    kvl_wire_count(wire, &items->count, KVL_WIRE_LIST_MAX);
    kvl_wire_zero(wire, 4);
    kvl_wire_array(wire, &items->data, items->count, item_bytes);
}

void kvl_wire_blocks(struct kvl_wire *wire, void *message) {
    code_list(wire, message, sizeof(struct kvl_block_report));
}

void kvl_wire_events(struct kvl_wire *wire, void *message) {
    code_list(wire, message, sizeof(struct kvl_event));
}
