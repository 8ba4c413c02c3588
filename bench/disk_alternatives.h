/* disk_alternatives.h - the two usual ways to keep blocks on a disk, as limits for the tier:
 * payloads as values of LMDB, and one file a block. Both are as durable as the tier: synced once
 * for every 16 MiB. Neither checks what it reads. */
#ifndef KVL_BENCH_DISK_ALTERNATIVES_H
#define KVL_BENCH_DISK_ALTERNATIVES_H

#include <stdbool.h>
#include <stdint.h>

struct alternative_run {
    const char *folder; /* made and removed by the run */
    uint8_t *memory;    /* the blocks, one behind another */
    uint64_t block_bytes;
    uint32_t blocks;
    double store_seconds, retrieve_seconds; /* out; retrieved with a cold page cache */
};

bool alternative_lmdb(struct alternative_run *run);
bool alternative_files(struct alternative_run *run);

#endif
