/* layer.c - what a layer's kernels are launched with, in prefill and in decode. */
#include "cuda_backend.h"
#include "kernels.h"

#define TRY(call) KVL_CUDA_TRY(&cuda->last, (call))
#define TRY_ERR(call) KVL_CUDA_TRY_ERR(call)

/* Within a block of the layer's group. */
static uint64_t layer_offset(
    const struct kvl_hparams *h, const struct kvl_batch *batch, uint32_t layer) {
    return (uint64_t)kvl_layer_place(h, layer).index * h->kv_heads * batch->block_tokens *
           (h->k_dim + h->v_dim) * kvl_kv_dtype_bytes(batch->kv_dtype);
}

static uint8_t *const *table_of(const struct kvl_cuda *cuda, uint32_t layer) {
    const struct kvl_layer_place place = kvl_layer_place(&cuda->model->hparams, layer);
    return cuda->step->blocks + kvl_cuda_table_at(cuda, place.group);
}

struct kvl_cuda_attention kvl_cuda_attention_of(
    const struct kvl_cuda *cuda, const struct kvl_batch *batch, uint32_t layer) {
    const struct kvl_hparams *h = &cuda->model->hparams;
    return (struct kvl_cuda_attention){
        .q = cuda->q,
        .out = cuda->attended,
        .blocks = table_of(cuda, layer),
        .block_tokens = batch->block_tokens,
        .heads = h->heads,
        .kv_heads = h->kv_heads,
        .k_dim = h->k_dim,
        .v_dim = h->v_dim,
        .layer = layer,
        .kv_dtype = batch->kv_dtype,
        .layer_offset_bytes = layer_offset(h, batch, layer),
        .scale = h->attention_scale,
        .window = kvl_layer_window(h, layer),
        .softcap = h->attention_softcap,
        .scratch = cuda->attention_scratch,
        .scratch_bytes = cuda->attention_scratch_bytes,
        .shared_bytes_max = (uint32_t)cuda->device.sharedMemPerBlockOptin,
    };
}

struct kvl_cuda_place kvl_cuda_place_of(
    const struct kvl_cuda *cuda, const struct kvl_batch *batch, uint32_t layer) {
    const struct kvl_hparams *h = &cuda->model->hparams;
    const struct kvl_cuda_layer *weights = &cuda->layers[layer];
    return (struct kvl_cuda_place){
        .qkv = cuda->qkv_rows,
        .stride = weights->qkv.rows,
        .bias = weights->qkv_bias,
        .q_norm = weights->q_norm,
        .k_norm = weights->k_norm,
        .angles = kvl_layer_window(h, layer) != 0 ? cuda->windowed_angles : cuda->angles,
        .q = cuda->q,
        .blocks = table_of(cuda, layer),
        .layer_offset_bytes = layer_offset(h, batch, layer),
        .kv_dtype = batch->kv_dtype,
        .epsilon = h->rms_epsilon,
        .block_tokens = batch->block_tokens,
        .heads = h->heads,
        .kv_heads = h->kv_heads,
        .k_dim = h->k_dim,
        .v_dim = h->v_dim,
        .rope_dims = h->rope_dims,
        .halves = h->rope_pairing == KVL_ROPE_HALVES,
    };
}

static kvl_err find_angles(struct kvl_cuda *cuda, const double *frequencies, float *angles,
    const uint32_t *position, uint32_t tokens) {
    const struct kvl_hparams *h = &cuda->model->hparams;
    TRY(kvl_cuda_angles(&(struct kvl_cuda_angles){.frequencies = frequencies,
                            .position = position,
                            .angles = angles,
                            .magnitude = h->rope_magnitude,
                            .pairs = h->rope_dims / 2,
                            .tokens = tokens},
        cuda->stream));
    return KVL_OK;
}

kvl_err kvl_cuda_find_angles(struct kvl_cuda *cuda, const uint32_t *position, uint32_t tokens) {
    TRY_ERR(find_angles(cuda, cuda->frequencies, cuda->angles, position, tokens));
    if (cuda->windowed_angles == cuda->angles) {
        return KVL_OK;
    }
    return find_angles(cuda, cuda->windowed_frequencies, cuda->windowed_angles, position, tokens);
}

kvl_err kvl_cuda_join_given(struct kvl_cuda *cuda, const float *norm, uint32_t rows) {
    const struct kvl_hparams *h = &cuda->model->hparams;
    TRY(kvl_cuda_join(&(struct kvl_cuda_join){.x = cuda->x,
                          .given = cuda->given,
                          .weights = norm,
                          .epsilon = h->rms_epsilon,
                          .width = h->width,
                          .rows = rows},
        cuda->stream));
    return KVL_OK;
}
