/* cuda_private.h - what the files of this tier share.
 *
 *   cuda_tier.c    the owner's side: operations, completions
 *   cuda_arena.c   the GPU's memory, streams, ring and words: made and given back
 *   cuda_thread.c  the driver threads: take ios, watch the words, hand results back
 *   cuda_lane.c    one direction: which frame is copied next, pieces and their way
 *   cuda_loss.c    streams that say nothing, and the end of copies on a lost device
 *   cuda_hash.c    what CPUs do with a piece: its hashes, and its way between ring and buffers
 *   cuda_hashers.c the threads that hash
 *   cuda_pins.c    host memory that is pinned
 *
 *   owner: submit -> lane's inbox[priority] ==mutex==> its thread: queue -> pieces -> stream
 *   owner: poll   <- news[priority]         <==mutex== outbox: landed, hashed, ended
 *
 * A lane belongs to one driver thread, and with it all that its pieces and ios are while they are
 * under way; two lanes share nothing but what is atomic or under the mutex. The last thread also
 * pins host memory.
 *
 * A piece is a batch of copies in one direction, with one write of the lane's word behind it. It is
 * also what is handed over between threads: locks, wake-ups and queues cost once a piece, not once
 * an io, of which there are 40 in a piece where blocks are small. */
#ifndef KVL_CUDA_PRIVATE_H
#define KVL_CUDA_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>

#define XXH_STATIC_LINKING_ONLY /* for XXH3_state_t by value */
#include <xxhash.h>

#include "device_cuda/cuda_tier.h"
#include "slabs.h"
#include "workers.h"

#define KVL_CUDA_MOVES 2048u
#define KVL_CUDA_PRIORITIES 3
#define KVL_CUDA_LANES 2 /* by enum kvl_cuda_direction */
#define KVL_CUDA_LANE_PIECES 6u
#define KVL_CUDA_PIECES (KVL_CUDA_LANES * KVL_CUDA_LANE_PIECES) /* the ring holds as much */
#define KVL_CUDA_LANE_STREAMS_MAX 2u
#define KVL_CUDA_HASH_THREADS_MAX 16u
#define KVL_CUDA_PIECE_COPIES 128u
#define KVL_CACHE_LINE_BYTES 64u
#define KVL_CUDA_FAIR_EVERY 8u /* every so many pieces the lowest priority that waits is served */

struct cuda_tier;

/* One io under way. */
struct cuda_move {
    struct cuda_tier *tier;
    struct kvl_io *io;
    struct cuda_move *next; /* of the list it is in: free, inbox, a queue's */
    atomic_bool canceled;   /* set by the owner thread */

    /* its lane's thread's */
    bool direct;             /* the buffer is pinned */
    bool issued;             /* nothing of it will be copied any more */
    uint32_t frame;          /* the next to be copied, */
    uint64_t frame_at_bytes; /* from here on, */
    uint64_t payload_at_bytes;
    uint32_t parts_out; /* in pieces that are under way */
    uint32_t landed;    /* leading frames that have arrived whole */
    kvl_err status;
    uint64_t content_hash; /* LOAD and HASH, once all frames are hashed */
    bool in_outbox, over;  /* over: nothing more will happen to it */
    struct cuda_move *outbox_next;

    /* under the mutex */
    bool in_news, ended;
    uint32_t news_frames;
    struct cuda_move *news_next;

    /* the owner thread's: of what it took from the news */
    bool told_ended;
    uint32_t told_frames, new_frames;
    struct cuda_move *taken_next;

    /* LOAD and HASH: the hash threads', each frame one's; then its lane's thread's */
    uint64_t frame_hashes[KVL_FRAMES_MAX];
    XXH3_state_t hashing; /* the ring worker's, of a frame that comes in several parts */
};

struct cuda_moves {
    struct cuda_move *head;
    struct cuda_move **tail;
};

/* Ios of one priority in one lane. A batch is what waited together, and what came while it had not
 * gone far: bucket f holds those of it whose frame f is the next. To the host there is only bucket
 * 0: a block is of use when it is whole. */
struct cuda_queue {
    struct cuda_moves waiting;
    struct cuda_moves buckets[KVL_FRAMES_MAX];
    uint32_t batch_count;  /* ios in the buckets */
    uint32_t first_bucket; /* those before are empty */
    uint64_t behind_bytes; /* of the batch, in pieces: of frames but the first, and of last ones */
};

