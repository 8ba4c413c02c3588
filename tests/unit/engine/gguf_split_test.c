/* gguf_split_test.c - a model in three files is the model in one: the same tensors, the same
 * fingerprint; and files that do not belong together are refused by name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gguf.h"
#include "model.h"
#include "tiny_model.h"

enum { PARTS = 3 };

static char folder[] = "/tmp/kvl-split-XXXXXX";
static char *whole_path;
static struct kvl_gguf *whole;

struct plan {
    uint32_t numbers[PARTS]; /* split.no of each */
    uint32_t counts[PARTS];
    uint32_t tensors; /* split.tensors.count; 0: the right one */
    bool repeat;      /* the last file holds a tensor of the first one too */
};

static const struct plan good = {{0, 1, 2}, {3, 3, 3}, 0, false};

static void path_of(uint32_t part, char path[128]) {
    snprintf(path, 128, "%s/m-%05u-of-%05u.gguf", folder, part + 1, PARTS);
}

static void add_tensors(struct gguf_writer *writer, uint32_t part, bool repeat) {
    for (uint64_t i = 0; i < kvl_gguf_tensor_count(whole); i++) {
        const struct kvl_gguf_tensor *t = kvl_gguf_tensor_at(whole, i);
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)t->name.bytes, t->name.data);
        if (i % PARTS == part || (repeat && part == PARTS - 1 && i == 0)) {
            gguf_add_tensor(writer, name, t->type, t->dim_count, t->dims, t->data, t->data_bytes);
        }
    }
}

static void write_part(const struct plan *plan, uint32_t part) {
    struct gguf_writer writer;
    const struct tiny_shape shape = tiny_shape_default();
    if (part == 0) {
        tiny_model_write(&writer, &shape);
        writer.tensor_count = 0; /* the metadata alone */
        writer.tensors.count_bytes = writer.data.count_bytes = 0;
    } else {
        gguf_writer_init(&writer);
    }
    const uint32_t tensors = (uint32_t)kvl_gguf_tensor_count(whole);
    gguf_add_u32(&writer, "split.no", plan->numbers[part]);
    gguf_add_u32(&writer, "split.count", plan->counts[part]);
    gguf_add_u32(&writer, "split.tensors.count", plan->tensors != 0 ? plan->tensors : tensors);
    add_tensors(&writer, part, plan->repeat);
    char path[128];
    path_of(part, path);
    assert_true(gguf_writer_save(&writer, path));
    gguf_writer_deinit(&writer);
}

static void write_all(const struct plan *plan) {
    for (uint32_t part = 0; part < PARTS; part++) {
        write_part(plan, part);
    }
}

static void refuse(const char *path, kvl_err expected, const char *says) {
    struct kvl_gguf *gguf = NULL;
    struct kvl_errmsg msg = {{0}};
    assert_int_equal(kvl_gguf_open(path, &gguf, &msg), expected);
    assert_null(gguf);
    if (strstr(msg.text, says) == NULL) {
        fail_msg("'%s' does not say %s", msg.text, says);
    }
}

static void refuse_plan(struct plan plan, kvl_err expected, const char *says) {
    char first[128];
    write_all(&plan);
    path_of(0, first);
    refuse(first, expected, says);
}

static void three_files_are_the_model(void **state) {
    (void)state;
    char first[128];
    uint8_t of_one[32], of_three[32];
    struct kvl_gguf *gguf;
    struct kvl_model *model;
    write_all(&good);
    path_of(0, first);
    assert_int_equal(kvl_gguf_open(first, &gguf, NULL), KVL_OK);
    assert_int_equal(kvl_gguf_tensor_count(gguf), kvl_gguf_tensor_count(whole));
    for (uint64_t i = 0; i < kvl_gguf_tensor_count(whole); i++) {
        const struct kvl_gguf_tensor *ours, *theirs = kvl_gguf_tensor_at(whole, i);
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)theirs->name.bytes, theirs->name.data);
        ours = kvl_gguf_tensor(gguf, name);
        assert_non_null(ours);
        assert_int_equal(ours->data_bytes, theirs->data_bytes);
        assert_memory_equal(ours->data, theirs->data, theirs->data_bytes);
    }
    assert_int_equal(kvl_gguf_fingerprint(gguf, of_three, NULL), KVL_OK);
    assert_int_equal(kvl_gguf_fingerprint(whole, of_one, NULL), KVL_OK);
    assert_memory_equal(of_one, of_three, 32);
    kvl_gguf_close(gguf);
    assert_int_equal(kvl_model_load(first, &model, NULL), KVL_OK);
    kvl_model_free(model);
}

