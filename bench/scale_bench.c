/* scale_bench.c - what 10 million blocks on disk cost: the first answers after a start, RAM, and
 * a look-up of 1,000 of them, beside the same with 10,000 blocks.
 *
 *   kvl_bench_scale [--blocks N] [--json]
 *
 * The blocks are metadata only: rows of the index that name two-page records in sparse segment
 * files. The daemon makes the folder and the namespace, the index's own code writes the rows. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench_daemon.h"
#include "disk/disk_dir.h"
#include "disk/index.h"
#include "disk/segment.h"
#include "report.h"

#define FEW_BLOCKS 10000u
#define CHAIN 1000u
#define SAMPLES 400u
#define ROWS_PER_COMMIT (1u << 18)
#define RECORD_BYTES (2 * KVL_PAGE_BYTES)
#define DISK_BYTES_TEXT "160G"
#define DISK_BYTES (160ull << 30)

struct scale {
    struct bench_daemon daemon;
    struct kvl_disk_plan plan;
    uint32_t blocks;
    /* what was measured */
    double stats_ms, lookup_ms, miss_ms, alloc_ms, loaded_ms;
    double samples_us[SAMPLES];
    uint64_t anonymous_bytes;
};

static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Spread as SHA-256 would, and made again from the number alone. */
static void key_of(uint32_t number, struct kvl_key *key) {
    for (uint64_t i = 0; i < 4; i++) {
        uint64_t word = mix((4ull * number + i + 1) * 0x9e3779b97f4a7c15u);
        memcpy(key->bytes + 8 * i, &word, 8);
    }
}

/* ---- making the folder -------------------------------------------------------------------- */

static void make_namespace(struct scale *scale) {
    struct kvl_namespace_request request = {.block_bytes = KVL_PAGE_BYTES, .label = "scale"};
    struct kvl_namespace_info info;
    struct kvl_ticket ticket;
    struct kvl_progress progress;
    struct bench_daemon *daemon = &scale->daemon;
    bench_daemon_start(daemon);
    bench_daemon_connect(daemon);
    kvl_err err = kvl_key_of_opaque_namespace(
        "scale", KVL_PAGE_BYTES, (struct kvl_bytes){NULL, 0}, &request.key);
    if (err == KVL_OK)
        err = kvl_client_namespace(daemon->client, &request, &info);
    if (err == KVL_OK && info.id != 1)
        err = KVL_ERR_INVALID;
    if (err == KVL_OK)
        err = kvl_flush(daemon->client, &ticket);
    if (err == KVL_OK && ticket.generation)
        err = kvl_ticket_wait(daemon->client, ticket, UINT32_MAX, 60000, &progress);
    if (err != KVL_OK)
        bench_daemon_fail(daemon, "cannot make a namespace", err);
    bench_daemon_end(daemon, SIGTERM);
}

/* Rows go in by the order of their keys: LMDB is quickest so, and its map does not hold the copies
 * that large transactions all over the tree make. */
struct order {
    uint64_t head; /* of the key, as memcmp would sort it */
    uint32_t number;
};

static int by_head(const void *left, const void *right) {
    const struct order *a = left, *b = right;
    return (a->head > b->head) - (a->head < b->head);
}

static struct order *order_blocks(const struct scale *scale) {
    struct order *order = malloc(scale->blocks * sizeof(*order));
    for (uint32_t i = 0; order != NULL && i < scale->blocks; i++) {
        struct kvl_key key;
        uint64_t head;
        key_of(i, &key);
        memcpy(&head, key.bytes, sizeof head);
        order[i] = (struct order){__builtin_bswap64(head), i};
    }
    if (order != NULL)
        qsort(order, scale->blocks, sizeof(*order), by_head);
    return order;
}

static void row_of(const struct scale *scale, uint32_t number, struct kvl_index_op *op) {
    uint64_t per_segment = scale->plan.segment_bytes / RECORD_BYTES;
    *op = (struct kvl_index_op){.kind = KVL_INDEX_PUT};
    key_of(number, &op->block.record.key);
    op->block.record.namespace_id = 1;
    op->block.record.generation = number + 1u;
    op->block.record.content_hash = mix(number);
    op->block.location = kvl_location_make(
        (uint32_t)(number / per_segment) + 1, number % per_segment * RECORD_BYTES);
    op->block.stored_bytes = RECORD_BYTES;
    op->block.last_use_wall_ns = 1000000000ull * number;
    op->block.raw = true;
}

