/* cuda_tier_fixture.h - a tier of GPU memory on the twin of its driver, and blocks that go there
 * and back. The calling test fails when what should succeed does not. */
#ifndef KVL_CUDA_TIER_FIXTURE_H
#define KVL_CUDA_TIER_FIXTURE_H

#include <stdatomic.h>
#include <stdint.h>

#include "cuda_twin.h"
#include "device_cuda/cuda_tier.h"

#define MIB (UINT64_C(1) << 20)
#define PIECE_BYTES 65536u
#define STAGING_BYTES (12 * PIECE_BYTES)
#define PIECES 6u
#define PIN_BYTES (MIB + 12288) /* ends in the midst of blocks, and of frames */
#define BLOCKS_MAX 64u
#define COPIES_MAX 4096u
#define LARGE_BYTES (8 * MIB)

struct block {
    struct kvl_io io;
    struct fixture *fixture;
    uint64_t right_hash;
    uint32_t completions;
    uint32_t completed_as;
    uint32_t frames;
};

struct fixture {
    struct cuda_twin *twin;
    struct kvl_tier *tier;
    struct kvl_log *log;
    atomic_uint lost_lines, open_lines, fallback_lines; /* counted on the driver thread */
    struct kvl_layout small;                            /* one frame of 8 KiB */
    struct kvl_layout layers;                           /* four frames of 256 KiB */
    uint8_t *host;                                      /* the buffers: a slot of `layers` each */
    uint64_t host_bytes;
    uint8_t *arena; /* the device's memory as an engine maps it */
    uint32_t completed;
    struct block blocks[BLOCKS_MAX];
};

extern uint32_t fixture_driver_threads; /* of tiers that are made from now on; 0: the default */

/* For cmocka: *state becomes the fixture. The impatient one gives a lost device 1 ms. */
int fixture_setup(void **state);
int fixture_setup_impatient(void **state);
int fixture_teardown(void **state); /* and that the driver was not misused */
void make_tier(struct fixture *fixture, uint64_t staging_bytes, uint32_t hash_threads);

void fill_bytes(uint8_t *at, uint64_t bytes, uint32_t number);
/* With a slot and its content in the buffer. */
struct block *make_block(struct fixture *fixture, uint32_t number, const struct kvl_layout *layout);
void submit_io(struct block *block, enum kvl_io_op op, enum kvl_io_priority priority);
void poll_once(struct fixture *fixture, int timeout_ms);
kvl_err finish_io(struct block *block); /* waits for its end */
kvl_err store_block(struct block *block);
kvl_err load_block(struct block *block); /* into a buffer that has other bytes before */

void sleep_ms(long ms);
void wait_for_calls(struct fixture *fixture, uint32_t calls);
/* Fills the way to the device with pieces that stand still, so that what is submitted next waits.
 */
struct block *hold_all_pieces(struct fixture *fixture, enum kvl_io_op op);
void wait_pinned(struct fixture *fixture);
void pin_host(struct fixture *fixture);

#endif
