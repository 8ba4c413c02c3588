/* credentials.c - as which tenant this client comes, and how it proves that it may.
 *
 * What the options leave open the environment says: KVLOFT_TENANT, and KVLOFT_SECRET_FILE or
 * KVLOFT_SECRET. The secret is read anew for each hello and kept nowhere. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "client_internal.h"

static const char *from_environment(const char *given, const char *name) {
    const char *value = given ? given : getenv(name);
    return value && value[0] ? value : NULL;
}

kvl_err kvl_credentials_take(
    struct kvl_client *client, const struct kvl_client_options *options, struct kvl_errmsg *msg) {
    const char *tenant = from_environment(options->tenant, "KVLOFT_TENANT");
    const char *file = from_environment(options->secret_file, "KVLOFT_SECRET_FILE");
    if (tenant && strlen(tenant) >= sizeof client->tenant)
        return kvl_fail(msg, KVL_ERR_INVALID, "a tenant's name has at most 63 bytes");
    if (file && strlen(file) >= sizeof client->secret_file)
        return kvl_fail(msg, KVL_ERR_TOOBIG, "secret_file: path too long");
    snprintf(client->tenant, sizeof client->tenant, "%s", tenant ? tenant : "");
    snprintf(client->secret_file, sizeof client->secret_file, "%s", file ? file : "");
    return KVL_OK;
}

static kvl_err read_secret(
    const struct kvl_client *client, struct kvl_secret *secret, struct kvl_errmsg *msg) {
    const char *text = from_environment(NULL, "KVLOFT_SECRET");
    if (client->secret_file[0])
        return kvl_secret_read(client->secret_file, secret, msg);
    if (text && kvl_secret_take(text, secret) == KVL_OK)
        return KVL_OK;
    if (text)
        return kvl_fail(msg, KVL_ERR_INVALID, "KVLOFT_SECRET: a secret has 16 to 4096 bytes");
    if (client->tenant[0])
        return kvl_fail(msg, KVL_ERR_INVALID,
            "tenant '%s' needs its secret: set KVLOFT_SECRET_FILE or give a secret file",
            client->tenant);
    return kvl_secret_read(NULL, secret, msg);
}

kvl_err kvl_credentials_nonce(uint8_t nonce[KVL_WIRE_PROOF_BYTES], struct kvl_errmsg *msg) {
    if (getrandom(nonce, KVL_WIRE_PROOF_BYTES, 0) == KVL_WIRE_PROOF_BYTES)
        return KVL_OK;
    return kvl_fail(msg, KVL_ERR_IO, "getrandom: %s", strerror(errno));
}

kvl_err kvl_credentials_prove(const struct kvl_client *client, enum kvl_prover prover,
    const uint8_t nonce[KVL_WIRE_PROOF_BYTES], uint8_t proof[KVL_WIRE_PROOF_BYTES],
    struct kvl_errmsg *msg) {
    struct kvl_secret secret = {.bytes = 0};
    kvl_err err = read_secret(client, &secret, msg);
    if (err == KVL_OK) {
        err = kvl_secret_proof((struct kvl_bytes){secret.data, secret.bytes}, prover, nonce, proof);
        if (err != KVL_OK)
            (void)kvl_fail(msg, err, "cannot prove the secret: %s", kvl_err_text(err));
    }
    explicit_bzero(&secret, sizeof secret);
    return err;
}

kvl_err kvl_credentials_refused(const struct kvl_client *client, struct kvl_errmsg *msg) {
    if (client->tenant[0])
        return kvl_fail(msg, KVL_ERR_PERM,
            "%s: the daemon knows no tenant '%s' with this secret; look at its tenants file",
            client->address.text, client->tenant);
    return kvl_fail(msg, KVL_ERR_PERM,
        "%s: the daemon lets in named tenants only; set KVLOFT_TENANT and KVLOFT_SECRET_FILE",
        client->address.text);
}
