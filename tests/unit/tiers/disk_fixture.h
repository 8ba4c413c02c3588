/* disk_fixture.h - a disk tier in a folder of its own, and blocks whose bytes follow from a number.
 *
 * Content looks like a model's KV: f16 values, normally distributed, with a scale per channel. */
#ifndef KVL_DISK_FIXTURE_H
#define KVL_DISK_FIXTURE_H

#include <stdbool.h>
#include <stdint.h>

#include "disk/disk_tier.h"

#define FIXTURE_BLOCKS_MAX 4096u

struct disk_block {
    struct kvl_io io;
    struct kvl_layout layout;
    struct disk_fixture *fixture;
    uint64_t number;
    uint8_t *bytes; /* layout.slot_bytes, 4096-aligned */
    bool busy;
    kvl_err status;
    uint32_t frames; /* last frame_ready */
};

struct disk_found_block {
    struct kvl_block_record record;
    uint64_t location, stored_bytes;
    bool live;
};

struct disk_fixture {
    char path[256];
    struct kvl_tier *tier;
    struct kvl_catalog *catalog;
    struct kvl_disk_options options;
    struct kvl_errmsg msg;
    bool loaded;
    kvl_err loaded_status;
    struct disk_found_block found[FIXTURE_BLOCKS_MAX]; /* kept up to date by moved and lost */
    uint32_t found_count;
    uint32_t lost, moved, asked;
    uint64_t keep_below; /* keep() says true for blocks whose number is below */
    uint32_t catalog_found;
    char catalog_key[64];
    uint8_t catalog_value[256];
    uint32_t catalog_value_bytes;
};

/* A new folder under TMPDIR (or at), and options for it; creates no tier. */
void fixture_init(struct disk_fixture *fixture, uint64_t capacity_bytes, const char *at);
kvl_err fixture_open(struct disk_fixture *fixture);
/* Polls until loaded. */
void fixture_wait_loaded(struct disk_fixture *fixture);
/* Drains, if asked to, and ends the tier. */
void fixture_close(struct disk_fixture *fixture, bool drain);
void fixture_remove(struct disk_fixture *fixture);
/* Waits for the fd, a moment, and polls. */
void fixture_poll(struct disk_fixture *fixture);
/* The path of a file below the folder; static storage, until the next call. */
const char *fixture_path(const struct disk_fixture *fixture, const char *name);
/* A command of the shell, which must succeed. */
__attribute__((format(printf, 1, 2))) void fixture_shell(const char *format, ...);
/* Overwrites four bytes of a found block's record, of whose header the first 4,096 are. */
void fixture_damage(struct disk_fixture *fixture, uint64_t number, uint32_t offset_bytes);
/* As du counts: blocks of every file and folder. */
uint64_t fixture_disk_usage(const struct disk_fixture *fixture);

/* f16 geometry of so many layers, or opaque bytes. The same number gives the same bytes. */
void block_init_kv(struct disk_block *block, struct disk_fixture *fixture, uint64_t number,
    uint32_t layers, uint32_t kv_heads);
void block_init_bytes(
    struct disk_block *block, struct disk_fixture *fixture, uint64_t number, uint64_t bytes);
void block_free(struct disk_block *block);
/* Queues; polls through AGAIN. */
void block_begin(struct disk_block *block, enum kvl_io_op op);
kvl_err block_end(struct disk_block *block);
kvl_err block_do(struct disk_block *block, enum kvl_io_op op);
/* Clears the buffer, loads, and says whether the very bytes came back. */
bool block_load_same(struct disk_block *block, kvl_err *status);
/* The number a fixture's key was made of. */
uint64_t block_number_of(const struct kvl_key *key);
struct disk_found_block *fixture_find(struct disk_fixture *fixture, uint64_t number);
uint32_t fixture_live_count(const struct disk_fixture *fixture); /* of what was found or stored */
void fixture_discard(struct disk_fixture *fixture, uint64_t number); /* which must be there */
/* Waits until all is durable; what the flush ended with. */
kvl_err fixture_flush(struct disk_fixture *fixture);
void fixture_put(struct disk_fixture *fixture, const char *name, const char *value); /* a session */
#endif
