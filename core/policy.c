/* policy.c - the eviction policies by name, and the first of them: least recently used.
 *
 * lru is a list for each group, threaded through chunks of nodes, one node per block number; a
 * chunk exists once one of its blocks was in the tier. Chains are sealed root first, so the oldest
 * blocks of a list are parents that may not go yet. victim() therefore turns the run that it had to
 * skip around: the next call finds the skipped blocks deepest first, and a chain of n blocks costs
 * O(n) steps to evict, not O(n^2). */
#include "policy.h"

#include <stdlib.h>
#include <string.h>

#define KVL_LRU_CHUNK 1024u
#define KVL_LRU_END UINT32_MAX /* a link that leads nowhere; 0: the block is not listed */

struct node {
    uint32_t newer; /* number + 1 */
    uint32_t older;
};

struct list {
    uint32_t newest; /* number + 1, or END */
    uint32_t oldest;
};

struct lru {
    struct kvl_policy policy;
    struct node **chunks;
    uint32_t chunk_count;
    uint32_t list_count;
    struct list *lists; /* by group */
};

static kvl_err lru_create(struct kvl_policy **out) {
    struct lru *lru = calloc(1, sizeof(*lru));
    if (lru == NULL)
        return KVL_ERR_NOMEM;
    lru->policy.ops = &kvl_policy_lru;
    *out = &lru->policy;
    return KVL_OK;
}

static void lru_destroy(struct kvl_policy *policy) {
    struct lru *lru = (struct lru *)policy;
    if (lru == NULL)
        return;
    for (uint32_t i = 0; i < lru->chunk_count; i++)
        free(lru->chunks[i]);
    free(lru->chunks);
    free(lru->lists);
    free(lru);
}

static struct node *node_of(const struct lru *lru, uint32_t link) {
    uint32_t block = link - 1;
    return &lru->chunks[block / KVL_LRU_CHUNK][block % KVL_LRU_CHUNK];
}

static kvl_err ensure_node(struct lru *lru, uint32_t block) {
    uint32_t chunk = block / KVL_LRU_CHUNK;
    if (chunk >= lru->chunk_count) {
        uint32_t count = chunk + 1 > 2 * lru->chunk_count ? chunk + 1 : 2 * lru->chunk_count;
        struct node **chunks = realloc(lru->chunks, count * sizeof(chunks[0]));
        if (chunks == NULL)
            return KVL_ERR_NOMEM;
        memset(chunks + lru->chunk_count, 0, (count - lru->chunk_count) * sizeof(chunks[0]));
        lru->chunks = chunks;
        lru->chunk_count = count;
    }
    if (lru->chunks[chunk] == NULL)
        lru->chunks[chunk] = calloc(KVL_LRU_CHUNK, sizeof(struct node));
    return lru->chunks[chunk] == NULL ? KVL_ERR_NOMEM : KVL_OK;
}

static kvl_err ensure_list(struct lru *lru, uint32_t group) {
    if (group < lru->list_count)
        return KVL_OK;
    struct list *lists = realloc(lru->lists, (group + 1u) * sizeof(lists[0]));
    if (lists == NULL)
        return KVL_ERR_NOMEM;
    lru->lists = lists;
    while (lru->list_count <= group)
        lists[lru->list_count++] = (struct list){KVL_LRU_END, KVL_LRU_END};
    return KVL_OK;
}

static void push_newest(struct lru *lru, struct list *list, uint32_t link) {
    struct node *node = node_of(lru, link);
    node->newer = KVL_LRU_END;
    node->older = list->newest;
    if (list->newest != KVL_LRU_END)
        node_of(lru, list->newest)->newer = link;
    else
        list->oldest = link;
    list->newest = link;
}

static bool is_listed(const struct lru *lru, uint32_t block) {
    uint32_t chunk = block / KVL_LRU_CHUNK;
    return chunk < lru->chunk_count && lru->chunks[chunk] != NULL &&
           node_of(lru, block + 1)->newer != 0;
}

static void unlink_node(struct lru *lru, struct list *list, uint32_t link) {
    struct node *node = node_of(lru, link);
    if (node->newer != KVL_LRU_END)
        node_of(lru, node->newer)->older = node->older;
    else
        list->newest = node->older;
    if (node->older != KVL_LRU_END)
        node_of(lru, node->older)->newer = node->newer;
    else
        list->oldest = node->newer;
    *node = (struct node){0};
}

static void lru_used(struct kvl_policy *policy, uint32_t group, uint32_t block) {
    struct lru *lru = (struct lru *)policy;
    if (!is_listed(lru, block))
        return;
    unlink_node(lru, &lru->lists[group], block + 1);
    push_newest(lru, &lru->lists[group], block + 1);
}

static kvl_err lru_inserted(struct kvl_policy *policy, uint32_t group, uint32_t block) {
    struct lru *lru = (struct lru *)policy;
    if (is_listed(lru, block)) {
        lru_used(policy, group, block);
        return KVL_OK;
    }
    kvl_err err = ensure_list(lru, group);
    if (err == KVL_OK)
        err = ensure_node(lru, block);
    if (err == KVL_OK)
        push_newest(lru, &lru->lists[group], block + 1);
    return err;
}

static void lru_removed(struct kvl_policy *policy, uint32_t group, uint32_t block) {
    struct lru *lru = (struct lru *)policy;
    if (is_listed(lru, block))
        unlink_node(lru, &lru->lists[group], block + 1);
}

/* Turns the run oldest..last around, so that last is the oldest. */
static void reverse_run(struct lru *lru, struct list *list, uint32_t last) {
    uint32_t first = list->oldest;
    uint32_t beyond = node_of(lru, last)->newer;
    for (uint32_t link = first, next;; link = next) {
        struct node *node = node_of(lru, link);
        next = node->newer;
        node->newer = node->older;
        node->older = next;
        if (link == last)
            break;
    }
    node_of(lru, last)->older = KVL_LRU_END;
    node_of(lru, first)->newer = beyond;
    list->oldest = last;
    if (beyond != KVL_LRU_END)
        node_of(lru, beyond)->older = first;
    else
        list->newest = first;
}

static uint32_t lru_victim(struct kvl_policy *policy, uint32_t group,
    bool (*evictable)(void *arg, uint32_t block), void *arg) {
    struct lru *lru = (struct lru *)policy;
    if (group >= lru->list_count)
        return KVL_BLOCK_NONE;
    struct list *list = &lru->lists[group];
    for (uint32_t link = list->oldest; link != KVL_LRU_END; link = node_of(lru, link)->newer) {
        if (!evictable(arg, link - 1))
            continue;
        if (link != list->oldest)
            reverse_run(lru, list, link);
        return link - 1;
    }
    return KVL_BLOCK_NONE;
}

const struct kvl_policy_ops kvl_policy_lru = {
    .name = "lru",
    .create = lru_create,
    .destroy = lru_destroy,
    .inserted = lru_inserted,
    .used = lru_used,
    .removed = lru_removed,
    .victim = lru_victim,
};

static const struct kvl_policy_ops *const policies[] = {&kvl_policy_lru};

const struct kvl_policy_ops *kvl_policy_at(uint32_t index) {
    return index < sizeof(policies) / sizeof(policies[0]) ? policies[index] : NULL;
}

const struct kvl_policy_ops *kvl_policy_find(const char *name) {
    for (uint32_t i = 0; name != NULL && kvl_policy_at(i) != NULL; i++)
        if (strcmp(policies[i]->name, name) == 0)
            return policies[i];
    return NULL;
}
