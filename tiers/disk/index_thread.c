/* index_thread.c - the only caller of LMDB once the tier runs: walks at start, then commits. */
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "disk.h"
#include "thread.h"

#define OPS_PER_STEP 1024u /* 4 MiB of copied pages, which LMDB holds in memory */

struct walk_state {
    struct kvl_disk *disk;
    kvl_err status;
};

/* The owner takes chunks at its own pace; what is on its way is bounded. */
static void wait_for_owner(struct kvl_disk *disk) {
    while (atomic_load(&disk->found_chunks) >= KVL_DISK_FOUND_MAX && !atomic_load(&disk->stopping))
        poll(NULL, 0, 1);
}

void kvl_disk_found_send(struct kvl_disk *disk) {
    struct kvl_disk_found *chunk = disk->seeker.chunk;
    if (chunk == NULL)
        return;
    wait_for_owner(disk);
    atomic_fetch_add(&disk->found_chunks, 1);
    disk->seeker.chunk = NULL;
    kvl_mailbox_post(&disk->inbox, &chunk->node);
}

bool kvl_disk_found_add(struct kvl_disk *disk, const struct kvl_index_block *block, bool sought) {
    struct kvl_disk_found *chunk = disk->seeker.chunk;
    if (chunk == NULL) {
        chunk = malloc(sizeof(*chunk));
        if (chunk == NULL)
            return false;
        chunk->node = (struct kvl_node){.kind = KVL_NODE_FOUND};
        chunk->count = 0;
        disk->seeker.chunk = chunk;
    }
    chunk->sought[chunk->count] = sought;
    chunk->blocks[chunk->count++] = *block;
    if (chunk->count == KVL_DISK_FOUND_BLOCKS)
        kvl_disk_found_send(disk);
    return true;
}

static bool send_block(void *arg, const struct kvl_index_block *block) {
    struct walk_state *state = arg;
    if (!kvl_disk_found_add(state->disk, block, false)) {
        state->status = KVL_ERR_NOMEM;
        return false;
    }
    state->disk->seeker.walked = block->record.key;
    state->disk->seeker.walking = true;
    kvl_disk_seek_step(state->disk);
    return !atomic_load(&state->disk->stopping);
}

static bool send_catalog(void *arg, enum kvl_catalog_kind kind, const void *key, uint32_t key_bytes,
    const void *value, uint32_t value_bytes) {
    struct walk_state *state = arg;
    struct kvl_disk_catalog_record *record =
        malloc(sizeof(*record) + (uint64_t)key_bytes + value_bytes);
    if (record == NULL) {
        state->status = KVL_ERR_NOMEM;
        return false;
    }
    record->node = (struct kvl_node){.kind = KVL_NODE_CATALOG};
    record->kind = kind;
    record->key_bytes = key_bytes;
    record->value_bytes = value_bytes;
    memcpy(record->data, key, key_bytes);
    memcpy(record->data + key_bytes, value, value_bytes);
    kvl_mailbox_post(&state->disk->inbox, &record->node);
    return !atomic_load(&state->disk->stopping);
}

/* Without its namespace a block could not be taken up: so they come first, and come again with the
 * rest of the catalog once the index was checked. */
static void begin_seeking(struct kvl_disk *disk) {
    struct walk_state state = {.disk = disk, .status = KVL_OK};
    uint64_t bad = 0;
    kvl_err err =
        kvl_index_walk_kind(disk->index, KVL_CATALOG_NAMESPACE, send_catalog, &state, &bad);
    kvl_index_set_between(disk->index, kvl_disk_seek_step, disk);
    if (err == KVL_OK && state.status == KVL_OK && bad == 0)
        kvl_disk_seek_answer(disk, false);
}

static void load(struct kvl_disk *disk, struct kvl_disk_loading *loading) {
    struct walk_state state = {.disk = disk, .status = KVL_OK};
    begin_seeking(disk);
    kvl_index_read_ahead(disk->index);
    kvl_err err = kvl_disk_index_check(disk);
    kvl_index_set_between(disk->index, NULL, NULL);
    if (err == KVL_OK)
        err = kvl_index_walk_catalog(disk->index, send_catalog, &state, &loading->bad);
    if (err == KVL_OK && state.status == KVL_OK) {
        kvl_disk_seek_answer(disk, true);
        err = kvl_index_walk_blocks(disk->index, send_block, &state, &loading->bad);
    }
    kvl_disk_seek_ended(disk);
    kvl_disk_found_send(disk);
    loading->status = err != KVL_OK ? err : state.status;
}

