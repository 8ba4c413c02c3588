/* gguf.h - reads a GGUF v3 model file in place.
 *
 * The file is mapped read-only and validated as a whole before anything is handed out: every
 * offset, count and length is untrusted input. Format: ggml's docs/gguf.md (version 3, little
 * endian).
 *
 * A model split over several files, NAME-00001-of-00003.gguf and so on, is opened by its first
 * file; the metadata are that file's, the tensors those of all.
 *
 * Owns:    the returned struct owns the mapping; every pointer from the getters lives until close.
 * Threads: open and close on one thread; getters from any thread (immutable after open).
 * Errors:  NOTFOUND, PERM, SHORT (truncated), CORRUPT (overflowing sizes, offsets outside the file,
 *          duplicate names), VERSION (not v3), UNSUPPORTED (unknown tensor type), NOMEM; msg says
 *          what and what to do, with the file's name. */
#ifndef KVL_GGUF_H
#define KVL_GGUF_H

#include <stdbool.h>
#include <stdint.h>

#include "kvl_err.h"

/* ggml's numbers of the weight types (ggml.h, enum ggml_type). */
enum kvl_ggml_type {
    KVL_GGML_F32 = 0,
    KVL_GGML_F16 = 1,
    KVL_GGML_Q4_0 = 2,
    KVL_GGML_Q4_1 = 3,
    KVL_GGML_Q5_0 = 6,
    KVL_GGML_Q5_1 = 7,
    KVL_GGML_Q8_0 = 8,
    KVL_GGML_Q2_K = 10,
    KVL_GGML_Q3_K = 11,
    KVL_GGML_Q4_K = 12,
    KVL_GGML_Q5_K = 13,
    KVL_GGML_Q6_K = 14,
    KVL_GGML_IQ4_NL = 20,
    KVL_GGML_IQ4_XS = 23,
    KVL_GGML_BF16 = 30,
};

/* How a weight type is stored: a row is a whole number of blocks. */
struct kvl_ggml_layout {
    const char *name; /* "Q4_1" */
    uint32_t block_elements;
    uint32_t block_bytes;
};

/* NULL for a number that this reader does not know. Static storage. */
const struct kvl_ggml_layout *kvl_ggml_layout(uint32_t type);

/* GGUF's numbers of the metadata value types. */
enum kvl_gguf_type {
    KVL_GGUF_U8 = 0,
    KVL_GGUF_I8 = 1,
    KVL_GGUF_U16 = 2,
    KVL_GGUF_I16 = 3,
    KVL_GGUF_U32 = 4,
    KVL_GGUF_I32 = 5,
    KVL_GGUF_F32 = 6,
    KVL_GGUF_BOOL = 7,
    KVL_GGUF_STRING = 8,
    KVL_GGUF_ARRAY = 9,
    KVL_GGUF_U64 = 10,
    KVL_GGUF_I64 = 11,
    KVL_GGUF_F64 = 12,
};

struct kvl_gguf;

struct kvl_gguf_string {
    const char *data; /* not NUL terminated */
    uint64_t bytes;
};

struct kvl_gguf_tensor {
    struct kvl_gguf_string name;
    uint32_t type; /* enum kvl_ggml_type, or another of ggml's numbers */
    uint32_t dim_count;
    uint64_t dims[4]; /* dims[0] is contiguous (the input width of a matrix), unused ones are 1 */
    const void
        *data; /* inside the mapping, aligned to the file's general.alignment, at most 4096 */
    uint64_t data_bytes;
};

/* Array metadata of scalars or strings, in file order. */
struct kvl_gguf_array {
    uint32_t element_type; /* enum kvl_gguf_type; never an array */
    uint64_t count;
    const void *data;                      /* scalars: unaligned little-endian elements */
    const struct kvl_gguf_string *strings; /* strings: count entries; NULL for scalars */
};

KVL_MUST_CHECK kvl_err kvl_gguf_open(
    const char *path, struct kvl_gguf **out, struct kvl_errmsg *msg);
/* The same from `bytes` bytes at data, which are copied; name stands in messages. */
KVL_MUST_CHECK kvl_err kvl_gguf_open_memory(const void *data, uint64_t bytes, const char *name,
    struct kvl_gguf **out, struct kvl_errmsg *msg);
void kvl_gguf_close(struct kvl_gguf *gguf); /* NULL is fine */
/* Takes what was read of the file out of this process's memory; pointers stay good, and what is
 * read again comes back from the page cache. For one who has made something else of the weights. */
void kvl_gguf_let_go(const struct kvl_gguf *gguf);

/* The path (or name) it was opened by, for messages. */
const char *kvl_gguf_path(const struct kvl_gguf *gguf);

/* Metadata by key. False when absent or of another kind; integer getters accept every integer
 * type whose value fits. */
bool kvl_gguf_u64(const struct kvl_gguf *gguf, const char *key, uint64_t *value);
bool kvl_gguf_f32(const struct kvl_gguf *gguf, const char *key, float *value);
bool kvl_gguf_bool(const struct kvl_gguf *gguf, const char *key, bool *value);
bool kvl_gguf_string(const struct kvl_gguf *gguf, const char *key, struct kvl_gguf_string *value);
bool kvl_gguf_array(const struct kvl_gguf *gguf, const char *key, struct kvl_gguf_array *value);

uint64_t kvl_gguf_tensor_count(const struct kvl_gguf *gguf);
const struct kvl_gguf_tensor *kvl_gguf_tensor_at(const struct kvl_gguf *gguf, uint64_t index);
/* NULL when there is none of that name. */
const struct kvl_gguf_tensor *kvl_gguf_tensor(const struct kvl_gguf *gguf, const char *name);

/* SHA-256 over everything that changes the model's numbers: the `general.architecture` value and
 * every `<architecture>.*` metadata pair (name, type, value bytes, in file order), then every
 * tensor's name, type, dims and data, in order of name; all fields length-prefixed. Never the file
 * name, tokenizer or other metadata; fingerprint.c has the bytes. Cached on disk under
 * ${XDG_CACHE_HOME:-~/.cache}/kvloft/fingerprints by device, inode, size, mtime and ctime; a cache
 * that cannot be read or written only costs time. */
KVL_MUST_CHECK kvl_err kvl_gguf_fingerprint(
    const struct kvl_gguf *gguf, uint8_t fingerprint[32], struct kvl_errmsg *msg);

#endif
