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

static kvl_err find_namespace(
    struct kvl_client *client, const struct kvl_key *key, struct kvl_namespace_info *info) {
    for (uint32_t index = 0;; index++) {
        kvl_err err = kvl_client_namespace_at(client, index, info);
        if (err != KVL_OK || kvl_key_equal(&info->key, key))
            return err;
    }
}

/* All token ids of a session; the caller frees. */
static kvl_err read_session_tokens(
    struct kvl_client *client, const char *name, uint32_t **tokens, struct kvl_session_info *info) {
    enum { PIECE = 65536 };
    uint32_t got = 0;
    kvl_err err = kvl_session_read(client, name, 0, 0, NULL, &got, info);
    if (err != KVL_OK)
        return err;
    *tokens = malloc((size_t)(info->token_count + 1) * sizeof **tokens);
    if (!*tokens)
        return KVL_ERR_NOMEM;
    uint64_t total = info->token_count;
    for (uint64_t at = 0; at < total; at += got) {
        uint32_t wanted = (uint32_t)(total - at < PIECE ? total - at : PIECE);
        err = kvl_session_read(client, name, at, wanted, *tokens + at, &got, info);
        if (err != KVL_OK)
            return err;
        if (got == 0) { /* it was cut meanwhile: what we have is the session now */
            info->token_count = at;
            break;
        }
    }
    return KVL_OK;
}

int cli_chain_of_session(
    struct kvl_client *client, const char *name, struct kvl_key **keys, uint32_t *count) {
    struct kvl_session_info session;
    struct kvl_namespace_info ns;
    uint32_t *tokens = NULL;
    *keys = NULL;
    if (strchr(name, '/'))
        return cli_error("session '%s' is a tenant's; ask as that tenant for its blocks: --tenant, "
                         "--secret-file",
            name);
    kvl_err err = read_session_tokens(client, name, &tokens, &session);
    if (err == KVL_OK)
        err = find_namespace(client, &session.namespace_key, &ns);
    if (err == KVL_OK) {
        uint32_t block_tokens = ns.geometry.block_tokens;
        uint64_t whole = block_tokens ? session.token_count / block_tokens : 0;
        *keys = malloc((size_t)(whole + 1) * sizeof **keys);
        err = *keys ? kvl_key_chain(&ns.key, tokens, session.token_count, block_tokens, *keys)
                    : KVL_ERR_NOMEM;
        *count = (uint32_t)whole;
        if (err == KVL_OK && !kvl_key_is_zero(&session.tail))
            (*keys)[(*count)++] = session.tail;
    }
    free(tokens);
    if (err == KVL_ERR_NOTFOUND)
        return cli_error("there is no session '%s'; `kvloft session ls` lists them", name);
    if (err != KVL_OK)
        return cli_error("cannot read session '%s': %s", name, kvl_err_text(err));
    return CLI_DONE;
}

static const struct kvl_block_report *block_by_key(
    const struct kvl_block_report *blocks, uint64_t count, const struct kvl_key *key) {
    for (uint64_t i = 0; i < count; i++)
        if (kvl_key_equal(&blocks[i].key, key))
            return &blocks[i];
    return NULL;
}

static int block_by_prefix(const struct kvl_block_report *blocks, uint64_t count, const char *hex,
    const struct kvl_block_report **found) {
    size_t digits = strlen(hex);
    *found = NULL;
    for (uint64_t i = 0; i < count; i++) {
        char text[2 * KVL_KEY_BYTES + 1];
        kvl_key_hex(&blocks[i].key, text);
        if (strncmp(text, hex, digits) != 0)
            continue;
        if (*found)
            return cli_error("more than one block's key begins with %s; give more digits", hex);
        *found = &blocks[i];
    }
    return *found ? CLI_DONE : cli_error("no block's key begins with %s; see `kvloft ls`", hex);
}

int cli_chain_of_block(
    struct kvl_client *client, const char *hex, struct kvl_key **keys, uint32_t *count) {
    struct kvl_block_report *blocks = NULL;
    const struct kvl_block_report *block = NULL;
    uint64_t block_count = 0;
    *keys = NULL;
    *count = 0;
    kvl_err err = cli_all_blocks(client, &blocks, &block_count);
    int status = err == KVL_OK ? block_by_prefix(blocks, block_count, hex, &block)
                               : cli_error("cannot list the blocks: %s", kvl_err_text(err));
    if (status == CLI_DONE) {
        const struct kvl_block_report *at;
        uint32_t length = 0;
        for (at = block; at; at = block_by_key(blocks, block_count, &at->parent))
            length++;
        *keys = malloc(length * sizeof **keys);
        if (!*keys)
            status = cli_error("out of memory");
        for (at = block; at && *keys; at = block_by_key(blocks, block_count, &at->parent))
            (*keys)[--length] = at->key, (*count)++;
    }
    free(blocks);
    return status;
}
