/* kvl_types.h - the plain structs that core, the wire and the public client share.
 *
 * Public: installed beside kvloft.h. No pointers to owned memory, no functions. */
#ifndef KVL_TYPES_H
#define KVL_TYPES_H

#include <stdbool.h>
#include <stdint.h>

#include "kvl_key.h"

#define KVL_SESSION_NAME_MAX 255u /* a tenant's own name and a '/' before it included */
#define KVL_TENANT_NAME_MAX 63u
#define KVL_CHAIN_BLOCKS_MAX 16384u /* blocks in one request */

enum kvl_tier_kind { KVL_TIER_DEVICE, KVL_TIER_HOST, KVL_TIER_DISK, KVL_TIER_COUNT };
#define KVL_TIER_NAMES                                                                             \
    { "device", "host", "disk" }

/* In a look-up of each: in no tier yet, but sealed a moment ago: a restore waits for it. */
#define KVL_FOUND_SEALING 0x80u

/* What an arena's descriptor is, and so how it is mapped. */
enum kvl_arena_memory {
    KVL_ARENA_MEMFD = 0, /* by mmap */
    KVL_ARENA_CUDA = 1,  /* a CUDA VMM handle: cuMemImportFromShareableHandle on that GPU */
};
struct kvl_arena_info {
    enum kvl_arena_memory memory;
    uint64_t bytes;
    uint8_t device_uuid[16]; /* KVL_ARENA_CUDA: the GPU; zero otherwise */
};

/* How a block's bytes are cut: a frame is a group of layers, the unit of checksums, of codecs and
 * of "so many layers are ready". */
struct kvl_layout {
    uint64_t payload_bytes; /* as the engine sees it */
    uint64_t slot_bytes;    /* payload rounded up to KVL_PAGE_BYTES */
    uint64_t frame_bytes;   /* multiple of a layer's bytes; payload_bytes when there is one frame */
    uint32_t frame_count;   /* 1..KVL_FRAMES_MAX */
    uint32_t layers;        /* 1 for opaque blocks */
    uint32_t layers_per_frame;
    uint32_t element_bytes; /* 2 or 4 for planes to be split by; 1: opaque bytes */
};

/* number 0 with generation 0 is "no ticket". */
struct kvl_ticket {
    uint32_t number;
    uint32_t generation;
};

/* Opens or creates. For opaque namespaces token geometry is zero and block_bytes is given. */
struct kvl_namespace_request {
    struct kvl_key key;           /* as the client computed it */
    struct kvl_geometry geometry; /* zero for opaque */
    uint32_t dtype;               /* enum kvl_dtype; 0 for opaque */
    uint64_t block_bytes;         /* opaque only */
    char label[64];               /* for people: the model's name */
};

struct kvl_namespace_info {
    uint32_t id;
    struct kvl_key key;
    struct kvl_geometry geometry;
    uint32_t dtype;
    struct kvl_layout layout;
    char label[64];
    uint64_t blocks; /* in the table now */
};

struct kvl_restored {
    uint64_t lease;        /* read lease */
    uint64_t offset_bytes; /* in the target tier's arena */
    uint32_t found_tier;   /* enum kvl_tier_kind where it was when asked */
    uint32_t token_count;
};

enum kvl_alloc_status {
    KVL_ALLOC_GRANTED = 1, /* lease and offset are valid: fill and seal */
    KVL_ALLOC_EXISTS = 2,  /* sealed already: restore it */
    KVL_ALLOC_PENDING = 3, /* another client is filling this key */
    KVL_ALLOC_NOSPC = 4,   /* leases fill the tier: this and all later ones */
};

struct kvl_allocated {
    uint32_t status; /* enum kvl_alloc_status */
    uint32_t reserved;
    uint64_t lease; /* write lease */
    uint64_t offset_bytes;
};

enum kvl_clear_scope {
    KVL_CLEAR_ALL = 1, /* that the asking client may see */
    KVL_CLEAR_NAMESPACE = 2,
    KVL_CLEAR_SESSION = 3,
    KVL_CLEAR_TENANT = 4, /* and its sessions */
};

struct kvl_session_info {
    char name[KVL_SESSION_NAME_MAX + 1];
    struct kvl_key namespace_key;
    uint64_t token_count;
    struct kvl_key tail; /* zero: none */
    uint32_t tail_tokens;
    uint32_t holder_pid; /* 0: not open */
    char holder_name[64];
    uint64_t updated_wall_ns;
};

struct kvl_tier_report {
    uint64_t capacity_bytes, used_bytes, blocks;
    uint64_t hits;   /* restored or leased blocks that were found here (nearest tier counts) */
    uint64_t misses; /* blocks asked for that were not here (and in no nearer tier); those of a
                        chain that a client asks for again and again count once */
    uint64_t read_bytes, written_bytes, evicted_blocks, corrupt_blocks, errors, inflight;
    uint64_t block_bytes; /* of used_bytes: blocks, and slots being filled */
    uint64_t
        reserved_bytes; /* of used_bytes: set aside for the index; the rest is free for blocks */
};

struct kvl_store_report {
    struct kvl_tier_report tiers[KVL_TIER_COUNT]; /* capacity 0: tier absent */
    uint64_t epoch, uptime_ns;
    uint64_t blocks, ghost_blocks, table_bytes;
    uint64_t leases, leased_bytes, clients, sessions, pins;
    uint64_t unpersisted_blocks; /* sealed, not durable yet */
    uint64_t sealed_blocks, refused_seals, hash_mismatches, stale_releases;
    uint64_t shed_blocks; /* left memory for want of room before the disk had taken them */
    bool loaded;          /* false while a start still reads the index of the disk */
};

struct kvl_tenant_report {
    char name[64]; /* empty: the default tenant */
    struct {
        uint64_t quota_bytes; /* 0: none */
        uint64_t used_bytes, blocks, hits, misses, evicted_blocks;
    } tiers[KVL_TIER_COUNT];
    uint64_t clients, sessions;
    bool admitted; /* false: left behind by a tenant that is none any more */
};

struct kvl_client_report {
    uint32_t client, pid, uid;
    bool leaving; /* its connection has ended, its leases wait for its process' end */
    char name[64];
    uint64_t read_leases, write_leases, leased_bytes;
};

struct kvl_block_report {
    struct kvl_key key, parent; /* parent zero: chain start of an opaque namespace */
    uint32_t namespace_id;
    uint32_t token_count;
    uint8_t tiers; /* bit mask */
    uint8_t pinned;
    uint16_t leases;
    uint32_t hits;
    uint64_t last_use_wall_ns;
    uint64_t disk_bytes;
};

enum kvl_event_kind {
    KVL_EVENT_STORED = 1, /* sealed and visible */
    KVL_EVENT_PERSISTED = 2,
    KVL_EVENT_RESTORED = 3,
    KVL_EVENT_EVICTED = 4, /* left this tier */
    KVL_EVENT_CLEARED = 5,
    KVL_EVENT_CORRUPT = 6,
};

struct kvl_event {
    uint64_t sequence; /* from 1, without holes inside the ring */
    uint32_t kind;
    uint32_t tier;
    struct kvl_key key;
};

#endif
