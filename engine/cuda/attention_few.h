/* attention_few.h - prefill attention of few rows over a long context, spread over the GPU, with
 * the bits of attention_prefill.h.
 *
 * There a CTA goes through all tiles with its rows, so few rows occupy few multiprocessors. Here
 * only what is a chain of roundings over tiles is done in that order:
 *
 *   score   a warp a tile: scores (a chain over k_dim only), masked, and each row's maximum in the
 *           tile. Reads the keys.
 *   weigh   a warp four tiles: the maximum up to a tile is that of all tiles' before it, in any
 *           order. Scores become probabilities, as 16-bit fragments, with their sum in each lane
 *           and what the sums so far shrink by.
 *   gather  (attention_few_gather.h) a warp some columns of the values, through all tiles: they
 *           are independent, and each is a chain. Nothing is left to do but that: shrink, and
 *           four dependent mma a tile, whose operands are fetched a dozen tiles ahead. Reads the
 *           values.
 *
 * What these compute is what attention_prefill.h computes, with its functions, on the same
 * fragments, so a row's bits do not tell which of both was taken.
 *
 * Rows are numbered as there, and taken in blocks of 8, 16 or 32 (`HALVES` of fragments of 16); 8
 * when there are no more. As many blocks go through the three kernels at once as the scratch holds.
 *
 * Scratch: units of 2,048 bytes [KV head][block][tile][half], then maxima f32 [KV head][block]
 * [row of the block][tile], times scale and log2(e). A unit is in turn
 *
 *   f32 scores   uint4 [4][lane]: of score i columns 2t, 2t+1 of n = 2i, then of n = 2i + 1
 *   weighed      uint32 [10][lane]: of k step i in 2i and 2i + 1 a lane's words of fragment A for
 *                columns 2t, 2t+1 and 2t+8, 2t+9; then as f32 what sums so far shrink by, and the
 *                sum of this lane's columns */
#ifndef KVL_CUDA_ATTENTION_FEW_H
#define KVL_CUDA_ATTENTION_FEW_H

#include "attention_prefill.h"

enum {
    KVL_FEW_QUAD = 4, /* tiles a CTA scores, and a warp weighs; maxima are padded to it */
    KVL_FEW_WARPS = 4,
    KVL_FEW_THREADS = KVL_FEW_WARPS * KVL_WARP_LANES, /* of score and weigh */
    KVL_FEW_HALF_ROWS = 8,
    KVL_FEW_UNIT_BYTES = 2048, /* a half's part of a tile */
    KVL_FEW_SHRINK = 8,        /* of a weighed unit's words */
    KVL_FEW_SUM = 9,
    KVL_FEW_WEIGHED_BYTES = 10 * KVL_WARP_LANES * 4,
    KVL_FEW_HALF_BYTES = KVL_FEW_UNIT_BYTES + KVL_FEW_HALF_ROWS * 4, /* scratch a half and tile */
};

/* Passed by value. */
struct kvl_few_args {
    kvl_attention_args a;
    uint32_t first_row;    /* of block 0 */
    uint32_t blocks;       /* of rows, in this launch */
    uint32_t halves;       /* a block */
    uint32_t tiles_stride; /* a multiple of KVL_FEW_QUAD; no context has more tiles */
    uint8_t *units;
    float *maxima;
};

template <int DIM, int HALVES> struct kvl_few_shape {
    static constexpr uint32_t TILE = KVL_ATTENTION_TILE;
    static constexpr uint32_t ROWS = HALVES * KVL_FEW_HALF_ROWS;
    /* Shared memory of score: queries [32 rows] | keys [64 rows] of each warp. */
    static constexpr uint32_t ROW_BYTES = kvl_prefill_shape<DIM>::ROW_BYTES;
    static constexpr uint32_t QUERY_ROWS = kvl_prefill_shape<DIM>::ROWS_A_WARP;
    static constexpr uint32_t KEYS = QUERY_ROWS * ROW_BYTES;
    static constexpr uint32_t KEYS_BYTES = TILE * ROW_BYTES; /* a warp */
    static constexpr uint32_t SCORE_SHARED_BYTES = KEYS + KVL_FEW_WARPS * KEYS_BYTES;
    static_assert(SCORE_SHARED_BYTES <= 99 << 10, "all that sm_86 has");
    static_assert(HALVES == 1 || HALVES == 2 || HALVES == 4, "whole fragments, but for 8 rows");
};

