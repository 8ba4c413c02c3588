/* ipc_bench.c - a lookup of a 1,000-block chain against a plain round trip, alone and by 16 clients
 * at once.
 *
 * Both peers are processes of their own on ipc:// sockets in one directory. The plain peer answers
 * each message with one as long as the daemon's reply; it does nothing else. Rounds of the two
 * alternate, so that noise of the machine meets both. */
#include "ipc_bench.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <nanomsg/nn.h>
#include <nanomsg/reqrep.h>

#include "kvloft.h"
#include "memory/memory_tier.h"
#include "server.h"

#define KEYS 1000u
#define BLOCK_BYTES 4096u
#define ROUNDS 400u
#define PER_ROUND 10u
#define SAMPLES (ROUNDS * PER_ROUND)
#define CLIENTS 16u
#define CROWD_ROUNDS 15u
#define CROWD_US 200000.0
/* What a lookup sends and gets: headers, counts and lists as docs/wire.md has them. */
#define REQUEST_BYTES(keys) (56u + 16u + (keys)*32u)
#define REPLY_BYTES(keys) (56u + 24u + (keys))

static double now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

/* ---- the peers ---------------------------------------------------------------------------- */

static int run_daemon(const char *address) {
    struct kvl_errmsg msg = {{0}};
    struct kvl_store_options options = {0};
    struct kvl_memory_tier_options memory = {.kind = KVL_TIER_DEVICE, .capacity_bytes = 32u << 20};
    struct kvl_store *store = NULL;
    struct kvl_server *server = NULL;
    if (kvl_memory_tier_create(&memory, &options.device, &msg) != KVL_OK ||
        kvl_store_create(&options, &store, &msg) != KVL_OK ||
        kvl_server_create(&(struct kvl_server_options){.address = address, .store = store}, &server,
            &msg) != KVL_OK) {
        fprintf(stderr, "daemon: %s\n", msg.text);
        return 1;
    }
    return kvl_server_run(server) == KVL_OK ? 0 : 1;
}

static int run_plain(const char *address) {
    static uint8_t reply[REPLY_BYTES(KEYS)];
    int socket = nn_socket(AF_SP_RAW, NN_REP);
    if (socket < 0 || nn_bind(socket, address) < 0)
        return 1;
    for (;;) {
        void *request = NULL, *control = NULL;
        struct nn_iovec part = {.iov_base = &request, .iov_len = NN_MSG};
        struct nn_msghdr message = {
            .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = NN_MSG};
        int bytes = nn_recvmsg(socket, &message, 0);
        if (bytes < 0)
            return 1;
        nn_freemsg(request);
        uint32_t keys = ((uint32_t)bytes - REQUEST_BYTES(0)) / 32;
        part = (struct nn_iovec){.iov_base = reply, .iov_len = REPLY_BYTES(keys)};
        if (nn_sendmsg(socket, &message, 0) < 0)
            return 1;
    }
}

static pid_t spawn(int (*run)(const char *address), const char *address) {
    fflush(NULL);
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    _exit(run(address));
}

