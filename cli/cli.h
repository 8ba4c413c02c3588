/* cli.h - what the subcommands of `kvloft` share: options, connecting, output.
 *
 * Exit status of every command: 0 done, 1 failed, 2 wrong usage; errors are one line on stderr. */
#ifndef KVL_CLI_H
#define KVL_CLI_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "kvloft.h"

enum { CLI_DONE = 0, CLI_FAILED = 1, CLI_USAGE = 2 };

struct cli_options {
    const char *address;     /* NULL: the default */
    const char *tenant;      /* who asks; for clear alone, whose blocks; NULL: $KVLOFT_TENANT */
    const char *secret_file; /* the tenant's, or of a tcp:// address; NULL: from the environment */
    bool json;
    bool help;
    double wait_seconds;
    /* The rest is for single commands; each says in its usage what it takes. */
    const char *session;
    const char *namespace_name;
    const char *tier;
    const char *policy;
    uint64_t capacity_blocks;
    const char *disk_path;
    bool all;
    bool rebuild;
    bool keys;
};

struct cli_command {
    const char *name;
    const char *summary; /* one line of the command list */
    const char *usage;   /* what follows `kvloft NAME` */
    /* argv[0] is the first word that is no option. */
    int (*run)(const struct cli_options *options, int argc, char **argv);
};

extern const struct cli_command cli_status, cli_ls, cli_session, cli_pin, cli_unpin, cli_prefetch,
    cli_demote, cli_clear, cli_flush, cli_verify, cli_doctor, cli_replay, cli_bench;

__attribute__((format(printf, 1, 2))) int cli_error(const char *format, ...); /* CLI_FAILED */
__attribute__((format(printf, 1, 2))) int cli_wrong(const char *format, ...); /* CLI_USAGE */

/* Connects, or prints why not and returns NULL. */
struct kvl_client *cli_connect(const struct cli_options *options);
/* Prints object on one line to stdout and frees it. CLI_FAILED when there was no memory for it. */
int cli_print_json(json_t *object);

/* Waits for a ticket's end, with a progress line on a terminal when it takes over a second.
 * done_value is the index of the value that counts up, or -1. */
kvl_err cli_wait_ticket(struct kvl_client *client, struct kvl_ticket ticket, const char *what,
    int done_value, struct kvl_progress *progress);

/* "1.4 GiB", "12.3 MiB", "512 B" */
const char *cli_bytes(uint64_t bytes, char text[32]);
/* "3d 4h", "12m 5s", "0s" */
const char *cli_duration(uint64_t nanoseconds, char text[32]);
/* "device+disk", or "-" */
const char *cli_tiers(uint8_t mask, char text[32]);

#define CLI_CHAINS_MAX 8u /* layer groups of a model */
struct cli_chain {
    struct kvl_key *keys;
    uint32_t count;
};
struct cli_chains {
    struct cli_chain chain[CLI_CHAINS_MAX];
    uint32_t count;
};
/* The chains of keys that a session stands for, one for each layer group: from the first block that
 * going on with it needs, to its tail, or, when all are wanted, from its first block. Or the one of
 * a block named by the start of its hex key, from the first block to it. Print errors themselves;
 * the caller frees the chains. */
int cli_chains_of_session(
    struct kvl_client *client, const char *name, bool all, struct cli_chains *chains);
int cli_chain_of_block(struct kvl_client *client, const char *hex, struct cli_chains *chains);
void cli_chains_free(struct cli_chains *chains); /* zeroed is fine */
/* The namespaces of a model's layer groups, by that of the first: up to CLI_CHAINS_MAX of them go
 * to found. Errors: NOTFOUND, those of the client library. */
kvl_err cli_namespaces_of(struct kvl_client *client, const struct kvl_key *first,
    struct kvl_namespace_info *found, uint32_t *count);
/* All blocks of the table. Caller frees. */
kvl_err cli_all_blocks(
    struct kvl_client *client, struct kvl_block_report **blocks, uint64_t *count);

#endif
