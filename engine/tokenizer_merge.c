/* tokenizer_merge.c - joins neighbouring symbols, best pair first, with a heap of candidates: both
 * tokenizers are this loop with another rule. O(n log n). */
#include <stdlib.h>

#include "tokenizer_internal.h"

#define NO_SYMBOL UINT32_MAX

static kvl_err reserve(void **items, uint64_t *capacity, uint64_t needed, uint64_t item_bytes) {
    if (needed <= *capacity) {
        return KVL_OK;
    }
    uint64_t wanted = needed > *capacity * 2 ? needed : *capacity * 2;
    uint64_t bytes;
    if (__builtin_mul_overflow(wanted, item_bytes, &bytes)) {
        return KVL_ERR_NOMEM;
    }
    void *grown = realloc(*items, bytes);
    if (!grown) {
        return KVL_ERR_NOMEM;
    }
    *items = grown;
    *capacity = wanted;
    return KVL_OK;
}

void kvl_merger_clear(struct kvl_merger *merger) {
    merger->count = 0;
    merger->heap_count = 0;
}

void kvl_merger_free(struct kvl_merger *merger) {
    free(merger->symbols);
    free(merger->heap);
    *merger = (struct kvl_merger){0};
}

kvl_err kvl_merger_add(struct kvl_merger *merger, const char *text, uint32_t bytes, uint32_t id) {
    kvl_err err = reserve(
        (void **)&merger->symbols, &merger->capacity, merger->count + 1, sizeof *merger->symbols);
    if (err) {
        return err;
    }
    uint32_t at = (uint32_t)merger->count++;
    merger->symbols[at] = (struct kvl_symbol){text, bytes, id, at > 0 ? at - 1 : NO_SYMBOL, at + 1};
    return KVL_OK;
}

static void heap_push(struct kvl_merger *merger, struct kvl_merge_candidate candidate) {
    struct kvl_merge_candidate *heap = merger->heap;
    uint64_t at = merger->heap_count++;
    while (at > 0 && heap[(at - 1) / 2].key > candidate.key) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = candidate;
}

static struct kvl_merge_candidate heap_pop(struct kvl_merger *merger) {
    struct kvl_merge_candidate *heap = merger->heap;
    struct kvl_merge_candidate top = heap[0];
    struct kvl_merge_candidate last = heap[--merger->heap_count];
    uint64_t at = 0;
    for (;;) {
        uint64_t child = 2 * at + 1;
        if (child + 1 < merger->heap_count && heap[child + 1].key < heap[child].key) {
            child++;
        }
        if (child >= merger->heap_count || heap[child].key >= last.key) {
            break;
        }
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    return top;
}

struct merge_job {
    struct kvl_merger *merger;
    kvl_merge_rule *rule;
    const struct kvl_tokenizer *tokenizer;
};

static void propose(const struct merge_job *job, uint32_t left, uint32_t right) {
    if (left == NO_SYMBOL || right == NO_SYMBOL) {
        return;
    }
    const struct kvl_symbol *symbols = job->merger->symbols;
    uint32_t priority, merged;
    if (job->rule(job->tokenizer, &symbols[left], &symbols[right], &priority, &merged)) {
        heap_push(job->merger, (struct kvl_merge_candidate){(uint64_t)priority << 32 | left, right,
                                   symbols[left].bytes + symbols[right].bytes, merged});
    }
}

static void join(const struct merge_job *job, const struct kvl_merge_candidate *candidate) {
    struct kvl_symbol *symbols = job->merger->symbols;
    uint32_t at = (uint32_t)candidate->key;
    struct kvl_symbol *left = &symbols[at], *right = &symbols[candidate->right];
    if (left->bytes == 0 || right->bytes == 0 || left->bytes + right->bytes != candidate->bytes) {
        return;
    }
    left->bytes = candidate->bytes;
    left->id = candidate->merged;
    left->next = right->next;
    right->bytes = 0;
    if (left->next != NO_SYMBOL) {
        symbols[left->next].previous = at;
    }
    propose(job, left->previous, at);
    propose(job, at, left->next);
}

kvl_err kvl_merger_run(
    struct kvl_merger *merger, kvl_merge_rule *rule, const struct kvl_tokenizer *tokenizer) {
    struct merge_job job = {merger, rule, tokenizer};
    if (merger->count == 0) {
        return KVL_OK;
    }
    /* count - 1 pairs to begin with; each of at most count - 1 joins takes one and adds two */
    kvl_err err = reserve(
        (void **)&merger->heap, &merger->heap_capacity, 2 * merger->count, sizeof *merger->heap);
    if (err) {
        return err;
    }
    merger->symbols[merger->count - 1].next = NO_SYMBOL;
    for (uint32_t i = 1; i < merger->count; i++) {
        propose(&job, i - 1, i);
    }
    while (merger->heap_count > 0) {
        struct kvl_merge_candidate best = heap_pop(merger);
        join(&job, &best);
    }
    return KVL_OK;
}
