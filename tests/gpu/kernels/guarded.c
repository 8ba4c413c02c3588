/* guarded.c - see guarded.h. */
#include "guarded.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/half.h"
#include "random_weights.h"

enum { GUARD_BYTES = 1024 /* keeps cudaMalloc's alignment */, PIECES_MAX = 64 };
/* As f32 195.3, so that softcap changes it; as f16 3.6. */
enum { CANARY = 0x43 };

/* Device memory: data at base + guard, `bytes` long, and as much of a guard behind. */
struct piece {
    uint8_t *base;
    uint64_t bytes, guard;
};

static cudaStream_t stream;
static struct piece pieces[PIECES_MAX];
static void *hosts[PIECES_MAX];
static uint32_t piece_count, host_count;

bool guarded_is_small(void) {
    return getenv("KVL_GPU_SMALL") != NULL;
}

bool guarded_open(void) {
    const cudaError_t err = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    if (err != cudaSuccess) {
        printf("no stream on the GPU: %s\n", cudaGetErrorString(err));
    }
    return err == cudaSuccess;
}

cudaStream_t guarded_stream(void) {
    return stream;
}

void guarded_close(void) {
    (void)cudaStreamDestroy(stream);
}

static void check(cudaError_t err, const char *what) {
    if (err != cudaSuccess) {
        fail_msg("%s: %s: %s", what, cudaGetErrorName(err), cudaGetErrorString(err));
    }
}

int guarded_release(void **state) {
    (void)state;
    int failed = 0;
    while (piece_count > 0) {
        failed |= cudaFree(pieces[--piece_count].base) != cudaSuccess;
    }
    while (host_count > 0) {
        free(hosts[--host_count]);
    }
    return failed;
}

void *guarded_host(uint64_t bytes) {
    assert_true(host_count < PIECES_MAX);
    void *memory = calloc(1, bytes);
    assert_non_null(memory);
    hosts[host_count++] = memory;
    return memory;
}

static uint8_t *take_piece(uint64_t bytes, uint64_t guard) {
    assert_true(piece_count < PIECES_MAX);
    void *base = NULL;
    check(cudaMalloc(&base, bytes + 2 * guard), "cudaMalloc");
    pieces[piece_count++] = (struct piece){base, bytes, guard};
    return base;
}

static void put(void *device, const void *host, uint64_t bytes) {
    check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream), "copy to device");
    check(cudaStreamSynchronize(stream), "copy to device");
}

void *guarded_input(const void *host, uint64_t bytes) {
    uint8_t *data = take_piece(bytes, 0);
    put(data, host, bytes);
    return data;
}

void *guarded_output(const void *initial, uint64_t bytes) {
    uint8_t *base = take_piece(bytes, GUARD_BYTES);
    check(cudaMemsetAsync(base, CANARY, bytes + (uint64_t)2 * GUARD_BYTES, stream), "canaries");
    check(cudaMemsetAsync(base + GUARD_BYTES, 0xFF, bytes, stream), "filling with ones");
    check(cudaStreamSynchronize(stream), "filling with ones");
    if (initial != NULL) {
        put(base + GUARD_BYTES, initial, bytes);
    }
    return base + GUARD_BYTES;
}

static const struct piece *piece_of(const void *output) {
    for (uint32_t i = 0; i < piece_count; i++) {
        if (pieces[i].guard > 0 && pieces[i].base + pieces[i].guard == output) {
            return &pieces[i];
        }
    }
    fail_msg("not an output");
    return NULL;
}

static void check_canary(const uint8_t *guard, const char *side, const char *what) {
    for (uint32_t i = 0; i < GUARD_BYTES; i++) {
        if (guard[i] != CANARY) {
            fail_msg(
                "%s: wrote %s the output: byte %u of the guard is 0x%02x", what, side, i, guard[i]);
        }
    }
}

