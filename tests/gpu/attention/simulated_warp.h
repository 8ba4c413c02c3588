/* simulated_warp.h - engine/cuda/warp.h for the CPU: every thread of a CTA is a fiber, and what a
 * warp does together happens when all of its lanes have come to it.
 *
 * It is there to find mistakes in indices, masks, barriers and waits; rounding is only near the
 * GPU's. So it is unkind where the hardware may be: bytes of asynchronous copies land at once or
 * as late as is allowed, warps run as far ahead as they can in one order or the other, shared
 * memory begins as NaN, lanes that come to different instructions abort the program, and so do
 * reads outside of what was declared readable. */
#ifndef SIMULATED_WARP_H
#define SIMULATED_WARP_H

#include <math.h>

#define KVL_DEVICE inline

enum simulated_op { SIM_NONE, SIM_BARRIER, SIM_WARP, SIM_SHUFFLE, SIM_LOAD, SIM_MOVE, SIM_MMA };

/* How a launch behaves where the hardware is free. */
struct simulated_manner {
    bool late_copies;
    bool last_warp_first;
};

/* What lanes hand to an instruction of the whole warp, and get back. */
struct simulated_exchange {
    uint32_t in[6];
    uint32_t out[4];
    float c[4];
    bool flag; /* transposed, or bf16 */
};

/* Runs kernel(arg) on every thread of every CTA. */
struct simulated_grid {
    uint32_t x, y, threads, shared_bytes;
};
void simulated_launch(
    simulated_grid grid, simulated_manner manner, void (*kernel)(const void *arg), const void *arg);
/* Memory that kernels may read through kvl_load_once and kvl_copy_async. */
void simulated_readable(const void *base, size_t bytes);
void simulated_forget_readable(void);

uint32_t simulated_thread(void);
uint32_t simulated_block(int dimension);
uint32_t simulated_grid_x(void);
char *simulated_shared(uint32_t offset, uint32_t bytes);
void simulated_meet(simulated_op op, simulated_exchange *exchange);
void simulated_copy(uint32_t to, const void *from, uint32_t bytes, bool valid);
void simulated_copy_commit(void);
void simulated_copy_wait(uint32_t groups_left);
void simulated_check_read(const void *from, size_t bytes);

KVL_DEVICE uint32_t kvl_thread(void) {
    return simulated_thread();
}
KVL_DEVICE uint32_t kvl_block_x(void) {
    return simulated_block(0);
}
KVL_DEVICE uint32_t kvl_block_y(void) {
    return simulated_block(1);
}
KVL_DEVICE uint32_t kvl_grid_x(void) {
    return simulated_grid_x();
}
KVL_DEVICE void kvl_keep(uint64_t &) {}
KVL_DEVICE void kvl_barrier(void) {
    simulated_exchange nothing = {};
    simulated_meet(SIM_BARRIER, &nothing);
}
KVL_DEVICE void kvl_barrier_apart(void) {
    kvl_barrier();
}
KVL_DEVICE void kvl_warp_barrier(void) {
    simulated_exchange nothing = {};
    simulated_meet(SIM_WARP, &nothing);
}
KVL_DEVICE float kvl_shuffle_xor(float value, uint32_t mask) {
    simulated_exchange e = {};
    memcpy(&e.in[0], &value, 4);
    e.in[1] = mask;
    simulated_meet(SIM_SHUFFLE, &e);
    memcpy(&value, &e.out[0], 4);
    return value;
}
KVL_DEVICE float kvl_exp2(float x) {
    return exp2f(x);
}
KVL_DEVICE float kvl_reciprocal(float x) {
    return 1.0f / x;
}
KVL_DEVICE kvl_shared kvl_shared_base(void) {
    return 0;
}
KVL_DEVICE char *kvl_shared_pointer(uint32_t offset) {
    return simulated_shared(offset, 16);
}
KVL_DEVICE void kvl_copy_async_16(kvl_shared to, const void *from, bool valid) {
    simulated_copy(to, from, 16, valid);
}
KVL_DEVICE void kvl_copy_async_8(kvl_shared to, const void *from) {
    simulated_copy(to, from, 8, true);
}
KVL_DEVICE void kvl_copy_async_commit(void) {
    simulated_copy_commit();
}
KVL_DEVICE void kvl_copy_async_wait(void) {
    simulated_copy_wait(0);
}
template <int GROUPS> KVL_DEVICE void kvl_copy_async_wait_but(void) {
    simulated_copy_wait(GROUPS);
}
KVL_DEVICE uint4 kvl_load_once_16(const void *from) {
    simulated_check_read(from, 16);
    return *(const uint4 *)from;
}
KVL_DEVICE uint2 kvl_load_once_8(const void *from) {
    simulated_check_read(from, 8);
    return *(const uint2 *)from;
}
KVL_DEVICE void simulated_ldmatrix(uint32_t r[4], kvl_shared row, bool transposed) {
    simulated_exchange e = {};
    e.in[0] = row;
    e.flag = transposed;
    simulated_meet(SIM_LOAD, &e);
    memcpy(r, e.out, sizeof e.out);
}
KVL_DEVICE void kvl_ldmatrix(uint32_t r[4], kvl_shared row) {
    simulated_ldmatrix(r, row, false);
}
KVL_DEVICE void kvl_ldmatrix_trans(uint32_t r[4], kvl_shared row) {
    simulated_ldmatrix(r, row, true);
}
KVL_DEVICE uint32_t kvl_movmatrix_trans(uint32_t rows) {
    simulated_exchange e = {};
    e.in[0] = rows;
    simulated_meet(SIM_MOVE, &e);
    return e.out[0];
}
template <bool BF16>
KVL_DEVICE void kvl_mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
    simulated_exchange e = {};
    memcpy(e.in, a, 4 * sizeof *a);
    e.in[4] = b0;
    e.in[5] = b1;
    e.flag = BF16;
    memcpy(e.c, c, sizeof e.c);
    simulated_meet(SIM_MMA, &e);
    memcpy(c, e.c, sizeof e.c);
}

#endif
