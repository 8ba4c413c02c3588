/* attention_simulated_test.c - the attention kernels on a simulated warp, where no GPU is: which
 * lane holds what, masks, barriers, bounds. What the GPU itself does is cuda_attention_test.c's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "attention_simulated.h"
#include "attention_world.h"

static void *take(size_t bytes) {
    void *memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    assert_non_null(memory);
    return memory;
}
static void copy(void *to, const void *from, size_t bytes) {
    memcpy(to, from, bytes);
}

static const struct attention_device simulated = {
    .take = take,
    .give = free,
    .put = copy,
    .get = copy,
    .attend = attention_simulated_attend,
    .readable = attention_simulated_readable,
    .forget_readable = attention_simulated_forget_readable,
};

/* Runs the context in chunks of `tokens` (the last may be shorter) and checks every token. */
static uint16_t *prefill_in_chunks(struct attention_world *world, uint32_t tokens) {
    const uint32_t elements = attention_token_elements(world);
    uint16_t *out = malloc((size_t)world->shape.context * elements * sizeof *out);
    assert_non_null(out);
    for (uint32_t first = 0; first < world->shape.context; first += tokens) {
        const uint32_t left = world->shape.context - first;
        const struct attention_call call = {
            .first = first, .tokens = left < tokens ? left : tokens, .phase = KVL_PHASE_PREFILL};
        attention_run(world, &call, out + (size_t)first * elements);
    }
    for (uint32_t token = 0; token < world->shape.context; token++) {
        attention_check_token(world, token, out + (size_t)token * elements);
    }
    return out;
}

static void check_prefill(const struct attention_shape *shape, uint32_t one, uint32_t other) {
    struct attention_world world;
    attention_simulated_manner(true, false);
    attention_world_init(&world, &simulated, shape, 1);
    uint16_t *first = prefill_in_chunks(&world, one);
    attention_simulated_manner(false, true);
    uint16_t *second = prefill_in_chunks(&world, other);
    attention_check_equal(&world, 0, second, first, shape->context, "in other chunks");
    free(first);
    free(second);
    attention_world_deinit(&world);
}

static void check_decode(
    const struct attention_shape *shape, const uint32_t *tokens, size_t count) {
    struct attention_world world;
    attention_world_init(&world, &simulated, shape, 2);
    const uint32_t elements = attention_token_elements(&world);
    uint16_t *out = malloc(2 * elements * sizeof *out);
    assert_non_null(out);
    for (size_t i = 0; i < count; i++) {
        struct attention_call call = {.first = tokens[i], .tokens = 1, .phase = KVL_PHASE_DECODE};
        attention_simulated_manner(true, false);
        attention_run(&world, &call, out);
        attention_check_token(&world, tokens[i], out);
        attention_simulated_manner(false, true);
        call.position_max = 3 * tokens[i] + 300;
        attention_run(&world, &call, out + elements);
        attention_check_equal(&world, tokens[i], out + elements, out, 1, "a longer grid");
    }
    free(out);
    attention_world_deinit(&world);
}

static void prefill_has_the_right_values_in_every_chunking(void **state) {
    (void)state;
    const struct attention_shape shapes[] = {
        {4, 2, 64, 64, 16, KVL_KV_F16, 150},
        {3, 1, 64, 64, 64, KVL_KV_BF16, 140},
        {1, 1, 64, 64, 16, KVL_KV_F16, 128}, /* no entry of the table behind the last token */
        {1, 1, 96, 96, 32, KVL_KV_F16, 200},
        {4, 1, 128, 128, 64, KVL_KV_F16, 140},
        {2, 1, 128, 128, 128, KVL_KV_BF16, 150},
        {2, 2, 128, 128, 16, KVL_KV_F32, 70},
        {3, 1, 256, 256, 16, KVL_KV_F16, 110},
        {1, 1, 256, 256, 64, KVL_KV_BF16, 100},
        {1, 1, 256, 256, 32, KVL_KV_F32, 70},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        check_prefill(&shapes[i], 1000, 37);
    }
}

/* A call by the kernels for few rows gives the bits of those for many. Less scratch than it asks
 * for, in turns; 0: all of it. */
static void check_few(
    const struct attention_shape *shape, uint32_t first, uint32_t tokens, uint64_t scratch_bytes) {
    struct attention_world world;
    attention_world_init(&world, &simulated, shape, 3);
    const size_t elements = (size_t)tokens * attention_token_elements(&world);
    uint16_t *out = malloc(2 * elements * sizeof *out);
    assert_non_null(out);
    struct attention_call call = {.first = first,
        .tokens = tokens,
        .phase = KVL_PHASE_PREFILL,
        .way = KVL_ATTENTION_MANY_ROWS};
    attention_simulated_manner(true, false);
    attention_run(&world, &call, out);
    attention_check_token(&world, first + tokens - 1, out + elements - elements / tokens);
    call.way = KVL_ATTENTION_FEW_ROWS;
    call.scratch_bytes = scratch_bytes;
    for (int i = 0; i < 2; i++) {
        attention_simulated_manner(i == 0, i == 1);
        call.position_max = i * (first + tokens + 500); /* a longer grid in the second round */
        attention_run(&world, &call, out + elements);
        attention_check_equal(&world, first, out + elements, out, tokens, "few rows");
    }
    free(out);
    attention_world_deinit(&world);
}

