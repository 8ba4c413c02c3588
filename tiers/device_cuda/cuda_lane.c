/* cuda_lane.c - one direction of the copying.
 *
 *   waiting -> batch: bucket 0 | bucket 1 | ...      (ios, by the frame that is next: lowest first)
 *                         \        |
 *   to device, direct:     piece: copies + word -> stream -> landed
 *   to device, by the ring:piece: ring worker fills -> copies + word -> stream -> landed
 *   to host:               piece: copies + word -> stream -> landed -> hashed (cuda_hash.c)
 *
 * Pieces are taken as landed in their order, so the parts of one io land in order; what is hashed
 * of them may be done in any. */
#include <assert.h>
#include <string.h>

#include "clock.h"
#include "cuda_private.h"

#define ASK_EVERY_NS UINT64_C(10000000)

/* ---- ios ------------------------------------------------------------------------------------ */

/* Nothing of it is under way any more: what came to the host is hashed, frame by frame. */
static void move_copied(struct cuda_move *move) {
    const struct kvl_io *io = move->io;
    if (move->status == KVL_OK && io->op != KVL_IO_STORE)
        move->content_hash = kvl_content_hash_of_frames(io->layout, move->frame_hashes);
    if (move->status == KVL_OK && io->op == KVL_IO_LOAD &&
        move->content_hash != io->record.content_hash)
        move->status = KVL_ERR_CORRUPT;
    kvl_cuda_tell(move, true);
}

struct cuda_lane *kvl_cuda_lane_of(struct cuda_tier *tier, const struct kvl_io *io) {
    return &tier->lanes[io->op == KVL_IO_STORE ? KVL_CUDA_TO_DEVICE : KVL_CUDA_TO_HOST];
}

static void move_issued(struct cuda_move *move) {
    struct cuda_lane *lane = kvl_cuda_lane_of(move->tier, move->io);
    lane->waiting_bytes -= move->io->layout->payload_bytes - move->payload_at_bytes;
    lane->waiting_count--;
    move->issued = true;
    if (move->parts_out == 0)
        move_copied(move);
}

/* Whether it is to end before all of it was copied; sets its status. */
static bool move_is_over(struct cuda_move *move) {
    if (atomic_load(&move->tier->lost))
        move->status = KVL_ERR_CLOSED;
    if (move->status == KVL_OK && atomic_load(&move->canceled))
        move->status = KVL_ERR_CANCELED;
    return move->status != KVL_OK;
}

static void part_landed(const struct cuda_part *part, kvl_err status) {
    struct cuda_move *move = part->move;
    move->parts_out--;
    if (status != KVL_OK)
        move->status = status;
    else if (part->ends_frame)
        move->landed = part->frame + 1;
    if (move->issued && move->parts_out == 0)
        move_copied(move);
    else if (part->ends_frame && move->status == KVL_OK && move->io->op == KVL_IO_STORE &&
             move->io->frame_ready != NULL)
        kvl_cuda_tell(move, false);
}

/* ---- queues --------------------------------------------------------------------------------- */

/* What waits joins the batch, or begins one. A batch closes when it has cost those in its later
 * buckets a ring of bytes, 1.2 ms of a link of 55 GB/s: of its later frames, which is how far what
 * joins must catch up, and of ios that are through, without which none could come for ever. */
static void queue_admit(struct cuda_queue *queue, uint64_t ring_bytes) {
    if (queue->batch_count == 0)
        queue->behind_bytes = 0;
    if (queue->waiting.head == NULL || queue->behind_bytes >= ring_bytes)
        return;
    for (const struct cuda_move *move = queue->waiting.head; move; move = move->next)
        queue->batch_count++;
    cuda_moves_append(&queue->buckets[0], &queue->waiting);
    queue->first_bucket = 0;
}

static struct cuda_moves *queue_first(struct cuda_queue *queue) {
    while (queue->buckets[queue->first_bucket].head == NULL)
        queue->first_bucket++;
    return &queue->buckets[queue->first_bucket];
}

/* The io of which a part is copied next, still in its bucket; NULL: none. */
static struct cuda_move *queue_next(struct cuda_queue *queue, uint64_t ring_bytes) {
    for (;;) {
        queue_admit(queue, ring_bytes);
        if (queue->batch_count == 0)
            return NULL;
        struct cuda_moves *bucket = queue_first(queue);
        if (!move_is_over(bucket->head))
            return bucket->head;
        queue->batch_count--;
        move_issued(cuda_moves_pop(bucket));
    }
}

