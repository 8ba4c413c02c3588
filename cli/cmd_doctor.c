/* cmd_doctor.c - what this machine offers to kvloft, and what to change. Needs no daemon.
 *
 * Every line comes from trying the thing, not from reading a version. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/io_uring.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "cli.h"
#include "cuda_device.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

enum { HUGE_BYTES = 2 << 20, CHECKS = 7, GPUS_SHOWN_MAX = 8 };

struct finding {
    const char *name;
    bool good;
    char found[160];
    const char *advice; /* when not good */
};

static struct finding check_huge_pages(void) {
    struct finding finding = {.name = "huge pages",
        .advice = "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled (as root)"};
    int fd = memfd_create("kvloft-doctor", MFD_CLOEXEC);
    uint8_t *area = mmap(NULL, 2 * HUGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (fd >= 0 && area != MAP_FAILED && ftruncate(fd, HUGE_BYTES) == 0) {
        uint8_t *aligned = area + (HUGE_BYTES - (uintptr_t)area % HUGE_BYTES) % HUGE_BYTES;
        uint8_t *page =
            mmap(aligned, HUGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
        if (page != MAP_FAILED) {
            *(volatile uint8_t *)page = 1;
            finding.good = madvise(page, HUGE_BYTES, MADV_COLLAPSE) == 0;
        }
    }
    snprintf(finding.found, sizeof finding.found, "%s",
        finding.good ? "shared memory collapses to 2 MiB pages"
                     : "shared memory stays on 4 KiB pages: disk reads run slower");
    if (area != MAP_FAILED)
        munmap(area, 2 * HUGE_BYTES);
    if (fd >= 0)
        close(fd);
    return finding;
}

static struct finding check_memlock(void) {
    struct finding finding = {.name = "locked memory",
        .advice = "raise it: ulimit -l, or LimitMEMLOCK= in the systemd unit"};
    struct rlimit limit;
    char bytes[32];
    bool privileged = geteuid() == 0;
    if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0)
        limit.rlim_cur = 0;
    bool unlimited = limit.rlim_cur == RLIM_INFINITY;
    finding.good = privileged || unlimited || limit.rlim_cur >= (256u << 20);
    snprintf(finding.found, sizeof finding.found, "%s%s",
        unlimited ? "unlimited" : cli_bytes(limit.rlim_cur, bytes),
        privileged ? " (root is not bound by it)" : "");
    return finding;
}

static struct finding check_io_uring(void) {
    struct finding finding = {.name = "io_uring",
        .advice = "allow io_uring_setup in the container's seccomp profile, or set "
                  "kernel.io_uring_disabled=0; until then a thread pool serves"};
    struct io_uring_params params;
    memset(&params, 0, sizeof params);
    int fd = (int)syscall(__NR_io_uring_setup, 4, &params);
    finding.good = fd >= 0;
    snprintf(finding.found, sizeof finding.found, "%s", fd >= 0 ? "available" : strerror(errno));
    if (fd >= 0)
        close(fd);
    return finding;
}

static struct finding check_direct_io(const char *folder) {
    struct finding finding = {
        .name = "O_DIRECT", .advice = "choose a --disk-path on a local ext4, xfs or btrfs disk"};
    char path[4096];
    snprintf(path, sizeof path, "%s/kvloft-doctor-XXXXXX", folder);
    int fd = mkstemp(path);
    if (fd < 0) {
        snprintf(finding.found, sizeof finding.found, "cannot write to %.100s: %s", folder,
            strerror(errno));
        return finding;
    }
    close(fd);
    fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
    void *page = NULL;
    if (fd >= 0 && posix_memalign(&page, 4096, 4096) == 0) {
        memset(page, 0, 4096);
        finding.good = pwrite(fd, page, 4096, 0) == 4096;
    }
    snprintf(finding.found, sizeof finding.found, "%s in %.100s",
        finding.good ? "works" : "is refused", folder);
    free(page);
    if (fd >= 0)
        close(fd);
    unlink(path);
    return finding;
}

static struct finding check_disk_space(const char *folder) {
    struct finding finding = {.name = "disk space", .advice = "free some, or choose another disk"};
    struct statvfs fs;
    char bytes[32];
    if (statvfs(folder, &fs) != 0) {
        snprintf(finding.found, sizeof finding.found, "cannot look at %.100s: %s", folder,
            strerror(errno));
        finding.advice = "give a --disk-path that exists";
        return finding;
    }
    uint64_t free_bytes = (uint64_t)fs.f_bavail * (uint64_t)fs.f_frsize;
    finding.good = free_bytes >= (1ull << 30);
    snprintf(finding.found, sizeof finding.found, "%s free in %.100s", cli_bytes(free_bytes, bytes),
        folder);
    return finding;
}

/* What the engine's kernels are written for. */
static const char *vector_instructions(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        return "AVX-512";
    }
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? "AVX2 and FMA" : NULL;
#elif defined(__aarch64__)
    return "NEON";
#else
    return NULL;
#endif
}

