#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "cuda_private.h"

#define STAGING_BYTES (UINT64_C(64) << 20)
#define PIECE_BYTES_MIN (UINT64_C(64) << 10)
#define PIECE_BYTES_MAX (UINT64_C(16) << 20)
#define WORD_STRIDE 32u /* words: a pair of cache lines */
#define PROBE_NS UINT64_C(10000000000)

kvl_err kvl_cuda_fail(const struct cuda_tier *tier, struct kvl_errmsg *msg, kvl_cuda_status status,
    const char *doing) {
    kvl_err err = tier->driver->err_from(status);
    const char *name = tier->info.name; /* empty until it was read */
    return kvl_fail(msg, err == KVL_ERR_CLOSED ? KVL_ERR_IO : err, "GPU %u%s%s%s: cannot %s: %s",
        tier->device, name[0] ? " (" : "", name, name[0] ? ")" : "", doing,
        tier->driver->text(tier->driver, status));
}

/* ---- the GPU ------------------------------------------------------------------------------- */

const char *kvl_cuda_device_lacks(const struct kvl_cuda_device_info *info) {
    if (!info->maps_memory)
        return "virtual memory management";
    if (!info->exports_fds)
        return "the export of memory as a file descriptor (in a container?)";
    if (!info->pins_host)
        return "pinning of host memory";
    return info->is_addressed ? NULL : "unified addressing";
}

static kvl_err check_abilities(const struct cuda_tier *tier, struct kvl_errmsg *msg) {
    const char *lacks = kvl_cuda_device_lacks(&tier->info);
    if (lacks == NULL)
        return KVL_OK;
    return kvl_fail(msg, KVL_ERR_UNSUPPORTED, "GPU %u (%s) lacks %s: use --device cpu",
        tier->device, tier->info.name, lacks);
}

static kvl_err find_device(struct cuda_tier *tier, struct kvl_errmsg *msg) {
    const struct kvl_cuda_driver *driver = tier->driver;
    uint32_t count = 0;
    kvl_cuda_status status = driver->device_count(driver, &count);
    if (status != KVL_CUDA_OK)
        return kvl_cuda_fail(tier, msg, status, "count GPUs");
    if (tier->device >= count)
        return kvl_fail(msg, KVL_ERR_UNSUPPORTED,
            "there is no GPU %u: the driver shows %u, counted from 0", tier->device, count);
    status = driver->device_info(driver, tier->device, &tier->info);
    if (status != KVL_CUDA_OK)
        return kvl_cuda_fail(tier, msg, status, "read its properties");
    return check_abilities(tier, msg);
}

static kvl_err open_context(struct cuda_tier *tier, struct kvl_errmsg *msg) {
    kvl_cuda_status status = tier->driver->context_open(tier->driver, tier->device, &tier->context);
    if (status != KVL_CUDA_OK) {
        tier->context = NULL;
        return kvl_cuda_fail(tier, msg, status, "open a context");
    }
    return KVL_OK;
}

/* ---- its memory ---------------------------------------------------------------------------- */

static kvl_err round_capacity(struct cuda_tier *tier, const struct kvl_cuda_tier_options *options,
    uint64_t *granule_bytes, struct kvl_errmsg *msg) {
    kvl_cuda_status status =
        tier->driver->memory_granularity(tier->driver, tier->device, granule_bytes);
    if (status != KVL_CUDA_OK)
        return kvl_cuda_fail(tier, msg, status, "ask for its granularity");
    if (*granule_bytes == 0 || *granule_bytes % KVL_PAGE_BYTES != 0)
        return kvl_fail(msg, KVL_ERR_UNSUPPORTED,
            "GPU %u (%s) gives memory in pieces of %" PRIu64 " bytes", tier->device,
            tier->info.name, *granule_bytes);
    tier->capacity_bytes = options->capacity_bytes / *granule_bytes * *granule_bytes;
    if (tier->capacity_bytes == 0)
        return kvl_fail(msg, KVL_ERR_INVALID,
            "the device tier needs at least %" PRIu64 " bytes, not %" PRIu64, *granule_bytes,
            options->capacity_bytes);
    return KVL_OK;
}

/* Too much is said as such, whatever the driver calls it. */
static kvl_err refuse_memory(const struct cuda_tier *tier, kvl_cuda_status status,
    uint64_t granule_bytes, struct kvl_errmsg *msg) {
    uint64_t free_bytes = 0;
    const bool is_known = tier->driver->memory_free_bytes(tier->driver, &free_bytes) == KVL_CUDA_OK;
    if (tier->driver->err_from(status) != KVL_ERR_NOMEM &&
        (!is_known || tier->capacity_bytes <= free_bytes))
        return kvl_cuda_fail(tier, msg, status, "take memory that can be exported");
    return kvl_fail(msg, KVL_ERR_NOMEM,
        "GPU %u (%s) has no %" PRIu64 " bytes for the device tier: %" PRIu64 " are free, %" PRIu64
        " fit: set a smaller --device-bytes",
        tier->device, tier->info.name, tier->capacity_bytes, free_bytes,
        free_bytes / granule_bytes * granule_bytes);
}

