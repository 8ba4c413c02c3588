/* store_private.h - what the files of the store share among themselves; nobody else includes it.
 *
 *   store.c          life, poll, clients      store_restore.c  lookup, restore, prefetch
 *   namespace.c      namespaces               store_seal.c     alloc, seal, release, waiting
 *   placement.c      slots, eviction          transfer.c       moving blocks between tiers
 *   demotion.c       moving blocks down       staging.c        two hops to a far device
 *   sealing.c        hashing what is sealed   device_loss.c    a device that is lost
 *   orphan.c         slots without an entry   persist.c        writing behind, flush
 *   recovery.c       what disk and catalog    store_clear.c    clear
 *                    tell at start            store_verify.c   verify
 *   catalog_queue.c  puts that must wait      store_session.c  sessions, over session.c
 *   session_chain.c  a session's blocks
 *   pin.c            pins                     store_report.c   report, list, events
 *   quota.c          tenants' share of the disk
 *   seek.c           answers before all is loaded
 *
 * One rule keeps blocks that vanish apart from blocks under use: whoever uses a block's copy in a
 * tier (lease, transfer, check) counts itself in the entry and remembers the entry's generation.
 * An entry that is dropped while it is in use leaves its slots to an orphan record of that
 * generation, and the users, finding another generation in the entry, count down there. */
#ifndef KVL_STORE_PRIVATE_H
#define KVL_STORE_PRIVATE_H

#include <assert.h>

#include "lease.h"
#include "pool.h"
#include "session.h"
#include "store.h"
#include "table.h"
#include "tenant.h"
#include "workers.h"

#define KVL_CLIENTS_MAX 1024u
#define KVL_CLIENT_TICKETS_MAX 1024u
#define KVL_CLIENT_LEASES_MAX (1u << 20)
#define KVL_NAMESPACES_MAX 65535u
#define KVL_PRIORITIES 3u
#define KVL_ARRIVING_BUCKETS 4096u
#define KVL_ORPHAN_BUCKETS 1024u
#define KVL_BUSY_MAX 200u /* users of one copy at once, leases aside */
#define KVL_RETRY_NS 2000000u
#define KVL_STUCK_NS 1000000000u /* without a block stored: the disk does not keep up */

struct kvl_client {
    uint32_t id; /* uses of the place << 10 | place; 0: never used */
    bool open;
    bool leaving; /* it asks for nothing any more; its leases wait for its proven death */
    struct kvl_client_info info;
    struct kvl_lease_list leases;
    uint64_t read_leases;
    uint64_t write_leases;
    uint64_t leased_bytes;
    uint32_t tickets;
    struct kvl_key asked_last;  /* the last key of its last restore */
    struct kvl_key looked_last; /* and of its last look-up of each key */
};

/* ---- operations: what a ticket stands for ------------------------------------------------- */

enum kvl_operation_kind {
    KVL_OPERATION_RESTORE,
    KVL_OPERATION_WAIT,
    KVL_OPERATION_FLUSH,
    KVL_OPERATION_CLEAR,
    KVL_OPERATION_VERIFY,
    KVL_OPERATION_DEMOTE,
};

/* What was sealed up to now becomes durable, and what was dropped stays dropped. */
struct kvl_settle {
    const struct kvl_tenant *tenant; /* whose; NULL: everybody's */
    uint64_t order;                  /* seals up to this one are waited for */
    uint64_t remaining;
    bool asked;   /* the catalog's flush is under way */
    bool durable; /* and over */
    bool hurried; /* the disk was told not to wait for more */
    kvl_err status;
};

struct kvl_operation {
    enum kvl_operation_kind kind;
    struct kvl_settle *settle; /* of flush and clear; NULL: waits for nothing to be durable */
    uint32_t client;
    struct kvl_ticket ticket;
    struct kvl_completion *word; /* NULL once the ticket was given back: nobody looks */
    struct kvl_operation *next, *prev;
};

struct kvl_ticket_owner {
    uint32_t client; /* 0: free */
    uint32_t generation;
    struct kvl_operation *operation; /* NULL: finished */
};

/* One block of a restore that has to come yet. */
struct kvl_piece {
    struct kvl_piece *next; /* of the same transfer */
    struct kvl_restore *restore;
    uint32_t index; /* in the restore */
    uint32_t frames_ready;
    uint32_t layers_ready;
    bool ended;
    kvl_err status;
};

