/* alloc_fail.c - see alloc_fail.h. */
#include "alloc_fail.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/types.h>

static struct {
    _Atomic bool armed;
    bool lasting;
    uint64_t nth;
    struct alloc_fail_report *report;
    _Atomic int64_t mapped_bytes;
} state;

void alloc_fail_arm(struct alloc_fail_report *report, uint64_t nth, bool lasting) {
    state.report = report;
    state.nth = nth;
    state.lasting = lasting;
    atomic_store(&state.armed, true);
}

void alloc_fail_disarm(void) {
    atomic_store(&state.armed, false);
}

int64_t alloc_fail_mapped_bytes(void) {
    return atomic_load(&state.mapped_bytes);
}

static bool fails(void *caller) {
    if (!atomic_load(&state.armed))
        return false;
    uint64_t call = atomic_fetch_add(&state.report->calls, 1) + 1;
    if (state.nth == 0 || call < state.nth || (call > state.nth && !state.lasting))
        return false;
    Dl_info program = {0};
    if (atomic_fetch_add(&state.report->failed, 1) == 0 && dladdr(caller, &program) != 0)
        atomic_store(&state.report->site, (uintptr_t)caller - (uintptr_t)program.dli_fbase - 1);
    errno = ENOMEM;
    return true;
}

static int64_t whole_pages(size_t bytes) {
    return ((int64_t)bytes + 4095) / 4096 * 4096;
}

#define FAILS fails(__builtin_return_address(0))

/* The linker makes these names: __wrap_F is called for F, __real_F is F. */
void *__real_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes) {
    return FAILS ? NULL : __real_malloc(bytes);
}

void *__real_calloc(size_t count, size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes) {
    return FAILS ? NULL : __real_calloc(count, bytes);
}

void *__real_realloc(void *old, size_t bytes);
void *__wrap_realloc(void *old, size_t bytes);
void *__wrap_realloc(void *old, size_t bytes) {
    return FAILS ? NULL : __real_realloc(old, bytes);
}

int __real_posix_memalign(void **out, size_t alignment, size_t bytes);
int __wrap_posix_memalign(void **out, size_t alignment, size_t bytes);
int __wrap_posix_memalign(void **out, size_t alignment, size_t bytes) {
    return FAILS ? ENOMEM : __real_posix_memalign(out, alignment, bytes);
}

void *__real_aligned_alloc(size_t alignment, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes) {
    return FAILS ? NULL : __real_aligned_alloc(alignment, bytes);
}

char *__real_strdup(const char *text);
char *__wrap_strdup(const char *text);
char *__wrap_strdup(const char *text) {
    return FAILS ? NULL : __real_strdup(text);
}

__attribute__((format(printf, 2, 3))) int __wrap_asprintf(char **out, const char *format, ...);
int __wrap_asprintf(char **out, const char *format, ...) {
    va_list arguments;
    if (FAILS)
        return -1;
    va_start(arguments, format);
    int bytes = vasprintf(out, format, arguments);
    va_end(arguments);
    return bytes;
}

int __real_memfd_create(const char *name, unsigned flags);
int __wrap_memfd_create(const char *name, unsigned flags);
int __wrap_memfd_create(const char *name, unsigned flags) {
    return FAILS ? -1 : __real_memfd_create(name, flags);
}

int __real_pthread_create(
    pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *arg);
int __wrap_pthread_create(
    pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *arg);
int __wrap_pthread_create(
    pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *arg) {
    return FAILS ? EAGAIN : __real_pthread_create(thread, attributes, start, arg);
}

void *__real_mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset);
void *__wrap_mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset);
void *__wrap_mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset) {
    if (FAILS)
        return MAP_FAILED;
    void *mapped = __real_mmap(at, bytes, protection, flags, fd, offset);
    if (mapped != MAP_FAILED && (flags & MAP_FIXED) == 0) /* fixed: inside what counts already */
        atomic_fetch_add(&state.mapped_bytes, whole_pages(bytes));
    return mapped;
}

int __real_munmap(void *at, size_t bytes);
int __wrap_munmap(void *at, size_t bytes);
int __wrap_munmap(void *at, size_t bytes) {
    atomic_fetch_sub(&state.mapped_bytes, whole_pages(bytes));
    return __real_munmap(at, bytes);
}
