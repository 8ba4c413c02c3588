/* journal_private.h - what writing and reading the journal share. */
#ifndef KVL_DISK_JOURNAL_PRIVATE_H
#define KVL_DISK_JOURNAL_PRIVATE_H

#include <stdint.h>

#define KVL_JOURNAL_MAGIC 0x4a4c564bu /* "KVLJ" */
#define KVL_JOURNAL_FRAME_BYTES 32u   /* before the entries */
#define KVL_JOURNAL_ENTRY_BYTES 8u    /* before key and value */

static inline uint64_t kvl_journal_padded(uint64_t bytes) {
    return (bytes + 7) / 8 * 8;
}

#endif
