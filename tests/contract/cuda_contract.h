/* cuda_contract.h - the tier contract, and more, over the tier of GPU memory: on a real driver and
 * on its twin. */
#ifndef KVL_CUDA_CONTRACT_H
#define KVL_CUDA_CONTRACT_H

#include "device_cuda/cuda_driver.h"

struct cuda_contract_options {
    const struct kvl_cuda_driver *driver;
    uint64_t staging_bytes;
    uint32_t copy_streams, hash_threads;
    uint64_t order_block_bytes; /* so large that 301 of them take longer than being asked for */
    uint32_t schedules;         /* random ones */
    uint64_t seed;              /* 0: KVL_SEED from the environment, otherwise by the clock */
};

/* The suite of tier_contract.h, tests of HASH, and random schedules of store, load, hash, discard
 * and cancel, with buffers in pinned memory and others, every block's content checked. Returns how
 * many tests failed. */
int cuda_contract_run(const struct cuda_contract_options *options);
/* All but the suite of tier_contract.h. */
int cuda_contract_run_own(const struct cuda_contract_options *options);

#endif
