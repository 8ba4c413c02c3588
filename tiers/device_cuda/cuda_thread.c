/* cuda_thread.c - the threads that talk to the driver while the tier lives: one a direction, or one
 * for both. Calls of one wait for the driver's lock while another's is in it, and for nothing else
 * of the other; a thread does more about a piece than call.
 *
 * They wait for nothing but the owner: the words that streams write are looked at, at first without
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
#include "thread.h"

#define SPIN_US 20u
#define STEP_NS 20000u
#define LOST_STEP_NS 5000000u
#define SLACK_NS 1000u

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
    struct cuda_lane *lane = kvl_cuda_lane_of(move->tier, move->io);
    move->over = ended;
    if (move->in_outbox)
        return;
    move->in_outbox = true;
    move->outbox_next = NULL;
    *lane->outbox_tail = move;
    lane->outbox_tail = &move->outbox_next;
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

static void send_outbox(struct cuda_lane *lane) {
    struct cuda_tier *tier = lane->tier;
    if (lane->outbox == NULL)
        return;
    pthread_mutex_lock(&tier->mutex);
    const bool had_news = has_news(tier);
    while (lane->outbox != NULL) {
        struct cuda_move *move = lane->outbox;
        lane->outbox = move->outbox_next;
        publish(tier, move);
    }
    lane->outbox_tail = &lane->outbox;
    if (!had_news && has_news(tier)) {
        event_set(tier->event_fd);
        pthread_cond_signal(&tier->told);
    }
    pthread_mutex_unlock(&tier->mutex);
}

/* ---- from the owner ------------------------------------------------------------------------- */

/* Under the mutex, as all of this part. */
static bool nothing_came(const struct cuda_lane *lane) {
    for (int i = 0; i < KVL_CUDA_PRIORITIES; i++)
        if (lane->inbox[i].head != NULL)
            return false;
    return !lane->canceling;
}

void kvl_cuda_thread_call(struct cuda_thread *thread) {
    atomic_store(&thread->called, true);
    pthread_cond_signal(&thread->work);
}

static bool inbox_is_empty(const struct cuda_thread *thread) {
    const struct cuda_tier *tier = thread->tier;
    for (uint32_t i = 0; i < thread->lane_count; i++)
        if (!nothing_came(&thread->lanes[i]))
            return false;
    return !tier->stopping && (!thread->has_pins || tier->new_pins == NULL);
}

static void take_pins(struct cuda_tier *tier) {
    while (tier->new_pins != NULL) {
        struct cuda_pin *pin = tier->new_pins;
        tier->new_pins = pin->next;
        pin->next = atomic_load(&tier->pins);
        atomic_store(&tier->pins, pin);
        tier->pins_due_ns = 0;
    }
}

/* An io that was canceled is in its queue by now, so that a purge finds it. */
static void inbox_take(struct cuda_thread *thread) {
    for (uint32_t i = 0; i < thread->lane_count; i++) {
        struct cuda_lane *lane = &thread->lanes[i];
        kvl_cuda_lane_take(lane);
        lane->purging = lane->canceling;
        lane->canceling = false;
    }
    if (thread->has_pins)
        take_pins(thread->tier);
}

/* ---- waiting -------------------------------------------------------------------------------- */

static bool is_busy(const struct cuda_thread *thread) {
    for (uint32_t i = 0; i < thread->lane_count; i++) {
        const struct cuda_lane *lane = &thread->lanes[i];
        if (lane->flying_count > 0 || lane->hashing_count > 0 ||
            kvl_workers_inflight(lane->ring_worker) > 0)
            return true;
    }
    return false;
}

static uint64_t pins_due_in_ns(const struct cuda_thread *thread) {
    return thread->has_pins ? kvl_cuda_pins_due_in_ns(thread->tier) : UINT64_MAX;
}

