/* client_fuzz.c - what a daemon may answer, at the attach socket and to every call, to the real
 * client library over ipc: each call ends with a status, and what it gives out can be read.
 *
 *   u8 flags | u8 attach bytes | those |
 *   repeated: u8 call | u16le status | u16le body bytes | body
 *
 * The daemon here are two threads: one accepts at the attach socket, the other answers each request
 * with the body given, its header right but for the status. FLAG_ATTACH: the bytes are the reply of
 * the attach socket. */
#include <nanomsg/nn.h>
#include <nanomsg/reqrep.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "kvloft.h"
#include "ticket.h"
#include "wire.h"

#define FLAG_ATTACH 1u
#define ARENA_BYTES 16384u
#define WORDS 4u
#define ITEMS 2u /* as many as the samples have */
#define TIMEOUT_MS 2000u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes);

struct input {
    const uint8_t *at;
    size_t left;
};

static volatile uint64_t sink; /* keeps the reads */

static void need(bool is_so) {
    if (!is_so)
        abort();
}

static uint32_t take(struct input *input, unsigned bytes) {
    uint32_t value = 0;
    for (unsigned i = 0; i < bytes && input->left > 0; i++, input->left--)
        value |= (uint32_t)*input->at++ << (8 * i);
    return value;
}

static struct input take_part(struct input *input, uint32_t bytes) {
    struct input part = {input->at, bytes < input->left ? bytes : input->left};
    input->at += part.left;
    input->left -= part.left;
    return part;
}

static void read_all(const void *bytes, size_t count_bytes) {
    for (size_t i = 0; i < count_bytes; i++)
        sink += ((const uint8_t *)bytes)[i];
}

/* ---- the daemon ------------------------------------------------------------------------------ */

/* What it answers: set before a call. A call that is answered AGAIN asks again, and is refused. */
static struct {
    pthread_mutex_t lock;
    char directory[32], address[64];
    int socket, listener;
    struct input attach;
    uint32_t status;
    struct input body;
    bool used_up;
} answer = {.lock = PTHREAD_MUTEX_INITIALIZER};

static uint64_t encode_answer(const struct kvl_wire_header *request, struct kvl_wire_buffer *out) {
    struct kvl_wire_header header = *request;
    struct kvl_wire_hello_reply hello = {.client = 1, .epoch = request->epoch};
    if (request->verb == KVL_VERB_HELLO) {
        header.status = KVL_OK;
        need(kvl_wire_encode(out, &header, kvl_wire_hello_reply, &hello) == KVL_OK);
        return out->bytes;
    }
    uint32_t body_bytes = answer.used_up ? 0 : (uint32_t)answer.body.left;
    header.status = answer.used_up ? KVL_ERR_INVALID : answer.status;
    answer.used_up = true;
    need(kvl_wire_encode(out, &header, NULL, NULL) == KVL_OK);
    memcpy(out->data + 48, &body_bytes, sizeof body_bytes);
    if (body_bytes > 0)
        memcpy(out->data + KVL_WIRE_HEADER_BYTES, answer.body.at, body_bytes);
    return KVL_WIRE_HEADER_BYTES + body_bytes;
}

static void *serve(void *unused) {
    static uint8_t message[KVL_WIRE_HEADER_BYTES + UINT16_MAX];
    struct kvl_wire_buffer buffer = {.data = message, .capacity = sizeof message};
    (void)unused;
    for (;;) {
        void *request;
        struct kvl_wire_header header;
        int bytes = nn_recv(answer.socket, &request, NN_MSG, 0);
        if (bytes < 0)
            continue;
        need(kvl_wire_decode_header(request, (uint64_t)bytes, &header) == KVL_OK);
        nn_freemsg(request);
        pthread_mutex_lock(&answer.lock);
        uint64_t answer_bytes = encode_answer(&header, &buffer);
        pthread_mutex_unlock(&answer.lock);
        if (nn_send(answer.socket, message, answer_bytes, 0) < 0)
            continue; /* the client has gone meanwhile */
    }
    return NULL;
}

/* ---- attaching ------------------------------------------------------------------------------- */

