/* attention.h - paged attention of a chunk's queries over the block table.
 *
 * Online softmax (Milakov and Gimelshein 2018; the tiling is FlashAttention's, Dao et al. 2022) in
 * one fixed structure: the context is cut, from position 0 on, into partitions of
 * KVL_PARTITION_TOKENS and these into tiles of KVL_TILE_TOKENS. A row goes through its tiles in
 * order, starts afresh in each partition, and joins the partitions in order. So its bits do not
 * depend on which rows it is computed with, nor on which thread takes which partition. Positions
 * that a window has left behind weigh 0, and tiles and partitions that hold nothing else are passed
 * over: before its window a row's sums are still +0, so that gives the same bits. */
#ifndef KVL_CPU_ATTENTION_H
#define KVL_CPU_ATTENTION_H

#include "cpu.h"

struct kvl_attention {
    struct kvl_cpu *cpu;
    const struct kvl_batch *batch; /* its blocks hold K and V of every position below `end` */
    uint32_t layer;
    uint32_t window; /* tokens that each sees, its own included; 0: all before it */
    uint32_t first;  /* position of the chunk's first token */
    uint32_t tokens; /* in the chunk: cpu->q to cpu->attended */
};

void kvl_attend(const struct kvl_attention *attention);

/* Where position p's K (and V) of a layer begins, and how its heads are spaced. */
struct kvl_kv_slot {
    uint8_t *key, *value;              /* head 0 */
    uint64_t key_stride, value_stride; /* bytes from head to head */
};
struct kvl_kv_slot kvl_kv_slot(const struct kvl_hparams *hparams, const struct kvl_batch *batch,
    uint32_t layer, uint32_t position);

#endif
