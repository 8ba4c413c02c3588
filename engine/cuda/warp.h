/* warp.h - the instructions that the attention kernels are made of, one inline function each, and
 * which lane holds what of them.
 *
 * The kernels are written against these names alone. On a GPU they are PTX; a test compiles the
 * same kernels for the CPU against a simulated warp (tests/gpu/attention/simulated_warp.h), so that
 * indices, masks and barriers are checked where no GPU is.
 *
 * Fragments (PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type", with
 * g = lane / 4 and t = lane % 4; a register of 16-bit elements holds two, the first in its low
 * half):
 *
 *   A, 16 rows x 16 columns   a[0]: row g,     columns 2t, 2t+1
 *                             a[1]: row g + 8, columns 2t, 2t+1
 *                             a[2]: row g,     columns 2t+8, 2t+9
 *                             a[3]: row g + 8, columns 2t+8, 2t+9
 *   B, 16 rows x 8 columns    b[0]: rows 2t, 2t+1,   column g
 *                             b[1]: rows 2t+8, 2t+9, column g
 *   C, 16 rows x 8 columns    c[0], c[1]: row g,     columns 2t, 2t+1 (f32)
 *                             c[2], c[3]: row g + 8, columns 2t, 2t+1
 *
 * ldmatrix .x4 loads four 8 x 8 matrices of 16-bit elements from shared memory. Lane l gives the
 * address of row l % 8 of matrix l / 8 (16 bytes, 16-byte aligned); register i of lane l then holds
 * elements 2t, 2t+1 of row g of matrix i, or with .trans elements 2t, 2t+1 of column g.
 * movmatrix .trans does the latter from registers that hold rows. */
#ifndef KVL_CUDA_WARP_H
#define KVL_CUDA_WARP_H

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>
#include <string.h>

enum { KVL_WARP_LANES = 32 };

typedef uint32_t kvl_shared; /* an address in the CTA's dynamic shared memory */

#ifdef KVL_SIMULATED_WARP /* the name of such a header */
#include KVL_SIMULATED_WARP
#else

#define KVL_DEVICE __device__ __forceinline__

extern __shared__ uint4 kvl_shared_memory[];

KVL_DEVICE uint32_t kvl_thread(void) {
    return threadIdx.x;
}
KVL_DEVICE uint32_t kvl_block_x(void) {
    return blockIdx.x;
}
KVL_DEVICE uint32_t kvl_block_y(void) {
    return blockIdx.y;
}
KVL_DEVICE uint32_t kvl_grid_x(void) {
    return gridDim.x;
}
/* Keeps a value in its register where the compiler would rather work it out again in every turn of
 * a loop. */
KVL_DEVICE void kvl_keep(uint64_t &value) {
    asm volatile("" : "+l"(value));
}
/* All threads of the CTA; shared memory written before is seen after. */
KVL_DEVICE void kvl_barrier(void) {
    __syncthreads();
}
/* The same where warps come to it from different places in the code; whole warps do. */
KVL_DEVICE void kvl_barrier_apart(void) {
    asm volatile("bar.sync 0;" ::: "memory");
}
KVL_DEVICE void kvl_warp_barrier(void) {
    __syncwarp();
}
KVL_DEVICE float kvl_shuffle_xor(float value, uint32_t mask) {
    return __shfl_xor_sync(0xffffffffu, value, (int)mask);
}

/* 2 to the x; exactly 1 for 0 and exactly 0 for minus infinity (PTX ISA, ex2). */
KVL_DEVICE float kvl_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* 1 / x, off by at most one unit in the last place; 0 for infinity. */
KVL_DEVICE float kvl_reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

KVL_DEVICE kvl_shared kvl_shared_base(void) {
    return (kvl_shared)__cvta_generic_to_shared(kvl_shared_memory);
}
/* For plain loads and stores. */
KVL_DEVICE char *kvl_shared_pointer(uint32_t offset) {
    return (char *)kvl_shared_memory + offset;
}

