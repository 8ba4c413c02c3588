/* blas.c - see blas.h.
 *
 * cuBLASLt thinks in columns: a row-major y[rows][outputs] is its matrix of outputs x rows, and w
 * [outputs][inputs] its transposed one of inputs x outputs. So m is outputs, n rows, k inputs. */
#include "blas.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_err.h"
#include "kernels.h"

enum { CANDIDATES = 24, PERIOD = 61 /* rows after which the test's rows repeat */ };

struct kvl_cuda_blas {
    void *library;
    cublasLtHandle_t handle;
    void *workspace;
    size_t (*version)(void);
    const char *(*status_name)(cublasStatus_t status);
    cublasStatus_t (*create)(cublasLtHandle_t *handle);
    cublasStatus_t (*destroy)(cublasLtHandle_t handle);
    cublasStatus_t (*operation_create)(
        cublasLtMatmulDesc_t *out, cublasComputeType_t compute, cudaDataType_t scale);
    cublasStatus_t (*operation_destroy)(cublasLtMatmulDesc_t operation);
    cublasStatus_t (*operation_set)(cublasLtMatmulDesc_t operation,
        cublasLtMatmulDescAttributes_t attribute, const void *value, size_t bytes);
    cublasStatus_t (*layout_create)(cublasLtMatrixLayout_t *out, cudaDataType type, uint64_t rows,
        uint64_t columns, int64_t stride);
    cublasStatus_t (*layout_destroy)(cublasLtMatrixLayout_t layout);
    cublasStatus_t (*preference_create)(cublasLtMatmulPreference_t *out);
    cublasStatus_t (*preference_destroy)(cublasLtMatmulPreference_t preference);
    cublasStatus_t (*preference_set)(cublasLtMatmulPreference_t preference,
        cublasLtMatmulPreferenceAttributes_t attribute, const void *value, size_t bytes);
    cublasStatus_t (*heuristic)(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation,
        cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
        cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t preference, int asked,
        cublasLtMatmulHeuristicResult_t *results, int *given);
    cublasStatus_t (*algorithm_get)(const cublasLtMatmulAlgo_t *algorithm,
        cublasLtMatmulAlgoConfigAttributes_t attribute, void *value, size_t bytes, size_t *written);
    cublasStatus_t (*multiply)(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation,
        const void *alpha, const void *a, cublasLtMatrixLayout_t a_layout, const void *b,
        cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
        cublasLtMatrixLayout_t c_layout, void *d, cublasLtMatrixLayout_t d_layout,
        const cublasLtMatmulAlgo_t *algorithm, void *workspace, size_t workspace_bytes,
        cudaStream_t stream);
};

static kvl_err blas_err_from(cublasStatus_t status) {
    switch (status) {
    case CUBLAS_STATUS_SUCCESS:
        return KVL_OK;
    case CUBLAS_STATUS_ALLOC_FAILED:
        return KVL_ERR_NOMEM;
    case CUBLAS_STATUS_NOT_SUPPORTED:
    case CUBLAS_STATUS_INVALID_VALUE: /* of an algorithm that does not do these sizes */
    case CUBLAS_STATUS_ARCH_MISMATCH:
        return KVL_ERR_UNSUPPORTED;
    default:
        return KVL_ERR_IO;
    }
}

static kvl_err check(const struct kvl_cuda_blas *blas, struct kvl_errmsg *msg,
    cublasStatus_t status, const char *what) {
    if (status == CUBLAS_STATUS_SUCCESS) {
        return KVL_OK;
    }
    return kvl_fail(msg, blas_err_from(status), "%.300s: %s", what, blas->status_name(status));
}

