/* resident.h - whether memory that others are still touching has all come.
 *
 * Pinning memory brings in every page that is missing, at 4 KiB a page, in the way of its own
 * touching, and it could never become huge again. So who pins asks first. Any thread. */
#ifndef KVL_RESIDENT_H
#define KVL_RESIDENT_H

#include <stdbool.h>
#include <stdint.h>

/* Asks mincore for one page in every 2 MiB: arenas are touched in such chunks, so that a chunk's
 * last page stands for it. range_bytes: not 0. */
bool kvl_memory_is_resident(void *address, uint64_t range_bytes);

#endif
