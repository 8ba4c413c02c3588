/* resident.c - an engine whose KV blocks live in the daemon's memory, and are read there.
 *
 * One client fills a token block in place and seals it; a second one looks the same tokens up and
 * reads them where they lie. No byte is copied.
 *
 *   cc resident.c $(pkg-config --cflags --libs kvloft) -o resident
 *   ./resident [ADDRESS]           with a daemon (kvloftd) running */
#include <kvloft.h>
#include <stdio.h>
#include <string.h>

enum { BLOCK_TOKENS = 16, TIMEOUT_MS = 10000 };

static int fail(const char *step, kvl_err err) {
    fprintf(stderr, "resident: %s: %s\n", step, kvl_err_text(err));
    return 1;
}

/* The namespace says everything that makes the bytes what they are: equal keys, equal bytes. */
static kvl_err open_namespace(struct kvl_client *client, struct kvl_namespace_info *info) {
    struct kvl_namespace_desc desc = {.fingerprint = {1, 2, 3}, /* over the model's weights */
        .geometry =
            {.layers = 2, .kv_heads = 1, .k_dim = 8, .v_dim = 8, .block_tokens = BLOCK_TOKENS},
        .dtype = KVL_DTYPE_F32,
        .rope = {.data = "theta=10000", .bytes = 11},
        .arithmetic_id = "resident.c 1",
        .fidelity = "lossless"};
    struct kvl_namespace_request request = {
        .geometry = desc.geometry, .dtype = KVL_DTYPE_F32, .label = "resident.c"};
    kvl_err err = kvl_key_of_namespace(&desc, &request.key);
    return err == KVL_OK ? kvl_client_namespace(client, &request, info) : err;
}

/* Layout of a block: for each layer K [head][token][k_dim], then V likewise. */
static kvl_err fill_and_seal(struct kvl_client *client, const struct kvl_namespace_info *info,
    const uint32_t *tokens, const struct kvl_key *key) {
    struct kvl_allocated block;
    struct kvl_ticket none;
    kvl_err err = kvl_alloc(client, info->id, KVL_TIER_DEVICE, key, 1, false, &block, &none);
    if (err != KVL_OK || block.status == KVL_ALLOC_EXISTS)
        return err; /* sealed by an earlier run */
    if (block.status != KVL_ALLOC_GRANTED)
        return KVL_ERR_NOSPC;
    float *kv = (float *)kvl_client_block_writable(client, KVL_TIER_DEVICE, block.offset_bytes);
    for (uint64_t i = 0; i < info->layout.payload_bytes / sizeof *kv; i++)
        kv[i] = (float)i * 0.5f; /* a model would compute this */
    struct kvl_seal seal = {.lease = block.lease,
        .parent = info->key, /* a chain's first block; later ones name the block before */
        .tokens = tokens,
        .token_count = BLOCK_TOKENS};
    struct kvl_sealed sealed;
    err = kvl_seal(client, &seal, 1, &sealed);
    return err == KVL_OK ? sealed.status : err; /* the lease ends with the client */
}

static kvl_err wait_until_visible(struct kvl_client *client, const struct kvl_key *key) {
    uint8_t tiers;
    uint32_t hits = 0;
    kvl_err err = KVL_OK;
    for (int tries = 0; err == KVL_OK && hits == 0 && tries < 10000; tries++)
        err = kvl_lookup(client, key, 1, &tiers, &hits);
    return err == KVL_OK && hits == 0 ? KVL_ERR_NOTFOUND : err;
}

static kvl_err read_in_place(struct kvl_client *client, const struct kvl_key *key, float *out) {
    struct kvl_restored block;
    struct kvl_restore_result result;
    struct kvl_progress progress = {.status = KVL_OK};
    kvl_err err = kvl_restore(client, KVL_TIER_DEVICE, key, 1, &block, &result);
    if (err == KVL_OK && result.count == 0)
        return KVL_ERR_NOTFOUND;
    if (err == KVL_OK && result.ticket.generation != 0) /* it comes from a lower tier */
        err = kvl_ticket_wait(client, result.ticket, UINT32_MAX, TIMEOUT_MS, &progress);
    if (err != KVL_OK || progress.status != KVL_OK)
        return err == KVL_OK ? progress.status : err;
    const uint8_t *kv = kvl_client_block(client, KVL_TIER_DEVICE, block.offset_bytes);
    memcpy(out, kv + 10 * sizeof *out, sizeof *out); /* attention would read all of it here */
    return kvl_release(client, &block.lease, 1, &result.ticket, 1);
}

int main(int argc, char **argv) {
    const char *address = argc > 1 ? argv[1] : NULL;
    struct kvl_client *writer, *reader;
    struct kvl_errmsg msg;
    if (kvl_client_open(&(struct kvl_client_options){.address = address, .name = "writer"}, &writer,
            &msg) != KVL_OK ||
        kvl_client_open(&(struct kvl_client_options){.address = address, .name = "reader"}, &reader,
            &msg) != KVL_OK) {
        fprintf(stderr, "resident: %s\n", msg.text);
        return 1;
    }
    uint32_t tokens[BLOCK_TOKENS];
    for (uint32_t i = 0; i < BLOCK_TOKENS; i++)
        tokens[i] = 100 + i;
    struct kvl_namespace_info info;
    struct kvl_key key;
    float value = 0;
    kvl_err err = open_namespace(writer, &info);
    if (err == KVL_OK)
        err = kvl_key_chain(&info.key, tokens, BLOCK_TOKENS, BLOCK_TOKENS, &key);
    if (err == KVL_OK)
        err = fill_and_seal(writer, &info, tokens, &key);
    if (err != KVL_OK)
        return fail("seal", err);
    err = wait_until_visible(reader, &key);
    if (err == KVL_OK)
        err = read_in_place(reader, &key, &value);
    if (err != KVL_OK || value != 5.0f)
        return fail("read", err == KVL_OK ? KVL_ERR_CORRUPT : err);
    printf("read a block of %d tokens in place\n", BLOCK_TOKENS);
    kvl_client_close(writer);
    kvl_client_close(reader);
    return 0;
}
