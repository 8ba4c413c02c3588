/* blocks.c - the calls about namespaces and blocks: arguments to a request, a reply to results.
 *
 * Counts in a reply are checked against what was asked for before anything is copied out. */
#include <stdlib.h>
#include <string.h>

#include "client_internal.h"

/* ---- namespaces --------------------------------------------------------------------------- */

static void take_namespace(void *context, const union kvl_wire_reply *reply) {
    *(struct kvl_namespace_info *)context = reply->namespace_info;
}

kvl_err kvl_client_namespace(struct kvl_client *client, const struct kvl_namespace_request *request,
    struct kvl_namespace_info *out) {
    struct kvl_namespace_request copy = *request;
    return kvl_call_run(client, KVL_VERB_NAMESPACE_OPEN, &copy, take_namespace, out);
}

kvl_err kvl_client_namespace_at(
    struct kvl_client *client, uint32_t index, struct kvl_namespace_info *out) {
    return kvl_call_run(client, KVL_VERB_NAMESPACE_AT, &index, take_namespace, out);
}

/* ---- chains ------------------------------------------------------------------------------- */

/* Where a list in a reply goes. */
struct list_target {
    void *items;
    uint32_t item_bytes, max, count;
    bool flag, too_many;
    struct kvl_ticket ticket;
};

static void take_list(void *context, const union kvl_wire_reply *reply) {
    struct list_target *target = context;
    target->too_many = reply->items.count > target->max;
    if (target->too_many)
        return;
    target->count = reply->items.count;
    target->flag = reply->items.flag;
    target->ticket = reply->items.ticket;
    if (target->count != 0)
        memcpy(target->items, reply->items.data, (uint64_t)target->count * target->item_bytes);
}

static kvl_err run_list(
    struct kvl_client *client, uint16_t verb, void *request, struct list_target *target) {
    kvl_err err = kvl_call_run(client, verb, request, take_list, target);
    return err == KVL_OK && target->too_many ? KVL_ERR_INVALID : err;
}

/* Items that the daemon left out stand for blocks that are nowhere. */
static kvl_err look_up(struct kvl_client *client, const struct kvl_key *keys, uint32_t count,
    bool each, uint8_t *found, uint32_t *answered) {
    *answered = 0;
    if (count > KVL_CHAIN_BLOCKS_MAX)
        return KVL_ERR_TOOBIG;
    struct kvl_wire_chain chain = {.flag = each, .count = count, .keys = keys};
    struct list_target target = {.items = found, .item_bytes = 1, .max = count};
    kvl_err err = run_list(client, KVL_VERB_LOOKUP, &chain, &target);
    if (err != KVL_OK)
        return err;
    memset(found + target.count, 0, count - target.count);
    *answered = target.count;
    return KVL_OK;
}

kvl_err kvl_lookup(struct kvl_client *client, const struct kvl_key *keys, uint32_t count,
    uint8_t *found, uint32_t *hits) {
    return look_up(client, keys, count, false, found, hits);
}

kvl_err kvl_lookup_each(
    struct kvl_client *client, const struct kvl_key *keys, uint32_t count, uint8_t *found) {
    uint32_t answered;
    return look_up(client, keys, count, true, found, &answered);
}

kvl_err kvl_restore(struct kvl_client *client, enum kvl_tier_kind tier, const struct kvl_key *keys,
    uint32_t count, struct kvl_restored *blocks, struct kvl_restore_result *result) {
    *result = (struct kvl_restore_result){0};
    if (count > KVL_CHAIN_BLOCKS_MAX)
        return KVL_ERR_TOOBIG;
    struct kvl_wire_chain chain = {.target = (uint32_t)tier, .count = count, .keys = keys};
    struct list_target target = {.items = blocks, .item_bytes = sizeof *blocks, .max = count};
    kvl_err err = run_list(client, KVL_VERB_RESTORE, &chain, &target);
    if (err != KVL_OK)
        return err;
    *result = (struct kvl_restore_result){
        .count = target.count, .out_of_space = target.flag, .ticket = target.ticket};
    return KVL_OK;
}

