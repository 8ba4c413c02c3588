/* cpu.c - makes and ends an instance of the CPU backend (cpu.h): picks the kernels, packs the
 * weights, lays out the scratch memory. */
#include "cpu.h"

#include <stdlib.h>
#include <string.h>

#include "../huge_memory.h"

/* ---- scratch memory: one allocation, cut into 64-byte aligned arrays of floats ---- */

enum { ARENA_ALIGN_FLOATS = 16 };

struct arena {
    float *base;     /* NULL while only counting */
    uint64_t floats; /* handed out so far */
};

static float *take(struct arena *arena, uint64_t floats) {
    float *taken = arena->base == NULL ? NULL : arena->base + arena->floats;
    arena->floats += (floats + ARENA_ALIGN_FLOATS - 1) / ARENA_ALIGN_FLOATS * ARENA_ALIGN_FLOATS;
    return taken;
}

_Static_assert(sizeof(struct kvl_softmax) == 2 * sizeof(float), "softmax states are two floats");

static struct kvl_attention_part take_part(
    struct arena *arena, const struct kvl_cpu *cpu, uint64_t rows) {
    struct kvl_attention_part part = {
        .softmax = (struct kvl_softmax *)(void *)take(arena, rows * 2)};
    part.out = take(arena, rows * cpu->v_stride);
    return part;
}

static void take_thread(struct arena *arena, const struct kvl_cpu *cpu, struct kvl_cpu_scratch *s) {
    const struct kvl_hparams *h = &cpu->model->hparams;
    const uint64_t rows = (uint64_t)cpu->query_tokens * cpu->group;
    s->strip = take(arena, (uint64_t)KVL_STRIP_COLUMNS * KVL_STRIP_ROWS);
    s->tile_a = take(arena, KVL_MATMUL_TOKENS * KVL_PANEL_ROWS);
    s->tile_b = take(arena, KVL_MATMUL_TOKENS * KVL_PANEL_ROWS);
    s->queries = take(arena, rows * h->k_dim);
    s->keys = take(arena, (uint64_t)KVL_TILE_TOKENS * h->k_dim);
    s->values = take(arena, (uint64_t)KVL_TILE_TOKENS * cpu->v_stride);
    s->scores = take(arena, rows * KVL_TILE_TOKENS);
    s->part = take_part(arena, cpu, rows);
    s->total = take_part(arena, cpu, rows);
}

/* Room for a vector of the file, which is also unpacked once there is memory. */
static void take_vector(struct arena *arena, const struct kvl_weight *weight, float **vector) {
    if (weight->rows == 0) { /* none; a random model's have no tensor either */
        return;
    }
    *vector = take(arena, weight->columns);
    if (arena->base != NULL) {
        kvl_unpack_row(weight, 0, *vector);
    }
}

static void take_vectors(
    struct arena *arena, const struct kvl_layer *from, struct kvl_cpu_layer *to) {
    take_vector(arena, &from->attention_norm, &to->attention_norm);
    take_vector(arena, &from->q_bias, &to->q_bias);
    take_vector(arena, &from->k_bias, &to->k_bias);
    take_vector(arena, &from->v_bias, &to->v_bias);
    take_vector(arena, &from->q_norm, &to->q_norm);
    take_vector(arena, &from->k_norm, &to->k_norm);
    take_vector(arena, &from->attention_post_norm, &to->attention_post_norm);
    take_vector(arena, &from->ffn_norm, &to->ffn_norm);
    take_vector(arena, &from->ffn_post_norm, &to->ffn_post_norm);
}

static struct kvl_cpu_angles take_angles(struct arena *arena, uint64_t floats) {
    struct kvl_cpu_angles angles = {.cosines = take(arena, floats)};
    angles.sines = take(arena, floats);
    return angles;
}

