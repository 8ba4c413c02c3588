/* fault.h - a tier around any tier that makes chosen operations fail, so that error paths run in
 * tests on the real code, without mocks.
 *
 * Rules are asked in order; the first that hits decides. A rule counts the operations of its kind
 * (1, 2, ...) and hits the nth, or each one with a probability, drawn from a seeded generator: the
 * same seed and the same operations give the same faults.
 *
 *   ERROR  the inner tier never sees the operation. STORE, LOAD, HASH: complete fires from a later
 * poll with rule.error, and a LOAD's buffer holds garbage. ALLOC: returns rule.error. AGAIN  submit
 * or alloc returns AGAIN, once per hit. FLIP   LOAD only, memory tiers with addresses only: one bit
 * of the stored copy is flipped before it is read, and stays so. What detects it is the tier
 * inside. */
#ifndef KVL_FAULT_H
#define KVL_FAULT_H

#include "tier.h"

enum kvl_fault_kind { KVL_FAULT_ERROR, KVL_FAULT_AGAIN, KVL_FAULT_FLIP };
enum kvl_fault_op {
    KVL_FAULT_STORE = 1,
    KVL_FAULT_LOAD = 2,
    KVL_FAULT_ALLOC = 4,
    KVL_FAULT_HASH = 8
};

struct kvl_fault_rule {
    enum kvl_fault_kind kind;
    uint32_t ops;         /* bit mask of enum kvl_fault_op */
    kvl_err error;        /* ERROR only: IO, NOSPC, SHORT, CORRUPT, ... */
    uint64_t nth;         /* counted from 1 since the rules were set; 0: by probability */
    uint32_t per_million; /* with nth 0 */
};

#define KVL_FAULT_RULES_MAX 16u

/* Owns: on OK the inner tier is the decorator's, deinit ends both; otherwise it stays the caller's.
 * No rules: hands everything on. Errors: INVALID (a rule that can never work, too many), NOMEM,
 * IO. */
KVL_MUST_CHECK kvl_err kvl_fault_tier_create(struct kvl_tier *inner, uint64_t seed,
    const struct kvl_fault_rule *rules, uint32_t rule_count, struct kvl_tier **out);

/* Other rules from now on, counted from 1 again. Owner thread. */
KVL_MUST_CHECK kvl_err kvl_fault_tier_set_rules(
    struct kvl_tier *tier, const struct kvl_fault_rule *rules, uint32_t rule_count);
/* Faults injected since create. */
uint64_t kvl_fault_tier_injected(const struct kvl_tier *tier);

#endif