/* The first io's current frame is in pieces, all of it. */
static void queue_advance(struct cuda_queue *queue, enum kvl_cuda_direction direction) {
    struct cuda_moves *bucket = queue_first(queue);
    struct cuda_move *move = bucket->head;
    const struct kvl_layout *layout = move->io->layout;
    const bool is_last = move->frame + 1 == layout->frame_count;
    if (move->frame > 0 || is_last)
        queue->behind_bytes += kvl_layout_frame_bytes(layout, move->frame);
    move->frame_at_bytes = 0;
    move->frame++;
    if (!is_last && direction == KVL_CUDA_TO_HOST)
        return;
    cuda_moves_pop(bucket);
    if (!is_last) {
        cuda_moves_push(&queue->buckets[move->frame], move);
        return;
    }
    queue->batch_count--;
    move_issued(move);
}

static uint32_t purge_list(struct cuda_moves *list) {
    struct cuda_moves kept;
    struct cuda_move *move;
    uint32_t gone = 0;
    cuda_moves_init(&kept);
    while ((move = cuda_moves_pop(list)) != NULL) {
        if (!move_is_over(move)) {
            cuda_moves_push(&kept, move);
            continue;
        }
        gone++;
        move_issued(move);
    }
    cuda_moves_append(list, &kept);
    return gone;
}

void kvl_cuda_lane_purge(struct cuda_lane *lane) {
    for (int i = 0; i < KVL_CUDA_PRIORITIES; i++) {
        struct cuda_queue *queue = &lane->queues[i];
        purge_list(&queue->waiting);
        for (uint32_t frame = 0; frame < KVL_FRAMES_MAX; frame++)
            queue->batch_count -= purge_list(&queue->buckets[frame]);
    }
}

void kvl_cuda_lane_take(struct cuda_lane *lane) {
    for (int i = 0; i < KVL_CUDA_PRIORITIES; i++) {
        for (const struct cuda_move *move = lane->inbox[i].head; move; move = move->next) {
            lane->waiting_bytes += move->io->layout->payload_bytes;
            lane->waiting_count++;
        }
        cuda_moves_append(&lane->queues[i].waiting, &lane->inbox[i]);
    }
}

/* ---- filling a piece ------------------------------------------------------------------------ */

static uint64_t smaller(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

/* Its next part, as much as the piece has room for. True: the frame ends with it. */
static bool part_add(struct cuda_piece *piece, struct cuda_move *move) {
    struct cuda_tier *tier = move->tier;
    const struct kvl_io *io = move->io;
    struct cuda_part *part = &piece->parts[piece->part_count++];
    const uint64_t left = kvl_layout_frame_bytes(io->layout, move->frame) - move->frame_at_bytes;
    uint8_t *host = io->op == KVL_IO_HASH ? NULL : (uint8_t *)io->buffer + move->payload_at_bytes;
    uint64_t bytes = smaller(left, tier->piece_bytes - piece->piece_bytes);
    if (move->direct)
        bytes = smaller(bytes, kvl_cuda_pins_run_bytes(tier, host, bytes));
    *part = (struct cuda_part){.move = move,
        .device = tier->address + io->location + move->payload_at_bytes,
        .host = host,
        .ring = piece->ring + piece->piece_bytes,
        .part_bytes = bytes,
        .frame = move->frame,
        .begins_frame = move->frame_at_bytes == 0,
        .ends_frame = bytes == left};
    piece->cut = piece->cut || bytes != kvl_layout_frame_bytes(io->layout, move->frame);
    move->frame_at_bytes += bytes;
    move->payload_at_bytes += bytes;
    piece->lane->waiting_bytes -= bytes;
    move->parts_out++;
    piece->piece_bytes += bytes;
    return part->ends_frame;
}

static bool piece_is_full(const struct cuda_piece *piece) {
    return piece->part_count == KVL_CUDA_PIECE_COPIES ||
           piece->piece_bytes == piece->lane->tier->piece_bytes;
}

static bool move_is_direct(const struct cuda_move *move) {
    const struct kvl_io *io = move->io;
    return io->op != KVL_IO_HASH &&
           kvl_cuda_pins_cover(move->tier, io->buffer, io->layout->payload_bytes);
}

/* Frames that come to the host stay whole where they can: then any thread may hash them. */
static bool would_cut(const struct cuda_piece *piece, const struct cuda_move *move) {
    const uint64_t frame_bytes = kvl_layout_frame_bytes(move->io->layout, move->frame);
    const uint64_t room_bytes = move->tier->piece_bytes - piece->piece_bytes;
    return piece->lane->direction == KVL_CUDA_TO_HOST && piece->part_count > 0 &&
           move->frame_at_bytes == 0 && frame_bytes > room_bytes &&
           frame_bytes <= move->tier->piece_bytes;
}

/* False: the piece takes no more, full or not. A piece's copies are all direct, or none. */
static bool piece_take_from(struct cuda_piece *piece, struct cuda_queue *queue) {
    const uint64_t ring_bytes = piece->lane->tier->piece_bytes * KVL_CUDA_PIECES;
    struct cuda_move *move;
    while (!piece_is_full(piece) && (move = queue_next(queue, ring_bytes)) != NULL) {
        if (move->payload_at_bytes == 0) /* its first part; it stays what it is now */
            move->direct = move_is_direct(move);
        if (piece->part_count > 0 && (piece->direct != move->direct || would_cut(piece, move)))
            return false;
        piece->direct = move->direct;
        if (part_add(piece, move))
            queue_advance(queue, piece->lane->direction);
    }
    return !piece_is_full(piece);
}

static bool piece_fill(struct cuda_piece *piece) {
    struct cuda_lane *lane = piece->lane;
    const bool fair = lane->picks % KVL_CUDA_FAIR_EVERY == KVL_CUDA_FAIR_EVERY - 1;
    piece->part_count = 0;
    piece->piece_bytes = 0;
    piece->cut = false;
    piece->status = KVL_OK;
    for (int i = 0; i < KVL_CUDA_PRIORITIES; i++)
        if (!piece_take_from(piece, &lane->queues[fair ? KVL_CUDA_PRIORITIES - 1 - i : i]))
            break;
    lane->picks += piece->part_count > 0;
    return piece->part_count > 0;
}

/* ---- a piece's way -------------------------------------------------------------------------- */

void kvl_cuda_piece_retire(struct cuda_piece *piece, kvl_err status) {
    if (piece->status == KVL_OK)
        piece->status = status;
    for (uint32_t i = 0; i < piece->part_count; i++)
        part_landed(&piece->parts[i], piece->status);
    piece->busy = false;
}

/* Whether b goes on where a ends, on both sides and within one registration. */
static bool can_join(
    const struct cuda_piece *piece, const struct kvl_cuda_copy *a, const struct kvl_cuda_copy *b) {
    const uint64_t bytes = a->copy_bytes + b->copy_bytes;
    return a->device + a->copy_bytes == b->device && a->host + a->copy_bytes == b->host &&
           (!piece->direct || kvl_cuda_pins_run_bytes(piece->lane->tier, a->host, bytes) == bytes);
}

/* The fewest copies for a piece: neighbours become one. */
static uint32_t piece_copies(const struct cuda_piece *piece, struct kvl_cuda_copy *copies) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < piece->part_count; i++) {
        const struct cuda_part *part = &piece->parts[i];
        const struct kvl_cuda_copy copy = {.device = part->device,
            .host = piece->direct ? part->host : part->ring,
            .copy_bytes = part->part_bytes};
        if (count > 0 && can_join(piece, &copies[count - 1], &copy))
            copies[count - 1].copy_bytes += copy.copy_bytes;
        else
            copies[count++] = copy;
    }
    return count;
}

