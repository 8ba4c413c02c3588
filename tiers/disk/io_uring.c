/* io_uring.c - the io_uring backend: one ring, one thread, an eventfd for its completions.
 *
 * Transfers that lie in registered memory use fixed buffers: their pages are pinned once instead
 * of at every transfer. Buffers register in pieces of at most 1 GiB (the kernel's limit). Files are
 * registered too, as many as there are slots for. */
#include <liburing.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "io_backend.h"
#include "tier.h"

#define REGIONS_MAX 256u
#define REGION_BYTES_MAX (1ull << 30)
#define FILES_MAX 1024u /* the kernel allows as many as a process may have open */
/* One transfer of the kernel's is below 2 GiB; larger ones go in steps. */
#define TRANSFER_BYTES_MAX (1u << 30)

struct region {
    uintptr_t address;
    uint64_t bytes;
};

struct uring {
    struct kvl_io_backend base;
    struct io_uring ring;
    bool table_ready; /* the sparse table of fixed buffers exists */
    struct region regions[REGIONS_MAX];
    uint32_t region_count;
    bool file_slots[FILES_MAX];       /* used */
    bool files_ready;                 /* the sparse table of registered files exists */
    struct kvl_disk_op *head, **tail; /* waiting for a submission entry */
    uint32_t depth, in_ring;
};

static int fixed_index(const struct uring *uring, const uint8_t *address, uint64_t bytes) {
    for (uint32_t i = 0; i < uring->region_count; i++) {
        const struct region *region = &uring->regions[i];
        uintptr_t at = (uintptr_t)address;
        if (at >= region->address && at - region->address <= region->bytes &&
            bytes <= region->bytes - (at - region->address))
            return (int)i;
    }
    return -1;
}

/* The disk sees one request, not one a part. Of more than it takes at once the kernel does as much
 * as it does. */
static void prepare_parts(struct io_uring_sqe *sqe, const struct kvl_disk_op *op) {
    uint64_t offset = op->offset_bytes + op->done_bytes;
    if (op->kind == KVL_DISK_READ)
        io_uring_prep_readv(sqe, op->file->fd, op->parts, op->part_count, offset);
    else
        io_uring_prep_writev(sqe, op->file->fd, op->parts, op->part_count, offset);
}

static void prepare_in_buffer(
    const struct uring *uring, struct io_uring_sqe *sqe, struct kvl_disk_op *op) {
    uint8_t *at = op->buffer + op->done_bytes;
    uint64_t left = op->bytes - op->done_bytes;
    uint64_t offset = op->offset_bytes + op->done_bytes;
    unsigned bytes = left < TRANSFER_BYTES_MAX ? (unsigned)left : TRANSFER_BYTES_MAX;
    int fixed = fixed_index(uring, at, bytes);
    if (op->kind == KVL_DISK_READ && fixed >= 0)
        io_uring_prep_read_fixed(sqe, op->file->fd, at, bytes, offset, fixed);
    else if (op->kind == KVL_DISK_READ)
        io_uring_prep_read(sqe, op->file->fd, at, bytes, offset);
    else if (fixed >= 0)
        io_uring_prep_write_fixed(sqe, op->file->fd, at, bytes, offset, fixed);
    else
        io_uring_prep_write(sqe, op->file->fd, at, bytes, offset);
}

static void prepare(const struct uring *uring, struct io_uring_sqe *sqe, struct kvl_disk_op *op) {
    if (op->kind == KVL_DISK_SYNC)
        io_uring_prep_fsync(sqe, op->file->fd, IORING_FSYNC_DATASYNC);
    else if (op->parts != NULL)
        prepare_parts(sqe, op);
    else
        prepare_in_buffer(uring, sqe, op);
    if (op->file->registered != 0) {
        sqe->fd = (int)op->file->registered - 1;
        sqe->flags |= IOSQE_FIXED_FILE;
    }
    io_uring_sqe_set_data(sqe, op);
}

static void push(struct uring *uring, struct kvl_disk_op *op) {
    op->next = NULL;
    *uring->tail = op;
    uring->tail = &op->next;
}

static void uring_submit(struct kvl_io_backend *backend, struct kvl_disk_op *op) {
    struct uring *uring = kvl_container_of(backend, struct uring, base);
    op->done_bytes = 0;
    op->status = KVL_OK;
    backend->inflight++;
    push(uring, op);
}

static void start_waiting(struct uring *uring) {
    while (uring->head != NULL && uring->in_ring < uring->depth) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);
        if (sqe == NULL)
            break;
        struct kvl_disk_op *op = uring->head;
        uring->head = op->next;
        if (uring->head == NULL)
            uring->tail = &uring->head;
        prepare(uring, sqe, op);
        uring->in_ring++;
    }
}

/* Returns true when the op is over. */
static bool account(struct kvl_disk_op *op, int result) {
    if (result == -EINTR || result == -EAGAIN)
        return false;
    if (result < 0) {
        op->status = kvl_err_from_errno(-result);
        return true;
    }
    if (op->kind == KVL_DISK_SYNC)
        return true;
    kvl_disk_op_account(op, (uint64_t)result);
    if (op->done_bytes < op->bytes && result == 0)
        op->status = op->kind == KVL_DISK_READ ? KVL_ERR_SHORT : KVL_ERR_IO;
    return op->done_bytes >= op->bytes || result == 0;
}

