/* cuda_backend.c - makes and ends an instance of the CUDA backend (cuda_backend.h): picks the GPU,
 * refuses what its kernels do not compute, loads the weights, takes memory, chooses products. */
#include "cuda_backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

/* Changes with whatever changes the bits of this folder's kernels. */
enum { KERNEL_REVISION = 2 };

/* ---- the GPU ---- */

/* The runtime says "insufficient" of a driver that is not there, too. */
static kvl_err refuse_driver(struct kvl_errmsg *msg) {
    int version = 0; /* stays so where there is none */
    (void)cudaDriverGetVersion(&version);
    if (version == 0) {
        return kvl_fail(msg, KVL_ERR_UNSUPPORTED,
            "no NVIDIA driver is here; the engine needs one of CUDA %d.0 or newer; or use --device "
            "cpu",
            CUDART_VERSION / 1000);
    }
    return kvl_fail(msg, KVL_ERR_UNSUPPORTED,
        "the NVIDIA driver is of CUDA %d.%d; the engine needs one of CUDA %d.0 or newer; or use "
        "--device cpu",
        version / 1000, version % 1000 / 10, CUDART_VERSION / 1000);
}

static kvl_err find_device(struct kvl_cuda *cuda, uint32_t wanted, struct kvl_errmsg *msg) {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaErrorInsufficientDriver) {
        return refuse_driver(msg);
    }
    if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0)) {
        return kvl_fail(msg, KVL_ERR_UNSUPPORTED, "no usable NVIDIA GPU: %s; use --device cpu",
            cudaGetErrorString(error));
    }
    KVL_CUDA_TRY(msg, error);
    if (wanted >= (uint32_t)count) {
        return kvl_fail(msg, KVL_ERR_NOTFOUND, "there is no cuda:%u, only %d GPU%s", wanted, count,
            count == 1 ? "" : "s");
    }
    cuda->device_index = (int)wanted;
    KVL_CUDA_TRY(msg, cudaGetDeviceProperties(&cuda->device, cuda->device_index));
    if (cuda->device.major < 8) {
        return kvl_fail(msg, KVL_ERR_UNSUPPORTED,
            "%s has compute capability %d.%d; the CUDA backend needs 8.0 (Ampere) or newer",
            cuda->device.name, cuda->device.major, cuda->device.minor);
    }
    KVL_CUDA_TRY(msg, cudaSetDevice(cuda->device_index));
    return kvl_cuda_calls_open(&cuda->driver, msg);
}

/* ---- what the kernels do not compute ---- */

static kvl_err refuse_shape(const struct kvl_hparams *h, struct kvl_errmsg *msg) {
    const struct {
        const char *name;
        uint64_t value;
    } widths[] = {
        {"embedding length", h->width},
        {"feed-forward length", h->ffn_width},
        {"attention output", (uint64_t)h->heads * h->v_dim},
        {"key length", h->k_dim},
        {"value length", h->v_dim},
    };
    for (size_t i = 0; i < sizeof widths / sizeof widths[0]; i++) {
        if (widths[i].value % 8 != 0) {
            return kvl_fail(msg, KVL_ERR_UNSUPPORTED,
                "the CUDA backend needs a multiple of 8 as %s, not %llu", widths[i].name,
                (unsigned long long)widths[i].value);
        }
    }
    return KVL_OK;
}

static bool has_post_norms(const struct kvl_model *model) {
    return kvl_cuda_has_weight(model, &model->layers[0].attention_post_norm);
}

static kvl_err refuse_features(const struct kvl_model *model, struct kvl_errmsg *msg) {
    const struct kvl_hparams *h = &model->hparams;
    if (h->embedding_scale == 0 || h->attention_scale == 0 || h->rope_magnitude == 0 ||
        (h->rope_dims > 0 &&
            (h->rope_frequencies == NULL || h->rope_frequencies_windowed == NULL))) {
        return kvl_fail(msg, KVL_ERR_INVALID, "the model's scales and frequencies are not set");
    }
    for (uint32_t i = 0; i < h->layers; i++) {
        const struct kvl_layer *layer = &model->layers[i];
        if (kvl_cuda_has_weight(model, &layer->attention_post_norm) != has_post_norms(model) ||
            kvl_cuda_has_weight(model, &layer->ffn_post_norm) != has_post_norms(model)) {
            return kvl_fail(msg, KVL_ERR_UNSUPPORTED,
                "the CUDA backend needs norms behind attention and feed-forward of all layers or "
                "of none");
        }
    }
    return refuse_shape(h, msg);
}

/* ---- memory ---- */

