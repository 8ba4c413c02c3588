/* tenants_test.c - what a client learns of another tenant: nothing, byte for byte.
 *
 * Each probe is sent twice, on connections of their own: once with keys of blocks that another
 * tenant has, once with keys that nobody has. But for the sequence number the replies are equal. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>
#include <nanomsg/nn.h>

#include "harness.h"
#include "raw.h"
#include "secret.h"

#define BLOCKS 4u

static struct test_daemon daemon_a;

static int setup(void **state) {
    (void)state;
    setenv("KVL_TEST_TENANTS", "1", 1);
    daemon_init(&daemon_a);
    daemon_a.with_disk = true;
    return daemon_start(&daemon_a) ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    daemon_remove(&daemon_a);
    unsetenv("KVL_TEST_TENANTS");
    return 0;
}

/* ---- clients ------------------------------------------------------------------------------ */

static void as(const char *tenant) {
    char secret[64];
    snprintf(secret, sizeof secret, "%s's secret, long enough", tenant);
    setenv("KVLOFT_TENANT", tenant, 1);
    setenv("KVLOFT_SECRET", secret, 1);
}

static struct kvl_client *connect_as(const char *tenant) {
    as(tenant);
    return connect_to(&daemon_a, tenant);
}

struct wire_client {
    struct kvl_attach_reply attached;
    int attach_fd, socket;
    uint64_t sequence;
};

static void open_wire(struct wire_client *client, const char *tenant) {
    char secret[64];
    uint8_t data[KVL_ATTACH_BYTES_MAX];
    struct kvl_attach_hello hello = {
        .magic = KVL_ATTACH_MAGIC, .version = KVL_WIRE_VERSION, .name = "raw", .nonce = {7}};
    snprintf(hello.tenant, sizeof hello.tenant, "%s", tenant);
    int secret_bytes = snprintf(secret, sizeof secret, "%s's secret, long enough", tenant);
    assert_int_equal(kvl_secret_proof((struct kvl_bytes){secret, (uint32_t)secret_bytes},
                         KVL_PROVER_TENANT, hello.nonce, hello.proof),
        KVL_OK);
    client->sequence = 0;
    client->attach_fd = raw_attach(&daemon_a);
    uint32_t bytes = kvl_attach_encode_hello(&hello, data);
    assert_int_equal(send(client->attach_fd, data, bytes, 0), bytes);
    ssize_t got = recv(client->attach_fd, data, sizeof data, 0);
    assert_true(got > 0);
    assert_int_equal(kvl_attach_decode_reply(data, (uint64_t)got, &client->attached), KVL_OK);
    assert_int_equal(client->attached.status, KVL_OK);
    client->socket = raw_socket(&daemon_a);
}

static void close_wire(struct wire_client *client) {
    nn_close(client->socket);
    raw_goodbye(client->attach_fd);
}

/* The reply's bytes, with the sequence and the client's number blanked. */
static uint32_t ask(
    struct wire_client *client, uint16_t verb, void *request, uint8_t *reply, uint32_t room) {
    struct kvl_wire_buffer buffer = {0};
    struct kvl_wire_header header = {.version = KVL_WIRE_VERSION,
        .verb = verb,
        .client = client->attached.client,
        .epoch = client->attached.epoch,
        .sequence = ++client->sequence};
    memcpy(header.token, client->attached.token, sizeof header.token);
    assert_int_equal(
        kvl_wire_encode(&buffer, &header, kvl_wire_verb(verb)->request, request), KVL_OK);
    int got = 0;
    do {
        raw_send(client->socket, buffer.data, buffer.bytes);
        got = raw_receive(client->socket, reply, room, 60000);
        assert_true(got >= (int)KVL_WIRE_HEADER_BYTES);
        usleep(1000);
    } while (reply[8] == KVL_ERR_AGAIN);
    kvl_wire_buffer_free(&buffer);
    memset(reply + 12, 0, 4);
    memset(reply + 40, 0, 8);
    return (uint32_t)got;
}

/* ---- keys --------------------------------------------------------------------------------- */

