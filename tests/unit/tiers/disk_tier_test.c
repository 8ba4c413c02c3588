/* The disk tier through its interface, once per I/O backend: what is stored comes back, also after
 * a restart; the cap holds; damage is found; a folder has one holder. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "disk_fixture.h"

#define MIB (1ull << 20)

static enum kvl_disk_io io_under_test;
static struct disk_fixture fixture;

static void open_tier(uint64_t capacity_bytes, enum kvl_disk_codec codec) {
    fixture_init(&fixture, capacity_bytes, NULL);
    fixture.options.io = io_under_test;
    fixture.options.codec = codec;
    assert_int_equal(fixture_open(&fixture), KVL_OK);
    fixture_wait_loaded(&fixture);
}

static void reopen_tier(bool drain) {
    if (fixture.tier != NULL)
        fixture_close(&fixture, drain);
    if (fixture_open(&fixture) != KVL_OK)
        fail_msg("%s", fixture.msg.text);
    fixture_wait_loaded(&fixture);
    assert_int_equal(fixture.loaded_status, KVL_OK);
}

static void end_tier(void) {
    fixture_close(&fixture, true);
    fixture_remove(&fixture);
}

static void make_mixed(struct disk_block *block, uint64_t number) {
    switch (number % 4) {
    case 0:
        block_init_kv(block, &fixture, number, 30, 3);
        break;
    case 1:
        block_init_kv(block, &fixture, number, 7, 1);
        break;
    case 2:
        block_init_bytes(block, &fixture, number, 1 + number * 37 % 9000);
        break;
    default:
        block_init_bytes(block, &fixture, number, 700001 + number);
        break;
    }
}

static void blocks_of_all_sizes_survive_a_restart(void **state) {
    enum { COUNT = 200 };
    static struct disk_block blocks[COUNT];
    (void)state;
    for (uint32_t round = 0; round < 2; round++) {
        open_tier(512 * MIB, round == 0 ? KVL_DISK_CODEC_ZSTD : KVL_DISK_CODEC_AUTO);
        for (uint32_t i = 0; i < COUNT; i++) {
            make_mixed(&blocks[i], i);
            block_begin(&blocks[i], KVL_IO_STORE);
        }
        for (uint32_t i = 0; i < COUNT; i++)
            assert_int_equal(block_end(&blocks[i]), KVL_OK);
        for (uint32_t i = 0; i < COUNT; i += 7)
            assert_true(block_load_same(&blocks[i], NULL));
        reopen_tier(true);
        assert_int_equal(fixture.found_count, COUNT);
        for (uint32_t i = 0; i < COUNT; i++) {
            struct disk_found_block *found = fixture_find(&fixture, i);
            assert_non_null(found);
            assert_int_equal(found->record.token_count, 64);
            assert_int_equal(found->record.content_hash, blocks[i].io.record.content_hash);
            assert_int_equal(found->stored_bytes, blocks[i].io.stored_bytes);
            blocks[i].io.location = found->location;
            blocks[i].io.priority = (enum kvl_io_priority)(i % 3);
            assert_true(block_load_same(&blocks[i], NULL));
            block_free(&blocks[i]);
        }
        end_tier();
    }
}

/* Whole pages, which are written from where they lie, beside others, which are copied: in one
 * batch, in one write, more of them than a write takes, and larger than a buffer. */
static void make_paged(struct disk_block *block, uint64_t number) {
    static const uint64_t bytes[] = {65536, 65536, 65537, 262144, 100, 1048576, 4096, 3149824,
        2097152 - 4096, 61440, 8388608, 12582912};
    block_init_bytes(
        block, &fixture, number, number < 40 ? 65536 : bytes[number % (sizeof(bytes) / 8)]);
}

/* Of memory that is not aligned, everything is copied. */
static void move_by_a_sector(struct disk_block *block) {
    uint8_t *moved = aligned_alloc(KVL_PAGE_BYTES, block->layout.slot_bytes + KVL_PAGE_BYTES);
    assert_non_null(moved);
    memcpy(moved + 512, block->bytes, block->layout.payload_bytes);
    block->io.buffer = moved + 512;
}

