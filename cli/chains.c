/* chains.c - the chains of keys that a command acts on: those of a session, or the one that leads
 * to a block. */
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "session.h"

void cli_chains_free(struct cli_chains *chains) {
    for (uint32_t i = 0; i < chains->count; i++)
        free(chains->chain[i].keys);
    chains->count = 0;
}

/* ---- of a session ------------------------------------------------------------------------- */

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
    if (info->token_count > total) /* it grew meanwhile: what was read is a beginning of it */
        info->token_count = total;
    return KVL_OK;
}

/* What the session's tokens are in whole blocks, and where among them its tail stands. */
struct extent {
    const struct kvl_session_info *session;
    const uint32_t *tokens;
    uint32_t block_tokens;
    uint64_t whole;
    struct kvl_session_place tail_place;
    bool has_tail;
};

static kvl_err extent_of(const struct kvl_session_info *session, const uint32_t *tokens,
    const struct kvl_namespace_info *ns, struct extent *extent) {
    uint32_t block_tokens = ns->geometry.block_tokens;
    *extent = (struct extent){.session = session, .tokens = tokens, .block_tokens = block_tokens};
    if (block_tokens == 0)
        return KVL_OK;
    extent->whole = session->token_count / block_tokens;
    extent->tail_place.parent = session->namespace_key;
    kvl_err err = kvl_session_tail_place(session, tokens, block_tokens, &extent->tail_place);
    extent->has_tail = err == KVL_OK;
    return err == KVL_ERR_NOTFOUND ? KVL_OK : err;
}

/* A window group's blocks before this one are left behind when the session goes on. */
static uint64_t first_needed(const struct extent *extent, const struct kvl_namespace_info *ns) {
    return kvl_block_first_seen(&ns->geometry, extent->whole * extent->block_tokens);
}

static kvl_err tail_key(const struct extent *extent, const struct kvl_namespace_info *ns,
    const struct kvl_key *keys, struct kvl_key *key) {
    uint64_t before = extent->tail_place.whole;
    return kvl_key_of_block(before ? &keys[before - 1] : &ns->key,
        extent->tokens + before * extent->block_tokens, extent->session->tail_tokens,
        (struct kvl_bytes){0}, key);
}

/* Whole blocks from `first` on, then the tail. */
static kvl_err add_chain(struct cli_chains *chains, const struct extent *extent,
    const struct kvl_namespace_info *ns, uint64_t first) {
    struct kvl_key *keys = malloc((size_t)(extent->whole + 1) * sizeof *keys);
    if (!keys)
        return KVL_ERR_NOMEM;
    struct cli_chain *chain = &chains->chain[chains->count++];
    *chain = (struct cli_chain){.keys = keys, .count = (uint32_t)(extent->whole - first)};
    kvl_err err = kvl_key_chain(
        &ns->key, extent->tokens, extent->whole * extent->block_tokens, extent->block_tokens, keys);
    if (err == KVL_OK && extent->has_tail) {
        err = tail_key(extent, ns, keys, &keys[extent->whole]);
        chain->count++;
    }
    memmove(keys, keys + first, chain->count * sizeof *keys);
    return err;
}

kvl_err cli_namespaces_of(struct kvl_client *client, const struct kvl_key *first,
    struct kvl_namespace_info *found, uint32_t *count) {
    struct kvl_namespace_info ns;
    kvl_err err = KVL_OK;
    *count = 0;
    for (uint32_t i = 0; *count < CLI_CHAINS_MAX; i++) {
        err = kvl_client_namespace_at(client, i, &ns);
        if (err != KVL_OK)
            break;
        if (kvl_key_is_of_model(&ns.key, &ns.geometry, first))
            found[(*count)++] = ns;
    }
    if (err == KVL_ERR_NOTFOUND && *count > 0)
        return KVL_OK;
    return err;
}

int cli_chains_of_session(
    struct kvl_client *client, const char *name, bool all, struct cli_chains *chains) {
    struct kvl_session_info session;
    struct kvl_namespace_info spaces[CLI_CHAINS_MAX];
    uint32_t *tokens = NULL, count = 0;
    *chains = (struct cli_chains){0};
    if (strchr(name, '/'))
        return cli_error("session '%s' is a tenant's; ask as that tenant for its blocks: --tenant, "
                         "--secret-file",
            name);
    kvl_err err = read_session_tokens(client, name, &tokens, &session);
    if (err == KVL_OK)
        err = cli_namespaces_of(client, &session.namespace_key, spaces, &count);
    for (uint32_t i = 0; err == KVL_OK && i < count; i++) {
        struct extent extent;
        err = extent_of(&session, tokens, &spaces[i], &extent);
        if (err == KVL_OK && extent.block_tokens != 0)
            err =
                add_chain(chains, &extent, &spaces[i], all ? 0 : first_needed(&extent, &spaces[i]));
    }
    free(tokens);
    if (err == KVL_OK)
        return CLI_DONE;
    cli_chains_free(chains);
    if (err == KVL_ERR_NOTFOUND)
        return cli_error("there is no session '%s'; `kvloft session ls` lists them", name);
    return cli_error("cannot read session '%s': %s", name, kvl_err_text(err));
}

/* ---- of a block --------------------------------------------------------------------------- */

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

int cli_chain_of_block(struct kvl_client *client, const char *hex, struct cli_chains *chains) {
    struct kvl_block_report *blocks = NULL;
    const struct kvl_block_report *block = NULL;
    uint64_t block_count = 0;
    *chains = (struct cli_chains){0};
    kvl_err err = cli_all_blocks(client, &blocks, &block_count);
    int status = err == KVL_OK ? block_by_prefix(blocks, block_count, hex, &block)
                               : cli_error("cannot list the blocks: %s", kvl_err_text(err));
    if (status == CLI_DONE) {
        const struct kvl_block_report *at;
        struct cli_chain *chain = &chains->chain[chains->count++];
        uint32_t length = 0;
        for (at = block; at; at = block_by_key(blocks, block_count, &at->parent))
            length++;
        chain->keys = malloc(length * sizeof *chain->keys);
        if (!chain->keys)
            status = cli_error("out of memory");
        for (at = block; at && chain->keys; at = block_by_key(blocks, block_count, &at->parent))
            chain->keys[--length] = at->key, chain->count++;
    }
    free(blocks);
    return status;
}
