/* saved_session.h - a conversation by name, kept by the daemon: its tokens, and the tail of its KV.
 *
 * The tokens are saved behind the computation, at least every 16; at a turn's end the partial last
 * block is sealed as a tail, so that the next turn, perhaps of another process on another day,
 * begins at the very token. When the daemon was lost and came back, the session is opened again
 * and saved whole.
 *
 * Owns:    nothing but the hold on the name; connection and sequence are borrowed. Stays where it
 *          is until the connection is closed: an answer may come that late.
 * Threads: the engine's one thread. */
#ifndef KVL_SAVED_SESSION_H
#define KVL_SAVED_SESSION_H

#include "connection.h"
#include "sequence.h"

struct kvl_saved_session {
    struct kvl_connection *connection; /* NULL: not open */
    char name[KVL_SESSION_NAME_MAX + 1];
    uint64_t generation; /* of the connection that holds it */
    uint32_t saved;      /* leading tokens that were handed over */
    bool failed;         /* not all of it is saved; told once */
};

/* Opens the name, creating it, and puts its tokens into the empty sequence.
 * Errors: BUSY (msg names the holder), INVALID (a bad name, or another model's or arithmetic's
 * session), LIMIT (it is longer than the context), those of the client library. */
KVL_MUST_CHECK kvl_err kvl_saved_session_open(struct kvl_saved_session *session,
    struct kvl_connection *connection, const char *name, struct kvl_sequence *sequence,
    struct kvl_errmsg *msg);
/* Hands new tokens over behind, when there are 16 of them, or any and force is set. */
void kvl_saved_session_follow(
    struct kvl_saved_session *session, const struct kvl_sequence *sequence, bool force);
/* Saves everything and seals the tail; waits for the answers. A failure is told through the
 * connection's notice; it costs recomputing, never an answer. */
void kvl_saved_session_end_turn(struct kvl_saved_session *session, struct kvl_sequence *sequence);
/* Saves what the last turn's end could not (sequence may be NULL: nothing to save), and lets the
 * name go. Zeroed is fine. */
void kvl_saved_session_close(struct kvl_saved_session *session, struct kvl_sequence *sequence);

#endif
