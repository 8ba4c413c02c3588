/* model_random.c - random models (model.h): shapes of known models, and shapes from a file.
 *
 * A shape file is one JSON object. Needed: layers, width, ffn_width, heads, vocab, context_max.
 * Optional: kv_heads (heads), k_dim and v_dim (width / heads), rope_dims (k_dim), rope_base
 * (10000), rms_epsilon (1e-5), tied (false: the output matrix is its own), window (tokens that a
 * layer sees, all of them without it) but for the last of every window_pattern (2) layers. */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <openssl/evp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"
#include "random_weights.h"

/* Sizes beyond these are a mistake; they also keep all products in range. */
enum {
    LAYERS_MAX = 4096,
    WIDTH_MAX = 1 << 20,
    HEAD_DIM_MAX = 1024,
    VOCAB_MAX = 1 << 24,
    CONTEXT_MAX = 1 << 24,
    FILE_BYTES_MAX = 65536,
};

struct shape {
    const char *name;
    struct kvl_hparams hparams;
    bool tied;
};

/* As the models' published config.json say; Qwen2's biases of q, k and v are left out. */
static const struct shape shapes[] = {
    {.name = "llama-8b",
        .hparams = {.layers = 32,
            .width = 4096,
            .ffn_width = 14336,
            .heads = 32,
            .kv_heads = 8,
            .k_dim = 128,
            .v_dim = 128,
            .vocab = 128256,
            .context_max = 131072,
            .rope_dims = 128,
            .rope_base = 500000.0f,
            .rms_epsilon = 1e-5f}},
    {.name = "llama-1b",
        .hparams = {.layers = 16,
            .width = 2048,
            .ffn_width = 8192,
            .heads = 32,
            .kv_heads = 8,
            .k_dim = 64,
            .v_dim = 64,
            .vocab = 128256,
            .context_max = 131072,
            .rope_dims = 64,
            .rope_base = 500000.0f,
            .rms_epsilon = 1e-5f},
        .tied = true},
    {.name = "qwen2-7b",
        .hparams = {.layers = 28,
            .width = 3584,
            .ffn_width = 18944,
            .heads = 28,
            .kv_heads = 4,
            .k_dim = 128,
            .v_dim = 128,
            .vocab = 152064,
            .context_max = 131072,
            .rope_dims = 128,
            .rope_base = 1000000.0f,
            .rms_epsilon = 1e-6f}},
};

/* ---- a shape from a file ---- */

struct field {
    const char *name;
    size_t offset; /* in kvl_hparams */
    uint32_t max;
    bool optional;
};
#define FIELD(member, limit, is_optional)                                                          \
    {                                                                                              \
        .name = #member, .offset = offsetof(struct kvl_hparams, member), .max = (limit),           \
        .optional = (is_optional)                                                                  \
    }
static const struct field fields[] = {
    FIELD(layers, LAYERS_MAX, false),
    FIELD(width, WIDTH_MAX, false),
    FIELD(ffn_width, WIDTH_MAX, false),
    FIELD(heads, WIDTH_MAX, false),
    FIELD(vocab, VOCAB_MAX, false),
    FIELD(context_max, CONTEXT_MAX, false),
    FIELD(kv_heads, WIDTH_MAX, true),
    FIELD(k_dim, HEAD_DIM_MAX, true),
    FIELD(v_dim, HEAD_DIM_MAX, true),
    FIELD(rope_dims, HEAD_DIM_MAX, true),
    FIELD(window, CONTEXT_MAX, true),
    FIELD(window_pattern, LAYERS_MAX, true),
};
enum { FIELDS = sizeof fields / sizeof fields[0] };

static bool is_known(const char *key) {
    for (size_t i = 0; i < FIELDS; i++) {
        if (strcmp(key, fields[i].name) == 0) {
            return true;
        }
    }
    return strcmp(key, "rope_base") == 0 || strcmp(key, "rms_epsilon") == 0 ||
           strcmp(key, "tied") == 0;
}

