/* disk_bench_main.c - kvl_bench_disk [DIRECTORY] [--json]. DIRECTORY: where to measure; "." */
#include <string.h>

#include "disk_bench.h"

int main(int argc, char **argv) {
    static struct bench_report report;
    const char *directory = ".";
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--json") != 0)
            directory = argv[i];
    }
    int status = kvl_bench_disk(directory, &report);
    return status != 0 ? status : bench_report_print(&report, bench_wants_json(argc, argv));
}