static uint32_t uring_poll(struct kvl_io_backend *backend) {
    struct uring *uring = kvl_container_of(backend, struct uring, base);
    uint32_t finished = 0;
    uint64_t count;
    while (read(backend->fd, &count, sizeof(count)) < 0 && errno == EINTR)
        ;
    start_waiting(uring);
    io_uring_submit_and_get_events(&uring->ring);
    struct io_uring_cqe *cqe;
    while (io_uring_peek_cqe(&uring->ring, &cqe) == 0) {
        struct kvl_disk_op *op = io_uring_cqe_get_data(cqe);
        int result = cqe->res;
        io_uring_cqe_seen(&uring->ring, cqe);
        uring->in_ring--;
        if (!account(op, result)) {
            push(uring, op);
            continue;
        }
        backend->inflight--;
        finished++;
        op->done(op);
    }
    if (uring->head != NULL && uring->in_ring < uring->depth) {
        start_waiting(uring);
        io_uring_submit(&uring->ring);
    }
    return finished;
}

static bool register_piece(struct uring *uring, uintptr_t address, uint64_t bytes) {
    if (!uring->table_ready || uring->region_count == REGIONS_MAX)
        return false;
    struct iovec iov = {(void *)address, bytes};
    __u64 tag = 0;
    if (io_uring_register_buffers_update_tag(&uring->ring, uring->region_count, &iov, &tag, 1) < 1)
        return false;
    uring->regions[uring->region_count++] = (struct region){address, bytes};
    return true;
}

static bool uring_register(struct kvl_io_backend *backend, void *address, uint64_t bytes) {
    struct uring *uring = kvl_container_of(backend, struct uring, base);
    for (uint64_t at = 0; at < bytes; at += REGION_BYTES_MAX) {
        uint64_t piece = bytes - at < REGION_BYTES_MAX ? bytes - at : REGION_BYTES_MAX;
        if (!register_piece(uring, (uintptr_t)address + at, piece))
            return false;
    }
    return true;
}

static void uring_register_file(struct kvl_io_backend *backend, struct kvl_disk_file *file) {
    struct uring *uring = kvl_container_of(backend, struct uring, base);
    uint32_t slot = 0;
    while (slot < FILES_MAX && uring->file_slots[slot])
        slot++;
    if (!uring->files_ready || slot == FILES_MAX ||
        io_uring_register_files_update(&uring->ring, slot, &file->fd, 1) < 1)
        return;
    uring->file_slots[slot] = true;
    file->registered = slot + 1;
}

/* A slot that cannot be emptied is not used again. */
static void uring_forget_file(struct kvl_io_backend *backend, struct kvl_disk_file *file) {
    struct uring *uring = kvl_container_of(backend, struct uring, base);
    const int none = -1;
    if (file->registered == 0)
        return;
    uint32_t slot = file->registered - 1;
    uring->file_slots[slot] =
        io_uring_register_files_update(&uring->ring, slot, (int *)&none, 1) < 1;
    file->registered = 0;
}

/* Of what is registered the kernel lets go some time after the ring is gone: files that are removed
 * meanwhile would still take their space. */
static void uring_destroy(struct kvl_io_backend *backend) {
    struct uring *uring = kvl_container_of(backend, struct uring, base);
    if (uring->files_ready)
        (void)io_uring_unregister_files(&uring->ring);
    io_uring_queue_exit(&uring->ring);
    if (backend->fd >= 0)
        close(backend->fd);
    free(uring);
}

static const struct kvl_io_backend_ops uring_ops = {
    .name = "io_uring",
    .submit = uring_submit,
    .poll = uring_poll,
    .register_memory = uring_register,
    .register_file = uring_register_file,
    .forget_file = uring_forget_file,
    .destroy = uring_destroy,
};

/* The cheapest flags first; older kernels know fewer. */
static int init_ring(struct uring *uring) {
    static const unsigned flags[] = {
#if defined(IORING_SETUP_DEFER_TASKRUN) && defined(IORING_SETUP_SINGLE_ISSUER)
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CLAMP,
#endif
        IORING_SETUP_CLAMP,
        0,
    };
    int error = -ENOSYS;
    for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]); i++) {
        error = io_uring_queue_init(uring->depth, &uring->ring, flags[i]);
        if (error != -EINVAL)
            return error;
    }
    return error;
}

kvl_err kvl_io_uring_create(uint32_t depth, struct kvl_io_backend **out) {
    struct uring *uring = calloc(1, sizeof(*uring));
    if (uring == NULL)
        return KVL_ERR_NOMEM;
    uring->base.ops = &uring_ops;
    uring->tail = &uring->head;
    uring->depth = depth;
    uring->base.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (uring->base.fd < 0) {
        free(uring);
        return kvl_err_from_errno(errno);
    }
    int error = init_ring(uring);
    if (error == 0 && (error = io_uring_register_eventfd(&uring->ring, uring->base.fd)) != 0)
        io_uring_queue_exit(&uring->ring);
    if (error != 0) {
        close(uring->base.fd);
        free(uring);
        return error == -ENOMEM ? KVL_ERR_NOMEM : KVL_ERR_UNSUPPORTED;
    }
    uring->table_ready = io_uring_register_buffers_sparse(&uring->ring, REGIONS_MAX) == 0;
    uring->files_ready = io_uring_register_files_sparse(&uring->ring, FILES_MAX) == 0;
    *out = &uring->base;
    return KVL_OK;
}
