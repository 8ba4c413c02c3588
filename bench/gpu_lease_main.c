/* kvl_bench_gpu_lease [--device NAME] [--json]: a daemon on that device, "cuda" without a word. */
#include <string.h>

#include "gpu_lease.h"

int main(int argc, char **argv) {
    static struct bench_report report;
    struct bench_gpu_lease_options options = {.device = "cuda"};
    for (int i = 1; i + 1 < argc; i++)
        if (strcmp(argv[i], "--device") == 0)
            options.device = argv[i + 1];
    bench_gpu_lease(&options, &report);
    return bench_report_print(&report, bench_wants_json(argc, argv));
}
