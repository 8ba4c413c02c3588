/* schedule_engine.c - see schedule_engine.h. */
#include "schedule_engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block_memory.h"
#include "block_pattern.h"

enum { STEPS = 20, WAIT_MS = 20000, TOKENS = SCHEDULE_CHAIN_BLOCKS * SCHEDULE_BLOCK_TOKENS };

/* Leases on the leading blocks of a chain. */
struct held {
    uint32_t chain, count; /* 0: none */
    struct kvl_restored blocks[SCHEDULE_CHAIN_BLOCKS];
    struct kvl_ticket ticket;
};

struct engine {
    const struct schedule_options *options;
    struct kvl_client *client;
    struct block_memory memory;
    struct kvl_namespace_info space;
    struct held held;
    uint64_t random;
    uint32_t schedule;
};

static uint32_t below(struct engine *engine, uint32_t limit) {
    return (uint32_t)(block_word(engine->random++, 0) % limit);
}

static void count(uint64_t *counter, uint64_t by) {
    __atomic_fetch_add(counter, by, __ATOMIC_RELAXED);
}

__attribute__((noreturn)) static void die(
    const struct engine *engine, const char *what, uint64_t number) {
    fprintf(stderr, "schedule %u of seed %llu: %s (%llu)\n", engine->schedule,
        (unsigned long long)engine->options->seed, what, (unsigned long long)number);
    exit(1);
}

static void must(const struct engine *engine, const char *what, kvl_err err) {
    if (err != KVL_OK)
        die(engine, what, (uint64_t)err);
}

/* ---- chains: keys, and what their blocks hold ---------------------------------------------- */

struct chain {
    uint32_t number;
    uint32_t tokens[TOKENS];
    struct kvl_key keys[SCHEDULE_CHAIN_BLOCKS];
};

static void make_chain(const struct engine *engine, uint32_t number, struct chain *out) {
    out->number = number;
    for (uint32_t i = 0; i < TOKENS; i++)
        out->tokens[i] = number * TOKENS + i;
    must(engine, "key_chain",
        kvl_key_chain(&engine->space.key, out->tokens, TOKENS, SCHEDULE_BLOCK_TOKENS, out->keys));
}

static uint64_t seed_of(const struct kvl_key *key) {
    uint64_t seed;
    memcpy(&seed, key, sizeof seed);
    return seed;
}

static void check_blocks(struct engine *engine, const struct chain *chain,
    const struct kvl_restored *blocks, uint32_t block_count, uint32_t layers) {
    const uint64_t bytes = SCHEDULE_BLOCK_BYTES / SCHEDULE_LAYERS * layers;
    for (uint32_t i = 0; i < block_count; i++) {
        uint64_t wrong = 0;
        must(engine, "reading a block",
            engine->memory.check(
                &engine->memory, blocks[i].offset_bytes, bytes, seed_of(&chain->keys[i]), &wrong));
        if (wrong != BLOCK_IS_RIGHT) {
            fprintf(stderr, "chain %u, block %u of %u at %llu, found in tier %u, %u layers\n",
                chain->number, i, block_count, (unsigned long long)blocks[i].offset_bytes,
                blocks[i].found_tier, layers);
            die(engine, "a wrong byte in word", wrong);
        }
    }
}

/* ---- restoring ------------------------------------------------------------------------------ */

static void release(struct engine *engine, const struct held *held) {
    uint64_t leases[SCHEDULE_CHAIN_BLOCKS];
    for (uint32_t i = 0; i < held->count; i++)
        leases[i] = held->blocks[i].lease;
    must(engine, "release",
        kvl_release(engine->client, leases, held->count, &held->ticket,
            held->ticket.generation != 0 ? 1 : 0));
}

/* What a restore may end with, besides OK: no room, or another's clear. */
static bool is_no_fault(kvl_err status) {
    return status == KVL_ERR_NOSPC || status == KVL_ERR_CANCELED || status == KVL_ERR_NOTFOUND;
}

/* Some layers first, as an engine computes behind a restore. False: it failed. */
static bool wait_for(struct engine *engine, const struct chain *chain, const struct held *held) {
    struct kvl_progress progress;
    const uint32_t layers = 1 + below(engine, SCHEDULE_LAYERS);
    must(engine, "waiting for layers",
        kvl_ticket_wait(engine->client, held->ticket, layers, WAIT_MS, &progress));
    if (progress.status == KVL_OK || progress.status == KVL_ERR_PENDING) {
        check_blocks(engine, chain, held->blocks, held->count, layers);
        count(&engine->options->counts->layers_checked, layers);
    }
    must(engine, "waiting for the rest",
        kvl_ticket_wait(engine->client, held->ticket, UINT32_MAX, WAIT_MS, &progress));
    if (progress.status != KVL_OK && !is_no_fault(progress.status))
        die(engine, "a restore ended with", (uint64_t)progress.status);
    return progress.status == KVL_OK;
}

