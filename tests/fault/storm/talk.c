/* talk.c - the engine of a storm that keeps sessions, forgets some of them, clears and flushes. */
#include "storm.h"

#include "clock.h"

#define OPEN_SESSIONS 4u

kvl_err storm_flush(struct storm_worker *worker) {
    struct storm_witness *witness = worker->storm->witness;
    uint32_t tokens[STORM_SESSIONS];
    struct kvl_ticket ticket;
    for (uint32_t i = 0; i < STORM_SESSIONS; i++)
        tokens[i] = atomic_load(&witness->sessions[i].acked_tokens);
    uint64_t begin_ns = kvl_clock_ns();
    if (storm_told(worker, "flush", kvl_flush(worker->client, &ticket)) != KVL_OK)
        return KVL_ERR_CLOSED;
    kvl_err err = storm_settle(worker, ticket, "flush");
    if (err == KVL_ERR_NOSPC && worker->storm->tight)
        return KVL_OK;
    if (storm_told(worker, "flush", err) != KVL_OK)
        return KVL_ERR_CLOSED;
    for (uint32_t i = 0; i < STORM_SESSIONS; i++)
        atomic_store(&witness->sessions[i].durable_tokens, tokens[i]);
    for (uint32_t i = 0; i < STORM_BLOCKS; i++) {
        uint64_t sealed_ns = atomic_load(&witness->blocks[i].sealed_ns);
        if (sealed_ns != 0 && sealed_ns < begin_ns)
            atomic_store(&witness->blocks[i].durable, true);
    }
    atomic_fetch_add(&witness->told, 1);
    return KVL_OK;
}

static void mark_clear(
    struct storm_witness *witness, uint32_t first, uint32_t count, enum storm_clear clear) {
    for (uint32_t i = first; i < first + count; i++)
        atomic_store(&witness->blocks[i].clear, clear);
}

static kvl_err scratch(struct storm_worker *worker) {
    struct storm_witness *witness = worker->storm->witness;
    uint32_t from = atomic_load(&witness->next[STORM_SCRATCH]), numbers[6];
    if (from + 6 > STORM_SCRATCH_BLOCKS)
        return KVL_OK;
    for (uint32_t i = 0; i < 6; i++)
        numbers[i] = storm_first(STORM_SCRATCH) + from + i;
    if (storm_write_blocks(worker, numbers, 6) != KVL_OK)
        return KVL_ERR_CLOSED;
    atomic_store(&witness->next[STORM_SCRATCH], from + 6);
    if (storm_below(&worker->random, 3) != 0)
        return KVL_OK;
    struct kvl_ticket ticket;
    mark_clear(witness, storm_first(STORM_SCRATCH), from + 6, STORM_CLEARING);
    kvl_err err = kvl_clear(
        worker->client, KVL_CLEAR_NAMESPACE, worker->spaces[STORM_SCRATCH].id, NULL, &ticket);
    if (storm_told(worker, "clear", err) != KVL_OK)
        return KVL_ERR_CLOSED;
    err = storm_told(worker, "clear", storm_settle(worker, ticket, "clear"));
    if (err == KVL_OK) {
        mark_clear(witness, storm_first(STORM_SCRATCH), from + 6, STORM_CLEARED);
        atomic_fetch_add(&witness->told, 1);
    }
    return err;
}

static kvl_err open_session(struct storm_worker *worker, uint32_t session) {
    struct kvl_session_info info;
    char name[32];
    storm_session_name(session, name);
    kvl_err err = kvl_session_open(worker->client, name, &worker->spaces[STORM_CHAT].key, &info);
    return err == KVL_ERR_AGAIN ? err : storm_told(worker, "session open", err);
}

static kvl_err append(struct storm_worker *worker, uint32_t session, uint32_t end) {
    struct storm_session *known = &worker->storm->witness->sessions[session];
    uint32_t tokens[STORM_SESSION_TOKENS], from = atomic_load(&known->acked_tokens);
    char name[32];
    storm_session_name(session, name);
    for (uint32_t i = from; i < end; i++)
        tokens[i - from] = storm_token(session, i);
    atomic_store(&known->sent_tokens, end);
    kvl_err err = kvl_session_append(worker->client, name, from, tokens, end - from);
    if (err == KVL_ERR_AGAIN)
        return KVL_OK;
    if (storm_told(worker, "session append", err) != KVL_OK)
        return KVL_ERR_CLOSED;
    atomic_store(&known->acked_tokens, end);
    atomic_store(&known->acked_ns, kvl_clock_ns());
    return KVL_OK;
}

