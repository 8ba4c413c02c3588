/* gpu_copy.c - see gpu_copy.h.
 *
 * Four batches of 64 blocks are kept under way in each direction (two of 8 MiB): at 55 GB/s that is
 * 0.6 ms of work where blocks are small. A block that is done is given to the tier again. Bytes
 * count from the end of a warm-up on. Places are shuffled, so that no two copies can become one;
 * one more row shows blocks that are neighbours. Blocks of 1 MiB and more have the frames of 256
 * KiB that those of an engine have; one more row shows such that are opaque, of one frame.
 *
 * The smallest blocks are measured in other ways too, for what they wait for: with twice as many
 * under way, over the other number of driver threads, and with threads that do not pause. */
#include "gpu_copy.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clock.h"
#include "device_cuda/cuda_tier.h"
#include "gpu_copy_limit.h"
#include "memory/memory_tier.h"

#define BATCH BENCH_COPY_BATCH
#define BATCHES 4u
#define BLOCKS_MAX (2 * BATCH * BATCHES) /* a direction */
#define REGION_BYTES (UINT64_C(1) << 30)
#define WARM_NS UINT64_C(60000000)
#define MEASURE_NS UINT64_C(250000000)
#define PIN_WAIT_NS UINT64_C(60000000000)
#define TOUCH_THREADS 8u
#define LONG_SPIN_US 1000u

enum { STORE = BENCH_COPY_TO_DEVICE, LOAD = BENCH_COPY_TO_HOST, DIRECTIONS };
enum shape { APART, NEIGHBOURS, OPAQUE };

#define SIZES BENCH_COPY_SIZES_MAX
static const uint64_t sizes[SIZES] = {128u << 10, 512u << 10, 2u << 20, 8u << 20};

struct bench {
    const struct bench_gpu_copy_options *options;
    const struct kvl_cuda_driver *driver;
    uint32_t device;
    struct kvl_tier *tier, *host;
    uint8_t *memory;         /* the host's arena: a region of stores, then one of loads */
    uint64_t location;       /* of the same in the tier */
    uint32_t driver_threads; /* the tier's, */
    uint32_t spin_us;        /* and how long they look without a pause */
    uint32_t blocks_wanted;  /* a direction; fewer where they do not fit */
    struct bench_copy_limit limit;

    struct kvl_layout layout;
    uint32_t blocks; /* a direction, a power of two */
    bool going;
    uint64_t bytes[DIRECTIONS]; /* done */
    kvl_err worst;
    struct kvl_io ios[DIRECTIONS][BLOCKS_MAX];
    struct kvl_io *ready; /* done, to be given again */
};

/* ---- memory --------------------------------------------------------------------------------- */

static kvl_err make_host(struct bench *bench, struct kvl_errmsg *msg) {
    const struct kvl_memory_tier_options options = {.kind = KVL_TIER_HOST,
        .capacity_bytes = DIRECTIONS * REGION_BYTES,
        .copy_threads = TOUCH_THREADS};
    kvl_err err = kvl_memory_tier_create(&options, &bench->host, msg);
    if (err != KVL_OK)
        return err;
    kvl_memory_tier_wait_touched(bench->host);
    bench->memory = bench->host->ops->address(bench->host, 0);
    return KVL_OK;
}

static kvl_err make_device(struct bench *bench, struct kvl_errmsg *msg) {
    const struct kvl_cuda_tier_options options = {.device = bench->device,
        .capacity_bytes = DIRECTIONS * REGION_BYTES,
        .staging_bytes = bench->options->staging_bytes,
        .copy_streams = bench->options->copy_streams,
        .hash_threads = bench->options->hash_threads,
        .driver_threads = bench->driver_threads,
        .spin_us = bench->spin_us,
        .driver = bench->driver};
    kvl_err err = kvl_cuda_tier_create(&options, &bench->tier, msg);
    if (err != KVL_OK)
        return err;
    err = bench->tier->ops->alloc(bench->tier, DIRECTIONS * REGION_BYTES, &bench->location);
    if (err != KVL_OK)
        return kvl_fail(msg, err, "a fresh tier has no slot of its own size");
    return KVL_OK;
}

