/* connection.c - see connection.h. */
#include "connection.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#define ATTEMPT_INTERVAL_NS UINT64_C(1000000000)
#define ATTEMPT_SHARE 40u /* of the time: a daemon that comes up but does not answer costs that */
#define HELD_UP_NS_MAX UINT64_C(1000000000) /* and that at ends of turns, in all */
#define PATIENCE_NS (KVL_DECODE_PATIENCE_MS * UINT64_C(1000000))

/* RoPE as the block key takes it in, little endian: u32 rotated dims, f32 base; unless it is plain
 * RoPE of adjacent elements also u32 pairing, f32 magnitude, f64 frequency of every pair, and those
 * of windowed layers where they differ. */
#define ROPE_DIMS_MAX 1024u /* a head is no longer (model.c) */
struct rope_bytes {
    uint8_t bytes[16 + ROPE_DIMS_MAX * sizeof(double)];
    uint32_t used;
};

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void append_word(struct rope_bytes *rope, uint32_t word) {
    for (uint32_t i = 0; i < sizeof word; ++i)
        rope->bytes[rope->used++] = (uint8_t)(word >> (8 * i));
}

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static void append_frequencies(struct rope_bytes *rope, const double *frequencies, uint32_t pairs) {
    for (uint32_t i = 0; i < pairs && i < ROPE_DIMS_MAX / 2; ++i) {
        uint64_t bits;
        memcpy(&bits, &frequencies[i], sizeof bits);
        append_word(rope, (uint32_t)bits);
        append_word(rope, (uint32_t)(bits >> 32));
    }
}

static void rope_of(const struct kvl_hparams *hparams, struct rope_bytes *rope) {
    rope->used = 0;
    append_word(rope, hparams->rope_dims);
    append_word(rope, bits_of(hparams->rope_base));
    if (hparams->rope_pairing == KVL_ROPE_ADJACENT && !hparams->rope_scaled)
        return;
    append_word(rope, (uint32_t)hparams->rope_pairing);
    append_word(rope, bits_of(hparams->rope_magnitude));
    append_frequencies(rope, hparams->rope_frequencies, hparams->rope_dims / 2);
    if (hparams->rope_frequencies_windowed != hparams->rope_frequencies)
        append_frequencies(rope, hparams->rope_frequencies_windowed, hparams->rope_dims / 2);
}

static struct kvl_geometry geometry_of(
    const struct kvl_hparams *hparams, uint32_t group, uint32_t block_tokens) {
    struct kvl_layer_group layers = kvl_layer_group(hparams, group);
    return (struct kvl_geometry){
        .layers = layers.layers,
        .kv_heads = hparams->kv_heads,
        .k_dim = hparams->k_dim,
        .v_dim = hparams->v_dim,
        .block_tokens = block_tokens,
        .layer_group = layers.window,
    };
}

kvl_err kvl_engine_namespace(const struct kvl_model *model, const char *arithmetic_id,
    enum kvl_kv_dtype kv_dtype, uint32_t block_tokens, struct kvl_namespace_request *out) {
    struct rope_bytes rope;
    rope_of(&model->hparams, &rope);
    struct kvl_namespace_desc desc = {
        .geometry = geometry_of(&model->hparams, 0, block_tokens),
        .dtype = (enum kvl_dtype)kv_dtype,
        .rope = {rope.bytes, rope.used},
        .arithmetic_id = arithmetic_id,
        .fidelity = "lossless",
    };
    memcpy(desc.fingerprint, model->fingerprint, sizeof desc.fingerprint);
    *out = (struct kvl_namespace_request){.geometry = desc.geometry, .dtype = desc.dtype};
    return kvl_key_of_namespace(&desc, &out->key);
}

kvl_err kvl_engine_window_namespace(const struct kvl_model *model,
    const struct kvl_namespace_request *first, struct kvl_namespace_request *out) {
    *out = *first;
    out->geometry = geometry_of(&model->hparams, 1, first->geometry.block_tokens);
    return kvl_key_of_layer_group(&first->key, &out->geometry, &out->key);
}

