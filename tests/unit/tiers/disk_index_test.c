/* The index, its journal, and what a rebuild makes of the journal and of records in the segments:
 * each kind of change by itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "index_private.h"
#include "rebuild.h"
#include "record.h"
#include "segment.h"

#define RUN 77u
#define SEGMENT_PAGES 64u
#define JOURNAL_BYTES (64u << 10)
#define RECORD_BYTES (2ull * KVL_PAGE_BYTES)
#define MAP_BYTES (4ull << 20)
#define SHARE_BYTES (1ull << 20) /* of the index that is healed */

static char folder[256];
static char index_path[300];
static int segments_fd;
static struct kvl_index *index_under_test;
static struct kvl_journal journal;

/* ---- folder and index --------------------------------------------------------------------- */

static struct kvl_index_options options(bool expected) {
    return (struct kvl_index_options){
        .directory = index_path, .map_bytes = MAP_BYTES, .expected = expected};
}

static void open_index(void) {
    struct kvl_index_options wanted = options(false);
    struct kvl_errmsg msg = {""};
    assert_int_equal(kvl_index_open(&wanted, &index_under_test, &msg), KVL_OK);
    assert_int_equal(kvl_index_check(index_under_test), KVL_OK);
    kvl_journal_init(&journal, segments_fd, JOURNAL_BYTES, NULL);
    journal.run = RUN;
    assert_int_equal(kvl_index_keep_journal(index_under_test, &journal), KVL_OK);
}

