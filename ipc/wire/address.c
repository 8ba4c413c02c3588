/* address.c - see address.h. */
#include "address.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static const char ATTACH_SUFFIX[] = ".attach";

static kvl_err parse_ipc(const char *path, struct kvl_address *out, struct kvl_errmsg *msg) {
    const char *slash = strrchr(path, '/');
    if (!slash || slash[1] == 0)
        return kvl_fail(msg, KVL_ERR_INVALID,
            "address '%s': needs a path of a socket in a directory of its own", out->text);
    if (strlen(path) + sizeof ATTACH_SUFFIX > sizeof out->attach_path)
        return kvl_fail(msg, KVL_ERR_TOOBIG, "address '%s': a socket path has at most %zu bytes",
            out->text, sizeof out->attach_path - sizeof ATTACH_SUFFIX);
    size_t directory_length = slash == path ? 1 : (size_t)(slash - path);
    memcpy(out->directory, path, directory_length);
    snprintf(out->socket_path, sizeof out->socket_path, "%s", path);
    snprintf(out->attach_path, sizeof out->attach_path, "%.100s%s", path, ATTACH_SUFFIX);
    snprintf(out->lock_path, sizeof out->lock_path, "%.107s.lock", path);
    return KVL_OK;
}

kvl_err kvl_address_parse(const char *text, struct kvl_address *out, struct kvl_errmsg *msg) {
    *out = (struct kvl_address){0};
    if (!text || strlen(text) >= sizeof out->text)
        return kvl_fail(msg, KVL_ERR_INVALID, "address is missing or over %zu bytes long",
            sizeof out->text - 1);
    snprintf(out->text, sizeof out->text, "%s", text);
    if (strncmp(text, "ipc://", 6) == 0) {
        out->transport = KVL_TRANSPORT_IPC;
        return parse_ipc(text + 6, out, msg);
    }
    if (strncmp(text, "tcp://", 6) == 0 && strchr(text + 6, ':')) {
        out->transport = KVL_TRANSPORT_TCP;
        return KVL_OK;
    }
    return kvl_fail(msg, KVL_ERR_INVALID, "address '%s': use ipc://PATH or tcp://HOST:PORT", text);
}

kvl_err kvl_address_check_directory(const struct kvl_address *address, struct kvl_errmsg *msg) {
    struct stat info;
    if (stat(address->directory, &info) != 0)
        return kvl_fail(
            msg, kvl_err_from_errno(errno), "%s: %s", address->directory, strerror(errno));
    if (!S_ISDIR(info.st_mode))
        return kvl_fail(msg, KVL_ERR_PERM, "%s: not a directory", address->directory);
    if (info.st_uid != geteuid())
        return kvl_fail(msg, KVL_ERR_PERM, "%s: belongs to another user; use another address",
            address->directory);
    if (info.st_mode & 077)
        return kvl_fail(msg, KVL_ERR_PERM,
            "%s: open to other users; give the socket a folder of its own with mode 0700, for "
            "example ipc:///tmp/kvloft-%u/kvloft.sock",
            address->directory, (unsigned)geteuid());
    return KVL_OK;
}

struct sockaddr_un kvl_address_attach_sockaddr(const struct kvl_address *address) {
    struct sockaddr_un out = {.sun_family = AF_UNIX};
    memcpy(out.sun_path, address->attach_path, sizeof address->attach_path);
    return out;
}
