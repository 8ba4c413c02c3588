/* attention_prefill.h - causal attention of a chunk on tensor cores: FlashAttention-2's loop (Dao
 * 2023) over paged keys and values.
 *
 * A row is one query: row r of a KV head is token r / group, query head r % group of those that
 * share the KV head, so that they share its loads. A CTA takes 128 rows of one KV head, each of its
 * four warps 32 of them, and goes through tiles of 64 positions from position 0 on; with 256
 * elements, half as many rows and positions, for want of registers and shared memory. While a tile
 * is multiplied, the copy unit brings the next one. Shared memory:
 *
 *   queries [128 rows] | keys, values [64 rows] of even tiles | the same of odd tiles | addresses
 *
 * A row has k_dim elements and 16 bytes more, so that ldmatrix finds the same column of eight
 * successive rows in different banks. `addresses` holds the blocks of a tile's runs of 16
 * positions, for three tiles: the one in use, the next, and the one after that, whose addresses
 * come along with the next tile's bytes.
 *
 * Bits: products, maximum, and sums of a row are done in an order that its position alone decides.
 * A tile behind a row's position changes nothing: probabilities are exactly 0, the maximum stays,
 * and what was summed is multiplied by exactly 1. So it matters not whether a warp skips it. Rows
 * of values behind the last position are zero, whatever memory holds there.
 *
 * With a window (LIMITED) a CTA begins at the first tile that its first row sees something of, and
 * a warp at that of its own. A tile that a row's window has left behind comes before all that the
 * row sees: its maximum is still minus infinity, its sums are +0, and they stay so. So here too it
 * matters not who passes it over. Positions before the CTA's first row's window are zeros in shared
 * memory and not read; addresses are those of blocks that the row sees. */
#ifndef KVL_CUDA_ATTENTION_PREFILL_H
#define KVL_CUDA_ATTENTION_PREFILL_H

#include "attention_kv.h"

template <int DIM> struct kvl_prefill_shape {
    static constexpr uint32_t WARPS = 4;
    static constexpr uint32_t THREADS = WARPS * KVL_WARP_LANES;
    static constexpr int FRAGMENTS = DIM > 128 ? 1 : 2; /* A fragments, of 16 rows, a warp */
    static constexpr uint32_t ROWS_A_WARP = 16 * FRAGMENTS;
    static constexpr uint32_t ROWS = WARPS * ROWS_A_WARP;
    static constexpr uint32_t TILE = DIM > 128 ? KVL_ATTENTION_TILE / 2 : KVL_ATTENTION_TILE;
    static constexpr uint32_t ROW_CHUNKS = DIM / 8; /* of 16 bytes */
    static constexpr uint32_t ROW_BYTES = DIM * 2 + 16;
    static constexpr uint32_t KEYS = ROWS * ROW_BYTES; /* offsets in shared memory */
    static constexpr uint32_t TILE_BYTES = TILE * ROW_BYTES;
    static constexpr uint32_t ADDRESSES = KEYS + 4 * TILE_BYTES;
    static constexpr uint32_t RUN = 16; /* positions with one address */
    static constexpr uint32_t RUNS = TILE / RUN;
    static constexpr uint32_t SHARED_BYTES = ADDRESSES + 3 * RUNS * 8;
    typedef float scores[FRAGMENTS][TILE / 8][4]; /* a lane's: fragments C of 8 columns */
    static_assert(DIM % 16 == 0 && ROW_BYTES / 16 % 2 == 1, "rows in different banks");
};

/* What a CTA works on. */
struct kvl_prefill_place {
    uint32_t first_row, rows; /* the CTA's first one, and of all CTAs of the KV head */
    uint32_t kv_head;
    uint32_t start, end; /* positions of the chunk's first token, and behind its last */
    uint32_t tiles;      /* behind the last one that its last row needs */
    uint32_t seen;       /* the first position that its first row sees; not LIMITED: 0 */
};

