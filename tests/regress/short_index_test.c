/* A sound index was refused as cut off: LMDB does not write the last page of a transaction that
 * took it and gave it back, so the file ended before the last page that LMDB counts. */
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

#include "disk/index.h"

#define MAP_BYTES (8ull << 20)
#define BATCH_MAX 300u

static char folder[200];

static struct kvl_index *open_index(void) {
    struct kvl_index *index = NULL;
    struct kvl_errmsg msg = {{0}};
    struct kvl_index_options options = {.directory = folder, .map_bytes = MAP_BYTES};
    if (kvl_index_open(&options, &index, &msg) != KVL_OK)
        fail_msg("%s", msg.text);
    return index;
}

/* Keys are spread over the tree, as hashes are. */
static struct kvl_index_op op_of(enum kvl_index_op_kind kind, uint64_t number) {
    struct kvl_index_op op = {.kind = kind, .old_location = 1};
    uint64_t state = number * 0x9e3779b97f4a7c15u;
    op.block.location = 1;
    op.block.stored_bytes = 4096;
    for (uint32_t i = 0; i < 4; i++) {
        state = (state ^ state >> 29) * 0xbf58476d1ce4e5b9u;
        memcpy(op.block.record.key.bytes + 8 * i, &state, sizeof state);
    }
    return op;
}

static void change(enum kvl_index_op_kind kind, uint64_t first, uint32_t count) {
    static struct kvl_index_op ops[BATCH_MAX];
    struct kvl_index *index = open_index();
    for (uint32_t i = 0; i < count; i++)
        ops[i] = op_of(kind, first + i);
    assert_int_equal(kvl_index_commit(index, ops, count), KVL_OK);
    kvl_index_close(index);
}

static void forget_index(void) {
    char path[240];
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/data.mdb%s", folder, i == 0 ? "" : "-lock");
        unlink(path);
    }
}

static void an_index_opens_after_every_transaction(void **state) {
    (void)state;
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/kvloft-index-XXXXXX", tmp != NULL ? tmp : "/tmp");
    assert_non_null(mkdtemp(folder));
    for (uint32_t round = 0; round < 60; round++) {
        uint32_t batch = 20 + round * 37 % 280, forgotten = 50 + round * 61 % 250;
        for (uint32_t i = 0; i < 6; i++)
            change(KVL_INDEX_PUT, i * batch, batch);
        change(KVL_INDEX_DELETE, 0, forgotten < 6 * batch ? forgotten : 6 * batch);
        kvl_index_close(open_index());
        forget_index();
    }
    assert_int_equal(rmdir(folder), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(an_index_opens_after_every_transaction)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
