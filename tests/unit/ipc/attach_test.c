/* attach_test.c - what a client learns of arenas: those it maps, those of a GPU, those it does not
 * know. The GPU's is a memfd that says otherwise and has no addresses in the daemon. */
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "address.h"
#include "harness.h"
#include "memory/memory_tier.h"
#include "server.h"
#include "ticket.h"
#include "wire.h"

#define DEVICE_BYTES (8u << 20)

struct world {
    struct kvl_tier *device, *host;
    const struct kvl_tier_ops *device_ops; /* the memory tier's own */
    struct kvl_tier_ops gpu_ops;
    struct kvl_store *store;
    struct kvl_server *server;
    pthread_t thread;
};

static void *serve(void *arg) {
    struct world *world = arg;
    return (void *)(intptr_t)kvl_server_run(world->server);
}

static uint8_t *no_address(struct kvl_tier *tier, uint64_t location) {
    (void)tier;
    (void)location;
    return NULL;
}

static void describe_gpu(struct kvl_tier *tier, struct kvl_arena_info *out) {
    (void)tier;
    out->memory = KVL_ARENA_CUDA;
    memset(out->device_uuid, 0x5a, sizeof out->device_uuid);
}

static struct kvl_tier *memory_tier(enum kvl_tier_kind kind) {
    const struct kvl_memory_tier_options options = {.kind = kind, .capacity_bytes = DEVICE_BYTES};
    struct kvl_tier *tier = NULL;
    assert_int_equal(kvl_memory_tier_create(&options, &tier, NULL), KVL_OK);
    return tier;
}

static void start(struct world *world, bool gpu) {
    struct kvl_errmsg msg = {{0}};
    *world =
        (struct world){.device = memory_tier(KVL_TIER_DEVICE), .host = memory_tier(KVL_TIER_HOST)};
    world->device_ops = world->device->ops;
    world->gpu_ops = *world->device_ops;
    world->gpu_ops.address = no_address;
    world->gpu_ops.describe_arena = describe_gpu;
    if (gpu)
        world->device->ops = &world->gpu_ops;
    const struct kvl_store_options store = {.device = world->device, .host = world->host};
    assert_int_equal(kvl_store_create(&store, &world->store, &msg), KVL_OK);
    const struct kvl_server_options server = {.address = own_address(), .store = world->store};
    assert_int_equal(kvl_server_create(&server, &world->server, &msg), KVL_OK);
    assert_int_equal(pthread_create(&world->thread, NULL, serve, world), 0);
}

static void stop(struct world *world) {
    kvl_server_stop(world->server);
    pthread_join(world->thread, NULL);
    kvl_server_destroy(world->server);
    assert_int_equal(kvl_store_drain(world->store, UINT64_MAX), KVL_OK);
    kvl_store_destroy(world->store);
    world->host->ops->deinit(world->host);
    world->device->ops->deinit(world->device);
}

static void arenas_of_the_cpu_are_mapped_and_keep_their_descriptor(void **state) {
    (void)state;
    struct world world;
    start(&world, false);
    struct kvl_client *client = connect_own("engine");
    struct kvl_arena_info info;
    const struct kvl_arena_info no_info = {0};
    int fd = -1;
    for (int tier = KVL_TIER_DEVICE; tier <= KVL_TIER_HOST; tier++) {
        assert_int_equal(kvl_client_arena(client, (enum kvl_tier_kind)tier, &info, &fd), KVL_OK);
        assert_int_equal(info.memory, KVL_ARENA_MEMFD);
        assert_int_equal(info.bytes, DEVICE_BYTES);
        assert_memory_equal(info.device_uuid, no_info.device_uuid, sizeof info.device_uuid);
        assert_int_equal(lseek(fd, 0, SEEK_END), DEVICE_BYTES); /* it is open */
        assert_non_null(kvl_client_block(client, (enum kvl_tier_kind)tier, DEVICE_BYTES - 1));
        assert_null(kvl_client_block(client, (enum kvl_tier_kind)tier, DEVICE_BYTES));
    }
    assert_int_equal(kvl_client_arena(client, KVL_TIER_DISK, &info, &fd), KVL_ERR_NOTFOUND);
    assert_int_equal(
        kvl_client_arena(client, (enum kvl_tier_kind)77, &info, &fd), KVL_ERR_NOTFOUND);
    assert_int_equal(fd, -1);
    assert_null(kvl_client_block(client, (enum kvl_tier_kind)77, 0));
    kvl_client_close(client);
    stop(&world);
}

static bool is_open(int fd) {
    return fcntl(fd, F_GETFD) >= 0;
}

