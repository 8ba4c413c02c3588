/* pack.c - see pack.h. File formats (ggml-common.h, little endian), per 32 weights of a row:
 *   Q8_0  d f16, q[32] i8                  w = q * d
 *   Q4_1  d f16, m f16, q[16] u8           w = q * d + m; q[j] holds weight j in its low nibble
 *                                          and weight j + 16 in its high one */
#include "pack.h"

#include <stdlib.h>
#include <string.h>

#include "../huge_memory.h"
#include "../random_weights.h"
#include "half.h"
#include "kernels.h"

enum { BLOCK = 32, Q8_0_BYTES = 34, Q4_1_BYTES = 20, ROWS = KVL_PANEL_ROWS, CACHE_LINE = 64 };

static uint64_t row_bytes(uint32_t type, uint32_t columns) {
    switch (type) {
    case KVL_GGML_Q4_1:
        return (uint64_t)columns / BLOCK * Q4_1_BYTES;
    case KVL_GGML_Q8_0:
        return (uint64_t)columns / BLOCK * Q8_0_BYTES;
    case KVL_GGML_F16:
        return (uint64_t)columns * 2;
    default:
        return (uint64_t)columns * 4;
    }
}

static uint32_t type_of(const struct kvl_weight *weight) {
    return weight->tensor != NULL ? weight->tensor->type : (uint32_t)KVL_GGML_F16;
}

static struct kvl_random_tensor random_tensor(const struct kvl_weight *weight) {
    return kvl_random_tensor_of(weight->random_seed, weight->random_number, weight->columns);
}

/* ---- one row into its place in a panel ---- */

static void pack_random(
    const struct kvl_weight *weight, uint64_t row, uint8_t *panel, uint32_t lane) {
    const struct kvl_random_tensor tensor = random_tensor(weight);
    for (uint32_t k = 0; k < weight->columns; k++) {
        const uint16_t half = kvl_f32_to_f16(kvl_random_value(tensor, row * weight->columns + k));
        memcpy(panel + ((size_t)k * ROWS + lane) * 2, &half, sizeof half);
    }
}

static void pack_f32(const uint8_t *row, uint32_t columns, uint8_t *panel, uint32_t lane) {
    for (uint32_t k = 0; k < columns; k++) {
        memcpy(panel + ((size_t)k * ROWS + lane) * 4, row + (size_t)k * 4, 4);
    }
}

static void pack_f16(const uint8_t *row, uint32_t columns, uint8_t *panel, uint32_t lane) {
    for (uint32_t k = 0; k < columns; k++) {
        memcpy(panel + ((size_t)k * ROWS + lane) * 2, row + (size_t)k * 2, 2);
    }
}

static void pack_q8_0(const uint8_t *row, uint32_t columns, uint8_t *panel, uint32_t lane) {
    for (uint32_t k = 0; k < columns; k += BLOCK) {
        memcpy(panel + lane * 2, row, 2);
        uint8_t *quants = panel + ROWS * 2 + lane * 4;
        for (uint32_t group = 0; group < BLOCK / 4; group++) {
            memcpy(quants + group * ROWS * 4, row + 2 + group * 4, 4);
        }
        row += Q8_0_BYTES;
        panel += ROWS * Q8_0_BYTES;
    }
}

/* The low nibbles of 8 bytes, first byte lowest. */
static uint32_t gather_nibbles(uint64_t bytes) {
    bytes &= 0x0F0F0F0F0F0F0F0F;
    bytes = (bytes | bytes >> 4) & 0x00FF00FF00FF00FF;
    bytes = (bytes | bytes >> 8) & 0x0000FFFF0000FFFF;
    return (uint32_t)(bytes | bytes >> 16);
}

static void pack_q4_1(const uint8_t *row, uint32_t columns, uint8_t *panel, uint32_t lane) {
    for (uint32_t k = 0; k < columns; k += BLOCK) {
        memcpy(panel + lane * 2, row, 2);
        memcpy(panel + ROWS * 2 + lane * 2, row + 2, 2);
        uint8_t *quants = panel + ROWS * 4 + lane * 4;
        for (uint32_t group = 0; group < 4; group++) {
            uint64_t bytes;
            memcpy(&bytes, row + 4 + group % 2 * 8, sizeof bytes);
            const uint32_t nibbles = gather_nibbles(group < 2 ? bytes : bytes >> 4);
            memcpy(quants + group * ROWS * 4, &nibbles, 4);
        }
        row += Q4_1_BYTES;
        panel += ROWS * Q4_1_BYTES;
    }
}

/* ---- a model's matrices ---- */

struct pack_job {
    const struct kvl_pack_item *items;
};

