#include "gpu_copy_limit.h"

#include "clock.h"

#define PEAK_COPY_BYTES (UINT64_C(64) << 20)
#define PEAK_COPIES 16u
#define PEAK_ROUNDS 5u
#define BATCH_ROUNDS 2u
#define BATCHES_BYTES (UINT64_C(4) << 30) /* a direction, of one round */

enum { DIRECTIONS = 2 }; /* by enum kvl_cuda_direction */

struct raw {
    const struct bench_copy_place *place;
    uint64_t memory, address;
    void *streams[DIRECTIONS];
};

/* ---- life ----------------------------------------------------------------------------------- */

static kvl_cuda_status raw_open(const struct bench_copy_place *place, struct raw *raw) {
    const struct kvl_cuda_driver *driver = place->driver;
    struct kvl_arena_info arena;
    *raw = (struct raw){.place = place};
    place->tier->ops->describe_arena(place->tier, &arena);
    kvl_cuda_status status =
        driver->memory_import(driver, place->tier->ops->share_fd(place->tier), &raw->memory);
    if (status == KVL_CUDA_OK)
        status = driver->memory_map(driver, place->device, raw->memory, arena.bytes, &raw->address);
    for (int i = 0; i < DIRECTIONS && status == KVL_CUDA_OK; i++)
        status = driver->stream_create(driver, true, &raw->streams[i]);
    return status;
}

static void raw_close(struct raw *raw) {
    const struct kvl_cuda_driver *driver = raw->place->driver;
    struct kvl_tier *tier = raw->place->tier;
    for (int i = 0; i < DIRECTIONS; i++)
        if (raw->streams[i] != NULL)
            driver->stream_destroy(driver, raw->streams[i]);
    if (raw->address != 0)
        driver->memory_unmap(driver, raw->address, tier->ops->stats(tier).capacity_bytes);
    if (raw->memory != 0)
        driver->memory_release(driver, raw->memory);
}

static kvl_cuda_status raw_wait(const struct raw *raw, void *stream) {
    const struct kvl_cuda_driver *driver = raw->place->driver;
    for (;;) {
        kvl_cuda_status status = driver->stream_query(driver, stream);
        if (driver->err_from(status) != KVL_ERR_AGAIN)
            return status;
    }
}

static kvl_cuda_status raw_copy(
    const struct raw *raw, int direction, const struct kvl_cuda_copy *copies, uint32_t count) {
    const struct kvl_cuda_driver *driver = raw->place->driver;
    return driver->copy(
        driver, raw->streams[direction], (enum kvl_cuda_direction)direction, copies, count);
}

/* ---- alone ---------------------------------------------------------------------------------- */

static kvl_cuda_status alone_round(const struct raw *raw, int direction, double *speed) {
    const struct bench_copy_place *place = raw->place;
    kvl_cuda_status status = KVL_CUDA_OK;
    const uint64_t since_ns = kvl_clock_ns();
    for (uint32_t i = 0; i < PEAK_COPIES && status == KVL_CUDA_OK; i++) {
        const uint64_t at = i * PEAK_COPY_BYTES % place->region_bytes;
        const struct kvl_cuda_copy copy = {.device = raw->address + place->location + at,
            .host = place->memory + at,
            .copy_bytes = PEAK_COPY_BYTES};
        status = raw_copy(raw, direction, &copy, 1);
    }
    if (status == KVL_CUDA_OK)
        status = raw_wait(raw, raw->streams[direction]);
    *speed = (double)(PEAK_COPIES * PEAK_COPY_BYTES) / (double)(kvl_clock_ns() - since_ns);
    return status;
}

/* The best of some rounds. */
static kvl_cuda_status measure_alone(const struct raw *raw, struct bench_copy_limit *out) {
    for (int direction = 0; direction < DIRECTIONS; direction++) {
        for (uint32_t round = 0; round < PEAK_ROUNDS; round++) {
            double speed = 0;
            kvl_cuda_status status = alone_round(raw, direction, &speed);
            if (status != KVL_CUDA_OK)
                return status;
            if (speed > out->alone[direction])
                out->alone[direction] = speed;
        }
    }
    return KVL_CUDA_OK;
}

/* ---- batches -------------------------------------------------------------------------------- */

