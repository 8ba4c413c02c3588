/* The index is lost: what the segments and their journal give back is what the index knew, what was
 * cleared stays cleared, and without a whole journal no block is believed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "disk/index.h"
#include "disk_fixture.h"
#include "log.h"

#define MIB (1ull << 20)

static struct disk_fixture fixture;
static struct kvl_log *test_log;
static char warnings[4096];

static void keep_warning(void *arg, enum kvl_log_level level, const char *line) {
    (void)arg;
    if (level <= KVL_LOG_WARN && strlen(warnings) + strlen(line) + 2 < sizeof(warnings))
        strcat(strcat(warnings, line), "\n");
}

/* ---- the folder --------------------------------------------------------------------------- */

static void lose_index(void) {
    assert_int_equal(unlink(fixture_path(&fixture, "index/data.mdb")), 0);
}

static void open_folder(void) {
    warnings[0] = '\0';
    kvl_log_destroy(test_log);
    test_log = kvl_log_create(KVL_LOG_INFO, keep_warning, NULL);
    fixture.options.log = test_log;
    if (fixture_open(&fixture) != KVL_OK)
        fail_msg("%s", fixture.msg.text);
    fixture_wait_loaded(&fixture);
    assert_int_equal(fixture.loaded_status, KVL_OK);
}

static void new_folder(uint64_t capacity_bytes) {
    fixture_init(&fixture, capacity_bytes, NULL);
    fixture.options.io = KVL_DISK_IO_POSIX;
    open_folder();
}

static void close_folder(void) {
    fixture_close(&fixture, true);
}

static void rebuild(void) {
    lose_index();
    open_folder();
    assert_non_null(strstr(warnings, "rebuilt from the segments"));
}

static void end_folder(void) {
    close_folder();
    assert_true(fixture_disk_usage(&fixture) <= fixture.options.capacity_bytes);
    fixture_remove(&fixture);
}

/* ---- blocks and catalog ------------------------------------------------------------------- */

static void make(struct disk_block *block, uint64_t number) {
    block_init_bytes(block, &fixture, number, 20000 + number % 7 * 4096);
}

static void store(uint64_t first, uint64_t count) {
    static struct disk_block blocks[100];
    for (uint64_t done = 0; done < count; done += 100) {
        uint64_t together = count - done < 100 ? count - done : 100;
        for (uint64_t i = 0; i < together; i++) {
            make(&blocks[i], first + done + i);
            block_begin(&blocks[i], KVL_IO_STORE);
        }
        for (uint64_t i = 0; i < together; i++) {
            assert_int_equal(block_end(&blocks[i]), KVL_OK);
            block_free(&blocks[i]);
        }
    }
}

static void assert_all_load(void) {
    for (uint32_t i = 0; i < fixture.found_count; i++) {
        struct disk_block block;
        kvl_err status;
        if (!fixture.found[i].live)
            continue;
        make(&block, block_number_of(&fixture.found[i].record.key));
        block.io.record = fixture.found[i].record;
        block.io.location = fixture.found[i].location;
        if (!block_load_same(&block, &status))
            fail_msg("block %d: %s", (int)block.number, kvl_err_name(status));
        block_free(&block);
    }
    assert_int_equal(fixture.tier->ops->stats(fixture.tier).corrupt, 0);
}

static void drop(const char *name) {
    assert_int_equal(fixture.catalog->ops->remove(
                         fixture.catalog, KVL_CATALOG_SESSION, name, (uint32_t)strlen(name)),
        KVL_OK);
}

static void assert_one_session(const char *name, const char *value) {
    assert_int_equal(fixture.catalog_found, 1);
    assert_string_equal(fixture.catalog_key, name);
    assert_int_equal(fixture.catalog_value_bytes, strlen(value));
    assert_memory_equal(fixture.catalog_value, value, strlen(value));
}

/* ---- tests -------------------------------------------------------------------------------- */

