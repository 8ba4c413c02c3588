/* arena_limit.c - see arena_limit.h; limits come from sysconf and from cgroup v2. */
#include "arena_limit.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The first line of a small file; false when there is none. */
static bool read_line(const char *path, char *line, int line_bytes) {
    FILE *file = fopen(path, "re");
    if (!file)
        return false;
    bool got = fgets(line, line_bytes, file) != NULL;
    fclose(file);
    if (got)
        line[strcspn(line, "\n")] = '\0';
    return got;
}

/* cgroup v2 memory.max of this process's group and of every group above; UINT64_MAX: none. */
static uint64_t cgroup_limit_bytes(void) {
    char line[1024], path[1200], value[64];
    uint64_t limit = UINT64_MAX;
    if (!read_line("/proc/self/cgroup", line, sizeof line) || strncmp(line, "0::/", 4) != 0)
        return limit;
    char *group = line + 3;
    for (;;) {
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.max", group);
        /* "max" holds no digits, so it limits nothing. */
        if (read_line(path, value, sizeof value)) {
            char *end;
            uint64_t bytes = strtoull(value, &end, 10);
            if (end != value && bytes < limit)
                limit = bytes;
        }
        char *slash = strrchr(group, '/');
        if (!slash)
            return limit;
        *slash = '\0';
    }
}

kvl_err kvl_arena_limit_check(const char *name, uint64_t capacity_bytes, struct kvl_errmsg *msg) {
    const uint64_t ram_bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    if (capacity_bytes > ram_bytes)
        return kvl_fail(msg, KVL_ERR_NOMEM,
            "the %s tier asks for %" PRIu64 " bytes, this machine has %" PRIu64
            " bytes of memory: make it smaller",
            name, capacity_bytes, ram_bytes);
    const uint64_t group_bytes = cgroup_limit_bytes();
    if (capacity_bytes > group_bytes)
        return kvl_fail(msg, KVL_ERR_NOMEM,
            "the %s tier asks for %" PRIu64 " bytes, the control group's memory.max is %" PRIu64
            ": make it smaller or raise the limit",
            name, capacity_bytes, group_bytes);
    return KVL_OK;
}
