/* storm.h - what the processes of a storm share: which blocks and sessions there are, and what each
 * of them was told about them, readable after anybody's death.
 *
 * The parent (storm.c) starts and kills daemons; children of it are the engines (work.c) and
 * those who look after a restart (check.c). Only children speak with a daemon. A block's
 * bytes follow from its key, so whoever reads one can tell right from wrong.
 *
 * The witness is shared memory; its fields are written by children and read by all. */
#ifndef KVL_TESTS_STORM_H
#define KVL_TESTS_STORM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "kvloft.h"

enum storm_kind { STORM_SMALL, STORM_LARGE, STORM_SCRATCH, STORM_CHAT, STORM_KINDS };

#define STORM_SMALL_BLOCKS 6144u
#define STORM_LARGE_BLOCKS 320u
#define STORM_SCRATCH_BLOCKS 1024u
#define STORM_SESSIONS 64u
#define STORM_SESSION_BLOCKS 4u
#define STORM_BLOCK_TOKENS 16u
#define STORM_SESSION_TOKENS (STORM_SESSION_BLOCKS * STORM_BLOCK_TOKENS + 7u)
#define STORM_BLOCKS                                                                               \
    (STORM_SMALL_BLOCKS + STORM_LARGE_BLOCKS + STORM_SCRATCH_BLOCKS +                              \
        STORM_SESSIONS * STORM_SESSION_BLOCKS)
#define STORM_PLACES 16384u /* of the keys' hash table; a power of two */
#define STORM_BATCH 16u

_Static_assert(STORM_BLOCKS * 2 < STORM_PLACES, "the hash table stays half empty");

enum storm_clear { STORM_KEPT, STORM_CLEARING, STORM_CLEARED };

struct storm_block {
    struct kvl_key key;
    _Atomic uint64_t sealed_ns; /* when the seal was answered; 0: not known to be sealed */
    atomic_bool tried;          /* somebody sent a seal */
    atomic_bool durable;        /* a flush said so, or it was found after a restart */
    _Atomic uint32_t clear;     /* enum storm_clear */
};

struct storm_session {
    _Atomic uint64_t acked_ns; /* when the last append was answered */
    _Atomic uint32_t sent_tokens, acked_tokens, durable_tokens;
    _Atomic uint32_t clear;
};

struct storm_totals {
    _Atomic uint64_t written, read, restarts;
    _Atomic uint64_t wrong;    /* blocks with other bytes than they should have */
    _Atomic uint64_t lost;     /* younger than the bound when the daemon was killed */
    _Atomic uint64_t findings; /* everything that should not be, wrong ones included */
    _Atomic uint64_t lost_age_max_ns, used_bytes_max;
};

struct storm_witness {
    struct storm_block blocks[STORM_BLOCKS];
    uint32_t places[STORM_PLACES]; /* block + 1, by key */
    struct storm_session sessions[STORM_SESSIONS];
    _Atomic uint32_t next[STORM_KINDS]; /* the next block of a kind; the next session */
    uint32_t slots_fresh, blocks_fresh; /* what the empty tiers take */
    _Atomic uint32_t told;              /* flushes and clears that have ended: durable, or gone */
    atomic_bool grabbed;                /* an engine holds leases that it will not give back */
    struct storm_totals totals;
};

struct storm {
    struct storm_witness *witness;
    char folder[128], address[192], disk[160];
    uint64_t seed;   /* as given */
    uint64_t random; /* begins there */
    uint64_t disk_bytes;
    uint64_t bound_ns; /* what was sealed longer ago is on disk */
    bool tight;        /* the disk is smaller than what is stored: blocks may be evicted */
    bool until_found;
    uint64_t killed_ns;
    uint64_t
        slow_ns; /* the longest that a small synced write took in this load, and a short sleep */
};

/* ---- model.c: no process, no daemon --------------------------------------------------- */

uint64_t storm_random(uint64_t *state);
uint32_t storm_below(uint64_t *state, uint32_t end); /* end > 0 */

/* Keys of everything, and nothing stored yet; totals stay. */
void storm_witness_reset(struct storm_witness *witness);
uint32_t storm_first(enum storm_kind kind);
uint32_t storm_count(enum storm_kind kind);
enum storm_kind storm_kind_of(uint32_t block);
uint64_t storm_bytes(enum storm_kind kind);
uint32_t storm_find(
    const struct storm_witness *witness, const struct kvl_key *key); /* or UINT32_MAX */
void storm_namespace(enum storm_kind kind, struct kvl_namespace_request *request);
void storm_opaque_name(uint32_t block, uint8_t name[32]);
uint32_t storm_token(uint32_t session, uint32_t position);
void storm_session_name(uint32_t session, char name[32]);

void storm_fill(const struct kvl_key *key, uint8_t *data, uint64_t bytes);
bool storm_is_right(const struct kvl_key *key, const uint8_t *data, uint64_t bytes);

/* Counts, and prints the first ones. */
__attribute__((format(printf, 2, 3))) void storm_finding(
    const struct storm *storm, const char *format, ...);

/* ---- work.c: what engines do; each runs in a process of its own ------------------------ */

struct storm_worker {
    const struct storm *storm;
    struct kvl_client *client;
    struct kvl_namespace_info spaces[STORM_KINDS];
    uint64_t random;
    uint32_t pause_us; /* after each step, at most */
};

/* False when there is no daemon: patient ones wait a minute for it, and then it is a finding. */
bool storm_connect(
    struct storm_worker *worker, const struct storm *storm, uint64_t seed, bool patient);
/* These go on until the daemon is lost or `end_ns` has passed. */
void storm_write(struct storm_worker *worker, uint64_t end_ns);
void storm_read(struct storm_worker *worker, uint64_t end_ns);
void storm_talk(struct storm_worker *worker, uint64_t end_ns); /* talk.c: sessions, clears */
/* A hundred of these share few keys. */
void storm_crowd(struct storm_worker *worker, uint64_t end_ns);
/* Takes leases of every kind and keeps them, until it is killed. */
void storm_grab(struct storm_worker *worker);

/* OK, or CLOSED when the daemon is gone; anything else is a finding, and CLOSED. */
kvl_err storm_told(struct storm_worker *worker, const char *what, kvl_err err);
bool storm_may_go_on(struct storm_worker *worker, uint64_t end_ns);
void storm_pause(struct storm_worker *worker);
/* One step each. CLOSED: the daemon is gone. */
kvl_err storm_write_blocks(struct storm_worker *worker, const uint32_t *blocks, uint32_t count);
kvl_err storm_read_blocks(struct storm_worker *worker, const uint32_t *blocks, uint32_t count,
    enum kvl_tier_kind tier, uint32_t *right);
kvl_err storm_settle(struct storm_worker *worker, struct kvl_ticket ticket, const char *what);
kvl_err storm_flush(struct storm_worker *worker);

/* ---- check.c: what must hold ----------------------------------------------------------------- */

/* After a restart: every block on disk is right, what was durable is there, what was cleared is
 * not, nobody holds anything. */
void storm_check(struct storm_worker *worker);
/* How many small blocks the empty device takes, and how many the disk keeps in the end. */
void storm_measure(struct storm_worker *worker, uint32_t *slots, uint32_t *blocks);
/* Everything is cleared and given back; then the tiers take as much as at the beginning. */
void storm_finish(struct storm_worker *worker);
/* One other client is there, stopped, and has its leases. */
void storm_check_stopped(struct storm_worker *worker);
/* Nobody but this client is there, and no lease is left. */
void storm_check_leases(struct storm_worker *worker);

#endif
