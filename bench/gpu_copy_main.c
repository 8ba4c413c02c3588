/* kvl_bench_gpu_copy [--json]: blocks between GPU 0 and pinned host memory. */
#include <stdio.h>

#include "gpu_copy.h"

int main(int argc, char **argv) {
    static struct bench_report report;
    struct kvl_cuda_driver *driver = NULL;
    struct kvl_errmsg msg = {""};
    kvl_err err = kvl_cuda_driver_open(&driver, &msg);
    if (err == KVL_OK)
        err = bench_gpu_copy(driver, 0, &report, &msg);
    kvl_cuda_driver_close(driver);
    if (err != KVL_OK) {
        fprintf(stderr, "kvl_bench_gpu_copy: %s\n", msg.text);
        return 1;
    }
    return bench_report_print(&report, bench_wants_json(argc, argv));
}
