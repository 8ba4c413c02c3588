/* The contract over both names of the memory tier: device-cpu and host. */
#include "memory/memory_tier.h"
#include "tier_contract.h"

static kvl_err make(enum kvl_tier_kind kind, uint64_t capacity_bytes, struct kvl_tier **out) {
    const struct kvl_memory_tier_options options = {
        .kind = kind, .capacity_bytes = capacity_bytes, .copy_threads = 2};
    return kvl_memory_tier_create(&options, out, NULL);
}

static kvl_err make_device(const struct kvl_tier_contract *contract, struct kvl_tier **out) {
    return make(KVL_TIER_DEVICE, contract->capacity_bytes, out);
}

static kvl_err make_host(const struct kvl_tier_contract *contract, struct kvl_tier **out) {
    return make(KVL_TIER_HOST, contract->capacity_bytes, out);
}

int main(void) {
    const struct kvl_tier_contract device = {.name = "device-cpu",
        .capacity_bytes = 8u << 20,
        .block_bytes = 200000,
        .make = make_device};
    /* Not a multiple of anything but a page. */
    const struct kvl_tier_contract host = {.name = "host",
        .capacity_bytes = (5u << 20) + 3 * KVL_PAGE_BYTES,
        .block_bytes = 70000,
        .make = make_host};
    return kvl_tier_contract_run(&device) + kvl_tier_contract_run(&host);
}
