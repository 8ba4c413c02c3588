/* io_backend.h - how the disk thread reads and writes segments: io_uring or a pool of threads.
 *
 * An op is one read, write or data sync of a file. submit queues it, poll starts what is queued
 * and calls done() of what finished, whole or failed: a short read is SHORT, a short write goes on
 * where it stopped. fd is readable when poll has something to reap.
 *
 * Owns:    the op, its buffer and its parts stay the caller's, until done().
 * Threads: one thread creates, submits, polls and destroys. */
#ifndef KVL_DISK_IO_BACKEND_H
#define KVL_DISK_IO_BACKEND_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "kvl_err.h"

enum kvl_disk_op_kind { KVL_DISK_READ, KVL_DISK_WRITE, KVL_DISK_SYNC };

/* An open file. */
struct kvl_disk_file {
    int fd;
    uint32_t registered; /* the backend's; 0: not */
};

struct kvl_disk_op {
    enum kvl_disk_op_kind kind;
    const struct kvl_disk_file *file; /* stays open until done() */
    uint64_t offset_bytes;
    uint8_t *buffer;
    struct iovec *parts; /* NULL, or instead of buffer: used up by the backend */
    uint32_t part_count;
    uint64_t bytes;      /* of all parts */
    uint64_t done_bytes; /* the backend's */
    kvl_err status;      /* set before done() */
    void (*done)(struct kvl_disk_op *op);
    void *owner;              /* the caller's */
    struct kvl_disk_op *next; /* the backend's */
};

/* So many bytes more are done. */
static inline void kvl_disk_op_account(struct kvl_disk_op *op, uint64_t bytes) {
    op->done_bytes += bytes;
    while (op->part_count > 0 && bytes >= op->parts->iov_len) {
        bytes -= op->parts->iov_len;
        op->parts++;
        op->part_count--;
    }
    if (op->part_count > 0) {
        op->parts->iov_base = (uint8_t *)op->parts->iov_base + bytes;
        op->parts->iov_len -= bytes;
    }
}

struct kvl_io_backend;

struct kvl_io_backend_ops {
    const char *name;
    void (*submit)(struct kvl_io_backend *backend, struct kvl_disk_op *op);
    uint32_t (*poll)(struct kvl_io_backend *backend);
    /* Makes transfers to and from this memory cheaper where the system allows it; false: not. */
    bool (*register_memory)(struct kvl_io_backend *backend, void *address, uint64_t bytes);
    /* Makes transfers of this file cheaper where the system allows it. It is forgotten before it is
     * closed, with nothing under way: until then the backend keeps it open. */
    void (*register_file)(struct kvl_io_backend *backend, struct kvl_disk_file *file);
    void (*forget_file)(struct kvl_io_backend *backend, struct kvl_disk_file *file);
    void (*destroy)(struct kvl_io_backend *backend);
};

struct kvl_io_backend {
    const struct kvl_io_backend_ops *ops;
    int fd;
    uint32_t inflight; /* submitted, done() not yet called */
};

/* UNSUPPORTED: the kernel refuses io_uring here (old, or blocked by a container). */
KVL_MUST_CHECK kvl_err kvl_io_uring_create(uint32_t depth, struct kvl_io_backend **out);
KVL_MUST_CHECK kvl_err kvl_io_posix_create(uint32_t threads, struct kvl_io_backend **out);

#endif