static kvl_err add_rows(struct scale *scale, struct kvl_index *index) {
    struct kvl_index_op *ops = malloc(ROWS_PER_COMMIT * sizeof(*ops));
    struct order *order = order_blocks(scale);
    kvl_err err = ops == NULL || order == NULL ? KVL_ERR_NOMEM : KVL_OK;
    for (uint32_t at = 0; at < scale->blocks && err == KVL_OK;) {
        uint32_t count = 0;
        for (; at < scale->blocks && count < ROWS_PER_COMMIT; at++)
            row_of(scale, order[at].number, &ops[count++]);
        err = kvl_index_commit(index, ops, count);
    }
    free(order);
    free(ops);
    return err;
}

static kvl_err add_segments(struct scale *scale, struct kvl_index *index) {
    uint64_t per_segment = scale->plan.segment_bytes / RECORD_BYTES;
    uint32_t segments = (uint32_t)((scale->blocks + per_segment - 1) / per_segment);
    kvl_err err = KVL_OK;
    for (uint32_t id = 1; id <= segments && err == KVL_OK; id++) {
        char path[400];
        snprintf(path, sizeof path, "%s/segments/%08u.seg", scale->daemon.disk_path, id);
        int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (fd < 0 || ftruncate(fd, (off_t)scale->plan.segment_bytes) != 0)
            err = KVL_ERR_IO;
        if (fd >= 0)
            close(fd);
        struct kvl_index_op op = {.kind = KVL_INDEX_SEGMENT_PUT,
            .segment = {.id = id, .bytes = scale->plan.segment_bytes, .generation = id}};
        if (err == KVL_OK)
            err = kvl_index_commit(index, &op, 1);
    }
    return err;
}

/* The next start finds the index on the disk, not in memory. */
static void forget_pages(const struct scale *scale) {
    char path[400];
    snprintf(path, sizeof path, "%s/index/data.mdb", scale->daemon.disk_path);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) != 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0)
        fputs("bench: the index stays in the page cache\n", stderr);
    if (fd >= 0)
        close(fd);
}

static void make_blocks(struct scale *scale) {
    char folder[400];
    struct kvl_index *index = NULL;
    struct kvl_errmsg msg = {""};
    make_namespace(scale);
    snprintf(folder, sizeof folder, "%s/index", scale->daemon.disk_path);
    kvl_err err = kvl_disk_plan_make(DISK_BYTES, &scale->plan, &msg);
    struct kvl_index_options options = {
        .directory = folder, .map_bytes = scale->plan.map_bytes, .expected = true};
    if (err == KVL_OK)
        err = kvl_index_open(&options, &index, &msg);
    if (err == KVL_OK)
        err = add_segments(scale, index);
    if (err == KVL_OK)
        err = add_rows(scale, index);
    kvl_index_close(index);
    if (err != KVL_OK)
        bench_daemon_fail(&scale->daemon, "cannot make the blocks", err);
    forget_pages(scale);
}

/* ---- measuring ---------------------------------------------------------------------------- */

static void make_chain(const struct scale *scale, uint64_t seed, struct kvl_key *keys) {
    for (uint32_t i = 0; i < CHAIN; i++)
        key_of((uint32_t)(mix((seed << 20) + i) % scale->blocks), &keys[i]);
}

/* A chain of which the first `known` blocks are on disk. */
static void look_up_some(struct scale *scale, uint64_t seed, uint32_t known) {
    static struct kvl_key keys[CHAIN];
    static uint8_t found[CHAIN];
    uint32_t hits = 0;
    make_chain(scale, seed, keys);
    for (uint32_t i = known; i < CHAIN; i++)
        key_of(scale->blocks + i, &keys[i]);
    double since_ms = bench_now_ms();
    kvl_err err = kvl_lookup(scale->daemon.client, keys, CHAIN, found, &hits);
    scale->samples_us[seed % SAMPLES] = (bench_now_ms() - since_ms) * 1e3;
    if (err == KVL_OK && hits != known)
        err = hits < known ? KVL_ERR_NOTFOUND : KVL_ERR_EXISTS;
    if (err != KVL_OK)
        bench_daemon_fail(&scale->daemon, "a look-up missed a block that is on disk", err);
}

static void look_up(struct scale *scale, uint64_t seed) {
    look_up_some(scale, seed, CHAIN);
}