static kvl_err read_field(const json_t *object, const struct field *field,
    struct kvl_hparams *hparams, struct kvl_errmsg *msg) {
    const json_t *value = json_object_get(object, field->name);
    if (value == NULL && field->optional) {
        return KVL_OK;
    }
    if (value == NULL) {
        return kvl_fail(msg, KVL_ERR_INVALID, "the shape has no %s", field->name);
    }
    const json_int_t number = json_integer_value(value);
    if (!json_is_integer(value) || number < 1 || number > field->max) {
        return kvl_fail(msg, KVL_ERR_INVALID, "the shape's %s is not a whole number from 1 to %u",
            field->name, field->max);
    }
    const uint32_t word = (uint32_t)number;
    memcpy((char *)hparams + field->offset, &word, sizeof word);
    return KVL_OK;
}

static kvl_err read_real(
    const json_t *object, const char *name, double max, float *out, struct kvl_errmsg *msg) {
    const json_t *value = json_object_get(object, name);
    const double number = json_number_value(value);
    if (value == NULL) {
        return KVL_OK;
    }
    if (!json_is_number(value) || !(number > 0 && number <= max)) {
        return kvl_fail(
            msg, KVL_ERR_INVALID, "the shape's %s is not a number above 0, up to %g", name, max);
    }
    *out = (float)number;
    return KVL_OK;
}

static kvl_err read_tied(const json_t *object, bool *out, struct kvl_errmsg *msg) {
    const json_t *value = json_object_get(object, "tied");
    if (value != NULL && !json_is_boolean(value)) {
        return kvl_fail(msg, KVL_ERR_INVALID, "the shape's tied is not true or false");
    }
    *out = json_is_true(value);
    return KVL_OK;
}

static void fill_in(struct kvl_hparams *h) {
    h->kv_heads = h->kv_heads != 0 ? h->kv_heads : h->heads;
    h->k_dim = h->k_dim != 0 ? h->k_dim : h->width / h->heads;
    h->v_dim = h->v_dim != 0 ? h->v_dim : h->width / h->heads;
    h->rope_dims = h->rope_dims != 0 ? h->rope_dims : h->k_dim;
    h->window_pattern = h->window != 0 && h->window_pattern == 0 ? 2 : h->window_pattern;
}

static kvl_err check_shape(const struct kvl_hparams *h, struct kvl_errmsg *msg) {
    if (h->heads % h->kv_heads != 0) {
        return kvl_fail(msg, KVL_ERR_INVALID, "%u heads cannot share %u KV heads evenly", h->heads,
            h->kv_heads);
    }
    if (h->k_dim == 0 || h->v_dim == 0 || h->k_dim > HEAD_DIM_MAX || h->v_dim > HEAD_DIM_MAX) {
        return kvl_fail(msg, KVL_ERR_INVALID, "a head of %u and %u numbers, expected 1 to %d",
            h->k_dim, h->v_dim, HEAD_DIM_MAX);
    }
    if (h->window == 0 && h->window_pattern != 0) {
        return kvl_fail(msg, KVL_ERR_INVALID, "the shape has a window_pattern and no window");
    }
    if (h->rope_dims > h->k_dim || h->rope_dims % 2 != 0) {
        return kvl_fail(msg, KVL_ERR_INVALID,
            "rope_dims %u is not an even number up to the %u of k_dim", h->rope_dims, h->k_dim);
    }
    if ((uint64_t)h->heads * h->k_dim > WIDTH_MAX || (uint64_t)h->heads * h->v_dim > WIDTH_MAX) {
        return kvl_fail(msg, KVL_ERR_INVALID, "%u heads of %u numbers are more than %d", h->heads,
            h->k_dim > h->v_dim ? h->k_dim : h->v_dim, WIDTH_MAX);
    }
    return KVL_OK;
}

