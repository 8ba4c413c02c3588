/* gguf.c - opens a GGUF file and answers questions about it. The parser is gguf_parse.c. */
#include "gguf.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "gguf_internal.h"

#define MEMORY_ALIGNMENT_BYTES 4096

static struct kvl_gguf *gguf_new(const char *name) {
    struct kvl_gguf *gguf = calloc(1, sizeof *gguf);
    if (!gguf) {
        return NULL;
    }
    gguf->fd = -1;
    gguf->path = strdup(name);
    if (!gguf->path) {
        free(gguf);
        return NULL;
    }
    return gguf;
}

static kvl_err map_file(struct kvl_gguf *gguf, struct kvl_errmsg *msg) {
    gguf->fd = open(gguf->path, O_RDONLY | O_CLOEXEC);
    if (gguf->fd < 0 || fstat(gguf->fd, &gguf->identity) != 0) {
        return kvl_fail(msg, kvl_err_from_errno(errno), "%s: cannot open the model: %s", gguf->path,
            strerror(errno));
    }
    if (!S_ISREG(gguf->identity.st_mode)) {
        return kvl_fail(
            msg, KVL_ERR_INVALID, "%s: not a regular file; give a GGUF model", gguf->path);
    }
    gguf->size_bytes = (uint64_t)gguf->identity.st_size;
    if (gguf->size_bytes == 0) {
        return kvl_fail(
            msg, KVL_ERR_SHORT, "%s: the file is empty; fetch the file again", gguf->path);
    }
    void *mapping = mmap(NULL, gguf->size_bytes, PROT_READ, MAP_PRIVATE, gguf->fd, 0);
    if (mapping == MAP_FAILED) {
        return kvl_fail(msg, kvl_err_from_errno(errno), "%s: cannot map the model: %s", gguf->path,
            strerror(errno));
    }
    gguf->bytes = mapping;
    gguf->mapped = true;
    return KVL_OK;
}

kvl_err kvl_gguf_open_part(const char *path, struct kvl_gguf **out, struct kvl_errmsg *msg) {
    *out = NULL;
    struct kvl_gguf *gguf = gguf_new(path);
    if (!gguf) {
        return kvl_fail(msg, KVL_ERR_NOMEM, "%s: out of memory", path);
    }
    kvl_err err = map_file(gguf, msg);
    if (!err) {
        err = kvl_gguf_parse(gguf, msg);
    }
    if (err) {
        kvl_gguf_close(gguf);
        return err;
    }
    *out = gguf;
    return KVL_OK;
}

kvl_err kvl_gguf_open(const char *path, struct kvl_gguf **out, struct kvl_errmsg *msg) {
    kvl_err err = kvl_gguf_open_part(path, out, msg);
    if (!err) {
        err = kvl_gguf_join(*out, msg);
    }
    if (err) {
        kvl_gguf_close(*out);
        *out = NULL;
    }
    return err;
}

kvl_err kvl_gguf_open_memory(const void *data, uint64_t bytes, const char *name,
    struct kvl_gguf **out, struct kvl_errmsg *msg) {
    *out = NULL;
    struct kvl_gguf *gguf = gguf_new(name);
    void *copy = NULL;
    kvl_err err = KVL_OK;
    if (!gguf || posix_memalign(&copy, MEMORY_ALIGNMENT_BYTES, bytes > 0 ? bytes : 1) != 0) {
        err = kvl_fail(msg, KVL_ERR_NOMEM, "%s: out of memory", name);
        goto cleanup;
    }
    if (bytes > 0) {
        memcpy(copy, data, bytes);
    }
    gguf->bytes = copy;
    gguf->size_bytes = bytes;
    err = kvl_gguf_parse(gguf, msg);
cleanup:
    if (err) {
        kvl_gguf_close(gguf);
        return err;
    }
    *out = gguf;
    return KVL_OK;
}

void kvl_gguf_close(struct kvl_gguf *gguf) {
    if (!gguf) {
        return;
    }
    for (uint64_t i = 0; i < gguf->pair_count && gguf->pairs; i++) {
        free(gguf->pairs[i].strings);
    }
    free(gguf->pairs);
    free(gguf->tensors);
    free(gguf->pairs_by_key);
    free(gguf->tensors_by_name);
    for (uint32_t i = 0; i < gguf->part_count; i++) {
        kvl_gguf_close(gguf->parts[i]);
    }
    free(gguf->parts);
    if (gguf->mapped) {
        munmap((void *)gguf->bytes, gguf->size_bytes);
    } else {
        free((void *)gguf->bytes);
    }
    if (gguf->fd >= 0) {
        close(gguf->fd);
    }
    free(gguf->path);
    free(gguf);
}