static void few_rows_have_the_bits_of_many(void **state) {
    (void)state;
    const struct {
        struct attention_shape shape;
        uint32_t first, tokens;
        uint64_t scratch_bytes;
    } calls[] = {
        {{1, 1, 64, 64, 16, KVL_KV_F16, 1}, 0, 1, 0},
        {{4, 1, 128, 128, 64, KVL_KV_F16, 2200}, 2199, 1, 0}, /* the ring goes round twice */
        {{8, 2, 64, 64, 32, KVL_KV_BF16, 1300}, 1297, 2, 0},  /* as many rows as 8 */
        {{7, 1, 96, 96, 16, KVL_KV_F16, 200}, 198, 2, 0},     /* 14 rows */
        {{1, 1, 96, 96, 256, KVL_KV_BF16, 400}, 383, 17, 0},  /* across tiles */
        {{3, 3, 64, 64, 64, KVL_KV_F16, 130}, 66, 64, 0},
        {{2, 1, 128, 128, 128, KVL_KV_BF16, 900}, 860, 40, 0}, /* 80 rows: three blocks */
        {{1, 1, 64, 64, 16, KVL_KV_F16, 300}, 44, 256, 0},
        {{5, 1, 64, 64, 16, KVL_KV_F16, 300}, 280, 20, 4 * 20 * 2080}, /* a block of 32 a turn */
        {{4, 2, 64, 64, 64, KVL_KV_F16, 64}, 0, 64, 0},                /* no context */
    };
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        check_few(&calls[i].shape, calls[i].first, calls[i].tokens, calls[i].scratch_bytes);
    }
}

/* Llama-3.1-8B's attention of `tokens` that end at `end`, with the scratch of an instance whose
 * contexts have up to `context` tokens. */
static struct kvl_cuda_attention llama_8b(uint32_t tokens, uint32_t end, uint32_t context) {
    struct kvl_cuda_attention attention = {.block_tokens = 64,
        .heads = 32,
        .kv_heads = 8,
        .k_dim = 128,
        .v_dim = 128,
        .kv_dtype = KVL_KV_F16,
        .tokens = 1024,
        .position_max = context};
    attention.scratch_bytes = kvl_cuda_attention_scratch_bytes(&attention);
    attention.tokens = tokens;
    attention.position_max = end;
    return attention;
}

static void few_rows_far_behind_take_their_own_kernels(void **state) {
    (void)state;
    const struct {
        uint32_t tokens, end;
        bool few;
    } calls[] = {{1, 32768, true}, {16, 32768, true}, {64, 32768, true}, {1, 131072, true},
        {32, 131072, true}, {1, 1024, true}, {1, 1, false}, {1, 64, false}, {128, 128, false},
        {512, 32768, false}, {1024, 32768, false}, {1024, 131072, false}};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        struct kvl_cuda_attention attention = llama_8b(calls[i].tokens, calls[i].end, 131072);
        if (attention_simulated_takes_few(&attention) != calls[i].few) {
            fail_msg("%u tokens to %u: %s", calls[i].tokens, calls[i].end,
                calls[i].few ? "many rows" : "few rows");
        }
    }
    struct kvl_cuda_attention attention = llama_8b(1, 32768, 32768);
    attention.kv_dtype = KVL_KV_F32;
    assert_false(attention_simulated_takes_few(&attention));
    attention.kv_dtype = KVL_KV_F16;
    attention.scratch_bytes = 0;
    assert_false(attention_simulated_takes_few(&attention));
}

/* Heads of 128 do not fit into 99 KiB otherwise; those of 64 do. */
static void many_rows_take_the_kernels_for_few_where_theirs_do_not_fit(void **state) {
    (void)state;
    struct kvl_cuda_attention attention = llama_8b(1024, 8192, 8192);
    attention.shared_bytes_max = 163 << 10;
    assert_false(attention_simulated_takes_few(&attention));
    attention.shared_bytes_max = 99 << 10;
    assert_true(attention_simulated_takes_few(&attention));
    attention.k_dim = attention.v_dim = 64;
    assert_false(attention_simulated_takes_few(&attention));
    attention.k_dim = attention.v_dim = 128;
    attention.window = 100; /* which they do not know */
    assert_false(attention_simulated_takes_few(&attention));
}

