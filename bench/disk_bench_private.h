/* disk_bench_private.h - what the parts of the disk benchmark share: one tier in one folder, and
 * the same blocks by plain io_uring. */
#ifndef KVL_BENCH_DISK_PRIVATE_H
#define KVL_BENCH_DISK_PRIVATE_H

#include <stdbool.h>
#include <stdint.h>

#include "disk/disk_tier.h"
#include "disk_bench.h"

#define DISK_BENCH_BLOCKS_MAX 1536u
#define RAW_DEPTH 16u

struct disk_bench {
    char path[256];
    struct bench_report *report;
    struct kvl_tier *tier;
    struct kvl_catalog *catalog;
    struct kvl_layout layout;
    uint8_t *memory; /* the blocks' slots, on huge pages where there are any */
    uint64_t memory_bytes;
    uint64_t capacity_bytes;
    bool (*keep)(void *arg, const struct kvl_key *key); /* NULL: nothing is */
    uint32_t blocks; /* of a run, at most DISK_BENCH_BLOCKS_MAX */
    struct kvl_io ios[DISK_BENCH_BLOCKS_MAX];
    uint64_t pending;
    bool loaded;
    kvl_err status;
};

bool disk_bench_open(struct disk_bench *bench, enum kvl_disk_codec codec);
void disk_bench_close(struct disk_bench *bench);
void disk_bench_wait(struct disk_bench *bench);
void disk_bench_remove(const char *path);
uint64_t disk_bench_random(uint64_t *state);
/* Those that have no slot of their own in memory share one. */
void disk_bench_make_io(struct disk_bench *bench, uint32_t number, const struct kvl_layout *layout);
/* Seconds that all blocks took. */
double disk_bench_run(struct disk_bench *bench, enum kvl_io_op op);
bool disk_bench_make_fresh(const char *path, uint64_t bytes);
double disk_bench_raw(struct disk_bench *bench, const char *path, bool write, uint64_t group_bytes);
double disk_bench_gb_per_s(const struct disk_bench *bench, double seconds);

/* disk_sizes.c: blocks of 256 KiB to 8 MiB, against plain io_uring and against other ways. */
bool disk_bench_sizes(struct disk_bench *bench);
/* disk_amplification.c: what reaches the disk for what was stored, at the cap. */
bool disk_bench_amplification(struct disk_bench *bench);

#endif
