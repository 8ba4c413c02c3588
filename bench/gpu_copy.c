/* gpu_copy.c - see gpu_copy.h.
 *
 * Four batches of 64 blocks are kept under way in each direction (two of 8 MiB): at 55 GB/s that is
 * 0.6 ms of work where blocks are small. A block that is done is given to the tier again. Bytes
 * count from the end of a warm-up on. Places are shuffled, so that no two copies can become one;
 * one more row shows blocks that are neighbours. Blocks of 1 MiB and more have the frames of 256
 * KiB that those of an engine have; one more row shows such that are opaque, of one frame.
 *
 * Limits are what plain copies reach: one way the best of large ones, both ways of the same sizes
 * in batches, over a stream a direction. */
#include "gpu_copy.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clock.h"
#include "device_cuda/cuda_tier.h"
#include "memory/memory_tier.h"

#define BATCH 64u
#define BATCHES 4u
#define BLOCKS_MAX (BATCH * BATCHES) /* a direction */
#define REGION_BYTES (UINT64_C(1) << 30)
#define WARM_NS UINT64_C(60000000)
#define MEASURE_NS UINT64_C(250000000)
#define PEAK_COPY_BYTES (UINT64_C(64) << 20)
#define PEAK_COPIES 16u
#define PEAK_ROUNDS 5u
#define PIN_WAIT_NS UINT64_C(60000000000)
#define TOUCH_THREADS 8u

#define RAW_BYTES (UINT64_C(4) << 30) /* a direction, of a measurement of both */

enum { STORE, LOAD, DIRECTIONS };
enum shape { APART, NEIGHBOURS, OPAQUE };

#define SIZES 4u
static const uint64_t sizes[SIZES] = {128u << 10, 512u << 10, 2u << 20, 8u << 20};

