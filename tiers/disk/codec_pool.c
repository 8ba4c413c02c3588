/* codec_pool.c - a stack of unused contexts under a mutex. */
#include "codec_pool.h"

#include <assert.h>

kvl_err kvl_codec_pool_init(struct kvl_codec_pool *pool, uint32_t threads) {
    pool->count = 0;
    pool->unused_count = 0;
    pthread_mutex_init(&pool->mutex, NULL);
    for (; pool->count < threads && pool->count < KVL_CODECS_MAX; pool->count++) {
        struct kvl_codec *codec = kvl_codec_create();
        if (codec == NULL)
            return KVL_ERR_NOMEM;
        pool->all[pool->count] = codec;
        pool->unused[pool->unused_count++] = codec;
    }
    return KVL_OK;
}

void kvl_codec_pool_deinit(struct kvl_codec_pool *pool) {
    for (uint32_t i = 0; i < pool->count; i++)
        kvl_codec_destroy(pool->all[i]);
    pool->count = 0;
    pthread_mutex_destroy(&pool->mutex);
}

struct kvl_codec *kvl_codec_pool_take(struct kvl_codec_pool *pool) {
    pthread_mutex_lock(&pool->mutex);
    assert(pool->unused_count > 0);
    struct kvl_codec *codec = pool->unused[--pool->unused_count];
    pthread_mutex_unlock(&pool->mutex);
    return codec;
}

void kvl_codec_pool_give(struct kvl_codec_pool *pool, struct kvl_codec *codec) {
    pthread_mutex_lock(&pool->mutex);
    pool->unused[pool->unused_count++] = codec;
    pthread_mutex_unlock(&pool->mutex);
}
