/* kvloftd.c - the daemon: one service on the main thread, until SIGTERM or SIGINT. */
#include <signal.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "daemon_options.h"
#include "service.h"

static struct kvl_service *volatile running;
static volatile sig_atomic_t is_asked_to_stop;

static void on_signal(int signal_number) {
    (void)signal_number;
    is_asked_to_stop = 1;
    if (running != NULL)
        kvl_service_interrupt(running);
}

static void catch_signals(void) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

static void log_sink(void *arg, enum kvl_log_level level, const char *line) {
    static const char *const names[] = {"ERROR", "WARN", "INFO", "DEBUG", "TRACE"};
    (void)arg;
    struct timespec now;
    struct tm parts;
    char stamp[32] = "";
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &parts);
    strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &parts);
    fprintf(stderr, "%s.%03ldZ %s %s\n", stamp, now.tv_nsec / 1000000, names[level], line);
}

static void on_ready(void *arg, struct kvl_service *service) {
    const struct daemon_options *options = arg;
    fprintf(
        stderr, "kvloftd: listening at %s, pid %ld\n", options->service.address, (long)getpid());
    running = service;
    if (is_asked_to_stop)
        kvl_service_interrupt(service);
}

int main(int argc, char **argv) {
    struct daemon_options options;
    int status = DAEMON_FAILED;
    if (daemon_options_parse(argc, argv, &options, &status)) {
        catch_signals();
        struct kvl_log *log = kvl_log_create(options.log_level, log_sink, NULL);
        struct kvl_errmsg msg = {{0}};
        kvl_err err = kvl_service_run(&options.service, log, on_ready, &options, &msg);
        running = NULL;
        status = err == KVL_OK ? DAEMON_DONE : DAEMON_FAILED;
        if (err != KVL_OK)
            fprintf(stderr, "kvloftd: %s\n", msg.text[0] != 0 ? msg.text : kvl_err_text(err));
        kvl_log_destroy(log);
    }
    daemon_options_deinit(&options);
    return status;
}
