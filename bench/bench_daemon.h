/* bench_daemon.h - a kvloftd of one's own in a folder of its own, for benchmarks from outside.
 *
 * What fails ends the program: one line on stderr, the daemon killed, exit 1. */
#ifndef KVL_BENCH_DAEMON_H
#define KVL_BENCH_DAEMON_H

#include <stdint.h>
#include <sys/types.h>

#include "kvloft.h"

struct bench_daemon {
    char folder[256];  /* absolute; holds socket and disk */
    char address[300]; /* ipc:// */
    char disk_path[300];
    char program[4400];
    const char *device; /* NULL: cpu */
    const char *device_bytes, *host_bytes;
    const char *disk_bytes; /* NULL: no disk tier */
    pid_t pid;              /* 0: none */
    struct kvl_client *client;
};

/* Makes the folder below the working directory and finds kvloftd beside this program. */
void bench_daemon_init(struct bench_daemon *daemon, const char *name);
void bench_daemon_start(struct bench_daemon *daemon);
/* Connects, waiting up to 20 seconds for somebody to listen. */
void bench_daemon_connect(struct bench_daemon *daemon);
/* Closes the client and ends the daemon with the signal. */
void bench_daemon_end(struct bench_daemon *daemon, int signal);
/* bench_daemon_end, and the folder goes. */
void bench_daemon_deinit(struct bench_daemon *daemon);
/* A line of /proc/PID/status in bytes, e.g. "RssAnon:". */
uint64_t bench_process_bytes(pid_t pid, const char *line);
__attribute__((noreturn)) void bench_daemon_fail(
    struct bench_daemon *daemon, const char *what, kvl_err err);

double bench_now_ms(void);

#endif
