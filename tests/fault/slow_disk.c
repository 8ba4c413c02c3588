/* slow_disk.c - for LD_PRELOAD: makes every read, write and sync of files under one folder take a
 * while, LMDB's included, and sets the wall clock off. A test changes both while the program runs:
 *
 *   KVL_SLOW_FOLDER   the folder, without symbolic links
 *   KVL_SLOW_CONTROL  a file of 16 bytes, mapped: u32 delay ms | i32 wall clock offset s | u64
 * calls that were delayed (written here)
 *
 * A delay that is under way ends when the file says less. io_uring and page faults pass it by: use
 * --disk-io posix. */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define SLICE_NS 2000000

struct control {
    _Atomic uint32_t delay_ms;
    _Atomic int32_t wall_offset_s;
    _Atomic uint64_t delayed_calls;
};
_Static_assert(sizeof(struct control) == 16, "what the tests write");

static const char *folder;
static struct control *control; /* NULL: everything passes unchanged */

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("KVL_SLOW_CONTROL");
    int fd = path != NULL ? open(path, O_RDWR | O_CLOEXEC) : -1;
    folder = getenv("KVL_SLOW_FOLDER");
    if (fd < 0 || folder == NULL)
        return;
    void *mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped != MAP_FAILED)
        control = mapped;
    close(fd);
}

int clock_gettime(clockid_t id, struct timespec *now) {
    int rc = (int)syscall(SYS_clock_gettime, id, now);
    if (rc == 0 && control != NULL && id == CLOCK_REALTIME)
        now->tv_sec += atomic_load(&control->wall_offset_s);
    return rc;
}

static uint64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static bool is_inside(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t bytes = readlink(link, path, sizeof path);
    size_t folder_bytes = strlen(folder);
    return bytes > (ssize_t)folder_bytes && memcmp(path, folder, folder_bytes) == 0 &&
           path[folder_bytes] == '/';
}

static void delay(int fd) {
    if (control == NULL || atomic_load(&control->delay_ms) == 0 || !is_inside(fd))
        return;
    atomic_fetch_add(&control->delayed_calls, 1);
    uint64_t since_ms = now_ms();
    while (now_ms() - since_ms < atomic_load(&control->delay_ms))
        nanosleep(&(struct timespec){.tv_nsec = SLICE_NS}, NULL);
}

#define SLOW(type, name, parameters, arguments)                                                    \
    type name parameters {                                                                         \
        static type(*real) parameters;                                                             \
        if (real == NULL)                                                                          \
            real = (type(*) parameters)dlsym(RTLD_NEXT, #name);                                    \
        delay(fd);                                                                                 \
        return real arguments;                                                                     \
    }

SLOW(ssize_t, read, (int fd, void *to, size_t bytes), (fd, to, bytes))
SLOW(ssize_t, write, (int fd, const void *from, size_t bytes), (fd, from, bytes))
SLOW(ssize_t, writev, (int fd, const struct iovec *parts, int count), (fd, parts, count))
SLOW(ssize_t, pread, (int fd, void *to, size_t bytes, off_t at), (fd, to, bytes, at))
SLOW(ssize_t, pread64, (int fd, void *to, size_t bytes, off64_t at), (fd, to, bytes, at))
SLOW(ssize_t, pwrite, (int fd, const void *from, size_t bytes, off_t at), (fd, from, bytes, at))
SLOW(ssize_t, pwrite64, (int fd, const void *from, size_t bytes, off64_t at), (fd, from, bytes, at))
SLOW(ssize_t, pwritev, (int fd, const struct iovec *parts, int count, off_t at),
    (fd, parts, count, at))
SLOW(ssize_t, pwritev64, (int fd, const struct iovec *parts, int count, off64_t at),
    (fd, parts, count, at))
SLOW(int, fsync, (int fd), (fd))
SLOW(int, fdatasync, (int fd), (fd))
SLOW(int, ftruncate, (int fd, off_t bytes), (fd, bytes))
SLOW(int, ftruncate64, (int fd, off64_t bytes), (fd, bytes))
SLOW(int, fallocate, (int fd, int mode, off_t at, off_t bytes), (fd, mode, at, bytes))
SLOW(int, fallocate64, (int fd, int mode, off64_t at, off64_t bytes), (fd, mode, at, bytes))
