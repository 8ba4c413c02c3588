/* offload.c - an engine that owns its KV memory keeps copies of it in kvloft.
 *
 * Stores three buffers of its own under names of its own, forgets them, and gets them back: alloc
 * on the host tier, copy in, seal; restore to the host tier, copy out, release.
 *
 *   cc offload.c $(pkg-config --cflags --libs kvloft) -o offload
 *   ./offload [ADDRESS]            with a daemon (kvloftd) running */
#include <kvloft.h>
#include <stdio.h>
#include <string.h>

enum { BUFFERS = 3, BUFFER_BYTES = 100000, TIMEOUT_MS = 10000 };

static unsigned char buffers[BUFFERS][BUFFER_BYTES];

static int fail(const char *step, kvl_err err) {
    fprintf(stderr, "offload: %s: %s\n", step, kvl_err_text(err));
    return 1;
}

/* Any 32 bytes name a buffer; a hash of what it was computed from is a good choice. */
static void name_of(int number, unsigned char name[32]) {
    memset(name, 0, 32);
    snprintf((char *)name, 32, "buffer %d", number);
}

static kvl_err open_namespace(struct kvl_client *client, struct kvl_namespace_info *info) {
    struct kvl_namespace_request request = {.block_bytes = BUFFER_BYTES, .label = "offload.c"};
    struct kvl_bytes salt = {0}; /* tenants with different salts never see each other's blocks */
    kvl_err err = kvl_key_of_opaque_namespace("offload.c", BUFFER_BYTES, salt, &request.key);
    return err == KVL_OK ? kvl_client_namespace(client, &request, info) : err;
}

static kvl_err store(struct kvl_client *client, const struct kvl_namespace_info *info, int number,
    const struct kvl_key *key) {
    struct kvl_allocated block;
    struct kvl_ticket none;
    kvl_err err = kvl_alloc(client, info->id, KVL_TIER_HOST, key, 1, false, &block, &none);
    if (err != KVL_OK || block.status == KVL_ALLOC_EXISTS)
        return err; /* stored by an earlier run: nothing to do */
    if (block.status != KVL_ALLOC_GRANTED)
        return KVL_ERR_NOSPC;
    kvl_copy_block(kvl_client_block_writable(client, KVL_TIER_HOST, block.offset_bytes),
        buffers[number], BUFFER_BYTES);
    struct kvl_seal seal = {.lease = block.lease, .opaque = true};
    struct kvl_sealed sealed;
    name_of(number, seal.opaque_key);
    err = kvl_seal(client, &seal, 1, &sealed);
    if (err == KVL_OK)
        err = sealed.status;
    kvl_err released = kvl_release(client, &block.lease, 1, NULL, 0);
    return err == KVL_OK ? released : err;
}

/* Asks for the whole list at once: those that are known come, in order. */
static kvl_err restore(struct kvl_client *client, const struct kvl_key *keys, uint32_t *count) {
    struct kvl_restored blocks[BUFFERS];
    struct kvl_restore_result result;
    struct kvl_progress progress = {.status = KVL_OK};
    kvl_err err = kvl_restore(client, KVL_TIER_HOST, keys, BUFFERS, blocks, &result);
    if (err == KVL_OK && result.ticket.generation != 0) /* some are on their way from below */
        err = kvl_ticket_wait(client, result.ticket, UINT32_MAX, TIMEOUT_MS, &progress);
    if (err == KVL_OK)
        err = progress.status;
    for (uint32_t i = 0; err == KVL_OK && i < result.count; i++)
        kvl_copy_block(buffers[i], kvl_client_block(client, KVL_TIER_HOST, blocks[i].offset_bytes),
            BUFFER_BYTES);
    *count = result.count;
    for (uint32_t i = 0; i < result.count; i++) {
        kvl_err released = kvl_release(client, &blocks[i].lease, 1, &result.ticket, i == 0);
        err = err == KVL_OK ? released : err;
    }
    return err;
}

int main(int argc, char **argv) {
    struct kvl_client_options options = {.address = argc > 1 ? argv[1] : NULL, .name = "offload"};
    struct kvl_client *client;
    struct kvl_errmsg msg;
    if (kvl_client_open(&options, &client, &msg) != KVL_OK) {
        fprintf(stderr, "offload: %s\n", msg.text);
        return 1;
    }
    struct kvl_namespace_info info;
    struct kvl_key keys[BUFFERS];
    uint32_t count = 0;
    kvl_err err = open_namespace(client, &info);
    for (int i = 0; i < BUFFERS && err == KVL_OK; i++) {
        unsigned char name[32];
        name_of(i, name);
        memset(buffers[i], 'a' + i, BUFFER_BYTES);
        err = kvl_key_of_opaque(&info.key, name, &keys[i]);
        if (err == KVL_OK)
            err = store(client, &info, i, &keys[i]);
    }
    if (err != KVL_OK)
        return fail("store", err);
    memset(buffers, 0, sizeof buffers);
    /* A sealed block is visible as soon as its hash was taken, behind the call: ask until then. */
    for (int tries = 0; err == KVL_OK && count < BUFFERS && tries < 1000; tries++)
        err = restore(client, keys, &count);
    if (err != KVL_OK)
        return fail("restore", err);
    for (int i = 0; i < BUFFERS; i++)
        if (buffers[i][0] != 'a' + i || buffers[i][BUFFER_BYTES - 1] != 'a' + i)
            return fail("compare", KVL_ERR_CORRUPT);
    printf("stored and restored %d buffers of %d bytes\n", BUFFERS, BUFFER_BYTES);
    kvl_client_close(client);
    return 0;
}
