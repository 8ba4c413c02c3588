/* load.c - LOAD: read the record, verify its header, decode and verify its frames.
 *
 * Raw frames whose sizes are whole pages are read straight into the caller's buffer; everything
 * else goes through a bounce buffer and is decoded into the caller's buffer, frames in parallel. */
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "disk.h"

#define BOUNCE_LARGE_MAX 4u /* records larger than a bounce slot, at a time */

static void give_bounce(struct kvl_disk_load *load) {
    struct kvl_disk *disk = load->disk;
    if (load->bounce == NULL)
        return;
    if (load->bounce_slot >= 0) {
        disk->bounce_free[disk->bounce_free_count++] = (uint32_t)load->bounce_slot;
    } else {
        free(load->bounce);
        disk->bounce_large--;
    }
    load->bounce = NULL;
}

/* False: none now. NOMEM shows as a load without a bounce later, so it is a status. */
static bool take_bounce(struct kvl_disk_load *load) {
    struct kvl_disk *disk = load->disk;
    if (load->record_bytes <= KVL_DISK_BOUNCE_BYTES) {
        if (disk->bounce_free_count == 0)
            return false;
        load->bounce_slot = (int32_t)disk->bounce_free[--disk->bounce_free_count];
        load->bounce = disk->bounce_memory + (uint64_t)load->bounce_slot * KVL_DISK_BOUNCE_BYTES;
        return true;
    }
    if (disk->bounce_large == BOUNCE_LARGE_MAX)
        return false;
    load->bounce_slot = -1;
    load->bounce = aligned_alloc(KVL_PAGE_BYTES, load->record_bytes);
    if (load->bounce == NULL)
        load->status = KVL_ERR_NOMEM;
    else
        disk->bounce_large++;
    return true;
}

/* Bad on disk: out of the index, and the owner hears. */
static void drop_corrupt(struct kvl_disk_load *load, const struct kvl_key *key) {
    struct kvl_disk *disk = load->disk;
    struct kvl_segment_entry *entry = kvl_segment_at(load->segment, load->page);
    uint64_t location = kvl_location_make(load->segment->id, (uint64_t)load->page * KVL_PAGE_BYTES);
    KVL_WARN(
        disk->log, "disk corrupt segment=%u page=%u: block dropped", load->segment->id, load->page);
    if (entry == NULL || !entry->live)
        return;
    kvl_segment_kill(load->segment, entry);
    kvl_disk_delete_block(disk, key, location, UINT64_MAX);
    uint64_t moved_to = kvl_segment_moved_to(load->segment, entry);
    if (moved_to != 0)
        kvl_disk_delete_block(disk, key, moved_to, UINT64_MAX);
    kvl_disk_notify(disk, key, location, false);
}

static void touch(struct kvl_segment *segment, struct kvl_segment_entry *entry) {
    uint32_t now_s = (uint32_t)(kvl_clock_wall_ns() / 1000000000u);
    if (now_s < entry->last_use_s + KVL_DISK_TOUCH_S)
        return;
    entry->last_use_s = now_s;
    entry->used = true;
    segment->touched = true;
}

static void finish(struct kvl_disk_load *load) {
    struct kvl_disk *disk = load->disk;
    struct kvl_disk_request *request = load->request;
    struct kvl_segment_entry *entry = kvl_segment_at(load->segment, load->page);
    kvl_err status = load->status == KVL_ERR_SHORT ? KVL_ERR_CORRUPT : load->status;
    give_bounce(load);
    load->segment->refs--;
    disk->loads_active--;
    if (status == KVL_OK) {
        if (entry != NULL)
            touch(load->segment, entry);
        atomic_fetch_add(&disk->loads, 1);
        atomic_fetch_add(&disk->read_bytes, load->record_bytes);
    } else {
        atomic_fetch_add(&disk->errors, 1);
        atomic_fetch_add(&disk->corrupt, status == KVL_ERR_CORRUPT);
    }
    struct kvl_key key = request->io->record.key; /* io is the owner's again once complete */
    request->location = request->io->location;
    request->stored_bytes = load->record_bytes;
    kvl_disk_complete(request, status);
    if (status == KVL_ERR_CORRUPT)
        drop_corrupt(load, &key);
    load->next = disk->free_loads;
    disk->free_loads = load;
}

