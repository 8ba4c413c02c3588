/* far.h - a tier around a memory tier that hides its memory from the CPU: what stands above works
 * as on a GPU, on any machine. For tests.
 *
 * address() is NULL and nothing is shared. A STORE of several frames lands one frame a poll, each
 * announced once it is there, as a copy engine does that goes frame by frame; the inner tier then
 * copies and checks the block as a whole, and announces the last frame. LOAD and HASH are handed
 * on. */
#ifndef KVL_FAR_H
#define KVL_FAR_H

#include "tier.h"

#define KVL_FAR_ALL_FRAMES UINT32_MAX

/* Owns: on OK the inner tier is the decorator's, deinit ends both; otherwise it stays the caller's.
 * Errors: INVALID (no memory tier), NOMEM, IO. */
KVL_MUST_CHECK kvl_err kvl_far_tier_create(struct kvl_tier *inner, struct kvl_tier **out);

/* STOREs stop before so many frames have landed, until it is set anew (drain goes on regardless).
 * Owner thread. */
void kvl_far_tier_hold(struct kvl_tier *tier, uint32_t frames);
/* The tier inside: tests look at what the far memory holds. */
struct kvl_tier *kvl_far_tier_inner(const struct kvl_tier *tier);

#endif