static int setup(void **state) {
    const char *tmp = getenv("TMPDIR");
    char segments[300];
    (void)state;
    snprintf(folder, sizeof(folder), "%s/kvloft-index-XXXXXX", tmp != NULL ? tmp : "/tmp");
    assert_non_null(mkdtemp(folder));
    snprintf(index_path, sizeof(index_path), "%s/index", folder);
    snprintf(segments, sizeof(segments), "%s/segments", folder);
    assert_int_equal(mkdir(index_path, 0700), 0);
    assert_int_equal(mkdir(segments, 0700), 0);
    segments_fd = open(segments, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_true(segments_fd >= 0);
    open_index();
    return 0;
}

static void close_index(void) {
    kvl_index_close(index_under_test);
    kvl_journal_deinit(&journal);
}

static int remove_entry(const char *path, const struct stat *stat, int type, struct FTW *ftw) {
    (void)stat, (void)type, (void)ftw;
    return remove(path);
}

static int teardown(void **state) {
    (void)state;
    close_index();
    close(segments_fd);
    nftw(folder, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
    return 0;
}

static void rebuild(void) {
    struct kvl_index_options wanted = options(true);
    struct kvl_rebuilt rebuilt;
    struct kvl_errmsg msg = {""};
    close_index();
    kvl_err err =
        kvl_index_rebuild_unopened(&wanted, segments_fd, &index_under_test, &rebuilt, &msg);
    if (err != KVL_OK)
        fail_msg("%s", msg.text);
    assert_true(rebuilt.journal_whole);
    assert_int_equal(kvl_index_check(index_under_test), KVL_OK);
}

/* ---- changes ------------------------------------------------------------------------------ */

static void commit(struct kvl_index_op op, bool applied) {
    assert_int_equal(kvl_index_commit(index_under_test, &op, 1), KVL_OK);
    assert_int_equal(op.applied, applied);
}

static void add_segment(uint32_t id, uint64_t generation) {
    const struct kvl_index_segment segment = {
        .id = id, .bytes = SEGMENT_PAGES * KVL_PAGE_BYTES, .generation = generation};
    uint32_t made;
    if (generation == 1)
        assert_int_equal(kvl_segment_files_create(segments_fd, &segment, 1, &made), KVL_OK);
    commit((struct kvl_index_op){.kind = KVL_INDEX_SEGMENT_PUT, .segment = segment}, true);
}

static uint64_t at(uint32_t segment, uint32_t page) {
    return kvl_location_make(segment, (uint64_t)page * KVL_PAGE_BYTES);
}

static struct kvl_index_block block_of(uint8_t number, uint64_t generation, uint64_t location) {
    struct kvl_index_block block = {.location = location, .stored_bytes = RECORD_BYTES};
    memset(block.record.key.bytes, number, KVL_KEY_BYTES);
    block.record.generation = generation;
    block.last_use_wall_ns = 1;
    return block;
}

static uint64_t header_stored_ns;

/* A record's header, as a batch writes it; its frame is nobody's business here. */
static void write_header(const struct kvl_index_block *block, uint64_t segment_generation) {
    uint64_t location = block->location;
    uint8_t page[KVL_PAGE_BYTES];
    char name[KVL_SEGMENT_NAME_BYTES];
    struct kvl_record_header header = {.block = block->record,
        .payload_bytes = 100,
        .frame_bytes = 100,
        .record_bytes = RECORD_BYTES,
        .segment_generation = segment_generation,
        .run = RUN,
        .stored_wall_ns = header_stored_ns,
        .frame_count = 1,
        .frames = {{.offset_bytes = KVL_PAGE_BYTES, .stored_bytes = 100}}};
    kvl_record_header_write(&header, page);
    kvl_segment_file_name(kvl_location_segment(location), name);
    int fd = openat(segments_fd, name, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(
        pwrite(fd, page, sizeof(page), (off_t)kvl_location_page(location) * (off_t)KVL_PAGE_BYTES),
        sizeof(page));
    close(fd);
}

static struct kvl_index_block write_record(
    uint8_t number, uint64_t generation, uint64_t location, uint64_t segment_generation) {
    struct kvl_index_block block = block_of(number, generation, location);
    write_header(&block, segment_generation);
    return block;
}

static void put(struct kvl_index_block block) {
    commit((struct kvl_index_op){.kind = KVL_INDEX_PUT, .block = block}, true);
}

static void move(struct kvl_index_block copy, uint64_t from, bool applied) {
    commit((struct kvl_index_op){.kind = KVL_INDEX_MOVE, .block = copy, .old_location = from},
        applied);
}

static void drop(struct kvl_index_block block, uint64_t segment_generation, bool applied) {
    commit((struct kvl_index_op){.kind = KVL_INDEX_DELETE,
               .block = block,
               .old_location = block.location,
               .segment.generation = segment_generation},
        applied);
}

/* ---- what is there ------------------------------------------------------------------------ */

static struct kvl_index_block found[16];
static uint32_t found_count;

static bool note(void *arg, const struct kvl_index_block *block) {
    (void)arg;
    if (found_count < sizeof(found) / sizeof(found[0]))
        found[found_count] = *block;
    found_count++;
    return true;
}

static uint32_t look(void) {
    uint64_t bad = 0;
    found_count = 0;
    assert_int_equal(kvl_index_walk_blocks(index_under_test, note, NULL, &bad), KVL_OK);
    assert_int_equal(bad, 0);
    return found_count;
}

/* ---- tests -------------------------------------------------------------------------------- */

static void a_moved_block_is_dead_where_it_was(void **state) {
    (void)state;
    add_segment(1, 1);
    add_segment(2, 1);
    put(write_record(1, 10, at(1, 0), 1));
    struct kvl_index_block copy = write_record(1, 10, at(2, 0), 1);
    move(copy, at(1, 0), true);
    drop(copy, 1, true);
    rebuild();
    assert_int_equal(look(), 0);
}

static void a_copy_that_came_too_late_is_dead(void **state) {
    (void)state;
    add_segment(1, 1);
    add_segment(2, 1);
    struct kvl_index_block block = write_record(1, 10, at(1, 0), 1);
    put(block);
    drop(block, 1, true);
    move(write_record(1, 10, at(2, 0), 1), at(1, 0), false);
    rebuild();
    assert_int_equal(look(), 0);
}

static void a_replaced_record_is_dead(void **state) {
    (void)state;
    add_segment(1, 1);
    put(write_record(1, 10, at(1, 0), 1));
    struct kvl_index_block younger = write_record(1, 20, at(1, 2), 1);
    put(younger);
    drop(younger, 1, true);
    rebuild();
    assert_int_equal(look(), 0);
}

static void a_record_that_nobody_named_can_be_deleted(void **state) {
    (void)state;
    add_segment(1, 1);
    drop(write_record(1, 10, at(1, 0), 1), 1, false);
    put(write_record(2, 11, at(1, 2), 1));
    rebuild();
    assert_int_equal(look(), 1);
    assert_int_equal(found[0].record.generation, 11);
}

static void a_late_deletion_spares_what_came_into_the_place(void **state) {
    (void)state;
    add_segment(1, 1);
    struct kvl_index_block block = write_record(1, 10, at(1, 0), 1);
    put(block);
    drop(block, 1, true);
    add_segment(1, 2);
    put(write_record(2, 11, at(1, 0), 2));
    drop(block, 1, false);
    rebuild();
    assert_int_equal(look(), 1);
    assert_int_equal(found[0].record.generation, 11);
}

/* Both were written; only one transaction was committed, or none. */
static void the_younger_of_two_records_wins(void **state) {
    (void)state;
    add_segment(1, 1);
    put(write_record(1, 10, at(1, 0), 1));
    write_record(1, 20, at(1, 2), 1);
    write_record(2, 40, at(1, 4), 1);
    write_record(2, 30, at(1, 6), 1);
    rebuild();
    assert_int_equal(look(), 2);
    assert_int_equal(found[0].record.generation, 20);
    assert_int_equal(found[0].location, at(1, 2));
    assert_int_equal(found[1].record.generation, 40);
}

/* One seal, stored twice: the owner has the second place, the index lost the first one's row. */
static void of_two_stores_of_a_seal_the_later_is_found(void **state) {
    (void)state;
    add_segment(1, 1);
    for (uint32_t i = 0; i < 2; i++) {
        header_stored_ns = 50;
        write_record((uint8_t)(1 + i), 10, at(1, 8 * i + (i == 0 ? 2 : 0)), 1);
        header_stored_ns = 40;
        write_record((uint8_t)(1 + i), 10, at(1, 8 * i + (i == 0 ? 0 : 2)), 1);
    }
    header_stored_ns = 0;
    rebuild();
    assert_int_equal(look(), 2);
    assert_int_equal(found[0].location, at(1, 2));
    assert_int_equal(found[1].location, at(1, 8));
}

static void records_of_another_time_are_not_taken(void **state) {
    (void)state;
    add_segment(1, 1);
    write_record(1, 10, at(1, 0), 9); /* of another generation of the segment */
    put(write_record(2, 11, at(1, 2), 1));
    journal.run = RUN + 1; /* the next start */
    assert_int_equal(kvl_index_keep_journal(index_under_test, &journal), KVL_OK);
    write_record(3, 12, at(1, 4), 1); /* what the run before had left */
    rebuild();
    assert_int_equal(look(), 1);
    assert_int_equal(found[0].record.generation, 11);
}

/* Enough changes to have it written anew many times, each time in the middle of a change. */
static void a_journal_written_anew_says_the_same(void **state) {
    static uint8_t data[4 + 3000];
    (void)state;
    add_segment(1, 1);
    add_segment(2, 1);
    put(write_record(1, 10, at(1, 0), 1));
    put(write_record(2, 11, at(1, 2), 1));
    struct kvl_index_block copy = write_record(1, 10, at(2, 0), 1);
    uint64_t bytes_max = 0;
    for (uint32_t i = 0; i < 200; i++) {
        memcpy(data, &(uint32_t){i % 5}, 4);
        struct kvl_index_op ops[2] = {
            {.kind = KVL_INDEX_CATALOG_PUT, .key_bytes = 4, .value_bytes = 3000, .data = data},
            {.kind = KVL_INDEX_MOVE, .block = copy, .old_location = at(1, 0)}};
        assert_int_equal(kvl_index_commit(index_under_test, ops, i == 100 ? 2 : 1), KVL_OK);
        bytes_max = journal.bytes > bytes_max ? journal.bytes : bytes_max;
    }
    assert_true(bytes_max <= JOURNAL_BYTES);
    rebuild();
    assert_int_equal(look(), 2);
    assert_int_equal(found[0].location, at(2, 0));
    assert_int_equal(found[1].location, at(1, 2));
}

/* What is dead and no transaction ever named, the journal says in a frame of its own, which the
 * next journal has not. */
static void what_nobody_named_stays_dead_in_the_next_journal(void **state) {
    (void)state;
    add_segment(1, 1);
    add_segment(2, 1);
    put(write_record(1, 10, at(1, 0), 1));
    drop(write_record(2, 11, at(1, 2), 1), 1, false);
    move(write_record(3, 12, at(2, 2), 1), at(1, 8), false);
    assert_int_equal(kvl_index_keep_journal(index_under_test, &journal), KVL_OK);
    put(write_record(4, 13, at(1, 4), 1));
    rebuild();
    assert_int_equal(look(), 2);
    assert_int_equal(found[0].record.generation, 10);
    assert_int_equal(found[1].record.generation, 13);
}

static uint32_t told_lost;

static void note_lost(void *arg, uint64_t location) {
    uint64_t *before = arg;
    assert_true(location > *before);
    *before = location;
    told_lost++;
}

static void heal(void) {
    uint64_t last = 0;
    told_lost = 0;
    struct kvl_rebuilt rebuilt;
    struct kvl_errmsg msg = {""};
    assert_int_equal(kvl_index_noted(index_under_test, KVL_ERR_CORRUPT), KVL_ERR_CORRUPT);
    if (kvl_index_heal(index_under_test, segments_fd, &rebuilt, note_lost, &last, &msg) != KVL_OK)
        fail_msg("%s", msg.text);
    assert_false(rebuilt.opened_again);
    assert_int_equal(kvl_index_keep_journal(index_under_test, &journal), KVL_OK);
}

/* At a start it may be published or not; at work it is known not to be. */
static void healing_takes_what_was_published_and_no_more(void **state) {
    (void)state;
    add_segment(1, 1);
    add_segment(2, 1);
    struct kvl_index_block cleared = write_record(1, 10, at(1, 0), 1);
    put(cleared);
    put(write_record(2, 11, at(1, 2), 1));
    drop(cleared, 1, true);
    write_record(1, 20, at(1, 4), 1);
    write_record(2, 21, at(1, 6), 1);
    heal();
    assert_int_equal(look(), 1);
    assert_int_equal(found[0].record.generation, 11);
    put(write_record(2, 21, at(1, 6), 1));
    assert_int_equal(look(), 1);
    assert_int_equal(found[0].record.generation, 21);
}

#define FILL_OPS 500u

/* A key among others as hashes are. */
static uint64_t scattered(uint64_t number) {
    number = (number ^ number >> 31) * 0x9e3779b97f4a7c15u;
    return number ^ number >> 29;
}

static struct kvl_index_op fill_op(uint32_t i, uint32_t sessions, uint8_t data[48]) {
    struct kvl_index_op op = {
        .kind = KVL_INDEX_CATALOG_PUT, .key_bytes = 8, .value_bytes = 40, .data = data};
    uint64_t key = scattered(i);
    memcpy(data, &key, sizeof(key));
    if (i < sessions)
        return op;
    op = (struct kvl_index_op){
        .kind = KVL_INDEX_PUT, .block = block_of(0, i, at(1, (i - sessions) * 2))};
    memcpy(op.block.record.key.bytes, &key, sizeof(key));
    write_header(&op.block, 1);
    return op;
}

/* Sessions, then blocks, in no order; both in multiples of FILL_OPS. */
static void fill_index(uint32_t sessions, uint32_t blocks) {
    static struct kvl_index_op ops[FILL_OPS];
    static uint8_t data[FILL_OPS][48];
    journal.limit_bytes = 1u << 20;
    add_segment(1, 1); /* its file is shorter than its row says: only headers are read */
    commit((struct kvl_index_op){.kind = KVL_INDEX_SEGMENT_PUT,
               .segment = {.id = 1, .bytes = blocks * RECORD_BYTES, .generation = 1}},
        true);
    for (uint32_t i = 0; i < sessions + blocks; i++) {
        ops[i % FILL_OPS] = fill_op(i, sessions, data[i % FILL_OPS]);
        if (i % FILL_OPS == FILL_OPS - 1)
            assert_int_equal(kvl_index_commit(index_under_test, ops, FILL_OPS), KVL_OK);
    }
}

static bool count_record(void *arg, enum kvl_catalog_kind kind, const void *key, uint32_t key_bytes,
    const void *value, uint32_t value_bytes) {
    (void)kind, (void)key, (void)key_bytes, (void)value, (void)value_bytes;
    ++*(uint32_t *)arg;
    return true;
}

static uint32_t count_records(void) {
    uint64_t bad = 0;
    uint32_t count = 0;
    assert_int_equal(kvl_index_walk_catalog(index_under_test, count_record, &count, &bad), KVL_OK);
    assert_int_equal(bad, 0);
    return count;
}

/* Writing past the index's share fails. */
static void heal_within_share(void) {
    struct rlimit before, share;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    share = (struct rlimit){.rlim_cur = SHARE_BYTES, .rlim_max = before.rlim_max};
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &share), 0);
    index_under_test->map_bytes = SHARE_BYTES;
    heal();
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, handler);
    assert_true(kvl_index_file_bytes(index_under_test) <= SHARE_BYTES);
}