static kvl_err pin(struct bench *bench, struct kvl_errmsg *msg) {
    const uint64_t bytes = DIRECTIONS * REGION_BYTES;
    const uint64_t end_ns = kvl_clock_ns() + PIN_WAIT_NS;
    kvl_err err = kvl_cuda_tier_pin_host(bench->tier, bench->memory, bytes);
    if (err != KVL_OK)
        return kvl_fail(msg, err, "out of memory");
    while (kvl_cuda_tier_pinned_bytes(bench->tier) < bytes) {
        if (kvl_clock_ns() > end_ns)
            return kvl_fail(msg, KVL_ERR_LIMIT, "only %" PRIu64 " of %" PRIu64 " bytes are pinned",
                kvl_cuda_tier_pinned_bytes(bench->tier), bytes);
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    }
    return KVL_OK;
}

/* ---- blocks --------------------------------------------------------------------------------- */

static void on_complete(struct kvl_io *io) {
    struct bench *bench = io->owner;
    bench->bytes[io->op == KVL_IO_STORE ? STORE : LOAD] += bench->layout.payload_bytes;
    if (io->status != KVL_OK)
        bench->worst = io->status;
    io->next = bench->ready;
    bench->ready = io;
}

/* 0..blocks-1, each once: steps of an odd number. */
static uint64_t place(const struct bench *bench, bool apart, uint32_t i, uint32_t step) {
    return apart ? (uint64_t)i * step % bench->blocks : i;
}

static void make_blocks(struct bench *bench, uint64_t block_bytes, bool apart) {
    const uint64_t fit = REGION_BYTES / block_bytes;
    bench->blocks = fit < bench->blocks_wanted ? (uint32_t)fit : bench->blocks_wanted;
    for (int direction = 0; direction < DIRECTIONS; direction++) {
        const uint64_t region = direction == STORE ? 0 : REGION_BYTES;
        for (uint32_t i = 0; i < bench->blocks; i++) {
            struct kvl_io *io = &bench->ios[direction][i];
            *io = (struct kvl_io){.op = direction == STORE ? KVL_IO_STORE : KVL_IO_LOAD,
                .priority = direction == STORE ? KVL_IO_RESTORE : KVL_IO_BEHIND,
                .layout = &bench->layout,
                .buffer = bench->memory + region + place(bench, apart, i, 37) * block_bytes,
                .location = bench->location + region + place(bench, apart, i, 51) * block_bytes,
                .complete = on_complete,
                .owner = bench};
        }
    }
}

static kvl_err submit(struct bench *bench, struct kvl_io *io) {
    return bench->tier->ops->submit(bench->tier, io);
}

static void poll_tier(struct bench *bench) {
    struct pollfd poller = {.fd = bench->tier->ops->fd(bench->tier), .events = POLLIN};
    if (poll(&poller, 1, 1000) == 1)
        bench->tier->ops->poll(bench->tier);
}

/* Keeps what is ready under way until then; afterwards waits for the rest. */
static kvl_err run_until(struct bench *bench, uint64_t end_ns) {
    while (kvl_clock_ns() < end_ns) {
        while (bench->ready != NULL) {
            struct kvl_io *io = bench->ready;
            bench->ready = io->next;
            kvl_err err = submit(bench, io);
            if (err != KVL_OK)
                return err;
        }
        poll_tier(bench);
    }
    return bench->worst;
}

static void make_ready(struct bench *bench, bool store, bool load) {
    bench->ready = NULL;
    for (int direction = 0; direction < DIRECTIONS; direction++) {
        for (uint32_t i = 0; i < bench->blocks && (direction == STORE ? store : load); i++) {
            bench->ios[direction][i].next = bench->ready;
            bench->ready = &bench->ios[direction][i];
        }
    }
}

/* GB/s of each direction. */
static kvl_err measure(struct bench *bench, bool store, bool load, double *speeds) {
    make_ready(bench, store, load);
    bench->worst = KVL_OK;
    kvl_err err = run_until(bench, kvl_clock_ns() + WARM_NS);
    const uint64_t before[DIRECTIONS] = {bench->bytes[STORE], bench->bytes[LOAD]};
    const uint64_t since_ns = kvl_clock_ns();
    if (err == KVL_OK)
        err = run_until(bench, since_ns + MEASURE_NS);
    const double ns = (double)(kvl_clock_ns() - since_ns);
    for (int direction = 0; direction < DIRECTIONS; direction++)
        speeds[direction] = (double)(bench->bytes[direction] - before[direction]) / ns;
    kvl_err drained = bench->tier->ops->drain(bench->tier);
    return err != KVL_OK ? err : drained != KVL_OK ? drained : bench->worst;
}

