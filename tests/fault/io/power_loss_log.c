/* power_loss_log.c - the recorder, and the log as a file. */
#include "power_loss_log.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "io_watch.h"

#define MAPPED_BYTES_MAX 65536u /* more than this is data, which has to be written by calls */
#define MAPPINGS_MAX 8u

/* A file that is changed through memory: looked at again and again. */
struct mapping {
    uint32_t node;
    uint64_t offset, bytes;
    const uint8_t *memory;
    uint8_t *seen;
};

static struct {
    pthread_mutex_t mutex;
    struct power_log *log; /* NULL: not recording */
    char root[256];
    const char *forget_syncs;
    struct power_name names[POWER_NODES_MAX];
    uint32_t name_count;
    struct mapping mappings[MAPPINGS_MAX];
    uint32_t mapping_count;
    void (*sink)(void *arg, uint32_t event, uint64_t a, uint64_t b);
    void *sink_arg;
} recorder = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static void die(const char *what, const char *path) {
    fprintf(stderr, "power_loss_log: %s: %s\n", path, what);
    abort();
}

/* ---- entries ------------------------------------------------------------------------------ */

static void *grown(void *memory, uint64_t bytes) {
    void *larger = realloc(memory, bytes);
    if (larger == NULL)
        die("out of memory", "log");
    return larger;
}

static struct power_entry *append(struct power_log *log, enum power_kind kind, uint32_t node) {
    if (log->count == log->capacity) {
        log->capacity = log->capacity * 2 + 1024;
        log->entries = grown(log->entries, log->capacity * sizeof(*log->entries));
    }
    struct power_entry *entry = &log->entries[log->count++];
    *entry = (struct power_entry){.kind = kind, .node = node};
    return entry;
}

static uint8_t *append_bytes(struct power_log *log, uint64_t bytes) {
    if (log->capacity_bytes - log->used_bytes < bytes) {
        log->capacity_bytes = log->capacity_bytes * 2 + bytes + (1u << 20);
        log->bytes = grown(log->bytes, log->capacity_bytes);
    }
    log->used_bytes += bytes;
    return log->bytes + log->used_bytes - bytes;
}

static void append_name(
    struct power_log *log, struct power_entry *entry, const char *name, const char *to) {
    uint64_t name_bytes = strlen(name) + 1, to_bytes = to == NULL ? 0 : strlen(to) + 1;
    entry->data = log->used_bytes;
    entry->bytes = name_bytes + to_bytes;
    uint8_t *out = append_bytes(log, entry->bytes);
    memcpy(out, name, name_bytes);
    if (to != NULL)
        memcpy(out + name_bytes, to, to_bytes);
}

void power_log_clear(struct power_log *log) {
    log->count = 0;
    log->used_bytes = 0;
}

void power_log_free(struct power_log *log) {
    free(log->entries);
    free(log->bytes);
    *log = (struct power_log){0};
}

/* ---- names -------------------------------------------------------------------------------- */

static const char *relative(const char *path) {
    const char *rest = path + strlen(recorder.root);
    return *rest == '/' ? rest + 1 : rest;
}

static struct power_name *find_name(const char *path) {
    for (uint32_t i = 0; i < recorder.name_count; i++) {
        if (strcmp(recorder.names[i].path, path) == 0)
            return &recorder.names[i];
    }
    return NULL;
}

static uint32_t folder_of(const char *path) {
    char folder[64];
    const char *slash = strrchr(path, '/');
    if (slash == NULL)
        return POWER_ROOT;
    snprintf(folder, sizeof(folder), "%.*s", (int)(slash - path), path);
    struct power_name *name = find_name(folder);
    if (name == NULL)
        die("in an unknown folder", path);
    return name->node;
}

static void forget_name(struct power_name *name) {
    *name = recorder.names[--recorder.name_count];
}

static void add_node(const char *path, bool is_folder) {
    struct power_log *log = recorder.log;
    if (recorder.name_count == POWER_NODES_MAX || log->nodes == POWER_NODES_MAX ||
        strlen(path) >= sizeof(recorder.names[0].path))
        die("too many files, or too long a name", path);
    struct power_name *name = &recorder.names[recorder.name_count];
    uint32_t folder = folder_of(path);
    snprintf(name->path, sizeof(name->path), "%s", path);
    name->node = log->nodes++;
    recorder.name_count++;
    struct power_entry *entry = append(log, POWER_CREATE, name->node);
    entry->flags = is_folder;
    entry->folder = folder;
    append_name(log, entry, path, NULL);
}

/* ---- what is changed through memory ------------------------------------------------------- */

static void log_write(uint32_t node, uint64_t offset, const uint8_t *data, uint64_t bytes) {
    struct power_entry *entry = append(recorder.log, POWER_WRITE, node);
    entry->offset = offset;
    entry->bytes = bytes;
    entry->data = recorder.log->used_bytes;
    memcpy(append_bytes(recorder.log, bytes), data, bytes);
}

static void log_done(uint32_t of) {
    append(recorder.log, POWER_DONE, 0)->of = of;
}