/* Neither the order of the rows nor the pages that each transaction leaves behind may cost more
 * than the old index took. */
static void healing_stays_within_the_share_of_the_index(void **state) {
    (void)state;
    fill_index(7000, 1500);
    heal_within_share();
    assert_int_equal(count_records(), 7000);
    assert_int_equal(look(), 1500);
    rebuild();
    assert_int_equal(count_records(), 7000);
    assert_int_equal(look(), 1500);
}

/* The catalog comes first, and what is left of the map for deletes stays free. */
static void blocks_that_do_not_fit_are_lost_and_told(void **state) {
    (void)state;
    fill_index(5000, 4000);
    heal_within_share();
    assert_int_equal(count_records(), 5000);
    assert_true(look() > 2000);
    assert_int_equal(look() + told_lost, 4000);
    assert_true(kvl_index_usage_permille(index_under_test) < KVL_INDEX_PRESSURE_PERMILLE + 20);
    uint32_t left = look() - 16;
    for (uint32_t i = 0; i < 16; i++)
        drop(found[i], 1, true);
    assert_int_equal(look(), left);
    rebuild();
    assert_int_equal(look(), left);
}

/* The transaction that met the damage may have told the journal and the map before. */
static void a_move_that_healing_completed_was_made(void **state) {
    (void)state;
    add_segment(1, 1);
    add_segment(2, 1);
    put(write_record(1, 10, at(1, 0), 1));
    struct kvl_index_block copy = write_record(1, 10, at(2, 0), 1);
    move(copy, at(1, 0), true);
    heal();
    move(copy, at(1, 0), true);
    rebuild();
    assert_int_equal(look(), 1);
    assert_int_equal(found[0].location, at(2, 0));
}

