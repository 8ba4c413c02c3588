/* cuda_loss.c - how a stream is when its words do not say, and what becomes of copies that were
 * under way when the device was lost.
 *
 * A lost device may copy on for a while. An io that ended would free its slot of the host for the
 * next block, into which the old copy might still write: so it ends only once its stream is idle
 * or in error for good. Copies by the ring have no such slot. */
#include "clock.h"
#include "cuda_private.h"

void kvl_cuda_lose(struct cuda_tier *tier, const char *doing, kvl_cuda_status status) {
    uint_fast64_t never = 0;
    atomic_compare_exchange_strong(&tier->lost_ns, &never, kvl_clock_ns());
    if (atomic_exchange(&tier->lost, true)) /* two threads may find out at once */
        return;
    KVL_ERROR(tier->log, "event=gpu_lost gpu=%u name=\"%s\" doing=\"%s\" why=\"%s\"", tier->device,
        tier->info.name, doing, tier->driver->text(tier->driver, status));
    kvl_log_fallback(tier->log, "GPU %u (%s) is lost: going on without the device tier",
        tier->device, tier->info.name);
}

/* An idle stream has done all that it was given: where its word could not be enqueued, the CPU
 * writes it. An error that is not for good counts only when nothing lands for long. */
static kvl_err ask(struct cuda_lane *lane, struct cuda_stream *stream, uint64_t now_ns) {
    struct cuda_tier *tier = lane->tier;
    const kvl_cuda_status status = tier->driver->stream_query(tier->driver, stream->handle);
    const kvl_err err = tier->driver->err_from(status);
    if (err == KVL_ERR_AGAIN)
        return err;
    if (err == KVL_ERR_CLOSED || (err != KVL_OK && now_ns - lane->moved_ns > tier->lost_wait_ns))
        kvl_cuda_lose(tier, "finish copies", status);
    if (err == KVL_OK && stream->word_due && !atomic_load(&tier->lost)) {
        stream->word_due = false;
        __atomic_store_n(stream->word, ++stream->issued, __ATOMIC_RELEASE);
    }
    return err;
}

bool kvl_cuda_lane_ask(struct cuda_lane *lane, uint64_t now_ns) {
    bool is_still = true;
    for (uint32_t i = 0; i < lane->stream_count; i++) {
        const kvl_err err = ask(lane, &lane->streams[i], now_ns);
        is_still = is_still && (err == KVL_OK || err == KVL_ERR_CLOSED);
    }
    return is_still;
}

static bool end_flying(struct cuda_lane *lane, bool direct_too) {
    const uint32_t count = lane->flying_count;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct cuda_piece *piece = lane->flying[i];
        if (piece->direct && !direct_too)
            lane->flying[kept++] = piece;
        else
            kvl_cuda_piece_retire(piece, KVL_ERR_CLOSED);
    }
    lane->flying_count = kept;
    return kept < count;
}

bool kvl_cuda_lane_end_lost(struct cuda_lane *lane, bool is_still, uint64_t now_ns) {
    struct cuda_tier *tier = lane->tier;
    if (is_still)
        return end_flying(lane, true);
    if (now_ns < atomic_load(&tier->lost_ns) + tier->lost_wait_ns) /* lost just now, maybe later */
        return false;
    const bool progress = end_flying(lane, atomic_load(&tier->draining));
    if (lane->flying_count > 0 && !atomic_exchange(&tier->gave_up, true)) {
        KVL_WARN(tier->log,
            "event=gpu_copies_open gpu=%u why=\"the lost GPU does not say that its copies have "
            "stopped: their host memory is not used again\"",
            tier->device);
    }
    return progress;
}
