/* thread.c - see thread.h. */
#include "thread.h"

#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PROMPT_TURN_NS 100000u

/* What sched_setattr(2) takes, first version; the kernel's header clashes with the C library's. */
struct scheduling {
    uint32_t bytes, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime_ns, deadline_ns, period_ns;
};

void kvl_thread_begin(const char *name, enum kvl_thread_kind kind) {
    struct scheduling scheduling = {
        .bytes = sizeof scheduling,
        .policy = SCHED_OTHER,
        .nice = getpriority(PRIO_PROCESS, 0),
        .runtime_ns = kind == KVL_THREAD_PROMPT ? PROMPT_TURN_NS : 0, /* threads inherit it */
    };
    if (name != NULL)
        pthread_setname_np(pthread_self(), name);
    if (sched_getscheduler(0) == SCHED_OTHER)
        (void)syscall(SYS_sched_setattr, 0, &scheduling, 0);
}
