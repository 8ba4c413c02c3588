/* arena_touch.c - brings an arena's pages in, behind the first answer, on huge pages if possible.
 *
 * First touch is what costs: with 4 KiB pages each fault clears one page and takes a lock of the
 * file (0.2 to 1 GB/s on a virtual machine). One touched byte per 2 MiB followed by MADV_COLLAPSE
 * gives shared memory huge pages whatever shmem_enabled says; untouched memory cannot be collapsed
 * (EINVAL). Where MADV_HUGEPAGE was enough already, the collapse finds nothing to do, and its
 * success is how we know. Pages are brought in with MADV_POPULATE_WRITE, which answers with an
 * error where a plain touch would raise SIGBUS. */
#include "arena_touch.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "arena_limit.h"
#include "thread.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define PAGE_BYTES 4096u /* no system's are smaller */
#define CHUNK_BYTES (UINT64_C(2) << 20)
#define TOUCH_THREADS_MAX 64u
/* Collapse fails now and then where no huge page is free; this often in a row means never. */
#define COLLAPSE_FAILURES_MAX 8
#define COLLAPSE_TRIES 5
#define COLLAPSE_WAIT_US 1000

struct kvl_arena_touch {
    int fd;
    uint8_t *reserved; /* MAP_FAILED until mapped */
    uint64_t reserved_bytes;
    uint8_t *base; /* 2 MiB aligned, inside reserved */
    uint64_t capacity_bytes, chunk_count;
    struct kvl_log *log;
    char name[32];

    _Atomic uint64_t next_chunk, chunks_done;
    _Atomic uint64_t touched_bytes, huge_bytes;
    _Atomic int collapse_failures;
    _Atomic bool stopping;
    _Atomic bool failed;
    pthread_mutex_t mutex; /* for the condition only */
    pthread_cond_t ended;
    uint32_t threads_running; /* under the mutex */
    uint32_t thread_count;
    pthread_t threads[TOUCH_THREADS_MAX];
    _Atomic bool chunk_touched[];
};

/* ---- touching ----------------------------------------------------------------------------- */

/* 0 or an errno. Kernels before 5.14 know no populate (EINVAL): touch by hand there. */
static int populate(uint8_t *at, uint64_t bytes) {
    if (madvise(at, bytes, MADV_POPULATE_WRITE) == 0)
        return 0;
    if (errno != EINVAL)
        return errno;
    for (uint64_t i = 0; i < bytes; i += PAGE_BYTES)
        *(volatile uint8_t *)(at + i) = 0;
    return 0;
}

static void collapse_refused(struct kvl_arena_touch *touch, int error) {
    int failures = atomic_fetch_add(&touch->collapse_failures, 1) + 1;
    if (failures != COLLAPSE_FAILURES_MAX && error != EINVAL)
        return;
    atomic_store(&touch->collapse_failures, COLLAPSE_FAILURES_MAX);
    kvl_log_fallback(touch->log,
        "no huge pages for the %s arena (%s): small pages, slower disk reads and first touch",
        touch->name, strerror(error));
}

/* True when the chunk stands on a huge page now. */
static bool touch_huge(struct kvl_arena_touch *touch, uint8_t *at, int *error) {
    if (atomic_load(&touch->collapse_failures) >= COLLAPSE_FAILURES_MAX)
        return false;
    *error = populate(at, PAGE_BYTES);
    if (*error != 0)
        return false;
    int tries = 0;
    while (madvise(at, CHUNK_BYTES, MADV_COLLAPSE) != 0) {
        /* EAGAIN: the page touched just now is in other hands, often some CPU's list of new pages.
         */
        if (errno == EAGAIN && ++tries < COLLAPSE_TRIES && !atomic_load(&touch->stopping)) {
            usleep(COLLAPSE_WAIT_US);
            continue;
        }
        collapse_refused(touch, errno);
        return false;
    }
    atomic_store(&touch->collapse_failures, 0);
    return true;
}