/* What block `block` works on; first_row is its first, and tiles are those of its last row. */
KVL_DEVICE kvl_prefill_place kvl_few_place_of(const kvl_few_args &f, uint32_t block) {
    const uint32_t block_rows = f.halves * KVL_FEW_HALF_ROWS;
    kvl_prefill_place place;
    place.first_row = f.first_row + block * block_rows;
    place.rows = f.a.tokens * f.a.group;
    place.kv_head = kvl_block_y();
    place.start = *f.a.position;
    place.end = place.start + f.a.tokens;
    const uint32_t last = kvl_min(place.first_row + block_rows, place.rows) - 1;
    place.tiles = (place.start + last / f.a.group) / KVL_ATTENTION_TILE + 1;
    place.seen = 0;
    return place;
}

/* The units of a block's tile. */
KVL_DEVICE uint8_t *kvl_few_units(
    const kvl_few_args &f, uint32_t kv_head, uint32_t block, uint32_t tile) {
    const uint64_t at = ((uint64_t)kv_head * f.blocks + block) * f.tiles_stride + tile;
    return f.units + at * f.halves * KVL_FEW_UNIT_BYTES;
}
/* Of a row of a block, by tiles. */
KVL_DEVICE float *kvl_few_maxima(
    const kvl_few_args &f, uint32_t kv_head, uint32_t block, uint32_t row) {
    const uint64_t at = ((uint64_t)kv_head * f.blocks + block) * f.halves * KVL_FEW_HALF_ROWS + row;
    return f.maxima + at * f.tiles_stride;
}

/* The block of a position; behind the end that of the last one. */
KVL_DEVICE const uint8_t *const *kvl_few_address(
    const kvl_attention_args &a, const kvl_prefill_place &place, uint32_t position) {
    return a.blocks + (kvl_min(position, place.end - 1) >> a.block_shift);
}

/* ---- score ---- */

/* Rows that the block does not have are zero. */
template <int DIM, bool BF16, int HALVES>
KVL_DEVICE void kvl_few_load_queries(const kvl_attention_args &a, const kvl_prefill_place &place) {
    using shape = kvl_few_shape<DIM, HALVES>;
    constexpr uint32_t CHUNKS = kvl_prefill_shape<DIM>::ROW_CHUNKS;
    for (uint32_t i = kvl_thread(); i < shape::QUERY_ROWS * CHUNKS; i += KVL_FEW_THREADS) {
        const uint32_t row = i / CHUNKS, chunk = i % CHUNKS;
        uint4 q = make_uint4(0, 0, 0, 0);
        if (row < shape::ROWS && place.first_row + row < place.rows) {
            q = kvl_load_query_8<BF16>(
                a.q + kvl_prefill_row_offset(a, place, place.first_row + row, DIM) + chunk * 16);
        }
        *(uint4 *)kvl_shared_pointer(row * shape::ROW_BYTES + chunk * 16) = q;
    }
}

/* A warp brings the keys of its tile. */
template <int DIM>
KVL_DEVICE void kvl_few_fetch_keys(
    const kvl_attention_args &a, const kvl_prefill_place &place, uint32_t tile, uint32_t to) {
    using prefill = kvl_prefill_shape<DIM>;
    const uint32_t lane = kvl_thread() % KVL_WARP_LANES;
    const uint32_t first = tile * prefill::TILE, in_block = first & (a.block_tokens - 1);
    const uint64_t offset =
        a.keys_offset_bytes + (uint64_t)place.kv_head * a.block_tokens * DIM * 2;
    const uint8_t *runs[prefill::RUNS];
#pragma unroll
    for (uint32_t run = 0; run < prefill::RUNS; run++) {
        runs[run] = *kvl_few_address(a, place, first + run * prefill::RUN) + offset;
    }
#pragma unroll
    for (uint32_t run = 0; run < prefill::RUNS; run++) {
#pragma unroll
        for (uint32_t i = 0; i < prefill::RUN * prefill::ROW_CHUNKS / KVL_WARP_LANES; i++) {
            const uint32_t piece = lane + i * KVL_WARP_LANES;
            const uint32_t row = run * prefill::RUN + piece / prefill::ROW_CHUNKS;
            const uint32_t chunk = piece % prefill::ROW_CHUNKS;
            const uint32_t token = (in_block + row) & (a.block_tokens - 1);
            kvl_copy_async_16(kvl_shared_base() + to + row * prefill::ROW_BYTES + chunk * 16,
                runs[run] + (token * DIM + chunk * 8) * 2, first + row < place.end);
        }
    }
}

