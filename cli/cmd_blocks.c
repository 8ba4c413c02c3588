/* cmd_blocks.c - pin, unpin, prefetch, demote, clear, flush, verify: commands that act on blocks.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "disk/disk_tier.h"

/* The chains that `--session NAME` or one KEY names; all: also what a session's window has left. */
static int chosen_chains(const struct cli_options *options, struct kvl_client *client, char **argv,
    bool all, struct cli_chains *chains) {
    if (options->session)
        return cli_chains_of_session(client, options->session, all, chains);
    return cli_chain_of_block(client, argv[0], chains);
}

static uint32_t blocks_of(const struct cli_chains *chains) {
    uint32_t blocks = 0;
    for (uint32_t i = 0; i < chains->count; i++)
        blocks += chains->chain[i].count;
    return blocks;
}

static bool names_chains(const struct cli_options *options, int argc) {
    return options->session ? argc == 0 : argc == 1;
}

static kvl_err pin_chains(
    struct kvl_client *client, const struct cli_chains *chains, bool pinned, uint32_t *changed) {
    kvl_err err = KVL_OK;
    for (uint32_t i = 0; err == KVL_OK && i < chains->count; i++) {
        const struct cli_chain *chain = &chains->chain[i];
        uint32_t of_chain = 0;
        if (chain->count > 0)
            err = kvl_pin(client, chain->keys, chain->count, pinned, &of_chain);
        *changed += of_chain;
    }
    return err;
}

static int run_pinning(const struct cli_options *options, int argc, char **argv, bool pinned) {
    const char *verb = pinned ? "pin" : "unpin";
    struct cli_chains chains = {0};
    uint32_t changed = 0;
    if (!names_chains(options, argc))
        return cli_wrong("%s takes --session NAME or one KEY (the start of a block's key)", verb);
    struct kvl_client *client = cli_connect(options);
    if (!client)
        return CLI_FAILED;
    /* What the window has left behind since may be pinned still. */
    int status = chosen_chains(options, client, argv, !pinned, &chains);
    if (status == CLI_DONE) {
        kvl_err err = pin_chains(client, &chains, pinned, &changed);
        if (err != KVL_OK)
            status = cli_error("cannot %s: %s", verb, kvl_err_text(err));
        else if (options->json)
            status = cli_print_json(json_pack("{s:I}", "blocks", (json_int_t)changed));
        else
            printf("%sned %" PRIu32 " of %" PRIu32 " blocks\n", verb, changed, blocks_of(&chains));
    }
    cli_chains_free(&chains);
    kvl_client_close(client);
    return status;
}

static int run_pin(const struct cli_options *options, int argc, char **argv) {
    return run_pinning(options, argc, argv, true);
}

static int run_unpin(const struct cli_options *options, int argc, char **argv) {
    return run_pinning(options, argc, argv, false);
}

static int tier_by_name(const char *name) {
    static const char *const names[KVL_TIER_COUNT] = KVL_TIER_NAMES;
    for (int tier = 0; tier < KVL_TIER_COUNT; tier++)
        if (name && strcmp(name, names[tier]) == 0)
            return tier;
    return -1;
}

/* A slow verb whose only result is its ticket. */
static int finish_ticket(struct kvl_client *client, kvl_err err, struct kvl_ticket ticket,
    const char *what, int done_value, struct kvl_progress *progress) {
    memset(progress, 0, sizeof *progress);
    if (err == KVL_OK)
        err = cli_wait_ticket(client, ticket, what, done_value, progress);
    return err == KVL_OK ? CLI_DONE : cli_error("%s failed: %s", what, kvl_err_text(err));
}

typedef kvl_err (*move_verb)(struct kvl_client *client, enum kvl_tier_kind target,
    const struct kvl_key *keys, uint32_t count, struct kvl_ticket *ticket);