/* An error that the device survives fails this piece alone. What was enqueued of it is waited for,
 * either way. */
static void note_copy_error(struct cuda_piece *piece, kvl_cuda_status status) {
    struct cuda_tier *tier = piece->lane->tier;
    if (tier->driver->err_from(status) == KVL_ERR_CLOSED) {
        kvl_cuda_lose(tier, "copy", status);
        piece->status = KVL_ERR_CLOSED;
        return;
    }
    piece->status = KVL_ERR_IO;
    KVL_WARN(tier->log, "event=copy_failed gpu=%u copies=%u why=\"%s\"", tier->device,
        piece->part_count, tier->driver->text(tier->driver, status));
}

/* Without it, the word of a later piece stands for this one too, or the stream's being idle. */
static void write_word(struct cuda_piece *piece, struct cuda_stream *stream) {
    struct cuda_tier *tier = piece->lane->tier;
    piece->stream = stream;
    piece->word = stream->issued + 1;
    stream->word_due = true;
    if (atomic_load(&tier->lost))
        return;
    const kvl_cuda_status status =
        tier->driver->write_word(tier->driver, stream->handle, stream->word_device, piece->word);
    if (status == KVL_CUDA_OK) {
        stream->issued = piece->word;
        stream->word_due = false;
    } else if (tier->driver->err_from(status) == KVL_ERR_CLOSED) {
        kvl_cuda_lose(tier, "write a word", status);
    }
}

/* The copies of a piece, and its word behind them. */
void kvl_cuda_piece_enqueue(struct cuda_piece *piece) {
    struct cuda_lane *lane = piece->lane;
    struct cuda_tier *tier = lane->tier;
    struct cuda_stream *stream = &lane->streams[lane->next_stream];
    struct kvl_cuda_copy copies[KVL_CUDA_PIECE_COPIES];
    if (atomic_load(&tier->lost)) {
        kvl_cuda_piece_retire(piece, KVL_ERR_CLOSED);
        return;
    }
    const uint32_t count = piece_copies(piece, copies);
    const kvl_cuda_status status =
        tier->driver->copy(tier->driver, stream->handle, lane->direction, copies, count);
    if (status != KVL_CUDA_OK)
        note_copy_error(piece, status);
    if (tier->driver->shortfall(tier->driver) != NULL)
        kvl_log_fallback(tier->log, "%s", tier->driver->shortfall(tier->driver));
    write_word(piece, stream);
    if (lane->flying_count == 0)
        lane->asked_ns = lane->moved_ns = kvl_clock_ns();
    lane->next_stream = (lane->next_stream + 1) % lane->stream_count;
    lane->flying[lane->flying_count++] = piece;
}