const void *guarded_result(cudaError_t launched, const void *output, const char *what) {
    check(launched, what);
    check(cudaStreamSynchronize(stream), what);
    const struct piece *piece = piece_of(output);
    const uint64_t bytes = piece->bytes + 2 * piece->guard;
    uint8_t *host = guarded_host(bytes);
    check(cudaMemcpyAsync(host, piece->base, bytes, cudaMemcpyDeviceToHost, stream), what);
    check(cudaStreamSynchronize(stream), what);
    check_canary(host, "before", what);
    check_canary(host + piece->guard + piece->bytes, "behind", what);
    return host + piece->guard;
}

float random_float(uint64_t *seed) {
    return (float)(kvl_random_mix(*seed += KVL_RANDOM_GOLDEN) >> 40) * 0x1p-23f - 1.0f;
}

float *random_floats(uint64_t *seed, uint64_t count, float scale) {
    float *values = guarded_host(count * sizeof *values);
    for (uint64_t i = 0; i < count; i++) {
        values[i] = scale * random_float(seed);
    }
    return values;
}

uint16_t *random_halves(uint64_t *seed, uint64_t count, float scale) {
    uint16_t *values = guarded_host(count * sizeof *values);
    for (uint64_t i = 0; i < count; i++) {
        values[i] = kvl_f32_to_f16(scale * random_float(seed));
    }
    return values;
}

static double element_of(const void *elements, uint64_t i, enum kvl_kv_dtype type) {
    switch (type) {
    case KVL_KV_F16:
        return kvl_f16_to_f32(((const uint16_t *)elements)[i]);
    case KVL_KV_BF16:
        return kvl_bf16_to_f32(((const uint16_t *)elements)[i]);
    case KVL_KV_F32:
        break;
    }
    return ((const float *)elements)[i];
}

/* Of a value, to the nearest of the type; f16 also below its normal range. */
static double rounding(double value, enum kvl_kv_dtype type) {
    const double size = fabs(value);
    return type == KVL_KV_F16    ? fmax(size * 0x1p-11, 0x1p-25)
           : type == KVL_KV_BF16 ? size * 0x1p-8
                                 : size * 0x1p-24;
}

static bool is_untouched(const void *elements, uint64_t i, uint32_t element_bytes) {
    static const uint8_t ones[8] = {0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF};
    return memcmp((const uint8_t *)elements + i * element_bytes, ones, element_bytes) == 0;
}

void expect_elements(const char *what, enum kvl_kv_dtype type, const void *got,
    const struct expected *expected, uint64_t count, uint32_t columns) {
    for (uint64_t i = 0; i < count; i++) {
        const unsigned long long row = i / columns, column = i % columns;
        const double value = element_of(got, i, type);
        if (isnan(expected[i].value)) {
            if (!is_untouched(got, i, (uint32_t)kvl_kv_dtype_bytes(type))) {
                fail_msg("%s: %.9g in row %llu, column %llu, where nothing belongs", what, value,
                    row, column);
            }
            continue;
        }
        const double largest = type == KVL_KV_F16 ? 65504.0 : INFINITY;
        const double wanted = fmin(fmax(expected[i].value, -largest), largest);
        const double allowed = expected[i].slack + rounding(wanted, type);
        if (!(fabs(value - wanted) <= allowed)) {
            fail_msg("%s: row %llu, column %llu is %.9g, expected %.9g +- %.3g", what, row, column,
                value, wanted, allowed);
        }
    }
}

void expect_bits(const char *what, const void *got, const void *expected, uint64_t count,
    uint32_t element_bytes) {
    const uint8_t *a = got, *b = expected;
    assert_true(element_bytes <= sizeof(uint64_t));
    for (uint64_t i = 0; i < count; i++, a += element_bytes, b += element_bytes) {
        if (memcmp(a, b, element_bytes) != 0) {
            uint64_t has = 0, wanted = 0; /* little-endian */
            memcpy(&has, a, element_bytes);
            memcpy(&wanted, b, element_bytes);
            fail_msg("%s: element %llu is 0x%llx, expected 0x%llx", what, (unsigned long long)i,
                (unsigned long long)has, (unsigned long long)wanted);
        }
    }
}

double reference_activation(double x, bool gelu) {
    return gelu ? 0.5 * x * (1 + tanh(sqrt(2 / acos(-1.0)) * (x + 0.044715 * x * x * x)))
                : x / (1 + exp(-x));
}
