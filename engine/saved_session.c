/* saved_session.c - see saved_session.h. */
#include "saved_session.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FOLLOW_TOKENS 16u
#define MESSAGE_TOKENS 4096u /* in one request */

static void tell(struct kvl_saved_session *session, kvl_err err) {
    if (session->failed)
        return;
    session->failed = true;
    char text[KVL_SESSION_NAME_MAX + 128];
    if (err == KVL_ERR_CLOSED)
        snprintf(text, sizeof text,
            "session '%s' is not saved: no daemon; the next turn's end with one saves it all",
            session->name);
    else
        snprintf(text, sizeof text, "session '%s' cannot be saved now: %s", session->name,
            kvl_err_text(err));
    if (session->connection->notice != NULL)
        session->connection->notice(session->connection->notice_arg, text);
}

static kvl_err read_tokens(
    struct kvl_saved_session *session, uint64_t total, struct kvl_sequence *sequence) {
    uint32_t page[MESSAGE_TOKENS];
    for (uint64_t from = 0; from < total;) {
        uint32_t count = 0;
        struct kvl_session_info info;
        kvl_err err = kvl_session_read(
            session->connection->client, session->name, from, MESSAGE_TOKENS, page, &count, &info);
        if (err == KVL_OK && (count == 0 || count > MESSAGE_TOKENS))
            err = KVL_ERR_CORRUPT;
        if (err == KVL_OK)
            err = kvl_sequence_append(sequence, page, count);
        if (err != KVL_OK)
            return err;
        from += count;
    }
    return KVL_OK;
}

static kvl_err explain_open(
    kvl_err err, const char *name, const struct kvl_session_info *info, struct kvl_errmsg *msg) {
    if (err == KVL_ERR_BUSY)
        return kvl_fail(msg, err,
            "session '%s' is in use by %s (pid %u); end that one first, or take another name", name,
            info->holder_name[0] != 0 ? info->holder_name : "another program", info->holder_pid);
    if (err == KVL_ERR_INVALID)
        return kvl_fail(msg, err,
            "session '%s' belongs to another model, KV type, block length or arithmetic (another "
            "device, or another version of kvloft on it); take another name, or drop it",
            name);
    return kvl_fail(msg, err, "cannot open session '%s': %s", name, kvl_err_text(err));
}

kvl_err kvl_saved_session_open(struct kvl_saved_session *session, struct kvl_connection *connection,
    const char *name, struct kvl_sequence *sequence, struct kvl_errmsg *msg) {
    *session = (struct kvl_saved_session){0};
    size_t name_bytes = strlen(name);
    if (name_bytes == 0 || name_bytes > KVL_SESSION_NAME_MAX)
        return kvl_fail(
            msg, KVL_ERR_INVALID, "a session's name has 1 to %u bytes", KVL_SESSION_NAME_MAX);
    struct kvl_session_info info = {0};
    kvl_err err = kvl_session_open(connection->client, name, &connection->request.key, &info);
    if (err != KVL_OK)
        return explain_open(err, name, &info, msg);
    session->connection = connection;
    session->generation = connection->generation;
    memcpy(session->name, name, name_bytes + 1);
    if (info.token_count > sequence->options.context_max)
        err = kvl_fail(msg, KVL_ERR_LIMIT,
            "session '%s' has %llu tokens, the context holds %u; give a larger --ctx", name,
            (unsigned long long)info.token_count, sequence->options.context_max);
    else if ((err = read_tokens(session, info.token_count, sequence)) != KVL_OK)
        err = kvl_fail(msg, err, "cannot read session '%s': %s", name, kvl_err_text(err));
    if (err != KVL_OK) {
        kvl_saved_session_close(session, NULL);
        return err;
    }
    session->saved = sequence->count;
    if (!kvl_key_is_zero(&info.tail))
        kvl_sequence_offer_tail(sequence, &info.tail, info.tail_tokens);
    return KVL_OK;
}

