/* power_loss_log.h - one log of everything a directory is told, and of what was promised meanwhile.
 *
 * Entries are in the order in which they happened; a point of time is an entry's index. A write and
 * a sync are two entries each: begun, and done. Names are "path\0", relative to the root.
 *
 *   WRITE   node, offset, bytes, data   flags 1: the descriptor syncs it (O_DSYNC)
 *   SYNC    node                        a file or a folder
 *   DONE    of                          the WRITE or SYNC that has returned
 *   SIZE    node, bytes
 *   ZERO    node, offset, bytes         flags 1: the size grows to its end
 *   RESERVE node, offset, bytes         flags 1: likewise
 *   CREATE  node, folder, data          flags 1: a folder
 *   RENAME  node, folder, data          data: the old name, then the new one
 *   REMOVE  node, folder, data
 *   EVENT   node: enum power_event, then offset, bytes: its arguments (power_loss_model.h)
 *
 * Threads: recording is safe from any; reading while nothing records. */
#ifndef KVL_POWER_LOSS_LOG_H
#define KVL_POWER_LOSS_LOG_H

#include <stdbool.h>
#include <stdint.h>

enum power_kind {
    POWER_NOTHING, /* the call failed */
    POWER_WRITE,
    POWER_SYNC,
    POWER_DONE,
    POWER_SIZE,
    POWER_ZERO,
    POWER_RESERVE,
    POWER_CREATE,
    POWER_RENAME,
    POWER_REMOVE,
    POWER_EVENT
};

#define POWER_NODES_MAX 4096u
#define POWER_ROOT 0u /* the node of the directory itself */

struct power_entry {
    uint32_t kind, flags;
    uint32_t node, folder, of;
    uint64_t offset, bytes;
    uint64_t data; /* in power_log.bytes */
};

struct power_log {
    struct power_entry *entries;
    uint32_t count, capacity;
    uint8_t *bytes;
    uint64_t used_bytes, capacity_bytes;
    uint32_t nodes; /* next unused number */
};

void power_log_clear(struct power_log *log);
void power_log_free(struct power_log *log);
/* Whole, to and from a file; false: could not. */
bool power_log_save(const struct power_log *log, const char *path);
bool power_log_load(struct power_log *log, const char *path);

/* Where a node stands before recording begins. */
struct power_name {
    char path[64];
    uint32_t node;
};

/* Records what happens below root from now on. forget_syncs: syncs of files whose name ends so are
 * not written down, as if they had been left out (NULL: none). Aborts when something is done to
 * the directory that a log cannot tell. */
void power_record_begin(struct power_log *log, const char *root, const struct power_name *names,
    uint32_t name_count, const char *forget_syncs);
void power_record_end(void);
/* Events go to the log that is recorded or, while there is none, here. */
void power_event_sink(void (*sink)(void *arg, uint32_t event, uint64_t a, uint64_t b), void *arg);
void power_record_event(uint32_t event, uint64_t a, uint64_t b);

#endif
