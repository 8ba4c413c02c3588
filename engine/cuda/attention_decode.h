/* attention_decode.h - attention of one token: flash decoding over paged keys and values.
 *
 * The context is cut from position 0 on into parts of 256 positions; a CTA takes one part and up to
 * eight query heads that share a KV head, each of its four warps 64 positions, 16 at a time. A
 * second kernel joins the parts. Cut and order depend on positions alone, so the grid may be sized
 * for a longer context: CTAs behind the token leave at once.
 *
 * Bytes go from device memory straight into fragments, 16 a load. Products are transposed, so that
 * the eight heads are columns:
 *
 *   scores^T [16 positions][8 heads] = K [16][dim] Q^T [dim][8]
 *   out^T    [dim][8 heads]         += V^T [dim][16] P^T [16][8]
 *
 * With g = lane / 4 and t = lane % 4 (fragments: warp.h), k of a product may be numbered as suits
 * the loads, the same in both factors:
 *
 *   K: a lane loads elements 32i + 8t to 32i + 8t + 7 of positions g and g + 8. Of step 2i, columns
 *      2t, 2t+1 and 2t+8, 2t+9 are the first four of these; of step 2i+1 the last four. Q^T: the
 *      same elements of head g, so b[0], b[1] of both steps are the four words of one load.
 *   V: a lane loads 8 successive elements (4 where dim is no multiple of 64), from 8g on, of
 *      positions 2t, 2t+1, 2t+8, 2t+9. Elements 2i, 2i+1 of these are rows g and g + 8 of
 *      fragment i.
 *   P^T: C of scores^T has position g, heads 2t, 2t+1, then position g + 8; packed and transposed
 *      (movmatrix) these are positions 2t, 2t+1 of head g, then 2t+8, 2t+9: b[0] and b[1].
 *
 * Positions behind the token read the token's own keys and values, score minus infinity and weigh
 * exactly 0, so nothing outside the context is ever read. Likewise those that the window has left
 * behind read its first position, as far as they share a step with it: other steps, warps and parts
 * there are passed over, and parts there are not joined.
 *
 * Scratch: f32 out [part][head][v_dim], not divided by the sum; then {maximum, sum} [part][head].
 */
#ifndef KVL_CUDA_ATTENTION_DECODE_H
#define KVL_CUDA_ATTENTION_DECODE_H

#include "attention_kv.h"

enum {
    KVL_DECODE_PART = 256, /* positions */
    KVL_DECODE_WARPS = 4,
    KVL_DECODE_THREADS = KVL_DECODE_WARPS * KVL_WARP_LANES,
    KVL_DECODE_WARP_TOKENS = KVL_DECODE_PART / KVL_DECODE_WARPS,
    KVL_DECODE_STEP = 16,      /* positions a warp takes at a time */
    KVL_DECODE_HEADS = 8,      /* that a CTA takes */
    KVL_DECODE_PART_EXTRA = 2, /* floats a part and head besides its out */
};

static inline uint64_t kvl_decode_parts(uint32_t position_max) {
    return ((uint64_t)position_max + KVL_DECODE_PART - 1) / KVL_DECODE_PART;
}

template <int DIM> struct kvl_decode_shape {
    static constexpr int VALUES =
        DIM % 64 == 0 ? 8 : 4;                      /* elements of V that a lane loads at once */
    static constexpr int RUNS = DIM / (8 * VALUES); /* of 8 lanes' elements */
    static constexpr int FRAGMENTS = DIM / 16;
    static constexpr uint32_t HEAD_FLOATS = DIM + 2; /* spreads heads over the banks */
    static constexpr uint32_t WARP_FLOATS = KVL_DECODE_HEADS * HEAD_FLOATS;
    /* out [warp][head][HEAD_FLOATS], then {maximum, sum} [warp][head] */
    static constexpr uint32_t SUMS = KVL_DECODE_WARPS * WARP_FLOATS;
    static constexpr uint32_t SHARED_BYTES =
        (SUMS + KVL_DECODE_WARPS * KVL_DECODE_HEADS * 2) * sizeof(float);
    static_assert(DIM % 32 == 0, "runs of 32 elements of K");
    /* Threads that share one element of the result in joining parts: a CTA has 1,024 at most. */
    static constexpr uint32_t COMBINE_GROUPS = DIM > 128 ? 4 : 8;
    static constexpr uint32_t COMBINE_THREADS = DIM * COMBINE_GROUPS;
};

