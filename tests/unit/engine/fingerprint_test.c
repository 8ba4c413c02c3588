#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gguf.h"
#include "gguf_writer.h"

static const float values[4] = {1, 2, 3, 4};

struct variant {
    const char *architecture;
    uint32_t layers;
    const char *name;
    uint32_t dims[2];
    float first;
    bool reversed; /* tensors in the other order */
};

static const struct variant base = {"llama", 3, "tiny", {4, 1}, 1, false};

static void write_variant(struct gguf_writer *writer, struct variant v) {
    float data[4] = {v.first, 2, 3, 4};
    gguf_writer_init(writer);
    gguf_add_string(writer, "general.architecture", v.architecture);
    gguf_add_string(writer, "general.name", v.name);
    gguf_add_u32(writer, "llama.block_count", v.layers);
    for (int i = 0; i < 2; i++) {
        if ((i == 1) != v.reversed) {
            gguf_add_tensor(
                writer, "a", 0, 2, (uint64_t[]){v.dims[0], v.dims[1]}, data, sizeof data);
        } else {
            gguf_add_tensor(writer, "b", 0, 1, (uint64_t[]){2}, values, 8);
        }
    }
}

static void fingerprint_of(struct variant v, uint8_t fingerprint[32]) {
    struct gguf_writer writer;
    struct kvl_gguf *gguf;
    uint64_t bytes;
    write_variant(&writer, v);
    const uint8_t *file = gguf_writer_finish(&writer, &bytes);
    assert_int_equal(kvl_gguf_open_memory(file, bytes, "tiny", &gguf, NULL), KVL_OK);
    assert_int_equal(kvl_gguf_fingerprint(gguf, fingerprint, NULL), KVL_OK);
    kvl_gguf_close(gguf);
    gguf_writer_deinit(&writer);
}

/* Computed with Python's hashlib over the fields that fingerprint.c lists. */
static void the_bytes_are_the_documented_ones(void **state) {
    (void)state;
    uint8_t fingerprint[32];
    char hex[65];
    fingerprint_of(base, fingerprint);
    for (int i = 0; i < 32; i++) {
        snprintf(hex + (ptrdiff_t)2 * i, 3, "%02x", fingerprint[i]);
    }
    assert_string_equal(hex, "3929fa95eff77fbaa2eccb78c7d9d335148e242522174c4714dd5756e8f5449a");
}

static void only_what_changes_the_numbers_counts(void **state) {
    (void)state;
    uint8_t of_base[32], other[32];
    struct variant v;
    fingerprint_of(base, of_base);
    v = base, v.name = "renamed", fingerprint_of(v, other);
    assert_memory_equal(of_base, other, 32);
    v = base, v.reversed = true, fingerprint_of(v, other);
    assert_memory_equal(of_base, other, 32);
    v = base, v.first = 1.5f, fingerprint_of(v, other);
    assert_memory_not_equal(of_base, other, 32);
    v = base, v.layers = 4, fingerprint_of(v, other);
    assert_memory_not_equal(of_base, other, 32);
    v = base, v.dims[0] = 2, v.dims[1] = 2, fingerprint_of(v, other);
    assert_memory_not_equal(of_base, other, 32);
    v = base, v.architecture = "other", fingerprint_of(v, other);
    assert_memory_not_equal(of_base, other, 32);
}

static void hash_file(const char *path, uint8_t fingerprint[32]) {
    struct kvl_gguf *gguf;
    assert_int_equal(kvl_gguf_open(path, &gguf, NULL), KVL_OK);
    assert_int_equal(kvl_gguf_fingerprint(gguf, fingerprint, NULL), KVL_OK);
    kvl_gguf_close(gguf);
}

/* The path of the one cache file; false when there is none. */
static bool find_cache_file(const char *folder, char *path, size_t path_bytes) {
    char cache[256];
    bool found = false;
    snprintf(cache, sizeof cache, "%s/cache/kvloft/fingerprints", folder);
    DIR *directory = opendir(cache);
    for (struct dirent *entry; directory && (entry = readdir(directory));) {
        if (entry->d_name[0] != '.') {
            snprintf(path, path_bytes, "%s/%s", cache, entry->d_name);
            found = true;
        }
    }
    if (directory) {
        closedir(directory);
    }
    return found;
}