static int make_file(uint64_t bytes) {
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    need(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
    return fd;
}

static struct input sound_reply(uint8_t data[KVL_ATTACH_BYTES_MAX]) {
    struct kvl_attach_reply reply = {.magic = KVL_ATTACH_MAGIC,
        .version = KVL_WIRE_VERSION,
        .client = 1,
        .epoch = 7,
        .ticket_words = WORDS,
        .arena_count = 2,
        .arenas = {{.kind = KVL_TIER_DEVICE, .bytes = ARENA_BYTES},
            {.kind = KVL_TIER_HOST, .bytes = ARENA_BYTES}}};
    uint32_t bytes = kvl_attach_encode_reply(&reply, data);
    return (struct input){data, bytes};
}

static void send_attach_reply(int fd, struct input reply) {
    static int fds[3];
    union {
        struct cmsghdr header;
        uint8_t bytes[CMSG_SPACE(sizeof fds)];
    } control = {0};
    struct iovec part = {.iov_base = (void *)(uintptr_t)reply.at, .iov_len = reply.left};
    struct msghdr message = {.msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = &control,
        .msg_controllen = sizeof control};
    if (fds[0] == 0) {
        fds[0] = make_file(ARENA_BYTES);
        fds[1] = make_file(ARENA_BYTES);
        fds[2] = make_file(WORDS * sizeof(struct kvl_completion));
    }
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    *rights = (struct cmsghdr){
        .cmsg_len = CMSG_LEN(sizeof fds), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(rights), fds, sizeof fds);
    need(sendmsg(fd, &message, MSG_NOSIGNAL) == (ssize_t)reply.left);
}

static void *accept_all(void *unused) {
    uint8_t hello[KVL_ATTACH_BYTES_MAX];
    int connection = -1;
    (void)unused;
    for (;;) {
        int fd = accept4(answer.listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            continue;
        if (connection >= 0)
            close(connection); /* its client is gone: there is one at a time */
        connection = fd;
        pthread_mutex_lock(&answer.lock);
        uint8_t reply[UINT8_MAX + 1];
        size_t reply_bytes = answer.attach.left;
        memcpy(reply, answer.attach.at, reply_bytes); /* the input goes as soon as it is answered */
        pthread_mutex_unlock(&answer.lock);
        if (recv(fd, hello, sizeof hello, 0) > 0)
            send_attach_reply(fd, (struct input){reply, reply_bytes});
    }
    return NULL;
}

static void start_thread(void *(*run)(void *)) {
    pthread_t thread;
    need(pthread_create(&thread, NULL, run, NULL) == 0);
    pthread_detach(thread);
}

static void remove_files(void) {
    char path[80];
    snprintf(path, sizeof path, "%s/d.attach", answer.directory);
    unlink(path);
    snprintf(path, sizeof path, "%s/d", answer.directory);
    unlink(path);
    rmdir(answer.directory);
}

static void start_daemon(void) {
    struct sockaddr_un where = {.sun_family = AF_UNIX};
    snprintf(answer.directory, sizeof answer.directory, "/tmp/kvl-fuzz-XXXXXX");
    need(mkdtemp(answer.directory) != NULL);
    snprintf(answer.address, sizeof answer.address, "ipc://%s/d", answer.directory);
    snprintf(where.sun_path, sizeof where.sun_path, "%s/d.attach", answer.directory);
    atexit(remove_files);
    answer.listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    need(answer.listener >= 0);
    need(bind(answer.listener, (const struct sockaddr *)&where, sizeof where) == 0);
    need(listen(answer.listener, 1) == 0);
    answer.socket = nn_socket(AF_SP, NN_REP);
    need(answer.socket >= 0 && nn_bind(answer.socket, answer.address) >= 0);
    start_thread(serve);
    start_thread(accept_all);
}

static struct kvl_client *attach(struct input *input) {
    static uint8_t data[KVL_ATTACH_BYTES_MAX];
    uint32_t flags = take(input, 1);
    struct input given = take_part(input, take(input, 1));
    bool sound = (flags & FLAG_ATTACH) == 0;
    struct kvl_client *client = NULL;
    struct kvl_errmsg msg = {{0}};
    pthread_mutex_lock(&answer.lock);
    answer.attach = sound ? sound_reply(data) : given;
    pthread_mutex_unlock(&answer.lock);
    struct kvl_client_options options = {
        .address = answer.address, .name = "fuzz", .timeout_ms = TIMEOUT_MS};
    kvl_err err = kvl_client_open(&options, &client, &msg);
    need(err == KVL_OK ? client != NULL : client == NULL && msg.text[0] != 0);
    need(err == KVL_OK || !sound);
    return client;
}

/* ---- calls ----------------------------------------------------------------------------------- */

static const struct kvl_key keys[ITEMS] = {{{1}}, {{2}}};
static const uint32_t tokens[ITEMS] = {1, 2};
static const struct kvl_seal seals[ITEMS] = {
    {.lease = 1, .tokens = tokens, .token_count = ITEMS}, {.lease = 2, .opaque = true}};

/* Large enough for every list. */
union results {
    uint8_t found[ITEMS];
    struct kvl_restored restored[ITEMS];
    struct kvl_allocated allocated[ITEMS];
    struct kvl_sealed sealed[ITEMS];
    struct kvl_block_report blocks[ITEMS];
    struct kvl_event events[ITEMS];
    uint32_t tokens[ITEMS];
    struct kvl_namespace_info namespace_info;
    struct kvl_session_info session;
    struct kvl_client_report client;
    struct kvl_store_report report;
    struct kvl_progress progress;
    char text[32];
};

/* What was attached can be looked at, and a GPU's memory is out of the CPU's reach. */
static void use_arenas(struct kvl_client *client) {
    for (int tier = 0; tier < KVL_TIER_COUNT; tier++) {
        struct kvl_arena_info info;
        int fd;
        if (kvl_client_arena(client, (enum kvl_tier_kind)tier, &info, &fd) != KVL_OK)
            continue;
        const uint8_t *block = kvl_client_block(client, (enum kvl_tier_kind)tier, 0);
        need(fd >= 0 && info.bytes != 0 && (block != NULL) == (info.memory == KVL_ARENA_MEMFD));
        sink += block != NULL ? *block : 0;
    }
}

static void use_restored(struct kvl_client *client, const union results *out, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *block = kvl_client_block(
            client, (enum kvl_tier_kind)out->restored[i].found_tier, out->restored[i].offset_bytes);
        sink += block != NULL ? *block : 0;
    }
}

static kvl_err call_blocks(struct kvl_client *client, uint32_t call, union results *out) {
    static const struct kvl_namespace_request request = {.block_bytes = 4096, .label = "fuzz"};
    struct kvl_restore_result result = {0};
    struct kvl_ticket ticket = {0};
    struct kvl_progress progress;
    uint32_t count = 0;
    kvl_err err;
    switch (call) {
    case 0:
        return kvl_client_namespace(client, &request, &out->namespace_info);
    case 1:
        return kvl_client_namespace_at(client, 0, &out->namespace_info);
    case 2:
        err = kvl_lookup(client, keys, ITEMS, out->found, &count);
        need(count <= ITEMS);
        return err;
    case 3:
        err = kvl_restore(client, KVL_TIER_DEVICE, keys, ITEMS, out->restored, &result);
        need(result.count <= ITEMS);
        use_restored(client, out, result.count);
        break;
    case 4:
        err = kvl_prefetch(client, KVL_TIER_HOST, keys, ITEMS, &result.ticket);
        break;
    case 5:
        err = kvl_alloc(
            client, 1, KVL_TIER_DEVICE, keys, ITEMS, true, out->allocated, &result.ticket);
        break;
    case 6:
        return kvl_seal(client, seals, ITEMS, out->sealed);
    case 7:
        return kvl_release(client, (const uint64_t[]){1, 2}, 2, &ticket, 1);
    default:
        return kvl_pin(client, keys, ITEMS, true, &count);
    }
    if (err == KVL_OK)
        err = kvl_ticket_wait(client, result.ticket, UINT32_MAX, 0, &progress);
    return err;
}

static kvl_err call_sessions(struct kvl_client *client, uint32_t call, union results *out) {
    struct kvl_session_info info;
    uint32_t count = 0;
    kvl_err err;
    switch (call) {
    case 0:
        return kvl_session_open(client, "name", &keys[0], &out->session);
    case 1:
        err = kvl_session_read(client, "name", 0, ITEMS, out->tokens, &count, &info);
        need(count <= ITEMS);
        return err;
    case 2:
        return kvl_session_append(client, "name", 0, tokens, ITEMS);
    case 3:
        return kvl_session_tail(client, "name", &keys[0], 3);
    case 4:
        return kvl_session_close(client, "name");
    case 5:
        return kvl_session_drop(client, "name", &out->session);
    default:
        return kvl_session_at(client, 0, &out->session);
    }
}

static kvl_err call_operations(struct kvl_client *client, uint32_t call, union results *out) {
    struct kvl_daemon_info daemon;
    struct kvl_ticket ticket = {0};
    uint64_t cursor = 0;
    uint32_t count = 0;
    kvl_err err;
    switch (call) {
    case 0:
        return kvl_clear(client, KVL_CLEAR_SESSION, 0, "name", &ticket);
    case 1:
        return kvl_flush(client, &ticket);
    case 2:
        return kvl_ticket_ask(client, ticket, &out->progress);
    case 3:
        return kvl_stats(client, &out->report, &daemon);
    case 4:
        return kvl_stats_client(client, 0, &out->client);
    case 5:
        err = kvl_stats_warning(client, 0, out->text, sizeof out->text);
        need(err != KVL_OK || memchr(out->text, 0, sizeof out->text) != NULL);
        return err;
    case 6:
        err = kvl_list_blocks(client, &cursor, ITEMS, out->blocks, &count);
        need(count <= ITEMS);
        return err;
    case 7:
        err = kvl_events(client, 0, ITEMS, out->events, &count, &cursor);
        need(count <= ITEMS);
        return err;
    default:
        return kvl_ping(client, 100);
    }
}

static void on_alloc(void *arg, kvl_err err, const struct kvl_allocated *blocks, uint32_t count,
    struct kvl_ticket ticket) {
    (void)ticket;
    need(err == KVL_OK ? count == ITEMS : count == 0);
    read_all(blocks, count * sizeof *blocks);
    ++*(uint32_t *)arg;
}

static void on_seal(void *arg, kvl_err err, const struct kvl_sealed *sealed, uint32_t count) {
    need(err == KVL_OK ? count == ITEMS : count == 0);
    read_all(sealed, count * sizeof *sealed);
    ++*(uint32_t *)arg;
}

static kvl_err call_asynchronously(struct kvl_client *client, uint32_t call) {
    uint32_t ended = 0;
    kvl_err err =
        call == 0 ? kvl_alloc_async(client, 1, KVL_TIER_HOST, keys, ITEMS, false, on_alloc, &ended)
                  : kvl_seal_async(client, seals, ITEMS, on_seal, &ended);
    uint32_t accepted = err == KVL_OK;
    if (accepted)
        err = kvl_client_drain(client);
    need(ended == accepted);
    return err;
}

static void call(struct kvl_client *client, uint32_t number) {
    union results out;
    kvl_err err;
    memset(&out, 0, sizeof out);
    if (number < 9)
        err = call_blocks(client, number, &out);
    else if (number < 16)
        err = call_sessions(client, number - 9, &out);
    else if (number < 25)
        err = call_operations(client, number - 16, &out);
    else
        err = call_asynchronously(client, number - 25);
    sink += (uint64_t)err;
    read_all(&out, sizeof out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes) {
    static bool started;
    struct input input = {data, data_bytes};
    if (!started)
        start_daemon();
    started = true;
    struct kvl_client *client = attach(&input);
    if (client != NULL)
        use_arenas(client);
    while (client != NULL && input.left >= 5) {
        uint32_t number = take(&input, 1) % 27;
        uint32_t status = take(&input, 2);
        struct input body = take_part(&input, take(&input, 2));
        pthread_mutex_lock(&answer.lock);
        answer.status = status;
        answer.body = body;
        answer.used_up = false;
        pthread_mutex_unlock(&answer.lock);
        call(client, number);
    }
    kvl_client_close(client);
    return 0;
}
