/* model.c - see storm.h: names, contents, and where findings go. */
#include "storm.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FINDINGS_SHOWN 20u

static const struct {
    const char *name;
    uint64_t bytes;
    uint32_t count;
} kinds[STORM_KINDS] = {
    [STORM_SMALL] = {"storm-small", 8192, STORM_SMALL_BLOCKS},
    [STORM_LARGE] = {"storm-large", 300000, STORM_LARGE_BLOCKS},
    [STORM_SCRATCH] = {"storm-scratch", 20000, STORM_SCRATCH_BLOCKS},
    [STORM_CHAT] = {"storm-chat", 524288, STORM_SESSIONS *STORM_SESSION_BLOCKS},
};

/* 16 tokens, 64 KiB a layer: two frames of 256 KiB a block. */
static const struct kvl_geometry chat_geometry = {
    .layers = 8, .kv_heads = 8, .k_dim = 128, .v_dim = 128, .block_tokens = STORM_BLOCK_TOKENS};

uint64_t storm_random(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint32_t storm_below(uint64_t *state, uint32_t end) {
    return (uint32_t)(storm_random(state) % end);
}

uint32_t storm_first(enum storm_kind kind) {
    uint32_t first = 0;
    for (unsigned k = 0; k < (unsigned)kind; k++)
        first += kinds[k].count;
    return first;
}

uint32_t storm_count(enum storm_kind kind) {
    return kinds[kind].count;
}

uint64_t storm_bytes(enum storm_kind kind) {
    return kinds[kind].bytes;
}

enum storm_kind storm_kind_of(uint32_t block) {
    unsigned kind = 0;
    while (kind + 1 < STORM_KINDS && block >= storm_first((enum storm_kind)(kind + 1)))
        kind++;
    return (enum storm_kind)kind;
}

static void must(kvl_err err) {
    if (err == KVL_OK)
        return;
    fprintf(stderr, "storm: a key: %s\n", kvl_err_text(err));
    abort();
}

void storm_namespace(enum storm_kind kind, struct kvl_namespace_request *request) {
    *request = (struct kvl_namespace_request){0};
    snprintf(request->label, sizeof request->label, "%s", kinds[kind].name);
    if (kind != STORM_CHAT) {
        request->block_bytes = kinds[kind].bytes;
        must(kvl_key_of_opaque_namespace(
            kinds[kind].name, kinds[kind].bytes, (struct kvl_bytes){0}, &request->key));
        return;
    }
    struct kvl_namespace_desc desc = {.geometry = chat_geometry,
        .dtype = KVL_DTYPE_F16,
        .arithmetic_id = "storm",
        .fidelity = "lossless"};
    request->geometry = chat_geometry;
    request->dtype = KVL_DTYPE_F16;
    must(kvl_key_of_namespace(&desc, &request->key));
}

void storm_opaque_name(uint32_t block, uint8_t name[32]) {
    memset(name, 0, 32);
    memcpy(name, &block, sizeof block);
}

uint32_t storm_token(uint32_t session, uint32_t position) {
    uint64_t state = (uint64_t)session << 32 | position;
    return storm_below(&state, 32000);
}

void storm_session_name(uint32_t session, char name[32]) {
    snprintf(name, 32, "storm-%u", session);
}

static uint32_t place_of(const struct kvl_key *key) {
    uint32_t hash;
    memcpy(&hash, key->bytes, sizeof hash);
    return hash % STORM_PLACES;
}

uint32_t storm_find(const struct storm_witness *witness, const struct kvl_key *key) {
    for (uint32_t at = place_of(key); witness->places[at] != 0; at = (at + 1) % STORM_PLACES)
        if (kvl_key_equal(&witness->blocks[witness->places[at] - 1].key, key))
            return witness->places[at] - 1;
    return UINT32_MAX;
}

static void session_keys(struct storm_witness *witness, const struct kvl_key *space) {
    for (uint32_t session = 0; session < STORM_SESSIONS; session++) {
        uint32_t tokens[STORM_SESSION_TOKENS];
        struct kvl_key keys[STORM_SESSION_BLOCKS];
        for (uint32_t i = 0; i < STORM_SESSION_TOKENS; i++)
            tokens[i] = storm_token(session, i);
        must(kvl_key_chain(space, tokens, STORM_SESSION_TOKENS, STORM_BLOCK_TOKENS, keys));
        uint32_t first = storm_first(STORM_CHAT) + session * STORM_SESSION_BLOCKS;
        for (uint32_t i = 0; i < STORM_SESSION_BLOCKS; i++)
            witness->blocks[first + i].key = keys[i];
    }
}

void storm_witness_reset(struct storm_witness *witness) {
    struct kvl_namespace_request spaces[STORM_KINDS];
    memset(witness, 0, offsetof(struct storm_witness, totals));
    for (unsigned kind = 0; kind < STORM_KINDS; kind++)
        storm_namespace((enum storm_kind)kind, &spaces[kind]);
    session_keys(witness, &spaces[STORM_CHAT].key);
    for (uint32_t block = 0; block < STORM_BLOCKS; block++) {
        struct kvl_key *key = &witness->blocks[block].key;
        uint8_t name[32];
        storm_opaque_name(block, name);
        if (block < storm_first(STORM_CHAT))
            must(kvl_key_of_opaque(&spaces[storm_kind_of(block)].key, name, key));
        uint32_t at = place_of(key);
        while (witness->places[at] != 0)
            at = (at + 1) % STORM_PLACES;
        witness->places[at] = block + 1;
    }
}

/* Half of the blocks can be compressed. */
static uint64_t next_word(uint64_t *state, uint64_t mask) {
    uint64_t word = *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (word ^ word >> 29) & mask;
}

static void begin_content(const struct kvl_key *key, uint64_t *state, uint64_t *mask) {
    memcpy(state, key->bytes, sizeof *state);
    *mask = (key->bytes[8] & 1) != 0 ? 0x00ff00ff0fff00ffu : UINT64_MAX;
}

void storm_fill(const struct kvl_key *key, uint8_t *data, uint64_t bytes) {
    uint64_t state, mask;
    begin_content(key, &state, &mask);
    for (uint64_t at = 0; at < bytes; at += 8) {
        uint64_t word = next_word(&state, mask);
        memcpy(data + at, &word, bytes - at < 8 ? bytes - at : 8);
    }
}

bool storm_is_right(const struct kvl_key *key, const uint8_t *data, uint64_t bytes) {
    uint64_t state, mask;
    begin_content(key, &state, &mask);
    uint64_t at = 0, there, word;
    for (; at + 8 <= bytes; at += 8) {
        word = next_word(&state, mask);
        memcpy(&there, data + at, 8);
        if (there != word)
            return false;
    }
    word = next_word(&state, mask);
    return memcmp(data + at, &word, bytes - at) == 0;
}

void storm_finding(const struct storm *storm, const char *format, ...) {
    char text[400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (atomic_fetch_add(&storm->witness->totals.findings, 1) < FINDINGS_SHOWN)
        fprintf(stderr, "finding: %s (seed %llu, %s)\n", text, (unsigned long long)storm->seed,
            storm->folder);
}