template <int HALVES>
KVL_DEVICE void kvl_few_store_scores(const kvl_few_args &f, const kvl_prefill_place &place,
    uint32_t block, uint32_t tile, const kvl_prefill_scores &scores) {
    const uint32_t lane = kvl_thread() % KVL_WARP_LANES;
    uint4 *unit = (uint4 *)kvl_few_units(f, place.kv_head, block, tile) + lane;
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
        const int m = half / 2, h = half % 2;
        const float max = kvl_prefill_max_of(scores[m], h) * f.a.scale_log2;
        if (lane % 4 == 0) {
            const uint32_t row = half * KVL_FEW_HALF_ROWS + lane / 4;
            kvl_few_maxima(f, place.kv_head, block, row)[tile] = max;
        }
#pragma unroll
        for (int i = 0; i < KVL_ATTENTION_TILE / 16; i++) {
            unit[(half * 4 + i) * KVL_WARP_LANES] =
                make_uint4(kvl_bits_of_f32(scores[m][2 * i][2 * h]),
                    kvl_bits_of_f32(scores[m][2 * i][2 * h + 1]),
                    kvl_bits_of_f32(scores[m][2 * i + 1][2 * h]),
                    kvl_bits_of_f32(scores[m][2 * i + 1][2 * h + 1]));
        }
    }
}

/* Block x: blocks of rows first, so that those that share keys run together; then quads of tiles.
 * Block y: the KV head. */
template <int DIM, int DTYPE, int HALVES> KVL_DEVICE void kvl_few_score(const kvl_few_args &f) {
    using shape = kvl_few_shape<DIM, HALVES>;
    constexpr bool BF16 = kvl_kv_type<DTYPE>::BF16;
    const uint32_t warp = kvl_thread() / KVL_WARP_LANES, lane = kvl_thread() % KVL_WARP_LANES;
    const uint32_t block = kvl_block_x() % f.blocks;
    const uint32_t quad = kvl_block_x() / f.blocks * KVL_FEW_QUAD, tile = quad + warp;
    const uint32_t keys = shape::KEYS + warp * shape::KEYS_BYTES;
    const kvl_prefill_place place = kvl_few_place_of(f, block);
    if (quad >= place.tiles) {
        return; /* the whole CTA */
    }
    if (tile < place.tiles) {
        kvl_few_fetch_keys<DIM>(f.a, place, tile, keys);
    }
    kvl_copy_async_commit();
    kvl_few_load_queries<DIM, BF16, HALVES>(f.a, place);
    kvl_copy_async_wait();
    kvl_barrier();
    if (tile < place.tiles) {
        const struct kvl_lane_row of_a = kvl_lane_row_of_a(lane), of_b = kvl_lane_row_of_b(lane);
        const kvl_shared shared = kvl_shared_base();
        kvl_prefill_scores scores;
        kvl_prefill_score<DIM, BF16>(shared + of_a.row * shape::ROW_BYTES + of_a.column * 2,
            shared + keys + of_b.row * shape::ROW_BYTES + of_b.column * 2, scores);
        if (tile * shape::TILE + shape::TILE - 1 > place.start + place.first_row / f.a.group) {
            kvl_prefill_mask(f.a, place, place.first_row, tile, scores);
        }
        kvl_few_store_scores<HALVES>(f, place, block, tile, scores);
    }
}

/* ---- weigh ---- */

