/* kvl_bench_gpu_copy [--staging-mib N] [--copy-streams N] [--hash-threads N] [--json]: blocks
 * between GPU 0 and pinned host memory. What is not given is the tier's own choice. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu_copy.h"

/* The number behind a word, 0 without it. */
static uint32_t number(int argc, char **argv, const char *word) {
    for (int i = 1; i + 1 < argc; i++)
        if (strcmp(argv[i], word) == 0)
            return (uint32_t)strtoul(argv[i + 1], NULL, 10);
    return 0;
}

int main(int argc, char **argv) {
    static struct bench_report report;
    struct kvl_cuda_driver *driver = NULL;
    struct kvl_errmsg msg = {""};
    kvl_err err = kvl_cuda_driver_open(&driver, &msg);
    const struct bench_gpu_copy_options options = {.driver = driver,
        .staging_bytes = (uint64_t)number(argc, argv, "--staging-mib") << 20,
        .copy_streams = number(argc, argv, "--copy-streams"),
        .hash_threads = number(argc, argv, "--hash-threads")};
    if (err == KVL_OK)
        err = bench_gpu_copy(&options, &report, &msg);
    kvl_cuda_driver_close(driver);
    if (err != KVL_OK) {
        fprintf(stderr, "kvl_bench_gpu_copy: %s\n", msg.text);
        return 1;
    }
    return bench_report_print(&report, bench_wants_json(argc, argv));
}
