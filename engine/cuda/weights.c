/* weights.c - puts a model's weights on the GPU, as f16 whatever the file holds.
 *
 * Matrices that one product reads stand one after another: q, k, v; gate, up. Rows are decoded by
 * all threads into pinned memory, one half of which is copied while the other is filled. A random
 * model's matrices are made where they stand. */
#include <stdlib.h>
#include <string.h>

#include "../cpu/half.h"
#include "../cpu/pack.h"
#include "../cpu/pool.h"
#include "../random_weights.h"
#include "cuda_backend.h"
#include "kernels.h"

enum { ARRAY_ALIGN = 256, STAGING_BYTES = 32 << 20, UNIT_ROWS = 16 };

/* ---- device memory ---- */

void *kvl_cuda_take(struct kvl_cuda_arena *arena, uint64_t bytes) {
    void *taken = arena->base == NULL ? NULL : arena->base + arena->bytes;
    arena->bytes += (bytes + ARRAY_ALIGN - 1) / ARRAY_ALIGN * ARRAY_ALIGN;
    return taken;
}

kvl_err kvl_cuda_piece_open(
    struct kvl_cuda_arena *arena, const char *what, struct kvl_errmsg *msg) {
    size_t free_bytes = 0, total_bytes = 0;
    void *base = NULL;
    KVL_CUDA_TRY(msg, cudaMemGetInfo(&free_bytes, &total_bytes));
    const cudaError_t error = cudaMalloc(&base, arena->bytes);
    if (error == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return kvl_fail(msg, KVL_ERR_NOMEM,
            "%s need %llu MiB of GPU memory, %llu of %llu MiB are free", what,
            (unsigned long long)(arena->bytes >> 20), (unsigned long long)(free_bytes >> 20),
            (unsigned long long)(total_bytes >> 20));
    }
    KVL_CUDA_TRY(msg, error);
    *arena = (struct kvl_cuda_arena){.base = base};
    return KVL_OK;
}

/* ---- where everything goes ---- */

bool kvl_cuda_has_weight(const struct kvl_model *model, const struct kvl_weight *weight) {
    return weight->tensor != NULL || (model->is_random && weight->rows != 0);
}

static void take_matrix(
    struct kvl_cuda_arena *arena, struct kvl_cuda_matrix *matrix, uint64_t rows, uint32_t columns) {
    matrix->rows = (uint32_t)((rows + 7) / 8 * 8);
    matrix->columns = columns;
    matrix->data = kvl_cuda_take(arena, (uint64_t)matrix->rows * columns * sizeof(uint16_t));
}

static float *take_floats(struct kvl_cuda_arena *arena, bool present, uint64_t count) {
    return present ? kvl_cuda_take(arena, count * sizeof(float)) : NULL;
}

static void lay_out_layer(struct kvl_cuda_arena *arena, const struct kvl_model *model,
    const struct kvl_layer *from, struct kvl_cuda_layer *to) {
    const struct kvl_hparams *h = &model->hparams;
    const uint64_t qkv_rows =
        (uint64_t)(h->heads + h->kv_heads) * h->k_dim + (uint64_t)h->kv_heads * h->v_dim;
    const bool has_bias = kvl_cuda_has_weight(model, &from->q_bias) ||
                          kvl_cuda_has_weight(model, &from->k_bias) ||
                          kvl_cuda_has_weight(model, &from->v_bias);
    to->attention_norm = take_floats(arena, true, h->width);
    to->ffn_norm = take_floats(arena, true, h->width);
    to->attention_post_norm =
        take_floats(arena, kvl_cuda_has_weight(model, &from->attention_post_norm), h->width);
    to->ffn_post_norm =
        take_floats(arena, kvl_cuda_has_weight(model, &from->ffn_post_norm), h->width);
    to->qkv_bias = take_floats(arena, has_bias, qkv_rows);
    to->q_norm = take_floats(arena, kvl_cuda_has_weight(model, &from->q_norm), h->k_dim);
    to->k_norm = take_floats(arena, kvl_cuda_has_weight(model, &from->k_norm), h->k_dim);
    take_matrix(arena, &to->qkv, qkv_rows, h->width);
    take_matrix(arena, &to->attention_out, h->width, h->heads * h->v_dim);
    take_matrix(arena, &to->gate_up, 2 * (uint64_t)h->ffn_width, h->width);
    take_matrix(arena, &to->down, h->width, h->ffn_width);
}

