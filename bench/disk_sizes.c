/* disk_sizes.c - raw blocks of 256 KiB to 8 MiB: verified reads and synced writes of the tier
 * beside plain io_uring at the same size and depth, and beside the two usual ways to keep blocks.
 * Reads are asked for all at once, as a restore does; the tier has as many at the disk as the raw
 * program at most, or 16 MiB.
 * Writes are measured twice: into new files, both reserved beforehand, which most file systems
 * write at half of what the disk can, and at the cap, where segments are recycled in place, beside
 * a file that was written before. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "disk_alternatives.h"
#include "disk_bench_private.h"

#define RUN_BYTES (160ull << 20)
#define ROUNDS 5u
#define GROUP_BYTES (16ull << 20) /* raw writes, with one flush; the tier: 32 MiB, with three */
#define CAP_BYTES (2ull << 30)
#define CAP_PASSES 3u /* over the blocks' memory, in a round at the cap */

struct speeds {
    double raw_read[ROUNDS], raw_write[ROUNDS], load[ROUNDS], store[ROUNDS];
    double raw_rewrite[ROUNDS], recycle[ROUNDS];
    double lmdb_store[ROUNDS], lmdb_load[ROUNDS], files_store[ROUNDS], files_load[ROUNDS];
};

/* The caller's memory, read into and written from, as arenas are. */
static bool tier_round(struct disk_bench *bench, struct speeds *speeds, uint32_t round) {
    if (!disk_bench_open(bench, KVL_DISK_CODEC_RAW))
        return false;
    kvl_disk_tier_register_memory(bench->tier, bench->memory, bench->memory_bytes);
    for (uint32_t i = 0; i < bench->blocks; i++)
        disk_bench_make_io(bench, i, &bench->layout);
    speeds->store[round] = disk_bench_gb_per_s(bench, disk_bench_run(bench, KVL_IO_STORE));
    speeds->load[round] = disk_bench_gb_per_s(bench, disk_bench_run(bench, KVL_IO_LOAD));
    disk_bench_close(bench);
    disk_bench_remove(bench->path);
    return bench->status == KVL_OK;
}

static bool raw_round(struct disk_bench *bench, struct speeds *speeds, uint32_t round) {
    char path[300];
    snprintf(path, sizeof path, "%s.raw", bench->path);
    bool good = disk_bench_make_fresh(path, bench->memory_bytes);
    if (good) {
        speeds->raw_write[round] =
            disk_bench_gb_per_s(bench, disk_bench_raw(bench, path, true, GROUP_BYTES));
        speeds->raw_read[round] = disk_bench_gb_per_s(bench, disk_bench_raw(bench, path, false, 0));
    }
    unlink(path);
    return good;
}

/* Long enough that its beginning and its end, when the disk waits, count little. */
static double store_new_blocks(struct disk_bench *bench, uint32_t *pass) {
    uint32_t blocks = bench->blocks;
    bench->blocks *= CAP_PASSES;
    ++*pass;
    for (uint32_t i = 0; i < bench->blocks; i++) {
        disk_bench_make_io(bench, i, &bench->layout);
        memcpy(bench->ios[i].record.key.bytes + 4, pass, sizeof *pass);
    }
    double seconds = disk_bench_run(bench, KVL_IO_STORE);
    bench->blocks = blocks;
    return seconds / CAP_PASSES;
}

static bool cap_round(struct disk_bench *bench, const char *raw_path, uint32_t *pass,
    struct speeds *speeds, uint32_t round) {
    double raw_seconds = 0;
    for (uint32_t i = 0; i < CAP_PASSES; i++)
        raw_seconds += disk_bench_raw(bench, raw_path, true, GROUP_BYTES) / CAP_PASSES;
    speeds->raw_rewrite[round] = disk_bench_gb_per_s(bench, raw_seconds);
    speeds->recycle[round] = disk_bench_gb_per_s(bench, store_new_blocks(bench, pass));
    return raw_seconds > 0 && bench->status == KVL_OK;
}