static void lay_out_scratch(struct kvl_cuda *cuda) {
    const struct kvl_hparams *h = &cuda->model->hparams;
    const struct kvl_cuda_layer *layer = &cuda->layers[0];
    const uint64_t rows = KVL_CUDA_CHUNK_TOKENS;
    struct kvl_cuda_arena *arena = &cuda->scratch;
    cuda->x = kvl_cuda_take(arena, rows * h->width * 4);
    cuda->normed = kvl_cuda_take(arena, rows * h->width * 2);
    cuda->qkv_rows = kvl_cuda_take(arena, rows * layer->qkv.rows * 2);
    cuda->q = kvl_cuda_take(arena, rows * h->heads * h->k_dim * 2);
    cuda->attended = kvl_cuda_take(arena, rows * h->heads * h->v_dim * 2);
    cuda->gate_up_rows = kvl_cuda_take(arena, rows * layer->gate_up.rows * 2);
    cuda->ffn = kvl_cuda_take(arena, rows * h->ffn_width * 2);
    cuda->ffn_f32 = kvl_cuda_take(arena, (uint64_t)h->ffn_width * 4);
    cuda->given = has_post_norms(cuda->model) ? kvl_cuda_take(arena, rows * h->width * 4) : NULL;
    cuda->angles = kvl_cuda_take(arena, rows * h->rope_dims * 4);
    cuda->windowed_angles = h->rope_frequencies_windowed == h->rope_frequencies
                                ? cuda->angles
                                : kvl_cuda_take(arena, rows * h->rope_dims * 4);
    cuda->logits = kvl_cuda_take(arena, (uint64_t)KVL_CUDA_LOGITS_ROWS * cuda->output.rows * 4);
    cuda->best = kvl_cuda_take(arena, sizeof *cuda->best);
    cuda->attention_scratch = kvl_cuda_take(arena, cuda->attention_scratch_bytes);
    cuda->step = kvl_cuda_take(arena, kvl_cuda_step_bytes(kvl_cuda_table_entries(cuda)));
    cuda->prompt = kvl_cuda_take(
        arena, ((uint64_t)cuda->prompt_chunks_max + cuda->context_max) * sizeof *cuda->prompt);
}

/* The most that any KV type needs; UNSUPPORTED when attention has no version for any. */
static kvl_err measure_attention(struct kvl_cuda *cuda, struct kvl_errmsg *msg) {
    const struct kvl_hparams *h = &cuda->model->hparams;
    bool any = false;
    for (int dtype = KVL_KV_F16; dtype <= KVL_KV_F32; dtype++) {
        const struct kvl_batch batch = {.block_tokens = 64, .kv_dtype = (enum kvl_kv_dtype)dtype};
        struct kvl_cuda_attention attention = kvl_cuda_attention_of(cuda, &batch, 0);
        attention.tokens = KVL_CUDA_CHUNK_TOKENS;
        attention.position_max = cuda->context_max;
        const uint64_t bytes = kvl_cuda_attention_scratch_bytes(&attention);
        if (bytes != UINT64_MAX) {
            any = true;
            cuda->attention_scratch_bytes =
                bytes > cuda->attention_scratch_bytes ? bytes : cuda->attention_scratch_bytes;
        }
    }
    return any ? KVL_OK
               : kvl_fail(msg, KVL_ERR_UNSUPPORTED,
                     "the CUDA backend has no attention for %u heads of %u and %u on %u KV heads",
                     h->heads, h->k_dim, h->v_dim, h->kv_heads);
}

static kvl_err take_pinned(struct kvl_cuda *cuda, struct kvl_errmsg *msg) {
    const struct {
        void *pointer; /* where it goes */
        uint64_t bytes;
    } pieces[] = {
        {&cuda->host_step, kvl_cuda_step_bytes(kvl_cuda_table_entries(cuda))},
        {&cuda->host_prompt, ((uint64_t)cuda->prompt_chunks_max + cuda->context_max) * 4},
        {&cuda->host_logits, (uint64_t)cuda->output.rows * 4},
        {&cuda->host_best, sizeof *cuda->host_best},
        {&cuda->word, sizeof *cuda->word},
    };
    for (size_t i = 0; i < sizeof pieces / sizeof pieces[0]; i++) {
        void *memory = NULL;
        KVL_CUDA_TRY(msg, cudaHostAlloc(&memory, pieces[i].bytes, cudaHostAllocPortable));
        memset(memory, 0, pieces[i].bytes);
        memcpy(pieces[i].pointer, &memory, sizeof memory);
    }
    return KVL_OK;
}