static void cut_off(void) {
    assert_int_equal(truncate(fixture_path(&fixture, "index/data.mdb"), 9000), 0);
}

static void empty(void) {
    assert_int_equal(truncate(fixture_path(&fixture, "index/data.mdb"), 0), 0);
}

static void zero_head(void) {
    fixture_shell("dd if=/dev/zero of=%s bs=4096 count=2 conv=notrunc status=none",
        fixture_path(&fixture, "index/data.mdb"));
}

static void zero_all(void) {
    fixture_shell("dd if=/dev/zero of=%s bs=4096 count=$(($(stat -c %%s %s) / 4096)) conv=notrunc "
                  "status=none",
        fixture_path(&fixture, "index/data.mdb"), fixture_path(&fixture, "index/data.mdb"));
}

static void remove_folder(void) {
    fixture_shell("rm -r %s/index", fixture.path);
}

static void a_lost_index_comes_back(void **state) {
    (void)state;
    void (*const damages[])(void) = {
        lose_index, cut_off, empty, zero_head, zero_all, remove_folder};
    new_folder(8 * MIB);
    fixture_put(&fixture, "gone", "x");
    fixture_put(&fixture, "chat", "old");
    store(0, 30);
    fixture_put(&fixture, "chat", "new!");
    drop("gone");
    for (size_t i = 0; i < sizeof(damages) / sizeof(damages[0]); i++) {
        close_folder();
        damages[i]();
        open_folder();
        assert_non_null(strstr(warnings, "rebuilt from the segments"));
        assert_one_session("chat", "new!");
        assert_int_equal(fixture_live_count(&fixture), 30);
        assert_all_load();
        close_folder();
        open_folder();
        assert_string_equal(warnings, "");
        assert_int_equal(fixture_live_count(&fixture), 30);
        store(100 + i, 1);
        fixture_discard(&fixture, 100 + i);
    }
    end_folder();
}

static void blocks_of_this_run_and_of_earlier_ones_stay_cleared(void **state) {
    (void)state;
    new_folder(8 * MIB);
    store(0, 20);
    close_folder();
    open_folder();
    store(20, 20);
    for (uint64_t number = 0; number < 40; number += 2)
        fixture_discard(&fixture, number);
    assert_int_equal(fixture_flush(&fixture), KVL_OK);
    fixture_close(&fixture, false);
    rebuild();
    assert_int_equal(fixture_live_count(&fixture), 20);
    for (uint64_t number = 0; number < 40; number++)
        assert_int_equal(fixture_find(&fixture, number) != NULL, number % 2 == 1);
    assert_all_load();
    end_folder();
}

static void store_again(uint64_t number, uint64_t generation) {
    struct disk_block block;
    make(&block, number);
    block.io.record.generation = generation;
    assert_int_equal(block_do(&block, KVL_IO_STORE), KVL_OK);
    block_free(&block);
}

static void a_replaced_copy_does_not_come_back(void **state) {
    (void)state;
    new_folder(8 * MIB);
    store(1, 1);
    store_again(1, 1000);
    store(2, 1);
    store_again(2, 1000);
    fixture_discard(&fixture, 2);
    assert_int_equal(fixture_flush(&fixture), KVL_OK);
    fixture_close(&fixture, false);
    rebuild();
    assert_int_equal(fixture_live_count(&fixture), 1);
    assert_int_equal(fixture_find(&fixture, 1)->record.generation, 1000);
    assert_all_load();
    fixture_discard(&fixture, 1);
    close_folder();
    rebuild();
    assert_int_equal(fixture_live_count(&fixture), 0);
    end_folder();
}

static struct kvl_index_block known[FIXTURE_BLOCKS_MAX];
static uint32_t known_count;

static bool note_known(void *arg, const struct kvl_index_block *block) {
    (void)arg;
    known[known_count++] = *block;
    return true;
}