static kvl_err open_memory(
    struct cuda_tier *tier, const struct kvl_cuda_tier_options *options, struct kvl_errmsg *msg) {
    const struct kvl_cuda_driver *driver = tier->driver;
    uint64_t granule_bytes = 0;
    kvl_err err = round_capacity(tier, options, &granule_bytes, msg);
    if (err != KVL_OK)
        return err;
    kvl_cuda_status status =
        driver->memory_create(driver, tier->device, tier->capacity_bytes, &tier->memory);
    if (status != KVL_CUDA_OK)
        return refuse_memory(tier, status, granule_bytes, msg);
    tier->has_memory = true;
    status = driver->memory_export(driver, tier->memory, &tier->share_fd);
    if (status != KVL_CUDA_OK) {
        tier->share_fd = -1;
        return kvl_cuda_fail(tier, msg, status, "export its memory to engines");
    }
    status = driver->memory_map(
        driver, tier->device, tier->memory, tier->capacity_bytes, &tier->address);
    if (status != KVL_CUDA_OK) {
        tier->address = 0;
        return kvl_cuda_fail(tier, msg, status, "map its memory");
    }
    return KVL_OK;
}

static kvl_err make_slabs(struct cuda_tier *tier, struct kvl_errmsg *msg) {
    const struct kvl_slabs_options options = {.capacity_bytes = tier->capacity_bytes};
    if (kvl_slabs_create(&options, &tier->slabs) != KVL_OK)
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory for an arena's tables");
    return KVL_OK;
}

/* ---- pinned memory and streams -------------------------------------------------------------- */

static kvl_err make_ring(struct cuda_tier *tier, uint64_t staging_bytes, struct kvl_errmsg *msg) {
    const struct kvl_cuda_driver *driver = tier->driver;
    if (staging_bytes == 0)
        staging_bytes = STAGING_BYTES;
    tier->piece_bytes = staging_bytes / KVL_CUDA_PIECES / KVL_PAGE_BYTES * KVL_PAGE_BYTES;
    if (tier->piece_bytes < PIECE_BYTES_MIN)
        return kvl_fail(msg, KVL_ERR_INVALID, "a pinned ring has at least %" PRIu64 " bytes",
            PIECE_BYTES_MIN * KVL_CUDA_PIECES);
    if (tier->piece_bytes > PIECE_BYTES_MAX)
        tier->piece_bytes = PIECE_BYTES_MAX;
    void *address = NULL;
    uint64_t device;
    kvl_cuda_status status =
        driver->host_alloc(driver, tier->piece_bytes * KVL_CUDA_PIECES, &address, &device);
    if (status != KVL_CUDA_OK)
        return kvl_cuda_fail(tier, msg, status, "pin host memory for its ring");
    tier->ring = address;
    status = driver->host_alloc(driver, KVL_PAGE_BYTES, &address, &tier->words_device);
    if (status != KVL_CUDA_OK)
        return kvl_cuda_fail(tier, msg, status, "pin a page of host memory");
    tier->words = address;
    memset(tier->words, 0, KVL_PAGE_BYTES);
    return KVL_OK;
}

/* Copies for restores go before those that demote, where they meet. */
static kvl_err make_stream(
    struct cuda_tier *tier, uint32_t lane_index, uint32_t index, struct kvl_errmsg *msg) {
    const struct cuda_lane *lane = &tier->lanes[lane_index];
    struct cuda_stream *stream = &tier->lanes[lane_index].streams[index];
    const uint64_t word = (lane_index * KVL_CUDA_LANE_STREAMS_MAX + index) * WORD_STRIDE;
    stream->word = tier->words + word;
    stream->word_device = tier->words_device + word * sizeof *tier->words;
    kvl_cuda_status status = tier->driver->stream_create(
        tier->driver, lane->direction == KVL_CUDA_TO_DEVICE, &stream->handle);
    if (status != KVL_CUDA_OK) {
        stream->handle = NULL;
        return kvl_cuda_fail(tier, msg, status, "make a stream");
    }
    return KVL_OK;
}

/* Everything later rests on it, so it is tried once: a stream writes a word, and the CPU sees it.
 */