static void blocks_are_written_from_where_they_lie(void **state) {
    enum { COUNT = 76, CHANGED = 50, CHANGED_TOO = 52 }; /* since they were sealed */
    static struct disk_block blocks[COUNT];
    (void)state;
    open_tier(512 * MIB, KVL_DISK_CODEC_RAW);
    for (uint32_t i = 0; i < COUNT; i++) {
        make_paged(&blocks[i], i);
        if (i % 10 == 9)
            move_by_a_sector(&blocks[i]);
    }
    blocks[CHANGED].bytes[77] ^= 1;
    blocks[CHANGED_TOO].bytes[77] ^= 1;
    for (uint32_t i = 0; i < COUNT; i++)
        block_begin(&blocks[i], KVL_IO_STORE);
    for (uint32_t i = 0; i < COUNT; i++)
        assert_int_equal(
            block_end(&blocks[i]), i == CHANGED || i == CHANGED_TOO ? KVL_ERR_CORRUPT : KVL_OK);
    reopen_tier(true);
    assert_int_equal(fixture.found_count, COUNT - 2);
    for (uint32_t i = 0; i < COUNT; i++) {
        if (blocks[i].io.buffer != blocks[i].bytes)
            free((uint8_t *)blocks[i].io.buffer - 512);
        blocks[i].io.buffer = blocks[i].bytes;
        if (i != CHANGED && i != CHANGED_TOO) {
            blocks[i].io.location = fixture_find(&fixture, i)->location;
            assert_true(block_load_same(&blocks[i], NULL));
        }
        block_free(&blocks[i]);
    }
    end_tier();
}

static void registered_memory_loads_the_same(void **state) {
    (void)state;
    struct disk_block block;
    open_tier(64 * MIB, KVL_DISK_CODEC_RAW);
    block_init_kv(&block, &fixture, 1, 30, 3);
    uint64_t bytes = 4 * MIB;
    uint8_t *own = block.bytes;
    uint8_t *arena = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    kvl_disk_tier_register_memory(fixture.tier, arena, bytes);
    assert_int_equal(block_do(&block, KVL_IO_STORE), KVL_OK);
    block.io.buffer = arena + MIB;
    assert_int_equal(block_do(&block, KVL_IO_LOAD), KVL_OK);
    assert_memory_equal(arena + MIB, own, block.layout.payload_bytes);
    end_tier();
    munmap(arena, bytes);
    block_free(&block);
}

/* Overwrites several times the capacity and looks at the folder after every step. */
static void overwrite(uint64_t capacity_bytes, uint64_t count, uint64_t first) {
    for (uint64_t i = 0; i < count; i++) {
        struct disk_block block;
        block_init_kv(&block, &fixture, first + i, 10, 3);
        assert_int_equal(block_do(&block, KVL_IO_STORE), KVL_OK);
        block_free(&block);
        assert_true(fixture_disk_usage(&fixture) <= capacity_bytes);
        assert_true(fixture.tier->ops->stats(fixture.tier).used_bytes <= capacity_bytes);
    }
}

static void assert_every_known_block_loads(void) {
    for (uint32_t i = 0; i < fixture.found_count; i++) {
        if (!fixture.found[i].live)
            continue;
        struct disk_block block;
        kvl_err status;
        uint64_t number = block_number_of(&fixture.found[i].record.key);
        block_init_kv(&block, &fixture, number, 10, 3);
        block.io.location = fixture.found[i].location;
        bool same = block_load_same(&block, &status);
        /* It may be evicted between our look and the load; then it was said to be lost. */
        assert_true(same || (status == KVL_ERR_NOTFOUND && !fixture.found[i].live));
        block_free(&block);
    }
}

static void the_cap_holds_from_the_first_byte_and_after_a_restart(void **state) {
    (void)state;
    const uint64_t capacities[] = {6 * MIB, 16 * MIB, 40 * MIB};
    for (uint32_t c = 0; c < 3; c++) {
        uint64_t capacity = capacities[c];
        uint64_t count = capacity / (480u << 10) * 2 + 10;
        open_tier(capacity, KVL_DISK_CODEC_RAW);
        assert_true(fixture_disk_usage(&fixture) <= capacity);
        overwrite(capacity, count, 0);
        assert_true(fixture.lost > 0);
        assert_every_known_block_loads();
        reopen_tier(true);
        assert_true(fixture.found_count > 0);
        assert_every_known_block_loads();
        overwrite(capacity, count / 2, 1000);
        assert_every_known_block_loads();
        end_tier();
    }
}

