/* storm.c - kill -9 at random moments under load, and what is left after each of them.
 *
 *   storm roomy [--points N]    the daemon dies N times; it is reopened and everything is verified
 *                               each time; the disk has room for all, so what was durable is there
 *   storm tight [--points N]    likewise, and the disk is full: segments are reclaimed all the time
 *   storm engines [--points N]  N engines die in mid-lease under one daemon; one is stopped all the
 *                               while, and keeps what it has
 *   storm crowd [--points N]    N engines at once, reading and writing the same keys
 *
 * The seed is printed; --seed N gives it back (moments of death are random beyond it). The cap is
 * looked at all the while, as du counts. Ends with one line of figures; status 1: findings.
 *
 *   --bound-ms N      what was sealed longer ago must be on disk
 *   --until-found 1   no further than the first finding */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"
#include "storm.h"

#define MIB (1ull << 20)
#define MS 1000000ull
#define PERSIST_MS 20u
#define BOUND_MS 500u /* other work may have the machine: 25 times what was asked for */
#define SYNC_EVERY_MS 50u
#define TOLD_MS 1000u
#define POINTS_PER_FOLDER 25u
#define ENGINES_MAX 128u
#define HANG_MS 60000u

static void die(const char *what) {
    fprintf(stderr, "storm: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* ---- folder ---------------------------------------------------------------------------------- */

static uint64_t usage_bytes; /* nftw has no argument */

static int add_usage(const char *path, const struct stat *stat, int type, struct FTW *ftw) {
    (void)path, (void)ftw;
    usage_bytes += type == FTW_NS ? 0 : (uint64_t)stat->st_blocks * 512;
    return 0;
}

static void watch_cap(const struct storm *storm) {
    struct storm_totals *totals = &storm->witness->totals;
    usage_bytes = 0;
    nftw(storm->disk, add_usage, 8, FTW_PHYS);
    if (usage_bytes > storm->disk_bytes)
        storm_finding(storm, "the folder takes %llu bytes, the cap is %llu",
            (unsigned long long)usage_bytes, (unsigned long long)storm->disk_bytes);
    if (storm->tight && usage_bytes > atomic_load(&totals->used_bytes_max))
        atomic_store(&totals->used_bytes_max, usage_bytes);
}

static void sync_something(const struct storm *storm) {
    char path[192];
    snprintf(path, sizeof path, "%s/measure", storm->folder);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, path, sizeof path) != (ssize_t)sizeof path || fdatasync(fd) != 0)
        die(path);
    close(fd);
}

static void sleep_watching(struct storm *storm, uint64_t until_ns) {
    uint64_t synced_ns = 0;
    do {
        uint64_t begin_ns = kvl_clock_ns();
        watch_cap(storm);
        if (begin_ns >= synced_ns + SYNC_EVERY_MS * MS) {
            sync_something(storm);
            synced_ns = begin_ns;
        }
        usleep(2000);
        if (kvl_clock_ns() - begin_ns > storm->slow_ns)
            storm->slow_ns = kvl_clock_ns() - begin_ns;
    } while (kvl_clock_ns() < until_ns);
}

static int remove_entry(const char *path, const struct stat *stat, int type, struct FTW *ftw) {
    (void)stat, (void)type, (void)ftw;
    return remove(path);
}

static void folder_begin(struct storm *storm, bool tight) {
    const char *tmp = getenv("TMPDIR");
    snprintf(storm->folder, sizeof storm->folder, "%s/kvloft-storm-XXXXXX", tmp ? tmp : "/tmp");
    if (mkdtemp(storm->folder) == NULL)
        die(storm->folder);
    snprintf(storm->disk, sizeof storm->disk, "%s/disk", storm->folder);
    snprintf(storm->address, sizeof storm->address, "ipc://%s/run/d.sock", storm->folder);
    storm->tight = tight;
    storm->disk_bytes = (tight ? 16 : 512) * MIB;
    storm_witness_reset(storm->witness);
}

