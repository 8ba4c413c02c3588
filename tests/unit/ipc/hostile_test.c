/* Peers that speak another version, repeat themselves, send garbage, or never read. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>
#include <nanomsg/nn.h>
#include <nanomsg/reqrep.h>

#include "raw.h"
#include "samples.h"

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

static void assert_daemon_serves(void) {
    struct kvl_client *client = connect_to(&daemon_a, "check");
    assert_int_equal(kvl_ping(client, 1000), KVL_OK);
    kvl_client_close(client);
}

static struct kvl_wire_header header_for(
    const struct kvl_attach_reply *attached, uint16_t verb, uint64_t sequence) {
    struct kvl_wire_header header = {.version = KVL_WIRE_VERSION,
        .verb = verb,
        .client = attached->client,
        .epoch = attached->epoch,
        .sequence = sequence};
    memcpy(header.token, attached->token, sizeof header.token);
    return header;
}

static struct kvl_wire_header ask(
    int socket, const struct kvl_wire_buffer *request, uint8_t *reply, size_t reply_bytes) {
    struct kvl_wire_header header;
    raw_send(socket, request->data, request->bytes);
    int bytes = raw_receive(socket, reply, reply_bytes, 60000);
    assert_true(bytes >= (int)KVL_WIRE_HEADER_BYTES);
    assert_int_equal(kvl_wire_decode_header(reply, (uint64_t)bytes, &header), KVL_OK);
    return header;
}

/* ---- versions ----------------------------------------------------------------------------- */

static void test_attach_of_another_version(void **state) {
    (void)state;
    int fd = raw_attach(&daemon_a);
    uint8_t data[KVL_ATTACH_BYTES_MAX];
    struct kvl_attach_hello hello = {.magic = KVL_ATTACH_MAGIC, .version = KVL_WIRE_VERSION + 1};
    uint32_t bytes = kvl_attach_encode_hello(&hello, data);
    assert_int_equal(send(fd, data, bytes, 0), bytes);
    ssize_t got = recv(fd, data, sizeof data, 0);
    struct kvl_attach_reply reply;
    assert_int_equal(kvl_attach_decode_reply(data, (uint64_t)got, &reply), KVL_OK);
    assert_int_equal(reply.status, KVL_ERR_VERSION);
    assert_int_equal(reply.version, KVL_WIRE_VERSION); /* so that the peer can name both */
    assert_true(raw_was_closed(fd));
    close(fd);
}

static void test_request_of_another_version(void **state) {
    (void)state;
    struct kvl_attach_reply attached;
    uint8_t reply[256];
    int fd = raw_hello(&daemon_a, &attached), socket = raw_socket(&daemon_a);
    struct kvl_wire_buffer request = {0};
    struct kvl_wire_header header = header_for(&attached, KVL_VERB_STATS, 1);
    assert_int_equal(kvl_wire_encode(&request, &header, NULL, NULL), KVL_OK);
    request.data[4] = KVL_WIRE_VERSION + 1;
    header = ask(socket, &request, reply, sizeof reply);
    assert_int_equal(header.status, KVL_ERR_VERSION);
    assert_int_equal(header.version, KVL_WIRE_VERSION);
    kvl_wire_buffer_free(&request);
    nn_close(socket);
    close(fd);
}

/* Answers one hello as a daemon of a later version would. */
static void serve_later_version(const char *path) {
    struct sockaddr_un where = {.sun_family = AF_UNIX};
    snprintf(where.sun_path, sizeof where.sun_path, "%.100s", path);
    int listener = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    if (bind(listener, (struct sockaddr *)&where, sizeof where) != 0 || listen(listener, 1) != 0)
        _exit(1);
    int fd = accept(listener, NULL, NULL);
    uint8_t data[KVL_ATTACH_BYTES_MAX] = {0};
    ssize_t got = recv(fd, data, sizeof data, 0);
    const uint8_t reply[12] = {'K', 'V', 'L', 'A', 9, 0, 0, 0, KVL_ERR_VERSION};
    if (got > 0)
        got = send(fd, reply, sizeof reply, 0);
    _exit(got > 0 ? 0 : 1);
}