static void piece_begin(struct cuda_piece *piece) {
    struct cuda_lane *lane = piece->lane;
    piece->busy = true;
    if (!piece->direct && lane->direction == KVL_CUDA_TO_DEVICE)
        kvl_cuda_piece_gather(piece);
    else
        kvl_cuda_piece_enqueue(piece);
}

static void piece_landed(struct cuda_piece *piece) {
    if (piece->lane->direction == KVL_CUDA_TO_HOST && piece->status == KVL_OK)
        kvl_cuda_piece_finish(piece);
    else
        kvl_cuda_piece_retire(piece, KVL_OK);
}

/* ---- what its thread does over and over ------------------------------------------------------ */

bool kvl_cuda_lane_has_landed(const struct cuda_lane *lane) {
    if (lane->flying_count == 0)
        return false;
    const struct cuda_piece *oldest = lane->flying[0];
    const uint32_t word = __atomic_load_n(oldest->stream->word, __ATOMIC_ACQUIRE);
    return (int32_t)(word - oldest->word) >= 0;
}

static struct cuda_piece *flying_pop(struct cuda_lane *lane) {
    struct cuda_piece *piece = lane->flying[0];
    lane->flying_count--;
    memmove(&lane->flying[0], &lane->flying[1], lane->flying_count * sizeof lane->flying[0]);
    return piece;
}

static bool land_flying(struct cuda_lane *lane) {
    bool progress = false;
    while (kvl_cuda_lane_has_landed(lane)) {
        piece_landed(flying_pop(lane));
        lane->asked_ns = lane->moved_ns = kvl_clock_ns();
        progress = true;
    }
    return progress;
}

/* A stream that stopped for an error writes no word: after a while without one it is asked. */
bool kvl_cuda_lane_land(struct cuda_lane *lane) {
    bool progress = land_flying(lane);
    const uint64_t now_ns = kvl_clock_ns();
    if (lane->flying_count == 0 || now_ns - lane->asked_ns < ASK_EVERY_NS)
        return progress;
    lane->asked_ns = now_ns;
    const bool is_still = kvl_cuda_lane_ask(lane, now_ns);
    progress = land_flying(lane) || progress;
    if (atomic_load(&lane->tier->lost))
        progress = kvl_cuda_lane_end_lost(lane, is_still, now_ns) || progress;
    return progress;
}

/* Of pieces begun, those that have not landed. */
static uint32_t ahead_count(const struct cuda_lane *lane) {
    uint32_t busy = 0;
    if (lane->direction == KVL_CUDA_TO_HOST)
        return lane->flying_count;
    for (uint32_t i = 0; i < KVL_CUDA_LANE_PIECES; i++)
        busy += lane->pieces[i].busy;
    return busy;
}

/* While enough is ahead of it, a small piece would come no sooner for being begun: it waits for
 * company. Ios that are asked for one by one would otherwise each become a piece. */
static bool is_worth_a_piece(const struct cuda_lane *lane) {
    return lane->waiting_bytes >= lane->tier->piece_bytes ||
           lane->waiting_count >= KVL_CUDA_PIECE_COPIES || ahead_count(lane) <= lane->stream_count;
}

bool kvl_cuda_lane_fill(struct cuda_lane *lane) {
    bool progress = false;
    for (uint32_t i = 0; i < KVL_CUDA_LANE_PIECES && is_worth_a_piece(lane); i++) {
        struct cuda_piece *piece = &lane->pieces[i];
        if (piece->busy || !piece_fill(piece))
            continue;
        piece_begin(piece);
        progress = true;
    }
    return progress;
}

void kvl_cuda_lane_init(
    struct cuda_tier *tier, enum kvl_cuda_direction direction, struct cuda_lane *lane) {
    lane->tier = tier;
    lane->direction = direction;
    lane->outbox_tail = &lane->outbox;
    for (int i = 0; i < KVL_CUDA_PRIORITIES; i++) {
        cuda_moves_init(&lane->inbox[i]);
        cuda_moves_init(&lane->queues[i].waiting);
        for (uint32_t frame = 0; frame < KVL_FRAMES_MAX; frame++)
            cuda_moves_init(&lane->queues[i].buckets[frame]);
    }
    for (uint32_t i = 0; i < KVL_CUDA_LANE_PIECES; i++)
        kvl_cuda_piece_init(lane, &lane->pieces[i]);
}