/* Under the mutex, which it gives up: until the owner has something, or memory may be pinned. */
static void sleep_idle(struct cuda_thread *thread) {
    struct cuda_tier *tier = thread->tier;
    const uint64_t due_ns = pins_due_in_ns(thread);
    if (due_ns == UINT64_MAX) {
        pthread_cond_wait(&thread->work, &tier->mutex);
        return;
    }
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    const uint64_t nsec = (uint64_t)until.tv_nsec + due_ns;
    until.tv_sec += (time_t)(nsec / 1000000000u);
    until.tv_nsec = (long)(nsec % 1000000000u);
    pthread_cond_timedwait(&thread->work, &tier->mutex, &until);
}

/* For a moment, with copies or hashes under way. */
static void pause_busy(const struct cuda_thread *thread, uint64_t *idle_since_ns) {
    const uint64_t now_ns = kvl_clock_ns();
    if (*idle_since_ns == 0)
        *idle_since_ns = now_ns;
    if (now_ns - *idle_since_ns > thread->tier->spin_ns) {
        const bool gave_up = atomic_load(&thread->tier->gave_up);
        nanosleep(&(struct timespec){.tv_nsec = gave_up ? LOST_STEP_NS : STEP_NS}, NULL);
        return;
    }
    for (int i = 0; i < 64; i++) {
        for (uint32_t lane = 0; lane < thread->lane_count; lane++)
            if (kvl_cuda_lane_has_landed(&thread->lanes[lane]) ||
                kvl_cuda_hashers_have_news(&thread->lanes[lane]))
                return;
        kvl_cuda_relax();
    }
}

/* ---- a thread ------------------------------------------------------------------------------- */

static bool poll_ring_worker(struct kvl_workers *workers) {
    return kvl_workers_inflight(workers) > 0 && kvl_workers_poll(workers) > 0;
}

/* What is done is told before new copies are made, which take the driver a while. */
static bool land(struct cuda_lane *lane) {
    if (lane->purging || atomic_load(&lane->tier->lost))
        kvl_cuda_lane_purge(lane);
    lane->purging = false;
    bool progress = kvl_cuda_lane_land(lane);
    progress = poll_ring_worker(lane->ring_worker) || progress;
    progress = kvl_cuda_hashers_poll(lane) || progress;
    send_outbox(lane);
    return progress;
}

static bool advance(struct cuda_thread *thread) {
    bool progress = false;
    for (uint32_t i = 0; i < thread->lane_count; i++)
        progress = land(&thread->lanes[i]) || progress;
    for (uint32_t i = 0; i < thread->lane_count; i++) {
        progress = kvl_cuda_lane_fill(&thread->lanes[i]) || progress;
        send_outbox(&thread->lanes[i]);
    }
    return (thread->has_pins && kvl_cuda_pins_advance(thread->tier)) || progress;
}

/* Takes what the owner has, and first waits for it where there is nothing else to do. Returns
 * whether it is the end. */
static bool hear_owner(struct cuda_thread *thread, bool is_idle) {
    struct cuda_tier *tier = thread->tier;
    pthread_mutex_lock(&tier->mutex);
    while (is_idle && inbox_is_empty(thread) && pins_due_in_ns(thread) != 0)
        sleep_idle(thread);
    atomic_store(&thread->called, false);
    inbox_take(thread);
    const bool stopping = tier->stopping;
    pthread_mutex_unlock(&tier->mutex);
    return stopping;
}

/* It sleeps only after a round in which there was nothing to do: the end of one piece makes room
 * for the next. While it is busy it leaves the mutex to the owner, unless that calls. */
static void run(struct cuda_thread *thread) {
    uint64_t idle_since_ns = 0;
    bool progress = false, stopping = false;
    for (;;) {
        const bool is_idle = !progress && !is_busy(thread);
        if (is_idle || atomic_load(&thread->called))
            stopping = hear_owner(thread, is_idle);
        progress = advance(thread);
        if (progress)
            idle_since_ns = 0;
        else if (stopping)
            return;
        else if (is_busy(thread))
            pause_busy(thread, &idle_since_ns);
    }
}

