/* cmd_ls.c - the blocks as trees of chains. A run of blocks without a fork is one line:
 *
 *   SmolLM2-135M  64 tokens a block, 1.4 MiB
 *   +- 3fa2b1c8  124 blocks  7,936 tokens  device+disk  hits 4  3m ago
 *      +- 90ab12de  2 blocks  ... */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "clock.h"

struct node {
    struct kvl_block_report block;
    int64_t parent; /* index, or -1 */
    int64_t first_child;
    int64_t next_sibling;
    uint32_t children;
};

struct forest {
    struct node *nodes;
    uint64_t count;
    uint64_t now_ns;
    bool keys; /* a line for every block */
};

static int compare_keys(const void *a, const void *b) {
    return memcmp(((const struct node *)a)->block.key.bytes,
        ((const struct node *)b)->block.key.bytes, KVL_KEY_BYTES);
}

static int64_t find_node(const struct forest *forest, const struct kvl_key *key) {
    struct node wanted = {.block = {.key = *key}};
    const struct node *found =
        bsearch(&wanted, forest->nodes, forest->count, sizeof wanted, compare_keys);
    return found ? found - forest->nodes : -1;
}

static kvl_err build_forest(struct kvl_client *client, struct forest *forest) {
    struct kvl_block_report *blocks = NULL;
    kvl_err err = cli_all_blocks(client, &blocks, &forest->count);
    if (err == KVL_OK) {
        forest->nodes = calloc(forest->count + 1, sizeof *forest->nodes);
        err = forest->nodes ? KVL_OK : KVL_ERR_NOMEM;
    }
    for (uint64_t i = 0; err == KVL_OK && i < forest->count; i++)
        forest->nodes[i] = (struct node){.block = blocks[i], .first_child = -1, .next_sibling = -1};
    free(blocks);
    if (err != KVL_OK)
        return err;
    qsort(forest->nodes, forest->count, sizeof *forest->nodes, compare_keys);
    for (uint64_t i = 0; i < forest->count; i++) {
        struct node *node = &forest->nodes[i];
        node->parent = find_node(forest, &node->block.parent);
        if (node->parent < 0)
            continue;
        struct node *parent = &forest->nodes[node->parent];
        node->next_sibling = parent->first_child;
        parent->first_child = (int64_t)i;
        parent->children++;
    }
    return KVL_OK;
}

/* The last node of the run without a fork that starts at `start`. */
static int64_t run_end(const struct forest *forest, int64_t start, uint32_t *blocks,
    uint64_t *tokens, uint8_t *tiers, uint64_t *hits) {
    int64_t at = start;
    *blocks = 0, *tokens = 0, *tiers = 0xff, *hits = 0;
    for (;;) {
        const struct node *node = &forest->nodes[at];
        ++*blocks;
        *tokens += node->block.token_count;
        *tiers &= node->block.tiers;
        *hits += node->block.hits;
        if (forest->keys || node->children != 1)
            return at;
        at = node->first_child;
    }
}

static void print_run(const struct forest *forest, int64_t start, unsigned depth) {
    uint32_t blocks;
    uint64_t tokens, hits;
    uint8_t tiers;
    char hex[2 * KVL_KEY_BYTES + 1], tier_text[32], age[32];
    int64_t end = run_end(forest, start, &blocks, &tokens, &tiers, &hits);
    const struct kvl_block_report *last = &forest->nodes[end].block;
    uint64_t used = last->last_use_wall_ns;
    kvl_key_hex(&forest->nodes[start].block.key, hex);
    printf("%*s+- %.12s  %" PRIu32 " block%s  %" PRIu64 " tokens  %s  hits %" PRIu64 "  %s ago%s\n",
        (int)(3 * (depth < 40 ? depth : 40)), "", hex, blocks, blocks == 1 ? "" : "s", tokens,
        cli_tiers(tiers, tier_text), hits,
        cli_duration(forest->now_ns > used ? forest->now_ns - used : 0, age),
        last->pinned ? "  pinned" : "");
    /* A chain is as long as a context; only forks nest, so this recursion is shallow. With --keys
     * the loop below walks a chain instead of recursing into it. */
    unsigned child_depth = depth + 1;
    for (int64_t child = forest->nodes[end].first_child; child >= 0;) {
        if (forest->keys && forest->nodes[end].children == 1) {
            uint32_t one;
            uint64_t t, h;
            uint8_t m;
            end = run_end(forest, child, &one, &t, &m, &h);
            kvl_key_hex(&forest->nodes[child].block.key, hex);
            printf("%*s+- %.12s  %" PRIu64 " tokens  %s  hits %" PRIu64 "\n",
                (int)(3 * (depth < 40 ? depth : 40)), "", hex, t, cli_tiers(m, tier_text), h);
            child = forest->nodes[end].first_child;
            continue;
        }
        print_run(forest, child, child_depth);
        child = forest->nodes[child].next_sibling;
    }
}