template <int DIM, bool LIMITED>
KVL_DEVICE kvl_prefill_place kvl_prefill_place_of(const kvl_attention_args &a) {
    using shape = kvl_prefill_shape<DIM>;
    kvl_prefill_place place;
    /* The last rows see the most: started first, they leave no SM waiting at the end. */
    place.first_row = (kvl_grid_x() - 1 - kvl_block_x()) * shape::ROWS;
    place.rows = a.tokens * a.group;
    place.kv_head = kvl_block_y();
    place.start = *a.position;
    place.end = place.start + a.tokens;
    const uint32_t last = kvl_min(place.first_row + shape::ROWS, place.rows) - 1;
    place.tiles = (place.start + last / a.group) / shape::TILE + 1;
    place.seen = LIMITED ? kvl_first_seen(a, place.start + place.first_row / a.group) : 0;
    return place;
}

/* Byte offset of a row's first element in q or out. */
KVL_DEVICE uint64_t kvl_prefill_row_offset(
    const kvl_attention_args &a, const kvl_prefill_place &place, uint32_t row, uint32_t dim) {
    const uint64_t head = place.kv_head * a.group + row % a.group;
    return ((uint64_t)(row / a.group) * a.heads + head) * dim * 2;
}

template <int DIM, bool BF16>
KVL_DEVICE void kvl_prefill_load_queries(
    const kvl_attention_args &a, const kvl_prefill_place &place) {
    using shape = kvl_prefill_shape<DIM>;
    for (uint32_t i = kvl_thread(); i < shape::ROWS * shape::ROW_CHUNKS; i += shape::THREADS) {
        const uint32_t row = i / shape::ROW_CHUNKS, chunk = i % shape::ROW_CHUNKS;
        uint4 q = make_uint4(0, 0, 0, 0);
        if (place.first_row + row < place.rows) {
            q = kvl_load_query_8<BF16>(
                a.q + kvl_prefill_row_offset(a, place, place.first_row + row, DIM) + chunk * 16);
        }
        *(uint4 *)kvl_shared_pointer(row * shape::ROW_BYTES + chunk * 16) = q;
    }
}

/* Brings the addresses of a tile's blocks; behind the end that of the last block, and before the
 * window that of the first. */
template <int DIM, bool LIMITED>
KVL_DEVICE void kvl_prefill_fetch_addresses(
    const kvl_attention_args &a, const kvl_prefill_place &place, uint32_t tile) {
    using shape = kvl_prefill_shape<DIM>;
    const uint32_t run = kvl_thread();
    if (run < shape::RUNS) {
        uint32_t position = kvl_min(tile * shape::TILE + run * shape::RUN, place.end - 1);
        if (LIMITED) {
            position = kvl_max(position, place.seen);
        }
        kvl_copy_async_8(kvl_shared_base() + shape::ADDRESSES + (tile % 3 * shape::RUNS + run) * 8,
            a.blocks + (position >> a.block_shift));
    }
}

/* Brings the keys, or the values, of a tile whose addresses are there. */
template <int DIM, int DTYPE, bool LIMITED>
KVL_DEVICE void kvl_prefill_fetch_rows(const kvl_attention_args &a, const kvl_prefill_place &place,
    uint32_t tile, uint64_t offset_bytes, uint32_t to) {
    using shape = kvl_prefill_shape<DIM>;
    constexpr uint32_t ELEMENT = kvl_kv_type<DTYPE>::BYTES;
    const uint32_t first = tile * shape::TILE;
    const uint32_t in_block = first & (a.block_tokens - 1);
#pragma unroll
    for (uint32_t i = 0; i < shape::TILE * shape::ROW_CHUNKS / shape::THREADS; i++) {
        const uint32_t piece = kvl_thread() + i * shape::THREADS;
        const uint32_t row = piece / shape::ROW_CHUNKS, chunk = piece % shape::ROW_CHUNKS;
        const uint8_t *block = *(const uint8_t **)kvl_shared_pointer(
            shape::ADDRESSES + (tile % 3 * shape::RUNS + row / shape::RUN) * 8);
        const uint32_t token = (in_block + row) & (a.block_tokens - 1);
        const uint8_t *from = block + offset_bytes + (token * DIM + chunk * 8) * ELEMENT;
        const uint32_t at = to + row * shape::ROW_BYTES + chunk * 16;
        const bool valid = first + row < place.end && (!LIMITED || first + row >= place.seen);
        if (DTYPE == KVL_KV_F32) {
            *(uint4 *)kvl_shared_pointer(at) =
                valid ? kvl_load_kv_8<DTYPE>(from) : make_uint4(0, 0, 0, 0);
        } else {
            kvl_copy_async_16(kvl_shared_base() + at, from, valid);
        }
    }
}

