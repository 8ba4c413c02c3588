/* kvl_err.h - the one error enum of kvloft, its names and its texts.
 *
 * Public: installed beside kvloft.h. Every fallible function returns kvl_err and is
 * warn_unused_result. A miss is a result, never an error. */
#ifndef KVL_ERR_H
#define KVL_ERR_H

#include <stdarg.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* X(name, value, text). Values go over the wire: never renumber, only append. */
#define KVL_ERR_LIST(X)                                                                            \
    X(OK, 0, "done")                                                                               \
    X(INVALID, 1, "invalid argument or message")                                                   \
    X(NOMEM, 2, "out of memory")                                                                   \
    X(NOSPC, 3, "no space left in the tier or on the device")                                      \
    X(AGAIN, 4, "queue full, try again")                                                           \
    X(TIMEOUT, 5, "timed out")                                                                     \
    X(CORRUPT, 6, "checksum or structure does not match")                                          \
    X(SHORT, 7, "transfer ended early")                                                            \
    X(IO, 8, "input/output error")                                                                 \
    X(BUSY, 9, "held by another owner")                                                            \
    X(NOTFOUND, 10, "not found")                                                                   \
    X(EXISTS, 11, "exists already")                                                                \
    X(PENDING, 12, "being filled by another engine")                                               \
    X(VERSION, 13, "version not supported")                                                        \
    X(PERM, 14, "not permitted")                                                                   \
    X(UNSUPPORTED, 15, "not supported")                                                            \
    X(CLOSED, 16, "connection or object closed")                                                   \
    X(STALE, 17, "belongs to an earlier epoch")                                                    \
    X(CANCELED, 18, "canceled")                                                                    \
    X(TOOBIG, 19, "too big")                                                                       \
    X(LIMIT, 20, "a configured limit is reached")

typedef enum kvl_err {
#define KVL_ERR_ENUM(name, value, text) KVL_ERR_##name = (value),
    KVL_ERR_LIST(KVL_ERR_ENUM)
#undef KVL_ERR_ENUM
} kvl_err;
#define KVL_OK KVL_ERR_OK

#define KVL_MUST_CHECK __attribute__((warn_unused_result))

/* One line for a person: what went wrong and what to do. Filled by kvl_fail, kept by the caller. */
struct kvl_errmsg {
    char text[512];
};

/* "NOSPC"; "UNKNOWN" for a value that is none of ours. Static storage. Any thread. */
const char *kvl_err_name(kvl_err err);
/* "no space left in the tier or on the device". Static storage. Any thread. */
const char *kvl_err_text(kvl_err err);

/* Writes the message (cut to fit) into msg, which may be NULL, and returns err, so that
 * `return kvl_fail(msg, KVL_ERR_IO, "...")` is one line. Any thread. */
__attribute__((format(printf, 3, 4))) kvl_err kvl_fail(
    struct kvl_errmsg *msg, kvl_err err, const char *format, ...);

/* errno (positive) to kvl_err: ENOSPC and EDQUOT to NOSPC, ENOMEM to NOMEM, EACCES, EPERM and
 * EROFS to PERM, ENOENT to NOTFOUND, EAGAIN to AGAIN, everything else to IO. */
kvl_err kvl_err_from_errno(int error_number);

#ifdef __cplusplus
}
#endif
#endif
