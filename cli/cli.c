#include "cli.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void print_error(const char *format, va_list args) {
    fputs("kvloft: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
}

int cli_error(const char *format, ...) {
    va_list args;
    va_start(args, format);
    print_error(format, args);
    va_end(args);
    return CLI_FAILED;
}

int cli_wrong(const char *format, ...) {
    va_list args;
    va_start(args, format);
    print_error(format, args);
    va_end(args);
    return CLI_USAGE;
}

static double now_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

struct kvl_client *cli_connect(const struct cli_options *options) {
    struct kvl_client_options client_options = {.address = options->address,
        .name = "kvloft",
        .tenant = options->tenant,
        .secret_file = options->secret_file};
    struct kvl_client *client = NULL;
    struct kvl_errmsg msg = {.text = ""};
    double deadline = now_seconds() + options->wait_seconds;
    kvl_err err;
    for (;;) {
        err = kvl_client_open(&client_options, &client, &msg);
        if (err == KVL_OK)
            return client;
        if (err == KVL_ERR_INVALID || err == KVL_ERR_VERSION || now_seconds() >= deadline)
            break;
        usleep(20000);
    }
    cli_error("%s%s", msg.text, err == KVL_ERR_NOTFOUND ? "; start kvloftd" : "");
    return NULL;
}

int cli_print_json(json_t *object) {
    int status = object ? json_dumpf(object, stdout, JSON_COMPACT) : -1;
    json_decref(object);
    if (status != 0 || putchar('\n') == EOF || fflush(stdout) != 0)
        return cli_error("cannot write the JSON output");
    return CLI_DONE;
}

kvl_err cli_wait_ticket(struct kvl_client *client, struct kvl_ticket ticket, const char *what,
    int done_value, struct kvl_progress *progress) {
    bool terminal = isatty(STDERR_FILENO) != 0;
    double start = now_seconds();
    bool shown = false;
    kvl_err err;
    memset(progress, 0, sizeof *progress);
    if (ticket.generation == 0)
        return KVL_OK;
    while ((err = kvl_ticket_wait(client, ticket, UINT32_MAX, 200, progress)) == KVL_ERR_TIMEOUT) {
        if (!terminal || now_seconds() - start < 1.0)
            continue;
        shown = true;
        if (done_value >= 0)
            fprintf(stderr, "\r%s: %" PRIu64 " blocks, %.0f s ", what, progress->values[done_value],
                now_seconds() - start);
        else
            fprintf(stderr, "\r%s: %.0f s ", what, now_seconds() - start);
    }
    if (shown)
        fputs("\r\033[K", stderr);
    return err == KVL_OK ? progress->status : err;
}

const char *cli_bytes(uint64_t bytes, char text[32]) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double value = (double)bytes;
    int unit = 0;
    while (value >= 1024.0 && unit < 4) {
        value /= 1024.0;
        unit++;
    }
    snprintf(text, 32, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
    return text;
}

const char *cli_duration(uint64_t nanoseconds, char text[32]) {
    uint64_t seconds = nanoseconds / 1000000000u;
    if (seconds >= 86400)
        snprintf(text, 32, "%" PRIu64 "d %" PRIu64 "h", seconds / 86400, seconds % 86400 / 3600);
    else if (seconds >= 3600)
        snprintf(text, 32, "%" PRIu64 "h %" PRIu64 "m", seconds / 3600, seconds % 3600 / 60);
    else if (seconds >= 60)
        snprintf(text, 32, "%" PRIu64 "m %" PRIu64 "s", seconds / 60, seconds % 60);
    else
        snprintf(text, 32, "%" PRIu64 "s", seconds);
    return text;
}

const char *cli_tiers(uint8_t mask, char text[32]) {
    static const char *const names[KVL_TIER_COUNT] = KVL_TIER_NAMES;
    text[0] = '\0';
    for (int tier = 0; tier < KVL_TIER_COUNT; tier++) {
        if (!(mask & (1u << tier)))
            continue;
        if (text[0])
            strcat(text, "+");
        strcat(text, names[tier]);
    }
    return text[0] ? text : strcpy(text, "-");
}

kvl_err cli_all_blocks(
    struct kvl_client *client, struct kvl_block_report **blocks, uint64_t *count) {
    enum { PAGE = 2048 };
    uint64_t cursor = 0, capacity = 0;
    *blocks = NULL;
    *count = 0;
    for (;;) {
        if (capacity - *count < PAGE) {
            capacity = capacity ? capacity * 2 : PAGE;
            struct kvl_block_report *larger = realloc(*blocks, capacity * sizeof **blocks);
            if (!larger)
                return KVL_ERR_NOMEM;
            *blocks = larger;
        }
        uint32_t got = 0;
        kvl_err err = kvl_list_blocks(client, &cursor, PAGE, *blocks + *count, &got);
        if (err != KVL_OK || got == 0)
            return err;
        *count += got;
    }
}
