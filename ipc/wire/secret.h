/* secret.h - the secret that a tcp:// connection starts with, and that a tenant has.
 *
 * Client and daemon prove to each other that they hold the same secret: HMAC-SHA256 under it of a
 * label and the client's fresh nonce. The connection itself is not encrypted; the
 * session token can be read by who can read the network. */
#ifndef KVL_SECRET_H
#define KVL_SECRET_H

#include <stdbool.h>
#include <stdint.h>

#include "kvl_err.h"
#include "wire.h"

struct kvl_secret {
    uint8_t data[4096];
    uint32_t bytes;
};

/* A line's end behind the secret is none of it. Errors: NOTFOUND, PERM (readable by others),
 * INVALID (under 16 or over 4096 bytes), IO. */
KVL_MUST_CHECK kvl_err kvl_secret_read(
    const char *path, struct kvl_secret *out, struct kvl_errmsg *msg);
/* Text, of an environment variable or another file. INVALID as above. */
KVL_MUST_CHECK kvl_err kvl_secret_take(const char *text, struct kvl_secret *out);

enum kvl_prover { KVL_PROVER_CLIENT, KVL_PROVER_DAEMON, KVL_PROVER_TENANT };
/* Errors: INVALID (no secret), NOMEM (libcrypto). */
KVL_MUST_CHECK kvl_err kvl_secret_proof(struct kvl_bytes secret, enum kvl_prover prover,
    const uint8_t nonce[KVL_WIRE_PROOF_BYTES], uint8_t proof[KVL_WIRE_PROOF_BYTES]);
/* In a time that does not depend on where they differ. */
bool kvl_secret_equal(const void *a, const void *b, uint32_t bytes);

#endif
