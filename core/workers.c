/* workers.c - two queues of waiting jobs (urgent, ordinary) and one of finished ones, one mutex.
 *
 *   submit -> [urgent | ordinary] -> worker: run() -> [finished] -> poll: done()
 *
 * The eventfd is written when `finished` stops being empty and read when it is emptied, both under
 * the mutex, so it is readable exactly while there is something to poll. */
#include "workers.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "thread.h"

struct job_queue {
    struct kvl_job *head;
    struct kvl_job **tail;
};

struct kvl_workers {
    pthread_mutex_t mutex;
    pthread_cond_t work;   /* a job waits, or stopping */
    pthread_cond_t result; /* a job finished */
    struct job_queue urgent, ordinary, finished;
    bool stopping;
    int event_fd;
    uint32_t inflight; /* owner thread's */
    uint32_t thread_count;
    char name[12];
    pthread_t threads[];
};

static void queue_init(struct job_queue *queue) {
    queue->head = NULL;
    queue->tail = &queue->head;
}

static void queue_push(struct job_queue *queue, struct kvl_job *job) {
    job->next = NULL;
    *queue->tail = job;
    queue->tail = &job->next;
}

static struct kvl_job *queue_pop(struct job_queue *queue) {
    struct kvl_job *job = queue->head;
    if (job) {
        queue->head = job->next;
        if (!queue->head)
            queue->tail = &queue->head;
    }
    return job;
}

/* eventfd reads and writes of 8 bytes on a counter that is 0 or 1 cannot fail but by EINTR. */
static void event_set(int fd) {
    const uint64_t one = 1;
    while (write(fd, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

static void event_clear(int fd) {
    uint64_t count;
    while (read(fd, &count, sizeof count) < 0 && errno == EINTR)
        ;
}

static void *worker_main(void *arg) {
    struct kvl_workers *workers = arg;
    kvl_thread_begin(workers->name, KVL_THREAD_COMPUTE);
    pthread_mutex_lock(&workers->mutex);
    for (;;) {
        struct kvl_job *job = queue_pop(&workers->urgent);
        if (!job)
            job = queue_pop(&workers->ordinary);
        if (!job) {
            if (workers->stopping)
                break;
            pthread_cond_wait(&workers->work, &workers->mutex);
            continue;
        }
        pthread_mutex_unlock(&workers->mutex);
        job->run(job);
        pthread_mutex_lock(&workers->mutex);
        if (!workers->finished.head)
            event_set(workers->event_fd);
        queue_push(&workers->finished, job);
        pthread_cond_signal(&workers->result);
    }
    pthread_mutex_unlock(&workers->mutex);
    return NULL;
}

/* Signals are the process's main thread's business: workers are started with all blocked. */
static int start_threads(struct kvl_workers *workers, uint32_t threads) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = 0;
    while (workers->thread_count < threads && error == 0) {
        error =
            pthread_create(&workers->threads[workers->thread_count], NULL, worker_main, workers);
        if (error == 0)
            workers->thread_count++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

kvl_err kvl_workers_create(const char *name, uint32_t threads, struct kvl_workers **out) {
    *out = NULL;
    if (threads == 0)
        threads = 1;
    struct kvl_workers *workers =
        calloc(1, sizeof *workers + (uint64_t)threads * sizeof workers->threads[0]);
    if (!workers)
        return KVL_ERR_NOMEM;
    pthread_mutex_init(&workers->mutex, NULL);
    pthread_cond_init(&workers->work, NULL);
    pthread_cond_init(&workers->result, NULL);
    queue_init(&workers->urgent);
    queue_init(&workers->ordinary);
    queue_init(&workers->finished);
    snprintf(workers->name, sizeof workers->name, "%s", name);
    workers->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int error = workers->event_fd < 0 ? errno : start_threads(workers, threads);
    if (error != 0) {
        kvl_workers_destroy(workers);
        return error == EAGAIN ? KVL_ERR_LIMIT : kvl_err_from_errno(error);
    }
    *out = workers;
    return KVL_OK;
}

void kvl_workers_destroy(struct kvl_workers *workers) {
    if (!workers)
        return;
    pthread_mutex_lock(&workers->mutex);
    workers->stopping = true;
    pthread_cond_broadcast(&workers->work);
    pthread_mutex_unlock(&workers->mutex);
    for (uint32_t i = 0; i < workers->thread_count; i++)
        pthread_join(workers->threads[i], NULL);
    if (workers->event_fd >= 0)
        close(workers->event_fd);
    pthread_cond_destroy(&workers->result);
    pthread_cond_destroy(&workers->work);
    pthread_mutex_destroy(&workers->mutex);
    free(workers);
}

void kvl_workers_submit(struct kvl_workers *workers, struct kvl_job *job, bool urgent) {
    assert(job->run && job->done);
    pthread_mutex_lock(&workers->mutex);
    queue_push(urgent ? &workers->urgent : &workers->ordinary, job);
    pthread_cond_signal(&workers->work);
    pthread_mutex_unlock(&workers->mutex);
    workers->inflight++;
}

static struct kvl_job *take_finished(struct kvl_workers *workers, bool wait) {
    pthread_mutex_lock(&workers->mutex);
    while (wait && !workers->finished.head)
        pthread_cond_wait(&workers->result, &workers->mutex);
    struct kvl_job *jobs = workers->finished.head;
    if (jobs) {
        queue_init(&workers->finished);
        event_clear(workers->event_fd);
    }
    pthread_mutex_unlock(&workers->mutex);
    return jobs;
}

static uint32_t call_done(struct kvl_workers *workers, struct kvl_job *jobs) {
    uint32_t count = 0;
    while (jobs) {
        struct kvl_job *job = jobs;
        jobs = job->next; /* done() may free or submit the job again */
        workers->inflight--;
        count++;
        job->done(job);
    }
    return count;
}

uint32_t kvl_workers_poll(struct kvl_workers *workers) {
    return call_done(workers, take_finished(workers, false));
}

void kvl_workers_drain(struct kvl_workers *workers) {
    while (workers->inflight > 0)
        call_done(workers, take_finished(workers, true));
}

int kvl_workers_fd(const struct kvl_workers *workers) {
    return workers->event_fd;
}

uint32_t kvl_workers_inflight(const struct kvl_workers *workers) {
    return workers->inflight;
}
