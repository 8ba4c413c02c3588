/* kernels_narrow.h - for a table whose wide vectors (kernels_body.h) are its vectors of 8 lanes. */
#ifndef KVL_CPU_KERNELS_NARROW_H
#define KVL_CPU_KERNELS_NARROW_H

#define KVL_WIDE_LANES 8
#define KVL_GEMM_ROWS 6
#define KVL_HAS_LOOKUP 0

#define vecw vec8
#define vw_set1 v8_set1
#define vw_load v8_load
#define vw_store v8_store
#define vw_load_f16 v8_load_f16
#define vw_load_bf16 v8_load_bf16
#define vw_sub v8_sub
#define vw_mul v8_mul
#define vw_fma v8_fma
#define vw_lookup(table, a)                                                                        \
    ((void)(table), vi_to_f32(a)) /* stands in code that is never reached                          \
                                   */

#endif
