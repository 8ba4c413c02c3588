/* disk_bench.c - see disk_bench.h. The blocks are made up: f16, normally distributed with a scale
 * per channel, which shrinks as real KV does. */
#include "disk_bench_private.h"

#include <fcntl.h>
#include <ftw.h>
#include <liburing.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clock.h"
#include "disk/disk_tier.h"

#define BLOCKS 124u
#define ROUNDS 5u
#define SMALL_BLOCKS 10000u

static void completed(struct kvl_io *io) {
    struct disk_bench *bench = io->owner;
    bench->pending--;
    if (io->status != KVL_OK)
        bench->status = io->status;
}

static void on_loaded(void *arg, kvl_err status) {
    struct disk_bench *bench = arg;
    bench->loaded = true;
    if (status != KVL_OK)
        bench->status = status;
}

void disk_bench_wait(struct disk_bench *bench) {
    struct pollfd wait = {.fd = bench->tier->ops->fd(bench->tier), .events = POLLIN};
    poll(&wait, 1, 1000);
    bench->tier->ops->poll(bench->tier);
}

bool disk_bench_open(struct disk_bench *bench, enum kvl_disk_codec codec) {
    struct kvl_errmsg msg = {""};
    struct kvl_disk_options options = {
        .path = bench->path, .capacity_bytes = bench->capacity_bytes, .codec = codec};
    bench->loaded = false;
    bench->status = kvl_disk_tier_create(&options, &bench->tier, &bench->catalog, &msg);
    if (bench->status != KVL_OK) {
        fprintf(stderr, "kvl_bench_disk: %s\n", msg.text);
        return false;
    }
    bench->tier->events =
        (struct kvl_tier_events){.arg = bench, .loaded = on_loaded, .keep = bench->keep};
    while (!bench->loaded)
        disk_bench_wait(bench);
    return bench->status == KVL_OK;
}

static int remove_entry(const char *path, const struct stat *stat, int type, struct FTW *ftw) {
    (void)stat, (void)type, (void)ftw;
    return remove(path);
}

