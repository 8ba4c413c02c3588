/* model.c - see model.h. Everything in the file is untrusted: each number is checked against each
 * tensor's shape before anything computes with it. */
#include "model.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One row per architecture: the metadata prefix is its name; switches come as they are needed. */
struct architecture {
    const char *name;
    float rope_base; /* where the file has none */
};

static const struct architecture architectures[] = {
    {.name = "llama", .rope_base = 10000.0f},
};

/* Sizes beyond these are no model but a mistake; they also keep all later products in range. */
enum { MAX_LAYERS = 4096, MAX_WIDTH = 1 << 20, MAX_HEAD_DIM = 1024, MAX_VOCAB = 1 << 24 };

struct loader {
    struct kvl_model *model;
    const struct architecture *architecture;
    struct kvl_errmsg *msg;
    uint64_t claimed; /* tensors with a place in the model */
};

static const char *key_of(const struct loader *l, const char *name, char key[96]) {
    assert(l->architecture); /* found before any key of it is read */
    snprintf(key, 96, "%s.%s", l->architecture->name, name);
    return key;
}

/* ---- metadata ---- */

static kvl_err read_number(
    struct loader *l, const char *name, uint64_t min, uint64_t max, uint32_t *value) {
    char key[96];
    uint64_t number;
    if (!kvl_gguf_u64(l->model->gguf, key_of(l, name, key), &number)) {
        return kvl_fail(l->msg, KVL_ERR_CORRUPT, "the model file has no integer %s", key);
    }
    if (number < min || number > max) {
        return kvl_fail(l->msg, KVL_ERR_CORRUPT, "%s is %llu, expected %llu to %llu", key,
            (unsigned long long)number, (unsigned long long)min, (unsigned long long)max);
    }
    *value = (uint32_t)number;
    return KVL_OK;
}

static bool has_key(const struct loader *l, const char *name) {
    char key[96];
    uint64_t number;
    float real;
    struct kvl_gguf_array array;
    struct kvl_gguf_string string;
    key_of(l, name, key);
    return kvl_gguf_u64(l->model->gguf, key, &number) || kvl_gguf_f32(l->model->gguf, key, &real) ||
           kvl_gguf_array(l->model->gguf, key, &array) ||
           kvl_gguf_string(l->model->gguf, key, &string);
}

/* Absent: *value stays. */
static kvl_err read_optional(
    struct loader *l, const char *name, uint64_t min, uint64_t max, uint32_t *value) {
    return has_key(l, name) ? read_number(l, name, min, max, value) : KVL_OK;
}

static kvl_err find_architecture(struct loader *l) {
    struct kvl_gguf_string name;
    if (!kvl_gguf_string(l->model->gguf, "general.architecture", &name)) {
        return kvl_fail(l->msg, KVL_ERR_CORRUPT, "the model file has no general.architecture");
    }
    for (size_t i = 0; i < sizeof architectures / sizeof architectures[0]; i++) {
        const struct architecture *candidate = &architectures[i];
        if (name.bytes == strlen(candidate->name) &&
            memcmp(name.data, candidate->name, name.bytes) == 0) {
            l->architecture = candidate;
            snprintf(l->model->hparams.architecture, sizeof l->model->hparams.architecture, "%s",
                candidate->name);
            return KVL_OK;
        }
    }
    return kvl_fail(l->msg, KVL_ERR_UNSUPPORTED,
        "architecture '%.*s' is not supported; use a model of architecture llama",
        name.bytes > 64 ? 64 : (int)name.bytes, name.data);
}

static kvl_err refuse_scaled_rope(struct loader *l) {
    char key[96];
    struct kvl_gguf_string type;
    float factor = 1;
    if (kvl_gguf_string(l->model->gguf, key_of(l, "rope.scaling.type", key), &type) &&
        !(type.bytes == 4 && memcmp(type.data, "none", 4) == 0)) {
        return kvl_fail(l->msg, KVL_ERR_UNSUPPORTED, "%s '%.*s' is not supported", key,
            type.bytes > 64 ? 64 : (int)type.bytes, type.data);
    }
    if (kvl_gguf_f32(l->model->gguf, key_of(l, "rope.scale_linear", key), &factor) && factor != 1) {
        return kvl_fail(l->msg, KVL_ERR_UNSUPPORTED, "%s %g is not supported", key, factor);
    }
    return KVL_OK;
}

