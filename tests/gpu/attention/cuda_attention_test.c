/* cuda_attention_test.c - paged attention on a GPU: values against double precision, and bits that
 * depend on a row alone. attention_world.h says what surrounds the data and what is allowed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>

#include "attention_world.h"

static cudaStream_t stream;
static bool is_small; /* KVL_GPU_SMALL: less of everything, for checkers that slow kernels down */

static void check(cudaError_t err, const char *what) {
    if (err != cudaSuccess) {
        fail_msg("%s: %s", what, cudaGetErrorString(err));
    }
}

static void *take(size_t bytes) {
    void *memory = NULL;
    check(cudaMalloc(&memory, bytes), "cudaMalloc");
    return memory;
}
static void give(void *memory) {
    check(cudaFree(memory), "cudaFree");
}
static void put(void *device, const void *host, size_t bytes) {
    check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream), "copy to device");
    check(cudaStreamSynchronize(stream), "copy to device");
}
static void get(void *host, const void *device, size_t bytes) {
    check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream), "copy to host");
    check(cudaStreamSynchronize(stream), "copy to host");
}

static void enqueue(const struct kvl_cuda_attention *attention, enum kvl_phase phase) {
    check(phase == KVL_PHASE_PREFILL ? kvl_cuda_attend_prefill(attention, stream)
                                     : kvl_cuda_attend_decode(attention, stream),
        phase == KVL_PHASE_PREFILL ? "launch of prefill" : "launch of decode");
}
static void attend(const struct kvl_cuda_attention *attention, enum kvl_phase phase) {
    enqueue(attention, phase);
    check(cudaStreamSynchronize(stream), phase == KVL_PHASE_PREFILL ? "prefill" : "decode");
}

