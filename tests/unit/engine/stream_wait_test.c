/* stream_wait_test.c - whether launches behind a wait return is found out without a hang, on a
 * stream of the test's own: what it is given runs at once, or on synchronizing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <unistd.h>

#include "cuda/cuda_backend.h"
#include "cuda/kernels.h"

enum { TRIES = 5 };

static struct {
    bool serializes, refuses_waits;
    bool waits; /* something has been enqueued that waits for: */
    uint32_t value;
    uint32_t launches;
} stream;
static uint32_t word;

static void run_until_idle(void) {
    while (stream.waits && (int32_t)(__atomic_load_n(&word, __ATOMIC_ACQUIRE) - stream.value) < 0) {
        usleep(1000);
    }
    stream.waits = false;
}

static CUresult fake_wait(CUstream s, CUdeviceptr address, cuuint32_t value, unsigned flags) {
    (void)s;
    assert_true(address == (CUdeviceptr)(uintptr_t)&word);
    assert_int_equal(flags, CU_STREAM_WAIT_VALUE_GEQ);
    if (stream.refuses_waits) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    stream.waits = true;
    stream.value = value;
    return CUDA_SUCCESS;
}

cudaError_t kvl_cuda_softcap(float *logits, uint64_t count, float cap, cudaStream_t s) {
    (void)logits, (void)count, (void)cap, (void)s;
    stream.launches++;
    if (stream.serializes) {
        run_until_idle();
    }
    return cudaSuccess;
}

cudaError_t CUDARTAPI cudaStreamSynchronize(cudaStream_t s) {
    (void)s;
    run_until_idle();
    return cudaSuccess;
}

kvl_err kvl_cuda_check(struct kvl_errmsg *msg, cudaError_t error, const char *what) {
    return error == cudaSuccess ? KVL_OK : kvl_fail(msg, KVL_ERR_IO, "%s", what);
}

static struct kvl_cuda *begin(void) {
    static struct kvl_cuda cuda;
    cuda.word = &word;
    cuda.driver.stream_wait_value32 = fake_wait;
    stream.serializes = stream.refuses_waits = false;
    unsetenv("KVL_CUDA_NO_WAIT");
    unsetenv("CUDA_LAUNCH_BLOCKING");
    return &cuda;
}

static bool finds_waits(struct kvl_cuda *cuda) {
    struct kvl_errmsg msg;
    assert_int_equal(kvl_cuda_try_wait(cuda, &msg), KVL_OK);
    assert_false(stream.waits);
    assert_int_equal(word, cuda->word_value); /* nothing can be left waiting */
    return cuda->use_wait;
}

/* Tried again, since this thread may not run for a second on a busy machine. */
static void launches_that_return_are_seen(void **state) {
    (void)state;
    struct kvl_cuda *cuda = begin();
    bool found = false;
    word = cuda->word_value = UINT32_MAX - 1; /* over the end of the numbers, too */
    for (int i = 0; i < TRIES && !found; i++) {
        found = finds_waits(cuda);
    }
    assert_true(found);
}

static void launches_that_do_not_return_are_seen(void **state) {
    (void)state;
    struct kvl_cuda *cuda = begin();
    stream.serializes = true;
    assert_false(finds_waits(cuda));
}

static void streams_without_waits_are_seen(void **state) {
    (void)state;
    struct kvl_cuda *cuda = begin();
    stream.refuses_waits = true;
    assert_false(finds_waits(cuda));
}

static void the_environment_forbids_waits(void **state) {
    (void)state;
    static const char *const names[] = {"KVL_CUDA_NO_WAIT", "CUDA_LAUNCH_BLOCKING"};
    for (int i = 0; i < 2; i++) {
        struct kvl_cuda *cuda = begin();
        const uint32_t launches = stream.launches;
        assert_int_equal(setenv(names[i], "1", 1), 0);
        assert_false(finds_waits(cuda));
        assert_int_equal(stream.launches, launches); /* not even tried */
        assert_int_equal(setenv(names[i], "0", 1), 0);
        (void)finds_waits(cuda);
        assert_true(stream.launches > launches);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(launches_that_return_are_seen),
        cmocka_unit_test(launches_that_do_not_return_are_seen),
        cmocka_unit_test(streams_without_waits_are_seen),
        cmocka_unit_test(the_environment_forbids_waits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
