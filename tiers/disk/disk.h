/* disk.h - the inside of the disk tier: its threads, their queues and the state each owns.
 *
 *   owner  --inbox-->  disk thread  --index inbox-->  index thread (LMDB)
 *     ^---outbox---'      |     ^-----inbox-------------'
 *                    io backend, codec workers
 *
 * A store:  queue -> staged in a batch, encoded (or only hashed) by a worker -> placed behind the
 *           segment's last record -> written -> data synced -> one synced index transaction ->
 *           complete. The caller's buffer is read until it is written.
 * Batches move through these states in order; only the oldest may be placed, synced, committed.
 * A batch gives its buffer back once it is written; those that wait meanwhile are synced and
 * committed together. */
#ifndef KVL_DISK_H
#define KVL_DISK_H

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>

#include "codec_pool.h"
#include "disk_dir.h"
#include "disk_tier.h"
#include "index.h"
#include "io_backend.h"
#include "journal.h"
#include "mailbox.h"
#include "rebuild.h"
#include "record.h"
#include "segment.h"
#include "workers.h"

#define KVL_DISK_REQUESTS 4096u
#define KVL_DISK_LOADS 64u /* being read or verified */
/* Of the loads, reads at the disk at once: as many as keep it busy, and few enough that what was
 * asked for first comes first. Large ones: of READS_BYTES together, but READS_MIN. */
#define KVL_DISK_READS 16u
#define KVL_DISK_READS_MIN 4u
#define KVL_DISK_READS_BYTES (16ull << 20)
#define KVL_DISK_BATCHES 32u
#define KVL_DISK_BATCH_RECORDS 512u
/* For a batch that is filled, two that are encoded, one that is written. A buffer takes a block of
 * 8 MiB with its header and the padding of its frames. */
#define KVL_DISK_BUFFERS 4u
#define KVL_DISK_BUFFER_BYTES (10ull << 20)
/* Synced and committed at once while more is being written: each costs the disk three flushes. */
#define KVL_DISK_GROUP_BYTES (32ull << 20)
#define KVL_DISK_WRITE_BYTES (1ull << 20)
#define KVL_DISK_WRITES 8u /* in flight; 1 while reads are */
/* Smaller payloads are copied into the batch's buffer: a copy costs less than a part of a write. */
#define KVL_DISK_APART_BYTES (64ull << 10)
#define KVL_DISK_PARTS 64u /* of a write */
#define KVL_DISK_BOUNCE_BYTES (2ull << 20)
#define KVL_DISK_BOUNCES_MAX 16u
#define KVL_DISK_QUEUED_BYTES_MAX (64ull << 20) /* catalog puts not yet durable */
/* Catalog puts end here: what is left of the map is for deletes. */
#define KVL_DISK_CATALOG_PERMILLE 900u
/* ... and here, of what the journal's file may hold. */
#define KVL_DISK_JOURNAL_PERCENT 95u
#define KVL_DISK_FOUND_BLOCKS 512u
/* Chunks on their way to the owner at start: so many that nobody waits for a thread to wake up, and
 * few enough that a request behind them waits some ms. */
#define KVL_DISK_FOUND_MAX 32u
#define KVL_DISK_SEEK_KEYS_MAX 65536u /* being sought at a time */
#define KVL_DISK_TOUCH_S 60u          /* coarseness of the last use */

enum kvl_disk_node {
    /* inbox of the disk thread */
    KVL_NODE_REQUEST,
    KVL_NODE_OP,
    KVL_NODE_FLUSH,
    KVL_NODE_REGISTER,
    KVL_NODE_WAKE,
    /* between owner and disk thread, there and back */
    KVL_NODE_ASK,
    KVL_NODE_NOTICES,
    /* between disk and index thread, there and back */
    KVL_NODE_COMMIT,
    KVL_NODE_PREPARE,
    KVL_NODE_RESOLVE,
    KVL_NODE_LOAD,
    KVL_NODE_STOP,
    /* from the index thread, through the disk thread, to the owner */
    KVL_NODE_FOUND,
    KVL_NODE_CATALOG,
    KVL_NODE_RECANT,
    KVL_NODE_SOUGHT,
    KVL_NODE_LOST,
    /* outbox */
    KVL_NODE_PROGRESS,
    KVL_NODE_COMPLETE
};

