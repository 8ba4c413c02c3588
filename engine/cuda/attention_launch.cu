/* attention_launch.cu - see attention_launch.h. */
#include "attention_decode.h"
#include "attention_few_plan.h"
#include "attention_general.h"
#include "attention_launch.h"
#include "attention_prefill.h"

static const float LOG2_E = 1.4426950408889634f;

static bool is_power_of_two(uint32_t n) {
    return n != 0 && (n & (n - 1)) == 0;
}

bool kvl_attention_supported(const struct kvl_cuda_attention *attention) {
    const struct kvl_cuda_attention *a = attention;
    return a->block_tokens > 0 && a->kv_heads > 0 && a->heads > 0 && a->heads % a->kv_heads == 0 &&
           a->heads <= 65535 /* a grid's y */ && a->k_dim > 0 && a->v_dim > 0 &&
           a->k_dim <= KVL_GENERAL_DIM_MAX && a->v_dim <= KVL_GENERAL_DIM_MAX &&
           kvl_kv_dtype_bytes(a->kv_dtype) != 0 && a->softcap >= 0;
}

static bool suits_tensor_cores(const struct kvl_cuda_attention *a) {
    return a->k_dim == a->v_dim && a->block_tokens >= 16 && is_power_of_two(a->block_tokens) &&
           a->layer_offset_bytes % 16 == 0;
}

bool kvl_attention_is_fast(const struct kvl_cuda_attention *attention) {
    const uint32_t dim = attention->k_dim;
    return suits_tensor_cores(attention) && (dim == 64 || dim == 96 || dim == 128);
}

bool kvl_attention_on_tensor_cores(const struct kvl_cuda_attention *attention) {
    return kvl_attention_is_fast(attention) ||
           (suits_tensor_cores(attention) && attention->k_dim == 256);
}

static uint32_t many_rows_shared_bytes(uint32_t dim) {
    switch (dim) {
    case 64:
        return kvl_prefill_shape<64>::SHARED_BYTES;
    case 96:
        return kvl_prefill_shape<96>::SHARED_BYTES;
    case 128:
        return kvl_prefill_shape<128>::SHARED_BYTES;
    default:
        return kvl_prefill_shape<256>::SHARED_BYTES;
    }
}

bool kvl_attention_many_rows_fit(const struct kvl_cuda_attention *attention) {
    return attention->shared_bytes_max == 0 ||
           many_rows_shared_bytes(attention->k_dim) <= attention->shared_bytes_max;
}

bool kvl_attention_takes_few(
    const struct kvl_cuda_attention *attention, const struct kvl_few_plan *plan) {
    return !kvl_attention_many_rows_fit(attention) || kvl_few_is_faster(attention, plan);
}

bool kvl_attention_is_limited(const kvl_attention_args &args) {
    return args.window != 0 || args.cap_log2 != 0;
}

kvl_attention_args kvl_attention_args_of(const struct kvl_cuda_attention *attention) {
    const struct kvl_cuda_attention *a = attention;
    const uint64_t keys_bytes =
        (uint64_t)a->kv_heads * a->block_tokens * a->k_dim * kvl_kv_dtype_bytes(a->kv_dtype);
    kvl_attention_args args = {};
    args.q = (const uint8_t *)a->q;
    args.out = (uint8_t *)a->out;
    args.blocks = a->blocks;
    args.position = a->position;
    args.keys_offset_bytes = a->layer_offset_bytes;
    args.values_offset_bytes = a->layer_offset_bytes + keys_bytes;
    args.block_tokens = a->block_tokens;
    args.block_shift = (uint32_t)__builtin_ctz(a->block_tokens);
    args.heads = a->heads;
    args.kv_heads = a->kv_heads;
    args.group = a->heads / a->kv_heads;
    args.k_dim = a->k_dim;
    args.v_dim = a->v_dim;
    args.tokens = a->tokens;
    args.scale_log2 = a->scale * LOG2_E;
    args.window = a->window;
    if (a->softcap != 0) {
        args.scale_log2 = 1.0f;
        args.cap_log2 = a->softcap * LOG2_E;
        args.cap_scale = a->scale / a->softcap;
    }
    args.kv_dtype = a->kv_dtype;
    args.parts = (float *)a->scratch;
    return args;
}

uint64_t kvl_attention_decode_scratch_bytes(const struct kvl_cuda_attention *attention) {
    if (!kvl_attention_on_tensor_cores(attention)) {
        return 0;
    }
    return kvl_decode_parts(attention->position_max) * attention->heads *
           (attention->v_dim + KVL_DECODE_PART_EXTRA) * sizeof(float);
}

extern "C" uint64_t kvl_cuda_attention_scratch_bytes(const struct kvl_cuda_attention *attention) {
    if (!kvl_attention_supported(attention)) {
        return UINT64_MAX;
    }
    const uint64_t decode = kvl_attention_decode_scratch_bytes(attention);
    const uint64_t few = kvl_few_scratch_bytes(attention);
    return decode > few ? decode : few;
}
