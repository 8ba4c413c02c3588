#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "clock.h"

static json_t *session_json(const struct kvl_session_info *s) {
    char ns[2 * KVL_KEY_BYTES + 1];
    kvl_key_hex(&s->namespace_key, ns);
    return json_pack("{s:s,s:s,s:I,s:I,s:I,s:s,s:I}", "name", s->name, "namespace", ns, "tokens",
        (json_int_t)s->token_count, "tail_tokens", (json_int_t)s->tail_tokens, "holder_pid",
        (json_int_t)s->holder_pid, "holder", s->holder_name, "updated_ms",
        (json_int_t)(s->updated_wall_ns / 1000000));
}

static int list_sessions(const struct cli_options *options, struct kvl_client *client) {
    json_t *list = json_array();
    struct kvl_session_info session;
    kvl_err err;
    if (!options->json)
        printf("%-24s %10s %10s  %s\n", "session", "tokens", "age", "open in");
    for (uint32_t i = 0; (err = kvl_session_at(client, i, &session)) == KVL_OK; i++) {
        char age[32], holder[96] = "-";
        uint64_t now = kvl_clock_wall_ns();
        if (session.holder_pid)
            snprintf(holder, sizeof holder, "%s (pid %" PRIu32 ")", session.holder_name,
                session.holder_pid);
        if (options->json)
            json_array_append_new(list, session_json(&session));
        else
            printf("%-24s %10" PRIu64 " %10s  %s\n", session.name, session.token_count,
                cli_duration(
                    now > session.updated_wall_ns ? now - session.updated_wall_ns : 0, age),
                holder);
    }
    if (err != KVL_ERR_NOTFOUND) {
        json_decref(list);
        return cli_error("cannot list the sessions: %s", kvl_err_text(err));
    }
    if (options->json)
        return cli_print_json(json_pack("{s:o}", "sessions", list));
    json_decref(list);
    return CLI_DONE;
}

/* What going on with a session needs, and where it is; of all layer groups. */
struct needed {
    uint32_t blocks;
    uint32_t cached; /* leading ones of each chain */
    uint32_t in_tier[KVL_TIER_COUNT];
};

static kvl_err look_up(
    struct kvl_client *client, const struct cli_chain *chain, struct needed *needed) {
    uint32_t hits = 0;
    uint8_t *found = calloc(chain->count + 1u, 1);
    kvl_err err = KVL_ERR_NOMEM;
    if (found)
        err =
            chain->count > 0 ? kvl_lookup(client, chain->keys, chain->count, found, &hits) : KVL_OK;
    for (uint32_t i = 0; i < hits; i++)
        for (int tier = 0; tier < KVL_TIER_COUNT; tier++)
            needed->in_tier[tier] += (found[i] >> tier) & 1u;
    needed->blocks += chain->count;
    needed->cached += hits;
    free(found);
    return err;
}

static int show_session(
    const struct cli_options *options, struct kvl_client *client, const char *name) {
    static const char *const tier_names[KVL_TIER_COUNT] = KVL_TIER_NAMES;
    struct kvl_session_info session;
    struct cli_chains chains;
    struct needed needed = {0};
    uint32_t ignored = 0;
    int status = cli_chains_of_session(client, name, false, &chains);
    if (status != CLI_DONE)
        return status;
    kvl_err err = kvl_session_read(client, name, 0, 0, NULL, &ignored, &session);
    for (uint32_t i = 0; err == KVL_OK && i < chains.count; i++)
        err = look_up(client, &chains.chain[i], &needed);
    if (err != KVL_OK) {
        status = cli_error("cannot look at session '%s': %s", name, kvl_err_text(err));
    } else if (options->json) {
        json_t *object = session_json(&session);
        json_object_set_new(object, "blocks", json_integer(needed.blocks));
        json_object_set_new(object, "cached_blocks", json_integer(needed.cached));
        for (int tier = 0; tier < KVL_TIER_COUNT; tier++)
            json_object_set_new(object, tier_names[tier], json_integer(needed.in_tier[tier]));
        status = cli_print_json(object);
    } else {
        printf("session %s: %" PRIu64 " tokens, %" PRIu32 " blocks (%" PRIu32
               " of them a tail of %" PRIu32 " tokens)\n",
            session.name, session.token_count, needed.blocks,
            kvl_key_is_zero(&session.tail) ? 0u : chains.count, session.tail_tokens);
        printf("cached: %" PRIu32 " of %" PRIu32 " blocks", needed.cached, needed.blocks);
        for (int tier = 0; tier < KVL_TIER_COUNT; tier++)
            printf(", %" PRIu32 " on %s", needed.in_tier[tier], tier_names[tier]);
        putchar('\n');
        if (session.holder_pid)
            printf("open in %s (pid %" PRIu32 ")\n", session.holder_name, session.holder_pid);
    }
    cli_chains_free(&chains);
    return status;
}

static int drop_session(
    const struct cli_options *options, struct kvl_client *client, const char *name) {
    struct kvl_session_info session;
    kvl_err err = kvl_session_drop(client, name, &session);
    if (err == KVL_ERR_BUSY)
        return cli_error("session '%s' is open in %s (pid %" PRIu32 "); end that first", name,
            session.holder_name, session.holder_pid);
    if (err == KVL_ERR_NOTFOUND)
        return cli_error("there is no session '%s'; `kvloft session ls` lists them", name);
    if (err != KVL_OK)
        return cli_error("cannot drop session '%s': %s", name, kvl_err_text(err));
    return options->json ? cli_print_json(json_pack("{s:s}", "dropped", name)) : CLI_DONE;
}

static int run_session(const struct cli_options *options, int argc, char **argv) {
    bool list = argc == 1 && strcmp(argv[0], "ls") == 0;
    bool show = argc == 2 && strcmp(argv[0], "show") == 0;
    bool drop = argc == 2 && strcmp(argv[0], "drop") == 0;
    if (!list && !show && !drop)
        return cli_wrong("session takes: ls, show NAME or drop NAME");
    struct kvl_client *client = cli_connect(options);
    if (!client)
        return CLI_FAILED;
    int status = list   ? list_sessions(options, client)
                 : show ? show_session(options, client, argv[1])
                        : drop_session(options, client, argv[1]);
    kvl_client_close(client);
    return status;
}

const struct cli_command cli_session = {
    .name = "session",
    .summary = "list, show or drop conversations",
    .usage = "ls | show NAME | drop NAME [--connect ADDR] [--json]",
    .run = run_session,
};