/* Every byte of both was written before the first round. */
static bool cap_rounds(struct disk_bench *bench, struct speeds *speeds) {
    char raw_path[300];
    uint32_t pass = 0;
    uint64_t capacity_bytes = bench->capacity_bytes;
    uint64_t pass_bytes = bench->layout.payload_bytes * bench->blocks * CAP_PASSES;
    snprintf(raw_path, sizeof raw_path, "%s.raw", bench->path);
    bench->capacity_bytes = CAP_BYTES;
    bool good = disk_bench_open(bench, KVL_DISK_CODEC_RAW);
    bench->capacity_bytes = capacity_bytes;
    if (!good)
        return false;
    kvl_disk_tier_register_memory(bench->tier, bench->memory, bench->memory_bytes);
    while (pass * pass_bytes < CAP_BYTES + pass_bytes)
        store_new_blocks(bench, &pass);
    good = disk_bench_make_fresh(raw_path, bench->memory_bytes) &&
           disk_bench_raw(bench, raw_path, true, GROUP_BYTES) > 0;
    for (uint32_t round = 0; good && round < ROUNDS; round++)
        good = cap_round(bench, raw_path, &pass, speeds, round);
    unlink(raw_path);
    disk_bench_close(bench);
    disk_bench_remove(bench->path);
    return good && bench->status == KVL_OK;
}

static bool alternative_round(struct disk_bench *bench, bool (*run_it)(struct alternative_run *run),
    double *store, double *load) {
    char folder[300];
    snprintf(folder, sizeof folder, "%s.other", bench->path);
    struct alternative_run run = {.folder = folder,
        .memory = bench->memory,
        .block_bytes = bench->layout.slot_bytes,
        .blocks = bench->blocks};
    bool good = run_it(&run);
    *store = disk_bench_gb_per_s(bench, run.store_seconds);
    *load = disk_bench_gb_per_s(bench, run.retrieve_seconds);
    disk_bench_remove(folder);
    return good;
}

static void add(struct disk_bench *bench, const char *what, double *values, double *limits) {
    char name[64];
    snprintf(name, sizeof name, "%s, %u KiB", what, (unsigned)(bench->layout.slot_bytes >> 10));
    bench_report_add(bench->report, name, bench_percentile(values, ROUNDS, 0.5), "GB/s",
        bench_percentile(limits, ROUNDS, 0.5));
}

static bool measure_size(struct disk_bench *bench, uint64_t block_bytes, bool alternatives) {
    static struct speeds speeds;
    if (kvl_layout_of_bytes(block_bytes, &bench->layout) != KVL_OK)
        return false;
    uint64_t bytes = RUN_BYTES < bench->memory_bytes ? RUN_BYTES : bench->memory_bytes;
    bench->blocks = (uint32_t)(bytes / block_bytes);
    if (bench->blocks > DISK_BENCH_BLOCKS_MAX / CAP_PASSES)
        bench->blocks = DISK_BENCH_BLOCKS_MAX / CAP_PASSES;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        if (!raw_round(bench, &speeds, round) || !tier_round(bench, &speeds, round))
            return false;
        if (alternatives && (!alternative_round(bench, alternative_lmdb, &speeds.lmdb_store[round],
                                 &speeds.lmdb_load[round]) ||
                                !alternative_round(bench, alternative_files,
                                    &speeds.files_store[round], &speeds.files_load[round])))
            return false;
    }
    if (!cap_rounds(bench, &speeds))
        return false;
    add(bench, "disk.read", speeds.load, speeds.raw_read);
    add(bench, "disk.write", speeds.store, speeds.raw_write);
    add(bench, "disk.write at the cap", speeds.recycle, speeds.raw_rewrite);
    if (alternatives) {
        add(bench, "disk.read vs LMDB values", speeds.load, speeds.lmdb_load);
        add(bench, "disk.write vs LMDB values", speeds.store, speeds.lmdb_store);
        add(bench, "disk.read vs file a block", speeds.load, speeds.files_load);
        add(bench, "disk.write vs file a block", speeds.store, speeds.files_store);
    }
    return true;
}

bool disk_bench_sizes(struct disk_bench *bench) {
    bool good = true;
    for (uint64_t bytes = 256ull << 10; bytes <= 8ull << 20 && good; bytes *= 2)
        good = measure_size(bench, bytes, bytes == 1ull << 20);
    return good;
}
