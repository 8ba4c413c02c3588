/* gpu_lease.h - what a daemon of its own does for an engine over ipc: leases of blocks that are in
 * the device tier already, and chains that come back to it from disk.
 *
 *   gpu.lease, 256 resident blocks   us a block, of one call that leases all of them: one request,
 *                                    one reply, nothing to wait for; limit 1 us
 *   gpu.ping                         us of a request and a reply that carry nothing, beside it
 *   gpu.disk to device, 1 MiB        GB/s from the call until the last block may be read, device
 *                                    and host tier being empty of them; the limit is the smaller of
 *                                    the link and what plain io_uring reads of that size reach
 *   gpu.disk, 1 MiB                  that latter figure, from a file beside the daemon's */
#ifndef KVL_BENCH_GPU_LEASE_H
#define KVL_BENCH_GPU_LEASE_H

#include <stdint.h>

#include "report.h"

struct bench_gpu_lease_options {
    const char *device;   /* as kvloftd takes it: "cuda:0", "cpu" */
    double link_gb_per_s; /* host to device; 0: not known, and then the disk alone is the limit */
    uint64_t chain_bytes; /* of what comes from disk; 0: 1 GiB. At least 256 MiB, whole 8 MiB */
};

/* Starts kvloftd, which stands beside this program, in a folder below the working directory; both
 * go in the end. Needs 5/4 of a chain in the device tier and in the host tier, and 4 chains on
 * disk. What fails ends the program, with one line on stderr and exit status 1. */
void bench_gpu_lease(const struct bench_gpu_lease_options *options, struct bench_report *report);

#endif