static kvl_err read_object(json_t *object, struct shape *shape, struct kvl_errmsg *msg) {
    if (!json_is_object(object)) {
        return kvl_fail(msg, KVL_ERR_INVALID, "a shape is one JSON object");
    }
    for (void *i = json_object_iter(object); i != NULL; i = json_object_iter_next(object, i)) {
        if (!is_known(json_object_iter_key(i))) {
            return kvl_fail(msg, KVL_ERR_INVALID, "a shape has no %.64s", json_object_iter_key(i));
        }
    }
    struct kvl_hparams *hparams = &shape->hparams;
    hparams->rope_base = 10000.0f;
    hparams->rms_epsilon = 1e-5f;
    kvl_err err = KVL_OK;
    for (size_t i = 0; i < FIELDS && err == KVL_OK; i++) {
        err = read_field(object, &fields[i], hparams, msg);
    }
    if (err == KVL_OK) {
        err = read_real(object, "rope_base", 1e12, &hparams->rope_base, msg);
    }
    if (err == KVL_OK) {
        err = read_real(object, "rms_epsilon", 1, &hparams->rms_epsilon, msg);
    }
    if (err == KVL_OK) {
        err = read_tied(object, &shape->tied, msg);
    }
    if (err != KVL_OK) {
        return err;
    }
    fill_in(hparams);
    return check_shape(hparams, msg);
}

static kvl_err read_file(const char *path, struct shape *shape, struct kvl_errmsg *msg) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        return kvl_fail(msg, errno == ENOENT ? KVL_ERR_NOTFOUND : KVL_ERR_IO,
            "%s: %s; a random model is llama-8b, llama-1b, qwen2-7b, or a file of a shape", path,
            strerror(errno));
    }
    char text[FILE_BYTES_MAX];
    const size_t bytes = fread(text, 1, sizeof text, file);
    const bool is_whole = bytes < sizeof text && ferror(file) == 0;
    fclose(file);
    if (!is_whole) {
        return kvl_fail(msg, KVL_ERR_INVALID, "%s: cannot be read, or is too long", path);
    }
    json_error_t why;
    struct kvl_errmsg detail = {{0}};
    json_t *object = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &why);
    if (object == NULL) {
        return kvl_fail(msg, KVL_ERR_INVALID, "%s:%d: %s", path, why.line, why.text);
    }
    const kvl_err err = read_object(object, shape, &detail);
    json_decref(object);
    return err == KVL_OK ? KVL_OK : kvl_fail(msg, err, "%s: %s", path, detail.text);
}

/* ---- the model ---- */

/* SHA-256 over text that names formula, shape and seed; floats by their bits. */
static kvl_err fingerprint(struct kvl_model *model, bool tied) {
    const struct kvl_hparams *h = &model->hparams;
    uint32_t base_bits, epsilon_bits;
    char text[512];
    memcpy(&base_bits, &h->rope_base, sizeof base_bits);
    memcpy(&epsilon_bits, &h->rms_epsilon, sizeof epsilon_bits);
    int bytes = snprintf(text, sizeof text,
        "kvloft-random 1 %s %u %u %u %u %u %u %u %u %u %08x %08x %d %llu", h->architecture,
        h->layers, h->width, h->ffn_width, h->heads, h->kv_heads, h->k_dim, h->v_dim, h->vocab,
        h->rope_dims, base_bits, epsilon_bits, tied, (unsigned long long)model->seed);
    if (h->window != 0) {
        bytes += snprintf(text + bytes, sizeof text - (size_t)bytes, " window %u %u", h->window,
            h->window_pattern);
    }
    return EVP_Digest(text, (size_t)bytes, model->fingerprint, NULL, EVP_sha256(), NULL) == 1
               ? KVL_OK
               : KVL_ERR_NOMEM;
}

static struct kvl_weight weight(
    const struct kvl_model *model, uint32_t number, uint64_t rows, uint64_t columns) {
    return (struct kvl_weight){
        .rows = (uint32_t)rows,
        .columns = (uint32_t)columns,
        .random_number = number,
        .random_seed = model->seed,
    };
}