struct kvl_disk;
struct kvl_disk_batch;

/* An io under way. From the owner's pool; the disk thread's between the two mailboxes. */
struct kvl_disk_request {
    struct kvl_node in, progress, complete;
    struct kvl_io *io;
    struct kvl_disk *disk;
    struct kvl_segment *held; /* a LOAD that waits keeps its segment from being reused */
    uint64_t sequence;
    uint64_t arrival_ns;
    atomic_bool canceled;
    atomic_uint frames_ready;
    uint32_t frames_told; /* owner's */
    kvl_err status;       /* this and the next two: valid once complete is posted */
    uint64_t location;
    uint64_t stored_bytes;
    struct kvl_disk_request *next;
};

struct kvl_disk_request_list {
    struct kvl_disk_request *head, **tail;
    uint64_t count;
};

/* One index change on its way from the owner. */
struct kvl_disk_op_node {
    struct kvl_node node;
    struct kvl_index_op op;
    uint8_t data[];
};

struct kvl_disk_flush {
    struct kvl_node node;
    uint64_t sequence;
    kvl_err status;
    void (*done)(void *arg, kvl_err status); /* may be NULL */
    void *arg;
    bool deletion_lost; /* before it was posted: then it ends with NOMEM */
    struct kvl_disk_flush *next;
};

struct kvl_disk_register {
    struct kvl_node node;
    void *address;
    uint64_t bytes;
    struct kvl_disk_register *next;
};

struct kvl_disk_found {
    struct kvl_node node;
    uint32_t count;
    bool sought[KVL_DISK_FOUND_BLOCKS]; /* ahead of the walk, which comes to the block again */
    struct kvl_index_block blocks[KVL_DISK_FOUND_BLOCKS];
};

/* Keys to be found ahead of the walk: owner, index thread, disk thread, owner. */
struct kvl_disk_seek {
    struct kvl_node node;
    uint64_t number;
    bool leading; /* it ends at the first key that is not found */
    bool over;
    bool doubtful;           /* a key was not found that may be there */
    bool certain;            /* the answer */
    uint64_t generation_max; /* number 0, certain */
    uint32_t count, done;
    struct kvl_key keys[];
};

/* The index thread's, while it loads. */
struct kvl_disk_seeker {
    struct kvl_mailbox inbox;
    struct kvl_disk_seek *current;
    struct kvl_disk_found *chunk; /* of the walk and of seeks, in the order found */
    bool answering, certain;
    bool walking;
    struct kvl_key walked;         /* the last one */
    uint64_t begun_ns, spent_ns;   /* since when, and how long of it */
    struct kvl_disk_notices *told; /* before it was certain; NULL: nothing */
    uint64_t told_room;
};

struct kvl_disk_catalog_record {
    struct kvl_node node;
    enum kvl_catalog_kind kind;
    uint32_t key_bytes, value_bytes;
    uint8_t data[];
};

/* Start of the index thread's walk; comes back when it is over, then goes on to the owner. */
struct kvl_disk_loading {
    struct kvl_node node;
    kvl_err status;
    uint64_t bad;
};

struct kvl_disk_prepare {
    struct kvl_node node;
    struct kvl_index_segment segments[KVL_SEGMENTS_AHEAD];
    uint32_t count; /* back from the index thread: made */
    kvl_err status;
};

/* "Which of these may not be lost?" */
struct kvl_disk_ask {
    struct kvl_node node;
    uint64_t count;
    struct {
        struct kvl_key key;
        uint32_t page;
        bool keep;
    } items[];
};

struct kvl_disk_notice {
    struct kvl_key key;
    uint64_t location;
    bool moved;
};