#define TRY(call)                                                                                  \
    do {                                                                                           \
        const kvl_err try_err = check(blas, msg, (call), #call);                                   \
        if (try_err != KVL_OK) {                                                                   \
            return try_err;                                                                        \
        }                                                                                          \
    } while (0)

/* ---- the library ---- */

static kvl_err load_library(struct kvl_cuda_blas *blas, struct kvl_errmsg *msg) {
    static const char *const names[] = {
        "libcublasLt.so.13", "/usr/local/cuda/lib64/libcublasLt.so.13", "libcublasLt.so.12"};
    char first[256] = "no reason given"; /* of the name that the message says, not of the last */
    for (size_t i = 0; i < sizeof names / sizeof names[0] && blas->library == NULL; i++) {
        blas->library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        const char *why = blas->library == NULL && i == 0 ? dlerror() : NULL;
        if (why != NULL) {
            snprintf(first, sizeof first, "%s", why);
        }
    }
    if (blas->library == NULL) {
        return kvl_fail(msg, KVL_ERR_NOTFOUND,
            "no %s found (%s); install the CUDA 13 libraries or set LD_LIBRARY_PATH", names[0],
            first);
    }
    return KVL_OK;
}

static kvl_err find_functions(struct kvl_cuda_blas *blas, struct kvl_errmsg *msg) {
    const struct {
        const char *name;
        void *function;
    } calls[] = {
        {"cublasLtGetVersion", &blas->version},
        {"cublasLtGetStatusName", &blas->status_name},
        {"cublasLtCreate", &blas->create},
        {"cublasLtDestroy", &blas->destroy},
        {"cublasLtMatmulDescCreate", &blas->operation_create},
        {"cublasLtMatmulDescDestroy", &blas->operation_destroy},
        {"cublasLtMatmulDescSetAttribute", &blas->operation_set},
        {"cublasLtMatrixLayoutCreate", &blas->layout_create},
        {"cublasLtMatrixLayoutDestroy", &blas->layout_destroy},
        {"cublasLtMatmulPreferenceCreate", &blas->preference_create},
        {"cublasLtMatmulPreferenceDestroy", &blas->preference_destroy},
        {"cublasLtMatmulPreferenceSetAttribute", &blas->preference_set},
        {"cublasLtMatmulAlgoGetHeuristic", &blas->heuristic},
        {"cublasLtMatmulAlgoConfigGetAttribute", &blas->algorithm_get},
        {"cublasLtMatmul", &blas->multiply},
    };
    for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++) {
        void *found = dlsym(blas->library, calls[i].name);
        if (found == NULL) {
            return kvl_fail(msg, KVL_ERR_UNSUPPORTED, "this libcublasLt has no %s", calls[i].name);
        }
        memcpy(calls[i].function, &found, sizeof found);
    }
    return KVL_OK;
}

static kvl_err open_blas(struct kvl_cuda_blas *blas, struct kvl_errmsg *msg) {
    kvl_err err = load_library(blas, msg);
    if (err == KVL_OK) {
        err = find_functions(blas, msg);
    }
    if (err != KVL_OK) {
        return err;
    }
    TRY(blas->create(&blas->handle));
    KVL_CUDA_TRY(msg, cudaMalloc(&blas->workspace, KVL_CUDA_WORKSPACE_BYTES));
    return KVL_OK;
}

kvl_err kvl_cuda_blas_open(struct kvl_cuda_blas **out, struct kvl_errmsg *msg) {
    struct kvl_cuda_blas *blas = calloc(1, sizeof *blas);
    if (blas == NULL) {
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
    }
    const kvl_err err = open_blas(blas, msg);
    if (err != KVL_OK) {
        kvl_cuda_blas_close(blas);
        return err;
    }
    *out = blas;
    return KVL_OK;
}

void kvl_cuda_blas_close(struct kvl_cuda_blas *blas) {
    if (blas == NULL) {
        return;
    }
    if (blas->workspace != NULL) {
        (void)cudaFree(blas->workspace);
    }
    if (blas->handle != NULL) {
        (void)blas->destroy(blas->handle);
    }
    if (blas->library != NULL) {
        (void)dlclose(blas->library);
    }
    free(blas);
}

uint32_t kvl_cuda_blas_version(const struct kvl_cuda_blas *blas) {
    return (uint32_t)blas->version();
}

/* ---- a product's descriptions ---- */

static uint64_t output_bytes(const struct kvl_cuda_shape *shape) {
    return shape->output == KVL_CUDA_OUTPUT_F16 ? 2 : 4;
}

