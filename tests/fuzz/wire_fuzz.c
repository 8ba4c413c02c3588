/* wire_fuzz.c - a whole message as a peer may send it: the header, then the body as the request
 * and as the reply of the verb it names; and the same bytes as messages of the attach socket. */
#include <stddef.h>
#include <string.h>

#include "wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes);

static void walk_seals(const struct kvl_wire_seals *seals) {
    uint64_t cursor = 0;
    for (uint32_t i = 0; i < seals->count; i++) {
        struct kvl_wire_seal seal = {0};
        kvl_wire_seal_next(seals, &cursor, &seal);
        if (seal.token_count != 0 && !seal.tokens)
            __builtin_trap();
    }
    if (cursor != seals->data_bytes)
        __builtin_trap();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes) {
    struct kvl_attach_hello hello;
    struct kvl_attach_reply attach_reply;
    kvl_err ignored = kvl_attach_decode_hello(data, data_bytes, &hello);
    (void)ignored;
    ignored = kvl_attach_decode_reply(data, data_bytes, &attach_reply);
    (void)ignored;
    uint8_t goodbye[KVL_GOODBYE_BYTES];
    kvl_attach_encode_goodbye(goodbye);
    if (kvl_attach_is_goodbye(data, data_bytes) !=
        (data_bytes == sizeof goodbye && memcmp(data, goodbye, sizeof goodbye) == 0))
        __builtin_trap();
    struct kvl_wire_header header;
    if (kvl_wire_decode_header(data, data_bytes, &header) == KVL_ERR_VERSION ||
        data_bytes < KVL_WIRE_HEADER_BYTES)
        return 0;
    const struct kvl_wire_verb *verb = kvl_wire_verb(header.verb);
    if (!verb)
        return 0;
    const uint8_t *body = data + KVL_WIRE_HEADER_BYTES;
    uint64_t body_bytes = data_bytes - KVL_WIRE_HEADER_BYTES; /* whatever the header says */
    union kvl_wire_request request;
    union kvl_wire_reply reply;
    memset(&request, 0, sizeof request);
    memset(&reply, 0, sizeof reply);
    if (kvl_wire_decode(verb->request, body, body_bytes, &request) == KVL_OK &&
        header.verb == KVL_VERB_SEAL)
        walk_seals(&request.seals);
    ignored = kvl_wire_decode(verb->reply, body, body_bytes, &reply);
    (void)ignored;
    return 0;
}