/* Moved and lost blocks. ack: posted back once the owner has heard, so that what it asked for
 * before, under old locations, is known to have arrived. */
struct kvl_disk_notices {
    struct kvl_node node;
    bool ack;
    uint64_t count;
    struct kvl_disk_notice items[];
};

/* Blocks that a healing lost, by place, rising. */
struct kvl_disk_lost {
    struct kvl_node node;
    uint64_t count;
    uint64_t locations[];
};

struct kvl_disk_ops {
    struct kvl_index_op *items;
    uint64_t count, capacity;
    uint64_t bytes;          /* of catalog data */
    uint64_t first_sequence; /* UINT64_MAX when there is none of the owner's */
    uint64_t since_ns;
};

/* Changes of the index, in one transaction; in several where they are too many for the map. */
struct kvl_disk_commit {
    struct kvl_node node;
    struct kvl_disk_ops ops;
    struct kvl_disk_batch *batches; /* whose blocks it publishes, oldest first */
    uint64_t done_ops; /* committed, by an attempt that then found the map full or failed */
    bool busy;
    uint32_t attempts;
    uint32_t usage_permille;
    kvl_err status;
};

/* A record on its way to a segment: a new block, or one carried over from a reclaimed segment. */
struct kvl_disk_staged {
    struct kvl_job job;
    struct kvl_disk_op op; /* carried: the read of the old record */
    struct kvl_disk *disk;
    struct kvl_disk_batch *batch;
    struct kvl_disk_request *request; /* NULL: carried */
    uint64_t from;                    /* carried: the old location */
    struct kvl_index_block block;
    uint64_t at_bytes; /* in the batch, and in its buffer */
    uint8_t *payload;  /* the caller's, written from there; NULL: it lies in the buffer */
    uint64_t reserved_bytes;
    uint64_t segment_generation;
    uint64_t record_bytes;
    uint64_t op_index; /* in the commit, UINT64_MAX none */
    kvl_err status;
    bool compress, sample;
};

enum kvl_disk_batch_state {
    KVL_BATCH_UNUSED,
    KVL_BATCH_FILLING,
    KVL_BATCH_WRITING,
    KVL_BATCH_WRITTEN, /* without a buffer from here on */
    KVL_BATCH_SYNCING,
    KVL_BATCH_READY,
    KVL_BATCH_COMMITTING,
    KVL_BATCH_PROBING
};

/* Staging memory: of a batch, or free. */
struct kvl_disk_buffer {
    uint8_t *base; /* registered; stays mapped while a larger record has memory of its own */
    uint64_t base_bytes;
    uint8_t *memory;
    uint64_t memory_bytes;
    struct kvl_disk_buffer *next; /* free */
};

struct kvl_disk_batch {
    struct kvl_disk *disk;
    enum kvl_disk_batch_state state;
    struct kvl_segment *segment;
    struct kvl_disk_buffer *buffer; /* until all is written */
    uint64_t reserved_bytes;        /* of the buffer, by records of the largest size */
    uint64_t used_bytes;            /* once placed */
    uint64_t offset_bytes;          /* in the segment, once placed */
    uint64_t written_bytes;
    uint32_t written_records; /* whole ones */
    uint64_t opened_ns;
    uint64_t first_sequence;
    uint32_t encoding; /* records not yet in the buffer */
    uint32_t writing;  /* ops under way */
    bool sealed;
    kvl_err status;
    struct kvl_disk_op ops[KVL_DISK_WRITES];
    struct iovec parts[KVL_DISK_WRITES][KVL_DISK_PARTS];
    bool op_busy[KVL_DISK_WRITES];
    struct kvl_disk_staged *staged;
    uint32_t staged_count;
    struct kvl_disk_batch *next;
};

struct kvl_disk_load;

struct kvl_disk_frame_job {
    struct kvl_job job;
    struct kvl_disk_load *load;
    uint32_t first, count;
    kvl_err status;
};

