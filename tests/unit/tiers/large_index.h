/* large_index.h - an index of many rows, and a gate that holds up its loading.
 *
 * The rows name records that are not there, in sparse segment files: enough of them that the owner
 * has to poll several times before all are loaded. The gate stands in posix_fadvise, with which a
 * start reads its index ahead, before it checks it: whoever links this has one. Open at first. */
#ifndef KVL_TEST_LARGE_INDEX_H
#define KVL_TEST_LARGE_INDEX_H

#include "block.h"

#define LARGE_ROWS 40000u
#define LARGE_CAPACITY (2ull << 30)

/* Puts the rows 0..rows - 1 into the index of a disk tier of LARGE_CAPACITY that is closed. Fails
 * by abort. */
void large_index_add(const char *disk_path, uint32_t rows, uint32_t namespace_id);
struct kvl_key large_key(uint32_t number);
uint64_t large_content_hash(uint32_t number);
/* UINT32_MAX: not one of them. */
uint32_t large_number(const struct kvl_key *key);
/* Changes a byte of a value that lies somewhere in the index's file. */
void large_index_damage(const char *disk_path, const void *bytes, uint64_t count);

void large_gate_close(void);
void large_gate_pass(void); /* about one turn of those who seek */
void large_gate_open(void);

#endif