static kvl_err take_scratch(struct kvl_cuda *cuda, struct kvl_errmsg *msg) {
    cuda->prompt_chunks_max = cuda->context_max / KVL_CUDA_CHUNK_TOKENS + 1;
    kvl_err err = measure_attention(cuda, msg);
    if (err != KVL_OK) {
        return err;
    }
    lay_out_scratch(cuda);
    const uint64_t bytes = cuda->scratch.bytes;
    err = kvl_cuda_piece_open(&cuda->scratch, "the CUDA backend's activations", msg);
    if (err != KVL_OK) {
        return err;
    }
    lay_out_scratch(cuda);
    KVL_CUDA_TRY(msg, cudaMemsetAsync(cuda->scratch.base, 0, bytes, cuda->stream));
    return take_pinned(cuda, msg);
}

/* ---- products ---- */

static uint32_t hash_products(const struct kvl_cuda *cuda) {
    const struct kvl_cuda_product *const products[] = {
        &cuda->qkv, &cuda->attention_out, &cuda->gate_up, &cuda->down, &cuda->logits_product};
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < sizeof products / sizeof products[0]; i++) {
        hash = (hash ^ products[i]->algorithm_hash) * 16777619u;
    }
    return hash;
}

static kvl_err choose_products(struct kvl_cuda *cuda, struct kvl_errmsg *msg) {
    enum { TILES = KVL_CUDA_CHUNK_TOKENS / KVL_CUDA_ROW_TILE };
    const struct kvl_cuda_layer *layer = &cuda->layers[0];
    /* Of what is normalized before it is added, the sum is not made by the product. */
    const enum kvl_cuda_output joins =
        has_post_norms(cuda->model) ? KVL_CUDA_OUTPUT_F32 : KVL_CUDA_OUTPUT_ADD_F32;
    const struct {
        struct kvl_cuda_product *product;
        const struct kvl_cuda_matrix *w;
        enum kvl_cuda_output output;
        uint32_t tiles_max;
    } products[] = {
        {&cuda->qkv, &layer->qkv, KVL_CUDA_OUTPUT_F16, TILES},
        {&cuda->attention_out, &layer->attention_out, joins, TILES},
        {&cuda->gate_up, &layer->gate_up, KVL_CUDA_OUTPUT_F16, TILES},
        {&cuda->down, &layer->down, joins, TILES},
        {&cuda->logits_product, &cuda->output, KVL_CUDA_OUTPUT_F32,
            KVL_CUDA_LOGITS_ROWS / KVL_CUDA_ROW_TILE},
    };
    for (size_t i = 0; i < sizeof products / sizeof products[0]; i++) {
        const struct kvl_cuda_shape shape = {.outputs = products[i].w->rows,
            .inputs = products[i].w->columns,
            .output = products[i].output,
            .tiles_max = products[i].tiles_max};
        const kvl_err err = kvl_cuda_product_init(
            cuda->blas, &shape, products[i].w->data, cuda->stream, products[i].product, msg);
        if (err != KVL_OK) {
            return err;
        }
    }
    return KVL_OK;
}

/* ---- the instance ---- */

/* What compiled the kernels that run here is part of their arithmetic: nvcc, the architecture that
 * it compiled them for, and that of their machine code. Where the two differ the driver may have
 * translated them, so it counts too. The hash holds whole what the text may cut. */
static kvl_err name_arithmetic(
    struct kvl_cuda *cuda, struct kvl_cuda_code code, struct kvl_errmsg *msg) {
    int driver_version = 0;
    if (code.machine != code.virtual_machine) {
        KVL_CUDA_TRY(msg, cudaDriverGetVersion(&driver_version));
    }
    char text[sizeof cuda->device.name + 64];
    snprintf(text, sizeof text, "%s %s %u %u %d", cuda->device.name, kvl_cuda_compiler,
        code.virtual_machine, code.machine, driver_version);
    uint32_t hash = hash_products(cuda);
    for (const char *c = text; *c != '\0'; c++) {
        hash = (hash ^ (uint8_t)*c) * 16777619u;
    }
    snprintf(cuda->base.arithmetic_id, sizeof cuda->base.arithmetic_id,
        "cuda-f16-%d %.30s cublaslt-%u %.14s %u/%u %08x", KERNEL_REVISION, cuda->device.name,
        kvl_cuda_blas_version(cuda->blas), kvl_cuda_compiler, (uint8_t)code.virtual_machine,
        (uint8_t)code.machine, hash);
    return KVL_OK;
}

static kvl_err look_at_kernels(struct kvl_cuda *cuda, struct kvl_errmsg *msg) {
    struct kvl_cuda_code code;
    KVL_CUDA_TRY(msg, kvl_cuda_gemv_code(&code));
    /* Launches overlap only where the kernels were compiled with a wait for the one ahead. */
    cuda->programmatic = code.virtual_machine >= 90 && code.machine >= 90;
    return name_arithmetic(cuda, code, msg);
}

