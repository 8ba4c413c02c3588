/* kvl_bench_ipc [--json]: see ipc_bench.h. */
#include "ipc_bench.h"

int main(int argc, char **argv) {
    static struct bench_report report;
    if (!ipc_bench_run(&report))
        return 1;
    return bench_report_print(&report, bench_wants_json(argc, argv));
}