void disk_bench_remove(const char *path) {
    nftw(path, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

void disk_bench_close(struct disk_bench *bench) {
    if (bench->tier->ops->drain(bench->tier) != KVL_OK)
        bench->status = KVL_ERR_IO;
    bench->tier->ops->deinit(bench->tier);
    bench->tier = NULL;
}

uint64_t disk_bench_random(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint16_t f16_of(float value) {
    uint32_t word;
    memcpy(&word, &value, sizeof(word));
    int exponent = (int)(word >> 23 & 0xff) - 112;
    if (exponent <= 0)
        return (uint16_t)(word >> 16 & 0x8000);
    return (uint16_t)((word >> 16 & 0x8000) | (uint32_t)exponent << 10 | (word >> 13 & 0x3ff));
}

static void fill(struct disk_bench *bench, uint32_t number) {
    uint16_t *values = (uint16_t *)(bench->memory + bench->layout.slot_bytes * number);
    uint64_t state = number;
    for (uint64_t i = 0; i < bench->layout.payload_bytes / 2; i++) {
        uint64_t bits = disk_bench_random(&state), channel = i % 64;
        float sum = 0;
        for (int part = 0; part < 4; part++)
            sum += (float)(bits >> (16 * part) & 0xffff) / 32768.0f - 1.0f;
        values[i] = f16_of(sum * 0.05f * (float)(channel * channel % 37 + 1));
    }
}

void disk_bench_make_io(
    struct disk_bench *bench, uint32_t number, const struct kvl_layout *layout) {
    struct kvl_io *io = &bench->ios[number];
    memset(io, 0, sizeof(*io));
    io->layout = layout;
    io->buffer =
        bench->memory + layout->slot_bytes * (number % (bench->memory_bytes / layout->slot_bytes));
    io->complete = completed;
    io->owner = bench;
    io->priority = KVL_IO_RESTORE;
    io->record.generation = number + 1;
    io->record.token_count = 64;
    memcpy(io->record.key.bytes, &number, sizeof(number));
    io->record.content_hash = kvl_content_hash(layout, io->buffer, NULL);
}

/* Seconds that all blocks took. */
double disk_bench_run(struct disk_bench *bench, enum kvl_io_op op) {
    uint64_t since_ns = kvl_clock_ns();
    bench->pending = 0;
    for (uint32_t i = 0; i < bench->blocks; i++) {
        bench->pending++;
        bench->ios[i].op = op;
        while (bench->tier->ops->submit(bench->tier, &bench->ios[i]) == KVL_ERR_AGAIN)
            disk_bench_wait(bench);
    }
    bench->tier->ops->quiesce(bench->tier); /* or the last batch waits for company */
    while (bench->pending > 0)
        disk_bench_wait(bench);
    return (double)(kvl_clock_ns() - since_ns) / 1e9;
}

/* Up to RAW_DEPTH transfers of a block each at once, nothing in between; with group_bytes, all that
 * was written is synced whenever so much of it is. Seconds, or 0 when it is refused. */
double disk_bench_raw(
    struct disk_bench *bench, const char *path, bool write, uint64_t group_bytes) {
    struct io_uring ring;
    uint64_t bytes = bench->layout.slot_bytes;
    uint32_t group = group_bytes == 0 ? bench->blocks : (uint32_t)(group_bytes / bytes);
    uint32_t started = 0, finished = 0;
    int fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
    if (fd < 0)
        return 0;
    if (io_uring_queue_init(RAW_DEPTH, &ring, 0) != 0) {
        close(fd);
        return 0;
    }
    bool good = true;
    uint64_t since_ns = kvl_clock_ns();
    while (finished < bench->blocks && good) {
        uint32_t end = (finished / group + 1) * group;
        for (; started < bench->blocks && started < end && started - finished < RAW_DEPTH;
             started++) {
            struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
            uint8_t *at = bench->memory + bytes * started;
            if (write)
                io_uring_prep_write(sqe, fd, at, (unsigned)bytes, bytes * started);
            else
                io_uring_prep_read(sqe, fd, at, (unsigned)bytes, bytes * started);
        }
        io_uring_submit_and_wait(&ring, 1);
        struct io_uring_cqe *cqe;
        for (; io_uring_peek_cqe(&ring, &cqe) == 0; finished++) {
            good = good && cqe->res == (int)bytes;
            io_uring_cqe_seen(&ring, cqe);
        }
        if (write && finished == started && fdatasync(fd) != 0)
            good = false;
    }
    double seconds = (double)(kvl_clock_ns() - since_ns) / 1e9;
    io_uring_queue_exit(&ring);
    close(fd);
    return good ? seconds : 0;
}

double disk_bench_gb_per_s(const struct disk_bench *bench, double seconds) {
    return seconds > 0 ? (double)bench->layout.payload_bytes * bench->blocks / seconds / 1e9 : 0;
}

struct speeds {
    double raw_read[ROUNDS], raw_write[ROUNDS], load[ROUNDS], store[ROUNDS], load_fixed[ROUNDS];
    double store_fresh[ROUNDS]; /* into a new folder: the first segment is made meanwhile */
};

/* As the tier's segments in a new folder: reserved, never written. */
bool disk_bench_make_fresh(const char *path, uint64_t bytes) {
    unlink(path);
    int fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0)
        return false;
    bool good = posix_fallocate(fd, 0, (off_t)bytes) == 0 && fsync(fd) == 0;
    close(fd);
    return good;
}

/* Raw and tier by turns, so that both see the same weather. */
static bool measure_codec(
    struct disk_bench *bench, enum kvl_disk_codec codec, struct speeds *speeds) {
    char raw_path[300];
    snprintf(raw_path, sizeof(raw_path), "%s.raw", bench->path);
    bool good = true;
    for (uint32_t round = 0; good && round < ROUNDS; round++) {
        for (uint32_t i = 0; i < BLOCKS; i++)
            disk_bench_make_io(bench, i, &bench->layout);
        if (!disk_bench_open(bench, codec))
            return false;
        good = disk_bench_make_fresh(raw_path, bench->memory_bytes);
        speeds->raw_write[round] =
            disk_bench_gb_per_s(bench, disk_bench_raw(bench, raw_path, true, 0));
        speeds->store_fresh[round] =
            disk_bench_gb_per_s(bench, disk_bench_run(bench, KVL_IO_STORE));
        for (uint32_t i = 0; i < BLOCKS; i++)
            bench->ios[i].record.key.bytes[31]++;
        speeds->store[round] = disk_bench_gb_per_s(bench, disk_bench_run(bench, KVL_IO_STORE));
        disk_bench_close(bench);
        good = good && bench->status == KVL_OK && disk_bench_open(bench, codec);
        if (!good)
            break;
        speeds->raw_read[round] =
            disk_bench_gb_per_s(bench, disk_bench_raw(bench, raw_path, false, 0));
        speeds->load[round] = disk_bench_gb_per_s(bench, disk_bench_run(bench, KVL_IO_LOAD));
        kvl_disk_tier_register_memory(bench->tier, bench->memory, bench->memory_bytes);
        speeds->load_fixed[round] = disk_bench_gb_per_s(bench, disk_bench_run(bench, KVL_IO_LOAD));
        disk_bench_close(bench);
        disk_bench_remove(bench->path);
    }
    unlink(raw_path);
    return good && bench->status == KVL_OK;
}

static void report_codec(struct disk_bench *bench, const char *codec, struct speeds *speeds) {
    char name[64];
    double read = bench_percentile(speeds->raw_read, ROUNDS, 0.5);
    double write = bench_percentile(speeds->raw_write, ROUNDS, 0.5);
    snprintf(name, sizeof(name), "disk load, %s", codec);
    bench_report_add(
        bench->report, name, bench_percentile(speeds->load, ROUNDS, 0.5), "GB/s", read);
    snprintf(name, sizeof(name), "disk load, %s, registered memory", codec);
    bench_report_add(
        bench->report, name, bench_percentile(speeds->load_fixed, ROUNDS, 0.5), "GB/s", read);
    snprintf(name, sizeof(name), "disk store, %s", codec);
    bench_report_add(
        bench->report, name, bench_percentile(speeds->store, ROUNDS, 0.5), "GB/s", write);
    snprintf(name, sizeof(name), "disk store, %s, new folder", codec);
    bench_report_add(
        bench->report, name, bench_percentile(speeds->store_fresh, ROUNDS, 0.5), "GB/s", write);
}

/* 10,000 blocks of 100 bytes, then the time from create to loaded. */
static bool measure_reload(struct disk_bench *bench) {
    static struct kvl_layout layout;
    if (kvl_layout_of_bytes(100, &layout) != KVL_OK || !disk_bench_open(bench, KVL_DISK_CODEC_RAW))
        return false;
    for (uint32_t done = 0; done < SMALL_BLOCKS; done += BLOCKS) {
        for (uint32_t i = 0; i < BLOCKS; i++) {
            uint32_t number = done + i;
            disk_bench_make_io(bench, i, &layout);
            memcpy(bench->ios[i].record.key.bytes + 4, &number, sizeof(number));
        }
        disk_bench_run(bench, KVL_IO_STORE);
    }
    disk_bench_close(bench);
    uint64_t since_ns = kvl_clock_ns();
    if (bench->status != KVL_OK || !disk_bench_open(bench, KVL_DISK_CODEC_RAW))
        return false;
    bench_report_add(bench->report, "disk start with 10,000 blocks",
        (double)(kvl_clock_ns() - since_ns) / 1e6, "ms", 100);
    disk_bench_close(bench);
    return true;
}

int kvl_bench_disk(const char *directory, struct bench_report *report) {
    struct disk_bench *bench = calloc(1, sizeof(*bench));
    struct kvl_geometry smollm2 = {
        .layers = 30, .kv_heads = 3, .k_dim = 64, .v_dim = 64, .block_tokens = 64};
    static struct speeds raw, zstd;
    bool good = bench != NULL;
    if (good && kvl_layout_of_geometry(&smollm2, KVL_DTYPE_F16, &bench->layout) == KVL_OK) {
        snprintf(bench->path, sizeof(bench->path), "%s/kvloft-bench-%d", directory, (int)getpid());
        bench->report = report;
        bench->blocks = BLOCKS;
        bench->capacity_bytes = 1ull << 30;
        bench->memory_bytes = (bench->layout.slot_bytes * BLOCKS + (2u << 20) - 1) >> 21 << 21;
        bench->memory = aligned_alloc(2u << 20, bench->memory_bytes);
        good = bench->memory != NULL;
    }
    if (good) {
        (void)madvise(bench->memory, bench->memory_bytes, MADV_HUGEPAGE);
        for (uint32_t i = 0; i < BLOCKS; i++)
            fill(bench, i);
        good = measure_codec(bench, KVL_DISK_CODEC_RAW, &raw) &&
               measure_codec(bench, KVL_DISK_CODEC_ZSTD, &zstd);
    }
    if (good) {
        report_codec(bench, "raw", &raw);
        report_codec(bench, "planes+zstd", &zstd);
        good = measure_reload(bench) && disk_bench_sizes(bench) && disk_bench_amplification(bench);
    }
    if (!good)
        fprintf(stderr, "kvl_bench_disk: failed: %s\n",
            bench == NULL ? "out of memory" : kvl_err_text(bench->status));
    if (bench != NULL) {
        disk_bench_remove(bench->path);
        free(bench->memory);
    }
    free(bench);
    return good ? 0 : 1;
}