void kvl_gguf_let_go(const struct kvl_gguf *gguf) {
    if (gguf->mapped) {
        (void)madvise((void *)gguf->bytes, gguf->size_bytes, MADV_DONTNEED);
    }
    for (uint32_t i = 0; i < gguf->part_count; i++) {
        kvl_gguf_let_go(gguf->parts[i]);
    }
}

const char *kvl_gguf_path(const struct kvl_gguf *gguf) {
    return gguf->path;
}

static struct kvl_gguf_string from_c(const char *text) {
    return (struct kvl_gguf_string){text, strlen(text)};
}

const struct kvl_gguf_pair *kvl_gguf_find_pair(const struct kvl_gguf *gguf, const char *key) {
    struct kvl_gguf_string wanted = from_c(key);
    uint64_t low = 0, high = gguf->pair_count;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        int order = kvl_gguf_string_compare(gguf->pairs_by_key[middle]->key, wanted);
        if (order == 0) {
            return gguf->pairs_by_key[middle];
        }
        if (order < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return NULL;
}

static bool to_unsigned(int64_t value, uint64_t *out) {
    if (value < 0) {
        return false;
    }
    *out = (uint64_t)value;
    return true;
}

bool kvl_gguf_u64(const struct kvl_gguf *gguf, const char *key, uint64_t *value) {
    const struct kvl_gguf_pair *pair = kvl_gguf_find_pair(gguf, key);
    if (!pair || pair->payload_bytes > sizeof(uint64_t)) {
        return false;
    }
    uint64_t raw = 0; /* little endian, zero extended */
    memcpy(&raw, pair->payload, pair->payload_bytes);
    raw = le64toh(raw);
    switch (pair->type) {
    case KVL_GGUF_U8:
    case KVL_GGUF_U16:
    case KVL_GGUF_U32:
    case KVL_GGUF_U64:
        *value = raw;
        return true;
    case KVL_GGUF_I8:
        return to_unsigned((int8_t)raw, value);
    case KVL_GGUF_I16:
        return to_unsigned((int16_t)raw, value);
    case KVL_GGUF_I32:
        return to_unsigned((int32_t)raw, value);
    case KVL_GGUF_I64:
        return to_unsigned((int64_t)raw, value);
    default:
        return false;
    }
}

bool kvl_gguf_f32(const struct kvl_gguf *gguf, const char *key, float *value) {
    const struct kvl_gguf_pair *pair = kvl_gguf_find_pair(gguf, key);
    if (!pair || pair->type != KVL_GGUF_F32) {
        return false;
    }
    uint32_t raw;
    memcpy(&raw, pair->payload, sizeof raw);
    raw = le32toh(raw);
    memcpy(value, &raw, sizeof raw);
    return true;
}

bool kvl_gguf_bool(const struct kvl_gguf *gguf, const char *key, bool *value) {
    const struct kvl_gguf_pair *pair = kvl_gguf_find_pair(gguf, key);
    if (!pair || pair->type != KVL_GGUF_BOOL) {
        return false;
    }
    *value = *pair->payload != 0;
    return true;
}

bool kvl_gguf_string(const struct kvl_gguf *gguf, const char *key, struct kvl_gguf_string *value) {
    const struct kvl_gguf_pair *pair = kvl_gguf_find_pair(gguf, key);
    if (!pair || pair->type != KVL_GGUF_STRING) {
        return false;
    }
    *value = (struct kvl_gguf_string){(const char *)pair->payload, pair->payload_bytes};
    return true;
}

bool kvl_gguf_array(const struct kvl_gguf *gguf, const char *key, struct kvl_gguf_array *value) {
    const struct kvl_gguf_pair *pair = kvl_gguf_find_pair(gguf, key);
    if (!pair || pair->type != KVL_GGUF_ARRAY) {
        return false;
    }
    *value = (struct kvl_gguf_array){
        pair->element_type, pair->count, pair->strings ? NULL : pair->payload, pair->strings};
    return true;
}

uint64_t kvl_gguf_tensor_count(const struct kvl_gguf *gguf) {
    return gguf->tensor_count;
}

const struct kvl_gguf_tensor *kvl_gguf_tensor_at(const struct kvl_gguf *gguf, uint64_t index) {
    return index < gguf->tensor_count ? &gguf->tensors[index] : NULL;
}

const struct kvl_gguf_tensor *kvl_gguf_tensor(const struct kvl_gguf *gguf, const char *name) {
    struct kvl_gguf_string wanted = from_c(name);
    uint64_t low = 0, high = gguf->tensor_count;
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        int order = kvl_gguf_string_compare(gguf->tensors_by_name[middle]->name, wanted);
        if (order == 0) {
            return gguf->tensors_by_name[middle];
        }
        if (order < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return NULL;
}
