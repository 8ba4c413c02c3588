/* rebuild.c - see rebuild.h. */
#include "rebuild.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "catalog_list.h"
#include "clock.h"
#include "disk_dir.h"
#include "index_private.h"
#include "planted.h"
#include "record.h"
#include "segment.h"

#define OPS 512u
/* A transaction copies the pages that it changes, and what it copied is free two later: with an op
 * for so many pages of the map, what lies idle fits the part of it that blocks do not fill. */
#define PAGES_PER_OP 128u
#define WINDOW_BYTES (1u << 20)

struct rebuild {
    struct kvl_index *target; /* the new one, under another name */
    int segments_fd;
    uint8_t *journal; /* its bytes; NULL: there is none */
    struct kvl_journal_found found;
    struct kvl_catalog_list catalog; /* as the journal says */
    struct kvl_live_map map;         /* the same; of a running tier: as its index knew */
    bool running;
    bool full; /* what is left of the target's map is for deletes */
    struct kvl_rebuilt *out;
    uint64_t now_ns;
    int fd; /* of the segment being read */
    uint8_t window[WINDOW_BYTES];
    uint64_t window_at, window_bytes;
    uint32_t op_count, op_limit; /* of a transaction */
    struct kvl_index_op ops[OPS];
};

static kvl_err flush_ops(struct rebuild *rebuild) {
    uint32_t count = rebuild->op_count;
    rebuild->op_count = 0;
    kvl_err err = count == 0 ? KVL_OK : kvl_index_commit(rebuild->target, rebuild->ops, count);
    rebuild->full = kvl_index_usage_permille(rebuild->target) >= KVL_INDEX_PRESSURE_PERMILLE;
    return err;
}

static kvl_err add_op(struct rebuild *rebuild, const struct kvl_index_op *op) {
    rebuild->ops[rebuild->op_count++] = *op;
    return rebuild->op_count >= rebuild->op_limit ? flush_ops(rebuild) : KVL_OK;
}

/* ---- the journal -------------------------------------------------------------------------- */

static kvl_err take_segment(struct rebuild *rebuild, const struct kvl_journal_entry *entry) {
    struct kvl_index_segment row;
    uint32_t end_page;
    if (!kvl_journal_read_segment(entry, &row, &end_page) || !kvl_live_map_put(&rebuild->map, &row))
        return KVL_OK; /* without it, its blocks are not taken */
    struct kvl_live_segment *segment = kvl_live_map_find(&rebuild->map, row.id);
    segment->end_page = end_page;
    memcpy(segment->bits, entry->value + KVL_JOURNAL_SEGMENT_BYTES,
        kvl_live_segment_bits_bytes(end_page));
    if (end_page % 8 != 0)
        segment->bits[end_page / 8] &= (uint8_t)((1u << (end_page % 8)) - 1);
    return KVL_OK;
}

static uint64_t number_at(const struct kvl_journal_entry *entry, uint32_t at, uint32_t bytes) {
    return kvl_index_get(entry->value + at, bytes);
}

static kvl_err take_entry(void *arg, const struct kvl_journal_entry *entry) {
    struct rebuild *rebuild = arg;
    bool of_catalog = entry->kind == KVL_JOURNAL_PUT || entry->kind == KVL_JOURNAL_REMOVE;
    if (rebuild->running && !of_catalog)
        return KVL_OK;
    switch (entry->kind) {
    case KVL_JOURNAL_SEGMENT:
        return take_segment(rebuild, entry);
    case KVL_JOURNAL_REMOVED:
        if (entry->value_bytes == 4)
            kvl_live_map_remove(&rebuild->map, (uint32_t)number_at(entry, 0, 4));
        return KVL_OK;
    case KVL_JOURNAL_DEAD:
        for (uint32_t at = 0; at + 8 <= entry->value_bytes; at += 8)
            kvl_live_map_drop(&rebuild->map, number_at(entry, at, 8));
        return KVL_OK;
    case KVL_JOURNAL_PUT:
    case KVL_JOURNAL_REMOVE:
        return kvl_catalog_list_add(&rebuild->catalog, entry);
    default:
        return KVL_OK;
    }
}

