/* codec_choice.c - AUTO: is it faster to read a block raw, or to read less and decode it?
 *
 * A few blocks are encoded and decoded for measure; the disk is probed by reading the first batches
 * back. Both are measured while an engine computes, so the disk counts by its best probe and
 * decoding by its CPU time. Where the shrink is small, decoding pays only when it leaves the
 * workers half of their time: the cores are the engine's too, above all right after a start. */
#include <stdlib.h>
#include <time.h>

#include "clock.h"
#include "disk.h"

#define FIRST_SAMPLES 4u
#define SAMPLE_EVERY 256u
#define SMALL_SHRINK_PERCENT 120u
#define NO_SHRINK_PERCENT 103u
#define DECODE_MARGIN 2.0
#define PROBES 4u
#define PROBE_READ_BYTES (1ull << 20)

static struct kvl_codec_choice *choice_of(struct kvl_disk *disk, const struct kvl_layout *layout) {
    return &disk->choices[layout->element_bytes == 4 ? 2 : layout->element_bytes == 2 ? 1 : 0];
}

/* Whether compressed is the better form; false too while that is not known. */
static bool compress_is_better(struct kvl_disk *disk, struct kvl_codec_choice *choice) {
    uint64_t stored = atomic_load(&choice->stored_bytes);
    uint64_t decode_ns = atomic_load(&choice->decode_ns);
    uint64_t raw = atomic_load(&choice->raw_bytes);
    uint64_t disk_speed = atomic_load(&disk->read_bytes_per_s);
    if (stored == 0 || decode_ns == 0 || disk_speed == 0)
        return false;
    uint64_t percent = raw * 100 / stored;
    double decode_speed =
        (double)raw * 1e9 / (double)decode_ns * (double)disk->options.codec_threads;
    bool better =
        percent >= SMALL_SHRINK_PERCENT ||
        (percent >= NO_SHRINK_PERCENT && decode_speed >= DECODE_MARGIN * (double)disk_speed);
    int now = better ? KVL_DISK_CODEC_ZSTD : KVL_DISK_CODEC_RAW;
    if (atomic_exchange(&disk->codec_state, now) != now)
        KVL_INFO(disk->log, "disk codec=%s ratio_percent=%llu decode_mb_s=%.0f disk_read_mb_s=%llu",
            better ? "planes+zstd" : "raw", (unsigned long long)percent, decode_speed / 1e6,
            (unsigned long long)(disk_speed / 1000000));
    return better;
}

bool kvl_disk_codec_compress(struct kvl_disk *disk, const struct kvl_layout *layout, bool *sample) {
    struct kvl_codec_choice *choice = choice_of(disk, layout);
    *sample = false;
    if (disk->options.codec != KVL_DISK_CODEC_AUTO)
        return disk->options.codec == KVL_DISK_CODEC_ZSTD;
    choice->staged++;
    *sample = choice->staged <= FIRST_SAMPLES || choice->staged % SAMPLE_EVERY == 0;
    return compress_is_better(disk, choice);
}

static uint64_t thread_cpu_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void kvl_disk_codec_sample(struct kvl_disk *disk, struct kvl_codec *codec,
    const struct kvl_layout *layout, const uint8_t *payload, uint8_t *scratch) {
    struct kvl_codec_choice *choice = choice_of(disk, layout);
    uint8_t *decoded = malloc(layout->frame_bytes);
    uint64_t stored_bytes = 0, decode_ns = 0;
    if (decoded == NULL)
        return;
    for (uint32_t f = 0; f < layout->frame_count; f++) {
        struct kvl_frame_view raw = {
            payload + layout->frame_bytes * f, kvl_layout_frame_bytes(layout, f)};
        enum kvl_frame_codec used;
        struct kvl_frame_view stored = {
            scratch, kvl_codec_encode(codec, raw, layout->element_bytes, true, scratch, &used)};
        uint64_t since_ns = thread_cpu_ns();
        if (kvl_codec_decode(codec, used, stored, layout->element_bytes, decoded, raw.bytes) ==
            KVL_OK)
            decode_ns += thread_cpu_ns() - since_ns;
        stored_bytes += stored.bytes;
    }
    free(decoded);
    atomic_fetch_add(&choice->raw_bytes, layout->payload_bytes);
    atomic_fetch_add(&choice->stored_bytes, stored_bytes);
    atomic_fetch_add(&choice->decode_ns, decode_ns);
    atomic_fetch_add(&choice->samples, 1);
}

static void probe_done(struct kvl_disk_op *op) {
    struct kvl_disk_batch *batch = op->owner;
    struct kvl_disk *disk = batch->disk;
    if (op->status != KVL_OK)
        batch->status = op->status;
    if (--disk->probing > 0)
        return;
    uint64_t ns = kvl_clock_ns() - disk->probe_since_ns;
    uint64_t speed = ns > 0 ? (uint64_t)((double)batch->written_bytes * 1e9 / (double)ns) : 0;
    if (batch->status == KVL_OK && speed > atomic_load(&disk->read_bytes_per_s))
        atomic_store(&disk->read_bytes_per_s, speed);
    kvl_disk_buffer_give(disk, disk->probe_buffer);
    kvl_disk_batch_release(batch);
}

bool kvl_disk_probe_begin(struct kvl_disk *disk, struct kvl_disk_batch *batch) {
    const struct kvl_disk_buffer *buffer = disk->free_buffers;
    uint64_t bytes = buffer == NULL                             ? 0
                     : buffer->memory_bytes < batch->used_bytes ? buffer->memory_bytes
                                                                : batch->used_bytes;
    uint64_t pieces = bytes / PROBE_READ_BYTES;
    if (disk->probes >= PROBES || disk->probing > 0 || disk->options.codec != KVL_DISK_CODEC_AUTO ||
        pieces == 0 || batch->status != KVL_OK)
        return false;
    disk->probe_buffer = kvl_disk_buffer_take(disk);
    disk->probes++;
    disk->probe_since_ns = kvl_clock_ns();
    batch->state = KVL_BATCH_PROBING;
    batch->written_bytes = 0;
    for (uint64_t i = 0; i < pieces && i < sizeof(disk->probe_ops) / sizeof(disk->probe_ops[0]);
         i++) {
        struct kvl_disk_op *op = &disk->probe_ops[i];
        *op = (struct kvl_disk_op){
            .kind = KVL_DISK_READ,
            .file = &batch->segment->file,
            .offset_bytes = batch->offset_bytes + i * PROBE_READ_BYTES,
            .buffer = disk->probe_buffer->memory + i * PROBE_READ_BYTES,
            .bytes = PROBE_READ_BYTES,
            .done = probe_done,
            .owner = batch,
        };
        batch->written_bytes += PROBE_READ_BYTES;
        disk->probing++;
        disk->backend->ops->submit(disk->backend, op);
    }
    return true;
}
