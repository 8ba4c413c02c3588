#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <errno.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ticket.h"

#define POOL_BYTES (KVL_TICKET_WORDS * sizeof(struct kvl_completion))

static int pool_make(void **state) {
    struct kvl_ticket_pool *pool = NULL;
    int failed = kvl_ticket_pool_create(&pool) != KVL_OK;
    *state = pool;
    return failed;
}

static int pool_drop(void **state) {
    kvl_ticket_pool_destroy(*state);
    return 0;
}

static void a_taken_word_is_pending_and_empty(void **state) {
    struct kvl_ticket ticket;
    assert_int_equal(kvl_ticket_take(*state, &ticket), KVL_OK);
    assert_int_not_equal(ticket.generation, 0);
    struct kvl_completion *word = kvl_ticket_word(*state, ticket);
    assert_non_null(word);
    assert_int_equal(atomic_load(&word->status), KVL_ERR_PENDING);
    assert_int_equal(atomic_load(&word->generation), ticket.generation);
    kvl_ticket_progress(word, 3, 12);
    atomic_store(&word->values[4], 99);
    kvl_ticket_finish(word, KVL_ERR_CORRUPT);
    assert_int_equal(atomic_load(&word->blocks_ready), 3);
    assert_int_equal(atomic_load(&word->layers_ready), 12);
    assert_int_equal(atomic_load(&word->status), KVL_ERR_CORRUPT);
    kvl_ticket_give_back(*state, ticket);
    /* The same word comes again after all others: nothing of its last use is left in it. */
    struct kvl_ticket again = {0};
    for (uint32_t i = 0; i < KVL_TICKET_WORDS; i++)
        assert_int_equal(kvl_ticket_take(*state, &again), KVL_OK);
    assert_int_equal(again.number, ticket.number);
    assert_int_not_equal(again.generation, ticket.generation);
    word = kvl_ticket_word(*state, again);
    assert_int_equal(atomic_load(&word->status), KVL_ERR_PENDING);
    assert_int_equal(atomic_load(&word->blocks_ready), 0);
    assert_int_equal(atomic_load(&word->layers_ready), 0);
    assert_int_equal(atomic_load(&word->values[4]), 0);
}

static void tickets_given_back_are_void(void **state) {
    struct kvl_ticket ticket;
    assert_int_equal(kvl_ticket_take(*state, &ticket), KVL_OK);
    const struct kvl_ticket none = {0};
    const struct kvl_ticket outside = {.number = KVL_TICKET_WORDS, .generation = 1};
    struct kvl_ticket other = ticket;
    other.generation++;
    assert_null(kvl_ticket_word(*state, none));
    assert_null(kvl_ticket_word(*state, outside));
    assert_null(kvl_ticket_word(*state, other));
    kvl_ticket_give_back(*state, ticket);
    assert_null(kvl_ticket_word(*state, ticket));
    kvl_ticket_give_back(*state, ticket); /* a second time is ignored */
    kvl_ticket_give_back(*state, outside);
}

static void words_run_out_with_limit_and_come_back(void **state) {
    static struct kvl_ticket tickets[KVL_TICKET_WORDS];
    static bool seen[KVL_TICKET_WORDS];
    for (uint32_t i = 0; i < KVL_TICKET_WORDS; i++) {
        assert_int_equal(kvl_ticket_take(*state, &tickets[i]), KVL_OK);
        assert_false(seen[tickets[i].number]);
        seen[tickets[i].number] = true;
    }
    struct kvl_ticket more;
    assert_int_equal(kvl_ticket_take(*state, &more), KVL_ERR_LIMIT);
    kvl_ticket_give_back(*state, tickets[17]);
    kvl_ticket_give_back(*state, tickets[17]);
    assert_int_equal(kvl_ticket_take(*state, &more), KVL_OK);
    assert_int_equal(more.number, tickets[17].number);
    assert_int_equal(kvl_ticket_take(*state, &more), KVL_ERR_LIMIT);
}

