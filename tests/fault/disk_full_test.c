/* A file system that is really full: stores say NOSPC, nothing is damaged, and it recovers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clock.h"
#include "disk_fixture.h"

#define MIB (1ull << 20)

static struct disk_fixture fixture;
static char mount_point[256];
static char filler[300];

/* Fills what is left of the file system. */
static void fill_up(void) {
    int fd = open(filler, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    for (off_t at = 0; posix_fallocate(fd, at, 4096) == 0; at += 4096)
        ;
    close(fd);
}

static kvl_err store(uint64_t number) {
    struct disk_block block;
    block_init_kv(&block, &fixture, number, 10, 3);
    kvl_err err = block_do(&block, KVL_IO_STORE);
    block_free(&block);
    return err;
}

static void assert_all_known_load(void) {
    for (uint32_t i = 0; i < fixture.found_count; i++) {
        struct disk_block block;
        if (!fixture.found[i].live)
            continue;
        block_init_kv(&block, &fixture, block_number_of(&fixture.found[i].record.key), 10, 3);
        block.io.location = fixture.found[i].location;
        assert_true(block_load_same(&block, NULL));
        block_free(&block);
    }
}

/* The capacity is more than the file system has: what fits is recycled, and that is no error. */
static void a_file_system_smaller_than_the_capacity_is_recycled(void **state) {
    (void)state;
    fixture_init(&fixture, 64 * MIB, mount_point);
    assert_int_equal(fixture_open(&fixture), KVL_OK);
    fixture_wait_loaded(&fixture);
    for (uint64_t number = 0; number < 100; number++)
        assert_int_equal(store(number), KVL_OK);
    assert_true(fixture.lost > 0);
    assert_all_known_load();
    fixture.keep_below = UINT64_MAX;
    kvl_err err = KVL_OK;
    for (uint64_t number = 100; number < 200 && err == KVL_OK; number++)
        err = store(number);
    assert_int_equal(err, KVL_ERR_NOSPC);
    assert_all_known_load();
    fixture.keep_below = 0;
    for (uint64_t number = 200; number < 240; number++)
        assert_int_equal(store(number), KVL_OK);
    fixture_close(&fixture, true);
    assert_int_equal(fixture_open(&fixture), KVL_OK);
    fixture_wait_loaded(&fixture);
    assert_true(fixture.found_count > 0);
    assert_all_known_load();
    fixture_close(&fixture, true);
    fixture_remove(&fixture);
}

static void without_room_for_a_segment_stores_say_nospc(void **state) {
    (void)state;
    fixture_init(&fixture, 32 * MIB, mount_point);
    assert_int_equal(fixture_open(&fixture), KVL_OK);
    fixture_wait_loaded(&fixture);
    fixture_close(&fixture, true);
    snprintf(filler, sizeof(filler), "%s/segments/00000001.seg", fixture.path);
    unlink(filler);
    snprintf(filler, sizeof(filler), "%s/filler", mount_point);
    fill_up();
    kvl_err err = fixture_open(&fixture);
    if (err == KVL_OK) {
        fixture_wait_loaded(&fixture);
        assert_int_equal(store(1), KVL_ERR_NOSPC);
        unlink(filler);
        uint64_t give_up_ns = kvl_clock_ns() + 30000000000ull;
        while ((err = store(2)) == KVL_ERR_NOSPC && kvl_clock_ns() < give_up_ns)
            usleep(50000);
        assert_int_equal(err, KVL_OK);
        assert_all_known_load();
        fixture_close(&fixture, true);
    } else {
        assert_int_equal(err, KVL_ERR_NOSPC);
    }
    unlink(filler);
    fixture_remove(&fixture);
}

/* A start on a file system with so many free pages: an error that says so, or it serves. */
static void starts_with(uint32_t free_pages) {
    struct stat full;
    fixture_init(&fixture, 8 * MIB, mount_point);
    fixture.options.io = KVL_DISK_IO_POSIX;
    snprintf(filler, sizeof(filler), "%s/filler", mount_point);
    fill_up();
    assert_int_equal(stat(filler, &full), 0);
    assert_int_equal(truncate(filler, full.st_size - (off_t)free_pages * 4096), 0);
    kvl_err err = fixture_open(&fixture);
    if (err == KVL_OK) {
        fixture_wait_loaded(&fixture);
        fixture_close(&fixture, true);
    } else {
        assert_true(err == KVL_ERR_NOSPC || err == KVL_ERR_IO); /* LMDB says EIO of a short write */
        assert_true(fixture.msg.text[0] != '\0');
    }
    unlink(filler);
    fixture_remove(&fixture);
}

static void a_start_on_a_full_file_system_ends_in_an_error(void **state) {
    (void)state;
    for (uint32_t free_pages = 0; free_pages < 24; free_pages++)
        starts_with(free_pages);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_system_smaller_than_the_capacity_is_recycled),
        cmocka_unit_test(without_room_for_a_segment_stores_say_nospc),
        cmocka_unit_test(a_start_on_a_full_file_system_ends_in_an_error),
    };
    const char *tmp = getenv("TMPDIR");
    snprintf(mount_point, sizeof(mount_point), "%s/kvloft-full-XXXXXX", tmp != NULL ? tmp : "/tmp");
    if (mkdtemp(mount_point) == NULL)
        return 1;
    /* A mount namespace of our own: the mount ends with the process, whatever happens. */
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("tmpfs", mount_point, "tmpfs", 0, "size=28m") != 0) {
        rmdir(mount_point);
        printf("skip: mounting a small file system needs root\n");
        return 77;
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    umount2(mount_point, MNT_DETACH);
    rmdir(mount_point);
    return failed;
}
