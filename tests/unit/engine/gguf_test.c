#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gguf.h"
#include "gguf_writer.h"

static const float ramp[64] = {0, 1, 2, 3, 4, 5, 6, 7};

/* A small file with every kind of value. */
static void write_sample(struct gguf_writer *writer) {
    gguf_writer_init(writer);
    gguf_add_string(writer, "general.architecture", "llama");
    gguf_add_u32(writer, "llama.block_count", 7);
    gguf_add_f32(writer, "llama.epsilon", 0.5f);
    gguf_add_bool(writer, "flag", true);
    gguf_add_value(writer, "small", KVL_GGUF_I8, &(int8_t){-3}, 1);
    gguf_add_value(writer, "wide", KVL_GGUF_I64, &(int64_t){1234567890123}, 8);
    gguf_add_strings(writer, "words", (const char *const[]){"one", "", "three"}, 3);
    gguf_add_array(writer, "scores", KVL_GGUF_F32, 4, ramp, 5);
    gguf_add_tensor(writer, "b", KVL_GGML_F32, 2, (uint64_t[]){4, 2}, ramp, 32);
    gguf_add_tensor(writer, "a", KVL_GGML_Q8_0, 1, (uint64_t[]){32}, ramp, 34);
}

static kvl_err reopen(struct gguf_writer *writer, struct kvl_gguf **gguf, struct kvl_errmsg *msg) {
    uint64_t bytes;
    const uint8_t *file = gguf_writer_finish(writer, &bytes);
    return kvl_gguf_open_memory(file, bytes, "sample", gguf, msg);
}

static void assert_refused(struct gguf_writer *writer, kvl_err expected, const char *says) {
    struct kvl_gguf *gguf = NULL;
    struct kvl_errmsg msg = {{0}};
    assert_int_equal(reopen(writer, &gguf, &msg), expected);
    assert_null(gguf);
    assert_non_null(strstr(msg.text, says));
    assert_non_null(strstr(msg.text, "sample"));
    gguf_writer_deinit(writer);
}

static void values_come_back_as_written(void **state) {
    (void)state;
    struct gguf_writer writer;
    struct kvl_gguf *gguf = NULL;
    write_sample(&writer);
    assert_int_equal(reopen(&writer, &gguf, NULL), KVL_OK);
    uint64_t number;
    float real;
    bool flag = false;
    struct kvl_gguf_string text;
    assert_true(kvl_gguf_u64(gguf, "llama.block_count", &number) && number == 7);
    assert_true(kvl_gguf_u64(gguf, "wide", &number) && number == 1234567890123);
    assert_false(kvl_gguf_u64(gguf, "small", &number)); /* negative */
    assert_false(kvl_gguf_u64(gguf, "flag", &number));
    assert_false(kvl_gguf_u64(gguf, "absent", &number));
    assert_true(kvl_gguf_f32(gguf, "llama.epsilon", &real) && real == 0.5f);
    assert_true(kvl_gguf_bool(gguf, "flag", &flag) && flag);
    assert_true(kvl_gguf_string(gguf, "general.architecture", &text));
    assert_int_equal(text.bytes, 5);
    assert_memory_equal(text.data, "llama", 5);
    assert_false(kvl_gguf_string(gguf, "flag", &text));
    struct kvl_gguf_array array;
    assert_true(kvl_gguf_array(gguf, "words", &array));
    assert_int_equal(array.count, 3);
    assert_null(array.data);
    assert_int_equal(array.strings[1].bytes, 0);
    assert_memory_equal(array.strings[2].data, "three", 5);
    assert_true(kvl_gguf_array(gguf, "scores", &array));
    assert_int_equal(array.element_type, KVL_GGUF_F32);
    assert_memory_equal(array.data, ramp, 5 * sizeof(float));
    kvl_gguf_close(gguf);
    gguf_writer_deinit(&writer);
}

static void tensors_come_back_as_written(void **state) {
    (void)state;
    struct gguf_writer writer;
    struct kvl_gguf *gguf = NULL;
    write_sample(&writer);
    assert_int_equal(reopen(&writer, &gguf, NULL), KVL_OK);
    assert_int_equal(kvl_gguf_tensor_count(gguf), 2);
    const struct kvl_gguf_tensor *tensor = kvl_gguf_tensor(gguf, "b");
    assert_ptr_equal(tensor, kvl_gguf_tensor_at(gguf, 0));
    assert_int_equal(tensor->dim_count, 2);
    assert_int_equal(tensor->dims[0], 4);
    assert_int_equal(tensor->dims[1], 2);
    assert_int_equal(tensor->dims[3], 1);
    assert_int_equal(tensor->data_bytes, 32);
    assert_memory_equal(tensor->data, ramp, 32);
    assert_int_equal((uintptr_t)tensor->data % 32, 0);
    assert_int_equal(kvl_gguf_tensor(gguf, "a")->data_bytes, 34);
    assert_null(kvl_gguf_tensor(gguf, "c"));
    assert_null(kvl_gguf_tensor_at(gguf, 2));
    kvl_gguf_close(gguf);
    gguf_writer_deinit(&writer);
}

