/* gguf_parse.c - the validating reader of a GGUF v3 file. Nothing in the file is trusted.
 *
 *   0  "GGUF"
 *   4  u32 version = 3
 *   8  u64 tensor count
 *  16  u64 pair count
 *  24  pairs:   string key, u32 type, value
 *      tensors: string name, u32 dim count, u64 dims[], u32 type, u64 offset into the data
 *      zeros up to general.alignment (32 unless given)
 *      data
 *
 * A string is u64 bytes, then the bytes; an array u32 element type, u64 count, elements.
 * All little endian. */
#include <endian.h>
#include <stdlib.h>
#include <string.h>

#include "gguf_internal.h"

#define PAIR_BYTES_MIN (8 + 4 + 1)
#define TENSOR_BYTES_MIN (8 + 4 + 8 + 4 + 8)
#define ALIGNMENT_DEFAULT 32
#define ALIGNMENT_MIN 8
#define ALIGNMENT_MAX (UINT64_C(1) << 20)
/* A length over this is damage, not a file that ends early. */
#define PLAUSIBLE_BYTES_MAX (UINT64_C(1) << 44)
#define NAME_SHOWN_BYTES 96

struct reader {
    const uint8_t *at;
    const uint8_t *end;
    const char *path;
    struct kvl_errmsg *msg;
};

/* A name from the file made fit for a message: printable and short. */
struct shown_name {
    char text[NAME_SHOWN_BYTES + 1];
};

static struct shown_name show(struct kvl_gguf_string name) {
    struct shown_name shown = {0};
    for (uint64_t i = 0; i < name.bytes && i < NAME_SHOWN_BYTES; i++) {
        char c = name.data[i];
        shown.text[i] = c >= ' ' && c <= '~' ? c : '?';
    }
    return shown;
}

static kvl_err need(struct reader *reader, uint64_t bytes, const char *what) {
    uint64_t left = (uint64_t)(reader->end - reader->at);
    if (bytes <= left) {
        return KVL_OK;
    }
    if (bytes > PLAUSIBLE_BYTES_MAX) {
        return kvl_fail(reader->msg, KVL_ERR_CORRUPT,
            "%s: damaged: a size of %s is impossible; fetch the file again", reader->path, what);
    }
    return kvl_fail(reader->msg, KVL_ERR_SHORT,
        "%s: the file ends inside %s (%llu bytes are missing); fetch the file again", reader->path,
        what, (unsigned long long)(bytes - left));
}

/* Room for count things of at least bytes_min each; so no count can ask for more memory than a
 * small multiple of the file. */
static kvl_err need_count(
    struct reader *reader, uint64_t count, uint64_t bytes_min, const char *what) {
    uint64_t bytes;
    if (__builtin_mul_overflow(count, bytes_min, &bytes)) {
        bytes = UINT64_MAX;
    }
    return need(reader, bytes, what);
}

static kvl_err read_u32(struct reader *reader, uint32_t *value, const char *what) {
    kvl_err err = need(reader, sizeof *value, what);
    if (err) {
        return err;
    }
    memcpy(value, reader->at, sizeof *value);
    *value = le32toh(*value);
    reader->at += sizeof *value;
    return KVL_OK;
}

static kvl_err read_u64(struct reader *reader, uint64_t *value, const char *what) {
    kvl_err err = need(reader, sizeof *value, what);
    if (err) {
        return err;
    }
    memcpy(value, reader->at, sizeof *value);
    *value = le64toh(*value);
    reader->at += sizeof *value;
    return KVL_OK;
}

static kvl_err read_string(
    struct reader *reader, struct kvl_gguf_string *string, const char *what) {
    kvl_err err = read_u64(reader, &string->bytes, what);
    if (!err) {
        err = need(reader, string->bytes, what);
    }
    if (err) {
        return err;
    }
    string->data = (const char *)reader->at;
    reader->at += string->bytes;
    return KVL_OK;
}

/* 0 for strings, arrays and unknown types. */
static uint64_t scalar_bytes(uint32_t type) {
    switch (type) {
    case KVL_GGUF_U8:
    case KVL_GGUF_I8:
    case KVL_GGUF_BOOL:
        return 1;
    case KVL_GGUF_U16:
    case KVL_GGUF_I16:
        return 2;
    case KVL_GGUF_U32:
    case KVL_GGUF_I32:
    case KVL_GGUF_F32:
        return 4;
    case KVL_GGUF_U64:
    case KVL_GGUF_I64:
    case KVL_GGUF_F64:
        return 8;
    default:
        return 0;
    }
}

