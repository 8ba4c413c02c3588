/* address.h - what an address means: which transport, which files beside it.
 *
 *   ipc://DIR/NAME   nanomsg socket at DIR/NAME, attach socket at DIR/NAME.attach, and
 *                    DIR/NAME.lock, locked by the daemon that lives there
 *   tcp://HOST:PORT  no attach */
#ifndef KVL_ADDRESS_H
#define KVL_ADDRESS_H

#include <sys/un.h>

#include "kvl_err.h"

enum kvl_transport { KVL_TRANSPORT_IPC, KVL_TRANSPORT_TCP };

struct kvl_address {
    char text[128];
    enum kvl_transport transport;
    /* ipc only: */
    char directory[108];
    char socket_path[108];
    char attach_path[108];
    char lock_path[116];
};

/* Errors: INVALID, TOOBIG (a socket path has at most 107 bytes, ".attach" included). */
KVL_MUST_CHECK kvl_err kvl_address_parse(
    const char *text, struct kvl_address *out, struct kvl_errmsg *msg);
/* The directory must be this user's own and closed to everybody else. Errors: NOTFOUND, PERM. */
KVL_MUST_CHECK kvl_err kvl_address_check_directory(
    const struct kvl_address *address, struct kvl_errmsg *msg);
/* For connect and bind on the attach socket. */
struct sockaddr_un kvl_address_attach_sockaddr(const struct kvl_address *address);

#endif
