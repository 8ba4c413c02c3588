/* pack.c - see pack.h. A row of the file goes to its lane of a panel, block by block; what a block
 * holds is quant.c's business, where it goes in a panel is drawn in kernels.h. */
#include "pack.h"

#include <stdlib.h>
#include <string.h>

#include "../huge_memory.h"
#include "../quant.h"
#include "../random_weights.h"
#include "half.h"
#include "kernels.h"

enum { ROWS = KVL_PANEL_ROWS, CACHE_LINE = 64, TILE_COLUMNS = 32 };

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

/* Element k of each row to [k][32] of out. */
static void spread(const uint8_t *row, uint32_t columns, uint32_t bytes, uint8_t *out) {
    for (uint32_t k = 0; k < columns && bytes == 2; k++) {
        memcpy(out + (size_t)k * ROWS * 2, row + (size_t)k * 2, 2);
    }
    for (uint32_t k = 0; k < columns && bytes == 4; k++) {
        memcpy(out + (size_t)k * ROWS * 4, row + (size_t)k * 4, 4);
    }
}

/* All rows of a panel, a few columns at a time: the cache lines that these are spread over stay in
 * the first-level cache until they are whole. */
static void pack_elements(const uint8_t *rows, const struct kvl_packed *packed, uint32_t lanes,
    uint32_t bytes, uint8_t *panel) {
    const size_t row_bytes = (size_t)packed->columns * bytes;
    for (uint32_t k = 0; k < packed->columns; k += TILE_COLUMNS) {
        const uint32_t left = packed->columns - k;
        const uint32_t columns = left < TILE_COLUMNS ? left : TILE_COLUMNS;
        for (uint32_t lane = 0; lane < lanes; lane++) {
            spread(rows + lane * row_bytes + (size_t)k * bytes, columns, bytes,
                panel + ((size_t)k * ROWS + lane) * bytes);
        }
    }
}

static bool has_min_array(const struct kvl_quant *quant) {
    return quant->min != KVL_QUANT_NO_MIN && quant->scale_bits == 8;
}

static uint64_t panel_block_bytes(const struct kvl_quant *quant) {
    const uint64_t halves = quant->min == KVL_QUANT_NO_MIN ? 1 : 2;
    const uint64_t groups = quant->scale_bits == 0 ? 0 : quant->block / quant->group;
    return ROWS * (halves * 2 + groups * (has_min_array(quant) ? 2 : 1) +
                      (uint64_t)quant->block * quant->bits / 8);
}

/* Scales and minima; returns where the codes begin. */
static uint8_t *pack_scales(const struct kvl_quant *quant, const struct kvl_quant_block *block,
    uint8_t *out, uint32_t lane) {
    memcpy(out + lane * 2, &block->d, 2);
    out += ROWS * 2;
    if (quant->min != KVL_QUANT_NO_MIN) {
        memcpy(out + lane * 2, &block->m, 2);
        out += ROWS * 2;
    }
    const uint32_t groups = quant->scale_bits == 0 ? 0 : quant->block / quant->group;
    for (uint32_t g = 0; g < groups; g++, out += ROWS) {
        out[lane] = (uint8_t)(quant->scale_bits == 8 ? block->scales[g]
                                                     : block->scales[g] | block->mins[g] << 4);
    }
    for (uint32_t g = 0; g < groups && has_min_array(quant); g++, out += ROWS) {
        out[lane] = (uint8_t)block->mins[g];
    }
    return out;
}

/* Bits `from` to `from + bits - 1` of 32 codes, as words; returns where the next plane begins. */
static uint8_t *pack_plane(
    const uint8_t *codes, uint32_t from, uint32_t bits, uint8_t *out, uint32_t lane) {
    const uint32_t mask = bits == 8 ? UINT32_MAX : ((1u << bits) - 1) * 0x01010101u;
    for (uint32_t k = 0; k < 32; out += ROWS * 4) {
        uint32_t word = 0;
        for (uint32_t at = 0; at < 8; at += bits, k += 4) {
            uint32_t quad;
            memcpy(&quad, codes + k, 4);
            word |= (quad >> from & mask) << at;
        }
        memcpy(out + lane * 4, &word, 4);
    }
    return out;
}

