/* cuda_tier.h - a tier of slots in GPU memory.
 *
 *   engine --- maps the exported memory ---> arena (slots)
 *                                              ^ v   copy engines, one stream a direction
 *   io buffer in pinned memory ----------------+-+
 *   any other io buffer <--- memcpy ---> ring -+-+
 *
 * Slots come from alloc and go back by discard; the CPU has no address of them. A thread for each
 * direction makes every driver call but those of create and deinit; the owner thread never waits
 * for the driver.
 *
 *   STORE  is not checked against record.content_hash: its source was when it arrived. The frames
 * of the STOREs that wait together, or come soon after, are copied layer by layer over all of them,
 * and frame_ready tells how many leading frames of a block have reached the device. LOAD   is
 * hashed where it landed: CORRUPT when it is not record.content_hash; frame_ready is called once,
 * with all frames. HASH   is taken by the CPU, from a copy in the ring.
 *
 * RESTORE goes before PREFETCH goes before BEHIND, but every eighth piece is taken from the lowest
 * that waits, so that none starves; what is on its way is at most six pieces a direction. A piece
 * is a twelfth of the ring, at most 16 MiB. cancel ends what has not been copied whole yet.
 *
 * The device is lost from the first error on that CUDA documents as the end of the context, or when
 * copies do not land and the driver answers nothing but errors. Then every io ends with CLOSED,
 * those that wait and all later ones at once, and alloc says CLOSED; those on their way once the
 * GPU's copies have stopped. Where it does not say that within lost_wait_ms, ios whose buffers the
 * copy engines reach stay in flight until drain: their memory might still be written. An error that
 * the device survives ends with IO the ios of one piece, at most 128, and nothing else. */
#ifndef KVL_CUDA_TIER_H
#define KVL_CUDA_TIER_H

#include "device_cuda/cuda_driver.h"
#include "log.h"
#include "tier.h"

struct kvl_cuda_tier_options {
    uint32_t device;         /* ordinal, as the driver counts */
    uint64_t capacity_bytes; /* hard cap of the slots; rounded down to the driver's 2 MiB or so */
    uint64_t staging_bytes;  /* the pinned ring; 0: 64 MiB, otherwise at least 768 KiB */
    uint64_t pin_bytes;      /* of host memory in one call, pages; 0: 512 MiB */
    uint32_t copy_streams;   /* a direction, at most 2; 0: 1 */
    uint32_t hash_threads;   /* 0: as many as keep up with a link, at most 3/4 of our CPUs */
    uint32_t driver_threads; /* 1: one for both directions; otherwise one for each */
    uint32_t spin_us;        /* so long they look for copies to land without a pause; 0: 20 */
    uint32_t lost_wait_ms;   /* for copies of a lost device to stop; 0: 10 s */
    struct kvl_log *log;
    const struct kvl_cuda_driver *driver; /* outlives the tier; NULL: the real one */
};

/* Errors: UNSUPPORTED (no driver, no such GPU, one that cannot export memory), VERSION (driver too
 * old), NOMEM (the GPU's or pinned memory), INVALID (a capacity or a ring too small), LIMIT, IO;
 * msg says which and what to do. Threads: the caller's becomes the owner thread. Blocks: for the
 * driver's start, a second or so. */
KVL_MUST_CHECK kvl_err kvl_cuda_tier_create(
    const struct kvl_cuda_tier_options *options, struct kvl_tier **out, struct kvl_errmsg *msg);

/* Pins a host arena, so that its blocks move without passing the ring: behind the answer, and once
 * all of it was touched. Where that fails, its blocks go on passing the ring, with a WARN.
 * Lives:   the memory, until the tier's deinit. address and bytes are multiples of 4096.
 * Threads: the owner's. Errors: NOMEM. */
KVL_MUST_CHECK kvl_err kvl_cuda_tier_pin_host(
    struct kvl_tier *tier, void *address, uint64_t range_bytes);
/* Bytes pinned so far. Any thread. */
uint64_t kvl_cuda_tier_pinned_bytes(const struct kvl_tier *tier);

/* What this GPU cannot do and a tier needs, to be put after "lacks"; NULL: nothing, a tier can be
 * created there. Static storage. Any thread. */
const char *kvl_cuda_device_lacks(const struct kvl_cuda_device_info *info);

#endif
