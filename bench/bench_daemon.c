/* bench_daemon.c - see bench_daemon.h. */
#include "bench_daemon.h"

#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

double bench_now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

static int remove_entry(const char *path, const struct stat *stat, int type, struct FTW *ftw) {
    (void)stat, (void)type, (void)ftw;
    return remove(path);
}

void bench_daemon_fail(struct bench_daemon *daemon, const char *what, kvl_err err) {
    fprintf(stderr, "bench: %s: %s\n", what, kvl_err_text(err));
    bench_daemon_deinit(daemon);
    exit(1);
}

void bench_daemon_init(struct bench_daemon *daemon, const char *name) {
    char made[64], own[4096];
    snprintf(made, sizeof made, "kvl-bench-%s-XXXXXX", name);
    ssize_t bytes = readlink("/proc/self/exe", own, sizeof own - 1);
    char *folder = mkdtemp(made) ? realpath(made, NULL) : NULL;
    if (bytes <= 0 || !folder || strlen(folder) >= 90) {
        fputs("bench: needs a writable working directory with a short path\n", stderr);
        exit(2);
    }
    own[bytes] = '\0';
    *strrchr(own, '/') = '\0';
    snprintf(daemon->program, sizeof daemon->program, "%s/kvloftd", own);
    snprintf(daemon->folder, sizeof daemon->folder, "%s", folder);
    snprintf(daemon->address, sizeof daemon->address, "ipc://%s/sock", folder);
    snprintf(daemon->disk_path, sizeof daemon->disk_path, "%s/disk", folder);
    free(folder);
    if (access(daemon->program, X_OK) != 0) {
        fprintf(stderr, "bench: no kvloftd beside this program: build it first\n");
        bench_daemon_deinit(daemon);
        exit(2);
    }
}

void bench_daemon_start(struct bench_daemon *daemon) {
    fflush(NULL);
    daemon->pid = fork();
    if (daemon->pid != 0)
        return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (!freopen("/dev/null", "w", stderr))
        _exit(127);
    execl(daemon->program, daemon->program, "--listen", daemon->address, "--device",
        daemon->device ? daemon->device : "cpu", "--device-bytes", daemon->device_bytes,
        "--host-bytes", daemon->host_bytes, daemon->disk_bytes ? "--disk-path" : (char *)NULL,
        daemon->disk_path, "--disk-bytes", daemon->disk_bytes, (char *)NULL);
    _exit(127);
}

void bench_daemon_connect(struct bench_daemon *daemon) {
    struct kvl_client_options options = {.address = daemon->address, .timeout_ms = 600000};
    double deadline = bench_now_ms() + 20000;
    kvl_err err;
    while ((err = kvl_client_open(&options, &daemon->client, NULL)) != KVL_OK) {
        if (bench_now_ms() > deadline)
            bench_daemon_fail(daemon, "cannot connect to the daemon", err);
        usleep(500);
    }
}

void bench_daemon_end(struct bench_daemon *daemon, int number) {
    kvl_client_close(daemon->client);
    daemon->client = NULL;
    if (daemon->pid > 0) {
        kill(daemon->pid, number);
        waitpid(daemon->pid, NULL, 0);
    }
    daemon->pid = 0;
}

void bench_daemon_deinit(struct bench_daemon *daemon) {
    bench_daemon_end(daemon, SIGKILL);
    nftw(daemon->folder, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

uint64_t bench_process_bytes(pid_t pid, const char *line) {
    char path[64], text[256];
    unsigned long long kib = 0;
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    FILE *file = fopen(path, "re");
    while (file && fgets(text, sizeof text, file))
        if (strncmp(text, line, strlen(line)) == 0)
            kib = strtoull(text + strlen(line), NULL, 10);
    if (file)
        fclose(file);
    return kib * 1024;
}