/* In the order that they came in; in steps, for LMDB copies every page that it changes: an eighth
 * of the map's pages, and less where that does not fit. */
static kvl_err commit_steps(struct kvl_disk *disk, struct kvl_disk_commit *commit) {
    uint64_t pages = disk->plan.map_bytes / KVL_PAGE_BYTES;
    uint64_t step = pages / 8 < OPS_PER_STEP ? pages / 8 : OPS_PER_STEP;
    while (commit->done_ops < commit->ops.count) {
        uint64_t left = commit->ops.count - commit->done_ops, count = left < step ? left : step;
        kvl_err err = kvl_disk_index_commit(disk, commit->ops.items + commit->done_ops, count);
        if (err == KVL_OK)
            commit->done_ops += count;
        else if (err == KVL_ERR_NOSPC && count > 1)
            step = count / 2;
        else
            return err;
    }
    return KVL_OK;
}

static void commit(struct kvl_disk *disk, struct kvl_disk_commit *commit) {
    commit->status = commit_steps(disk, commit);
    commit->usage_permille = kvl_index_usage_permille(disk->index);
    atomic_store(&disk->journal_bytes, disk->journal.bytes);
    kvl_disk_index_served(disk);
}

/* The files first, then the rows: a file without a row is removed at the next start. */
static void prepare(struct kvl_disk *disk, struct kvl_disk_prepare *prepare) {
    struct kvl_index_op ops[KVL_SEGMENTS_AHEAD];
    int directory_fd = disk->dir.segments_fd;
    prepare->status =
        kvl_segment_files_create(directory_fd, prepare->segments, prepare->count, &prepare->count);
    if (prepare->status != KVL_OK)
        return;
    for (uint32_t i = 0; i < prepare->count; i++)
        ops[i] =
            (struct kvl_index_op){.kind = KVL_INDEX_SEGMENT_PUT, .segment = prepare->segments[i]};
    prepare->status = kvl_disk_index_commit(disk, ops, prepare->count);
    for (uint32_t i = 0; prepare->status != KVL_OK && i < prepare->count; i++) {
        if (kvl_segment_file_remove(directory_fd, prepare->segments[i].id) != KVL_OK)
            KVL_WARN(disk->log, "disk segment=%u file stays behind", prepare->segments[i].id);
    }
}

static void resolve(struct kvl_disk *disk, struct kvl_disk_resolve *resolve) {
    resolve->status = kvl_disk_index_resolve(disk, resolve->names, resolve->count);
}

static bool handle(struct kvl_disk *disk, struct kvl_node *node) {
    switch (node->kind) {
    case KVL_NODE_LOAD:
        load(disk, kvl_container_of(node, struct kvl_disk_loading, node));
        break;
    case KVL_NODE_COMMIT:
        commit(disk, kvl_container_of(node, struct kvl_disk_commit, node));
        break;
    case KVL_NODE_PREPARE:
        prepare(disk, kvl_container_of(node, struct kvl_disk_prepare, node));
        break;
    case KVL_NODE_RESOLVE:
        resolve(disk, kvl_container_of(node, struct kvl_disk_resolve, node));
        break;
    default:
        return false;
    }
    kvl_mailbox_post(&disk->inbox, node);
    return true;
}

void *kvl_disk_index_main(void *arg) {
    struct kvl_disk *disk = arg;
    struct pollfd wait = {.fd = disk->index_inbox.fd, .events = POLLIN};
    bool running = true;
    kvl_thread_begin("kvl-index", KVL_THREAD_PROMPT);
    while (running) {
        struct kvl_node *node;
        if (!kvl_mailbox_take(&disk->index_inbox))
            poll(&wait, 1, -1);
        while ((node = kvl_mailbox_next(&disk->index_inbox)) != NULL)
            running = handle(disk, node) && running;
    }
    return NULL;
}
