/* step_clock.h - what the programs that time forward calls of the CPU backend share. */
#ifndef KVL_BENCH_STEP_CLOCK_H
#define KVL_BENCH_STEP_CLOCK_H

#include <stdint.h>

/* Chooses the clock: one thread alone is timed by the CPU time that the process took, so that it
 * can be measured on a busy machine too. */
void step_clock_init(uint32_t threads);
double step_clock_s(void);

#endif
