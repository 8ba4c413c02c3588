/* kvloft.c - the operator's tool: one subcommand a file, chosen here. */
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "address.h"
#include "cli.h"

static const struct cli_command *const commands[] = {&cli_status, &cli_ls, &cli_session, &cli_pin,
    &cli_unpin, &cli_prefetch, &cli_demote, &cli_clear, &cli_flush, &cli_verify, &cli_doctor,
    &cli_replay, &cli_bench};

enum {
    OPT_WAIT = 256,
    OPT_SECRET_FILE,
    OPT_TENANT,
    OPT_SESSION,
    OPT_NAMESPACE,
    OPT_TIER,
    OPT_POLICY,
    OPT_CAPACITY,
    OPT_DISK_PATH,
    OPT_ALL,
    OPT_REBUILD,
    OPT_KEYS,
    OPT_VERSION
};

static const struct option long_options[] = {{"connect", required_argument, NULL, 'c'},
    {"json", no_argument, NULL, 'j'}, {"help", no_argument, NULL, 'h'},
    {"secret-file", required_argument, NULL, OPT_SECRET_FILE},
    {"tenant", required_argument, NULL, OPT_TENANT}, {"version", no_argument, NULL, OPT_VERSION},
    {"wait", required_argument, NULL, OPT_WAIT}, {"session", required_argument, NULL, OPT_SESSION},
    {"namespace", required_argument, NULL, OPT_NAMESPACE},
    {"tier", required_argument, NULL, OPT_TIER}, {"policy", required_argument, NULL, OPT_POLICY},
    {"capacity-blocks", required_argument, NULL, OPT_CAPACITY},
    {"disk-path", required_argument, NULL, OPT_DISK_PATH}, {"all", no_argument, NULL, OPT_ALL},
    {"rebuild", no_argument, NULL, OPT_REBUILD}, {"keys", no_argument, NULL, OPT_KEYS},
    {NULL, 0, NULL, 0}};

static void print_help(FILE *out) {
    fputs("usage: kvloft COMMAND [--connect ADDR] [--json] ...\n\n", out);
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        fprintf(out, "  %-9s %s\n", commands[i]->name, commands[i]->summary);
    fputs("\n`kvloft COMMAND --help` says what a command takes. ADDR is ipc://PATH or\n"
          "tcp://HOST:PORT with --secret-file FILE; by default the daemon of this user. Where the\n"
          "daemon has tenants: --tenant NAME --secret-file FILE, or $KVLOFT_TENANT and\n"
          "$KVLOFT_SECRET_FILE. --wait SECONDS waits so long for a daemon that is just starting.\n"
          "Exit status: 0 done, 1 failed, 2 wrong usage.\n",
        out);
}

static bool parse_number(const char *text, double *value) {
    char *end;
    *value = strtod(text, &end);
    return end != text && *end == '\0' && *value >= 0.0 && *value <= 1e15;
}

/* False after a message for a bad value; the option itself was unknown when name is NULL. */
static bool apply_option(struct cli_options *options, int option, const char *value) {
    double number = 0;
    bool is_number = option == OPT_WAIT || option == OPT_CAPACITY;
    if (is_number && !parse_number(value, &number)) {
        cli_wrong("'%s' is not a number", value);
        return false;
    }
    switch (option) {
    case 'c':
        options->address = value;
        return true;
    case 'j':
        options->json = true;
        return true;
    case 'h':
        options->help = true;
        return true;
    case OPT_TENANT:
        options->tenant = value;
        return true;
    case OPT_SECRET_FILE:
        options->secret_file = value;
        return true;
    case OPT_WAIT:
        options->wait_seconds = number;
        return true;
    case OPT_SESSION:
        options->session = value;
        return true;
    case OPT_NAMESPACE:
        options->namespace_name = value;
        return true;
    case OPT_TIER:
        options->tier = value;
        return true;
    case OPT_POLICY:
        options->policy = value;
        return true;
    case OPT_CAPACITY:
        options->capacity_blocks = (uint64_t)number;
        return true;
    case OPT_DISK_PATH:
        options->disk_path = value;
        return true;
    case OPT_ALL:
        options->all = true;
        return true;
    case OPT_REBUILD:
        options->rebuild = true;
        return true;
    case OPT_KEYS:
        options->keys = true;
        return true;
    default: /* getopt has said what is wrong */
        return false;
    }
}

/* Options that are for single commands; the others are everybody's. */
struct given {
    const char *names[16];
    uint32_t count;
};

static void note(struct given *given, int option, const char *name) {
    bool is_everybodys = option == 'c' || option == 'j' || option == 'h' || option == OPT_WAIT ||
                         option == OPT_TENANT || option == OPT_SECRET_FILE;
    if (!is_everybodys && given->count < sizeof given->names / sizeof given->names[0])
        given->names[given->count++] = name;
}

/* A command takes what its usage names. */
static bool takes_all(const struct cli_command *command, const struct given *given) {
    for (uint32_t i = 0; i < given->count; i++) {
        char dashed[32];
        snprintf(dashed, sizeof dashed, "--%s", given->names[i]);
        if (!strstr(command->usage, dashed)) {
            cli_wrong(
                "%s takes no %s; see `kvloft %s --help`", command->name, dashed, command->name);
            return false;
        }
    }
    return true;
}

static bool check_address(const char *text) {
    struct kvl_address address;
    struct kvl_errmsg msg = {{0}};
    if (!text || kvl_address_parse(text, &address, &msg) == KVL_OK)
        return true;
    cli_wrong("--connect: %s", msg.text);
    return false;
}

static const struct cli_command *find_command(const char *name) {
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        if (strcmp(commands[i]->name, name) == 0)
            return commands[i];
    return NULL;
}

int main(int argc, char **argv) {
    struct cli_options options = {.policy = "lru"};
    struct given given = {.count = 0};
    int option, index = 0;
    argv[0] = "kvloft"; /* what getopt's messages begin with */
    while ((option = getopt_long(argc, argv, "hj", long_options, &index)) != -1) {
        if (option == OPT_VERSION) {
            puts("kvloft " KVL_VERSION);
            return CLI_DONE;
        }
        if (!apply_option(&options, option, optarg))
            return CLI_USAGE;
        note(&given, option, long_options[index].name);
    }
    if (optind == argc) {
        print_help(options.help ? stdout : stderr);
        return options.help ? CLI_DONE : CLI_USAGE;
    }
    const struct cli_command *command = find_command(argv[optind]);
    if (!command)
        return cli_wrong("there is no command '%s'; `kvloft --help` lists them", argv[optind]);
    if (options.help) {
        printf("usage: kvloft %s %s\n\n%s\n", command->name, command->usage, command->summary);
        return CLI_DONE;
    }
    if (!takes_all(command, &given) || !check_address(options.address))
        return CLI_USAGE;
    return command->run(&options, argc - optind - 1, argv + optind + 1);
}
