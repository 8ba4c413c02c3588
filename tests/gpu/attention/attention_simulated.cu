/* attention_simulated.cu - the attention kernels as an attention_device of the CPU. The files are
 * the real ones; only the launches are written anew. */

#include "attention_decode.h"
#include "attention_few_plan.h"
#include "attention_general.h"
#include "attention_launch.h"
#include "attention_prefill.h"

#include "attention_simulated.h"

namespace {

simulated_manner manner;

template <int DIM, int DTYPE, bool LIMITED> void prefill_thread(const void *arg) {
    kvl_prefill<DIM, DTYPE, LIMITED>(*(const kvl_attention_args *)arg);
}
template <int DIM, int DTYPE, bool LIMITED> void decode_thread(const void *arg) {
    kvl_decode<DIM, DTYPE, LIMITED>(*(const kvl_attention_args *)arg);
}
template <bool LIMITED> void general_thread(const void *arg) {
    kvl_general<LIMITED>(*(const kvl_attention_args *)arg);
}

uint32_t parts_of_grid;
template <int DIM, bool LIMITED> void combine_thread(const void *arg) {
    kvl_decode_combine<DIM, LIMITED>(*(const kvl_attention_args *)arg, parts_of_grid);
}

template <int DIM, int DTYPE, bool LIMITED> void prefill(const kvl_attention_args &args) {
    using shape = kvl_prefill_shape<DIM>;
    const uint32_t rows = args.tokens * args.group;
    simulated_launch({(rows + shape::ROWS - 1) / shape::ROWS, args.kv_heads, shape::THREADS,
                         shape::SHARED_BYTES},
        manner, prefill_thread<DIM, DTYPE, LIMITED>, &args);
}

template <int DIM, int DTYPE, bool LIMITED> void decode(const kvl_attention_args &args) {
    const uint32_t slices = (args.group + KVL_DECODE_HEADS - 1) / KVL_DECODE_HEADS;
    simulated_launch({parts_of_grid, args.kv_heads * slices, KVL_DECODE_THREADS,
                         kvl_decode_shape<DIM>::SHARED_BYTES},
        manner, decode_thread<DIM, DTYPE, LIMITED>, &args);
    const uint32_t threads = kvl_decode_shape<DIM>::COMBINE_THREADS;
    simulated_launch({args.heads, 1, threads, threads * (uint32_t)sizeof(float2)}, manner,
        combine_thread<DIM, LIMITED>, &args);
}

template <int DIM, int DTYPE, bool LIMITED>
void attend(const kvl_attention_args &args, enum kvl_phase phase) {
    if (phase == KVL_PHASE_PREFILL) {
        prefill<DIM, DTYPE, LIMITED>(args);
    } else {
        decode<DIM, DTYPE, LIMITED>(args);
    }
}

template <int DIM, bool LIMITED>
void attend_dtype(const kvl_attention_args &args, enum kvl_phase phase) {
    if (args.kv_dtype == KVL_KV_F16) {
        attend<DIM, KVL_KV_F16, LIMITED>(args, phase);
    } else if (args.kv_dtype == KVL_KV_BF16) {
        attend<DIM, KVL_KV_BF16, LIMITED>(args, phase);
    } else {
        attend<DIM, KVL_KV_F32, LIMITED>(args, phase);
    }
}

template <bool LIMITED> void attend_dim(const kvl_attention_args &args, enum kvl_phase phase) {
    if (args.k_dim == 64) {
        attend_dtype<64, LIMITED>(args, phase);
    } else if (args.k_dim == 96) {
        attend_dtype<96, LIMITED>(args, phase);
    } else if (args.k_dim == 128) {
        attend_dtype<128, LIMITED>(args, phase);
    } else {
        attend_dtype<256, LIMITED>(args, phase);
    }
}

template <int DIM, int DTYPE, int HALVES> void score_thread(const void *arg) {
    kvl_few_score<DIM, DTYPE, HALVES>(*(const kvl_few_args *)arg);
}
template <bool BF16> void weigh_thread(const void *arg) {
    kvl_few_weigh<BF16>(*(const kvl_few_args *)arg);
}
template <int DIM, int DTYPE, int HALVES> void gather_thread(const void *arg) {
    kvl_few_gather<DIM, DTYPE, HALVES>(*(const kvl_few_args *)arg);
}

template <int DIM, int DTYPE, int HALVES> void few_turn(const kvl_few_args &args) {
    using shape = kvl_few_shape<DIM, HALVES>;
    using gather = kvl_few_gather_shape<DIM, HALVES>;
    const uint32_t heads = args.a.kv_heads, quads = args.tiles_stride / KVL_FEW_QUAD;
    const uint32_t groups = (quads + KVL_FEW_WARPS - 1) / KVL_FEW_WARPS;
    simulated_launch({args.blocks * quads, heads, KVL_FEW_THREADS, shape::SCORE_SHARED_BYTES},
        manner, score_thread<DIM, DTYPE, HALVES>, &args);
    simulated_launch({args.blocks * HALVES * groups, heads, KVL_FEW_THREADS, 0}, manner,
        weigh_thread<kvl_kv_type<DTYPE>::BF16>, &args);
    simulated_launch(
        {args.blocks * gather::SLICES, heads, KVL_FEW_GATHER_THREADS, gather::SHARED_BYTES}, manner,
        gather_thread<DIM, DTYPE, HALVES>, &args);
}

template <int DIM, int DTYPE>
void few(const struct kvl_cuda_attention *attention, const kvl_few_plan &plan) {
    for (uint32_t block = 0; block < plan.blocks; block += plan.blocks_a_turn) {
        const kvl_few_args args = kvl_few_args_of(attention, &plan, block);
        if (plan.halves == 1) {
            few_turn<DIM, DTYPE, 1>(args);
        } else if (plan.halves == 2) {
            few_turn<DIM, DTYPE, 2>(args);
        } else {
            few_turn<DIM, DTYPE, 4>(args);
        }
    }
}

template <int DIM> void few_dtype(const struct kvl_cuda_attention *attention, kvl_few_plan plan) {
    if (attention->kv_dtype == KVL_KV_BF16) {
        few<DIM, KVL_KV_BF16>(attention, plan);
    } else {
        few<DIM, KVL_KV_F16>(attention, plan);
    }
}

void few_dim(const struct kvl_cuda_attention *attention, kvl_few_plan plan) {
    if (attention->k_dim == 64) {
        few_dtype<64>(attention, plan);
    } else if (attention->k_dim == 96) {
        few_dtype<96>(attention, plan);
    } else {
        few_dtype<128>(attention, plan);
    }
}

void general(const kvl_attention_args &args) {
    const uint32_t rows = args.tokens * args.heads;
    simulated_launch({(rows + KVL_GENERAL_WARPS - 1) / KVL_GENERAL_WARPS, 1, KVL_GENERAL_THREADS,
                         kvl_general_shared_bytes(args)},
        manner, kvl_attention_is_limited(args) ? general_thread<true> : general_thread<false>,
        &args);
}

} // namespace