/* Blocks of acme, and their keys as acme knows them and as the store has them. */
static void store_as_acme(struct kvl_key *outside, struct kvl_key *inside) {
    struct kvl_client *acme = connect_as("acme");
    struct kvl_namespace_info info = open_opaque(acme);
    struct kvl_ticket ticket;
    struct kvl_progress progress;
    uint64_t leases[BLOCKS];
    for (uint32_t i = 0; i < BLOCKS; i++) {
        leases[i] = store_block(acme, &info, i);
        outside[i] = opaque_key(&info, i);
    }
    assert_true(wait_visible(acme, outside, BLOCKS));
    assert_int_equal(kvl_release(acme, leases, BLOCKS, NULL, 0), KVL_OK);
    assert_int_equal(kvl_flush(acme, &ticket), KVL_OK);
    assert_int_equal(kvl_ticket_wait(acme, ticket, UINT32_MAX, 10000, &progress), KVL_OK);
    kvl_client_close(acme);

    struct kvl_client *all = connect_as("ops");
    struct kvl_block_report reports[BLOCKS + 1];
    uint64_t cursor = 0;
    uint32_t count = 0;
    assert_int_equal(kvl_list_blocks(all, &cursor, BLOCKS + 1, reports, &count), KVL_OK);
    assert_int_equal(count, BLOCKS);
    for (uint32_t i = 0; i < BLOCKS; i++)
        inside[i] = reports[i].key;
    kvl_client_close(all);
}

static void absent_keys(struct kvl_key *keys) {
    for (uint32_t i = 0; i < BLOCKS; i++)
        memset(keys[i].bytes, 0xa0 + (int)i, sizeof keys[i].bytes);
}

static uint64_t block_count(const char *tenant) {
    struct kvl_client *client = connect_as(tenant);
    struct kvl_store_report report;
    assert_int_equal(kvl_stats(client, &report, NULL), KVL_OK);
    kvl_client_close(client);
    return report.blocks;
}

/* ---- probes ------------------------------------------------------------------------------- */

struct transcript {
    uint8_t bytes[16][2048];
    uint32_t lengths[16];
    uint32_t count;
};

static uint8_t *probe(
    struct transcript *out, struct wire_client *client, uint16_t verb, void *request) {
    uint8_t *reply = out->bytes[out->count];
    out->lengths[out->count++] = ask(client, verb, request, reply, sizeof out->bytes[0]);
    return reply;
}

/* Every verb that takes keys, and what status says after it. */
static void probe_all(struct transcript *out, const char *tenant, const struct kvl_key *keys) {
    struct wire_client client;
    struct kvl_wire_chain chain = {.target = KVL_TIER_DEVICE, .count = BLOCKS, .keys = keys};
    struct kvl_wire_session session = {.name = "s", .key = keys[0]};
    struct kvl_wire_clear clear = {.scope = KVL_CLEAR_NAMESPACE, .namespace_id = 1};
    memset(out, 0, sizeof *out);
    open_wire(&client, tenant);
    probe(out, &client, KVL_VERB_LOOKUP, &chain);
    probe(out, &client, KVL_VERB_RESTORE, &chain);
    probe(out, &client, KVL_VERB_PREFETCH, &chain);
    chain.target = KVL_TIER_DISK;
    probe(out, &client, KVL_VERB_DEMOTE, &chain);
    /* A demote has its ticket however little it finds: the word's number and use are nobody's. */
    memset(out->bytes[out->count - 1] + KVL_WIRE_HEADER_BYTES, 0, 8);
    chain.flag = true;
    probe(out, &client, KVL_VERB_PIN, &chain);
    chain.flag = false;
    probe(out, &client, KVL_VERB_PIN, &chain);
    chain = (struct kvl_wire_chain){.namespace_id = 1, .count = BLOCKS, .keys = keys};
    probe(out, &client, KVL_VERB_ALLOC, &chain); /* acme's namespace */
    probe(out, &client, KVL_VERB_CLEAR, &clear);
    probe(out, &client, KVL_VERB_SESSION_OPEN, &session);
    session.tail_tokens = 0;
    probe(out, &client, KVL_VERB_SESSION_TAIL, &session);
    probe(out, &client, KVL_VERB_SESSION_DROP, &session);
    uint8_t *stats = probe(out, &client, KVL_VERB_STATS, NULL);
    /* Uptime, and what earlier probes have counted: the difference is compared below. */
    memset(stats + KVL_WIRE_HEADER_BYTES + 3 * sizeof(struct kvl_tier_report) + 8, 0, 8);
    close_wire(&client);
}