static kvl_err take_journal(struct rebuild *rebuild, const struct kvl_index_state *state) {
    struct kvl_journal_found *found = &rebuild->found;
    uint64_t count;
    kvl_err err = kvl_journal_load(rebuild->segments_fd, &rebuild->journal, &count);
    if (err != KVL_OK || rebuild->journal == NULL)
        return err;
    err = kvl_journal_parse(rebuild->journal, count, take_entry, rebuild, found);
    kvl_catalog_list_settle(&rebuild->catalog);
    rebuild->out->journal_exists = true;
    /* One that was cut off between two frames ends too early. */
    rebuild->out->journal_whole =
        found->whole && (state == NULL || found->sequence >= state->journal_sequence);
    return err;
}

/* From what the running tier knows, and from what is left of the old one. */
static kvl_err renew_journal(const struct rebuild *rebuild, struct kvl_journal *journal) {
    kvl_err err = kvl_journal_begin(journal);
    if (err != KVL_OK)
        return err;
    kvl_journal_add_map(journal, &rebuild->map);
    for (uint64_t i = 0; i < rebuild->catalog.count; i++)
        kvl_journal_add(journal, &rebuild->catalog.items[i]);
    return kvl_journal_end(journal);
}

static kvl_err add_catalog(struct rebuild *rebuild) {
    kvl_err err = KVL_OK;
    for (uint64_t i = 0; i < rebuild->catalog.count && err == KVL_OK; i++) {
        const struct kvl_journal_entry *entry = &rebuild->catalog.items[i];
        const struct kvl_index_op op = {
            .kind = KVL_INDEX_CATALOG_PUT,
            .catalog_kind = entry->catalog_kind,
            .append = true,
            .key_bytes = entry->key_bytes,
            .value_bytes = entry->value_bytes,
            .data = (uint8_t *)entry->key, /* the value follows; only read */
        };
        err = add_op(rebuild, &op);
    }
    return err == KVL_OK ? flush_ops(rebuild) : err;
}

/* ---- the segments ------------------------------------------------------------------------- */

/* The page's bytes, with so many behind it at hand if it had to be read; NULL: unreadable. */
static const uint8_t *page_at(struct rebuild *rebuild, uint32_t page, uint64_t ahead_bytes) {
    uint64_t at = (uint64_t)page * KVL_PAGE_BYTES;
    if (at < rebuild->window_at ||
        at + KVL_PAGE_BYTES > rebuild->window_at + rebuild->window_bytes) {
        ssize_t got = pread(rebuild->fd, rebuild->window, ahead_bytes, (off_t)at);
        rebuild->window_at = at;
        rebuild->window_bytes = got > 0 ? (uint64_t)got : 0;
        if (rebuild->window_bytes < KVL_PAGE_BYTES)
            return NULL;
    }
    return rebuild->window + (at - rebuild->window_at);
}

static bool header_is_of(
    const struct kvl_record_header *header, const struct kvl_live_segment *segment, uint32_t page) {
    uint64_t at = (uint64_t)page * KVL_PAGE_BYTES;
    return header->segment_generation == segment->row.generation &&
           header->record_bytes <= segment->row.bytes - at;
}

static kvl_err take_record(struct rebuild *rebuild, const struct kvl_live_segment *segment,
    uint32_t page, const struct kvl_record_header *header) {
    bool raw = true;
    if (rebuild->full) {
        rebuild->out->left_out++;
        return KVL_OK;
    }
    for (uint32_t f = 0; f < header->frame_count; f++)
        raw = raw && header->frames[f].codec == KVL_FRAME_RAW;
    uint64_t stored_ns = header->stored_wall_ns;
    const struct kvl_index_op op = {
        .kind = KVL_INDEX_RECOVER,
        .block =
            {
                .record = header->block,
                .location = kvl_location_make(segment->row.id, (uint64_t)page * KVL_PAGE_BYTES),
                .stored_bytes = header->record_bytes,
                .last_use_wall_ns =
                    stored_ns > 0 && stored_ns < rebuild->now_ns ? stored_ns : rebuild->now_ns,
                .raw = raw,
            },
    };
    rebuild->out->blocks++;
    return add_op(rebuild, &op);
}

