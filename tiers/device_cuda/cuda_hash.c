/* cuda_hash.c - what CPUs do with a piece.
 *
 *   to device, by the ring:  ring worker: buffers -> ring
 *   to host, direct:         hash workers: the hash of every frame that ends in the piece
 *   to host, by the ring:    hash workers: ring -> buffers, hashes
 *   the same, frames cut:    ring worker, which keeps the order that a cut frame needs
 *
 * Bytes are hashed piece by piece, as soon as a piece has landed: then the last-level cache still
 * holds them, from which a CPU reads several times as fast as from memory. A piece's parts are
 * taken by its runners one after another, so that those who are early do more. */
#include <string.h>

#include "cuda_private.h"

#define RUNNER_BYTES (UINT64_C(1) << 20) /* what is worth waking a thread */

/* ---- on the workers ------------------------------------------------------------------------- */

static uint64_t frame_hash(const struct cuda_part *part) {
    const struct kvl_io *io = part->move->io;
    const uint8_t *frame = (const uint8_t *)io->buffer + part->frame * io->layout->frame_bytes;
    return kvl_bytes_hash(frame, kvl_layout_frame_bytes(io->layout, part->frame));
}

/* In the order of a frame's parts, on one thread. */
static void hash_cut(const struct cuda_part *part) {
    struct cuda_move *move = part->move;
    if (part->begins_frame)
        XXH3_64bits_reset(&move->hashing);
    XXH3_64bits_update(&move->hashing, part->ring, part->part_bytes);
    if (part->ends_frame)
        move->frame_hashes[part->frame] = XXH3_64bits_digest(&move->hashing);
}

/* A frame that came in several parts lies in the buffer whole when the last has landed. */
static void part_finish(const struct cuda_piece *piece, const struct cuda_part *part) {
    if (part->host == NULL && part->begins_frame && part->ends_frame)
        part->move->frame_hashes[part->frame] = kvl_bytes_hash(part->ring, part->part_bytes);
    else if (part->host == NULL)
        hash_cut(part);
    if (part->host != NULL && !piece->direct)
        memcpy(part->host, part->ring, part->part_bytes);
    if (part->host != NULL && part->ends_frame)
        part->move->frame_hashes[part->frame] = frame_hash(part);
}

static void run(struct kvl_job *base) {
    struct cuda_piece *piece = kvl_container_of(base, struct cuda_runner, job)->piece;
    uint32_t i;
    while ((i = atomic_fetch_add(&piece->next_part, 1)) < piece->part_count) {
        const struct cuda_part *part = &piece->parts[i];
        if (piece->lane->direction == KVL_CUDA_TO_DEVICE)
            memcpy(part->ring, part->host, part->part_bytes);
        else
            part_finish(piece, part);
    }
}

/* ---- on the lane's thread -------------------------------------------------------------------- */

static void done(struct kvl_job *base) {
    struct cuda_piece *piece = kvl_container_of(base, struct cuda_runner, job)->piece;
    if (--piece->runners_out > 0)
        return;
    if (piece->lane->direction == KVL_CUDA_TO_DEVICE)
        kvl_cuda_piece_enqueue(piece);
    else
        kvl_cuda_piece_retire(piece, KVL_OK);
}

/* In the order of pieces: which io goes before which was decided when they were copied. Were jobs
 * of RESTORE to overtake others here, a stream of them that CPUs are the bottleneck of would starve
 * a piece of BEHIND that was copied long ago. */
static void start(struct cuda_piece *piece, struct kvl_workers *workers, uint32_t runners) {
    atomic_store(&piece->next_part, 0);
    piece->runners_out = runners;
    for (uint32_t i = 0; i < runners; i++)
        kvl_workers_submit(workers, &piece->runners[i].job, false);
}

static uint32_t runners_for(const struct cuda_piece *piece) {
    const uint64_t worth = 1 + (piece->piece_bytes - 1) / RUNNER_BYTES;
    uint32_t runners = piece->lane->tier->hash_threads;
    if (runners > piece->part_count)
        runners = piece->part_count;
    return runners < worth ? runners : (uint32_t)worth;
}

void kvl_cuda_piece_gather(struct cuda_piece *piece) {
    start(piece, piece->lane->ring_worker, 1);
}

void kvl_cuda_piece_finish(struct cuda_piece *piece) {
    if (piece->cut && !piece->direct)
        start(piece, piece->lane->ring_worker, 1);
    else
        start(piece, piece->lane->hash_workers, runners_for(piece));
}

void kvl_cuda_piece_init(struct cuda_lane *lane, struct cuda_piece *piece) {
    piece->lane = lane;
    for (uint32_t i = 0; i < KVL_CUDA_HASH_THREADS_MAX; i++) {
        piece->runners[i].piece = piece;
        piece->runners[i].job = (struct kvl_job){.run = run, .done = done};
    }
}
