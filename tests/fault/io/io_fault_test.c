/* io_fault_test.c - one call to the file system goes wrong, or all from one on; every kind of call,
 * at every place of a start, work and a stop.
 *
 * Never may the tier crash, hang or serve a wrong block. Afterwards, without faults, it starts, and
 * what was promised to be durable is there, what was promised to be cleared is not; in every second
 * run it has lost its index meanwhile, too, and the journal must have heard of the same.
 *
 *   io_fault_test [--runs N] [--seed N]     N drawn places
 *   io_fault_test --all 1                   every place, every fault
 *   io_fault_test --run N --seed N          one again (threads may order their calls otherwise) */
#include <errno.h>
#include <ftw.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "io_watch.h"
#include "power_loss_disk.h"
#include "power_loss_model.h"
#include "power_loss_work.h"

#define CAPACITY_BYTES (8ull << 20)
#define HANG_S 60u
#define STUCK_US 100000u

enum fault {
    FAULT_NONE,
    FAULT_EIO,      /* not done */
    FAULT_EIO_DONE, /* done all the same */
    FAULT_ENOSPC,   /* writes, allocations, creations */
    FAULT_SHORT,    /* half of a read or write */
    FAULT_FLIP,     /* a bit of what was read */
    FAULT_STUCK,    /* takes long */
    FAULT_DEAD,     /* EIO, and so is every later call */
    FAULT_FULL,     /* ENOSPC, and so is every later call that needs room */
    FAULTS
};
static const char *const fault_names[FAULTS] = {
    "none", "eio", "eio-done", "enospc", "short", "flip", "stuck", "dead", "full"};

static struct {
    pthread_mutex_t mutex;
    enum fault fault;
    uint64_t at, calls;
    char path[512]; /* of the call that went wrong */
    enum io_kind kind;
    uint64_t offset, bytes;
    uint64_t possible[FAULTS]; /* places, counted in a run without faults */
} injected = {.mutex = PTHREAD_MUTEX_INITIALIZER};

struct progress {
    volatile uint64_t run, runs, hits, refused;
    char failure[700];
};

static uint64_t runs = 200, seed, one = UINT64_MAX;
static bool all;
static struct progress *progress;
static char root[200];

/* ---- faults ------------------------------------------------------------------------------- */

static bool needs_room(const struct io_call *call) {
    return call->kind == IO_WRITE || call->kind == IO_ALLOCATE || call->kind == IO_MKDIR ||
           call->kind == IO_OPEN || call->kind == IO_RENAME;
}

static bool applies(enum fault fault, const struct io_call *call) {
    bool transfer = call->kind == IO_READ || call->kind == IO_WRITE;
    switch (fault) {
    case FAULT_ENOSPC:
    case FAULT_FULL:
        return needs_room(call);
    case FAULT_SHORT:
        return transfer && call->bytes >= 1024;
    case FAULT_FLIP:
        return call->kind == IO_READ;
    default:
        return true;
    }
}

/* Whether this call is one to go wrong. */
static bool is_hit(const struct io_call *call) {
    bool sticky = injected.fault == FAULT_DEAD || injected.fault == FAULT_FULL;
    bool hit = false;
    pthread_mutex_lock(&injected.mutex);
    for (enum fault fault = FAULT_EIO; injected.fault == FAULT_NONE && fault < FAULTS; fault++)
        injected.possible[fault] += applies(fault, call);
    if (injected.fault != FAULT_NONE && applies(injected.fault, call)) {
        injected.calls++;
        hit = injected.calls == injected.at || (sticky && injected.calls > injected.at);
        if (injected.calls == injected.at) {
            snprintf(injected.path, sizeof(injected.path), "%s", call->path);
            injected.kind = call->kind;
            injected.offset = call->offset;
            injected.bytes = call->bytes;
            progress->hits++;
        }
    }
    pthread_mutex_unlock(&injected.mutex);
    return hit;
}

/* In the middle of a part, mostly; a part that is left out whole is not there. */
static void halve(struct io_call *call) {
    uint64_t left = call->bytes / 2 / 512 * 512;
    int count = 0;
    for (; left > 0; count++) {
        struct iovec *part = &call->parts[count];
        part->iov_len = part->iov_len < left ? part->iov_len : left;
        left -= part->iov_len;
    }
    call->part_count = count;
}

static int before(struct io_call *call) {
    call->note = 0;
    if (call->kind == IO_UNMAP || !is_hit(call))
        return 0;
    switch (injected.fault) {
    case FAULT_EIO:
    case FAULT_DEAD:
        return EIO;
    case FAULT_ENOSPC:
    case FAULT_FULL:
        return ENOSPC;
    case FAULT_SHORT:
        halve(call);
        return 0;
    case FAULT_STUCK:
        usleep(STUCK_US);
        return 0;
    default:
        call->note = 1;
        return 0;
    }
}