static int touch_chunk(struct kvl_arena_touch *touch, uint64_t chunk) {
    const uint64_t offset = chunk * CHUNK_BYTES;
    const uint64_t left = touch->capacity_bytes - offset;
    const uint64_t bytes = left < CHUNK_BYTES ? left : CHUNK_BYTES;
    int error = 0;
    if (bytes == CHUNK_BYTES && touch_huge(touch, touch->base + offset, &error))
        atomic_fetch_add(&touch->huge_bytes, bytes);
    else if (error == 0)
        error = populate(touch->base + offset, bytes);
    if (error == 0) {
        atomic_fetch_add(&touch->touched_bytes, bytes);
        atomic_store_explicit(&touch->chunk_touched[chunk], true, memory_order_release);
        atomic_fetch_add_explicit(&touch->chunks_done, 1, memory_order_release);
    }
    return error;
}

static void touch_failed(struct kvl_arena_touch *touch, int error) {
    if (!atomic_exchange(&touch->failed, true))
        KVL_ERROR(touch->log,
            "event=arena_memory_ran_out arena=%s touched_bytes=%llu capacity_bytes=%llu "
            "error=\"%s\"",
            touch->name, (unsigned long long)atomic_load(&touch->touched_bytes),
            (unsigned long long)touch->capacity_bytes, strerror(error));
}

static void *touch_main(void *arg) {
    struct kvl_arena_touch *touch = arg;
    kvl_thread_begin("kvl-touch", KVL_THREAD_COMPUTE);
    while (!atomic_load(&touch->stopping) && !atomic_load(&touch->failed)) {
        uint64_t chunk = atomic_fetch_add(&touch->next_chunk, 1);
        if (chunk >= touch->chunk_count)
            break;
        int error = touch_chunk(touch, chunk);
        if (error != 0)
            touch_failed(touch, error);
    }
    pthread_mutex_lock(&touch->mutex);
    if (--touch->threads_running == 0)
        pthread_cond_broadcast(&touch->ended);
    pthread_mutex_unlock(&touch->mutex);
    return NULL;
}

/* ---- mapping ------------------------------------------------------------------------------ */

