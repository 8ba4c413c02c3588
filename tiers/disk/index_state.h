/* index_state.h - DIR/index/state: whether the last process ended inside LMDB.
 *
 * LMDB trusts its file: on a damaged one it may crash the process. A word in a mapped file is set
 * while the process is inside LMDB, so that the next start sees how the last one ended, and a
 * second death in a row costs the index, not the service. The file is never synced: after a power
 * cut it may be old, which costs a rebuild at most.
 *
 * Threads: one at a time, the index's. */
#ifndef KVL_DISK_INDEX_STATE_H
#define KVL_DISK_INDEX_STATE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum kvl_index_phase {
    KVL_INDEX_OUTSIDE,
    KVL_INDEX_OPENING,
    KVL_INDEX_WALKING,
    KVL_INDEX_COMMITTING
};

/* So many deaths in a row, and the index is rebuilt. Without a journal to rebuild it from, twice
 * as many. */
#define KVL_INDEX_DEATHS 2u

struct kvl_index_state {
    uint32_t magic;
    uint32_t deaths;           /* in a row, inside LMDB */
    atomic_uint phase;         /* enum kvl_index_phase */
    uint32_t damaged;          /* LMDB or a checksum said so */
    uint64_t journal_sequence; /* of the last frame that is durable; 0 unknown */
};

/* Counts the last process when it died inside. Memory of its own where the file cannot be had;
 * NULL: not even that. */
struct kvl_index_state *kvl_index_state_open(const char *index_directory);
void kvl_index_state_close(struct kvl_index_state *state); /* NULL is fine */
/* The index has served for a while, or to a clean end. */
void kvl_index_state_served(struct kvl_index_state *state);
const char *kvl_index_phase_name(unsigned phase);

static inline void kvl_index_enter(struct kvl_index_state *state, enum kvl_index_phase phase) {
    if (state != NULL)
        atomic_store(&state->phase, (unsigned)phase);
}
static inline void kvl_index_leave(struct kvl_index_state *state) {
    if (state != NULL)
        atomic_store(&state->phase, (unsigned)KVL_INDEX_OUTSIDE);
}

#endif