static void test_daemon_of_another_version(void **state) {
    (void)state;
    struct test_daemon later;
    daemon_init(&later);
    char path[sizeof later.directory + 16];
    snprintf(path, sizeof path, "%s/d.sock.attach", later.directory);
    later.pid = fork();
    if (later.pid == 0)
        serve_later_version(path);
    for (int i = 0; i < 30000 && access(path, F_OK) != 0; i++)
        usleep(1000);
    struct kvl_client *client = NULL;
    struct kvl_errmsg msg = {{0}};
    struct kvl_client_options options = {.address = later.address};
    kvl_err err = KVL_ERR_NOTFOUND;
    for (int i = 0; i < 30000 && err == KVL_ERR_NOTFOUND; i++, usleep(1000)) /* not listening yet */
        err = kvl_client_open(&options, &client, &msg);
    assert_int_equal(err, KVL_ERR_VERSION);
    assert_non_null(strstr(msg.text, "version 9"));
    assert_non_null(strstr(msg.text, "library 4"));
    daemon_remove(&later);
}

/* ---- repeats ------------------------------------------------------------------------------ */

static void test_a_repeated_request_is_executed_once(void **state) {
    (void)state;
    struct kvl_client *client = connect_to(&daemon_a, "names");
    struct kvl_namespace_info info = open_opaque(client);
    struct kvl_attach_reply attached;
    int fd = raw_hello(&daemon_a, &attached), socket = raw_socket(&daemon_a);
    struct kvl_key keys[2] = {opaque_key(&info, 1), opaque_key(&info, 2)};
    struct kvl_wire_chain chain = {.namespace_id = info.id, .count = 2, .keys = keys};
    struct kvl_wire_header header = header_for(&attached, KVL_VERB_ALLOC, 5);
    struct kvl_wire_buffer request = {0};
    assert_int_equal(kvl_wire_encode(&request, &header, kvl_wire_chain, &chain), KVL_OK);
    uint8_t first[512], second[512];
    memset(first, 0, sizeof first);
    memset(second, 0, sizeof second);
    do /* AGAIN while the arena is new: nothing was done */
        header = ask(socket, &request, first, sizeof first);
    while (header.status == KVL_ERR_AGAIN);
    assert_int_equal(header.status, KVL_OK);
    ask(socket, &request, second, sizeof second);
    assert_memory_equal(first, second, sizeof first); /* the same leases */
    struct kvl_store_report report;
    assert_int_equal(kvl_stats(client, &report, NULL), KVL_OK);
    assert_int_equal(report.leases, 2);
    header = header_for(&attached, KVL_VERB_PING, 4); /* one that was overtaken */
    assert_int_equal(kvl_wire_encode(&request, &header, NULL, NULL), KVL_OK);
    header = ask(socket, &request, second, sizeof second);
    assert_int_equal(header.status, KVL_ERR_STALE);
    raw_goodbye(fd); /* and its end gives the leases back */
    for (int i = 0; i < 30000 && report.leases != 0; i++, usleep(1000))
        assert_int_equal(kvl_stats(client, &report, NULL), KVL_OK);
    assert_int_equal(report.leases, 0);
    kvl_wire_buffer_free(&request);
    nn_close(socket);
    kvl_client_close(client);
}

static void test_strangers_are_refused(void **state) {
    (void)state;
    struct kvl_attach_reply attached;
    uint8_t reply[4096];
    int fd = raw_hello(&daemon_a, &attached), socket = raw_socket(&daemon_a);
    struct kvl_wire_buffer request = {0};
    struct kvl_wire_header header = header_for(&attached, KVL_VERB_STATS, 1);
    header.token[3] ^= 1;
    assert_int_equal(kvl_wire_encode(&request, &header, NULL, NULL), KVL_OK);
    assert_int_equal(ask(socket, &request, reply, sizeof reply).status, KVL_ERR_PERM);
    header = header_for(&attached, KVL_VERB_STATS, 1);
    header.client ^= 1u << 16; /* a former user of the slot */
    assert_int_equal(kvl_wire_encode(&request, &header, NULL, NULL), KVL_OK);
    assert_int_equal(ask(socket, &request, reply, sizeof reply).status, KVL_ERR_PERM);
    header = header_for(&attached, KVL_VERB_STATS, 1);
    header.epoch++;
    assert_int_equal(kvl_wire_encode(&request, &header, NULL, NULL), KVL_OK);
    assert_int_equal(ask(socket, &request, reply, sizeof reply).status, KVL_ERR_STALE);
    header = header_for(&attached, 4000, 1); /* no such verb */
    assert_int_equal(kvl_wire_encode(&request, &header, NULL, NULL), KVL_OK);
    assert_int_equal(ask(socket, &request, reply, sizeof reply).status, KVL_ERR_UNSUPPORTED);
    kvl_wire_buffer_free(&request);
    nn_close(socket);
    close(fd);
}