/* What the index says while nobody changes it. */
static void read_index(void) {
    struct kvl_index *index;
    struct kvl_errmsg msg = {""};
    uint64_t bad = 0;
    char directory[400];
    snprintf(directory, sizeof(directory), "%s", fixture_path(&fixture, "index"));
    const struct kvl_index_options options = {.directory = directory, .map_bytes = MIB};
    if (kvl_index_open(&options, &index, &msg) != KVL_OK)
        fail_msg("%s", msg.text);
    known_count = 0;
    assert_int_equal(kvl_index_walk_blocks(index, note_known, NULL, &bad), KVL_OK);
    assert_int_equal(bad, 0);
    kvl_index_close(index);
}

static const struct disk_found_block *find_record(const struct kvl_index_block *block) {
    const struct disk_found_block *found =
        fixture_find(&fixture, block_number_of(&block->record.key));
    assert_non_null(found);
    assert_memory_equal(&found->record, &block->record, sizeof(found->record));
    assert_int_equal(found->stored_bytes, block->stored_bytes);
    return found;
}

static void compare_with_index(void) {
    close_folder();
    read_index();
    rebuild();
    assert_int_equal(fixture_live_count(&fixture) + fixture.lost, known_count);
    for (uint32_t i = 0; i < known_count && fixture.moved + fixture.lost == 0; i++)
        assert_int_equal(find_record(&known[i])->location, known[i].location);
    assert_all_load();
}

/* Segments are reclaimed and reused, some blocks carried; then everything is cleared. */
static void carried_blocks_come_back_until_they_are_cleared(void **state) {
    (void)state;
    new_folder(8 * MIB);
    fixture.keep_below = 20;
    store(0, 20);
    for (uint64_t round = 0; round < 3; round++) {
        store(100 + round * 400, 400);
        compare_with_index();
        for (uint64_t number = 0; number < 20; number++)
            assert_non_null(fixture_find(&fixture, number));
    }
    for (uint64_t number = 2000; fixture.moved == 0; number += 100)
        store(number, 100);
    for (uint64_t number = 0; number < 20; number++)
        fixture_discard(&fixture, number);
    assert_int_equal(fixture_flush(&fixture), KVL_OK);
    fixture_close(&fixture, false);
    rebuild();
    for (uint64_t number = 0; number < 20; number++)
        assert_null(fixture_find(&fixture, number));
    for (uint32_t i = 0; i < fixture.found_count; i++)
        fixture.tier->ops->discard(
            fixture.tier, &fixture.found[i].record.key, fixture.found[i].location);
    assert_int_equal(fixture_flush(&fixture), KVL_OK);
    fixture_close(&fixture, false);
    rebuild();
    assert_int_equal(fixture.found_count, 0);
    end_folder();
}

/* What the folder's journal says at the moment when the disk asks what to keep: no copy is begun.
 */
static void keep_journal(const char *as) {
    fixture_shell("cp %s/segments/journal %s-journal && cp %s/index/state %s-state", fixture.path,
        as, fixture.path, as);
}

static bool keep_journal_then_block(void *arg, const struct kvl_key *key) {
    struct disk_fixture *of = arg;
    if (of->moved == 0)
        keep_journal(of->path);
    of->asked++;
    return block_number_of(key) < of->keep_below;
}

/* Stores one by one until the block was copied to a segment that a rebuild reads before its own.
 * Returns where it was. */
static uint64_t store_until_carried_down(uint64_t block) {
    uint64_t from = 0, to = 0;
    fixture.tier->events.keep = keep_journal_then_block;
    store(1000, 60); /* far from full */
    for (uint64_t number = 100; to >> 32 >= from >> 32; number++) {
        assert_true(number < 1000);
        fixture.moved = 0;
        from = fixture_find(&fixture, block)->location;
        store(number, 1);
        to = fixture_find(&fixture, block)->location;
    }
    return from;
}

/* A crash between the write of a copy and the transaction that publishes it, put together from two
 * moments. The copy is not whole, and the index is lost: the block is where it was. */
