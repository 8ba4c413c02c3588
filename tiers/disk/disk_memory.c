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

struct kvl_disk_buffer *kvl_disk_buffer_take(struct kvl_disk *disk) {
    struct kvl_disk_buffer *buffer = disk->free_buffers;
    if (buffer != NULL)
        disk->free_buffers = buffer->next;
    return buffer;
}

void kvl_disk_buffer_give(struct kvl_disk *disk, struct kvl_disk_buffer *buffer) {
    buffer->next = disk->free_buffers;
    disk->free_buffers = buffer;
}

static kvl_err create_batches(struct kvl_disk *disk) {
    uint64_t bytes = disk->plan.segment_bytes < KVL_DISK_BUFFER_BYTES ? disk->plan.segment_bytes
                                                                      : KVL_DISK_BUFFER_BYTES;
    for (uint32_t i = 0; i < KVL_DISK_BUFFERS; i++) {
        struct kvl_disk_buffer *buffer = &disk->buffers[i];
        buffer->base_bytes = buffer->memory_bytes = bytes;
        buffer->base = buffer->memory = kvl_disk_map_memory(bytes);
        if (buffer->base == NULL)
            return KVL_ERR_NOMEM;
        kvl_disk_buffer_give(disk, buffer);
    }
    for (uint32_t i = 0; i < KVL_DISK_BATCHES; i++) {
        disk->batches[i].disk = disk;
        disk->batches[i].staged = calloc(KVL_DISK_BATCH_RECORDS, sizeof(struct kvl_disk_staged));
        if (disk->batches[i].staged == NULL)
            return KVL_ERR_NOMEM;
    }
    return KVL_OK;
}

static kvl_err create_loads(struct kvl_disk *disk) {
    disk->load_pool = calloc(KVL_DISK_LOADS, sizeof(*disk->load_pool));
    disk->header_pages = kvl_disk_map_memory((uint64_t)KVL_DISK_LOADS * KVL_PAGE_BYTES);
    if (disk->load_pool == NULL || disk->header_pages == NULL)
        return KVL_ERR_NOMEM;
    disk->loads_read_tail = &disk->loads_read;
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
    for (uint32_t i = 0; all && i < KVL_DISK_BUFFERS; i++)
        all = disk->backend->ops->register_memory(
            disk->backend, disk->buffers[i].base, disk->buffers[i].base_bytes);
    if (!all)
        kvl_log_fallback(disk->log,
            "disk buffers are not registered with io_uring: the memlock limit is too low "
            "(ulimit -l); transfers cost more CPU");
}

void kvl_disk_memory_destroy(struct kvl_disk *disk) {
    for (uint32_t i = 0; i < KVL_DISK_BUFFERS; i++) {
        struct kvl_disk_buffer *buffer = &disk->buffers[i];
        if (buffer->memory != NULL && buffer->memory != buffer->base)
            munmap(buffer->memory, buffer->memory_bytes);
        if (buffer->base != NULL)
            munmap(buffer->base, buffer->base_bytes);
    }
    for (uint32_t i = 0; i < KVL_DISK_BATCHES; i++)
        free(disk->batches[i].staged);
    if (disk->bounce_memory != NULL)
        munmap(disk->bounce_memory, disk->bounce_count * KVL_DISK_BOUNCE_BYTES);
    if (disk->header_pages != NULL)
        munmap(disk->header_pages, (uint64_t)KVL_DISK_LOADS * KVL_PAGE_BYTES);
    free(disk->load_pool);
}
