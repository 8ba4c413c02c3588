/* store_fixture.h - a store over real memory tiers, and blocks with content that can be checked.
 *
 * The namespace is small (BLOCK_BYTES a block) and has two frames, so that arenas of a few blocks
 * show what happens when tiers run full. Content follows from the key alone. */
#ifndef KVL_STORE_FIXTURE_H
#define KVL_STORE_FIXTURE_H

#include <stdbool.h>
#include <stdint.h>

#include "store.h"
#include "twin_device.h"

#define BLOCK_TOKENS 16u
#define BLOCK_BYTES 524288u /* 4 layers of 128 KiB: two frames */

struct fixture_options {
    uint32_t device_blocks; /* capacity */
    uint32_t host_blocks;   /* 0: no host tier */
    const char *disk_path;  /* NULL: no disk tier */
    uint64_t disk_bytes;    /* 0: 256 MiB */
    bool fault_device, fault_host, fault_disk;
    bool far_device;   /* the CPU cannot address it; or $KVL_STORE_DEVICE says so of all */
    bool delay_device; /* hashes, stores and loads of it wait as told */
    bool delay_disk;   /* f->disk is a delay tier, without delay at first */
    uint64_t client_lease_bytes_max;
    struct kvl_log *log;                      /* borrowed; NULL: none */
    const struct kvl_tenant_options *tenants; /* beside the default one */
    uint32_t tenant_count;
};

struct fixture {
    struct kvl_tier *device, *host, *disk; /* the decorators where there are any */
    struct kvl_tier *device_memory;        /* the innermost: has addresses */
    struct kvl_tier *far;                  /* the far decorator, or NULL */
    struct twin_device twin;               /* of a GPU; its twin is NULL where there is none */
    struct kvl_tier *delay;                /* the device's, or NULL */
    struct kvl_store *store;
    struct kvl_namespace_info ns;
    uint32_t a, b; /* attached clients */
};

/* $KVL_STORE_DEVICE chooses the device of every test: "far", "twin" (the CUDA tier over the twin of
 * a driver) or "pinned" (the same, copying straight from and to the host tier). This skips the test
 * where it is set: a far device's blocks have a copy in the host, too. */
void fixture_near_only(void);
void fixture_open(struct fixture *f, const struct fixture_options *options);
/* A client of that tenant, and a namespace of its own: what the fixture stores from now on. The
 * keys below are inside keys as long as the tenant has no salt. */
uint32_t fixture_enter(struct fixture *f, uint32_t tenant);
/* A namespace of the tenant's namespace's model whose layers see so many tokens: what the fixture
 * stores from now on. */
void fixture_enter_window(struct fixture *f, uint32_t tenant, uint32_t window_tokens);
void fixture_close(struct fixture *f); /* as a crash would: nothing is drained first */

/* Polls until the word's ticket ends; returns its status. Fails the test when that takes over
 * a minute. */
kvl_err fixture_wait(struct fixture *f, struct kvl_ticket ticket);
/* Polls until nothing is hashed, moved or persisted any more. */
void fixture_settle(struct fixture *f);
void fixture_poll_for(struct fixture *f, uint32_t milliseconds);

/* Keys of a chain of `count` blocks over the tokens seed, seed + 1, ... */
void fixture_keys(const struct fixture *f, uint32_t seed, uint32_t count, struct kvl_key *keys);
/* Where the test finds the slot, also of a far device. */
uint8_t *fixture_address(struct fixture *f, enum kvl_tier_kind tier, uint64_t offset);
void fixture_fill(struct fixture *f, uint64_t offset, const struct kvl_key *key);
bool fixture_is_filled(
    struct fixture *f, enum kvl_tier_kind tier, uint64_t offset, const struct kvl_key *key);
/* Seals block i of the chain from a write lease, filled here. */
kvl_err fixture_seal(
    struct fixture *f, uint32_t client, uint64_t lease, uint64_t offset, uint32_t seed, uint32_t i);
/* Allocs, fills, seals and releases a whole chain, polling in between. */
void fixture_store_chain(struct fixture *f, uint32_t client, uint32_t seed, uint32_t count);
/* Restores the chain to the tier, waits, checks every byte, releases. Returns the blocks that
 * came well. */
uint32_t fixture_check_chain(
    struct fixture *f, uint32_t client, uint32_t seed, uint32_t count, enum kvl_tier_kind tier);
uint32_t fixture_lookup(struct fixture *f, uint32_t seed, uint32_t count, uint8_t *found);

/* Single steps, store_steps.c. The calling test fails when the store refuses one. */
struct kvl_store_report fixture_report(struct fixture *f);
/* On the device. ticket: of the wait for whoever fills the key; NULL: does not wait. */
struct kvl_allocated fixture_alloc(
    struct fixture *f, uint32_t client, const struct kvl_key *key, struct kvl_ticket *ticket);
struct kvl_restore_reply fixture_restore(struct fixture *f, uint32_t client,
    enum kvl_tier_kind target, uint32_t seed, uint32_t count, struct kvl_restored *blocks);
void fixture_release(
    struct fixture *f, uint32_t client, const struct kvl_restored *blocks, uint32_t count);
kvl_err fixture_flush(struct fixture *f); /* client a's, to its end */
void fixture_demote(
    struct fixture *f, uint32_t seed, uint32_t count, enum kvl_tier_kind target); /* likewise */

#endif