struct cuda_part {
    struct cuda_move *move;
    uint64_t device;
    uint8_t *host; /* in the io's buffer; NULL for HASH */
    uint8_t *ring; /* its place in the piece's part of the ring */
    uint64_t part_bytes;
    uint32_t frame;
    bool begins_frame, ends_frame;
};

struct cuda_piece {
    struct cuda_lane *lane;
    uint8_t *ring;        /* its part of the ring */
    struct kvl_job job;   /* the ring worker's */
    atomic_uint unhashed; /* parts that hash threads have not finished */
    bool busy, direct;
    bool cut; /* has parts that are not a whole frame */
    kvl_err status;
    const struct cuda_stream *stream; /* which has its copies, */
    uint32_t word;                    /* and its word once it is through */
    uint32_t part_count;
    uint64_t piece_bytes;
    struct cuda_part parts[KVL_CUDA_PIECE_COPIES];
};

struct cuda_stream {
    void *handle;
    uint32_t *word; /* written by the stream */
    uint64_t word_device;
    uint32_t issued; /* words given to it, so far */
    bool word_due;   /* the next could not be given; it stands for all pieces without one */
};

/* Any number of threads that hash parts of a lane's pieces; cuda_hashers.c's. */
struct cuda_hashers {
    pthread_t threads[KVL_CUDA_HASH_THREADS_MAX];
    uint32_t count; /* of those that run */
    uint64_t spin_ns;
    atomic_uint sleeping;
    atomic_bool stopping;
    pthread_mutex_t mutex; /* of work */
    pthread_cond_t work;
};

/* With several streams, pieces go to them in turns; they are taken as landed in their order all the
 * same. */
struct cuda_lane {
    struct cuda_tier *tier;
    enum kvl_cuda_direction direction;

    /* between the owner and the lane's thread, under the mutex */
    struct cuda_moves inbox[KVL_CUDA_PRIORITIES];
    bool canceling;
    struct cuda_thread *thread; /* set before any of them runs */

    /* its thread's */
    struct kvl_workers *ring_worker;         /* one thread: a move's parts stay in order */
    struct cuda_move *outbox, **outbox_tail; /* what the owner is to be told */
    bool purging;                            /* some of what waits is canceled */
    struct cuda_stream streams[KVL_CUDA_LANE_STREAMS_MAX];
    uint32_t stream_count;
    uint32_t next_stream;
    uint64_t waiting_bytes; /* of ios taken, not in pieces yet, */
    uint32_t waiting_count; /* and those ios */
    uint64_t picks;         /* pieces filled, for fairness */
    uint64_t asked_ns;      /* when the streams were last asked for errors, or moved */
    uint64_t moved_ns;      /* when a piece last landed, or flew as the only one */
    struct cuda_queue queues[KVL_CUDA_PRIORITIES];
    struct cuda_piece *flying[KVL_CUDA_LANE_PIECES]; /* oldest first */
    uint32_t flying_count;
    struct cuda_piece pieces[KVL_CUDA_LANE_PIECES];

    /* of the lane to the host: between its thread and those that hash, by piece */
    struct cuda_hashers hashers;
    uint8_t apart[KVL_CACHE_LINE_BYTES]; /* what many look at all the time, from the rest */
    atomic_uint_fast64_t open[KVL_CUDA_LANE_PIECES];
    atomic_uint hashed; /* a bit a piece of which no part is left */
    uint8_t apart_too[KVL_CACHE_LINE_BYTES];
    uint64_t opened;        /* its thread's: pieces so far, */
    uint32_t hashing_count; /* and those not taken back */
};

/* A range of host memory, pinned chunk by chunk from its start. Any driver thread may read how far
 * that is; the rest is the last one's. */
struct cuda_pin {
    struct cuda_pin *next;
    uint8_t *address;
    uint64_t range_bytes;
    atomic_uint_fast64_t pinned_bytes; /* grows only */
    bool given_up;
};

/* One that makes calls of the driver: for one lane, or for all. */
struct cuda_thread {
    struct cuda_tier *tier;
    struct cuda_lane *lanes; /* the first of */
    uint32_t lane_count;
    bool has_pins; /* it also pins host memory */
    bool is_running;
    pthread_t id;
    pthread_cond_t work; /* of its lanes: inbox, canceling; new_pins, stopping */
    atomic_bool called;  /* there is such since it last took the mutex */
};