static void a_copy_that_was_not_published_does_not_replace_its_block(void **state) {
    (void)state;
    fixture_init(&fixture, 8 * MIB, NULL);
    fixture.options.io = KVL_DISK_IO_POSIX;
    fixture.options.codec = KVL_DISK_CODEC_RAW; /* fills it faster */
    open_folder();
    fixture.keep_below = 1;
    store(0, 1);
    uint64_t location = store_until_carried_down(0);
    fixture_damage(&fixture, 0, 5000);
    fixture_close(&fixture, false);
    fixture_shell("mv %s-journal %s/segments/journal && mv %s-state %s/index/state", fixture.path,
        fixture.path, fixture.path, fixture.path);
    rebuild();
    assert_non_null(fixture_find(&fixture, 0));
    assert_int_equal(fixture_find(&fixture, 0)->location, location);
    assert_all_load();
    end_folder();
}

/* Stores until the disk asks what to keep; then what it copies is discarded under its hands, and
 * the process ends as soon as that is durable. */
static void discard_while_carried(void) {
    open_folder();
    fixture.keep_below = 20;
    store(0, 80); /* far from full */
    for (uint64_t number = 1000; fixture.asked == 0; number++) {
        static struct disk_block block; /* the last one is still on its way at the end */
        make(&block, number);
        block_begin(&block, KVL_IO_STORE);
        while (block.busy && fixture.asked == 0)
            fixture_poll(&fixture);
        if (!block.busy)
            block_free(&block);
    }
    for (uint64_t number = 0; number < 20; number++)
        fixture_discard(&fixture, number);
    assert_int_equal(fixture_flush(&fixture), KVL_OK);
    kill(getpid(), SIGKILL);
}

static void discarding_what_is_being_carried_holds(void **state) {
    (void)state;
    for (uint32_t round = 0; round < 6; round++) {
        fixture_init(&fixture, 8 * MIB, NULL);
        fixture.options.io = KVL_DISK_IO_POSIX;
        fixture.options.codec = KVL_DISK_CODEC_RAW;
        pid_t child = fork();
        if (child == 0)
            discard_while_carried();
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        rebuild();
        for (uint64_t number = 0; number < 20; number++)
            assert_null(fixture_find(&fixture, number));
        assert_all_load();
        end_folder();
    }
}

/* A crash between the write of a record and its transaction, put together from two moments. */
static void what_no_transaction_named_is_not_found_after_a_clear(void **state) {
    (void)state;
    char copy[300];
    new_folder(8 * MIB);
    snprintf(copy, sizeof(copy), "%s-earlier", fixture.path);
    store(0, 5);
    fixture_shell("rm -rf %s && cp -r %s %s", copy, fixture.path, copy);
    store(5, 5);
    fixture_close(&fixture, true);
    fixture_shell("cp %s/segments/*.seg %s/segments/ && rm -r %s && mv %s %s", fixture.path, copy,
        fixture.path, copy, fixture.path);
    for (uint32_t start = 0; start < 2; start++) {
        open_folder();
        assert_int_equal(fixture_live_count(&fixture), start == 0 ? 5 : 0);
        for (uint64_t number = 0; number < 5 && start == 0; number++)
            fixture_discard(&fixture, number);
        assert_int_equal(fixture_flush(&fixture), KVL_OK);
        fixture_close(&fixture, false);
    }
    rebuild();
    assert_int_equal(fixture_live_count(&fixture), 0);
    store(20, 1); /* over the first of them */
    fixture_close(&fixture, false);
    rebuild();
    assert_int_equal(fixture_live_count(&fixture), 1);
    assert_all_load();
    end_folder();
}

static void flip_middle_of(const char *path) {
    struct stat file;
    uint8_t byte;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0 && fstat(fd, &file) == 0);
    assert_int_equal(pread(fd, &byte, 1, file.st_size / 2), 1);
    byte ^= 0x10;
    assert_int_equal(pwrite(fd, &byte, 1, file.st_size / 2), 1);
    close(fd);
}

