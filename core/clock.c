/* clock.c - see clock.h. */
#include "clock.h"

#include <time.h>

static uint64_t clock_now_ns(clockid_t id) {
    struct timespec now;
    clock_gettime(id, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t kvl_clock_ns(void) {
    return clock_now_ns(CLOCK_MONOTONIC);
}

uint64_t kvl_clock_wall_ns(void) {
    return clock_now_ns(CLOCK_REALTIME);
}