static void a_file_cut_anywhere_is_short(void **state) {
    (void)state;
    struct gguf_writer writer;
    write_sample(&writer);
    uint64_t bytes;
    const uint8_t *file = gguf_writer_finish(&writer, &bytes);
    for (uint64_t cut = 0; cut < bytes; cut++) {
        struct kvl_gguf *gguf = NULL;
        struct kvl_errmsg msg;
        assert_int_equal(kvl_gguf_open_memory(file, cut, "cut", &gguf, &msg), KVL_ERR_SHORT);
        assert_null(gguf);
    }
    gguf_writer_deinit(&writer);
}

/* Reads all that the getters give, so that a sanitizer sees a pointer that leads outside. */
static unsigned touch(const struct kvl_gguf *gguf) {
    unsigned sum = 0;
    for (uint64_t i = 0; i < kvl_gguf_tensor_count(gguf); i++) {
        const struct kvl_gguf_tensor *tensor = kvl_gguf_tensor_at(gguf, i);
        const uint8_t *data = tensor->data;
        sum += data[0] + data[tensor->data_bytes - 1];
    }
    struct kvl_gguf_array array;
    if (kvl_gguf_array(gguf, "words", &array) && array.strings) {
        for (uint64_t i = 0; i < array.count; i++) {
            for (uint64_t k = 0; k < array.strings[i].bytes; k++) {
                sum += (unsigned char)array.strings[i].data[k];
            }
        }
    }
    return sum;
}

static void changed_bytes_never_lead_outside(void **state) {
    (void)state;
    static const uint8_t masks[] = {0x01, 0x08, 0x80, 0xff};
    struct gguf_writer writer;
    write_sample(&writer);
    uint64_t bytes;
    uint8_t *file = (uint8_t *)gguf_writer_finish(&writer, &bytes);
    unsigned sum = 0, opened = 0;
    for (uint64_t at = 0; at < bytes; at++) {
        for (size_t m = 0; m < sizeof masks; m++) {
            struct kvl_gguf *gguf = NULL;
            struct kvl_errmsg msg;
            file[at] ^= masks[m];
            if (kvl_gguf_open_memory(file, bytes, "flipped", &gguf, &msg) == KVL_OK) {
                sum += touch(gguf);
                opened++;
            }
            kvl_gguf_close(gguf);
            file[at] ^= masks[m];
        }
    }
    assert_true(opened > 0 && sum > 0);
    gguf_writer_deinit(&writer);
}

static void duplicates_are_refused(void **state) {
    (void)state;
    struct gguf_writer writer;
    write_sample(&writer);
    gguf_add_u32(&writer, "flag", 1);
    assert_refused(&writer, KVL_ERR_CORRUPT, "metadata flag is there twice");
    write_sample(&writer);
    gguf_add_tensor(&writer, "a", KVL_GGML_F32, 1, (uint64_t[]){1}, ramp, 4);
    assert_refused(&writer, KVL_ERR_CORRUPT, "tensor a is there twice");
}

static void impossible_tensors_are_refused(void **state) {
    (void)state;
    struct gguf_writer writer;
    const uint64_t two_31 = UINT64_C(1) << 31;
    write_sample(&writer);
    gguf_add_tensor_at(&writer, "x", 0, 4, (uint64_t[]){two_31, two_31, two_31, two_31}, 0);
    assert_refused(&writer, KVL_ERR_CORRUPT, "dimensions of tensor x overflow");
    write_sample(&writer);
    gguf_add_tensor_at(&writer, "x", 0, 1, (uint64_t[]){1}, UINT64_MAX - 31);
    assert_refused(&writer, KVL_ERR_CORRUPT, "impossible");
    write_sample(&writer);
    gguf_add_tensor_at(&writer, "x", 0, 1, (uint64_t[]){16}, UINT64_MAX - 31);
    assert_refused(&writer, KVL_ERR_CORRUPT, "outside the file");
    write_sample(&writer);
    gguf_add_tensor_at(&writer, "x", 0, 1, (uint64_t[]){1}, 1 << 20);
    assert_refused(&writer, KVL_ERR_SHORT, "the weights");
    write_sample(&writer);
    gguf_add_tensor_at(&writer, "x", 0, 1, (uint64_t[]){1}, 4);
    assert_refused(&writer, KVL_ERR_CORRUPT, "not aligned");
    write_sample(&writer);
    gguf_add_tensor_at(&writer, "x", 0, 1, (uint64_t[]){0}, 0);
    assert_refused(&writer, KVL_ERR_CORRUPT, "empty");
    write_sample(&writer);
    gguf_add_tensor_at(&writer, "x", 0, 5, (uint64_t[]){1, 1, 1, 1, 1}, 0);
    assert_refused(&writer, KVL_ERR_CORRUPT, "5 dimensions");
    write_sample(&writer);
    gguf_add_tensor_at(&writer, "x", KVL_GGML_Q4_1, 1, (uint64_t[]){33}, 0);
    assert_refused(&writer, KVL_ERR_CORRUPT, "multiple of 32");
    write_sample(&writer);
    gguf_add_tensor_at(&writer, "x", 4, 1, (uint64_t[]){32}, 0);
    assert_refused(&writer, KVL_ERR_UNSUPPORTED, "weight type 4");
}

