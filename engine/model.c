/* model.c - see model.h. Everything in the file is untrusted: each number is checked against each
 * tensor's shape before anything computes with it. */
#include "model.h"

#include "model_internal.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One row per architecture: its name, which prefixes its metadata, and what it does otherwise than
 * llama. What the forward pass does about it goes through hparams and the layers' tensors. */
static const struct architecture architectures[] = {
    {.name = "llama", .rope_factors = true},
    {.name = "qwen2", .rope_pairing = KVL_ROPE_HALVES, .qkv_bias = true},
    {.name = "qwen3", .rope_pairing = KVL_ROPE_HALVES, .qk_norm = true},
    {.name = "gemma",
        .rope_pairing = KVL_ROPE_HALVES,
        .scaled_embedding = true,
        .activation = KVL_ACTIVATION_GELU_TANH},
    {.name = "gemma2",
        .rope_pairing = KVL_ROPE_HALVES,
        .post_norms = true,
        .scaled_embedding = true,
        .activation = KVL_ACTIVATION_GELU_TANH,
        .attention_softcap = 50,
        .logit_softcap = 30,
        .window = 4096,
        .window_pattern = 2,
        .width_scaled_layers = 46}, /* the 27B model, known by that in llama.cpp too */
    {.name = "gemma3",
        .rope_pairing = KVL_ROPE_HALVES,
        .rope_base = 1000000,
        .qk_norm = true,
        .post_norms = true,
        .scaled_embedding = true,
        .activation = KVL_ACTIVATION_GELU_TANH,
        .window = 1024,
        .window_pattern = 6,
        .windowed_rope_base = 10000,
        .width_scaled_layers = 62}, /* 27B */
};

/* Sizes beyond these are no model but a mistake; they also keep all later products in range. */
enum { MAX_LAYERS = 4096, MAX_WIDTH = 1 << 20, MAX_HEAD_DIM = 1024, MAX_VOCAB = 1 << 24 };

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
kvl_err kvl_model_optional(
    struct loader *l, const char *name, uint64_t min, uint64_t max, uint32_t *value) {
    return has_key(l, name) ? read_number(l, name, min, max, value) : KVL_OK;
}

kvl_err kvl_model_optional_float(
    struct loader *l, const char *name, float min, float max, float *value) {
    char key[96];
    if (!has_key(l, name)) {
        return KVL_OK;
    }
    key_of(l, name, key);
    if (!kvl_gguf_f32(l->model->gguf, key, value) || !(*value >= min && *value <= max)) {
        return kvl_fail(l->msg, KVL_ERR_CORRUPT, "%s is not a number from %g to %g", key, min, max);
    }
    return KVL_OK;
}

bool kvl_model_text(const struct loader *l, const char *name, struct kvl_gguf_string *value) {
    char key[96];
    return kvl_gguf_string(l->model->gguf, key_of(l, name, key), value);
}

static void list_architectures(char *text, size_t text_bytes) {
    size_t used = 0;
    for (size_t i = 0; i < sizeof architectures / sizeof architectures[0] && used < text_bytes;
         i++) {
        used += (size_t)snprintf(
            text + used, text_bytes - used, "%s%s", i == 0 ? "" : ", ", architectures[i].name);
    }
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
    char names[128];
    list_architectures(names, sizeof names);
    return kvl_fail(l->msg, KVL_ERR_UNSUPPORTED,
        "architecture '%.*s' is not supported; use a model of one of these: %s",
        name.bytes > 64 ? 64 : (int)name.bytes, name.data, names);
}

static kvl_err refuse_number(struct loader *l, const char *name) {
    char key[96];
    uint64_t value = 0;
    if (kvl_gguf_u64(l->model->gguf, key_of(l, name, key), &value) && value != 0) {
        return kvl_fail(l->msg, KVL_ERR_UNSUPPORTED, "%s %llu is not supported", key,
            (unsigned long long)value);
    }
    return KVL_OK;
}

static kvl_err refuse_features(struct loader *l) {
    const kvl_err err = refuse_number(l, "expert_count");
    return err != KVL_OK || l->architecture->window != 0
               ? err
               : refuse_number(l, "attention.sliding_window");
}

