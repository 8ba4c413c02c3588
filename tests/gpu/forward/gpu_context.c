/* gpu_context.c - see gpu_context.h. */
#include "gpu_context.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool gpu_is_small(void) {
    return getenv("KVL_GPU_SMALL") != NULL;
}

struct tiny_shape gpu_shape_middle(void) {
    struct tiny_shape shape = tiny_shape_default();
    shape.layers = gpu_is_small() ? 2 : 8;
    shape.width = 1024;
    shape.ffn_width = 2816;
    shape.heads = 8;
    shape.kv_heads = 2;
    shape.k_dim = shape.v_dim = shape.rope_dims = 128;
    shape.vocab = 4096;
    shape.type = shape.embedding_type = KVL_GGML_F16;
    shape.tied = false;
    shape.seed = 7;
    return shape;
}

struct tiny_shape gpu_shape_windowed(const char *architecture) {
    struct tiny_shape shape = gpu_shape_middle();
    shape.architecture = architecture;
    shape.layers = gpu_is_small() ? 2 : 8;
    shape.width = 256;
    shape.ffn_width = 512;
    shape.heads = 4;
    shape.k_dim = shape.v_dim = shape.rope_dims = 64;
    shape.vocab = 512;
    return shape;
}

static void *allocate(uint64_t bytes) {
    void *memory = calloc(1, bytes);
    assert_non_null(memory);
    return memory;
}

/* The file of a shape, made once: a middle one takes seconds. */
static const char *file_of(const struct tiny_shape *shape) {
    static struct {
        struct tiny_shape shape;
        char *path;
    } made[24];
    static size_t count;
    for (size_t i = 0; i < count; i++) {
        if (memcmp(&made[i].shape, shape, sizeof *shape) == 0) {
            return made[i].path;
        }
    }
    assert_true(count < sizeof made / sizeof made[0]);
    memcpy(&made[count].shape, shape, sizeof *shape); /* with its padding, for memcmp */
    made[count].path = tiny_model_file(shape);
    return made[count++].path;
}

static void open_side(
    struct gpu_context *c, struct gpu_side *side, const struct kvl_backend_ops *ops) {
    const struct kvl_backend_options options = {.context_max = GPU_CONTEXT};
    struct kvl_errmsg msg = {{0}};
    kvl_err err = ops->create(c->model, &options, &side->backend, &msg);
    if (err != KVL_OK) {
        fail_msg("%s: %s: %s", ops->name, kvl_err_name(err), msg.text);
    }
    side->arena_bytes = c->block_bytes * c->block_count;
    err = ops->take_memory(side->backend, side->arena_bytes, &side->arena);
    assert_int_equal(err, KVL_OK);
    for (uint32_t i = 0; i < c->block_count; i++) { /* scattered, as in a real arena */
        const uint32_t at = c->block_count % 7 == 0 ? i : i * 7 % c->block_count;
        side->blocks[i] = side->arena + at * c->block_bytes;
        side->window_blocks[i] = side->blocks[i] + kvl_group_block_bytes(&c->model->hparams, 0,
                                                       c->block_tokens, c->kv_dtype);
    }
}

struct gpu_context *gpu_context_open(const struct tiny_shape *shape, struct gpu_setting setting) {
    struct gpu_context *c = allocate(sizeof *c);
    struct kvl_errmsg msg = {{0}};
    if (kvl_model_load(file_of(shape), &c->model, &msg) != KVL_OK) {
        fail_msg("%s", msg.text);
    }
    c->block_tokens = setting.block_tokens;
    c->kv_dtype = setting.kv_dtype;
    c->block_count = (GPU_CONTEXT + setting.block_tokens - 1) / setting.block_tokens;
    c->block_bytes = kvl_block_bytes(&c->model->hparams, setting.block_tokens, setting.kv_dtype);
    for (uint32_t i = 0; i < GPU_CONTEXT; i++) {
        c->tokens[i] = (uint32_t)((i * 2654435761u + 12345u) % c->model->hparams.vocab);
    }
    open_side(c, &c->gpu, kvl_backend_cuda);
    c->cuda = kvl_cuda_of(c->gpu.backend);
    if (setting.with_cpu) {
        open_side(c, &c->cpu, &kvl_backend_cpu);
        memset(c->cpu.arena, 0xFF, c->cpu.arena_bytes);
    }
    gpu_poison(c);
    return c;
}

static void close_side(struct gpu_side *side) {
    if (side->backend != NULL) {
        const struct kvl_backend_ops *ops = side->backend->ops;
        ops->give_memory_back(side->backend, side->arena, side->arena_bytes);
        ops->destroy(side->backend);
    }
}

void gpu_context_close(struct gpu_context *c) {
    close_side(&c->gpu);
    close_side(&c->cpu);
    kvl_model_free(c->model);
    free(c);
}

uint64_t gpu_layer_bytes(const struct gpu_context *c) {
    return c->block_bytes / c->model->hparams.layers;
}

uint64_t gpu_layer_offset(const struct gpu_context *c, uint32_t layer) {
    const struct kvl_hparams *h = &c->model->hparams;
    const struct kvl_layer_place place = kvl_layer_place(h, layer);
    const uint32_t before = place.group == 0 ? 0 : kvl_layer_group(h, 0).layers;
    return (before + place.index) * gpu_layer_bytes(c);
}

void gpu_poison(struct gpu_context *c) {
    assert_int_equal(cudaMemset(c->gpu.arena, 0xFF, c->gpu.arena_bytes), cudaSuccess);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
}

kvl_err gpu_try(struct gpu_context *c, struct gpu_side *side, struct gpu_call call) {
    const struct kvl_batch batch = {
        .tokens = c->tokens + call.position,
        .count = call.count,
        .position = call.position,
        .phase = call.phase,
        .block_tokens = c->block_tokens,
        .kv_dtype = c->kv_dtype,
        .blocks = side->blocks,
        .window_blocks = side->window_blocks,
        .logits_rows = call.logits_rows,
        .logits = call.logits,
        .greedy_token = call.greedy_token,
        .before_layer = call.before_layer,
        .before_layer_arg = call.before_layer_arg,
        .layers_arrive = call.before_layer != NULL,
    };
    return side->backend->ops->forward(side->backend, &batch, 1);
}

void gpu_run(struct gpu_context *c, struct gpu_side *side, struct gpu_call call) {
    const kvl_err err = gpu_try(c, side, call);
    if (err != KVL_OK) {
        fail_msg("%s of %u tokens at %u: %s: %s", side->backend->ops->name, call.count,
            call.position, kvl_err_name(err), side == &c->gpu ? c->cuda->last.text : "");
    }
}

float *gpu_logits(const struct gpu_context *c, uint32_t rows) {
    return allocate((uint64_t)rows * c->model->hparams.vocab * sizeof(float));
}

void gpu_assert_same_bits(const struct gpu_context *c, const float *a, const float *b,
    uint32_t rows, const char *what, uint32_t number) {
    const size_t vocab = c->model->hparams.vocab;
    for (uint32_t row = 0; row < rows; row++) {
        for (size_t i = row * vocab; i < (row + 1) * vocab; i++) {
            if (memcmp(&a[i], &b[i], sizeof a[i]) != 0) {
                fail_msg("%s %u: logit %zu of row %u of %u differs: %.9g, %.9g", what, number,
                    i - row * vocab, row, rows, (double)a[i], (double)b[i]);
            }
        }
    }
}