/* Where they are not, no huge page of an arena maps as one. */
static void arenas_are_mapped_at_huge_pages(void **state) {
    (void)state;
    const uintptr_t huge_page_bytes = 2 << 20;
    struct world world;
    start(&world, false);
    struct kvl_client *client = connect_own("engine");
    for (enum kvl_tier_kind tier = KVL_TIER_DEVICE; tier <= KVL_TIER_HOST; tier++) {
        assert_int_equal((uintptr_t)kvl_client_block(client, tier, 0) % huge_page_bytes, 0);
        assert_int_equal(
            (uintptr_t)kvl_client_block_writable(client, tier, 0) % huge_page_bytes, 0);
    }
    kvl_client_close(client);
    stop(&world);
}

/* A GPU's memory stays allocated as long as anybody has a descriptor of it. */
static void a_gpus_descriptor_is_closed_when_the_daemon_is_lost(void **state) {
    (void)state;
    struct world world;
    start(&world, true);
    struct kvl_client *client = connect_own("engine");
    struct kvl_arena_info info;
    int gpu_fd = -1, host_fd = -1, fd;
    assert_int_equal(kvl_client_arena(client, KVL_TIER_DEVICE, &info, &gpu_fd), KVL_OK);
    assert_int_equal(kvl_client_arena(client, KVL_TIER_HOST, &info, &host_fd), KVL_OK);
    assert_true(is_open(gpu_fd) && is_open(host_fd));
    stop(&world);
    assert_false(kvl_client_is_connected(client));
    assert_false(is_open(gpu_fd));
    assert_true(is_open(host_fd));
    assert_int_equal(kvl_client_arena(client, KVL_TIER_DEVICE, &info, &fd), KVL_ERR_CLOSED);
    assert_int_equal(fd, -1);
    assert_int_equal(kvl_client_arena(client, KVL_TIER_HOST, &info, &fd), KVL_OK);
    assert_int_equal(fd, host_fd);
    kvl_client_close(client);
}