/* The same by a graph that was captured for no position in particular. */
static void attend_by_graph(const struct kvl_cuda_attention *attention, enum kvl_phase phase) {
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin of capture");
    enqueue(attention, phase);
    check(cudaStreamEndCapture(stream, &graph), "end of capture");
    check(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
    uint32_t position;
    get(&position, attention->position, sizeof position);
    /* Behind a window there may be no blocks. */
    const uint32_t other = attention->window == 0 ? 0 : position + 1;
    for (int replay = 0; replay < 2; replay++) { /* the second one counts */
        put((void *)(uintptr_t)attention->position, replay ? &position : &other, sizeof other);
        check(cudaGraphLaunch(executable, stream), "cudaGraphLaunch");
        check(cudaStreamSynchronize(stream), "graph");
    }
    check(cudaGraphExecDestroy(executable), "cudaGraphExecDestroy");
    check(cudaGraphDestroy(graph), "cudaGraphDestroy");
}

static const struct attention_device gpu = {
    .take = take, .give = give, .put = put, .get = get, .attend = attend};
static const struct attention_device gpu_by_graph = {
    .take = take, .give = give, .put = put, .get = get, .attend = attend_by_graph};

static uint16_t *take_results(const struct attention_world *world, uint32_t tokens) {
    uint16_t *out = malloc((size_t)tokens * attention_token_elements(world) * sizeof *out);
    assert_non_null(out);
    return out;
}

/* Prefills [first, first + tokens) and checks up to `checked` of them, among them both ends. */
static void check_chunk(
    struct attention_world *world, uint32_t first, uint32_t tokens, uint32_t checked) {
    uint16_t *out = take_results(world, tokens);
    const struct attention_call call = {
        .first = first, .tokens = tokens, .phase = KVL_PHASE_PREFILL};
    attention_run(world, &call, out);
    for (uint32_t i = 0; i < checked; i++) {
        const uint32_t at =
            checked == 1 ? 0 : (uint32_t)((uint64_t)(tokens - 1) * i / (checked - 1));
        attention_check_token(
            world, first + at, out + (size_t)at * attention_token_elements(world));
    }
    free(out);
}

/* Decodes one token with its own grid and with a longer one. */
static void check_decode(struct attention_world *world, uint32_t token, uint32_t position_max) {
    const uint32_t elements = attention_token_elements(world);
    uint16_t *out = take_results(world, 2);
    struct attention_call call = {.first = token, .tokens = 1, .phase = KVL_PHASE_DECODE};
    attention_run(world, &call, out);
    attention_check_token(world, token, out);
    call.position_max = position_max;
    attention_run(world, &call, out + elements);
    attention_check_equal(world, token, out + elements, out, 1, "another position_max");
    free(out);
}

static void check_shape(const struct attention_shape *shape) {
    struct attention_world world;
    attention_world_init(&world, &gpu, shape, shape->heads + shape->k_dim);
    check_chunk(&world, 0, 1, 1);
    check_chunk(&world, 0, 130, 4);
    check_chunk(&world, 130, shape->context - 130, 4);
    check_decode(&world, 15, 4 * shape->context);
    check_decode(&world, shape->context - 1, shape->context + 1);
    attention_world_deinit(&world);
}

static const enum kvl_kv_dtype dtypes[] = {KVL_KV_F16, KVL_KV_BF16, KVL_KV_F32};

static void every_combination_has_the_right_values(void **state) {
    (void)state;
    const uint32_t dims[] = {64, 96, 128};
    for (uint32_t i = 0; i < 3 * 3 * 4 * 8; i += is_small ? 37 : 1) {
        const uint32_t group = i % 8 + 1, kv_heads = i % 2 + 1;
        const struct attention_shape shape = {
            .heads = group * kv_heads,
            .kv_heads = kv_heads,
            .k_dim = dims[i / 8 % 3],
            .v_dim = dims[i / 8 % 3],
            .block_tokens = 16u << (i / 24 % 4),
            .kv_dtype = dtypes[i / 96],
            .context = 261 + i % 8 * 5,
        };
        check_shape(&shape);
    }
}

static void other_sizes_have_the_right_values(void **state) {
    (void)state;
    const uint32_t sizes[][3] = {/* K, V, tokens of a block */
        {8, 8, 16}, {16, 16, 32}, {32, 32, 64}, {80, 80, 64}, {128, 64, 16}, {256, 256, 64},
        {64, 64, 8}, {128, 128, 24}, {5, 7, 3}};
    for (uint32_t i = 0; i < 9 * 3; i += is_small ? 4 : 1) {
        const uint32_t *size = sizes[i / 3];
        const struct attention_shape shape = {6, 2, size[0], size[1], size[2], dtypes[i % 3], 200};
        check_shape(&shape);
    }
}

static const struct attention_shape llama_8b = {32, 8, 128, 128, 64, KVL_KV_F16, 3030};

static void long_contexts_have_the_right_values(void **state) {
    (void)state;
    if (is_small) {
        skip();
    }
    struct attention_world world;
    attention_world_init(&world, &gpu, &llama_8b, 3);
    check_chunk(&world, 0, 1024, 5);
    check_chunk(&world, 1024, 1024, 5);
    check_chunk(&world, 2000, 1030, 5);
    for (uint32_t first = 0; first <= 2000; first += 97) {
        check_chunk(&world, first, first % 130 + 1, 2);
    }
    attention_world_deinit(&world);
}

static void decode_has_the_right_values_at_every_length(void **state) {
    (void)state;
    if (is_small) {
        skip();
    }
    struct attention_world world;
    attention_world_init(&world, &gpu, &llama_8b, 4);
    for (uint32_t token = 0; token <= 2000; token = token < 20 ? token + 1 : token + 59) {
        check_decode(&world, token, 3030 + 4 * token);
    }
    for (uint32_t token = 255; token < 3030; token += 256) { /* ends of parts */
        check_decode(&world, token, 8000);
        check_decode(&world, token + 1, 8000);
    }
    attention_world_deinit(&world);
}

/* The whole context in chunks of `tokens`, the first one shorter by `lead`. */
static uint16_t *prefill_in_chunks(struct attention_world *world, uint32_t tokens, uint32_t lead) {
    uint16_t *out = take_results(world, world->shape.context);
    for (uint32_t first = 0; first < world->shape.context;) {
        const uint32_t wanted = first == 0 ? tokens - lead : tokens;
        const uint32_t left = world->shape.context - first;
        const struct attention_call call = {
            .first = first, .tokens = left < wanted ? left : wanted, .phase = KVL_PHASE_PREFILL};
        attention_run(world, &call, out + (size_t)first * attention_token_elements(world));
        first += call.tokens;
    }
    return out;
}

static void check_chunkings(const struct attention_shape *shape, uint32_t from, uint32_t to) {
    struct attention_world world;
    attention_world_init(&world, &gpu, shape, 5);
    uint16_t *whole = prefill_in_chunks(&world, shape->context, 0);
    for (uint32_t tokens = from; tokens <= to; tokens++) {
        char what[64];
        snprintf(what, sizeof what, "chunks of %u", tokens);
        uint16_t *out = prefill_in_chunks(&world, tokens, tokens / 3);
        attention_check_equal(&world, 0, out, whole, shape->context, what);
        free(out);
    }
    free(whole);
    attention_world_deinit(&world);
}

static void a_row_has_the_same_bits_in_every_chunk(void **state) {
    (void)state;
    const struct attention_shape shapes[] = {
        {4, 1, 128, 128, 64, KVL_KV_F16, 290},
        {3, 1, 64, 64, 16, KVL_KV_BF16, 290},
        {8, 2, 96, 96, 128, KVL_KV_F32, 290},
        {4, 2, 16, 16, 16, KVL_KV_F16, 140},
        {4, 2, 256, 256, 32, KVL_KV_F16, 140},
    };
    if (is_small) {
        check_chunkings(&shapes[0], 130, 130);
        return;
    }
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        check_chunkings(&shapes[i], i == 0 ? 1 : 125, 130);
        check_chunkings(&shapes[i], 1, 5);
    }
    check_chunkings(&llama_8b, 1024, 1024);
    check_chunkings(&llama_8b, 777, 777);
}