void attention_simulated_manner(bool late_copies, bool last_warp_first) {
    manner = {late_copies, last_warp_first};
}

void attention_simulated_attend(const struct kvl_cuda_attention *attention, enum kvl_phase phase) {
    const kvl_attention_args args = kvl_attention_args_of(attention);
    kvl_few_plan plan;
    if (phase == KVL_PHASE_PREFILL && attention->way == KVL_ATTENTION_FEW_ROWS) {
        if (!kvl_few_plan_of(attention, 0, &plan)) {
            abort();
        }
        few_dim(attention, plan);
        return;
    }
    parts_of_grid = (uint32_t)kvl_decode_parts(attention->position_max);
    if (!kvl_attention_on_tensor_cores(attention)) {
        general(args);
    } else if (kvl_attention_is_limited(args)) {
        attend_dim<true>(args, phase);
    } else {
        attend_dim<false>(args, phase);
    }
}

bool attention_simulated_takes_few(const struct kvl_cuda_attention *attention) {
    kvl_few_plan plan;
    return kvl_few_plan_of(attention, 0, &plan) && kvl_attention_takes_few(attention, &plan);
}

void attention_simulated_readable(const void *base, size_t bytes) {
    simulated_readable(base, bytes);
}
void attention_simulated_forget_readable(void) {
    simulated_forget_readable();
}
