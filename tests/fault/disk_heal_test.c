/* LMDB's file is damaged under a tier at work. The transaction that meets it finds the index made
 * anew, nobody hears of an error, and what is found afterwards, by this start, by the next and by a
 * rebuild, is what was there: no block or session less, none that was cleared more.
 * The seed is printed; KVL_SEED gives it back; the first argument is the number of random damages.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "disk_fixture.h"
#include "log.h"

#define MIB (1ull << 20)
#define BLOCKS 120u
#define START_SECONDS 20u

static struct disk_fixture fixture;
static struct kvl_log *test_log;
static char lines[8192];
/* Crashes on purpose, which sanitizers only slow down. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
static uint32_t cases;
#else
static uint32_t cases = 8;
#endif

static void keep_line(void *arg, enum kvl_log_level level, const char *line) {
    (void)arg;
    if (level <= KVL_LOG_WARN && strlen(lines) + strlen(line) + 2 < sizeof(lines))
        strcat(strcat(lines, line), "\n");
}

/* ---- the folder --------------------------------------------------------------------------- */

static void open_folder(void) {
    lines[0] = '\0';
    kvl_log_destroy(test_log);
    test_log = kvl_log_create(KVL_LOG_INFO, keep_line, NULL);
    fixture.options.log = test_log;
    if (fixture_open(&fixture) != KVL_OK)
        fail_msg("%s", fixture.msg.text);
    fixture_wait_loaded(&fixture);
    assert_int_equal(fixture.loaded_status, KVL_OK);
}

static void new_folder(uint64_t capacity_bytes) {
    fixture_init(&fixture, capacity_bytes, NULL);
    fixture.options.io = KVL_DISK_IO_POSIX;
    fixture.options.codec = KVL_DISK_CODEC_RAW;
    open_folder();
}

static void make(struct disk_block *block, uint64_t number) {
    block_init_bytes(block, &fixture, number, 3000 + number % 7 * 4096);
}

static kvl_err store_one(uint64_t number) {
    struct disk_block block;
    make(&block, number);
    kvl_err err = block_do(&block, KVL_IO_STORE);
    block_free(&block);
    return err;
}

/* All at once: a group or two. */
static kvl_err store_together(uint64_t first, uint64_t count) {
    static struct disk_block blocks[BLOCKS];
    kvl_err err = KVL_OK;
    for (uint64_t i = 0; i < count; i++) {
        make(&blocks[i], first + i);
        block_begin(&blocks[i], KVL_IO_STORE);
    }
    for (uint64_t i = 0; i < count; i++) {
        kvl_err status = block_end(&blocks[i]);
        err = status != KVL_OK ? status : err;
        block_free(&blocks[i]);
    }
    return err;
}