static void after(struct io_call *call) {
    if (call->note == 0)
        return;
    if (injected.fault == FAULT_FLIP && call->result > 0) {
        ((uint8_t *)call->parts[0].iov_base)[call->result / 3] ^= 0x10;
    } else if (call->kind == IO_WRITE || call->kind == IO_SYNC) {
        call->result = -1;
        call->error = EIO;
    }
}

static struct io_watch watch = {.root = root, .reads = true, .before = before, .after = after};

static void inject(enum fault fault, uint64_t at) {
    injected.fault = fault;
    injected.at = at;
    injected.calls = 0;
    injected.path[0] = '\0';
    io_watch_set(&watch);
}

/* ---- a run -------------------------------------------------------------------------------- */

static void take_event(void *arg, uint32_t event, uint64_t a, uint64_t b) {
    const struct power_entry entry = {.kind = POWER_EVENT, .node = event, .offset = a, .bytes = b};
    power_model_take(arg, &entry);
}

/* A start, work, and a stop. NULL, or what no fault excuses. */
static const char *work_under_faults(struct power_work *work, const struct power_model *model,
    enum kvl_disk_codec codec, uint64_t random) {
    struct power_model before_open = *model;
    uint64_t seen, counted;
    power_work_expect_faults(work, true);
    const char *wrong = power_work_open(work, CAPACITY_BYTES, codec, &before_open);
    if (!power_work_is_open(work)) {
        progress->refused++;
        return wrong != NULL && strstr(wrong, "cannot be opened: ") == wrong &&
                       strlen(wrong) > strlen("cannot be opened: (IO)") + 4
                   ? NULL
                   : "the start failed without a word";
    }
    if (wrong == NULL) {
        wrong = power_work_verify(work, model, &random, 4);
        power_work_some(work, 50, &random);
        power_work_flush(work);
        power_work_some(work, 20, &random);
    }
    const char *close_wrong = power_work_close(work, true);
    wrong = wrong != NULL ? wrong : close_wrong;
    power_work_errors(work, &seen, &counted);
    return wrong == NULL && counted < seen ? "errors were not counted" : wrong;
}

static void lose_index(void) {
    char path[300];
    snprintf(path, sizeof(path), "%s/index/data.mdb", root);
    if (unlink(path) != 0 && errno != ENOENT)
        abort();
}

/* A bit that flips while a block is carried to another segment is found when the block is loaded,
 * or at once, in its header: then the block is given up, perhaps too late in the run to be told. */
static const char *look_afterwards(
    struct power_work *work, struct power_model *model, bool without_index) {
    struct power_model before_open = *model;
    uint64_t random = 1;
    io_watch_set(NULL);
    if (without_index)
        lose_index();
    power_work_expect_rebuild(work, without_index);
    power_work_expect_faults(work, injected.fault == FAULT_FLIP);
    power_work_excuse_missing(work, injected.fault == FAULT_FLIP);
    const char *wrong = power_work_open(work, CAPACITY_BYTES, KVL_DISK_CODEC_RAW, &before_open);
    if (wrong == NULL) {
        wrong = power_work_verify(work, model, &random, 1);
        power_work_some(work, 10, &random);
        const char *close_wrong = power_work_close(work, true);
        wrong = wrong != NULL ? wrong : close_wrong;
    }
    return wrong;
}

struct base {
    struct power_disk *disk;
    struct power_model model;
    struct power_work *work;
};

static const char *run_once(struct base *base, enum fault fault, uint64_t at, uint64_t random) {
    static const struct power_log nothing;
    static struct power_model model;
    power_disk_lost_sight(base->disk);
    power_disk_image_of_all(base->disk, &nothing);
    model = base->model;
    model.faults = model.index_lost = true;
    power_event_sink(take_event, &model);
    inject(fault, at);
    const char *wrong = work_under_faults(
        base->work, &model, (enum kvl_disk_codec)(power_random(&random) % 3), random);
    if (wrong == NULL)
        wrong = look_afterwards(base->work, &model, fault != FAULT_NONE && random % 2 == 1);
    power_work_expect_rebuild(base->work, false);
    io_watch_set(NULL);
    power_event_sink(NULL, NULL);
    return wrong;
}

/* A directory that is nearly full, so that what comes next reclaims. */
static const char *make_base(struct base *base) {
    uint64_t random = seed;
    base->work = power_work_create(root);
    power_event_sink(take_event, &base->model);
    const char *wrong = power_work_open(base->work, CAPACITY_BYTES, KVL_DISK_CODEC_RAW, NULL);
    if (wrong == NULL) {
        power_work_some(base->work, 400, &random);
        wrong = power_work_close(base->work, true);
    }
    power_event_sink(NULL, NULL);
    base->disk = power_disk_snapshot(root);
    return wrong != NULL ? wrong : run_once(base, FAULT_NONE, 0, seed);
}

