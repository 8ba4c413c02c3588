/* blas.h - products of a chunk's rows with a weight matrix by cuBLASLt, row-invariant.
 *
 *   y[rows][outputs] = x[rows][inputs] * w[outputs][inputs]^T      (f16 in, sums in f32)
 *
 * A product's algorithm is chosen once, for the full chunk: the first of the library's own ranking
 * that uses no split of the inputs and that passes a test on this very GPU: with every number of
 * row tiles that will ever be used, equal rows must give equal bits wherever they stand. It then
 * serves every number of rows; rows are padded to whole tiles.
 *
 * libcublasLt is loaded when the first instance is made, so that runs on the CPU never do. */
#ifndef KVL_CUDA_BLAS_H
#define KVL_CUDA_BLAS_H

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#include "attention.h"
#include "kvl_err.h"

enum {
    KVL_CUDA_ROW_TILE = 128, /* rows are computed in multiples of this */
    KVL_CUDA_ROW_TILES_MAX = 16,
    KVL_CUDA_WORKSPACE_BYTES = 32 << 20,
};

struct kvl_cuda_blas; /* the library, a handle, a workspace on the device */

enum kvl_cuda_output {
    KVL_CUDA_OUTPUT_F16,
    KVL_CUDA_OUTPUT_F32,
    KVL_CUDA_OUTPUT_ADD_F32, /* y += */
};

struct kvl_cuda_shape {
    uint32_t outputs, inputs; /* multiples of 8 */
    enum kvl_cuda_output output;
    uint32_t tiles_max; /* rows: up to so many tiles */
};

struct kvl_cuda_product {
    struct kvl_cuda_shape shape;
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t w;
    cublasLtMatrixLayout_t x[KVL_CUDA_ROW_TILES_MAX], y[KVL_CUDA_ROW_TILES_MAX]; /* by tiles - 1 */
    cublasLtMatmulAlgo_t algorithm;
    uint64_t workspace_bytes;
    uint32_t candidate;      /* place in the library's ranking, from 0 */
    uint32_t algorithm_hash; /* of its configuration: part of the arithmetic id */
    char algorithm_text[96];
};

/* Errors: NOTFOUND (no libcublasLt), UNSUPPORTED (its version), NOMEM, IO. */
KVL_MUST_CHECK kvl_err kvl_cuda_blas_open(struct kvl_cuda_blas **out, struct kvl_errmsg *msg);
void kvl_cuda_blas_close(struct kvl_cuda_blas *blas); /* NULL is fine */
uint32_t kvl_cuda_blas_version(const struct kvl_cuda_blas *blas);

/* Chooses the algorithm; w is any matrix of that shape on the device. Takes and frees device memory
 * for the test. Errors: UNSUPPORTED (no algorithm passes), NOMEM, IO. */
KVL_MUST_CHECK kvl_err kvl_cuda_product_init(struct kvl_cuda_blas *blas,
    const struct kvl_cuda_shape *shape, const __half *w, cudaStream_t stream,
    struct kvl_cuda_product *out, struct kvl_errmsg *msg);
void kvl_cuda_product_deinit(struct kvl_cuda_blas *blas, struct kvl_cuda_product *product);
/* Enqueues; rows is a multiple of the tile, x and y hold as many. */
KVL_MUST_CHECK kvl_err kvl_cuda_multiply(struct kvl_cuda_blas *blas,
    const struct kvl_cuda_product *product, const __half *w, const __half *x, void *y,
    uint32_t rows, cudaStream_t stream, struct kvl_errmsg *msg);
/* For benchmarks: another algorithm of the library's ranking with everything allowed (splits too),
 * for the most rows; false when there is no such candidate. */
bool kvl_cuda_product_freest(
    struct kvl_cuda_blas *blas, struct kvl_cuda_product *product, uint32_t candidate);

#endif