/* After the daemon came back: take the name again, and save everything anew. */
static bool reopen(struct kvl_saved_session *session) {
    struct kvl_connection *connection = session->connection;
    struct kvl_session_info info = {0};
    if (!kvl_connection_answers(connection, KVL_DECODE_PATIENCE_MS))
        return false;
    kvl_client_set_timeout(connection->client, KVL_DECODE_PATIENCE_MS);
    kvl_err err = kvl_connection_check(connection,
        kvl_session_open(connection->client, session->name, &connection->request.key, &info));
    kvl_client_set_timeout(connection->client, 0);
    if (err != KVL_OK) {
        tell(session, err);
        return false;
    }
    session->generation = connection->generation;
    session->saved = 0;
    session->failed = false;
    return true;
}

static void append_answered(void *arg, kvl_err err) {
    struct kvl_saved_session *session = arg;
    if (err == KVL_OK || session->connection == NULL) /* closed, and then the connection was */
        return;
    session->saved = 0; /* which part is there is not known any more: save it whole */
    if (kvl_connection_check(session->connection, err) != KVL_ERR_CLOSED)
        tell(session, err);
}

static bool is_held(struct kvl_saved_session *session) {
    if (session->connection == NULL || !session->connection->connected)
        return false;
    return session->generation == session->connection->generation || reopen(session);
}

void kvl_saved_session_follow(
    struct kvl_saved_session *session, const struct kvl_sequence *sequence, bool force) {
    uint32_t fresh = sequence->count - session->saved;
    if (fresh == 0 || (fresh < FOLLOW_TOKENS && !force) || !is_held(session))
        return;
    while (session->saved < sequence->count) {
        uint32_t count = sequence->count - session->saved;
        if (count > MESSAGE_TOKENS)
            count = MESSAGE_TOKENS;
        uint32_t from = session->saved;
        session->saved += count; /* before the call: its answer may come inside */
        kvl_err err = kvl_session_append_async(session->connection->client, session->name, from,
            sequence->tokens + from, count, append_answered, session);
        if (err == KVL_OK)
            continue;
        session->saved = from; /* AGAIN: with the next tokens */
        if (kvl_connection_check(session->connection, err) != KVL_ERR_AGAIN)
            tell(session, err);
        return;
    }
}

void kvl_saved_session_end_turn(struct kvl_saved_session *session, struct kvl_sequence *sequence) {
    if (!is_held(session)) {
        if (session->connection != NULL)
            tell(session, KVL_ERR_CLOSED);
        return;
    }
    struct kvl_connection *connection = session->connection;
    if (!kvl_connection_answers(connection, KVL_PATIENCE_MS)) {
        tell(session, KVL_ERR_TIMEOUT);
        return;
    }
    kvl_saved_session_follow(session, sequence, true);
    struct kvl_cache_tail tail;
    kvl_caches_seal_tail(sequence->cache, sequence->tokens, sequence->computed, &tail);
    kvl_err err = kvl_connection_check(connection, kvl_client_drain(connection->client));
    if (err == KVL_OK && session->saved < sequence->count) { /* refused while draining */
        kvl_saved_session_follow(session, sequence, true);
        err = kvl_connection_check(connection, kvl_client_drain(connection->client));
    }
    if (err == KVL_OK)
        err = kvl_connection_check(
            connection, kvl_session_tail(connection->client, session->name,
                            tail.tokens > 0 ? &tail.key : &(struct kvl_key){0}, tail.tokens));
    if (err != KVL_OK)
        tell(session, err);
}

void kvl_saved_session_close(struct kvl_saved_session *session, struct kvl_sequence *sequence) {
    if (session->connection != NULL && session->failed && sequence != NULL) {
        kvl_caches_finish(sequence->cache, sequence->tokens, kvl_sequence_whole_blocks(sequence));
        kvl_saved_session_end_turn(session, sequence);
    }
    if (session->connection != NULL &&
        kvl_connection_answers(session->connection, KVL_PATIENCE_MS) &&
        session->generation == session->connection->generation)
        (void)kvl_connection_check(
            session->connection, kvl_session_close(session->connection->client, session->name));
    session->connection = NULL;
}
