/* gguf_writer.h - builds GGUF v3 files in memory, for tests: whole tiny models, and the small
 * valid files that hostile ones are made of.
 *
 *   struct gguf_writer writer;
 *   gguf_writer_init(&writer);
 *   gguf_add_string(&writer, "general.architecture", "llama");
 *   gguf_add_tensor(&writer, "output_norm.weight", 0, 1, (uint64_t[]){64}, floats, 256);
 *   gguf_writer_save(&writer, path);    // or gguf_writer_finish for the bytes
 *   gguf_writer_deinit(&writer);
 *
 * Pairs and tensors come out in the order they were added; nothing is checked, so a test can
 * write a file that contradicts itself. Everything is copied. Out of memory aborts. */
#ifndef KVL_TESTS_GGUF_WRITER_H
#define KVL_TESTS_GGUF_WRITER_H

#include <stdbool.h>
#include <stdint.h>

struct gguf_buffer {
    uint8_t *bytes;
    uint64_t count_bytes;
    uint64_t capacity_bytes;
};

struct gguf_writer {
    uint32_t version;   /* 3; change it to write another */
    uint32_t alignment; /* 32; set it, and general.alignment, before the first tensor */
    uint64_t pair_count;
    uint64_t tensor_count;
    struct gguf_buffer pairs;
    struct gguf_buffer tensors;
    struct gguf_buffer data;
    struct gguf_buffer file;
};

void gguf_writer_init(struct gguf_writer *writer);
void gguf_writer_deinit(struct gguf_writer *writer);

void gguf_add_u32(struct gguf_writer *writer, const char *key, uint32_t value);
void gguf_add_f32(struct gguf_writer *writer, const char *key, float value);
void gguf_add_bool(struct gguf_writer *writer, const char *key, bool value);
void gguf_add_string(struct gguf_writer *writer, const char *key, const char *value);
/* Any type by its GGUF number; value is written as it stands. */
void gguf_add_value(struct gguf_writer *writer, const char *key, uint32_t type, const void *value,
    uint64_t value_bytes);
/* Elements of element_bytes each. */
void gguf_add_array(struct gguf_writer *writer, const char *key, uint32_t element_type,
    uint64_t element_bytes, const void *elements, uint64_t count);
void gguf_add_strings(
    struct gguf_writer *writer, const char *key, const char *const *strings, uint64_t count);
/* type: ggml's number. dims[0] is the contiguous one. data of data_bytes goes to the next aligned
 * offset of the data section. */
void gguf_add_tensor(struct gguf_writer *writer, const char *name, uint32_t type,
    uint32_t dim_count, const uint64_t *dims, const void *data, uint64_t data_bytes);
/* The same with an offset of the caller's, and no data. */
void gguf_add_tensor_at(struct gguf_writer *writer, const char *name, uint32_t type,
    uint32_t dim_count, const uint64_t *dims, uint64_t offset);

/* The file's bytes; they live until the next call or deinit. */
const uint8_t *gguf_writer_finish(struct gguf_writer *writer, uint64_t *count_bytes);
/* False (errno) when the file cannot be written. */
bool gguf_writer_save(struct gguf_writer *writer, const char *path);

#endif
