/* schedule_test.c - random schedules: engines fill, seal, restore, demote and die at any moment; no
 * restored block ever holds a wrong byte, and nothing is lost at the end.
 *
 *   schedule_test cpu|cuda        where the daemon's device tier is; 77: no GPU
 *
 * A real daemon with tiers so small that everything moves all the time, and four engine processes
 * (schedule_engine.h). In one schedule of four the engine is killed with SIGKILL somewhere, and
 * replaced. Then: no lease is left, verify finds no bad block, and after a clear every slot can be
 * had.
 *
 * KVL_SEED repeats a run's schedules (not its timing); KVL_SCHEDULES says how many;
 * KVL_GPU_SMALL=1: few, and nobody is killed, for checkers that follow processes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "block_pattern.h"
#include "schedule_engine.h"

enum { ENGINES = 4, SKIPPED = 77, SCHEDULES = 200, SCHEDULES_SMALL = 4, NONE = -1 };
#define SLOTS 24u /* of device and host: less than the engines may hold at once */
#define KILL_WITHIN_NS UINT64_C(60000000)
#define PATIENCE_NS UINT64_C(30000000000)

struct process {
    pid_t pid;    /* 0: none */
    int to, from; /* its stdin and stdout */
    int64_t schedule;
    uint64_t kill_ns; /* 0: it may live */
};

static struct {
    const char *device;
    bool is_small;
    uint64_t seed, random;
    uint32_t schedules, next, done, killed;
    char folder[64], address[128], counts_path[96];
    pid_t daemon;
    struct process engines[ENGINES];
    struct schedule_counts *counts;
} test;

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t number_of(const char *variable, uint64_t otherwise) {
    const char *text = getenv(variable);
    return text != NULL ? strtoull(text, NULL, 10) : otherwise;
}

/* ---- processes ------------------------------------------------------------------------------ */

static void start_daemon(void) {
    char bytes[32], disk[96], log[96];
    snprintf(bytes, sizeof bytes, "%llu", (unsigned long long)(SLOTS * SCHEDULE_BLOCK_BYTES));
    snprintf(disk, sizeof disk, "%s/disk", test.folder);
    snprintf(log, sizeof log, "%s/log", test.folder);
    test.daemon = fork();
    if (test.daemon != 0)
        return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (freopen(log, "w", stderr) == NULL)
        _exit(127);
    execl(KVL_TEST_DAEMON, "kvloftd", "--listen", test.address, "--device", test.device,
        "--device-bytes", bytes, "--host-bytes", bytes, "--disk-path", disk, "--disk-bytes", "512M",
        "--persist-ms", "10", (char *)NULL);
    _exit(127);
}

static struct kvl_client *connect_to_daemon(void) {
    const struct kvl_client_options options = {.address = test.address, .name = "schedule test"};
    const uint64_t end_ns = now_ns() + PATIENCE_NS;
    struct kvl_client *client = NULL;
    struct kvl_errmsg msg = {""};
    while (kvl_client_open(&options, &client, &msg) != KVL_OK) {
        if (waitpid(test.daemon, NULL, WNOHANG) != 0 || now_ns() > end_ns) {
            test.daemon = 0;
            fail_msg("no daemon: %s", msg.text);
        }
        usleep(2000);
    }
    return client;
}

/* A program of its own: a fork of this one would share the client library's threads, and lack them.
 */
static void engine_main(int in, int out) {
    char seed[32];
    snprintf(seed, sizeof seed, "%llu", (unsigned long long)test.seed);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (dup2(in, STDIN_FILENO) < 0 || dup2(out, STDOUT_FILENO) < 0)
        _exit(127);
    execl("/proc/self/exe", "schedule_test", "engine", test.device, test.address, seed,
        test.counts_path, (char *)NULL);
    _exit(127);
}

