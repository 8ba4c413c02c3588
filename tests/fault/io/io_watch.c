/* io_watch.c - see io_watch.h. The real calls are made as raw system calls. */
#include "io_watch.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static _Atomic(const struct io_watch *) current;

void io_watch_set(const struct io_watch *watch) {
    atomic_store(&current, watch);
}

const char *io_kind_name(enum io_kind kind) {
    static const char *const names[IO_KINDS] = {"open", "read", "write", "sync", "truncate",
        "allocate", "rename", "unlink", "mkdir", "mmap", "munmap"};
    return names[kind];
}

static void path_of_fd(int fd, char path[512]) {
    char link[64];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    long got = syscall(SYS_readlinkat, AT_FDCWD, link, path, 511);
    path[got > 0 ? got : 0] = '\0';
}

static void path_at(int directory, const char *name, char path[512]) {
    path[0] = '\0';
    if (name[0] != '/') {
        if (directory != AT_FDCWD)
            path_of_fd(directory, path);
        else if (syscall(SYS_getcwd, path, 511) <= 0)
            path[0] = '\0';
        strncat(path, "/", 511 - strlen(path));
    }
    strncat(path, name, 511 - strlen(path));
}

static bool is_below(const char *path, const char *root) {
    size_t bytes = strlen(root);
    return strncmp(path, root, bytes) == 0 && (path[bytes] == '/' || path[bytes] == '\0');
}

/* Fills in what the watch wants to know; false: not its business. */
static bool concerns(const struct io_watch *watch, struct io_call *call) {
    if (watch == NULL || (call->kind == IO_READ && !watch->reads))
        return false;
    if (call->kind == IO_UNMAP)
        return true;
    if (call->path[0] == '\0')
        path_of_fd(call->fd, call->path);
    if (!is_below(call->path, watch->root))
        return false;
    if (call->kind == IO_WRITE)
        call->flags = (int)syscall(SYS_fcntl, call->fd, F_GETFL);
    if ((call->kind == IO_WRITE || call->kind == IO_READ) && !call->at_offset)
        call->offset = (uint64_t)syscall(SYS_lseek, call->fd, 0, SEEK_CUR);
    for (int i = 0; i < call->part_count; i++)
        call->bytes += call->parts[i].iov_len;
    return true;
}

static long perform(struct io_call *call, long (*real)(struct io_call *call)) {
    const struct io_watch *watch = atomic_load(&current);
    if (!concerns(watch, call))
        return real(call);
    call->error = watch->before(call);
    if (call->error != 0) {
        call->result = -1;
    } else {
        call->result = real(call);
        call->error = errno;
        if (call->kind == IO_OPEN)
            call->fd = (int)call->result;
    }
    watch->after(call);
    errno = call->error;
    return call->result;
}

/* ---- reading and writing ------------------------------------------------------------------ */

static long real_read(struct io_call *call) {
    struct iovec *part = &call->parts[0];
    if (call->at_offset)
        return syscall(SYS_pread64, call->fd, part->iov_base, part->iov_len, call->offset);
    return syscall(SYS_read, call->fd, part->iov_base, part->iov_len);
}

static long real_write(struct io_call *call) {
    struct iovec *part = &call->parts[0];
    if (call->at_offset && call->part_count == 1)
        return syscall(SYS_pwrite64, call->fd, part->iov_base, part->iov_len, call->offset);
    if (call->at_offset)
        return syscall(SYS_pwritev, call->fd, call->parts, call->part_count, call->offset, 0L);
    return syscall(SYS_writev, call->fd, call->parts, call->part_count);
}

static ssize_t transfer(struct io_call call, void *buffer, size_t bytes) {
    struct iovec part = {buffer, bytes};
    call.parts = &part;
    call.part_count = 1;
    return perform(&call, call.kind == IO_READ ? real_read : real_write);
}