/* ---- windows and caps ---- */

struct limits {
    uint32_t window;
    float softcap;
};

static void open_limited(struct attention_world *world, const struct attention_shape *shape,
    struct limits limits, uint64_t seed) {
    attention_world_init(world, &gpu, shape, seed);
    world->window = limits.window;
    world->softcap = limits.softcap;
}

/* Less than a tile, a tile, no whole number of them, a part of decoding, more than the context. */
static const struct limits all_limits[] = {
    {1, 0}, {20, 0}, {64, 3.0f}, {100, 2.5f}, {129, 0}, {256, 4.0f}, {5000, 0}, {0, 3.0f}};
enum { LIMITS = sizeof all_limits / sizeof *all_limits };

static void check_limited(const struct attention_shape *shape, struct limits limits) {
    struct attention_world world;
    open_limited(&world, shape, limits, shape->heads + shape->k_dim);
    check_chunk(&world, 0, 150, 4);
    check_chunk(&world, 150, shape->context - 150, 5); /* what lies behind the window is gone */
    check_chunk(&world, shape->context - 1, 1, 1);
    check_decode(&world, 15, 4 * shape->context);
    check_decode(&world, 300, shape->context);
    check_decode(&world, shape->context - 1, shape->context + 1);
    attention_world_deinit(&world);
}

static void windows_and_caps_have_the_right_values(void **state) {
    (void)state;
    const uint32_t dims[] = {64, 96, 128, 16, 256};
    for (uint32_t i = 0; i < 5 * 3 * LIMITS; i += is_small ? 23 : 3) {
        const uint32_t dim = dims[i / LIMITS % 5], group = i % 7 + 1, kv_heads = i % 2 + 1;
        const struct attention_shape shape = {
            .heads = group * kv_heads,
            .kv_heads = kv_heads,
            .k_dim = dim,
            .v_dim = dim,
            .block_tokens = 16u << (i % 4),
            .kv_dtype = dtypes[i / LIMITS / 5],
            .context = 600 + i % 8 * 5,
        };
        check_limited(&shape, all_limits[i % LIMITS]);
    }
}

static void a_windowed_row_has_the_same_bits_in_every_chunk(void **state) {
    (void)state;
    const struct attention_shape shapes[] = {
        {4, 1, 128, 128, 64, KVL_KV_F16, 290},
        {3, 1, 64, 64, 16, KVL_KV_BF16, 290},
        {8, 2, 96, 96, 128, KVL_KV_F32, 290},
        {4, 2, 16, 16, 16, KVL_KV_F16, 140},
        {4, 2, 256, 256, 32, KVL_KV_BF16, 140},
    };
    const uint32_t steps[] = {130, 64, 17, 1};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct attention_world world;
        open_limited(&world, &shapes[i], (struct limits){70, i % 2 == 0 ? 3.0f : 0.0f}, 8);
        uint16_t *whole = prefill_in_chunks(&world, shapes[i].context, 0);
        for (size_t step = 0; step < (is_small ? 2 : sizeof steps / sizeof *steps); step++) {
            uint16_t *out = prefill_in_chunks(&world, steps[step], steps[step] / 3);
            attention_check_equal(&world, 0, out, whole, shapes[i].context, "windowed chunks");
            free(out);
        }
        free(whole);
        attention_world_deinit(&world);
    }
}