/* The engine maps the descriptor by itself; the daemon hashes without an address. */
static void a_gpus_arena_is_handed_out_and_not_mapped(void **state) {
    (void)state;
    struct world world;
    start(&world, true);
    struct kvl_client *client = connect_own("engine");
    struct kvl_arena_info info;
    int fd = -1;
    assert_int_equal(kvl_client_arena(client, KVL_TIER_DEVICE, &info, &fd), KVL_OK);
    assert_int_equal(info.memory, KVL_ARENA_CUDA);
    assert_int_equal(info.bytes, DEVICE_BYTES);
    for (size_t i = 0; i < sizeof info.device_uuid; i++)
        assert_int_equal(info.device_uuid[i], 0x5a);
    assert_int_equal(kvl_client_arena_bytes(client, KVL_TIER_DEVICE), DEVICE_BYTES);
    assert_null(kvl_client_block(client, KVL_TIER_DEVICE, 0));
    assert_null(kvl_client_block_writable(client, KVL_TIER_DEVICE, 4096));
    assert_non_null(kvl_client_block(client, KVL_TIER_HOST, 0));

    uint8_t *mine = mmap(NULL, info.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(mine, MAP_FAILED);
    struct kvl_namespace_info space = open_opaque(client);
    struct kvl_key key = opaque_key(&space, 0);
    struct kvl_allocated block;
    struct kvl_ticket ticket;
    assert_int_equal(
        kvl_alloc(client, space.id, KVL_TIER_DEVICE, &key, 1, false, &block, &ticket), KVL_OK);
    fill_pattern(mine + block.offset_bytes, 9);
    const struct kvl_seal seal = {.lease = block.lease, .opaque = true};
    struct kvl_sealed sealed;
    assert_int_equal(kvl_seal(client, &seal, 1, &sealed), KVL_OK);
    assert_int_equal(sealed.status, KVL_OK);
    assert_true(wait_visible(client, &key, 1));
    struct kvl_restored restored;
    struct kvl_restore_result result;
    struct kvl_progress progress;
    assert_int_equal(kvl_restore(client, KVL_TIER_HOST, &key, 1, &restored, &result), KVL_OK);
    assert_int_equal(result.count, 1);
    if (result.ticket.generation != 0)
        assert_int_equal(
            kvl_ticket_wait(client, result.ticket, UINT32_MAX, 10000, &progress), KVL_OK);
    assert_true(has_pattern(kvl_client_block(client, KVL_TIER_HOST, restored.offset_bytes), 9));
    munmap(mine, info.bytes);
    kvl_client_close(client);
    stop(&world);
}

/* As a daemon does, with arenas of a page. */
static void answer(int fd, const struct kvl_attach_reply *reply) {
    int fds[2];
    uint8_t data[KVL_ATTACH_BYTES_MAX];
    struct kvl_attach_reply copy = *reply;
    union {
        struct cmsghdr header;
        uint8_t bytes[CMSG_SPACE(sizeof fds)];
    } control = {0};
    fds[0] = memfd_create("arena", MFD_CLOEXEC);
    fds[1] = memfd_create("words", MFD_CLOEXEC);
    assert_true(fds[0] >= 0 && ftruncate(fds[0], 4096) == 0);
    assert_true(fds[1] >= 0 && ftruncate(fds[1], 4096) == 0);
    struct iovec part = {.iov_base = data, .iov_len = kvl_attach_encode_reply(&copy, data)};
    struct msghdr message = {.msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = &control,
        .msg_controllen = sizeof control};
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    *rights = (struct cmsghdr){
        .cmsg_len = CMSG_LEN(sizeof fds), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(rights), fds, sizeof fds);
    assert_int_equal(sendmsg(fd, &message, 0), (ssize_t)part.iov_len);
    close(fds[0]);
    close(fds[1]);
}

struct opening {
    struct kvl_client *client;
    struct kvl_errmsg msg;
    kvl_err err;
};

static void *open_client(void *arg) {
    struct opening *opening = arg;
    const struct kvl_client_options options = {
        .address = own_address(), .timeout_ms = 60000, .tenant = "", .secret_file = ""};
    opening->err = kvl_client_open(&options, &opening->client, &opening->msg);
    return NULL;
}

/* What a client says of a daemon that answers with this reply. */
static kvl_err attach_to(const struct kvl_attach_reply *reply, struct kvl_errmsg *msg) {
    struct kvl_address address;
    assert_int_equal(kvl_address_parse(own_address(), &address, NULL), KVL_OK);
    const struct sockaddr_un where = kvl_address_attach_sockaddr(&address);
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(listener, (const struct sockaddr *)&where, sizeof where), 0);
    assert_int_equal(listen(listener, 1), 0);
    struct opening opening = {0};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, open_client, &opening), 0);
    struct pollfd poller = {.fd = listener, .events = POLLIN};
    assert_int_equal(poll(&poller, 1, 60000), 1);
    int fd = accept(listener, NULL, NULL);
    assert_true(fd >= 0);
    answer(fd, reply);
    pthread_join(thread, NULL);
    assert_null(opening.client);
    close(fd);
    close(listener);
    unlink(where.sun_path);
    *msg = opening.msg;
    return opening.err;
}

static int open_fds(void) {
    int count = 0;
    for (int fd = 0; fd < 256; fd++)
        count += lseek(fd, 0, SEEK_CUR) >= 0; /* files: arenas are such */
    return count;
}

static void an_arena_of_unknown_memory_is_refused_with_a_reason(void **state) {
    (void)state;
    struct kvl_errmsg msg = {{0}};
    struct kvl_attach_reply reply = {.magic = KVL_ATTACH_MAGIC,
        .version = KVL_WIRE_VERSION,
        .client = 1,
        .epoch = 7,
        .ticket_words = 4096 / sizeof(struct kvl_completion),
        .arena_count = 1,
        .arenas = {{.kind = KVL_TIER_DEVICE, .memory = 77, .bytes = 4096}}};
    int before = open_fds();
    assert_int_equal(attach_to(&reply, &msg), KVL_ERR_UNSUPPORTED);
    assert_non_null(strstr(msg.text, "of a kind (77) that this library does not know"));
    reply.arenas[0].memory = KVL_ARENA_CUDA; /* without a GPU's name */
    assert_int_equal(attach_to(&reply, &msg), KVL_ERR_INVALID);
    reply.arenas[0].memory = KVL_ARENA_MEMFD;
    reply.arenas[0].bytes = 8192; /* more than the file has */
    assert_int_equal(attach_to(&reply, &msg), KVL_ERR_INVALID);
    assert_int_equal(open_fds(), before);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arenas_of_the_cpu_are_mapped_and_keep_their_descriptor),
        cmocka_unit_test(arenas_are_mapped_at_huge_pages),
        cmocka_unit_test(a_gpus_arena_is_handed_out_and_not_mapped),
        cmocka_unit_test(a_gpus_descriptor_is_closed_when_the_daemon_is_lost),
        cmocka_unit_test(an_arena_of_unknown_memory_is_refused_with_a_reason),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
