/* server_fuzz.c - what clients may ask of a daemon, one request after the other, on a real store:
 * each gets a status or a reply that a client can read, and when all clients are gone nothing of
 * theirs is left.
 *
 *   repeated: u8 verb (0: wait until all is quiet; 254: client leaves, and asks no more; else above
 *             the verbs: it ends, and another comes) | u8 client | u16le body bytes | body
 *
 * In a body, MARK | u8 0, n | stands for the nth lease, 1 ticket, 2 key so far (eight bytes, for a
 * key thirty-two): a corpus cannot know them beforehand. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "memory/memory_tier.h"
#include "server_internal.h"

#define CLIENTS 3u /* the last one has not attached */
#define TIER_BYTES (256u << 10)
#define KEPT 32u
#define LEAVE 254u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes);

static const uint8_t mark[6] = {0xfe, 0xed, 0xfa, 0xce, 0xca, 0xfe};

struct world {
    struct kvl_tier *device, *host;
    struct kvl_store *store;
    struct kvl_server *server;
    uint64_t leases[KEPT];
    struct kvl_ticket tickets[KEPT];
    struct kvl_key keys[KEPT];
    uint32_t lease_count, ticket_count, key_count;
};

static void need(bool is_so) {
    if (!is_so)
        abort();
}

static struct kvl_tier *make_tier(enum kvl_tier_kind kind) {
    struct kvl_memory_tier_options options = {.kind = kind, .capacity_bytes = TIER_BYTES};
    struct kvl_tier *tier;
    need(kvl_memory_tier_create(&options, &tier, NULL) == KVL_OK);
    kvl_memory_tier_wait_touched(tier);
    return tier;
}

static void join(struct world *world, uint32_t number) {
    struct kvl_server_client *client = &world->server->clients[number];
    bool attached = number != CLIENTS - 1;
    struct kvl_client_info info = {
        .pid = number + 1, .name = "fuzz", .attached = attached, .sees_all = true};
    client->used = true;
    client->leaving = false;
    client->attached = attached;
    client->number = number;
    need(kvl_store_client_open(world->store, &info, &client->store_client) == KVL_OK);
    kvl_door_enter(world->server, client, &info, "");
}

static void begin(struct world *world) {
    static struct kvl_server server;
    *world = (struct world){.server = &server};
    world->device = make_tier(KVL_TIER_DEVICE);
    world->host = make_tier(KVL_TIER_HOST);
    struct kvl_store_options options = {.device = world->device, .host = world->host};
    need(kvl_store_create(&options, &world->store, NULL) == KVL_OK);
    server.store = world->store;
    if (server.scratch == NULL)
        server.scratch = malloc(KVL_SERVER_SCRATCH_BYTES);
    need(server.scratch != NULL);
    for (uint32_t i = 0; i < CLIENTS; i++)
        join(world, i);
}

static void wait_quiet(struct world *world) {
    need(kvl_store_drain(world->store, UINT64_MAX) == KVL_OK);
}

/* What must be true once nobody is there and everything is cleared. */
static void check_empty(struct world *world) {
    struct kvl_store_report report;
    struct kvl_ticket ticket;
    for (uint32_t i = 0; i < CLIENTS; i++)
        kvl_store_client_close(world->store, world->server->clients[i].store_client);
    join(world, 0);
    uint32_t client = world->server->clients[0].store_client;
    struct kvl_clear_request clear = {.client = client, .scope = KVL_CLEAR_ALL};
    wait_quiet(world);
    need(kvl_store_clear(world->store, &clear, &ticket) == KVL_OK);
    wait_quiet(world);
    kvl_store_client_close(world->store, client);
    kvl_store_report(world->store, KVL_TENANT_ALL, &report);
    need(report.clients == 0 && report.leases == 0 && report.leased_bytes == 0);
    need(report.blocks == 0);
    need(report.tiers[KVL_TIER_DEVICE].used_bytes == 0);
    need(report.tiers[KVL_TIER_HOST].used_bytes == 0);
}

static void end(struct world *world) {
    kvl_store_destroy(world->store);
    world->host->ops->deinit(world->host);
    world->device->ops->deinit(world->device);
}

/* ---- what a corpus cannot know --------------------------------------------------------------- */

static void substitute(const struct world *world, uint8_t *body, uint32_t body_bytes) {
    for (uint32_t at = 0; at + 8 <= body_bytes; at += 4) {
        if (memcmp(body + at, mark, sizeof mark) != 0)
            continue;
        uint32_t kind = body[at + 6], number = body[at + 7] % KEPT;
        if (kind == 0 && number < world->lease_count)
            memcpy(body + at, &world->leases[number], 8);
        else if (kind == 1 && number < world->ticket_count)
            memcpy(body + at, &world->tickets[number], 8);
        else if (kind == 2 && number < world->key_count && at + KVL_KEY_BYTES <= body_bytes)
            memcpy(body + at, world->keys[number].bytes, KVL_KEY_BYTES);
    }
}

static void keep_lease(struct world *world, uint64_t lease) {
    if (lease != 0 && world->lease_count < KEPT)
        world->leases[world->lease_count++] = lease;
}