template <int DIM, int DTYPE, bool LIMITED>
KVL_DEVICE void kvl_prefill_fetch_tile(
    const kvl_attention_args &a, const kvl_prefill_place &place, uint32_t tile) {
    using shape = kvl_prefill_shape<DIM>;
    constexpr uint32_t ELEMENT = kvl_kv_type<DTYPE>::BYTES;
    const uint64_t of_head = (uint64_t)place.kv_head * a.block_tokens * DIM * ELEMENT;
    const uint32_t keys = shape::KEYS + tile % 2 * 2 * shape::TILE_BYTES;
    kvl_prefill_fetch_rows<DIM, DTYPE, LIMITED>(
        a, place, tile, a.keys_offset_bytes + of_head, keys);
    kvl_prefill_fetch_rows<DIM, DTYPE, LIMITED>(
        a, place, tile, a.values_offset_bytes + of_head, keys + shape::TILE_BYTES);
    kvl_prefill_fetch_addresses<DIM, LIMITED>(a, place, tile + 1);
}

/* A lane's part of its warp's rows: fragments C of rows 0-15 and, where there are two, 16-31. Half
 * h of fragment m is row 16m + 8h + lane / 4. */
template <int DIM> struct kvl_prefill_rows {
    static constexpr int FRAGMENTS = kvl_prefill_shape<DIM>::FRAGMENTS;
    float out[FRAGMENTS][DIM / 8][4];
    float max[FRAGMENTS][2]; /* times scale and log2(e) */
    float sum[FRAGMENTS][2]; /* of this lane's columns */
};

typedef float kvl_prefill_scores[2][KVL_ATTENTION_TILE / 8][4]; /* with up to 128 elements */

/* scores = queries keys^T; `queries` and `keys` are this lane's ldmatrix rows. */
template <int DIM, bool BF16>
KVL_DEVICE void kvl_prefill_score(
    kvl_shared queries, kvl_shared keys, typename kvl_prefill_shape<DIM>::scores &scores) {
    using shape = kvl_prefill_shape<DIM>;
#pragma unroll
    for (int m = 0; m < shape::FRAGMENTS; m++) {
#pragma unroll
        for (int n = 0; n < shape::TILE / 8; n++) {
            scores[m][n][0] = scores[m][n][1] = scores[m][n][2] = scores[m][n][3] = 0.0f;
        }
    }
#pragma unroll
    for (int k = 0; k < DIM / 16; k++) {
        uint32_t q[shape::FRAGMENTS][4];
#pragma unroll
        for (int m = 0; m < shape::FRAGMENTS; m++) {
            kvl_ldmatrix(q[m], queries + m * 16 * shape::ROW_BYTES + k * 32);
        }
#pragma unroll
        for (int n = 0; n < shape::TILE / 16; n++) {
            uint32_t b[4];
            kvl_ldmatrix(b, keys + n * 16 * shape::ROW_BYTES + k * 32);
#pragma unroll
            for (int m = 0; m < shape::FRAGMENTS; m++) {
                kvl_mma<BF16>(scores[m][2 * n], q[m], b[0], b[1]);
                kvl_mma<BF16>(scores[m][2 * n + 1], q[m], b[2], b[3]);
            }
        }
    }
}

/* Position of half h of fragment m. */
KVL_DEVICE uint32_t kvl_prefill_position(const kvl_attention_args &a,
    const kvl_prefill_place &place, uint32_t warp_row, uint32_t lane, int m, int h) {
    return place.start + (warp_row + 16 * m + 8 * h + lane / 4) / a.group;
}

