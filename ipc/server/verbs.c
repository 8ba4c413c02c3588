/* verbs.c - what each verb about blocks does with the store. Arguments come from outside: what
 * the wire has not checked (tiers, unaligned arrays) is checked here. */
#include "server_internal.h"

#include <string.h>

#define VERB_ARGS                                                                                  \
    struct kvl_server *server, struct kvl_server_client *client,                                   \
        const union kvl_wire_request *request, union kvl_wire_reply *reply

_Static_assert(KVL_CHAIN_BLOCKS_MAX * sizeof(struct kvl_restored) <= KVL_SERVER_SCRATCH_BYTES,
    "a restore's reply fits");
_Static_assert(
    KVL_CHAIN_BLOCKS_MAX * sizeof(struct kvl_wire_sealed_item) <= KVL_SERVER_SCRATCH_BYTES,
    "a seal's reply fits");
_Static_assert(KVL_CHAIN_BLOCKS_MAX *(sizeof(uint64_t) + sizeof(struct kvl_ticket)) <=
                   KVL_SERVER_SCRATCH_BYTES,
    "a release's request fits");

static kvl_err verb_hello(VERB_ARGS) {
    (void)request;
    reply->hello.client = client->number;
    reply->hello.epoch = kvl_store_epoch(server->store);
    return KVL_OK;
}

static kvl_err verb_ping(VERB_ARGS) {
    (void)server;
    (void)client;
    reply->blob = request->blob;
    return KVL_OK;
}

static kvl_err verb_namespace_open(VERB_ARGS) {
    uint32_t tenant = client->view == KVL_TENANT_ALL ? KVL_TENANT_DEFAULT : client->view;
    return kvl_store_namespace_open(
        server->store, tenant, &request->namespace_open, &reply->namespace_info);
}

static kvl_err verb_namespace_at(VERB_ARGS) {
    bool there =
        kvl_store_namespace_at(server->store, client->view, request->u32, &reply->namespace_info);
    return there ? KVL_OK : KVL_ERR_NOTFOUND;
}

static kvl_err verb_lookup(VERB_ARGS) {
    const struct kvl_wire_chain *chain = &request->chain;
    reply->items.data = server->scratch;
    reply->items.count = chain->count;
    if (chain->flag) {
        kvl_store_lookup_each(server->store, chain->keys, chain->count, server->scratch);
        kvl_store_count_looked(
            server->store, client->store_client, chain->keys, chain->count, server->scratch);
    } else
        reply->items.count =
            kvl_store_lookup(server->store, chain->keys, chain->count, server->scratch);
    return KVL_OK;
}

static kvl_err verb_restore(VERB_ARGS) {
    const struct kvl_wire_chain *chain = &request->chain;
    if (chain->target > KVL_TIER_HOST)
        return KVL_ERR_INVALID;
    const struct kvl_restore_request ask = {.client = client->store_client,
        .target = (enum kvl_tier_kind)chain->target,
        .keys = chain->keys,
        .count = chain->count,
        .priority = KVL_IO_RESTORE};
    struct kvl_restore_reply answer = {0};
    kvl_err err = kvl_store_restore(server->store, &ask, server->scratch, &answer);
    reply->items = (struct kvl_wire_items){.count = answer.count,
        .flag = answer.out_of_space,
        .ticket = answer.ticket,
        .data = server->scratch};
    return err;
}

static kvl_err verb_prefetch(VERB_ARGS) {
    const struct kvl_wire_chain *chain = &request->chain;
    if (chain->target > KVL_TIER_HOST)
        return KVL_ERR_INVALID;
    return kvl_store_prefetch(server->store, client->store_client, chain->keys, chain->count,
        (enum kvl_tier_kind)chain->target, &reply->ticket);
}

static kvl_err verb_demote(VERB_ARGS) {
    const struct kvl_wire_chain *chain = &request->chain;
    if (chain->target != KVL_TIER_HOST && chain->target != KVL_TIER_DISK)
        return KVL_ERR_INVALID;
    return kvl_store_demote(server->store, client->store_client, chain->keys, chain->count,
        (enum kvl_tier_kind)chain->target, &reply->ticket);
}

static kvl_err verb_alloc(VERB_ARGS) {
    const struct kvl_wire_chain *chain = &request->chain;
    if (chain->target > KVL_TIER_HOST)
        return KVL_ERR_INVALID;
    const struct kvl_alloc_request ask = {.client = client->store_client,
        .namespace_id = chain->namespace_id,
        .target = (enum kvl_tier_kind)chain->target,
        .keys = chain->keys,
        .count = chain->count,
        .wait = chain->flag};
    struct kvl_ticket ticket = {0};
    memset(server->scratch, 0, chain->count * sizeof(struct kvl_allocated));
    kvl_err err = kvl_store_alloc(server->store, &ask, server->scratch, &ticket);
    reply->items =
        (struct kvl_wire_items){.count = chain->count, .ticket = ticket, .data = server->scratch};
    return err;
}

