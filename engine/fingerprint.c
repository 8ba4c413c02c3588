/* fingerprint.c - what a model's numbers are, in 32 bytes, and the cache that spares hashing the
 * weights at every start.
 *
 * SHA-256 over fields, each a u64le of its bytes and then the bytes:
 *
 *   architecture
 *   u64le count of pairs;   per pair:   key, u32le type, value as in the file
 *   u64le count of tensors; per tensor: name, u32le type, 4 x u64le dims, data
 *
 * The cache is one small text file for each device and inode:
 *
 *   kvloft-fingerprint 1 SIZE MTIME_S MTIME_NS CTIME_S CTIME_NS FINGERPRINT\nSHA-256 OF THAT LINE\n
 *
 * Of a split model it belongs to the first file, and before the fingerprint stands a SHA-256 over
 * device, inode, size, mtime and ctime of the others.
 *
 * A file that was changed less than two seconds ago is hashed again: another change within the
 * same tick of the file system's clock would not show. */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "gguf_internal.h"

#define HASH_BYTES 32
#define LINE_BYTES 512
#define PATH_BYTES 4096
#define SETTLED_SECONDS 2

static bool put(EVP_MD_CTX *hash, const void *bytes, uint64_t count_bytes) {
    uint64_t prefix = htole64(count_bytes);
    return EVP_DigestUpdate(hash, &prefix, sizeof prefix) == 1 &&
           EVP_DigestUpdate(hash, bytes, count_bytes) == 1;
}

static bool put_u32(EVP_MD_CTX *hash, uint32_t value) {
    value = htole32(value);
    return put(hash, &value, sizeof value);
}

static bool put_u64(EVP_MD_CTX *hash, uint64_t value) {
    value = htole64(value);
    return put(hash, &value, sizeof value);
}

static bool belongs_to(struct kvl_gguf_string key, struct kvl_gguf_string architecture) {
    return key.bytes > architecture.bytes && key.data[architecture.bytes] == '.' &&
           memcmp(key.data, architecture.data, architecture.bytes) == 0;
}

static bool put_pairs(
    EVP_MD_CTX *hash, const struct kvl_gguf *gguf, struct kvl_gguf_string architecture) {
    uint64_t count = 0;
    for (uint64_t i = 0; i < gguf->pair_count; i++) {
        count += belongs_to(gguf->pairs[i].key, architecture);
    }
    bool good = put(hash, architecture.data, architecture.bytes) && put_u64(hash, count);
    for (uint64_t i = 0; i < gguf->pair_count && good; i++) {
        const struct kvl_gguf_pair *pair = &gguf->pairs[i];
        if (belongs_to(pair->key, architecture)) {
            good = put(hash, pair->key.data, pair->key.bytes) && put_u32(hash, pair->type) &&
                   put(hash, pair->value, pair->value_bytes);
        }
    }
    return good;
}

static bool put_tensors(EVP_MD_CTX *hash, const struct kvl_gguf *gguf) {
    bool good = put_u64(hash, gguf->tensor_count);
    for (uint64_t i = 0; i < gguf->tensor_count && good; i++) {
        const struct kvl_gguf_tensor *tensor = gguf->tensors_by_name[i];
        uint64_t dims[4];
        for (int d = 0; d < 4; d++) {
            dims[d] = htole64(tensor->dims[d]);
        }
        good = put(hash, tensor->name.data, tensor->name.bytes) && put_u32(hash, tensor->type) &&
               put(hash, dims, sizeof dims) && put(hash, tensor->data, tensor->data_bytes);
    }
    return good;
}