static void block_length_does_not_change_the_bits(void **state) {
    (void)state;
    struct attention_shape shape = {8, 2, 128, 128, 16, KVL_KV_F16, 400};
    const struct attention_call calls[] = {
        {.first = 100, .tokens = 300, .phase = KVL_PHASE_PREFILL},
        {.first = 399, .tokens = 1, .phase = KVL_PHASE_DECODE},
    };
    uint16_t *first[2] = {NULL, NULL};
    for (; shape.block_tokens <= 256; shape.block_tokens *= 2) {
        struct attention_world world;
        attention_world_init(&world, &gpu, &shape, 6);
        for (int i = 0; i < 2; i++) {
            uint16_t *out = take_results(&world, calls[i].tokens);
            attention_run(&world, &calls[i], out);
            if (first[i]) {
                attention_check_equal(
                    &world, calls[i].first, out, first[i], calls[i].tokens, "another block length");
                free(out);
            } else {
                first[i] = out;
            }
        }
        attention_world_deinit(&world);
    }
    free(first[0]);
    free(first[1]);
}

static void a_graph_replays_at_any_position(void **state) {
    (void)state;
    const struct attention_shape shapes[] = {{8, 2, 128, 128, 64, KVL_KV_F16, 1100},
        {4, 2, 16, 16, 16, KVL_KV_F16, 1100}, {4, 2, 64, 64, 16, KVL_KV_F16, 1100},
        {2, 1, 256, 256, 64, KVL_KV_F16, 1100}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct attention_world world;
        open_limited(&world, &shapes[i], (struct limits){i == 2 ? 300 : 0, 0}, 7);
        const uint32_t elements = attention_token_elements(&world);
        uint16_t *out = take_results(&world, 2);
        for (uint32_t token = 0; token < 1100; token += 157) {
            const struct attention_call call = {.first = token,
                .tokens = 1,
                .phase = KVL_PHASE_DECODE,
                .position_max = shapes[i].context};
            world.device = &gpu;
            attention_run(&world, &call, out);
            world.device = &gpu_by_graph;
            attention_run(&world, &call, out + elements);
            attention_check_equal(&world, token, out + elements, out, 1, "a graph");
        }
        free(out);
        attention_world_deinit(&world);
    }
}

/* ---- few rows ---- */

/* The last `tokens` of a context by each way; `scratch_bytes` as in attention_call, for FEW_ROWS.
 */
static void check_ways(
    struct attention_world *world, uint32_t end, uint32_t tokens, uint64_t scratch_bytes) {
    static const char *const names[] = {"the fastest way", "many rows", "few rows", "every way"};
    const size_t elements = (size_t)tokens * attention_token_elements(world);
    uint16_t *out = take_results(world, 2 * tokens);
    struct attention_call call = {.first = end - tokens,
        .tokens = tokens,
        .phase = KVL_PHASE_PREFILL,
        .way = KVL_ATTENTION_MANY_ROWS};
    attention_run(world, &call, out);
    if (tokens == 1) {
        attention_check_token(world, end - 1, out);
    }
    const enum kvl_attention_way ways[] = {
        KVL_ATTENTION_FEW_ROWS, KVL_ATTENTION_FEW_ROWS, KVL_ATTENTION_FASTEST, KVL_ATTENTION_EVERY};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        call.way = ways[i];
        call.scratch_bytes = i == 0 ? scratch_bytes : 0;
        call.position_max = i == 1 ? end + 777 : 0; /* a longer grid */
        attention_run(world, &call, out + elements);
        attention_check_equal(world, call.first, out + elements, out, tokens, names[ways[i]]);
    }
    free(out);
}

