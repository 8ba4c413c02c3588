#include "samples.h"

#include <stdlib.h>
#include <string.h>

#define KEYS 3
#define TOKENS 5

static struct kvl_key keys[KEYS] = {{{1, 2, 3}}, {{4, 5, 6}}, {{0xff}}};
static uint32_t tokens[TOKENS] = {1, 2, 0xffffffff, 4, 5};
static uint64_t leases[2] = {0x1122334455667788u, 2};
static struct kvl_ticket tickets[3] = {{1, 2}, {3, 4}, {5, 6}};
static struct kvl_wire_seal seals[2];
static struct kvl_restored restored[2] = {{7, 4096, 1, 64}, {8, 8192, 2, 3}};
static struct kvl_allocated allocated[2] = {{1, 0, 9, 4096}, {3, 0, 0, 0}};
static struct kvl_wire_sealed_item sealed[2] = {{0, {{1}}}, {11, {{2}}}};
static struct kvl_block_report blocks[2] = {{.token_count = 64, .tiers = 5, .hits = 9}};
static struct kvl_event events[2] = {{1, 2, 0, {{3}}}, {2, 4, 1, {{5}}}};

static void fill_request(uint32_t verb, union kvl_wire_request *out) {
    switch (verb) {
    case KVL_VERB_HELLO:
        out->hello =
            (struct kvl_wire_hello){.pid = 42, .name = "sample", .tenant = "acme", .nonce = {1}};
        break;
    case KVL_VERB_PING:
        out->blob = (struct kvl_wire_blob){.bytes = 7, .data = (const uint8_t *)"abcdefg"};
        break;
    case KVL_VERB_NAMESPACE_OPEN:
        out->namespace_open = (struct kvl_namespace_request){
            .key = keys[0], .geometry = {30, 3, 64, 64, 64, 0, 0}, .dtype = 1, .label = "model"};
        break;
    case KVL_VERB_LOOKUP:
    case KVL_VERB_RESTORE:
    case KVL_VERB_PREFETCH:
    case KVL_VERB_DEMOTE:
    case KVL_VERB_ALLOC:
    case KVL_VERB_PIN:
        out->chain = (struct kvl_wire_chain){
            .namespace_id = 1, .target = 1, .flag = true, .count = KEYS, .keys = keys};
        break;
    case KVL_VERB_SEAL:
        seals[0] = (struct kvl_wire_seal){.lease = 1,
            .token_count = TOKENS,
            .tokens = (const uint8_t *)tokens,
            .extra_bytes = 3,
            .extra = (const uint8_t *)"img"};
        seals[1] = (struct kvl_wire_seal){.lease = 2, .opaque = true, .opaque_key = {9}};
        out->seals = (struct kvl_wire_seals){.count = 2, .items = seals};
        break;
    case KVL_VERB_RELEASE:
        out->release = (struct kvl_wire_release){.lease_count = 2,
            .ticket_count = 3,
            .leases = (const uint8_t *)leases,
            .tickets = (const uint8_t *)tickets};
        break;
    case KVL_VERB_CLEAR:
        out->clear = (struct kvl_wire_clear){.scope = 3, .name = "work"};
        break;
    case KVL_VERB_TICKET_ASK:
        out->ticket = tickets[1];
        break;
    case KVL_VERB_LIST_BLOCKS:
    case KVL_VERB_EVENTS:
        out->page = (struct kvl_wire_page){.cursor = 77, .max = 100};
        break;
    case KVL_VERB_NAMESPACE_AT:
    case KVL_VERB_SESSION_AT:
    case KVL_VERB_STATS_CLIENT:
    case KVL_VERB_STATS_TENANT:
    case KVL_VERB_STATS_WARNING:
        out->u32 = 3;
        break;
    default: /* the session verbs; the rest has no body */
        out->session = (struct kvl_wire_session){.name = "work",
            .key = keys[1],
            .tail_tokens = 3,
            .from_token = 1000,
            .count = TOKENS,
            .tokens = (const uint8_t *)tokens};
    }
}

