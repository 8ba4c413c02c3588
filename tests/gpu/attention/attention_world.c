/* attention_world.c - see attention_world.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attention_world.h"
#include "cpu/half.h"

enum {
    GUARD_BYTES = 4096,
    SCRATCH_GUARD_BYTES = 256,
    WATCHED_BYTES = 1 << 20, /* behind a result */
    LAYERS = 2,
    LAYER = 1,
    DIFFERENCES_SHOWN = 8,
    SPOIL_BYTES = 1 << 20, /* at a time */
};

static uint64_t next_random(uint64_t *state) {
    uint64_t x = (*state += 0x9E3779B97F4A7C15u); /* splitmix64 (Vigna) */
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

/* Even in [-2, 2). */
static float random_float(uint64_t *state) {
    return (float)(next_random(state) >> 40) * 0x1p-22f - 2.0f;
}

static void *must_have(size_t bytes) {
    void *memory = malloc(bytes);
    assert_non_null(memory);
    return memory;
}

static float as_stored(enum kvl_kv_dtype dtype, float x) {
    return dtype == KVL_KV_F16    ? kvl_f16_to_f32(kvl_f32_to_f16(x))
           : dtype == KVL_KV_BF16 ? kvl_bf16_to_f32(kvl_f32_to_bf16(x))
                                  : x;
}

static float *random_kv(const struct attention_shape *s, uint32_t dim, uint64_t *seed) {
    const size_t count = (size_t)s->kv_heads * s->context * dim;
    float *kv = must_have(count * sizeof *kv);
    for (size_t i = 0; i < count; i++) {
        kv[i] = as_stored(s->kv_dtype, random_float(seed));
    }
    return kv;
}

/* Every seventh head is four times as sharp. */
static void random_queries(struct attention_world *world, uint64_t *seed) {
    const struct attention_shape *s = &world->shape;
    const size_t rows = (size_t)s->context * s->heads;
    world->q = must_have(rows * s->k_dim * sizeof *world->q);
    world->q_half = must_have(rows * s->k_dim * sizeof *world->q_half);
    for (size_t i = 0; i < rows * s->k_dim; i++) {
        const float sharp = i / s->k_dim % 7 == 0 ? 4.0f : 1.0f;
        world->q_half[i] = kvl_f32_to_f16(sharp * random_float(seed));
        world->q[i] = kvl_f16_to_f32(world->q_half[i]);
    }
}

static void place_blocks(struct attention_world *world, uint64_t *seed) {
    const struct attention_shape *s = &world->shape;
    world->blocks = (s->context + s->block_tokens - 1) / s->block_tokens;
    world->slot_of = must_have(world->blocks * sizeof *world->slot_of);
    for (uint32_t i = 0; i < world->blocks; i++) {
        const uint32_t j = (uint32_t)(next_random(seed) % (i + 1));
        world->slot_of[i] = world->slot_of[j];
        world->slot_of[j] = i;
    }
    world->layer_bytes = (uint64_t)s->kv_heads * s->block_tokens * (s->k_dim + s->v_dim) *
                         kvl_kv_dtype_bytes(s->kv_dtype);
    world->slot_bytes = (LAYERS * world->layer_bytes + GUARD_BYTES + 255) / 256 * 256;
}

static uint64_t arena_bytes(const struct attention_world *world) {
    return GUARD_BYTES + world->blocks * world->slot_bytes;
}

static uint64_t block_offset(const struct attention_world *world, uint32_t block) {
    return GUARD_BYTES + world->slot_of[block] * world->slot_bytes;
}

static struct kvl_cuda_attention attention_of(const struct attention_world *world) {
    const struct attention_shape *s = &world->shape;
    return (struct kvl_cuda_attention){
        .q = world->q_device,
        .out = (void *)((uint8_t *)world->out_device + GUARD_BYTES),
        .blocks = world->table,
        .block_tokens = s->block_tokens,
        .heads = s->heads,
        .kv_heads = s->kv_heads,
        .k_dim = s->k_dim,
        .v_dim = s->v_dim,
        .layer = LAYER,
        .kv_dtype = s->kv_dtype,
        .layer_offset_bytes = LAYER * world->layer_bytes,
        .scale = 1.0f / sqrtf((float)s->k_dim),
        .window = world->window,
        .softcap = world->softcap,
        .tokens = s->context,
        .position = world->position,
        .position_max = 4 * s->context + 1000,
        .scratch = world->scratch,
        .scratch_bytes = world->scratch_bytes,
        .shared_bytes_max = world->shared_bytes_max,
    };
}

static void take_memory(struct attention_world *world) {
    const struct attention_shape *s = &world->shape;
    const struct attention_device *d = world->device;
    world->arena_host = must_have(arena_bytes(world));
    world->arena = d->take(arena_bytes(world));
    world->table = d->take(world->blocks * sizeof *world->table);
    world->table_host = must_have(world->blocks * sizeof *world->table_host);
    for (uint32_t i = 0; d->readable && i < world->blocks; i++) {
        d->readable(world->arena + block_offset(world, i), LAYERS * world->layer_bytes);
    }
    if (d->readable) {
        d->readable(world->table, world->blocks * sizeof *world->table);
    }
    world->q_device = d->take((size_t)s->context * s->heads * s->k_dim * 2);
    world->out_bytes = (uint64_t)s->context * s->heads * s->v_dim * 2;
    world->out_device = d->take(world->out_bytes + 2 * GUARD_BYTES);
    world->position = d->take(sizeof(uint32_t));
    const struct kvl_cuda_attention attention = attention_of(world);
    world->scratch_bytes = kvl_cuda_attention_scratch_bytes(&attention);
    assert_int_not_equal(world->scratch_bytes, UINT64_MAX);
    world->scratch = d->take(world->scratch_bytes + SCRATCH_GUARD_BYTES);
    if (d->readable) {
        d->readable(world->scratch, world->scratch_bytes);
    }
}

/* What an earlier call left must not help a later one. */
static void spoil(const struct attention_world *world, void *device, uint64_t bytes) {
    static uint8_t nan[SPOIL_BYTES];
    memset(nan, 0xff, sizeof nan);
    for (uint64_t at = 0; at < bytes; at += sizeof nan) {
        const uint64_t left = bytes - at;
        world->device->put((uint8_t *)device + at, nan, left < sizeof nan ? left : sizeof nan);
    }
}

void attention_world_init(struct attention_world *world, const struct attention_device *device,
    const struct attention_shape *shape, uint64_t seed) {
    memset(world, 0, sizeof *world);
    world->device = device;
    world->shape = *shape;
    world->written = UINT32_MAX;
    world->k = random_kv(shape, shape->k_dim, &seed);
    world->v = random_kv(shape, shape->v_dim, &seed);
    random_queries(world, &seed);
    place_blocks(world, &seed);
    take_memory(world);
}

void attention_world_deinit(struct attention_world *world) {
    const struct attention_device *d = world->device;
    if (d->forget_readable) {
        d->forget_readable();
    }
    void *const of_device[] = {world->arena, world->table, world->q_device, world->out_device,
        world->scratch, world->position};
    for (size_t i = 0; i < sizeof of_device / sizeof *of_device; i++) {
        d->give(of_device[i]);
    }
    void *const of_host[] = {world->q, world->q_half, world->k, world->v, world->slot_of,
        world->arena_host, world->table_host};
    for (size_t i = 0; i < sizeof of_host / sizeof *of_host; i++) {
        free(of_host[i]);
    }
}

static void store(enum kvl_kv_dtype dtype, uint8_t *to, const float *from, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        if (dtype == KVL_KV_F32) {
            memcpy(to + 4 * i, from + i, 4);
        } else {
            const uint16_t half =
                dtype == KVL_KV_F16 ? kvl_f32_to_f16(from[i]) : kvl_f32_to_bf16(from[i]);
            memcpy(to + 2 * i, &half, 2);
        }
    }
}

