/* power_loss_blocks.h - what the blocks and the catalog's values of the power loss test look like:
 * all of it follows from the key or slot, and the version. */
#ifndef KVL_POWER_LOSS_BLOCKS_H
#define KVL_POWER_LOSS_BLOCKS_H

#include "block.h"

#define POWER_SLOT_BYTES (256u << 10) /* the largest block */

struct kvl_layout power_block_layout(uint32_t key);
void power_fill(uint8_t *buffer, uint64_t bytes, uint64_t seed);
uint32_t power_value_bytes(uint32_t slot, uint32_t version);

#endif