static kvl_err set_up(
    struct kvl_cuda *cuda, const struct kvl_backend_options *options, struct kvl_errmsg *msg) {
    kvl_err err = find_device(cuda, options->device, msg);
    if (err == KVL_OK) {
        err = refuse_features(cuda->model, msg);
    }
    if (err != KVL_OK) {
        return err;
    }
    KVL_CUDA_TRY(msg, cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking));
    err = kvl_cuda_blas_open(&cuda->blas, msg);
    if (err == KVL_OK) {
        err = kvl_cuda_load_weights(cuda, msg);
    }
    if (err == KVL_OK) {
        err = take_scratch(cuda, msg);
    }
    if (err == KVL_OK) {
        err = choose_products(cuda, msg);
    }
    if (err == KVL_OK && !options->with_daemon) {
        err = kvl_cuda_try_wait(cuda, msg);
    }
    if (err == KVL_OK) {
        err = look_at_kernels(cuda, msg);
    }
    return err;
}

static void free_pinned(struct kvl_cuda *cuda) {
    void *const pieces[] = {cuda->host_step, cuda->host_prompt, cuda->host_logits, cuda->host_best,
        (void *)(uintptr_t)cuda->word};
    for (size_t i = 0; i < sizeof pieces / sizeof pieces[0]; i++) {
        if (pieces[i] != NULL) {
            (void)cudaFreeHost(pieces[i]);
        }
    }
}

static void free_products(struct kvl_cuda *cuda) {
    struct kvl_cuda_product *const products[] = {
        &cuda->qkv, &cuda->attention_out, &cuda->gate_up, &cuda->down, &cuda->logits_product};
    for (size_t i = 0; i < sizeof products / sizeof products[0]; i++) {
        kvl_cuda_product_deinit(cuda->blas, products[i]);
    }
}

static void destroy(struct kvl_backend *backend) {
    struct kvl_cuda *cuda = kvl_cuda_of(backend);
    if (cuda == NULL) {
        return;
    }
    if (cuda->stream != NULL) { /* there is a device */
        (void)cudaSetDevice(cuda->device_index);
        (void)cudaStreamSynchronize(cuda->stream);
        kvl_cuda_forget_graphs(cuda);
        kvl_cuda_free_memory(cuda);
        free_products(cuda);
        kvl_cuda_blas_close(cuda->blas);
        free_pinned(cuda);
        (void)cudaFree(cuda->scratch.base);
        (void)cudaFree(cuda->weights.base);
        (void)cudaStreamDestroy(cuda->stream);
    }
    free(cuda->layers);
    free(cuda);
}

static kvl_err create(const struct kvl_model *model, const struct kvl_backend_options *options,
    struct kvl_backend **out, struct kvl_errmsg *msg) {
    struct kvl_cuda *cuda = calloc(1, sizeof *cuda);
    if (cuda == NULL) {
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
    }
    cuda->base =
        (struct kvl_backend){.ops = kvl_backend_cuda, .chunk_tokens = KVL_CUDA_CHUNK_TOKENS};
    cuda->model = model;
    cuda->threads = options->threads;
    cuda->context_max =
        options->context_max != 0 ? options->context_max : model->hparams.context_max;
    cuda->use_graphs = true;
    cuda->layers = calloc(model->hparams.layers, sizeof *cuda->layers);
    kvl_err err = cuda->layers != NULL ? set_up(cuda, options, msg)
                                       : kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
    if (err != KVL_OK) {
        destroy(&cuda->base);
        return err;
    }
    if (options->block_tokens != 0) {
        err = kvl_cuda_warm(cuda, options->block_tokens, options->kv_dtype);
    }
    if (err != KVL_OK) {
        kvl_fail(msg, err, "the GPU cannot compute: %s", cuda->last.text);
        destroy(&cuda->base);
        return err;
    }
    *out = &cuda->base;
    return KVL_OK;
}

static const struct kvl_backend_ops ops = {
    .name = "cuda",
    .create = create,
    .forward = kvl_cuda_forward,
    .destroy = destroy,
    .map_arena = kvl_cuda_map_arena,
    .unmap_arena = kvl_cuda_unmap_arena,
    .take_memory = kvl_cuda_take_memory,
    .give_memory_back = kvl_cuda_give_memory_back,
    .copy = kvl_cuda_copy,
    .zero = kvl_cuda_zero,
    .finish = kvl_cuda_finish,
};

const struct kvl_backend_ops *const kvl_backend_cuda = &ops;
