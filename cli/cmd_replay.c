/* cmd_replay.c - plays a trace of block ids against an eviction policy and counts the hits.
 *
 * Traces: JSON lines with `hash_ids`, one request a line (Mooncake's format: ids are unique per
 * prefix), or one JSON object with `requests`, each with `hash_ids` (agent traces: ids are local
 * to the file). A reference is a hit when the block and every block before it in that request are
 * cached: a block without its parent is useless. Every block of a request is cached afterwards. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "policy.h"

struct cached {
    uint64_t id; /* the trace's */
    uint32_t parent;
    uint32_t children; /* cached ones */
    uint32_t next;     /* in its hash bucket */
    bool used;
    bool protected_now; /* part of the request that is being played */
};

struct cache {
    const struct kvl_policy_ops *ops;
    struct kvl_policy *policy;
    struct cached *entries; /* capacity of them */
    uint32_t *buckets;
    uint32_t bucket_mask;
    uint32_t capacity, count;
    uint64_t requests, references, hits;
};

static uint32_t bucket_of(const struct cache *cache, uint64_t id) {
    return (uint32_t)((id * 0x9e3779b97f4a7c15u) >> 32) & cache->bucket_mask;
}

static uint32_t find_cached(const struct cache *cache, uint64_t id) {
    uint32_t at = cache->buckets[bucket_of(cache, id)];
    while (at != KVL_BLOCK_NONE && cache->entries[at].id != id)
        at = cache->entries[at].next;
    return at;
}

static bool is_evictable(void *arg, uint32_t block) {
    const struct cache *cache = arg;
    return cache->entries[block].children == 0 && !cache->entries[block].protected_now;
}

static void evict(struct cache *cache, uint32_t block) {
    struct cached *entry = &cache->entries[block];
    uint32_t *link = &cache->buckets[bucket_of(cache, entry->id)];
    while (*link != block)
        link = &cache->entries[*link].next;
    *link = entry->next;
    if (entry->parent != KVL_BLOCK_NONE)
        cache->entries[entry->parent].children--;
    cache->ops->removed(cache->policy, 0, block);
    entry->used = false;
    cache->count--;
}

/* A free entry, made by eviction if need be; KVL_BLOCK_NONE when the request alone fills it. */
static uint32_t free_entry(struct cache *cache) {
    if (cache->count == cache->capacity) {
        uint32_t victim = cache->ops->victim(cache->policy, 0, is_evictable, cache);
        if (victim == KVL_BLOCK_NONE)
            return KVL_BLOCK_NONE;
        evict(cache, victim);
        return victim;
    }
    return cache->count; /* entries are only ever reused in place, so the first count are used */
}

static kvl_err insert(struct cache *cache, uint64_t id, uint32_t parent, uint32_t *block) {
    *block = free_entry(cache);
    if (*block == KVL_BLOCK_NONE)
        return KVL_OK;
    kvl_err err = cache->ops->inserted(cache->policy, 0, *block);
    if (err != KVL_OK)
        return err;
    uint32_t *bucket = &cache->buckets[bucket_of(cache, id)];
    cache->entries[*block] =
        (struct cached){.id = id, .parent = parent, .next = *bucket, .used = true};
    *bucket = *block;
    cache->count++;
    if (parent != KVL_BLOCK_NONE)
        cache->entries[parent].children++;
    return KVL_OK;
}

static kvl_err play_request(struct cache *cache, const json_t *ids) {
    uint32_t parent = KVL_BLOCK_NONE;
    bool chain_hit = true;
    size_t count = json_array_size(ids), played = 0;
    kvl_err err = KVL_OK;
    cache->requests++;
    cache->references += count;
    for (; played < count && err == KVL_OK; played++) {
        uint64_t id = (uint64_t)json_integer_value(json_array_get(ids, played));
        uint32_t block = find_cached(cache, id);
        if (block != KVL_BLOCK_NONE) {
            cache->hits += chain_hit ? 1 : 0;
            cache->ops->used(cache->policy, 0, block);
        } else {
            chain_hit = false;
            err = insert(cache, id, parent, &block);
            if (block == KVL_BLOCK_NONE)
                break;
        }
        cache->entries[block].protected_now = true;
        parent = block;
    }
    for (size_t i = 0; i < played; i++) {
        uint32_t block = find_cached(cache, (uint64_t)json_integer_value(json_array_get(ids, i)));
        if (block != KVL_BLOCK_NONE)
            cache->entries[block].protected_now = false;
    }
    return err;
}