static void take_ticket(void *context, const union kvl_wire_reply *reply) {
    *(struct kvl_ticket *)context = reply->ticket;
}

static kvl_err move_chain(struct kvl_client *client, uint16_t verb, enum kvl_tier_kind tier,
    const struct kvl_key *keys, uint32_t count, struct kvl_ticket *ticket) {
    *ticket = (struct kvl_ticket){0};
    if (count > KVL_CHAIN_BLOCKS_MAX)
        return KVL_ERR_TOOBIG;
    struct kvl_wire_chain chain = {.target = (uint32_t)tier, .count = count, .keys = keys};
    return kvl_call_run(client, verb, &chain, take_ticket, ticket);
}

kvl_err kvl_prefetch(struct kvl_client *client, enum kvl_tier_kind tier, const struct kvl_key *keys,
    uint32_t count, struct kvl_ticket *ticket) {
    return move_chain(client, KVL_VERB_PREFETCH, tier, keys, count, ticket);
}

kvl_err kvl_demote(struct kvl_client *client, enum kvl_tier_kind tier, const struct kvl_key *keys,
    uint32_t count, struct kvl_ticket *ticket) {
    return move_chain(client, KVL_VERB_DEMOTE, tier, keys, count, ticket);
}

static void take_number(void *context, const union kvl_wire_reply *reply) {
    *(uint32_t *)context = reply->u32;
}

kvl_err kvl_pin(struct kvl_client *client, const struct kvl_key *keys, uint32_t count, bool pinned,
    uint32_t *changed) {
    *changed = 0;
    if (count > KVL_CHAIN_BLOCKS_MAX)
        return KVL_ERR_TOOBIG;
    struct kvl_wire_chain chain = {.flag = pinned, .count = count, .keys = keys};
    return kvl_call_run(client, KVL_VERB_PIN, &chain, take_number, changed);
}

/* ---- alloc -------------------------------------------------------------------------------- */

kvl_err kvl_alloc(struct kvl_client *client, uint32_t namespace_id, enum kvl_tier_kind tier,
    const struct kvl_key *keys, uint32_t count, bool wait, struct kvl_allocated *blocks,
    struct kvl_ticket *ticket) {
    *ticket = (struct kvl_ticket){0};
    if (count > KVL_CHAIN_BLOCKS_MAX)
        return KVL_ERR_TOOBIG;
    struct kvl_wire_chain chain = {.namespace_id = namespace_id,
        .target = (uint32_t)tier,
        .flag = wait,
        .count = count,
        .keys = keys};
    struct list_target target = {.items = blocks, .item_bytes = sizeof *blocks, .max = count};
    kvl_err err = run_list(client, KVL_VERB_ALLOC, &chain, &target);
    if (err == KVL_OK && target.count != count)
        err = KVL_ERR_INVALID;
    *ticket = target.ticket;
    return err;
}

/* ---- seal --------------------------------------------------------------------------------- */

static void to_wire_seal(const struct kvl_seal *seal, struct kvl_wire_seal *out) {
    *out = (struct kvl_wire_seal){.lease = seal->lease,
        .parent = seal->parent,
        .opaque = seal->opaque,
        .token_count = seal->opaque ? 0 : seal->token_count,
        .extra_bytes = seal->extra.bytes,
        .tokens = (const uint8_t *)seal->tokens,
        .extra = seal->extra.data};
    memcpy(out->opaque_key, seal->opaque_key, sizeof out->opaque_key);
}

/* NULL when out of memory; free it. */
static struct kvl_wire_seal *to_wire_seals(const struct kvl_seal *blocks, uint32_t count) {
    struct kvl_wire_seal *items = calloc(count ? count : 1, sizeof *items);
    for (uint32_t i = 0; items && i < count; i++)
        to_wire_seal(&blocks[i], &items[i]);
    return items;
}

