/* power_loss_model.h - what must hold of a disk tier after a power loss at a point of the log.
 *
 * Blocks have a key number and a version: a key stored again gets the next version, other bytes and
 * another generation. A key is found with a version, or not found (version 0). Catalog slots have
 * versions too; some of them are removals.
 *
 * Events are written before what they announce is asked for, and after what they report was told,
 * so the log's order is the order in which promises were made. */
#ifndef KVL_POWER_LOSS_MODEL_H
#define KVL_POWER_LOSS_MODEL_H

#include "power_loss_log.h"

#define POWER_KEYS 128u
#define POWER_SLOTS 48u
#define POWER_VERSIONS_MAX 250u

enum power_event {
    POWER_OPENING,      /* capacity bytes */
    POWER_FOUND,        /* key, version */
    POWER_SLOT_FOUND,   /* slot, version */
    POWER_LOADED,       /* what was not found is not there */
    POWER_STORING,      /* key, version */
    POWER_STORED,       /* key, version: durable */
    POWER_FAILED,       /* key, version: not stored */
    POWER_DISCARDING,   /* key, version */
    POWER_EVICTABLE,    /* key: keep() said no */
    POWER_MOVED,        /* key: copied to another place */
    POWER_LOST,         /* key, version: evicted */
    POWER_PUTTING,      /* slot, version */
    POWER_PUT,          /* slot, version: taken */
    POWER_FLUSHING,     /* number */
    POWER_FLUSHED,      /* number: everything before its FLUSHING is durable */
    POWER_FLUSH_FAILED, /* number: of what was not durable before, nobody knows */
    POWER_EVENTS
};

struct power_key {
    uint32_t newest;  /* begun to be stored */
    uint32_t floor;   /* versions up to here were seen not to be there at a start, but for kept */
    uint32_t kept;    /* the one seen */
    uint32_t stored;  /* the last that was said to be durable; older ones are replaced */
    uint32_t durable; /* the same, but for what only a start has shown */
    uint32_t may_go;  /* versions up to here were discarded or may be evicted */
    uint32_t gone;    /* versions up to here are known to be gone */
    uint32_t evicted; /* versions up to here were said to be evicted */
    uint32_t discarded, discarded_at; /* the last discard, and when */
    uint32_t evicted_at;
    uint32_t written_at; /* stored or moved */
    uint64_t failed[4];  /* a bit a version */
};

struct power_slot {
    uint32_t newest;  /* asked for */
    uint32_t taken;   /* the last that was neither refused nor lost */
    uint32_t flushed; /* durable at least */
    uint32_t value;   /* what reads as `flushed`: 0 nothing */
};

#define POWER_FLUSHES_MAX 16u

struct power_flush {
    uint32_t at; /* 0: unused */
    uint32_t number;
    uint32_t slots[POWER_SLOTS];
};

struct power_model {
    struct power_key keys[POWER_KEYS];
    struct power_slot slots[POWER_SLOTS];
    struct power_flush flushes[POWER_FLUSHES_MAX];
    uint32_t found[POWER_KEYS], slots_found[POWER_SLOTS]; /* since OPENING */
    uint32_t clock;
    uint64_t capacity_bytes;
    /* What was evicted may be there until a flush: blocks were rebuilt from the segments. */
    bool index_lost;
    /* A store that failed may be there all the same: I/O failed, nobody knows how far it came. */
    bool faults;
};

void power_model_take(struct power_model *model, const struct power_entry *entry);
/* NULL: it may be so. Else what is wrong with it. */
const char *power_model_check_key(const struct power_model *model, uint32_t key, uint32_t version);
const char *power_model_check_slot(
    const struct power_model *model, uint32_t slot, uint32_t version);
/* Whether the bytes of what is found of this key were under way not long ago. */
bool power_model_is_young(const struct power_model *model, uint32_t key, uint32_t version);
/* Whether this version of a slot is a removal. */
bool power_slot_removed(uint32_t slot, uint32_t version);

#endif
