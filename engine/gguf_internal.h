/* gguf_internal.h - what the GGUF parser, its getters and the fingerprint share. */
#ifndef KVL_GGUF_INTERNAL_H
#define KVL_GGUF_INTERNAL_H

#include <sys/stat.h>

#include "gguf.h"

/* One metadata pair. `value` spans the value as it stands in the file (a string's length and an
 * array's head included); `payload` starts after those. */
struct kvl_gguf_pair {
    struct kvl_gguf_string key;
    uint32_t type;         /* enum kvl_gguf_type */
    uint32_t element_type; /* of an array */
    uint64_t count;        /* of an array */
    const uint8_t *value;
    uint64_t value_bytes;
    const uint8_t *payload;
    uint64_t payload_bytes;
    struct kvl_gguf_string *strings; /* of an array of strings; owned */
};

struct kvl_gguf {
    const uint8_t *bytes; /* the whole file */
    uint64_t size_bytes;
    bool mapped; /* bytes is a mapping of fd; otherwise from posix_memalign */
    int fd;      /* -1 when opened from memory */
    struct stat identity;
    char *path;
    struct kvl_gguf_pair *pairs; /* file order */
    uint64_t pair_count;
    struct kvl_gguf_tensor *tensors; /* file order */
    uint64_t tensor_count;
    const struct kvl_gguf_pair **pairs_by_key;
    const struct kvl_gguf_tensor **tensors_by_name;
    /* The other files of a split model, in order; owned. Their tensors are in the list above too.
     */
    struct kvl_gguf **parts;
    uint32_t part_count;
};

/* Fills pairs, tensors and both orders from bytes. On an error what was allocated stays for
 * kvl_gguf_close. Errors: SHORT, CORRUPT, VERSION, UNSUPPORTED, NOMEM. */
KVL_MUST_CHECK kvl_err kvl_gguf_parse(struct kvl_gguf *gguf, struct kvl_errmsg *msg);

/* Fills tensors_by_name. Errors: CORRUPT (a name that is there twice). */
KVL_MUST_CHECK kvl_err kvl_gguf_order_tensors(struct kvl_gguf *gguf, struct kvl_errmsg *msg);

/* One file alone: mapped and parsed; split or not is not asked. Owns and errors: kvl_gguf_open. */
KVL_MUST_CHECK kvl_err kvl_gguf_open_part(
    const char *path, struct kvl_gguf **out, struct kvl_errmsg *msg);
/* Opens the other files of a split model and takes their tensors in; nothing to do for one file.
 * Errors: those of kvl_gguf_open; INVALID (not the first file); CORRUPT (files that do not belong
 * together). What was opened stays for kvl_gguf_close. */
KVL_MUST_CHECK kvl_err kvl_gguf_join(struct kvl_gguf *gguf, struct kvl_errmsg *msg);

/* Byte order, a prefix first: <0, 0, >0. */
int kvl_gguf_string_compare(struct kvl_gguf_string left, struct kvl_gguf_string right);
const struct kvl_gguf_pair *kvl_gguf_find_pair(const struct kvl_gguf *gguf, const char *key);

#endif
