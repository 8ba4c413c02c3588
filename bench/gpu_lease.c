/* gpu_lease.c - see gpu_lease.h.
 *
 * Blocks are written into the host tier, as an offloading engine does, so that no CUDA is needed
 * here. Their content is noise: what a codec could shrink would pass the disk faster than raw. */
#include "gpu_lease.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bench_daemon.h"
#include "disk_bench_private.h"

#define CHAIN_BYTES (UINT64_C(1) << 30)
#define RESIDENT_BLOCKS 256u
#define RESIDENT_BLOCK_BYTES (UINT64_C(1) << 20)
#define BLOCKS_MAX 4096u
#define BATCH 64u
#define LEASE_ROUNDS 201u
#define DISK_ROUNDS 5u
#define RAW_BYTES_MAX (UINT64_C(512) << 20)
#define HUGE_BYTES (UINT64_C(2) << 20)
#define WAIT_MS 120000u
#define LEASE_US_MAX 1.0

struct lease_bench {
    struct bench_daemon daemon;
    const struct bench_gpu_lease_options *options;
    struct bench_report *report;
    struct kvl_namespace_info ns;
    uint64_t chain_bytes, block_bytes;
    uint32_t blocks;
    struct kvl_key keys[BLOCKS_MAX];
    struct kvl_restored restored[BLOCKS_MAX];
    uint64_t leases[BLOCKS_MAX];
    struct disk_bench raw;
    char raw_path[300];
};

static void check(struct lease_bench *bench, const char *what, kvl_err err) {
    if (err != KVL_OK)
        bench_daemon_fail(&bench->daemon, what, err);
}

static void wait_for(struct lease_bench *bench, const char *what, struct kvl_ticket ticket) {
    struct kvl_progress progress = {.status = KVL_OK};
    if (ticket.generation == 0)
        return;
    check(
        bench, what, kvl_ticket_wait(bench->daemon.client, ticket, UINT32_MAX, WAIT_MS, &progress));
    check(bench, what, progress.status);
    check(bench, what, kvl_release(bench->daemon.client, NULL, 0, &ticket, 1));
}

/* ---- blocks --------------------------------------------------------------------------------- */

static uint64_t word_of(uint32_t number, uint64_t i) {
    uint64_t state = (uint64_t)number << 40 ^ i;
    return disk_bench_random(&state);
}

static void fill(uint8_t *block, uint64_t block_bytes, uint32_t number) {
    for (uint64_t i = 0; i < block_bytes / 8; i++) {
        const uint64_t word = word_of(number, i);
        memcpy(block + i * 8, &word, 8);
    }
}

static void open_namespace(struct lease_bench *bench, uint64_t block_bytes, uint32_t blocks) {
    struct kvl_namespace_request request = {.block_bytes = block_bytes, .label = "gpu lease"};
    bench->block_bytes = block_bytes;
    bench->blocks = blocks;
    check(bench, "cannot make a namespace key",
        kvl_key_of_opaque_namespace(
            "gpu lease", block_bytes, (struct kvl_bytes){NULL, 0}, &request.key));
    check(bench, "cannot open a namespace",
        kvl_client_namespace(bench->daemon.client, &request, &bench->ns));
}

/* One slot of the host tier, which may still be being touched, or written out to make room. */
static void allocate(
    struct lease_bench *bench, const struct kvl_key *key, struct kvl_allocated *slot) {
    const double end_ms = bench_now_ms() + WAIT_MS;
    struct kvl_ticket none;
    for (;;) {
        kvl_err err = kvl_alloc(
            bench->daemon.client, bench->ns.id, KVL_TIER_HOST, key, 1, false, slot, &none);
        if (err == KVL_OK && slot->status == KVL_ALLOC_GRANTED)
            return;
        if (err != KVL_OK && err != KVL_ERR_AGAIN)
            check(bench, "cannot allocate", err);
        if (bench_now_ms() > end_ms)
            check(bench, "the host tier gives no slot", KVL_ERR_NOSPC);
        usleep(2000);
    }
}

static void store_batch(struct lease_bench *bench, uint32_t first, uint32_t count) {
    struct kvl_client *client = bench->daemon.client;
    struct kvl_seal seals[BATCH] = {{0}};
    struct kvl_sealed sealed[BATCH];
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t number = first + i;
        struct kvl_allocated slot = {0};
        memcpy(seals[i].opaque_key, &number, sizeof number);
        check(bench, "cannot make a key",
            kvl_key_of_opaque(&bench->ns.key, seals[i].opaque_key, &bench->keys[number]));
        allocate(bench, &bench->keys[number], &slot);
        fill(kvl_client_block_writable(client, KVL_TIER_HOST, slot.offset_bytes),
            bench->block_bytes, number);
        seals[i].opaque = true;
        seals[i].lease = bench->leases[i] = slot.lease;
    }
    check(bench, "cannot seal", kvl_seal(client, seals, count, sealed));
    for (uint32_t i = 0; i < count; i++)
        check(bench, "cannot seal a block", sealed[i].status);
    check(bench, "cannot release", kvl_release(client, bench->leases, count, NULL, 0));
}