static void lay_out(struct arena *arena, struct kvl_cpu *cpu) {
    const struct kvl_hparams *h = &cpu->model->hparams;
    const uint64_t tokens = cpu->chunk_rows;
    take_vector(arena, &cpu->model->output_norm, &cpu->output_norm);
    for (uint32_t i = 0; i < h->layers; i++) {
        take_vectors(arena, &cpu->model->layers[i], &cpu->layers[i]);
    }
    cpu->x = take(arena, tokens * h->width);
    cpu->normed = take(arena, tokens * h->width);
    cpu->q = take(arena, tokens * h->heads * h->k_dim);
    cpu->k = take(arena, tokens * h->kv_heads * h->k_dim);
    cpu->v = take(arena, tokens * h->kv_heads * h->v_dim);
    cpu->attended = take(arena, tokens * h->heads * h->v_dim);
    cpu->ffn = take(arena, tokens * h->ffn_width);
    cpu->angles = take_angles(arena, tokens * h->rope_dims);
    cpu->windowed_angles = h->rope_frequencies_windowed == h->rope_frequencies
                               ? cpu->angles
                               : take_angles(arena, tokens * h->rope_dims);
    cpu->logits = take(arena, (uint64_t)cpu->batches_max * h->vocab);
    cpu->split = take_part(arena, cpu, (uint64_t)cpu->split_pairs * h->heads);
    for (uint32_t i = 0; i < kvl_pool_threads(cpu->pool); i++) {
        take_thread(arena, cpu, &cpu->scratch[i]);
    }
}

static kvl_err create_scratch(struct kvl_cpu *cpu, struct kvl_errmsg *msg) {
    const struct kvl_hparams *h = &cpu->model->hparams;
    const uint32_t partitions = cpu->context_max / KVL_PARTITION_TOKENS + 1;
    cpu->group = h->heads / h->kv_heads;
    cpu->v_stride = (h->v_dim + KVL_STRIP_ROWS - 1) / KVL_STRIP_ROWS * KVL_STRIP_ROWS;
    cpu->query_tokens = cpu->group < KVL_QUERY_ROWS ? KVL_QUERY_ROWS / cpu->group : 1;
    cpu->split_pairs =
        partitions > KVL_SPLIT_PARTITIONS_MIN ? partitions : KVL_SPLIT_PARTITIONS_MIN;
    cpu->scratch = calloc(kvl_pool_threads(cpu->pool), sizeof *cpu->scratch);
    cpu->layers = calloc(h->layers, sizeof *cpu->layers);
    cpu->spans = calloc(cpu->batches_max, sizeof *cpu->spans);
    cpu->partitions_left =
        calloc((size_t)cpu->batches_max * h->kv_heads, sizeof *cpu->partitions_left);
    if (cpu->scratch == NULL || cpu->layers == NULL || cpu->spans == NULL ||
        cpu->partitions_left == NULL) {
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory for %u layers", h->layers);
    }
    struct arena arena = {0};
    lay_out(&arena, cpu);
    cpu->arena_bytes = arena.floats * sizeof(float);
    cpu->arena = kvl_huge_map(cpu->arena_bytes);
    if (cpu->arena == NULL) {
        return kvl_fail(msg, KVL_ERR_NOMEM,
            "out of memory for %llu MiB of scratch: ask for a smaller context",
            (unsigned long long)(cpu->arena_bytes >> 20));
    }
    arena = (struct arena){.base = cpu->arena};
    lay_out(&arena, cpu);
    return KVL_OK;
}

/* ---- weights ---- */

enum { LAYER_MATRICES = 7 };

static void list_matrices(
    const struct kvl_layer *from, struct kvl_cpu_layer *to, struct kvl_pack_item *items) {
    const struct kvl_pack_item of_layer[LAYER_MATRICES] = {
        {&from->q, &to->q},
        {&from->k, &to->k},
        {&from->v, &to->v},
        {&from->attention_out, &to->attention_out},
        {&from->ffn_gate, &to->ffn_gate},
        {&from->ffn_up, &to->ffn_up},
        {&from->ffn_down, &to->ffn_down},
    };
    memcpy(items, of_layer, sizeof of_layer);
}

static kvl_err pack_weights(struct kvl_cpu *cpu, struct kvl_errmsg *msg) {
    const struct kvl_model *model = cpu->model;
    const uint32_t layers = model->hparams.layers;
    const uint32_t count = layers * LAYER_MATRICES + 1;
    struct kvl_pack_item *items = calloc(count, sizeof *items);
    if (items == NULL) {
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory for %u layers", layers);
    }
    for (uint32_t i = 0; i < layers; i++) {
        list_matrices(&model->layers[i], &cpu->layers[i], items + i * LAYER_MATRICES);
    }
    items[count - 1] = (struct kvl_pack_item){&model->output, &cpu->output};
    const kvl_err err = kvl_pack(items, count, cpu->pool, &cpu->packed, msg);
    free(items);
    return err;
}