/* ---- all runs ----------------------------------------------------------------------------- */

static uint64_t run_count(void) {
    uint64_t count = 0;
    for (enum fault fault = FAULT_EIO; fault < FAULTS; fault++)
        count += injected.possible[fault];
    return all ? count : runs;
}

/* The place of a run: its number, or drawn by it. */
static void place_of(uint64_t run, enum fault *fault, uint64_t *at) {
    uint64_t random = seed + run * UINT64_C(0x9e3779b97f4a7c15);
    *fault = FAULT_EIO;
    if (!all) {
        *fault = (enum fault)(1 + run % (FAULTS - 1));
        *at = 1 + power_random(&random) % injected.possible[*fault];
        return;
    }
    while (run >= injected.possible[*fault])
        run -= injected.possible[(*fault)++];
    *at = 1 + run;
}

static int run_all(void) {
    static struct base base;
    const char *wrong = make_base(&base);
    if (wrong != NULL)
        snprintf(progress->failure, sizeof(progress->failure), "without faults: %s", wrong);
    for (uint64_t run = 0; wrong == NULL && run < run_count(); run++) {
        enum fault fault;
        uint64_t at;
        if (one != UINT64_MAX && run != one)
            continue;
        place_of(run, &fault, &at);
        snprintf(progress->failure, sizeof(progress->failure), "%s at call %" PRIu64,
            fault_names[fault], at);
        progress->run = run;
        alarm(HANG_S);
        wrong = run_once(&base, fault, at, seed + run);
        progress->runs++;
        if (wrong != NULL)
            snprintf(progress->failure, sizeof(progress->failure),
                "%s at call %" PRIu64 " (%s %s at %" PRIu64 ", %" PRIu64 " bytes): %s",
                fault_names[fault], at, io_kind_name(injected.kind), injected.path, injected.offset,
                injected.bytes, wrong);
    }
    alarm(0);
    power_disk_destroy(base.disk);
    power_work_destroy(base.work);
    return wrong != NULL;
}

static int run_in_child(void) {
    int status = 0;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        exit(run_all());
    if (child < 0 || waitpid(child, &status, 0) != child)
        return 1;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    printf("FAILED run %" PRIu64 ": %s", progress->run, progress->failure);
    if (WIFSIGNALED(status))
        printf(": it %s", WTERMSIG(status) == SIGALRM ? "hangs" : strsignal(WTERMSIG(status)));
    else if (WEXITSTATUS(status) != 1)
        printf(": it exits with %d", WEXITSTATUS(status));
    printf("\nagain: io_fault_test --seed %" PRIu64 " --run %" PRIu64 "%s\n", seed, progress->run,
        all ? " --all 1" : "");
    return 1;
}

static int remove_entry(const char *path, const struct stat *file, int type, struct FTW *ftw) {
    (void)file, (void)type, (void)ftw;
    return remove(path);
}

static bool take_option(const char *name, const char *value) {
    char *end = NULL;
    uint64_t number = strtoull(value, &end, 10);
    if (end == value || *end != '\0')
        return false;
    if (strcmp(name, "--runs") == 0)
        runs = number;
    else if (strcmp(name, "--seed") == 0)
        seed = number;
    else if (strcmp(name, "--run") == 0)
        one = number;
    else if (strcmp(name, "--all") == 0)
        all = number != 0;
    else
        return false;
    return true;
}

int main(int argc, char **argv) {
    seed = (uint64_t)time(NULL);
    for (int i = 1; i < argc; i += 2) {
        if (i + 1 == argc || !take_option(argv[i], argv[i + 1])) {
            fprintf(stderr, "usage: %s [--runs N | --all 1] [--seed N] [--run N]\n", argv[0]);
            return 2;
        }
    }
    progress =
        mmap(NULL, sizeof(*progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    const char *tmp = getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "/tmp";
    snprintf(root, sizeof(root), "%s/kvloft-fault-XXXXXX",
        access("/dev/shm", W_OK) == 0 ? "/dev/shm" : tmp);
    if (mkdtemp(root) == NULL) {
        perror(root);
        return 1;
    }
    int failed = run_in_child();
    printf("seed=%" PRIu64 " runs=%" PRIu64 " faults=%" PRIu64 " starts_refused=%" PRIu64 "\n",
        seed, progress->runs, progress->hits, progress->refused);
    nftw(root, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
    return failed;
}