static void write_token(struct attention_world *world, uint32_t token) {
    const struct attention_shape *s = &world->shape;
    const uint64_t element = kvl_kv_dtype_bytes(s->kv_dtype), in_block = token % s->block_tokens;
    uint8_t *layer = world->arena_host + block_offset(world, token / s->block_tokens) +
                     LAYER * world->layer_bytes;
    uint8_t *values = layer + (uint64_t)s->kv_heads * s->block_tokens * s->k_dim * element;
    for (uint32_t h = 0; h < s->kv_heads; h++) {
        const uint64_t row = (uint64_t)h * s->block_tokens + in_block;
        const size_t from = (size_t)h * s->context + token;
        store(s->kv_dtype, layer + row * s->k_dim * element, world->k + from * s->k_dim, s->k_dim);
        store(s->kv_dtype, values + row * s->v_dim * element, world->v + from * s->v_dim, s->v_dim);
    }
}

/* Tokens [0, count) stand in the arena, and nothing else. */
static void write_context(struct attention_world *world, uint32_t count) {
    if (world->written == count) {
        return;
    }
    memset(world->arena_host, 0xff, arena_bytes(world));
    for (uint32_t token = 0; token < count; token++) {
        write_token(world, token);
    }
    world->device->put(world->arena, world->arena_host, arena_bytes(world));
    world->written = count;
}