/* ---- the instance ---- */

static void destroy(struct kvl_backend *backend) {
    struct kvl_cpu *cpu = (struct kvl_cpu *)(void *)backend;
    if (cpu == NULL) {
        return;
    }
    kvl_pool_destroy(cpu->pool);
    kvl_packed_free(&cpu->packed);
    free(cpu->layers);
    free(cpu->spans);
    free((void *)cpu->partitions_left);
    free(cpu->scratch);
    kvl_huge_unmap(cpu->arena, cpu->arena_bytes);
    free(cpu);
}

/* A chunk of a prompt, and a token of every other sequence. */
static uint32_t chunk_rows_of(const struct kvl_cpu *cpu) {
    const uint32_t of_one =
        cpu->context_max < KVL_CHUNK_TOKENS ? cpu->context_max : KVL_CHUNK_TOKENS;
    return of_one + cpu->batches_max - 1;
}

kvl_err kvl_cpu_create(const struct kvl_cpu_kernels *kernels, const struct kvl_model *model,
    const struct kvl_backend_options *options, struct kvl_backend **out, struct kvl_errmsg *msg) {
    struct kvl_cpu *cpu = calloc(1, sizeof *cpu);
    if (cpu == NULL) {
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
    }
    cpu->base = (struct kvl_backend){
        .ops = &kvl_backend_cpu,
        .arithmetic_id = "cpu-f32-1", /* of all kernel tables */
        .copies_within_forward = true,
        .chunk_tokens = KVL_CHUNK_TOKENS,
    };
    cpu->model = model;
    cpu->kernels = kernels;
    cpu->context_max =
        options->context_max != 0 ? options->context_max : model->hparams.context_max;
    cpu->batches_max = options->batches_max != 0 ? options->batches_max : 1;
    cpu->chunk_rows = chunk_rows_of(cpu);
    kvl_err err = kvl_pool_create(options->threads, &cpu->pool, msg);
    if (err != KVL_OK) {
        goto cleanup;
    }
    err = create_scratch(cpu, msg);
    if (err != KVL_OK) {
        goto cleanup;
    }
    err = pack_weights(cpu, msg);
    if (err != KVL_OK) {
        goto cleanup;
    }
    if (model->gguf != NULL) {
        kvl_gguf_let_go(model->gguf); /* but for the embeddings of a prompt's tokens */
    }
    *out = &cpu->base;
    cpu = NULL;

cleanup:
    destroy(cpu == NULL ? NULL : &cpu->base);
    return err;
}

/* The fastest that this CPU runs, unless the environment asks for others. */
static kvl_err choose_kernels(const struct kvl_cpu_kernels **out, struct kvl_errmsg *msg) {
    const char *name = getenv("KVLOFT_CPU_KERNELS");
    if (name == NULL || name[0] == '\0') {
        *out = kvl_cpu_kernels_best();
        return KVL_OK;
    }
    *out = kvl_cpu_kernels_named(name);
    if (*out == NULL) {
        return kvl_fail(msg, KVL_ERR_INVALID,
            "KVLOFT_CPU_KERNELS=%s: no kernels of that name run on this CPU: there are "
            "avx512, avx2, neon and portable; unset it for the fastest (%s here)",
            name, kvl_cpu_kernels_best()->name);
    }
    return KVL_OK;
}

static kvl_err create(const struct kvl_model *model, const struct kvl_backend_options *options,
    struct kvl_backend **out, struct kvl_errmsg *msg) {
    const struct kvl_cpu_kernels *kernels;
    const kvl_err err = choose_kernels(&kernels, msg);
    return err == KVL_OK ? kvl_cpu_create(kernels, model, options, out, msg) : err;
}

const struct kvl_backend_ops kvl_backend_cpu = {
    .name = "cpu",
    .create = create,
    .forward = kvl_cpu_forward,
    .destroy = destroy,
    .take_memory = kvl_cpu_take_memory,
    .give_memory_back = kvl_cpu_give_memory_back,
    .copy = kvl_cpu_copy,
    .zero = kvl_cpu_zero,
    .finish = kvl_cpu_finish,
};
