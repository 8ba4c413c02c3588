/* attention_few_gather.h - the last of the kernels of attention_few.h: a chain over all tiles.
 *
 * Three warps. One multiplies: its products wait for one another, and nothing else may come
 * between. The others bring what they need, RING - 1 tiles ahead: one values, one weighed units and
 * the addresses of values. They meet once a tile. */
#ifndef KVL_CUDA_ATTENTION_FEW_GATHER_H
#define KVL_CUDA_ATTENTION_FEW_GATHER_H

#include "attention_few.h"

enum {
    KVL_FEW_MULTIPLIES = 0, /* warps */
    KVL_FEW_COPIES_VALUES,
    KVL_FEW_COPIES_UNITS,
    KVL_FEW_GATHER_THREADS = 3 * KVL_WARP_LANES,
    KVL_FEW_WHOLE_BYTES = 1024, /* of a weighed unit, what two copies of all lanes bring */
};

/* Shared memory: a ring of tiles, each values [64 rows] | weighed units [half] | addresses. Rows of
 * values have 16 bytes more than they need, for ldmatrix. */
template <int DIM, int HALVES> struct kvl_few_gather_shape {
    static constexpr uint32_t TILE = KVL_ATTENTION_TILE;
    static constexpr int FRAGMENTS = (HALVES + 1) / 2; /* of 16 rows */
    static constexpr uint32_t COLUMNS = HALVES == 4 ? 32 : 16;
    static constexpr uint32_t SLICES = DIM / COLUMNS;
    static constexpr uint32_t RING = HALVES == 4 ? 9 : 16;
    static constexpr uint32_t VALUE_BYTES = COLUMNS * 2 + 16;
    static constexpr uint32_t VALUE_CHUNKS = COLUMNS / 8;                 /* of 16 bytes */
    static constexpr uint32_t VALUE_ROWS = KVL_WARP_LANES / VALUE_CHUNKS; /* a copy of all lanes */
    static constexpr uint32_t WEIGHED = TILE * VALUE_BYTES;
    static constexpr uint32_t ADDRESSES = WEIGHED + HALVES * KVL_FEW_WEIGHED_BYTES;
    static constexpr uint32_t RUN = kvl_prefill_shape<DIM>::RUN;
    static constexpr uint32_t RUNS = kvl_prefill_shape<DIM>::RUNS;
    static constexpr uint32_t SLOT_BYTES = ADDRESSES + RUNS * 8;
    static constexpr uint32_t SHARED_BYTES = RING * SLOT_BYTES;
    static_assert(DIM % COLUMNS == 0 && VALUE_BYTES / 16 % 2 == 1, "rows in different banks");
    static_assert(SLOT_BYTES % 16 == 0 && WEIGHED % 16 == 0, "copies of 16 bytes");
    static_assert(SHARED_BYTES <= 99 << 10, "all that sm_86 has");
};

/* Where a lane's copies come from and go to. */
struct kvl_few_copies {
    uint32_t tile;               /* that is fetched next, */
    const uint8_t *addresses[4]; /* the blocks of its runs, */
    const uint8_t *units;        /* its units */
    kvl_shared slot;             /* and where it goes */
    uint32_t row;                /* this lane's first one of a run of values, */
    uint32_t values_to;          /* its place in the slot, */
    uint64_t values_from;        /* and in a block whose first row is the run's */
    uint32_t tail_to, tail_from; /* of two units, what two whole copies of each leave */
};

template <int DIM, int HALVES>
KVL_DEVICE kvl_few_copies kvl_few_copies_of(
    const kvl_few_args &f, const kvl_prefill_place &place, uint32_t block, uint32_t first_column) {
    using shape = kvl_few_gather_shape<DIM, HALVES>;
    const uint32_t lane = kvl_thread() % KVL_WARP_LANES;
    const uint32_t chunk = lane % shape::VALUE_CHUNKS;
    kvl_few_copies c;
    c.units = kvl_few_units(f, place.kv_head, block, 0);
    c.tile = 0;
    c.slot = kvl_shared_base();
    c.row = lane / shape::VALUE_CHUNKS;
    c.values_to = c.row * shape::VALUE_BYTES + chunk * 16;
    c.values_from = f.a.values_offset_bytes +
                    ((uint64_t)place.kv_head * f.a.block_tokens + c.row) * (DIM * 2) +
                    first_column * 2 + chunk * 16;
    c.tail_to = lane / 16 * KVL_FEW_WEIGHED_BYTES + KVL_FEW_WHOLE_BYTES + lane % 16 * 16;
    c.tail_from = lane / 16 * KVL_FEW_UNIT_BYTES + KVL_FEW_WHOLE_BYTES + lane % 16 * 16;
    kvl_keep(c.values_from);
    return c;
}