struct cuda_tier {
    struct kvl_tier base;
    const struct kvl_cuda_driver *driver;
    struct kvl_cuda_driver *own_driver; /* NULL: the caller's */
    struct kvl_log *log;
    uint32_t device;
    struct kvl_cuda_device_info info;

    /* cuda_arena.c's */
    void *context;
    struct kvl_slabs *slabs;
    uint64_t capacity_bytes;
    uint64_t memory, address; /* handle and mapping; 0: none */
    bool has_memory;
    int share_fd;
    uint8_t *ring;
    uint32_t *words; /* one a stream, on cache lines of their own */
    uint64_t words_device;
    uint64_t piece_bytes;
    uint64_t pin_bytes; /* a chunk of what is pinned */

    /* the owner thread's */
    struct cuda_moves free;
    struct kvl_tier_stats stats;

    /* between owner and driver threads, under the mutex */
    pthread_mutex_t mutex;
    pthread_cond_t told; /* news */
    struct cuda_move *news[KVL_CUDA_PRIORITIES], **news_tails[KVL_CUDA_PRIORITIES];
    struct cuda_pin *new_pins;
    bool stopping;
    int event_fd; /* readable while there is news */

    atomic_bool lost;
    atomic_uint_fast64_t lost_ns; /* when it was; 0: never */
    uint64_t lost_wait_ns;        /* so long copies under way are waited for, then they stay so: */
    atomic_bool gave_up;
    atomic_bool draining; /* the owner waits for the end of everything */
    atomic_uint_fast64_t pinned_bytes;

    struct cuda_lane lanes[KVL_CUDA_LANES];
    struct cuda_thread threads[KVL_CUDA_LANES];
    uint32_t thread_count;
    uint64_t spin_ns;

    /* of pins: the list is read by all driver threads, and grows at its head only */
    struct cuda_pin *_Atomic pins;
    uint64_t pins_due_ns; /* the last thread's */

    struct cuda_move *moves; /* KVL_CUDA_MOVES */
};

static inline void cuda_moves_init(struct cuda_moves *list) {
    list->head = NULL;
    list->tail = &list->head;
}

static inline void cuda_moves_push(struct cuda_moves *list, struct cuda_move *move) {
    move->next = NULL;
    *list->tail = move;
    list->tail = &move->next;
}

static inline struct cuda_move *cuda_moves_pop(struct cuda_moves *list) {
    struct cuda_move *move = list->head;
    if (move) {
        list->head = move->next;
        if (!list->head)
            list->tail = &list->head;
    }
    return move;
}

/* All of `from` goes to the end of `to`. */
static inline void cuda_moves_append(struct cuda_moves *to, struct cuda_moves *from) {
    if (!from->head)
        return;
    *to->tail = from->head;
    to->tail = from->tail;
    cuda_moves_init(from);
}

/* For whoever looks at memory in a loop. */
static inline void kvl_cuda_relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

/* ---- cuda_arena.c --------------------------------------------------------------------------- */

/* Everything on the GPU and what is pinned for it. Errors as kvl_cuda_tier_create. */
KVL_MUST_CHECK kvl_err kvl_cuda_arena_open(
    struct cuda_tier *tier, const struct kvl_cuda_tier_options *options, struct kvl_errmsg *msg);
/* Of a half opened one too. The driver threads are gone. */
void kvl_cuda_arena_close(struct cuda_tier *tier);

/* What a failed call of the driver is worth to a caller: the message says which call it was. */
KVL_MUST_CHECK kvl_err kvl_cuda_fail(const struct cuda_tier *tier, struct kvl_errmsg *msg,
    kvl_cuda_status status, const char *doing);

/* ---- cuda_thread.c -------------------------------------------------------------------------- */

KVL_MUST_CHECK kvl_err kvl_cuda_threads_start(
    struct cuda_tier *tier, const struct kvl_cuda_tier_options *options, struct kvl_errmsg *msg);
/* Nothing is in flight. Of such as were never started too. */
void kvl_cuda_threads_stop(struct cuda_tier *tier);
/* Under the mutex: there is something new for it. */
void kvl_cuda_thread_call(struct cuda_thread *thread);
/* The rest on the lane's thread. The owner is told how far a move is, when the outbox next goes
 * out; ended: and that this is all. */
void kvl_cuda_tell(struct cuda_move *move, bool ended);

/* ---- cuda_loss.c: on any driver thread ------------------------------------------------------ */

/* Once: logs, and from then on every io ends with CLOSED. */
void kvl_cuda_lose(struct cuda_tier *tier, const char *doing, kvl_cuda_status status);
/* Asks the streams of pieces that have not landed for a while, and writes words that could not be
 * enqueued. True: all stand still, idle or in error for good. */
