/* arenas.c - registers the owner's arenas with the I/O backend, once their memory is there.
 *
 * Registering pins every page. Memory that is not resident yet would be brought in by that at
 * 4 KiB a page, in the way of the arena's own touching, and could never become huge again. So the
 * disk thread asks mincore now and then, a sample a chunk, and registers when all of it has come.
 */
#include <stdlib.h>

#include "clock.h"
#include "disk.h"
#include "resident.h"

#define ASK_EVERY_NS UINT64_C(20000000)

void kvl_disk_arena_take(struct kvl_disk *disk, struct kvl_disk_register *memory) {
    memory->next = disk->arenas;
    disk->arenas = memory;
}

bool kvl_disk_arenas_advance(struct kvl_disk *disk) {
    bool progress = false;
    if (disk->arenas == NULL || kvl_clock_ns() < disk->arenas_due_ns)
        return false;
    struct kvl_disk_register **at = &disk->arenas;
    while (*at != NULL) {
        struct kvl_disk_register *memory = *at;
        if (!kvl_memory_is_resident(memory->address, memory->bytes)) {
            at = &memory->next;
            continue;
        }
        if (!disk->backend->ops->register_memory(disk->backend, memory->address, memory->bytes))
            kvl_log_fallback(disk->log,
                "an arena is not registered with io_uring: the memlock limit is too low (ulimit "
                "-l); disk reads cost more CPU");
        *at = memory->next;
        free(memory);
        progress = true;
    }
    disk->arenas_due_ns = disk->arenas == NULL ? UINT64_MAX : kvl_clock_ns() + ASK_EVERY_NS;
    return progress;
}

void kvl_disk_arenas_forget(struct kvl_disk *disk) {
    while (disk->arenas != NULL) {
        struct kvl_disk_register *memory = disk->arenas;
        disk->arenas = memory->next;
        free(memory);
    }
}