/* Before the end page the bits say where records begin. */
static kvl_err take_listed(struct rebuild *rebuild, const struct kvl_live_segment *segment) {
    kvl_err err = KVL_OK;
    for (uint32_t page = 0; page < segment->end_page && err == KVL_OK; page++) {
        struct kvl_record_header header;
        if (!kvl_live_segment_bit(segment, page))
            continue;
        const uint8_t *bytes = page_at(rebuild, page, KVL_PAGE_BYTES);
        if (bytes != NULL && kvl_record_header_read(bytes, &header) == KVL_OK &&
            header_is_of(&header, segment, page))
            err = take_record(rebuild, segment, page, &header);
        else
            rebuild->out->unreadable++;
    }
    return err;
}

/* Whether some transaction published it: then it is no copy, or what it was copied from is dead.
 * Until then the original is the block, and the copy may not be whole. */
static bool is_published(const struct rebuild *rebuild, const struct kvl_record_header *header) {
    return header->copied_from == 0 ||
           !kvl_live_map_has(&rebuild->map, header->copied_from, header->copied_from_generation);
}

/* Behind it, from record to record; where none of this run begins, page by page. */
static kvl_err take_appended(struct rebuild *rebuild, const struct kvl_live_segment *segment) {
    uint32_t pages = kvl_live_segment_pages(segment), page = segment->end_page;
    uint64_t ahead_bytes = KVL_PAGE_BYTES;
    kvl_err err = KVL_OK;
    while (page < pages && err == KVL_OK) {
        struct kvl_record_header header;
        const uint8_t *bytes = page_at(rebuild, page, ahead_bytes);
        if (bytes == NULL || kvl_record_header_read(bytes, &header) != KVL_OK ||
            !header_is_of(&header, segment, page) || header.run != rebuild->found.run) {
            ahead_bytes = WINDOW_BYTES;
            page++;
            continue;
        }
        if (!kvl_live_segment_bit(segment, page) && is_published(rebuild, &header))
            err = take_record(rebuild, segment, page, &header);
        ahead_bytes = KVL_PAGE_BYTES;
        page += (uint32_t)(header.record_bytes / KVL_PAGE_BYTES);
    }
    return err;
}