static void end(pid_t pid) {
    if (pid <= 0)
        return;
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

/* ---- our side ----------------------------------------------------------------------------- */

static int connect_plain(const char *address) {
    int socket = nn_socket(AF_SP_RAW, NN_REQ);
    return socket >= 0 && nn_connect(socket, address) >= 0 ? socket : -1;
}

static double plain_round_trip(int socket, uint32_t keys) {
    static uint8_t request[REQUEST_BYTES(KEYS)] = {1}; /* not the page of zeros */
    const size_t id_bytes = 4;
    _Alignas(struct nn_cmsghdr) uint8_t control[NN_CMSG_SPACE(sizeof(size_t) + 4)] = {0};
    struct nn_cmsghdr header = {
        .cmsg_len = sizeof control, .cmsg_level = PROTO_SP, .cmsg_type = SP_HDR};
    memcpy(control, &header, sizeof header);
    memcpy(control + sizeof header, &id_bytes, sizeof id_bytes);
    control[sizeof header + sizeof id_bytes] = 0x80;
    struct nn_iovec part = {.iov_base = request, .iov_len = REQUEST_BYTES(keys)};
    struct nn_msghdr message = {.msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = control,
        .msg_controllen = sizeof control};
    void *reply = NULL;
    double begin = now_us();
    if (nn_sendmsg(socket, &message, 0) < 0 || nn_recv(socket, &reply, NN_MSG, 0) < 0)
        return -1;
    double took = now_us() - begin;
    nn_freemsg(reply);
    return took;
}

static kvl_err open_client(const char *address, struct kvl_client **client) {
    struct kvl_errmsg msg = {{0}};
    struct kvl_client_options options = {.address = address, .name = "bench"};
    kvl_err err = KVL_ERR_NOTFOUND;
    for (int i = 0; i < 500 && err == KVL_ERR_NOTFOUND; i++) { /* it is just starting */
        err = kvl_client_open(&options, client, &msg);
        if (err == KVL_ERR_NOTFOUND)
            nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    if (err != KVL_OK)
        fprintf(stderr, "%s\n", msg.text);
    return err;
}

static kvl_err store_blocks(struct kvl_client *client, struct kvl_key *keys) {
    static struct kvl_allocated blocks[KEYS];
    static struct kvl_seal seals[KEYS];
    static struct kvl_sealed sealed[KEYS];
    static uint64_t leases[KEYS];
    struct kvl_namespace_request request = {.block_bytes = BLOCK_BYTES, .label = "bench"};
    struct kvl_namespace_info info;
    struct kvl_ticket ticket;
    kvl_err err =
        kvl_key_of_opaque_namespace("bench", BLOCK_BYTES, (struct kvl_bytes){0}, &request.key);
    if (err == KVL_OK)
        err = kvl_client_namespace(client, &request, &info);
    for (uint32_t i = 0; i < KEYS && err == KVL_OK; i++) {
        seals[i] = (struct kvl_seal){.opaque = true};
        memcpy(seals[i].opaque_key, &i, sizeof i);
        err = kvl_key_of_opaque(&info.key, seals[i].opaque_key, &keys[i]);
    }
    if (err == KVL_OK)
        err = kvl_alloc(client, info.id, KVL_TIER_DEVICE, keys, KEYS, false, blocks, &ticket);
    for (uint32_t i = 0; i < KEYS && err == KVL_OK; i++) {
        leases[i] = seals[i].lease = blocks[i].lease;
        err = blocks[i].status == KVL_ALLOC_GRANTED ? KVL_OK : KVL_ERR_NOSPC;
    }
    if (err == KVL_OK)
        err = kvl_seal(client, seals, KEYS, sealed);
    return err == KVL_OK ? kvl_release(client, leases, KEYS, NULL, 0) : err;
}

static kvl_err lookup(
    struct kvl_client *client, const struct kvl_key *keys, uint32_t count, double *took) {
    static uint8_t found[KEYS];
    uint32_t hits = 0;
    double begin = now_us();
    kvl_err err = kvl_lookup(client, keys, count, found, &hits);
    *took = now_us() - begin;
    return err == KVL_OK && hits != count ? KVL_ERR_NOTFOUND : err;
}

/* Sealing goes on behind the seals: until all of them are seen. */
static kvl_err wait_visible(struct kvl_client *client, const struct kvl_key *keys) {
    double took;
    kvl_err err = KVL_ERR_NOTFOUND;
    for (int i = 0; i < 500 && err == KVL_ERR_NOTFOUND; i++) {
        err = lookup(client, keys, KEYS, &took);
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    return err;
}

static kvl_err measure(
    struct kvl_client *client, int plain, struct kvl_key *keys, struct bench_report *report) {
    static double lookups[SAMPLES], trips[SAMPLES];
    kvl_err err = store_blocks(client, keys);
    if (err == KVL_OK)
        err = wait_visible(client, keys);
    for (uint32_t i = 0; i < SAMPLES && err == KVL_OK; i++) {
        uint32_t round = i / PER_ROUND * PER_ROUND;
        if (i == round)
            for (uint32_t k = 0; k < PER_ROUND; k++)
                trips[i + k] = plain_round_trip(plain, KEYS);
        err = trips[i] < 0 ? KVL_ERR_IO : lookup(client, keys, KEYS, &lookups[i]);
    }
    if (err != KVL_OK)
        return err;
    bench_report_add(report, "ipc.lookup_1000.p50", bench_percentile(lookups, SAMPLES, 0.5), "us",
        bench_percentile(trips, SAMPLES, 0.5));
    bench_report_add(report, "ipc.lookup_1000.p99", bench_percentile(lookups, SAMPLES, 0.99), "us",
        bench_percentile(trips, SAMPLES, 0.99));
    return KVL_OK;
}

/* ---- 16 at once ---------------------------------------------------------------------------- */

/* nanomsg does not outlive a fork, so the crowd descends from a process, the conductor, that has
 * never used it. All of them share this. */
struct crowd {
    struct kvl_key keys[KEYS];
    atomic_bool stored; /* keys are set and visible: the conductor may begin */
    atomic_uint ready;
    atomic_bool begun, failed;
    atomic_ullong requests;
    double rates[2][CROWD_ROUNDS], limits[2][CROWD_ROUNDS]; /* by crowd_keys */
};

static const uint32_t crowd_keys[2] = {KEYS, 16};
static struct crowd *crowd;

static void nap(void) {
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

static bool one_request(struct kvl_client *client, int plain, uint32_t keys) {
    double took;
    if (client == NULL)
        return plain_round_trip(plain, keys) >= 0;
    return lookup(client, crowd->keys, keys, &took) == KVL_OK;
}

static int run_one_of_crowd(const char *address, bool is_plain, uint32_t keys) {
    struct kvl_client *client = NULL;
    int plain = -1;
    bool well =
        is_plain ? (plain = connect_plain(address)) >= 0 : open_client(address, &client) == KVL_OK;
    well = well && one_request(client, plain, keys);
    atomic_fetch_add(&crowd->ready, 1);
    while (!atomic_load(&crowd->begun))
        nap();
    uint64_t requests = 0;
    double end_us = now_us() + CROWD_US;
    for (; well && now_us() < end_us; requests++)
        well = one_request(client, plain, keys);
    atomic_fetch_add(&crowd->requests, requests);
    if (!well)
        atomic_store(&crowd->failed, true);
    kvl_client_close(client);
    return well ? 0 : 1;
}

/* Requests a second of all together. */
static double crowd_rate(const char *address, bool is_plain, uint32_t keys) {
    pid_t children[CLIENTS];
    atomic_store(&crowd->ready, 0);
    atomic_store(&crowd->requests, 0);
    atomic_store(&crowd->begun, false);
    for (uint32_t i = 0; i < CLIENTS; i++) {
        children[i] = fork();
        if (children[i] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            _exit(run_one_of_crowd(address, is_plain, keys));
        }
    }
    while (atomic_load(&crowd->ready) < CLIENTS)
        nap();
    atomic_store(&crowd->begun, true);
    for (uint32_t i = 0; i < CLIENTS; i++)
        waitpid(children[i], NULL, 0);
    return (double)atomic_load(&crowd->requests) / CROWD_US * 1e6;
}

static void conduct(const char *daemon_address, const char *plain_address) {
    while (!atomic_load(&crowd->stored))
        nap();
    for (uint32_t i = 0; i < 2; i++)
        for (uint32_t turn = 0; turn < 2 * CROWD_ROUNDS; turn++) {
            const bool is_plain = turn % 4 == 0 || turn % 4 == 3; /* either goes first as often */
            double *rates = is_plain ? crowd->limits[i] : crowd->rates[i];
            rates[turn / 2] =
                crowd_rate(is_plain ? plain_address : daemon_address, is_plain, crowd_keys[i]);
        }
}

static pid_t spawn_conductor(const char *daemon_address, const char *plain_address) {
    crowd = mmap(NULL, sizeof *crowd, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t pid = crowd != MAP_FAILED ? fork() : -1;
    if (pid != 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    conduct(daemon_address, plain_address);
    _exit(atomic_load(&crowd->failed));
}

static kvl_err measure_crowd(pid_t conductor, struct bench_report *report) {
    int status = -1;
    atomic_store(&crowd->stored, true);
    if (waitpid(conductor, &status, 0) != conductor || status != 0)
        return KVL_ERR_IO;
    for (uint32_t i = 0; i < 2; i++) {
        char name[64];
        snprintf(name, sizeof name, "ipc.%u_clients.lookup_%u", CLIENTS, crowd_keys[i]);
        bench_report_add(report, name, bench_percentile(crowd->rates[i], CROWD_ROUNDS, 0.5),
            "req/s", bench_percentile(crowd->limits[i], CROWD_ROUNDS, 0.5));
    }
    return KVL_OK;
}

bool ipc_bench_run(struct bench_report *report) {
    char directory[] = "/tmp/kvl-bench-XXXXXX", daemon_address[64], plain_address[64];
    if (!mkdtemp(directory)) {
        perror(directory);
        return false;
    }
    snprintf(daemon_address, sizeof daemon_address, "ipc://%s/daemon", directory);
    snprintf(plain_address, sizeof plain_address, "ipc://%s/plain", directory);
    pid_t daemon = spawn(run_daemon, daemon_address);
    pid_t peer = spawn(run_plain, plain_address);
    pid_t conductor = spawn_conductor(daemon_address, plain_address);
    struct kvl_client *client = NULL;
    int plain = -1;
    kvl_err err = conductor > 0 ? open_client(daemon_address, &client) : KVL_ERR_NOMEM;
    if (err == KVL_OK)
        err = (plain = connect_plain(plain_address)) >= 0 ? KVL_OK : KVL_ERR_IO;
    if (err == KVL_OK)
        err = measure(client, plain, crowd->keys, report);
    if (err == KVL_OK)
        err = measure_crowd(conductor, report);
    if (err != KVL_OK)
        fprintf(stderr, "bench ipc: %s\n", kvl_err_text(err));
    if (plain >= 0)
        nn_close(plain);
    kvl_client_close(client);
    if (err != KVL_OK)
        end(conductor);
    end(daemon);
    end(peer);
    static const char *const files[] = {"daemon", "daemon.attach", "daemon.lock", "plain"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[64];
        snprintf(path, sizeof path, "%s/%s", directory, files[i]);
        unlink(path);
    }
    rmdir(directory);
    return err == KVL_OK;
}