static void *thread_main(void *arg) {
    struct cuda_thread *thread = arg;
    struct cuda_tier *tier = thread->tier;
    kvl_thread_begin("kvl-cuda", KVL_THREAD_PROMPT);
    prctl(PR_SET_TIMERSLACK, (unsigned long)SLACK_NS);
    kvl_cuda_status status = tier->driver->context_enter(tier->driver, tier->context);
    if (status != KVL_CUDA_OK)
        kvl_cuda_lose(tier, "enter a context", status);
    run(thread);
    for (uint32_t i = 0; i < thread->lane_count; i++)
        assert(thread->lanes[i].waiting_count == 0 && thread->lanes[i].waiting_bytes == 0);
    if (thread->has_pins)
        kvl_cuda_pins_forget(tier);
    if (status == KVL_CUDA_OK)
        tier->driver->context_leave(tier->driver);
    return NULL;
}

/* ---- life ----------------------------------------------------------------------------------- */

/* Signals are the process's main thread's business. */
static int start_thread(struct cuda_thread *thread) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&thread->id, NULL, thread_main, thread);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    thread->is_running = error == 0;
    return error;
}

static kvl_err make_workers(struct cuda_tier *tier, uint32_t hash_threads) {
    kvl_err err = KVL_OK;
    for (uint32_t i = 0; i < KVL_CUDA_LANES && err == KVL_OK; i++)
        err = kvl_workers_create("kvl-ring", 1, &tier->lanes[i].ring_worker);
    if (err == KVL_OK)
        err = kvl_cuda_hashers_start(&tier->lanes[KVL_CUDA_TO_HOST], hash_threads);
    return err;
}

/* Lanes in turns; who has the last, whose work is behind, has the pins too. */
static void give_lanes(struct cuda_tier *tier, uint32_t threads) {
    tier->thread_count = threads == 0 || threads > KVL_CUDA_LANES ? KVL_CUDA_LANES : threads;
    const uint32_t lanes = KVL_CUDA_LANES / tier->thread_count;
    for (uint32_t i = 0; i < tier->thread_count; i++) {
        struct cuda_thread *thread = &tier->threads[i];
        thread->lanes = &tier->lanes[i * lanes];
        thread->lane_count = lanes;
        thread->has_pins = i + 1 == tier->thread_count;
        for (uint32_t lane = 0; lane < lanes; lane++)
            thread->lanes[lane].thread = thread;
    }
}

kvl_err kvl_cuda_threads_start(
    struct cuda_tier *tier, const struct kvl_cuda_tier_options *options, struct kvl_errmsg *msg) {
    tier->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (tier->event_fd < 0)
        return kvl_fail(
            msg, kvl_err_from_errno(errno), "cannot make an eventfd: %s", strerror(errno));
    tier->spin_ns = UINT64_C(1000) * (options->spin_us != 0 ? options->spin_us : SPIN_US);
    kvl_err err = make_workers(tier, options->hash_threads);
    give_lanes(tier, options->driver_threads);
    for (uint32_t i = 0; i < tier->thread_count && err == KVL_OK; i++)
        if (start_thread(&tier->threads[i]) != 0)
            err = KVL_ERR_LIMIT;
    if (err != KVL_OK)
        return kvl_fail(msg, err, "cannot start the device tier's threads (%s)", kvl_err_text(err));
    return KVL_OK;
}

/* The driver's before the workers, which they submit to. */
void kvl_cuda_threads_stop(struct cuda_tier *tier) {
    pthread_mutex_lock(&tier->mutex);
    tier->stopping = true;
    for (uint32_t i = 0; i < KVL_CUDA_LANES; i++)
        kvl_cuda_thread_call(&tier->threads[i]);
    pthread_mutex_unlock(&tier->mutex);
    for (uint32_t i = 0; i < KVL_CUDA_LANES; i++)
        if (tier->threads[i].is_running)
            pthread_join(tier->threads[i].id, NULL);
    kvl_cuda_hashers_stop(&tier->lanes[KVL_CUDA_TO_HOST]);
    for (uint32_t i = 0; i < KVL_CUDA_LANES; i++)
        kvl_workers_destroy(tier->lanes[i].ring_worker);
    if (tier->event_fd >= 0)
        close(tier->event_fd);
}