static void from_wire_sealed(
    const struct kvl_wire_items *items, struct kvl_sealed *sealed, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        struct kvl_wire_sealed_item item;
        memcpy(&item, (const uint8_t *)items->data + (uint64_t)i * sizeof item, sizeof item);
        sealed[i] = (struct kvl_sealed){.status = (kvl_err)item.status, .key = item.key};
    }
}

struct seal_target {
    struct kvl_sealed *sealed;
    uint32_t count;
    bool right_count;
};

static void take_sealed(void *context, const union kvl_wire_reply *reply) {
    struct seal_target *target = context;
    target->right_count = reply->items.count == target->count;
    if (target->right_count)
        from_wire_sealed(&reply->items, target->sealed, target->count);
}

/* How many of the blocks fit one message. */
static uint32_t seals_that_fit(const struct kvl_seal *blocks, uint32_t count) {
    uint64_t bytes = KVL_WIRE_HEADER_BYTES + 8;
    for (uint32_t i = 0; i < count; i++) {
        bytes += 96 + (uint64_t)blocks[i].token_count * sizeof(uint32_t) + blocks[i].extra.bytes;
        if (bytes > KVL_WIRE_MESSAGE_BYTES_MAX || i == KVL_CHAIN_BLOCKS_MAX)
            return i;
    }
    return count;
}

static bool seals_are_sound(const struct kvl_seal *blocks, uint32_t count) {
    for (uint32_t i = 0; i < count; i++)
        if ((!blocks[i].opaque && blocks[i].token_count > KVL_BLOCK_TOKENS_MAX) ||
            blocks[i].extra.bytes > 65536)
            return false;
    return true;
}

static kvl_err seal_some(struct kvl_client *client, const struct kvl_seal *blocks, uint32_t count,
    struct kvl_sealed *sealed) {
    struct kvl_wire_seals seals = {.count = count, .items = to_wire_seals(blocks, count)};
    if (!seals.items)
        return KVL_ERR_NOMEM;
    struct seal_target target = {.sealed = sealed, .count = count};
    kvl_err err = kvl_call_run(client, KVL_VERB_SEAL, &seals, take_sealed, &target);
    free(seals.items);
    return err == KVL_OK && !target.right_count ? KVL_ERR_INVALID : err;
}

kvl_err kvl_seal(struct kvl_client *client, const struct kvl_seal *blocks, uint32_t count,
    struct kvl_sealed *sealed) {
    if (!seals_are_sound(blocks, count))
        return KVL_ERR_INVALID;
    for (uint32_t at = 0; at < count;) {
        uint32_t part = seals_that_fit(blocks + at, count - at);
        kvl_err err = seal_some(client, blocks + at, part, sealed + at);
        if (err != KVL_OK)
            return err;
        at += part;
    }
    return KVL_OK;
}

/* ---- release ------------------------------------------------------------------------------ */

kvl_err kvl_release(struct kvl_client *client, const uint64_t *leases, uint32_t lease_count,
    const struct kvl_ticket *tickets, uint32_t ticket_count) {
    if (lease_count > KVL_CHAIN_BLOCKS_MAX || ticket_count > KVL_CHAIN_BLOCKS_MAX)
        return KVL_ERR_TOOBIG;
    struct kvl_wire_release release = {.lease_count = lease_count,
        .ticket_count = ticket_count,
        .leases = (const uint8_t *)leases,
        .tickets = (const uint8_t *)tickets};
    return kvl_call_run(client, KVL_VERB_RELEASE, &release, NULL, NULL);
}

/* ---- asynchronous ------------------------------------------------------------------------- */

struct async {
    uint32_t count;
    void *arg;
    kvl_alloc_done alloc;
    kvl_seal_done seal;
};

static kvl_err submit_async(struct kvl_client *client, uint16_t verb, void *request,
    kvl_call_done done, struct async what) {
    struct async *async = malloc(sizeof *async);
    if (!async)
        return KVL_ERR_NOMEM;
    *async = what;
    kvl_err err = kvl_call_submit(client, verb, request, done, async);
    if (err != KVL_OK)
        free(async);
    return err;
}