/* prefetch and demote: the same words, the other direction. */
static int run_move(const struct cli_options *options, int argc, char **argv, const char *name,
    move_verb verb, int tier) {
    struct cli_chains chains = {0};
    struct kvl_progress progress = {.status = KVL_OK};
    uint64_t moved = 0;
    if (!names_chains(options, argc))
        return cli_wrong("%s takes --session NAME or one KEY (the start of a block's key)", name);
    struct kvl_client *client = cli_connect(options);
    if (!client)
        return CLI_FAILED;
    int status = chosen_chains(options, client, argv, false, &chains);
    for (uint32_t i = 0; status == CLI_DONE && i < chains.count; i++) {
        const struct cli_chain *chain = &chains.chain[i];
        struct kvl_ticket ticket = {0, 0};
        if (chain->count == 0)
            continue;
        kvl_err err = verb(client, (enum kvl_tier_kind)tier, chain->keys, chain->count, &ticket);
        status = finish_ticket(client, err, ticket, name, 0, &progress);
        moved += progress.values[0];
    }
    if (status == CLI_DONE && options->json)
        status = cli_print_json(json_pack(
            "{s:I,s:I}", "blocks", (json_int_t)blocks_of(&chains), "moved", (json_int_t)moved));
    else if (status == CLI_DONE)
        printf("%" PRIu64 " of %" PRIu32 " blocks moved\n", moved, blocks_of(&chains));
    cli_chains_free(&chains);
    kvl_client_close(client);
    return status;
}

static int run_prefetch(const struct cli_options *options, int argc, char **argv) {
    int tier = options->tier ? tier_by_name(options->tier) : KVL_TIER_DEVICE;
    if (tier != KVL_TIER_DEVICE && tier != KVL_TIER_HOST)
        return cli_wrong("prefetch --tier is device or host");
    return run_move(options, argc, argv, "prefetch", kvl_prefetch, tier);
}

static int run_demote(const struct cli_options *options, int argc, char **argv) {
    int tier = tier_by_name(options->tier);
    if (tier != KVL_TIER_HOST && tier != KVL_TIER_DISK)
        return cli_wrong("demote needs --tier host or --tier disk");
    return run_move(options, argc, argv, "demote", kvl_demote, tier);
}

static bool is_named(const struct kvl_namespace_info *info, const char *name) {
    char hex[2 * KVL_KEY_BYTES + 1];
    kvl_key_hex(&info->key, hex);
    return strncmp(hex, name, strlen(name)) == 0 || strcmp(info->label, name) == 0;
}

struct namespaces {
    struct kvl_namespace_info found[CLI_CHAINS_MAX];
    uint32_t count;
};

/* Finds a model's namespaces by its label, or one namespace by the start of its key. */
static int namespaces_by_name(
    struct kvl_client *client, const char *name, struct namespaces *spaces) {
    struct kvl_namespace_info info;
    uint32_t matches = 0, of_model = 0;
    for (uint32_t i = 0; kvl_client_namespace_at(client, i, &info) == KVL_OK; i++)
        if (is_named(&info, name) && (matches++ == 0 || info.geometry.layer_group == 0))
            spaces->found[0] = info; /* that of the first layer group, where there are more */
    spaces->count = 1;
    if (matches == 0)
        return cli_error("there is no namespace %s; see `kvloft ls`", name);
    if (matches == 1)
        return CLI_DONE;
    info = spaces->found[0];
    kvl_err err = cli_namespaces_of(client, &info.key, spaces->found, &spaces->count);
    for (uint32_t i = 0; err == KVL_OK && i < spaces->count; i++)
        of_model += is_named(&spaces->found[i], name);
    if (err == KVL_OK && of_model == matches)
        return CLI_DONE;
    return cli_error("more than one namespace is named %s; give more digits of its key", name);
}

/* `clear --tenant NAME` clears that tenant. Who asks is the tenant itself where it brings its
 * secret, else whoever the environment names: an operator. */
static struct kvl_client *connect_to_clear(
    const struct cli_options *options, enum kvl_clear_scope scope) {
    struct cli_options as = *options;
    bool secret = getenv("KVLOFT_SECRET_FILE") || getenv("KVLOFT_SECRET");
    bool brings_secret = options->secret_file || (secret && !getenv("KVLOFT_TENANT"));
    if (scope == KVL_CLEAR_TENANT && !brings_secret)
        as.tenant = NULL;
    return cli_connect(&as);
}