static void look_at_mappings(void) {
    for (uint32_t i = 0; i < recorder.mapping_count; i++) {
        struct mapping *mapping = &recorder.mappings[i];
        if (memcmp(mapping->memory, mapping->seen, mapping->bytes) == 0)
            continue;
        memcpy(mapping->seen, mapping->memory, mapping->bytes);
        log_write(mapping->node, mapping->offset, mapping->seen, mapping->bytes);
        log_done(recorder.log->count - 1);
    }
}

/* Without WRITEMAP only small files are mapped for writing: locks and marks. */
static void add_mapping(uint32_t node, const struct io_call *call) {
    if (call->bytes > MAPPED_BYTES_MAX || recorder.mapping_count == MAPPINGS_MAX)
        die("mapped for writing: its writes would not be seen", call->path);
    struct mapping *mapping = &recorder.mappings[recorder.mapping_count++];
    *mapping = (struct mapping){.node = node,
        .offset = call->offset,
        .bytes = call->bytes,
        .memory = (const uint8_t *)call->result,
        .seen = calloc(1, call->bytes)};
}

/* Those that lie in this memory; all of them when it is NULL. */
static void forget_mappings(const uint8_t *memory, uint64_t bytes) {
    for (uint32_t i = recorder.mapping_count; i-- > 0;) {
        struct mapping *mapping = &recorder.mappings[i];
        if (memory != NULL && (mapping->memory < memory || mapping->memory >= memory + bytes))
            continue;
        free(mapping->seen);
        *mapping = recorder.mappings[--recorder.mapping_count];
    }
}

/* ---- calls -------------------------------------------------------------------------------- */

static bool ends_with(const char *path, const char *end) {
    size_t path_bytes = strlen(path), end_bytes = strlen(end);
    return path_bytes >= end_bytes && strcmp(path + path_bytes - end_bytes, end) == 0;
}

static void before_write(const struct power_name *name, struct io_call *call) {
    struct power_log *log = recorder.log;
    call->note = log->count;
    struct power_entry *entry = append(log, POWER_WRITE, name->node);
    entry->flags = (call->flags & O_DSYNC) != 0;
    entry->offset = call->offset;
    entry->bytes = call->bytes;
    entry->data = log->used_bytes;
    for (int i = 0; i < call->part_count; i++)
        memcpy(append_bytes(log, call->parts[i].iov_len), call->parts[i].iov_base,
            call->parts[i].iov_len);
}

static void before_sync(const struct power_name *name, struct io_call *call) {
    look_at_mappings();
    call->note = recorder.log->count;
    bool forget = recorder.forget_syncs != NULL && ends_with(call->path, recorder.forget_syncs);
    append(recorder.log, forget ? POWER_NOTHING : POWER_SYNC, name->node);
}

static int before(struct io_call *call) {
    if (call->kind != IO_WRITE && call->kind != IO_SYNC && call->kind != IO_UNMAP)
        return 0;
    pthread_mutex_lock(&recorder.mutex);
    if (call->kind == IO_UNMAP) {
        look_at_mappings();
        forget_mappings(call->parts[0].iov_base, call->parts[0].iov_len);
        pthread_mutex_unlock(&recorder.mutex);
        return 0;
    }
    const struct power_name *name = find_name(relative(call->path));
    call->note = UINT64_MAX;
    if (name != NULL && call->kind == IO_WRITE)
        before_write(name, call);
    else if (name != NULL)
        before_sync(name, call);
    pthread_mutex_unlock(&recorder.mutex);
    return 0;
}

static void after_transfer(struct io_call *call) {
    struct power_log *log = recorder.log;
    if (call->note == UINT64_MAX)
        return; /* of a file that has no name any more */
    struct power_entry *entry = &log->entries[call->note];
    if (call->result < 0)
        entry->kind = POWER_NOTHING;
    else if (call->kind == IO_WRITE)
        entry->bytes = (uint64_t)call->result;
    if (entry->kind != POWER_NOTHING)
        log_done((uint32_t)call->note);
}

static void after_size(const struct power_name *name, const struct io_call *call) {
    /* FALLOC_FL: KEEP_SIZE 1, PUNCH_HOLE 2, ZERO_RANGE 16 */
    bool zero = (call->flags & 18) != 0;
    if (call->kind == IO_ALLOCATE && (call->flags & ~19) != 0)
        die("an unknown mode of fallocate", call->path);
    enum power_kind kind = call->kind == IO_TRUNCATE ? POWER_SIZE
                           : zero                    ? POWER_ZERO
                                                     : POWER_RESERVE;
    struct power_entry *entry = append(recorder.log, kind, name->node);
    entry->flags = (call->flags & 1) == 0;
    entry->offset = call->offset;
    entry->bytes = call->bytes;
}

static void after_open(const struct io_call *call) {
    const char *path = relative(call->path);
    const struct power_name *name = find_name(path);
    if (name == NULL && (call->flags & O_CREAT) != 0)
        add_node(path, false);
    else if (name != NULL && (call->flags & O_TRUNC) != 0)
        append(recorder.log, POWER_SIZE, name->node);
}

