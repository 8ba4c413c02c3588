/* kvl_err.c - see kvl_err.h. */
#include "kvl_err.h"

#include <errno.h>
#include <stdio.h>

const char *kvl_err_name(kvl_err err) {
    switch (err) {
#define KVL_ERR_NAME(name, value, text)                                                            \
    case KVL_ERR_##name:                                                                           \
        return #name;
        KVL_ERR_LIST(KVL_ERR_NAME)
#undef KVL_ERR_NAME
    }
    return "UNKNOWN";
}

const char *kvl_err_text(kvl_err err) {
    switch (err) {
#define KVL_ERR_TEXT(name, value, text)                                                            \
    case KVL_ERR_##name:                                                                           \
        return text;
        KVL_ERR_LIST(KVL_ERR_TEXT)
#undef KVL_ERR_TEXT
    }
    return "unknown error";
}

kvl_err kvl_fail(struct kvl_errmsg *msg, kvl_err err, const char *format, ...) {
    if (msg) {
        va_list args;
        va_start(args, format);
        vsnprintf(msg->text, sizeof msg->text, format, args);
        va_end(args);
    }
    return err;
}

kvl_err kvl_err_from_errno(int error_number) {
    switch (error_number) {
    case 0:
        return KVL_OK;
    case ENOSPC:
    case EDQUOT:
        return KVL_ERR_NOSPC;
    case ENOMEM:
        return KVL_ERR_NOMEM;
    case EACCES:
    case EPERM:
    case EROFS:
        return KVL_ERR_PERM;
    case ENOENT:
        return KVL_ERR_NOTFOUND;
    case EAGAIN:
        return KVL_ERR_AGAIN;
    default:
        return KVL_ERR_IO;
    }
}
