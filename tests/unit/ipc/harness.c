#include "harness.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

static char own_folder[] = "/tmp/kvl-ipc-XXXXXX";

static void remove_own_folder(void) {
    rmdir(own_folder); /* empty: a server takes its files away */
}

const char *own_address(void) {
    static char address[64];
    if (address[0] == '\0') {
        assert_non_null(mkdtemp(own_folder));
        snprintf(address, sizeof address, "ipc://%s/d.sock", own_folder);
        assert_int_equal(atexit(remove_own_folder), 0);
    }
    return address;
}

void daemon_init(struct test_daemon *daemon) {
    memset(daemon, 0, sizeof *daemon);
    daemon->device_mib = 8;
    strcpy(daemon->directory, "/tmp/kvl-ipc-XXXXXX");
    assert_non_null(mkdtemp(daemon->directory));
    snprintf(daemon->address, sizeof daemon->address, "ipc://%s/d.sock", daemon->directory);
    snprintf(daemon->disk, sizeof daemon->disk, "%s/disk", daemon->directory);
}

static void exec_daemon(const struct test_daemon *daemon, int out) {
    char device[16];
    snprintf(device, sizeof device, "%d", daemon->device_mib);
    char *argv[] = {(char *)(uintptr_t)KVL_TEST_SERVER, (char *)(uintptr_t)daemon->address, device,
        (char *)(uintptr_t) "8", daemon->with_disk ? (char *)(uintptr_t)daemon->disk : NULL, NULL};
    dup2(out, STDOUT_FILENO);
    execv(argv[0], argv);
    _exit(127);
}

bool daemon_start(struct test_daemon *daemon) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    daemon->pid = fork();
    assert_true(daemon->pid >= 0);
    if (daemon->pid == 0)
        exec_daemon(daemon, ends[1]);
    close(ends[1]);
    FILE *out = fdopen(ends[0], "r");
    assert_non_null(out);
    bool told = fgets(daemon->output, sizeof daemon->output, out) != NULL;
    fclose(out);
    if (told && strcmp(daemon->output, "ready\n") == 0)
        return true;
    waitpid(daemon->pid, NULL, 0);
    daemon->pid = 0;
    return false;
}

static int end_with(struct test_daemon *daemon, int signal_number) {
    int status = -1;
    if (daemon->pid == 0)
        return 0;
    kill(daemon->pid, signal_number);
    waitpid(daemon->pid, &status, 0);
    daemon->pid = 0;
    return status;
}

int daemon_stop(struct test_daemon *daemon) {
    return end_with(daemon, SIGTERM);
}

void daemon_kill(struct test_daemon *daemon) {
    end_with(daemon, SIGKILL);
}

void daemon_remove(struct test_daemon *daemon) {
    char command[128];
    daemon_kill(daemon);
    snprintf(command, sizeof command, "rm -rf '%s'", daemon->directory);
    assert_int_equal(system(command), 0);
}

static struct kvl_client *open_client(const struct kvl_client_options *options) {
    struct kvl_client *client = NULL;
    struct kvl_errmsg msg = {{0}};
    if (kvl_client_open(options, &client, &msg) != KVL_OK)
        fail_msg("%s", msg.text);
    return client;
}

struct kvl_client *connect_to(const struct test_daemon *daemon, const char *name) {
    return open_client(&(struct kvl_client_options){.address = daemon->address, .name = name});
}

struct kvl_client *connect_own(const char *name) {
    return open_client(&(struct kvl_client_options){.address = own_address(),
        .name = name,
        .timeout_ms = 60000,
        .tenant = "",
        .secret_file = ""});
}

struct kvl_namespace_info open_opaque(struct kvl_client *client) {
    struct kvl_namespace_request request = {.block_bytes = TEST_BLOCK_BYTES, .label = "test"};
    struct kvl_namespace_info info;
    assert_int_equal(
        kvl_key_of_opaque_namespace("test", TEST_BLOCK_BYTES, (struct kvl_bytes){0}, &request.key),
        KVL_OK);
    assert_int_equal(kvl_client_namespace(client, &request, &info), KVL_OK);
    return info;
}

static void opaque_name(uint32_t number, uint8_t name[32]) {
    memset(name, 0, 32);
    memcpy(name, &number, sizeof number);
}

struct kvl_key opaque_key(const struct kvl_namespace_info *info, uint32_t number) {
    uint8_t name[32];
    struct kvl_key key;
    opaque_name(number, name);
    assert_int_equal(kvl_key_of_opaque(&info->key, name, &key), KVL_OK);
    return key;
}

void fill_pattern(uint8_t *data, uint32_t number) {
    for (uint32_t i = 0; i < TEST_BLOCK_BYTES; i++)
        data[i] = (uint8_t)(number * 31 + i * 7);
}

bool has_pattern(const uint8_t *data, uint32_t number) {
    uint8_t expected[TEST_BLOCK_BYTES];
    fill_pattern(expected, number);
    return memcmp(expected, data, sizeof expected) == 0;
}

uint64_t store_block(
    struct kvl_client *client, const struct kvl_namespace_info *info, uint32_t number) {
    struct kvl_key key = opaque_key(info, number);
    struct kvl_allocated block;
    struct kvl_ticket ticket;
    assert_int_equal(
        kvl_alloc(client, info->id, KVL_TIER_DEVICE, &key, 1, false, &block, &ticket), KVL_OK);
    assert_int_equal(block.status, KVL_ALLOC_GRANTED);
    fill_pattern(kvl_client_block_writable(client, KVL_TIER_DEVICE, block.offset_bytes), number);
    struct kvl_seal seal = {.lease = block.lease, .opaque = true};
    opaque_name(number, seal.opaque_key);
    struct kvl_sealed sealed;
    assert_int_equal(kvl_seal(client, &seal, 1, &sealed), KVL_OK);
    assert_int_equal(sealed.status, KVL_OK);
    assert_true(kvl_key_equal(&sealed.key, &key));
    return block.lease;
}

bool wait_visible(struct kvl_client *client, const struct kvl_key *keys, uint32_t count) {
    uint8_t found[64];
    uint32_t hits = 0;
    assert_true(count <= sizeof found);
    for (int i = 0; i < 30000; i++) {
        assert_int_equal(kvl_lookup(client, keys, count, found, &hits), KVL_OK);
        if (hits == count)
            return true;
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    return false;
}