/* Minus infinity for what lies behind a row's position. */
template <int FRAGMENTS, int EIGHTHS>
KVL_DEVICE void kvl_prefill_mask(const kvl_attention_args &a, const kvl_prefill_place &place,
    uint32_t warp_row, uint32_t tile, float (&scores)[FRAGMENTS][EIGHTHS][4]) {
    const uint32_t lane = kvl_thread() % KVL_WARP_LANES;
#pragma unroll
    for (int m = 0; m < FRAGMENTS; m++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint32_t position = kvl_prefill_position(a, place, warp_row, lane, m, h);
#pragma unroll
            for (int n = 0; n < EIGHTHS; n++) {
                const uint32_t column = tile * (8 * EIGHTHS) + n * 8 + lane % 4 * 2;
                scores[m][n][2 * h] = column <= position ? scores[m][n][2 * h] : -INFINITY;
                scores[m][n][2 * h + 1] =
                    column + 1 <= position ? scores[m][n][2 * h + 1] : -INFINITY;
            }
        }
    }
}

/* Minus infinity for what a row's window has left behind. */
template <int FRAGMENTS, int EIGHTHS>
KVL_DEVICE void kvl_prefill_mask_hidden(const kvl_attention_args &a, const kvl_prefill_place &place,
    uint32_t warp_row, uint32_t tile, float (&scores)[FRAGMENTS][EIGHTHS][4]) {
    const uint32_t lane = kvl_thread() % KVL_WARP_LANES;
#pragma unroll
    for (int m = 0; m < FRAGMENTS; m++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint32_t seen =
                kvl_first_seen(a, kvl_prefill_position(a, place, warp_row, lane, m, h));
#pragma unroll
            for (int n = 0; n < EIGHTHS; n++) {
                const uint32_t column = tile * (8 * EIGHTHS) + n * 8 + lane % 4 * 2;
                scores[m][n][2 * h] = column >= seen ? scores[m][n][2 * h] : -INFINITY;
                scores[m][n][2 * h + 1] = column + 1 >= seen ? scores[m][n][2 * h + 1] : -INFINITY;
            }
        }
    }
}

template <int FRAGMENTS, int EIGHTHS>
KVL_DEVICE void kvl_prefill_cap(
    const kvl_attention_args &a, float (&scores)[FRAGMENTS][EIGHTHS][4]) {
#pragma unroll
    for (int m = 0; m < FRAGMENTS; m++) {
#pragma unroll
        for (int n = 0; n < EIGHTHS; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                scores[m][n][e] = kvl_cap_score(a, scores[m][n][e]);
            }
        }
    }
}

/* Of half h of a fragment's rows: the largest of a row, in all lanes that hold some of it. */
template <int EIGHTHS>
KVL_DEVICE float kvl_prefill_max_of(const float (&scores)[EIGHTHS][4], int h) {
    float max = fmaxf(scores[0][2 * h], scores[0][2 * h + 1]);
#pragma unroll
    for (int n = 1; n < EIGHTHS; n++) {
        max = fmaxf(max, fmaxf(scores[n][2 * h], scores[n][2 * h + 1]));
    }
    max = fmaxf(max, kvl_shuffle_xor(max, 1));
    return fmaxf(max, kvl_shuffle_xor(max, 2));
}
/* Of the same: scores become probabilities relative to `max`. Returns the sum of this lane's. */
template <int EIGHTHS>
KVL_DEVICE float kvl_prefill_weigh(
    float scale_log2, float max, float (&scores)[EIGHTHS][4], int h) {
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < EIGHTHS; n++) {
#pragma unroll
        for (int e = 2 * h; e < 2 * h + 2; e++) {
            scores[n][e] = kvl_exp2(fmaf(scores[n][e], scale_log2, -max));
            sum += scores[n][e];
        }
    }
    return sum;
}

/* Scores become probabilities relative to the new maximum; what was summed is brought to it. */
template <int DIM, bool LIMITED>
KVL_DEVICE void kvl_prefill_softmax(float scale_log2,
    typename kvl_prefill_shape<DIM>::scores &scores, kvl_prefill_rows<DIM> &rows) {
    using shape = kvl_prefill_shape<DIM>;
#pragma unroll
    for (int m = 0; m < shape::FRAGMENTS; m++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float max = fmaxf(rows.max[m][h], kvl_prefill_max_of(scores[m], h) * scale_log2);
            const float old_max = rows.max[m][h];
            rows.max[m][h] = max;
            if (LIMITED) { /* a row that has seen nothing yet: all of it is 0, not NaN */
                max = max == -INFINITY ? 0.0f : max;
            }
            const float shrink = kvl_exp2(old_max - max);
            const float sum = kvl_prefill_weigh(scale_log2, max, scores[m], h);
            /* Spelled out, so that every unrolled copy rounds alike, wherever a row stands. */
            rows.sum[m][h] = fmaf(rows.sum[m][h], shrink, sum);
#pragma unroll
            for (int n = 0; n < DIM / 8; n++) {
                rows.out[m][n][2 * h] *= shrink;
                rows.out[m][n][2 * h + 1] *= shrink;
            }
        }
    }
}

