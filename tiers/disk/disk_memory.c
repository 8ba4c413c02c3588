/* disk_memory.c - the disk thread's buffers: staging for writes, bounces and headers for reads.
 *
 * All bounded at start. Small capacities get small buffers. Huge pages where the system gives
 * them: transfers into 4 KiB pages run at a fraction of the disk's speed. */
#include <stdlib.h>
#include <sys/mman.h>

#include "disk.h"

uint8_t *kvl_disk_map_memory(uint64_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    (void)madvise(memory, bytes, MADV_HUGEPAGE);
    return memory;
}

static kvl_err create_batches(struct kvl_disk *disk) {
    uint64_t bytes = disk->plan.segment_bytes < KVL_DISK_BATCH_BYTES ? disk->plan.segment_bytes
                                                                     : KVL_DISK_BATCH_BYTES;
    for (uint32_t i = 0; i < KVL_DISK_BATCHES; i++) {
        struct kvl_disk_batch *batch = &disk->batches[i];
        batch->disk = disk;
        batch->base_bytes = batch->memory_bytes = bytes;
        batch->base = batch->memory = kvl_disk_map_memory(bytes);
        /* A record is two pages at least. */
        batch->staged_max = (uint32_t)(bytes / (2 * KVL_PAGE_BYTES));
        batch->staged = calloc(batch->staged_max, sizeof(*batch->staged));
        if (batch->memory == NULL || batch->staged == NULL)
            return KVL_ERR_NOMEM;
    }
    return KVL_OK;
}

static kvl_err create_loads(struct kvl_disk *disk) {
    disk->load_pool = calloc(KVL_DISK_LOADS, sizeof(*disk->load_pool));
    disk->header_pages = kvl_disk_map_memory((uint64_t)KVL_DISK_LOADS * KVL_PAGE_BYTES);
    if (disk->load_pool == NULL || disk->header_pages == NULL)
        return KVL_ERR_NOMEM;
    for (uint32_t i = 0; i < KVL_DISK_LOADS; i++) {
        struct kvl_disk_load *load = &disk->load_pool[i];
        load->disk = disk;
        load->header_page = disk->header_pages + (uint64_t)i * KVL_PAGE_BYTES;
        load->next = disk->free_loads;
        disk->free_loads = load;
    }
    uint64_t bounces = disk->plan.capacity_bytes / (16 * KVL_DISK_BOUNCE_BYTES);
    disk->bounce_count = bounces < 4                      ? 4
                         : bounces > KVL_DISK_BOUNCES_MAX ? KVL_DISK_BOUNCES_MAX
                                                          : (uint32_t)bounces;
    disk->bounce_memory = kvl_disk_map_memory(disk->bounce_count * KVL_DISK_BOUNCE_BYTES);
    for (uint32_t i = 0; i < disk->bounce_count; i++)
        disk->bounce_free[disk->bounce_free_count++] = i;
    return disk->bounce_memory == NULL ? KVL_ERR_NOMEM : KVL_OK;
}

kvl_err kvl_disk_memory_create(struct kvl_disk *disk) {
    kvl_err err = create_batches(disk);
    return err == KVL_OK ? create_loads(disk) : err;
}

void kvl_disk_memory_register(struct kvl_disk *disk) {
    bool all = disk->backend->ops->register_memory(
        disk->backend, disk->bounce_memory, disk->bounce_count * KVL_DISK_BOUNCE_BYTES);
    for (uint32_t i = 0; all && i < KVL_DISK_BATCHES; i++)
        all = disk->backend->ops->register_memory(
            disk->backend, disk->batches[i].base, disk->batches[i].base_bytes);
    if (!all)
        kvl_log_fallback(disk->log,
            "disk buffers are not registered with io_uring: the memlock limit is too low "
            "(ulimit -l); transfers cost more CPU");
}

void kvl_disk_memory_destroy(struct kvl_disk *disk) {
    for (uint32_t i = 0; i < KVL_DISK_BATCHES; i++) {
        struct kvl_disk_batch *batch = &disk->batches[i];
        if (batch->memory != NULL && batch->memory != batch->base)
            munmap(batch->memory, batch->memory_bytes);
        if (batch->base != NULL)
            munmap(batch->base, batch->base_bytes);
        free(batch->staged);
    }
    if (disk->bounce_memory != NULL)
        munmap(disk->bounce_memory, disk->bounce_count * KVL_DISK_BOUNCE_BYTES);
    if (disk->header_pages != NULL)
        munmap(disk->header_pages, (uint64_t)KVL_DISK_LOADS * KVL_PAGE_BYTES);
    free(disk->load_pool);
}