static bool is_tied(const struct kvl_model *model) {
    return model->is_random ? model->output.random_number == model->embedding.random_number
                            : model->output.tensor == model->embedding.tensor;
}

static void lay_out(struct kvl_cuda *cuda) {
    const struct kvl_model *model = cuda->model;
    const struct kvl_hparams *h = &model->hparams;
    take_matrix(&cuda->weights, &cuda->embedding, h->vocab, h->width);
    cuda->output = cuda->embedding;
    if (!is_tied(model)) {
        take_matrix(&cuda->weights, &cuda->output, h->vocab, h->width);
    }
    cuda->output_norm = take_floats(&cuda->weights, true, h->width);
    cuda->frequencies =
        kvl_cuda_take(&cuda->weights, (uint64_t)(h->rope_dims / 2 + 1) * sizeof(double));
    cuda->windowed_frequencies = cuda->frequencies;
    if (h->rope_frequencies_windowed != h->rope_frequencies) {
        cuda->windowed_frequencies =
            kvl_cuda_take(&cuda->weights, (uint64_t)(h->rope_dims / 2 + 1) * sizeof(double));
    }
    for (uint32_t i = 0; i < h->layers; i++) {
        lay_out_layer(&cuda->weights, model, &model->layers[i], &cuda->layers[i]);
    }
}

/* ---- filling ---- */

struct loading {
    struct kvl_cuda *cuda;
    struct kvl_pool *pool;
    uint16_t *staging[2]; /* pinned */
    cudaEvent_t copied[2];
    float *rows; /* [threads][columns_max] decoded */
    uint64_t columns_max;
    uint32_t turn; /* which half is filled next */
    struct kvl_errmsg *msg;
};

struct piece {
    const struct loading *loading;
    const struct kvl_weight *weight;
    uint16_t *out;
    uint32_t first, rows;
};

static void decode_rows(void *arg, uint32_t thread, uint32_t unit) {
    const struct piece *piece = arg;
    const uint32_t columns = piece->weight->columns;
    float *row = piece->loading->rows + thread * piece->loading->columns_max;
    const uint32_t left = piece->rows - unit * UNIT_ROWS;
    for (uint32_t i = 0; i < UNIT_ROWS && i < left; i++) {
        const uint32_t index = unit * UNIT_ROWS + i;
        uint16_t *out = piece->out + (size_t)index * columns;
        kvl_unpack_row(piece->weight, piece->first + index, row);
        for (uint32_t k = 0; k < columns; k++) {
            out[k] = kvl_f32_to_f16(row[k]);
        }
    }
}

static kvl_err load_piece(struct loading *l, struct piece *piece, uint16_t *to) {
    const uint32_t turn = l->turn;
    l->turn = 1 - turn;
    KVL_CUDA_TRY(l->msg, cudaEventSynchronize(l->copied[turn])); /* its last copy has ended */
    piece->out = l->staging[turn];
    kvl_pool_run(l->pool, decode_rows, piece, (piece->rows + UNIT_ROWS - 1) / UNIT_ROWS);
    KVL_CUDA_TRY(
        l->msg, cudaMemcpyAsync(to, piece->out, (uint64_t)piece->rows * piece->weight->columns * 2,
                    cudaMemcpyHostToDevice, l->cuda->stream));
    KVL_CUDA_TRY(l->msg, cudaEventRecord(l->copied[turn], l->cuda->stream));
    return KVL_OK;
}

static kvl_err make_random(struct loading *l, const struct kvl_weight *weight, __half *to) {
    const struct kvl_random_tensor tensor =
        kvl_random_tensor_of(l->cuda->model->seed, weight->random_number, weight->columns);
    KVL_CUDA_TRY(l->msg, kvl_cuda_random_fill(to, (uint64_t)weight->rows * weight->columns,
                             tensor.key, tensor.offset, tensor.step, l->cuda->stream));
    return KVL_OK;
}

