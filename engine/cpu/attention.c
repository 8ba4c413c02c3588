/* attention.c - see attention.h. Rows of a unit are (token, query head of one KV head), token by
 * token, so they share every converted key and value. */
#include "attention.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

struct kvl_kv_slot kvl_kv_slot(const struct kvl_hparams *hparams, const struct kvl_batch *batch,
    uint32_t layer, uint32_t position) {
    const uint64_t element = kvl_kv_dtype_bytes(batch->kv_dtype);
    const uint64_t keys = (uint64_t)hparams->kv_heads * batch->block_tokens * hparams->k_dim;
    const uint64_t values = (uint64_t)hparams->kv_heads * batch->block_tokens * hparams->v_dim;
    const uint64_t token = position % batch->block_tokens;
    const struct kvl_layer_place place = kvl_layer_place(hparams, layer);
    uint8_t *const *blocks = place.group == 0 ? batch->blocks : batch->window_blocks;
    uint8_t *of_layer =
        blocks[position / batch->block_tokens] + place.index * (keys + values) * element;
    return (struct kvl_kv_slot){
        .key = of_layer + token * hparams->k_dim * element,
        .value = of_layer + (keys + token * hparams->v_dim) * element,
        .key_stride = (uint64_t)batch->block_tokens * hparams->k_dim * element,
        .value_stride = (uint64_t)batch->block_tokens * hparams->v_dim * element,
    };
}

/* Some consecutive tokens of a span and one KV head, on one thread. */
struct rows {
    const struct kvl_attention *attention;
    const struct kvl_cpu_span *span;
    struct kvl_cpu_scratch *scratch;
    uint32_t kv_head;
    uint32_t first;     /* position */
    uint32_t chunk_row; /* of the first token */
    uint32_t tokens;
    uint32_t count; /* tokens * query heads of the KV head */
};