static kvl_err refuse_features(struct loader *l) {
    static const char *const absent[] = {"expert_count", "attention.sliding_window"};
    for (size_t i = 0; i < sizeof absent / sizeof absent[0]; i++) {
        char key[96];
        uint64_t value = 0;
        if (kvl_gguf_u64(l->model->gguf, key_of(l, absent[i], key), &value) && value != 0) {
            return kvl_fail(l->msg, KVL_ERR_UNSUPPORTED, "%s %llu is not supported", key,
                (unsigned long long)value);
        }
    }
    return refuse_scaled_rope(l);
}

static kvl_err read_heads(struct loader *l) {
    struct kvl_hparams *h = &l->model->hparams;
    kvl_err err = read_number(l, "attention.head_count", 1, MAX_WIDTH, &h->heads);
    if (err != KVL_OK) {
        return err;
    }
    h->kv_heads = h->heads;
    err = read_optional(l, "attention.head_count_kv", 1, h->heads, &h->kv_heads);
    if (err != KVL_OK) {
        return err;
    }
    if (h->heads % h->kv_heads != 0) {
        return kvl_fail(l->msg, KVL_ERR_CORRUPT, "%u heads cannot share %u KV heads evenly",
            h->heads, h->kv_heads);
    }
    h->k_dim = h->v_dim = h->width / h->heads;
    err = read_optional(l, "attention.key_length", 1, MAX_HEAD_DIM, &h->k_dim);
    if (err != KVL_OK) {
        return err;
    }
    err = read_optional(l, "attention.value_length", 1, MAX_HEAD_DIM, &h->v_dim);
    if (err == KVL_OK &&
        (h->k_dim == 0 || h->k_dim > MAX_HEAD_DIM || h->v_dim == 0 || h->v_dim > MAX_HEAD_DIM)) {
        err = kvl_fail(l->msg, KVL_ERR_CORRUPT, "head sizes %u and %u are outside 1 to %d",
            h->k_dim, h->v_dim, MAX_HEAD_DIM);
    }
    return err;
}

/* Pair i turns by base^(-2i / dims) a position, in double: exact enough to round once. */
static kvl_err fill_rope_frequencies(struct loader *l) {
    struct kvl_hparams *h = &l->model->hparams;
    double *frequencies = calloc(h->rope_dims / 2 + 1, sizeof *frequencies);
    if (frequencies == NULL) {
        return kvl_fail(l->msg, KVL_ERR_NOMEM, "out of memory");
    }
    for (uint32_t i = 0; i < h->rope_dims; i += 2) {
        frequencies[i / 2] = pow(h->rope_base, -(double)i / h->rope_dims);
    }
    l->model->rope_frequencies = frequencies;
    h->rope_frequencies = frequencies;
    h->rope_magnitude = 1;
    return KVL_OK;
}

static kvl_err read_rope(struct loader *l) {
    struct kvl_hparams *h = &l->model->hparams;
    char key[96];
    h->rope_dims = h->k_dim;
    h->rope_base = l->architecture->rope_base;
    const kvl_err err = read_optional(l, "rope.dimension_count", 0, h->k_dim, &h->rope_dims);
    if (err != KVL_OK) {
        return err;
    }
    if (h->rope_dims % 2 != 0) {
        return kvl_fail(
            l->msg, KVL_ERR_CORRUPT, "odd number of rotated dimensions: %u", h->rope_dims);
    }
    (void)kvl_gguf_f32(l->model->gguf, key_of(l, "rope.freq_base", key), &h->rope_base);
    if (!isfinite(h->rope_base) || h->rope_base <= 0) {
        return kvl_fail(l->msg, KVL_ERR_CORRUPT, "%s is not a positive number", key);
    }
    return fill_rope_frequencies(l);
}