/* A matrix to `row` of another that holds several. */
static kvl_err load_matrix(struct loading *l, const struct kvl_weight *weight,
    const struct kvl_cuda_matrix *matrix, uint32_t row) {
    uint16_t *to = (uint16_t *)(void *)matrix->data + (size_t)row * matrix->columns;
    if (l->cuda->model->is_random) {
        return make_random(l, weight, (__half *)(void *)to);
    }
    const uint32_t rows_max = (uint32_t)(STAGING_BYTES / ((uint64_t)weight->columns * 2));
    if (rows_max == 0) {
        return kvl_fail(l->msg, KVL_ERR_UNSUPPORTED,
            "the CUDA backend has no room for a row of %u weights", weight->columns);
    }
    for (uint32_t first = 0; first < weight->rows; first += rows_max) {
        const uint32_t left = weight->rows - first;
        struct piece piece = {.loading = l,
            .weight = weight,
            .first = first,
            .rows = left < rows_max ? left : rows_max};
        const kvl_err err = load_piece(l, &piece, to + (size_t)first * weight->columns);
        if (err != KVL_OK) {
            return err;
        }
    }
    return KVL_OK;
}

/* A vector of floats; absent where the model has none: then `to` is left. */
static kvl_err load_vector(struct loading *l, const struct kvl_weight *weight, float *to) {
    const struct kvl_model *model = l->cuda->model;
    if (!kvl_cuda_has_weight(model, weight)) {
        return KVL_OK;
    }
    const uint32_t count = weight->columns; /* one row */
    const struct kvl_random_tensor tensor =
        kvl_random_tensor_of(model->seed, weight->random_number, count);
    for (uint32_t i = 0; model->is_random && i < count; i++) {
        l->rows[i] = kvl_random_value(tensor, i);
    }
    if (!model->is_random) {
        kvl_unpack_row(weight, 0, l->rows);
    }
    KVL_CUDA_TRY(l->msg, cudaMemcpy(to, l->rows, count * sizeof(float), cudaMemcpyHostToDevice));
    return KVL_OK;
}

static kvl_err load_layer_vectors(
    struct loading *l, const struct kvl_layer *from, const struct kvl_cuda_layer *to) {
    const struct kvl_hparams *h = &l->cuda->model->hparams;
    const uint32_t k_at = h->heads * h->k_dim, v_at = k_at + h->kv_heads * h->k_dim;
    float *const bias = to->qkv_bias;
    const struct {
        const struct kvl_weight *weight;
        float *to;
    } vectors[] = {
        {&from->attention_norm, to->attention_norm},
        {&from->ffn_norm, to->ffn_norm},
        {&from->attention_post_norm, to->attention_post_norm},
        {&from->ffn_post_norm, to->ffn_post_norm},
        {&from->q_bias, bias},
        {&from->k_bias, bias == NULL ? NULL : bias + k_at},
        {&from->v_bias, bias == NULL ? NULL : bias + v_at},
        {&from->q_norm, to->q_norm},
        {&from->k_norm, to->k_norm},
    };
    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++) {
        const kvl_err err = load_vector(l, vectors[i].weight, vectors[i].to);
        if (err != KVL_OK) {
            return err;
        }
    }
    return KVL_OK;
}

static kvl_err load_layer(
    struct loading *l, const struct kvl_layer *from, const struct kvl_cuda_layer *to) {
    const struct {
        const struct kvl_weight *weight;
        const struct kvl_cuda_matrix *to;
        uint32_t row;
    } matrices[] = {
        {&from->q, &to->qkv, 0},
        {&from->k, &to->qkv, from->q.rows},
        {&from->v, &to->qkv, from->q.rows + from->k.rows},
        {&from->attention_out, &to->attention_out, 0},
        {&from->ffn_gate, &to->gate_up, 0},
        {&from->ffn_up, &to->gate_up, from->ffn_gate.rows},
        {&from->ffn_down, &to->down, 0},
    };
    for (size_t i = 0; i < sizeof matrices / sizeof matrices[0]; i++) {
        const kvl_err err = load_matrix(l, matrices[i].weight, matrices[i].to, matrices[i].row);
        if (err != KVL_OK) {
            return err;
        }
    }
    return load_layer_vectors(l, from, to);
}

