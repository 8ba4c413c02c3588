/* decode.c - a decode step: one token through all layers by kernels that read each weight once.
 *
 * Of its inputs only `step` changes, which a copy before it brings to the device, so a step is
 * captured into a graph once and replayed. Attention sizes its grid by an upper bound of the
 * context; there is a graph for each class of bounds: 256, 384, 512, 768, ... A class runs once
 * without a graph before it is captured, since a kernel's first use loads it. */
#include "cuda_backend.h"
#include "kernels.h"

enum { CLASS_FIRST = 256 };

#define TRY(call) KVL_CUDA_TRY(&cuda->last, (call))

/* ---- the step ---- */

static kvl_err begin_step(struct kvl_cuda *cuda) {
    const struct kvl_hparams *h = &cuda->model->hparams;
    TRY(kvl_cuda_embed(&(struct kvl_cuda_embed){.embedding = cuda->embedding.data,
                           .ids = &cuda->step->token,
                           .x = cuda->x,
                           .scale = h->embedding_scale,
                           .width = h->width,
                           .tokens = 1,
                           .rows = 1},
        cuda->stream));
    return kvl_cuda_find_angles(cuda, &cuda->step->position, 1);
}

static struct kvl_cuda_gemv gemv_of(const struct kvl_cuda *cuda, enum kvl_cuda_gemv_kind kind,
    const struct kvl_cuda_matrix *w, const float *norm) {
    const struct kvl_hparams *h = &cuda->model->hparams;
    return (struct kvl_cuda_gemv){.kind = kind,
        .w = w->data,
        .rows = w->rows,
        .columns = w->columns,
        .x = cuda->x,
        .norm = norm,
        .epsilon = h->rms_epsilon,
        .gelu = h->activation == KVL_ACTIVATION_GELU_TANH,
        .y = cuda->x,
        .programmatic = cuda->programmatic};
}

/* x += product, or, with a norm, x += norm(product); the product is one that adds. */
static kvl_err join(struct kvl_cuda *cuda, struct kvl_cuda_gemv *product, const float *norm) {
    if (norm != NULL) {
        product->kind =
            product->kind == KVL_CUDA_GEMV_ADD_F16 ? KVL_CUDA_GEMV_SET_F16 : KVL_CUDA_GEMV_SET_F32;
        product->y = cuda->given;
    }
    TRY(kvl_cuda_gemv(product, cuda->stream));
    return norm != NULL ? kvl_cuda_join_given(cuda, norm, 1) : KVL_OK;
}

static kvl_err attend(
    struct kvl_cuda *cuda, const struct kvl_batch *batch, uint32_t layer, uint32_t position_max) {
    const struct kvl_cuda_layer *weights = &cuda->layers[layer];
    struct kvl_cuda_gemv qkv =
        gemv_of(cuda, KVL_CUDA_GEMV_NORM_F16, &weights->qkv, weights->attention_norm);
    qkv.y16 = cuda->qkv_rows;
    TRY(kvl_cuda_gemv(&qkv, cuda->stream));
    struct kvl_cuda_place place = kvl_cuda_place_of(cuda, batch, layer);
    place.position = &cuda->step->position;
    place.tokens = 1;
    TRY(kvl_cuda_place(&place, cuda->stream));
    struct kvl_cuda_attention attention = kvl_cuda_attention_of(cuda, batch, layer);
    attention.tokens = 1;
    attention.position = &cuda->step->position;
    attention.position_max = position_max;
    TRY(kvl_cuda_attend_decode(&attention, cuda->stream));
    struct kvl_cuda_gemv out = gemv_of(cuda, KVL_CUDA_GEMV_ADD_F16, &weights->attention_out, NULL);
    out.x16 = cuda->attended;
    return join(cuda, &out, weights->attention_post_norm);
}

static kvl_err feed_forward(struct kvl_cuda *cuda, uint32_t layer) {
    const struct kvl_cuda_layer *weights = &cuda->layers[layer];
    struct kvl_cuda_gemv gate =
        gemv_of(cuda, KVL_CUDA_GEMV_NORM_GATE, &weights->gate_up, weights->ffn_norm);
    gate.y = cuda->ffn_f32;
    TRY(kvl_cuda_gemv(&gate, cuda->stream));
    struct kvl_cuda_gemv down = gemv_of(cuda, KVL_CUDA_GEMV_ADD_F32, &weights->down, NULL);
    down.x = cuda->ffn_f32;
    return join(cuda, &down, weights->ffn_post_norm);
}