/* A LOAD under way. */
struct kvl_disk_load {
    struct kvl_disk *disk;
    struct kvl_disk_request *request;
    struct kvl_segment *segment;
    uint32_t page;
    uint64_t record_bytes;
    bool direct;          /* frames read straight into the caller's buffer */
    uint8_t *header_page; /* of its own */
    uint8_t *bounce;      /* the whole record; NULL when direct */
    int32_t bounce_slot;  /* -1: allocated for this load */
    struct kvl_disk_op op;
    struct iovec parts[2]; /* direct: the header's page, the frames */
    uint32_t decoding;
    uint32_t verified; /* leading frames */
    bool frame_ok[KVL_FRAMES_MAX];
    kvl_err status;
    struct kvl_record_header header;
    struct kvl_disk_frame_job jobs[KVL_FRAMES_MAX];
    struct kvl_disk_load *next;
};

/* The keys of a segment's records, in the order of its entries. */
struct kvl_disk_resolve {
    struct kvl_node node;
    kvl_err status;
    uint64_t count;
    struct kvl_index_name names[];
};

enum kvl_reclaim_state {
    KVL_RECLAIM_IDLE,
    KVL_RECLAIM_RESOLVING,
    KVL_RECLAIM_ASKING,
    KVL_RECLAIM_CARRYING,
    KVL_RECLAIM_DELETING,
    KVL_RECLAIM_TELLING,
    KVL_RECLAIM_RELEASING
};

struct kvl_disk_reclaim {
    enum kvl_reclaim_state state;
    struct kvl_segment *victim;
    struct kvl_disk_resolve *resolved; /* the victim's keys, once asked for */
    uint64_t number;                   /* of this attempt to get a segment; see kvl_segment.tried */
    uint64_t next_entry;               /* to be carried */
    uint32_t carrying;                 /* staged, not yet committed */
    bool carry_failed;
    bool unreadable;          /* for an old record cannot be read: another victim may do */
    bool carried;             /* at least one copy was begun */
    bool made_room;           /* since the parked commit was last tried */
    bool futile;              /* nothing to be had until something changes */
    bool ahead;               /* of need: takes only what is cheap */
    bool waits;               /* for batches of its next victim; then it goes on */
    uint64_t ahead_failed;    /* generation of the active segment when it found nothing */
    struct kvl_segment *best; /* fewest kept bytes so far */
    uint64_t best_kept_bytes;
    uint32_t asked;            /* victims so far in this attempt */
    uint32_t carried_rounds;   /* with copies, since a store last found room */
    uint64_t carried_since_ns; /* the first of them */
    struct kvl_disk_commit commit;
};

/* What AUTO measured, by element size 1, 2, 4. */
struct kvl_codec_choice {
    atomic_uint samples;
    atomic_ullong raw_bytes, stored_bytes, decode_ns;
    uint64_t staged; /* blocks since start */
};

struct kvl_disk {
    struct kvl_tier tier; /* first */
    struct kvl_catalog catalog;
    struct kvl_disk_register *arenas; /* not registered yet; the disk thread's */
    uint64_t arenas_due_ns;           /* when to look at them again */
    uint64_t loads_started;

    /* Fixed at start. */
    struct kvl_disk_options options;
    struct kvl_disk_dir dir;
    struct kvl_disk_plan plan;
    struct kvl_log *log;
    pthread_t disk_thread, index_thread;
    bool disk_started, index_started;

    /* Owner thread. */
    struct kvl_disk_request *requests, *free_requests;
    uint64_t inflight;
    uint64_t seek_keys;                /* being sought */
    struct kvl_disk_flush drain_flush; /* a drain must not fail for want of memory */
    bool deletion_lost;                /* since the last flush that somebody waits for */