/* Values of run `run` of four. */
template <int DIM, int HALVES>
KVL_DEVICE void kvl_few_fetch_values(const kvl_attention_args &a, const kvl_prefill_place &place,
    const kvl_few_copies &c, uint32_t run) {
    using shape = kvl_few_gather_shape<DIM, HALVES>;
    const uint32_t first = c.tile * shape::TILE, mask = a.block_tokens - 1;
    /* A run begins at a multiple of 16 within its block. */
    const uint32_t token = (first & mask) + (run * shape::RUN & mask);
    const uint8_t *from = c.addresses[run] + c.values_from + token * (DIM * 2);
#pragma unroll
    for (uint32_t row = 0; row < shape::RUN; row += shape::VALUE_ROWS) {
        kvl_copy_async_16(c.slot + c.values_to + (run * shape::RUN + row) * shape::VALUE_BYTES,
            from + row * (DIM * 2), first + run * shape::RUN + row + c.row < place.end);
    }
}

/* The weighed units: of each two copies of all lanes, and one for two units' tails. */
template <int DIM, int HALVES> KVL_DEVICE void kvl_few_fetch_units(const kvl_few_copies &c) {
    const kvl_shared to = c.slot + kvl_few_gather_shape<DIM, HALVES>::WEIGHED;
    const uint32_t lane = kvl_thread() % KVL_WARP_LANES;
#pragma unroll
    for (uint32_t i = 0; i < 2 * HALVES; i++) {
        const uint32_t half = i / 2, at = i % 2 * (KVL_FEW_WHOLE_BYTES / 2) + lane * 16;
        kvl_copy_async_16(
            to + half * KVL_FEW_WEIGHED_BYTES + at, c.units + half * KVL_FEW_UNIT_BYTES + at, true);
    }
#pragma unroll
    for (uint32_t half = 0; half < HALVES; half += 2) {
        if (HALVES > 1 || lane < 16) {
            kvl_copy_async_16(to + half * KVL_FEW_WEIGHED_BYTES + c.tail_to,
                c.units + half * KVL_FEW_UNIT_BYTES + c.tail_from, true);
        }
    }
}

/* The addresses of the tile that will be fetched in RING - 1 turns, which will find them in the
 * slot of this one. */
template <int DIM, int HALVES>
KVL_DEVICE void kvl_few_fetch_addresses(
    const kvl_attention_args &a, const kvl_prefill_place &place, const kvl_few_copies &c) {
    using shape = kvl_few_gather_shape<DIM, HALVES>;
    const uint32_t run = kvl_thread() % KVL_WARP_LANES;
    if (run < shape::RUNS) {
        const uint32_t position = (c.tile + shape::RING - 1) * shape::TILE + run * shape::RUN;
        kvl_copy_async_8(c.slot + shape::ADDRESSES + run * 8, kvl_few_address(a, place, position));
    }
}

template <int DIM, int HALVES> KVL_DEVICE kvl_shared kvl_few_next_slot(kvl_shared slot) {
    using shape = kvl_few_gather_shape<DIM, HALVES>;
    const kvl_shared next = slot + shape::SLOT_BYTES;
    return next == kvl_shared_base() + shape::SHARED_BYTES ? kvl_shared_base() : next;
}

template <int DIM, int HALVES> KVL_DEVICE void kvl_few_go_on(kvl_few_copies &c) {
    c.tile++;
    c.units += HALVES * KVL_FEW_UNIT_BYTES;
    c.slot = kvl_few_next_slot<DIM, HALVES>(c.slot);
}

