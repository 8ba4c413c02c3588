/* attention_few_plan.cu - see attention_few_plan.h. */
#include "attention_few_plan.h"
#include "attention_launch.h"

enum {
    ROWS_MAX = 1024,           /* of a KV head, that scratch is taken for */
    SCRATCH_BYTES = 144 << 20, /* enough for 128 rows of 8 KV heads at 32k */
    HALVES_MAX = 4,
};

static uint64_t round_up(uint64_t n, uint64_t to) {
    return (n + to - 1) / to * to;
}

/* But for a window, which only some of a model's layers have. */
static bool has_served_sizes(const struct kvl_cuda_attention *a) {
    return kvl_attention_supported(a) && kvl_attention_is_fast(a) && a->kv_dtype != KVL_KV_F32 &&
           a->softcap == 0 && a->position_max > 0;
}

static uint64_t rows_of(const struct kvl_cuda_attention *a) {
    return (uint64_t)a->tokens * (a->heads / a->kv_heads);
}

static uint64_t tiles_of(const struct kvl_cuda_attention *a) {
    return round_up(a->position_max, KVL_ATTENTION_TILE) / KVL_ATTENTION_TILE;
}

static uint64_t bytes_a_half(const struct kvl_cuda_attention *a) {
    return a->kv_heads * round_up(tiles_of(a), KVL_FEW_QUAD) * KVL_FEW_HALF_BYTES;
}

/* One block of the largest kind always fits, so every kernel can be loaded at any time. It is a
 * quarter of a layer's keys and values at head size 128. */
uint64_t kvl_few_scratch_bytes(const struct kvl_cuda_attention *attention) {
    if (!has_served_sizes(attention)) {
        return 0;
    }
    uint64_t rows = rows_of(attention);
    rows = rows < ROWS_MAX ? rows : ROWS_MAX;
    const uint64_t half = bytes_a_half(attention);
    const uint64_t all = round_up(rows, HALVES_MAX * KVL_FEW_HALF_ROWS) / KVL_FEW_HALF_ROWS * half;
    const uint64_t most = HALVES_MAX * half > SCRATCH_BYTES ? HALVES_MAX * half : SCRATCH_BYTES;
    return all < most ? all : most;
}

static uint32_t halves_for(uint64_t rows) {
    return rows <= KVL_FEW_HALF_ROWS ? 1 : rows <= 2 * KVL_FEW_HALF_ROWS ? 2 : HALVES_MAX;
}

bool kvl_few_plan_of(
    const struct kvl_cuda_attention *attention, uint32_t halves, struct kvl_few_plan *plan) {
    const uint64_t rows = rows_of(attention);
    if (!has_served_sizes(attention) || attention->window != 0 || rows == 0) {
        return false;
    }
    plan->halves = halves != 0 ? halves : halves_for(rows);
    const uint64_t block_rows = plan->halves * KVL_FEW_HALF_ROWS;
    const uint64_t blocks = round_up(rows, block_rows) / block_rows;
    const uint64_t room = attention->scratch_bytes / (plan->halves * bytes_a_half(attention));
    plan->blocks = (uint32_t)blocks;
    plan->blocks_a_turn = (uint32_t)(room < blocks ? room : blocks);
    plan->tiles_stride = (uint32_t)round_up(tiles_of(attention), KVL_FEW_QUAD);
    return plan->blocks_a_turn > 0;
}

/* Estimates in ns, fitted to an H200 (decision 0015). The kernel for many rows: one CTA takes 2,060
 * to 2,260 a tile, however few rows it has. These: a turn's launches, its chain, one read of the
 * keys, and the traffic of all units; off by at most 11 % for 1, 16, 64 and 256 tokens at 32k. */
bool kvl_few_is_faster(
    const struct kvl_cuda_attention *attention, const struct kvl_few_plan *plan) {
    const uint64_t tiles = tiles_of(attention);
    const uint64_t turns = round_up(plan->blocks, plan->blocks_a_turn) / plan->blocks_a_turn;
    const uint64_t chain = plan->halves == HALVES_MAX ? 150 : 110;
    const uint64_t keys = (uint64_t)attention->kv_heads * attention->k_dim / 32;
    const uint64_t units = (uint64_t)attention->kv_heads * plan->blocks * plan->halves;
    const uint64_t few = turns * (12000 + tiles * (chain + keys)) + tiles * units * 35 / 10;
    const uint64_t many = 5000 + tiles * 2100;
    return few < many;
}

kvl_few_args kvl_few_args_of(const struct kvl_cuda_attention *attention,
    const struct kvl_few_plan *plan, uint32_t first_block) {
    const uint32_t left = plan->blocks - first_block;
    kvl_few_args args = {};
    args.a = kvl_attention_args_of(attention);
    args.first_row = first_block * plan->halves * KVL_FEW_HALF_ROWS;
    args.blocks = left < plan->blocks_a_turn ? left : plan->blocks_a_turn;
    args.halves = plan->halves;
    args.tiles_stride = plan->tiles_stride;
    args.units = (uint8_t *)attention->scratch;
    args.maxima = (float *)(args.units + (uint64_t)args.a.kv_heads * args.blocks * args.halves *
                                             args.tiles_stride * KVL_FEW_UNIT_BYTES);
    return args;
}