static void decode_job(struct kvl_job *job) {
    struct kvl_disk_frame_job *frames = kvl_container_of(job, struct kvl_disk_frame_job, job);
    struct kvl_disk_load *load = frames->load;
    struct kvl_codec *codec = kvl_codec_pool_take(&load->disk->codecs);
    uint8_t *payload = load->request->io->buffer;
    frames->status = KVL_OK;
    for (uint32_t i = 0; i < frames->count && frames->status == KVL_OK; i++) {
        uint32_t frame = frames->first + i;
        const uint8_t *stored = load->direct
                                    ? payload + load->header.frame_bytes * frame
                                    : load->bounce + load->header.frames[frame].offset_bytes;
        frames->status = kvl_record_decode_frame(codec, &load->header, frame, stored, payload);
    }
    kvl_codec_pool_give(&load->disk->codecs, codec);
}

/* Frames are announced in order, however they finished. */
static void announce(struct kvl_disk_load *load) {
    uint32_t before = load->verified;
    while (load->verified < load->header.frame_count && load->frame_ok[load->verified])
        load->verified++;
    if (load->verified == before || load->status != KVL_OK)
        return;
    atomic_store(&load->request->frames_ready, load->verified);
    if (load->request->io->frame_ready != NULL)
        kvl_mailbox_post(&load->disk->outbox, &load->request->progress);
}

static void decode_done(struct kvl_job *job) {
    struct kvl_disk_frame_job *frames = kvl_container_of(job, struct kvl_disk_frame_job, job);
    struct kvl_disk_load *load = frames->load;
    load->decoding--;
    if (frames->status != KVL_OK && load->status == KVL_OK)
        load->status = frames->status;
    for (uint32_t i = 0; i < frames->count; i++)
        load->frame_ok[frames->first + i] = frames->status == KVL_OK;
    announce(load);
    if (load->decoding == 0)
        finish(load);
}

/* One job a frame where frames are decoded, one a block where they are only verified. */
static void start_decoding(struct kvl_disk_load *load) {
    uint32_t per_job = load->direct ? load->header.frame_count : 1;
    bool urgent = load->request->io->priority == KVL_IO_RESTORE;
    memset(load->frame_ok, 0, sizeof(load->frame_ok));
    for (uint32_t first = 0; first < load->header.frame_count; first += per_job) {
        struct kvl_disk_frame_job *frames = &load->jobs[load->decoding++];
        frames->job = (struct kvl_job){.run = decode_job, .done = decode_done};
        frames->load = load;
        frames->first = first;
        frames->count = per_job;
    }
    uint32_t count = load->decoding;
    for (uint32_t i = 0; i < count; i++)
        kvl_workers_submit(load->disk->workers, &load->jobs[i].job, urgent);
}

static kvl_err check_header(struct kvl_disk_load *load) {
    const struct kvl_io *io = load->request->io;
    const uint8_t *page = load->direct ? load->header_page : load->bounce;
    kvl_err err = kvl_record_header_read(page, &load->header);
    if (err != KVL_OK)
        return err;
    if (load->header.record_bytes != load->record_bytes ||
        load->header.segment_generation != load->segment->generation)
        return KVL_ERR_CORRUPT;
    /* The caller asks for a copy that was here before. */
    if (kvl_key_equal(&load->header.block.key, &io->record.key) &&
        load->header.block.generation != io->record.generation)
        return KVL_ERR_NOTFOUND;
    if (load->direct && load->header.record_bytes != kvl_record_bytes_max(io->layout))
        return KVL_ERR_CORRUPT;
    for (uint32_t f = 0; load->direct && f < load->header.frame_count; f++) {
        if (load->header.frames[f].codec != KVL_FRAME_RAW)
            return KVL_ERR_CORRUPT;
    }
    return kvl_record_header_match(&load->header, &io->record, io->layout);
}

/* A device may end all that it has at once: the next reads start before these are looked at. */
static void read_done(struct kvl_disk_op *op) {
    struct kvl_disk_load *load = op->owner;
    struct kvl_disk *disk = load->disk;
    disk->reads_active--;
    disk->reads_bytes -= load->record_bytes;
    load->status = op->status;
    load->next = NULL;
    *disk->loads_read_tail = load;
    disk->loads_read_tail = &load->next;
    if (!atomic_load(&disk->stopping))
        kvl_disk_loads_advance(disk);
}

