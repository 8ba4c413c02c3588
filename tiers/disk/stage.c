/* stage.c - from the queue of stores to a placed batch.
 *
 * Every record gets room for its largest size in the batch's buffer, and workers encode in place.
 * What is neither compressed nor small stays where the caller has it: only its header is encoded.
 * When a sealed batch is encoded its records are moved together and get their place behind the
 * segment's last record, so that the device sees few large writes. */
#include <string.h>
#include <sys/mman.h>

#include "clock.h"
#include "disk.h"

static struct kvl_disk_batch *open_batch_of(struct kvl_disk *disk) {
    for (struct kvl_disk_batch *batch = disk->batch_head; batch != NULL; batch = batch->next) {
        if (batch->state == KVL_BATCH_FILLING && !batch->sealed)
            return batch;
    }
    return NULL;
}

void kvl_disk_seal(struct kvl_disk *disk) {
    struct kvl_disk_batch *batch = open_batch_of(disk);
    if (batch != NULL)
        batch->sealed = true;
}

static uint64_t room_of(const struct kvl_segment *segment) {
    return segment->bytes - segment->append_bytes - segment->reserved_bytes;
}

bool kvl_disk_has_room(const struct kvl_disk *disk, uint64_t bytes, bool carrying) {
    if (disk->active != NULL && room_of(disk->active) >= bytes)
        return true;
    return kvl_disk_may_take_segment(disk, carrying);
}

/* The active segment if the record fits, or the next free one. */
static struct kvl_segment *segment_for(struct kvl_disk *disk, uint64_t bytes, bool carrying) {
    if (disk->active != NULL && room_of(disk->active) >= bytes)
        return disk->active;
    if (disk->active != NULL) {
        kvl_disk_seal(disk);
        disk->active->state = KVL_SEGMENT_FULL;
        kvl_segment_trim(disk->active);
        disk->active = NULL;
    }
    disk->reclaim.futile = false;
    if (!kvl_disk_may_take_segment(disk, carrying)) {
        disk->want_segment = disk->want_segment || !carrying;
        return NULL;
    }
    disk->active = kvl_segments_first_free(&disk->segments);
    disk->active->state = KVL_SEGMENT_ACTIVE;
    disk->want_segment = false;
    return disk->active;
}

/* A record larger than the buffer gets memory of its own, kept from then on. */
static bool fit_memory(struct kvl_disk_buffer *buffer, uint64_t bytes) {
    if (buffer->memory_bytes >= bytes)
        return true;
    uint8_t *memory = kvl_disk_map_memory(bytes);
    if (memory == NULL)
        return false;
    if (buffer->memory != buffer->base)
        munmap(buffer->memory, buffer->memory_bytes);
    buffer->memory = memory;
    buffer->memory_bytes = bytes;
    return true;
}

static struct kvl_disk_batch *unused_batch(struct kvl_disk *disk) {
    for (uint32_t i = 0; i < KVL_DISK_BATCHES; i++) {
        if (disk->batches[i].state == KVL_BATCH_UNUSED)
            return &disk->batches[i];
    }
    return NULL;
}

static struct kvl_disk_batch *open_batch(struct kvl_disk *disk, uint64_t bytes, bool carrying) {
    struct kvl_disk_batch *batch = unused_batch(disk);
    if (batch == NULL || disk->free_buffers == NULL || !fit_memory(disk->free_buffers, bytes))
        return NULL;
    struct kvl_segment *segment = segment_for(disk, bytes, carrying);
    if (segment == NULL)
        return NULL;
    batch->state = KVL_BATCH_FILLING;
    batch->buffer = kvl_disk_buffer_take(disk);
    batch->segment = segment;
    batch->reserved_bytes = batch->used_bytes = batch->written_bytes = 0;
    batch->opened_ns = kvl_clock_ns();
    batch->first_sequence = UINT64_MAX;
    batch->encoding = batch->writing = batch->staged_count = batch->written_records = 0;
    batch->sealed = false;
    batch->status = KVL_OK;
    batch->next = NULL;
    *disk->batch_tail = batch;
    disk->batch_tail = &batch->next;
    segment->batches++;
    return batch;
}

static bool batch_takes(const struct kvl_disk_batch *batch, uint64_t bytes) {
    return batch->buffer->memory_bytes - batch->reserved_bytes >= bytes &&
           room_of(batch->segment) >= bytes && batch->staged_count < KVL_DISK_BATCH_RECORDS;
}