static void forget_names(struct transcript *out, const struct kvl_key *keys) {
    /* The session's namespace key is the client's own word, given back. */
    for (uint32_t i = 0; i < out->count; i++)
        for (uint32_t at = 0; at + sizeof keys[0] <= out->lengths[i]; at++)
            if (memcmp(out->bytes[i] + at, keys[0].bytes, sizeof keys[0]) == 0)
                memset(out->bytes[i] + at, 0, sizeof keys[0]);
}

static uint64_t misses(const struct transcript *out) {
    uint64_t value;
    memcpy(&value,
        out->bytes[out->count - 1] + KVL_WIRE_HEADER_BYTES +
            offsetof(struct kvl_tier_report, misses),
        sizeof value);
    return value;
}

static void blank_misses(struct transcript *out) {
    for (uint32_t tier = 0; tier < KVL_TIER_COUNT; tier++)
        memset(out->bytes[out->count - 1] + KVL_WIRE_HEADER_BYTES +
                   tier * sizeof(struct kvl_tier_report) + offsetof(struct kvl_tier_report, misses),
            0, 8);
}

static void blank_times(struct transcript *out) {
    /* SESSION_OPEN and SESSION_DROP: when it was changed, 8 bytes before the name. */
    for (uint32_t i = 8; i <= 10; i += 2)
        memset(out->bytes[i] + KVL_WIRE_HEADER_BYTES + 144, 0, 8);
}

static void assert_same(const struct transcript *a, const struct transcript *b) {
    assert_int_equal(a->count, b->count);
    for (uint32_t i = 0; i < a->count; i++) {
        assert_int_equal(a->lengths[i], b->lengths[i]);
        for (uint32_t at = 0; at < a->lengths[i]; at++)
            if (a->bytes[i][at] != b->bytes[i][at])
                fail_msg(
                    "probe %u differs at byte %u: %u, %u", i, at, a->bytes[i][at], b->bytes[i][at]);
    }
}

static void test_foreign_keys_answer_as_absent_ones(void **state) {
    (void)state;
    static struct transcript first, absent, foreign;
    struct kvl_key outside[BLOCKS], inside[BLOCKS], nobodys[BLOCKS];
    const char *const tenants[] = {"blue", ""};
    store_as_acme(outside, inside);
    absent_keys(nobodys);
    for (uint32_t t = 0; t < 2; t++) {
        /* The default tenant has no salt: for it inside keys are those of acme's blocks, which no
         * client of a tenant is ever told. */
        const struct kvl_key *const sets[] = {outside, t == 0 ? inside : outside};
        for (uint32_t i = 0; i < 2; i++) {
            probe_all(&first, tenants[t], nobodys);
            probe_all(&absent, tenants[t], nobodys);
            probe_all(&foreign, tenants[t], sets[i]);
            assert_int_equal(misses(&foreign) - misses(&absent), misses(&absent) - misses(&first));
            assert_true(misses(&absent) > misses(&first));
            blank_misses(&absent);
            blank_misses(&foreign);
            forget_names(&absent, nobodys);
            forget_names(&foreign, sets[i]);
            blank_times(&absent);
            blank_times(&foreign);
            assert_same(&absent, &foreign);
        }
    }
    assert_int_equal(block_count("acme"), BLOCKS);
}