struct kvl_restore {
    struct kvl_operation operation;
    bool prefetch;
    bool started; /* every piece has its transfer: the restore may end */
    kvl_err status;
    uint32_t count;       /* blocks of the restore, those resident at once included */
    uint32_t piece_count; /* entries of pieces, in order of index */
    uint32_t first_open;  /* the first piece that has not ended well */
    uint32_t pending;     /* pieces that have not ended */
    uint32_t layers;      /* of a block */
    uint64_t bytes_from[KVL_TIER_COUNT];
    uint64_t blocks_moved;
    struct kvl_piece pieces[];
};

struct kvl_wait {
    struct kvl_operation operation;
    struct kvl_key key;
    uint32_t namespace_id;
    uint8_t tier;
};

struct kvl_flush {
    struct kvl_operation operation;
    struct kvl_settle settle;
};

/* ---- transfers ---------------------------------------------------------------------------- */

struct kvl_transfer {
    struct kvl_io io;
    struct kvl_store *store;
    struct kvl_transfer *next_arriving; /* in its bucket, while it fills a slot */
    struct kvl_transfer *next_waiting;  /* for room in its carrier, or for the host's (staging.c) */
    struct kvl_transfer *second;      /* goes on to the device once this one has landed, or NULL */
    struct kvl_transfer *prev, *next; /* of all */
    struct kvl_piece *pieces;
    struct kvl_tenant *tenant;
    uint32_t block;
    uint8_t from, to; /* enum kvl_tier_kind */
    uint8_t origin;   /* where the block was when it was asked for: from, of the first hop */
    uint8_t carrier;  /* whose submit moves it */
    bool demotion;    /* the copy it was made from goes, if it still may */
    bool quiet;       /* nobody asked for it: no event */
    bool for_disk;    /* the copy in the host is to be stored: kvl_persist_copied */
    bool uncounted;   /* its failure is no tier's, or was counted already */
    uint64_t order;   /* onto disk, or for_disk: see kvl_persist_enter */
};

struct kvl_transfer_queue {
    struct kvl_transfer *first, *last;
};

static inline void kvl_transfer_queue_push(
    struct kvl_transfer_queue *queue, struct kvl_transfer *transfer) {
    transfer->next_waiting = NULL;
    if (queue->first == NULL)
        queue->first = transfer;
    else
        queue->last->next_waiting = transfer;
    queue->last = transfer;
}

static inline void kvl_transfer_queue_push_front(
    struct kvl_transfer_queue *queue, struct kvl_transfer *transfer) {
    transfer->next_waiting = queue->first;
    queue->first = transfer;
    if (queue->last == NULL)
        queue->last = transfer;
}

/* Of a queue that is not empty. */
static inline struct kvl_transfer *kvl_transfer_queue_pop(struct kvl_transfer_queue *queue) {
    struct kvl_transfer *transfer = queue->first;
    queue->first = transfer->next_waiting;
    if (queue->first == NULL)
        queue->last = NULL;
    return transfer;
}

struct kvl_tier_state {
    uint64_t copied_blocks;    /* memory tiers: blocks there that another tier has, too */
    struct kvl_tier *tier;     /* NULL: absent */
    struct kvl_policy *policy; /* memory tiers */
    struct kvl_transfer_queue waiting[KVL_PRIORITIES];
    uint64_t slot_bytes_max; /* the largest slot asked for so far */
};

/* A slot or a disk location whose entry is gone, kept for those that still use it. */
struct kvl_orphan {
    struct kvl_orphan *next;
    struct kvl_tenant *tenant;
    struct kvl_key key;
    uint64_t slot_bytes;
    uint64_t generation;
    uint64_t location;
    uint32_t users;
    uint8_t tier;
};

struct kvl_persist_item {
    struct kvl_tenant *tenant;
    uint32_t block;
    uint64_t generation;
    uint64_t order;
};

struct kvl_catalog_put; /* catalog_queue.c */
struct kvl_sweep;       /* quota.c */
struct kvl_sealing;     /* sealing.c */

/* info stands first: what is handed out is found again with kvl_container_of. */
struct kvl_namespace {
    struct kvl_namespace_info info;
    struct kvl_tenant *tenant;
};

