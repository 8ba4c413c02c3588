/* host_bench.c - host tier, the offload way, one thread: a caller with KV memory of its own stores
 * blocks (alloc, copy in, release) and gets them back (restore, copy out, release).
 *
 *   kvl_bench_host [--json]
 *
 * Limit: the best copy of blocks of that size between two huge-page buffers of the caller's, memcpy
 * (reported beside it) or kvl_copy_block. Rounds alternate, medians count. The seal, and the
 * hashing behind it, are reported apart. */
#include <assert.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench_daemon.h"
#include "report.h"

#define ROUND_BYTES (128ull << 20)
#define BLOCKS_MAX 512u
#define ROUNDS 9u
#define SPREAD_BYTES (2ull << 20)

struct host {
    struct bench_daemon daemon;
    struct kvl_namespace_info ns;
    uint64_t block_bytes;
    uint32_t blocks;
    uint32_t round;
    uint32_t named;        /* keys made so far */
    uint8_t *mine, *other; /* ROUND_BYTES each */
    struct kvl_key keys[BLOCKS_MAX];
    struct kvl_seal seals[BLOCKS_MAX];
    uint64_t leases[BLOCKS_MAX];
    uint64_t offsets[BLOCKS_MAX];
    double copy[ROUNDS], stream[ROUNDS], store[ROUNDS], retrieve[ROUNDS], seal[ROUNDS],
        visible[ROUNDS];
};

static void check(struct host *host, const char *what, kvl_err err) {
    if (err != KVL_OK)
        bench_daemon_fail(&host->daemon, what, err);
}

static double gb_per_s(const struct host *host, double ms) {
    return (double)(host->block_bytes * host->blocks) / ms / 1e6;
}

static uint8_t *map_buffer(void) {
    uint8_t *at = aligned_alloc(SPREAD_BYTES, ROUND_BYTES);
    if (at != NULL) {
        (void)madvise(at, ROUND_BYTES, MADV_HUGEPAGE);
        memset(at, 1, ROUND_BYTES);
    }
    return at;
}

static void open_namespace(struct host *host) {
    struct kvl_namespace_request request = {.block_bytes = host->block_bytes, .label = "host"};
    check(host, "cannot make a namespace key",
        kvl_key_of_opaque_namespace(
            "host", host->block_bytes, (struct kvl_bytes){NULL, 0}, &request.key));
    check(host, "cannot open a namespace",
        kvl_client_namespace(host->daemon.client, &request, &host->ns));
}

/* Slots for a round; waits while the arena is still being touched. */
static double allocate(struct host *host) {
    static struct kvl_allocated slots[BLOCKS_MAX];
    struct kvl_ticket none;
    kvl_err err = KVL_ERR_AGAIN;
    double since_ms = 0;
    while (err == KVL_ERR_AGAIN) {
        since_ms = bench_now_ms();
        err = kvl_alloc(host->daemon.client, host->ns.id, KVL_TIER_HOST, host->keys, host->blocks,
            false, slots, &none);
        if (err == KVL_ERR_AGAIN)
            usleep(10000);
    }
    check(host, "cannot allocate", err);
    for (uint32_t i = 0; i < host->blocks; i++) {
        if (slots[i].status != KVL_ALLOC_GRANTED)
            check(host, "the host tier is full", KVL_ERR_NOSPC);
        host->leases[i] = host->seals[i].lease = slots[i].lease;
        host->offsets[i] = slots[i].offset_bytes;
    }
    return since_ms;
}

static void release(struct host *host) {
    check(host, "cannot release",
        kvl_release(host->daemon.client, host->leases, host->blocks, NULL, 0));
}

static void name_blocks(struct host *host) {
    for (uint32_t i = 0; i < host->blocks; i++) {
        uint32_t number = host->named++;
        host->seals[i] = (struct kvl_seal){.opaque = true};
        memcpy(host->seals[i].opaque_key, &number, sizeof number);
        check(host, "cannot make a key",
            kvl_key_of_opaque(&host->ns.key, host->seals[i].opaque_key, &host->keys[i]));
    }
}

static void wait_visible(struct host *host) {
    static uint8_t found[BLOCKS_MAX];
    uint32_t hits = 0;
    while (hits < host->blocks)
        check(host, "cannot look up",
            kvl_lookup(host->daemon.client, host->keys, host->blocks, found, &hits));
}