/* However few tokens and positions the scratch was measured with, less needs no more. */
static void scratch_is_enough_for_smaller_calls(void **state) {
    (void)state;
    for (uint32_t end = 1; end <= 200000; end = end * 3 + 17) {
        for (uint32_t tokens = 1; tokens <= 1024; tokens = tokens * 2 + 1) {
            struct kvl_cuda_attention attention = llama_8b(tokens, end, 200000);
            assert_true(kvl_cuda_attention_scratch_bytes(&attention) <= attention.scratch_bytes);
        }
    }
}

static void single_tokens_are_prefilled_to_the_same_bits(void **state) {
    (void)state;
    const struct attention_shape shape = {4, 1, 64, 64, 16, KVL_KV_F16, 70};
    check_prefill(&shape, 70, 1);
}

static void decode_has_the_right_values_at_every_place(void **state) {
    (void)state;
    const struct attention_shape shapes[] = {
        {4, 1, 64, 64, 16, KVL_KV_F16, 600},
        {8, 1, 128, 128, 64, KVL_KV_F16, 600},
        {7, 1, 128, 128, 32, KVL_KV_BF16, 600},
        {6, 2, 96, 96, 128, KVL_KV_F16, 600},
        {2, 2, 96, 96, 16, KVL_KV_F32, 600},
        {3, 1, 64, 64, 64, KVL_KV_F32, 600},
        {12, 1, 64, 64, 64, KVL_KV_BF16, 600}, /* two CTAs share a KV head */
        {4, 2, 256, 256, 16, KVL_KV_F16, 600},
        {2, 1, 256, 256, 64, KVL_KV_F32, 600},
    };
    const uint32_t tokens[] = {0, 1, 15, 16, 63, 64, 255, 256, 300, 511, 512, 599};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        check_decode(&shapes[i], tokens, sizeof tokens / sizeof *tokens);
    }
}

static void more_parts_than_groups_are_joined(void **state) {
    (void)state;
    const struct attention_shape shape = {1, 1, 64, 64, 64, KVL_KV_F16, 2700};
    check_decode(&shape, (const uint32_t[]){2047, 2048, 2699}, 3);
}

static void other_sizes_take_the_general_kernel(void **state) {
    (void)state;
    const struct attention_shape shapes[] = {
        {4, 2, 8, 8, 16, KVL_KV_F16, 70},
        {3, 1, 16, 24, 5, KVL_KV_BF16, 70},
        {2, 2, 80, 80, 16, KVL_KV_F32, 70},
        {2, 1, 128, 128, 24, KVL_KV_F16, 70},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        check_prefill(&shapes[i], 70, 13);
        check_decode(&shapes[i], (const uint32_t[]){0, 31, 32, 69}, 4);
    }
}

/* ---- windows and caps ---- */

struct limits {
    uint32_t window;
    float softcap;
};

static void open_limited(struct attention_world *world, const struct attention_shape *shape,
    struct limits limits, uint64_t seed) {
    attention_world_init(world, &simulated, shape, seed);
    world->window = limits.window;
    world->softcap = limits.softcap;
}

/* Two ways of cutting, so that a token's window has left other blocks behind. */
static void check_limited_prefill(
    const struct attention_shape *shape, struct limits limits, uint32_t one, uint32_t other) {
    struct attention_world world;
    open_limited(&world, shape, limits, 3);
    attention_simulated_manner(true, false);
    uint16_t *first = prefill_in_chunks(&world, one);
    attention_simulated_manner(false, true);
    uint16_t *second = prefill_in_chunks(&world, other);
    attention_check_equal(&world, 0, second, first, shape->context, "in other chunks");
    free(first);
    free(second);
    attention_world_deinit(&world);
}

static void check_limited_decode(const struct attention_shape *shape, struct limits limits) {
    struct attention_world world;
    open_limited(&world, shape, limits, 4);
    uint16_t *out = malloc(attention_token_elements(&world) * sizeof *out);
    assert_non_null(out);
    const uint32_t tokens[] = {0, 17, 255, 256, 319, 511, 512, 575, 599};
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++) {
        const struct attention_call call = {.first = tokens[i],
            .tokens = 1,
            .phase = KVL_PHASE_DECODE,
            .position_max = i % 2 == 0 ? 1000 : 0};
        attention_simulated_manner(i % 2 == 0, i % 3 == 0);
        attention_run(&world, &call, out);
        attention_check_token(&world, tokens[i], out);
    }
    free(out);
    attention_world_deinit(&world);
}