static void engines_can_map_the_words_only_for_reading(void **state) {
    int fd = kvl_ticket_pool_fd(*state);
    void *writable = mmap(NULL, POOL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_ptr_equal(writable, MAP_FAILED);
    assert_int_equal(errno, EPERM);
    assert_int_equal(pwrite(fd, "x", 1, 0), -1);
    assert_int_equal(ftruncate(fd, 0), -1);
    void *readable = mmap(NULL, POOL_BYTES, PROT_READ, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(readable, MAP_FAILED);
    assert_int_equal(mprotect(readable, POOL_BYTES, PROT_READ | PROT_WRITE), -1);
    munmap(readable, POOL_BYTES);
}

/* What an engine does; the exit status says how it went. */
static int wait_as_an_engine(int fd, struct kvl_ticket ticket, int started_fd) {
    const struct kvl_completion *words = mmap(NULL, POOL_BYTES, PROT_READ, MAP_SHARED, fd, 0);
    if (words == MAP_FAILED)
        return 2;
    const struct kvl_completion *word = &words[ticket.number];
    uint32_t seen = atomic_load(&word->sequence);
    if (write(started_fd, "s", 1) != 1)
        return 3;
    while (atomic_load_explicit(&word->status, memory_order_acquire) == KVL_ERR_PENDING) {
        if (kvl_completion_wait(word, seen, 20000) != KVL_OK)
            return 4;
        seen = atomic_load(&word->sequence);
    }
    return atomic_load(&word->blocks_ready) == 7 && atomic_load(&word->values[0]) == 4242 ? 0 : 5;
}

static void another_process_is_woken_by_every_change(void **state) {
    struct kvl_ticket ticket;
    assert_int_equal(kvl_ticket_take(*state, &ticket), KVL_OK);
    int started[2];
    assert_int_equal(pipe(started), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0)
        _exit(wait_as_an_engine(kvl_ticket_pool_fd(*state), ticket, started[1]));
    char byte;
    assert_int_equal(read(started[0], &byte, 1), 1);
    struct kvl_completion *word = kvl_ticket_word(*state, ticket);
    kvl_ticket_progress(word, 3, 1);
    usleep(20000); /* so that it most likely sleeps again; right either way */
    atomic_store(&word->values[0], 4242);
    kvl_ticket_progress(word, 7, 30);
    kvl_ticket_finish(word, KVL_OK);
    int status = -1;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    close(started[0]);
    close(started[1]);
}

static void waiting_ends_by_time_and_at_once_when_it_changed_before(void **state) {
    struct kvl_ticket ticket;
    assert_int_equal(kvl_ticket_take(*state, &ticket), KVL_OK);
    struct kvl_completion *word = kvl_ticket_word(*state, ticket);
    uint32_t seen = atomic_load(&word->sequence);
    assert_int_equal(kvl_completion_wait(word, seen, 10), KVL_ERR_TIMEOUT);
    assert_int_equal(kvl_completion_wait(word, seen, 0), KVL_ERR_TIMEOUT);
    kvl_ticket_progress(word, 1, 0);
    assert_int_equal(kvl_completion_wait(word, seen, 60000), KVL_OK);
    seen = atomic_load(&word->sequence);
    kvl_ticket_give_back(*state, ticket);
    assert_int_equal(kvl_completion_wait(word, seen, 60000), KVL_OK);
}

int main(void) {
#define WITH_POOL(test) cmocka_unit_test_setup_teardown(test, pool_make, pool_drop)
    const struct CMUnitTest tests[] = {
        WITH_POOL(a_taken_word_is_pending_and_empty),
        WITH_POOL(tickets_given_back_are_void),
        WITH_POOL(words_run_out_with_limit_and_come_back),
        WITH_POOL(engines_can_map_the_words_only_for_reading),
        WITH_POOL(another_process_is_woken_by_every_change),
        WITH_POOL(waiting_ends_by_time_and_at_once_when_it_changed_before),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
