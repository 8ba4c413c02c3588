/* matmul.h - products of packed weights with the rows of a chunk, spread over the pool. */
#ifndef KVL_CPU_MATMUL_H
#define KVL_CPU_MATMUL_H

#include "cpu.h"

struct kvl_matmul {
    const struct kvl_packed *weight;
    const float *x;  /* [tokens][weight->columns] */
    float *y;        /* [tokens][weight->rows] */
    bool accumulate; /* the sums start from y */
};

/* All products of the list, in parallel; at most KVL_CHUNK_TOKENS tokens. */
void kvl_matmul(
    struct kvl_cpu *cpu, const struct kvl_matmul *products, uint32_t count, uint32_t tokens);
/* out[tokens][gate->rows] = activation(gate x) * (up x) */
void kvl_gated_matmul(struct kvl_cpu *cpu, const struct kvl_packed *gate,
    const struct kvl_packed *up, const float *x, float *out, uint32_t tokens);

#endif