#define KVL_SEEKS_MAX 256u /* under way at a time */

struct kvl_store {
    struct kvl_tier_state tiers[KVL_TIER_COUNT];
    struct kvl_catalog *catalog;
    struct kvl_log *log;
    struct kvl_table *table;
    struct kvl_lease_table *leases;
    struct kvl_ticket_pool *tickets;
    struct kvl_workers *workers;
    struct kvl_session_set *sessions;
    struct kvl_tenant_set tenants;
    int epoll_fd;
    int timer_fd;
    bool checked; /* the catalog is known, and every answer certain */
    bool loaded;
    bool closing; /* destroy: nothing new is started */
    bool retry;   /* something waits that no fd will announce */
    bool timer_armed;
    bool demote_rests;     /* no victim: until a block becomes one, or a transfer ends */
    bool device_is_far;    /* the CPU cannot address it */
    bool device_lost;      /* its tier said so */
    bool device_forgotten; /* and so are its copies */
    uint64_t epoch;
    uint64_t start_ns;
    uint32_t now_s; /* wall clock, as of the last poll */
    uint64_t client_lease_bytes_max;

    uint64_t seek_last;                   /* the last one asked for */
    uint64_t seek_over;                   /* those up to it are over */
    uint64_t seek_news;                   /* see kvl_store_seek_news */
    uint64_t seek_answers[KVL_SEEKS_MAX]; /* by number: it, if it was certain */

    struct kvl_client clients[KVL_CLIENTS_MAX];
    uint32_t client_count;
    struct kvl_ticket_owner ticket_owners[KVL_TICKET_WORDS];
    struct kvl_operation *operations;
    struct kvl_namespace **namespaces; /* by id - 1; NULL: a hole */
    uint32_t namespace_end;
    uint32_t namespace_room;

    struct kvl_pool seal_pool;
    struct kvl_sealing *sealing_first, *sealing_last; /* waiting for room in the device's queue */
    struct kvl_pool transfer_pool;
    struct kvl_transfer *arriving[KVL_ARRIVING_BUCKETS];
    struct kvl_transfer *transfers;
    struct kvl_orphan *orphans[KVL_ORPHAN_BUCKETS];
    uint32_t transfer_count;
    struct kvl_transfer_queue unstaged[KVL_PRIORITIES]; /* second hops without a first one yet */
    uint32_t unstaged_count;
    uint64_t demoting_bytes;
    uint32_t demoting;

    struct kvl_persist_item *persist_items; /* ring */
    uint32_t persist_room, persist_first, persist_count;
    uint32_t storing;
    uint32_t persist_copies; /* transfers to the host whose block is stored next */
    uint64_t storing_bytes;
    uint64_t persist_order;   /* the last one given */
    uint64_t persist_pending; /* entered and not done */
    bool store_failure_logged;
    uint64_t store_failed_blocks;
    uint64_t storing_bytes_max; /* what is being stored holds its slots: not all of its tier */
    uint64_t stored_ns;         /* when a store ended last, or began with none under way; before
                                   loaded: when the disk told something last */
    struct kvl_settle draining; /* kvl_store_drain's */
    uint64_t kept_recent_bytes; /* on disk, for their recent use, since a store last succeeded */

    struct kvl_catalog_put *puts_first, *puts_last;
    uint32_t puts_count;

    uint64_t generation_next;
    uint64_t generation_reserved; /* what the catalog says is used */
    uint64_t generation_found;

    struct kvl_event_ring events; /* everybody's */
    struct kvl_sweep *sweep;      /* NULL until a disk quota was reached */

    uint32_t *scratch_blocks; /* KVL_CHAIN_BLOCKS_MAX */
    uint8_t *scratch_held;
};

/* What a client may see and clear: NULL: everything. */
static inline struct kvl_tenant *kvl_client_view(
    struct kvl_store *store, const struct kvl_client *client) {
    return client->info.sees_all ? NULL : store->tenants.tenants[client->info.tenant];
}
/* Of a view that came over the interface: NULL for KVL_TENANT_ALL. */
static inline struct kvl_tenant *kvl_view_of(struct kvl_store *store, uint32_t tenant) {
    assert(tenant == KVL_TENANT_ALL || tenant < store->tenants.count);
    return tenant == KVL_TENANT_ALL ? NULL : store->tenants.tenants[tenant];
}