    /* Any thread. */
    struct kvl_mailbox inbox, outbox, index_inbox;
    atomic_bool stopping;
    atomic_ullong persist_ns;
    atomic_ullong queued_bytes;
    atomic_uint found_chunks;
    atomic_uint seeks; /* not yet taken up by the index thread, or under way there */
    atomic_ullong read_bytes, written_bytes, carried_bytes, loads, stores, errors, corrupt;
    atomic_ullong used_bytes;
    atomic_uint index_permille;     /* pages of the map in use */
    atomic_ullong journal_bytes;    /* of its file */
    atomic_int codec_state;         /* enum kvl_disk_codec; AUTO: undecided */
    atomic_ullong read_bytes_per_s; /* the disk's, as probed; 0 unknown */
    struct kvl_codec_choice choices[3];
    struct kvl_codec_pool codecs;

    /* The index thread's, once it runs. */
    struct kvl_index *index;
    struct kvl_disk_seeker seeker;
    struct kvl_index_state *index_state;
    struct kvl_journal journal; /* its run is read by all */
    uint64_t index_since_ns;
    uint64_t heal_after_ns;     /* the index could not be healed: not again before */
    struct kvl_rebuilt rebuilt; /* of this start; zero when it was not */

    /* The disk thread's. */
    struct kvl_io_backend *backend;
    const char *io_name;
    struct kvl_workers *workers;
    struct kvl_segments segments;
    struct kvl_segment *active;
    bool loaded;
    bool deaf; /* a sought block could not be taken up: no seek is answered any more */
    uint64_t sequence;
    struct kvl_disk_request_list loads_waiting[3], stores_waiting;
    struct kvl_disk_load *load_pool, *free_loads;
    struct kvl_disk_load *loads_read, **loads_read_tail; /* to be verified, oldest first */
    uint32_t loads_active;
    uint32_t reads_active; /* of the loads */
    uint64_t reads_bytes;
    uint8_t *header_pages, *bounce_memory;
    uint32_t bounce_count, bounce_free_count, bounce_large;
    uint32_t bounce_free[KVL_DISK_BOUNCES_MAX];
    struct kvl_disk_buffer buffers[KVL_DISK_BUFFERS], *free_buffers;
    struct kvl_disk_batch batches[KVL_DISK_BATCHES];
    struct kvl_disk_batch *batch_head, **batch_tail; /* oldest first */
    uint32_t writes_active;
    struct kvl_disk_op sync_op; /* of the batches that are SYNCING: the oldest ones */
    bool syncing;
    struct kvl_disk_ops pending; /* changes for the next commit */
    struct kvl_disk_commit commit;
    bool commit_parked;       /* the map was full: waits for a reclaim */
    kvl_err index_status;     /* of the last change that was lost; flushes tell it */
    uint64_t index_failed_at; /* sequence when it was */
    struct kvl_disk_prepare prepare;
    bool preparing;
    uint64_t prepare_after_ns; /* the file system was full: not before */
    bool want_segment;         /* stores wait for one */
    uint64_t generation;       /* of the segment opened last */
    struct kvl_disk_reclaim reclaim;
    struct kvl_disk_flush *flushes;
    struct kvl_disk_op probe_ops[16];
    struct kvl_disk_buffer *probe_buffer;
    uint64_t probe_since_ns;
    uint32_t probing;
    uint32_t probes;
    kvl_err start_status;
    struct kvl_errmsg start_msg;
    sem_t started;
    struct kvl_node wake;
};

/* disk_start.c: opening what was left, evicting to a smaller capacity. */
kvl_err kvl_disk_open_store(struct kvl_disk *disk, struct kvl_errmsg *msg);
/* disk_index.c: the index that is there, or a rebuilt one; at start, then on the index thread. */
kvl_err kvl_disk_index_open(struct kvl_disk *disk, struct kvl_errmsg *msg);
/* Reads it as a whole; a damaged one is rebuilt. Before anything of it is used. */
kvl_err kvl_disk_index_read(struct kvl_disk *disk, struct kvl_errmsg *msg);
/* The same, and from then on there is a journal. */
kvl_err kvl_disk_index_check(struct kvl_disk *disk);
/* One transaction, as kvl_index_commit and kvl_index_resolve. What meets damage waits until the
 * index was made anew, and is done again; where that fails: IO. */