/* An index that could not be opened says so and comes back with all that it had. */
static void a_closed_index_is_opened_again(void **state) {
    struct kvl_rebuilt rebuilt;
    struct kvl_errmsg msg = {""};
    struct kvl_index_op op = {.kind = KVL_INDEX_PUT};
    char path[320], aside[340];
    (void)state;
    add_segment(1, 1);
    put(write_record(1, 10, at(1, 0), 1));
    snprintf(path, sizeof(path), "%s/data.mdb", index_path);
    snprintf(aside, sizeof(aside), "%s.aside", path);
    assert_int_equal(rename(path, aside), 0);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_not_equal(
        kvl_index_heal(index_under_test, segments_fd, &rebuilt, note_lost, NULL, &msg), KVL_OK);
    assert_int_equal(kvl_index_commit(index_under_test, &op, 1), KVL_ERR_CLOSED);
    assert_int_equal(kvl_index_resolve(index_under_test, NULL, 0), KVL_ERR_CLOSED);
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(rename(aside, path), 0);
    assert_int_equal(
        kvl_index_heal(index_under_test, segments_fd, &rebuilt, note_lost, NULL, &msg), KVL_OK);
    assert_true(rebuilt.opened_again);
    assert_int_equal(look(), 1);
    put(write_record(2, 11, at(1, 2), 1));
    rebuild();
    assert_int_equal(look(), 2);
}