/* ---- store.c ------------------------------------------------------------------------------ */
struct kvl_client *kvl_client_find(struct kvl_store *store, uint32_t id);
/* Links the operation to a new ticket of the client. Errors: LIMIT, PERM (no such client). */
KVL_MUST_CHECK kvl_err kvl_operation_begin(struct kvl_store *store, uint32_t client,
    enum kvl_operation_kind kind, struct kvl_operation *operation, struct kvl_ticket *ticket);
void kvl_operation_value(struct kvl_operation *operation, unsigned index, uint64_t value);
/* Publishes the status and unlinks; the caller frees. */
void kvl_operation_end(struct kvl_store *store, struct kvl_operation *operation, kvl_err status);
/* One step of every operation of the kind; a step may end its own. */
void kvl_operations_step(struct kvl_store *store, enum kvl_operation_kind kind,
    void (*step)(struct kvl_store *store, struct kvl_operation *operation));
/* The client's ticket is void from now on; what it stood for goes on unseen. */
void kvl_ticket_release(struct kvl_store *store, uint32_t client, struct kvl_ticket ticket);
/* Starts what can be started: call at the end of every call that changed something. */
void kvl_store_pump(struct kvl_store *store);
uint64_t kvl_generation_next(struct kvl_store *store);

/* ---- namespace.c -------------------------------------------------------------------------- */
/* NULL when there is none. */
struct kvl_namespace_info *kvl_namespace_by_id(struct kvl_store *store, uint32_t id);
struct kvl_namespace_info *kvl_namespace_by_key(struct kvl_store *store, const struct kvl_key *key);
/* Whether its layers see a window only. Of such a chain the end is of use and the beginning is not:
 * blocks leave in the order of their use alone, and of those used at once the first one first. */
bool kvl_namespace_is_windowed(struct kvl_store *store, uint32_t id);
/* The default tenant for an id that is none, as a pin's entry has before its block was found. */
struct kvl_tenant *kvl_namespace_tenant(struct kvl_store *store, uint32_t id);
static inline struct kvl_tenant *kvl_entry_tenant(
    struct kvl_store *store, const struct kvl_entry *entry) {
    return kvl_namespace_tenant(store, entry->namespace_id);
}
/* The entry's pin is its tenant's from now on. */
void kvl_entry_join(struct kvl_store *store, struct kvl_entry *entry, uint32_t namespace_id);
void kvl_namespace_found(struct kvl_store *store, const void *key, uint32_t key_bytes,
    const void *value, uint32_t value_bytes);
void kvl_namespaces_free(struct kvl_store *store);

/* ---- placement.c -------------------------------------------------------------------------- */
static inline bool kvl_entry_has_slot(const struct kvl_entry *entry, unsigned tier) {
    return tier < KVL_MEMORY_TIERS && (entry->flags & (KVL_ENTRY_SLOT << tier)) != 0;
}
static inline bool kvl_entry_is_in(const struct kvl_entry *entry, unsigned tier) {
    return (entry->tiers >> tier & 1) != 0;
}
static inline uint64_t kvl_entry_location(const struct kvl_entry *entry, unsigned tier) {
    return tier < KVL_MEMORY_TIERS ? (uint64_t)entry->slot_page[tier] * KVL_PAGE_BYTES
                                   : entry->disk_location;
}
const struct kvl_layout *kvl_entry_layout(struct kvl_store *store, const struct kvl_entry *entry);
/* The tier holds the block whole and verified from now on; or not any more. */
void kvl_place_set(struct kvl_store *store, uint32_t block, unsigned tier);
void kvl_place_clear(struct kvl_store *store, uint32_t block, unsigned tier);
struct kvl_slot_wish {
    struct kvl_tenant *tenant; /* who pays for it */
    unsigned tier;
    uint64_t slot_bytes;
};
/* A free slot within the tenant's quota, at the cost of its own copies there where the quota is
 * reached, of anybody's where the tier is full. Copies go first; then blocks that no disk will ever
 * have, though it is their last copy. behind ends there; otherwise, while the disk is stuck, blocks
 * that wait for it go too. Never a pinned one's last copy.
 * Errors: NOSPC, AGAIN (memory not touched yet). */