static kvl_err read_string_array(struct reader *reader, struct kvl_gguf_pair *pair) {
    kvl_err err = need_count(reader, pair->count, sizeof(uint64_t), "an array of strings");
    if (err || pair->count == 0) {
        return err;
    }
    pair->strings = calloc(pair->count, sizeof *pair->strings);
    if (!pair->strings) {
        return kvl_fail(reader->msg, KVL_ERR_NOMEM, "%s: out of memory", reader->path);
    }
    for (uint64_t i = 0; i < pair->count && !err; i++) {
        err = read_string(reader, &pair->strings[i], "an array of strings");
    }
    return err;
}

static kvl_err read_array(struct reader *reader, struct kvl_gguf_pair *pair) {
    kvl_err err = read_u32(reader, &pair->element_type, "an array");
    if (!err) {
        err = read_u64(reader, &pair->count, "an array");
    }
    if (err) {
        return err;
    }
    pair->payload = reader->at;
    if (pair->element_type == KVL_GGUF_STRING) {
        return read_string_array(reader, pair);
    }
    uint64_t element_bytes = scalar_bytes(pair->element_type);
    if (element_bytes == 0) {
        return kvl_fail(reader->msg, KVL_ERR_UNSUPPORTED,
            "%s: metadata %s is an array of type %u; only arrays of scalars and strings are "
            "supported",
            reader->path, show(pair->key).text, pair->element_type);
    }
    err = need_count(reader, pair->count, element_bytes, "an array");
    if (!err) {
        reader->at += pair->count * element_bytes;
    }
    return err;
}

static kvl_err read_scalar(struct reader *reader, struct kvl_gguf_pair *pair) {
    uint64_t bytes = scalar_bytes(pair->type);
    if (bytes == 0) {
        return kvl_fail(reader->msg, KVL_ERR_CORRUPT,
            "%s: metadata %s has type %u, which GGUF does not have", reader->path,
            show(pair->key).text, pair->type);
    }
    kvl_err err = need(reader, bytes, "a metadata value");
    if (err) {
        return err;
    }
    if (pair->type == KVL_GGUF_BOOL && *reader->at > 1) {
        return kvl_fail(reader->msg, KVL_ERR_CORRUPT,
            "%s: metadata %s is a bool of value %u; it may be 0 or 1", reader->path,
            show(pair->key).text, *reader->at);
    }
    reader->at += bytes;
    return KVL_OK;
}

static kvl_err read_pair(struct reader *reader, struct kvl_gguf_pair *pair) {
    kvl_err err = read_string(reader, &pair->key, "the metadata");
    if (!err) {
        err = read_u32(reader, &pair->type, "the metadata");
    }
    if (err) {
        return err;
    }
    pair->value = reader->at;
    pair->payload = reader->at;
    if (pair->type == KVL_GGUF_STRING) {
        struct kvl_gguf_string string;
        err = read_string(reader, &string, "a metadata string");
        if (!err) {
            pair->payload = (const uint8_t *)string.data;
        }
    } else if (pair->type == KVL_GGUF_ARRAY) {
        err = read_array(reader, pair);
    } else {
        err = read_scalar(reader, pair);
    }
    pair->value_bytes = (uint64_t)(reader->at - pair->value);
    pair->payload_bytes = (uint64_t)(reader->at - pair->payload);
    return err;
}

/* Bytes of the data of a tensor whose name, dims and type are read. */
static kvl_err tensor_bytes(struct reader *reader, struct kvl_gguf_tensor *tensor) {
    const struct kvl_ggml_layout *layout = kvl_ggml_layout(tensor->type);
    if (!layout) {
        return kvl_fail(reader->msg, KVL_ERR_UNSUPPORTED,
            "%s: tensor %s has weight type %u, which is not supported; use a file with F32, F16, "
            "BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K to Q6_K, IQ4_NL or IQ4_XS weights",
            reader->path, show(tensor->name).text, tensor->type);
    }
    if (tensor->dims[0] % layout->block_elements != 0) {
        return kvl_fail(reader->msg, KVL_ERR_CORRUPT,
            "%s: tensor %s has rows of %llu elements; %s needs a multiple of %u", reader->path,
            show(tensor->name).text, (unsigned long long)tensor->dims[0], layout->name,
            layout->block_elements);
    }
    uint64_t bytes = tensor->dims[0] / layout->block_elements;
    bool overflow = __builtin_mul_overflow(bytes, layout->block_bytes, &bytes);
    for (int i = 1; i < 4; i++) {
        overflow |= __builtin_mul_overflow(bytes, tensor->dims[i], &bytes);
    }
    if (overflow) {
        return kvl_fail(reader->msg, KVL_ERR_CORRUPT, "%s: the dimensions of tensor %s overflow",
            reader->path, show(tensor->name).text);
    }
    tensor->data_bytes = bytes;
    return KVL_OK;
}

