/* attention_simulated.cu - the attention kernels as an attention_device of the CPU. The files are
 * the real ones; only the launches are written anew. */

#include "attention_decode.h"
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
    parts_of_grid = (uint32_t)kvl_decode_parts(attention->position_max);
    if (!kvl_attention_on_tensor_cores(attention)) {
        general(args);
    } else if (kvl_attention_is_limited(args)) {
        attend_dim<true>(args, phase);
    } else {
        attend_dim<false>(args, phase);
    }
}

void attention_simulated_readable(const void *base, size_t bytes) {
    simulated_readable(base, bytes);
}
void attention_simulated_forget_readable(void) {
    simulated_forget_readable();
}
