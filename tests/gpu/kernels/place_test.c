/* place_test.c - QKV rows taken apart: every element of the arena is checked, those too that belong
 * to another layer, another position or to nobody. */
#include "guarded.h"

#include <math.h>
#include <stdio.h>

#include "cpu/half.h"

enum { LAYERS = 2, LAYER = 1, GAP = 8 /* elements between slots */, HEAD_MAX = 256 };
static const float epsilon = 0.01f;

struct place_case {
    uint32_t heads, kv_heads, k_dim, v_dim, rope_dims;
    uint32_t block_tokens, position, tokens;
    uint32_t padding; /* of a row of the product */
    bool halves, with_bias, with_norms;
};

static const struct place_case cases[] = {
    {4, 2, 64, 64, 64, 16, 0, 1, 0, true, false, false},      /* one row */
    {4, 2, 64, 64, 64, 16, 13, 25, 0, false, true, false},    /* into four blocks */
    {3, 1, 80, 40, 32, 5, 3, 9, 8, true, true, true},         /* MQA, part of a head turns */
    {2, 2, 8, 8, 2, 7, 6, 2, 24, false, false, true},         /* less than a warp */
    {5, 5, 36, 100, 0, 64, 63, 2, 4, true, true, false},      /* nothing turns */
    {32, 8, 128, 128, 128, 64, 60, 70, 0, true, false, true}, /* twelve full CTAs a token */
    {9, 3, 96, 96, 66, 16, 17, 33, 2, false, true, true},     /* 33 pairs */
};

struct place_world {
    struct place_case shape;
    enum kvl_kv_dtype dtype;
    uint32_t stride, blocks;
    uint64_t layer_elements, slot_elements;
    uint16_t *qkv;
    float *bias, *q_norm, *k_norm, *angles;
    struct expected *q, *arena; /* what there should be */
};

static uint32_t slot_of(const struct place_world *w, uint32_t block) {
    return w->blocks - 1 - block; /* not in order */
}

/* What a head of a token becomes. */
static void expect_head(const struct place_world *w, uint32_t token, uint32_t column, uint32_t dims,
    const float *norm, struct expected *out) {
    double head[HEAD_MAX], squares = 0;
    for (uint32_t c = 0; c < dims; c++) {
        head[c] = kvl_f16_to_f32(w->qkv[(uint64_t)token * w->stride + column + c]);
        head[c] += w->bias != NULL ? w->bias[column + c] : 0;
        squares += head[c] * head[c];
    }
    for (uint32_t c = 0; c < dims; c++) {
        head[c] *= norm != NULL ? norm[c] / sqrt(squares / dims + epsilon) : 1;
        out[c] = (struct expected){head[c], 4e-6 * fabs(head[c])};
    }
}

static void turn(const struct place_world *w, uint32_t token, struct expected *head) {
    const uint32_t pairs = w->shape.rope_dims / 2;
    for (uint32_t i = 0; i < pairs; i++) {
        struct expected *a = &head[w->shape.halves ? i : 2 * i];
        struct expected *b = &head[w->shape.halves ? i + pairs : 2 * i + 1];
        const double x = a->value, y = b->value;
        const double cosine = w->angles[((uint64_t)token * pairs + i) * 2];
        const double sine = w->angles[((uint64_t)token * pairs + i) * 2 + 1];
        a->value = x * cosine - y * sine;
        b->value = x * sine + y * cosine;
        a->slack = b->slack = 6e-6 * (fabs(x) + fabs(y));
    }
}

static void expect_token(const struct place_world *w, uint32_t token) {
    const struct place_case *s = &w->shape;
    const uint32_t position = s->position + token;
    struct expected *layer = w->arena + LAYER * w->layer_elements +
                             slot_of(w, position / s->block_tokens) * w->slot_elements;
    for (uint32_t h = 0; h < s->heads; h++) {
        struct expected *q = w->q + ((uint64_t)token * s->heads + h) * s->k_dim;
        expect_head(w, token, h * s->k_dim, s->k_dim, w->q_norm, q);
        turn(w, token, q);
    }
    for (uint32_t h = 0; h < s->kv_heads; h++) {
        const uint64_t row = (uint64_t)h * s->block_tokens + position % s->block_tokens;
        struct expected *k = layer + row * s->k_dim;
        struct expected *v =
            layer + (uint64_t)s->kv_heads * s->block_tokens * s->k_dim + row * s->v_dim;
        expect_head(w, token, (s->heads + h) * s->k_dim, s->k_dim, w->k_norm, k);
        turn(w, token, k);
        expect_head(
            w, token, (s->heads + s->kv_heads) * s->k_dim + h * s->v_dim, s->v_dim, NULL, v);
    }
}