/* Room for one record in the open batch or in a new one; NULL: not now. */
static struct kvl_disk_staged *reserve(struct kvl_disk *disk, uint64_t bytes, bool carrying) {
    struct kvl_disk_batch *batch = open_batch_of(disk);
    if (batch != NULL && !batch_takes(batch, bytes)) {
        batch->sealed = true;
        batch = NULL;
    }
    if (batch == NULL)
        batch = open_batch(disk, bytes, carrying);
    if (batch == NULL)
        return NULL;
    struct kvl_disk_staged *staged = &batch->staged[batch->staged_count++];
    memset(staged, 0, sizeof(*staged));
    staged->disk = disk;
    staged->batch = batch;
    staged->at_bytes = batch->reserved_bytes;
    staged->reserved_bytes = bytes;
    staged->segment_generation = batch->segment->generation;
    staged->op_index = UINT64_MAX;
    batch->reserved_bytes += bytes;
    batch->segment->reserved_bytes += bytes;
    batch->encoding++;
    return staged;
}

static void encode_job(struct kvl_job *job) {
    struct kvl_disk_staged *staged = kvl_container_of(job, struct kvl_disk_staged, job);
    const struct kvl_io *io = staged->request->io;
    struct kvl_codec *codec = kvl_codec_pool_take(&staged->disk->codecs);
    uint8_t *out = staged->batch->buffer->memory + staged->at_bytes;
    struct kvl_record_source source = {
        .block = &staged->block.record,
        .layout = io->layout,
        .payload = io->buffer,
        .segment_generation = staged->segment_generation,
        .run = staged->disk->journal.run,
        .stored_wall_ns = staged->block.last_use_wall_ns,
        .compress = staged->compress,
        .apart = staged->payload != NULL,
    };
    if (staged->sample)
        kvl_disk_codec_sample(staged->disk, codec, io->layout, io->buffer, out);
    staged->status =
        kvl_record_encode(codec, &source, out, &staged->record_bytes, &staged->block.raw);
    kvl_codec_pool_give(&staged->disk->codecs, codec);
}

static void encode_done(struct kvl_job *job) {
    struct kvl_disk_staged *staged = kvl_container_of(job, struct kvl_disk_staged, job);
    staged->batch->encoding--;
}

/* The caller keeps its buffer until the store completes. */
static bool stays_apart(const struct kvl_io *io) {
    return io->layout->payload_bytes >= KVL_DISK_APART_BYTES &&
           (uintptr_t)io->buffer % KVL_PAGE_BYTES == 0 && kvl_record_may_be_apart(io->layout);
}

static bool stage_store(struct kvl_disk *disk, struct kvl_disk_request *request) {
    const struct kvl_layout *layout = request->io->layout;
    struct kvl_disk_staged *staged = reserve(disk, kvl_record_bytes_max(layout), false);
    if (staged == NULL)
        return false;
    disk->reclaim.carried_rounds = 0;
    struct kvl_disk_batch *batch = staged->batch;
    staged->request = request;
    staged->block.record = request->io->record;
    staged->block.last_use_wall_ns = kvl_clock_wall_ns();
    staged->compress = kvl_disk_codec_compress(disk, layout, &staged->sample);
    if (!staged->compress && !staged->sample && stays_apart(request->io))
        staged->payload = request->io->buffer;
    if (batch->first_sequence == UINT64_MAX)
        batch->first_sequence = request->sequence;
    if (request->arrival_ns < batch->opened_ns)
        batch->opened_ns = request->arrival_ns;
    staged->job = (struct kvl_job){.run = encode_job, .done = encode_done};
    kvl_workers_submit(disk->workers, &staged->job, false);
    return true;
}

/* The copy keeps its frames; only the header tells of its new segment and of its old place. */
static void carry_read(struct kvl_disk_op *op) {
    struct kvl_disk_staged *staged = op->owner;
    struct kvl_record_header header;
    struct kvl_segment *from =
        kvl_segments_find(&staged->disk->segments, kvl_location_segment(staged->from));
    from->refs--;
    staged->batch->encoding--;
    staged->status = op->status;
    if (staged->status == KVL_OK)
        staged->status = kvl_record_header_read(op->buffer, &header);
    if (staged->status != KVL_OK)
        return;
    if (!kvl_key_equal(&header.block.key, &staged->block.record.key) ||
        header.block.generation != staged->block.record.generation ||
        header.record_bytes != op->bytes) {
        staged->status = KVL_ERR_CORRUPT;
        return;
    }
    header.segment_generation = staged->segment_generation;
    header.run = staged->disk->journal.run;
    header.stored_wall_ns = staged->block.last_use_wall_ns;
    header.copied_from = staged->from;
    header.copied_from_generation = from->generation;
    kvl_record_header_write(&header, op->buffer);
    staged->block.record = header.block;
    staged->record_bytes = op->bytes;
}

