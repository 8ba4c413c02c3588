/* wire_seeds.c - writes the corpora of wire_fuzz and client_fuzz from the samples of every message,
 * so that they follow the protocol.
 *
 *   wire_seeds WIRE_FOLDER CLIENT_FOLDER */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "samples.h"

/* The verbs in the order of client_fuzz's calls. */
static const uint8_t calls[] = {3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 22,
    23, 24, 25, 26, 27, 2, 8, 9};

static void write_file(
    const char *folder, const char *name, const char *kind, const void *data, size_t bytes) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s_%s", folder, name, kind);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, bytes, file) != bytes || fclose(file) != 0) {
        perror(path);
        exit(1);
    }
}

static void write_messages(const char *folder) {
    for (uint32_t verb = 1; verb < KVL_VERB_COUNT; verb++) {
        struct kvl_wire_buffer request = {0}, reply = {0};
        char name[16];
        snprintf(name, sizeof name, "%02u", (unsigned)verb);
        if (sample_request(verb, &request))
            write_file(folder, name, "request", request.data, request.bytes);
        if (sample_reply(verb, &reply))
            write_file(folder, name, "reply", reply.data, reply.bytes);
        kvl_wire_buffer_free(&request);
        kvl_wire_buffer_free(&reply);
    }
}

static void write_attach(const char *wire_folder, const char *client_folder) {
    struct kvl_attach_hello hello = {.magic = KVL_ATTACH_MAGIC, .version = KVL_WIRE_VERSION};
    struct kvl_attach_reply reply = {.magic = KVL_ATTACH_MAGIC,
        .version = KVL_WIRE_VERSION,
        .client = 1,
        .epoch = 7,
        .ticket_words = 4,
        .arena_count = 2,
        .arenas = {
            {.kind = KVL_TIER_DEVICE, .bytes = 16384}, {.kind = KVL_TIER_HOST, .bytes = 16384}}};
    uint8_t data[2 + KVL_ATTACH_BYTES_MAX], goodbye[KVL_GOODBYE_BYTES];
    snprintf(hello.name, sizeof hello.name, "sample");
    uint32_t bytes = kvl_attach_encode_hello(&hello, data);
    write_file(wire_folder, "attach", "hello", data, bytes);
    bytes = kvl_attach_encode_reply(&reply, data + 2);
    write_file(wire_folder, "attach", "reply", data + 2, bytes);
    kvl_attach_encode_goodbye(goodbye);
    write_file(wire_folder, "attach", "goodbye", goodbye, sizeof goodbye);
    data[0] = 1; /* see client_fuzz.c */
    data[1] = (uint8_t)bytes;
    write_file(client_folder, "attach", "reply", data, bytes + 2);
    reply.arenas[0].memory = KVL_ARENA_CUDA;
    memset(reply.arenas[0].device_uuid, 0x42, sizeof reply.arenas[0].device_uuid);
    bytes = kvl_attach_encode_reply(&reply, data + 2);
    write_file(wire_folder, "attach_cuda", "reply", data + 2, bytes);
    write_file(client_folder, "attach_cuda", "reply", data, bytes + 2);
    reply.arenas[0].memory = 77; /* nobody knows it */
    bytes = kvl_attach_encode_reply(&reply, data + 2);
    write_file(client_folder, "attach_unknown", "reply", data, bytes + 2);
}

static void write_call(const char *folder, uint8_t call, const struct kvl_wire_buffer *reply) {
    uint64_t body_bytes = reply->bytes - KVL_WIRE_HEADER_BYTES;
    uint8_t data[7 + 4096] = {0, 0, call, 0, 0, (uint8_t)body_bytes, (uint8_t)(body_bytes >> 8)};
    char name[16];
    if (body_bytes > sizeof data - 7)
        return;
    memcpy(data + 7, reply->data + KVL_WIRE_HEADER_BYTES, body_bytes);
    snprintf(name, sizeof name, "%02u", (unsigned)call);
    write_file(folder, name, "call", data, body_bytes + 7);
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: wire_seeds WIRE_FOLDER CLIENT_FOLDER\n");
        return 2;
    }
    mkdir(argv[1], 0700);
    mkdir(argv[2], 0700);
    write_messages(argv[1]);
    write_attach(argv[1], argv[2]);
    for (uint8_t call = 0; call < sizeof calls; call++) {
        struct kvl_wire_buffer reply = {0};
        if (sample_reply(calls[call], &reply))
            write_call(argv[2], call, &reply);
        kvl_wire_buffer_free(&reply);
    }
    return 0;
}