static ssize_t write_parts(struct io_call call, const struct iovec *parts, int count) {
    struct iovec copy[IOV_MAX];
    if (count < 0 || count > IOV_MAX) {
        errno = EINVAL;
        return -1;
    }
    memcpy(copy, parts, (size_t)count * sizeof(*parts));
    call.parts = copy;
    call.part_count = count;
    return perform(&call, real_write);
}

ssize_t pread(int fd, void *buffer, size_t bytes, off_t offset) {
    struct io_call call = {
        .kind = IO_READ, .fd = fd, .offset = (uint64_t)offset, .at_offset = true};
    return transfer(call, buffer, bytes);
}

ssize_t read(int fd, void *buffer, size_t bytes) {
    return transfer((struct io_call){.kind = IO_READ, .fd = fd}, buffer, bytes);
}

ssize_t pwrite(int fd, const void *buffer, size_t bytes, off_t offset) {
    struct io_call call = {
        .kind = IO_WRITE, .fd = fd, .offset = (uint64_t)offset, .at_offset = true};
    return transfer(call, (void *)buffer, bytes);
}

ssize_t write(int fd, const void *buffer, size_t bytes) {
    return transfer((struct io_call){.kind = IO_WRITE, .fd = fd}, (void *)buffer, bytes);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    return write_parts((struct io_call){.kind = IO_WRITE, .fd = fd}, parts, count);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
    struct io_call call = {
        .kind = IO_WRITE, .fd = fd, .offset = (uint64_t)offset, .at_offset = true};
    return write_parts(call, parts, count);
}

/* ---- durability, sizes, mappings ---------------------------------------------------------- */

static long real_fsync(struct io_call *call) {
    return syscall(SYS_fsync, call->fd);
}

int fsync(int fd) {
    return (int)perform(&(struct io_call){.kind = IO_SYNC, .fd = fd}, real_fsync);
}

static long real_fdatasync(struct io_call *call) {
    return syscall(SYS_fdatasync, call->fd);
}

int fdatasync(int fd) {
    return (int)perform(&(struct io_call){.kind = IO_SYNC, .fd = fd}, real_fdatasync);
}

static long real_ftruncate(struct io_call *call) {
    return syscall(SYS_ftruncate, call->fd, call->bytes);
}

int ftruncate(int fd, off_t size) {
    struct io_call call = {.kind = IO_TRUNCATE, .fd = fd, .bytes = (uint64_t)size};
    return (int)perform(&call, real_ftruncate);
}

static long real_fallocate(struct io_call *call) {
    return syscall(SYS_fallocate, call->fd, call->flags, call->offset, call->bytes);
}

int fallocate(int fd, int mode, off_t offset, off_t bytes) {
    struct io_call call = {.kind = IO_ALLOCATE,
        .fd = fd,
        .flags = mode,
        .offset = (uint64_t)offset,
        .bytes = (uint64_t)bytes};
    return (int)perform(&call, real_fallocate);
}

/* No emulation by writing: where the file system cannot, the test says so. */
int posix_fallocate(int fd, off_t offset, off_t bytes) {
    return fallocate(fd, 0, offset, bytes) == 0 ? 0 : errno;
}

static long real_mmap(struct io_call *call) {
    return syscall(SYS_mmap, call->parts[0].iov_base, call->parts[0].iov_len, call->protection,
        call->map_flags, call->fd, call->offset);
}

void *mmap(void *address, size_t bytes, int protection, int flags, int fd, off_t offset) {
    struct iovec part = {address, bytes};
    struct io_call call = {.kind = IO_MAP,
        .fd = fd,
        .protection = protection,
        .map_flags = flags,
        .offset = (uint64_t)offset,
        .parts = &part,
        .part_count = 1};
    return (void *)(fd < 0 ? real_mmap(&call) : perform(&call, real_mmap));
}

static long real_munmap(struct io_call *call) {
    return syscall(SYS_munmap, call->parts[0].iov_base, call->parts[0].iov_len);
}

int munmap(void *address, size_t bytes) {
    struct iovec part = {address, bytes};
    struct io_call call = {.kind = IO_UNMAP, .fd = -1, .parts = &part, .part_count = 1};
    return (int)perform(&call, real_munmap);
}

