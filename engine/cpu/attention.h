/* attention.h - paged attention of a chunk's queries, each span's over its own block table.
 *
 * Online softmax (Milakov and Gimelshein 2018; the tiling is FlashAttention's, Dao et al. 2022) in
 * one fixed structure: the context is cut, from position 0 on, into partitions of
 * KVL_PARTITION_TOKENS and these into tiles of KVL_TILE_TOKENS. A row goes through its tiles in
 * order, starts afresh in each partition, and joins the partitions in order. So its bits do not
 * depend on which rows it is computed with, nor on which thread takes which partition. Positions
 * that a window has left behind weigh 0, and tiles and partitions that hold nothing else are passed
 * over: before its window a row's sums are still +0, so that gives the same bits.
 *
 * All spans of a chunk are attended in one run of the pool. A unit is one KV head of a span and,
 * where the span has a few tokens, one partition of its context: whoever ends the last partition of
 * a head joins them. Where it has many, a unit is a block of tokens and all of their context; these
 * come behind the others, since they are the larger ones (pool.h: single units last). */
#ifndef KVL_CPU_ATTENTION_H
#define KVL_CPU_ATTENTION_H

#include "cpu.h"

struct kvl_attention {
    struct kvl_cpu *cpu;
    struct kvl_cpu_span *spans; /* blocks hold K and V of every position up to the span's last */
    uint32_t span_count;
    uint32_t units; /* set by kvl_plan_attention */
    uint32_t layer;
    uint32_t window; /* tokens that each sees, its own included; 0: all before it */
};

/* Once a chunk: how its spans are cut into units. */
void kvl_plan_attention(struct kvl_attention *attention);
/* cpu->q to cpu->attended, of all rows. */
void kvl_attend(const struct kvl_attention *attention);

/* Where position p's K (and V) of a layer begins, and how its heads are spaced. */
struct kvl_kv_slot {
    uint8_t *key, *value;              /* head 0 */
    uint64_t key_stride, value_stride; /* bytes from head to head */
};
struct kvl_kv_slot kvl_kv_slot(const struct kvl_hparams *hparams, const struct kvl_batch *batch,
    uint32_t layer, uint32_t position);

#endif
