/* model_internal.h - what the parts of the model loader share (model.c, model_rope.c). */
#ifndef KVL_MODEL_INTERNAL_H
#define KVL_MODEL_INTERNAL_H

#include "model.h"

/* What an architecture does otherwise than llama; its row stands in model.c. */
struct architecture {
    const char *name;
    enum kvl_rope_pairing rope_pairing;
    float rope_base;   /* where the file has none; 0: 10000 */
    bool rope_factors; /* may have rope_freqs.weight */
    bool qkv_bias;
    bool qk_norm;
    bool post_norms;       /* of what attention and feed-forward give */
    bool scaled_embedding; /* by sqrt(width) */
    enum kvl_activation activation;
    float attention_softcap, logit_softcap; /* where the file has none; 0: not in this one */
    uint32_t window, window_pattern;        /* likewise */
    float windowed_rope_base; /* where the file has none; 0: windowed layers turn as the others */
    uint32_t width_scaled_layers; /* with so many, scores are scaled by width / heads, not k_dim */
};

struct loader {
    struct kvl_model *model;
    const struct architecture *architecture;
    struct kvl_errmsg *msg;
    uint64_t claimed; /* tensors with a place in the model */
    struct kvl_weight rope_factors;
};

/* Metadata "<architecture>.<name>". Absent: *value stays. Errors: CORRUPT (of another kind, or
 * outside the range; named in msg). */
KVL_MUST_CHECK kvl_err kvl_model_optional(
    struct loader *l, const char *name, uint64_t min, uint64_t max, uint32_t *value);
KVL_MUST_CHECK kvl_err kvl_model_optional_float(
    struct loader *l, const char *name, float min, float max, float *value);
bool kvl_model_text(const struct loader *l, const char *name, struct kvl_gguf_string *value);

/* A tensor of that shape, which counts as used. Errors: CORRUPT (absent, another shape). */
KVL_MUST_CHECK kvl_err kvl_model_take(
    struct loader *l, const char *name, uint64_t rows, uint64_t columns, struct kvl_weight *weight);

/* All of hparams' rope_*; k_dim and context_max are known. Errors: CORRUPT, UNSUPPORTED (a kind of
 * scaling), NOMEM. */
KVL_MUST_CHECK kvl_err kvl_model_read_rope(struct loader *l);

#endif