/* A chain of fresh blocks, durable. */
static void store(struct lease_bench *bench) {
    struct kvl_ticket ticket;
    for (uint32_t at = 0; at < bench->blocks; at += BATCH)
        store_batch(bench, at, bench->blocks - at < BATCH ? bench->blocks - at : BATCH);
    check(bench, "cannot flush", kvl_flush(bench->daemon.client, &ticket));
    wait_for(bench, "cannot flush", ticket);
}

static void clear(struct lease_bench *bench) {
    struct kvl_ticket ticket;
    check(bench, "cannot clear", kvl_clear(bench->daemon.client, KVL_CLEAR_ALL, 0, NULL, &ticket));
    wait_for(bench, "cannot clear", ticket);
}

/* Leases all of the chain in the device tier; the ticket is none when all of it was there. */
static struct kvl_ticket lease(struct lease_bench *bench) {
    struct kvl_restore_result result;
    check(bench, "cannot restore",
        kvl_restore(bench->daemon.client, KVL_TIER_DEVICE, bench->keys, bench->blocks,
            bench->restored, &result));
    if (result.count != bench->blocks)
        check(bench, "the chain does not fit the device tier, or is not whole", KVL_ERR_NOSPC);
    return result.ticket;
}

static void unlease(struct lease_bench *bench) {
    for (uint32_t i = 0; i < bench->blocks; i++)
        bench->leases[i] = bench->restored[i].lease;
    check(bench, "cannot release",
        kvl_release(bench->daemon.client, bench->leases, bench->blocks, NULL, 0));
}

/* Where the CPU can see it: each block's last word. */
static void check_content(struct lease_bench *bench) {
    const uint64_t last = bench->block_bytes / 8 - 1;
    for (uint32_t i = 0; i < bench->blocks; i++) {
        const uint8_t *block = kvl_client_block(
            bench->daemon.client, KVL_TIER_DEVICE, bench->restored[i].offset_bytes);
        const uint64_t word = word_of(i, last);
        if (block != NULL && memcmp(block + last * 8, &word, 8) != 0)
            check(bench, "a block came back with other content", KVL_ERR_CORRUPT);
    }
}

/* ---- leases --------------------------------------------------------------------------------- */

static void measure_leases(struct lease_bench *bench) {
    static double lease_us[LEASE_ROUNDS], ping_us[LEASE_ROUNDS];
    open_namespace(bench, RESIDENT_BLOCK_BYTES, RESIDENT_BLOCKS);
    store(bench);
    wait_for(bench, "cannot restore", lease(bench));
    check_content(bench);
    unlease(bench);
    for (uint32_t round = 0; round < LEASE_ROUNDS; round++) {
        double since_ms = bench_now_ms();
        check(bench, "cannot ping", kvl_ping(bench->daemon.client, 0));
        const double pinged_ms = bench_now_ms();
        const struct kvl_ticket ticket = lease(bench);
        lease_us[round] = (bench_now_ms() - pinged_ms) * 1e3 / RESIDENT_BLOCKS;
        ping_us[round] = (pinged_ms - since_ms) * 1e3;
        if (ticket.generation != 0)
            check(bench, "a resident chain has to be waited for", KVL_ERR_AGAIN);
        unlease(bench);
    }
    bench_report_add(bench->report, "gpu.lease, 256 resident blocks",
        bench_percentile(lease_us, LEASE_ROUNDS, 0.5), "us/block", LEASE_US_MAX);
    bench_report_add(
        bench->report, "gpu.ping", bench_percentile(ping_us, LEASE_ROUNDS, 0.5), "us", 0);
    clear(bench);
}

/* ---- from disk ------------------------------------------------------------------------------ */

