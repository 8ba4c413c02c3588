/* kernels.c - which table of kernels runs: a choice made once, when a backend is created. */
#include "kernels.h"

#include <string.h>

const struct kvl_cpu_kernels *const kvl_cpu_kernels_all[] = {
#ifdef __x86_64__
    &kvl_cpu_kernels_avx512,
    &kvl_cpu_kernels_avx2,
#endif
#ifdef __aarch64__
    &kvl_cpu_kernels_neon,
#endif
    &kvl_cpu_kernels_portable,
    NULL,
};

const struct kvl_cpu_kernels *kvl_cpu_kernels_best(void) {
    const struct kvl_cpu_kernels *const *table = kvl_cpu_kernels_all;
    while (!(*table)->available()) {
        table++;
    }
    return *table;
}

const struct kvl_cpu_kernels *kvl_cpu_kernels_named(const char *name) {
    for (const struct kvl_cpu_kernels *const *table = kvl_cpu_kernels_all; *table != NULL;
         table++) {
        if (strcmp((*table)->name, name) == 0 && (*table)->available()) {
            return *table;
        }
    }
    return NULL;
}