/* Each type with a row that is no whole number of blocks, data that ends a byte early, and a
 * number of rows whose bytes overflow. */
static void sizes_are_checked_for_every_type(void **state) {
    (void)state;
    uint32_t quantized = 0;
    for (uint32_t type = 0; type < 64; type++) {
        const struct kvl_ggml_layout *layout = kvl_ggml_layout(type);
        if (layout == NULL) {
            continue;
        }
        const uint64_t columns = 2ull * layout->block_elements;
        struct gguf_writer writer;
        if (layout->block_elements > 1) {
            char says[32];
            snprintf(says, sizeof says, "multiple of %u", layout->block_elements);
            gguf_writer_init(&writer);
            gguf_add_tensor_at(&writer, "x", type, 1, (uint64_t[]){columns + 16}, 0);
            assert_refused(&writer, KVL_ERR_CORRUPT, says);
            quantized++;
        }
        const uint8_t data[600] = {0};
        gguf_writer_init(&writer);
        gguf_add_tensor(&writer, "x", type, 1, &columns, data, 2ull * layout->block_bytes - 1);
        writer.data.count_bytes = 2ull * layout->block_bytes - 1; /* without its padding */
        assert_refused(&writer, KVL_ERR_SHORT, "the weights");
        gguf_writer_init(&writer);
        gguf_add_tensor_at(&writer, "x", type, 3, (uint64_t[]){columns, UINT64_C(1) << 60, 16}, 0);
        assert_refused(&writer, KVL_ERR_CORRUPT, "overflow");
    }
    assert_int_equal(quantized, 12);
}

static void impossible_metadata_is_refused(void **state) {
    (void)state;
    struct gguf_writer writer;
    write_sample(&writer);
    gguf_add_array(&writer, "nested", KVL_GGUF_ARRAY, 1, "", 0);
    assert_refused(&writer, KVL_ERR_UNSUPPORTED, "nested");
    write_sample(&writer);
    gguf_add_value(&writer, "odd", 99, "", 1);
    assert_refused(&writer, KVL_ERR_CORRUPT, "type 99");
    write_sample(&writer);
    gguf_add_value(&writer, "odd", KVL_GGUF_BOOL, "\2", 1);
    assert_refused(&writer, KVL_ERR_CORRUPT, "bool");
    write_sample(&writer);
    gguf_add_value(&writer, "long", KVL_GGUF_STRING, &(uint64_t){UINT64_MAX}, 8);
    assert_refused(&writer, KVL_ERR_CORRUPT, "impossible");
    write_sample(&writer);
    writer.pair_count = UINT64_MAX / 2;
    assert_refused(&writer, KVL_ERR_CORRUPT, "impossible");
    write_sample(&writer);
    writer.tensor_count = UINT64_C(1) << 60;
    assert_refused(&writer, KVL_ERR_CORRUPT, "impossible");
    write_sample(&writer);
    gguf_add_value(&writer, "many", KVL_GGUF_ARRAY, "\4\0\0\0\0\0\0\0\0\0\0\x40", 12);
    assert_refused(&writer, KVL_ERR_CORRUPT, "impossible");
}

