/* engine_fixture.h - a random tiny model, the real service in this process, and engines on it.
 *
 * $KVL_TEST_BACKEND says in whose memory: cpu (default), far (far_backend.h), or cuda: a GPU's,
 * with a random model (or a wider tiny one, where an architecture is asked for), whose service is
 * the device tier on that GPU; without one the program ends with 77.
 *
 * An engine here is what kvloft-decode has: a connection, a sequence, a backend. When the fixture
 * itself fails, it says why and fails the test (from another thread than the main one, it aborts
 * the program); what engines do is returned, so that worker threads record and the main thread
 * asserts. */
#ifndef KVL_TESTS_ENGINE_FIXTURE_H
#define KVL_TESTS_ENGINE_FIXTURE_H

#include <stdbool.h>
#include <stdint.h>

#include "generate.h"
#include "model.h"
#include "service.h"

enum { FIXTURE_BLOCK_TOKENS = 64, FIXTURE_CONTEXT = 1024 };

struct fixture {
    const struct kvl_backend_ops *backend;
    struct kvl_model *model;
    struct kvl_service *service; /* NULL: none is running */
    char *disk_path;             /* a temporary folder */
    const char *address;         /* of services to come; NULL: each has its own */
};

/* Loads the model, of the architecture in $KVL_ARCHITECTURE (default llama); no service yet. */
void fixture_init(struct fixture *fixture);
void fixture_deinit(struct fixture *fixture);

/* The GPU gives other bits to a token that was decoded than to one that was prefilled. */
bool fixture_has_one_arithmetic(const struct fixture *fixture);
/* Two engines of one process on one GPU hold each other up: what one frees waits for all that the
 * GPU was given, also for what the other has yet to release. Processes do not share such waits. */
bool fixture_runs_engines_side_by_side(const struct fixture *fixture);
/* A slot of each layer group. */
uint64_t fixture_slot_bytes(const struct fixture *fixture);
/* Tiers with room for so many blocks; host: on a GPU at least what it needs. The disk folder stays
 * from start to start. */
void fixture_start(
    struct fixture *fixture, uint32_t device_blocks, uint32_t host_blocks, bool with_disk);
void fixture_start_bytes(
    struct fixture *fixture, uint64_t device_bytes, uint64_t host_bytes, bool with_disk);
void fixture_stop(struct fixture *fixture);

/* The same tokens for the same seed. */
void fixture_tokens(const struct fixture *fixture, uint64_t seed, uint32_t *tokens, uint32_t count);

struct engine_options {
    bool stored; /* connected to the service */
    bool no_cache;
    uint32_t chunk_tokens; /* 0: the default */
    uint32_t threads;      /* 0: one */
    uint32_t batches_max;  /* of a forward call; 0: one */
};

struct engine {
    struct kvl_backend *backend;
    struct kvl_connection connection;
    struct kvl_sequence sequence;
    struct kvl_saved_session session;
    struct kvl_sampler sampler;
};

void engine_open(
    struct engine *engine, struct fixture *fixture, const struct engine_options *options);
void engine_close(struct engine *engine);

/* Appends the tokens and generates; greedy. report is to be deinited. */
kvl_err engine_turn(struct engine *engine, const uint32_t *tokens, uint32_t count,
    uint32_t max_tokens, struct kvl_turn_report *report);

/* Open, one turn, close. */
kvl_err engine_run(struct fixture *fixture, const struct engine_options *options,
    const uint32_t *tokens, uint32_t count, uint32_t max_tokens, struct kvl_turn_report *report);

uint64_t restored_tokens(const struct kvl_turn_report *report);
bool same_logits(const struct kvl_turn_report *a, const struct kvl_turn_report *b);

#endif
