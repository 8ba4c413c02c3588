/* io_posix.c - the backend for systems without io_uring: threads that pread and pwrite.
 *
 *   submit -> [waiting] -> thread: pread, pwrite, fdatasync -> [finished] -> poll: done() */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "io_backend.h"
#include "thread.h"
#include "tier.h"

#define THREADS_MAX 64u

struct op_list {
    struct kvl_disk_op *head, **tail;
};

struct posix {
    struct kvl_io_backend base;
    pthread_mutex_t mutex; /* guards the lists and stopping */
    pthread_cond_t work;
    struct op_list waiting, finished;
    bool stopping;
    uint32_t thread_count;
    pthread_t threads[THREADS_MAX];
};

static void list_push(struct op_list *list, struct kvl_disk_op *op) {
    op->next = NULL;
    *list->tail = op;
    list->tail = &op->next;
}

static struct kvl_disk_op *list_take(struct op_list *list) {
    struct kvl_disk_op *head = list->head;
    list->head = NULL;
    list->tail = &list->head;
    return head;
}

static ssize_t transfer_some(const struct kvl_disk_op *op) {
    int fd = op->file->fd;
    off_t offset = (off_t)(op->offset_bytes + op->done_bytes);
    if (op->parts != NULL && op->kind == KVL_DISK_WRITE)
        return pwritev(fd, op->parts, (int)op->part_count, offset);
    if (op->parts != NULL)
        return pread(fd, op->parts->iov_base, op->parts->iov_len, offset);
    uint8_t *at = op->buffer + op->done_bytes;
    uint64_t left = op->bytes - op->done_bytes;
    return op->kind == KVL_DISK_READ ? pread(fd, at, left, offset) : pwrite(fd, at, left, offset);
}

static void transfer(struct kvl_disk_op *op) {
    while (op->done_bytes < op->bytes) {
        ssize_t got = transfer_some(op);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            op->status = kvl_err_from_errno(errno);
        else if (got == 0)
            op->status = op->kind == KVL_DISK_READ ? KVL_ERR_SHORT : KVL_ERR_IO;
        if (got <= 0)
            return;
        kvl_disk_op_account(op, (uint64_t)got);
    }
}

static void run(struct kvl_disk_op *op) {
    if (op->kind != KVL_DISK_SYNC)
        transfer(op);
    else if (fdatasync(op->file->fd) != 0)
        op->status = kvl_err_from_errno(errno);
}

static void *thread_main(void *arg) {
    struct posix *posix = arg;
    kvl_thread_begin("kvl-disk-io", KVL_THREAD_PROMPT);
    pthread_mutex_lock(&posix->mutex);
    for (;;) {
        struct kvl_disk_op *op = posix->waiting.head;
        if (op == NULL) {
            if (posix->stopping)
                break;
            pthread_cond_wait(&posix->work, &posix->mutex);
            continue;
        }
        posix->waiting.head = op->next;
        if (op->next == NULL)
            posix->waiting.tail = &posix->waiting.head;
        pthread_mutex_unlock(&posix->mutex);
        run(op);
        pthread_mutex_lock(&posix->mutex);
        list_push(&posix->finished, op);
        eventfd_write(posix->base.fd, 1);
    }
    pthread_mutex_unlock(&posix->mutex);
    return NULL;
}

static void posix_submit(struct kvl_io_backend *backend, struct kvl_disk_op *op) {
    struct posix *posix = kvl_container_of(backend, struct posix, base);
    op->done_bytes = 0;
    op->status = KVL_OK;
    backend->inflight++;
    pthread_mutex_lock(&posix->mutex);
    list_push(&posix->waiting, op);
    pthread_cond_signal(&posix->work);
    pthread_mutex_unlock(&posix->mutex);
}

static uint32_t posix_poll(struct kvl_io_backend *backend) {
    struct posix *posix = kvl_container_of(backend, struct posix, base);
    uint32_t finished = 0;
    eventfd_t count;
    pthread_mutex_lock(&posix->mutex);
    (void)eventfd_read(backend->fd, &count);
    struct kvl_disk_op *op = list_take(&posix->finished);
    pthread_mutex_unlock(&posix->mutex);
    while (op != NULL) {
        struct kvl_disk_op *next = op->next;
        backend->inflight--;
        finished++;
        op->done(op);
        op = next;
    }
    return finished;
}

static bool posix_register(struct kvl_io_backend *backend, void *address, uint64_t bytes) {
    (void)backend;
    (void)address;
    (void)bytes;
    return true; /* nothing to gain, nothing refused */
}

static void posix_file(struct kvl_io_backend *backend, struct kvl_disk_file *file) {
    (void)backend;
    (void)file;
}

static void posix_destroy(struct kvl_io_backend *backend) {
    struct posix *posix = kvl_container_of(backend, struct posix, base);
    pthread_mutex_lock(&posix->mutex);
    posix->stopping = true;
    pthread_cond_broadcast(&posix->work);
    pthread_mutex_unlock(&posix->mutex);
    for (uint32_t i = 0; i < posix->thread_count; i++)
        pthread_join(posix->threads[i], NULL);
    pthread_cond_destroy(&posix->work);
    pthread_mutex_destroy(&posix->mutex);
    close(backend->fd);
    free(posix);
}

static const struct kvl_io_backend_ops posix_ops = {
    .name = "posix",
    .submit = posix_submit,
    .poll = posix_poll,
    .register_memory = posix_register,
    .register_file = posix_file,
    .forget_file = posix_file,
    .destroy = posix_destroy,
};

kvl_err kvl_io_posix_create(uint32_t threads, struct kvl_io_backend **out) {
    struct posix *posix = calloc(1, sizeof(*posix));
    if (posix == NULL)
        return KVL_ERR_NOMEM;
    posix->base.ops = &posix_ops;
    posix->base.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (posix->base.fd < 0) {
        free(posix);
        return kvl_err_from_errno(errno);
    }
    pthread_mutex_init(&posix->mutex, NULL);
    pthread_cond_init(&posix->work, NULL);
    (void)list_take(&posix->waiting);
    (void)list_take(&posix->finished);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (posix->thread_count < threads && posix->thread_count < THREADS_MAX &&
           pthread_create(&posix->threads[posix->thread_count], NULL, thread_main, posix) == 0)
        posix->thread_count++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (posix->thread_count == 0) {
        posix_destroy(&posix->base);
        return KVL_ERR_NOMEM;
    }
    *out = &posix->base;
    return KVL_OK;
}
