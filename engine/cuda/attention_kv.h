/* attention_kv.h - what the attention kernels are launched with, and how they find keys and values.
 *
 * Scores are kept times log2(e), so that exponentials are powers of two. */
#ifndef KVL_CUDA_ATTENTION_KV_H
#define KVL_CUDA_ATTENTION_KV_H

#include "attention.h"
#include "warp.h"

/* Positions of a KV tile, counted from position 0: whatever block_tokens is, and so the bits. */
enum { KVL_ATTENTION_TILE = 64 };

/* Passed by value. */
struct kvl_attention_args {
    const uint8_t *q; /* f16 [tokens][heads][k_dim] */
    uint8_t *out;     /* f16 [tokens][heads][v_dim] */
    const uint8_t *const *blocks;
    const uint32_t *position;
    uint64_t keys_offset_bytes, values_offset_bytes; /* of KV head 0 within a block */
    uint32_t block_tokens;
    uint32_t block_shift; /* log2(block_tokens), where that is a whole number */
    uint32_t heads, kv_heads;
    uint32_t group; /* query heads a KV head */
    uint32_t k_dim, v_dim;
    uint32_t tokens;
    float scale_log2; /* scale * log2(e); with a cap 1: what is capped is scaled already */
    enum kvl_kv_dtype kv_dtype;
    float *parts;    /* decode: see attention_decode.h */
    uint32_t window; /* tokens that each sees; 0: all before it */
    float cap_log2;  /* cap * log2(e); 0: scores have none */
    float cap_scale; /* scale / cap */
};

/* dtype is a template's argument in the tensor-core kernels: f32 is rounded to f16 on load, and
 * with bf16 the queries and probabilities become bf16 too. */
template <int DTYPE> struct kvl_kv_type {
    static constexpr bool BF16 = DTYPE == KVL_KV_BF16;
    static constexpr uint32_t BYTES = DTYPE == KVL_KV_F32 ? 4 : 2;
};

/* Eight elements as the tensor cores take them. `from` is 16-byte aligned. */
template <int DTYPE> KVL_DEVICE uint4 kvl_load_kv_8(const uint8_t *from) {
    const uint4 first = kvl_load_once_16(from);
    if (DTYPE != KVL_KV_F32) {
        return first;
    }
    const uint4 second = kvl_load_once_16(from + 16);
    return make_uint4(kvl_pack<false>(kvl_f32_of_bits(first.x), kvl_f32_of_bits(first.y)),
        kvl_pack<false>(kvl_f32_of_bits(first.z), kvl_f32_of_bits(first.w)),
        kvl_pack<false>(kvl_f32_of_bits(second.x), kvl_f32_of_bits(second.y)),
        kvl_pack<false>(kvl_f32_of_bits(second.z), kvl_f32_of_bits(second.w)));
}
/* Four of them. `from` is 8-byte aligned, 16-byte for f32. */
template <int DTYPE> KVL_DEVICE uint2 kvl_load_kv_4(const uint8_t *from) {
    if (DTYPE != KVL_KV_F32) {
        return kvl_load_once_8(from);
    }
    const uint4 four = kvl_load_once_16(from);
    return make_uint2(kvl_pack<false>(kvl_f32_of_bits(four.x), kvl_f32_of_bits(four.y)),
        kvl_pack<false>(kvl_f32_of_bits(four.z), kvl_f32_of_bits(four.w)));
}

/* Eight elements of a query, of the type that keys are multiplied in. */
template <bool BF16> KVL_DEVICE uint4 kvl_load_query_8(const uint8_t *from) {
    const uint4 q = *(const uint4 *)from;
    return BF16 ? make_uint4(kvl_bf16_of_f16(q.x), kvl_bf16_of_f16(q.y), kvl_bf16_of_f16(q.z),
                      kvl_bf16_of_f16(q.w))
                : q;
}

KVL_DEVICE uint32_t kvl_min(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}
KVL_DEVICE uint32_t kvl_max(uint32_t a, uint32_t b) {
    return a < b ? b : a;
}

/* ---- windows and caps: in kernels of their own (LIMITED), so that the others' code stays ---- */

/* The first position that the token at `position` sees. */
KVL_DEVICE uint32_t kvl_first_seen(const kvl_attention_args &a, uint32_t position) {
    return a.window == 0 || position < a.window ? 0 : position - a.window + 1;
}

/* cap * tanh(x) * log2(e) of x = score * scale / cap: where x is large, tanh(x) = 1 - 2 / (e^(2x) +
 * 1), else its series, since that difference would leave too few digits. Every step is spelled out,
 * so that all places round alike. */
KVL_DEVICE float kvl_cap_score(const kvl_attention_args &a, float score) {
    const float x = score * a.cap_scale, square = x * x;
    const float half = kvl_reciprocal(kvl_exp2(x * 2.8853900817779268f) + 1.0f);
    float series = fmaf(square, 62.0f / 2835.0f, -17.0f / 315.0f);
    series = fmaf(square, series, 2.0f / 15.0f);
    series = fmaf(square, series, -1.0f / 3.0f);
    series = fmaf(square * x, series, x) * a.cap_log2;
    return fabsf(x) < 0.25f ? series : fmaf(-2.0f * a.cap_log2, half, a.cap_log2);
}

#endif