/* Sealing on top of another tenant's block makes a block of one's own, as on top of any other. */
static void test_foreign_parents_and_keys_can_be_sealed(void **state) {
    (void)state;
    struct kvl_client *acme = connect_as("acme"), *blue = connect_as("blue");
    struct kvl_namespace_info ours = open_opaque(acme), theirs = open_opaque(blue);
    assert_true(kvl_key_equal(&ours.key, &theirs.key)); /* outside they are called the same */
    assert_int_not_equal(ours.id, theirs.id);
    struct kvl_key key = opaque_key(&theirs, 0);
    uint8_t found;
    uint32_t hits = 0;
    assert_int_equal(kvl_lookup(acme, &key, 1, &found, &hits), KVL_OK);
    assert_int_equal(hits, 1);
    uint64_t lease = store_block(blue, &theirs, 0);
    assert_true(wait_visible(blue, &key, 1));
    assert_int_equal(kvl_release(blue, &lease, 1, NULL, 0), KVL_OK);
    struct kvl_ticket ticket;
    struct kvl_progress progress;
    assert_int_equal(kvl_clear(blue, KVL_CLEAR_ALL, 0, NULL, &ticket), KVL_OK);
    assert_int_equal(kvl_ticket_wait(blue, ticket, UINT32_MAX, 10000, &progress), KVL_OK);
    assert_int_equal(progress.values[0], 1);
    assert_int_equal(kvl_lookup(blue, &key, 1, &found, &hits), KVL_OK);
    assert_int_equal(hits, 0);
    assert_int_equal(kvl_lookup(acme, &key, 1, &found, &hits), KVL_OK);
    assert_int_equal(hits, 1);
    /* A ticket is its holder's tenant's. */
    struct kvl_ticket mine;
    assert_int_equal(kvl_flush(acme, &mine), KVL_OK);
    assert_int_equal(kvl_ticket_ask(acme, mine, &progress), KVL_OK);
    assert_int_equal(kvl_ticket_ask(blue, mine, &progress), KVL_ERR_STALE);
    kvl_client_close(acme);
    kvl_client_close(blue);
}

static void test_session_names_cannot_reach_over(void **state) {
    (void)state;
    struct kvl_client *acme = connect_as("acme"), *blue = connect_as("blue");
    struct kvl_key key = {{1}};
    struct kvl_session_info info;
    char longest[256];
    memset(longest, 'x', 255);
    longest[255] = 0;
    assert_int_equal(kvl_session_open(acme, "work", &key, &info), KVL_OK);
    assert_string_equal(info.name, "work");
    assert_int_equal(kvl_session_open(blue, "work", &key, &info), KVL_OK); /* not BUSY */
    assert_int_equal(
        kvl_session_read(blue, "acme/work", 0, 0, NULL, &(uint32_t){0}, &info), KVL_ERR_INVALID);
    assert_int_equal(kvl_session_open(blue, longest, &key, &info), KVL_ERR_INVALID);
    assert_int_equal(kvl_session_open(blue, longest + 5, &key, &info), KVL_OK);
    kvl_client_close(acme);
    kvl_client_close(blue);
    unsetenv("KVLOFT_TENANT");
    unsetenv("KVLOFT_SECRET");
    struct kvl_client *nobody = connect_to(&daemon_a, "nobody");
    assert_int_equal(kvl_session_open(nobody, "acme/work", &key, &info), KVL_ERR_INVALID);
    assert_int_equal(kvl_session_open(nobody, longest, &key, &info), KVL_OK);
    kvl_client_close(nobody);
    struct kvl_client *all = connect_as("ops");
    assert_int_equal(kvl_session_read(all, "acme/work", 0, 0, NULL, &(uint32_t){0}, &info), KVL_OK);
    assert_string_equal(info.name, "acme/work");
    kvl_client_close(all);
}

static void test_a_proof_is_of_the_secret_and_the_nonce(void **state) {
    (void)state;
    struct kvl_client *client = NULL;
    struct kvl_errmsg msg = {{0}};
    const struct kvl_client_options options = {.address = daemon_a.address};
    const char *const names[] = {"acme", "acm", "acmee", "stranger", "blue"};
    for (unsigned i = 0; i < 5; i++) {
        as("acme");
        setenv("KVLOFT_TENANT", names[i], 1);
        kvl_err err = kvl_client_open(&options, &client, &msg);
        assert_int_equal(err, i == 0 ? KVL_OK : KVL_ERR_PERM);
        if (i != 0)
            assert_non_null(strstr(msg.text, "knows no tenant"));
        kvl_client_close(client);
        client = NULL;
    }
    /* A proof under another nonce is none. */
    uint8_t data[KVL_ATTACH_BYTES_MAX];
    static const char secret[] = "acme's secret, long enough";
    struct kvl_attach_hello hello = {
        .magic = KVL_ATTACH_MAGIC, .version = KVL_WIRE_VERSION, .tenant = "acme", .nonce = {1}};
    assert_int_equal(kvl_secret_proof((struct kvl_bytes){secret, sizeof secret - 1},
                         KVL_PROVER_TENANT, hello.nonce, hello.proof),
        KVL_OK);
    for (uint8_t nonce = 1; nonce < 3; nonce++) {
        struct kvl_attach_reply reply;
        int fd = raw_attach(&daemon_a);
        hello.nonce[0] = nonce;
        uint32_t bytes = kvl_attach_encode_hello(&hello, data);
        assert_int_equal(send(fd, data, bytes, 0), bytes);
        ssize_t got = recv(fd, data, sizeof data, 0);
        assert_int_equal(kvl_attach_decode_reply(data, (uint64_t)got, &reply), KVL_OK);
        assert_int_equal(reply.status, nonce == 1 ? KVL_OK : KVL_ERR_PERM);
        close(fd);
    }
}