static int explain_clear(
    kvl_err err, enum kvl_clear_scope scope, const struct cli_options *options) {
    if (scope == KVL_CLEAR_TENANT && err == KVL_ERR_NOTFOUND)
        return cli_error("there is no tenant '%s' that you may clear; `kvloft status` lists them",
            options->tenant);
    if (scope == KVL_CLEAR_TENANT)
        return cli_error("a session of tenant '%s' is open; end the program that `kvloft session "
                         "ls` names first",
            options->tenant);
    if (err == KVL_ERR_NOTFOUND)
        return cli_error(
            "there is no session '%s'; `kvloft session ls` lists them", options->session);
    return cli_error("session '%s' is open; end the program that `kvloft session ls` names first",
        options->session);
}

static int run_clear(const struct cli_options *options, int argc, char **argv) {
    struct namespaces spaces = {.count = 1};
    uint64_t cleared = 0;
    (void)argv;
    int scopes =
        (options->all ? 1 : 0) + (options->session ? 1 : 0) + (options->namespace_name ? 1 : 0);
    if (argc > 0 || scopes > 1 || (scopes == 0 && !options->tenant))
        return cli_wrong(
            "clear takes one of --all, --session NAME, --namespace NAME, --tenant NAME");
    enum kvl_clear_scope scope = options->all              ? KVL_CLEAR_ALL
                                 : options->session        ? KVL_CLEAR_SESSION
                                 : options->namespace_name ? KVL_CLEAR_NAMESPACE
                                                           : KVL_CLEAR_TENANT;
    struct kvl_client *client = connect_to_clear(options, scope);
    if (!client)
        return CLI_FAILED;
    int status = options->namespace_name
                     ? namespaces_by_name(client, options->namespace_name, &spaces)
                     : CLI_DONE;
    for (uint32_t i = 0; status == CLI_DONE && i < spaces.count; i++) {
        const char *name = scope == KVL_CLEAR_TENANT ? options->tenant : options->session;
        struct kvl_ticket ticket = {0, 0};
        struct kvl_progress progress = {.status = KVL_OK};
        kvl_err err = kvl_clear(client, scope, spaces.found[i].id, name, &ticket);
        if (err == KVL_ERR_NOTFOUND || err == KVL_ERR_BUSY)
            status = explain_clear(err, scope, options);
        else
            status = finish_ticket(client, err, ticket, "clear", 0, &progress);
        cleared += progress.values[0];
    }
    if (status == CLI_DONE && options->json)
        status = cli_print_json(json_pack("{s:I}", "cleared_blocks", (json_int_t)cleared));
    else if (status == CLI_DONE)
        printf("%" PRIu64 " block%s cleared%s\n", cleared, cleared == 1 ? "" : "s",
            options->session            ? "; the session is forgotten"
            : scope == KVL_CLEAR_TENANT ? "; the tenant's sessions are forgotten"
                                        : "");
    kvl_client_close(client);
    return status;
}

static int run_flush(const struct cli_options *options, int argc, char **argv) {
    struct kvl_ticket ticket = {0, 0};
    struct kvl_progress progress;
    (void)argv;
    if (argc > 0)
        return cli_wrong("flush takes no words");
    struct kvl_client *client = cli_connect(options);
    if (!client)
        return CLI_FAILED;
    kvl_err err = kvl_flush(client, &ticket);
    int status = finish_ticket(client, err, ticket, "flush", -1, &progress);
    if (status == CLI_DONE && options->json)
        status = cli_print_json(json_pack("{s:b}", "durable", 1));
    kvl_client_close(client);
    return status;
}