static kvl_err take_blocks(struct rebuild *rebuild, const struct kvl_live_segment *segment) {
    char name[KVL_SEGMENT_NAME_BYTES];
    kvl_segment_file_name(segment->row.id, name);
    rebuild->fd = openat(rebuild->segments_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (rebuild->fd < 0) /* one that cannot be opened now may be whole */
        return errno == ENOENT ? KVL_OK : kvl_err_from_errno(errno);
    rebuild->window_bytes = 0;
    kvl_err err = take_listed(rebuild, segment);
    /* Of a running tier all that is published is listed; what lies behind is on its way. */
    if (err == KVL_OK && (!rebuild->running || KVL_PLANTED("healed-beyond-published")))
        err = take_appended(rebuild, segment);
    close(rebuild->fd);
    return err;
}

/* known: at a start, the segments that the process has open already, or an empty map. */
static kvl_err take_segments(struct rebuild *rebuild, const struct kvl_live_map *known) {
    const struct kvl_live_map *rows = known->slots > 0 && !rebuild->running ? known : &rebuild->map;
    kvl_err err = KVL_OK;
    for (uint32_t id = 0; id < rows->slots && err == KVL_OK; id++) {
        const struct kvl_live_segment *row = kvl_live_map_find(rows, id);
        const struct kvl_live_segment *segment = kvl_live_map_find(&rebuild->map, id);
        if (row == NULL)
            continue;
        const struct kvl_index_op op = {.kind = KVL_INDEX_SEGMENT_PUT, .segment = row->row};
        bool known_live = rebuild->running || rebuild->out->journal_whole;
        err = add_op(rebuild, &op);
        if (err == KVL_OK && known_live && segment != NULL &&
            kvl_live_segment_is(segment, &row->row))
            err = take_blocks(rebuild, segment);
    }
    return err == KVL_OK ? flush_ops(rebuild) : err;
}

/* ---- the index ---------------------------------------------------------------------------- */

static kvl_err remove_file(const char *path, const char *suffix) {
    char *name = NULL;
    if (asprintf(&name, "%s%s", path, suffix) < 0)
        return KVL_ERR_NOMEM;
    kvl_err err = unlink(name) == 0 || errno == ENOENT ? KVL_OK : kvl_err_from_errno(errno);
    free(name);
    return err;
}

/* A start with a smaller capacity finds as many blocks as the larger one held. */
static uint64_t map_bytes_for(const struct rebuild *rebuild, const struct kvl_index *index) {
    struct kvl_disk_plan before;
    struct kvl_errmsg unused;
    uint64_t capacity_bytes = rebuild->running ? 0 : rebuild->found.capacity_bytes;
    if (kvl_disk_plan_make(capacity_bytes, &before, &unused) != KVL_OK)
        return index->map_bytes;
    return before.map_bytes > index->map_bytes ? before.map_bytes : index->map_bytes;
}

static kvl_err open_target(
    struct rebuild *rebuild, const struct kvl_index *index, struct kvl_errmsg *msg) {
    struct kvl_index *target = calloc(1, sizeof(*target));
    rebuild->target = target;
    if (target == NULL || asprintf(&target->path, "%s.new", index->path) < 0)
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
    target->map_bytes = map_bytes_for(rebuild, index);
    target->state = index->state;
    kvl_err err = remove_file(target->path, "");
    if (err == KVL_OK)
        err = remove_file(target->path, ".new");
    if (err == KVL_OK)
        err = remove_file(target->path, "-lock");
    if (err == KVL_OK)
        err = remove_file(index->path, "");
    if (err == KVL_OK)
        err = remove_file(index->path, "-lock");
    if (err != KVL_OK)
        return kvl_fail(msg, err, "index %s: %s", index->path, kvl_err_text(err));
    err = kvl_index_open_env(target, false, true, msg);
    uint64_t pages = err == KVL_OK ? target->map_bytes / target->page_bytes : 0;
    rebuild->op_limit = pages / PAGES_PER_OP < OPS ? (uint32_t)(pages / PAGES_PER_OP) : OPS;
    return err;
}

static kvl_err fill_target(
    struct rebuild *rebuild, struct kvl_index *index, struct kvl_errmsg *msg) {
    kvl_err err = add_catalog(rebuild);
    if (err == KVL_OK)
        err = take_segments(rebuild, &index->map);
    if (err == KVL_OK)
        err = kvl_index_settle_at(rebuild->target, index->path);
    if (err != KVL_OK)
        return kvl_fail(msg, err, "index %s cannot be rebuilt: %s", index->path, kvl_err_text(err));
    return KVL_OK;
}

static kvl_err read_journal(
    struct rebuild *rebuild, struct kvl_index *index, struct kvl_errmsg *msg) {
    kvl_err err = take_journal(rebuild, index->state);
    if (err == KVL_ERR_VERSION)
        return kvl_fail(msg, err, "the folder has disk format %u, this program reads up to %u",
            rebuild->found.format, KVL_DISK_FORMAT);
    if (err == KVL_OK && rebuild->running && rebuild->journal == NULL)
        err = KVL_ERR_NOTFOUND;
    if (err != KVL_OK)
        return kvl_fail(msg, err, "the journal cannot be read: %s", kvl_err_text(err));
    if (!rebuild->running || rebuild->out->journal_whole || index->journal == NULL ||
        KVL_PLANTED("journal-not-renewed"))
        return KVL_OK;
    err = renew_journal(rebuild, index->journal);
    return err == KVL_OK ? KVL_OK
                         : kvl_fail(msg, err, "the journal is damaged, and cannot be written: %s",
                               kvl_err_text(err));
}

static void close_env(struct kvl_index *index) {
    if (index->env != NULL)
        mdb_env_close(index->env);
    index->env = NULL;
}

static kvl_err run(struct rebuild *rebuild, struct kvl_index *index, struct kvl_errmsg *msg) {
    kvl_err err = read_journal(rebuild, index, msg);
    if (err != KVL_OK)
        return err;
    close_env(index);
    err = open_target(rebuild, index, msg);
    if (err == KVL_OK)
        err = fill_target(rebuild, index, msg);
    return err == KVL_OK ? kvl_index_open_env(index, true, false, msg) : err;
}

static struct rebuild *new_rebuild(int segments_fd, struct kvl_rebuilt *out) {
    struct rebuild *rebuild = calloc(1, sizeof(*rebuild));
    *out = (struct kvl_rebuilt){0};
    if (rebuild == NULL)
        return NULL;
    rebuild->segments_fd = segments_fd;
    rebuild->out = out;
    rebuild->now_ns = kvl_clock_wall_ns();
    return rebuild;
}

static void end(struct rebuild *rebuild) {
    kvl_index_close(rebuild->target);
    kvl_live_map_deinit(&rebuild->map);
    kvl_catalog_list_deinit(&rebuild->catalog);
    free(rebuild->journal);
    free(rebuild);
}

static void forget_damage(struct kvl_index *index) {
    index->damaged = false;
    if (index->state != NULL)
        index->state->deaths = index->state->damaged = 0;
}

kvl_err kvl_index_rebuild(
    struct kvl_index *index, int segments_fd, struct kvl_rebuilt *out, struct kvl_errmsg *msg) {
    struct rebuild *rebuild = new_rebuild(segments_fd, out);
    if (rebuild == NULL)
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
    kvl_err err = run(rebuild, index, msg);
    if (err == KVL_OK)
        forget_damage(index);
    end(rebuild);
    return err;
}

/* What LMDB could not write is not there, and what is there is sound: else CORRUPT. */
static kvl_err open_again(struct kvl_index *index, struct kvl_errmsg *msg) {
    close_env(index);
    kvl_err err = kvl_index_noted(index, kvl_index_open_env(index, true, false, msg));
    if (err == KVL_OK && (err = kvl_index_check(index)) != KVL_OK)
        kvl_fail(msg, err, "it cannot be read: %s", kvl_err_text(err));
    return err;
}

/* Closed, with what it knew before. */
static void give_map_back(struct rebuild *rebuild, struct kvl_index *index) {
    close_env(index);
    kvl_live_map_deinit(&index->map);
    index->map = rebuild->map;
    index->map_whole = true;
    rebuild->map = (struct kvl_live_map){0};
}

kvl_err kvl_index_heal(struct kvl_index *index, int segments_fd, struct kvl_rebuilt *out,
    void (*lost)(void *arg, uint64_t location), void *arg, struct kvl_errmsg *msg) {
    struct rebuild *rebuild = index->map_whole ? new_rebuild(segments_fd, out) : NULL;
    if (rebuild == NULL)
        return kvl_fail(msg, index->map_whole ? KVL_ERR_NOMEM : KVL_ERR_CORRUPT,
            index->map_whole ? "out of memory"
                             : "it was never read as a whole; a restart rebuilds it");
    rebuild->running = true;
    rebuild->map = index->map;
    index->map = (struct kvl_live_map){0};
    kvl_err err = index->damaged ? KVL_ERR_CORRUPT : open_again(index, msg);
    out->opened_again = err == KVL_OK;
    if (err == KVL_ERR_CORRUPT) {
        err = run(rebuild, index, msg);
        if (err == KVL_OK && (err = kvl_index_check(index)) != KVL_OK)
            kvl_fail(msg, err, "the new one does not read back as it was written");
    }
    if (err == KVL_OK) {
        kvl_live_map_compare(&rebuild->map, &index->map, lost, arg);
        kvl_live_map_keep_dead(&index->map, &rebuild->map);
        forget_damage(index);
    } else {
        give_map_back(rebuild, index);
    }
    end(rebuild);
    return err;
}

kvl_err kvl_index_rebuild_unopened(const struct kvl_index_options *options, int segments_fd,
    struct kvl_index **out, struct kvl_rebuilt *rebuilt, struct kvl_errmsg *msg) {
    struct kvl_index *index = NULL;
    kvl_err err = kvl_index_allocate(options, &index, msg);
    if (err == KVL_OK)
        err = kvl_index_rebuild(index, segments_fd, rebuilt, msg);
    if (err != KVL_OK) {
        kvl_index_close(index);
        return err;
    }
    *out = index;
    return KVL_OK;
}