static kvl_err end_step(struct kvl_cuda *cuda) {
    const struct kvl_hparams *h = &cuda->model->hparams;
    struct kvl_cuda_gemv output =
        gemv_of(cuda, KVL_CUDA_GEMV_NORM_F32, &cuda->output, cuda->output_norm);
    output.y = cuda->logits;
    TRY(kvl_cuda_gemv(&output, cuda->stream));
    if (h->logit_softcap != 0) {
        TRY(kvl_cuda_softcap(cuda->logits, h->vocab, h->logit_softcap, cuda->stream));
    }
    TRY(cudaMemsetAsync(cuda->best, 0, sizeof *cuda->best, cuda->stream));
    TRY(kvl_cuda_argmax(cuda->logits, h->vocab, cuda->best, cuda->stream));
    return KVL_OK;
}

static kvl_err enqueue_step(
    struct kvl_cuda *cuda, const struct kvl_batch *batch, uint32_t position_max) {
    kvl_err err = begin_step(cuda);
    for (uint32_t layer = 0; err == KVL_OK && layer < cuda->model->hparams.layers; layer++) {
        err = attend(cuda, batch, layer, position_max);
        if (err == KVL_OK) {
            err = feed_forward(cuda, layer);
        }
    }
    return err == KVL_OK ? end_step(cuda) : err;
}

/* ---- graphs ---- */

/* The smallest class that holds a context of `tokens`; *bound: its largest context. */
static uint32_t class_of(const struct kvl_cuda *cuda, uint32_t tokens, uint32_t *bound) {
    uint64_t size = CLASS_FIRST;
    uint32_t index = 0;
    while (size < tokens) {
        size = index % 2 == 0 ? size / 2 * 3 : size / 3 * 4; /* 2^n, 3 * 2^(n-1), 2^(n+1) */
        index++;
    }
    *bound = size < cuda->context_max ? (uint32_t)size : cuda->context_max;
    return index;
}

static void forget(struct kvl_cuda_graph *graph) {
    if (graph->exec != NULL) {
        (void)cudaGraphExecDestroy(graph->exec);
    }
    *graph = (struct kvl_cuda_graph){0};
}

void kvl_cuda_forget_graphs(struct kvl_cuda *cuda) {
    for (uint32_t i = 0; i < KVL_CUDA_GRAPHS; i++) {
        forget(&cuda->graphs[i]);
    }
}

static kvl_err capture(struct kvl_cuda *cuda, const struct kvl_batch *batch, uint32_t position_max,
    struct kvl_cuda_graph *graph) {
    cudaGraph_t captured = NULL;
    TRY(cudaStreamBeginCapture(cuda->stream, cudaStreamCaptureModeThreadLocal));
    const kvl_err err = enqueue_step(cuda, batch, position_max);
    const cudaError_t error = cudaStreamEndCapture(cuda->stream, &captured); /* in any case */
    if (err != KVL_OK || error != cudaSuccess) {
        if (captured != NULL) {
            (void)cudaGraphDestroy(captured);
        }
        return err != KVL_OK ? err : kvl_cuda_check(&cuda->last, error, "cudaStreamEndCapture");
    }
    const cudaError_t made = cudaGraphInstantiate(&graph->exec, captured, 0);
    (void)cudaGraphDestroy(captured);
    return kvl_cuda_check(&cuda->last, made, "cudaGraphInstantiate");
}

static kvl_err replay(struct kvl_cuda *cuda, const struct kvl_batch *batch, uint32_t position_max,
    struct kvl_cuda_graph *graph) {
    if (graph->exec == NULL) {
        const kvl_err err = capture(cuda, batch, position_max, graph);
        if (err != KVL_OK) {
            return err;
        }
    }
    TRY(cudaGraphLaunch(graph->exec, cuda->stream));
    return KVL_OK;
}

/* A decode step comes after the prompt's restore, so layers are rarely waited for here. */
static kvl_err wait_for_layers(const struct kvl_cuda *cuda, const struct kvl_batch *batch) {
    kvl_err err = KVL_OK;
    for (uint32_t i = 0; batch->before_layer != NULL && err == KVL_OK; i++) {
        if (i == cuda->model->hparams.layers) {
            break;
        }
        err = batch->before_layer(batch->before_layer_arg, i);
    }
    return err;
}

kvl_err kvl_cuda_decode(struct kvl_cuda *cuda, const struct kvl_batch *batch) {
    const kvl_err err = wait_for_layers(cuda, batch);
    if (err != KVL_OK) {
        return err;
    }
    uint32_t bound;
    const uint32_t index = class_of(cuda, batch->position + 1, &bound);
    if (!cuda->use_graphs || index >= KVL_CUDA_GRAPHS) {
        return enqueue_step(cuda, batch, bound);
    }
    struct kvl_cuda_graph *graph = &cuda->graphs[index];
    if (graph->kv_dtype != batch->kv_dtype || graph->block_tokens != batch->block_tokens) {
        forget(graph);
        graph->kv_dtype = batch->kv_dtype;
        graph->block_tokens = batch->block_tokens;
    }
    if (!graph->was_run) {
        graph->was_run = true;
        return enqueue_step(cuda, batch, bound);
    }
    return replay(cuda, batch, bound, graph);
}