/* 16 bytes from device to shared memory, by hand of the copy unit; zeros if not valid (`from` must
 * be a device address all the same, and is not read). */
KVL_DEVICE void kvl_copy_async_16(kvl_shared to, const void *from, bool valid) {
    const uint32_t bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
}
KVL_DEVICE void kvl_copy_async_8(kvl_shared to, const void *from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(from) : "memory");
}
KVL_DEVICE void kvl_copy_async_commit(void) {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/* Until this thread's copies are there; a barrier shows them to the others. */
KVL_DEVICE void kvl_copy_async_wait(void) {
    asm volatile("cp.async.wait_group 0;" ::: "memory");
}
/* The same, but for the last GROUPS that were committed. */
template <int GROUPS> KVL_DEVICE void kvl_copy_async_wait_but(void) {
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}

/* 16 bytes that nothing writes while the kernel runs, past the L1 cache: they are read once. */
KVL_DEVICE uint4 kvl_load_once_16(const void *from) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
}
KVL_DEVICE uint2 kvl_load_once_8(const void *from) {
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
                 : "=r"(v.x), "=r"(v.y)
                 : "l"(from));
    return v;
}

KVL_DEVICE void kvl_ldmatrix(uint32_t r[4], kvl_shared row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row));
}
KVL_DEVICE void kvl_ldmatrix_trans(uint32_t r[4], kvl_shared row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row));
}
KVL_DEVICE uint32_t kvl_movmatrix_trans(uint32_t rows) {
    uint32_t columns;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(columns) : "r"(rows));
    return columns;
}

/* c += a b, elements bf16 or f16, sums f32 */
template <bool BF16>
KVL_DEVICE void kvl_mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
    if (BF16) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
                     "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    } else {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
                     "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
}

#endif

/* ---- the same on CPU and GPU ---- */

/* Where lane `lane` points ldmatrix, in elements from the corner of a 16 x 16 piece that stands in
 * shared memory by rows. */
struct kvl_lane_row {
    uint32_t row, column;
};

/* An A fragment of the piece: registers 0 to 3 are its quarters top left, bottom left, top right,
 * bottom right. With .trans, and rows read as k: b[0] and b[1] of columns 0-7, then of 8-15. */
KVL_DEVICE struct kvl_lane_row kvl_lane_row_of_a(uint32_t lane) {
    struct kvl_lane_row r = {lane % 16, lane / 16 * 8};
    return r;
}
/* Rows read as columns of B (B is the piece transposed): b[0] and b[1] of rows 0-7, then of 8-15.
 */
KVL_DEVICE struct kvl_lane_row kvl_lane_row_of_b(uint32_t lane) {
    struct kvl_lane_row r = {lane % 8 + lane / 16 * 8, lane / 8 % 2 * 8};
    return r;
}

/* Two elements in a register, `low` in its low half. */
template <bool BF16> KVL_DEVICE uint32_t kvl_pack(float low, float high) {
    uint32_t packed;
    if (BF16) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
        memcpy(&packed, &pair, sizeof packed);
    } else {
        const __half2 pair = __floats2half2_rn(low, high);
        memcpy(&packed, &pair, sizeof packed);
    }
    return packed;
}
KVL_DEVICE float kvl_f32_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
KVL_DEVICE uint32_t kvl_bits_of_f32(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
KVL_DEVICE float2 kvl_unpack_f16(uint32_t packed) {
    __half2 pair;
    memcpy(&pair, &packed, sizeof pair);
    return __half22float2(pair);
}
KVL_DEVICE uint32_t kvl_bf16_of_f16(uint32_t packed) {
    const float2 pair = kvl_unpack_f16(packed);
    return kvl_pack<true>(pair.x, pair.y);
}
/* The low halves of both, and the high halves. */
KVL_DEVICE uint32_t kvl_low_halves(uint32_t a, uint32_t b) {
    return (a & 0xffffu) | b << 16;
}
KVL_DEVICE uint32_t kvl_high_halves(uint32_t a, uint32_t b) {
    return a >> 16 | (b & 0xffff0000u);
}

#endif
