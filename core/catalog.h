/* catalog.h - small user data that outlives the process: namespaces, sessions, pins.
 *
 * Core owns this interface; the disk tier implements it beside its index (same transactions, same
 * thread). Without a disk tier there is no catalog, and sessions live as long as the process.
 * Records are opaque to the implementation. Later puts of one (kind, key) replace earlier ones, in
 * order. Everything put becomes durable within the persist bound; flush makes it so now.
 *
 * Threads: owner thread only; nothing blocks. Callbacks come from inside the tier's poll. */
#ifndef KVL_CATALOG_H
#define KVL_CATALOG_H

#include <stdint.h>

#include "kvl_err.h"

enum kvl_catalog_kind {
    KVL_CATALOG_META,      /* counters of the store itself */
    KVL_CATALOG_NAMESPACE, /* key: u32le id */
    KVL_CATALOG_SESSION,   /* key: name */
    KVL_CATALOG_TOKENS,    /* key: name, NUL, u32be chunk number */
    KVL_CATALOG_PIN,       /* key: block key */
    KVL_CATALOG_KINDS
};

#define KVL_CATALOG_KEY_BYTES_MAX 480u
#define KVL_CATALOG_VALUE_BYTES_MAX 65536u

struct kvl_catalog;

struct kvl_catalog_ops {
    /* Copies key and value. Errors: TOOBIG, NOMEM, AGAIN (queue full). */
    KVL_MUST_CHECK kvl_err (*put)(struct kvl_catalog *catalog, enum kvl_catalog_kind kind,
        const void *key, uint32_t key_bytes, const void *value, uint32_t value_bytes);
    KVL_MUST_CHECK kvl_err (*remove)(struct kvl_catalog *catalog, enum kvl_catalog_kind kind,
        const void *key, uint32_t key_bytes);
    /* done fires once everything put or discarded before, blocks included, is durable. */
    KVL_MUST_CHECK kvl_err (*flush)(
        struct kvl_catalog *catalog, void (*done)(void *arg, kvl_err status), void *arg);
};

struct kvl_catalog {
    const struct kvl_catalog_ops *ops;
    /* At start, for every record, before the tier's `found` events. Set before the first poll. */
    void (*found)(void *arg, enum kvl_catalog_kind kind, const void *key, uint32_t key_bytes,
        const void *value, uint32_t value_bytes);
    void *found_arg;
};

#endif