/* held->count 0: nothing of it could be had. */
static void restore(struct engine *engine, const struct chain *chain, struct held *held) {
    struct kvl_restore_result result;
    *held = (struct held){.chain = chain->number};
    must(engine, "restore",
        kvl_restore(engine->client, KVL_TIER_DEVICE, chain->keys, SCHEDULE_CHAIN_BLOCKS,
            held->blocks, &result));
    held->count = result.count;
    held->ticket = result.ticket;
    if (result.ticket.generation != 0 && below(engine, 6) == 0) {
        count(&engine->options->counts->canceled, 1);
        release(engine, held);
        held->count = 0;
    } else if (result.ticket.generation != 0 && !wait_for(engine, chain, held)) {
        count(&engine->options->counts->unrestored, 1);
        release(engine, held);
        held->count = 0;
    }
    check_blocks(engine, chain, held->blocks, held->count, SCHEDULE_LAYERS);
    for (uint32_t i = 0; i < held->count; i++)
        count(&engine->options->counts->restored[held->blocks[i].found_tier], 1);
}

/* Leased blocks do not change, whatever others do. */
static void drop_held(struct engine *engine) {
    struct chain chain;
    if (engine->held.count == 0)
        return;
    make_chain(engine, engine->held.chain, &chain);
    check_blocks(engine, &chain, engine->held.blocks, engine->held.count, SCHEDULE_LAYERS);
    release(engine, &engine->held);
    engine->held.count = 0;
}

static void step_restore(struct engine *engine) {
    struct chain chain;
    struct held held;
    make_chain(engine, below(engine, SCHEDULE_CHAINS), &chain);
    restore(engine, &chain, &held);
    if (held.count > 0 && engine->held.count == 0 && below(engine, 2) == 0)
        engine->held = held;
    else if (held.count > 0)
        release(engine, &held);
}

/* ---- growing a chain ------------------------------------------------------------------------ */

static void fill_and_seal(struct engine *engine, const struct chain *chain, uint32_t block,
    const struct kvl_allocated *slot) {
    struct kvl_sealed sealed;
    const struct kvl_seal seal = {.lease = slot->lease,
        .parent = block == 0 ? engine->space.key : chain->keys[block - 1],
        .tokens = chain->tokens + block * SCHEDULE_BLOCK_TOKENS,
        .token_count = SCHEDULE_BLOCK_TOKENS};
    must(engine, "filling a block",
        engine->memory.fill(&engine->memory, slot->offset_bytes, SCHEDULE_BLOCK_BYTES,
            seed_of(&chain->keys[block])));
    must(engine, "seal", kvl_seal(engine->client, &seal, 1, &sealed));
    if (sealed.status != KVL_OK && sealed.status != KVL_ERR_EXISTS)
        die(engine, "a seal ended with", (uint64_t)sealed.status);
    if (!kvl_key_equal(&sealed.key, &chain->keys[block]))
        die(engine, "a seal has another key, block", block);
    count(&engine->options->counts->sealed, sealed.status == KVL_OK);
}

/* Blocks [first, end); what is not filled is given back as it is. */
static void grow(struct engine *engine, const struct chain *chain, uint32_t first, uint32_t end) {
    struct kvl_allocated slots[SCHEDULE_CHAIN_BLOCKS];
    uint64_t leases[SCHEDULE_CHAIN_BLOCKS];
    struct kvl_ticket ticket;
    uint32_t granted = 0;
    must(engine, "alloc",
        kvl_alloc(engine->client, engine->space.id, KVL_TIER_DEVICE, chain->keys + first,
            end - first, false, slots, &ticket));
    const uint32_t filled = end - below(engine, 4) / 3; /* sometimes all but the last */
    for (uint32_t i = first; i < end; i++) {
        const struct kvl_allocated *slot = &slots[i - first];
        if (slot->status == KVL_ALLOC_GRANTED)
            leases[granted++] = slot->lease;
        else
            count(&engine->options->counts->refused, slot->status == KVL_ALLOC_NOSPC);
        if (slot->status == KVL_ALLOC_GRANTED && i < filled)
            fill_and_seal(engine, chain, i, slot);
    }
    if (granted > 0)
        must(engine, "release", kvl_release(engine->client, leases, granted, NULL, 0));
}

static void step_grow(struct engine *engine) {
    struct chain chain;
    struct held held;
    make_chain(engine, below(engine, SCHEDULE_CHAINS), &chain);
    restore(engine, &chain, &held);
    if (held.count < SCHEDULE_CHAIN_BLOCKS) {
        const uint32_t most = SCHEDULE_CHAIN_BLOCKS - held.count;
        grow(engine, &chain, held.count, held.count + 1 + below(engine, most));
    }
    if (held.count > 0)
        release(engine, &held);
}

/* ---- what operators do ---------------------------------------------------------------------- */

