/* gpu_context.h - a model that the test has made, on the CPU's and the CUDA backend, each with
 * blocks of its own.
 *
 * Everything aborts the test (fail_msg) with the call's message. Threads: the main one. */
#ifndef KVL_TESTS_GPU_CONTEXT_H
#define KVL_TESTS_GPU_CONTEXT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cuda/cuda_backend.h"
#include "tiny_model.h"

enum { GPU_CONTEXT = 1536, GPU_BLOCKS_MAX = GPU_CONTEXT };

/* One backend's side. */
struct gpu_side {
    struct kvl_backend *backend;
    uint8_t *arena;
    uint64_t arena_bytes;
    uint8_t *blocks[GPU_BLOCKS_MAX];        /* of layer group 0 */
    uint8_t *window_blocks[GPU_BLOCKS_MAX]; /* of layer group 1, each behind the other's */
};

struct gpu_context {
    struct kvl_model *model;
    uint32_t block_tokens, block_count;
    uint64_t block_bytes; /* of all layer groups */
    enum kvl_kv_dtype kv_dtype;
    struct gpu_side cpu; /* no backend: not asked for */
    struct gpu_side gpu;
    struct kvl_cuda *cuda; /* gpu.backend */
    uint32_t tokens[GPU_CONTEXT];
};

struct gpu_setting {
    uint32_t block_tokens;
    enum kvl_kv_dtype kv_dtype;
    bool with_cpu;
};

/* KVL_GPU_SMALL is set: less of everything, since a checker slows the kernels down. */
bool gpu_is_small(void);
struct tiny_shape gpu_shape_middle(void); /* width 1024, 8 layers, 4 query heads a KV head */
/* Width 256, 8 layers of which every other one sees 70 tokens, heads of 64: gemma2 (scores are
 * capped) or gemma3 (windowed layers turn by other angles). */
struct tiny_shape gpu_shape_windowed(const char *architecture);

struct gpu_context *gpu_context_open(const struct tiny_shape *shape, struct gpu_setting setting);
void gpu_context_close(struct gpu_context *c);
/* Where a layer's K and V begin, from blocks[i] on, whatever group it is of; and their bytes. */
uint64_t gpu_layer_offset(const struct gpu_context *c, uint32_t layer);
uint64_t gpu_layer_bytes(const struct gpu_context *c);
/* Overwrites all blocks on the GPU with 0xFF: NaN in every KV type. */
void gpu_poison(struct gpu_context *c);

/* A call over c->tokens[position..]; logits: [rows][vocab] of the last rows. */
struct gpu_call {
    uint32_t position, count, logits_rows;
    enum kvl_phase phase;
    float *logits;
    uint32_t *greedy_token;
    kvl_err (*before_layer)(void *arg, uint32_t layer);
    void *before_layer_arg;
};
kvl_err gpu_try(struct gpu_context *c, struct gpu_side *side, struct gpu_call call);
/* The same, and fails the test on an error. */
void gpu_run(struct gpu_context *c, struct gpu_side *side, struct gpu_call call);
/* [rows][vocab], zeroed; to be freed. */
float *gpu_logits(const struct gpu_context *c, uint32_t rows);
/* Fails, naming the first that differ, unless rows of logits have the same bits. */
void gpu_assert_same_bits(const struct gpu_context *c, const float *a, const float *b,
    uint32_t rows, const char *what, uint32_t number);

/* cuda_memory_test.c */
void copies_zeros_and_slabs(void **state);
void too_much_memory_is_refused(void **state);
void an_arena_is_mapped_from_its_descriptor(void **state);
void a_foreign_arena_is_refused(void **state);

#endif