static void raw_open(struct lease_bench *bench) {
    struct disk_bench *raw = &bench->raw;
    check(bench, "a block size", kvl_layout_of_bytes(bench->block_bytes, &raw->layout));
    raw->memory_bytes = bench->chain_bytes < RAW_BYTES_MAX ? bench->chain_bytes : RAW_BYTES_MAX;
    raw->blocks = (uint32_t)(raw->memory_bytes / bench->block_bytes);
    raw->memory = aligned_alloc(HUGE_BYTES, raw->memory_bytes);
    if (raw->memory == NULL)
        check(bench, "memory for raw reads", KVL_ERR_NOMEM);
    (void)madvise(raw->memory, raw->memory_bytes, MADV_HUGEPAGE); /* as the daemon's arenas */
    for (uint32_t i = 0; i < raw->blocks; i++)
        fill(raw->memory + i * bench->block_bytes, bench->block_bytes, i);
    snprintf(bench->raw_path, sizeof bench->raw_path, "%s/raw", bench->daemon.folder);
    if (!disk_bench_make_fresh(bench->raw_path, raw->memory_bytes) ||
        disk_bench_raw(raw, bench->raw_path, true, 0) <= 0)
        check(bench, "cannot write a file with O_DIRECT and io_uring", KVL_ERR_UNSUPPORTED);
}

static void raw_close(struct lease_bench *bench) {
    unlink(bench->raw_path);
    free(bench->raw.memory);
    bench->raw.memory = NULL;
}

static double raw_round(struct lease_bench *bench) {
    const double speed =
        disk_bench_gb_per_s(&bench->raw, disk_bench_raw(&bench->raw, bench->raw_path, false, 0));
    if (speed <= 0)
        check(bench, "cannot read a file", KVL_ERR_IO);
    return speed;
}

/* GB/s, from disk alone. */
static double restore_round(struct lease_bench *bench) {
    struct kvl_client *client = bench->daemon.client;
    struct kvl_ticket ticket;
    check(bench, "cannot demote",
        kvl_demote(client, KVL_TIER_DISK, bench->keys, bench->blocks, &ticket));
    wait_for(bench, "cannot demote", ticket);
    const double since_ms = bench_now_ms();
    wait_for(bench, "cannot restore", lease(bench));
    const double took_ms = bench_now_ms() - since_ms;
    for (uint32_t i = 0; i < bench->blocks; i++)
        if (bench->restored[i].found_tier != KVL_TIER_DISK)
            check(bench, "a block was still in memory", KVL_ERR_EXISTS);
    check_content(bench);
    unlease(bench);
    return (double)(bench->block_bytes * bench->blocks) / took_ms / 1e6;
}

static void report_disk(struct lease_bench *bench, double restored, double raw) {
    const double link = bench->options->link_gb_per_s;
    const unsigned mib = (unsigned)(bench->block_bytes >> 20);
    char name[64];
    snprintf(name, sizeof name, "gpu.disk to device, %u MiB", mib);
    bench_report_add(bench->report, name, restored, "GB/s", link > 0 && link < raw ? link : raw);
    snprintf(name, sizeof name, "gpu.disk, %u MiB", mib);
    bench_report_add(bench->report, name, raw, "GB/s", 0);
}

/* By turns, so that both see the same weather. */
static void measure_disk(struct lease_bench *bench, uint64_t block_bytes) {
    double restored[DISK_ROUNDS], raw[DISK_ROUNDS];
    open_namespace(bench, block_bytes, (uint32_t)(bench->chain_bytes / block_bytes));
    store(bench);
    raw_open(bench);
    for (uint32_t round = 0; round < DISK_ROUNDS; round++) {
        raw[round] = raw_round(bench);
        restored[round] = restore_round(bench);
    }
    raw_close(bench);
    report_disk(bench, bench_percentile(restored, DISK_ROUNDS, 0.5),
        bench_percentile(raw, DISK_ROUNDS, 0.5));
    clear(bench);
}

/* ---- all of it ------------------------------------------------------------------------------ */

static const char *bytes_text(char *text, size_t text_bytes, uint64_t bytes) {
    snprintf(text, text_bytes, "%" PRIu64, bytes);
    return text;
}

void bench_gpu_lease(const struct bench_gpu_lease_options *options, struct bench_report *report) {
    static struct lease_bench bench;
    char memory[24], disk[24];
    bench = (struct lease_bench){.options = options,
        .report = report,
        .chain_bytes = options->chain_bytes != 0 ? options->chain_bytes : CHAIN_BYTES};
    bench_daemon_init(&bench.daemon, "gpu");
    bytes_text(memory, sizeof memory, bench.chain_bytes / 4 * 5 + (UINT64_C(64) << 20));
    bench.daemon.device = options->device;
    bench.daemon.device_bytes = bench.daemon.host_bytes = memory;
    bench.daemon.disk_bytes = bytes_text(disk, sizeof disk, 4 * bench.chain_bytes);
    bench_daemon_start(&bench.daemon);
    bench_daemon_connect(&bench.daemon);
    measure_leases(&bench);
    measure_disk(&bench, UINT64_C(1) << 20);
    measure_disk(&bench, UINT64_C(8) << 20);
    bench_daemon_end(&bench.daemon, SIGTERM);
    bench_daemon_deinit(&bench.daemon);
}