static void after_unlink(const struct io_call *call) {
    struct power_name *name = find_name(relative(call->path));
    if (name == NULL)
        die("an unknown file is removed", call->path);
    struct power_entry *entry = append(recorder.log, POWER_REMOVE, name->node);
    entry->folder = folder_of(name->path);
    append_name(recorder.log, entry, name->path, NULL);
    forget_name(name);
}

static void after_rename(const struct io_call *call) {
    const char *to = relative(call->to);
    struct power_name *old = find_name(to);
    if (old != NULL)
        forget_name(old);
    struct power_name *name = find_name(relative(call->path));
    if (name == NULL || strlen(to) >= sizeof(name->path))
        die("an unknown file is renamed", call->path);
    struct power_entry *entry = append(recorder.log, POWER_RENAME, name->node);
    entry->folder = folder_of(to);
    append_name(recorder.log, entry, name->path, to);
    snprintf(name->path, sizeof(name->path), "%s", to);
}

static void after(struct io_call *call) {
    const struct power_name *name;
    bool failed = call->kind == IO_MAP ? call->result == (long)MAP_FAILED : call->result < 0;
    pthread_mutex_lock(&recorder.mutex);
    if (call->kind == IO_WRITE || call->kind == IO_SYNC)
        after_transfer(call);
    else if (failed || call->kind == IO_UNMAP)
        ;
    else if (call->kind == IO_OPEN)
        after_open(call);
    else if (call->kind == IO_UNLINK)
        after_unlink(call);
    else if (call->kind == IO_RENAME)
        after_rename(call);
    else if (call->kind == IO_MKDIR)
        add_node(relative(call->path), true);
    else if ((name = find_name(relative(call->path))) == NULL)
        ; /* a file without a name is nothing after the crash */
    else if (call->kind != IO_MAP)
        after_size(name, call);
    else if ((call->map_flags & MAP_SHARED) != 0 && (call->protection & PROT_WRITE) != 0)
        add_mapping(name->node, call);
    pthread_mutex_unlock(&recorder.mutex);
}

static struct io_watch watch = {.before = before, .after = after};

void power_record_begin(struct power_log *log, const char *root, const struct power_name *names,
    uint32_t name_count, const char *forget_syncs) {
    snprintf(recorder.root, sizeof(recorder.root), "%s", root);
    recorder.names[0] = (struct power_name){"", POWER_ROOT};
    recorder.name_count = 1;
    log->nodes = 1;
    for (uint32_t i = 0; i < name_count; i++) {
        recorder.names[recorder.name_count++] = names[i];
        if (names[i].node >= log->nodes)
            log->nodes = names[i].node + 1;
    }
    recorder.forget_syncs = forget_syncs;
    recorder.log = log;
    watch.root = recorder.root;
    io_watch_set(&watch);
}

void power_record_end(void) {
    io_watch_set(NULL);
    forget_mappings(NULL, 0);
    recorder.log = NULL;
}

void power_event_sink(void (*sink)(void *arg, uint32_t event, uint64_t a, uint64_t b), void *arg) {
    recorder.sink = sink;
    recorder.sink_arg = arg;
}

void power_record_event(uint32_t event, uint64_t a, uint64_t b) {
    if (recorder.log == NULL) {
        if (recorder.sink != NULL)
            recorder.sink(recorder.sink_arg, event, a, b);
        return;
    }
    pthread_mutex_lock(&recorder.mutex);
    look_at_mappings();
    struct power_entry *entry = append(recorder.log, POWER_EVENT, event);
    entry->offset = a;
    entry->bytes = b;
    pthread_mutex_unlock(&recorder.mutex);
}

/* ---- the log as a file -------------------------------------------------------------------- */

struct file_header {
    char magic[8];
    uint64_t entry_bytes, count, bytes;
};

bool power_log_save(const struct power_log *log, const char *path) {
    struct file_header header = {
        "kvlpwr1", sizeof(struct power_entry), log->count, log->used_bytes};
    FILE *file = fopen(path, "wb");
    if (file == NULL)
        return false;
    bool ok = fwrite(&header, sizeof(header), 1, file) == 1;
    ok = fwrite(log->entries, sizeof(*log->entries), log->count, file) == log->count && ok;
    ok = fwrite(log->bytes, 1, log->used_bytes, file) == log->used_bytes && ok;
    return fclose(file) == 0 && ok;
}

bool power_log_load(struct power_log *log, const char *path) {
    struct file_header header;
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        return false;
    bool ok = fread(&header, sizeof(header), 1, file) == 1 &&
              strcmp(header.magic, "kvlpwr1") == 0 &&
              header.entry_bytes == sizeof(struct power_entry);
    *log = (struct power_log){0};
    if (ok) {
        log->entries = grown(NULL, (header.count + 1) * sizeof(*log->entries));
        log->bytes = grown(NULL, header.bytes + 1);
        log->count = log->capacity = (uint32_t)header.count;
        log->used_bytes = log->capacity_bytes = header.bytes;
        ok = fread(log->entries, sizeof(*log->entries), log->count, file) == log->count &&
             fread(log->bytes, 1, log->used_bytes, file) == log->used_bytes;
    }
    fclose(file);
    return ok;
}