/* What a warp works on. */
struct kvl_decode_place {
    uint32_t part, kv_head;
    uint32_t first_head, heads; /* of the CTA, within the KV head's group */
    uint32_t count;             /* of positions in all */
    uint32_t first, end;        /* the warp's positions */
    uint32_t seen;              /* the first position that the token sees; not LIMITED: 0 */
};

template <bool LIMITED>
KVL_DEVICE kvl_decode_place kvl_decode_place_of(const kvl_attention_args &a) {
    const uint32_t slices = (a.group + KVL_DECODE_HEADS - 1) / KVL_DECODE_HEADS;
    kvl_decode_place place;
    place.part = kvl_block_x();
    place.kv_head = kvl_block_y() / slices;
    place.first_head = kvl_block_y() % slices * KVL_DECODE_HEADS;
    place.heads = kvl_min(a.group - place.first_head, KVL_DECODE_HEADS);
    place.count = *a.position + 1;
    place.first =
        place.part * KVL_DECODE_PART + kvl_thread() / KVL_WARP_LANES * KVL_DECODE_WARP_TOKENS;
    place.end = kvl_min(place.first + KVL_DECODE_WARP_TOKENS, place.count);
    place.seen = LIMITED ? kvl_first_seen(a, place.count - 1) : 0;
    return place;
}

/* A lane's part of a warp's work. Columns of C are heads 2t and 2t + 1. */
template <int DIM> struct kvl_decode_state {
    uint32_t q[DIM / 32][4];
    float out[kvl_decode_shape<DIM>::FRAGMENTS][4];
    float max[2], sum[2]; /* sum: of this lane's positions */
};

template <int DIM, bool BF16>
KVL_DEVICE void kvl_decode_begin(
    const kvl_attention_args &a, const kvl_decode_place &place, kvl_decode_state<DIM> &state) {
    const uint32_t lane = kvl_thread() % KVL_WARP_LANES, g = lane / 4, t = lane % 4;
    const uint64_t head = place.kv_head * a.group + place.first_head + g;
#pragma unroll
    for (int i = 0; i < DIM / 32; i++) {
        uint4 q = make_uint4(0, 0, 0, 0);
        if (g < place.heads) {
            q = kvl_load_query_8<BF16>(a.q + (head * DIM + 32 * i + 8 * t) * 2);
        }
        state.q[i][0] = q.x, state.q[i][1] = q.y, state.q[i][2] = q.z, state.q[i][3] = q.w;
    }
#pragma unroll
    for (int f = 0; f < kvl_decode_shape<DIM>::FRAGMENTS; f++) {
        state.out[f][0] = state.out[f][1] = state.out[f][2] = state.out[f][3] = 0.0f;
    }
    state.max[0] = state.max[1] = -INFINITY;
    state.sum[0] = state.sum[1] = 0.0f;
}

/* The position itself, if the token sees it: else one that it does, of the same step where one is
 * seen. */
template <bool LIMITED>
KVL_DEVICE uint32_t kvl_decode_position(const kvl_decode_place &place, uint32_t position) {
    const uint32_t at = kvl_min(position, place.count - 1);
    return LIMITED ? kvl_max(at, place.seen) : at;
}

/* Keys, or values, of a position in a block; the caller adds the element. */
template <int DIM, int DTYPE, bool LIMITED>
KVL_DEVICE const uint8_t *kvl_decode_row(const kvl_attention_args &a, const uint8_t *rows,
    const kvl_decode_place &place, uint32_t position) {
    const uint32_t token = kvl_decode_position<LIMITED>(place, position) & (a.block_tokens - 1);
    return rows + token * (DIM * kvl_kv_type<DTYPE>::BYTES);
}

