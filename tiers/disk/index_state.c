/* index_state.c - see index_state.h. */
#include "index_state.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define STATE_MAGIC 0x53564b4cu
#define STATE_BYTES 4096u

_Static_assert(sizeof(struct kvl_index_state) <= STATE_BYTES, "the state is one page");

static void *map_state(int fd) {
    int flags = fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
    void *memory = mmap(NULL, STATE_BYTES, PROT_READ | PROT_WRITE, flags, fd, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

struct kvl_index_state *kvl_index_state_open(const char *index_directory) {
    char *path = NULL;
    if (asprintf(&path, "%s/state", index_directory) < 0)
        return NULL;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    free(path);
    /* Reserved: writing to a hole of a full file system would be a SIGBUS. */
    if (fd >= 0 && posix_fallocate(fd, 0, STATE_BYTES) != 0) {
        close(fd);
        fd = -1;
    }
    struct kvl_index_state *state = map_state(fd);
    if (fd >= 0)
        close(fd);
    if (state == NULL)
        return NULL;
    if (state->magic != STATE_MAGIC) {
        *state = (struct kvl_index_state){.magic = STATE_MAGIC};
        return state;
    }
    if (atomic_load(&state->phase) != KVL_INDEX_OUTSIDE)
        state->deaths++;
    return state;
}

void kvl_index_state_close(struct kvl_index_state *state) {
    if (state != NULL)
        munmap(state, STATE_BYTES);
}

void kvl_index_state_served(struct kvl_index_state *state) {
    if (state != NULL)
        state->deaths = 0;
}

const char *kvl_index_phase_name(unsigned phase) {
    switch (phase) {
    case KVL_INDEX_OPENING:
        return "opening";
    case KVL_INDEX_WALKING:
        return "walking";
    case KVL_INDEX_COMMITTING:
        return "committing";
    default:
        return "outside";
    }
}