static void alignment_is_a_power_of_two(void **state) {
    (void)state;
    struct gguf_writer writer;
    struct kvl_gguf *gguf = NULL;
    static const uint32_t wrong[] = {0, 1, 4, 24, 1u << 21};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        gguf_writer_init(&writer);
        gguf_add_u32(&writer, "general.alignment", wrong[i]);
        gguf_add_tensor(&writer, "a", KVL_GGML_F32, 1, (uint64_t[]){1}, ramp, 4);
        assert_refused(&writer, KVL_ERR_CORRUPT, "general.alignment");
    }
    gguf_writer_init(&writer);
    writer.alignment = 256;
    gguf_add_u32(&writer, "general.alignment", 256);
    gguf_add_tensor(&writer, "a", KVL_GGML_F32, 1, (uint64_t[]){1}, ramp, 4);
    gguf_add_tensor(&writer, "b", KVL_GGML_F32, 1, (uint64_t[]){1}, ramp + 5, 4);
    assert_int_equal(reopen(&writer, &gguf, NULL), KVL_OK);
    assert_int_equal((uintptr_t)kvl_gguf_tensor(gguf, "b")->data % 256, 0);
    assert_memory_equal(kvl_gguf_tensor(gguf, "b")->data, ramp + 5, 4);
    kvl_gguf_close(gguf);
    gguf_writer_deinit(&writer);
}

static void other_files_are_refused(void **state) {
    (void)state;
    struct gguf_writer writer;
    struct kvl_gguf *gguf = NULL;
    struct kvl_errmsg msg;
    write_sample(&writer);
    writer.version = 2;
    assert_refused(&writer, KVL_ERR_VERSION, "version 2");
    write_sample(&writer);
    writer.version = 0x03000000;
    assert_refused(&writer, KVL_ERR_VERSION, "big endian");
    assert_int_equal(kvl_gguf_open_memory("ELF!....", 8, "x", &gguf, &msg), KVL_ERR_CORRUPT);
    assert_int_equal(kvl_gguf_open("/nowhere/model.gguf", &gguf, &msg), KVL_ERR_NOTFOUND);
    assert_non_null(strstr(msg.text, "/nowhere/model.gguf"));
    assert_int_equal(kvl_gguf_open("/tmp", &gguf, &msg), KVL_ERR_INVALID);
}

static void a_file_on_disk_opens(void **state) {
    (void)state;
    struct gguf_writer writer;
    struct kvl_gguf *gguf = NULL;
    char path[] = "/tmp/kvl_gguf_test_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    write_sample(&writer);
    assert_true(gguf_writer_save(&writer, path));
    assert_int_equal(kvl_gguf_open(path, &gguf, NULL), KVL_OK);
    assert_string_equal(kvl_gguf_path(gguf), path);
    assert_memory_equal(kvl_gguf_tensor(gguf, "b")->data, ramp, 32);
    kvl_gguf_close(gguf);
    assert_int_equal(truncate(path, 0), 0);
    assert_int_equal(kvl_gguf_open(path, &gguf, NULL), KVL_ERR_SHORT);
    unlink(path);
    gguf_writer_deinit(&writer);
}

/* KiB of the mapped file that this process holds; -1 when it is not mapped. */
static long resident_kib(const char *path) {
    FILE *maps = fopen("/proc/self/smaps", "r");
    char line[512];
    long kib = -1;
    bool is_inside = false;
    assert_non_null(maps);
    while (fgets(line, sizeof line, maps) != NULL && kib < 0) {
        is_inside |= strstr(line, path) != NULL;
        if (is_inside && strncmp(line, "Rss:", 4) == 0) {
            kib = strtol(line + 4, NULL, 10);
        }
    }
    fclose(maps);
    return kib;
}

static void pages_let_go_come_back(void **state) {
    (void)state;
    struct gguf_writer writer;
    struct kvl_gguf *gguf = NULL;
    char path[] = "/tmp/kvl_gguf_test_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    write_sample(&writer);
    assert_true(gguf_writer_save(&writer, path));
    assert_int_equal(kvl_gguf_open(path, &gguf, NULL), KVL_OK);
    assert_memory_equal(kvl_gguf_tensor(gguf, "b")->data, ramp, 32);
    assert_true(resident_kib(path) > 0);
    kvl_gguf_let_go(gguf);
    assert_int_equal(resident_kib(path), 0);
    assert_memory_equal(kvl_gguf_tensor(gguf, "b")->data, ramp, 32);
    assert_true(resident_kib(path) > 0);
    kvl_gguf_close(gguf);
    unlink(path);
    gguf_writer_deinit(&writer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_come_back_as_written),
        cmocka_unit_test(tensors_come_back_as_written),
        cmocka_unit_test(a_file_cut_anywhere_is_short),
        cmocka_unit_test(changed_bytes_never_lead_outside),
        cmocka_unit_test(duplicates_are_refused),
        cmocka_unit_test(impossible_tensors_are_refused),
        cmocka_unit_test(sizes_are_checked_for_every_type),
        cmocka_unit_test(impossible_metadata_is_refused),
        cmocka_unit_test(alignment_is_a_power_of_two),
        cmocka_unit_test(other_files_are_refused),
        cmocka_unit_test(a_file_on_disk_opens),
        cmocka_unit_test(pages_let_go_come_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