template <int DIM> struct kvl_decode_keys { uint4 rows[2][DIM / 32]; /* positions g and g + 8 */ };

template <int DIM, int DTYPE, bool LIMITED>
KVL_DEVICE void kvl_decode_load_keys(const kvl_attention_args &a, const uint8_t *block,
    const kvl_decode_place &place, uint32_t step, kvl_decode_keys<DIM> &keys) {
    constexpr uint32_t ELEMENT = kvl_kv_type<DTYPE>::BYTES;
    const uint32_t lane = kvl_thread() % KVL_WARP_LANES, g = lane / 4, t = lane % 4;
    const uint8_t *rows =
        block + a.keys_offset_bytes + (uint64_t)place.kv_head * a.block_tokens * DIM * ELEMENT;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const uint8_t *row =
            kvl_decode_row<DIM, DTYPE, LIMITED>(a, rows, place, step + g + 8 * half) +
            8 * t * ELEMENT;
#pragma unroll
        for (int i = 0; i < DIM / 32; i++) {
            keys.rows[half][i] = kvl_load_kv_8<DTYPE>(row + 32 * i * ELEMENT);
        }
    }
}

template <int DIM> struct kvl_decode_values {
    /* [run][position 2t, 2t+1, 2t+8, 2t+9][pair of elements] */
    uint32_t words[kvl_decode_shape<DIM>::RUNS][4][kvl_decode_shape<DIM>::VALUES / 2];
};

template <int DTYPE> KVL_DEVICE void kvl_decode_load_words(const uint8_t *from, uint32_t (&to)[4]) {
    const uint4 v = kvl_load_kv_8<DTYPE>(from);
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}
template <int DTYPE> KVL_DEVICE void kvl_decode_load_words(const uint8_t *from, uint32_t (&to)[2]) {
    const uint2 v = kvl_load_kv_4<DTYPE>(from);
    to[0] = v.x, to[1] = v.y;
}

template <int DIM, int DTYPE, bool LIMITED>
KVL_DEVICE void kvl_decode_load_values(const kvl_attention_args &a, const uint8_t *block,
    const kvl_decode_place &place, uint32_t step, kvl_decode_values<DIM> &values) {
    using shape = kvl_decode_shape<DIM>;
    constexpr uint32_t ELEMENT = kvl_kv_type<DTYPE>::BYTES;
    const uint32_t lane = kvl_thread() % KVL_WARP_LANES, g = lane / 4, t = lane % 4;
    const uint8_t *rows =
        block + a.values_offset_bytes + (uint64_t)place.kv_head * a.block_tokens * DIM * ELEMENT;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t position = step + 2 * t + i % 2 + i / 2 * 8;
        const uint8_t *row = kvl_decode_row<DIM, DTYPE, LIMITED>(a, rows, place, position);
#pragma unroll
        for (int run = 0; run < shape::RUNS; run++) {
            kvl_decode_load_words<DTYPE>(
                row + (run * 8 + g) * shape::VALUES * ELEMENT, values.words[run][i]);
        }
    }
}

/* scores[e]: position g + e / 2 * 8 of the step, head 2t + e % 2 */
template <int DIM, bool BF16>
KVL_DEVICE void kvl_decode_score(
    const kvl_decode_keys<DIM> &keys, const kvl_decode_state<DIM> &state, float scores[4]) {
    scores[0] = scores[1] = scores[2] = scores[3] = 0.0f;
#pragma unroll
    for (int i = 0; i < DIM / 32; i++) {
        const uint4 low = keys.rows[0][i], high = keys.rows[1][i];
        const uint32_t first[4] = {low.x, high.x, low.y, high.y};
        const uint32_t second[4] = {low.z, high.z, low.w, high.w};
        kvl_mma<BF16>(scores, first, state.q[i][0], state.q[i][1]);
        kvl_mma<BF16>(scores, second, state.q[i][2], state.q[i][3]);
    }
}

/* Scores become probabilities relative to the new maximum; what was summed is brought to it. The
 * token sees positions `hidden` to `end` - 1 of the step, at least one. */