/* A lane's operands of one tile, and its results. */
template <int DIM, int HALVES> struct kvl_few_chain {
    static constexpr int FRAGMENTS = kvl_few_gather_shape<DIM, HALVES>::FRAGMENTS;
    static constexpr int PAIRS = kvl_few_gather_shape<DIM, HALVES>::COLUMNS / 16;
    uint32_t p[4][FRAGMENTS][4];  /* by k step */
    uint32_t values[4][PAIRS][4]; /* by k step and 16 columns */
    float shrink[HALVES], tile_sum[HALVES];
    float out[FRAGMENTS][2 * PAIRS][4];
    float sum[HALVES];
};

/* Operands of k step k of a tile that is in shared memory. */
template <int DIM, int HALVES>
KVL_DEVICE void kvl_few_take_step(kvl_few_chain<DIM, HALVES> &chain, kvl_shared slot, int k) {
    using shape = kvl_few_gather_shape<DIM, HALVES>;
    const uint32_t lane = kvl_thread() % KVL_WARP_LANES;
    const struct kvl_lane_row of_a = kvl_lane_row_of_a(lane);
    const kvl_shared values =
        slot + of_a.row * shape::VALUE_BYTES + of_a.column * 2 + k * 16 * shape::VALUE_BYTES;
#pragma unroll
    for (int n = 0; n < chain.PAIRS; n++) {
        kvl_ldmatrix_trans(chain.values[k][n], values + n * 32);
    }
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
        const uint32_t *words = (const uint32_t *)kvl_shared_pointer(
            slot - kvl_shared_base() + shape::WEIGHED + half * KVL_FEW_WEIGHED_BYTES + lane * 4 +
            2 * k * KVL_WARP_LANES * 4);
        chain.p[k][half / 2][half % 2] = words[0];
        chain.p[k][half / 2][half % 2 + 2] = words[KVL_WARP_LANES];
    }
}
/* The rest of it. */
template <int DIM, int HALVES>
KVL_DEVICE void kvl_few_take_rest(kvl_few_chain<DIM, HALVES> &chain, kvl_shared slot) {
    using shape = kvl_few_gather_shape<DIM, HALVES>;
    const uint32_t lane = kvl_thread() % KVL_WARP_LANES, offset = slot - kvl_shared_base();
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
        const float *words = (const float *)kvl_shared_pointer(
            offset + shape::WEIGHED + half * KVL_FEW_WEIGHED_BYTES + lane * 4);
        chain.shrink[half] = words[KVL_FEW_SHRINK * KVL_WARP_LANES];
        chain.tile_sum[half] = words[KVL_FEW_SUM * KVL_WARP_LANES];
    }
}

template <int DIM, int HALVES>
KVL_DEVICE void kvl_few_take_tile(kvl_few_chain<DIM, HALVES> &chain, kvl_shared slot) {
#pragma unroll
    for (int k = 0; k < 4; k++) {
        kvl_few_take_step(chain, slot, k);
    }
    kvl_few_take_rest(chain, slot);
}

template <int DIM, int HALVES> KVL_DEVICE void kvl_few_clear(kvl_few_chain<DIM, HALVES> &chain) {
#pragma unroll
    for (int m = 0; m < chain.FRAGMENTS; m++) {
#pragma unroll
        for (int n = 0; n < 2 * chain.PAIRS; n++) {
            chain.out[m][n][0] = chain.out[m][n][1] = 0.0f;
            chain.out[m][n][2] = chain.out[m][n][3] = 0.0f;
        }
#pragma unroll
        for (int k = 0; k < 4; k++) {
            chain.p[k][m][1] = chain.p[k][m][3] = 0; /* rows 8-15, where there are none */
        }
    }
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
        chain.sum[half] = 0.0f;
    }
}

