/* cuda_hash.c - what CPUs do with a piece.
 *
 *   to device, by the ring:  ring worker: buffers -> ring
 *   to host, direct:         hash threads: the hash of every frame that ends in the piece
 *   to host, by the ring:    hash threads: ring -> buffers, hashes
 *   the same, frames cut:    ring worker, which keeps the order that a cut frame needs
 *
 * Bytes are hashed piece by piece, as soon as a piece has landed: then the last-level cache still
 * holds them, from which a CPU reads several times as fast as from memory. */
#include <string.h>

#include "cuda_private.h"

/* ---- on the hash threads, or the ring worker ------------------------------------------------- */

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
void kvl_cuda_part_finish(const struct cuda_piece *piece, const struct cuda_part *part) {
    if (part->host == NULL && part->begins_frame && part->ends_frame)
        part->move->frame_hashes[part->frame] = kvl_bytes_hash(part->ring, part->part_bytes);
    else if (part->host == NULL)
        hash_cut(part);
    if (part->host != NULL && !piece->direct)
        memcpy(part->host, part->ring, part->part_bytes);
    if (part->host != NULL && part->ends_frame)
        part->move->frame_hashes[part->frame] = frame_hash(part);
}

/* ---- on the ring worker --------------------------------------------------------------------- */

static void run(struct kvl_job *base) {
    struct cuda_piece *piece = kvl_container_of(base, struct cuda_piece, job);
    for (uint32_t i = 0; i < piece->part_count; i++) {
        const struct cuda_part *part = &piece->parts[i];
        if (piece->lane->direction == KVL_CUDA_TO_DEVICE)
            memcpy(part->ring, part->host, part->part_bytes);
        else
            kvl_cuda_part_finish(piece, part);
    }
}

/* ---- on the lane's thread -------------------------------------------------------------------- */

static void done(struct kvl_job *base) {
    struct cuda_piece *piece = kvl_container_of(base, struct cuda_piece, job);
    if (piece->lane->direction == KVL_CUDA_TO_DEVICE)
        kvl_cuda_piece_enqueue(piece);
    else
        kvl_cuda_piece_retire(piece, KVL_OK);
}

void kvl_cuda_piece_gather(struct cuda_piece *piece) {
    kvl_workers_submit(piece->lane->ring_worker, &piece->job, false);
}

/* In the order of pieces, on whichever threads: which io goes before which was decided when they
 * were copied. Were ios of RESTORE to overtake others here, a stream of them that CPUs are the
 * bottleneck of would starve a piece of BEHIND that was copied long ago. */
void kvl_cuda_piece_finish(struct cuda_piece *piece) {
    if (piece->cut && !piece->direct)
        kvl_workers_submit(piece->lane->ring_worker, &piece->job, false);
    else
        kvl_cuda_hashers_open(piece);
}

void kvl_cuda_piece_init(struct cuda_lane *lane, struct cuda_piece *piece) {
    piece->lane = lane;
    piece->job = (struct kvl_job){.run = run, .done = done};
}
