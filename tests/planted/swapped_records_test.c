/* Two whole records that change places on disk, each sound in itself: a read that would take them
 * for one another is a wrong block. Key, generation and checksum must tell them apart. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "disk_fixture.h"

#define BLOCK_BYTES 300000u

static struct disk_fixture fixture;

static struct disk_found_block store_one(uint64_t number) {
    struct disk_block block;
    block_init_bytes(&block, &fixture, number, BLOCK_BYTES);
    assert_int_equal(block_do(&block, KVL_IO_STORE), KVL_OK);
    block_free(&block);
    return *fixture_find(&fixture, number);
}

/* Location: segment id << 32, first page. */
static int open_segment(const struct disk_found_block *found) {
    char path[400];
    snprintf(
        path, sizeof path, "%s/segments/%08u.seg", fixture.path, (unsigned)(found->location >> 32));
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

static off_t offset_of(const struct disk_found_block *found) {
    return (off_t)(uint32_t)found->location * KVL_PAGE_BYTES;
}

static void swap_records(const struct disk_found_block *a, const struct disk_found_block *b) {
    size_t bytes = a->stored_bytes;
    char *first = malloc(bytes), *second = malloc(bytes);
    int fds[2] = {open_segment(a), open_segment(b)};
    assert_int_equal(b->stored_bytes, bytes);
    assert_int_equal(pread(fds[0], first, bytes, offset_of(a)), bytes);
    assert_int_equal(pread(fds[1], second, bytes, offset_of(b)), bytes);
    assert_memory_not_equal(first, second, bytes);
    assert_int_equal(pwrite(fds[0], second, bytes, offset_of(a)), bytes);
    assert_int_equal(pwrite(fds[1], first, bytes, offset_of(b)), bytes);
    assert_int_equal(fsync(fds[0]) | fsync(fds[1]), 0);
    close(fds[0]);
    close(fds[1]);
    free(first);
    free(second);
}

static void check_corrupt(uint64_t number) {
    struct disk_block block;
    kvl_err status = KVL_OK;
    const struct disk_found_block *found = fixture_find(&fixture, number);
    assert_non_null(found);
    block_init_bytes(&block, &fixture, number, BLOCK_BYTES);
    block.io.location = found->location;
    bool same = block_load_same(&block, &status);
    if (status == KVL_OK && !same)
        fail_msg("block %d came back with the other's bytes", (int)number);
    assert_int_equal(status, KVL_ERR_CORRUPT);
    block_free(&block);
}

static void a_record_in_anothers_place_is_corrupt(void **state) {
    (void)state;
    fixture_init(&fixture, 32u << 20, NULL);
    fixture.options.codec = KVL_DISK_CODEC_RAW; /* records of one size */
    assert_int_equal(fixture_open(&fixture), KVL_OK);
    fixture_wait_loaded(&fixture);
    struct disk_found_block a = store_one(1), b = store_one(2);
    fixture_close(&fixture, true);
    swap_records(&a, &b);
    assert_int_equal(fixture_open(&fixture), KVL_OK);
    fixture_wait_loaded(&fixture);
    check_corrupt(1);
    check_corrupt(2);
    fixture_close(&fixture, true);
    fixture_remove(&fixture);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_record_in_anothers_place_is_corrupt)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
