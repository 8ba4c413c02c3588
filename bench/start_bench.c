/* start_bench.c - how long after its start a daemon with many blocks on disk gives its first right
 * answer: from fork to a lookup that finds a block, after SIGKILL.
 *
 *   kvl_bench_start [--blocks N] [--json]
 *
 * Limit: 100 ms. Beside it: starting a process that does nothing (fork, exec, exit). */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bench_daemon.h"
#include "report.h"

enum { BLOCK_BYTES = 4096, BATCH = 256, RUNS = 7 };

struct bench {
    struct bench_daemon daemon;
    struct kvl_namespace_info ns;
};

static void open_namespace(struct bench *bench) {
    struct kvl_namespace_request request = {.block_bytes = BLOCK_BYTES, .label = "start bench"};
    kvl_err err = kvl_key_of_opaque_namespace(
        "start bench", BLOCK_BYTES, (struct kvl_bytes){NULL, 0}, &request.key);
    if (err == KVL_OK)
        err = kvl_client_namespace(bench->daemon.client, &request, &bench->ns);
    if (err != KVL_OK)
        bench_daemon_fail(&bench->daemon, "cannot open a namespace", err);
}

static void number_key(uint32_t number, uint8_t key[32]) {
    memset(key, 0, 32);
    memcpy(key, &number, sizeof number);
}

static void store_batch(struct bench *bench, uint32_t first, uint32_t count) {
    static const struct kvl_key unknown[BATCH];
    struct kvl_allocated slots[BATCH];
    struct kvl_seal seals[BATCH];
    struct kvl_sealed sealed[BATCH];
    uint64_t leases[BATCH];
    struct kvl_ticket none = {0, 0};
    kvl_err err = kvl_alloc(
        bench->daemon.client, bench->ns.id, KVL_TIER_HOST, unknown, count, false, slots, &none);
    if (err != KVL_OK)
        bench_daemon_fail(&bench->daemon, "cannot allocate", err);
    memset(seals, 0, sizeof seals);
    for (uint32_t i = 0; i < count; i++) {
        if (slots[i].status != KVL_ALLOC_GRANTED) {
            usleep(2000); /* memory is still being touched */
            kvl_err again = kvl_alloc(bench->daemon.client, bench->ns.id, KVL_TIER_HOST, unknown, 1,
                false, &slots[i], &none);
            if (again != KVL_OK)
                bench_daemon_fail(&bench->daemon, "cannot allocate", again);
            if (slots[i].status != KVL_ALLOC_GRANTED) {
                i--;
                continue;
            }
        }
        uint8_t *block =
            kvl_client_block_writable(bench->daemon.client, KVL_TIER_HOST, slots[i].offset_bytes);
        memset(block, (int)(first + i), BLOCK_BYTES);
        seals[i].lease = leases[i] = slots[i].lease;
        seals[i].opaque = true;
        number_key(first + i, seals[i].opaque_key);
    }
    err = kvl_seal(bench->daemon.client, seals, count, sealed);
    if (err == KVL_OK)
        err = kvl_release(bench->daemon.client, leases, count, NULL, 0);
    if (err != KVL_OK)
        bench_daemon_fail(&bench->daemon, "cannot seal", err);
}

static void fill(struct bench *bench, uint32_t blocks) {
    struct kvl_ticket ticket;
    struct kvl_progress progress;
    bench_daemon_start(&bench->daemon);
    bench_daemon_connect(&bench->daemon);
    open_namespace(bench);
    for (uint32_t at = 0; at < blocks; at += BATCH)
        store_batch(bench, at, blocks - at < BATCH ? blocks - at : BATCH);
    kvl_err err = kvl_flush(bench->daemon.client, &ticket);
    if (err == KVL_OK && ticket.generation)
        err = kvl_ticket_wait(bench->daemon.client, ticket, UINT32_MAX, 60000, &progress);
    if (err != KVL_OK)
        bench_daemon_fail(&bench->daemon, "cannot flush", err);
}

/* Milliseconds from fork to a lookup that finds the last block stored. */
static double start_once(struct bench *bench, uint32_t blocks) {
    struct kvl_key key;
    uint8_t opaque[32], found = 0;
    uint32_t hits = 0;
    number_key(blocks - 1, opaque);
    kvl_err err = kvl_key_of_opaque(&bench->ns.key, opaque, &key);
    double start = bench_now_ms();
    bench_daemon_start(&bench->daemon);
    bench_daemon_connect(&bench->daemon);
    while (err == KVL_OK || err == KVL_ERR_AGAIN) {
        err = kvl_lookup(bench->daemon.client, &key, 1, &found, &hits);
        if (err == KVL_OK)
            break;
    }
    double took = bench_now_ms() - start;
    if (err != KVL_OK || hits != 1)
        bench_daemon_fail(&bench->daemon, "the first lookup missed a block that was durable", err);
    return took;
}

static double plain_start(void) {
    double start = bench_now_ms();
    pid_t child = fork();
    if (child == 0) {
        execl("/bin/true", "true", (char *)NULL);
        _exit(127);
    }
    waitpid(child, NULL, 0);
    return bench_now_ms() - start;
}

int main(int argc, char **argv) {
    struct bench bench = {
        .daemon = {.device_bytes = "16M", .host_bytes = "128M", .disk_bytes = "512M"}};
    static struct bench_report report;
    double starts[RUNS], plain[RUNS];
    char name[64];
    long blocks = bench_blocks(argc, argv, 10000);
    if (blocks < 1 || blocks > 1000000) {
        fputs("kvl_bench_start: --blocks is 1 to 1,000,000\n", stderr);
        return 2;
    }
    bench_daemon_init(&bench.daemon, "start");
    fill(&bench, (uint32_t)blocks);
    for (int run = 0; run < RUNS; run++) {
        bench_daemon_end(&bench.daemon, SIGKILL);
        starts[run] = start_once(&bench, (uint32_t)blocks);
        plain[run] = plain_start();
    }
    bench_daemon_deinit(&bench.daemon);
    snprintf(name, sizeof name, "first right answer, %ld blocks on disk", blocks);
    bench_report_add(&report, name, bench_percentile(starts, RUNS, 0.5), "ms", 100.0);
    bench_report_add(
        &report, "a process that does nothing", bench_percentile(plain, RUNS, 0.5), "ms", 0.0);
    return bench_report_print(&report, bench_wants_json(argc, argv));
}
