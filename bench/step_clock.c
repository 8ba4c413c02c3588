/* step_clock.c - see step_clock.h. */
#include "step_clock.h"

#include <time.h>

static clockid_t clock_used = CLOCK_MONOTONIC;

void step_clock_init(uint32_t threads) {
    clock_used = threads == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC;
}

double step_clock_s(void) {
    struct timespec now;
    clock_gettime(clock_used, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}