static kvl_err try_word(
    const struct cuda_tier *tier, struct cuda_stream *stream, struct kvl_errmsg *msg) {
    const struct kvl_cuda_driver *driver = tier->driver;
    kvl_cuda_status status = driver->write_word(driver, stream->handle, stream->word_device, 1);
    if (status != KVL_CUDA_OK)
        return kvl_cuda_fail(tier, msg, status, "let a stream write a word");
    stream->issued = 1;
    const uint64_t end_ns = kvl_clock_ns() + PROBE_NS;
    while (__atomic_load_n(stream->word, __ATOMIC_ACQUIRE) != 1) {
        status = driver->stream_query(driver, stream->handle);
        kvl_err err = driver->err_from(status);
        if (err != KVL_OK && err != KVL_ERR_AGAIN)
            return kvl_cuda_fail(tier, msg, status, "let a stream write a word");
        if (kvl_clock_ns() > end_ns)
            return kvl_fail(msg, KVL_ERR_TIMEOUT,
                "GPU %u (%s) did not write a word to pinned memory", tier->device, tier->info.name);
        nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
    }
    return KVL_OK;
}

static kvl_err make_lane(
    struct cuda_tier *tier, uint32_t lane_index, uint32_t streams, struct kvl_errmsg *msg) {
    struct cuda_lane *lane = &tier->lanes[lane_index];
    for (uint32_t i = 0; i < KVL_CUDA_LANE_PIECES; i++)
        lane->pieces[i].ring =
            tier->ring + (lane_index * KVL_CUDA_LANE_PIECES + i) * tier->piece_bytes;
    lane->stream_count = streams == 0 ? 1 : streams;
    if (lane->stream_count > KVL_CUDA_LANE_STREAMS_MAX)
        lane->stream_count = KVL_CUDA_LANE_STREAMS_MAX;
    kvl_err err = KVL_OK;
    for (uint32_t i = 0; i < lane->stream_count && err == KVL_OK; i++)
        err = make_stream(tier, lane_index, i, msg);
    for (uint32_t i = 0; i < lane->stream_count && err == KVL_OK; i++)
        err = try_word(tier, &lane->streams[i], msg);
    return err;
}

/* ---- all of it ------------------------------------------------------------------------------ */

static kvl_err open_in_context(
    struct cuda_tier *tier, const struct kvl_cuda_tier_options *options, struct kvl_errmsg *msg) {
    kvl_err err = open_memory(tier, options, msg);
    if (err == KVL_OK)
        err = make_slabs(tier, msg);
    if (err == KVL_OK)
        err = make_ring(tier, options->staging_bytes, msg);
    for (uint32_t i = 0; i < KVL_CUDA_LANES && err == KVL_OK; i++)
        err = make_lane(tier, i, options->copy_streams, msg);
    return err;
}

kvl_err kvl_cuda_arena_open(
    struct cuda_tier *tier, const struct kvl_cuda_tier_options *options, struct kvl_errmsg *msg) {
    kvl_err err = find_device(tier, msg);
    if (err == KVL_OK)
        err = open_context(tier, msg);
    if (err != KVL_OK)
        return err;
    kvl_cuda_status status = tier->driver->context_enter(tier->driver, tier->context);
    if (status != KVL_CUDA_OK)
        return kvl_cuda_fail(tier, msg, status, "enter a context");
    err = open_in_context(tier, options, msg);
    tier->driver->context_leave(tier->driver);
    return err;
}

static void close_streams(const struct kvl_cuda_driver *driver, struct cuda_lane *lane) {
    for (uint32_t i = 0; i < lane->stream_count; i++) {
        if (lane->streams[i].handle != NULL)
            driver->stream_destroy(driver, lane->streams[i].handle);
        lane->streams[i].handle = NULL;
    }
}

static void close_in_context(struct cuda_tier *tier) {
    const struct kvl_cuda_driver *driver = tier->driver;
    for (uint32_t i = 0; i < KVL_CUDA_LANES; i++)
        close_streams(driver, &tier->lanes[i]);
    if (tier->words != NULL)
        driver->host_free(driver, tier->words);
    if (tier->ring != NULL)
        driver->host_free(driver, tier->ring);
    if (tier->address != 0)
        driver->memory_unmap(driver, tier->address, tier->capacity_bytes);
    if (tier->has_memory)
        driver->memory_release(driver, tier->memory);
}

/* On a lost device the calls fail, and there is nothing to give back. */
void kvl_cuda_arena_close(struct cuda_tier *tier) {
    kvl_slabs_destroy(tier->slabs);
    if (tier->share_fd >= 0)
        close(tier->share_fd);
    if (tier->context == NULL)
        return;
    if (tier->driver->context_enter(tier->driver, tier->context) == KVL_CUDA_OK) {
        close_in_context(tier);
        tier->driver->context_leave(tier->driver);
    }
    tier->driver->context_close(tier->driver, tier->device);
}