static void windows_and_caps_are_right_in_prefill(void **state) {
    (void)state;
    const struct {
        struct attention_shape shape;
        struct limits limits;
    } cases[] = {
        {{4, 2, 64, 64, 16, KVL_KV_F16, 290}, {20, 0}}, /* less than a tile */
        {{4, 2, 64, 64, 16, KVL_KV_F16, 200}, {1, 0}},
        {{2, 1, 64, 64, 64, KVL_KV_BF16, 290}, {64, 3.0f}}, /* a tile */
        {{1, 1, 96, 96, 32, KVL_KV_F16, 290}, {100, 0}},    /* no whole number of tiles */
        {{3, 1, 128, 128, 64, KVL_KV_F32, 200}, {65, 2.5f}},
        {{1, 1, 128, 128, 16, KVL_KV_F16, 270}, {128, 0}},
        {{2, 1, 64, 64, 32, KVL_KV_F16, 150}, {1000, 0}}, /* more than the context */
        {{2, 2, 128, 128, 64, KVL_KV_BF16, 100}, {0, 4.0f}},
        {{2, 1, 256, 256, 16, KVL_KV_F16, 140}, {33, 3.0f}},
        {{1, 1, 256, 256, 64, KVL_KV_BF16, 140}, {70, 0}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check_limited_prefill(&cases[i].shape, cases[i].limits, 1000, 37);
    }
    const struct attention_shape one_by_one = {4, 1, 64, 64, 16, KVL_KV_F16, 140};
    check_limited_prefill(&one_by_one, (struct limits){37, 3.0f}, 140, 1);
}

static void windows_and_caps_are_right_in_decode(void **state) {
    (void)state;
    const struct {
        struct attention_shape shape;
        struct limits limits;
    } cases[] = {
        {{4, 1, 64, 64, 16, KVL_KV_F16, 600}, {1, 0}},
        {{8, 1, 128, 128, 64, KVL_KV_F16, 600}, {64, 3.0f}},
        {{6, 2, 96, 96, 32, KVL_KV_BF16, 600}, {100, 0}},
        {{3, 1, 64, 64, 128, KVL_KV_F32, 600}, {256, 0}},
        {{2, 2, 128, 128, 16, KVL_KV_F16, 600}, {257, 2.5f}},
        {{12, 1, 64, 64, 64, KVL_KV_BF16, 600}, {1000, 0}},
        {{2, 1, 96, 96, 64, KVL_KV_F16, 600}, {0, 4.0f}},
        {{8, 2, 256, 256, 32, KVL_KV_F16, 600}, {100, 3.0f}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check_limited_decode(&cases[i].shape, cases[i].limits);
    }
}

/* The first part that is joined is not the first of its group. */
static void parts_behind_a_window_are_not_joined(void **state) {
    (void)state;
    const struct attention_shape shape = {1, 1, 64, 64, 64, KVL_KV_F16, 4700};
    struct attention_world world;
    attention_simulated_manner(true, false);
    open_limited(&world, &shape, (struct limits){0, 0}, 6);
    uint16_t *out = malloc(attention_token_elements(&world) * sizeof *out);
    assert_non_null(out);
    for (world.window = 300; world.window < 3000; world.window += 2400) {
        const struct attention_call last = {.first = 4699, .tokens = 1, .phase = KVL_PHASE_DECODE};
        attention_run(&world, &last, out);
        attention_check_token(&world, last.first, out);
    }
    free(out);
    attention_world_deinit(&world);
}

static void the_general_kernel_has_windows_and_caps(void **state) {
    (void)state;
    const struct attention_shape shapes[] = {
        {4, 2, 8, 8, 16, KVL_KV_F16, 600},
        {3, 1, 16, 24, 5, KVL_KV_BF16, 600},
        {1, 1, 80, 80, 64, KVL_KV_F32, 600},
    };
    const struct limits limits[] = {{20, 0}, {32, 3.0f}, {70, 2.0f}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct attention_shape shorter = shapes[i];
        shorter.context = 130;
        check_limited_prefill(&shorter, limits[i], 130, 13);
        check_limited_decode(&shapes[i], limits[i]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prefill_has_the_right_values_in_every_chunking),
        cmocka_unit_test(few_rows_have_the_bits_of_many),
        cmocka_unit_test(few_rows_far_behind_take_their_own_kernels),
        cmocka_unit_test(many_rows_take_the_kernels_for_few_where_theirs_do_not_fit),
        cmocka_unit_test(scratch_is_enough_for_smaller_calls),
        cmocka_unit_test(single_tokens_are_prefilled_to_the_same_bits),
        cmocka_unit_test(decode_has_the_right_values_at_every_place),
        cmocka_unit_test(more_parts_than_groups_are_joined),
        cmocka_unit_test(other_sizes_take_the_general_kernel),
        cmocka_unit_test(windows_and_caps_are_right_in_prefill),
        cmocka_unit_test(windows_and_caps_are_right_in_decode),
        cmocka_unit_test(parts_behind_a_window_are_not_joined),
        cmocka_unit_test(the_general_kernel_has_windows_and_caps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