#define LARGER(option)                                                                             \
    "give its owner (kvloftd, or --embedded) a larger " option                                     \
    " (its log and `kvloft status` say how large)"

static kvl_err refuse_namespace(kvl_err err, struct kvl_errmsg *msg) {
    if (err == KVL_ERR_TOOBIG)
        return kvl_fail(msg, err,
            "a block of this model does not fit a segment of the disk tier; " LARGER(
                "--disk-bytes"));
    if (err == KVL_ERR_NOSPC)
        return kvl_fail(msg, err,
            "too few blocks of this model fit the host tier, through which they pass to the GPU "
            "and back; " LARGER("--host-bytes"));
    return kvl_fail(msg, err, "the daemon refused this model's namespace: %s", kvl_err_text(err));
}

/* Opens the namespaces and checks that the arena can hold their blocks at all. */
static kvl_err enter_namespace(struct kvl_connection *connection, struct kvl_errmsg *msg) {
    kvl_err err =
        kvl_client_namespace(connection->client, &connection->request, &connection->space);
    if (err == KVL_OK && connection->group_count > 1)
        err = kvl_client_namespace(
            connection->client, &connection->window_request, &connection->window_space);
    if (err != KVL_OK)
        return refuse_namespace(err, msg);
    uint64_t slot_bytes =
        connection->space.layout.slot_bytes + connection->window_space.layout.slot_bytes;
    struct kvl_device_arena *arena = NULL;
    err = kvl_device_arena_open(
        connection->backend, connection->client, &connection->arena_count, &arena, msg);
    if (err != KVL_OK)
        return err;
    if (arena->bytes < slot_bytes) {
        err = kvl_fail(msg, KVL_ERR_NOSPC,
            "the device tier has %llu bytes, one block of this model takes %llu; "
            "give its owner (kvloftd, or --embedded) a larger --device-bytes",
            (unsigned long long)arena->bytes, (unsigned long long)slot_bytes);
        kvl_device_arena_let_go(arena);
        return err;
    }
    connection->arena = arena;
    connection->connected = true;
    ++connection->generation;
    return KVL_OK;
}

static kvl_err name_namespaces(
    struct kvl_connection *connection, const struct kvl_connection_options *options) {
    kvl_err err = kvl_engine_namespace(options->model, options->backend->arithmetic_id,
        options->kv_dtype, options->block_tokens, &connection->request);
    snprintf(connection->request.label, sizeof connection->request.label, "%s", options->label);
    connection->group_count = kvl_layer_group_count(&options->model->hparams);
    if (err == KVL_OK && connection->group_count > 1)
        err = kvl_engine_window_namespace(
            options->model, &connection->request, &connection->window_request);
    return err;
}

kvl_err kvl_connection_open(struct kvl_connection *connection,
    const struct kvl_connection_options *options, struct kvl_errmsg *msg) {
    *connection = (struct kvl_connection){
        .backend = options->backend,
        .notice = options->notice,
        .notice_arg = options->notice_arg,
    };
    kvl_err err = name_namespaces(connection, options);
    if (err != KVL_OK)
        return kvl_fail(msg, err, "cannot name this model's blocks: %s", kvl_err_text(err));
    struct kvl_client_options client = {
        .address = options->address,
        .tenant = options->tenant,
        .secret_file = options->secret_file,
        .name = options->client_name,
    };
    err = kvl_client_open(&client, &connection->client, msg);
    if (err == KVL_OK)
        err = enter_namespace(connection, msg);
    if (err != KVL_OK)
        kvl_connection_close(connection);
    return err;
}

static void let_arena_go(struct kvl_connection *connection) {
    kvl_device_arena_let_go(connection->arena);
    connection->arena = NULL;
}

void kvl_connection_close(struct kvl_connection *connection) {
    let_arena_go(connection);
    kvl_client_close(connection->client);
    connection->client = NULL;
    connection->connected = false;
}

