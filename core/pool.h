/* pool.h - objects of one size that come and go all the time: what is given back is kept for the
 * next, so that in steady state nothing is allocated. It holds as many as were ever out at once.
 *
 * Owns: what was given back. Threads: one. Blocks: never. */
#ifndef KVL_POOL_H
#define KVL_POOL_H

#include <stdlib.h>

struct kvl_pool {
    void **free; /* a list through the objects' first words; zeroed: empty */
};

/* Of the same size at every call, at least a pointer's. Content undefined; NULL: out of memory. */
static inline void *kvl_pool_take(struct kvl_pool *pool, size_t bytes) {
    void **object = pool->free;
    if (object == NULL)
        return malloc(bytes);
    pool->free = (void **)*object;
    return object;
}

static inline void kvl_pool_give(struct kvl_pool *pool, void *object) {
    *(void **)object = (void *)pool->free;
    pool->free = (void **)object;
}

static inline void kvl_pool_deinit(struct kvl_pool *pool) {
    while (pool->free != NULL)
        free(kvl_pool_take(pool, 0));
}

#endif