static kvl_err describe(
    struct kvl_cuda_blas *blas, struct kvl_cuda_product *p, struct kvl_errmsg *msg) {
    const struct kvl_cuda_shape *shape = &p->shape;
    const cublasOperation_t transposed = CUBLAS_OP_T, plain = CUBLAS_OP_N;
    const cudaDataType out = shape->output == KVL_CUDA_OUTPUT_F16 ? CUDA_R_16F : CUDA_R_32F;
    TRY(blas->operation_create(&p->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    TRY(blas->operation_set(
        p->operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed));
    TRY(blas->operation_set(p->operation, CUBLASLT_MATMUL_DESC_TRANSB, &plain, sizeof plain));
    TRY(blas->layout_create(&p->w, CUDA_R_16F, shape->inputs, shape->outputs, shape->inputs));
    for (uint32_t i = 0; i < shape->tiles_max; i++) {
        const uint64_t rows = (uint64_t)(i + 1) * KVL_CUDA_ROW_TILE;
        TRY(blas->layout_create(&p->x[i], CUDA_R_16F, shape->inputs, rows, shape->inputs));
        TRY(blas->layout_create(&p->y[i], out, shape->outputs, rows, shape->outputs));
    }
    return KVL_OK;
}

static kvl_err rank(struct kvl_cuda_blas *blas, const struct kvl_cuda_product *p, bool free_choice,
    cublasLtMatmulHeuristicResult_t *results, int *given, struct kvl_errmsg *msg) {
    const uint32_t last = p->shape.tiles_max - 1;
    const uint64_t workspace_bytes = KVL_CUDA_WORKSPACE_BYTES;
    const uint32_t no_reduction = CUBLASLT_REDUCTION_SCHEME_NONE;
    cublasLtMatmulPreference_t preference = NULL;
    TRY(blas->preference_create(&preference));
    cublasStatus_t status = blas->preference_set(preference,
        CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes, sizeof workspace_bytes);
    if (status == CUBLAS_STATUS_SUCCESS && !free_choice) {
        status = blas->preference_set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
            &no_reduction, sizeof no_reduction);
    }
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = blas->heuristic(blas->handle, p->operation, p->w, p->x[last], p->y[last],
            p->y[last], preference, CANDIDATES, results, given);
    }
    (void)blas->preference_destroy(preference);
    return check(blas, msg, status, "cublasLtMatmulAlgoGetHeuristic");
}

static uint32_t config_of(const struct kvl_cuda_blas *blas, const cublasLtMatmulAlgo_t *algorithm,
    cublasLtMatmulAlgoConfigAttributes_t attribute) {
    uint32_t value = 0;
    size_t written = 0;
    if (blas->algorithm_get(algorithm, attribute, NULL, 0, &written) != CUBLAS_STATUS_SUCCESS ||
        written > sizeof value ||
        blas->algorithm_get(algorithm, attribute, &value, written, &written) !=
            CUBLAS_STATUS_SUCCESS) {
        return 0;
    }
    return value;
}

/* FNV-1a of what makes the algorithm what it is. */
static void name_algorithm(const struct kvl_cuda_blas *blas, struct kvl_cuda_product *p) {
    static const struct {
        cublasLtMatmulAlgoConfigAttributes_t attribute;
        const char *name;
    } parts[] = {
        {CUBLASLT_ALGO_CONFIG_ID, "id"},
        {CUBLASLT_ALGO_CONFIG_TILE_ID, "tile"},
        {CUBLASLT_ALGO_CONFIG_STAGES_ID, "stages"},
        {CUBLASLT_ALGO_CONFIG_SPLITK_NUM, "split"},
        {CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, "reduce"},
        {CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING, "swizzle"},
        {CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION, "custom"},
        {CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID, "inner"},
        {CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, "cluster"},
    };
    uint32_t hash = 2166136261u;
    size_t used = 0;
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        const uint32_t value = config_of(blas, &p->algorithm, parts[i].attribute);
        hash = (hash ^ value) * 16777619u;
        const int wrote = snprintf(p->algorithm_text + used, sizeof p->algorithm_text - used,
            "%s%s %u", i == 0 ? "" : ", ", parts[i].name, value);
        if (wrote > 0 && used + (size_t)wrote < sizeof p->algorithm_text) {
            used += (size_t)wrote;
        }
    }
    p->algorithm_hash = hash;
}

/* ---- the choice ---- */

/* Memory of the test. */
struct probe {
    __half *x;        /* [rows][inputs], periodic */
    void *y;          /* [rows][outputs] */
    void *expected;   /* [PERIOD][outputs] of the first run */
    uint32_t *differ; /* on the device */
    const __half *w;
    cudaStream_t stream;
};

