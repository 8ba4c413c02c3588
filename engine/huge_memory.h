/* huge_memory.h - zeroed memory on huge pages, for what the engine reads from front to back again
 * and again: packed weights, activations, private KV blocks. On 4 KiB pages a step that reads 90 MB
 * of weights spends a part of its time on TLB misses, and loading on 20,000 page faults.
 *
 * Owns: the caller, until kvl_huge_unmap with the same bytes. */
#ifndef KVL_HUGE_MEMORY_H
#define KVL_HUGE_MEMORY_H

#include <stdint.h>

/* At least `bytes` (not 0) from a multiple of 2 MiB on; NULL: out of memory. Where the machine has
 * no huge pages these are ordinary ones: slower, not wrong. */
void *kvl_huge_map(uint64_t bytes);
void kvl_huge_unmap(void *memory, uint64_t bytes); /* NULL is fine */

#endif