KVL_MUST_CHECK kvl_err kvl_slot_reserve(
    struct kvl_store *store, const struct kvl_slot_wish *wish, bool behind, uint64_t *location);
/* The same at nobody's cost. */
KVL_MUST_CHECK kvl_err kvl_slot_take(
    struct kvl_store *store, const struct kvl_slot_wish *wish, uint64_t *location);
void kvl_slot_give_back(
    struct kvl_store *store, const struct kvl_slot_wish *slot, uint64_t location);
struct kvl_slot_wish kvl_entry_slot_wish(
    struct kvl_store *store, const struct kvl_entry *entry, unsigned tier);
/* The tier's next victim for which evictable holds, of one tenant or (NULL) of whoever has waited
 * longest; KVL_BLOCK_NONE. */
uint32_t kvl_victim(struct kvl_store *store, unsigned tier, const struct kvl_tenant *tenant,
    bool (*evictable)(void *arg, uint32_t block), void *arg);
/* Attaches a reserved slot to the entry. */
void kvl_slot_attach(struct kvl_store *store, uint32_t block, unsigned tier, uint64_t location);
/* After a user of the slot has gone: an idle copy is the policy's, an empty idle slot is freed. */
void kvl_slot_release_unused(struct kvl_store *store, uint32_t block, unsigned tier);
/* A lease or another user of this generation's copy comes or goes. */
void kvl_lease_count_up(struct kvl_store *store, uint32_t block, unsigned tier);
void kvl_lease_count_down(
    struct kvl_store *store, uint32_t block, uint64_t generation, unsigned tier);
void kvl_busy_up(struct kvl_store *store, uint32_t block, unsigned tier);
void kvl_busy_down(struct kvl_store *store, uint32_t block, uint64_t generation, unsigned tier);
bool kvl_entry_is(struct kvl_store *store, uint32_t block, uint64_t generation);
/* Frees the entry, and parents that were ghosts for its sake, if nothing keeps it. */
void kvl_block_reap(struct kvl_store *store, uint32_t block);
/* Takes every copy of the block away; the entry stays for its children, its pin, or a new fill. */
void kvl_block_abandon(struct kvl_store *store, uint32_t block);
/* Abandon, tell, reap. */
void kvl_block_drop(struct kvl_store *store, uint32_t block, enum kvl_event_kind why);
void kvl_block_evict(struct kvl_store *store, uint32_t block, unsigned tier);
/* The disk has the block no more: counts, tells, and drops what has no other copy. */
void kvl_disk_copy_lost(struct kvl_store *store, uint32_t block);
/* The tier's copy is not what was sealed: it goes, and with it the block when no other is left.
 * Other copies are good: each was checked against the seal's hash when it was made. A slot that
 * somebody still uses stays attached until they leave. */
void kvl_copy_is_bad(struct kvl_store *store, uint32_t block, unsigned tier);
void kvl_block_used(struct kvl_store *store, uint32_t block);
/* Finds or makes the entry of a parent, and links. Errors: NOMEM, LIMIT. */
KVL_MUST_CHECK kvl_err kvl_block_link(
    struct kvl_store *store, uint32_t block, const struct kvl_key *parent);
/* Nothing but leases, which the policies know of, keeps the block's copy in the tier. */
static inline bool kvl_entry_may_leave(const struct kvl_entry *entry, unsigned tier) {
    return entry->busy[tier] == 0 && entry->tier_children[tier] == 0;
}

/* ---- demotion.c --------------------------------------------------------------------------- */
void kvl_demote_pump(struct kvl_store *store);
/* After a demotion's copy: frees the device's one if nobody came in between. */
void kvl_demote_finish(struct kvl_store *store, uint32_t block);

/* ---- orphan.c ----------------------------------------------------------------------------- */
/* Of the entry's copy in the tier, with its users. False when out of memory. */
KVL_MUST_CHECK bool kvl_orphan_add(
    struct kvl_store *store, const struct kvl_entry *entry, unsigned tier, uint32_t users);
void kvl_orphan_count_down(struct kvl_store *store, unsigned tier, uint64_t generation);
void kvl_orphan_moved(struct kvl_store *store, const struct kvl_key *key, uint64_t location);
void kvl_orphans_free(struct kvl_store *store);