/* What was summed is brought to the tile's maximum. */
template <int DIM, int HALVES> KVL_DEVICE void kvl_few_shrink(kvl_few_chain<DIM, HALVES> &chain) {
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
        const int m = half / 2, h = half % 2;
        const float shrink = chain.shrink[half];
        chain.sum[half] = fmaf(chain.sum[half], shrink, chain.tile_sum[half]);
#pragma unroll
        for (int n = 0; n < 2 * chain.PAIRS; n++) {
            chain.out[m][n][2 * h] *= shrink;
            chain.out[m][n][2 * h + 1] *= shrink;
        }
    }
}

template <int DIM, bool BF16, int HALVES>
KVL_DEVICE void kvl_few_multiply(kvl_few_chain<DIM, HALVES> &chain, int k) {
#pragma unroll
    for (int n = 0; n < chain.PAIRS; n++) {
        const uint32_t *b = chain.values[k][n];
#pragma unroll
        for (int m = 0; m < chain.FRAGMENTS; m++) {
            kvl_mma<BF16>(chain.out[m][2 * n], chain.p[k][m], b[0], b[1]);
            kvl_mma<BF16>(chain.out[m][2 * n + 1], chain.p[k][m], b[2], b[3]);
        }
    }
}

/* One tile, whose operands are in registers. Those of the next, in `slot`, take their place as soon
 * as they are used. */
template <int DIM, bool BF16, int HALVES>
KVL_DEVICE void kvl_few_multiply_tile(kvl_few_chain<DIM, HALVES> &chain, kvl_shared slot) {
    kvl_few_shrink(chain);
#pragma unroll
    for (int k = 0; k < 4; k++) {
        kvl_few_multiply<DIM, BF16>(chain, k);
        kvl_few_take_step(chain, slot, k); /* behind the last tile: never used */
    }
    kvl_few_take_rest(chain, slot);
}

/* The addresses that came with the tile in `slot`. */
template <int DIM, int HALVES>
KVL_DEVICE void kvl_few_take_addresses(kvl_few_copies &c, kvl_shared slot) {
    using shape = kvl_few_gather_shape<DIM, HALVES>;
#pragma unroll
    for (uint32_t run = 0; run < shape::RUNS; run++) {
        c.addresses[run] = *(const uint8_t **)kvl_shared_pointer(
            slot - kvl_shared_base() + shape::ADDRESSES + run * 8);
    }
}

template <int DIM, int HALVES>
KVL_DEVICE void kvl_few_store(const kvl_attention_args &a, const kvl_prefill_place &place,
    uint32_t first_column, const kvl_few_chain<DIM, HALVES> &chain) {
    const uint32_t lane = kvl_thread() % KVL_WARP_LANES;
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
        const int m = half / 2, h = half % 2;
        float sum = chain.sum[half];
        sum += kvl_shuffle_xor(sum, 1);
        sum += kvl_shuffle_xor(sum, 2);
        const float factor = 1.0f / sum;
        const uint32_t row = place.first_row + half * KVL_FEW_HALF_ROWS + lane / 4;
        if (row < place.rows) {
            uint8_t *out = a.out + kvl_prefill_row_offset(a, place, row, DIM) + first_column * 2 +
                           lane % 4 * 4;
#pragma unroll
            for (int n = 0; n < 2 * chain.PAIRS; n++) {
                *(uint32_t *)(out + n * 16) = kvl_pack<false>(
                    chain.out[m][n][2 * h] * factor, chain.out[m][n][2 * h + 1] * factor);
            }
        }
    }
}

/* The part of the tile that c stands at that a warp brings, if there is one, as a group of copies.
 */
template <int DIM, int HALVES, bool UNITS>
KVL_DEVICE void kvl_few_fetch_tile(
    const kvl_attention_args &a, const kvl_prefill_place &place, kvl_few_copies &c) {
    using shape = kvl_few_gather_shape<DIM, HALVES>;
    if (c.tile < place.tiles) {
        if (UNITS) {
            kvl_few_fetch_units<DIM, HALVES>(c);
            kvl_few_fetch_addresses<DIM, HALVES>(a, place, c);
        } else {
#pragma unroll
            for (uint32_t run = 0; run < shape::RUNS; run++) {
                kvl_few_fetch_values<DIM, HALVES>(a, place, c, run);
            }
        }
    }
    kvl_copy_async_commit();
    kvl_few_go_on<DIM, HALVES>(c);
}