static kvl_err read_dims(struct reader *reader, struct kvl_gguf_tensor *tensor) {
    kvl_err err = read_u32(reader, &tensor->dim_count, "the tensor list");
    if (err) {
        return err;
    }
    if (tensor->dim_count < 1 || tensor->dim_count > 4) {
        return kvl_fail(reader->msg, KVL_ERR_CORRUPT,
            "%s: tensor %s has %u dimensions; 1 to 4 are possible", reader->path,
            show(tensor->name).text, tensor->dim_count);
    }
    for (uint32_t i = 0; i < 4; i++) {
        tensor->dims[i] = 1;
    }
    for (uint32_t i = 0; i < tensor->dim_count && !err; i++) {
        err = read_u64(reader, &tensor->dims[i], "the tensor list");
        if (!err && tensor->dims[i] == 0) {
            err = kvl_fail(reader->msg, KVL_ERR_CORRUPT, "%s: tensor %s is empty", reader->path,
                show(tensor->name).text);
        }
    }
    return err;
}

/* Leaves the offset into the data section in *offset. */
static kvl_err read_tensor(
    struct reader *reader, struct kvl_gguf_tensor *tensor, uint64_t *offset) {
    kvl_err err = read_string(reader, &tensor->name, "the tensor list");
    if (!err) {
        err = read_dims(reader, tensor);
    }
    if (!err) {
        err = read_u32(reader, &tensor->type, "the tensor list");
    }
    if (!err) {
        err = read_u64(reader, offset, "the tensor list");
    }
    return err ? err : tensor_bytes(reader, tensor);
}

static kvl_err place_tensor(
    struct reader *reader, struct kvl_gguf_tensor *tensor, uint64_t offset, uint64_t alignment) {
    if (offset % alignment != 0) {
        return kvl_fail(reader->msg, KVL_ERR_CORRUPT,
            "%s: the data of tensor %s is not aligned to %llu bytes", reader->path,
            show(tensor->name).text, (unsigned long long)alignment);
    }
    uint64_t end;
    if (__builtin_add_overflow(offset, tensor->data_bytes, &end)) {
        return kvl_fail(reader->msg, KVL_ERR_CORRUPT,
            "%s: the data of tensor %s lies outside the file", reader->path,
            show(tensor->name).text);
    }
    kvl_err err = need(reader, end, "the weights");
    if (!err) {
        tensor->data = reader->at + offset;
    }
    return err;
}

static kvl_err read_alignment(
    const struct kvl_gguf *gguf, uint64_t *alignment, struct kvl_errmsg *msg) {
    *alignment = ALIGNMENT_DEFAULT;
    if (!kvl_gguf_find_pair(gguf, "general.alignment")) {
        return KVL_OK;
    }
    if (!kvl_gguf_u64(gguf, "general.alignment", alignment) || *alignment < ALIGNMENT_MIN ||
        *alignment > ALIGNMENT_MAX || (*alignment & (*alignment - 1)) != 0) {
        return kvl_fail(msg, KVL_ERR_CORRUPT,
            "%s: general.alignment has to be a power of two from 8 to 1048576", gguf->path);
    }
    return KVL_OK;
}

int kvl_gguf_string_compare(struct kvl_gguf_string left, struct kvl_gguf_string right) {
    uint64_t shared = left.bytes < right.bytes ? left.bytes : right.bytes;
    int order = shared > 0 ? memcmp(left.data, right.data, shared) : 0;
    return order != 0 ? order : (left.bytes > right.bytes) - (left.bytes < right.bytes);
}

static int compare_pairs(const void *left, const void *right) {
    const struct kvl_gguf_pair *const *a = left;
    const struct kvl_gguf_pair *const *b = right;
    return kvl_gguf_string_compare((*a)->key, (*b)->key);
}

static int compare_tensors(const void *left, const void *right) {
    const struct kvl_gguf_tensor *const *a = left;
    const struct kvl_gguf_tensor *const *b = right;
    return kvl_gguf_string_compare((*a)->name, (*b)->name);
}

static kvl_err order_pairs(struct kvl_gguf *gguf, struct kvl_errmsg *msg) {
    for (uint64_t i = 0; i < gguf->pair_count; i++) {
        gguf->pairs_by_key[i] = &gguf->pairs[i];
    }
    qsort(gguf->pairs_by_key, gguf->pair_count, sizeof(struct kvl_gguf_pair *), compare_pairs);
    for (uint64_t i = 1; i < gguf->pair_count; i++) {
        if (compare_pairs(&gguf->pairs_by_key[i - 1], &gguf->pairs_by_key[i]) == 0) {
            return kvl_fail(msg, KVL_ERR_CORRUPT, "%s: metadata %s is there twice", gguf->path,
                show(gguf->pairs_by_key[i]->key).text);
        }
    }
    return KVL_OK;
}