static void tell(const struct kvl_connection *connection, const char *text) {
    if (connection->notice != NULL)
        connection->notice(connection->notice_arg, text);
}

kvl_err kvl_connection_check(struct kvl_connection *connection, kvl_err err) {
    if ((err == KVL_ERR_CLOSED || err == KVL_ERR_STALE) && connection->connected) {
        connection->connected = false;
        connection->unmap_due = true;
        let_arena_go(connection);
        connection->next_attempt_ns = now_ns() + ATTEMPT_INTERVAL_NS;
        if (!connection->lost_ever)
            tell(connection, "lost the kvloft daemon; going on without it");
        connection->lost_ever = true;
    }
    return err;
}

bool kvl_connection_answers(const struct kvl_connection *connection, uint32_t patience_ms) {
    return connection->connected && kvl_client_silence_ms(connection->client) < patience_ms;
}

static kvl_err join_again(struct kvl_connection *connection, struct kvl_errmsg *msg) {
    kvl_err err = kvl_client_reconnect(connection->client, msg);
    if (err != KVL_OK)
        return err;
    err = enter_namespace(connection, msg);
    if (err != KVL_OK)
        kvl_client_undo_reconnect(connection->client);
    return err;
}

/* What another attempt at the same daemon would not change: another device, or too little room. */
static bool is_final(kvl_err err) {
    return err == KVL_ERR_UNSUPPORTED || err == KVL_ERR_TOOBIG || err == KVL_ERR_NOSPC;
}

static void give_up(struct kvl_connection *connection, const char *why) {
    char text[sizeof(struct kvl_errmsg) + 128];
    snprintf(text, sizeof text,
        "a kvloft daemon answers again, but is of no use and will not be tried any more: %s", why);
    connection->given_up = true;
    tell(connection, text);
}

static bool attempt(struct kvl_connection *connection) {
    uint64_t began_ns = now_ns();
    bool is_due = began_ns >= connection->next_attempt_ns;
    struct kvl_errmsg why = {{0}};
    kvl_client_set_timeout(connection->client, KVL_DECODE_PATIENCE_MS);
    kvl_err err = join_again(connection, &why);
    kvl_client_set_timeout(connection->client, 0);
    uint64_t took_ns = now_ns() - began_ns, rest_ns = took_ns * ATTEMPT_SHARE;
    connection->next_attempt_ns =
        now_ns() + (rest_ns > ATTEMPT_INTERVAL_NS ? rest_ns : ATTEMPT_INTERVAL_NS);
    if (err == KVL_OK)
        connection->held_up_ns = 0;
    else if (err == KVL_ERR_TIMEOUT && !is_due)
        connection->held_up_ns += took_ns;
    if (is_final(err))
        give_up(connection, why.text);
    return err == KVL_OK;
}

static bool revive(struct kvl_connection *connection) {
    if (connection->client == NULL || connection->connected || connection->given_up)
        return false;
    if (!attempt(connection))
        return false;
    tell(connection, "a kvloft daemon answers again; storing blocks there");
    return true;
}

bool kvl_connection_revive(struct kvl_connection *connection) {
    return now_ns() >= connection->next_attempt_ns && revive(connection);
}

bool kvl_connection_revive_now(struct kvl_connection *connection) {
    bool has_time = connection->held_up_ns + PATIENCE_NS <= HELD_UP_NS_MAX;
    return has_time ? revive(connection) : kvl_connection_revive(connection);
}

void kvl_connection_dispatch(struct kvl_connection *connection) {
    if (!connection->connected)
        return;
    kvl_client_dispatch(connection->client);
    if (!kvl_client_is_connected(connection->client))
        (void)kvl_connection_check(connection, KVL_ERR_CLOSED);
    else if (connection->unmap_due && connection->arena_count == 1) {
        kvl_client_unmap_old(connection->client);
        connection->unmap_due = false;
    }
}
