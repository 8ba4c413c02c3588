/* guarded.h - device memory for tests of single kernels, and what they should have written there.
 *
 * An input is an allocation as long as its data, so that memcheck sees a read behind its end. An
 * output stands between canaries and has all bits set (NaN in every type) until it is written.
 *
 * Everything fails the test (fail_msg), naming the first value that differs. All memory, the host
 * copies too, lives until guarded_release. Threads: the main one. */
#ifndef KVL_TESTS_GUARDED_H
#define KVL_TESTS_GUARDED_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cuda/kernels.h"

/* KVL_GPU_SMALL is set: less of everything, since a checker slows the kernels down. */
bool guarded_is_small(void);

bool guarded_open(void); /* makes the stream; false: it said why not */
cudaStream_t guarded_stream(void);
void guarded_close(void);
int guarded_release(void **state); /* a test's teardown */

/* Host memory, zeroed. */
void *guarded_host(uint64_t bytes);
/* Device memory with a copy of `host`. */
void *guarded_input(const void *host, uint64_t bytes);
/* initial NULL: all bits set. */
void *guarded_output(const void *initial, uint64_t bytes);
/* Checks what the launch returned, waits for the kernel, checks what that says and the canaries
 * around `output`, and gives a host copy. */
const void *guarded_result(cudaError_t launched, const void *output, const char *what);

/* Even in [-1, 1). */
float random_float(uint64_t *seed);
float *random_floats(uint64_t *seed, uint64_t count, float scale);
uint16_t *random_halves(uint64_t *seed, uint64_t count, float scale);

/* What an element should be, but for its rounding to its type. NaN: not written. */
struct expected {
    double value, slack;
};
/* f16 that it does not hold: its largest. `columns` is for the message only. */
void expect_elements(const char *what, enum kvl_kv_dtype type, const void *got,
    const struct expected *expected, uint64_t count, uint32_t columns);
/* The same bits. */
void expect_bits(const char *what, const void *got, const void *expected, uint64_t count,
    uint32_t element_bytes);

/* x / (1 + e^-x), or gelu in its tanh form. */
double reference_activation(double x, bool gelu);

/* gemv_test.c */
void gemv_gives_sums_of_its_rows(void **state);
void gemv_gates_what_it_multiplies(void **state);
void gemv_may_start_before_the_kernel_ahead_ends(void **state);
void gemv_says_what_code_it_runs(void **state);

/* place_test.c */
void place_puts_heads_into_their_blocks(void **state);

#endif