static kvl_err hash_model(
    const struct kvl_gguf *gguf, uint8_t fingerprint[HASH_BYTES], struct kvl_errmsg *msg) {
    struct kvl_gguf_string architecture;
    if (!kvl_gguf_string(gguf, "general.architecture", &architecture)) {
        return kvl_fail(msg, KVL_ERR_CORRUPT,
            "%s: does not say its architecture (general.architecture)", gguf->path);
    }
    EVP_MD_CTX *hash = EVP_MD_CTX_new();
    bool good = hash && EVP_DigestInit_ex(hash, EVP_sha256(), NULL) == 1 &&
                put_pairs(hash, gguf, architecture) && put_tensors(hash, gguf) &&
                EVP_DigestFinal_ex(hash, fingerprint, NULL) == 1;
    EVP_MD_CTX_free(hash);
    return good ? KVL_OK : kvl_fail(msg, KVL_ERR_NOMEM, "%s: cannot hash the model", gguf->path);
}

/* False when there is no place for a cache. */
static bool cache_folder(char folder[PATH_BYTES]) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int bytes;
    if (cache && cache[0] == '/') {
        bytes = snprintf(folder, PATH_BYTES, "%s/kvloft/fingerprints", cache);
    } else if (home && home[0] == '/') {
        bytes = snprintf(folder, PATH_BYTES, "%s/.cache/kvloft/fingerprints", home);
    } else {
        return false;
    }
    return bytes > 0 && bytes < PATH_BYTES;
}

static bool cache_path(const struct stat *identity, const char *folder, char path[PATH_BYTES]) {
    int bytes = snprintf(path, PATH_BYTES, "%s/%jx-%ju", folder, (uintmax_t)identity->st_dev,
        (uintmax_t)identity->st_ino);
    return bytes > 0 && bytes < PATH_BYTES;
}

static void to_hex(const uint8_t bytes[HASH_BYTES], char hex[2 * HASH_BYTES + 1]) {
    for (int i = 0; i < HASH_BYTES; i++) {
        snprintf(hex + (ptrdiff_t)2 * i, 3, "%02x", bytes[i]);
    }
}

static bool put_identity(EVP_MD_CTX *hash, const struct stat *identity) {
    const int64_t numbers[] = {(int64_t)identity->st_dev, (int64_t)identity->st_ino,
        identity->st_size, identity->st_mtim.tv_sec, identity->st_mtim.tv_nsec,
        identity->st_ctim.tv_sec, identity->st_ctim.tv_nsec};
    bool good = true;
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        good = good && put_u64(hash, (uint64_t)numbers[i]);
    }
    return good;
}

/* The other files of a split model as "HEX ", nothing for one file. */
static bool parts_text(const struct kvl_gguf *gguf, char text[2 * HASH_BYTES + 2]) {
    uint8_t digest[HASH_BYTES];
    text[0] = '\0';
    if (gguf->part_count == 0) {
        return true;
    }
    EVP_MD_CTX *hash = EVP_MD_CTX_new();
    bool good = hash && EVP_DigestInit_ex(hash, EVP_sha256(), NULL) == 1;
    for (uint32_t i = 0; i < gguf->part_count && good; i++) {
        good = put_identity(hash, &gguf->parts[i]->identity);
    }
    good = good && EVP_DigestFinal_ex(hash, digest, NULL) == 1;
    EVP_MD_CTX_free(hash);
    if (good) {
        to_hex(digest, text);
        strcat(text, " ");
    }
    return good;
}

/* What the cache file of this model and fingerprint holds; 0 when it cannot be made. */
static uint64_t cache_text(
    const struct kvl_gguf *gguf, const uint8_t fingerprint[HASH_BYTES], char text[LINE_BYTES]) {
    const struct stat *identity = &gguf->identity;
    char hex[2 * HASH_BYTES + 1], parts[2 * HASH_BYTES + 2];
    uint8_t check[HASH_BYTES];
    if (!parts_text(gguf, parts)) {
        return 0;
    }
    to_hex(fingerprint, hex);
    int bytes = snprintf(text, LINE_BYTES, "kvloft-fingerprint 1 %jd %jd %ld %jd %ld %s%s\n",
        (intmax_t)identity->st_size, (intmax_t)identity->st_mtim.tv_sec, identity->st_mtim.tv_nsec,
        (intmax_t)identity->st_ctim.tv_sec, identity->st_ctim.tv_nsec, parts, hex);
    if (EVP_Digest(text, (size_t)bytes, check, NULL, EVP_sha256(), NULL) != 1) {
        return 0;
    }
    to_hex(check, hex);
    bytes += snprintf(text + bytes, (size_t)(LINE_BYTES - bytes), "%s\n", hex);
    return (uint64_t)bytes;
}

