#include "raw.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>
#include <nanomsg/nn.h>
#include <nanomsg/reqrep.h>
#include <poll.h>

#include "address.h"

int raw_attach(const struct test_daemon *daemon) {
    struct kvl_address address;
    assert_int_equal(kvl_address_parse(daemon->address, &address, NULL), KVL_OK);
    const struct sockaddr_un where = kvl_address_attach_sockaddr(&address);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&where, sizeof where), 0);
    return fd;
}

int raw_hello(const struct test_daemon *daemon, struct kvl_attach_reply *reply) {
    int fd = raw_attach(daemon);
    uint8_t data[KVL_ATTACH_BYTES_MAX];
    struct kvl_attach_hello hello = {
        .magic = KVL_ATTACH_MAGIC, .version = KVL_WIRE_VERSION, .name = "raw"};
    uint32_t bytes = kvl_attach_encode_hello(&hello, data);
    assert_int_equal(send(fd, data, bytes, 0), bytes);
    ssize_t got = recv(fd, data, sizeof data, 0); /* without room for descriptors: dropped */
    assert_true(got > 0);
    assert_int_equal(kvl_attach_decode_reply(data, (uint64_t)got, reply), KVL_OK);
    assert_int_equal(reply->status, KVL_OK);
    return fd;
}

void raw_goodbye(int fd) {
    uint8_t data[KVL_GOODBYE_BYTES];
    kvl_attach_encode_goodbye(data);
    assert_int_equal(send(fd, data, sizeof data, 0), sizeof data);
    close(fd);
}

int raw_socket(const struct test_daemon *daemon) {
    int socket = nn_socket(AF_SP_RAW, NN_REQ);
    int all = -1;
    assert_true(socket >= 0);
    assert_int_equal(nn_setsockopt(socket, NN_SOL_SOCKET, NN_RCVMAXSIZE, &all, sizeof all), 0);
    assert_true(nn_connect(socket, daemon->address) >= 0);
    return socket;
}

void raw_send(int socket, const void *data, size_t bytes) {
    const size_t id_length = 4;
    const uint8_t id[4] = {0x80, 0, 0, 1};
    _Alignas(struct nn_cmsghdr) uint8_t control[NN_CMSG_SPACE(sizeof(size_t) + 4)] = {0};
    struct nn_cmsghdr header = {
        .cmsg_len = sizeof control, .cmsg_level = PROTO_SP, .cmsg_type = SP_HDR};
    memcpy(control, &header, sizeof header);
    memcpy(control + sizeof header, &id_length, sizeof id_length);
    memcpy(control + sizeof header + sizeof id_length, id, sizeof id);
    struct nn_iovec part = {.iov_base = (void *)(uintptr_t)data, .iov_len = bytes};
    struct nn_msghdr message = {.msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = control,
        .msg_controllen = sizeof control};
    assert_int_equal(nn_sendmsg(socket, &message, 0), bytes);
}

int raw_receive(int socket, void *data, size_t data_bytes, int timeout_ms) {
    assert_int_equal(
        nn_setsockopt(socket, NN_SOL_SOCKET, NN_RCVTIMEO, &timeout_ms, sizeof timeout_ms), 0);
    return nn_recv(socket, data, data_bytes, 0);
}

bool raw_was_closed(int fd) {
    struct pollfd poller = {.fd = fd, .events = POLLIN};
    char data[KVL_ATTACH_BYTES_MAX];
    while (poll(&poller, 1, 60000) == 1)
        if (recv(fd, data, sizeof data, MSG_DONTWAIT) <= 0)
            return true;
    return false;
}