static void a_smaller_capacity_evicts_before_it_serves(void **state) {
    (void)state;
    open_tier(64 * MIB, KVL_DISK_CODEC_RAW);
    overwrite(64 * MIB, 110, 0);
    fixture_close(&fixture, true);
    fixture.options.capacity_bytes = 24 * MIB;
    reopen_tier(false);
    assert_true(fixture_disk_usage(&fixture) <= 24 * MIB);
    assert_true(fixture.found_count > 10);
    assert_every_known_block_loads();
    overwrite(24 * MIB, 60, 1000);
    assert_every_known_block_loads();
    fixture_close(&fixture, true);
    fixture.options.capacity_bytes = 96 * MIB;
    reopen_tier(false);
    assert_every_known_block_loads();
    overwrite(96 * MIB, 60, 2000);
    end_tier();
}

static void what_is_to_be_kept_is_carried_over(void **state) {
    (void)state;
    open_tier(32 * MIB, KVL_DISK_CODEC_RAW);
    fixture.keep_below = 8;
    for (uint64_t i = 0; i < 8; i++) {
        overwrite(32 * MIB, 1, i);
        overwrite(32 * MIB, 3, 1000 + 3 * i);
    }
    overwrite(32 * MIB, 200, 2000);
    assert_true(fixture.moved > 0);
    assert_true(fixture.asked > 0);
    for (uint64_t i = 0; i < 8; i++)
        assert_non_null(fixture_find(&fixture, i));
    assert_every_known_block_loads();
    reopen_tier(true);
    for (uint64_t i = 0; i < 8; i++)
        assert_non_null(fixture_find(&fixture, i));
    assert_every_known_block_loads();
    end_tier();
}

static void nothing_to_reclaim_is_nospc_until_there_is(void **state) {
    (void)state;
    struct disk_block block;
    kvl_err err = KVL_OK;
    uint64_t stored = 0;
    open_tier(16 * MIB, KVL_DISK_CODEC_RAW);
    fixture.keep_below = UINT64_MAX;
    for (; stored < 100 && err == KVL_OK; stored += err == KVL_OK) {
        block_init_kv(&block, &fixture, stored, 10, 3);
        err = block_do(&block, KVL_IO_STORE);
        block_free(&block);
    }
    assert_int_equal(err, KVL_ERR_NOSPC);
    assert_true(stored >= 8);
    assert_int_equal(fixture.lost, 0);
    assert_every_known_block_loads();
    fixture.keep_below = 0;
    overwrite(16 * MIB, 20, 1000);
    end_tier();
}

static void discarded_blocks_stay_away(void **state) {
    (void)state;
    open_tier(32 * MIB, KVL_DISK_CODEC_RAW);
    overwrite(32 * MIB, 20, 0);
    for (uint64_t i = 0; i < 20; i += 2) {
        struct disk_found_block *found = fixture_find(&fixture, i);
        fixture.tier->ops->discard(fixture.tier, &found->record.key, found->location);
    }
    struct disk_block block;
    block_init_kv(&block, &fixture, 2, 10, 3);
    block.io.location = fixture_find(&fixture, 2)->location;
    assert_int_equal(block_do(&block, KVL_IO_LOAD), KVL_ERR_NOTFOUND);
    reopen_tier(true);
    assert_int_equal(fixture.found_count, 10);
    for (uint64_t i = 0; i < 20; i++)
        assert_int_equal(fixture_find(&fixture, i) != NULL, i % 2 == 1);
    /* Stored again, it is there again. */
    assert_int_equal(block_do(&block, KVL_IO_STORE), KVL_OK);
    assert_true(block_load_same(&block, NULL));
    block_free(&block);
    end_tier();
}

static void flip(const char *path, off_t at) {
    uint8_t byte = 0;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0 && pread(fd, &byte, 1, at) == 1);
    byte ^= 0x40;
    assert_true(pwrite(fd, &byte, 1, at) == 1 && fsync(fd) == 0);
    close(fd);
}