/* The first token that this one sees. */
static uint32_t first_seen(const struct attention_world *world, uint32_t token) {
    return world->window == 0 || token < world->window ? 0 : token - world->window + 1;
}

/* Blocks wholly behind the first token's window are not there. */
static void write_table(struct attention_world *world, uint32_t first_token) {
    const uint32_t first = first_seen(world, first_token) / world->shape.block_tokens;
    for (uint32_t i = 0; i < world->blocks; i++) {
        world->table_host[i] = i < first ? NULL : world->arena + block_offset(world, i);
    }
    world->device->put(world->table, world->table_host, world->blocks * sizeof *world->table_host);
}

static void check_untouched(const uint8_t *bytes, uint64_t count, const char *where) {
    for (uint64_t i = 0; i < count; i++) {
        if (bytes[i] != 0xff) {
            fail_msg("byte %llu %s was written", (unsigned long long)i, where);
        }
    }
}

/* Of one call, with no more scratch than it asks for. */
static struct kvl_cuda_attention attention_of_call(
    const struct attention_world *world, const struct attention_call *call) {
    struct kvl_cuda_attention attention = attention_of(world);
    attention.tokens = call->tokens;
    attention.position_max = call->position_max ? call->position_max : call->first + call->tokens;
    attention.way = call->way;
    attention.scratch_bytes =
        call->scratch_bytes ? call->scratch_bytes : kvl_cuda_attention_scratch_bytes(&attention);
    assert_true(attention.scratch_bytes <= world->scratch_bytes);
    return attention;
}

/* Of the memory for results, what a call of so many bytes may be seen to have written. */
static uint64_t watched_bytes(const struct attention_world *world, uint64_t bytes) {
    const uint64_t left = world->out_bytes - bytes;
    return bytes + (left < WATCHED_BYTES ? left : WATCHED_BYTES) + 2 * GUARD_BYTES;
}

/* The call's results, and nothing else, were written. */
static void take_results(const struct attention_world *world,
    const struct kvl_cuda_attention *attention, uint16_t *out) {
    const struct attention_device *d = world->device;
    const uint64_t bytes =
        (uint64_t)attention->tokens * attention->heads * attention->v_dim * sizeof *out;
    const uint64_t watched = watched_bytes(world, bytes);
    uint8_t *all = must_have(watched);
    d->get(all, world->out_device, watched);
    check_untouched(all, GUARD_BYTES, "before the result");
    check_untouched(all + GUARD_BYTES + bytes, watched - bytes - GUARD_BYTES, "behind the result");
    memcpy(out, all + GUARD_BYTES, bytes);
    d->get(all, (uint8_t *)world->scratch + attention->scratch_bytes, SCRATCH_GUARD_BYTES);
    check_untouched(all, SCRATCH_GUARD_BYTES, "behind the scratch");
    free(all);
}

void attention_run(
    struct attention_world *world, const struct attention_call *call, uint16_t *out) {
    const struct attention_shape *s = &world->shape;
    const struct attention_device *d = world->device;
    const uint64_t q_token = (uint64_t)s->heads * s->k_dim;
    const uint64_t bytes = (uint64_t)call->tokens * s->heads * s->v_dim * sizeof *out;
    const struct kvl_cuda_attention attention = attention_of_call(world, call);
    assert_true(call->first + call->tokens <= s->context);
    write_context(world, call->first + call->tokens);
    write_table(world, call->first);
    spoil(world, world->out_device, watched_bytes(world, bytes));
    spoil(world, world->scratch, attention.scratch_bytes + SCRATCH_GUARD_BYTES);
    d->put(world->q_device, world->q_half + call->first * q_token, call->tokens * q_token * 2);
    d->put(world->position, &call->first, sizeof call->first);
    d->attend(&attention, call->phase);
    take_results(world, &attention, out);
}

uint32_t attention_token_elements(const struct attention_world *world) {
    return world->shape.heads * world->shape.v_dim;
}

/* ---- what it should be, in double ---- */