/* ---- garbage ------------------------------------------------------------------------------ */

static uint32_t random_state = 12345;

static uint32_t random_u32(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state;
}

static void test_garbage_bodies_get_a_clear_error(void **state) {
    (void)state;
    struct kvl_attach_reply attached;
    int fd = raw_hello(&daemon_a, &attached), socket = raw_socket(&daemon_a);
    uint8_t reply[65536];
    uint64_t sequence = 0;
    for (uint32_t verb = 1; verb < KVL_VERB_COUNT; verb++) {
        for (uint32_t i = 0; i < 50; i++) {
            struct kvl_wire_buffer request = {0};
            assert_true(sample_request(verb, &request));
            struct kvl_wire_header header = header_for(&attached, (uint16_t)verb, ++sequence);
            struct kvl_wire_buffer real = {0};
            assert_int_equal(kvl_wire_encode(&real, &header, NULL, NULL), KVL_OK);
            memcpy(request.data, real.data, 48); /* all but the length */
            uint64_t body = request.bytes - KVL_WIRE_HEADER_BYTES;
            for (uint32_t flips = 0; flips < 3 && body != 0; flips++)
                request.data[KVL_WIRE_HEADER_BYTES + random_u32() % body] ^=
                    (uint8_t)(1u << random_u32() % 8);
            header = ask(socket, &request, reply, sizeof reply);
            assert_int_equal(header.sequence, sequence);
            kvl_wire_buffer_free(&real);
            kvl_wire_buffer_free(&request);
        }
    }
    nn_close(socket);
    raw_goodbye(fd); /* with leases that garbage got */
    assert_daemon_serves();
}

static void test_messages_that_are_none(void **state) {
    (void)state;
    int socket = raw_socket(&daemon_a);
    uint8_t data[1024], reply[256];
    for (uint32_t i = 0; i < 200; i++) {
        size_t bytes = random_u32() % sizeof data;
        for (size_t at = 0; at < bytes; at++)
            data[at] = (uint8_t)random_u32();
        raw_send(socket, data, bytes);
        struct kvl_wire_header header;
        int got = raw_receive(socket, reply, sizeof reply, 60000);
        assert_int_equal(kvl_wire_decode_header(reply, (uint64_t)got, &header), KVL_OK);
        assert_true(header.status == KVL_ERR_INVALID || header.status == KVL_ERR_VERSION);
    }
    nn_close(socket);
    assert_daemon_serves();
}

static void test_garbage_on_the_attach_socket(void **state) {
    (void)state;
    uint8_t data[2048];
    for (uint32_t i = 0; i < 100; i++) {
        int fd = raw_attach(&daemon_a);
        size_t bytes = 1 + random_u32() % (sizeof data - 1);
        for (size_t at = 0; at < bytes; at++)
            data[at] = (uint8_t)random_u32();
        assert_int_equal(send(fd, data, bytes, 0), bytes);
        assert_true(raw_was_closed(fd));
        close(fd);
    }
    assert_daemon_serves();
}

static uint64_t leases_now(void) {
    struct kvl_client *client = connect_to(&daemon_a, "watcher");
    struct kvl_store_report report;
    assert_int_equal(kvl_stats(client, &report, NULL), KVL_OK);
    kvl_client_close(client);
    return report.leases;
}

static void wait_leases(uint64_t leases) {
    for (int i = 0; i < 3000 && leases_now() != leases; i++)
        usleep(1000);
    assert_int_equal(leases_now(), leases);
}