static kvl_err play_requests(struct cache *cache, const json_t *requests) {
    size_t index;
    const json_t *request;
    kvl_err err = KVL_OK;
    json_array_foreach(requests, index, request) {
        const json_t *ids = json_object_get(request, "hash_ids");
        const json_t *nested = json_object_get(request, "requests");
        if (json_is_array(ids) && err == KVL_OK)
            err = play_request(cache, ids);
        if (json_is_array(nested) && err == KVL_OK)
            err = play_requests(cache, nested);
    }
    return err;
}

static kvl_err play_file(struct cache *cache, FILE *file, const char *path) {
    for (uint64_t line = 1;; line++) {
        json_error_t error;
        json_t *object = json_loadf(file, JSON_DISABLE_EOF_CHECK, &error);
        if (!object) {
            if (json_error_code(&error) == json_error_premature_end_of_input && error.position <= 1)
                return KVL_OK;
            cli_error("%s: object %" PRIu64 ": %s", path, line, error.text);
            return KVL_ERR_CORRUPT;
        }
        const json_t *ids = json_object_get(object, "hash_ids");
        const json_t *requests = json_object_get(object, "requests");
        kvl_err err = KVL_OK;
        if (json_is_array(ids))
            err = play_request(cache, ids);
        else if (json_is_array(requests))
            err = play_requests(cache, requests);
        else
            err = KVL_ERR_CORRUPT;
        json_decref(object);
        if (err == KVL_ERR_CORRUPT)
            cli_error("%s: object %" PRIu64 " has neither hash_ids nor requests", path, line);
        if (err != KVL_OK)
            return err;
    }
}

static kvl_err open_cache(struct cache *cache, uint32_t capacity) {
    cache->capacity = capacity;
    cache->bucket_mask = 1;
    while (cache->bucket_mask < capacity)
        cache->bucket_mask = cache->bucket_mask * 2 + 1;
    cache->entries = calloc(capacity, sizeof *cache->entries);
    cache->buckets = malloc(((size_t)cache->bucket_mask + 1) * sizeof *cache->buckets);
    if (!cache->entries || !cache->buckets)
        return KVL_ERR_NOMEM;
    memset(cache->buckets, 0xff, ((size_t)cache->bucket_mask + 1) * sizeof *cache->buckets);
    return cache->ops->create(&cache->policy);
}

static int print_result(const struct cli_options *options, const struct cache *cache) {
    double ratio = cache->references ? (double)cache->hits / (double)cache->references : 0.0;
    if (options->json)
        return cli_print_json(json_pack("{s:s,s:I,s:I,s:I,s:I,s:f}", "policy", cache->ops->name,
            "capacity_blocks", (json_int_t)cache->capacity, "requests", (json_int_t)cache->requests,
            "references", (json_int_t)cache->references, "hits", (json_int_t)cache->hits,
            "hit_ratio", ratio));
    printf("%" PRIu64 " requests, %" PRIu64 " references, %" PRIu64 " hits, hit ratio %.4f\n",
        cache->requests, cache->references, cache->hits, ratio);
    return CLI_DONE;
}

static int run_replay(const struct cli_options *options, int argc, char **argv) {
    struct cache cache = {.ops = kvl_policy_find(options->policy)};
    if (argc != 1)
        return cli_wrong("replay takes one TRACE file");
    if (!cache.ops)
        return cli_wrong(
            "there is no policy '%s'; there is: %s", options->policy, kvl_policy_at(0)->name);
    if (options->capacity_blocks == 0 || options->capacity_blocks > UINT32_MAX / 4)
        return cli_wrong(
            "--capacity-blocks is needed, at least 1 and at most %" PRIu32, UINT32_MAX / 4);
    FILE *file = fopen(argv[0], "r");
    if (!file)
        return cli_error("cannot read %s: %m", argv[0]);
    kvl_err err = open_cache(&cache, (uint32_t)options->capacity_blocks);
    if (err == KVL_OK)
        err = play_file(&cache, file, argv[0]);
    int status = CLI_FAILED;
    if (err == KVL_OK && (ferror(file) || cache.requests == 0))
        cli_error("%s holds no requests; `kvloft replay --help` says what a trace is", argv[0]);
    else if (err == KVL_OK)
        status = print_result(options, &cache);
    else if (err == KVL_ERR_NOMEM)
        cli_error("not enough memory for %" PRIu64 " blocks", options->capacity_blocks);
    fclose(file);
    if (cache.policy)
        cache.ops->destroy(cache.policy);
    free(cache.entries);
    free(cache.buckets);
    return status;
}

const struct cli_command cli_replay = {
    .name = "replay",
    .summary = "play a trace of block ids against an eviction policy",
    .usage = "TRACE --capacity-blocks N [--policy lru] [--json]\n"
             "TRACE: JSON, one {\"hash_ids\": [1, 2, ...]} per request, or {\"requests\": [such]}",
    .run = run_replay,
};
