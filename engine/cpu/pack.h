/* pack.h - weights of the file, or a random model's, rearranged once into panels of 32 rows
 * (layout: kernels.h) that both the GEMM and the matrix-vector kernel read from front to back.
 *
 * A matrix takes as many bytes as in the file, K-quants up to 3.6 % more (kernels.h), a random one
 * two a weight, which are f16 exactly; rows that fill up the last panel are zero. All matrices of a
 * model lie in one piece of memory: most are smaller than a huge page. */
#ifndef KVL_CPU_PACK_H
#define KVL_CPU_PACK_H

#include "../model.h"
#include "pool.h"

struct kvl_packed {
    uint8_t *panels; /* in the kvl_packed_memory; starts at a cache line */
    uint64_t panel_bytes;
    uint32_t panel_count;
    uint32_t type; /* enum kvl_ggml_type */
    uint32_t rows;
    uint32_t columns;
};

struct kvl_pack_item {
    const struct kvl_weight *weight;
    struct kvl_packed *packed; /* out */
};

struct kvl_packed_memory {
    uint8_t *base;
    uint64_t bytes;
};

/* Packs all items at once on the pool's threads.
 * Owns: the panels belong to *memory; the GGUF mapping is not needed afterwards. Errors: NOMEM. */
KVL_MUST_CHECK kvl_err kvl_pack(const struct kvl_pack_item *items, uint32_t count,
    struct kvl_pool *pool, struct kvl_packed_memory *memory, struct kvl_errmsg *msg);
void kvl_packed_free(struct kvl_packed_memory *memory); /* zeroed is fine */

static inline const uint8_t *kvl_packed_panel(const struct kvl_packed *packed, uint32_t panel) {
    return packed->panels + panel * packed->panel_bytes;
}

/* Row `row` of a weight as f32, straight from the file or the formula of a random model. */
void kvl_unpack_row(const struct kvl_weight *weight, uint32_t row, float *out);

#endif