/* One write lease of a slot without a key, under sequence 1. */
static void take_lease(const struct kvl_attach_reply *attached, int socket) {
    struct kvl_client *client = connect_to(&daemon_a, "names");
    struct kvl_namespace_info info = open_opaque(client);
    kvl_client_close(client);
    struct kvl_key no_key = {{0}};
    struct kvl_wire_chain chain = {.namespace_id = info.id, .count = 1, .keys = &no_key};
    struct kvl_wire_header header = header_for(attached, KVL_VERB_ALLOC, 1);
    struct kvl_wire_buffer request = {0};
    uint8_t reply[512];
    assert_int_equal(kvl_wire_encode(&request, &header, kvl_wire_chain, &chain), KVL_OK);
    do /* AGAIN while the arena is new */
        header = ask(socket, &request, reply, sizeof reply);
    while (header.status == KVL_ERR_AGAIN);
    assert_int_equal(header.status, KVL_OK);
    kvl_wire_buffer_free(&request);
}

/* Anything but a goodbye is a breach: it is served no more, but its process lives and may use its
 * memory, so its leases stay. (These here end with this test's process.) */
static void test_data_after_the_hello_ends_the_client(void **state) {
    (void)state;
    static const struct {
        uint8_t data[KVL_GOODBYE_BYTES + 1];
        size_t bytes;
    } breaches[] = {{"more", 4}, {"KVLG", 4}, {"KVLG\0\0\0", 7}, {"KVLG\0\0\0\0", 9},
        {"KVLG\0\0\0\1", 8}, {"KVLA\0\0\0\0", 8}};
    for (uint32_t i = 0; i < sizeof breaches / sizeof *breaches; i++) {
        struct kvl_attach_reply attached;
        uint8_t reply[256];
        int fd = raw_hello(&daemon_a, &attached), socket = raw_socket(&daemon_a);
        take_lease(&attached, socket);
        assert_int_equal(leases_now(), i + 1);
        assert_int_equal(
            send(fd, breaches[i].data, breaches[i].bytes, 0), (ssize_t)breaches[i].bytes);
        assert_true(raw_was_closed(fd));
        close(fd);
        struct kvl_wire_buffer request = {0};
        struct kvl_wire_header header = header_for(&attached, KVL_VERB_STATS, 2);
        assert_int_equal(kvl_wire_encode(&request, &header, NULL, NULL), KVL_OK);
        assert_int_equal(ask(socket, &request, reply, sizeof reply).status, KVL_ERR_PERM);
        assert_int_equal(leases_now(), i + 1);
        kvl_wire_buffer_free(&request);
        nn_close(socket);
    }
}

/* Also when the daemon finds hello, goodbye and end of file at once, and when its reply was never
 * read (then the connection is reset). */
static void test_goodbyes_are_heard(void **state) {
    (void)state;
    uint64_t before = leases_now();
    struct kvl_attach_reply attached;
    int fd = raw_hello(&daemon_a, &attached), socket = raw_socket(&daemon_a);
    take_lease(&attached, socket);
    assert_int_equal(leases_now(), before + 1);
    raw_goodbye(fd);
    wait_leases(before);
    nn_close(socket);
    uint8_t data[KVL_ATTACH_BYTES_MAX];
    struct kvl_attach_hello hello = {
        .magic = KVL_ATTACH_MAGIC, .version = KVL_WIRE_VERSION, .name = "hasty"};
    uint32_t bytes = kvl_attach_encode_hello(&hello, data);
    for (int i = 0; i < 2000; i++) { /* more than the daemon has places for clients */
        fd = raw_attach(&daemon_a);
        assert_int_equal(send(fd, data, bytes, 0), bytes);
        raw_goodbye(fd);
    }
    wait_leases(before);
}

static void test_a_flood_of_silent_connections(void **state) {
    (void)state;
    int fds[300];
    for (int i = 0; i < 300; i++)
        fds[i] = raw_attach(&daemon_a);
    assert_daemon_serves(); /* who says hello gets in */
    assert_true(raw_was_closed(fds[0]));
    for (int i = 0; i < 300; i++)
        close(fds[i]);
    assert_daemon_serves();
}