static void flip_journal(void) {
    flip_middle_of(fixture_path(&fixture, "segments/journal"));
}

static void cut_journal(void) {
    struct stat file;
    assert_int_equal(stat(fixture_path(&fixture, "segments/journal"), &file), 0);
    assert_int_equal(truncate(fixture_path(&fixture, "segments/journal"), file.st_size - 8), 0);
}

/* Between two frames, so that only the count of them tells. */
static void cut_last_frame(void) {
    int fd = open(fixture_path(&fixture, "segments/journal"), O_RDWR | O_CLOEXEC);
    uint32_t word;
    off_t at = lseek(fd, 0, SEEK_END) - 8;
    while (pread(fd, &word, 4, at) == 4 && word != 0x4a4c564b)
        at -= 8;
    assert_true(at > 0 && ftruncate(fd, at) == 0);
    close(fd);
}

static void lose_journal(void) {
    assert_int_equal(unlink(fixture_path(&fixture, "segments/journal")), 0);
}

static void (*const journal_damages[])(void) = {
    flip_journal, cut_journal, cut_last_frame, lose_journal};

/* Nothing tells any more which blocks were cleared, so none comes back. */
static void with_both_damaged_no_block_comes_back(void **state) {
    (void)state;
    for (uint32_t i = 0; i < 4; i++) {
        new_folder(8 * MIB);
        store(0, 20);
        for (uint64_t number = 0; number < 20; number += 2)
            fixture_discard(&fixture, number);
        close_folder();
        journal_damages[i]();
        lose_index();
        open_folder();
        if (journal_damages[i] != lose_journal) /* else it is a new folder */
            assert_non_null(strstr(warnings, "without blocks"));
        assert_int_equal(fixture_live_count(&fixture), 0);
        store(0, 20);
        assert_all_load();
        compare_with_index();
        end_folder();
    }
}

/* What an append leaves behind that the power went away from: a piece of a frame, its first pages
 * missing or not. Nothing was committed on its word, so it takes nothing away. */
static void a_torn_append_takes_nothing_away(void **state) {
    (void)state;
    static const char *const tears[] = {
        "head -c 5000 /dev/zero >> %s/segments/journal",
        "(head -c 4096 /dev/zero; head -c 3000 /dev/urandom) >> %s/segments/journal",
        "(printf JLVK; head -c 20000 /dev/urandom) >> %s/segments/journal",
    };
    for (uint32_t i = 0; i < 3; i++) {
        new_folder(8 * MIB);
        fixture_put(&fixture, "chat", "text");
        store(0, 20);
        for (uint64_t number = 0; number < 20; number += 2)
            fixture_discard(&fixture, number);
        assert_int_equal(fixture_flush(&fixture), KVL_OK);
        fixture_close(&fixture, false);
        fixture_shell(tears[i], fixture.path);
        rebuild();
        assert_int_equal(fixture_live_count(&fixture), 10);
        assert_one_session("chat", "text");
        assert_all_load();
        end_folder();
    }
}

static void a_sound_index_writes_the_journal_anew(void **state) {
    (void)state;
    for (uint32_t i = 0; i < 4; i++) {
        new_folder(8 * MIB);
        fixture_put(&fixture, "chat", "text");
        store(0, 20);
        for (uint64_t number = 0; number < 20; number += 2)
            fixture_discard(&fixture, number);
        close_folder();
        journal_damages[i]();
        open_folder();
        assert_int_equal(fixture_live_count(&fixture), 10);
        close_folder();
        rebuild();
        assert_int_equal(fixture_live_count(&fixture), 10);
        assert_one_session("chat", "text");
        assert_all_load();
        end_folder();
    }
}

