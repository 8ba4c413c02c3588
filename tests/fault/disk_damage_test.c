/* LMDB's file is damaged page by page, as a bad disk or a stray write would: whatever LMDB makes of
 * it, at the third start the folder serves every block and session it had, and nothing else.
 *
 * A start is a process of its own, since LMDB may crash on what it reads. It loads and compares
 * everything, and stores, discards and puts so that commits meet the damage, too.
 * The seed is printed; KVL_SEED gives it back; the first argument is the rounds over all pages that
 * were ever written. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "disk_fixture.h"

#define MIB (1ull << 20)
#define BLOCKS 120u
#define SESSIONS 40u
#define STARTS 3u
#define START_SECONDS 20u

enum { SERVED, DIED, WRONG };

static struct disk_fixture fixture;
static uint8_t *whole; /* data.mdb before any damage */
static uint64_t whole_bytes;
static uint32_t sessions_seen;
static uint32_t rounds = 1;

static bool is_cleared(uint64_t number) {
    return number % 3 == 0;
}

static void on_session(void *arg, enum kvl_catalog_kind kind, const void *key, uint32_t key_bytes,
    const void *value, uint32_t value_bytes) {
    (void)arg, (void)value;
    if (kind == KVL_CATALOG_SESSION && key_bytes == 4 && memcmp(key, "chat", 3) == 0 &&
        value_bytes == 700)
        sessions_seen++;
}

static kvl_err open_folder(void) {
    sessions_seen = 0;
    kvl_err err = fixture_open(&fixture);
    if (err != KVL_OK)
        return err;
    fixture.catalog->found = on_session;
    fixture_wait_loaded(&fixture);
    return fixture.loaded_status;
}

static void put_sessions(void) {
    uint8_t value[700];
    for (uint32_t i = 0; i < SESSIONS; i++) {
        char key[4] = {'c', 'h', 'a', (char)i};
        memset(value, (int)i, sizeof(value));
        assert_int_equal(fixture.catalog->ops->put(fixture.catalog, KVL_CATALOG_SESSION,
                             i == 0 ? "chat" : key, 4, value, sizeof(value)),
            KVL_OK);
    }
}

static kvl_err store(uint64_t first, uint64_t count) {
    static struct disk_block blocks[BLOCKS];
    kvl_err err = KVL_OK;
    for (uint64_t i = 0; i < count; i++) {
        block_init_bytes(&blocks[i], &fixture, first + i, 3000);
        block_begin(&blocks[i], KVL_IO_STORE);
    }
    for (uint64_t i = 0; i < count; i++) {
        kvl_err status = block_end(&blocks[i]);
        err = status != KVL_OK ? status : err;
        block_free(&blocks[i]);
    }
    return err;
}

static void build_folder(void) {
    struct stat file;
    fixture_init(&fixture, 8 * MIB, NULL);
    fixture.options.io = KVL_DISK_IO_POSIX;
    assert_int_equal(open_folder(), KVL_OK);
    for (uint32_t part = 0; part < 3; part++) {
        assert_int_equal(store(part * BLOCKS / 3, BLOCKS / 3), KVL_OK);
        put_sessions();
    }
    for (uint32_t i = 0; i < fixture.found_count; i++) {
        if (is_cleared(block_number_of(&fixture.found[i].record.key)))
            fixture.tier->ops->discard(
                fixture.tier, &fixture.found[i].record.key, fixture.found[i].location);
    }
    fixture_close(&fixture, true);
    int fd = open(fixture_path(&fixture, "index/data.mdb"), O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0 && fstat(fd, &file) == 0);
    whole_bytes = (uint64_t)file.st_size;
    whole = malloc(whole_bytes);
    assert_int_equal(pread(fd, whole, whole_bytes, 0), whole_bytes);
    close(fd);
    fixture_shell("rm -rf %s.whole && cp -r %s %s.whole", fixture.path, fixture.path, fixture.path);
}

/* In a child: the first line that does not hold is its exit status. */
static void expect(bool holds, int line) {
    if (!holds)
        _exit(line % 200 + 20);
}

