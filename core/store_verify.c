/* store_verify.c - reading every block of every tier and checking its hash, a few at a time.
 *
 * The walk is by entry number; each entry's copies are checked one after the other by one of a
 * few checkers. Copies in memory are hashed in place by a worker, or by their tier where the CPU
 * cannot address them; those on disk are loaded into the checker's buffer, which the disk tier
 * verifies on the way and the worker once more. */
#include <stdlib.h>

#include "store_private.h"

#define KVL_CHECKERS 8u

struct kvl_verify;

struct checker {
    struct kvl_job job;
    struct kvl_io io;
    struct kvl_verify *verify;
    struct kvl_tenant *tenant;
    const struct kvl_layout *layout;
    const void *payload;
    void *buffer; /* for the disk's copy; NULL while there is none */
    uint64_t hash, expected;
    uint32_t block;
    uint64_t generation;
    unsigned tier;      /* being checked */
    uint8_t tiers_left; /* bit mask */
    bool bad;
    bool active;
    bool unsubmitted; /* its tier said AGAIN */
};

struct kvl_verify {
    struct kvl_operation operation;
    struct kvl_store *store;
    const struct kvl_tenant *view; /* NULL: everybody's blocks */
    uint32_t cursor;
    uint64_t generation_end;
    uint64_t checked, bad, all;
    uint32_t active;
    struct checker checkers[KVL_CHECKERS];
};

static void checker_next(struct checker *checker);

static void publish(struct kvl_verify *verify) {
    kvl_operation_value(&verify->operation, 0, verify->checked);
    kvl_operation_value(&verify->operation, 1, verify->bad);
    kvl_operation_value(&verify->operation, 2, verify->all);
}

static void checker_end(struct checker *checker) {
    struct kvl_verify *verify = checker->verify;
    free(checker->buffer);
    checker->buffer = NULL;
    checker->active = false;
    verify->active--;
    verify->checked++;
    verify->bad += checker->bad;
    publish(verify);
}

static void copy_is_bad(struct kvl_store *store, struct checker *checker) {
    checker->bad = true;
    if (kvl_entry_is(store, checker->block, checker->generation))
        kvl_copy_is_bad(store, checker->block, checker->tier);
}

static void io_submit(struct checker *checker);

/* The disk carried the block elsewhere while its copy waited to be read. */
static bool is_elsewhere(struct checker *checker) {
    struct kvl_store *store = checker->verify->store;
    const struct kvl_entry *entry = kvl_table_at(store->table, checker->block);
    return kvl_entry_is(store, checker->block, checker->generation) &&
           kvl_entry_is_in(entry, KVL_TIER_DISK) && entry->disk_location != checker->io.location;
}

/* One copy was checked. Not there any more is not bad: it was evicted since. */
static void copy_end(struct checker *checker, kvl_err status) {
    struct kvl_store *store = checker->verify->store;
    unsigned tier = checker->tier;
    if (status == KVL_ERR_NOTFOUND && is_elsewhere(checker)) {
        io_submit(checker);
        return;
    }
    if (status == KVL_ERR_CORRUPT)
        copy_is_bad(store, checker);
    else if (status != KVL_OK && status != KVL_ERR_NOTFOUND)
        checker->tenant->tiers[tier].errors++;
    kvl_busy_down(store, checker->block, checker->generation, tier);
    checker_next(checker);
}

static void hash_run(struct kvl_job *base) {
    struct checker *checker = kvl_container_of(base, struct checker, job);
    checker->hash = kvl_content_hash(checker->layout, checker->payload, NULL);
}

static void hash_done(struct kvl_job *base) {
    struct checker *checker = kvl_container_of(base, struct checker, job);
    copy_end(checker, checker->hash == checker->expected ? KVL_OK : KVL_ERR_CORRUPT);
}

static void hash_start(struct checker *checker, const void *payload) {
    checker->payload = payload;
    checker->job = (struct kvl_job){.run = hash_run, .done = hash_done};
    kvl_workers_submit(checker->verify->store->workers, &checker->job, false);
}

static void disk_loaded(struct kvl_io *io) {
    struct checker *checker = io->owner;
    if (io->status == KVL_OK)
        hash_start(checker, checker->buffer);
    else
        copy_end(checker, io->status);
}

static void tier_hashed(struct kvl_io *io) {
    struct checker *checker = io->owner;
    kvl_err status = io->status;
    if (checker->tier == KVL_TIER_DEVICE)
        status = kvl_device_answered(checker->verify->store, status);
    checker->hash = io->record.content_hash;
    io->record.content_hash = checker->expected;
    if (status == KVL_OK)
        hash_done(&checker->job);
    else
        copy_end(checker, status);
}

static void io_submit(struct checker *checker) {
    struct kvl_store *store = checker->verify->store;
    struct kvl_tier *tier = store->tiers[checker->tier].tier;
    if (checker->tier == KVL_TIER_DISK && kvl_entry_is(store, checker->block, checker->generation))
        checker->io.location = kvl_table_at(store->table, checker->block)->disk_location;
    kvl_err err = tier->ops->submit(tier, &checker->io);
    checker->unsubmitted = err == KVL_ERR_AGAIN;
    store->retry |= checker->unsubmitted;
    if (checker->tier == KVL_TIER_DEVICE)
        err = kvl_device_answered(store, err);
    if (err != KVL_OK && err != KVL_ERR_AGAIN)
        copy_end(checker, err);
}