/* Over tcp; the status of the reply. */
static kvl_err hello_with_nonce(const struct test_daemon *daemon, const char *tenant) {
    char secret[64];
    uint8_t reply[512];
    struct kvl_wire_hello hello = {.name = "raw", .nonce = {9}};
    struct kvl_wire_header header = {
        .version = KVL_WIRE_VERSION, .verb = KVL_VERB_HELLO, .sequence = 1};
    struct kvl_wire_buffer buffer = {0};
    snprintf(hello.tenant, sizeof hello.tenant, "%s", tenant);
    int bytes = snprintf(secret, sizeof secret, "%s's secret, long enough", tenant);
    assert_int_equal(kvl_secret_proof((struct kvl_bytes){secret, (uint32_t)bytes},
                         KVL_PROVER_CLIENT, hello.nonce, hello.proof),
        KVL_OK);
    assert_int_equal(kvl_wire_encode(&buffer, &header, kvl_wire_hello, &hello), KVL_OK);
    int socket = raw_socket(daemon);
    raw_send(socket, buffer.data, buffer.bytes);
    int got = raw_receive(socket, reply, sizeof reply, 60000);
    assert_int_equal(kvl_wire_decode_header(reply, (uint64_t)got, &header), KVL_OK);
    nn_close(socket);
    kvl_wire_buffer_free(&buffer);
    return (kvl_err)header.status;
}

static void test_tenants_come_in_over_tcp_too(void **state) {
    (void)state;
    struct test_daemon remote;
    struct kvl_client *client = NULL;
    struct kvl_errmsg msg = {{0}};
    daemon_init(&remote);
    snprintf(remote.address, sizeof remote.address, "tcp://127.0.0.1:%d",
        20000 + (int)(getpid() % 12000));
    assert_true(daemon_start(&remote)); /* no shared secret: tenants have their own */
    const struct kvl_client_options options = {.address = remote.address, .timeout_ms = 60000};
    struct kvl_tenant_report report;
    as("acme");
    if (kvl_client_open(&options, &client, &msg) != KVL_OK)
        fail_msg("%s", msg.text);
    assert_int_equal(kvl_stats_tenant(client, 0, &report), KVL_OK);
    assert_string_equal(report.name, "acme");
    assert_int_equal(kvl_stats_tenant(client, 1, &report), KVL_ERR_NOTFOUND);
    kvl_client_close(client);
    client = NULL;
    setenv("KVLOFT_TENANT", "blue", 1);
    assert_int_equal(kvl_client_open(&options, &client, &msg), KVL_ERR_PERM);
    assert_non_null(strstr(msg.text, "knows no tenant"));
    unsetenv("KVLOFT_TENANT");
    assert_int_equal(kvl_client_open(&options, &client, &msg), KVL_ERR_PERM);
    /* A repeated hello finds its client, but not for another tenant that has seen the nonce. */
    assert_int_equal(hello_with_nonce(&remote, "acme"), KVL_OK);
    assert_int_equal(hello_with_nonce(&remote, "acme"), KVL_OK);
    assert_int_equal(hello_with_nonce(&remote, "blue"), KVL_ERR_PERM);
    daemon_remove(&remote);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_foreign_keys_answer_as_absent_ones),
        cmocka_unit_test(test_foreign_parents_and_keys_can_be_sealed),
        cmocka_unit_test(test_session_names_cannot_reach_over),
        cmocka_unit_test(test_a_proof_is_of_the_secret_and_the_nonce),
        cmocka_unit_test(test_tenants_come_in_over_tcp_too),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