static kvl_err make_memfd(struct kvl_arena_touch *touch, struct kvl_errmsg *msg) {
    char fd_name[64];
    snprintf(fd_name, sizeof fd_name, "kvloft-%s", touch->name);
    touch->fd = memfd_create(fd_name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (touch->fd < 0)
        return kvl_fail(msg, errno == ENOSYS ? KVL_ERR_UNSUPPORTED : kvl_err_from_errno(errno),
            "cannot make shared memory for the %s tier (memfd_create: %s)", touch->name,
            strerror(errno));
    if (ftruncate(touch->fd, (off_t)touch->capacity_bytes) != 0)
        return kvl_fail(msg, KVL_ERR_NOMEM, "cannot size the %s tier's memory to %llu bytes (%s)",
            touch->name, (unsigned long long)touch->capacity_bytes, strerror(errno));
    if (fcntl(touch->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
        return kvl_fail(msg, KVL_ERR_UNSUPPORTED, "cannot seal the %s tier's memory (%s)",
            touch->name, strerror(errno));
    return KVL_OK;
}

/* Reserves 2 MiB more than asked and maps at the first 2 MiB boundary inside. */
static kvl_err map_aligned(struct kvl_arena_touch *touch, struct kvl_errmsg *msg) {
    touch->reserved_bytes = touch->capacity_bytes + CHUNK_BYTES;
    touch->reserved =
        mmap(NULL, touch->reserved_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (touch->reserved == MAP_FAILED)
        goto refused;
    uintptr_t aligned = ((uintptr_t)touch->reserved + CHUNK_BYTES - 1) & ~(CHUNK_BYTES - 1);
    touch->base = mmap((void *)aligned, touch->capacity_bytes, PROT_READ | PROT_WRITE,
        MAP_SHARED | MAP_FIXED, touch->fd, 0);
    if (touch->base == MAP_FAILED)
        goto refused;
    /* Refused by kernels without huge pages: the collapse will tell. */
    (void)madvise(touch->base, touch->capacity_bytes, MADV_HUGEPAGE);
    return KVL_OK;
refused:
    return kvl_fail(msg, KVL_ERR_NOMEM,
        "cannot map %llu bytes for the %s tier (%s): make it smaller or raise ulimit -v",
        (unsigned long long)touch->capacity_bytes, touch->name, strerror(errno));
}

static kvl_err start_threads(
    struct kvl_arena_touch *touch, uint32_t threads, struct kvl_errmsg *msg) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = 0;
    pthread_mutex_lock(&touch->mutex);
    while (touch->thread_count < threads && error == 0) {
        error = pthread_create(&touch->threads[touch->thread_count], NULL, touch_main, touch);
        if (error == 0) {
            touch->thread_count++;
            touch->threads_running++;
        }
    }
    pthread_mutex_unlock(&touch->mutex);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (touch->thread_count == 0)
        return kvl_fail(msg, KVL_ERR_LIMIT, "cannot start a thread for the %s tier (%s)",
            touch->name, strerror(error));
    return KVL_OK;
}

kvl_err kvl_arena_touch_start(
    const struct kvl_arena_options *options, struct kvl_arena_touch **out, struct kvl_errmsg *msg) {
    *out = NULL;
    kvl_err err = kvl_arena_limit_check(options->name, options->capacity_bytes, msg);
    if (err != KVL_OK)
        return err;
    const uint64_t chunks = (options->capacity_bytes + CHUNK_BYTES - 1) / CHUNK_BYTES;
    struct kvl_arena_touch *touch =
        calloc(1, sizeof *touch + chunks * sizeof touch->chunk_touched[0]);
    if (!touch)
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory for the %s tier", options->name);
    touch->fd = -1;
    touch->reserved = MAP_FAILED;
    touch->capacity_bytes = options->capacity_bytes;
    touch->chunk_count = chunks;
    touch->log = options->log;
    snprintf(touch->name, sizeof touch->name, "%s", options->name);
    pthread_mutex_init(&touch->mutex, NULL);
    pthread_cond_init(&touch->ended, NULL);

    uint32_t threads = options->touch_threads ? options->touch_threads : 1;
    err = make_memfd(touch, msg);
    if (err == KVL_OK)
        err = map_aligned(touch, msg);
    if (err == KVL_OK)
        err = start_threads(touch, threads < TOUCH_THREADS_MAX ? threads : TOUCH_THREADS_MAX, msg);
    if (err != KVL_OK) {
        kvl_arena_touch_stop(touch);
        return err;
    }
    *out = touch;
    return KVL_OK;
}

void kvl_arena_touch_stop(struct kvl_arena_touch *touch) {
    if (!touch)
        return;
    atomic_store(&touch->stopping, true);
    for (uint32_t i = 0; i < touch->thread_count; i++)
        pthread_join(touch->threads[i], NULL);
    if (touch->reserved != MAP_FAILED)
        munmap(touch->reserved, touch->reserved_bytes);
    if (touch->fd >= 0)
        close(touch->fd);
    pthread_cond_destroy(&touch->ended);
    pthread_mutex_destroy(&touch->mutex);
    free(touch);
}

/* ---- asking ------------------------------------------------------------------------------- */

kvl_err kvl_arena_touch_check(
    struct kvl_arena_touch *touch, uint64_t offset_bytes, uint64_t range_bytes) {
    if (atomic_load_explicit(&touch->chunks_done, memory_order_acquire) == touch->chunk_count)
        return KVL_OK;
    const uint64_t last = (offset_bytes + range_bytes - 1) / CHUNK_BYTES;
    for (uint64_t chunk = offset_bytes / CHUNK_BYTES; chunk <= last; chunk++) {
        if (!atomic_load_explicit(&touch->chunk_touched[chunk], memory_order_acquire))
            return atomic_load(&touch->failed) ? KVL_ERR_NOSPC : KVL_ERR_AGAIN;
    }
    return KVL_OK;
}

void kvl_arena_touch_wait(struct kvl_arena_touch *touch) {
    pthread_mutex_lock(&touch->mutex);
    while (touch->threads_running > 0)
        pthread_cond_wait(&touch->ended, &touch->mutex);
    pthread_mutex_unlock(&touch->mutex);
}

uint8_t *kvl_arena_touch_base(const struct kvl_arena_touch *touch) {
    return touch->base;
}

int kvl_arena_touch_fd(const struct kvl_arena_touch *touch) {
    return touch->fd;
}

uint64_t kvl_arena_touch_touched_bytes(const struct kvl_arena_touch *touch) {
    return atomic_load(&touch->touched_bytes);
}

uint64_t kvl_arena_touch_huge_bytes(const struct kvl_arena_touch *touch) {
    return atomic_load(&touch->huge_bytes);
}