/* Of row lane / 4 of a half, over tiles [0, quad). Shuffles: all lanes come here. */
KVL_DEVICE float kvl_few_max_before(const float *maxima, uint32_t quad) {
    float max = -INFINITY;
#pragma unroll 8
    for (uint32_t tile = kvl_thread() % 4 * KVL_FEW_QUAD; tile < quad; tile += 4 * KVL_FEW_QUAD) {
        const float4 four = *(const float4 *)(maxima + tile);
        max = fmaxf(max, fmaxf(fmaxf(four.x, four.y), fmaxf(four.z, four.w)));
    }
    max = fmaxf(max, kvl_shuffle_xor(max, 1));
    return fmaxf(max, kvl_shuffle_xor(max, 2));
}

/* One unit, whose scores are `raw`. */
template <bool BF16>
KVL_DEVICE void kvl_few_weigh_unit(
    float scale_log2, float max, float shrink, const uint4 (&raw)[4], uint8_t *unit) {
    const uint32_t lane = kvl_thread() % KVL_WARP_LANES;
    float scores[KVL_ATTENTION_TILE / 8][4]; /* half 0 of a fragment, whichever it is */
#pragma unroll
    for (int i = 0; i < 4; i++) {
        scores[2 * i][0] = kvl_f32_of_bits(raw[i].x);
        scores[2 * i][1] = kvl_f32_of_bits(raw[i].y);
        scores[2 * i + 1][0] = kvl_f32_of_bits(raw[i].z);
        scores[2 * i + 1][1] = kvl_f32_of_bits(raw[i].w);
    }
    const float sum = kvl_prefill_weigh(scale_log2, max, scores, 0);
    uint32_t *words = (uint32_t *)unit + lane;
#pragma unroll
    for (int n = 0; n < KVL_ATTENTION_TILE / 8; n++) {
        words[n * KVL_WARP_LANES] = kvl_pack<BF16>(scores[n][0], scores[n][1]);
    }
    words[KVL_FEW_SHRINK * KVL_WARP_LANES] = kvl_bits_of_f32(shrink);
    words[KVL_FEW_SUM * KVL_WARP_LANES] = kvl_bits_of_f32(sum);
}

/* Block x: halves of all blocks first, then quads by warp. Block y: the KV head. */
template <bool BF16> KVL_DEVICE void kvl_few_weigh(const kvl_few_args &f) {
    const uint32_t lane = kvl_thread() % KVL_WARP_LANES, warp = kvl_thread() / KVL_WARP_LANES;
    const uint32_t halves = f.blocks * f.halves;
    const uint32_t block = kvl_block_x() % halves / f.halves, half = kvl_block_x() % f.halves;
    const uint32_t quad = (kvl_block_x() / halves * KVL_FEW_WARPS + warp) * KVL_FEW_QUAD;
    const kvl_prefill_place place = kvl_few_place_of(f, block);
    if (quad >= place.tiles) {
        return; /* the whole warp, and no barrier is of more */
    }
    uint8_t *unit = kvl_few_units(f, place.kv_head, block, quad) + half * KVL_FEW_UNIT_BYTES;
    const uint32_t stride = f.halves * KVL_FEW_UNIT_BYTES;
    uint4 raw[KVL_FEW_QUAD][4];
#pragma unroll
    for (uint32_t i = 0; i < KVL_FEW_QUAD; i++) {
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            raw[i][j] = make_uint4(0, 0, 0, 0);
            if (quad + i < place.tiles) {
                raw[i][j] = ((const uint4 *)(unit + i * stride))[j * KVL_WARP_LANES + lane];
            }
        }
    }
    const float *maxima =
        kvl_few_maxima(f, place.kv_head, block, half * KVL_FEW_HALF_ROWS + lane / 4);
    float max = kvl_few_max_before(maxima, quad);
    const float4 four = *(const float4 *)(maxima + quad);
    const float of_tile[KVL_FEW_QUAD] = {four.x, four.y, four.z, four.w};
    kvl_warp_barrier(); /* all lanes have read what is overwritten now */
#pragma unroll
    for (uint32_t i = 0; i < KVL_FEW_QUAD; i++) {
        if (quad + i < place.tiles) {
            const float before = max;
            max = fmaxf(before, of_tile[i]);
            kvl_few_weigh_unit<BF16>(
                f.a.scale_log2, max, kvl_exp2(before - max), raw[i], unit + i * stride);
        }
    }
}

#endif