static const void *sample_items(uint32_t verb) {
    switch (verb) {
    case KVL_VERB_RESTORE:
        return restored;
    case KVL_VERB_ALLOC:
        return allocated;
    case KVL_VERB_SEAL:
        return sealed;
    case KVL_VERB_LIST_BLOCKS:
        return blocks;
    case KVL_VERB_EVENTS:
        return events;
    default:
        return "\1\4";
    }
}

static void fill_reply(uint32_t verb, union kvl_wire_reply *out) {
    switch (verb) {
    case KVL_VERB_HELLO:
        out->hello = (struct kvl_wire_hello_reply){.client = 65537, .epoch = 5, .token = {1}};
        break;
    case KVL_VERB_PING:
    case KVL_VERB_STATS_WARNING:
        out->blob = (struct kvl_wire_blob){.bytes = 3, .data = (const uint8_t *)"abc"};
        break;
    case KVL_VERB_NAMESPACE_OPEN:
    case KVL_VERB_NAMESPACE_AT:
        out->namespace_info = (struct kvl_namespace_info){.id = 1, .key = keys[0], .label = "m"};
        break;
    case KVL_VERB_PREFETCH:
    case KVL_VERB_DEMOTE:
    case KVL_VERB_CLEAR:
    case KVL_VERB_FLUSH:
    case KVL_VERB_VERIFY:
        out->ticket = tickets[2];
        break;
    case KVL_VERB_PIN:
        out->u32 = 3;
        break;
    case KVL_VERB_SESSION_OPEN:
    case KVL_VERB_SESSION_DROP:
    case KVL_VERB_SESSION_AT:
        out->session = (struct kvl_session_info){
            .name = "work", .token_count = 9, .holder_pid = 3, .holder_name = "other"};
        break;
    case KVL_VERB_SESSION_READ:
        out->session_tokens.info.token_count = TOKENS;
        out->session_tokens.count = TOKENS;
        out->session_tokens.tokens = (const uint8_t *)tokens;
        break;
    case KVL_VERB_TICKET_ASK:
        out->progress = (struct kvl_wire_progress){.status = 12, .blocks_ready = 3};
        break;
    case KVL_VERB_STATS:
        out->stats = (struct kvl_wire_stats){.pid = 1, .version = "0.1.0", .device = "cpu"};
        break;
    case KVL_VERB_STATS_TENANT:
        out->tenant = (struct kvl_tenant_report){
            .name = "acme", .tiers = {[KVL_TIER_DISK] = {.quota_bytes = 7}}, .admitted = true};
        break;
    case KVL_VERB_STATS_CLIENT:
        out->client =
            (struct kvl_client_report){.client = 1, .pid = 2, .leaving = true, .name = "engine"};
        break;
    default:
        out->items = (struct kvl_wire_items){
            .count = 2, .flag = true, .ticket = tickets[0], .data = sample_items(verb)};
    }
}

bool sample_request(uint32_t verb, struct kvl_wire_buffer *buffer) {
    const struct kvl_wire_verb *entry = kvl_wire_verb(verb);
    union kvl_wire_request request;
    memset(&request, 0, sizeof request);
    struct kvl_wire_header header = {.version = KVL_WIRE_VERSION,
        .verb = (uint16_t)verb,
        .client = 65537,
        .token = {7},
        .epoch = 99,
        .sequence = 3};
    if (!entry)
        return false;
    fill_request(verb, &request);
    return kvl_wire_encode(buffer, &header, entry->request, &request) == KVL_OK;
}

bool sample_reply(uint32_t verb, struct kvl_wire_buffer *buffer) {
    const struct kvl_wire_verb *entry = kvl_wire_verb(verb);
    union kvl_wire_reply reply;
    memset(&reply, 0, sizeof reply);
    struct kvl_wire_header header = {
        .version = KVL_WIRE_VERSION, .verb = (uint16_t)verb, .client = 65537, .sequence = 3};
    if (!entry)
        return false;
    fill_reply(verb, &reply);
    return kvl_wire_encode(buffer, &header, entry->reply, &reply) == KVL_OK;
}
