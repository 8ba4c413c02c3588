/* tickets.c - completion words, read from shared memory; any thread. */
#include <poll.h>
#include <string.h>

#include "client_internal.h"
#include "clock.h"

#define SLICE_MS 50u /* how often a waiter looks whether the daemon still lives */

static const struct kvl_completion *find_word(
    const struct kvl_mapping *mapping, struct kvl_ticket ticket) {
    bool known = mapping->words && ticket.number < mapping->word_count && ticket.generation != 0;
    const struct kvl_completion *word = known ? &mapping->words[ticket.number] : NULL;
    return word && atomic_load(&word->generation) == ticket.generation ? word : NULL;
}

/* Status first: what was set before it left PENDING is then seen too. The generation once more at
 * the end: if the word was given back meanwhile, what was read means nothing. */
static kvl_err read_word(
    const struct kvl_completion *word, struct kvl_ticket ticket, struct kvl_progress *out) {
    out->status = (kvl_err)atomic_load(&word->status);
    out->layers_ready = atomic_load(&word->layers_ready);
    out->blocks_ready = atomic_load(&word->blocks_ready);
    for (uint32_t i = 0; i < 5; i++)
        out->values[i] = atomic_load(&word->values[i]);
    return atomic_load(&word->generation) == ticket.generation ? KVL_OK : KVL_ERR_STALE;
}

kvl_err kvl_ticket_poll(
    const struct kvl_client *client, struct kvl_ticket ticket, struct kvl_progress *out) {
    memset(out, 0, sizeof *out);
    const struct kvl_completion *word = find_word(kvl_client_mapping(client), ticket);
    return word ? read_word(word, ticket, out) : KVL_ERR_STALE;
}

static bool is_lost(const struct kvl_mapping *mapping) {
    struct pollfd poller = {.fd = mapping->attach_fd, .events = POLLIN | POLLRDHUP};
    return atomic_load(&mapping->lost) || poll(&poller, 1, 0) == 1;
}

kvl_err kvl_ticket_wait(struct kvl_client *client, struct kvl_ticket ticket, uint32_t layers,
    uint32_t timeout_ms, struct kvl_progress *out) {
    const struct kvl_mapping *mapping = kvl_client_mapping(client);
    const uint64_t deadline_ns = kvl_clock_ns() + (uint64_t)timeout_ms * 1000000u;
    const struct kvl_completion *word = find_word(mapping, ticket);
    memset(out, 0, sizeof *out);
    while (word) {
        uint32_t seen = atomic_load(&word->sequence);
        kvl_err err = read_word(word, ticket, out);
        if (err != KVL_OK || out->status != KVL_ERR_PENDING || out->layers_ready >= layers)
            return err;
        uint64_t now_ns = kvl_clock_ns();
        if (is_lost(mapping))
            return KVL_ERR_CLOSED;
        if (now_ns >= deadline_ns)
            return KVL_ERR_TIMEOUT;
        uint64_t left_ms = (deadline_ns - now_ns) / 1000000u + 1;
        err = kvl_completion_wait(word, seen, left_ms < SLICE_MS ? (uint32_t)left_ms : SLICE_MS);
        if (err != KVL_OK && err != KVL_ERR_TIMEOUT)
            return err;
    }
    return KVL_ERR_STALE;
}