static void pack_codes(
    const struct kvl_quant *quant, const uint8_t *codes, uint8_t *out, uint32_t lane) {
    const uint32_t low = quant->bits >= 4 ? quant->bits / 4 * 4 : 2;
    for (uint32_t k = 0; k < quant->block; k += 32) {
        out = pack_plane(codes + k, 0, low, out, lane);
        if (quant->bits > low) {
            out = pack_plane(codes + k, low, quant->bits - low, out, lane);
        }
    }
}

static void pack_quantized(const struct kvl_quant *quant, const uint8_t *row, uint32_t columns,
    uint32_t row_block_bytes, uint8_t *panel, uint32_t lane) {
    struct kvl_quant_block block = {0};
    const bool is_signed = quant->bits == 4 && quant->offset == 8;
    for (uint32_t k = 0; k < columns; k += quant->block, row += row_block_bytes) {
        quant->split(row, &block);
        for (uint32_t i = 0; i < quant->block && is_signed; i++) {
            block.codes[i] ^= 8; /* code - 8 in 4 bits */
        }
        pack_codes(quant, block.codes, pack_scales(quant, &block, panel, lane), lane);
        panel += panel_block_bytes(quant);
    }
}

static uint64_t panel_bytes_of(uint32_t type, uint32_t columns) {
    const struct kvl_quant *quant = kvl_quant_of(type);
    return quant == NULL ? kvl_row_bytes(type, columns) * ROWS
                         : columns / quant->block * panel_block_bytes(quant);
}

/* ---- a model's matrices ---- */

struct pack_job {
    const struct kvl_pack_item *items;
};

/* Lanes past the last row stay as they are: fresh memory is zero. */
static void pack_panel(const struct kvl_pack_item *item, uint32_t index) {
    const struct kvl_packed *packed = item->packed;
    const struct kvl_quant *quant = kvl_quant_of(packed->type);
    const uint32_t block_bytes = kvl_ggml_layout(packed->type)->block_bytes;
    const uint64_t row_bytes = kvl_row_bytes(packed->type, packed->columns);
    const uint64_t first = (uint64_t)index * ROWS;
    const uint32_t lanes = packed->rows - first < ROWS ? (uint32_t)(packed->rows - first) : ROWS;
    uint8_t *panel = packed->panels + index * packed->panel_bytes;
    if (item->weight->tensor == NULL) {
        for (uint32_t lane = 0; lane < lanes; lane++) {
            pack_random(item->weight, first + lane, panel, lane);
        }
        return;
    }
    const uint8_t *rows = (const uint8_t *)item->weight->tensor->data + first * row_bytes;
    if (quant == NULL) {
        pack_elements(rows, packed, lanes, block_bytes, panel);
        return;
    }
    for (uint32_t lane = 0; lane < lanes; lane++) {
        pack_quantized(quant, rows + lane * row_bytes, packed->columns, block_bytes, panel, lane);
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
        .panel_bytes = panel_bytes_of(type_of(weight), weight->columns),
        .panel_count = (uint32_t)(((uint64_t)weight->rows + ROWS - 1) / ROWS),
        .type = type_of(weight),
        .rows = weight->rows,
        .columns = weight->columns,
    };
}

/* Where each matrix starts. Nothing overflows: the file holds about as much, but for the last
 * panels; a random matrix is at most 2^45 bytes. */
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
    const uint64_t offset = row * kvl_row_bytes(type, weight->columns);
    kvl_dequantize_row(type, (const uint8_t *)weight->tensor->data + offset, weight->columns, out);
}
