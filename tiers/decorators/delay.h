/* delay.h - a tier around any tier that lets transfers wait before it hands them on: a slow or
 * stalled device, for tests of what goes on meanwhile.
 *
 *   submit -> held for latency_ns (timerfd) -> inner submit -> complete
 *
 * What is held can be canceled. An error that the inner tier's submit would have returned becomes
 * the io's status; its AGAIN is tried again. drain waits for no latency: it hands on all at once.
 */
#ifndef KVL_DELAY_H
#define KVL_DELAY_H

#include "tier.h"

#define KVL_DELAY_HOLD UINT64_MAX /* until the latency is set anew */

struct kvl_delay_options {
    uint64_t store_latency_ns;
    uint64_t load_latency_ns;
    uint64_t hash_latency_ns;
};

/* Owns: on OK the inner tier is the decorator's, deinit ends both; otherwise it stays the caller's.
 * Errors: NOMEM, IO. */
KVL_MUST_CHECK kvl_err kvl_delay_tier_create(
    struct kvl_tier *inner, const struct kvl_delay_options *options, struct kvl_tier **out);

/* Also for transfers held now: they wait latency_ns from now on. Owner thread. */
void kvl_delay_tier_set_latency(struct kvl_tier *tier, const struct kvl_delay_options *options);

#endif