static kvl_err read_hparams(struct loader *l) {
    struct kvl_hparams *h = &l->model->hparams;
    const struct {
        const char *name;
        uint64_t max;
        uint32_t *value;
    } numbers[] = {
        {"block_count", MAX_LAYERS, &h->layers},
        {"embedding_length", MAX_WIDTH, &h->width},
        {"feed_forward_length", MAX_WIDTH, &h->ffn_width},
        {"context_length", UINT32_MAX, &h->context_max},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        const kvl_err err = read_number(l, numbers[i].name, 1, numbers[i].max, numbers[i].value);
        if (err != KVL_OK) {
            return err;
        }
    }
    kvl_err err = read_heads(l);
    if (err != KVL_OK) {
        return err;
    }
    err = read_rope(l);
    if (err != KVL_OK) {
        return err;
    }
    char key[96];
    key_of(l, "attention.layer_norm_rms_epsilon", key);
    if (!kvl_gguf_f32(l->model->gguf, key, &h->rms_epsilon) || !(h->rms_epsilon >= 0) ||
        !isfinite(h->rms_epsilon)) {
        return kvl_fail(l->msg, KVL_ERR_CORRUPT, "the model file has no valid %s", key);
    }
    h->embedding_scale = 1;
    h->attention_scale = 1.0f / sqrtf((float)h->k_dim);
    return refuse_features(l);
}

/* ---- tensors ---- */

static bool is_weight_type(uint32_t type) {
    return type == KVL_GGML_F32 || type == KVL_GGML_F16 || type == KVL_GGML_Q8_0 ||
           type == KVL_GGML_Q4_1;
}

static kvl_err check_tensor(struct loader *l, const char *name,
    const struct kvl_gguf_tensor *tensor, uint64_t rows, uint64_t columns) {
    if (!is_weight_type(tensor->type)) {
        return kvl_fail(l->msg, KVL_ERR_UNSUPPORTED,
            "tensor %s has ggml type %u; supported are F32, F16, Q8_0 and Q4_1", name,
            tensor->type);
    }
    if (tensor->dims[0] != columns || tensor->dims[1] != rows || tensor->dims[2] != 1 ||
        tensor->dims[3] != 1) {
        return kvl_fail(l->msg, KVL_ERR_CORRUPT,
            "tensor %s is %llu x %llu, the metadata says %llu x %llu", name,
            (unsigned long long)tensor->dims[0], (unsigned long long)tensor->dims[1],
            (unsigned long long)columns, (unsigned long long)rows);
    }
    return KVL_OK;
}

static kvl_err take_tensor(struct loader *l, const char *name, uint64_t rows, uint64_t columns,
    struct kvl_weight *weight) {
    const struct kvl_gguf_tensor *tensor = kvl_gguf_tensor(l->model->gguf, name);
    if (tensor == NULL) {
        return kvl_fail(l->msg, KVL_ERR_CORRUPT, "the model file has no tensor %s", name);
    }
    const kvl_err err = check_tensor(l, name, tensor, rows, columns);
    if (err == KVL_OK) {
        *weight = (struct kvl_weight){
            .tensor = tensor, .rows = (uint32_t)rows, .columns = (uint32_t)columns};
        l->claimed++;
    }
    return err;
}

static kvl_err take_layer(struct loader *l, uint32_t index) {
    const struct kvl_hparams *h = &l->model->hparams;
    struct kvl_layer *layer = &l->model->layers[index];
    const uint64_t q_width = (uint64_t)h->heads * h->k_dim;
    const uint64_t k_width = (uint64_t)h->kv_heads * h->k_dim;
    const uint64_t v_width = (uint64_t)h->kv_heads * h->v_dim;
    const uint64_t out_width = (uint64_t)h->heads * h->v_dim;
    const struct {
        const char *name;
        uint64_t rows, columns;
        struct kvl_weight *weight;
    } tensors[] = {
        {"attn_norm", 1, h->width, &layer->attention_norm},
        {"attn_q", q_width, h->width, &layer->q},
        {"attn_k", k_width, h->width, &layer->k},
        {"attn_v", v_width, h->width, &layer->v},
        {"attn_output", h->width, out_width, &layer->attention_out},
        {"ffn_norm", 1, h->width, &layer->ffn_norm},
        {"ffn_gate", h->ffn_width, h->width, &layer->ffn_gate},
        {"ffn_up", h->ffn_width, h->width, &layer->ffn_up},
        {"ffn_down", h->width, h->ffn_width, &layer->ffn_down},
    };
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++) {
        char name[64];
        snprintf(name, sizeof name, "blk.%u.%s.weight", index, tensors[i].name);
        const kvl_err err =
            take_tensor(l, name, tensors[i].rows, tensors[i].columns, tensors[i].weight);
        if (err != KVL_OK) {
            return err;
        }
    }
    return KVL_OK;
}