/* out += probabilities values. Fragments C of 16 columns are, packed, one fragment A. */
template <int DIM, bool BF16>
KVL_DEVICE void kvl_prefill_gather(const typename kvl_prefill_shape<DIM>::scores &scores,
    kvl_shared values, kvl_prefill_rows<DIM> &rows) {
    using shape = kvl_prefill_shape<DIM>;
#pragma unroll
    for (int k = 0; k < shape::TILE / 16; k++) {
        uint32_t p[shape::FRAGMENTS][4];
#pragma unroll
        for (int m = 0; m < kvl_prefill_shape<DIM>::FRAGMENTS; m++) {
            p[m][0] = kvl_pack<BF16>(scores[m][2 * k][0], scores[m][2 * k][1]);
            p[m][1] = kvl_pack<BF16>(scores[m][2 * k][2], scores[m][2 * k][3]);
            p[m][2] = kvl_pack<BF16>(scores[m][2 * k + 1][0], scores[m][2 * k + 1][1]);
            p[m][3] = kvl_pack<BF16>(scores[m][2 * k + 1][2], scores[m][2 * k + 1][3]);
        }
#pragma unroll
        for (int n = 0; n < DIM / 16; n++) {
            uint32_t b[4];
            kvl_ldmatrix_trans(b, values + k * 16 * shape::ROW_BYTES + n * 32);
#pragma unroll
            for (int m = 0; m < kvl_prefill_shape<DIM>::FRAGMENTS; m++) {
                kvl_mma<BF16>(rows.out[m][2 * n], p[m], b[0], b[1]);
                kvl_mma<BF16>(rows.out[m][2 * n + 1], p[m], b[2], b[3]);
            }
        }
    }
}

template <int DIM>
KVL_DEVICE void kvl_prefill_store(const kvl_attention_args &a, const kvl_prefill_place &place,
    uint32_t warp_row, const kvl_prefill_rows<DIM> &rows) {
    const uint32_t lane = kvl_thread() % KVL_WARP_LANES;
#pragma unroll
    for (int m = 0; m < kvl_prefill_shape<DIM>::FRAGMENTS; m++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float sum = rows.sum[m][h];
            sum += kvl_shuffle_xor(sum, 1);
            sum += kvl_shuffle_xor(sum, 2);
            const float factor = 1.0f / sum;
            const uint32_t row = warp_row + 16 * m + 8 * h + lane / 4;
            if (row < place.rows) {
                uint8_t *out = a.out + kvl_prefill_row_offset(a, place, row, DIM) + lane % 4 * 4;
#pragma unroll
                for (int n = 0; n < DIM / 8; n++) {
                    *(uint32_t *)(out + n * 16) = kvl_pack<false>(
                        rows.out[m][n][2 * h] * factor, rows.out[m][n][2 * h + 1] * factor);
                }
            }
        }
    }
}

template <int DIM> KVL_DEVICE void kvl_prefill_clear(kvl_prefill_rows<DIM> &rows) {
#pragma unroll
    for (int m = 0; m < kvl_prefill_shape<DIM>::FRAGMENTS; m++) {
        rows.max[m][0] = rows.max[m][1] = -INFINITY;
        rows.sum[m][0] = rows.sum[m][1] = 0.0f;
#pragma unroll
        for (int n = 0; n < DIM / 8; n++) {
            rows.out[m][n][0] = rows.out[m][n][1] = rows.out[m][n][2] = rows.out[m][n][3] = 0.0f;
        }
    }
}