static void check_content(void) {
    for (uint64_t number = 0; number < BLOCKS; number++) {
        struct disk_found_block *found = fixture_find(&fixture, number);
        struct disk_block block;
        expect((found == NULL) == is_cleared(number), __LINE__);
        if (found == NULL)
            continue;
        block_init_bytes(&block, &fixture, number, 3000);
        block.io.location = found->location;
        expect(block_load_same(&block, NULL), __LINE__);
        block_free(&block);
    }
    expect(sessions_seen == SESSIONS, __LINE__);
}

/* Exit status 0: served; 1: refused or failed, which another start may mend; others: wrong. */
static void start_main(void) {
    int null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    dup2(null, STDERR_FILENO);
    alarm(START_SECONDS);
    if (open_folder() != KVL_OK)
        _exit(1);
    check_content();
    put_sessions();
    if (store(1000, 20) != KVL_OK)
        _exit(1);
    for (uint64_t number = 1000; number < 1020; number++) {
        struct disk_found_block *found = fixture_find(&fixture, number);
        fixture.tier->ops->discard(fixture.tier, &found->record.key, found->location);
    }
    if (fixture.tier->ops->drain(fixture.tier) != KVL_OK)
        _exit(1);
    check_content();
    fixture_close(&fixture, true);
    _exit(0);
}

static int start(int *how) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        start_main();
    assert_int_equal(waitpid(child, how, 0), child);
    if (WIFEXITED(*how) && WEXITSTATUS(*how) == 0)
        return SERVED;
    return WIFEXITED(*how) && WEXITSTATUS(*how) >= 20 && WEXITSTATUS(*how) < 220 ? WRONG : DIED;
}

static void damage(uint64_t page, bool zero) {
    uint8_t bytes[4096];
    for (uint32_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = zero ? 0 : (uint8_t)rand();
    /* Some damage is small. */
    uint32_t at = !zero && rand() % 2 ? (uint32_t)rand() % 4096 : 0;
    uint32_t count = at > 0 ? 1 + (uint32_t)rand() % (4096 - at) % 64 : 4096;
    int fd = open(fixture_path(&fixture, "index/data.mdb"), O_WRONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, count, (off_t)(page * 4096 + at)), count);
    close(fd);
}

static void serves_at_the_third_start(uint64_t page, bool zero, uint32_t *deaths) {
    int how = 0;
    uint32_t deaths_before = *deaths;
    fixture_shell("rm -rf %s && cp -r %s.whole %s", fixture.path, fixture.path, fixture.path);
    damage(page, zero);
    for (uint32_t i = 0; i < STARTS; i++) {
        int outcome = start(&how);
        if (outcome == SERVED)
            break;
        if (outcome == WRONG)
            fail_msg("page %d start %u: wrong, line %d", (int)page, i, WEXITSTATUS(how) - 20);
        ++*deaths;
        if (i + 1 == STARTS)
            fail_msg("page %d %s: no start of %u serves, wait status %d", (int)page,
                zero ? "zeroed" : "random", STARTS, how);
    }
    /* What was rebuilt holds. */
    if (*deaths > deaths_before && start(&how) != SERVED)
        fail_msg("page %d: the start after it, wait status %d", (int)page, how);
}

/* Never written, it is reserved only. */
static bool is_used(uint64_t page) {
    static const uint8_t zero[4096];
    return memcmp(whole + page * 4096, zero, sizeof(zero)) != 0;
}

static void every_damaged_page_is_survived(void **state) {
    (void)state;
    uint32_t deaths = 0, cases = 0;
    build_folder();
    for (uint32_t round = 0; round < rounds; round++) {
        for (uint64_t page = 0; page < whole_bytes / 4096; page++) {
            if (!is_used(page))
                continue;
            serves_at_the_third_start(page, rand() % 3 == 0, &deaths);
            cases++;
        }
    }
    printf("cases=%u rounds=%u deaths=%u\n", cases, rounds, deaths);
    fixture_shell("rm -rf %s.whole", fixture.path);
    fixture_remove(&fixture);
    free(whole);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_damaged_page_is_survived)};
    const char *given = getenv("KVL_SEED");
    unsigned seed = given != NULL ? (unsigned)strtoul(given, NULL, 10) : (unsigned)time(NULL);
    rounds = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : 1;
    printf("KVL_SEED=%u\n", seed);
    srand(seed);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