static kvl_err read_heads(struct loader *l) {
    struct kvl_hparams *h = &l->model->hparams;
    kvl_err err = read_number(l, "attention.head_count", 1, MAX_WIDTH, &h->heads);
    if (err != KVL_OK) {
        return err;
    }
    h->kv_heads = h->heads;
    err = kvl_model_optional(l, "attention.head_count_kv", 1, h->heads, &h->kv_heads);
    if (err != KVL_OK) {
        return err;
    }
    if (h->heads % h->kv_heads != 0) {
        return kvl_fail(l->msg, KVL_ERR_CORRUPT, "%u heads cannot share %u KV heads evenly",
            h->heads, h->kv_heads);
    }
    h->k_dim = h->v_dim = h->width / h->heads;
    err = kvl_model_optional(l, "attention.key_length", 1, MAX_HEAD_DIM, &h->k_dim);
    if (err != KVL_OK) {
        return err;
    }
    err = kvl_model_optional(l, "attention.value_length", 1, MAX_HEAD_DIM, &h->v_dim);
    if (err == KVL_OK &&
        (h->k_dim == 0 || h->k_dim > MAX_HEAD_DIM || h->v_dim == 0 || h->v_dim > MAX_HEAD_DIM)) {
        err = kvl_fail(l->msg, KVL_ERR_CORRUPT, "head sizes %u and %u are outside 1 to %d",
            h->k_dim, h->v_dim, MAX_HEAD_DIM);
    }
    const uint32_t dim = h->k_dim > h->v_dim ? h->k_dim : h->v_dim;
    if (err == KVL_OK && (uint64_t)h->heads * dim > MAX_WIDTH) {
        err = kvl_fail(l->msg, KVL_ERR_CORRUPT, "%u heads of %u numbers are more than %d", h->heads,
            dim, MAX_WIDTH);
    }
    return err;
}

/* What most architectures do not have. */
static kvl_err read_extras(struct loader *l) {
    struct kvl_hparams *h = &l->model->hparams;
    const struct architecture *a = l->architecture;
    h->activation = a->activation;
    h->embedding_scale = a->scaled_embedding ? sqrtf((float)h->width) : 1;
    h->attention_scale =
        1.0f / sqrtf(h->layers == a->width_scaled_layers ? (float)h->width / (float)h->heads
                                                         : (float)h->k_dim);
    h->attention_softcap = a->attention_softcap;
    h->logit_softcap = a->logit_softcap;
    h->window = a->window;
    h->window_pattern = a->window_pattern;
    kvl_err err = KVL_OK;
    if (a->attention_softcap != 0) {
        err = kvl_model_optional_float(
            l, "attn_logit_softcapping", 1e-3f, 1e6f, &h->attention_softcap);
    }
    if (err == KVL_OK && a->logit_softcap != 0) {
        err =
            kvl_model_optional_float(l, "final_logit_softcapping", 1e-3f, 1e6f, &h->logit_softcap);
    }
    if (err == KVL_OK && a->window != 0) {
        err = kvl_model_optional(l, "attention.sliding_window", 1, UINT32_MAX, &h->window);
    }
    if (err == KVL_OK && a->window != 0) {
        err = kvl_model_optional(
            l, "attention.sliding_window_pattern", 1, MAX_LAYERS, &h->window_pattern);
    }
    return err == KVL_OK ? refuse_features(l) : err;
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
    err = kvl_model_read_rope(l);
    if (err != KVL_OK) {
        return err;
    }
    char key[96];
    key_of(l, "attention.layer_norm_rms_epsilon", key);
    if (!kvl_gguf_f32(l->model->gguf, key, &h->rms_epsilon) || !(h->rms_epsilon >= 0) ||
        !isfinite(h->rms_epsilon)) {
        return kvl_fail(l->msg, KVL_ERR_CORRUPT, "the model file has no valid %s", key);
    }
    return read_extras(l);
}

/* ---- tensors ---- */

static kvl_err check_tensor(struct loader *l, const char *name,
    const struct kvl_gguf_tensor *tensor, uint64_t rows, uint64_t columns) {
    if (tensor->dims[0] != columns || tensor->dims[1] != rows || tensor->dims[2] != 1 ||
        tensor->dims[3] != 1) {
        return kvl_fail(l->msg, KVL_ERR_CORRUPT,
            "tensor %s is %llu x %llu, the metadata says %llu x %llu", name,
            (unsigned long long)tensor->dims[0], (unsigned long long)tensor->dims[1],
            (unsigned long long)columns, (unsigned long long)rows);
    }
    return KVL_OK;
}