static void pack_panel(const struct kvl_pack_item *item, uint32_t index) {
    const struct kvl_packed *packed = item->packed;
    uint8_t *panel = packed->panels + index * packed->panel_bytes;
    const uint64_t bytes = row_bytes(packed->type, packed->columns);
    for (uint32_t lane = 0; lane < ROWS; lane++) {
        const uint64_t row_index = (uint64_t)index * ROWS + lane;
        if (row_index >= packed->rows) {
            break; /* fresh memory is zero */
        }
        if (item->weight->tensor == NULL) {
            pack_random(item->weight, row_index, panel, lane);
            continue;
        }
        const uint8_t *row = (const uint8_t *)item->weight->tensor->data + row_index * bytes;
        switch (packed->type) {
        case KVL_GGML_Q4_1:
            pack_q4_1(row, packed->columns, panel, lane);
            break;
        case KVL_GGML_Q8_0:
            pack_q8_0(row, packed->columns, panel, lane);
            break;
        case KVL_GGML_F16:
            pack_f16(row, packed->columns, panel, lane);
            break;
        default:
            pack_f32(row, packed->columns, panel, lane);
        }
    }
}

/* A unit is a panel of any of the matrices. */
static void pack_unit(void *arg, uint32_t thread, uint32_t unit) {
    (void)thread;
    const struct pack_job *job = arg;
    const struct kvl_pack_item *item = job->items;
    while (unit >= item->packed->panel_count) {
        unit -= item->packed->panel_count;
        item++;
    }
    pack_panel(item, unit);
}

static void shape(const struct kvl_weight *weight, struct kvl_packed *out) {
    *out = (struct kvl_packed){
        .panel_bytes = row_bytes(type_of(weight), weight->columns) * ROWS,
        .panel_count = (uint32_t)(((uint64_t)weight->rows + ROWS - 1) / ROWS),
        .type = type_of(weight),
        .rows = weight->rows,
        .columns = weight->columns,
    };
}

/* Where each matrix starts. Nothing overflows: the file holds as much, but for the last panels; a
 * random matrix is at most 2^45 bytes. */
static uint64_t place(const struct kvl_pack_item *items, uint32_t count, uint8_t *base) {
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct kvl_packed *packed = items[i].packed;
        packed->panels = base == NULL ? NULL : base + bytes;
        bytes += packed->panel_bytes * packed->panel_count;
        bytes = (bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    }
    return bytes;
}

kvl_err kvl_pack(const struct kvl_pack_item *items, uint32_t count, struct kvl_pool *pool,
    struct kvl_packed_memory *memory, struct kvl_errmsg *msg) {
    uint64_t panels = 0;
    for (uint32_t i = 0; i < count; i++) {
        shape(items[i].weight, items[i].packed);
        panels += items[i].packed->panel_count;
    }
    memory->bytes = place(items, count, NULL);
    memory->base = panels > UINT32_MAX ? NULL : kvl_huge_map(memory->bytes);
    if (memory->base == NULL) {
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory for %llu MiB of packed weights",
            (unsigned long long)(memory->bytes >> 20));
    }
    (void)place(items, count, memory->base);
    kvl_pool_run(pool, pack_unit, &(struct pack_job){items}, (uint32_t)panels);
    return KVL_OK;
}

void kvl_packed_free(struct kvl_packed_memory *memory) {
    kvl_huge_unmap(memory->base, memory->bytes);
    *memory = (struct kvl_packed_memory){0};
}

/* ---- one row as f32 ---- */

static float f16_at(const uint8_t *bytes) {
    uint16_t half;
    memcpy(&half, bytes, sizeof half);
    return kvl_f16_to_f32(half);
}

static void unpack_q4_1(const uint8_t *row, uint32_t columns, float *out) {
    for (uint32_t k = 0; k < columns; k += BLOCK, row += Q4_1_BYTES) {
        const float d = f16_at(row);
        const float m = f16_at(row + 2);
        for (uint32_t j = 0; j < BLOCK / 2; j++) {
            out[k + j] = (float)(row[4 + j] & 15) * d + m;
            out[k + j + BLOCK / 2] = (float)(row[4 + j] >> 4) * d + m;
        }
    }
}

static void unpack_q8_0(const uint8_t *row, uint32_t columns, float *out) {
    for (uint32_t k = 0; k < columns; k += BLOCK, row += Q8_0_BYTES) {
        const float d = f16_at(row);
        for (uint32_t j = 0; j < BLOCK; j++) {
            out[k + j] = (float)(int8_t)row[2 + j] * d;
        }
    }
}

static void unpack_random(const struct kvl_weight *weight, uint32_t row, float *out) {
    const struct kvl_random_tensor tensor = random_tensor(weight);
    for (uint32_t k = 0; k < weight->columns; k++) {
        out[k] = kvl_random_value(tensor, (uint64_t)row * weight->columns + k);
    }
}

void kvl_unpack_row(const struct kvl_weight *weight, uint32_t row, float *out) {
    if (weight->tensor == NULL) {
        unpack_random(weight, row, out);
        return;
    }
    const uint32_t type = weight->tensor->type;
    const uint8_t *data =
        (const uint8_t *)weight->tensor->data + row * row_bytes(type, weight->columns);
    switch (type) {
    case KVL_GGML_Q4_1:
        unpack_q4_1(data, weight->columns, out);
        break;
    case KVL_GGML_Q8_0:
        unpack_q8_0(data, weight->columns, out);
        break;
    case KVL_GGML_F16:
        for (uint32_t k = 0; k < weight->columns; k++) {
            out[k] = f16_at(data + (size_t)k * 2);
        }
        break;
    default:
        memcpy(out, data, (size_t)weight->columns * 4);
    }
}
