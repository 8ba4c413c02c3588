/* tier.c - what all tiers do alike. */
#include "tier.h"

void kvl_tier_stats_count(struct kvl_tier_stats *stats, const struct kvl_io *io, kvl_err status) {
    stats->inflight--;
    stats->corrupt += status == KVL_ERR_CORRUPT;
    stats->errors += status != KVL_OK && status != KVL_ERR_CANCELED;
    if (status != KVL_OK)
        return;
    if (io->op == KVL_IO_STORE) {
        stats->stores++;
        stats->written_bytes += io->layout->payload_bytes;
    } else if (io->op == KVL_IO_LOAD) {
        stats->loads++;
        stats->read_bytes += io->layout->payload_bytes;
    }
}
