/* attention_general.h - attention for every head size, block length and KV type, in f32 on the
 * plain cores: what the tensor-core kernels leave over (small models, odd sizes). Prefill and
 * decode alike, with the same bits.
 *
 * A warp takes one query and goes through the positions, 32 at a time (counted from 0 on): a lane
 * scores one position, then all lanes share the elements of the result. Keys and values behind the
 * query's position, or that its window has left behind, are not read. Shared memory a warp: f32
 * query [k_dim], result [v_dim], probabilities [32].
 */
#ifndef KVL_CUDA_ATTENTION_GENERAL_H
#define KVL_CUDA_ATTENTION_GENERAL_H

#include "attention_kv.h"

enum {
    KVL_GENERAL_WARPS = 4,
    KVL_GENERAL_THREADS = KVL_GENERAL_WARPS * KVL_WARP_LANES,
    KVL_GENERAL_DIM_MAX = 1024, /* of K and V: 33 KB of shared memory */
};

static inline uint32_t kvl_general_shared_bytes(const kvl_attention_args &a) {
    return KVL_GENERAL_WARPS * (a.k_dim + a.v_dim + KVL_WARP_LANES) * (uint32_t)sizeof(float);
}

KVL_DEVICE float kvl_general_element(const uint8_t *row, uint32_t i, enum kvl_kv_dtype dtype) {
    if (dtype == KVL_KV_F32) {
        return ((const float *)row)[i];
    }
    const uint16_t bits = ((const uint16_t *)row)[i];
    return dtype == KVL_KV_BF16 ? kvl_f32_of_bits((uint32_t)bits << 16) : kvl_unpack_f16(bits).x;
}

/* One query on one warp. */
struct kvl_general_row {
    float *query, *out, *probabilities; /* shared memory of the warp */
    uint32_t position;
    uint32_t seen; /* the first position that it sees; not LIMITED: 0 */
    uint32_t kv_head;
    uint32_t lane;
};

/* Keys, or values, of one position. */
KVL_DEVICE const uint8_t *kvl_general_kv(const kvl_attention_args &a, const kvl_general_row &row,
    uint32_t position, uint64_t offset_bytes, uint32_t dim) {
    const uint64_t token = (uint64_t)row.kv_head * a.block_tokens + position % a.block_tokens;
    const uint32_t element = a.kv_dtype == KVL_KV_F32 ? 4 : 2;
    return a.blocks[position / a.block_tokens] + offset_bytes + token * dim * element;
}

/* Times scale and log2(e); minus infinity for what the query does not see. */
template <bool LIMITED>
KVL_DEVICE float kvl_general_score(
    const kvl_attention_args &a, const kvl_general_row &row, uint32_t position) {
    if (position > row.position || (LIMITED && position < row.seen)) {
        return -INFINITY;
    }
    const uint8_t *key = kvl_general_kv(a, row, position, a.keys_offset_bytes, a.k_dim);
    float score = 0.0f;
    for (uint32_t d = 0; d < a.k_dim; d++) {
        score = fmaf(row.query[d], kvl_general_element(key, d, a.kv_dtype), score);
    }
    return LIMITED && a.cap_log2 != 0.0f ? kvl_cap_score(a, score) : score * a.scale_log2;
}

template <bool LIMITED>
KVL_DEVICE void kvl_general_gather(
    const kvl_attention_args &a, const kvl_general_row &row, uint32_t first, float shrink) {
    const uint32_t count = kvl_min(row.position - first + 1, KVL_WARP_LANES);
    const uint32_t hidden = LIMITED ? kvl_max(row.seen, first) - first : 0;
    for (uint32_t d = row.lane; d < a.v_dim; d += KVL_WARP_LANES) {
        float out = row.out[d] * shrink;
        for (uint32_t i = hidden; i < count; i++) {
            const uint8_t *value =
                kvl_general_kv(a, row, first + i, a.values_offset_bytes, a.v_dim);
            out = fmaf(row.probabilities[i], kvl_general_element(value, d, a.kv_dtype), out);
        }
        row.out[d] = out;
    }
}

KVL_DEVICE float kvl_warp_max(float x) {
    for (uint32_t mask = 16; mask > 0; mask /= 2) {
        x = fmaxf(x, kvl_shuffle_xor(x, mask));
    }
    return x;
}
KVL_DEVICE float kvl_warp_sum(float x) {
    for (uint32_t mask = 16; mask > 0; mask /= 2) {
        x += kvl_shuffle_xor(x, mask);
    }
    return x;
}

/* Leaves the weighted sum of values in row.out, and returns the sum of weights. */
template <bool LIMITED>
KVL_DEVICE float kvl_general_attend(const kvl_attention_args &a, const kvl_general_row &row) {
    float max = -INFINITY, sum = 0.0f;
    const uint32_t begin = row.seen / KVL_WARP_LANES * KVL_WARP_LANES;
    for (uint32_t first = begin; first <= row.position; first += KVL_WARP_LANES) {
        const float score = kvl_general_score<LIMITED>(a, row, first + row.lane);
        const float new_max = fmaxf(max, kvl_warp_max(score));
        const float p = kvl_exp2(score - new_max);
        const float shrink = kvl_exp2(max - new_max);
        sum = sum * shrink + kvl_warp_sum(p);
        max = new_max;
        row.probabilities[row.lane] = p;
        kvl_warp_barrier();
        kvl_general_gather<LIMITED>(a, row, first, shrink);
        kvl_warp_barrier();
    }
    return sum;
}

template <bool LIMITED> KVL_DEVICE void kvl_general(const kvl_attention_args &a) {
    const uint32_t warp = kvl_thread() / KVL_WARP_LANES;
    const uint64_t index = (uint64_t)kvl_block_x() * KVL_GENERAL_WARPS + warp;
    if (index >= (uint64_t)a.tokens * a.heads) {
        return; /* a whole warp, and barriers are of warps only */
    }
    const uint32_t head = (uint32_t)(index % a.heads);
    float *shared = (float *)kvl_shared_pointer(0) + warp * (a.k_dim + a.v_dim + KVL_WARP_LANES);
    kvl_general_row row;
    row.query = shared;
    row.out = shared + a.k_dim;
    row.probabilities = row.out + a.v_dim;
    row.position = *a.position + (uint32_t)(index / a.heads);
    row.seen = LIMITED ? kvl_first_seen(a, row.position) : 0;
    row.kv_head = head / a.group;
    row.lane = kvl_thread() % KVL_WARP_LANES;
    const uint16_t *q = (const uint16_t *)a.q + index * a.k_dim;
    for (uint32_t d = row.lane; d < a.k_dim; d += KVL_WARP_LANES) {
        row.query[d] = kvl_unpack_f16(q[d]).x;
    }
    for (uint32_t d = row.lane; d < a.v_dim; d += KVL_WARP_LANES) {
        row.out[d] = 0.0f;
    }
    kvl_warp_barrier();
    const float factor = 1.0f / kvl_general_attend<LIMITED>(a, row);
    uint16_t *out = (uint16_t *)a.out + index * a.v_dim;
    for (uint32_t d = row.lane; d < a.v_dim; d += KVL_WARP_LANES) {
        out[d] = (uint16_t)kvl_pack<false>(row.out[d] * factor, 0.0f);
    }
}

#endif