/* What will be loaded is in the tier, with its hash: every block of its own content. */
static kvl_err fill_loads(struct bench *bench) {
    for (uint32_t i = 0; i < bench->blocks; i++) {
        struct kvl_io *io = &bench->ios[LOAD][i];
        memset(io->buffer, (int)i + 1, bench->layout.payload_bytes);
        io->record.content_hash = kvl_content_hash(&bench->layout, io->buffer, NULL);
        io->op = KVL_IO_STORE;
        kvl_err err = submit(bench, io);
        if (err != KVL_OK)
            return err;
    }
    kvl_err err = bench->tier->ops->drain(bench->tier);
    for (uint32_t i = 0; i < bench->blocks; i++)
        bench->ios[LOAD][i].op = KVL_IO_LOAD;
    return err != KVL_OK ? err : bench->worst;
}

/* GB/s of hashes taken of what is in the tier. */
static kvl_err measure_hash(struct bench *bench, double *speeds) {
    for (uint32_t i = 0; i < bench->blocks; i++)
        bench->ios[LOAD][i].op = KVL_IO_HASH;
    kvl_err err = measure(bench, false, true, speeds);
    for (uint32_t i = 0; i < bench->blocks; i++)
        bench->ios[LOAD][i].op = KVL_IO_LOAD;
    return err;
}

static void add(struct bench_report *report, const char *what, uint64_t block_bytes,
    const char *how, double value, double limit) {
    char name[64];
    snprintf(name, sizeof name, "gpu.%s, %u KiB%s", what, (unsigned)(block_bytes >> 10), how);
    bench_report_add(report, name, value, "GB/s", limit);
}

/* Layers of 256 KiB: 64 tokens, as of Llama 3 8B, which has 32 of them. */
static kvl_err make_layout(struct bench *bench, uint64_t block_bytes, enum shape shape) {
    const struct kvl_geometry geometry = {.layers = (uint32_t)(block_bytes >> 18),
        .kv_heads = 8,
        .k_dim = 128,
        .v_dim = 128,
        .block_tokens = 64};
    if (shape == OPAQUE || block_bytes < 1u << 20)
        return kvl_layout_of_bytes(block_bytes, &bench->layout);
    return kvl_layout_of_geometry(&geometry, KVL_DTYPE_F16, &bench->layout);
}

/* What is measured of blocks of one size, in GB/s a direction. */
struct speeds {
    double store[DIRECTIONS], load[DIRECTIONS], hash[DIRECTIONS], both[DIRECTIONS];
};

static kvl_err measure_blocks(
    struct bench *bench, uint64_t block_bytes, enum shape shape, struct speeds *out) {
    make_blocks(bench, block_bytes, shape != NEIGHBOURS);
    kvl_err err = fill_loads(bench);
    if (err == KVL_OK)
        err = measure(bench, true, false, out->store);
    if (err == KVL_OK)
        err = measure(bench, false, true, out->load);
    if (err == KVL_OK)
        err = measure_hash(bench, out->hash);
    if (err == KVL_OK)
        err = measure(bench, true, true, out->both);
    return err;
}

static kvl_err measure_size(struct bench *bench, uint32_t size, enum shape shape, const char *how,
    struct bench_report *report, struct kvl_errmsg *msg) {
    const uint64_t block_bytes = sizes[size];
    const double both_limit = bench->limit.batches[size][BENCH_COPY_BOTH];
    struct speeds speeds = {{0}, {0}, {0}, {0}};
    kvl_err err = make_layout(bench, block_bytes, shape);
    if (err == KVL_OK)
        err = measure_blocks(bench, block_bytes, shape, &speeds);
    if (err != KVL_OK)
        return kvl_fail(
            msg, err, "a block of %" PRIu64 " bytes ended with %s", block_bytes, kvl_err_text(err));
    add(report, "store", block_bytes, how, speeds.store[STORE], bench->limit.alone[STORE]);
    add(report, "load", block_bytes, how, speeds.load[LOAD], bench->limit.alone[LOAD]);
    add(report, "hash", block_bytes, how, speeds.hash[LOAD], bench->limit.alone[LOAD]);
    add(report, "both", block_bytes, how, speeds.both[STORE] + speeds.both[LOAD], both_limit);
    add(report, "both, to host", block_bytes, how, speeds.both[LOAD], both_limit / 2);
    return KVL_OK;
}

/* ---- a tier --------------------------------------------------------------------------------- */

static kvl_err open_tier(struct bench *bench, struct kvl_errmsg *msg) {
    kvl_err err = make_device(bench, msg);
    if (err == KVL_OK)
        err = pin(bench, msg);
    return err;
}