static void make_inputs(struct place_world *w) {
    const struct place_case *s = &w->shape;
    uint64_t seed = 100 + s->k_dim;
    w->qkv = random_halves(&seed, (uint64_t)s->tokens * w->stride, 2.0f);
    w->angles = random_floats(&seed, (uint64_t)s->tokens * s->rope_dims + 1, 1.25f);
    if (s->with_bias) {
        const uint32_t width = w->stride - s->padding;
        w->bias = random_floats(&seed, width, 1.0f);
        w->bias[width - 1] = 1e5f; /* more than f16 holds */
    }
    if (s->with_norms) {
        w->q_norm = random_floats(&seed, s->k_dim, 2.0f);
        w->k_norm = random_floats(&seed, s->k_dim, 2.0f);
    }
}

static struct expected *untouched(uint64_t count) {
    struct expected *elements = guarded_host(count * sizeof *elements);
    for (uint64_t i = 0; i < count; i++) {
        elements[i].value = NAN;
    }
    return elements;
}

static uint64_t arena_elements(const struct place_world *w) {
    return w->blocks * w->slot_elements;
}

static void make_world(
    struct place_world *w, const struct place_case *shape, enum kvl_kv_dtype dtype) {
    *w = (struct place_world){.shape = *shape, .dtype = dtype};
    w->stride = (shape->heads + shape->kv_heads) * shape->k_dim + shape->kv_heads * shape->v_dim +
                shape->padding;
    w->blocks = (shape->position + shape->tokens + shape->block_tokens - 1) / shape->block_tokens;
    w->layer_elements =
        (uint64_t)shape->kv_heads * shape->block_tokens * (shape->k_dim + shape->v_dim);
    w->slot_elements = LAYERS * w->layer_elements + GAP;
    make_inputs(w);
    w->q = untouched((uint64_t)shape->tokens * shape->heads * shape->k_dim);
    w->arena = untouched(arena_elements(w));
    for (uint32_t token = 0; token < shape->tokens; token++) {
        expect_token(w, token);
    }
}

static uint8_t *const *put_table(const struct place_world *w, uint8_t *arena) {
    uint8_t **table = guarded_host(w->blocks * sizeof *table);
    for (uint32_t i = 0; i < w->blocks; i++) {
        table[i] = arena + slot_of(w, i) * w->slot_elements * kvl_kv_dtype_bytes(w->dtype);
    }
    return guarded_input(table, w->blocks * sizeof *table);
}

static const float *put_floats(const float *values, uint64_t count) {
    return values != NULL && count > 0 ? guarded_input(values, count * sizeof *values) : NULL;
}

static void check_place(const struct place_world *w) {
    const struct place_case *s = &w->shape;
    const uint64_t element_bytes = kvl_kv_dtype_bytes(w->dtype);
    const uint64_t q_count = (uint64_t)s->tokens * s->heads * s->k_dim;
    uint8_t *arena = guarded_output(NULL, arena_elements(w) * element_bytes);
    const struct kvl_cuda_place args = {
        .qkv = guarded_input(w->qkv, (uint64_t)s->tokens * w->stride * sizeof *w->qkv),
        .stride = w->stride,
        .bias = put_floats(w->bias, w->stride - s->padding),
        .q_norm = put_floats(w->q_norm, s->k_dim),
        .k_norm = put_floats(w->k_norm, s->k_dim),
        .angles = put_floats(w->angles, (uint64_t)s->tokens * s->rope_dims),
        .q = guarded_output(NULL, q_count * sizeof(uint16_t)),
        .blocks = put_table(w, arena),
        .position = guarded_input(&s->position, sizeof s->position),
        .layer_offset_bytes = LAYER * w->layer_elements * element_bytes,
        .kv_dtype = w->dtype,
        .epsilon = epsilon,
        .block_tokens = s->block_tokens,
        .heads = s->heads,
        .kv_heads = s->kv_heads,
        .k_dim = s->k_dim,
        .v_dim = s->v_dim,
        .rope_dims = s->rope_dims,
        .tokens = s->tokens,
        .halves = s->halves,
    };
    char what[96];
    snprintf(what, sizeof what, "place, %u heads, %u KV heads of %u and %u, KV type %d", s->heads,
        s->kv_heads, s->k_dim, s->v_dim, (int)w->dtype);
    const cudaError_t launched = kvl_cuda_place(&args, guarded_stream());
    const void *q = guarded_result(launched, args.q, what);
    const void *kv = guarded_result(cudaSuccess, arena, what);
    expect_elements(what, KVL_KV_F16, q, w->q, q_count, s->k_dim);
    expect_elements(what, w->dtype, kv, w->arena, arena_elements(w), (uint32_t)w->slot_elements);
}

void place_puts_heads_into_their_blocks(void **state) {
    static const enum kvl_kv_dtype dtypes[] = {KVL_KV_F16, KVL_KV_BF16, KVL_KV_F32};
    for (uint32_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (uint32_t j = 0; j < sizeof dtypes / sizeof dtypes[0]; j++) {
            struct place_world world;
            make_world(&world, &cases[i], dtypes[j]);
            check_place(&world);
            assert_int_equal(guarded_release(state), 0);
        }
    }
}