static void probe_free(struct probe *probe) {
    (void)cudaFree(probe->x);
    (void)cudaFree(probe->y);
    (void)cudaFree(probe->expected);
    (void)cudaFree(probe->differ);
}

static kvl_err probe_take(
    struct probe *probe, const struct kvl_cuda_shape *shape, struct kvl_errmsg *msg) {
    const uint64_t rows = (uint64_t)shape->tiles_max * KVL_CUDA_ROW_TILE;
    const uint64_t row_bytes = shape->outputs * output_bytes(shape);
    void *x = NULL, *differ = NULL;
    KVL_CUDA_TRY(msg, cudaMalloc(&x, rows * shape->inputs * 2));
    probe->x = x;
    KVL_CUDA_TRY(msg, cudaMalloc(&probe->y, rows * row_bytes));
    KVL_CUDA_TRY(msg, cudaMalloc(&probe->expected, PERIOD * row_bytes));
    KVL_CUDA_TRY(msg, cudaMalloc(&differ, sizeof *probe->differ));
    probe->differ = differ;
    KVL_CUDA_TRY(
        msg, kvl_cuda_pattern_fill(probe->x, (uint32_t)rows, shape->inputs, PERIOD, probe->stream));
    KVL_CUDA_TRY(msg, cudaMemsetAsync(differ, 0, sizeof *probe->differ, probe->stream));
    return KVL_OK;
}

/* One run over `tiles` tiles; the first one gives the rows that all others must equal. */
static kvl_err probe_rows(struct kvl_cuda_blas *blas, const struct kvl_cuda_product *p,
    const struct probe *probe, uint32_t tiles, struct kvl_errmsg *msg) {
    const uint64_t row_bytes = p->shape.outputs * output_bytes(&p->shape);
    const uint32_t rows = tiles * KVL_CUDA_ROW_TILE;
    KVL_CUDA_TRY(msg, cudaMemsetAsync(probe->y, 0, rows * row_bytes, probe->stream));
    const kvl_err err =
        kvl_cuda_multiply(blas, p, probe->w, probe->x, probe->y, rows, probe->stream, msg);
    if (err != KVL_OK) {
        return err;
    }
    if (tiles == p->shape.tiles_max) {
        KVL_CUDA_TRY(msg, cudaMemcpyAsync(probe->expected, probe->y, PERIOD * row_bytes,
                              cudaMemcpyDeviceToDevice, probe->stream));
    }
    KVL_CUDA_TRY(msg, kvl_cuda_count_differences(probe->y, rows, (uint32_t)(row_bytes / 4),
                          probe->expected, PERIOD, probe->differ, probe->stream));
    return KVL_OK;
}

static kvl_err probe_algorithm(struct kvl_cuda_blas *blas, const struct kvl_cuda_product *p,
    const struct probe *probe, bool *passes, struct kvl_errmsg *msg) {
    uint32_t differ = 0;
    *passes = false;
    for (uint32_t tiles = p->shape.tiles_max; tiles > 0; tiles--) {
        const kvl_err err = probe_rows(blas, p, probe, tiles, msg);
        if (err == KVL_ERR_UNSUPPORTED) {
            return KVL_OK; /* not for this many rows: another candidate */
        }
        if (err != KVL_OK) {
            return err;
        }
    }
    KVL_CUDA_TRY(msg, cudaMemcpyAsync(&differ, probe->differ, sizeof differ, cudaMemcpyDeviceToHost,
                          probe->stream));
    KVL_CUDA_TRY(msg, cudaStreamSynchronize(probe->stream));
    KVL_CUDA_TRY(msg, cudaMemsetAsync(probe->differ, 0, sizeof differ, probe->stream));
    *passes = differ == 0;
    return KVL_OK;
}

static bool splits(const struct kvl_cuda_blas *blas, const cublasLtMatmulAlgo_t *algorithm) {
    return config_of(blas, algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM) > 1 ||
           config_of(blas, algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME) !=
               CUBLASLT_REDUCTION_SCHEME_NONE;
}