static double expected_score(
    const struct attention_world *world, const float *q, uint32_t kv_head, uint32_t token) {
    const struct attention_shape *s = &world->shape;
    const float *k = world->k + ((size_t)kv_head * s->context + token) * s->k_dim;
    const double cap = world->softcap;
    double dot = 0;
    for (uint32_t d = 0; d < s->k_dim; d++) {
        dot += (double)q[d] * k[d];
    }
    const double score = dot / sqrt(s->k_dim);
    return cap == 0 ? score : cap * tanh(score / cap);
}

/* Softmax of one query over the tokens that `token` sees; 0 for those before. */
static void expected_weights(const struct attention_world *world, const float *q, uint32_t kv_head,
    uint32_t token, double *weights) {
    const uint32_t first = first_seen(world, token);
    double max = -INFINITY, sum = 0;
    memset(weights, 0, first * sizeof *weights);
    for (uint32_t i = first; i <= token; i++) {
        weights[i] = expected_score(world, q, kv_head, i);
        max = fmax(max, weights[i]);
    }
    for (uint32_t i = first; i <= token; i++) {
        weights[i] = exp(weights[i] - max);
        sum += weights[i];
    }
    for (uint32_t i = first; i <= token; i++) {
        weights[i] /= sum;
    }
}

static void check_head(const struct attention_world *world, uint32_t token, uint32_t head,
    const double *weights, const uint16_t *out) {
    const struct attention_shape *s = &world->shape;
    const double unit = s->kv_dtype == KVL_KV_BF16 ? 0x1p-9 : 0x1p-11;
    const uint32_t kv_head = head / (s->heads / s->kv_heads);
    const float *v = world->v + (size_t)kv_head * s->context * s->v_dim;
    for (uint32_t d = 0; d < s->v_dim; d++) {
        double expected = 0, noise = 0;
        for (uint32_t i = 0; i <= token; i++) {
            const double term = weights[i] * v[(size_t)i * s->v_dim + d];
            expected += term;
            noise += term * term;
        }
        const double got = kvl_f16_to_f32(out[d]);
        const double allowed = 16 * unit * sqrt(noise) + 0x1p-10 * fabs(expected) + 1e-5;
        if (!(fabs(got - expected) <= allowed)) { /* also when it is NaN */
            fail_msg("token %u, head %u, element %u: %.9g instead of %.9g, allowed +-%.3g "
                     "(heads %u/%u, dims %u/%u, block %u, dtype %d, window %u, cap %g)",
                token, head, d, got, expected, allowed, s->heads, s->kv_heads, s->k_dim, s->v_dim,
                s->block_tokens, (int)s->kv_dtype, world->window, (double)world->softcap);
        }
    }
}

void attention_check_token(
    const struct attention_world *world, uint32_t token, const uint16_t *out) {
    const struct attention_shape *s = &world->shape;
    double *weights = must_have((token + 1) * sizeof *weights);
    for (uint32_t head = 0; head < s->heads; head++) {
        const float *q = world->q + ((size_t)token * s->heads + head) * s->k_dim;
        expected_weights(world, q, head / (s->heads / s->kv_heads), token, weights);
        check_head(world, token, head, weights, out + (size_t)head * s->v_dim);
    }
    free(weights);
}

/* One difference, as a line. */
static void print_difference(const struct attention_world *world, uint32_t first_token, size_t i,
    uint16_t got, uint16_t expected) {
    const struct attention_shape *s = &world->shape;
    print_message("token %zu, head %zu, element %zu: bits %04x instead of %04x\n",
        first_token + i / s->v_dim / s->heads, i / s->v_dim % s->heads, i % s->v_dim, got,
        expected);
}

void attention_check_equal(const struct attention_world *world, uint32_t first_token,
    const uint16_t *got, const uint16_t *expected, uint32_t tokens, const char *what) {
    const struct attention_shape *s = &world->shape;
    const size_t elements = (size_t)tokens * s->heads * s->v_dim;
    size_t differences = 0;
    for (size_t i = 0; i < elements; i++) {
        if (got[i] != expected[i] && differences++ < DIFFERENCES_SHOWN) {
            print_difference(world, first_token, i, got[i], expected[i]);
        }
    }
    if (differences != 0) {
        fail_msg("%s: %zu of %zu elements differ, the first of them above (tokens %u from %u on, "
                 "heads %u/%u, dims %u/%u, block %u, dtype %d)",
            what, differences, elements, tokens, first_token, s->heads, s->kv_heads, s->k_dim,
            s->v_dim, s->block_tokens, (int)s->kv_dtype);
    }
}