static void end_ticket(struct engine *engine, struct kvl_ticket ticket, bool wait) {
    struct kvl_progress progress;
    if (ticket.generation == 0)
        return;
    if (wait)
        must(engine, "waiting for a move",
            kvl_ticket_wait(engine->client, ticket, UINT32_MAX, WAIT_MS, &progress));
    must(engine, "release of a ticket", kvl_release(engine->client, NULL, 0, &ticket, 1));
}

static void step_demote(struct engine *engine) {
    struct chain chain;
    struct kvl_ticket ticket;
    make_chain(engine, below(engine, SCHEDULE_CHAINS), &chain);
    const enum kvl_tier_kind target = below(engine, 2) == 0 ? KVL_TIER_HOST : KVL_TIER_DISK;
    must(engine, "demote",
        kvl_demote(engine->client, target, chain.keys, SCHEDULE_CHAIN_BLOCKS, &ticket));
    end_ticket(engine, ticket, below(engine, 3) > 0);
}

static void step_prefetch(struct engine *engine) {
    struct chain chain;
    struct kvl_ticket ticket;
    make_chain(engine, below(engine, SCHEDULE_CHAINS), &chain);
    const enum kvl_tier_kind target = below(engine, 2) == 0 ? KVL_TIER_DEVICE : KVL_TIER_HOST;
    must(engine, "prefetch",
        kvl_prefetch(engine->client, target, chain.keys, SCHEDULE_CHAIN_BLOCKS, &ticket));
    end_ticket(engine, ticket, below(engine, 3) == 0);
}

static void step_clear(struct engine *engine) {
    struct kvl_ticket ticket;
    must(engine, "clear",
        kvl_clear(engine->client, KVL_CLEAR_NAMESPACE, engine->space.id, NULL, &ticket));
    end_ticket(engine, ticket, true);
}

/* ---- schedules ------------------------------------------------------------------------------ */

static void run_schedule(struct engine *engine) {
    engine->random = engine->options->seed * 1000003 + engine->schedule;
    for (int i = 0; i < STEPS; i++) {
        const uint32_t choice = below(engine, 100);
        if (choice < 35)
            step_grow(engine);
        else if (choice < 68)
            step_restore(engine);
        else if (choice < 84)
            step_demote(engine);
        else if (choice < 92)
            step_prefetch(engine);
        else if (choice < 99)
            drop_held(engine);
        else if (below(engine, 4) == 0)
            step_clear(engine);
    }
    drop_held(engine);
}

kvl_err schedule_namespace(struct kvl_client *client, struct kvl_namespace_info *out) {
    const struct kvl_namespace_desc desc = {.fingerprint = "schedules",
        .geometry = {.layers = SCHEDULE_LAYERS,
            .kv_heads = 4,
            .k_dim = 64,
            .v_dim = 64,
            .block_tokens = SCHEDULE_BLOCK_TOKENS},
        .dtype = KVL_DTYPE_F16,
        .rope = {.data = "none", .bytes = 4},
        .arithmetic_id = "schedule_engine.c",
        .fidelity = "lossless"};
    struct kvl_namespace_request request = {
        .geometry = desc.geometry, .dtype = desc.dtype, .label = "schedules"};
    kvl_err err = kvl_key_of_namespace(&desc, &request.key);
    return err == KVL_OK ? kvl_client_namespace(client, &request, out) : err;
}

static kvl_err open_engine(struct engine *engine, struct kvl_errmsg *msg) {
    const struct kvl_client_options client = {
        .address = engine->options->address, .name = "schedule engine", .timeout_ms = WAIT_MS};
    kvl_err err = kvl_client_open(&client, &engine->client, msg);
    if (err == KVL_OK)
        err = schedule_namespace(engine->client, &engine->space);
    if (err == KVL_OK && engine->space.layout.payload_bytes != SCHEDULE_BLOCK_BYTES)
        return kvl_fail(msg, KVL_ERR_INVALID, "a block has other bytes than expected");
    if (err != KVL_OK)
        return err;
    if (strcmp(engine->options->device, "cuda") == 0)
        return block_memory_open_cuda(engine->client, &engine->memory, msg);
    block_memory_open_cpu(engine->client, &engine->memory);
    return KVL_OK;
}

int schedule_engine_run(const struct schedule_options *options) {
    static struct engine engine;
    struct kvl_errmsg msg = {""};
    engine.options = options;
    const kvl_err err = open_engine(&engine, &msg);
    if (err != KVL_OK) {
        fprintf(stderr, "schedule engine: %s: %s\n", kvl_err_name(err), msg.text);
        return 1;
    }
    while (read(STDIN_FILENO, &engine.schedule, sizeof engine.schedule) ==
           (ssize_t)sizeof engine.schedule) {
        run_schedule(&engine);
        if (write(STDOUT_FILENO, &engine.schedule, sizeof engine.schedule) < 0)
            return 1;
    }
    engine.memory.close(&engine.memory);
    kvl_client_close(engine.client);
    return 0;
}
