/* gguf_split.c - a model split over several GGUF files.
 *
 *   NAME-00001-of-00003.gguf   split.no 0, split.count 3, split.tensors.count; all other metadata
 *   NAME-00002-of-00003.gguf   split.no 1, split.count 3
 *
 * (llama.cpp's gguf-split.) Each file holds some of the tensors; all must be there. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gguf_internal.h"

#define SPLIT_COUNT_MAX 9999u
#define SUFFIX "-%05u-of-%05u.gguf"
#define SUFFIX_BYTES (sizeof "-00001-of-00003.gguf" - 1)

/* The path of file `number` (from 0), from that of the first; NULL without memory, or when the
 * first is not named so. To be freed. */
static char *part_path(const char *first, uint32_t number, uint32_t count) {
    char suffix[32];
    const size_t bytes = strlen(first);
    snprintf(suffix, sizeof suffix, SUFFIX, 1u, count);
    if (bytes < SUFFIX_BYTES || strcmp(first + bytes - SUFFIX_BYTES, suffix) != 0) {
        return NULL;
    }
    char *path = strdup(first);
    if (path != NULL) {
        snprintf(path + bytes - SUFFIX_BYTES, SUFFIX_BYTES + 1, SUFFIX, number + 1, count);
    }
    return path;
}

static kvl_err open_part(
    struct kvl_gguf *gguf, uint32_t number, uint32_t count, struct kvl_errmsg *msg) {
    char *path = part_path(gguf->path, number, count);
    if (path == NULL) {
        return kvl_fail(msg, KVL_ERR_INVALID,
            "%s: is one of %u files of a model; name them as they were, ...-00001-of-%05u.gguf, "
            "and give the first",
            gguf->path, count, count);
    }
    struct kvl_gguf *part;
    kvl_err err = kvl_gguf_open_part(path, &part, msg);
    free(path);
    if (err) {
        return err;
    }
    gguf->parts[gguf->part_count++] = part;
    uint64_t part_number, part_count;
    if (!kvl_gguf_u64(part, "split.no", &part_number) || part_number != number ||
        !kvl_gguf_u64(part, "split.count", &part_count) || part_count != count) {
        return kvl_fail(msg, KVL_ERR_CORRUPT,
            "%s: is not file %u of the %u of its model; fetch it again", part->path, number + 1,
            count);
    }
    return KVL_OK;
}

/* All files' tensors in one list. */
static kvl_err take_tensors(struct kvl_gguf *gguf, struct kvl_errmsg *msg) {
    uint64_t count = gguf->tensor_count, named;
    for (uint32_t i = 0; i < gguf->part_count; i++) {
        count += gguf->parts[i]->tensor_count;
    }
    if (kvl_gguf_u64(gguf, "split.tensors.count", &named) && named != count) {
        return kvl_fail(msg, KVL_ERR_CORRUPT,
            "%s: its files hold %llu tensors, and it says %llu; fetch them again", gguf->path,
            (unsigned long long)count, (unsigned long long)named);
    }
    struct kvl_gguf_tensor *tensors = calloc(count + 1, sizeof *tensors);
    const struct kvl_gguf_tensor **by_name = calloc(count + 1, sizeof(struct kvl_gguf_tensor *));
    if (!tensors || !by_name) {
        free(tensors);
        free(by_name);
        return kvl_fail(msg, KVL_ERR_NOMEM, "%s: out of memory", gguf->path);
    }
    struct kvl_gguf_tensor *end = tensors;
    for (uint64_t i = 0; i < gguf->tensor_count; i++) {
        *end++ = gguf->tensors[i];
    }
    for (uint32_t part = 0; part < gguf->part_count; part++) {
        for (uint64_t i = 0; i < gguf->parts[part]->tensor_count; i++) {
            *end++ = gguf->parts[part]->tensors[i];
        }
    }
    free(gguf->tensors);
    free(gguf->tensors_by_name);
    gguf->tensors = tensors;
    gguf->tensors_by_name = by_name;
    gguf->tensor_count = count;
    return kvl_gguf_order_tensors(gguf, msg);
}

kvl_err kvl_gguf_join(struct kvl_gguf *gguf, struct kvl_errmsg *msg) {
    uint64_t count = 1, number = 0;
    if (!kvl_gguf_u64(gguf, "split.count", &count) || count <= 1) {
        return KVL_OK;
    }
    if (!kvl_gguf_u64(gguf, "split.no", &number) || number != 0) {
        return kvl_fail(msg, KVL_ERR_INVALID,
            "%s: is not the first of a model's files; give that one", gguf->path);
    }
    if (count > SPLIT_COUNT_MAX) {
        return kvl_fail(msg, KVL_ERR_CORRUPT, "%s: cannot be one of %llu files", gguf->path,
            (unsigned long long)count);
    }
    gguf->parts = calloc(count, sizeof(struct kvl_gguf *));
    if (!gguf->parts) {
        return kvl_fail(msg, KVL_ERR_NOMEM, "%s: out of memory", gguf->path);
    }
    for (uint32_t i = 1; i < count; i++) {
        kvl_err err = open_part(gguf, i, (uint32_t)count, msg);
        if (err) {
            return err;
        }
    }
    return take_tensors(gguf, msg);
}