bool kvl_cuda_lane_ask(struct cuda_lane *lane, uint64_t now_ns);
/* Of a lost device's pieces under way, ends what may end. True: there was one. */
bool kvl_cuda_lane_end_lost(struct cuda_lane *lane, bool is_still, uint64_t now_ns);

/* ---- cuda_lane.c: on the lane's thread ------------------------------------------------------ */

void kvl_cuda_lane_init(
    struct cuda_tier *tier, enum kvl_cuda_direction direction, struct cuda_lane *lane);
struct cuda_lane *kvl_cuda_lane_of(struct cuda_tier *tier, const struct kvl_io *io);
/* Takes what is in its inbox. Under the mutex. */
void kvl_cuda_lane_take(struct cuda_lane *lane);
/* Pieces that have landed go on their way. True: there was one. */
bool kvl_cuda_lane_land(struct cuda_lane *lane);
/* Free pieces are filled and given to the stream: while it would soon have nothing to do, of what
 * there is; beyond that full ones only. True: there was something to copy. */
bool kvl_cuda_lane_fill(struct cuda_lane *lane);
/* The copies of a piece, and its word behind them. */
void kvl_cuda_piece_enqueue(struct cuda_piece *piece);
/* All is done for it, or nothing more can be: its parts have arrived, unless status says other. */
void kvl_cuda_piece_retire(struct cuda_piece *piece, kvl_err status);
/* Of what waits, ends the canceled ones; all of it when the device is lost. */
void kvl_cuda_lane_purge(struct cuda_lane *lane);
/* The word has come that the oldest piece waits for. */
bool kvl_cuda_lane_has_landed(const struct cuda_lane *lane);

/* ---- cuda_hash.c: on the lane's thread ------------------------------------------------------ */

void kvl_cuda_piece_init(struct cuda_lane *lane, struct cuda_piece *piece);
/* Fills its part of the ring from the buffers; then kvl_cuda_piece_enqueue. */
void kvl_cuda_piece_gather(struct cuda_piece *piece);
/* What came to the host: from the ring into buffers, and its hashes; then kvl_cuda_piece_retire. */
void kvl_cuda_piece_finish(struct cuda_piece *piece);
/* On a hash thread: the same of one part, which no other has. */
void kvl_cuda_part_finish(const struct cuda_piece *piece, const struct cuda_part *part);

/* ---- cuda_hashers.c: of the lane to the host, on its thread ---------------------------------- */

/* All parts of the piece will be finished, oldest piece first, by any of the threads. */
void kvl_cuda_hashers_open(struct cuda_piece *piece);
/* Retires the pieces that are. True: there was one. */
bool kvl_cuda_hashers_poll(struct cuda_lane *lane);
bool kvl_cuda_hashers_have_news(const struct cuda_lane *lane);

/* ---- cuda_hashers.c: on the owner's thread --------------------------------------------------- */

void kvl_cuda_hashers_init(struct cuda_lane *lane);
/* threads: 0: as many as keep up with a link. Errors: LIMIT. */
KVL_MUST_CHECK kvl_err kvl_cuda_hashers_start(struct cuda_lane *lane, uint32_t threads);
/* No piece is open. Of such as were never started too. */
void kvl_cuda_hashers_stop(struct cuda_lane *lane);
void kvl_cuda_hashers_deinit(struct cuda_lane *lane);

/* ---- cuda_pins.c: on the last driver thread ------------------------------------------------- */

/* Pins a chunk of what has come. True: there was one. */
bool kvl_cuda_pins_advance(struct cuda_tier *tier);
/* Nanoseconds until the next look is due; UINT64_MAX: nothing is left to pin. */
uint64_t kvl_cuda_pins_due_in_ns(const struct cuda_tier *tier);
void kvl_cuda_pins_forget(struct cuda_tier *tier); /* unpins too; no io is under way */

/* ---- cuda_pins.c: on any driver thread ------------------------------------------------------ */

/* How many of these bytes are in one pinned piece of memory; 0: the first is not pinned. */
uint64_t kvl_cuda_pins_run_bytes(
    const struct cuda_tier *tier, const uint8_t *address, uint64_t bytes);
/* Whether all of them are pinned. */
bool kvl_cuda_pins_cover(const struct cuda_tier *tier, const uint8_t *address, uint64_t bytes);

#endif