/* Offline: the folder is locked meanwhile, so a running daemon is named instead. */
static int run_rebuild(const struct cli_options *options) {
    const struct kvl_disk_options disk = {.path = options->disk_path, .holder_name = "verify"};
    struct kvl_disk_rebuilt rebuilt;
    struct kvl_errmsg msg = {""};
    if (options->disk_path == NULL)
        return cli_wrong("verify --rebuild needs --disk-path DIR, and no daemon on it");
    if (kvl_disk_rebuild(&disk, &rebuilt, &msg) != KVL_OK)
        return cli_error("%s", msg.text);
    int status = CLI_DONE;
    if (options->json)
        status = cli_print_json(json_pack("{s:I,s:I,s:I,s:I,s:b}", "blocks",
            (json_int_t)rebuilt.blocks, "bad", (json_int_t)rebuilt.unreadable, "left_out",
            (json_int_t)rebuilt.left_out, "catalog_records", (json_int_t)rebuilt.catalog_records,
            "journal_whole", rebuilt.whole));
    else
        printf("%" PRIu64 " blocks and %" PRIu64 " records of the catalog found, %" PRIu64
               " blocks unreadable, %" PRIu64 " left out for want of room in the index%s\n",
            rebuilt.blocks, rebuilt.catalog_records, rebuilt.unreadable, rebuilt.left_out,
            rebuilt.whole ? "" : "; the journal is damaged, so that no block could be believed");
    if (status == CLI_DONE && (rebuilt.unreadable + rebuilt.left_out > 0 || !rebuilt.whole))
        status = CLI_FAILED;
    return status;
}

static int run_verify(const struct cli_options *options, int argc, char **argv) {
    struct kvl_ticket ticket = {0, 0};
    struct kvl_progress progress;
    (void)argv;
    if (argc > 0)
        return cli_wrong("verify takes no words");
    if (options->rebuild)
        return run_rebuild(options);
    if (options->disk_path)
        return cli_wrong("verify --disk-path goes with --rebuild; without it a daemon is asked");
    struct kvl_client *client = cli_connect(options);
    if (!client)
        return CLI_FAILED;
    kvl_err err = kvl_verify(client, &ticket);
    int status = finish_ticket(client, err, ticket, "verify", 0, &progress);
    if (status == CLI_DONE && options->json)
        status = cli_print_json(json_pack("{s:I,s:I}", "blocks", (json_int_t)progress.values[0],
            "bad", (json_int_t)progress.values[1]));
    else if (status == CLI_DONE)
        printf("%" PRIu64 " blocks checked, %" PRIu64 " bad%s\n", progress.values[0],
            progress.values[1], progress.values[1] ? " (dropped)" : "");
    if (status == CLI_DONE && progress.values[1] > 0)
        status = CLI_FAILED;
    kvl_client_close(client);
    return status;
}

#define KEY_HELP "KEY: how a block's key begins (`kvloft ls`): that block and those before it"

const struct cli_command cli_pin = {
    .name = "pin",
    .summary = "keep the blocks of a session or of a chain from being evicted",
    .usage = "--session NAME | KEY [--connect ADDR] [--json]\n" KEY_HELP,
    .run = run_pin,
};
const struct cli_command cli_unpin = {
    .name = "unpin",
    .summary = "take a pin back",
    .usage = "--session NAME | KEY [--connect ADDR] [--json]\n" KEY_HELP,
    .run = run_unpin,
};
const struct cli_command cli_prefetch = {
    .name = "prefetch",
    .summary = "bring a session or a chain into a faster tier",
    .usage = "--session NAME | KEY [--tier device|host] [--connect ADDR] [--json]\n" KEY_HELP,
    .run = run_prefetch,
};
const struct cli_command cli_demote = {
    .name = "demote",
    .summary = "push a session or a chain down, to free faster memory",
    .usage = "--session NAME | KEY --tier host|disk [--connect ADDR] [--json]\n" KEY_HELP,
    .run = run_demote,
};
const struct cli_command cli_clear = {
    .name = "clear",
    .summary = "forget blocks, for good; --session, --tenant: conversations too",
    .usage = "--all | --session NAME | --namespace NAME | --tenant NAME [--connect ADDR] [--json]",
    .run = run_clear,
};
const struct cli_command cli_flush = {
    .name = "flush",
    .summary = "return when every sealed block is durable",
    .usage = "[--connect ADDR] [--json]",
    .run = run_flush,
};
const struct cli_command cli_verify = {
    .name = "verify",
    .summary = "read every block of every tier and check it",
    .usage = "[--connect ADDR] [--json]; exit 1 when bad blocks were found\n"
             "       kvloft verify --rebuild --disk-path DIR [--json]: the index anew from the "
             "segments, without a daemon",
    .run = run_verify,
};