/* The message has no alignment to speak of: callbacks get a copy. */
static void alloc_done(
    struct kvl_client *client, void *context, kvl_err err, const union kvl_wire_reply *reply) {
    (void)client;
    struct async async = *(struct async *)context;
    free(context);
    struct kvl_allocated *blocks = NULL;
    struct kvl_ticket ticket = {0};
    if (err == KVL_OK && reply->items.count != async.count)
        err = KVL_ERR_INVALID;
    if (err == KVL_OK && !(blocks = malloc(async.count * sizeof *blocks + 1)))
        err = KVL_ERR_NOMEM;
    if (err == KVL_OK) {
        memcpy(blocks, reply->items.data, async.count * sizeof *blocks);
        ticket = reply->items.ticket;
    }
    if (async.alloc)
        async.alloc(async.arg, err, blocks, err == KVL_OK ? async.count : 0, ticket);
    free(blocks);
}

kvl_err kvl_alloc_async(struct kvl_client *client, uint32_t namespace_id, enum kvl_tier_kind tier,
    const struct kvl_key *keys, uint32_t count, bool wait, kvl_alloc_done done, void *arg) {
    if (count > KVL_CHAIN_BLOCKS_MAX)
        return KVL_ERR_TOOBIG;
    struct kvl_wire_chain chain = {.namespace_id = namespace_id,
        .target = (uint32_t)tier,
        .flag = wait,
        .count = count,
        .keys = keys};
    return submit_async(client, KVL_VERB_ALLOC, &chain, alloc_done,
        (struct async){.count = count, .arg = arg, .alloc = done});
}

static void seal_done(
    struct kvl_client *client, void *context, kvl_err err, const union kvl_wire_reply *reply) {
    (void)client;
    struct async async = *(struct async *)context;
    free(context);
    struct kvl_sealed *sealed = NULL;
    if (err == KVL_OK && reply->items.count != async.count)
        err = KVL_ERR_INVALID;
    if (err == KVL_OK && !(sealed = malloc(async.count * sizeof *sealed + 1)))
        err = KVL_ERR_NOMEM;
    if (err == KVL_OK)
        from_wire_sealed(&reply->items, sealed, async.count);
    if (async.seal)
        async.seal(async.arg, err, sealed, err == KVL_OK ? async.count : 0);
    free(sealed);
}

kvl_err kvl_seal_async(struct kvl_client *client, const struct kvl_seal *blocks, uint32_t count,
    kvl_seal_done done, void *arg) {
    if (!seals_are_sound(blocks, count))
        return KVL_ERR_INVALID;
    if (seals_that_fit(blocks, count) != count)
        return KVL_ERR_TOOBIG;
    struct kvl_wire_seals seals = {.count = count, .items = to_wire_seals(blocks, count)};
    if (!seals.items)
        return KVL_ERR_NOMEM;
    kvl_err err = submit_async(client, KVL_VERB_SEAL, &seals, seal_done,
        (struct async){.count = count, .arg = arg, .seal = done});
    free(seals.items);
    return err;
}

kvl_err kvl_release_async(struct kvl_client *client, const uint64_t *leases, uint32_t lease_count,
    const struct kvl_ticket *tickets, uint32_t ticket_count, kvl_plain_done done, void *arg) {
    if (lease_count > KVL_CHAIN_BLOCKS_MAX || ticket_count > KVL_CHAIN_BLOCKS_MAX)
        return KVL_ERR_TOOBIG;
    struct kvl_wire_release release = {.lease_count = lease_count,
        .ticket_count = ticket_count,
        .leases = (const uint8_t *)leases,
        .tickets = (const uint8_t *)tickets};
    return kvl_call_submit_plain(client, KVL_VERB_RELEASE, &release, done, arg);
}