/* Wherever LMDB's file has the row of segment 2, its checksum is wrong. */
static void damage_row_of_segment_2(void) {
    static const uint8_t row[12] = {0, 0, 0, 2, 0, 0, SEGMENT_PAGES / 16};
    static uint8_t bytes[MAP_BYTES];
    char path[320];
    uint32_t places = 0;
    snprintf(path, sizeof(path), "%s/data.mdb", index_path);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0 && pread(fd, bytes, sizeof(bytes), 0) == sizeof(bytes));
    for (size_t i = 0; i + 28 <= sizeof(bytes); i++) {
        if (memcmp(bytes + i, row, sizeof(row)) != 0)
            continue;
        uint8_t flipped = bytes[i + 20] ^ 1;
        assert_int_equal(pwrite(fd, &flipped, 1, (off_t)i + 20), 1);
        places++;
    }
    assert_true(places > 0);
    close(fd);
}

/* What is read again before the damage shows is not all that there is. */
static void a_closed_index_that_is_damaged_too_keeps_its_segments(void **state) {
    struct kvl_rebuilt rebuilt;
    struct kvl_errmsg msg = {""};
    uint64_t last = 0;
    (void)state;
    add_segment(1, 1);
    add_segment(2, 1);
    put(write_record(1, 10, at(1, 0), 1));
    put(write_record(2, 11, at(2, 0), 1));
    damage_row_of_segment_2();
    told_lost = 0;
    assert_int_equal(
        kvl_index_heal(index_under_test, segments_fd, &rebuilt, note_lost, &last, &msg), KVL_OK);
    assert_false(rebuilt.opened_again);
    assert_int_equal(look(), 2);
    assert_int_equal(told_lost, 0);
}

