/* ipc_bench.h - what asking the daemon costs, beside plain nanomsg messages of the same sizes. */
#ifndef KVL_IPC_BENCH_H
#define KVL_IPC_BENCH_H

#include "report.h"

/* Starts a daemon with 1,000 blocks in memory and a plain nanomsg peer, both processes of their
 * own, and times them in turns. False when something failed; one line on stderr says what. */
bool ipc_bench_run(struct bench_report *report);

#endif