/* ---- slow readers ------------------------------------------------------------------------- */

static void test_one_that_never_reads_stalls_nobody(void **state) {
    (void)state;
    struct kvl_attach_reply attached;
    int fd = raw_hello(&daemon_a, &attached), socket = raw_socket(&daemon_a);
    struct kvl_wire_buffer request = {0};
    struct kvl_wire_blob blob = {.bytes = 1u << 20, .data = calloc(1, 1u << 20)};
    assert_non_null(blob.data);
    for (uint64_t sequence = 1; sequence <= 50; sequence++) { /* 50 MiB of replies, unread */
        struct kvl_wire_header header = header_for(&attached, KVL_VERB_PING, sequence);
        assert_int_equal(kvl_wire_encode(&request, &header, kvl_wire_blob, &blob), KVL_OK);
        raw_send(socket, request.data, request.bytes);
    }
    struct kvl_client *client = NULL;
    struct kvl_client_options options = {.address = daemon_a.address, .timeout_ms = 60000};
    assert_int_equal(kvl_client_open(&options, &client, NULL), KVL_OK);
    for (int i = 0; i < 100; i++)
        assert_int_equal(kvl_ping(client, 100), KVL_OK);
    kvl_client_close(client);
    free((void *)(uintptr_t)blob.data);
    kvl_wire_buffer_free(&request);
    nn_close(socket);
    close(fd);
}

/* ---- addresses ---------------------------------------------------------------------------- */

static void test_directories_open_to_others_are_refused(void **state) {
    (void)state;
    struct test_daemon open;
    struct kvl_client *client = NULL;
    struct kvl_errmsg msg = {{0}};
    daemon_init(&open);
    assert_int_equal(chmod(open.directory, 0755), 0);
    assert_false(daemon_start(&open));
    assert_non_null(strstr(open.output, "PERM"));
    assert_non_null(strstr(open.output, "mode 0700"));
    struct kvl_client_options options = {.address = open.address};
    assert_int_equal(kvl_client_open(&options, &client, &msg), KVL_ERR_PERM);
    daemon_remove(&open);
}

static void test_bad_addresses(void **state) {
    (void)state;
    struct kvl_client *client = NULL;
    const struct {
        const char *address;
        kvl_err err;
    } cases[] = {{"", KVL_ERR_INVALID}, {"ipc://", KVL_ERR_INVALID}, {"ipc://x", KVL_ERR_INVALID},
        {"http://x", KVL_ERR_INVALID}, {"inproc://x", KVL_ERR_INVALID},
        {"tcp://127.0.0.1:1", KVL_ERR_INVALID}, /* no secret */
        {"ipc:///nonexistent/x.sock", KVL_ERR_NOTFOUND},
        {"ipc:///tmp/0123456789012345678901234567890123456789012345678901234567890123456789"
         "012345678901234567890123456/x.sock",
            KVL_ERR_TOOBIG}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct kvl_errmsg msg = {{0}};
        struct kvl_client_options options = {.address = cases[i].address};
        assert_int_equal(kvl_client_open(&options, &client, &msg), cases[i].err);
        assert_true(msg.text[0] != 0);
        assert_null(client);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attach_of_another_version),
        cmocka_unit_test(test_request_of_another_version),
        cmocka_unit_test(test_daemon_of_another_version),
        cmocka_unit_test(test_a_repeated_request_is_executed_once),
        cmocka_unit_test(test_strangers_are_refused),
        cmocka_unit_test(test_garbage_bodies_get_a_clear_error),
        cmocka_unit_test(test_messages_that_are_none),
        cmocka_unit_test(test_garbage_on_the_attach_socket),
        cmocka_unit_test(test_a_flood_of_silent_connections),
        cmocka_unit_test(test_one_that_never_reads_stalls_nobody),
        cmocka_unit_test(test_directories_open_to_others_are_refused),
        cmocka_unit_test(test_bad_addresses), cmocka_unit_test(test_goodbyes_are_heard),
        cmocka_unit_test(test_data_after_the_hello_ends_the_client), /* last: it leaves leases */
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