/* ---- transactions that fail --------------------------------------------------------------- */

/* LMDB cannot write its pages: the journal has its frame already. */
static void fail_commit(struct kvl_index_op *ops, uint64_t count) {
    char path[320];
    snprintf(path, sizeof(path), "%s/data.mdb", index_path);
    int written_to = dup(index_under_test->fd), unwritable = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(written_to >= 0 && unwritable >= 0);
    assert_true(dup2(unwritable, index_under_test->fd) >= 0);
    assert_int_not_equal(kvl_index_commit(index_under_test, ops, count), KVL_OK);
    assert_true(dup2(written_to, index_under_test->fd) >= 0);
    close(written_to);
    close(unwritable);
}

/* The journal cannot be written anew, and must be. */
static void fail_journal(struct kvl_index_op *ops, uint64_t count) {
    assert_int_equal(mkdirat(segments_fd, "journal.new", 0700), 0);
    assert_int_not_equal(kvl_index_commit(index_under_test, ops, count), KVL_OK);
    assert_int_equal(unlinkat(segments_fd, "journal.new", AT_REMOVEDIR), 0);
}

static void demand_new_journal(void) {
    close(journal.fd);
    journal.fd = -1;
}

/* What a tier does then: it goes on with the block where it was, and gives the copy up. */
static void go_on_without(struct kvl_index_block copy) {
    drop(copy, 1, false);
    rebuild();
    assert_int_equal(look(), 2);
    assert_int_equal(found[0].location, at(1, 0));
    assert_int_equal(found[1].location, at(1, 2));
}

static struct kvl_index_op begin_move(struct kvl_index_block *copy) {
    add_segment(1, 1);
    add_segment(2, 1);
    put(write_record(1, 10, at(1, 0), 1));
    put(write_record(2, 11, at(1, 2), 1));
    *copy = write_record(1, 10, at(2, 0), 1);
    return (struct kvl_index_op){.kind = KVL_INDEX_MOVE, .block = *copy, .old_location = at(1, 0)};
}

static void a_move_that_was_not_committed_was_not_made(void **state) {
    (void)state;
    struct kvl_index_block copy;
    struct kvl_index_op op = begin_move(&copy);
    fail_commit(&op, 1);
    go_on_without(copy);
}

static void nor_was_one_for_which_the_journal_was_written_anew(void **state) {
    (void)state;
    struct kvl_index_block copy;
    struct kvl_index_op op = begin_move(&copy);
    demand_new_journal();
    fail_commit(&op, 1);
    go_on_without(copy);
}

static void nor_one_for_which_it_could_not_be(void **state) {
    (void)state;
    struct kvl_index_block copy;
    struct kvl_index_op op = begin_move(&copy);
    demand_new_journal();
    fail_journal(&op, 1);
    go_on_without(copy);
}