kvl_err kvl_gguf_order_tensors(struct kvl_gguf *gguf, struct kvl_errmsg *msg) {
    for (uint64_t i = 0; i < gguf->tensor_count; i++) {
        gguf->tensors_by_name[i] = &gguf->tensors[i];
    }
    qsort(gguf->tensors_by_name, gguf->tensor_count, sizeof(struct kvl_gguf_tensor *),
        compare_tensors);
    for (uint64_t i = 1; i < gguf->tensor_count; i++) {
        if (compare_tensors(&gguf->tensors_by_name[i - 1], &gguf->tensors_by_name[i]) == 0) {
            return kvl_fail(msg, KVL_ERR_CORRUPT, "%s: tensor %s is there twice", gguf->path,
                show(gguf->tensors_by_name[i]->name).text);
        }
    }
    return KVL_OK;
}

static kvl_err read_head(struct reader *reader, struct kvl_gguf *gguf) {
    uint32_t version;
    kvl_err err = need(reader, 4, "its first bytes");
    if (err) {
        return err;
    }
    if (memcmp(reader->at, "GGUF", 4) != 0) {
        return kvl_fail(
            reader->msg, KVL_ERR_CORRUPT, "%s: not a GGUF file; give a GGUF model", reader->path);
    }
    reader->at += 4;
    err = read_u32(reader, &version, "its head");
    if (err) {
        return err;
    }
    if (version != 3) {
        return kvl_fail(reader->msg, KVL_ERR_VERSION,
            "%s: GGUF version %u%s; version 3, little endian, is supported: convert the file",
            reader->path, version, version == 0x03000000 ? " (big endian 3)" : "");
    }
    err = read_u64(reader, &gguf->tensor_count, "its head");
    return err ? err : read_u64(reader, &gguf->pair_count, "its head");
}

static kvl_err read_pairs(struct reader *reader, struct kvl_gguf *gguf) {
    uint64_t count = gguf->pair_count;
    gguf->pair_count = 0; /* close frees as many as were read */
    kvl_err err = need_count(reader, count, PAIR_BYTES_MIN, "the metadata");
    if (err || count == 0) {
        return err;
    }
    gguf->pairs = calloc(count, sizeof *gguf->pairs);
    gguf->pairs_by_key = calloc(count, sizeof(struct kvl_gguf_pair *));
    if (!gguf->pairs || !gguf->pairs_by_key) {
        return kvl_fail(reader->msg, KVL_ERR_NOMEM, "%s: out of memory", reader->path);
    }
    for (uint64_t i = 0; i < count && !err; i++) {
        gguf->pair_count = i + 1;
        err = read_pair(reader, &gguf->pairs[i]);
    }
    return err ? err : order_pairs(gguf, reader->msg);
}

static kvl_err read_tensors(struct reader *reader, struct kvl_gguf *gguf, uint64_t *offsets) {
    kvl_err err = KVL_OK;
    for (uint64_t i = 0; i < gguf->tensor_count && !err; i++) {
        err = read_tensor(reader, &gguf->tensors[i], &offsets[i]);
    }
    uint64_t alignment;
    if (!err) {
        err = kvl_gguf_order_tensors(gguf, reader->msg);
    }
    if (!err) {
        err = read_alignment(gguf, &alignment, reader->msg);
    }
    if (!err) {
        uint64_t position = (uint64_t)(reader->at - gguf->bytes);
        uint64_t padding = (alignment - position % alignment) % alignment;
        err = need(reader, padding, "the padding before the weights");
        reader->at += err ? 0 : padding;
    }
    for (uint64_t i = 0; i < gguf->tensor_count && !err; i++) {
        err = place_tensor(reader, &gguf->tensors[i], offsets[i], alignment);
    }
    return err;
}

kvl_err kvl_gguf_parse(struct kvl_gguf *gguf, struct kvl_errmsg *msg) {
    struct reader reader = {gguf->bytes, gguf->bytes + gguf->size_bytes, gguf->path, msg};
    kvl_err err = read_head(&reader, gguf);
    if (!err) {
        err = read_pairs(&reader, gguf);
    }
    if (!err) {
        err = need_count(&reader, gguf->tensor_count, TENSOR_BYTES_MIN, "the tensor list");
    }
    if (err || gguf->tensor_count == 0) {
        return err;
    }
    uint64_t *offsets = calloc(gguf->tensor_count, sizeof *offsets);
    gguf->tensors = calloc(gguf->tensor_count, sizeof *gguf->tensors);
    gguf->tensors_by_name = calloc(gguf->tensor_count, sizeof(struct kvl_gguf_tensor *));
    if (!offsets || !gguf->tensors || !gguf->tensors_by_name) {
        err = kvl_fail(msg, KVL_ERR_NOMEM, "%s: out of memory", gguf->path);
    } else {
        err = read_tensors(&reader, gguf, offsets);
    }
    free(offsets);
    return err;
}