/* ---- names -------------------------------------------------------------------------------- */

struct at {
    int directory, to_directory;
    const char *name, *to;
};

/* The name as given, which the real calls need, beside the call. */
static _Thread_local struct at at;

static long real_open(struct io_call *call) {
    return syscall(SYS_openat, at.directory, at.name, call->flags, call->mode);
}

static int open_at(int directory, const char *name, int flags, uint32_t mode) {
    struct io_call call = {.kind = IO_OPEN, .fd = -1, .flags = flags, .mode = mode};
    at = (struct at){.directory = directory, .name = name};
    if (atomic_load(&current) != NULL)
        path_at(directory, name, call.path);
    return (int)perform(&call, real_open);
}

static uint32_t mode_argument(int flags, va_list arguments) {
    return (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(arguments, uint32_t) : 0;
}

int open(const char *name, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    uint32_t mode = mode_argument(flags, arguments);
    va_end(arguments);
    return open_at(AT_FDCWD, name, flags, mode);
}

int openat(int directory, const char *name, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    uint32_t mode = mode_argument(flags, arguments);
    va_end(arguments);
    return open_at(directory, name, flags, mode);
}

static long real_unlink(struct io_call *call) {
    return syscall(SYS_unlinkat, at.directory, at.name, call->flags);
}

int unlinkat(int directory, const char *name, int flags) {
    struct io_call call = {.kind = IO_UNLINK, .fd = -1, .flags = flags};
    at = (struct at){.directory = directory, .name = name};
    if (atomic_load(&current) != NULL)
        path_at(directory, name, call.path);
    return (int)perform(&call, real_unlink);
}

int unlink(const char *name) {
    return unlinkat(AT_FDCWD, name, 0);
}

int rmdir(const char *name) {
    return unlinkat(AT_FDCWD, name, AT_REMOVEDIR);
}

static long real_rename(struct io_call *call) {
    return syscall(SYS_renameat2, at.directory, at.name, at.to_directory, at.to, call->flags);
}

int renameat(int directory, const char *name, int to_directory, const char *to) {
    struct io_call call = {.kind = IO_RENAME, .fd = -1};
    at = (struct at){directory, to_directory, name, to};
    if (atomic_load(&current) != NULL) {
        path_at(directory, name, call.path);
        path_at(to_directory, to, call.to);
    }
    return (int)perform(&call, real_rename);
}

int rename(const char *name, const char *to) {
    return renameat(AT_FDCWD, name, AT_FDCWD, to);
}

static long real_mkdir(struct io_call *call) {
    return syscall(SYS_mkdirat, at.directory, at.name, call->mode);
}

int mkdirat(int directory, const char *name, mode_t mode) {
    struct io_call call = {.kind = IO_MKDIR, .fd = -1, .mode = mode};
    at = (struct at){.directory = directory, .name = name};
    if (atomic_load(&current) != NULL)
        path_at(directory, name, call.path);
    return (int)perform(&call, real_mkdir);
}

int mkdir(const char *name, mode_t mode) {
    return mkdirat(AT_FDCWD, name, mode);
}

/* Other names of the same calls, as programs for large files or with fortified headers use them. */
ssize_t pread64(int, void *, size_t, off64_t) __attribute__((alias("pread")));
ssize_t pwrite64(int, const void *, size_t, off64_t) __attribute__((alias("pwrite")));
int ftruncate64(int, off64_t) __attribute__((alias("ftruncate")));
int fallocate64(int, int, off64_t, off64_t) __attribute__((alias("fallocate")));
int posix_fallocate64(int, off64_t, off64_t) __attribute__((alias("posix_fallocate")));
void *mmap64(void *, size_t, int, int, int, off64_t) __attribute__((alias("mmap")));
int open64(const char *, int, ...) __attribute__((alias("open")));
int openat64(int, const char *, int, ...) __attribute__((alias("openat")));