/* A reclaim whose last transaction fails gives its segment up for now, blocks and all. */
static void blocks_stay_when_their_segment_was_not_recycled(void **state) {
    struct kvl_index_op op = {.kind = KVL_INDEX_SEGMENT_PUT,
        .segment = {.id = 1, .bytes = SEGMENT_PAGES * KVL_PAGE_BYTES, .generation = 2}};
    (void)state;
    add_segment(1, 1);
    put(write_record(1, 10, at(1, 0), 1));
    fail_commit(&op, 1);
    put(write_record(2, 11, at(1, 2), 1));
    heal();
    assert_int_equal(look(), 2);
    fail_commit(&op, 1);
    put(write_record(3, 12, at(1, 4), 1));
    rebuild();
    assert_int_equal(look(), 3);
}

static void nor_when_the_journal_could_not_be_written_anew(void **state) {
    struct kvl_index_op op = {.kind = KVL_INDEX_SEGMENT_PUT,
        .segment = {.id = 1, .bytes = SEGMENT_PAGES * KVL_PAGE_BYTES, .generation = 2}};
    (void)state;
    add_segment(1, 1);
    put(write_record(1, 10, at(1, 0), 1));
    demand_new_journal();
    fail_journal(&op, 1);
    drop(write_record(2, 11, at(1, 2), 1), 1, false);
    rebuild();
    assert_int_equal(look(), 1);
}

/* A start whose journal cannot be written goes on with the one before, which takes nothing of this
 * run for a block: the first transaction must make up for it, also one that changes nothing else.
 */
static void blocks_of_a_start_without_a_journal_are_found(void **state) {
    (void)state;
    add_segment(1, 1);
    journal.run = RUN - 1;
    assert_int_equal(kvl_index_keep_journal(index_under_test, &journal), KVL_OK);
    demand_new_journal();
    journal.run = RUN;
    assert_int_equal(mkdirat(segments_fd, "journal.new", 0700), 0);
    assert_int_not_equal(kvl_index_keep_journal(index_under_test, &journal), KVL_OK);
    struct kvl_index_op op = {.kind = KVL_INDEX_PUT, .block = write_record(1, 10, at(1, 0), 1)};
    assert_int_not_equal(kvl_index_commit(index_under_test, &op, 1), KVL_OK);
    assert_int_equal(unlinkat(segments_fd, "journal.new", AT_REMOVEDIR), 0);
    put(op.block);
    rebuild();
    assert_int_equal(look(), 1);
}

/* The catalog after a rebuild is that of the index, too. */
static void a_catalog_change_that_was_not_committed_was_not_made(void **state) {
    uint8_t data[] = "name and value";
    struct kvl_index_op op = {
        .kind = KVL_INDEX_CATALOG_PUT, .key_bytes = 4, .value_bytes = 10, .data = data};
    (void)state;
    commit(op, true);
    op.kind = KVL_INDEX_CATALOG_REMOVE;
    fail_commit(&op, 1);
    add_segment(1, 1);
    put(write_record(1, 10, at(1, 0), 1));
    rebuild();
    assert_int_equal(count_records(), 1);
}

static kvl_err visit_entry(void *arg, const struct kvl_journal_entry *entry) {
    uint64_t *sum = arg;
    for (uint32_t i = 0; i < entry->value_bytes; i++)
        *sum += entry->value[i];
    return KVL_OK;
}

static void a_journal_that_lost_something_is_not_whole(void **state) {
    (void)state;
    uint8_t *bytes;
    uint64_t count, sum = 0;
    struct kvl_journal_found what;
    add_segment(1, 1);
    put(write_record(1, 10, at(1, 0), 1));
    drop(block_of(1, 10, at(1, 0)), 1, true);
    assert_int_equal(kvl_journal_load(segments_fd, &bytes, &count), KVL_OK);
    assert_int_equal(kvl_journal_parse(bytes, count, visit_entry, &sum, &what), KVL_OK);
    assert_true(what.whole && what.run == RUN && what.sequence == journal.sequence);
    for (uint64_t i = 0; i < count; i++) {
        /* The last frame, damaged or cut off, may be an append that never was synced, and between
         * two frames nothing shows; then the number of the last one that was synced tells. */
        bytes[i] ^= 0x40;
        kvl_err err = kvl_journal_parse(bytes, count, visit_entry, &sum, &what);
        assert_true(err == KVL_OK && (!what.whole || what.sequence < journal.sequence));
        bytes[i] ^= 0x40;
        assert_int_equal(kvl_journal_parse(bytes, i, visit_entry, &sum, &what), KVL_OK);
        assert_true(!what.whole || what.sequence < journal.sequence);
    }
    free(bytes);
}