/* Scratch that holds one block of 32 rows, so that more go in turns. */
static uint64_t scratch_of_a_turn(const struct attention_shape *s, uint32_t end) {
    const struct kvl_cuda_attention attention = {.block_tokens = s->block_tokens,
        .heads = s->heads,
        .kv_heads = s->kv_heads,
        .k_dim = s->k_dim,
        .v_dim = s->v_dim,
        .kv_dtype = s->kv_dtype,
        .tokens = 1,
        .position_max = end};
    return kvl_cuda_attention_scratch_bytes(&attention);
}

static void check_few(
    const struct attention_shape *shape, const uint32_t *tokens, size_t count, uint32_t turns) {
    struct attention_world world;
    attention_world_init(&world, &gpu, shape, 8 + shape->heads);
    for (size_t i = 0; i < count; i++) {
        if (tokens[i] <= shape->context) {
            check_ways(&world, shape->context, tokens[i],
                turns * scratch_of_a_turn(shape, shape->context));
        }
    }
    attention_world_deinit(&world);
}

/* All head sizes, 1 to 8 query heads a KV head, blocks of 16 to 256 tokens, contexts that end
 * anywhere in a tile and are shorter than the ring of tiles, as long, or longer. */
static void few_rows_have_the_bits_of_many(void **state) {
    (void)state;
    const uint32_t dims[] = {64, 96, 128}, tokens[] = {1, 2, 5, 3, 17, 31, 64, 100, 256};
    for (uint32_t i = is_small ? 3 : 0; i < (is_small ? 12 : 30); i += is_small ? 8 : 1) {
        const uint32_t group = i * 5 % 8 + 1, kv_heads = i % 4 + 1;
        const struct attention_shape shape = {
            .heads = group * kv_heads,
            .kv_heads = kv_heads,
            .k_dim = dims[i % 3],
            .v_dim = dims[i % 3],
            .block_tokens = 16u << (i / 6 % 5),
            .kv_dtype = i / 3 % 2 ? KVL_KV_BF16 : KVL_KV_F16,
            .context = i % 4 == 0 ? 1 + 5 * i : i % 4 * (is_small ? 400 : 1024) - 77 + 13 * i % 150,
        };
        check_few(&shape, tokens, is_small ? 3 : 9, 1 + i % 3);
    }
}

static void few_rows_have_the_bits_of_many_at_length(void **state) {
    (void)state;
    if (is_small) {
        skip();
    }
    const struct attention_shape shapes[] = {
        {16, 4, 128, 128, 64, KVL_KV_F16, 9001}, {8, 1, 64, 64, 16, KVL_KV_BF16, 33000}};
    const uint32_t tokens[] = {1, 2, 4, 5, 9, 40, 129, 256};
    for (size_t i = 0; i < 2; i++) {
        check_few(&shapes[i], tokens, sizeof tokens / sizeof *tokens, 2);
    }
}

static void a_graph_of_few_rows_replays_at_any_position(void **state) {
    (void)state;
    const struct attention_shape shape = {8, 2, 128, 128, 64, KVL_KV_F16, 1500};
    struct attention_world world;
    attention_world_init(&world, &gpu, &shape, 9);
    const size_t elements = (size_t)3 * attention_token_elements(&world);
    uint16_t *out = take_results(&world, 2 * 3);
    for (uint32_t first = 0; first + 3 <= shape.context; first += is_small ? 700 : 171) {
        struct attention_call call = {.first = first,
            .tokens = 3,
            .phase = KVL_PHASE_PREFILL,
            .position_max = shape.context,
            .way = KVL_ATTENTION_MANY_ROWS};
        world.device = &gpu;
        attention_run(&world, &call, out);
        call.way = KVL_ATTENTION_FEW_ROWS;
        world.device = &gpu_by_graph;
        attention_run(&world, &call, out + elements);
        attention_check_equal(&world, first, out + elements, out, 3, "a graph");
    }
    free(out);
    attention_world_deinit(&world);
}