static kvl_err load_frequencies(struct loading *l) {
    const struct kvl_cuda *cuda = l->cuda;
    const struct kvl_hparams *h = &cuda->model->hparams;
    const size_t bytes = h->rope_dims / 2 * sizeof(double);
    KVL_CUDA_TRY(
        l->msg, cudaMemcpy(cuda->frequencies, h->rope_frequencies, bytes, cudaMemcpyHostToDevice));
    KVL_CUDA_TRY(l->msg, cudaMemcpy(cuda->windowed_frequencies, h->rope_frequencies_windowed, bytes,
                             cudaMemcpyHostToDevice));
    return KVL_OK;
}

static kvl_err load_all(struct loading *l) {
    struct kvl_cuda *cuda = l->cuda;
    const struct kvl_model *model = cuda->model;
    const struct kvl_hparams *h = &model->hparams;
    kvl_err err = load_matrix(l, &model->embedding, &cuda->embedding, 0);
    if (err == KVL_OK && !is_tied(model)) {
        err = load_matrix(l, &model->output, &cuda->output, 0);
    }
    if (err == KVL_OK) {
        err = load_vector(l, &model->output_norm, cuda->output_norm);
    }
    for (uint32_t i = 0; err == KVL_OK && i < h->layers; i++) {
        err = load_layer(l, &model->layers[i], &cuda->layers[i]);
    }
    return err == KVL_OK && h->rope_dims > 0 ? load_frequencies(l) : err;
}

static uint64_t widest(const struct kvl_hparams *h) {
    const uint64_t attended = (uint64_t)h->heads * h->v_dim, q = (uint64_t)h->heads * h->k_dim;
    uint64_t most = h->width > h->ffn_width ? h->width : h->ffn_width;
    most = most > attended ? most : attended;
    return most > q ? most : q;
}

static kvl_err begin(struct loading *l) {
    struct kvl_cuda *cuda = l->cuda;
    const kvl_err err = kvl_pool_create(cuda->threads, &l->pool, l->msg);
    if (err != KVL_OK) {
        return err;
    }
    l->columns_max = widest(&cuda->model->hparams);
    l->rows = calloc(kvl_pool_threads(l->pool) * l->columns_max, sizeof *l->rows);
    if (l->rows == NULL) {
        return kvl_fail(l->msg, KVL_ERR_NOMEM, "out of memory");
    }
    for (int i = 0; i < 2; i++) {
        void *staging = NULL;
        KVL_CUDA_TRY(l->msg, cudaMallocHost(&staging, STAGING_BYTES));
        l->staging[i] = staging;
        KVL_CUDA_TRY(l->msg, cudaEventCreateWithFlags(&l->copied[i], cudaEventDisableTiming));
    }
    return KVL_OK;
}

static void end(struct loading *l) {
    for (int i = 0; i < 2; i++) {
        if (l->copied[i] != NULL) {
            (void)cudaEventDestroy(l->copied[i]);
        }
        (void)cudaFreeHost(l->staging[i]);
    }
    free(l->rows);
    kvl_pool_destroy(l->pool);
}

kvl_err kvl_cuda_load_weights(struct kvl_cuda *cuda, struct kvl_errmsg *msg) {
    lay_out(cuda);
    const uint64_t bytes = cuda->weights.bytes;
    kvl_err err = kvl_cuda_piece_open(&cuda->weights, "the model's weights as f16", msg);
    if (err != KVL_OK) {
        return err;
    }
    lay_out(cuda);
    KVL_CUDA_TRY(msg, cudaMemset(cuda->weights.base, 0, bytes)); /* added rows, missing biases */
    KVL_CUDA_TRY(msg, cudaDeviceSynchronize());
    struct loading loading = {.cuda = cuda, .msg = msg};
    err = begin(&loading);
    if (err == KVL_OK) {
        err = load_all(&loading);
    }
    const cudaError_t error = cudaStreamSynchronize(cuda->stream); /* before its buffers go */
    end(&loading);
    return err != KVL_OK ? err : kvl_cuda_check(msg, error, "loading the weights");
}
