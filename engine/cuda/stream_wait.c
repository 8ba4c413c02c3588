/* stream_wait.c - whether the stream may be made to wait for a word that this thread sets later.
 *
 * It must not where a launch returns only when its kernel has run: under CUDA_LAUNCH_BLOCKING, and
 * under tools that serialize launches (profilers, checkers). There a launch behind such a wait
 * would never return, and nobody would be left to set the word. So it is tried out, with a thread
 * beside it that sets the word should the launch not have returned in time. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cuda_backend.h"
#include "kernels.h"

enum { PATIENCE_S = 1 }; /* a launch takes microseconds; too little would only forgo the waits */

/* Sets the word for a launch that does not return. */
struct rescuer {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool has_returned, was_needed;
    volatile uint32_t *word;
    uint32_t value;
};

static void *stand_by(void *arg) {
    struct rescuer *r = arg;
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += PATIENCE_S;
    pthread_mutex_lock(&r->lock);
    int error = 0;
    while (!r->has_returned && error == 0) {
        error = pthread_cond_timedwait(&r->changed, &r->lock, &until);
    }
    r->was_needed = !r->has_returned;
    __atomic_store_n(r->word, r->value, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

/* Any kernel will do; this one caps a logit that nobody has asked for yet. */
static cudaError_t launch(const struct kvl_cuda *cuda) {
    return kvl_cuda_softcap(cuda->logits, 1, 1.0f, cuda->stream);
}

static bool launch_behind_wait(struct kvl_cuda *cuda, uint32_t value) {
    return cuda->driver.stream_wait_value32(cuda->stream, (CUdeviceptr)(uintptr_t)cuda->word, value,
               CU_STREAM_WAIT_VALUE_GEQ) == CUDA_SUCCESS &&
           launch(cuda) == cudaSuccess;
}

kvl_err kvl_cuda_try_launch_behind_wait(
    struct kvl_cuda *cuda, bool *returns, struct kvl_errmsg *msg) {
    struct rescuer rescuer = {.lock = PTHREAD_MUTEX_INITIALIZER,
        .changed = PTHREAD_COND_INITIALIZER,
        .word = cuda->word,
        .value = ++cuda->word_value};
    pthread_t thread;
    *returns = false;
    KVL_CUDA_TRY(msg, launch(cuda)); /* loads the kernel, for which a launch may wait */
    KVL_CUDA_TRY(msg, cudaStreamSynchronize(cuda->stream));
    if (pthread_create(&thread, NULL, stand_by, &rescuer) != 0) {
        __atomic_store_n(cuda->word, rescuer.value, __ATOMIC_RELEASE);
        return KVL_OK;
    }
    const bool launched = launch_behind_wait(cuda, rescuer.value);
    pthread_mutex_lock(&rescuer.lock);
    rescuer.has_returned = true;
    pthread_cond_signal(&rescuer.changed);
    pthread_mutex_unlock(&rescuer.lock);
    pthread_join(thread, NULL); /* the word is set */
    *returns = launched && !rescuer.was_needed;
    KVL_CUDA_TRY(msg, cudaStreamSynchronize(cuda->stream));
    return KVL_OK;
}

static bool is_on(const char *name) {
    const char *value = getenv(name);
    return value != NULL && *value != '\0' && strcmp(value, "0") != 0;
}

kvl_err kvl_cuda_try_wait(struct kvl_cuda *cuda, struct kvl_errmsg *msg) {
    cuda->use_wait = false;
    if (is_on("KVL_CUDA_NO_WAIT") || is_on("CUDA_LAUNCH_BLOCKING")) {
        return KVL_OK;
    }
    return kvl_cuda_try_launch_behind_wait(cuda, &cuda->use_wait, msg);
}
