/* Writes that are gathered from several places, and what is left of them when the system takes less
 * than it is given. This program's pwritev takes as little as it is told; io_uring's does not ask.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <limits.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "disk/io_backend.h"

#define PARTS 7u
#define OFFSET_BYTES 8192u

static const uint32_t part_bytes[PARTS] = {4096, 65536, 1, 4095, 4096, 300, 70000};
static atomic_uint taken_most; /* bytes a call; 0: all */
static atomic_uint calls;

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    struct iovec copy[IOV_MAX];
    uint64_t left = atomic_load(&taken_most);
    atomic_fetch_add(&calls, 1);
    memcpy(copy, parts, (size_t)count * sizeof(*parts));
    for (int i = 0; left > 0 && i < count; i++) {
        copy[i].iov_len = copy[i].iov_len < left ? copy[i].iov_len : left;
        left -= copy[i].iov_len;
        if (left == 0)
            count = i + 1;
    }
    return syscall(SYS_pwritev, fd, copy, count, offset, 0L);
}

struct scattered {
    struct kvl_disk_op op;
    struct kvl_disk_file file;
    struct iovec parts[PARTS];
    uint8_t *memory[PARTS];
    uint8_t *whole;
    bool done;
};

static void is_done(struct kvl_disk_op *op) {
    struct scattered *write = op->owner;
    write->done = true;
}

static void scatter(struct scattered *write) {
    *write = (struct scattered){.file.fd = memfd_create("scattered", MFD_CLOEXEC)};
    assert_true(write->file.fd >= 0);
    write->op = (struct kvl_disk_op){.kind = KVL_DISK_WRITE,
        .file = &write->file,
        .offset_bytes = OFFSET_BYTES,
        .parts = write->parts,
        .part_count = PARTS,
        .done = is_done,
        .owner = write};
    for (uint32_t i = 0; i < PARTS; i++)
        write->op.bytes += part_bytes[i];
    write->whole = malloc(write->op.bytes);
    assert_non_null(write->whole);
    uint64_t at = 0;
    for (uint32_t i = 0; i < PARTS; at += part_bytes[i++]) {
        write->memory[i] = malloc(part_bytes[i]);
        assert_non_null(write->memory[i]);
        for (uint32_t j = 0; j < part_bytes[i]; j++)
            write->memory[i][j] = write->whole[at + j] = (uint8_t)((at + j) * 2654435761u >> 24);
        write->parts[i] = (struct iovec){write->memory[i], part_bytes[i]};
    }
}

static void forget(struct scattered *write) {
    for (uint32_t i = 0; i < PARTS; i++)
        free(write->memory[i]);
    free(write->whole);
    close(write->file.fd);
}

static void write_scattered(struct kvl_io_backend *backend) {
    struct scattered write;
    scatter(&write);
    uint8_t *read_back = malloc(write.op.bytes);
    assert_non_null(read_back);
    backend->ops->submit(backend, &write.op);
    for (backend->ops->poll(backend); !write.done; backend->ops->poll(backend))
        poll(&(struct pollfd){.fd = backend->fd, .events = POLLIN}, 1, 1000);
    assert_int_equal(write.op.status, KVL_OK);
    assert_int_equal(write.op.done_bytes, write.op.bytes);
    assert_int_equal(pread(write.file.fd, read_back, write.op.bytes, OFFSET_BYTES), write.op.bytes);
    assert_memory_equal(read_back, write.whole, write.op.bytes);
    free(read_back);
    forget(&write);
}

static void a_short_write_goes_on_in_any_part(void **state) {
    static const uint32_t most[] = {0, 513, 4096, 4097, 69632, 69633, 73728, 100000};
    struct kvl_io_backend *backend;
    (void)state;
    assert_int_equal(kvl_io_posix_create(2, &backend), KVL_OK);
    for (uint32_t i = 0; i < sizeof(most) / sizeof(most[0]); i++) {
        atomic_store(&taken_most, most[i]);
        atomic_store(&calls, 0);
        write_scattered(backend);
        assert_true(most[i] == 0 ? calls == 1 : calls > 1);
    }
    backend->ops->destroy(backend);
}

static void a_ring_writes_all_parts(void **state) {
    struct kvl_io_backend *backend;
    (void)state;
    if (kvl_io_uring_create(8, &backend) != KVL_OK)
        skip();
    write_scattered(backend);
    backend->ops->destroy(backend);
}

/* What both backends go on with, whatever was taken: the rest, no more and no less. */
static void what_is_left_is_the_rest(void **state) {
    (void)state;
    for (uint64_t step = 1; step < 150000; step = step * 3 / 2 + 1) {
        struct scattered write;
        scatter(&write);
        while (write.op.done_bytes < write.op.bytes) {
            uint64_t left = write.op.bytes - write.op.done_bytes, seen = 0;
            for (uint32_t i = 0; i < write.op.part_count; i++)
                seen += write.op.parts[i].iov_len;
            assert_int_equal(seen, left);
            assert_int_equal(
                *(uint8_t *)write.op.parts->iov_base, write.whole[write.op.done_bytes]);
            kvl_disk_op_account(&write.op, step < left ? step : left);
        }
        assert_int_equal(write.op.part_count, 0);
        forget(&write);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_short_write_goes_on_in_any_part),
        cmocka_unit_test(a_ring_writes_all_parts),
        cmocka_unit_test(what_is_left_is_the_rest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
