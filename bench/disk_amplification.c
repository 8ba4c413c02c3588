/* disk_amplification.c - bytes that this process wrote to the disk, LMDB's included, for bytes of
 * payload that were stored, once the tier is full.
 *
 * Like LRU: every block is new, and nothing is kept. Overwrites: blocks of a set that fills a
 * quarter or a half of the capacity are stored again in random order, and every one that is still
 * valid in a segment to be reclaimed is kept: the tier has to carry it over, and none may be lost.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "disk_bench_private.h"

#define CAPACITY_BYTES (256ull << 20)
#define BLOCK_BYTES (1ull << 20)
#define SET_BLOCKS_MAX 128u
#define FULL_BLOCKS 512u /* stored before anything is counted */
#define COUNTED_BLOCKS 1024u

static uint64_t written_bytes(void) {
    char line[128];
    unsigned long long bytes = 0;
    FILE *file = fopen("/proc/self/io", "re");
    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        if (sscanf(line, "write_bytes: %llu", &bytes) == 1)
            break;
    if (file != NULL)
        fclose(file);
    return bytes;
}

static bool keep_all(void *arg, const struct kvl_key *key) {
    (void)arg, (void)key;
    return true;
}

struct overwriter {
    uint64_t random, generation, lost;
    uint32_t set_blocks;                /* 0: every block is new */
    uint64_t locations[SET_BLOCKS_MAX]; /* 0: not there */
};

/* What the owner does when a block is sealed again: the older copy is discarded. */
static void name_block(struct disk_bench *bench, struct overwriter *writer, uint32_t i) {
    struct kvl_io *io = &bench->ios[i];
    disk_bench_make_io(bench, i, &bench->layout);
    io->record.generation = ++writer->generation;
    memset(io->record.key.bytes, 0, sizeof io->record.key.bytes);
    uint64_t name = writer->set_blocks > 0
                        ? disk_bench_random(&writer->random) % writer->set_blocks + 1
                        : writer->generation;
    memcpy(io->record.key.bytes, &name, sizeof name);
}

static void discard_older(struct disk_bench *bench, struct overwriter *writer, uint32_t i) {
    const struct kvl_io *io = &bench->ios[i];
    uint64_t name;
    memcpy(&name, io->record.key.bytes, sizeof name);
    uint64_t *location = &writer->locations[name - 1];
    if (*location != 0)
        bench->tier->ops->discard(bench->tier, &io->record.key, *location);
    *location = io->location;
}

static struct overwriter writer;

static void on_moved(void *arg, const struct kvl_key *key, uint64_t location) {
    uint64_t name;
    (void)arg;
    memcpy(&name, key->bytes, sizeof name);
    if (name >= 1 && name <= writer.set_blocks)
        writer.locations[name - 1] = location;
}

/* Then it is the older copy that goes. */
static bool is_being_stored(const struct disk_bench *bench, const struct kvl_key *key) {
    for (uint32_t i = 0; i < bench->blocks; i++)
        if (kvl_key_equal(&bench->ios[i].record.key, key))
            return true;
    return false;
}

static void on_lost(void *arg, const struct kvl_key *key, uint64_t location) {
    uint64_t name;
    memcpy(&name, key->bytes, sizeof name);
    if (name < 1 || name > writer.set_blocks || writer.locations[name - 1] != location)
        return;
    writer.lost += !is_being_stored(arg, key);
    writer.locations[name - 1] = 0;
}

static bool store_blocks(struct disk_bench *bench, uint32_t count) {
    for (uint32_t done = 0; done < count && bench->status == KVL_OK; done += bench->blocks) {
        for (uint32_t i = 0; i < bench->blocks; i++)
            name_block(bench, &writer, i);
        disk_bench_run(bench, KVL_IO_STORE);
        for (uint32_t i = 0; writer.set_blocks > 0 && i < bench->blocks; i++)
            discard_older(bench, &writer, i);
    }
    return bench->status == KVL_OK;
}

static bool measure(struct disk_bench *bench, const char *name, uint32_t set_blocks, double limit) {
    writer = (struct overwriter){.set_blocks = set_blocks};
    bench->keep = set_blocks > 0 ? keep_all : NULL;
    if (!disk_bench_open(bench, KVL_DISK_CODEC_RAW))
        return false;
    bench->tier->events.moved = on_moved;
    bench->tier->events.lost = on_lost;
    bool good = store_blocks(bench, FULL_BLOCKS);
    uint64_t before_bytes = written_bytes();
    good = good && store_blocks(bench, COUNTED_BLOCKS);
    uint64_t after_bytes = written_bytes();
    disk_bench_close(bench);
    disk_bench_remove(bench->path);
    bench_report_add(bench->report, name,
        (double)(after_bytes - before_bytes) / (COUNTED_BLOCKS * BLOCK_BYTES), "x", limit);
    if (set_blocks > 0)
        bench_report_add(
            bench->report, "  ... of which were lost", (double)writer.lost, "blocks", 0);
    return good && bench->status == KVL_OK;
}

bool disk_bench_amplification(struct disk_bench *bench) {
    if (kvl_layout_of_bytes(BLOCK_BYTES, &bench->layout) != KVL_OK)
        return false;
    bench->blocks = 16;
    bench->capacity_bytes = CAPACITY_BYTES;
    return measure(bench, "disk.write amplification, like LRU", 0, 1.1) &&
           measure(bench, "disk.write amplification, overwrites, 1/4 kept", 64, 1.5) &&
           measure(bench, "disk.write amplification, overwrites, 1/2 kept", 128, 1.5);
}