/* tokens: room for KVL_BLOCK_TOKENS_MAX: aligned, which the message need not be. */
static struct kvl_seal_request seal_request(
    const struct kvl_server_client *client, const struct kvl_wire_seal *seal, uint32_t *tokens) {
    memcpy(tokens, seal->tokens, seal->token_count * sizeof *tokens);
    struct kvl_seal_request ask = {.client = client->store_client,
        .lease = seal->lease,
        .parent = seal->parent,
        .tokens = tokens,
        .token_count = seal->token_count,
        .extra = {.data = seal->extra, .bytes = seal->extra_bytes},
        .opaque = seal->opaque};
    memcpy(ask.opaque_key, seal->opaque_key, sizeof ask.opaque_key);
    kvl_tenant_turn_key(&client->salt, &ask.parent);
    return ask;
}

uint32_t kvl_verb_seal_keys(struct kvl_server *server, struct kvl_server_client *client,
    const struct kvl_wire_seals *seals, struct kvl_key *keys) {
    uint32_t tokens[KVL_BLOCK_TOKENS_MAX], count = 0;
    uint64_t cursor = 0;
    for (uint32_t i = 0; i < seals->count; i++) {
        struct kvl_wire_seal seal = {0};
        kvl_wire_seal_next(seals, &cursor, &seal);
        const struct kvl_seal_request ask = seal_request(client, &seal, tokens);
        count += kvl_store_seal_key(server->store, &ask, &keys[count]);
    }
    return count;
}

static void seal_one(struct kvl_server *server, struct kvl_server_client *client,
    const struct kvl_wire_seal *seal, struct kvl_wire_sealed_item *out) {
    uint32_t tokens[KVL_BLOCK_TOKENS_MAX];
    const struct kvl_seal_request ask = seal_request(client, seal, tokens);
    *out = (struct kvl_wire_sealed_item){0};
    out->status = (uint32_t)kvl_store_seal(server->store, &ask, &out->key);
    kvl_tenant_turn_key(&client->salt, &out->key);
}

static kvl_err verb_seal(VERB_ARGS) {
    struct kvl_wire_sealed_item *items = server->scratch;
    uint64_t cursor = 0;
    for (uint32_t i = 0; i < request->seals.count; i++) {
        struct kvl_wire_seal seal = {0};
        kvl_wire_seal_next(&request->seals, &cursor, &seal);
        seal_one(server, client, &seal, &items[i]);
    }
    reply->items = (struct kvl_wire_items){.count = request->seals.count, .data = items};
    return KVL_OK;
}

static kvl_err verb_release(VERB_ARGS) {
    (void)reply;
    const struct kvl_wire_release *release = &request->release;
    uint64_t *leases = server->scratch;
    struct kvl_ticket *tickets = (struct kvl_ticket *)(leases + KVL_CHAIN_BLOCKS_MAX);
    memcpy(leases, release->leases, release->lease_count * sizeof *leases);
    memcpy(tickets, release->tickets, release->ticket_count * sizeof *tickets);
    kvl_store_release(server->store, client->store_client, leases, release->lease_count, tickets,
        release->ticket_count);
    return KVL_OK;
}

static kvl_err verb_pin(VERB_ARGS) {
    (void)client;
    const struct kvl_wire_chain *chain = &request->chain;
    reply->u32 = kvl_store_pin(server->store, chain->keys, chain->count, chain->flag);
    return KVL_OK;
}

kvl_verb_fn kvl_verb_function(uint32_t verb) {
    static const kvl_verb_fn functions[KVL_VERB_COUNT] = {
        [KVL_VERB_HELLO] = verb_hello,
        [KVL_VERB_PING] = verb_ping,
        [KVL_VERB_NAMESPACE_OPEN] = verb_namespace_open,
        [KVL_VERB_NAMESPACE_AT] = verb_namespace_at,
        [KVL_VERB_LOOKUP] = verb_lookup,
        [KVL_VERB_RESTORE] = verb_restore,
        [KVL_VERB_PREFETCH] = verb_prefetch,
        [KVL_VERB_DEMOTE] = verb_demote,
        [KVL_VERB_ALLOC] = verb_alloc,
        [KVL_VERB_SEAL] = verb_seal,
        [KVL_VERB_RELEASE] = verb_release,
        [KVL_VERB_PIN] = verb_pin,
    };
    if (verb >= KVL_VERB_COUNT)
        return NULL;
    return functions[verb] ? functions[verb] : kvl_verb_operate_function(verb);
}