static kvl_err say_more(struct storm_worker *worker, uint32_t session) {
    uint32_t from = atomic_load(&worker->storm->witness->sessions[session].acked_tokens);
    uint32_t end = from + 1 + storm_below(&worker->random, 24);
    end = end < STORM_SESSION_TOKENS ? end : STORM_SESSION_TOKENS;
    kvl_err err = open_session(worker, session);
    if (err != KVL_OK)
        return err == KVL_ERR_AGAIN ? KVL_OK : err;
    if (end > from && append(worker, session, end) != KVL_OK)
        return KVL_ERR_CLOSED;
    for (uint32_t i = from / STORM_BLOCK_TOKENS; i < end / STORM_BLOCK_TOKENS; i++) {
        uint32_t block = storm_first(STORM_CHAT) + session * STORM_SESSION_BLOCKS + i;
        if (storm_write_blocks(worker, &block, 1) != KVL_OK)
            return KVL_ERR_CLOSED;
    }
    return KVL_OK;
}

/* A kill may cost a session its last tokens and leave their blocks, which went to the disk first.
 * They are no longer the session's, and keep what they go on from. */
static bool has_blocks_behind_its_tokens(
    const struct storm_witness *witness, uint32_t session, uint32_t first) {
    uint32_t own = atomic_load(&witness->sessions[session].acked_tokens) / STORM_BLOCK_TOKENS;
    for (uint32_t i = own; i < STORM_SESSION_BLOCKS; i++)
        if (atomic_load(&witness->blocks[first + i].sealed_ns) != 0)
            return true;
    return false;
}

static kvl_err forget(struct storm_worker *worker, uint32_t session) {
    struct storm_witness *witness = worker->storm->witness;
    uint32_t first = storm_first(STORM_CHAT) + session * STORM_SESSION_BLOCKS;
    const bool some_stay = has_blocks_behind_its_tokens(witness, session, first);
    struct kvl_ticket ticket;
    char name[32];
    storm_session_name(session, name);
    atomic_store(&witness->sessions[session].clear, STORM_CLEARING);
    mark_clear(witness, first, STORM_SESSION_BLOCKS, STORM_CLEARING);
    kvl_err err = kvl_clear(worker->client, KVL_CLEAR_SESSION, 0, name, &ticket);
    if (err == KVL_ERR_NOTFOUND || err == KVL_ERR_AGAIN)
        return KVL_OK; /* it was lost before it was durable; or not now */
    if (storm_told(worker, "clear session", err) != KVL_OK)
        return KVL_ERR_CLOSED;
    err = storm_told(worker, "clear session", storm_settle(worker, ticket, "clear"));
    if (err == KVL_OK) {
        atomic_store(&witness->sessions[session].clear, STORM_CLEARED);
        if (!some_stay)
            mark_clear(witness, first, STORM_SESSION_BLOCKS, STORM_CLEARED);
        atomic_fetch_add(&witness->told, 1);
    }
    return err;
}

void storm_talk(struct storm_worker *worker, uint64_t end_ns) {
    _Atomic uint32_t *next = &worker->storm->witness->next[STORM_CHAT];
    kvl_err err = KVL_OK;
    while (err == KVL_OK && storm_may_go_on(worker, end_ns)) {
        uint32_t sessions = atomic_load(next);
        uint32_t what = storm_below(&worker->random, 16);
        if ((sessions < OPEN_SESSIONS || what == 0) && sessions < STORM_SESSIONS)
            atomic_store(next, ++sessions); /* one more; the oldest of the open ones rests */
        uint32_t oldest = sessions > OPEN_SESSIONS ? sessions - OPEN_SESSIONS : 0;
        uint32_t session = oldest + storm_below(&worker->random, sessions - oldest);
        bool kept = atomic_load(&worker->storm->witness->sessions[session].clear) == STORM_KEPT;
        if (what == 1 && kept && session == oldest)
            err = forget(worker, session);
        else if (what < 4)
            err = storm_flush(worker);
        else if (what < 8)
            err = scratch(worker);
        else if (kept)
            err = say_more(worker, session);
        storm_pause(worker);
    }
}