template <int DIM>
KVL_DEVICE void kvl_decode_softmax(float scale_log2, uint32_t hidden, uint32_t end, float scores[4],
    kvl_decode_state<DIM> &state) {
    const uint32_t g = kvl_thread() % KVL_WARP_LANES / 4;
    const bool sees_low = g >= hidden && g < end, sees_high = g + 8 >= hidden && g + 8 < end;
    float shrink[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const float low = sees_low ? scores[h] * scale_log2 : -INFINITY;
        const float high = sees_high ? scores[2 + h] * scale_log2 : -INFINITY;
        float max = fmaxf(low, high);
        max = fmaxf(max, kvl_shuffle_xor(max, 4));
        max = fmaxf(max, kvl_shuffle_xor(max, 8));
        max = fmaxf(max, kvl_shuffle_xor(max, 16));
        max = fmaxf(max, state.max[h]);
        shrink[h] = kvl_exp2(state.max[h] - max);
        state.max[h] = max;
        scores[h] = kvl_exp2(low - max);
        scores[2 + h] = kvl_exp2(high - max);
        state.sum[h] = state.sum[h] * shrink[h] + (scores[h] + scores[2 + h]);
    }
#pragma unroll
    for (int f = 0; f < kvl_decode_shape<DIM>::FRAGMENTS; f++) {
        state.out[f][0] *= shrink[0];
        state.out[f][1] *= shrink[1];
        state.out[f][2] *= shrink[0];
        state.out[f][3] *= shrink[1];
    }
}

template <int DIM, bool BF16>
KVL_DEVICE void kvl_decode_gather(
    const float scores[4], const kvl_decode_values<DIM> &values, kvl_decode_state<DIM> &state) {
    using shape = kvl_decode_shape<DIM>;
    const uint32_t b0 = kvl_movmatrix_trans(kvl_pack<BF16>(scores[0], scores[1]));
    const uint32_t b1 = kvl_movmatrix_trans(kvl_pack<BF16>(scores[2], scores[3]));
#pragma unroll
    for (int run = 0; run < shape::RUNS; run++) {
#pragma unroll
        for (int i = 0; i < shape::VALUES / 2; i++) {
            const uint32_t *v[4] = {values.words[run][0], values.words[run][1],
                values.words[run][2], values.words[run][3]};
            const uint32_t a[4] = {kvl_low_halves(v[0][i], v[1][i]),
                kvl_high_halves(v[0][i], v[1][i]), kvl_low_halves(v[2][i], v[3][i]),
                kvl_high_halves(v[2][i], v[3][i])};
            kvl_mma<BF16>(state.out[run * (shape::VALUES / 2) + i], a, b0, b1);
        }
    }
}

KVL_DEVICE void kvl_decode_cap(const kvl_attention_args &a, float scores[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        scores[i] = kvl_cap_score(a, scores[i]);
    }
}

/* A warp's positions. The keys of the next step are on their way while this one's values are
 * multiplied. */
template <int DIM, int DTYPE, bool LIMITED>
KVL_DEVICE void kvl_decode_attend(
    const kvl_attention_args &a, const kvl_decode_place &place, kvl_decode_state<DIM> &state) {
    constexpr bool BF16 = kvl_kv_type<DTYPE>::BF16;
    constexpr int STEPS = KVL_DECODE_WARP_TOKENS / KVL_DECODE_STEP;
    const uint8_t *blocks[STEPS];
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        const uint32_t position =
            kvl_decode_position<LIMITED>(place, place.first + s * KVL_DECODE_STEP);
        blocks[s] = a.blocks[position >> a.block_shift];
    }
    kvl_decode_keys<DIM> keys;
    kvl_decode_load_keys<DIM, DTYPE, LIMITED>(a, blocks[0], place, place.first, keys);
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        const uint32_t step = place.first + s * KVL_DECODE_STEP;
        if (LIMITED && step + KVL_DECODE_STEP <= place.seen) { /* behind the window */
            if (s + 1 < STEPS) {
                kvl_decode_load_keys<DIM, DTYPE, LIMITED>(
                    a, blocks[s + 1], place, step + KVL_DECODE_STEP, keys);
            }
        } else if (step < place.end) { /* the same for all lanes */
            kvl_decode_values<DIM> values;
            kvl_decode_load_values<DIM, DTYPE, LIMITED>(a, blocks[s], place, step, values);
            float scores[4];
            kvl_decode_score<DIM, BF16>(keys, state, scores);
            if (s + 1 < STEPS) {
                kvl_decode_load_keys<DIM, DTYPE, LIMITED>(
                    a, blocks[s + 1], place, step + KVL_DECODE_STEP, keys);
            }
            if (LIMITED && a.cap_log2 != 0.0f) {
                kvl_decode_cap(a, scores);
            }
            const uint32_t hidden = LIMITED ? kvl_max(place.seen, step) - step : 0;
            kvl_decode_softmax<DIM>(a.scale_log2, hidden, place.count - step, scores, state);
            kvl_decode_gather<DIM, BF16>(scores, values, state);
        }
    }
}

