/* Who dies, stops or comes back, and what becomes of leases, calls and mappings. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "harness.h"

static struct test_daemon daemon_a;

static int setup(void **state) {
    (void)state;
    daemon_init(&daemon_a);
    return daemon_start(&daemon_a) ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    daemon_remove(&daemon_a);
    return 0;
}

static uint64_t leases_now(struct kvl_client *client) {
    struct kvl_store_report report;
    assert_int_equal(kvl_stats(client, &report, NULL), KVL_OK);
    return report.leases;
}

static bool wait_leases(struct kvl_client *client, uint64_t leases) {
    for (int i = 0; i < 30000; i++, usleep(1000))
        if (leases_now(client) == leases)
            return true;
    return false;
}

/* A process of its own that takes a write lease on block `number`, parts from the daemon as it is
 * told (holder.c), says so, and stays. */
static pid_t spawn_parting_holder(uint32_t number, const char *how) {
    int ends[2];
    char byte;
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        char text[16];
        snprintf(text, sizeof text, "%u", number);
        dup2(ends[1], STDOUT_FILENO);
        execl(KVL_TEST_HOLDER, KVL_TEST_HOLDER, daemon_a.address, text, how, (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    assert_int_equal(read(ends[0], &byte, 1), 1);
    close(ends[0]);
    return pid;
}

static pid_t spawn_holder(uint32_t number) {
    return spawn_parting_holder(number, NULL);
}

static void end_holder(pid_t pid) {
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

static void test_leases_of_a_killed_client_come_back(void **state) {
    (void)state;
    struct kvl_client *client = connect_to(&daemon_a, "watcher");
    pid_t holder = spawn_holder(1);
    assert_int_equal(leases_now(client), 1);
    end_holder(holder);
    assert_true(wait_leases(client, 0));
    kvl_client_close(client);
}

static void test_a_stopped_client_keeps_its_leases(void **state) {
    (void)state;
    struct kvl_client *client = connect_to(&daemon_a, "watcher");
    pid_t holder = spawn_holder(2);
    kill(holder, SIGSTOP);
    usleep(300000); /* no clock ends a lease; this only gives one the chance to */
    assert_int_equal(leases_now(client), 1);
    end_holder(holder);
    assert_true(wait_leases(client, 0));
    kvl_client_close(client);
}

static void test_a_key_being_filled_is_inherited(void **state) {
    (void)state;
    struct kvl_client *client = connect_to(&daemon_a, "heir");
    struct kvl_namespace_info info = open_opaque(client);
    pid_t holder = spawn_holder(3);
    struct kvl_key key = opaque_key(&info, 3);
    struct kvl_allocated block;
    struct kvl_ticket ticket;
    struct kvl_progress progress;
    assert_int_equal(
        kvl_alloc(client, info.id, KVL_TIER_DEVICE, &key, 1, true, &block, &ticket), KVL_OK);
    assert_int_equal(block.status, KVL_ALLOC_PENDING);
    assert_int_equal(kvl_ticket_wait(client, ticket, UINT32_MAX, 100, &progress), KVL_ERR_TIMEOUT);
    end_holder(holder);
    assert_int_equal(kvl_ticket_wait(client, ticket, UINT32_MAX, 60000, &progress), KVL_OK);
    assert_int_not_equal(progress.values[0], 0);
    assert_int_equal(kvl_release(client, &progress.values[0], 1, &ticket, 1), KVL_OK);
    assert_true(wait_leases(client, 0));
    kvl_client_close(client);
}

/* Of the client named "holder"; false: there is none. */
static bool find_holder(struct kvl_client *client, struct kvl_client_report *out) {
    for (uint32_t i = 0; kvl_stats_client(client, i, out) == KVL_OK; i++)
        if (strcmp(out->name, "holder") == 0)
            return true;
    return false;
}

static bool wait_leaving(struct kvl_client *client) {
    struct kvl_client_report holder = {0};
    for (int i = 0; i < 30000; i++, usleep(1000))
        if (find_holder(client, &holder) && holder.leaving)
            return true;
    return false;
}

/* As a dying process' GPU may write on after its sockets are closed, only its death frees. */
static void test_an_end_of_file_alone_ends_no_lease(void **state) {
    (void)state;
    struct kvl_client *client = connect_to(&daemon_a, "heir");
    struct kvl_namespace_info info = open_opaque(client);
    pid_t holder = spawn_parting_holder(5, "eof");
    struct kvl_key key = opaque_key(&info, 5);
    struct kvl_allocated block;
    struct kvl_ticket ticket;
    struct kvl_progress progress;
    assert_true(wait_leaving(client));
    assert_int_equal(leases_now(client), 1);
    assert_int_equal(
        kvl_alloc(client, info.id, KVL_TIER_DEVICE, &key, 1, true, &block, &ticket), KVL_OK);
    assert_int_equal(block.status, KVL_ALLOC_PENDING);
    assert_int_equal(kvl_ticket_wait(client, ticket, UINT32_MAX, 300, &progress), KVL_ERR_TIMEOUT);
    end_holder(holder);
    assert_int_equal(kvl_ticket_wait(client, ticket, UINT32_MAX, 60000, &progress), KVL_OK);
    assert_int_not_equal(progress.values[0], 0); /* inherited */
    assert_int_equal(kvl_release(client, &progress.values[0], 1, &ticket, 1), KVL_OK);
    assert_true(wait_leases(client, 0));
    struct kvl_client_report gone;
    assert_false(find_holder(client, &gone));
    kvl_client_close(client);
}

static void test_a_goodbye_ends_leases_at_once(void **state) {
    (void)state;
    struct kvl_client *client = connect_to(&daemon_a, "watcher");
    pid_t holder = spawn_parting_holder(6, "goodbye");
    struct kvl_client_report gone;
    assert_true(wait_leases(client, 0));
    assert_false(find_holder(client, &gone));
    assert_int_equal(waitpid(holder, NULL, WNOHANG), 0); /* it lives */
    end_holder(holder);
    kvl_client_close(client);
}

static void on_done(void *arg, kvl_err err) {
    *(kvl_err *)arg = err;
}

static void test_losing_the_daemon_and_coming_back(void **state) {
    (void)state;
    struct kvl_client *client = connect_to(&daemon_a, "survivor");
    struct kvl_namespace_info info = open_opaque(client);
    struct kvl_key key = opaque_key(&info, 9);
    store_block(client, &info, 9);
    assert_true(wait_visible(client, &key, 1));
    struct kvl_restored block;
    struct kvl_restore_result result;
    assert_int_equal(kvl_restore(client, KVL_TIER_DEVICE, &key, 1, &block, &result), KVL_OK);
    const uint8_t *data = kvl_client_block(client, KVL_TIER_DEVICE, block.offset_bytes);
    uint64_t epoch = kvl_client_epoch(client);

    kill(daemon_a.pid, SIGSTOP); /* so that the calls are under way when it dies */
    kvl_err first = KVL_ERR_PENDING, second = KVL_ERR_PENDING;
    assert_int_equal(kvl_release_async(client, NULL, 0, NULL, 0, on_done, &first), KVL_OK);
    assert_int_equal(kvl_release_async(client, NULL, 0, NULL, 0, on_done, &second), KVL_OK);
    daemon_kill(&daemon_a);
    assert_int_equal(kvl_client_drain(client), KVL_OK);
    assert_int_equal(first, KVL_ERR_CLOSED);
    assert_int_equal(second, KVL_ERR_CLOSED);
    assert_false(kvl_client_is_connected(client));
    assert_int_equal(kvl_ping(client, 1), KVL_ERR_CLOSED);
    assert_int_equal(kvl_release_async(client, NULL, 0, NULL, 0, NULL, NULL), KVL_ERR_CLOSED);
    assert_true(has_pattern(data, 9)); /* what was mapped stays readable */
    struct kvl_errmsg msg;
    assert_int_equal(kvl_client_reconnect(client, &msg), KVL_ERR_NOTFOUND);
    assert_int_equal(kvl_ping(client, 1), KVL_ERR_CLOSED);

    assert_true(daemon_start(&daemon_a)); /* over the sockets that SIGKILL left */
    assert_int_equal(kvl_client_reconnect(client, &msg), KVL_OK);
    assert_int_not_equal(kvl_client_epoch(client), epoch);
    assert_int_equal(kvl_ping(client, 1000), KVL_OK);
    assert_true(has_pattern(data, 9));
    assert_int_equal(kvl_release(client, &block.lease, 1, NULL, 0), KVL_OK); /* void: nothing */
    kvl_client_unmap_old(client);
    info = open_opaque(client);
    store_block(client, &info, 9);
    assert_true(wait_visible(client, &key, 1));
    kvl_client_close(client);
}

static void test_a_waiter_learns_of_the_daemons_death(void **state) {
    (void)state;
    struct kvl_client *client = connect_to(&daemon_a, "waiter");
    struct kvl_namespace_info info = open_opaque(client);
    pid_t holder = spawn_holder(4);
    struct kvl_key key = opaque_key(&info, 4);
    struct kvl_allocated block;
    struct kvl_ticket ticket;
    struct kvl_progress progress;
    assert_int_equal(
        kvl_alloc(client, info.id, KVL_TIER_DEVICE, &key, 1, true, &block, &ticket), KVL_OK);
    daemon_kill(&daemon_a);
    assert_int_equal(kvl_ticket_wait(client, ticket, UINT32_MAX, 60000, &progress), KVL_ERR_CLOSED);
    end_holder(holder);
    kvl_client_close(client);
    assert_true(daemon_start(&daemon_a));
}

static void test_a_daemon_that_does_not_answer_is_a_timeout(void **state) {
    (void)state;
    struct kvl_client *client = connect_to(&daemon_a, "patient");
    struct kvl_namespace_info info = open_opaque(client);
    struct kvl_key key = opaque_key(&info, 70);
    struct kvl_allocated block;
    struct kvl_ticket ticket;
    kill(daemon_a.pid, SIGSTOP);
    kvl_client_set_timeout(client, 300);
    assert_int_equal(kvl_alloc(client, info.id, KVL_TIER_DEVICE, &key, 1, false, &block, &ticket),
        KVL_ERR_TIMEOUT);
    assert_int_equal(kvl_ping(client, 1), KVL_ERR_TIMEOUT);
    kill(daemon_a.pid, SIGCONT);
    kvl_client_set_timeout(client, 0);
    /* the lease that came too late went back by itself; the connection goes on */
    assert_int_equal(kvl_ping(client, 1), KVL_OK);
    assert_true(wait_leases(client, 0));
    kvl_client_close(client);
}

static void test_a_second_daemon_is_told_busy(void **state) {
    (void)state;
    struct test_daemon second = daemon_a;
    assert_false(daemon_start(&second));
    assert_non_null(strstr(second.output, "BUSY"));
    struct kvl_client *client = connect_to(&daemon_a, "first"); /* unharmed */
    assert_int_equal(kvl_ping(client, 1), KVL_OK);
    kvl_client_close(client);
}

static void test_a_clean_end_leaves_no_files(void **state) {
    (void)state;
    struct test_daemon other;
    char path[128];
    struct stat info;
    const char *names[] = {"d.sock", "d.sock.attach", "d.sock.lock"};
    daemon_init(&other);
    assert_true(daemon_start(&other));
    assert_int_equal(daemon_stop(&other), 0);
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", other.directory, names[i]);
        assert_int_equal(stat(path, &info), -1);
    }
    daemon_remove(&other);
}

static void test_blocks_on_disk_are_found_after_a_restart(void **state) {
    (void)state;
    struct test_daemon durable;
    struct kvl_ticket ticket;
    struct kvl_progress progress;
    daemon_init(&durable);
    durable.with_disk = true;
    assert_true(daemon_start(&durable));
    struct kvl_client *client = connect_to(&durable, "before");
    struct kvl_namespace_info info = open_opaque(client);
    struct kvl_key key = opaque_key(&info, 1);
    store_block(client, &info, 1);
    assert_int_equal(kvl_flush(client, &ticket), KVL_OK);
    assert_int_equal(kvl_ticket_wait(client, ticket, UINT32_MAX, 10000, &progress), KVL_OK);
    assert_int_equal(progress.status, KVL_OK);
    daemon_kill(&durable);
    assert_true(daemon_start(&durable));
    struct kvl_errmsg msg;
    assert_int_equal(kvl_client_reconnect(client, &msg), KVL_OK);
    uint8_t found;
    uint32_t hits;
    assert_int_equal(kvl_lookup(client, &key, 1, &found, &hits), KVL_OK); /* never too early */
    assert_int_equal(hits, 1);
    assert_int_equal(found, 1 << KVL_TIER_DISK);
    struct kvl_restored block;
    struct kvl_restore_result result;
    assert_int_equal(kvl_restore(client, KVL_TIER_DEVICE, &key, 1, &block, &result), KVL_OK);
    assert_int_equal(kvl_ticket_wait(client, result.ticket, UINT32_MAX, 10000, &progress), KVL_OK);
    assert_int_equal(progress.status, KVL_OK);
    assert_true(has_pattern(kvl_client_block(client, KVL_TIER_DEVICE, block.offset_bytes), 1));
    kvl_client_close(client);
    daemon_remove(&durable);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_leases_of_a_killed_client_come_back),
        cmocka_unit_test(test_a_stopped_client_keeps_its_leases),
        cmocka_unit_test(test_a_key_being_filled_is_inherited),
        cmocka_unit_test(test_an_end_of_file_alone_ends_no_lease),
        cmocka_unit_test(test_a_goodbye_ends_leases_at_once),
        cmocka_unit_test(test_losing_the_daemon_and_coming_back),
        cmocka_unit_test(test_a_waiter_learns_of_the_daemons_death),
        cmocka_unit_test(test_a_daemon_that_does_not_answer_is_a_timeout),
        cmocka_unit_test(test_a_second_daemon_is_told_busy),
        cmocka_unit_test(test_a_clean_end_leaves_no_files),
        cmocka_unit_test(test_blocks_on_disk_are_found_after_a_restart),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