static void allocate(struct scale *scale) {
    struct kvl_key key;
    struct kvl_allocated block = {0};
    struct kvl_ticket ticket;
    key_of(scale->blocks, &key);
    kvl_err err =
        kvl_alloc(scale->daemon.client, 1, KVL_TIER_DEVICE, &key, 1, false, &block, &ticket);
    if (err == KVL_OK && block.status != KVL_ALLOC_GRANTED)
        err = KVL_ERR_NOSPC;
    if (err != KVL_OK)
        bench_daemon_fail(&scale->daemon, "a new block was not allocated", err);
}

static void measure_start(struct scale *scale) {
    struct kvl_store_report report = {0};
    struct kvl_daemon_info info;
    struct bench_daemon *daemon = &scale->daemon;
    double since_ms = bench_now_ms();
    bench_daemon_start(daemon);
    bench_daemon_connect(daemon);
    kvl_err err = kvl_stats(daemon->client, &report, &info);
    scale->stats_ms = bench_now_ms() - since_ms;
    look_up(scale, SAMPLES);
    scale->lookup_ms = bench_now_ms() - since_ms;
    look_up_some(scale, SAMPLES + 1, CHAIN - 100);
    scale->miss_ms = bench_now_ms() - since_ms;
    allocate(scale);
    scale->alloc_ms = bench_now_ms() - since_ms;
    while (err == KVL_OK && !report.loaded) {
        usleep(1000);
        err = kvl_stats(daemon->client, &report, &info);
    }
    scale->loaded_ms = bench_now_ms() - since_ms;
    if (err == KVL_OK && report.blocks != scale->blocks)
        err = KVL_ERR_NOTFOUND;
    if (err != KVL_OK)
        bench_daemon_fail(daemon, "the daemon did not load every block", err);
    scale->anonymous_bytes = bench_process_bytes(daemon->pid, "RssAnon:");
}

static void measure(struct scale *scale, const char *name, uint32_t blocks) {
    scale->blocks = blocks;
    scale->daemon = (struct bench_daemon){
        .device_bytes = "16M", .host_bytes = "16M", .disk_bytes = DISK_BYTES_TEXT};
    bench_daemon_init(&scale->daemon, name);
    make_blocks(scale);
    measure_start(scale);
    for (uint64_t i = 0; i < SAMPLES; i++)
        look_up(scale, i);
    bench_daemon_deinit(&scale->daemon);
}

static void add(struct bench_report *report, const char *what, uint32_t blocks, double value,
    const char *unit, double limit) {
    char name[64];
    snprintf(name, sizeof name, "scale.%s, %u blocks", what, blocks);
    bench_report_add(report, name, value, unit, limit);
}

static void report_start(struct bench_report *report, const struct scale *scale) {
    add(report, "first_answer", scale->blocks, scale->stats_ms, "ms", 1000);
    add(report, "first_lookup_1000", scale->blocks, scale->lookup_ms, "ms", 1000);
    add(report, "first_miss", scale->blocks, scale->miss_ms, "ms", 0);
    add(report, "first_alloc", scale->blocks, scale->alloc_ms, "ms", 0);
    add(report, "loaded", scale->blocks, scale->loaded_ms, "ms", 0);
}

int main(int argc, char **argv) {
    static struct bench_report report;
    static struct scale few, many;
    long blocks = bench_blocks(argc, argv, 10000000);
    if (blocks <= (long)FEW_BLOCKS || blocks > 12000000) {
        fputs("kvl_bench_scale: --blocks is more than 10,000 and at most 12,000,000\n", stderr);
        return 2;
    }
    measure(&few, "few", FEW_BLOCKS);
    measure(&many, "many", (uint32_t)blocks);
    report_start(&report, &few);
    report_start(&report, &many);
    add(&report, "ram_per_block", many.blocks,
        (double)(many.anonymous_bytes - few.anonymous_bytes) / (many.blocks - few.blocks), "bytes",
        128);
    double limit_us = bench_percentile(few.samples_us, SAMPLES, 0.5);
    add(&report, "lookup_1000.p50", few.blocks, limit_us, "us", 0);
    add(&report, "lookup_1000.p50", many.blocks, bench_percentile(many.samples_us, SAMPLES, 0.5),
        "us", limit_us);
    return bench_report_print(&report, bench_wants_json(argc, argv));
}
