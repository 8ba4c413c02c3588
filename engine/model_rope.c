/* model_rope.c - the angles of RoPE: every kind of scaling comes down to one frequency for each
 * pair of elements and one magnitude for all.
 *
 *   plain     f_i = base^(-2i / dims)
 *   factors   f_i / factor_i                   rope_freqs.weight of the file (Llama 3)
 *   linear    f_i / factor
 *   YaRN      f_i (m_i + (1 - m_i) / factor), magnitude 0.1 ln(factor) + 1; m_i goes from 1 to 0
 *             between the pairs that turn beta_fast and beta_slow times within the original context
 *             (Peng et al., "YaRN: Efficient Context Window Extension", 2023; the rounding of the
 *             two ends, and what a file may say beside it, as llama.cpp has them) */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model_internal.h"
#include "quant.h"

struct scaling {
    bool is_yarn;
    float factor;
    uint32_t original_context;
    float beta_fast, beta_slow;
    float attention_factor; /* of the magnitude */
    float log_multiplier;   /* 0: none */
};

static bool is_text(struct kvl_gguf_string string, const char *text) {
    return string.bytes == strlen(text) && memcmp(string.data, text, string.bytes) == 0;
}

/* A file that names no type scales linearly, by its factor or by the older key. */
static kvl_err read_type(struct loader *l, struct scaling *s) {
    struct kvl_gguf_string type;
    const bool is_named = kvl_model_text(l, "rope.scaling.type", &type);
    s->is_yarn = is_named && is_text(type, "yarn");
    if (is_named && !s->is_yarn && !is_text(type, "linear") && !is_text(type, "none")) {
        return kvl_fail(l->msg, KVL_ERR_UNSUPPORTED,
            "%s.rope.scaling.type '%.*s' is not supported; linear and yarn are",
            l->architecture->name, type.bytes > 64 ? 64 : (int)type.bytes, type.data);
    }
    kvl_err err = kvl_model_optional_float(l, "rope.scale_linear", 0, 1e6f, &s->factor);
    if (err == KVL_OK) {
        err = kvl_model_optional_float(l, "rope.scaling.factor", 0, 1e6f, &s->factor);
    }
    if (s->factor == 0 || (is_named && is_text(type, "none"))) {
        s->factor = 1;
    }
    return err;
}

static kvl_err read_scaling(struct loader *l, struct scaling *s) {
    *s = (struct scaling){.factor = 1,
        .original_context = l->model->hparams.context_max,
        .beta_fast = 32,
        .beta_slow = 1,
        .attention_factor = 1};
    kvl_err err = read_type(l, s);
    const struct {
        const char *name;
        float min, max, *value;
    } floats[] = {
        {"rope.scaling.attn_factor", 0, 1e3f, &s->attention_factor},
        {"rope.scaling.yarn_log_multiplier", 0, 1e3f, &s->log_multiplier},
        {"rope.scaling.yarn_beta_fast", 1e-3f, 1e6f, &s->beta_fast},
        {"rope.scaling.yarn_beta_slow", 1e-3f, 1e6f, &s->beta_slow},
    };
    for (size_t i = 0; i < sizeof floats / sizeof floats[0] && err == KVL_OK; i++) {
        err = kvl_model_optional_float(
            l, floats[i].name, floats[i].min, floats[i].max, floats[i].value);
    }
    if (err != KVL_OK) {
        return err;
    }
    return kvl_model_optional(
        l, "rope.scaling.original_context_length", 1, UINT32_MAX, &s->original_context);
}

/* Which pair turns `turns` times within the original context; f32 as in llama.cpp, which rounds the
 * result to a whole pair. */
static float pair_of_turns(const struct kvl_hparams *h, const struct scaling *s, float turns) {
    return (float)h->rope_dims *
           logf((float)s->original_context / (turns * 2 * 3.14159265358979f)) /
           (2 * logf(h->rope_base));
}

static void apply_yarn(struct kvl_hparams *h, const struct scaling *s, double *frequencies) {
    const float low = fmaxf(0, floorf(pair_of_turns(h, s, s->beta_fast)));
    const float high = fminf((float)h->rope_dims - 1, ceilf(pair_of_turns(h, s, s->beta_slow)));
    for (uint32_t i = 0; i < h->rope_dims / 2; i++) {
        const float ramp = ((float)i - low) / fmaxf(0.001f, high - low);
        const double kept = 1 - fminf(1, fmaxf(0, ramp));
        frequencies[i] *= kept + (1 - kept) / s->factor;
    }
    const float logarithm = s->factor > 1 ? 0.1f * logf(s->factor) : 0;
    h->rope_magnitude = (logarithm + 1) / (s->log_multiplier * logarithm + 1);
}

