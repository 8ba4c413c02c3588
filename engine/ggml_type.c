/* ggml_type.c - how many bytes each of ggml's weight types takes (ggml-common.h, block_*). */
#include "gguf.h"

#define KVL_GGML_TYPE_END 31

static const struct kvl_ggml_layout layouts[KVL_GGML_TYPE_END] = {
    [KVL_GGML_F32] = {"F32", 1, 4},
    [KVL_GGML_F16] = {"F16", 1, 2},
    [KVL_GGML_Q4_0] = {"Q4_0", 32, 18},
    [KVL_GGML_Q4_1] = {"Q4_1", 32, 20},
    [KVL_GGML_Q5_0] = {"Q5_0", 32, 22},
    [KVL_GGML_Q5_1] = {"Q5_1", 32, 24},
    [KVL_GGML_Q8_0] = {"Q8_0", 32, 34},
    [KVL_GGML_Q2_K] = {"Q2_K", 256, 84},
    [KVL_GGML_Q3_K] = {"Q3_K", 256, 110},
    [KVL_GGML_Q4_K] = {"Q4_K", 256, 144},
    [KVL_GGML_Q5_K] = {"Q5_K", 256, 176},
    [KVL_GGML_Q6_K] = {"Q6_K", 256, 210},
    [KVL_GGML_IQ4_NL] = {"IQ4_NL", 32, 18},
    [KVL_GGML_IQ4_XS] = {"IQ4_XS", 256, 136},
    [KVL_GGML_BF16] = {"BF16", 1, 2},
};

const struct kvl_ggml_layout *kvl_ggml_layout(uint32_t type) {
    if (type >= KVL_GGML_TYPE_END || !layouts[type].name) {
        return NULL;
    }
    return &layouts[type];
}
