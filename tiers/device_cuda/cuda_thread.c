/* cuda_thread.c - the one thread that talks to the driver while the tier lives.
 *
 * It waits for nothing but the owner: the words that streams write are looked at, at first without
 * a pause, then in short steps. Completions of a copy come every 100 us or so while copies run;
 * the steps are short against that, and cost a few per cent of a CPU. */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "cuda_private.h"

#define SPIN_NS 20000u
#define STEP_NS 20000u
#define LOST_STEP_NS 5000000u
#define SLACK_NS 1000u
#define HASH_THREADS_DEFAULT_MAX 12u

/* ---- to the owner --------------------------------------------------------------------------- */

/* eventfd writes on a counter that is 0 or 1 cannot fail but by EINTR. */
static void event_set(int fd) {
    const uint64_t one = 1;
    while (write(fd, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

static bool has_news(const struct cuda_tier *tier) {
    for (int i = 0; i < KVL_CUDA_PRIORITIES; i++)
        if (tier->news[i] != NULL)
            return true;
    return false;
}

void kvl_cuda_tell(struct cuda_move *move, bool ended) {
    struct cuda_tier *tier = move->tier;
    move->over = ended;
    if (move->in_outbox)
        return;
    move->in_outbox = true;
    move->outbox_next = NULL;
    *tier->outbox_tail = move;
    tier->outbox_tail = &move->outbox_next;
}

/* Under the mutex. A move that is over is the owner's from then on. */
static void publish(struct cuda_tier *tier, struct cuda_move *move) {
    const int priority = (int)move->io->priority;
    move->in_outbox = false;
    move->news_frames = move->landed;
    move->ended = move->over;
    if (move->in_news)
        return;
    move->in_news = true;
    move->news_next = NULL;
    *tier->news_tails[priority] = move;
    tier->news_tails[priority] = &move->news_next;
}

static void send_outbox(struct cuda_tier *tier) {
    if (tier->outbox == NULL)
        return;
    pthread_mutex_lock(&tier->mutex);
    const bool had_news = has_news(tier);
    while (tier->outbox != NULL) {
        struct cuda_move *move = tier->outbox;
        tier->outbox = move->outbox_next;
        publish(tier, move);
    }
    tier->outbox_tail = &tier->outbox;
    if (!had_news && has_news(tier)) {
        event_set(tier->event_fd);
        pthread_cond_signal(&tier->told);
    }
    pthread_mutex_unlock(&tier->mutex);
}

/* ---- from the owner ------------------------------------------------------------------------- */

struct inbox {
    bool canceling, stopping;
};

static bool inbox_is_empty(const struct cuda_tier *tier) {
    for (int lane = 0; lane < KVL_CUDA_LANES; lane++)
        for (int i = 0; i < KVL_CUDA_PRIORITIES; i++)
            if (tier->inbox[lane][i].head != NULL)
                return false;
    return !tier->canceling && !tier->stopping && tier->new_pins == NULL;
}

static void take_pins(struct cuda_tier *tier) {
    while (tier->new_pins != NULL) {
        struct cuda_pin *pin = tier->new_pins;
        tier->new_pins = pin->next;
        pin->next = tier->pins;
        tier->pins = pin;
        tier->pins_due_ns = 0;
    }
}

/* Under the mutex. */
static struct inbox inbox_take(struct cuda_tier *tier) {
    const struct inbox inbox = {.canceling = tier->canceling, .stopping = tier->stopping};
    for (int lane = 0; lane < KVL_CUDA_LANES; lane++)
        for (int i = 0; i < KVL_CUDA_PRIORITIES; i++)
            kvl_cuda_lane_take(&tier->lanes[lane], i, &tier->inbox[lane][i]);
    tier->canceling = false;
    take_pins(tier);
    return inbox;
}

/* ---- waiting -------------------------------------------------------------------------------- */

static bool is_busy(const struct cuda_tier *tier) {
    return tier->lanes[0].flying_count + tier->lanes[1].flying_count > 0 ||
           kvl_workers_inflight(tier->ring_worker) + kvl_workers_inflight(tier->hash_workers) > 0;
}

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

/* Under the mutex, which it gives up: until the owner has something, or memory may be pinned. */
static void sleep_idle(struct cuda_tier *tier) {
    const uint64_t due_ns = kvl_cuda_pins_due_in_ns(tier);
    if (due_ns == UINT64_MAX) {
        pthread_cond_wait(&tier->work, &tier->mutex);
        return;
    }
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    const uint64_t nsec = (uint64_t)until.tv_nsec + due_ns;
    until.tv_sec += (time_t)(nsec / 1000000000u);
    until.tv_nsec = (long)(nsec % 1000000000u);
    pthread_cond_timedwait(&tier->work, &tier->mutex, &until);
}

/* For a moment, with copies or hashes under way. */
static void pause_busy(struct cuda_tier *tier, uint64_t *idle_since_ns) {
    const uint64_t now_ns = kvl_clock_ns();
    if (*idle_since_ns == 0)
        *idle_since_ns = now_ns;
    if (now_ns - *idle_since_ns > SPIN_NS) {
        nanosleep(&(struct timespec){.tv_nsec = tier->gave_up ? LOST_STEP_NS : STEP_NS}, NULL);
        return;
    }
    for (int i = 0; i < 64; i++) {
        for (int lane = 0; lane < KVL_CUDA_LANES; lane++)
            if (kvl_cuda_lane_has_landed(&tier->lanes[lane]))
                return;
        relax();
    }
}

/* ---- the thread ----------------------------------------------------------------------------- */

static bool poll_workers(struct kvl_workers *workers) {
    return kvl_workers_inflight(workers) > 0 && kvl_workers_poll(workers) > 0;
}

/* What is done is told before new copies are made, which take the driver a while. */
static bool advance(struct cuda_tier *tier, bool canceling) {
    bool progress = false;
    if (canceling || atomic_load(&tier->lost))
        for (int lane = 0; lane < KVL_CUDA_LANES; lane++)
            kvl_cuda_lane_purge(&tier->lanes[lane]);
    for (int lane = 0; lane < KVL_CUDA_LANES; lane++)
        progress = kvl_cuda_lane_land(&tier->lanes[lane]) || progress;
    progress = poll_workers(tier->ring_worker) || progress;
    progress = poll_workers(tier->hash_workers) || progress;
    send_outbox(tier);
    for (int lane = 0; lane < KVL_CUDA_LANES; lane++)
        progress = kvl_cuda_lane_fill(&tier->lanes[lane]) || progress;
    progress = kvl_cuda_pins_advance(tier) || progress;
    send_outbox(tier);
    return progress;
}

/* It sleeps only after a round in which there was nothing to do: the end of one piece makes room
 * for the next. */
static void run(struct cuda_tier *tier) {
    uint64_t idle_since_ns = 0;
    bool progress = false;
    for (;;) {
        pthread_mutex_lock(&tier->mutex);
        while (!progress && !is_busy(tier) && inbox_is_empty(tier) &&
               kvl_cuda_pins_due_in_ns(tier) != 0)
            sleep_idle(tier);
        const struct inbox inbox = inbox_take(tier);
        pthread_mutex_unlock(&tier->mutex);
        progress = advance(tier, inbox.canceling);
        if (progress)
            idle_since_ns = 0;
        else if (inbox.stopping)
            return;
        else if (is_busy(tier))
            pause_busy(tier, &idle_since_ns);
    }
}

static void *thread_main(void *arg) {
    struct cuda_tier *tier = arg;
    pthread_setname_np(pthread_self(), "kvl-cuda");
    prctl(PR_SET_TIMERSLACK, (unsigned long)SLACK_NS);
    kvl_cuda_status status = tier->driver->context_enter(tier->driver, tier->context);
    if (status != KVL_CUDA_OK)
        kvl_cuda_lose(tier, "enter a context", status);
    run(tier);
    for (int lane = 0; lane < KVL_CUDA_LANES; lane++)
        assert(tier->lanes[lane].waiting_count == 0 && tier->lanes[lane].waiting_bytes == 0);
    kvl_cuda_pins_forget(tier);
    if (status == KVL_CUDA_OK)
        tier->driver->context_leave(tier->driver);
    return NULL;
}

/* ---- life ----------------------------------------------------------------------------------- */

/* A link of 55 GB/s keeps 8 CPUs busy that hash 7 GB/s each, from memory; five of eight leave some
 * to the rest of the daemon. */
static uint32_t default_hash_threads(void) {
    const long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    const uint32_t share = cpus > 2 ? (uint32_t)cpus * 5 / 8 : 1;
    return share < HASH_THREADS_DEFAULT_MAX ? share : HASH_THREADS_DEFAULT_MAX;
}

/* Signals are the process's main thread's business. */
static int start_thread(struct cuda_tier *tier) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&tier->thread, NULL, thread_main, tier);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    tier->has_thread = error == 0;
    return error;
}

kvl_err kvl_cuda_thread_start(
    struct cuda_tier *tier, uint32_t hash_threads, struct kvl_errmsg *msg) {
    if (hash_threads == 0)
        hash_threads = default_hash_threads();
    if (hash_threads > KVL_CUDA_HASH_THREADS_MAX)
        hash_threads = KVL_CUDA_HASH_THREADS_MAX;
    tier->hash_threads = hash_threads;
    tier->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (tier->event_fd < 0)
        return kvl_fail(
            msg, kvl_err_from_errno(errno), "cannot make an eventfd: %s", strerror(errno));
    kvl_err err = kvl_workers_create("kvl-ring", 1, &tier->ring_worker);
    if (err == KVL_OK)
        err = kvl_workers_create("kvl-hash", hash_threads, &tier->hash_workers);
    if (err == KVL_OK && start_thread(tier) != 0)
        err = KVL_ERR_LIMIT;
    if (err != KVL_OK)
        return kvl_fail(msg, err, "cannot start the device tier's threads (%s)", kvl_err_text(err));
    return KVL_OK;
}

void kvl_cuda_thread_stop(struct cuda_tier *tier) {
    if (tier->has_thread) {
        pthread_mutex_lock(&tier->mutex);
        tier->stopping = true;
        pthread_cond_signal(&tier->work);
        pthread_mutex_unlock(&tier->mutex);
        pthread_join(tier->thread, NULL);
    }
    kvl_workers_destroy(tier->hash_workers);
    kvl_workers_destroy(tier->ring_worker);
    if (tier->event_fd >= 0)
        close(tier->event_fd);
}
