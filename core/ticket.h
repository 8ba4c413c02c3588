/* ticket.h - completion words: shared memory that the daemon writes and engines only read.
 *
 * One 64-byte word per ticket, in a memfd sealed with F_SEAL_FUTURE_WRITE after the daemon mapped
 * it, so an engine can map it only for reading. A slow verb returns a ticket (word number and
 * generation) at once; its progress shows in the word, and `sequence` is a futex that is woken on
 * every change. Values are set before status leaves PENDING (release order).
 *
 *   byte  0 u32 sequence     +1 on every change
 *         4 u32 generation   which use of this word; a ticket of another generation is void
 *         8 u32 status       KVL_ERR_PENDING while under way, then the final kvl_err
 *        12 u32 layers_ready restore: layers that are there in every block of the restore
 *        16 u32 blocks_ready restore: leading blocks that are whole and verified
 *        20 u32 reserved
 *        24 u64 values[5]    by verb, see docs/wire.md */
#ifndef KVL_TICKET_H
#define KVL_TICKET_H

#include <stdatomic.h>
#include <stdint.h>

#include "kvl_err.h"
#include "kvl_types.h"

struct kvl_completion {
    _Atomic uint32_t sequence;
    _Atomic uint32_t generation;
    _Atomic uint32_t status;
    _Atomic uint32_t layers_ready;
    _Atomic uint32_t blocks_ready;
    uint32_t reserved;
    _Atomic uint64_t values[5];
};
_Static_assert(sizeof(struct kvl_completion) == 64, "one cache line");

#define KVL_TICKET_WORDS 4096u

struct kvl_ticket_pool;

KVL_MUST_CHECK kvl_err kvl_ticket_pool_create(struct kvl_ticket_pool **out);
void kvl_ticket_pool_destroy(struct kvl_ticket_pool *pool); /* NULL is fine */
int kvl_ticket_pool_fd(const struct kvl_ticket_pool *pool); /* borrowed */

/* Takes a free word: status PENDING, the rest zero. LIMIT when none is free. */
KVL_MUST_CHECK kvl_err kvl_ticket_take(struct kvl_ticket_pool *pool, struct kvl_ticket *out);
/* NULL for a void ticket. */
struct kvl_completion *kvl_ticket_word(struct kvl_ticket_pool *pool, struct kvl_ticket ticket);
/* Publishes progress: bumps sequence and wakes the waiters. */
void kvl_ticket_progress(struct kvl_completion *word, uint32_t blocks_ready, uint32_t layers_ready);
void kvl_ticket_finish(struct kvl_completion *word, kvl_err status);
/* Gives the word back; a void ticket is ignored. The generation changes. */
void kvl_ticket_give_back(struct kvl_ticket_pool *pool, struct kvl_ticket ticket);

/* Reader's side, any process. Waits until the word's sequence is not `seen` any more or until
 * timeout_ms passed (TIMEOUT). */
KVL_MUST_CHECK kvl_err kvl_completion_wait(
    const struct kvl_completion *word, uint32_t seen, uint32_t timeout_ms);

#endif