static void damage_is_found_and_the_block_is_lost(void **state) {
    (void)state;
    const enum kvl_disk_codec codecs[] = {KVL_DISK_CODEC_RAW, KVL_DISK_CODEC_ZSTD};
    const off_t places[] = {0, 100, 4088, 4096 + 50, 4096 + 70000, 300000};
    for (uint32_t c = 0; c < 2; c++) {
        open_tier(32 * MIB, codecs[c]);
        for (uint32_t p = 0; p < 6; p++) {
            struct disk_block block;
            char path[400];
            kvl_err status;
            block_init_kv(&block, &fixture, p, 10, 3);
            assert_int_equal(block_do(&block, KVL_IO_STORE), KVL_OK);
            snprintf(path, sizeof(path), "%s/segments/%08u.seg", fixture.path,
                (unsigned)(block.io.location >> 32));
            flip(path, (off_t)(uint32_t)block.io.location * 4096 + places[p]);
            assert_false(block_load_same(&block, &status));
            assert_int_equal(status, KVL_ERR_CORRUPT);
            while (fixture.lost != p + 1)
                fixture_poll(&fixture);
            assert_int_equal(block_do(&block, KVL_IO_LOAD), KVL_ERR_NOTFOUND);
            block_free(&block);
        }
        assert_int_equal(fixture.tier->ops->stats(fixture.tier).corrupt, 6);
        reopen_tier(true);
        assert_int_equal(fixture.found_count, 0);
        end_tier();
    }
}

static void a_missing_segment_costs_its_blocks_only(void **state) {
    (void)state;
    char path[400];
    open_tier(32 * MIB, KVL_DISK_CODEC_RAW);
    overwrite(32 * MIB, 30, 0);
    uint32_t segment = (uint32_t)(fixture.found[0].location >> 32), in_it = 0;
    for (uint32_t i = 0; i < fixture.found_count; i++)
        in_it += fixture.found[i].live && fixture.found[i].location >> 32 == segment;
    fixture_close(&fixture, true);
    snprintf(path, sizeof(path), "%s/segments/%08u.seg", fixture.path, (unsigned)segment);
    assert_int_equal(unlink(path), 0);
    reopen_tier(false);
    assert_int_equal(fixture.found_count, 30 - in_it);
    assert_every_known_block_loads();
    reopen_tier(true);
    assert_int_equal(fixture.found_count, 30 - in_it);
    end_tier();
}

static void flushed(void *arg, kvl_err status) {
    assert_int_equal(status, KVL_OK);
    *(bool *)arg = true;
}

static void the_catalog_outlives_the_process(void **state) {
    (void)state;
    bool done = false;
    uint8_t large[KVL_CATALOG_VALUE_BYTES_MAX] = {1, 2, 3};
    open_tier(16 * MIB, KVL_DISK_CODEC_RAW);
    struct kvl_catalog *catalog = fixture.catalog;
    const struct kvl_catalog_ops *ops = catalog->ops;
    assert_int_equal(ops->put(catalog, KVL_CATALOG_SESSION, "gone", 4, "x", 1), KVL_OK);
    assert_int_equal(ops->put(catalog, KVL_CATALOG_SESSION, "chat", 4, "old", 3), KVL_OK);
    assert_int_equal(ops->put(catalog, KVL_CATALOG_SESSION, "chat", 4, "new!", 4), KVL_OK);
    assert_int_equal(ops->remove(catalog, KVL_CATALOG_SESSION, "gone", 4), KVL_OK);
    assert_int_equal(ops->put(catalog, KVL_CATALOG_PIN, large, 481, "x", 1), KVL_ERR_TOOBIG);
    assert_int_equal(ops->flush(catalog, flushed, &done), KVL_OK);
    while (!done)
        fixture_poll(&fixture);
    reopen_tier(false);
    assert_int_equal(fixture.catalog_found, 1);
    assert_string_equal(fixture.catalog_key, "chat");
    assert_int_equal(fixture.catalog_value_bytes, 4);
    assert_memory_equal(fixture.catalog_value, "new!", 4);
    catalog = fixture.catalog;
    for (uint32_t i = 0; i < 100; i++) {
        kvl_err err;
        while ((err = ops->put(catalog, KVL_CATALOG_META, "m", 1, large, sizeof(large))) ==
               KVL_ERR_AGAIN)
            fixture_poll(&fixture);
        assert_int_equal(err, KVL_OK);
    }
    reopen_tier(true);
    assert_int_equal(fixture.catalog_found, 2);
    end_tier();
}