/* ---- transfer.c --------------------------------------------------------------------------- */
/* Moves the block into the slot that its entry has in tier `to` (memory) or onto disk. NULL when
 * out of memory. Nothing completes before the next pump. */
struct kvl_transfer *kvl_transfer_start(
    struct kvl_store *store, uint32_t block, unsigned to, enum kvl_io_priority priority);
/* Copies a block of the device to the host, behind. Errors: NOSPC (or no host), AGAIN (memory not
 * touched yet), NOMEM. */
KVL_MUST_CHECK kvl_err kvl_transfer_to_host(
    struct kvl_store *store, uint32_t block, struct kvl_transfer **out);
struct kvl_transfer *kvl_transfer_arriving(struct kvl_store *store, uint32_t block, unsigned to);
/* Queues what the io of the transfer's present hop needs, from the entry as it is now. */
void kvl_transfer_hop(struct kvl_store *store, struct kvl_transfer *transfer);
/* Ends and frees it, and whoever waited for it goes on. */
void kvl_transfer_end(struct kvl_transfer *transfer, kvl_err status);
void kvl_transfer_pump(struct kvl_store *store);
void kvl_transfers_cancel_waiting(struct kvl_store *store);
void kvl_entry_record(struct kvl_store *store, uint32_t block, struct kvl_block_record *record);

/* ---- staging.c ---------------------------------------------------------------------------- */
/* Takes a transfer from disk to a far device, which goes on once the block is in the host. */
void kvl_stage_wait(struct kvl_store *store, struct kvl_transfer *second);
void kvl_stage_pump(struct kvl_store *store);
/* A transfer to the host has ended and its copy, if any, is in place. */
void kvl_stage_landed(struct kvl_store *store, struct kvl_transfer *first, kvl_err status);
void kvl_stage_cancel_waiting(struct kvl_store *store);

/* ---- device_loss.c ------------------------------------------------------------------------ */
/* Told of every answer of the device's tier; returns what it is to whoever waits: IO for CLOSED,
 * which to a client would mean its connection. */
KVL_MUST_CHECK kvl_err kvl_device_answered(struct kvl_store *store, kvl_err status);
void kvl_device_pump(struct kvl_store *store);

/* ---- sealing.c ---------------------------------------------------------------------------- */
/* NULL when out of memory. Started or given back. */
struct kvl_sealing *kvl_sealing_take(struct kvl_store *store);
void kvl_sealing_give_back(struct kvl_store *store, struct kvl_sealing *sealing);
/* Hashes the slot of an entry that is SEALING; the block is visible when that is done. */
void kvl_sealing_start(
    struct kvl_store *store, struct kvl_sealing *sealing, uint32_t block, unsigned tier);
void kvl_sealing_pump(struct kvl_store *store);
void kvl_sealings_cancel_waiting(struct kvl_store *store);

/* ---- store_restore.c ---------------------------------------------------------------------- */
void kvl_piece_progress(struct kvl_store *store, struct kvl_piece *piece, uint32_t frames,
    const struct kvl_layout *layout);
void kvl_piece_end(struct kvl_store *store, struct kvl_piece *piece, kvl_err status, unsigned from,
    uint64_t bytes);

/* ---- store_seal.c ------------------------------------------------------------------------- */
/* Ends a lease of the client, whatever its kind. */
void kvl_lease_end(struct kvl_store *store, struct kvl_client *client, struct kvl_lease *lease);
/* A read lease of a block with a slot in the tier. Errors: LIMIT, NOMEM. */
KVL_MUST_CHECK kvl_err kvl_lease_read(struct kvl_store *store, struct kvl_client *client,
    uint32_t block, unsigned tier, struct kvl_lease **out);
/* Nothing became of the fill or the seal: the key goes to the first waiter that can take it over,
 * or the entry goes. The entry is not visible and its generation void. */
void kvl_fill_end(struct kvl_store *store, uint32_t block);
/* The block that waiters wait for was sealed. */
void kvl_waiters_sealed(struct kvl_store *store, uint32_t block);

/* ---- persist.c ---------------------------------------------------------------------------- */
/* A block is to become durable: counted until done is called with the order it got. */
uint64_t kvl_persist_enter(struct kvl_store *store, struct kvl_tenant *tenant);
void kvl_persist_queue(struct kvl_store *store, uint32_t block, uint64_t order);
void kvl_persist_done(
    struct kvl_store *store, struct kvl_tenant *tenant, uint64_t order, kvl_err status);