bool kvl_disk_stage_carried(
    struct kvl_disk *disk, struct kvl_segment *from, const struct kvl_index_name *name) {
    const struct kvl_segment_entry *entry = kvl_segment_at(from, kvl_location_page(name->location));
    uint64_t bytes = (uint64_t)entry->pages * KVL_PAGE_BYTES;
    struct kvl_disk_staged *staged = reserve(disk, bytes, true);
    if (staged == NULL)
        return false;
    uint64_t offset = (uint64_t)entry->page * KVL_PAGE_BYTES;
    staged->from = name->location;
    staged->block.record.key = name->key;
    staged->block.record.generation = name->generation;
    staged->block.last_use_wall_ns = entry->last_use_s * UINT64_C(1000000000);
    staged->block.raw = entry->raw;
    staged->op = (struct kvl_disk_op){
        .kind = KVL_DISK_READ,
        .file = &from->file,
        .offset_bytes = offset,
        .buffer = staged->batch->buffer->memory + staged->at_bytes,
        .bytes = bytes,
        .done = carry_read,
        .owner = staged,
    };
    from->refs++;
    disk->backend->ops->submit(disk->backend, &staged->op);
    return true;
}

/* What could not be encoded takes no place. */
static void drop_failed(struct kvl_disk *disk, struct kvl_disk_staged *staged) {
    if (staged->request != NULL) {
        atomic_fetch_add(&disk->errors, 1);
        atomic_fetch_add(&disk->corrupt, staged->status == KVL_ERR_CORRUPT);
        kvl_disk_complete(staged->request, staged->status);
        staged->request = NULL;
    } else if (staged->from != 0) {
        kvl_disk_carried(disk, staged, false);
    }
    staged->from = 0;
}

/* Moves the encoded records together and gives them their place in the segment. */
static void place(struct kvl_disk *disk, struct kvl_disk_batch *batch) {
    struct kvl_segment *segment = batch->segment;
    uint8_t *memory = batch->buffer->memory;
    batch->offset_bytes = segment->append_bytes;
    for (uint32_t i = 0; i < batch->staged_count; i++) {
        struct kvl_disk_staged *staged = &batch->staged[i];
        if (staged->status != KVL_OK) {
            drop_failed(disk, staged);
            continue;
        }
        uint64_t bytes = staged->payload != NULL ? KVL_PAGE_BYTES : staged->record_bytes;
        if (staged->at_bytes != batch->used_bytes)
            memmove(memory + batch->used_bytes, memory + staged->at_bytes, bytes);
        staged->at_bytes = batch->used_bytes;
        staged->block.stored_bytes = staged->record_bytes;
        staged->block.location =
            kvl_location_make(segment->id, segment->append_bytes + batch->used_bytes);
        batch->used_bytes += staged->record_bytes;
    }
    segment->reserved_bytes -= batch->reserved_bytes;
    segment->append_bytes += batch->used_bytes;
    batch->state = KVL_BATCH_WRITING;
}

static bool place_ready(struct kvl_disk *disk) {
    bool progress = false;
    for (struct kvl_disk_batch *batch = disk->batch_head; batch != NULL; batch = batch->next) {
        if (batch->state != KVL_BATCH_FILLING)
            continue;
        if (!batch->sealed || batch->encoding > 0)
            break;
        place(disk, batch);
        progress = true;
    }
    return progress;
}

static bool stage_stores(struct kvl_disk *disk) {
    bool progress = false;
    bool crowded = disk->index_permille > KVL_INDEX_PRESSURE_PERMILLE || disk->commit_parked;
    if (disk->stores_waiting.head == NULL || crowded)
        return false;
    /* Carrying took it, and came to nothing: what is left of the active segment is for the next
     * attempt. */
    if (!kvl_disk_has_reserve(disk)) {
        disk->want_segment = true;
        return false;
    }
    while (disk->stores_waiting.head != NULL) {
        struct kvl_disk_request *request = kvl_disk_list_pop(&disk->stores_waiting);
        if (atomic_load(&request->canceled)) {
            kvl_disk_complete(request, KVL_ERR_CANCELED);
        } else if (!stage_store(disk, request)) {
            kvl_disk_list_push_front(&disk->stores_waiting, request);
            break;
        } else {
            disk->want_segment = false;
        }
        progress = true;
    }
    return progress;
}

void kvl_disk_fail_waiting_stores(struct kvl_disk *disk, kvl_err status) {
    disk->want_segment = false;
    while (disk->stores_waiting.head != NULL) {
        atomic_fetch_add(&disk->errors, 1);
        kvl_disk_complete(kvl_disk_list_pop(&disk->stores_waiting), status);
    }
}

bool kvl_disk_stage_advance(struct kvl_disk *disk) {
    if (!disk->loaded)
        return false;
    bool carrying = disk->reclaim.state == KVL_RECLAIM_CARRYING;
    bool progress = !carrying && stage_stores(disk);
    struct kvl_disk_batch *batch = open_batch_of(disk);
    /* Nobody waits for a batch to fill up when somebody waits for it to be durable. */
    bool due = batch != NULL && (disk->flushes != NULL || carrying ||
                                    kvl_clock_ns() >= batch->opened_ns + disk->persist_ns / 2);
    if (due && (disk->stores_waiting.head == NULL || !progress)) {
        batch->sealed = true;
        progress = true;
    }
    return place_ready(disk) || progress;
}