struct bench {
    const struct bench_gpu_copy_options *options;
    const struct kvl_cuda_driver *driver;
    uint32_t device;
    struct kvl_tier *tier, *host;
    uint8_t *memory;         /* the host's arena: a region of stores, then one of loads */
    uint64_t location;       /* of the same in the tier */
    double peak[DIRECTIONS]; /* GB/s */
    double both_peak[SIZES];

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

/* ---- the limit ------------------------------------------------------------------------------ */

struct raw {
    uint64_t memory, address;
    void *streams[DIRECTIONS];
};

static kvl_cuda_status raw_open(const struct bench *bench, struct raw *raw) {
    const struct kvl_cuda_driver *driver = bench->driver;
    struct kvl_arena_info arena;
    *raw = (struct raw){0};
    bench->tier->ops->describe_arena(bench->tier, &arena);
    kvl_cuda_status status =
        driver->memory_import(driver, bench->tier->ops->share_fd(bench->tier), &raw->memory);
    if (status == KVL_CUDA_OK)
        status = driver->memory_map(driver, bench->device, raw->memory, arena.bytes, &raw->address);
    for (int i = 0; i < DIRECTIONS && status == KVL_CUDA_OK; i++)
        status = driver->stream_create(driver, true, &raw->streams[i]);
    return status;
}

static void raw_close(const struct bench *bench, struct raw *raw) {
    const struct kvl_cuda_driver *driver = bench->driver;
    for (int i = 0; i < DIRECTIONS; i++)
        if (raw->streams[i] != NULL)
            driver->stream_destroy(driver, raw->streams[i]);
    if (raw->address != 0)
        driver->memory_unmap(
            driver, raw->address, bench->tier->ops->stats(bench->tier).capacity_bytes);
    if (raw->memory != 0)
        driver->memory_release(driver, raw->memory);
}

static kvl_cuda_status raw_wait(const struct bench *bench, void *stream) {
    for (;;) {
        kvl_cuda_status status = bench->driver->stream_query(bench->driver, stream);
        if (bench->driver->err_from(status) != KVL_ERR_AGAIN)
            return status;
    }
}

static kvl_cuda_status raw_copy(const struct bench *bench, const struct raw *raw, int direction,
    const struct kvl_cuda_copy *copies, uint32_t count) {
    return bench->driver->copy(bench->driver, raw->streams[direction],
        direction == STORE ? KVL_CUDA_TO_DEVICE : KVL_CUDA_TO_HOST, copies, count);
}

/* GB/s of large copies, one call each, one after another. */
static kvl_cuda_status raw_round(
    const struct bench *bench, const struct raw *raw, int direction, double *speed) {
    kvl_cuda_status status = KVL_CUDA_OK;
    const uint64_t since_ns = kvl_clock_ns();
    for (uint32_t i = 0; i < PEAK_COPIES && status == KVL_CUDA_OK; i++) {
        const uint64_t at = i * PEAK_COPY_BYTES % REGION_BYTES;
        const struct kvl_cuda_copy copy = {.device = raw->address + bench->location + at,
            .host = bench->memory + at,
            .copy_bytes = PEAK_COPY_BYTES};
        status = raw_copy(bench, raw, direction, &copy, 1);
    }
    if (status == KVL_CUDA_OK)
        status = raw_wait(bench, raw->streams[direction]);
    *speed = (double)(PEAK_COPIES * PEAK_COPY_BYTES) / (double)(kvl_clock_ns() - since_ns);
    return status;
}

/* A batch one way: copies of this size, of places that are not neighbours. */
static kvl_cuda_status raw_batch(const struct bench *bench, const struct raw *raw, int direction,
    uint64_t copy_bytes, uint32_t count) {
    struct kvl_cuda_copy copies[BATCH];
    const uint64_t region = direction == STORE ? 0 : REGION_BYTES;
    const uint64_t places = REGION_BYTES / copy_bytes; /* a power of two */
    for (uint32_t i = 0; i < count; i++)
        copies[i] = (struct kvl_cuda_copy){
            .device = raw->address + bench->location + region + i * 51 % places * copy_bytes,
            .host = bench->memory + region + i * 37 % places * copy_bytes,
            .copy_bytes = copy_bytes};
    return raw_copy(bench, raw, direction, copies, count);
}

/* GB/s of both ways together. */
static kvl_cuda_status raw_both(
    const struct bench *bench, const struct raw *raw, uint64_t copy_bytes, double *speed) {
    const uint32_t count =
        REGION_BYTES / copy_bytes / 2 < BATCH ? (uint32_t)(REGION_BYTES / copy_bytes / 2) : BATCH;
    const uint64_t rounds = RAW_BYTES / (count * copy_bytes);
    kvl_cuda_status status = KVL_CUDA_OK;
    const uint64_t since_ns = kvl_clock_ns();
    for (uint64_t i = 0; i < rounds * DIRECTIONS && status == KVL_CUDA_OK; i++)
        status = raw_batch(bench, raw, (int)(i % DIRECTIONS), copy_bytes, count);
    for (int i = 0; i < DIRECTIONS && status == KVL_CUDA_OK; i++)
        status = raw_wait(bench, raw->streams[i]);
    *speed =
        (double)(rounds * DIRECTIONS * count * copy_bytes) / (double)(kvl_clock_ns() - since_ns);
    return status;
}

static kvl_cuda_status raw_boths(struct bench *bench, const struct raw *raw) {
    for (uint32_t i = 0; i < SIZES; i++) {
        for (uint32_t round = 0; round < 2; round++) {
            double speed = 0;
            kvl_cuda_status status = raw_both(bench, raw, sizes[i], &speed);
            if (status != KVL_CUDA_OK)
                return status;
            if (speed > bench->both_peak[i])
                bench->both_peak[i] = speed;
        }
    }
    return KVL_CUDA_OK;
}

/* The best of some rounds. */
static kvl_cuda_status raw_peaks(struct bench *bench, const struct raw *raw) {
    for (int direction = 0; direction < DIRECTIONS; direction++) {
        for (uint32_t round = 0; round < PEAK_ROUNDS; round++) {
            double speed = 0;
            kvl_cuda_status status = raw_round(bench, raw, direction, &speed);
            if (status != KVL_CUDA_OK)
                return status;
            if (speed > bench->peak[direction])
                bench->peak[direction] = speed;
        }
    }
    return KVL_CUDA_OK;
}

static kvl_err measure_limit(struct bench *bench, struct kvl_errmsg *msg) {
    const struct kvl_cuda_driver *driver = bench->driver;
    void *context;
    struct raw raw;
    kvl_cuda_status status = driver->context_open(driver, bench->device, &context);
    if (status != KVL_CUDA_OK)
        return kvl_fail(msg, KVL_ERR_IO, "cannot open a context: %s", driver->text(driver, status));
    status = driver->context_enter(driver, context);
    if (status == KVL_CUDA_OK) {
        status = raw_open(bench, &raw);
        if (status == KVL_CUDA_OK)
            status = raw_peaks(bench, &raw);
        if (status == KVL_CUDA_OK)
            status = raw_boths(bench, &raw);
        raw_close(bench, &raw);
        driver->context_leave(driver);
    }
    driver->context_close(driver, bench->device);
    if (status != KVL_CUDA_OK)
        return kvl_fail(
            msg, KVL_ERR_IO, "cannot measure the link: %s", driver->text(driver, status));
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
    bench->blocks = fit < BLOCKS_MAX ? (uint32_t)fit : BLOCKS_MAX;
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

/* GB/s, both directions together. */
static kvl_err measure(struct bench *bench, bool store, bool load, double *speed) {
    make_ready(bench, store, load);
    bench->worst = KVL_OK;
    kvl_err err = run_until(bench, kvl_clock_ns() + WARM_NS);
    const uint64_t before = bench->bytes[STORE] + bench->bytes[LOAD];
    const uint64_t since_ns = kvl_clock_ns();
    if (err == KVL_OK)
        err = run_until(bench, since_ns + MEASURE_NS);
    *speed = (double)(bench->bytes[STORE] + bench->bytes[LOAD] - before) /
             (double)(kvl_clock_ns() - since_ns);
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
static kvl_err measure_hash(struct bench *bench, double *speed) {
    for (uint32_t i = 0; i < bench->blocks; i++)
        bench->ios[LOAD][i].op = KVL_IO_HASH;
    kvl_err err = measure(bench, false, true, speed);
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

static kvl_err measure_size(struct bench *bench, uint32_t size, enum shape shape,
    struct bench_report *report, struct kvl_errmsg *msg) {
    static const char *hows[] = {"", " neighbours", " opaque"};
    const char *how = hows[shape];
    const uint64_t block_bytes = sizes[size];
    double store = 0, load = 0, hash = 0, both = 0;
    kvl_err err = make_layout(bench, block_bytes, shape);
    if (err != KVL_OK)
        return kvl_fail(msg, err, "blocks of %" PRIu64 " bytes", block_bytes);
    make_blocks(bench, block_bytes, shape != NEIGHBOURS);
    err = fill_loads(bench);
    if (err == KVL_OK)
        err = measure(bench, true, false, &store);
    if (err == KVL_OK)
        err = measure(bench, false, true, &load);
    if (err == KVL_OK)
        err = measure_hash(bench, &hash);
    if (err == KVL_OK)
        err = measure(bench, true, true, &both);
    if (err != KVL_OK)
        return kvl_fail(
            msg, err, "a block of %" PRIu64 " bytes ended with %s", block_bytes, kvl_err_text(err));
    add(report, "store", block_bytes, how, store, bench->peak[STORE]);
    add(report, "load", block_bytes, how, load, bench->peak[LOAD]);
    add(report, "hash", block_bytes, how, hash, bench->peak[LOAD]);
    add(report, "both", block_bytes, how, both, bench->both_peak[size]);
    return KVL_OK;
}

/* ---- all of it ------------------------------------------------------------------------------ */

static kvl_err measure_all(
    struct bench *bench, struct bench_report *report, struct kvl_errmsg *msg) {
    kvl_err err = make_host(bench, msg);
    if (err == KVL_OK)
        err = make_device(bench, msg);
    if (err == KVL_OK)
        err = pin(bench, msg);
    if (err == KVL_OK)
        err = measure_limit(bench, msg);
    if (err == KVL_OK)
        bench_report_add(report, "gpu.link, sum of both ways alone",
            bench->peak[STORE] + bench->peak[LOAD], "GB/s", 0);
    for (uint32_t i = 0; i < SIZES && err == KVL_OK; i++)
        err = measure_size(bench, i, APART, report, msg);
    if (err == KVL_OK)
        err = measure_size(bench, 0, NEIGHBOURS, report, msg);
    if (err == KVL_OK)
        err = measure_size(bench, SIZES - 1, OPAQUE, report, msg);
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
    kvl_err err = measure_all(bench, report, msg);
    if (bench->tier != NULL) {
        if (bench->tier->ops->drain(bench->tier) != KVL_OK && err == KVL_OK)
            err = kvl_fail(msg, KVL_ERR_IO, "the tier does not drain");
        bench->tier->ops->deinit(bench->tier);
    }
    if (bench->host != NULL)
        bench->host->ops->deinit(bench->host);
    free(bench);
    return err;
}