/* The index has its share of the capacity; what fills it is refused, and can be removed again. */
static void a_full_index_refuses_and_recovers(void **state) {
    (void)state;
    static uint8_t value[50000];
    struct disk_block block;
    uint32_t puts = 0;
    open_tier(16 * MIB, KVL_DISK_CODEC_RAW);
    const struct kvl_catalog_ops *ops = fixture.catalog->ops;
    for (kvl_err err = KVL_OK; err == KVL_OK; puts += err == KVL_OK) {
        char key[32];
        int bytes = snprintf(key, sizeof(key), "session-%u", puts);
        err = ops->put(
            fixture.catalog, KVL_CATALOG_SESSION, key, (uint32_t)bytes, value, sizeof(value));
        assert_true(err == KVL_OK || err == KVL_ERR_NOSPC);
        assert_int_equal(fixture.tier->ops->drain(fixture.tier), KVL_OK);
    }
    assert_true(puts > 5 && puts < 100);
    block_init_bytes(&block, &fixture, 1, 5000);
    kvl_err stored = block_do(&block, KVL_IO_STORE);
    assert_true(stored == KVL_OK || stored == KVL_ERR_NOSPC);
    reopen_tier(true);
    assert_int_equal(fixture.catalog_found, puts);
    for (uint32_t i = 0; i < puts; i++) {
        char key[32];
        int bytes = snprintf(key, sizeof(key), "session-%u", i);
        assert_int_equal(
            ops->remove(fixture.catalog, KVL_CATALOG_SESSION, key, (uint32_t)bytes), KVL_OK);
    }
    assert_int_equal(fixture.tier->ops->drain(fixture.tier), KVL_OK);
    assert_int_equal(
        ops->put(fixture.catalog, KVL_CATALOG_SESSION, "new", 3, value, sizeof(value)), KVL_OK);
    assert_int_equal(block_do(&block, KVL_IO_STORE), KVL_OK);
    assert_true(block_load_same(&block, NULL));
    reopen_tier(true);
    assert_int_equal(fixture.catalog_found, 1);
    assert_int_equal(fixture.found_count, 1);
    block_free(&block);
    end_tier();
}

static void canceled_ios_complete_once(void **state) {
    enum { COUNT = 64 };
    static struct disk_block blocks[COUNT];
    (void)state;
    open_tier(128 * MIB, KVL_DISK_CODEC_ZSTD);
    for (uint32_t i = 0; i < COUNT; i++) {
        block_init_kv(&blocks[i], &fixture, i, 10, 3);
        block_begin(&blocks[i], KVL_IO_STORE);
    }
    for (uint32_t i = 0; i < COUNT; i += 2)
        fixture.tier->ops->cancel(fixture.tier, &blocks[i].io);
    for (uint32_t i = 0; i < COUNT; i++) {
        kvl_err err = block_end(&blocks[i]);
        assert_true(err == KVL_OK || (err == KVL_ERR_CANCELED && i % 2 == 0));
        block_free(&blocks[i]);
    }
    assert_int_equal(fixture.tier->ops->stats(fixture.tier).inflight, 0);
    end_tier();
}

static void a_folder_has_one_holder(void **state) {
    (void)state;
    static struct disk_fixture second;
    open_tier(16 * MIB, KVL_DISK_CODEC_RAW);
    second = fixture;
    second.options.holder_name = "other";
    fixture_close(&fixture, true);
    fixture.options.holder_name = "the-daemon";
    reopen_tier(false);
    assert_int_equal(fixture_open(&second), KVL_ERR_BUSY);
    assert_non_null(strstr(second.msg.text, "the-daemon"));
    char pid[32];
    snprintf(pid, sizeof(pid), "%d", (int)getpid());
    assert_non_null(strstr(second.msg.text, pid));
    fixture_close(&fixture, true);
    assert_int_equal(fixture_open(&second), KVL_OK);
    fixture_wait_loaded(&second);
    fixture_close(&second, true);
    fixture_remove(&fixture);
}

static void bad_options_are_refused_clearly(void **state) {
    (void)state;
    fixture_init(&fixture, 1 * MIB, NULL);
    assert_int_equal(fixture_open(&fixture), KVL_ERR_INVALID);
    assert_non_null(strstr(fixture.msg.text, "6M"));
    fixture.options.capacity_bytes = 16 * MIB;
    fixture.options.path = "/proc/kvloft";
    assert_int_not_equal(fixture_open(&fixture), KVL_OK);
    assert_non_null(strstr(fixture.msg.text, "/proc/kvloft"));
    char deep[400];
    snprintf(deep, sizeof(deep), "%s/a/b/c", fixture.path);
    fixture.options.path = deep;
    assert_int_equal(fixture_open(&fixture), KVL_OK);
    struct stat made;
    assert_int_equal(stat(deep, &made), 0);
    assert_int_equal(made.st_mode & 0777, 0700);
    fixture_wait_loaded(&fixture);
    struct disk_block block;
    block_init_bytes(&block, &fixture, 1, 3 * MIB);
    assert_int_equal(block_do(&block, KVL_IO_STORE), KVL_ERR_TOOBIG);
    block_free(&block);
    end_tier();
}

