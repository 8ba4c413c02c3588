/* alloc_sweep.c - see alloc_sweep.h. */
#include "alloc_sweep.h"

#include <dirent.h>
#include <ftw.h>
#include <inttypes.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define RUN_SECONDS_MAX 60

#if defined(__SANITIZE_ADDRESS__)
int __lsan_do_recoverable_leak_check(void);
#define LEAKS() __lsan_do_recoverable_leak_check()
#else
#define LEAKS() 0
#endif

static int remove_entry(const char *path, const struct stat *stat, int type, struct FTW *ftw) {
    (void)stat, (void)type, (void)ftw;
    return remove(path);
}

static uint32_t open_descriptors(void) {
    uint32_t count = 0;
    DIR *directory = opendir("/proc/self/fd");
    while (directory != NULL && readdir(directory) != NULL)
        count++;
    if (directory != NULL)
        closedir(directory);
    return count;
}

static void child_main(const struct alloc_scenario *scenario, struct alloc_fail_report *report,
    uint64_t nth, bool lasting, const char *path) {
    uint32_t descriptors = open_descriptors();
    int64_t mapped_bytes = alloc_fail_mapped_bytes();
    alarm(RUN_SECONDS_MAX);
    scenario->run(report, nth, lasting, path);
    if (open_descriptors() != descriptors && system("ls -l /proc/$PPID/fd >&2") == 0)
        abort();
    ALLOC_NEED(alloc_fail_mapped_bytes() == mapped_bytes);
    ALLOC_NEED(LEAKS() == 0);
    _exit(0);
}

static void show_site(uintptr_t site) {
    char command[256], program[128] = "";
    ssize_t bytes = readlink("/proc/self/exe", program, sizeof(program) - 1);
    snprintf(command, sizeof(command), "addr2line -pfie %s 0x%" PRIxPTR " >&2", program, site);
    if (bytes < 0 || system(command) != 0)
        fprintf(stderr, "at offset 0x%" PRIxPTR "\n", site);
}

static bool one_run(const struct alloc_scenario *scenario, struct alloc_fail_report *report,
    uint64_t nth, bool lasting) {
    const char *tmp = getenv("TMPDIR");
    char path[256];
    int status = 0;
    *report = (struct alloc_fail_report){0};
    snprintf(path, sizeof(path), "%s/kvloft-alloc-XXXXXX", tmp != NULL ? tmp : "/tmp");
    ALLOC_NEED(mkdtemp(path) != NULL);
    pid_t child = fork();
    if (child == 0)
        child_main(scenario, report, nth, lasting, path);
    ALLOC_NEED(child > 0 && waitpid(child, &status, 0) == child);
    nftw(path, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
    if (status == 0)
        return true;
    fprintf(stderr, "%s: allocation %" PRIu64 "%s failed, and then: %s %d; it was in ",
        scenario->name, nth, lasting ? " and all after it" : "",
        WIFSIGNALED(status) ? "signal" : "exit status",
        WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    show_site(report->site);
    return false;
}

static uint64_t runs_in_all;

static uint32_t sweep(const struct alloc_scenario *scenario, struct alloc_fail_report *report,
    uint64_t first, uint64_t stride, bool lasting) {
    uint32_t runs = 0, bad = 0;
    uint64_t nth = first;
    do {
        bad += !one_run(scenario, report, nth, lasting);
        runs++;
        runs_in_all++;
        nth += stride;
    } while (report->failed > 0 || nth <= report->calls);
    printf("%s: %s: %u runs of about %" PRIu64 " allocations, %u bad\n", scenario->name,
        lasting ? "all from one on" : "one by one", runs, (uint64_t)report->calls, bad);
    return bad;
}

int alloc_sweep(const struct alloc_scenario *scenario, int argc, char **argv) {
    uint64_t stride = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : (uint64_t)time(NULL);
    struct alloc_fail_report *report =
        mmap(NULL, sizeof(*report), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ALLOC_NEED(report != MAP_FAILED && stride > 0);
    printf("%s: stride %" PRIu64 ", seed %" PRIu64 "\n", scenario->name, stride, seed);
    if (!one_run(scenario, report, 0, false)) /* without a failure everything must be right */
        return 1;
    uint32_t bad = sweep(scenario, report, 1 + seed % stride, stride, false);
    bad += sweep(scenario, report, 1 + seed / 7 % stride, stride, true);
    printf("runs=%" PRIu64 " findings=%u\n", runs_in_all, bad);
    return bad == 0 ? 0 : 1;
}