static void hash_split(uint8_t fingerprint[32]) {
    char first[128];
    struct kvl_gguf *gguf;
    path_of(0, first);
    assert_int_equal(kvl_gguf_open(first, &gguf, NULL), KVL_OK);
    assert_int_equal(kvl_gguf_fingerprint(gguf, fingerprint, NULL), KVL_OK);
    kvl_gguf_close(gguf);
}

/* The cached fingerprint is that of all files: another third one is another model. */
static void the_cache_knows_every_file(void **state) {
    (void)state;
    uint8_t before[32], cached[32], after[32];
    char third[128];
    write_all(&good);
    sleep(4); /* until then a file counts as still being written (fingerprint.c) */
    hash_split(before);
    hash_split(cached);
    assert_memory_equal(before, cached, 32);
    path_of(2, third);
    FILE *file = fopen(third, "r+b");
    assert_true(file != NULL && fseek(file, -4, SEEK_END) == 0 && fwrite("kvl!", 1, 4, file) == 4);
    assert_int_equal(fclose(file), 0);
    sleep(4);
    hash_split(after);
    assert_memory_not_equal(before, after, 32);
}

static void files_that_do_not_belong_together_are_refused(void **state) {
    (void)state;
    struct plan plan = good;
    plan.numbers[1] = 2;
    refuse_plan(plan, KVL_ERR_CORRUPT, "not file 2 of the 3");
    plan = good, plan.counts[2] = 4;
    refuse_plan(plan, KVL_ERR_CORRUPT, "not file 3 of the 3");
    plan = good, plan.tensors = 4;
    refuse_plan(plan, KVL_ERR_CORRUPT, "tensors, and it says 4");
    plan = good, plan.counts[0] = 1000000;
    refuse_plan(plan, KVL_ERR_CORRUPT, "1000000 files");
    plan = good, plan.counts[0] = 2;
    refuse_plan(plan, KVL_ERR_INVALID, "name them as they were");
    plan = good, plan.repeat = true, plan.tensors = (uint32_t)kvl_gguf_tensor_count(whole) + 1;
    refuse_plan(plan, KVL_ERR_CORRUPT, "is there twice");
}

static void a_missing_or_wrong_file_is_named(void **state) {
    (void)state;
    char path[128], renamed[160];
    write_all(&good);
    path_of(1, path);
    refuse(path, KVL_ERR_INVALID, "not the first");
    assert_int_equal(unlink(path), 0);
    path_of(0, path);
    refuse(path, KVL_ERR_NOTFOUND, "m-00002-of-00003.gguf");
    snprintf(renamed, sizeof renamed, "%s/model.gguf", folder);
    assert_int_equal(rename(path, renamed), 0);
    refuse(renamed, KVL_ERR_INVALID, "-00001-of-00003.gguf");
}

static int set_up(void **state) {
    (void)state;
    const struct tiny_shape shape = tiny_shape_default();
    whole_path = tiny_model_file(&shape);
    return mkdtemp(folder) == NULL || setenv("XDG_CACHE_HOME", folder, 1) != 0 ||
           kvl_gguf_open(whole_path, &whole, NULL) != KVL_OK;
}

static int tear_down(void **state) {
    (void)state;
    char command[64];
    kvl_gguf_close(whole);
    free(whole_path);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(three_files_are_the_model),
        cmocka_unit_test(the_cache_knows_every_file),
        cmocka_unit_test(files_that_do_not_belong_together_are_refused),
        cmocka_unit_test(a_missing_or_wrong_file_is_named),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