static void keep_ticket(struct world *world, struct kvl_ticket ticket) {
    if (ticket.generation != 0 && world->ticket_count < KEPT)
        world->tickets[world->ticket_count++] = ticket;
}

static void keep_items(struct world *world, uint32_t verb, const struct kvl_wire_items *items) {
    keep_ticket(world, items->ticket);
    for (uint32_t i = 0; i < items->count; i++) {
        if (verb == KVL_VERB_ALLOC)
            keep_lease(world, ((const struct kvl_allocated *)items->data)[i].lease);
        if (verb == KVL_VERB_RESTORE)
            keep_lease(world, ((const struct kvl_restored *)items->data)[i].lease);
        const struct kvl_wire_sealed_item *sealed = items->data;
        if (verb == KVL_VERB_SEAL && sealed[i].status == KVL_OK && world->key_count < KEPT)
            world->keys[world->key_count++] = sealed[i].key;
    }
}

static void keep(struct world *world, uint32_t verb, const union kvl_wire_reply *reply) {
    switch (verb) {
    case KVL_VERB_ALLOC:
    case KVL_VERB_RESTORE:
    case KVL_VERB_SEAL:
        keep_items(world, verb, &reply->items);
        break;
    case KVL_VERB_PREFETCH:
    case KVL_VERB_DEMOTE:
    case KVL_VERB_CLEAR:
    case KVL_VERB_FLUSH:
    case KVL_VERB_VERIFY:
        keep_ticket(world, reply->ticket);
        break;
    default:
        break;
    }
}

/* ---- one request ----------------------------------------------------------------------------- */

static void check_events(const union kvl_wire_reply *reply, uint64_t after) {
    const struct kvl_event *events = reply->items.data;
    for (uint32_t i = 0; i < reply->items.count; i++) {
        need(events[i].sequence > after);
        after = events[i].sequence;
    }
}

/* A client must be able to read it. */
static void check_reply(uint32_t verb_number, union kvl_wire_reply *reply) {
    static struct kvl_wire_buffer buffer;
    const struct kvl_wire_verb *verb = kvl_wire_verb(verb_number);
    struct kvl_wire_header header = {.version = KVL_WIRE_VERSION, .verb = (uint16_t)verb_number};
    union kvl_wire_reply read;
    memset(&read, 0, sizeof read);
    need(kvl_wire_encode(&buffer, &header, verb->reply, reply) == KVL_OK);
    need(kvl_wire_decode(verb->reply, buffer.data + KVL_WIRE_HEADER_BYTES,
             buffer.bytes - KVL_WIRE_HEADER_BYTES, &read) == KVL_OK);
}

static void ask(struct world *world, uint32_t verb_number, struct kvl_server_client *client,
    const uint8_t *body, uint32_t body_bytes) {
    const struct kvl_wire_verb *verb = kvl_wire_verb(verb_number);
    union kvl_wire_request request;
    union kvl_wire_reply reply;
    memset(&request, 0, sizeof request);
    memset(&reply, 0, sizeof reply);
    if (verb == NULL || kvl_wire_decode(verb->request, body, body_bytes, &request) != KVL_OK ||
        ((verb->flags & KVL_WIRE_LEASING) != 0 && !client->attached))
        return;
    if (kvl_door_in(world->server, client, verb_number, &request) != KVL_OK)
        return;
    kvl_err err = kvl_verb_function(verb_number)(world->server, client, &request, &reply);
    kvl_door_out(world->server, client, verb_number, &reply);
    need(strcmp(kvl_err_name(err), "UNKNOWN") != 0);
    if (err == KVL_OK && verb_number == KVL_VERB_EVENTS)
        check_events(&reply, request.page.cursor);
    if (err == KVL_OK || (verb->flags & KVL_WIRE_BODY_ON_ERROR) != 0)
        check_reply(verb_number, &reply);
    if (err == KVL_OK)
        keep(world, verb_number, &reply);
}

static void step(struct world *world, const uint8_t *head, const uint8_t *data, uint32_t bytes) {
    uint32_t verb = head[0], number = head[1] % CLIENTS;
    struct kvl_server_client *client = &world->server->clients[number];
    if (verb == 0) {
        wait_quiet(world);
    } else if (verb == LEAVE && kvl_store_client_leave(world->store, client->store_client)) {
        client->leaving = true;
    } else if (verb >= KVL_VERB_COUNT) {
        kvl_store_client_close(world->store, client->store_client);
        join(world, number);
    } else if (!client->leaving) {
        uint8_t *body = malloc(bytes + 1u);
        need(body != NULL);
        memcpy(body, data, bytes);
        substitute(world, body, bytes);
        ask(world, verb, client, body, bytes);
        free(body);
    }
    kvl_store_poll(world->store);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes) {
    struct world world;
    begin(&world);
    while (data_bytes >= 4) {
        const uint8_t *head = data;
        uint32_t bytes = head[2] | head[3] * 256u;
        data += 4;
        data_bytes -= 4;
        bytes = bytes < data_bytes ? bytes : (uint32_t)data_bytes;
        step(&world, head, data, bytes);
        data += bytes;
        data_bytes -= bytes;
    }
    check_empty(&world);
    end(&world);
    return 0;
}