/* It grows with every change and is written anew in time, at any moment with all that counts. */
static void a_busy_journal_stays_small(void **state) {
    static char value[30000];
    (void)state;
    new_folder(8 * MIB);
    memset(value, 'v', sizeof(value) - 1);
    for (uint32_t i = 0; i < 100; i++) {
        store(i, 1);
        if (i % 3 == 0)
            fixture_discard(&fixture, i);
        value[0] = (char)('a' + i % 26);
        fixture_put(&fixture, "chat", value);
        assert_int_equal(fixture_flush(&fixture), KVL_OK);
        struct stat file;
        assert_int_equal(stat(fixture_path(&fixture, "segments/journal"), &file), 0);
        assert_true((uint64_t)file.st_size <= 320u << 10);
        assert_true(fixture_disk_usage(&fixture) <= 8 * MIB);
    }
    fixture_close(&fixture, false);
    rebuild();
    assert_int_equal(fixture.catalog_found, 1);
    assert_int_equal(fixture.catalog_value_bytes, sizeof(value) - 1);
    assert_int_equal(fixture_live_count(&fixture), 66);
    for (uint64_t number = 0; number < 100; number++)
        assert_int_equal(fixture_find(&fixture, number) != NULL, number % 3 != 0);
    assert_all_load();
    end_folder();
}

static void a_cut_off_rebuild_begins_again(void **state) {
    (void)state;
    new_folder(8 * MIB);
    store(0, 10);
    close_folder();
    fixture_shell(
        "mv %s/index/data.mdb %s/index/data.mdb.new && truncate -s 20000 %s/index/data.mdb.new",
        fixture.path, fixture.path, fixture.path);
    open_folder();
    assert_int_equal(fixture_live_count(&fixture), 10);
    assert_int_equal(access(fixture_path(&fixture, "index/data.mdb.new"), F_OK), -1);
    assert_int_equal(access(fixture_path(&fixture, "index/data.mdb.new-lock"), F_OK), -1);
    assert_all_load();
    end_folder();
}

/* A cut in the middle of compacting: the index is sound, and a copy of it lies beside. */
static void what_a_cut_left_beside_a_sound_index_is_removed(void **state) {
    (void)state;
    new_folder(8 * MIB);
    store(0, 10);
    close_folder();
    fixture_shell("cp %s/index/data.mdb %s/index/data.mdb.new && touch %s/index/data.mdb.new-lock",
        fixture.path, fixture.path, fixture.path);
    open_folder();
    assert_string_equal(warnings, "");
    assert_int_equal(access(fixture_path(&fixture, "index/data.mdb.new"), F_OK), -1);
    assert_int_equal(access(fixture_path(&fixture, "index/data.mdb.new-lock"), F_OK), -1);
    assert_int_equal(fixture_live_count(&fixture), 10);
    end_folder();
}

static void damaged_records_cost_themselves_only(void **state) {
    (void)state;
    new_folder(8 * MIB);
    store(0, 10);
    close_folder();
    open_folder(); /* 0..9 are listed, 10..19 found by walking */
    store(10, 10);
    fixture_damage(&fixture, 3, 100);
    fixture_damage(&fixture, 14, 100);
    close_folder();
    rebuild();
    assert_int_equal(fixture_live_count(&fixture), 18);
    for (uint64_t number = 0; number < 20; number++)
        assert_int_equal(fixture_find(&fixture, number) != NULL, number != 3 && number != 14);
    assert_all_load();
    end_folder();
}