static kvl_err divide_by_factors(struct loader *l, double *frequencies) {
    const struct kvl_hparams *h = &l->model->hparams;
    const char *const name = "rope_freqs.weight";
    if (!l->architecture->rope_factors || kvl_gguf_tensor(l->model->gguf, name) == NULL) {
        return KVL_OK;
    }
    const uint32_t pairs = h->rope_dims / 2;
    const kvl_err err = kvl_model_take(l, name, 1, pairs, &l->rope_factors);
    if (err != KVL_OK) {
        return err;
    }
    float *factors = malloc(pairs * sizeof *factors);
    if (factors == NULL) {
        return kvl_fail(l->msg, KVL_ERR_NOMEM, "out of memory");
    }
    kvl_dequantize_row(l->rope_factors.tensor->type, l->rope_factors.tensor->data, pairs, factors);
    bool good = true;
    for (uint32_t i = 0; i < pairs; i++) {
        good = good && factors[i] >= 1e-6f && factors[i] <= 1e6f;
        frequencies[i] /= factors[i];
    }
    free(factors);
    return good ? KVL_OK
                : kvl_fail(l->msg, KVL_ERR_CORRUPT, "%s has a factor outside 1e-6 to 1e6", name);
}

static void fill_plain(double *frequencies, uint32_t dims, float base) {
    for (uint32_t i = 0; i < dims; i += 2) {
        frequencies[i / 2] = pow(base, -(double)i / dims);
    }
}

/* Windowed layers with a base of their own are not scaled: they never see far. */
static kvl_err fill_windowed(struct loader *l, const struct scaling *s, double *frequencies) {
    struct kvl_hparams *h = &l->model->hparams;
    float base = l->architecture->windowed_rope_base;
    if (base == 0) {
        return KVL_OK;
    }
    if (s->is_yarn) {
        return kvl_fail(l->msg, KVL_ERR_UNSUPPORTED,
            "rope.scaling.type 'yarn' is not supported for architecture %s", l->architecture->name);
    }
    const kvl_err err = kvl_model_optional_float(l, "rope.freq_base_swa", 1.0001f, 1e12f, &base);
    fill_plain(frequencies, h->rope_dims, base);
    h->rope_frequencies_windowed = frequencies;
    return err;
}

static kvl_err fill_frequencies(struct loader *l, const struct scaling *s) {
    struct kvl_hparams *h = &l->model->hparams;
    double *frequencies = calloc(h->rope_dims + 2, sizeof *frequencies);
    if (frequencies == NULL) {
        return kvl_fail(l->msg, KVL_ERR_NOMEM, "out of memory");
    }
    l->model->rope_frequencies = frequencies;
    h->rope_frequencies = h->rope_frequencies_windowed = frequencies;
    fill_plain(frequencies, h->rope_dims, h->rope_base);
    h->rope_magnitude = 1;
    kvl_err err = divide_by_factors(l, frequencies);
    if (err == KVL_OK) {
        err = fill_windowed(l, s, frequencies + h->rope_dims / 2);
    }
    if (s->is_yarn) {
        apply_yarn(h, s, frequencies);
    } else {
        for (uint32_t i = 0; i < h->rope_dims / 2; i++) {
            frequencies[i] /= s->factor;
        }
    }
    h->rope_magnitude *= s->attention_factor;
    h->rope_scaled =
        s->is_yarn || s->factor != 1 || s->attention_factor != 1 || l->rope_factors.tensor != NULL;
    return err;
}

kvl_err kvl_model_read_rope(struct loader *l) {
    struct kvl_hparams *h = &l->model->hparams;
    struct scaling scaling;
    h->rope_dims = h->k_dim;
    h->rope_base = l->architecture->rope_base == 0 ? 10000 : l->architecture->rope_base;
    h->rope_pairing = l->architecture->rope_pairing;
    kvl_err err = kvl_model_optional(l, "rope.dimension_count", 0, h->k_dim, &h->rope_dims);
    if (err == KVL_OK) {
        err = kvl_model_optional_float(l, "rope.freq_base", 1.0001f, 1e12f, &h->rope_base);
    }
    if (err == KVL_OK) {
        err = read_scaling(l, &scaling);
    }
    if (err != KVL_OK) {
        return err;
    }
    if (h->rope_dims % 2 != 0) {
        return kvl_fail(
            l->msg, KVL_ERR_CORRUPT, "odd number of rotated dimensions: %u", h->rope_dims);
    }
    return fill_frequencies(l, &scaling);
}