static struct finding check_cpu(void) {
    struct finding finding = {
        .name = "cpu", .advice = "the portable kernels run, several times slower"};
    cpu_set_t set;
    int cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    const char *vectors = vector_instructions();
    finding.good = vectors != NULL;
    snprintf(finding.found, sizeof finding.found, "%d core%s, %s", cores, cores == 1 ? "" : "s",
        finding.good ? vectors : "neither AVX2 and FMA nor NEON");
    return finding;
}

/* One GPU; false past the last. A machine without a driver is the usual case. */
static bool check_cuda(uint32_t number, struct finding *finding) {
    struct kvl_cuda_device_view view;
    *finding = (struct finding){
        .name = "cuda", .advice = "none needed for --device cpu; else install NVIDIA's driver"};
    bool is_there = kvl_cuda_device_look(number, &view);
    finding->good = view.is_good;
    snprintf(finding->found, sizeof finding->found, "%s", view.text);
    return is_there;
}

static struct finding check_memory(void) {
    struct finding finding = {
        .name = "memory", .advice = "choose small --device-bytes, --host-bytes"};
    char bytes[32];
    long pages = sysconf(_SC_AVPHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    uint64_t available = pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : 0;
    finding.good = available >= (1ull << 30);
    snprintf(finding.found, sizeof finding.found, "%s free", cli_bytes(available, bytes));
    return finding;
}

static int run_doctor(const struct cli_options *options, int argc, char **argv) {
    const char *folder = options->disk_path ? options->disk_path : ".";
    struct utsname kernel;
    (void)argv;
    if (argc > 0)
        return cli_wrong("doctor takes no words");
    uname(&kernel);
    struct finding findings[CHECKS + GPUS_SHOWN_MAX] = {check_cpu(), check_memory(),
        check_huge_pages(), check_memlock(), check_io_uring(), check_direct_io(folder),
        check_disk_space(folder)};
    size_t count = CHECKS;
    for (uint32_t i = 0; i < GPUS_SHOWN_MAX && check_cuda(i, &findings[count]); i++)
        count++;
    json_t *list = json_array();
    for (size_t i = 0; i < count; i++) {
        const struct finding *f = &findings[i];
        if (options->json)
            json_array_append_new(
                list, json_pack("{s:s,s:b,s:s,s:s}", "name", f->name, "good", f->good, "found",
                          f->found, "advice", f->good ? "" : f->advice));
        else
            printf("%-4s %-14s %s\n%s%s%s", f->good ? "ok" : "--", f->name, f->found,
                f->good ? "" : "                    ", f->good ? "" : f->advice,
                f->good ? "" : "\n");
    }
    if (options->json)
        return cli_print_json(json_pack("{s:s,s:o}", "kernel", kernel.release, "findings", list));
    json_decref(list);
    return CLI_DONE;
}

const struct cli_command cli_doctor = {
    .name = "doctor",
    .summary = "what this machine offers, and what to change",
    .usage = "[--disk-path DIR] [--json]",
    .run = run_doctor,
};