static void tier_hash_start(struct checker *checker, uint64_t location) {
    checker->io.op = KVL_IO_HASH;
    checker->io.location = location;
    checker->io.buffer = NULL;
    checker->io.complete = tier_hashed;
    io_submit(checker);
}

static void disk_start(struct checker *checker) {
    if (checker->buffer == NULL &&
        posix_memalign(&checker->buffer, KVL_PAGE_BYTES, checker->layout->slot_bytes) != 0) {
        checker->buffer = NULL;
        copy_end(checker, KVL_ERR_NOMEM);
        return;
    }
    checker->io.op = KVL_IO_LOAD;
    checker->io.buffer = checker->buffer;
    checker->io.complete = disk_loaded;
    io_submit(checker);
}

static void checker_next(struct checker *checker) {
    struct kvl_store *store = checker->verify->store;
    if (checker->tiers_left == 0 || store->closing ||
        !kvl_entry_is(store, checker->block, checker->generation)) {
        checker_end(checker);
        return;
    }
    const struct kvl_entry *entry = kvl_table_at(store->table, checker->block);
    unsigned tier = (unsigned)__builtin_ctz(checker->tiers_left);
    checker->tiers_left &= (uint8_t) ~(1u << tier);
    checker->tier = tier;
    if (!kvl_entry_is_in(entry, tier) || entry->busy[tier] >= KVL_BUSY_MAX) {
        checker_next(checker); /* at most one call deep per tier */
        return;
    }
    kvl_busy_up(store, checker->block, tier);
    if (tier == KVL_TIER_DISK) {
        disk_start(checker);
        return;
    }
    struct kvl_tier *owner = store->tiers[tier].tier;
    const uint64_t location = kvl_entry_location(entry, tier);
    const void *payload = owner->ops->address(owner, location);
    if (payload != NULL)
        hash_start(checker, payload);
    else
        tier_hash_start(checker, location);
}

static bool is_checkable(const struct kvl_verify *verify, const struct kvl_entry *entry) {
    return (entry->flags & KVL_ENTRY_USED) != 0 && entry->tiers != 0 &&
           entry->generation < verify->generation_end &&
           (verify->view == NULL || verify->view == kvl_entry_tenant(verify->store, entry));
}

static void check_entry(struct kvl_verify *verify, struct checker *checker, uint32_t block) {
    const struct kvl_entry *entry = kvl_table_at(verify->store->table, block);
    *checker = (struct checker){.verify = verify,
        .tenant = kvl_entry_tenant(verify->store, entry),
        .layout = kvl_entry_layout(verify->store, entry),
        .block = block,
        .generation = entry->generation,
        .tiers_left = entry->tiers,
        .active = true};
    checker->io =
        (struct kvl_io){.priority = KVL_IO_BEHIND, .layout = checker->layout, .owner = checker};
    kvl_entry_record(verify->store, block, &checker->io.record);
    checker->expected = entry->content_hash;
    verify->active++;
    checker_next(checker);
}

static void verify_step(struct kvl_store *store, struct kvl_operation *operation) {
    struct kvl_verify *verify = kvl_container_of(operation, struct kvl_verify, operation);
    uint32_t end = kvl_table_end(store->table);
    for (unsigned i = 0; i < KVL_CHECKERS; i++) {
        struct checker *checker = &verify->checkers[i];
        if (checker->active && checker->unsubmitted)
            io_submit(checker);
        while (!checker->active && verify->cursor < end) {
            uint32_t block = verify->cursor++;
            if (is_checkable(verify, kvl_table_at(store->table, block)))
                check_entry(verify, checker, block);
        }
    }
    if (verify->active > 0 || verify->cursor < end)
        return;
    publish(verify);
    kvl_operation_end(store, &verify->operation, KVL_OK);
    free(verify);
}

void kvl_verify_pump(struct kvl_store *store) {
    kvl_operations_step(store, KVL_OPERATION_VERIFY, verify_step);
}

kvl_err kvl_store_verify(struct kvl_store *store, uint32_t client, struct kvl_ticket *ticket) {
    struct kvl_verify *verify = calloc(1, sizeof(*verify));
    *ticket = (struct kvl_ticket){0};
    if (verify == NULL)
        return KVL_ERR_NOMEM;
    kvl_err err =
        kvl_operation_begin(store, client, KVL_OPERATION_VERIFY, &verify->operation, ticket);
    if (err != KVL_OK) {
        free(verify);
        return err;
    }
    verify->store = store;
    verify->generation_end = store->generation_next;
    verify->view = kvl_client_view(store, kvl_client_find(store, client));
    verify->all = kvl_visible_blocks(store, verify->view);
    publish(verify);
    kvl_store_pump(store);
    return KVL_OK;
}