static kvl_err choose(struct kvl_cuda_blas *blas, struct kvl_cuda_product *p,
    const struct probe *probe, struct kvl_errmsg *msg) {
    cublasLtMatmulHeuristicResult_t results[CANDIDATES] = {0};
    int given = 0;
    kvl_err err = rank(blas, p, false, results, &given, msg);
    for (int i = 0; err == KVL_OK && i < given; i++) {
        if (results[i].state != CUBLAS_STATUS_SUCCESS || splits(blas, &results[i].algo)) {
            continue;
        }
        p->algorithm = results[i].algo;
        p->workspace_bytes = results[i].workspaceSize;
        p->candidate = (uint32_t)i;
        bool passes;
        err = probe_algorithm(blas, p, probe, &passes, msg);
        if (err == KVL_OK && passes) {
            name_algorithm(blas, p);
            return KVL_OK;
        }
    }
    return err != KVL_OK ? err
                         : kvl_fail(msg, KVL_ERR_UNSUPPORTED,
                               "cuBLASLt has no algorithm for %u x %u whose bits do not depend on "
                               "the number of rows (%d tried)",
                               p->shape.outputs, p->shape.inputs, given);
}

kvl_err kvl_cuda_product_init(struct kvl_cuda_blas *blas, const struct kvl_cuda_shape *shape,
    const __half *w, cudaStream_t stream, struct kvl_cuda_product *out, struct kvl_errmsg *msg) {
    *out = (struct kvl_cuda_product){.shape = *shape};
    if (shape->tiles_max == 0 || shape->tiles_max > KVL_CUDA_ROW_TILES_MAX ||
        shape->outputs % 8 != 0 || shape->inputs % 8 != 0) {
        return kvl_fail(
            msg, KVL_ERR_INVALID, "no product of %u x %u", shape->outputs, shape->inputs);
    }
    struct probe probe = {.w = w, .stream = stream};
    kvl_err err = describe(blas, out, msg);
    if (err == KVL_OK) {
        err = probe_take(&probe, shape, msg);
    }
    if (err == KVL_OK) {
        err = choose(blas, out, &probe, msg);
    }
    probe_free(&probe);
    return err;
}

void kvl_cuda_product_deinit(struct kvl_cuda_blas *blas, struct kvl_cuda_product *p) {
    if (blas == NULL) {
        return;
    }
    if (p->operation != NULL) {
        (void)blas->operation_destroy(p->operation);
    }
    if (p->w != NULL) {
        (void)blas->layout_destroy(p->w);
    }
    for (uint32_t i = 0; i < KVL_CUDA_ROW_TILES_MAX; i++) {
        if (p->x[i] != NULL) {
            (void)blas->layout_destroy(p->x[i]);
        }
        if (p->y[i] != NULL) {
            (void)blas->layout_destroy(p->y[i]);
        }
    }
    *p = (struct kvl_cuda_product){0};
}

kvl_err kvl_cuda_multiply(struct kvl_cuda_blas *blas, const struct kvl_cuda_product *p,
    const __half *w, const __half *x, void *y, uint32_t rows, cudaStream_t stream,
    struct kvl_errmsg *msg) {
    const float one = 1.0f, beta = p->shape.output == KVL_CUDA_OUTPUT_ADD_F32 ? 1.0f : 0.0f;
    const uint32_t i = rows / KVL_CUDA_ROW_TILE - 1;
    if (rows == 0 || rows % KVL_CUDA_ROW_TILE != 0 || i >= p->shape.tiles_max) {
        return kvl_fail(msg, KVL_ERR_INVALID, "no product of %u rows", rows);
    }
    TRY(blas->multiply(blas->handle, p->operation, &one, w, p->w, x, p->x[i], &beta, y, p->y[i], y,
        p->y[i], &p->algorithm, blas->workspace, KVL_CUDA_WORKSPACE_BYTES, stream));
    return KVL_OK;
}

bool kvl_cuda_product_freest(
    struct kvl_cuda_blas *blas, struct kvl_cuda_product *p, uint32_t candidate) {
    cublasLtMatmulHeuristicResult_t results[CANDIDATES] = {0};
    int given = 0;
    if (rank(blas, p, true, results, &given, NULL) != KVL_OK || candidate >= (uint32_t)given ||
        results[candidate].state != CUBLAS_STATUS_SUCCESS) {
        return false;
    }
    p->algorithm = results[candidate].algo;
    p->workspace_bytes = results[candidate].workspaceSize;
    p->candidate = candidate;
    name_algorithm(blas, p);
    return true;
}
