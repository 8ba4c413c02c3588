/* sessions.c - the calls about sessions. Long token lists are cut into several messages. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client_internal.h"

static kvl_err name_session(struct kvl_wire_session *session, const char *name) {
    size_t length = name ? strlen(name) : 0;
    if (length == 0 || length > KVL_SESSION_NAME_MAX)
        return KVL_ERR_INVALID;
    memcpy(session->name, name, length + 1);
    return KVL_OK;
}

static void take_info(void *context, const union kvl_wire_reply *reply) {
    if (context)
        *(struct kvl_session_info *)context = reply->session;
}

kvl_err kvl_session_open(struct kvl_client *client, const char *name,
    const struct kvl_key *namespace_key, struct kvl_session_info *info) {
    struct kvl_wire_session session = {.key = *namespace_key};
    kvl_err err = name_session(&session, name);
    return err == KVL_OK ? kvl_call_run(client, KVL_VERB_SESSION_OPEN, &session, take_info, info)
                         : err;
}

struct read_target {
    uint32_t *tokens;
    uint32_t max, count;
    struct kvl_session_info *info;
    bool too_many;
};

static void take_tokens(void *context, const union kvl_wire_reply *reply) {
    struct read_target *target = context;
    const struct kvl_wire_session_tokens *got = &reply->session_tokens;
    target->too_many = got->count > target->max;
    if (target->too_many)
        return;
    target->count = got->count;
    if (got->count != 0)
        memcpy(target->tokens, got->tokens, got->count * sizeof(uint32_t));
    if (target->info)
        *target->info = got->info;
}

static kvl_err read_some(struct kvl_client *client, struct kvl_wire_session *session,
    uint64_t from_token, struct read_target *target) {
    session->from_token = from_token;
    session->count =
        target->max < KVL_WIRE_SESSION_TOKENS_MAX ? target->max : KVL_WIRE_SESSION_TOKENS_MAX;
    kvl_err err = kvl_call_run(client, KVL_VERB_SESSION_READ, session, take_tokens, target);
    return err == KVL_OK && target->too_many ? KVL_ERR_INVALID : err;
}

kvl_err kvl_session_read(struct kvl_client *client, const char *name, uint64_t from_token,
    uint32_t max, uint32_t *tokens, uint32_t *count, struct kvl_session_info *info) {
    struct kvl_wire_session session = {0};
    *count = 0;
    kvl_err err = name_session(&session, name);
    max = tokens ? max : 0;
    while (err == KVL_OK) {
        struct read_target target = {.tokens = tokens + *count, .max = max - *count, .info = info};
        err = read_some(client, &session, from_token + *count, &target);
        *count += target.count;
        if (target.count == 0 || *count == max)
            break;
    }
    return err;
}

kvl_err kvl_session_append(struct kvl_client *client, const char *name, uint64_t from_token,
    const uint32_t *tokens, uint32_t count) {
    struct kvl_wire_session session = {0};
    kvl_err err = name_session(&session, name);
    uint32_t at = 0;
    do {
        uint32_t left = count - at;
        session.from_token = from_token + at;
        session.tokens = (const uint8_t *)(tokens + at);
        session.count = left < KVL_WIRE_SESSION_TOKENS_MAX ? left : KVL_WIRE_SESSION_TOKENS_MAX;
        if (err == KVL_OK)
            err = kvl_call_run(client, KVL_VERB_SESSION_APPEND, &session, NULL, NULL);
        at += session.count;
    } while (err == KVL_OK && at < count);
    return err;
}

kvl_err kvl_session_append_async(struct kvl_client *client, const char *name, uint64_t from_token,
    const uint32_t *tokens, uint32_t count, kvl_plain_done done, void *arg) {
    struct kvl_wire_session session = {
        .from_token = from_token, .count = count, .tokens = (const uint8_t *)tokens};
    if (count > KVL_WIRE_SESSION_TOKENS_MAX)
        return KVL_ERR_TOOBIG;
    kvl_err err = name_session(&session, name);
    return err == KVL_OK
               ? kvl_call_submit_plain(client, KVL_VERB_SESSION_APPEND, &session, done, arg)
               : err;
}

kvl_err kvl_session_tail(
    struct kvl_client *client, const char *name, const struct kvl_key *tail, uint32_t tail_tokens) {
    struct kvl_wire_session session = {.key = *tail, .tail_tokens = tail_tokens};
    kvl_err err = name_session(&session, name);
    return err == KVL_OK ? kvl_call_run(client, KVL_VERB_SESSION_TAIL, &session, NULL, NULL) : err;
}

kvl_err kvl_session_close(struct kvl_client *client, const char *name) {
    struct kvl_wire_session session = {0};
    kvl_err err = name_session(&session, name);
    return err == KVL_OK ? kvl_call_run(client, KVL_VERB_SESSION_CLOSE, &session, NULL, NULL) : err;
}

kvl_err kvl_session_drop(
    struct kvl_client *client, const char *name, struct kvl_session_info *info) {
    struct kvl_wire_session session = {0};
    kvl_err err = name_session(&session, name);
    return err == KVL_OK ? kvl_call_run(client, KVL_VERB_SESSION_DROP, &session, take_info, info)
                         : err;
}

kvl_err kvl_session_at(struct kvl_client *client, uint32_t index, struct kvl_session_info *out) {
    return kvl_call_run(client, KVL_VERB_SESSION_AT, &index, take_info, out);
}