static kvl_err close_tier(struct bench *bench, struct kvl_errmsg *msg) {
    kvl_err err = KVL_OK;
    if (bench->tier == NULL)
        return KVL_OK;
    if (bench->tier->ops->drain(bench->tier) != KVL_OK)
        err = kvl_fail(msg, KVL_ERR_IO, "the tier does not drain");
    bench->tier->ops->deinit(bench->tier);
    bench->tier = NULL;
    return err;
}

/* ---- all of it ------------------------------------------------------------------------------ */

static kvl_err measure_limit(
    struct bench *bench, struct bench_report *report, struct kvl_errmsg *msg) {
    const struct bench_copy_place place = {.driver = bench->driver,
        .device = bench->device,
        .tier = bench->tier,
        .location = bench->location,
        .memory = bench->memory,
        .region_bytes = REGION_BYTES};
    struct bench_copy_limit *limit = &bench->limit;
    kvl_err err = bench_copy_limit(&place, sizes, SIZES, limit, msg);
    if (err != KVL_OK)
        return err;
    bench_report_add(report, "gpu.link, sum of both ways alone",
        limit->alone[STORE] + limit->alone[LOAD], "GB/s", 0);
    add(report, "plain store", sizes[0], "", limit->batches[0][STORE], limit->alone[STORE]);
    add(report, "plain load", sizes[0], "", limit->batches[0][LOAD], limit->alone[LOAD]);
    return KVL_OK;
}

static kvl_err measure_sizes(
    struct bench *bench, struct bench_report *report, struct kvl_errmsg *msg) {
    kvl_err err = KVL_OK;
    for (uint32_t i = 0; i < SIZES && err == KVL_OK; i++)
        err = measure_size(bench, i, APART, "", report, msg);
    if (err == KVL_OK)
        err = measure_size(bench, 0, NEIGHBOURS, " neighbours", report, msg);
    if (err == KVL_OK)
        err = measure_size(bench, SIZES - 1, OPAQUE, " opaque", report, msg);
    return err;
}

/* Over a tier of its own. */
static kvl_err measure_otherwise(struct bench *bench, uint32_t driver_threads, uint32_t spin_us,
    const char *how, struct bench_report *report, struct kvl_errmsg *msg) {
    bench->driver_threads = driver_threads;
    bench->spin_us = spin_us;
    kvl_err err = close_tier(bench, msg);
    if (err == KVL_OK)
        err = open_tier(bench, msg);
    if (err == KVL_OK)
        err = measure_size(bench, 0, APART, how, report, msg);
    return err;
}

static kvl_err measure_small(
    struct bench *bench, struct bench_report *report, struct kvl_errmsg *msg) {
    const uint32_t threads = bench->options->driver_threads;
    const char *how = threads == 1 ? " 2 driver threads" : " 1 driver thread";
    bench->blocks_wanted = 2 * BATCH * BATCHES;
    kvl_err err = measure_size(bench, 0, APART, " 8 batches", report, msg);
    bench->blocks_wanted = BATCH * BATCHES;
    if (err == KVL_OK)
        err = measure_otherwise(
            bench, threads == 1 ? 2 : 1, bench->options->spin_us, how, report, msg);
    if (err == KVL_OK)
        err = measure_otherwise(bench, threads, LONG_SPIN_US, " no pauses", report, msg);
    return err;
}

static kvl_err measure_all(
    struct bench *bench, struct bench_report *report, struct kvl_errmsg *msg) {
    kvl_err err = make_host(bench, msg);
    if (err == KVL_OK)
        err = open_tier(bench, msg);
    if (err == KVL_OK)
        err = measure_limit(bench, report, msg);
    if (err == KVL_OK)
        err = measure_sizes(bench, report, msg);
    if (err == KVL_OK)
        err = measure_small(bench, report, msg);
    return err;
}

kvl_err bench_gpu_copy(const struct bench_gpu_copy_options *options, struct bench_report *report,
    struct kvl_errmsg *msg) {
    struct bench *bench = calloc(1, sizeof *bench);
    if (bench == NULL)
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
    bench->options = options;
    bench->driver = options->driver;
    bench->device = options->device;
    bench->blocks_wanted = BATCH * BATCHES;
    bench->driver_threads = options->driver_threads;
    bench->spin_us = options->spin_us;
    kvl_err err = measure_all(bench, report, msg);
    const kvl_err closed = close_tier(bench, err == KVL_OK ? msg : NULL);
    if (bench->host != NULL)
        bench->host->ops->deinit(bench->host);
    free(bench);
    return err != KVL_OK ? err : closed;
}