/* Fills the ring but for one tile. */
template <int DIM, int HALVES, bool UNITS>
KVL_DEVICE void kvl_few_fill_ring(
    const kvl_attention_args &a, const kvl_prefill_place &place, kvl_few_copies &c) {
    using shape = kvl_few_gather_shape<DIM, HALVES>;
    for (uint32_t i = 0; i < shape::RING - 1; i++) {
#pragma unroll
        for (uint32_t run = 0; run < shape::RUNS; run++) {
            c.addresses[run] = *kvl_few_address(a, place, c.tile * shape::TILE + run * shape::RUN);
        }
        kvl_few_fetch_tile<DIM, HALVES, UNITS>(a, place, c);
    }
}

/* A warp that copies. Where it meets the others for tile t, t + 1 is there, and t - 1 is left: its
 * operands were read in the turn of t - 2, before the last meeting. So t + RING - 1 may come into
 * its slot. */
template <int DIM, int HALVES, bool UNITS>
KVL_DEVICE void kvl_few_copy(
    const kvl_attention_args &a, const kvl_prefill_place &place, kvl_few_copies &c) {
    using shape = kvl_few_gather_shape<DIM, HALVES>;
    kvl_shared slot = kvl_shared_base(); /* of the tile */
    kvl_few_fill_ring<DIM, HALVES, UNITS>(a, place, c);
    kvl_copy_async_wait_but<shape::RING - 2>(); /* tile 0 is there */
    kvl_barrier_apart();
    kvl_few_take_addresses<DIM, HALVES>(c, slot);
#pragma unroll 1
    for (uint32_t tile = 0; tile < place.tiles; tile++) {
        kvl_copy_async_wait_but<shape::RING - 3>(); /* tile + 1 is there */
        kvl_barrier_apart();
        kvl_few_fetch_tile<DIM, HALVES, UNITS>(a, place, c);
        slot = kvl_few_next_slot<DIM, HALVES>(slot);
        kvl_few_take_addresses<DIM, HALVES>(c, slot);
    }
    kvl_copy_async_wait();
}

/* The warp that multiplies. */
template <int DIM, bool BF16, int HALVES>
KVL_DEVICE void kvl_few_multiply_all(
    const kvl_attention_args &a, const kvl_prefill_place &place, uint32_t first_column) {
    kvl_few_chain<DIM, HALVES> chain;
    kvl_shared slot = kvl_shared_base(); /* of the tile whose operands are read next */
    kvl_few_clear(chain);
    kvl_barrier_apart();
    kvl_few_take_tile(chain, slot);
#pragma unroll 1
    for (uint32_t tile = 0; tile < place.tiles; tile++) {
        slot = kvl_few_next_slot<DIM, HALVES>(slot);
        kvl_barrier_apart();
        kvl_few_multiply_tile<DIM, BF16>(chain, slot);
    }
    kvl_few_store(a, place, first_column, chain);
}

/* Block x: slices of columns first, then blocks of rows. Block y: the KV head. */
template <int DIM, int DTYPE, int HALVES> KVL_DEVICE void kvl_few_gather(const kvl_few_args &f) {
    using shape = kvl_few_gather_shape<DIM, HALVES>;
    const uint32_t block = kvl_block_x() / shape::SLICES;
    const uint32_t first_column = kvl_block_x() % shape::SLICES * shape::COLUMNS;
    const uint32_t warp = kvl_thread() / KVL_WARP_LANES;
    const kvl_prefill_place place = kvl_few_place_of(f, block);
    if (warp == KVL_FEW_MULTIPLIES) {
        kvl_few_multiply_all<DIM, kvl_kv_type<DTYPE>::BF16, HALVES>(f.a, place, first_column);
        return;
    }
    kvl_few_copies c = kvl_few_copies_of<DIM, HALVES>(f, place, block, first_column);
    if (warp == KVL_FEW_COPIES_UNITS) {
        kvl_few_copy<DIM, HALVES, true>(f.a, place, c);
    } else {
        kvl_few_copy<DIM, HALVES, false>(f.a, place, c);
    }
}

#endif