/* What a disk or a quota refused is not any more: stored after all, tried again, or gone. */
void kvl_store_failed_clear(struct kvl_store *store, struct kvl_entry *entry);
void kvl_persist_stored(struct kvl_store *store, struct kvl_transfer *transfer, kvl_err status);
/* A copy in the host that was made for_disk has ended. */
void kvl_persist_copied(struct kvl_store *store, struct kvl_transfer *transfer, kvl_err status);
void kvl_persist_pump(struct kvl_store *store);
/* From here on everything that the tenant (NULL: anybody) entered so far is waited for. */
void kvl_settle_begin(
    struct kvl_store *store, struct kvl_settle *settle, const struct kvl_tenant *tenant);
/* True once it is over; then status says how. */
bool kvl_settle_step(struct kvl_store *store, struct kvl_settle *settle);
void kvl_flush_pump(struct kvl_store *store);

/* ---- quota.c ------------------------------------------------------------------------------ */
enum kvl_quota_answer { KVL_QUOTA_ROOM, KVL_QUOTA_WAIT, KVL_QUOTA_FULL };
/* May the tenant store so many bytes more? WAIT: room is being made, at the cost of its oldest
 * blocks there; FULL: none can be made. */
enum kvl_quota_answer kvl_disk_quota_ask(
    struct kvl_store *store, struct kvl_tenant *tenant, uint64_t bytes);
void kvl_quota_pump(struct kvl_store *store);

/* ---- seek.c ------------------------------------------------------------------------------- */
void kvl_seek_over(void *store, uint64_t number, bool certain); /* the tier's event */
void kvl_seek_news(struct kvl_store *store);

/* ---- recovery.c --------------------------------------------------------------------------- */
void kvl_recovery_listen(struct kvl_store *store);

/* ---- catalog_queue.c ---------------------------------------------------------------------- */
/* Puts now, or behind those that wait. No catalog: OK. Errors: AGAIN (too many wait), NOMEM. */
KVL_MUST_CHECK kvl_err kvl_catalog_put(struct kvl_store *store, enum kvl_catalog_kind kind,
    const void *key, uint32_t key_bytes, const void *value, uint32_t value_bytes);
KVL_MUST_CHECK kvl_err kvl_catalog_remove(
    struct kvl_store *store, enum kvl_catalog_kind kind, const void *key, uint32_t key_bytes);
void kvl_catalog_pump(struct kvl_store *store);
void kvl_catalog_queue_free(struct kvl_store *store);

/* ---- pin.c -------------------------------------------------------------------------------- */
void kvl_pin_found(struct kvl_store *store, const void *key, uint32_t key_bytes);
void kvl_pin_clear(struct kvl_store *store, uint32_t block);

/* ---- session_chain.c ---------------------------------------------------------------------- */
/* NULL for one that is none any more. */
const struct kvl_tenant *kvl_session_tenant(
    struct kvl_store *store, const struct kvl_session *session);
struct kvl_session_space {
    uint32_t id; /* 0 at first */
    const struct kvl_namespace_info *info;
    struct kvl_key root; /* the namespace's key, as clients know it */
};
/* The next namespace that has a chain of the session; false past the last. */
bool kvl_session_space_next(
    struct kvl_store *store, const struct kvl_session *session, struct kvl_session_space *space);
/* As clients know it. Moves the session's walk. Errors: NOTFOUND (there is none), NOMEM. */
KVL_MUST_CHECK kvl_err kvl_session_tail_key(
    struct kvl_session *session, const struct kvl_session_space *space, struct kvl_key *tail);

/* ---- store_clear.c, store_verify.c, store_session.c, store_report.c ------------------------ */
void kvl_clear_pump(struct kvl_store *store);
void kvl_verify_pump(struct kvl_store *store);
uint64_t kvl_visible_blocks(struct kvl_store *store, const struct kvl_tenant *view);
uint32_t kvl_sessions_of(struct kvl_store *store, const struct kvl_tenant *view);
void kvl_sessions_close_of(struct kvl_store *store, uint32_t client);
void kvl_event_add(struct kvl_store *store, enum kvl_event_kind kind, unsigned tier,
    const struct kvl_entry *entry);

#endif
