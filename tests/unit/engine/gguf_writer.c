#include "gguf_writer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TYPE_U32 = 4, TYPE_F32 = 6, TYPE_BOOL = 7, TYPE_STRING = 8, TYPE_ARRAY = 9 };

static void put(struct gguf_buffer *buffer, const void *bytes, uint64_t count_bytes) {
    if (count_bytes == 0) {
        return;
    }
    uint64_t needed = buffer->count_bytes + count_bytes;
    if (needed > buffer->capacity_bytes) {
        uint64_t doubled = buffer->capacity_bytes * 2;
        buffer->capacity_bytes = needed > doubled ? needed : doubled;
        buffer->bytes = realloc(buffer->bytes, buffer->capacity_bytes);
        if (!buffer->bytes) {
            abort();
        }
    }
    memcpy(buffer->bytes + buffer->count_bytes, bytes, count_bytes);
    buffer->count_bytes = needed;
}

static void put_u32(struct gguf_buffer *buffer, uint32_t value) {
    uint8_t bytes[4];
    for (int i = 0; i < 4; i++) {
        bytes[i] = (uint8_t)(value >> (8 * i));
    }
    put(buffer, bytes, sizeof bytes);
}

static void put_u64(struct gguf_buffer *buffer, uint64_t value) {
    put_u32(buffer, (uint32_t)value);
    put_u32(buffer, (uint32_t)(value >> 32));
}

static void put_string(struct gguf_buffer *buffer, const char *text) {
    put_u64(buffer, strlen(text));
    put(buffer, text, strlen(text));
}

static void pad(struct gguf_buffer *buffer, uint32_t alignment) {
    while (buffer->count_bytes % alignment != 0) {
        put(buffer, "", 1);
    }
}

void gguf_writer_init(struct gguf_writer *writer) {
    *writer = (struct gguf_writer){.version = 3, .alignment = 32};
}

void gguf_writer_deinit(struct gguf_writer *writer) {
    free(writer->pairs.bytes);
    free(writer->tensors.bytes);
    free(writer->data.bytes);
    free(writer->file.bytes);
    *writer = (struct gguf_writer){0};
}

static void put_key(struct gguf_writer *writer, const char *key, uint32_t type) {
    writer->pair_count++;
    put_string(&writer->pairs, key);
    put_u32(&writer->pairs, type);
}

void gguf_add_value(struct gguf_writer *writer, const char *key, uint32_t type, const void *value,
    uint64_t value_bytes) {
    put_key(writer, key, type);
    put(&writer->pairs, value, value_bytes);
}

void gguf_add_u32(struct gguf_writer *writer, const char *key, uint32_t value) {
    put_key(writer, key, TYPE_U32);
    put_u32(&writer->pairs, value);
}

void gguf_add_f32(struct gguf_writer *writer, const char *key, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    put_key(writer, key, TYPE_F32);
    put_u32(&writer->pairs, bits);
}

void gguf_add_bool(struct gguf_writer *writer, const char *key, bool value) {
    gguf_add_value(writer, key, TYPE_BOOL, &(uint8_t){value}, 1);
}

void gguf_add_string(struct gguf_writer *writer, const char *key, const char *value) {
    put_key(writer, key, TYPE_STRING);
    put_string(&writer->pairs, value);
}

void gguf_add_array(struct gguf_writer *writer, const char *key, uint32_t element_type,
    uint64_t element_bytes, const void *elements, uint64_t count) {
    put_key(writer, key, TYPE_ARRAY);
    put_u32(&writer->pairs, element_type);
    put_u64(&writer->pairs, count);
    put(&writer->pairs, elements, count * element_bytes);
}

void gguf_add_strings(
    struct gguf_writer *writer, const char *key, const char *const *strings, uint64_t count) {
    put_key(writer, key, TYPE_ARRAY);
    put_u32(&writer->pairs, TYPE_STRING);
    put_u64(&writer->pairs, count);
    for (uint64_t i = 0; i < count; i++) {
        put_string(&writer->pairs, strings[i]);
    }
}

void gguf_add_tensor_at(struct gguf_writer *writer, const char *name, uint32_t type,
    uint32_t dim_count, const uint64_t *dims, uint64_t offset) {
    writer->tensor_count++;
    put_string(&writer->tensors, name);
    put_u32(&writer->tensors, dim_count);
    for (uint32_t i = 0; i < dim_count; i++) {
        put_u64(&writer->tensors, dims[i]);
    }
    put_u32(&writer->tensors, type);
    put_u64(&writer->tensors, offset);
}

void gguf_add_tensor(struct gguf_writer *writer, const char *name, uint32_t type,
    uint32_t dim_count, const uint64_t *dims, const void *data, uint64_t data_bytes) {
    pad(&writer->data, writer->alignment);
    gguf_add_tensor_at(writer, name, type, dim_count, dims, writer->data.count_bytes);
    put(&writer->data, data, data_bytes);
}

const uint8_t *gguf_writer_finish(struct gguf_writer *writer, uint64_t *count_bytes) {
    struct gguf_buffer *file = &writer->file;
    file->count_bytes = 0;
    put(file, "GGUF", 4);
    put_u32(file, writer->version);
    put_u64(file, writer->tensor_count);
    put_u64(file, writer->pair_count);
    put(file, writer->pairs.bytes, writer->pairs.count_bytes);
    put(file, writer->tensors.bytes, writer->tensors.count_bytes);
    if (writer->tensor_count > 0) {
        pad(file, writer->alignment);
    }
    put(file, writer->data.bytes, writer->data.count_bytes);
    *count_bytes = file->count_bytes;
    return file->bytes;
}

bool gguf_writer_save(struct gguf_writer *writer, const char *path) {
    uint64_t count_bytes;
    const uint8_t *bytes = gguf_writer_finish(writer, &count_bytes);
    FILE *file = fopen(path, "wb");
    if (!file) {
        return false;
    }
    bool written = fwrite(bytes, 1, count_bytes, file) == count_bytes;
    return fclose(file) == 0 && written;
}