/* Root passes every permission check, so the look is another user's, in a child. */
static void a_folder_without_rights_is_refused(void **state) {
    (void)state;
    fixture_init(&fixture, 16 * MIB, NULL);
    assert_int_equal(chmod(fixture.path, 0500), 0);
    pid_t child = fork();
    if (child == 0) {
        if (getuid() == 0 && setuid(65534) != 0)
            _exit(2);
        kvl_err err = fixture_open(&fixture);
        _exit(err == KVL_ERR_PERM && strstr(fixture.msg.text, fixture.path) != NULL ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(WEXITSTATUS(status), 0);
    chmod(fixture.path, 0700);
    fixture_remove(&fixture);
}

static void a_tier_may_end_while_it_loads(void **state) {
    (void)state;
    open_tier(64 * MIB, KVL_DISK_CODEC_RAW);
    enum { BATCH = 100 };
    for (uint32_t first = 0; first < 1500; first += BATCH) {
        struct disk_block blocks[BATCH];
        for (uint32_t i = 0; i < BATCH; i++) {
            block_init_bytes(&blocks[i], &fixture, first + i, 100);
            block_begin(&blocks[i], KVL_IO_STORE);
        }
        for (uint32_t i = 0; i < BATCH; i++) {
            assert_int_equal(block_end(&blocks[i]), KVL_OK);
            block_free(&blocks[i]);
        }
    }
    fixture_close(&fixture, true);
    assert_int_equal(fixture_open(&fixture), KVL_OK);
    fixture_close(&fixture, false);
    reopen_tier(false);
    assert_int_equal(fixture.found_count, 1500);
    end_tier();
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_of_all_sizes_survive_a_restart),
        cmocka_unit_test(blocks_are_written_from_where_they_lie),
        cmocka_unit_test(registered_memory_loads_the_same),
        cmocka_unit_test(the_cap_holds_from_the_first_byte_and_after_a_restart),
        cmocka_unit_test(a_smaller_capacity_evicts_before_it_serves),
        cmocka_unit_test(what_is_to_be_kept_is_carried_over),
        cmocka_unit_test(nothing_to_reclaim_is_nospc_until_there_is),
        cmocka_unit_test(discarded_blocks_stay_away),
        cmocka_unit_test(damage_is_found_and_the_block_is_lost),
        cmocka_unit_test(a_missing_segment_costs_its_blocks_only),
        cmocka_unit_test(the_catalog_outlives_the_process),
        cmocka_unit_test(a_full_index_refuses_and_recovers),
        cmocka_unit_test(canceled_ios_complete_once),
        cmocka_unit_test(a_folder_has_one_holder),
        cmocka_unit_test(bad_options_are_refused_clearly),
        cmocka_unit_test(a_folder_without_rights_is_refused),
        cmocka_unit_test(a_tier_may_end_while_it_loads),
    };
    const char *name = argc > 1 ? argv[1] : "auto";
    io_under_test = strcmp(name, "uring") == 0      ? KVL_DISK_IO_URING
                    : strcmp(name, "posix") == 0    ? KVL_DISK_IO_POSIX
                    : strcmp(name, "buffered") == 0 ? KVL_DISK_IO_BUFFERED
                                                    : KVL_DISK_IO_AUTO;
    fixture_init(&fixture, 16 * MIB, NULL);
    fixture.options.io = io_under_test;
    kvl_err err = fixture_open(&fixture);
    if (err == KVL_ERR_UNSUPPORTED) {
        printf("skip: %s\n", fixture.msg.text);
        fixture_remove(&fixture);
        return 77;
    }
    if (err == KVL_OK) {
        printf("io=%s\n", kvl_disk_tier_io_name(fixture.tier));
        fixture_close(&fixture, true);
    }
    fixture_remove(&fixture);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