static kvl_err take_embedding(struct loader *l) {
    struct kvl_hparams *h = &l->model->hparams;
    const struct kvl_gguf_tensor *tensor = kvl_gguf_tensor(l->model->gguf, "token_embd.weight");
    if (tensor == NULL || tensor->dims[1] < 1 || tensor->dims[1] > MAX_VOCAB) {
        return kvl_fail(l->msg, KVL_ERR_CORRUPT,
            tensor == NULL ? "the model file has no tensor token_embd.weight"
                           : "token_embd.weight has an impossible number of rows");
    }
    h->vocab = (uint32_t)tensor->dims[1];
    kvl_err err = take_tensor(l, "token_embd.weight", h->vocab, h->width, &l->model->embedding);
    if (err != KVL_OK) {
        return err;
    }
    uint32_t named = h->vocab;
    err = read_optional(l, "vocab_size", h->vocab, h->vocab, &named);
    if (err != KVL_OK) {
        return err;
    }
    if (kvl_gguf_tensor(l->model->gguf, "output.weight") == NULL) {
        l->model->output = l->model->embedding;
        return KVL_OK;
    }
    return take_tensor(l, "output.weight", h->vocab, h->width, &l->model->output);
}

static bool is_claimed(const struct kvl_model *model, const struct kvl_gguf_tensor *tensor) {
    if (tensor == model->embedding.tensor || tensor == model->output.tensor ||
        tensor == model->output_norm.tensor) {
        return true;
    }
    for (uint32_t i = 0; i < model->hparams.layers; i++) {
        const struct kvl_weight *weights = &model->layers[i].attention_norm;
        for (size_t w = 0; w < sizeof model->layers[i] / sizeof *weights; w++) {
            if (weights[w].tensor == tensor) {
                return true;
            }
        }
    }
    return false;
}

/* A bias, a norm on q and k, RoPE factors: leaving such a tensor out would give wrong text. */
static kvl_err refuse_unclaimed(struct loader *l) {
    const uint64_t count = kvl_gguf_tensor_count(l->model->gguf);
    if (count == l->claimed) {
        return KVL_OK;
    }
    for (uint64_t i = 0; i < count; i++) {
        const struct kvl_gguf_tensor *tensor = kvl_gguf_tensor_at(l->model->gguf, i);
        if (!is_claimed(l->model, tensor)) {
            return kvl_fail(l->msg, KVL_ERR_UNSUPPORTED,
                "tensor %.*s is not part of a supported llama model",
                tensor->name.bytes > 64 ? 64 : (int)tensor->name.bytes, tensor->name.data);
        }
    }
    return KVL_OK;
}

static kvl_err take_tensors(struct loader *l) {
    kvl_err err = take_embedding(l);
    if (err != KVL_OK) {
        return err;
    }
    struct kvl_hparams *h = &l->model->hparams;
    err = take_tensor(l, "output_norm.weight", 1, h->width, &l->model->output_norm);
    if (err != KVL_OK) {
        return err;
    }
    l->model->layers = calloc(h->layers, sizeof *l->model->layers);
    if (l->model->layers == NULL) {
        return kvl_fail(l->msg, KVL_ERR_NOMEM, "out of memory for %u layers", h->layers);
    }
    for (uint32_t i = 0; i < h->layers; i++) {
        err = take_layer(l, i);
        if (err != KVL_OK) {
            return err;
        }
    }
    return refuse_unclaimed(l);
}

kvl_err kvl_model_load(const char *path, struct kvl_model **out, struct kvl_errmsg *msg) {
    struct kvl_model *model = calloc(1, sizeof *model);
    if (model == NULL) {
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
    }
    struct loader loader = {.model = model, .msg = msg};
    kvl_err err = kvl_gguf_open(path, &model->gguf, msg);
    if (err != KVL_OK) {
        goto cleanup;
    }
    err = find_architecture(&loader);
    if (err != KVL_OK) {
        goto cleanup;
    }
    err = read_hparams(&loader);
    if (err != KVL_OK) {
        goto cleanup;
    }
    err = take_tensors(&loader);
    if (err != KVL_OK) {
        goto cleanup;
    }
    err = kvl_gguf_fingerprint(model->gguf, model->fingerprint, msg);
    if (err != KVL_OK) {
        goto cleanup;
    }
    *out = model;
    model = NULL;

cleanup:
    kvl_model_free(model);
    return err;
}

void kvl_model_free(struct kvl_model *model) {
    if (model == NULL) {
        return;
    }
    free(model->layers);
    free(model->rope_frequencies);
    kvl_gguf_close(model->gguf);
    free(model);
}
