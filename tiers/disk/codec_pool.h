/* codec_pool.h - codec contexts shared by the workers: taken for one job, given back.
 * Threads: any. */
#ifndef KVL_DISK_CODEC_POOL_H
#define KVL_DISK_CODEC_POOL_H

#include <pthread.h>

#include "codec.h"

#define KVL_CODECS_MAX 64u

struct kvl_codec_pool {
    pthread_mutex_t mutex;
    struct kvl_codec *all[KVL_CODECS_MAX], *unused[KVL_CODECS_MAX];
    uint32_t count, unused_count;
};

/* As many contexts as threads: take never fails. */
KVL_MUST_CHECK kvl_err kvl_codec_pool_init(struct kvl_codec_pool *pool, uint32_t threads);
void kvl_codec_pool_deinit(struct kvl_codec_pool *pool);
struct kvl_codec *kvl_codec_pool_take(struct kvl_codec_pool *pool);
void kvl_codec_pool_give(struct kvl_codec_pool *pool, struct kvl_codec *codec);

#endif