/* One call: copies of this size, of places that are not neighbours. */
static kvl_cuda_status batch(
    const struct raw *raw, int direction, uint64_t copy_bytes, uint32_t count) {
    struct kvl_cuda_copy copies[BENCH_COPY_BATCH];
    const struct bench_copy_place *place = raw->place;
    const uint64_t region = direction == KVL_CUDA_TO_DEVICE ? 0 : place->region_bytes;
    const uint64_t places = place->region_bytes / copy_bytes; /* a power of two */
    for (uint32_t i = 0; i < count; i++)
        copies[i] = (struct kvl_cuda_copy){
            .device = raw->address + place->location + region + i * 51 % places * copy_bytes,
            .host = place->memory + region + i * 37 % places * copy_bytes,
            .copy_bytes = copy_bytes};
    return raw_copy(raw, direction, copies, count);
}

static bool goes(enum bench_copy_ways ways, int direction) {
    return ways == BENCH_COPY_BOTH || (int)ways == direction;
}

static kvl_cuda_status batches_round(
    const struct raw *raw, enum bench_copy_ways ways, uint64_t copy_bytes, double *speed) {
    const uint64_t fit = raw->place->region_bytes / copy_bytes / 2;
    const uint32_t count = fit < BENCH_COPY_BATCH ? (uint32_t)fit : BENCH_COPY_BATCH;
    const uint64_t rounds = BATCHES_BYTES / (count * copy_bytes);
    kvl_cuda_status status = KVL_CUDA_OK;
    uint64_t bytes = 0;
    const uint64_t since_ns = kvl_clock_ns();
    for (uint64_t i = 0; i < rounds * DIRECTIONS && status == KVL_CUDA_OK; i++) {
        if (!goes(ways, (int)(i % DIRECTIONS)))
            continue;
        status = batch(raw, (int)(i % DIRECTIONS), copy_bytes, count);
        bytes += count * copy_bytes;
    }
    for (int i = 0; i < DIRECTIONS && status == KVL_CUDA_OK; i++)
        status = raw_wait(raw, raw->streams[i]);
    *speed = (double)bytes / (double)(kvl_clock_ns() - since_ns);
    return status;
}

static kvl_cuda_status measure_batches(const struct raw *raw, uint64_t copy_bytes, double *best) {
    for (int ways = 0; ways < BENCH_COPY_WAYS; ways++) {
        for (uint32_t round = 0; round < BATCH_ROUNDS; round++) {
            double speed = 0;
            kvl_cuda_status status =
                batches_round(raw, (enum bench_copy_ways)ways, copy_bytes, &speed);
            if (status != KVL_CUDA_OK)
                return status;
            if (speed > best[ways])
                best[ways] = speed;
        }
    }
    return KVL_CUDA_OK;
}

/* ---- all of it ------------------------------------------------------------------------------ */

static kvl_cuda_status measure(const struct bench_copy_place *place, const uint64_t *sizes_bytes,
    uint32_t size_count, struct bench_copy_limit *out) {
    struct raw raw;
    kvl_cuda_status status = raw_open(place, &raw);
    if (status == KVL_CUDA_OK)
        status = measure_alone(&raw, out);
    for (uint32_t i = 0; i < size_count && status == KVL_CUDA_OK; i++)
        status = measure_batches(&raw, sizes_bytes[i], out->batches[i]);
    raw_close(&raw);
    return status;
}

kvl_err bench_copy_limit(const struct bench_copy_place *place, const uint64_t *sizes_bytes,
    uint32_t size_count, struct bench_copy_limit *out, struct kvl_errmsg *msg) {
    const struct kvl_cuda_driver *driver = place->driver;
    void *context;
    *out = (struct bench_copy_limit){0};
    kvl_cuda_status status = driver->context_open(driver, place->device, &context);
    if (status != KVL_CUDA_OK)
        return kvl_fail(msg, KVL_ERR_IO, "cannot open a context: %s", driver->text(driver, status));
    status = driver->context_enter(driver, context);
    if (status == KVL_CUDA_OK) {
        status = measure(place, sizes_bytes, size_count, out);
        driver->context_leave(driver);
    }
    driver->context_close(driver, place->device);
    if (status != KVL_CUDA_OK)
        return kvl_fail(
            msg, KVL_ERR_IO, "cannot measure the link: %s", driver->text(driver, status));
    return KVL_OK;
}
