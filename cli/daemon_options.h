/* daemon_options.h - what kvloftd was asked to do: long options, or a JSON file of the same names.
 *
 *   { "listen": "ipc:///run/kvloft.sock", "device-bytes": "2G", "host-bytes": 4294967296 }
 *
 * An option on the command line goes before the file's. The file can be read again while the daemon
 * runs: log-level, persist-ms and stop-seconds change then, the others with the next start. */
#ifndef KVL_DAEMON_OPTIONS_H
#define KVL_DAEMON_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>

#include "service.h"
#include "tenants_file.h"

enum { DAEMON_DONE = 0, DAEMON_FAILED = 1, DAEMON_USAGE = 2 };

struct daemon_options {
    struct kvl_service_options service; /* strings live in `texts` and argv */
    const char *config;                 /* NULL: none */
    const char *disk_option;            /* given, and of no use without a disk_path; NULL: none */
    char address[128];
    enum kvl_log_level log_level;
    const char *tenants_path; /* NULL: none */
    struct kvl_tenants tenants;
    char *texts[16]; /* owned copies out of the file */
    unsigned text_count;
};

/* True: go on. False: end with *status; what there is to say was printed. deinit in any case. */
bool daemon_options_parse(int argc, char **argv, struct daemon_options *options, int *status);
void daemon_options_deinit(struct daemon_options *options);

/* Writes the names of the options that differ and need a restart, each with a blank before it; ""
 * when there are none. */
void daemon_options_need_restart(const struct daemon_options *now,
    const struct daemon_options *fresh, char *names, size_t names_bytes);

#endif