kvl_err kvl_disk_index_commit(struct kvl_disk *disk, struct kvl_index_op *ops, uint64_t count);
kvl_err kvl_disk_index_resolve(struct kvl_disk *disk, struct kvl_index_name *names, uint64_t count);
/* Whether the last of the processes that ended here died inside the index is known from now on. */
void kvl_disk_index_served(struct kvl_disk *disk);
/* lost.c: index thread, disk thread. add: arg is a struct kvl_disk_lost **, NULL at first; tell
 * takes it. */
void kvl_disk_lost_add(void *arg, uint64_t location);
void kvl_disk_lost_tell(struct kvl_disk *disk, struct kvl_disk_lost *lost);
void kvl_disk_lost_taken(struct kvl_disk *disk, struct kvl_disk_lost *lost);
/* disk_memory.c */
uint8_t *kvl_disk_map_memory(uint64_t bytes);
struct kvl_disk_buffer *kvl_disk_buffer_take(struct kvl_disk *disk); /* NULL: none is free */
void kvl_disk_buffer_give(struct kvl_disk *disk, struct kvl_disk_buffer *buffer);
kvl_err kvl_disk_memory_create(struct kvl_disk *disk);
void kvl_disk_memory_destroy(struct kvl_disk *disk);
void kvl_disk_memory_register(struct kvl_disk *disk);
/* arenas.c */
void kvl_disk_arena_take(struct kvl_disk *disk, struct kvl_disk_register *memory);
bool kvl_disk_arenas_advance(struct kvl_disk *disk);
void kvl_disk_arenas_forget(struct kvl_disk *disk);

/* index_thread.c */
void *kvl_disk_index_main(void *disk);
/* Sends on what was found so far. */
void kvl_disk_found_send(struct kvl_disk *disk);
/* False: out of memory. */
bool kvl_disk_found_add(struct kvl_disk *disk, const struct kvl_index_block *block, bool sought);
/* seek.c, on the index thread: a portion of what is sought, between portions of loading. */
void kvl_disk_seek_step(void *disk);
/* From now on seeks are answered; certain: what is not found is not there. */
void kvl_disk_seek_answer(struct kvl_disk *disk, bool certain);
/* The index is damaged: what was told of it is taken back, and nothing more is said. */
void kvl_disk_seek_recant(struct kvl_disk *disk);
/* Everything was told. */
void kvl_disk_seek_ended(struct kvl_disk *disk);
void kvl_disk_seeker_deinit(struct kvl_disk *disk);
/* disk_thread.c */
void *kvl_disk_main(void *disk);
kvl_err kvl_disk_backend_create(struct kvl_disk *disk, struct kvl_errmsg *msg);

void kvl_disk_list_init(struct kvl_disk_request_list *list);
void kvl_disk_list_push(struct kvl_disk_request_list *list, struct kvl_disk_request *request);
void kvl_disk_list_push_front(struct kvl_disk_request_list *list, struct kvl_disk_request *request);
struct kvl_disk_request *kvl_disk_list_pop(struct kvl_disk_request_list *list);

/* Hands the request back to the owner. */
void kvl_disk_complete(struct kvl_disk_request *request, kvl_err status);
/* Tells the owner; a notice that cannot be allocated is dropped: a later LOAD says NOTFOUND. */
void kvl_disk_notify(
    struct kvl_disk *disk, const struct kvl_key *key, uint64_t location, bool moved);