kvl_err kvl_model_take(struct loader *l, const char *name, uint64_t rows, uint64_t columns,
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
        bool there;
        uint64_t rows, columns;
        struct kvl_weight *weight;
    } tensors[] = {
        {"attn_norm.weight", true, 1, h->width, &layer->attention_norm},
        {"attn_q.weight", true, q_width, h->width, &layer->q},
        {"attn_k.weight", true, k_width, h->width, &layer->k},
        {"attn_v.weight", true, v_width, h->width, &layer->v},
        {"attn_q.bias", l->architecture->qkv_bias, 1, q_width, &layer->q_bias},
        {"attn_k.bias", l->architecture->qkv_bias, 1, k_width, &layer->k_bias},
        {"attn_v.bias", l->architecture->qkv_bias, 1, v_width, &layer->v_bias},
        {"attn_q_norm.weight", l->architecture->qk_norm, 1, h->k_dim, &layer->q_norm},
        {"attn_k_norm.weight", l->architecture->qk_norm, 1, h->k_dim, &layer->k_norm},
        {"attn_output.weight", true, h->width, out_width, &layer->attention_out},
        {"post_attention_norm.weight", l->architecture->post_norms, 1, h->width,
            &layer->attention_post_norm},
        {"post_ffw_norm.weight", l->architecture->post_norms, 1, h->width, &layer->ffn_post_norm},
        {"ffn_norm.weight", true, 1, h->width, &layer->ffn_norm},
        {"ffn_gate.weight", true, h->ffn_width, h->width, &layer->ffn_gate},
        {"ffn_up.weight", true, h->ffn_width, h->width, &layer->ffn_up},
        {"ffn_down.weight", true, h->width, h->ffn_width, &layer->ffn_down},
    };
    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++) {
        char name[64];
        snprintf(name, sizeof name, "blk.%u.%s", index, tensors[i].name);
        const kvl_err err = tensors[i].there ? kvl_model_take(l, name, tensors[i].rows,
                                                   tensors[i].columns, tensors[i].weight)
                                             : KVL_OK;
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
    kvl_err err = kvl_model_take(l, "token_embd.weight", h->vocab, h->width, &l->model->embedding);
    if (err != KVL_OK) {
        return err;
    }
    uint32_t named = h->vocab;
    err = kvl_model_optional(l, "vocab_size", h->vocab, h->vocab, &named);
    if (err != KVL_OK) {
        return err;
    }
    if (kvl_gguf_tensor(l->model->gguf, "output.weight") == NULL) {
        l->model->output = l->model->embedding;
        return KVL_OK;
    }
    return kvl_model_take(l, "output.weight", h->vocab, h->width, &l->model->output);
}

static bool is_claimed(const struct loader *l, const struct kvl_gguf_tensor *tensor) {
    const struct kvl_model *model = l->model;
    if (tensor == model->embedding.tensor || tensor == model->output.tensor ||
        tensor == model->output_norm.tensor || tensor == l->rope_factors.tensor) {
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

/* A bias, a norm: leaving a tensor out that the architecture does not know would give wrong text.
 */
static kvl_err refuse_unclaimed(struct loader *l) {
    const uint64_t count = kvl_gguf_tensor_count(l->model->gguf);
    if (count == l->claimed) {
        return KVL_OK;
    }
    for (uint64_t i = 0; i < count; i++) {
        const struct kvl_gguf_tensor *tensor = kvl_gguf_tensor_at(l->model->gguf, i);
        if (!is_claimed(l, tensor)) {
            return kvl_fail(l->msg, KVL_ERR_UNSUPPORTED,
                "tensor %.*s is not part of a supported %s model",
                tensor->name.bytes > 64 ? 64 : (int)tensor->name.bytes, tensor->name.data,
                l->architecture->name);
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
    err = kvl_model_take(l, "output_norm.weight", 1, h->width, &l->model->output_norm);
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

kvl_err kvl_model_of(struct kvl_gguf *gguf, struct kvl_model **out, struct kvl_errmsg *msg) {
    struct kvl_model *model = calloc(1, sizeof *model);
    if (model == NULL) {
        kvl_gguf_close(gguf);
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
    }
    model->gguf = gguf;
    struct loader loader = {.model = model, .msg = msg};
    kvl_err err = find_architecture(&loader);
    if (err == KVL_OK) {
        err = read_hparams(&loader);
    }
    if (err == KVL_OK) {
        err = take_tensors(&loader);
    }
    if (err == KVL_OK) {
        err = kvl_gguf_fingerprint(model->gguf, model->fingerprint, msg);
    }
    if (err != KVL_OK) {
        kvl_model_free(model);
        return err;
    }
    *out = model;
    return KVL_OK;
}

kvl_err kvl_model_load(const char *path, struct kvl_model **out, struct kvl_errmsg *msg) {
    struct kvl_gguf *gguf;
    const kvl_err err = kvl_gguf_open(path, &gguf, msg);
    return err == KVL_OK ? kvl_model_of(gguf, out, msg) : err;
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
