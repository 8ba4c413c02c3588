/* kvloftd.c - the daemon: one service on the main thread, until SIGTERM or SIGINT.
 *
 * A stop has a bound: the service's drain gives up after --stop-seconds, and an alarm a little
 * later ends the process wherever it hangs. A second signal ends it at once, but not one that comes
 * with the first: a terminal, a shell and a supervisor often send each its own. */
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "daemon_options.h"
#include "notify.h"
#include "service.h"

#define STOP_SLACK_SECONDS 2u /* on top of --stop-seconds, for all that is not the drain */
#define SECOND_SIGNAL_NS UINT64_C(1000000000) /* a signal this much later is a second one */

/* What the handlers use. It is there before they are, and stays: a signal may come at the very end.
 */
static struct kvl_service *service;
static atomic_bool is_asked_to_stop, is_asked_to_reload;
static atomic_uint stop_seconds; /* 0: however long */

/* ---- signals --------------------------------------------------------------------------------- */

static void die(const char *text) {
    (void)!write(STDERR_FILENO, text, strlen(text));
    _exit(DAEMON_FAILED);
}

/* A GPU driver's threads take signals too: this may run on two at a time. */
static void on_stop(int signal_number) {
    static _Atomic uint64_t first_ns;
    uint64_t before_ns = 0;
    (void)signal_number;
    if (!atomic_compare_exchange_strong(&first_ns, &before_ns, kvl_clock_ns())) {
        if (kvl_clock_ns() - before_ns >= SECOND_SIGNAL_NS)
            die("kvloftd: ended at once by a second signal; what was not on disk yet is lost\n");
        return;
    }
    is_asked_to_stop = true;
    if (stop_seconds != 0)
        alarm(stop_seconds + STOP_SLACK_SECONDS);
    kvl_service_interrupt(service);
}

static void on_overdue(int signal_number) {
    (void)signal_number;
    die("kvloftd: did not stop within --stop-seconds, the disk hangs; what was not on it yet is "
        "lost\n");
}

static void on_reload(int signal_number) {
    (void)signal_number;
    is_asked_to_reload = true;
    kvl_service_interrupt(service);
}

static void catch_signals(void) {
    const struct {
        int number;
        void (*handler)(int signal_number);
    } caught[] = {{SIGTERM, on_stop}, {SIGINT, on_stop}, {SIGALRM, on_overdue}, {SIGHUP, on_reload},
        {SIGPIPE, SIG_IGN}};
    for (size_t i = 0; i < sizeof caught / sizeof caught[0]; ++i) {
        struct sigaction action = {.sa_handler = caught[i].handler, .sa_flags = SA_RESTART};
        sigemptyset(&action.sa_mask);
        sigaction(caught[i].number, &action, NULL);
    }
}

/* ---- log ------------------------------------------------------------------------------------- */

struct daemon_log {
    uint64_t dropped_lines;
};

static bool can_write(int fd) {
    struct pollfd poller = {.fd = fd, .events = POLLOUT};
    return poll(&poller, 1, 0) == 1 && (poller.revents & POLLOUT) != 0;
}

static void write_line(enum kvl_log_level level, const char *line) {
    static const char *const names[] = {"ERROR", "WARN", "INFO", "DEBUG", "TRACE"};
    struct timespec now;
    struct tm parts;
    char stamp[32] = "";
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &parts);
    strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &parts);
    fprintf(stderr, "%s.%03ldZ %s %s\n", stamp, now.tv_nsec / 1000000, names[level], line);
}

/* Whoever reads the log may have stopped doing so: then lines are dropped, nobody waits for it. */
static void log_sink(void *arg, enum kvl_log_level level, const char *line) {
    struct daemon_log *log = arg;
    if (!can_write(STDERR_FILENO)) {
        log->dropped_lines++;
        return;
    }
    if (log->dropped_lines > 0) {
        char text[64];
        snprintf(text, sizeof text, "event=log_lines_dropped count=%llu",
            (unsigned long long)log->dropped_lines);
        log->dropped_lines = 0;
        write_line(KVL_LOG_WARN, text);
    }
    write_line(level, line);
}

/* ---- running --------------------------------------------------------------------------------- */

struct daemon {
    int argc;
    char **argv;
    struct daemon_options options;
    struct kvl_log *log;
};

static void on_ready(void *arg, struct kvl_service *ready) {
    const struct daemon *daemon = arg;
    (void)ready;
    fprintf(stderr, "kvloftd: listening at %s, pid %ld\n", daemon->options.service.address,
        (long)getpid());
    kvl_notify("READY=1");
}

static void adopt(struct daemon *daemon, const struct daemon_options *fresh) {
    char names[256];
    daemon_options_need_restart(&daemon->options, fresh, names, sizeof names);
    if (names[0] != '\0')
        KVL_WARN(daemon->log, "event=reload_needs_restart options=\"%s\"", names + 1);
    kvl_log_set_level(daemon->log, fresh->log_level);
    kvl_service_adopt(service, &fresh->service);
    stop_seconds = fresh->service.stop_seconds;
    KVL_INFO(daemon->log, "event=reload config=%s", fresh->config);
}

static void reload(struct daemon *daemon) {
    struct daemon_options fresh;
    int status;
    if (daemon->options.config == NULL) {
        KVL_WARN(daemon->log, "event=reload_failed reason=\"there is no --config FILE\"");
        return;
    }
    if (daemon_options_parse(daemon->argc, daemon->argv, &fresh, &status))
        adopt(daemon, &fresh);
    else
        KVL_WARN(daemon->log, "event=reload_failed config=%s: the old settings stay",
            daemon->options.config);
    daemon_options_deinit(&fresh);
}

static bool goes_on(void *arg, struct kvl_service *interrupted) {
    (void)interrupted;
    if (atomic_exchange(&is_asked_to_reload, false))
        reload(arg);
    if (is_asked_to_stop)
        kvl_notify("STOPPING=1");
    return !is_asked_to_stop;
}

static kvl_err serve(struct daemon *daemon, struct kvl_errmsg *msg) {
    daemon->options.service.goes_on = goes_on;
    kvl_err err = kvl_service_create(&daemon->options.service, daemon->log, &service, msg);
    if (err != KVL_OK)
        return err;
    stop_seconds = daemon->options.service.stop_seconds;
    catch_signals();
    return kvl_service_run(service, on_ready, daemon, msg);
}

static int run(struct daemon *daemon) {
    struct daemon_log sink = {0};
    struct kvl_errmsg msg = {{0}};
    daemon->log = kvl_log_create(daemon->options.log_level, log_sink, &sink);
    kvl_err err = serve(daemon, &msg);
    if (err == KVL_OK)
        KVL_INFO(daemon->log, "event=stopped");
    else
        fprintf(stderr, "kvloftd: %s\n", msg.text[0] != 0 ? msg.text : kvl_err_text(err));
    if (err == KVL_ERR_TIMEOUT)
        _exit(DAEMON_FAILED);
    kvl_log_destroy(daemon->log);
    return err == KVL_OK ? DAEMON_DONE : DAEMON_FAILED;
}

int main(int argc, char **argv) {
    struct daemon daemon = {.argc = argc, .argv = argv};
    int status = DAEMON_FAILED;
    argv[0] = "kvloftd"; /* what getopt's messages begin with */
    if (daemon_options_parse(argc, argv, &daemon.options, &status))
        status = run(&daemon);
    daemon_options_deinit(&daemon.options);
    return status;
}