/* As on a GPU of compute capability 8.6 or 8.9: other kernels prefill heads of 128 and 256. */
static void little_shared_memory_is_enough(void **state) {
    (void)state;
    const struct attention_shape shapes[] = {
        {4, 2, 64, 64, 16, KVL_KV_F16, 290},
        {4, 2, 128, 128, 64, KVL_KV_BF16, 290},
        {2, 2, 128, 128, 32, KVL_KV_F32, 140},
        {2, 1, 256, 256, 32, KVL_KV_F16, 140},
    };
    for (size_t i = 0; i < 2 * sizeof shapes / sizeof *shapes; i++) {
        struct attention_world world;
        open_limited(&world, &shapes[i / 2], (struct limits){i % 2 * 70, 0}, 10);
        world.shared_bytes_max = 99 << 10;
        const uint32_t last = world.shape.context - 1;
        uint16_t *whole = prefill_in_chunks(&world, world.shape.context, 0);
        attention_check_token(&world, 0, whole);
        attention_check_token(&world, last, whole + last * attention_token_elements(&world));
        uint16_t *out = prefill_in_chunks(&world, 37, 12);
        attention_check_equal(&world, 0, out, whole, last + 1, "99 KiB, chunks of 37");
        attention_run(&world,
            &(struct attention_call){.tokens = world.shape.context,
                .phase = KVL_PHASE_PREFILL,
                .way = KVL_ATTENTION_EVERY},
            out);
        attention_check_equal(&world, 0, out, whole, last + 1, "99 KiB, every way");
        free(whole);
        free(out);
        attention_world_deinit(&world);
    }
}

static void wrong_calls_are_refused(void **state) {
    (void)state;
    struct kvl_cuda_attention attention = {.block_tokens = 64,
        .heads = 6,
        .kv_heads = 4,
        .k_dim = 64,
        .v_dim = 64,
        .kv_dtype = KVL_KV_F16,
        .tokens = 1,
        .position_max = 100};
    assert_int_equal(kvl_cuda_attention_scratch_bytes(&attention), UINT64_MAX);
    assert_int_equal(kvl_cuda_attend_prefill(&attention, stream), cudaErrorNotSupported);
    assert_int_equal(kvl_cuda_attend_decode(&attention, stream), cudaErrorNotSupported);
    attention.kv_heads = 2;
    assert_int_equal(kvl_cuda_attend_decode(&attention, stream), cudaErrorInvalidValue);
    attention.softcap = -1.0f;
    assert_int_equal(kvl_cuda_attend_decode(&attention, stream), cudaErrorNotSupported);
    attention.softcap = 0;
    attention.way = KVL_ATTENTION_FEW_ROWS; /* without scratch */
    assert_int_equal(kvl_cuda_attend_prefill(&attention, stream), cudaErrorNotSupported);
    attention.kv_dtype = KVL_KV_F32;
    attention.scratch_bytes = 1u << 30;
    assert_int_equal(kvl_cuda_attend_prefill(&attention, stream), cudaErrorNotSupported);
    attention.k_dim = 100000;
    assert_int_equal(kvl_cuda_attend_prefill(&attention, stream), cudaErrorNotSupported);
}

/* NULL, or why there is nothing to run on. */
static const char *reason_to_skip(void) {
    int count = 0, major = 0;
    const cudaError_t err = cudaGetDeviceCount(&count);
    if (err != cudaSuccess || count == 0) {
        return err != cudaSuccess ? cudaGetErrorString(err) : "no GPU";
    }
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) != cudaSuccess ||
        major < 8) {
        return "the kernels need compute capability 8.0";
    }
    return NULL;
}

int main(void) {
    is_small = getenv("KVL_GPU_SMALL") != NULL;
    const char *reason = reason_to_skip();
    if (reason) {
        printf("skipped: %s\n", reason);
        return 77;
    }
    if (cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess) {
        printf("no stream on the GPU\n");
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_combination_has_the_right_values),
        cmocka_unit_test(other_sizes_have_the_right_values),
        cmocka_unit_test(long_contexts_have_the_right_values),
        cmocka_unit_test(decode_has_the_right_values_at_every_length),
        cmocka_unit_test(a_row_has_the_same_bits_in_every_chunk),
        cmocka_unit_test(windows_and_caps_have_the_right_values),
        cmocka_unit_test(a_windowed_row_has_the_same_bits_in_every_chunk),
        cmocka_unit_test(block_length_does_not_change_the_bits),
        cmocka_unit_test(a_graph_replays_at_any_position),
        cmocka_unit_test(few_rows_have_the_bits_of_many),
        cmocka_unit_test(few_rows_have_the_bits_of_many_at_length),
        cmocka_unit_test(a_graph_of_few_rows_replays_at_any_position),
        cmocka_unit_test(little_shared_memory_is_enough),
        cmocka_unit_test(wrong_calls_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