/* All of a warp's rows over one tile that is in shared memory. */
template <int DIM, bool BF16, bool LIMITED>
KVL_DEVICE void kvl_prefill_attend_tile(const kvl_attention_args &a, const kvl_prefill_place &place,
    uint32_t warp_row, uint32_t tile, kvl_prefill_rows<DIM> &rows) {
    using shape = kvl_prefill_shape<DIM>;
    const uint32_t lane = kvl_thread() % KVL_WARP_LANES;
    const struct kvl_lane_row of_a = kvl_lane_row_of_a(lane), of_b = kvl_lane_row_of_b(lane);
    const kvl_shared shared = kvl_shared_base();
    const kvl_shared queries =
        shared + (warp_row - place.first_row + of_a.row) * shape::ROW_BYTES + of_a.column * 2;
    const kvl_shared keys = shared + shape::KEYS + tile % 2 * 2 * shape::TILE_BYTES;
    typename shape::scores scores;
    kvl_prefill_score<DIM, BF16>(
        queries, keys + of_b.row * shape::ROW_BYTES + of_b.column * 2, scores);
    if (LIMITED && a.cap_log2 != 0.0f) {
        kvl_prefill_cap(a, scores);
    }
    if (tile * shape::TILE + shape::TILE - 1 > place.start + warp_row / a.group) {
        kvl_prefill_mask(a, place, warp_row, tile, scores);
    }
    if (LIMITED) {
        const uint32_t last = (warp_row + shape::ROWS_A_WARP - 1) / a.group;
        if (tile * shape::TILE < kvl_first_seen(a, place.start + last)) {
            kvl_prefill_mask_hidden(a, place, warp_row, tile, scores);
        }
    }
    kvl_prefill_softmax<DIM, LIMITED>(a.scale_log2, scores, rows);
    kvl_prefill_gather<DIM, BF16>(
        scores, keys + shape::TILE_BYTES + of_a.row * shape::ROW_BYTES + of_a.column * 2, rows);
}

template <int DIM, int DTYPE, bool LIMITED>
KVL_DEVICE void kvl_prefill(const kvl_attention_args &a) {
    using shape = kvl_prefill_shape<DIM>;
    constexpr bool BF16 = kvl_kv_type<DTYPE>::BF16;
    const kvl_prefill_place place = kvl_prefill_place_of<DIM, LIMITED>(a);
    const uint32_t warp_row = place.first_row + kvl_thread() / KVL_WARP_LANES * shape::ROWS_A_WARP;
    /* Tiles of this warp: none when all its rows are behind the last token. */
    const uint32_t last = kvl_min(warp_row + shape::ROWS_A_WARP, place.rows) - 1;
    const uint32_t tiles =
        warp_row < place.rows ? (place.start + last / a.group) / shape::TILE + 1 : 0;
    const uint32_t first = place.seen / shape::TILE; /* of the CTA */
    const uint32_t warp_first =
        LIMITED ? kvl_first_seen(a, place.start + warp_row / a.group) / shape::TILE : 0;
    kvl_prefill_fetch_addresses<DIM, LIMITED>(a, place, first);
    kvl_copy_async_commit();
    kvl_prefill_load_queries<DIM, BF16>(a, place);
    kvl_copy_async_wait();
    kvl_barrier();
    kvl_prefill_fetch_tile<DIM, DTYPE, LIMITED>(a, place, first);
    kvl_copy_async_commit();
    kvl_prefill_rows<DIM> rows;
    kvl_prefill_clear(rows);
#pragma unroll 1
    for (uint32_t tile = first; tile < place.tiles; tile++) {
        kvl_copy_async_wait();
        /* Shows the tile to all, after all have read the one whose place the next one takes. */
        kvl_barrier();
        if (tile + 1 < place.tiles) {
            kvl_prefill_fetch_tile<DIM, DTYPE, LIMITED>(a, place, tile + 1);
            kvl_copy_async_commit();
        }
        if (tile < tiles && (!LIMITED || tile >= warp_first)) {
            kvl_prefill_attend_tile<DIM, BF16, LIMITED>(a, place, warp_row, tile, rows);
        }
    }
    kvl_prefill_store<DIM>(a, place, warp_row, rows);
}

#endif
