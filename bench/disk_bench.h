/* disk_bench.h - the disk tier against the disk itself, both measured in the same run. */
#ifndef KVL_BENCH_DISK_H
#define KVL_BENCH_DISK_H

#include "report.h"

/* Stores and restores the KV of 7.9k tokens of a SmolLM2-135M (124 blocks of 1,474,560 bytes, f16)
 * under directory, raw and compressed; the limits are io_uring with O_DIRECT at the same sizes.
 * Then the start with 10,000 blocks, raw blocks of 256 KiB to 8 MiB, payloads as LMDB values and as
 * one file a block beside the tier, and the write amplification at the cap. Needs 1 GiB there, and
 * removes what it made. Returns an exit status. */
int kvl_bench_disk(const char *directory, struct bench_report *report);

#endif