static void name_layer(struct kvl_model *model, uint32_t index) {
    const struct kvl_hparams *h = &model->hparams;
    const uint32_t number = KVL_RANDOM_LAYERS + index * KVL_RANDOM_PER_LAYER;
    model->layers[index] = (struct kvl_layer){
        .attention_norm = weight(model, number + KVL_RANDOM_ATTENTION_NORM, 1, h->width),
        .q = weight(model, number + 1, (uint64_t)h->heads * h->k_dim, h->width),
        .k = weight(model, number + 2, (uint64_t)h->kv_heads * h->k_dim, h->width),
        .v = weight(model, number + 3, (uint64_t)h->kv_heads * h->v_dim, h->width),
        .attention_out = weight(model, number + 4, h->width, (uint64_t)h->heads * h->v_dim),
        .ffn_norm = weight(model, number + KVL_RANDOM_FFN_NORM, 1, h->width),
        .ffn_gate = weight(model, number + 6, h->ffn_width, h->width),
        .ffn_up = weight(model, number + 7, h->ffn_width, h->width),
        .ffn_down = weight(model, number + 8, h->width, h->ffn_width),
    };
}

static kvl_err name_weights(struct kvl_model *model, bool tied) {
    const struct kvl_hparams *h = &model->hparams;
    model->layers = calloc(h->layers, sizeof *model->layers);
    if (model->layers == NULL) {
        return KVL_ERR_NOMEM;
    }
    model->embedding = weight(model, KVL_RANDOM_EMBEDDING, h->vocab, h->width);
    model->output_norm = weight(model, KVL_RANDOM_OUTPUT_NORM, 1, h->width);
    model->output = tied ? model->embedding : weight(model, KVL_RANDOM_OUTPUT, h->vocab, h->width);
    for (uint32_t i = 0; i < h->layers; i++) {
        name_layer(model, i);
    }
    return KVL_OK;
}

/* Pair i turns by base^(-2i / dims) a position; nothing else is scaled. */
static kvl_err fill_scales(struct kvl_model *model) {
    struct kvl_hparams *h = &model->hparams;
    model->rope_frequencies = calloc(h->rope_dims / 2 + 1, sizeof *model->rope_frequencies);
    if (model->rope_frequencies == NULL) {
        return KVL_ERR_NOMEM;
    }
    for (uint32_t i = 0; i < h->rope_dims; i += 2) {
        model->rope_frequencies[i / 2] = pow(h->rope_base, -(double)i / h->rope_dims);
    }
    h->rope_frequencies = h->rope_frequencies_windowed = model->rope_frequencies;
    h->rope_magnitude = 1;
    h->embedding_scale = 1;
    h->attention_scale = 1.0f / sqrtf((float)h->k_dim);
    return KVL_OK;
}

static kvl_err find_shape(const char *name, struct shape *out, struct kvl_errmsg *msg) {
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        if (strcmp(name, shapes[i].name) == 0) {
            *out = shapes[i];
            return KVL_OK;
        }
    }
    return read_file(name, out, msg);
}

kvl_err kvl_model_random(
    const char *shape, uint64_t seed, struct kvl_model **out, struct kvl_errmsg *msg) {
    *out = NULL;
    struct shape found = {0};
    kvl_err err = find_shape(shape, &found, msg);
    if (err != KVL_OK) {
        return err;
    }
    struct kvl_model *model = calloc(1, sizeof *model);
    if (model == NULL) {
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
    }
    model->is_random = true;
    model->seed = seed;
    model->hparams = found.hparams;
    snprintf(model->hparams.architecture, sizeof model->hparams.architecture, "llama");
    err = name_weights(model, found.tied);
    if (err == KVL_OK) {
        err = fill_scales(model);
    }
    if (err == KVL_OK) {
        err = fingerprint(model, found.tied);
    }
    if (err != KVL_OK) {
        kvl_model_free(model);
        return kvl_fail(msg, err, "cannot make a random model: %s", kvl_err_text(err));
    }
    *out = model;
    return KVL_OK;
}