/* A warp's result into shared memory. */
template <int DIM> KVL_DEVICE void kvl_decode_share(kvl_decode_state<DIM> &state) {
    using shape = kvl_decode_shape<DIM>;
    const uint32_t warp = kvl_thread() / KVL_WARP_LANES;
    const uint32_t lane = kvl_thread() % KVL_WARP_LANES, g = lane / 4, t = lane % 4;
    float *shared = (float *)kvl_shared_pointer(0);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const uint32_t head = 2 * t + h;
        float *out = shared + warp * shape::WARP_FLOATS + head * shape::HEAD_FLOATS;
#pragma unroll
        for (int f = 0; f < shape::FRAGMENTS; f++) {
            const int run = f / (shape::VALUES / 2), i = f % (shape::VALUES / 2);
            const uint32_t element = (run * 8 + g) * shape::VALUES + 2 * i;
            *(float2 *)(out + element) = make_float2(state.out[f][h], state.out[f][2 + h]);
        }
        float sum = state.sum[h];
        sum += kvl_shuffle_xor(sum, 4);
        sum += kvl_shuffle_xor(sum, 8);
        sum += kvl_shuffle_xor(sum, 16);
        if (g == 0) {
            float *sums = shared + shape::SUMS + (warp * KVL_DECODE_HEADS + head) * 2;
            sums[0] = state.max[h];
            sums[1] = sum;
        }
    }
}

KVL_DEVICE float *kvl_decode_part_out(const kvl_attention_args &a, uint32_t part, uint32_t head) {
    return a.parts + ((uint64_t)part * a.heads + head) * a.v_dim;
}
/* {maximum, sum}; they stand behind all parts' out, of which there are as many as the grid has. */
KVL_DEVICE float *kvl_decode_part_sums(
    const kvl_attention_args &a, uint32_t parts, uint32_t part, uint32_t head) {
    return a.parts + (uint64_t)parts * a.heads * a.v_dim + ((uint64_t)part * a.heads + head) * 2;
}

/* The warps' results, in order, into the scratch. A warp behind the end weighs exactly 0. */
template <int DIM>
KVL_DEVICE void kvl_decode_store(const kvl_attention_args &a, const kvl_decode_place &place) {
    using shape = kvl_decode_shape<DIM>;
    const float *shared = (const float *)kvl_shared_pointer(0);
    for (uint32_t i = kvl_thread(); i < place.heads * DIM; i += KVL_DECODE_THREADS) {
        const uint32_t head = i / DIM, element = i % DIM;
        const float *sums = shared + shape::SUMS + head * 2;
        float max = sums[0];
        for (uint32_t warp = 1; warp < KVL_DECODE_WARPS; warp++) {
            max = fmaxf(max, sums[warp * KVL_DECODE_HEADS * 2]);
        }
        float out = 0.0f, sum = 0.0f;
        for (uint32_t warp = 0; warp < KVL_DECODE_WARPS; warp++) {
            const float weight = kvl_exp2(sums[warp * KVL_DECODE_HEADS * 2] - max);
            const uint32_t at = warp * shape::WARP_FLOATS + head * shape::HEAD_FLOATS + element;
            out = fmaf(weight, shared[at], out);
            sum = fmaf(weight, sums[warp * KVL_DECODE_HEADS * 2 + 1], sum);
        }
        const uint32_t global_head = place.kv_head * a.group + place.first_head + head;
        kvl_decode_part_out(a, place.part, global_head)[element] = out;
        if (element == 0) {
            float *to = kvl_decode_part_sums(a, kvl_grid_x(), place.part, global_head);
            to[0] = max;
            to[1] = sum;
        }
    }
}