static void store_round(struct host *host) {
    static struct kvl_sealed sealed[BLOCKS_MAX];
    struct kvl_client *client = host->daemon.client;
    name_blocks(host);
    double since_ms = allocate(host);
    for (uint32_t i = 0; i < host->blocks; i++)
        kvl_copy_block(kvl_client_block_writable(client, KVL_TIER_HOST, host->offsets[i]),
            host->mine + i * host->block_bytes, host->block_bytes);
    double copied_ms = bench_now_ms();
    check(host, "cannot seal", kvl_seal(client, host->seals, host->blocks, sealed));
    double sealed_ms = bench_now_ms();
    release(host);
    double end_ms = bench_now_ms();
    wait_visible(host);
    host->store[host->round] = gb_per_s(host, end_ms - sealed_ms + copied_ms - since_ms);
    host->seal[host->round] = (sealed_ms - copied_ms) * 1e3 / host->blocks;
    host->visible[host->round] = gb_per_s(host, bench_now_ms() - copied_ms);
}

static void retrieve_round(struct host *host) {
    static struct kvl_restored blocks[BLOCKS_MAX];
    struct kvl_client *client = host->daemon.client;
    struct kvl_restore_result result;
    double since_ms = bench_now_ms();
    check(host, "cannot restore",
        kvl_restore(client, KVL_TIER_HOST, host->keys, host->blocks, blocks, &result));
    if (result.count != host->blocks || result.ticket.generation != 0)
        check(host, "blocks of the host tier are gone", KVL_ERR_NOTFOUND);
    for (uint32_t i = 0; i < host->blocks; i++) {
        kvl_copy_block(host->other + i * host->block_bytes,
            kvl_client_block(client, KVL_TIER_HOST, blocks[i].offset_bytes), host->block_bytes);
        host->leases[i] = blocks[i].lease;
    }
    release(host);
    host->retrieve[host->round] = gb_per_s(host, bench_now_ms() - since_ms);
    if (memcmp(host->mine, host->other, ROUND_BYTES) != 0)
        check(host, "what came back is not what was stored", KVL_ERR_CORRUPT);
}

static void by_memcpy(void *to, const void *from, uint64_t bytes) {
    memcpy(to, from, bytes);
}

static double copy_speed(
    struct host *host, void (*copy)(void *to, const void *from, uint64_t bytes)) {
    double since_ms = bench_now_ms();
    for (uint32_t i = 0; i < host->blocks; i++)
        copy(host->other + i * host->block_bytes, host->mine + i * host->block_bytes,
            host->block_bytes);
    return gb_per_s(host, bench_now_ms() - since_ms);
}

static void copy_round(struct host *host) {
    host->copy[host->round] = copy_speed(host, by_memcpy);
    host->stream[host->round] = copy_speed(host, kvl_copy_block);
}

static void add(struct host *host, struct bench_report *report, const char *what, double *values,
    const char *unit, double limit) {
    char name[64];
    snprintf(name, sizeof name, "host.%s, %u KiB", what, (unsigned)(host->block_bytes >> 10));
    bench_report_add(report, name, bench_percentile(values, ROUNDS, 0.5), unit, limit);
}

/* The first rounds map the arena's pages; they do not count. */
static void measure(struct host *host, uint64_t block_bytes, struct bench_report *report) {
    assert(host->mine != NULL); /* main has seen to that */
    host->block_bytes = block_bytes;
    host->blocks = (uint32_t)(ROUND_BYTES / block_bytes);
    open_namespace(host);
    for (uint32_t warm = 0; warm < 3; warm++) {
        for (host->round = 0; host->round < ROUNDS; host->round++) {
            memset(host->mine, (int)(warm * ROUNDS + host->round), ROUND_BYTES);
            if (host->round % 2 == 0)
                copy_round(host);
            store_round(host);
            retrieve_round(host);
            if (host->round % 2 == 1)
                copy_round(host);
        }
    }
    double plain = bench_percentile(host->copy, ROUNDS, 0.5);
    double streamed = bench_percentile(host->stream, ROUNDS, 0.5);
    double limit = plain > streamed ? plain : streamed;
    add(host, report, "store", host->store, "GB/s", limit);
    add(host, report, "retrieve", host->retrieve, "GB/s", limit);
    add(host, report, "memcpy", host->copy, "GB/s", limit);
    add(host, report, "seal", host->seal, "us/block", 0);
    add(host, report, "seal until visible", host->visible, "GB/s", 0);
}

int main(int argc, char **argv) {
    static struct bench_report report;
    static struct host host = {.daemon = {.device_bytes = "16M", .host_bytes = "640M"}};
    static const uint64_t sizes[] = {256ull << 10, 1ull << 20, 4ull << 20, 8ull << 20};
    host.mine = map_buffer();
    host.other = map_buffer();
    if (host.mine == NULL || host.other == NULL) {
        fputs("kvl_bench_host: out of memory: it needs 1 GiB\n", stderr);
        return 1;
    }
    bench_daemon_init(&host.daemon, "host");
    bench_daemon_start(&host.daemon);
    bench_daemon_connect(&host.daemon);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        measure(&host, sizes[i], &report);
    bench_daemon_deinit(&host.daemon);
    free(host.mine);
    free(host.other);
    return bench_report_print(&report, bench_wants_json(argc, argv));
}