static uint32_t min_of(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

/* The tokens of a unit, within its span. */
struct part_of_span {
    const struct kvl_cpu_span *span;
    uint32_t kv_head, token, tokens;
};

static struct rows rows_of(
    const struct kvl_attention *attention, uint32_t thread, struct part_of_span part) {
    return (struct rows){
        .attention = attention,
        .span = part.span,
        .scratch = &attention->cpu->scratch[thread],
        .kv_head = part.kv_head,
        .first = part.span->position + part.token,
        .chunk_row = part.span->row + part.token,
        .tokens = part.tokens,
        .count = part.tokens * attention->cpu->group,
    };
}

/* How many of the tile's positions the row may see. */
static uint32_t visible(const struct rows *rows, uint32_t row, uint32_t tile, uint32_t count) {
    const uint32_t position = rows->first + row / rows->attention->cpu->group;
    return position < tile ? 0 : min_of(position - tile + 1, count);
}

/* How many of the positions from `tile` on the row's window has left behind, at most `count`. */
static uint32_t hidden(const struct rows *rows, uint32_t row, uint32_t tile, uint32_t count) {
    const uint32_t window = rows->attention->window;
    const uint32_t position = rows->first + row / rows->attention->cpu->group;
    if (window == 0 || position < window || position - window < tile) {
        return 0;
    }
    return min_of(position - window + 1 - tile, count);
}

static void load_queries(const struct rows *rows) {
    struct kvl_cpu *cpu = rows->attention->cpu;
    const struct kvl_hparams *h = &cpu->model->hparams;
    const uint32_t floats = cpu->group * h->k_dim; /* of a token: its heads are adjacent */
    for (uint32_t t = 0; t < rows->tokens; t++) {
        const size_t chunk_row = rows->chunk_row + t;
        const float *q = cpu->q + (chunk_row * h->heads + rows->kv_head * cpu->group) * h->k_dim;
        cpu->kernels->scale(
            q, floats, h->attention_scale, rows->scratch->queries + (size_t)t * floats);
    }
}

/* Where the keys and values of some consecutive positions are. */
struct tile_places {
    const uint8_t *keys[KVL_TILE_TOKENS], *values[KVL_TILE_TOKENS];
    uint32_t first, count;
};

/* One look-up in the block table per block. */
static void find_tile(const struct rows *rows, uint32_t tile, struct tile_places *places) {
    const struct kvl_attention *attention = rows->attention;
    const struct kvl_hparams *h = &attention->cpu->model->hparams;
    const struct kvl_batch *batch = rows->span->batch;
    const uint64_t element = kvl_kv_dtype_bytes(batch->kv_dtype);
    const uint32_t end_of_rows = rows->first + rows->tokens;
    const uint32_t count = tile < end_of_rows ? min_of(end_of_rows - tile, KVL_TILE_TOKENS) : 0;
    places->first = tile;
    places->count = count;
    for (uint32_t p = 0; p < count;) {
        const struct kvl_kv_slot slot = kvl_kv_slot(h, batch, attention->layer, tile + p);
        const uint8_t *key = slot.key + rows->kv_head * slot.key_stride;
        const uint8_t *value = slot.value + rows->kv_head * slot.value_stride;
        const uint32_t in_block = batch->block_tokens - (tile + p) % batch->block_tokens;
        const uint32_t end = min_of(count, p + in_block);
        for (; p < end; p++, key += h->k_dim * element, value += h->v_dim * element) {
            places->keys[p] = key;
            places->values[p] = value;
        }
    }
}

/* A tile as the kernels take it: some rows share it as unpacked strips, a few read it directly. */
struct tile {
    struct kvl_kv_tile keys, values;
    bool direct;
};

static void load_tile(const struct rows *rows, const struct tile_places *places,
    const struct tile_places *next, struct tile *tile) {
    const struct kvl_cpu *cpu = rows->attention->cpu;
    const struct kvl_hparams *h = &cpu->model->hparams;
    const enum kvl_kv_dtype dtype = rows->span->batch->kv_dtype;
    tile->keys =
        (struct kvl_kv_tile){places->keys, places->count, h->k_dim, dtype, next->keys, next->count};
    tile->values = (struct kvl_kv_tile){
        places->values, places->count, h->v_dim, dtype, next->values, next->count};
    tile->direct = rows->count <= KVL_DIRECT_ROWS;
    if (!tile->direct) {
        cpu->kernels->load_keys(&tile->keys, rows->scratch->keys);
        cpu->kernels->load_values(&tile->values, rows->scratch->values);
    }
}

/* scores[row][position] = query . key */
static void score_tile(const struct rows *rows, const struct tile *tile) {
    const struct kvl_cpu *cpu = rows->attention->cpu;
    const uint32_t k_dim = cpu->model->hparams.k_dim;
    if (tile->direct) {
        cpu->kernels->score_direct(
            &tile->keys, rows->scratch->queries, rows->count, rows->scratch->scores);
        return;
    }
    for (uint32_t p = 0; p < tile->keys.count; p += KVL_STRIP_ROWS) {
        cpu->kernels->gemm(&(struct kvl_gemm){
            .x = rows->scratch->queries,
            .x_stride = k_dim,
            .strip = rows->scratch->keys + (size_t)p * k_dim,
            .y = rows->scratch->scores + p,
            .y_stride = KVL_TILE_TOKENS,
            .rows = rows->count,
            .k = k_dim,
        });
    }
}

/* out[row] += weights[row][0..count) values, for rows that see the same `count` positions */
static void gather_values(const struct rows *rows, const struct tile *tile,
    struct kvl_attention_part part, uint32_t row, uint32_t row_count, uint32_t count) {
    const struct kvl_cpu *cpu = rows->attention->cpu;
    const float *weights = rows->scratch->scores + (size_t)row * KVL_TILE_TOKENS;
    float *out = part.out + (size_t)row * cpu->v_stride;
    if (tile->direct) {
        struct kvl_kv_tile seen = tile->values;
        seen.count = count;
        cpu->kernels->gather_direct(&seen, weights, row_count, out, cpu->v_stride);
        return;
    }
    for (uint32_t c = 0; c < cpu->v_stride; c += KVL_STRIP_ROWS) {
        cpu->kernels->gemm(&(struct kvl_gemm){
            .x = weights,
            .x_stride = KVL_TILE_TOKENS,
            .strip = rows->scratch->values + (size_t)c * KVL_TILE_TOKENS,
            .y = out + c,
            .y_stride = cpu->v_stride,
            .rows = row_count,
            .k = count,
            .accumulate = true,
        });
    }
}

/* A row's scores of a tile, of which it sees the first `seen`, become weights. */
static void weigh_tile(const struct rows *rows, struct kvl_attention_part part, uint32_t row,
    uint32_t tile, uint32_t seen) {
    const struct kvl_cpu *cpu = rows->attention->cpu;
    const float cap = cpu->model->hparams.attention_softcap;
    float *scores = rows->scratch->scores + (size_t)row * KVL_TILE_TOKENS;
    const uint32_t left_behind = hidden(rows, row, tile, seen);
    if (left_behind == seen) { /* nothing, or nothing any more */
        memset(scores, 0, seen * sizeof *scores);
        return;
    }
    if (cap != 0) {
        cpu->kernels->softcap(scores, seen, cap);
    }
    for (uint32_t p = 0; p < left_behind; p++) {
        scores[p] = -INFINITY;
    }
    cpu->kernels->softmax_tile(
        scores, seen, &part.softmax[row], part.out + (size_t)row * cpu->v_stride, cpu->v_stride);
}

static void attend_tile(const struct rows *rows, struct kvl_attention_part part,
    const struct tile_places *places, const struct tile_places *next) {
    const struct kvl_cpu *cpu = rows->attention->cpu;
    const uint32_t first = places->first, count = places->count;
    struct tile tile;
    load_tile(rows, places, next, &tile);
    score_tile(rows, &tile);
    for (uint32_t row = 0; row < rows->count; row++) {
        weigh_tile(rows, part, row, first, visible(rows, row, first, count));
    }
    if (visible(rows, 0, first, count) == count) {
        gather_values(rows, &tile, part, 0, rows->count, count);
        return;
    }
    for (uint32_t row = 0; row < rows->count; row += cpu->group) {
        gather_values(rows, &tile, part, row, cpu->group, visible(rows, row, first, count));
    }
}

/* next_partition: what this thread will probably attend afterwards, to be fetched meanwhile. */
static void attend_partition(const struct rows *rows, struct kvl_attention_part part,
    uint32_t partition, uint32_t next_partition) {
    const struct kvl_cpu *cpu = rows->attention->cpu;
    for (uint32_t row = 0; row < rows->count; row++) {
        part.softmax[row] = (struct kvl_softmax){.max = -INFINITY};
    }
    memset(part.out, 0, (size_t)rows->count * cpu->v_stride * sizeof(float));
    const uint32_t left_behind =
        hidden(rows, 0, partition * KVL_PARTITION_TOKENS, KVL_PARTITION_TOKENS);
    const uint32_t begin =
        partition * KVL_PARTITION_TOKENS + left_behind / KVL_TILE_TOKENS * KVL_TILE_TOKENS;
    const uint32_t end = min_of((partition + 1) * KVL_PARTITION_TOKENS, rows->first + rows->tokens);
    struct tile_places places[2]; /* this tile's and the next one's, in turns */
    find_tile(rows, begin, &places[0]);
    for (uint32_t tile = begin, turn = 0; tile < end; turn = 1 - turn) {
        tile += KVL_TILE_TOKENS;
        find_tile(
            rows, tile < end ? tile : next_partition * KVL_PARTITION_TOKENS, &places[1 - turn]);
        attend_tile(rows, part, &places[turn], &places[1 - turn]);
    }
}

/* Rows that saw nothing of the partition stay as they are: those before it, and those whose window
 * has left it behind. The first that a row saw is taken as it is. */
static void merge_partition(const struct rows *rows, struct kvl_attention_part total,
    struct kvl_attention_part part, uint32_t partition) {
    const struct kvl_cpu *cpu = rows->attention->cpu;
    for (uint32_t row = 0; row < rows->count; row++) {
        const uint32_t begin = partition * KVL_PARTITION_TOKENS;
        if (visible(rows, row, begin, 1) == 0 ||
            hidden(rows, row, begin, KVL_PARTITION_TOKENS) == KVL_PARTITION_TOKENS) {
            continue;
        }
        if (hidden(rows, row, 0, begin) == begin) {
            total.softmax[row] = part.softmax[row];
            memcpy(total.out + (size_t)row * cpu->v_stride, part.out + (size_t)row * cpu->v_stride,
                cpu->v_stride * sizeof(float));
        } else {
            cpu->kernels->softmax_merge(&total.softmax[row],
                total.out + (size_t)row * cpu->v_stride, &part.softmax[row],
                part.out + (size_t)row * cpu->v_stride, cpu->v_stride);
        }
    }
}

static void store_rows(const struct rows *rows, struct kvl_attention_part total) {
    struct kvl_cpu *cpu = rows->attention->cpu;
    const struct kvl_hparams *h = &cpu->model->hparams;
    for (uint32_t row = 0; row < rows->count; row++) {
        const size_t chunk_row = rows->chunk_row + row / cpu->group;
        const uint32_t head = rows->kv_head * cpu->group + row % cpu->group;
        cpu->kernels->scale(total.out + (size_t)row * cpu->v_stride, h->v_dim,
            1.0f / total.softmax[row].sum,
            cpu->attended + (chunk_row * h->heads + head) * h->v_dim);
    }
}

static uint32_t partitions_below(uint32_t end) {
    return end / KVL_PARTITION_TOKENS + (end % KVL_PARTITION_TOKENS != 0);
}

/* ---- many tokens: a unit is a block of them, all of the context ---- */

static uint32_t blocks_of(const struct kvl_cpu *cpu, const struct kvl_cpu_span *span) {
    return (span->tokens + cpu->query_tokens - 1) / cpu->query_tokens;
}

static void attend_block(const struct kvl_attention *attention, uint32_t thread,
    const struct kvl_cpu_span *span, uint32_t unit) {
    const struct kvl_cpu *cpu = attention->cpu;
    const uint32_t kv_heads = cpu->model->hparams.kv_heads;
    /* The last tokens see the most: taken first, they leave no thread waiting at the end. */
    const uint32_t token = (blocks_of(cpu, span) - 1 - unit / kv_heads) * cpu->query_tokens;
    const struct rows rows = rows_of(attention, thread,
        (struct part_of_span){
            span, unit % kv_heads, token, min_of(span->tokens - token, cpu->query_tokens)});
    load_queries(&rows);
    /* The first partition that the first row sees something of. */
    const uint32_t first = hidden(&rows, 0, 0, UINT32_MAX) / KVL_PARTITION_TOKENS;
    attend_partition(&rows, rows.scratch->total, first, first + 1);
    const uint32_t partitions = partitions_below(rows.first + rows.tokens);
    for (uint32_t partition = first + 1; partition < partitions; partition++) {
        attend_partition(&rows, rows.scratch->part, partition, partition + 1);
        merge_partition(&rows, rows.scratch->total, rows.scratch->part, partition);
    }
    store_rows(&rows, rows.scratch->total);
}

/* ---- a few tokens: a unit is one partition of the context ---- */

static struct kvl_attention_part split_part(const struct rows *rows, uint32_t partition) {
    const struct kvl_cpu *cpu = rows->attention->cpu;
    const size_t row = rows->span->split_row +
                       ((size_t)rows->kv_head * rows->span->partitions + partition) * rows->count;
    return (struct kvl_attention_part){
        cpu->split.softmax + row, cpu->split.out + row * cpu->v_stride};
}

static void merge_split(const struct rows *rows) {
    const struct kvl_attention_part total = split_part(rows, 0);
    for (uint32_t partition = 1; partition < rows->span->partitions; partition++) {
        merge_partition(rows, total, split_part(rows, partition), partition);
    }
    store_rows(rows, total);
}

static _Atomic uint32_t *partitions_left(
    const struct kvl_attention *attention, const struct kvl_cpu_span *span, uint32_t kv_head) {
    const uint32_t kv_heads = attention->cpu->model->hparams.kv_heads;
    return &attention->cpu->partitions_left[(span - attention->spans) * kv_heads + kv_head];
}

static void attend_split(const struct kvl_attention *attention, uint32_t thread,
    const struct kvl_cpu_span *span, uint32_t unit) {
    const uint32_t kv_head = unit / span->partitions;
    const uint32_t partition = unit % span->partitions;
    const struct rows rows =
        rows_of(attention, thread, (struct part_of_span){span, kv_head, 0, span->tokens});
    load_queries(&rows);
    attend_partition(&rows, split_part(&rows, partition), partition,
        partition + kvl_pool_threads(attention->cpu->pool));
    /* Acquires what the other threads released of their partitions. */
    if (atomic_fetch_sub_explicit(
            partitions_left(attention, span, kv_head), 1, memory_order_acq_rel) == 1) {
        merge_split(&rows);
    }
}

/* ---- all spans ---- */

/* Room in cpu->split is bounded: a span that finds none takes blocks of tokens, which give the same
 * bits, and there are enough other units for all threads then. */
void kvl_plan_attention(struct kvl_attention *attention) {
    const struct kvl_cpu *cpu = attention->cpu;
    const struct kvl_hparams *h = &cpu->model->hparams;
    uint64_t pairs_left = cpu->split_pairs;
    uint32_t units = 0;
    for (uint32_t i = 0; i < attention->span_count; i++) {
        struct kvl_cpu_span *span = &attention->spans[i];
        const uint32_t partitions = partitions_below(span->position + span->tokens);
        const uint64_t pairs = (uint64_t)span->tokens * partitions;
        span->partitions = 0;
        if (span->tokens > cpu->query_tokens || pairs > pairs_left) {
            continue;
        }
        span->partitions = partitions;
        span->split_row = (size_t)(cpu->split_pairs - pairs_left) * h->heads;
        span->first_unit = units;
        units += h->kv_heads * partitions;
        pairs_left -= pairs;
    }
    for (uint32_t i = 0; i < attention->span_count; i++) {
        struct kvl_cpu_span *span = &attention->spans[i];
        if (span->partitions == 0) {
            span->first_unit = units;
            units += h->kv_heads * blocks_of(cpu, span);
        }
    }
    attention->units = units;
}

static uint32_t units_of(const struct kvl_cpu *cpu, const struct kvl_cpu_span *span) {
    return cpu->model->hparams.kv_heads *
           (span->partitions != 0 ? span->partitions : blocks_of(cpu, span));
}

static void attend_unit(void *arg, uint32_t thread, uint32_t unit) {
    const struct kvl_attention *attention = arg;
    const struct kvl_cpu_span *span = attention->spans;
    while (unit < span->first_unit || unit - span->first_unit >= units_of(attention->cpu, span)) {
        span++;
    }
    if (span->partitions != 0) {
        attend_split(attention, thread, span, unit - span->first_unit);
    } else {
        attend_block(attention, thread, span, unit - span->first_unit);
    }
}

void kvl_attend(const struct kvl_attention *attention) {
    const uint32_t kv_heads = attention->cpu->model->hparams.kv_heads;
    for (uint32_t i = 0; i < attention->span_count; i++) {
        const struct kvl_cpu_span *span = &attention->spans[i];
        for (uint32_t head = 0; head < kv_heads && span->partitions != 0; head++) {
            atomic_store_explicit(
                partitions_left(attention, span, head), span->partitions, memory_order_relaxed);
        }
    }
    kvl_pool_run(attention->cpu->pool, attend_unit, (void *)attention, attention->units);
}
