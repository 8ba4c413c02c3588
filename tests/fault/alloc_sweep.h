/* alloc_sweep.h - runs a scenario again and again, with another allocation failing each time.
 *
 *   NAME [STRIDE [SEED]]   every STRIDE-th allocation, beginning at one that SEED chooses
 *
 * Each run is a process of its own, so that a crash, a hang or a leak is that run's. It fails the
 * sweep when it ends by a signal, takes too long, says so (ALLOC_NEED), or leaves descriptors, maps
 * or, where LeakSanitizer is there, memory behind; the failing call is shown by file and line. */
#ifndef KVL_ALLOC_SWEEP_H
#define KVL_ALLOC_SWEEP_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "alloc_fail.h"

#define ALLOC_NEED(condition)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

struct alloc_scenario {
    const char *name;
    /* Arms, uses, disarms, and checks what must hold then. path: a new folder, removed after. */
    void (*run)(struct alloc_fail_report *report, uint64_t nth, bool lasting, const char *path);
};

/* For main to return. */
int alloc_sweep(const struct alloc_scenario *scenario, int argc, char **argv);

#endif