template <int DIM, int DTYPE, bool LIMITED>
KVL_DEVICE void kvl_decode(const kvl_attention_args &a) {
    const kvl_decode_place place = kvl_decode_place_of<LIMITED>(a);
    if (place.part * KVL_DECODE_PART >= place.count ||
        (LIMITED && (place.part + 1) * KVL_DECODE_PART <= place.seen)) {
        return;
    }
    kvl_decode_state<DIM> state;
    kvl_decode_begin<DIM, kvl_kv_type<DTYPE>::BF16>(a, place, state);
    if (place.first < place.end && (!LIMITED || place.end > place.seen)) {
        kvl_decode_attend<DIM, DTYPE, LIMITED>(a, place, state);
    }
    kvl_decode_share<DIM>(state);
    kvl_barrier();
    kvl_decode_store<DIM>(a, place);
}

/* The first part of a group of `groups`, a power of two, that the token sees something of. */
KVL_DEVICE uint32_t kvl_combine_first(
    const kvl_attention_args &a, uint32_t group, uint32_t groups) {
    const uint32_t part = kvl_first_seen(a, *a.position) / KVL_DECODE_PART;
    return part + (group - part) % groups; /* a wrapped difference will do */
}

/* Joins the parts of one head; block x is the head. Thread (group, element) adds the parts group,
 * group + groups, ... of an element, and the first group then adds the groups in order. Parts
 * behind the window have left nothing; the others keep their groups. Shared memory: f32 {out, sum}
 * [group][element]. `parts_max`: of the first kernel's grid. */
template <int DIM, bool LIMITED>
KVL_DEVICE void kvl_decode_combine(const kvl_attention_args &a, uint32_t parts_max) {
    constexpr uint32_t GROUPS = kvl_decode_shape<DIM>::COMBINE_GROUPS;
    const uint32_t head = kvl_block_x();
    const uint32_t element = kvl_thread() % DIM, group = kvl_thread() / DIM;
    const uint32_t parts = *a.position / KVL_DECODE_PART + 1;
    const uint32_t first = LIMITED ? kvl_combine_first(a, group, GROUPS) : group;
    const float *sums = kvl_decode_part_sums(a, parts_max, 0, head);
    const uint64_t stride = (uint64_t)a.heads * 2;
    float2 *shared = (float2 *)kvl_shared_pointer(0);
    float max = -INFINITY;
#pragma unroll 8
    for (uint32_t part = first; part < parts; part += GROUPS) {
        max = fmaxf(max, sums[part * stride]);
    }
    shared[kvl_thread()].x = max;
    kvl_barrier();
#pragma unroll
    for (uint32_t other = 0; other < GROUPS; other++) {
        max = fmaxf(max, shared[other * DIM].x);
    }
    kvl_barrier(); /* all have read it */
    float out = 0.0f, sum = 0.0f;
#pragma unroll 8
    for (uint32_t part = first; part < parts; part += GROUPS) {
        const float weight = kvl_exp2(sums[part * stride] - max);
        out = fmaf(weight, kvl_decode_part_out(a, part, head)[element], out);
        sum = fmaf(weight, sums[part * stride + 1], sum);
    }
    shared[kvl_thread()] = make_float2(out, sum);
    kvl_barrier();
    if (group == 0) {
        for (uint32_t other = 1; other < GROUPS; other++) {
            out += shared[other * DIM + element].x;
            sum += shared[other * DIM + element].y;
        }
        ((uint16_t *)a.out)[(uint64_t)head * DIM + element] =
            (uint16_t)kvl_pack<false>(out / sum, 0.0f);
    }
}

#endif
