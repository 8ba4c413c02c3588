/* arena_limit.h - says no to an arena that the machine or its cgroup can never hold.
 *
 * Memory is committed page by page behind the first answer; a cgroup that runs out then kills the
 * process without a word. So what can be known is said at start. Any thread. */
#ifndef KVL_ARENA_LIMIT_H
#define KVL_ARENA_LIMIT_H

#include <stdint.h>

#include "kvl_err.h"

/* NOMEM with a message that names the limit. */
KVL_MUST_CHECK kvl_err kvl_arena_limit_check(
    const char *name, uint64_t capacity_bytes, struct kvl_errmsg *msg);

#endif