/* disk_format_1.txt says what it is. */
static void unpack_format_1(void) {
    static char line[200];
    char name[100];
    unsigned long long at;
    int fd = -1;
    FILE *in = fopen(KVL_TEST_DATA "/disk_format_1.txt", "r");
    assert_non_null(in);
    fixture_shell("mkdir -p %s/index %s/segments", fixture.path, fixture.path);
    while (fgets(line, sizeof(line), in) != NULL) {
        char *hex = strchr(line, ' ');
        if (line[0] == '#')
            continue;
        if (sscanf(line, "file %99s %llu", name, &at) == 2) {
            if (fd >= 0)
                close(fd);
            fd = open(fixture_path(&fixture, name), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
            assert_int_equal(posix_fallocate(fd, 0, (off_t)at), 0);
            continue;
        }
        at = strtoull(line, NULL, 10);
        for (unsigned byte; sscanf(++hex, "%2x", &byte) == 1; hex++, at++)
            assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
    }
    close(fd);
    fclose(in);
}

static void assert_format_1_content(void) {
    assert_one_session("chat", "new!");
    assert_int_equal(fixture_live_count(&fixture), 4);
    for (uint64_t number = 0; number < 6; number++) {
        struct disk_found_block *found = fixture_find(&fixture, number);
        assert_int_equal(found != NULL, number != 1 && number != 5);
        if (found == NULL)
            continue;
        struct disk_block block;
        block_init_bytes(&block, &fixture, number, 300);
        block.io.location = found->location;
        assert_true(block_load_same(&block, NULL));
        block_free(&block);
    }
}

/* Its discarded records carry no mark; they stay away all the same. */
static void a_folder_of_format_1_is_read_and_goes_on(void **state) {
    (void)state;
    fixture_init(&fixture, 6 * MIB, NULL);
    fixture.options.io = KVL_DISK_IO_POSIX;
    unpack_format_1();
    open_folder();
    assert_string_equal(warnings, "");
    assert_format_1_content();
    fixture_close(&fixture, false);
    rebuild();
    assert_format_1_content();
    end_folder();
}

/* As a newer program would write it: right checksums, another format in HEAD. */
static void write_format_9(void) {
    uint8_t frame[4096];
    uint32_t payload_bytes;
    int fd = open(fixture_path(&fixture, "segments/journal"), O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0 && pread(fd, frame, sizeof(frame), 0) > 64);
    memcpy(&payload_bytes, frame + 4, 4);
    assert_true(frame[40] == KVL_DISK_FORMAT && payload_bytes < 4000);
    frame[40] = 9;
    uint64_t checksum = XXH3_64bits(frame + 32, payload_bytes);
    memcpy(frame + 16, &checksum, 8);
    checksum = XXH3_64bits(frame, 24);
    memcpy(frame + 24, &checksum, 8);
    assert_int_equal(pwrite(fd, frame, 64, 0), 64);
    close(fd);
}

static void a_newer_format_is_refused(void **state) {
    (void)state;
    new_folder(8 * MIB);
    close_folder();
    write_format_9();
    lose_index();
    assert_int_equal(fixture_open(&fixture), KVL_ERR_VERSION);
    assert_non_null(strstr(fixture.msg.text, "format 9"));
    fixture_remove(&fixture);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_lost_index_comes_back),
        cmocka_unit_test(blocks_of_this_run_and_of_earlier_ones_stay_cleared),
        cmocka_unit_test(a_replaced_copy_does_not_come_back),
        cmocka_unit_test(carried_blocks_come_back_until_they_are_cleared),
        cmocka_unit_test(a_copy_that_was_not_published_does_not_replace_its_block),
        cmocka_unit_test(discarding_what_is_being_carried_holds),
        cmocka_unit_test(what_no_transaction_named_is_not_found_after_a_clear),
        cmocka_unit_test(with_both_damaged_no_block_comes_back),
        cmocka_unit_test(a_torn_append_takes_nothing_away),
        cmocka_unit_test(a_sound_index_writes_the_journal_anew),
        cmocka_unit_test(a_busy_journal_stays_small),
        cmocka_unit_test(a_cut_off_rebuild_begins_again),
        cmocka_unit_test(what_a_cut_left_beside_a_sound_index_is_removed),
        cmocka_unit_test(damaged_records_cost_themselves_only),
        cmocka_unit_test(a_folder_of_format_1_is_read_and_goes_on),
        cmocka_unit_test(a_newer_format_is_refused),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    kvl_log_destroy(test_log);
    return failed;
}