static int engine_program(char **words) {
    int fd = open(words[4], O_RDWR | O_CLOEXEC);
    void *counts =
        mmap(NULL, sizeof(struct schedule_counts), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    const struct schedule_options options = {.device = words[1],
        .address = words[2],
        .seed = strtoull(words[3], NULL, 10),
        .counts = counts};
    close(fd);
    return counts != MAP_FAILED ? schedule_engine_run(&options) : 1;
}

static void start_engine(struct process *engine) {
    int to[2], from[2];
    assert_int_equal(pipe2(to, O_CLOEXEC), 0);
    assert_int_equal(pipe2(from, O_CLOEXEC), 0);
    fflush(NULL);
    const pid_t pid = fork();
    if (pid == 0)
        engine_main(to[0], from[1]);
    assert_true(pid > 0);
    close(to[0]);
    close(from[1]);
    *engine = (struct process){.pid = pid, .to = to[1], .from = from[0], .schedule = NONE};
}

/* Its exit status; 128 and the signal when it was killed. */
static int end_engine(struct process *engine) {
    int status = 0;
    close(engine->to);
    waitpid(engine->pid, &status, 0);
    close(engine->from);
    *engine = (struct process){.schedule = NONE};
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* ---- schedules ------------------------------------------------------------------------------ */

/* A fresh one has a GPU to open first. */
static void give_schedule(struct process *engine, bool is_fresh) {
    const bool opens_gpu = is_fresh && strcmp(test.device, "cuda") == 0;
    const uint64_t within_ns = KILL_WITHIN_NS * (opens_gpu ? 10 : 1);
    const uint32_t number = test.next++;
    engine->schedule = number;
    if (!test.is_small && block_word(test.seed, number) % 4 == 0)
        engine->kill_ns = now_ns() + 1 + block_word(test.random++, 1) % within_ns;
    if (write(engine->to, &number, sizeof number) != (ssize_t)sizeof number)
        fail_msg("an engine ended before schedule %u: see above", number);
}

static void take_answer(struct process *engine) {
    uint32_t number = 0;
    if (read(engine->from, &number, sizeof number) != (ssize_t)sizeof number) {
        const int64_t schedule = engine->schedule;
        fail_msg("the engine of schedule %lld ended with status %d: see above", (long long)schedule,
            end_engine(engine));
    }
    assert_int_equal(number, engine->schedule);
    engine->schedule = NONE;
    engine->kill_ns = 0;
    test.done++;
}

static void kill_engine(struct process *engine) {
    kill(engine->pid, SIGKILL);
    assert_int_equal(end_engine(engine), 128 + SIGKILL); /* else it had found a fault */
    test.killed++;
    test.done++;
}

/* A process at a time, so that one that waits for its driver keeps nobody. */
static void serve(struct process *engine, bool has_answer) {
    if (has_answer)
        take_answer(engine);
    else if (engine->kill_ns != 0 && now_ns() >= engine->kill_ns)
        kill_engine(engine);
    if (test.next == test.schedules || engine->schedule != NONE)
        return;
    const bool is_fresh = engine->pid == 0;
    if (is_fresh)
        start_engine(engine);
    give_schedule(engine, is_fresh);
}

static void run_schedules(void) {
    const uint64_t end_ns = now_ns() + 8 * PATIENCE_NS;
    for (int i = 0; i < ENGINES; i++)
        test.engines[i] = (struct process){.to = -1, .from = -1, .schedule = NONE};
    while (test.done < test.schedules) {
        struct pollfd polled[ENGINES];
        for (int i = 0; i < ENGINES; i++)
            polled[i] = (struct pollfd){
                .fd = test.engines[i].pid != 0 ? test.engines[i].from : -1, .events = POLLIN};
        assert_true(poll(polled, ENGINES, 1) >= 0);
        for (int i = 0; i < ENGINES; i++)
            serve(&test.engines[i], (polled[i].revents & (POLLIN | POLLHUP)) != 0);
        if (now_ns() > end_ns)
            fail_msg("%u of %u schedules in %llu s", test.done, test.schedules,
                (unsigned long long)(8 * PATIENCE_NS / 1000000000u));
    }
    for (int i = 0; i < ENGINES; i++)
        if (test.engines[i].pid != 0)
            assert_int_equal(end_engine(&test.engines[i]), 0);
}

/* ---- the end -------------------------------------------------------------------------------- */

static bool has_nothing(const struct kvl_store_report *report) {
    return report->leases == 0 && report->tiers[KVL_TIER_DEVICE].used_bytes == 0 &&
           report->tiers[KVL_TIER_HOST].used_bytes == 0;
}

static bool has_no_lease(const struct kvl_store_report *report) {
    return report->leases == 0;
}

/* What ends with a process, and with transfers, ends behind. */
static void wait_until(struct kvl_client *client, const char *what,
    bool (*holds)(const struct kvl_store_report *report)) {
    const uint64_t end_ns = now_ns() + PATIENCE_NS;
    struct kvl_store_report report;
    struct kvl_daemon_info info;
    for (;;) {
        assert_int_equal(kvl_stats(client, &report, &info), KVL_OK);
        if (holds(&report))
            return;
        if (now_ns() > end_ns)
            fail_msg("%s: %llu leases, %llu bytes of the device and %llu of the host in use", what,
                (unsigned long long)report.leases,
                (unsigned long long)report.tiers[KVL_TIER_DEVICE].used_bytes,
                (unsigned long long)report.tiers[KVL_TIER_HOST].used_bytes);
        usleep(2000);
    }
}

static struct kvl_progress wait_for(
    struct kvl_client *client, kvl_err err, struct kvl_ticket ticket) {
    struct kvl_progress progress = {.status = KVL_OK};
    assert_int_equal(err, KVL_OK);
    if (ticket.generation != 0)
        assert_int_equal(kvl_ticket_wait(client, ticket, UINT32_MAX, 30000, &progress), KVL_OK);
    assert_int_equal(progress.status, KVL_OK);
    return progress;
}

static void every_slot_can_be_had(struct kvl_client *client) {
    struct kvl_namespace_info space;
    struct kvl_key no_keys[SLOTS] = {{{0}}};
    struct kvl_allocated slots[SLOTS];
    struct kvl_ticket ticket;
    assert_int_equal(schedule_namespace(client, &space), KVL_OK);
    assert_int_equal(
        kvl_alloc(client, space.id, KVL_TIER_DEVICE, no_keys, SLOTS, false, slots, &ticket),
        KVL_OK);
    assert_int_equal(slots[SLOTS - 1].status, KVL_ALLOC_GRANTED);
}

static void nothing_is_lost(struct kvl_client *client) {
    struct kvl_ticket ticket;
    wait_until(client, "leases of dead engines", has_no_lease);
    kvl_err err = kvl_verify(client, &ticket);
    const struct kvl_progress verified = wait_for(client, err, ticket);
    print_message("verified: %llu blocks\n", (unsigned long long)verified.values[0]);
    assert_true(verified.values[0] > 0);
    assert_int_equal(verified.values[1], 0);
    err = kvl_clear(client, KVL_CLEAR_ALL, 0, NULL, &ticket);
    wait_for(client, err, ticket);
    wait_until(client, "slots after a clear", has_nothing);
    every_slot_can_be_had(client);
}

/* A run in which nothing moved has shown nothing. */
static void assert_enough_was_done(void) {
    const struct schedule_counts *counts = test.counts;
    print_message("%u schedules, %u engines killed; sealed %llu; restored %llu, %llu, %llu; layers "
                  "%llu; unrestored %llu; refused %llu; given up %llu\n",
        test.done, test.killed, (unsigned long long)counts->sealed,
        (unsigned long long)counts->restored[KVL_TIER_DEVICE],
        (unsigned long long)counts->restored[KVL_TIER_HOST],
        (unsigned long long)counts->restored[KVL_TIER_DISK],
        (unsigned long long)counts->layers_checked, (unsigned long long)counts->unrestored,
        (unsigned long long)counts->refused, (unsigned long long)counts->canceled);
    assert_true(counts->sealed > 0 && counts->restored[KVL_TIER_DEVICE] > 0);
    if (test.is_small)
        return;
    assert_true(counts->restored[KVL_TIER_HOST] > 0 && counts->restored[KVL_TIER_DISK] > 0);
    assert_true(counts->layers_checked > 0 && test.killed > 0);
}

static void no_restored_block_has_a_wrong_byte(void **state) {
    (void)state;
    print_message("KVL_SEED=%llu\n", (unsigned long long)test.seed);
    start_daemon();
    struct kvl_client *client = connect_to_daemon();
    run_schedules();
    assert_enough_was_done();
    nothing_is_lost(client);
    kvl_client_close(client);
    int status = 0;
    kill(test.daemon, SIGTERM);
    waitpid(test.daemon, &status, 0);
    test.daemon = 0;
    assert_int_equal(status, 0);
}

static void show_log(void) {
    char command[128];
    snprintf(command, sizeof command, "tail -n 30 %s/log >&2", test.folder);
    if (system(command) != 0)
        fprintf(stderr, "no log\n");
}

static int tear_down(void **state) {
    char command[128];
    (void)state;
    for (int i = 0; i < ENGINES; i++)
        if (test.engines[i].pid != 0) {
            kill(test.engines[i].pid, SIGKILL);
            (void)end_engine(&test.engines[i]);
        }
    if (test.daemon != 0) { /* the test has failed */
        kill(test.daemon, SIGKILL);
        waitpid(test.daemon, NULL, 0);
        show_log();
    }
    snprintf(command, sizeof command, "rm -rf %s", test.folder);
    return system(command);
}

static bool make_counts(void) {
    snprintf(test.counts_path, sizeof test.counts_path, "%s/counts", test.folder);
    int fd = open(test.counts_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, sizeof *test.counts) != 0)
        return false;
    test.counts = mmap(NULL, sizeof *test.counts, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return test.counts != MAP_FAILED;
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(no_restored_block_has_a_wrong_byte, tear_down)};
    if (argc == 6 && strcmp(argv[1], "engine") == 0)
        return engine_program(argv + 1);
    test.device = argc > 1 ? argv[1] : "cpu";
    if (strcmp(test.device, "cuda") == 0 && access("/dev/nvidiactl", F_OK) != 0) {
        printf("skipped: no NVIDIA GPU here\n");
        return SKIPPED;
    }
    signal(SIGPIPE, SIG_IGN);
    test.is_small = getenv("KVL_GPU_SMALL") != NULL;
    test.seed = number_of("KVL_SEED", (uint64_t)time(NULL));
    test.random = now_ns();
    test.schedules =
        (uint32_t)number_of("KVL_SCHEDULES", test.is_small ? SCHEDULES_SMALL : SCHEDULES);
    snprintf(test.folder, sizeof test.folder, "/tmp/kvloft-schedule-XXXXXX");
    if (mkdtemp(test.folder) == NULL || !make_counts())
        return 1;
    snprintf(test.address, sizeof test.address, "ipc://%s/socket", test.folder);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