static void store(uint64_t first, uint64_t count) {
    assert_int_equal(store_together(first, count), KVL_OK);
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

/* ---- damage ------------------------------------------------------------------------------- */

static struct kvl_key key_of(uint64_t number) {
    struct kvl_key key = {{0}};
    memcpy(key.bytes, &number, sizeof(number));
    key.bytes[31] = 0x5a;
    return key;
}

static struct kvl_key hidden;
static atomic_bool is_hidden;

ssize_t __real_pread(int fd, void *buffer, size_t bytes, off_t offset);
ssize_t __wrap_pread(int fd, void *buffer, size_t bytes, off_t offset);
/* The header of the hidden block cannot be read. */
ssize_t __wrap_pread(int fd, void *buffer, size_t bytes, off_t offset) {
    ssize_t got = __real_pread(fd, buffer, bytes, offset);
    if (got != 4096 || !atomic_load(&is_hidden) ||
        memmem(buffer, (size_t)got, hidden.bytes, sizeof(hidden.bytes)) == NULL)
        return got;
    errno = EIO;
    return -1;
}

static uint8_t *read_index(uint64_t *bytes, int *fd) {
    struct stat file;
    *fd = open(fixture_path(&fixture, "index/data.mdb"), O_RDWR | O_CLOEXEC);
    assert_true(*fd >= 0 && fstat(*fd, &file) == 0);
    *bytes = (uint64_t)file.st_size;
    uint8_t *all = malloc(*bytes);
    assert_true(all != NULL && pread(*fd, all, *bytes, 0) == (ssize_t)*bytes);
    return all;
}

/* Every place where LMDB's file has the block's row: its value's byte `at` flips (the key has 32
 * bytes), or, with at SIZE_MAX, its page is zeroed. */
static void damage_row(uint64_t number, size_t at) {
    static const uint8_t zero[4096];
    const struct kvl_key key = key_of(number);
    uint64_t bytes;
    int fd, places = 0;
    uint8_t *all = read_index(&bytes, &fd);
    for (uint64_t i = 0; i + 128 <= bytes; i++) {
        if (memcmp(all + i, key.bytes, sizeof(key.bytes)) != 0)
            continue;
        uint8_t flipped = all[i + 32 + at % 96] ^ 0x10;
        places++;
        if (at == SIZE_MAX)
            assert_int_equal(pwrite(fd, zero, sizeof(zero), (off_t)(i & ~4095ull)), sizeof(zero));
        else
            assert_int_equal(pwrite(fd, &flipped, 1, (off_t)(i + 32 + at)), 1);
    }
    assert_true(places > 0);
    free(all);
    close(fd);
}

static void assert_healed(void) {
    assert_non_null(strstr(lines, "rebuilt from the segments: it was found damaged at work"));
    assert_null(strstr(lines, "unreadable=1"));
    assert_null(strstr(lines, "failed"));
}

/* What this start has is what a start finds, and what a rebuild finds after it. */
static void assert_holds(uint32_t blocks, const char *value) {
    assert_int_equal(fixture_live_count(&fixture), blocks);
    assert_all_load();
    for (uint32_t i = 0; i < 2; i++) {
        fixture_close(&fixture, i == 0);
        if (i == 1)
            assert_int_equal(unlink(fixture_path(&fixture, "index/data.mdb")), 0);
        open_folder();
        if (i == 0)
            assert_string_equal(lines, "");
        assert_int_equal(fixture_live_count(&fixture), blocks);
        assert_int_equal(fixture.catalog_found, 1);
        assert_int_equal(fixture.catalog_value_bytes, strlen(value));
        assert_memory_equal(fixture.catalog_value, value, strlen(value));
        assert_all_load();
    }
    assert_true(fixture_disk_usage(&fixture) <= fixture.options.capacity_bytes);
}

static void end_folder(void) {
    fixture_close(&fixture, true);
    fixture_remove(&fixture);
}

/* ---- tests -------------------------------------------------------------------------------- */

static void fill_folder(void) {
    new_folder(8 * MIB);
    fixture_put(&fixture, "chat", "old");
    store(0, 40);
    fixture_close(&fixture, true);
    open_folder(); /* some are listed in the journal, some are of this run */
    store(40, 20);
    fixture_put(&fixture, "chat", "new");
    for (uint64_t number = 0; number < 60; number += 4)
        fixture_discard(&fixture, number);
    assert_int_equal(fixture_flush(&fixture), KVL_OK);
}

static void a_damaged_value_is_mended_by_the_discard_that_meets_it(void **state) {
    (void)state;
    static const size_t bytes[] = {16, 40, 88}; /* location, parent, checksum */
    for (size_t i = 0; i < sizeof(bytes) / sizeof(bytes[0]); i++) {
        fill_folder();
        damage_row(5, bytes[i]);
        fixture_discard(&fixture, 5);
        assert_int_equal(fixture_flush(&fixture), KVL_OK);
        assert_healed();
        store(200, 3);
        assert_holds(47, "new");
        assert_null(fixture_find(&fixture, 5));
        assert_null(fixture_find(&fixture, 4));
        end_folder();
    }
}

/* Also where a rebuild comes before the next start, and nothing live is left behind the dead. */
static void what_was_cleared_stays_cleared_after_the_healing(void **state) {
    (void)state;
    new_folder(8 * MIB);
    store(0, 20);
    for (uint64_t number = 10; number < 20; number++)
        fixture_discard(&fixture, number);
    assert_int_equal(fixture_flush(&fixture), KVL_OK);
    damage_row(5, 16);
    fixture_discard(&fixture, 5);
    assert_int_equal(fixture_flush(&fixture), KVL_OK);
    assert_healed();
    fixture_close(&fixture, true);
    assert_int_equal(unlink(fixture_path(&fixture, "index/data.mdb")), 0);
    open_folder();
    assert_int_equal(fixture_live_count(&fixture), 9);
    assert_all_load();
    end_folder();
}

/* What cannot be opened at the moment is not taken for gone: here a link stands in its place. */
static void a_segment_that_cannot_be_opened_is_not_given_up(void **state) {
    (void)state;
    fill_folder();
    fixture_shell("cd %s/segments && mkdir aside && for s in *.seg; do mv $s aside/$s && "
                  "ln -s aside/$s $s; done",
        fixture.path);
    damage_row(5, 16);
    fixture_discard(&fixture, 5);
    assert_int_equal(fixture_flush(&fixture), KVL_ERR_IO);
    assert_non_null(strstr(lines, "cannot be mended now"));
    fixture_shell("cd %s/segments && mv aside/*.seg . && rmdir aside", fixture.path);
    while (store_one(300) != KVL_OK)
        usleep(20000);
    assert_non_null(strstr(lines, "rebuilt from the segments"));
    (void)fixture_flush(&fixture); /* what was lost is told once */
    assert_holds(45, "new");
    end_folder();
}

/* A group goes to an index of this size in steps of 32: the first is committed, the second, near
 * the damaged page, meets the damage. Returns how many of the 64 are stored; the first one's
 * status. */
static uint32_t store_two_steps(kvl_err *first) {
    static struct disk_block blocks[64];
    uint32_t stored = 0;
    fill_folder();
    damage_row(5, SIZE_MAX);
    kvl_disk_tier_set_persist_ms(
        fixture.tier, 600000); /* they wait for each other, and the flush */
    for (uint64_t i = 0; i < 64; i++) {
        make(&blocks[i], i < 32 ? 256 + 200 + i : 256 + 5 + i - 32); /* by their lowest bytes */
        block_begin(&blocks[i], KVL_IO_STORE);
    }
    assert_int_equal(fixture_flush(&fixture), KVL_OK);
    for (uint64_t i = 0; i < 64; i++) {
        kvl_err err = block_end(&blocks[i]);
        *first = i == 0 ? err : *first;
        stored += err == KVL_OK;
        block_free(&blocks[i]);
    }
    return stored;
}

/* Nobody has heard of the first step yet, and the new index has it. */
static void what_was_committed_before_the_damage_was_met_is_there(void **state) {
    (void)state;
    kvl_err first;
    assert_int_equal(store_two_steps(&first), 64);
    assert_healed();
    assert_holds(45 + 64, "new");
    end_folder();
}

/* And what of it cannot be read is told: it is not committed again. */
static void what_a_healing_loses_of_the_steps_before_it_is_not_told_stored(void **state) {
    (void)state;
    kvl_err first;
    hidden = key_of(256 + 200);
    atomic_store(&is_hidden, true);
    assert_int_equal(store_two_steps(&first), 63);
    atomic_store(&is_hidden, false);
    assert_int_equal(first, KVL_ERR_CORRUPT);
    assert_non_null(strstr(lines, "unreadable=1"));
    assert_holds(45 + 63, "new");
    end_folder();
}

static void a_damaged_page_is_mended_by_the_store_that_meets_it(void **state) {
    (void)state;
    fill_folder();
    damage_row(5, SIZE_MAX);
    fixture_put(&fixture, "chat", "newer");
    store(256 + 5, 1); /* beside it */
    assert_healed();
    assert_holds(46, "newer");
    end_folder();
}

/* At the cap: the rows of a segment that is reclaimed are asked for. Blocks are being carried. */
static void damage_under_a_reclaim_loses_nothing_that_is_kept(void **state) {
    (void)state;
    new_folder(8 * MIB);
    fixture.keep_below = 20;
    fixture_put(&fixture, "chat", "text");
    store(0, 20);
    uint64_t number = 1000;
    for (; fixture.moved == 0; number += 20)
        store(number, 20);
    for (uint32_t round = 0; round < 3; round++) {
        damage_row(round, round == 1 ? SIZE_MAX : 16);
        fixture.moved = 0;
        lines[0] = '\0';
        for (uint64_t until = number + 4000; fixture.moved < 20 && number < until; number += 20)
            store(number, 20);
        assert_null(strstr(lines, "failed"));
        for (uint64_t kept = 0; kept < 20; kept++)
            assert_non_null(fixture_find(&fixture, kept));
        assert_all_load();
    }
    uint32_t blocks = fixture_live_count(&fixture);
    fixture_close(&fixture, true);
    open_folder();
    assert_string_equal(lines, "");
    assert_int_equal(fixture_live_count(&fixture) + fixture.lost, blocks);
    assert_all_load();
    end_folder();
}

static void flip_journal(void) {
    struct stat file;
    uint8_t byte;
    int fd = open(fixture_path(&fixture, "segments/journal"), O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0 && fstat(fd, &file) == 0);
    assert_int_equal(pread(fd, &byte, 1, file.st_size / 2), 1);
    byte ^= 0x10;
    assert_int_equal(pwrite(fd, &byte, 1, file.st_size / 2), 1);
    close(fd);
}

/* At a start no block could be believed; at work it is known which are live. */
static void with_the_journal_damaged_too_the_blocks_are_all_there(void **state) {
    (void)state;
    fill_folder();
    flip_journal();
    damage_row(5, 16);
    fixture_discard(&fixture, 5);
    assert_int_equal(fixture_flush(&fixture), KVL_OK);
    assert_healed();
    assert_non_null(strstr(lines, "the journal is damaged, too"));
    fixture_put(&fixture, "chat", "newer");
    assert_holds(44, "newer");
    end_folder();
}

/* The old index is gone, the new one has no name yet, and there it ends. What the index knew to be
 * live was written down before. */
static void a_cut_in_the_middle_loses_no_block_although_the_journal_was_damaged(void **state) {
    (void)state;
    fill_folder();
    flip_journal();
    damage_row(5, 16);
    fixture_shell(
        "rm %s/index/data.mdb-lock && mkdir %s/index/data.mdb-lock", fixture.path, fixture.path);
    fixture_discard(&fixture, 5);
    assert_int_equal(fixture_flush(&fixture), KVL_ERR_IO);
    assert_non_null(strstr(lines, "cannot be mended now"));
    assert_int_not_equal(access(fixture_path(&fixture, "index/data.mdb"), F_OK), 0);
    fixture_close(&fixture, false);
    assert_int_equal(rmdir(fixture_path(&fixture, "index/data.mdb-lock")), 0);
    open_folder();
    assert_null(strstr(lines, "without blocks"));
    assert_int_equal(fixture_live_count(&fixture), 45);
    assert_all_load();
    end_folder();
}

static void the_old_index_stays_until_the_journal_is_sound(void **state) {
    (void)state;
    fill_folder();
    flip_journal();
    assert_int_equal(mkdir(fixture_path(&fixture, "segments/journal.new"), 0700), 0);
    damage_row(5, 16);
    fixture_discard(&fixture, 5);
    assert_int_equal(fixture_flush(&fixture), KVL_ERR_IO);
    assert_non_null(strstr(lines, "the journal is damaged, and cannot be written"));
    assert_int_equal(access(fixture_path(&fixture, "index/data.mdb"), F_OK), 0);
    assert_int_equal(rmdir(fixture_path(&fixture, "segments/journal.new")), 0);
    while (store_one(300) != KVL_OK)
        usleep(20000);
    assert_non_null(strstr(lines, "rebuilt from the segments"));
    (void)fixture_flush(&fixture); /* what was lost is told once */
    fixture_put(&fixture, "chat", "newer");
    assert_int_equal(fixture_flush(&fixture), KVL_OK);
    assert_holds(45, "newer");
    end_folder();
}

/* The index had their keys, and they had them: now only their owner knows whose they were. */
static void blocks_whose_headers_are_damaged_are_told_as_lost(void **state) {
    (void)state;
    fill_folder();
    fixture_damage(&fixture, 7, 100);
    fixture_damage(&fixture, 41, 100);
    damage_row(5, 16);
    fixture_discard(&fixture, 5);
    assert_int_equal(fixture_flush(&fixture), KVL_OK);
    assert_non_null(strstr(lines, "unreadable=2"));
    assert_int_equal(fixture.lost, 2);
    assert_null(fixture_find(&fixture, 7));
    assert_null(fixture_find(&fixture, 41));
    store(7, 1);
    assert_holds(43, "new");
    end_folder();
}

/* The larger folder has a second, empty segment, which goes; no block does. */
static void a_start_with_a_smaller_capacity_rebuilds_a_damaged_index(void **state) {
    (void)state;
    static const size_t bytes[] = {16, 88, SIZE_MAX};
    for (size_t i = 0; i < sizeof(bytes) / sizeof(bytes[0]); i++) {
        new_folder(64 * MIB);
        fixture_put(&fixture, "chat", "text");
        store(0, 60);
        fixture_close(&fixture, true);
        damage_row(7, bytes[i]);
        fixture.options.capacity_bytes = 18 * MIB;
        open_folder();
        assert_non_null(strstr(lines, "rebuilt from the segments"));
        assert_int_equal(fixture_live_count(&fixture), 60);
        assert_holds(60, "text");
        end_folder();
    }
}

/* Nothing can be stored then, and nobody takes the copy in memory for damaged; what is on disk is
 * served, and when the obstacle is gone the tier mends itself. */
static void what_cannot_be_mended_now_is_mended_later(void **state) {
    (void)state;
    fill_folder();
    assert_int_equal(mkdir(fixture_path(&fixture, "index/data.mdb.new"), 0700), 0);
    damage_row(5, 16);
    fixture_discard(&fixture, 5);
    assert_int_equal(fixture_flush(&fixture), KVL_ERR_IO);
    assert_non_null(strstr(lines, "cannot be mended now"));
    assert_int_equal(store_one(300), KVL_ERR_IO);
    assert_all_load();
    fixture_put(&fixture, "chat", "newer");
    assert_int_equal(rmdir(fixture_path(&fixture, "index/data.mdb.new")), 0);
    while (store_one(300) != KVL_OK)
        usleep(20000);
    assert_non_null(strstr(lines, "rebuilt from the segments"));
    assert_int_equal(
        fixture_flush(&fixture), KVL_ERR_IO); /* the session's change was lost: told once */
    fixture_put(&fixture, "chat", "newer");
    assert_int_equal(fixture_flush(&fixture), KVL_OK);
    assert_holds(45, "newer");
    assert_null(fixture_find(&fixture, 5));
    end_folder();
}

/* ---- any page, any bytes ------------------------------------------------------------------ */

static void expect(bool holds, int line) {
    if (!holds)
        _exit(line % 200 + 20);
}

static bool is_cleared(uint64_t number) {
    return number % 3 == 0 && number < BLOCKS;
}

static void expect_content(void) {
    for (uint64_t number = 0; number < BLOCKS; number++) {
        struct disk_found_block *found = fixture_find(&fixture, number);
        struct disk_block block;
        expect((found == NULL) == is_cleared(number), __LINE__);
        if (found == NULL)
            continue;
        make(&block, number);
        block.io.location = found->location;
        expect(block_load_same(&block, NULL), __LINE__);
        block_free(&block);
    }
}

static void damage_some_page(void) {
    uint64_t bytes, page;
    uint8_t noise[4096];
    static const uint8_t zero[4096];
    int fd;
    uint8_t *all = read_index(&bytes, &fd);
    do
        page = (uint64_t)rand() % (bytes / 4096);
    while (memcmp(all + page * 4096, zero, sizeof(zero)) == 0);
    bool zeroed = rand() % 3 == 0;
    for (uint32_t i = 0; i < sizeof(noise); i++)
        noise[i] = zeroed ? 0 : (uint8_t)rand();
    uint32_t at = !zeroed && rand() % 2 ? (uint32_t)rand() % 4096 : 0;
    uint32_t count = at > 0 ? 1 + (uint32_t)rand() % (4096 - at) % 64 : 4096;
    expect(pwrite(fd, noise, count, (off_t)(page * 4096 + at)) == (ssize_t)count, __LINE__);
    free(all);
    close(fd);
}

/* 0: it went on, 2: the same, healed; others: see expect. */
static void work_main(bool damaged) {
    int null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    dup2(null, STDERR_FILENO);
    alarm(START_SECONDS);
    open_folder();
    expect_content();
    if (damaged)
        damage_some_page();
    for (uint64_t number = 1000; number < 1020; number += 5) {
        expect(store_together(number, 5) == KVL_OK, __LINE__);
        fixture_put(&fixture, "chat", number % 2 == 0 ? "even" : "odd");
    }
    for (uint64_t number = 1000; number < 1020; number++)
        fixture_discard(&fixture, number);
    for (uint64_t number = 1; number < BLOCKS; number += 3)
        expect(store_one(number) == KVL_OK, __LINE__); /* again: the older copy is dead */
    expect(fixture_flush(&fixture) == KVL_OK, __LINE__);
    expect_content();
    bool healed = strstr(lines, "at work") != NULL;
    fixture_close(&fixture, true);
    _exit(healed ? 2 : 0);
}

static int work(bool damaged, bool *died) {
    int how;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        work_main(damaged);
    assert_int_equal(waitpid(child, &how, 0), child);
    if (WIFEXITED(how) && WEXITSTATUS(how) >= 20 && WEXITSTATUS(how) < 220)
        fail_msg("wrong, line %d", WEXITSTATUS(how) - 20);
    *died = !WIFEXITED(how) || WEXITSTATUS(how) == 1;
    return WIFEXITED(how) ? WEXITSTATUS(how) : -1;
}

/* LMDB may crash the process on what it finds: then a start mends it (disk_damage_test). */
static void any_damage_is_survived(void **state) {
    (void)state;
    uint32_t healed = 0, deaths = 0;
    new_folder(16 * MIB); /* far from full */
    store(0, BLOCKS);
    fixture_put(&fixture, "chat", "even");
    for (uint64_t number = 0; number < BLOCKS; number += 3)
        fixture_discard(&fixture, number);
    fixture_close(&fixture, true);
    fixture_shell("rm -rf %s.whole && cp -r %s %s.whole", fixture.path, fixture.path, fixture.path);
    for (uint32_t i = 0; i < cases; i++) {
        bool died = false;
        fixture_shell("rm -rf %s && cp -r %s.whole %s", fixture.path, fixture.path, fixture.path);
        srand((unsigned)rand());
        healed += work(true, &died) == 2;
        deaths += died;
        for (uint32_t start = 0; start < 3; start++) {
            work(false, &died);
            if (!died)
                break;
        }
        assert_false(died);
    }
    printf("cases=%u healed=%u deaths=%u\n", cases, healed, deaths);
    fixture_shell("rm -rf %s.whole", fixture.path);
    fixture_remove(&fixture);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_damaged_value_is_mended_by_the_discard_that_meets_it),
        cmocka_unit_test(what_was_cleared_stays_cleared_after_the_healing),
        cmocka_unit_test(a_segment_that_cannot_be_opened_is_not_given_up),
        cmocka_unit_test(what_was_committed_before_the_damage_was_met_is_there),
        cmocka_unit_test(what_a_healing_loses_of_the_steps_before_it_is_not_told_stored),
        cmocka_unit_test(a_damaged_page_is_mended_by_the_store_that_meets_it),
        cmocka_unit_test(damage_under_a_reclaim_loses_nothing_that_is_kept),
        cmocka_unit_test(with_the_journal_damaged_too_the_blocks_are_all_there),
        cmocka_unit_test(a_cut_in_the_middle_loses_no_block_although_the_journal_was_damaged),
        cmocka_unit_test(the_old_index_stays_until_the_journal_is_sound),
        cmocka_unit_test(blocks_whose_headers_are_damaged_are_told_as_lost),
        cmocka_unit_test(a_start_with_a_smaller_capacity_rebuilds_a_damaged_index),
        cmocka_unit_test(what_cannot_be_mended_now_is_mended_later),
        cmocka_unit_test(any_damage_is_survived),
    };
    const char *given = getenv("KVL_SEED");
    unsigned seed = given != NULL ? (unsigned)strtoul(given, NULL, 10) : (unsigned)time(NULL);
    if (argc > 1)
        cases = (uint32_t)strtoul(argv[1], NULL, 10);
    printf("KVL_SEED=%u\n", seed);
    srand(seed);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    kvl_log_destroy(test_log);
    return failed;
}
