/* secret.c - see secret.h. */
#include "secret.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SECRET_BYTES_MIN 16

/* An editor or echo ends a file with a line's end, a variable or a JSON text has none. */
static kvl_err trim(struct kvl_secret *secret) {
    while (secret->bytes > 0 &&
           (secret->data[secret->bytes - 1] == '\n' || secret->data[secret->bytes - 1] == '\r'))
        secret->bytes--;
    return secret->bytes < SECRET_BYTES_MIN ? KVL_ERR_INVALID : KVL_OK;
}

static kvl_err read_checked(
    int fd, const char *path, struct kvl_secret *out, struct kvl_errmsg *msg) {
    struct stat info;
    if (fstat(fd, &info) != 0)
        return kvl_fail(msg, kvl_err_from_errno(errno), "%s: %s", path, strerror(errno));
    if (info.st_mode & 077)
        return kvl_fail(msg, KVL_ERR_PERM, "%s: readable by other users; chmod 600 it", path);
    ssize_t got = read(fd, out->data, sizeof out->data);
    if (got < 0)
        return kvl_fail(msg, kvl_err_from_errno(errno), "%s: %s", path, strerror(errno));
    out->bytes = (uint32_t)got;
    if (info.st_size > (off_t)sizeof out->data || trim(out) != KVL_OK)
        return kvl_fail(msg, KVL_ERR_INVALID, "%s: a secret has 16 to 4096 bytes", path);
    return KVL_OK;
}

kvl_err kvl_secret_take(const char *text, struct kvl_secret *out) {
    size_t bytes = strnlen(text, sizeof out->data + 1);
    if (bytes > sizeof out->data)
        return KVL_ERR_INVALID;
    memcpy(out->data, text, bytes);
    out->bytes = (uint32_t)bytes;
    return trim(out);
}

kvl_err kvl_secret_read(const char *path, struct kvl_secret *out, struct kvl_errmsg *msg) {
    *out = (struct kvl_secret){0};
    if (!path)
        return kvl_fail(
            msg, KVL_ERR_INVALID, "tcp:// needs a secret on both sides: --secret-file FILE");
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return kvl_fail(msg, kvl_err_from_errno(errno), "%s: %s", path, strerror(errno));
    kvl_err err = read_checked(fd, path, out, msg);
    close(fd);
    return err;
}

kvl_err kvl_secret_proof(struct kvl_bytes secret, enum kvl_prover prover,
    const uint8_t nonce[KVL_WIRE_PROOF_BYTES], uint8_t proof[KVL_WIRE_PROOF_BYTES]) {
    static const char *const labels[] = {
        "kvloft hello client", "kvloft hello daemon", "kvloft hello tenant"};
    uint8_t text[24 + KVL_WIRE_PROOF_BYTES] = {0};
    if (secret.bytes == 0)
        return KVL_ERR_INVALID;
    memcpy(text, labels[prover], strlen(labels[prover]));
    memcpy(text + 24, nonce, KVL_WIRE_PROOF_BYTES);
    unsigned int bytes = 0;
    if (!HMAC(EVP_sha256(), secret.data, (int)secret.bytes, text, sizeof text, proof, &bytes))
        return KVL_ERR_NOMEM;
    return KVL_OK;
}

bool kvl_secret_equal(const void *a, const void *b, uint32_t bytes) {
    return CRYPTO_memcmp(a, b, bytes) == 0;
}
