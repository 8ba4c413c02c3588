/* alloc_fail.h - makes one allocation of kvloft's own code fail, or all from one on.
 *
 * The program is linked with --wrap for malloc, calloc, realloc, posix_memalign, aligned_alloc,
 * strdup, asprintf, mmap, memfd_create and pthread_create: calls out of our objects come here.
 * Those inside LMDB, nanomsg, zstd, libcrypto, PCRE2 and libc do not: these are shared libraries.
 * What a test itself needs it allocates before arming, or after.
 * Threads: arm and disarm while no other thread of ours runs; allocations from any. */
#ifndef KVL_ALLOC_FAIL_H
#define KVL_ALLOC_FAIL_H

#include <stdbool.h>
#include <stdint.h>

/* What a run shares with the process that watches it. */
struct alloc_fail_report {
    _Atomic uint64_t calls;  /* allocations while armed */
    _Atomic uint64_t failed; /* how many of them were made to fail */
    _Atomic uintptr_t site;  /* the first one's return address, as an offset in the program */
};

/* nth counts from 1; 0: only counts. lasting: every later one fails too, until disarmed. */
void alloc_fail_arm(struct alloc_fail_report *report, uint64_t nth, bool lasting);
void alloc_fail_disarm(void);
/* Bytes mapped by our code and not unmapped, since the process began. */
int64_t alloc_fail_mapped_bytes(void);

#endif
