/* The contract over the tier of GPU memory, on the twin of its driver. */
#include <stdio.h>

#include "cuda_contract.h"
#include "cuda_twin.h"

int main(void) {
    struct cuda_twin *twin = cuda_twin_create(UINT64_C(64) << 20);
    if (twin == NULL)
        return 1;
    struct cuda_contract_options options = {.driver = cuda_twin_driver(twin),
        .staging_bytes = 768u << 10,
        .hash_threads = 2,
        .order_block_bytes = 65536,
        .schedules = 40};
    cuda_twin_set_delay(twin, 100000);
    int failed = cuda_contract_run(&options); /* frames are cut */
    options.staging_bytes = UINT64_C(6) << 20;
    options.copy_streams = 2;
    options.hash_threads = 10;
    failed += cuda_contract_run_own(&options); /* and are whole */
    const char *violation = cuda_twin_violation(twin);
    if (violation != NULL || cuda_twin_leaks(twin) != 0) {
        fprintf(stderr, "the driver was misused: %s; %u things were not given back\n",
            violation != NULL ? violation : "no", cuda_twin_leaks(twin));
        failed++;
    }
    cuda_twin_destroy(twin);
    return failed;
}