static void a_full_folder_of_open_changes_is_refused_not_lost(void **state) {
    static uint8_t data[4 + 60000];
    (void)state;
    add_segment(1, 1);
    struct kvl_index_op op = {
        .kind = KVL_INDEX_CATALOG_PUT, .key_bytes = 4, .value_bytes = 60000, .data = data};
    assert_int_equal(kvl_index_commit(index_under_test, &op, 1), KVL_OK);
    memcpy(data, "more", 4);
    assert_int_equal(kvl_index_commit(index_under_test, &op, 1), KVL_ERR_NOSPC);
    struct kvl_index_block block = write_record(1, 10, at(1, 0), 1);
    put(block);
    drop(block, 1, true);
    rebuild();
    assert_int_equal(look(), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_moved_block_is_dead_where_it_was, setup, teardown),
        cmocka_unit_test_setup_teardown(a_copy_that_came_too_late_is_dead, setup, teardown),
        cmocka_unit_test_setup_teardown(a_replaced_record_is_dead, setup, teardown),
        cmocka_unit_test_setup_teardown(a_record_that_nobody_named_can_be_deleted, setup, teardown),
        cmocka_unit_test_setup_teardown(
            a_late_deletion_spares_what_came_into_the_place, setup, teardown),
        cmocka_unit_test_setup_teardown(the_younger_of_two_records_wins, setup, teardown),
        cmocka_unit_test_setup_teardown(
            of_two_stores_of_a_seal_the_later_is_found, setup, teardown),
        cmocka_unit_test_setup_teardown(records_of_another_time_are_not_taken, setup, teardown),
        cmocka_unit_test_setup_teardown(a_journal_written_anew_says_the_same, setup, teardown),
        cmocka_unit_test_setup_teardown(
            what_nobody_named_stays_dead_in_the_next_journal, setup, teardown),
        cmocka_unit_test_setup_teardown(
            healing_takes_what_was_published_and_no_more, setup, teardown),
        cmocka_unit_test_setup_teardown(
            healing_stays_within_the_share_of_the_index, setup, teardown),
        cmocka_unit_test_setup_teardown(blocks_that_do_not_fit_are_lost_and_told, setup, teardown),
        cmocka_unit_test_setup_teardown(a_move_that_healing_completed_was_made, setup, teardown),
        cmocka_unit_test_setup_teardown(a_closed_index_is_opened_again, setup, teardown),
        cmocka_unit_test_setup_teardown(
            a_closed_index_that_is_damaged_too_keeps_its_segments, setup, teardown),
        cmocka_unit_test_setup_teardown(
            a_move_that_was_not_committed_was_not_made, setup, teardown),
        cmocka_unit_test_setup_teardown(
            nor_was_one_for_which_the_journal_was_written_anew, setup, teardown),
        cmocka_unit_test_setup_teardown(nor_one_for_which_it_could_not_be, setup, teardown),
        cmocka_unit_test_setup_teardown(
            blocks_stay_when_their_segment_was_not_recycled, setup, teardown),
        cmocka_unit_test_setup_teardown(
            nor_when_the_journal_could_not_be_written_anew, setup, teardown),
        cmocka_unit_test_setup_teardown(
            blocks_of_a_start_without_a_journal_are_found, setup, teardown),
        cmocka_unit_test_setup_teardown(
            a_catalog_change_that_was_not_committed_was_not_made, setup, teardown),
        cmocka_unit_test_setup_teardown(
            a_journal_that_lost_something_is_not_whole, setup, teardown),
        cmocka_unit_test_setup_teardown(
            a_full_folder_of_open_changes_is_refused_not_lost, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