/* load.c */
bool kvl_disk_loads_advance(struct kvl_disk *disk);
/* What was read goes on to be verified: after the disk has got more to do. */
void kvl_disk_loads_verify(struct kvl_disk *disk);
/* stage.c: queue to placed batch. */
bool kvl_disk_stage_advance(struct kvl_disk *disk);
void kvl_disk_fail_waiting_stores(struct kvl_disk *disk, kvl_err status);
void kvl_disk_seal(struct kvl_disk *disk);
/* Whether a record of these bytes could be staged, now or once a batch is free. */
bool kvl_disk_has_room(const struct kvl_disk *disk, uint64_t bytes, bool carrying);
/* Stages the copy of a live entry; false: not now. */
bool kvl_disk_stage_carried(
    struct kvl_disk *disk, struct kvl_segment *from, const struct kvl_index_name *name);
/* write.c: placed batch to ready. */
bool kvl_disk_writes_advance(struct kvl_disk *disk);
/* When the oldest batches are synced although more is being written. UINT64_MAX: nothing waits. */
uint64_t kvl_disk_sync_due_ns(const struct kvl_disk *disk);
void kvl_disk_batch_release(struct kvl_disk_batch *batch);
/* codec_choice.c: measures the disk by reading back the first batches. */
bool kvl_disk_probe_begin(struct kvl_disk *disk, struct kvl_disk_batch *batch);

bool kvl_disk_codec_compress(struct kvl_disk *disk, const struct kvl_layout *layout, bool *sample);
void kvl_disk_codec_sample(struct kvl_disk *disk, struct kvl_codec *codec,
    const struct kvl_layout *layout, const uint8_t *payload, uint8_t *scratch);
/* commit.c */
struct kvl_index_op *kvl_disk_ops_add(struct kvl_disk_ops *ops);
void kvl_disk_ops_clear(struct kvl_disk *disk, struct kvl_disk_ops *ops);
bool kvl_disk_commit_advance(struct kvl_disk *disk);
void kvl_disk_change_lost(struct kvl_disk *disk, kvl_err status);
void kvl_disk_commit_done(struct kvl_disk *disk);
void kvl_disk_commit_strip(struct kvl_disk *disk);
void kvl_disk_delete_block(
    struct kvl_disk *disk, const struct kvl_key *key, uint64_t location, uint64_t sequence);
/* space.c */
void kvl_disk_account(struct kvl_disk *disk);
bool kvl_disk_at_cap(const struct kvl_disk *disk);
/* Whether as much is free as carrying a victim's blocks over may need. */
bool kvl_disk_has_reserve(const struct kvl_disk *disk);
/* Whether a free segment may be taken: not by a store when that would leave too few for carrying.
 */
bool kvl_disk_may_take_segment(const struct kvl_disk *disk, bool carrying);
/* Of which more is kept, that is no victim. */
uint64_t kvl_disk_kept_bytes_max(uint64_t segment_bytes);
/* At the cap, before stores run out of room. */
bool kvl_disk_nearly_full(const struct kvl_disk *disk);
/* Below the cap: has new segments made, if it is time. */
bool kvl_disk_prepare_ahead(struct kvl_disk *disk);
void kvl_disk_prepared(struct kvl_disk *disk);
/* Gives an empty segment of another capacity's size back. */
void kvl_disk_drop_odd(struct kvl_disk *disk, struct kvl_segment *segment);
/* victim.c */
struct kvl_segment *kvl_disk_filled_last(const struct kvl_disk *disk);
/* spared: nobody had time yet to use its blocks, so that they look as if nobody would. wait: one
 * may become a victim once its batches are committed. */
struct kvl_segment *kvl_disk_choose_victim(
    struct kvl_disk *disk, const struct kvl_segment *spared, bool *wait);
/* reclaim.c */
bool kvl_disk_reclaim_advance(struct kvl_disk *disk);
void kvl_disk_reclaim_resolved(struct kvl_disk *disk);
void kvl_disk_reclaim_answered(struct kvl_disk *disk, struct kvl_disk_ask *ask);
void kvl_disk_reclaim_told(struct kvl_disk *disk);
void kvl_disk_reclaim_committed(struct kvl_disk *disk);
void kvl_disk_carried(struct kvl_disk *disk, struct kvl_disk_staged *staged, bool moved);

#endif