void kvl_disk_loads_verify(struct kvl_disk *disk) {
    struct kvl_disk_load *load = disk->loads_read, *next;
    disk->loads_read = NULL;
    disk->loads_read_tail = &disk->loads_read;
    for (; load != NULL; load = next) {
        next = load->next;
        if (load->status == KVL_OK)
            load->status = check_header(load);
        if (load->status == KVL_OK)
            start_decoding(load);
        else
            finish(load);
    }
}

/* One read fills both: the disk sees one request, not a small one before each large one. */
static void start_read(struct kvl_disk_load *load) {
    load->parts[0] = (struct iovec){load->header_page, KVL_PAGE_BYTES};
    load->parts[1] = (struct iovec){load->request->io->buffer, load->record_bytes - KVL_PAGE_BYTES};
    load->op = (struct kvl_disk_op){
        .kind = KVL_DISK_READ,
        .file = &load->segment->file,
        .offset_bytes = (uint64_t)load->page * KVL_PAGE_BYTES,
        .buffer = load->bounce,
        .parts = load->direct ? load->parts : NULL,
        .part_count = load->direct ? 2 : 0,
        .bytes = load->record_bytes,
        .done = read_done,
        .owner = load,
    };
    load->disk->reads_active++;
    load->disk->reads_bytes += load->record_bytes;
    load->disk->backend->ops->submit(load->disk->backend, &load->op);
}

static bool reads_direct(const struct kvl_io *io, const struct kvl_segment_entry *entry) {
    const struct kvl_layout *layout = io->layout;
    uint64_t frames_bytes = (uint64_t)(entry->pages - 1) * KVL_PAGE_BYTES;
    return entry->raw && (uintptr_t)io->buffer % KVL_PAGE_BYTES == 0 &&
           (layout->frame_count == 1 || layout->frame_bytes % KVL_PAGE_BYTES == 0) &&
           frames_bytes + KVL_PAGE_BYTES == kvl_record_bytes_max(layout) &&
           frames_bytes <= layout->slot_bytes;
}

/* False: no room for it now. */
static bool start(struct kvl_disk *disk, struct kvl_disk_request *request) {
    struct kvl_io *io = request->io;
    struct kvl_segment *segment =
        kvl_segments_find(&disk->segments, kvl_location_segment(io->location));
    struct kvl_segment_entry *entry =
        segment == NULL ? NULL : kvl_segment_at(segment, kvl_location_page(io->location));
    kvl_err status = KVL_OK;
    if (atomic_load(&request->canceled))
        status = KVL_ERR_CANCELED;
    else if (entry == NULL || !entry->live || !kvl_segment_entry_is(entry, &io->record.key))
        status = KVL_ERR_NOTFOUND;
    if (status != KVL_OK) {
        kvl_disk_complete(request, status);
        return true;
    }
    struct kvl_disk_load *load = disk->free_loads;
    load->request = request;
    load->segment = segment;
    load->page = entry->page;
    load->record_bytes = (uint64_t)entry->pages * KVL_PAGE_BYTES;
    load->direct = reads_direct(io, entry);
    load->bounce = NULL;
    load->decoding = load->verified = 0;
    load->status = KVL_OK;
    if (!load->direct && !take_bounce(load))
        return false;
    disk->free_loads = load->next;
    disk->loads_active++;
    segment->refs++;
    if (load->status != KVL_OK)
        finish(load);
    else
        start_read(load);
    return true;
}

/* The most urgent that waits; every eighth time the least urgent, so that nothing starves. */
static struct kvl_disk_request_list *next_list(struct kvl_disk *disk) {
    bool last_first = disk->loads_started % 8 == 7;
    for (uint32_t i = 0; i < 3; i++) {
        struct kvl_disk_request_list *list = &disk->loads_waiting[last_first ? 2 - i : i];
        if (list->head != NULL)
            return list;
    }
    return NULL;
}

static bool may_read(const struct kvl_disk *disk) {
    return disk->free_loads != NULL &&
           (disk->reads_active < KVL_DISK_READS_MIN ||
               (disk->reads_active < KVL_DISK_READS && disk->reads_bytes < KVL_DISK_READS_BYTES));
}

bool kvl_disk_loads_advance(struct kvl_disk *disk) {
    bool progress = false;
    struct kvl_disk_request_list *list;
    while (may_read(disk) && (list = next_list(disk)) != NULL) {
        struct kvl_disk_request *request = kvl_disk_list_pop(list);
        if (!start(disk, request)) {
            kvl_disk_list_push_front(list, request);
            return progress;
        }
        disk->loads_started++;
        progress = true;
    }
    return progress;
}