static void print_forest(struct kvl_client *client, const struct forest *forest) {
    struct kvl_namespace_info ns;
    char hex[2 * KVL_KEY_BYTES + 1], bytes[32];
    for (uint32_t i = 0; kvl_client_namespace_at(client, i, &ns) == KVL_OK; i++) {
        kvl_key_hex(&ns.key, hex);
        printf("%s (%.12s)  %" PRIu64 " block%s of ", ns.label[0] ? ns.label : "unnamed", hex,
            ns.blocks, ns.blocks == 1 ? "" : "s");
        if (ns.geometry.block_tokens != 0) /* 0: the caller's own buffers */
            printf("%" PRIu32 " tokens, ", ns.geometry.block_tokens);
        if (ns.geometry.layer_group != 0)
            printf("layers with a window of %" PRIu32 " tokens, ", ns.geometry.layer_group);
        printf("%s each\n", cli_bytes(ns.layout.payload_bytes, bytes));
        for (uint64_t n = 0; n < forest->count; n++)
            if (forest->nodes[n].parent < 0 && forest->nodes[n].block.namespace_id == ns.id)
                print_run(forest, (int64_t)n, 0);
    }
}

static json_t *forest_json(const struct forest *forest) {
    json_t *list = json_array();
    for (uint64_t i = 0; i < forest->count; i++) {
        const struct kvl_block_report *b = &forest->nodes[i].block;
        char key[2 * KVL_KEY_BYTES + 1], parent[2 * KVL_KEY_BYTES + 1], tiers[32];
        kvl_key_hex(&b->key, key);
        kvl_key_hex(&b->parent, parent);
        json_array_append_new(
            list, json_pack("{s:s,s:s,s:I,s:I,s:s,s:b,s:I,s:I,s:I,s:I}", "key", key, "parent",
                      parent, "namespace_id", (json_int_t)b->namespace_id, "tokens",
                      (json_int_t)b->token_count, "tiers", cli_tiers(b->tiers, tiers), "pinned",
                      b->pinned, "leases", (json_int_t)b->leases, "hits", (json_int_t)b->hits,
                      "last_use_ms", (json_int_t)(b->last_use_wall_ns / 1000000), "disk_bytes",
                      (json_int_t)b->disk_bytes));
    }
    return list;
}

static json_t *namespaces_json(struct kvl_client *client) {
    json_t *list = json_array();
    struct kvl_namespace_info ns;
    for (uint32_t i = 0; kvl_client_namespace_at(client, i, &ns) == KVL_OK; i++) {
        char key[2 * KVL_KEY_BYTES + 1];
        kvl_key_hex(&ns.key, key);
        json_array_append_new(
            list, json_pack("{s:I,s:s,s:s,s:I,s:I,s:I,s:I,s:I}", "id", (json_int_t)ns.id, "key",
                      key, "label", ns.label, "layers", (json_int_t)ns.geometry.layers,
                      "window_tokens", (json_int_t)ns.geometry.layer_group, "block_tokens",
                      (json_int_t)ns.geometry.block_tokens, "block_bytes",
                      (json_int_t)ns.layout.payload_bytes, "blocks", (json_int_t)ns.blocks));
    }
    return list;
}

static int run_ls(const struct cli_options *options, int argc, char **argv) {
    struct forest forest = {.now_ns = kvl_clock_wall_ns(), .keys = options->keys};
    (void)argv;
    if (argc > 0)
        return cli_wrong("ls takes no words");
    struct kvl_client *client = cli_connect(options);
    if (!client)
        return CLI_FAILED;
    kvl_err err = build_forest(client, &forest);
    int status = CLI_DONE;
    if (err != KVL_OK)
        status = cli_error("cannot list the blocks: %s", kvl_err_text(err));
    else if (options->json)
        status = cli_print_json(json_pack(
            "{s:o,s:o}", "namespaces", namespaces_json(client), "blocks", forest_json(&forest)));
    else
        print_forest(client, &forest);
    free(forest.nodes);
    kvl_client_close(client);
    return status;
}

const struct cli_command cli_ls = {
    .name = "ls",
    .summary = "the blocks, as trees of chains",
    .usage = "[--keys] [--connect ADDR] [--json]\n--keys: a line for each block",
    .run = run_ls,
};