/* Kept when something was found. */
static void folder_end(const struct storm *storm, uint64_t findings_before) {
    char run[160];
    snprintf(run, sizeof run, "%s/run", storm->folder);
    if (rmdir(run) != 0)
        storm_finding(storm, "files are left in %s", run);
    if (atomic_load(&storm->witness->totals.findings) == findings_before)
        nftw(storm->folder, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

/* ---- processes ------------------------------------------------------------------------------- */

static pid_t start_daemon(const struct storm *storm) {
    char disk_bytes[32], persist[16], log_path[192];
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    if (pid > 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    snprintf(disk_bytes, sizeof disk_bytes, "%llu", (unsigned long long)storm->disk_bytes);
    snprintf(persist, sizeof persist, "%u", PERSIST_MS);
    snprintf(log_path, sizeof log_path, "%s/kvloftd.log", storm->folder);
    int log = open(log_path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    dup2(log, STDERR_FILENO);
    execl(KVL_STORM_DAEMON, "kvloftd", "--listen", storm->address, "--device", "cpu",
        "--device-bytes", "8M", "--host-bytes", "8M", "--disk-path", storm->disk, "--disk-bytes",
        disk_bytes, "--persist-ms", persist, (char *)NULL);
    _exit(127);
}

static void kill_daemon(struct storm *storm, pid_t pid) {
    int status = 0;
    storm->killed_ns = kvl_clock_ns();
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
        storm_finding(storm, "the daemon had ended by itself: status 0x%x", (unsigned)status);
    watch_cap(storm);
}

static bool ends_within(pid_t pid, uint32_t ms, int *status) {
    uint64_t end_ns = kvl_clock_ns() + ms * MS;
    while (waitpid(pid, status, WNOHANG) != pid) {
        if (kvl_clock_ns() > end_ns) {
            kill(pid, SIGKILL);
            waitpid(pid, status, 0);
            return false;
        }
        usleep(1000);
    }
    return true;
}

static void stop_daemon(const struct storm *storm, pid_t pid) {
    int status = 0;
    kill(pid, SIGTERM);
    if (!ends_within(pid, HANG_MS, &status))
        storm_finding(storm, "a clean stop hangs");
    else if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        storm_finding(storm, "a clean stop ended with status 0x%x", (unsigned)status);
    watch_cap(storm);
}

typedef void (*role_fn)(struct storm_worker *worker, uint64_t end_ns);

struct role {
    role_fn run;
    uint32_t pause_us;
    uint64_t end_ns;
};

static pid_t start_engine(const struct storm *storm, const struct role *role, uint64_t seed) {
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    if (pid > 0)
        return pid;
    struct storm_worker worker;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (!storm_connect(&worker, storm, seed, role->end_ns == 0))
        _exit(1);
    worker.pause_us = role->pause_us;
    role->run(&worker, role->end_ns);
    _exit(0);
}

/* One that outlives everything it could wait for is a finding. */
static void wait_engine(const struct storm *storm, pid_t pid) {
    int status = 0;
    if (!ends_within(pid, HANG_MS, &status))
        storm_finding(storm, "an engine hangs");
    else if (!WIFEXITED(status))
        storm_finding(storm, "an engine ended with status 0x%x", (unsigned)status);
}

static void as_check(struct storm_worker *worker, uint64_t end_ns) {
    (void)end_ns;
    storm_check(worker);
}

static void as_finish(struct storm_worker *worker, uint64_t end_ns) {
    (void)end_ns;
    storm_finish(worker);
}

static void as_measure(struct storm_worker *worker, uint64_t end_ns) {
    struct storm_witness *witness = worker->storm->witness;
    (void)end_ns;
    storm_measure(worker, &witness->slots_fresh, &witness->blocks_fresh);
}

static void as_lease_check(struct storm_worker *worker, uint64_t end_ns) {
    (void)end_ns;
    storm_check_leases(worker);
}

static void as_grab(struct storm_worker *worker, uint64_t end_ns) {
    (void)end_ns;
    storm_grab(worker);
}

static void as_stopped_check(struct storm_worker *worker, uint64_t end_ns) {
    (void)end_ns;
    storm_check_stopped(worker);
}

/* Runs one in a process of its own, to its end. */
static void run(struct storm *storm, role_fn role) {
    pid_t pid = start_engine(storm, &(struct role){.run = role}, storm_random(&storm->random));
    while (waitpid(pid, NULL, WNOHANG) == 0)
        sleep_watching(storm, 0);
}

/* ---- the daemon dies ------------------------------------------------------------------------- */

#define LOAD_ENGINES 4u

/* Until a flush or a clear has ended just now: what it said must hold from here on. */
static void sleep_until_told(const struct storm *storm) {
    uint32_t before = atomic_load(&storm->witness->told);
    uint64_t end_ns = kvl_clock_ns() + TOLD_MS * MS;
    while (atomic_load(&storm->witness->told) == before && kvl_clock_ns() < end_ns)
        usleep(100);
}

static void load(struct storm *storm, uint64_t run_ns, pid_t daemon) {
    uint32_t pause_us = storm->tight ? 500 : 8000;
    const struct role roles[LOAD_ENGINES] = {{storm_write, pause_us, UINT64_MAX},
        {storm_write, pause_us, UINT64_MAX}, {storm_read, 1000, UINT64_MAX},
        {storm_talk, 2000, UINT64_MAX}};
    pid_t engines[LOAD_ENGINES];
    for (uint32_t i = 0; i < LOAD_ENGINES; i++)
        engines[i] = start_engine(storm, &roles[i], storm_random(&storm->random));
    storm->slow_ns = 0;
    sleep_watching(storm, kvl_clock_ns() + run_ns);
    if (storm_below(&storm->random, 3) == 0)
        sleep_until_told(storm);
    kill_daemon(storm, daemon);
    for (uint32_t i = 0; i < LOAD_ENGINES; i++)
        wait_engine(storm, engines[i]);
}

static void point(struct storm *storm) {
    pid_t daemon = start_daemon(storm);
    if (storm_below(&storm->random, 8) ==
        0) { /* in mid-start, and not verified before it goes on */
        sleep_watching(storm, kvl_clock_ns() + storm_below(&storm->random, 25) * MS);
        uint64_t killed_ns = storm->killed_ns;
        kill_daemon(storm, daemon);
        storm->killed_ns = killed_ns;
        return;
    }
    run(storm, as_check);
    bool long_one = !storm->tight && storm_below(&storm->random, 32) == 0;
    load(
        storm, (long_one ? 2 * storm->bound_ns : 0) + storm_below(&storm->random, 80) * MS, daemon);
}

static bool may_go_on(const struct storm *storm) {
    return !storm->until_found || atomic_load(&storm->witness->totals.findings) == 0;
}

static void kill_folder(struct storm *storm, uint32_t points, bool tight) {
    uint64_t findings = atomic_load(&storm->witness->totals.findings);
    folder_begin(storm, tight);
    pid_t daemon = start_daemon(storm);
    run(storm, as_measure);
    stop_daemon(storm, daemon);
    uint32_t slots = storm->witness->slots_fresh, blocks = storm->witness->blocks_fresh;
    storm_witness_reset(storm->witness);
    storm->witness->slots_fresh = slots;
    storm->witness->blocks_fresh = blocks;
    for (uint32_t i = 0; i < points && may_go_on(storm); i++)
        point(storm);
    daemon = start_daemon(storm);
    if (may_go_on(storm)) {
        run(storm, as_check);
        run(storm, as_finish);
    }
    stop_daemon(storm, daemon);
    folder_end(storm, findings);
}

static void storm_kill(struct storm *storm, uint32_t points, bool tight) {
    while (points > 0 && may_go_on(storm)) {
        uint32_t here = points < POINTS_PER_FOLDER ? points : POINTS_PER_FOLDER;
        kill_folder(storm, here, tight);
        points -= here;
    }
}

static void storm_roomy(struct storm *storm, uint32_t points) {
    storm_kill(storm, points, false);
}

static void storm_tight(struct storm *storm, uint32_t points) {
    storm_kill(storm, points, true);
}

/* ---- engines die ----------------------------------------------------------------------------- */

static void wait_until_grabbed(const struct storm *storm) {
    uint64_t end_ns = kvl_clock_ns() + HANG_MS * MS;
    while (!atomic_load(&storm->witness->grabbed) && kvl_clock_ns() < end_ns)
        usleep(1000);
    if (!atomic_load(&storm->witness->grabbed))
        storm_finding(storm, "an engine got no lease");
}

static void storm_engines(struct storm *storm, uint32_t points) {
    enum { ALIVE = 12 };
    uint64_t findings = atomic_load(&storm->witness->totals.findings);
    pid_t engines[ALIVE] = {0};
    folder_begin(storm, false);
    pid_t daemon = start_daemon(storm);
    run(storm, as_measure);
    atomic_store(&storm->witness->next[STORM_SMALL], 256);
    const struct role grab = {as_grab, 0, 0}, read = {storm_read, 2000, UINT64_MAX};
    pid_t reader = start_engine(storm, &read, storm_random(&storm->random));
    pid_t stopped = start_engine(storm, &grab, storm_random(&storm->random));
    wait_until_grabbed(storm);
    kill(stopped, SIGSTOP);
    for (uint32_t i = 0; i < points + ALIVE; i++) {
        pid_t *engine = &engines[i % ALIVE];
        if (*engine != 0) {
            usleep(storm_below(&storm->random, 4000));
            kill(*engine, SIGKILL);
            waitpid(*engine, NULL, 0);
        }
        *engine = i < points ? start_engine(storm, &grab, storm_random(&storm->random)) : 0;
    }
    kill(reader, SIGKILL);
    waitpid(reader, NULL, 0);
    run(storm, as_stopped_check);
    kill(stopped, SIGKILL);
    waitpid(stopped, NULL, 0);
    run(storm, as_lease_check);
    run(storm, as_finish);
    stop_daemon(storm, daemon);
    folder_end(storm, findings);
}

static void storm_many(struct storm *storm, uint32_t points) {
    uint64_t findings = atomic_load(&storm->witness->totals.findings);
    pid_t engines[ENGINES_MAX];
    folder_begin(storm, false);
    points = points < ENGINES_MAX ? points : ENGINES_MAX;
    pid_t daemon = start_daemon(storm);
    run(storm, as_measure);
    const struct role crowd = {storm_crowd, 4000, kvl_clock_ns() + 3000 * MS};
    for (uint32_t i = 0; i < points; i++)
        engines[i] = start_engine(storm, &crowd, storm_random(&storm->random));
    for (uint32_t i = 0; i < points; i++)
        wait_engine(storm, engines[i]);
    run(storm, as_lease_check);
    run(storm, as_finish);
    stop_daemon(storm, daemon);
    folder_end(storm, findings);
}

/* ---- main ------------------------------------------------------------------------------------ */

static int usage(void) {
    fprintf(stderr, "usage: storm roomy|tight|engines|crowd [--points N] [--seed N] [--bound-ms N] "
                    "[--until-found 1]\n");
    return 2;
}

static int report(const char *name, uint32_t points, const struct storm_totals *totals) {
    printf("storm=%s points=%u restarts=%llu written=%llu read=%llu wrong=%llu lost=%llu "
           "max_lost_age_ms=%llu max_used_bytes=%llu findings=%llu\n",
        name, points, (unsigned long long)totals->restarts, (unsigned long long)totals->written,
        (unsigned long long)totals->read, (unsigned long long)totals->wrong,
        (unsigned long long)totals->lost, (unsigned long long)(totals->lost_age_max_ns / MS),
        (unsigned long long)totals->used_bytes_max, (unsigned long long)totals->findings);
    return totals->findings == 0 ? 0 : 1;
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*run)(struct storm *storm, uint32_t points);
        uint32_t points;
    } storms[] = {{"roomy", storm_roomy, 100}, {"tight", storm_tight, 100},
        {"engines", storm_engines, 1000}, {"crowd", storm_many, 100}};
    struct storm storm = {.seed = kvl_clock_wall_ns() / MS, .bound_ns = BOUND_MS * MS};
    uint32_t which = 0, points = 0, count = sizeof storms / sizeof storms[0];
    while (argc > 1 && which < count && strcmp(argv[1], storms[which].name) != 0)
        which++;
    if (argc < 2 || which == count || argc % 2 != 0)
        return usage();
    for (int i = 2; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--points") == 0)
            points = (uint32_t)strtoul(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--seed") == 0)
            storm.seed = strtoull(argv[i + 1], NULL, 10);
        else if (strcmp(argv[i], "--until-found") == 0)
            storm.until_found = strcmp(argv[i + 1], "1") == 0;
        else if (strcmp(argv[i], "--bound-ms") == 0)
            storm.bound_ns = strtoull(argv[i + 1], NULL, 10) * MS;
        else
            return usage();
    }
    storm.random = storm.seed;
    points = points > 0 ? points : storms[which].points;
    storm.witness = mmap(
        NULL, sizeof *storm.witness, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (storm.witness == MAP_FAILED)
        die("mmap");
    printf("storm=%s seed=%llu\n", storms[which].name, (unsigned long long)storm.seed);
    fflush(stdout);
    storms[which].run(&storm, points);
    return report(storms[which].name, points, &storm.witness->totals);
}