/* Reads the fingerprint where it stands in the line, then compares the whole file with what it
 * would have to be: any other size, time or damaged byte is a miss. */
static bool cache_read(
    const struct kvl_gguf *gguf, const char *path, uint8_t fingerprint[HASH_BYTES]) {
    char found[LINE_BYTES] = {0}, expected[LINE_BYTES];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return false;
    }
    ssize_t found_bytes = read(fd, found, sizeof found - 1);
    close(fd);
    const char *end = strchr(found, '\n');
    if (found_bytes <= 0 || !end || end - found < 2 * HASH_BYTES) {
        return false;
    }
    for (int i = 0; i < HASH_BYTES; i++) {
        /* NOLINTNEXTLINE(cert-err34-c): what is misread differs from the file below. */
        if (sscanf(end - 2 * HASH_BYTES + (ptrdiff_t)2 * i, "%2hhx", &fingerprint[i]) != 1) {
            return false;
        }
    }
    uint64_t expected_bytes = cache_text(gguf, fingerprint, expected);
    return expected_bytes == (uint64_t)found_bytes && memcmp(found, expected, expected_bytes) == 0;
}

/* mkdir -p, for this user only. */
static void make_folders(char *folder) {
    for (char *slash = strchr(folder + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        (void)mkdir(folder, 0700);
        *slash = '/';
    }
    (void)mkdir(folder, 0700);
}

static void cache_write(
    const struct kvl_gguf *gguf, const char *path, const uint8_t fingerprint[HASH_BYTES]) {
    char text[LINE_BYTES], temporary[PATH_BYTES + 32];
    uint64_t bytes = cache_text(gguf, fingerprint, text);
    snprintf(temporary, sizeof temporary, "%s.XXXXXX", path);
    int fd = bytes > 0 ? mkostemp(temporary, O_CLOEXEC) : -1;
    if (fd < 0) {
        return;
    }
    bool good = write(fd, text, bytes) == (ssize_t)bytes;
    good = close(fd) == 0 && good;
    if (!good || rename(temporary, path) != 0) {
        unlink(temporary);
    }
}

/* The file is what it was when it was opened, and has been so for a while. */
static bool part_settled(const struct kvl_gguf *gguf) {
    struct stat now;
    struct timespec clock;
    const struct stat *then = &gguf->identity;
    return fstat(gguf->fd, &now) == 0 && clock_gettime(CLOCK_REALTIME, &clock) == 0 &&
           now.st_size == then->st_size && now.st_mtim.tv_sec == then->st_mtim.tv_sec &&
           now.st_mtim.tv_nsec == then->st_mtim.tv_nsec &&
           now.st_ctim.tv_sec == then->st_ctim.tv_sec &&
           now.st_ctim.tv_nsec == then->st_ctim.tv_nsec &&
           clock.tv_sec - now.st_ctim.tv_sec > SETTLED_SECONDS;
}

static bool settled(const struct kvl_gguf *gguf) {
    bool all = part_settled(gguf);
    for (uint32_t i = 0; i < gguf->part_count && all; i++) {
        all = part_settled(gguf->parts[i]);
    }
    return all;
}

kvl_err kvl_gguf_fingerprint(
    const struct kvl_gguf *gguf, uint8_t fingerprint[32], struct kvl_errmsg *msg) {
    char folder[PATH_BYTES], path[PATH_BYTES];
    bool cached = gguf->fd >= 0 && cache_folder(folder) &&
                  cache_path(&gguf->identity, folder, path) && settled(gguf);
    if (cached && cache_read(gguf, path, fingerprint)) {
        return KVL_OK;
    }
    kvl_err err = hash_model(gguf, fingerprint, msg);
    if (!err && cached && settled(gguf)) {
        make_folders(folder);
        cache_write(gguf, path, fingerprint);
    }
    return err;
}
