/* holder.c - a client that takes one write lease, says so with one byte, and stays until killed.
 *
 *   kvl_test_holder ADDRESS BLOCK_NUMBER [eof | goodbye]
 *
 * Between the two it closes the attach socket without a word, or the client as one should. */
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <signal.h>

#include "kvloft.h"

#define BLOCK_BYTES 8192u

#define FDS_MAX 256

static void close_attach_socket(void) {
    for (int fd = STDERR_FILENO + 1; fd < FDS_MAX; fd++) {
        int type = 0;
        socklen_t bytes = sizeof type;
        if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &bytes) == 0 && type == SOCK_SEQPACKET)
            close(fd);
    }
}

static void part(struct kvl_client *client, const char *how) {
    if (strcmp(how, "eof") == 0)
        close_attach_socket();
    else if (strcmp(how, "goodbye") == 0)
        kvl_client_close(client);
}

int main(int argc, char **argv) {
    if (argc != 3 && argc != 4)
        return 2;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct kvl_client *client = NULL;
    struct kvl_client_options options = {.address = argv[1], .name = "holder"};
    struct kvl_namespace_request request = {.block_bytes = BLOCK_BYTES, .label = "test"};
    struct kvl_namespace_info info;
    struct kvl_key key;
    struct kvl_allocated block;
    struct kvl_ticket ticket;
    uint8_t name[32] = {0};
    uint32_t number = (uint32_t)strtoul(argv[2], NULL, 10);
    memcpy(name, &number, sizeof number);
    if (kvl_client_open(&options, &client, NULL) != KVL_OK ||
        kvl_key_of_opaque_namespace("test", BLOCK_BYTES, (struct kvl_bytes){0}, &request.key) !=
            KVL_OK ||
        kvl_client_namespace(client, &request, &info) != KVL_OK ||
        kvl_key_of_opaque(&info.key, name, &key) != KVL_OK ||
        kvl_alloc(client, info.id, KVL_TIER_DEVICE, &key, 1, false, &block, &ticket) != KVL_OK ||
        block.status != KVL_ALLOC_GRANTED)
        return 1;
    part(client, argc == 4 ? argv[3] : "");
    if (write(STDOUT_FILENO, "x", 1) != 1)
        return 1;
    for (;;)
        pause();
}