static void flip_byte(const char *path, off_t at) {
    char byte = 0;
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0 && pread(fd, &byte, 1, at) == 1);
    byte ^= 1;
    assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    close(fd);
}

/* Makes the cache file say another fingerprint, with a check that fits. */
static void forge(const char *path) {
    char text[512];
    uint8_t check[32];
    FILE *file = fopen(path, "r+");
    assert_non_null(file);
    size_t bytes = fread(text, 1, sizeof text - 1, file);
    size_t line_bytes = bytes - 65;
    memset(text + line_bytes - 65, 'a', 64);
    assert_int_equal(EVP_Digest(text, line_bytes, check, NULL, EVP_sha256(), NULL), 1);
    for (int i = 0; i < 32; i++) {
        snprintf(text + line_bytes + (ptrdiff_t)2 * i, 3, "%02x", check[i]);
    }
    text[bytes - 1] = '\n';
    rewind(file);
    assert_int_equal(fwrite(text, 1, bytes, file), bytes);
    fclose(file);
}

static void the_cache_is_used_and_never_believed_blindly(void **state) {
    (void)state;
    char folder[] = "/tmp/kvl_fingerprint_XXXXXX", model[128], cache[512], command[160];
    uint8_t first[32], again[32];
    struct gguf_writer writer;
    assert_non_null(mkdtemp(folder));
    snprintf(model, sizeof model, "%s/model.gguf", folder);
    snprintf(cache, sizeof cache, "%s/cache", folder);
    assert_int_equal(setenv("XDG_CACHE_HOME", cache, 1), 0);
    write_variant(&writer, base);
    assert_true(gguf_writer_save(&writer, model));
    hash_file(model, first);
    assert_false(find_cache_file(folder, cache, sizeof cache)); /* changed just now */
    sleep(4);
    hash_file(model, again);
    assert_memory_equal(first, again, 32);
    assert_true(find_cache_file(folder, cache, sizeof cache));
    for (off_t at = 0; at < 40; at += 3) { /* damage it: hashed again, and written anew */
        flip_byte(cache, at);
        hash_file(model, again);
        assert_memory_equal(first, again, 32);
    }
    forge(cache);
    hash_file(model, again);
    for (int i = 0; i < 32; i++) {
        assert_int_equal(again[i], 0xaa);
    }
    flip_byte(model, 24 + 8 + 20 + 4 + 8); /* another model in the same inode: "mlama" */
    struct kvl_gguf *gguf;
    assert_int_equal(kvl_gguf_open(model, &gguf, NULL), KVL_OK);
    assert_int_equal(kvl_gguf_fingerprint(gguf, again, NULL), KVL_OK);
    assert_memory_not_equal(first, again, 32);
    kvl_gguf_close(gguf);
    gguf_writer_deinit(&writer);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    assert_int_equal(system(command), 0);
}

static void a_model_without_architecture_is_refused(void **state) {
    (void)state;
    struct gguf_writer writer;
    struct kvl_gguf *gguf;
    struct kvl_errmsg msg;
    uint8_t fingerprint[32];
    uint64_t bytes;
    gguf_writer_init(&writer);
    const uint8_t *file = gguf_writer_finish(&writer, &bytes);
    assert_int_equal(kvl_gguf_open_memory(file, bytes, "tiny", &gguf, &msg), KVL_OK);
    assert_int_equal(kvl_gguf_fingerprint(gguf, fingerprint, &msg), KVL_ERR_CORRUPT);
    assert_non_null(strstr(msg.text, "general.architecture"));
    kvl_gguf_close(gguf);
    gguf_writer_deinit(&writer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_bytes_are_the_documented_ones),
        cmocka_unit_test(only_what_changes_the_numbers_counts),
        cmocka_unit_test(the_cache_is_used_and_never_believed_blindly),
        cmocka_unit_test(a_model_without_architecture_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
