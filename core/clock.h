/* clock.h - monotonic and wall time, in nanoseconds. Any thread. */
#ifndef KVL_CLOCK_H
#define KVL_CLOCK_H

#include <stdint.h>

uint64_t kvl_clock_ns(void);      /* CLOCK_MONOTONIC */
uint64_t kvl_clock_wall_ns(void); /* CLOCK_REALTIME: for records that outlive the process */

#endif
