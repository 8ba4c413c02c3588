/* power_loss_work.c - see power_loss_work.h. */
#include "power_loss_work.h"

#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"
#include "power_loss_blocks.h"
#include "power_loss_disk.h"
#include "power_loss_usage.h"

#define IOS 16u
#define HANG_NS 60000000000ull
#define FLUSHES 8u

/* What the owner knows of a key. */
struct known {
    uint32_t version; /* there is one, at location; 0: none */
    uint32_t newest;
    uint64_t location;
    bool busy;                                 /* an io is under way */
    uint64_t content_hash[POWER_VERSIONS_MAX]; /* 0: not yet computed */
};

struct work_io {
    struct kvl_io io;
    struct power_work *work;
    struct kvl_layout layout;
    uint32_t key, version;
    bool busy;
};

struct work_flush {
    struct power_work *work;
    uint32_t number;
    bool busy;
};

struct power_work {
    char root[256];
    struct kvl_tier *tier;
    struct kvl_catalog *catalog;
    struct kvl_log *log;
    const struct power_model *model; /* while opening */
    struct known keys[POWER_KEYS];
    uint32_t slot_versions[POWER_SLOTS];
    struct work_io ios[IOS];
    struct work_flush flushes[FLUSHES];
    uint32_t flush_number;
    bool slots_found[POWER_SLOTS];
    bool loaded;
    uint64_t capacity_bytes;
    uint64_t keep_salt;
    uint64_t loads;              /* to verify */
    bool faults;                 /* I/O may fail */
    uint32_t excused;            /* blocks that may be missing */
    bool rebuild;                /* the index was damaged */
    uint32_t stored[POWER_KEYS]; /* while verifying: versions that were promised */
    uint64_t errors_seen, errors_counted;
    uint8_t *value; /* of the catalog, KVL_CATALOG_VALUE_BYTES_MAX */
    char failure[256];
};

__attribute__((format(printf, 2, 3))) static void fail(
    struct power_work *work, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    if (work->failure[0] == '\0')
        vsnprintf(work->failure, sizeof(work->failure), format, arguments);
    va_end(arguments);
}

static struct kvl_block_record record_of(struct power_work *work, uint32_t key, uint32_t version) {
    struct kvl_block_record record = {.namespace_id = 3,
        .token_count = 64,
        .generation = (uint64_t)key * 256 + version,
        .content_hash = work->keys[key].content_hash[version]};
    memcpy(record.key.bytes, &key, sizeof(key));
    record.key.bytes[31] = 0x5a;
    if (record.content_hash == 0) {
        static uint8_t bytes[POWER_SLOT_BYTES];
        struct kvl_layout layout = power_block_layout(key);
        power_fill(bytes, layout.payload_bytes, record.generation);
        record.content_hash = kvl_content_hash(&layout, bytes, NULL);
        work->keys[key].content_hash[version] = record.content_hash;
    }
    return record;
}

static uint32_t key_of(const struct kvl_key *key) {
    uint32_t number;
    memcpy(&number, key->bytes, sizeof(number));
    return number;
}

static uint32_t slot_key(uint32_t slot, char name[24]) {
    return (uint32_t)snprintf(name, 24, "slot %u", slot);
}

/* ---- what the tier tells ------------------------------------------------------------------ */

static void on_found(void *arg, const struct kvl_block_record *record, uint64_t location,
    uint64_t stored_bytes, uint64_t last_use_wall_ns) {
    struct power_work *work = arg;
    uint32_t key = key_of(&record->key), version = (uint32_t)record->generation % 256;
    const char *wrong = NULL;
    (void)last_use_wall_ns;
    if (key >= POWER_KEYS || record->generation / 256 != key || version == 0 ||
        version >= POWER_VERSIONS_MAX) {
        fail(work, "found a block that was never stored, key %u", key);
        return;
    }
    if (work->model != NULL)
        wrong = power_model_check_key(work->model, key, version);
    struct kvl_block_record expected = record_of(work, key, version);
    if (wrong == NULL && memcmp(&expected, record, sizeof(expected)) != 0)
        wrong = "is found with another record";
    if (wrong == NULL && work->keys[key].version != 0)
        wrong = "is found twice";
    if (wrong == NULL && stored_bytes == 0)
        wrong = "is found with no bytes";
    if (wrong != NULL)
        fail(work, "block %u version %u %s", key, version, wrong);
    work->keys[key].version = version;
    work->keys[key].location = location;
    power_record_event(POWER_FOUND, key, version);
}

static void on_catalog(void *arg, enum kvl_catalog_kind kind, const void *key, uint32_t key_bytes,
    const void *value, uint32_t bytes) {
    struct power_work *work = arg;
    char name[24] = "";
    uint32_t slot = POWER_SLOTS, version = 0;
    const char *wrong = NULL;
    if (key_bytes < sizeof(name))
        memcpy(name, key, key_bytes);
    if (sscanf(name, "slot %u", &slot) != 1 || slot >= POWER_SLOTS || bytes < 8 ||
        kind != slot % KVL_CATALOG_KINDS) {
        fail(work, "found a catalog record that was never put");
        return;
    }
    memcpy(&version, value, sizeof(version));
    if (version >= POWER_VERSIONS_MAX || bytes != power_value_bytes(slot, version))
        wrong = "has another size";
    if (wrong == NULL) {
        power_fill(work->value, bytes, slot * 1000 + version);
        memcpy(work->value, &version, sizeof(version));
        wrong = memcmp(work->value, value, bytes) == 0 ? NULL : "has other bytes";
    }
    if (wrong == NULL && work->model != NULL)
        wrong = power_model_check_slot(work->model, slot, version);
    if (wrong != NULL)
        fail(work, "catalog slot %u version %u %s", slot, version, wrong);
    work->slots_found[slot] = true;
    if (version > work->slot_versions[slot])
        work->slot_versions[slot] = version;
    power_record_event(POWER_SLOT_FOUND, slot, version);
}

static void check_missing(struct power_work *work) {
    const char *wrong;
    for (uint32_t i = 0; i < POWER_KEYS; i++) {
        if (work->keys[i].version != 0 ||
            (wrong = power_model_check_key(work->model, i, 0)) == NULL)
            continue;
        if (work->excused > 0)
            work->excused--;
        else
            fail(work, "block %u version %u %s", i, work->model->keys[i].stored, wrong);
    }
    work->excused = 0;
    for (uint32_t i = 0; i < POWER_SLOTS; i++) {
        if (!work->slots_found[i] && (wrong = power_model_check_slot(work->model, i, 0)) != NULL)
            fail(work, "catalog slot %u version %u %s", i, work->model->slots[i].flushed, wrong);
    }
}

static void on_loaded(void *arg, kvl_err status) {
    struct power_work *work = arg;
    work->loaded = true;
    if (status != KVL_OK && !work->faults)
        fail(work, "loading ended with %s", kvl_err_name(status));
    if (work->model != NULL && status == KVL_OK)
        check_missing(work);
    power_record_event(POWER_LOADED, 0, 0);
}

static bool on_keep(void *arg, const struct kvl_key *key) {
    struct power_work *work = arg;
    uint64_t random = work->keep_salt + key_of(key);
    if (power_random(&random) % 4 == 0)
        return true;
    power_record_event(POWER_EVICTABLE, key_of(key), 0);
    return false;
}

static void on_moved(void *arg, const struct kvl_key *key, uint64_t location) {
    struct power_work *work = arg;
    work->keys[key_of(key)].location = location;
    power_record_event(POWER_MOVED, key_of(key), 0);
}

static void on_lost(void *arg, const struct kvl_key *key, uint64_t location) {
    struct power_work *work = arg;
    struct known *known = &work->keys[key_of(key)];
    if (known->version == 0 || known->location != location)
        return; /* of a copy that was replaced */
    power_record_event(POWER_LOST, key_of(key), known->version);
    known->version = 0;
}

/* What a power loss does not excuse. */
static void on_log(void *arg, enum kvl_log_level level, const char *line) {
    struct power_work *work = arg;
    static const char *const excused[] = {"io is buffered", "made anew without blocks",
        "cannot grow to its capacity", "not registered", "commit failed status=NOSPC",
        "segments missing",
        /* two losses in a row inside LMDB */
        "rebuilt from the segments: processes died inside it"};
    if (getenv("KVL_POWER_LOG") != NULL)
        fprintf(stderr, "%s\n", line);
    if (level > KVL_LOG_WARN || work->faults)
        return;
    if (work->rebuild &&
        (strncmp(line, "disk index ", 11) == 0 || strncmp(line, "disk corrupt ", 13) == 0))
        return;
    for (size_t i = 0; i < sizeof(excused) / sizeof(excused[0]); i++) {
        if (strstr(line, excused[i]) != NULL)
            return;
    }
    fail(work, "the tier complains: %s", line);
}

/* ---- waiting ------------------------------------------------------------------------------ */

static void poll_once(struct power_work *work, int timeout_ms) {
    struct pollfd wait = {.fd = work->tier->ops->fd(work->tier), .events = POLLIN};
    poll(&wait, 1, timeout_ms);
    work->tier->ops->poll(work->tier);
}

static bool any_busy(const struct power_work *work) {
    bool busy = false;
    for (uint32_t i = 0; i < IOS; i++)
        busy = busy || work->ios[i].busy;
    for (uint32_t i = 0; i < FLUSHES; i++)
        busy = busy || work->flushes[i].busy;
    return busy;
}

static struct work_io *idle_io(struct power_work *work) {
    for (uint32_t i = 0; i < IOS; i++) {
        if (!work->ios[i].busy)
            return &work->ios[i];
    }
    return NULL;
}

/* all: nothing is under way any more; else: one more may be. */
static void wait_for(struct power_work *work, bool all) {
    uint64_t give_up_ns = kvl_clock_ns() + HANG_NS;
    while (all ? any_busy(work) : idle_io(work) == NULL) {
        poll_once(work, 20);
        if (kvl_clock_ns() < give_up_ns)
            continue;
        fprintf(stderr, "power_loss_work: the tier hangs\n");
        abort();
    }
}

/* ---- stores and loads --------------------------------------------------------------------- */

static void stored(struct work_io *own) {
    struct known *known = &own->work->keys[own->key];
    if (own->io.status == KVL_OK) {
        known->version = own->version;
        known->location = own->io.location;
        power_record_event(POWER_STORED, own->key, own->version);
    } else {
        power_record_event(POWER_FAILED, own->key, own->version);
        own->work->errors_seen++;
        if (own->io.status != KVL_ERR_NOSPC && !own->work->faults)
            fail(own->work, "block %u version %u: store says %s", own->key, own->version,
                kvl_err_name(own->io.status));
    }
}

static void loaded(struct work_io *own) {
    struct known *known = &own->work->keys[own->key];
    bool there = known->version == own->version;
    if (own->io.status == KVL_ERR_NOTFOUND && !there)
        return; /* evicted meanwhile */
    own->work->errors_seen += own->io.status != KVL_OK;
    if (own->io.status != KVL_OK && own->work->faults)
        return;
    /* A rebuild takes records by their heads; one that was under way may lack the rest, also when
     * another power loss comes before it is looked at. */
    if (own->io.status == KVL_ERR_CORRUPT && own->work->rebuild &&
        own->work->stored[own->key] != own->version)
        return;
    if (own->io.status != KVL_OK)
        fail(own->work, "block %u version %u: load says %s", own->key, own->version,
            kvl_err_name(own->io.status));
    else if (kvl_content_hash(&own->layout, own->io.buffer, NULL) != own->io.record.content_hash)
        fail(own->work, "block %u version %u: WRONG BYTES", own->key, own->version);
}

static void on_complete(struct kvl_io *io) {
    struct work_io *own = kvl_container_of(io, struct work_io, io);
    own->busy = false;
    own->work->keys[own->key].busy = false;
    if (io->op == KVL_IO_STORE)
        stored(own);
    else
        loaded(own);
}

static void begin(struct power_work *work, uint32_t key, uint32_t version, enum kvl_io_op op) {
    wait_for(work, false);
    struct work_io *own = idle_io(work);
    struct known *known = &work->keys[key];
    if (op == KVL_IO_LOAD && known->version != version)
        return; /* evicted while waiting */
    own->key = key;
    own->version = version;
    own->layout = power_block_layout(key);
    own->io.op = op;
    own->io.priority = op == KVL_IO_LOAD ? KVL_IO_RESTORE : KVL_IO_BEHIND;
    own->io.record = record_of(work, key, version);
    own->io.layout = &own->layout;
    own->io.complete = on_complete;
    own->io.location = known->location;
    if (op == KVL_IO_STORE) {
        power_fill(own->io.buffer, own->layout.payload_bytes, own->io.record.generation);
        known->newest = version;
        power_record_event(POWER_STORING, key, version);
    }
    own->busy = known->busy = true;
    kvl_err err = work->tier->ops->submit(work->tier, &own->io);
    if (err != KVL_OK) {
        own->busy = known->busy = false;
        fail(work, "block %u: submit says %s", key, kvl_err_name(err));
    }
}

/* ---- discards, flushes, catalog ----------------------------------------------------------- */

static void discard(struct power_work *work, uint32_t key) {
    struct known *known = &work->keys[key];
    struct kvl_block_record record = record_of(work, key, known->version);
    power_record_event(POWER_DISCARDING, key, known->version);
    known->version = 0;
    work->tier->ops->discard(work->tier, &record.key, known->location);
}

static void on_flushed(void *arg, kvl_err status) {
    struct work_flush *flush = arg;
    flush->busy = false;
    power_record_event(status == KVL_OK ? POWER_FLUSHED : POWER_FLUSH_FAILED, flush->number, 0);
    if (status != KVL_OK && status != KVL_ERR_NOSPC && !flush->work->faults)
        fail(flush->work, "flush says %s", kvl_err_name(status));
}

static void begin_flush(struct power_work *work) {
    for (uint32_t i = 0; i < FLUSHES; i++) {
        struct work_flush *flush = &work->flushes[i];
        if (flush->busy)
            continue;
        *flush = (struct work_flush){work, ++work->flush_number, true};
        power_record_event(POWER_FLUSHING, flush->number, 0);
        if (work->catalog->ops->flush(work->catalog, on_flushed, flush) != KVL_OK)
            abort();
        return;
    }
}

/* The next version of a slot, which may be its removal. */
static kvl_err put(struct power_work *work, uint32_t slot) {
    uint32_t version = work->slot_versions[slot] + 1;
    const struct kvl_catalog_ops *ops = work->catalog->ops;
    enum kvl_catalog_kind kind = (enum kvl_catalog_kind)(slot % KVL_CATALOG_KINDS);
    char name[24];
    uint32_t name_bytes = slot_key(slot, name), bytes = power_value_bytes(slot, version);
    kvl_err err;
    if (version >= POWER_VERSIONS_MAX)
        return KVL_OK;
    work->slot_versions[slot] = version;
    power_record_event(POWER_PUTTING, slot, version);
    if (power_slot_removed(slot, version)) {
        err = ops->remove(work->catalog, kind, name, name_bytes);
    } else {
        power_fill(work->value, bytes, slot * 1000 + version);
        memcpy(work->value, &version, sizeof(version));
        err = ops->put(work->catalog, kind, name, name_bytes, work->value, bytes);
    }
    if (err == KVL_OK)
        power_record_event(POWER_PUT, slot, version);
    else if (err != KVL_ERR_AGAIN && err != KVL_ERR_NOSPC)
        fail(work, "catalog slot %u: %s", slot, kvl_err_name(err));
    return err;
}

/* ---- work --------------------------------------------------------------------------------- */

static uint32_t random_below(uint64_t *random, uint32_t limit) {
    return (uint32_t)(power_random(random) % limit);
}

static void step(struct power_work *work, uint64_t *random) {
    uint32_t key = random_below(random, POWER_KEYS), what = random_below(random, 100);
    struct known *known = &work->keys[key];
    if (what < 55) {
        if (!known->busy && known->newest + 1 < POWER_VERSIONS_MAX) {
            if (known->version != 0 && random_below(random, 2) == 0)
                discard(work, key);
            begin(work, key, known->newest + 1, KVL_IO_STORE);
        }
    } else if (what < 65) {
        if (!known->busy && known->version != 0)
            begin(work, key, known->version, KVL_IO_LOAD);
    } else if (what < 75) {
        if (!known->busy && known->version != 0)
            discard(work, key);
    } else if (what < 80) {
        begin_flush(work);
    } else if (what < 92) {
        (void)put(work, random_below(random, POWER_SLOTS / 2));
    } else if (what < 97) {
        poll_once(work, 1 + (int)random_below(random, 4));
    } else {
        wait_for(work, true);
    }
}

void power_work_some(struct power_work *work, uint32_t steps, uint64_t *random) {
    work->keep_salt = power_random(random);
    for (uint32_t i = 0; i < steps && work->failure[0] == '\0'; i++) {
        step(work, random);
        if (i % 4 == 0)
            poll_once(work, 0);
    }
    wait_for(work, true);
}

/* Large values one by one, until they are refused; blocks are stored meanwhile. */
void power_work_pressure(struct power_work *work, uint64_t *random) {
    for (uint32_t round = 0; round < 2; round++) {
        kvl_err err = KVL_OK;
        for (uint32_t i = 0; i < POWER_SLOTS && err == KVL_OK; i++) {
            err = put(work, POWER_SLOTS / 2 + i % (POWER_SLOTS / 2));
            power_work_some(work, 4, random);
            begin_flush(work);
        }
        wait_for(work, true);
        for (uint32_t i = POWER_SLOTS / 2; i < POWER_SLOTS; i++) {
            while (!power_slot_removed(i, work->slot_versions[i] + 1))
                work->slot_versions[i]++;
            (void)put(work, i);
        }
        power_work_some(work, 40, random);
    }
}

/* ---- start and end ------------------------------------------------------------------------ */

/* closed: nothing is left behind that is not documented, too. */
static void check_usage(struct power_work *work, bool closed) {
    char stray[64] = "";
    uint64_t bytes = power_usage(work->root, "", stray);
    if (bytes > work->capacity_bytes)
        fail(work, "%llu bytes are used, the capacity is %llu", (unsigned long long)bytes,
            (unsigned long long)work->capacity_bytes);
    if (closed && !work->faults && stray[0] != '\0')
        fail(work, "a stray file: %s", stray);
}

void power_work_excuse_missing(struct power_work *work, uint32_t blocks) {
    work->excused = blocks;
}

void power_work_expect_faults(struct power_work *work, bool expect) {
    work->faults = expect;
}

void power_work_expect_rebuild(struct power_work *work, bool expect) {
    work->rebuild = expect;
}

static const char *failure_of(struct power_work *work) {
    return work->failure[0] != '\0' ? work->failure : NULL;
}

static void begin_opening(struct power_work *work, const struct power_model *model) {
    work->failure[0] = '\0';
    work->errors_seen = work->errors_counted = 0;
    work->loaded = false;
    work->model = model;
    for (uint32_t i = 0; i < POWER_KEYS; i++) {
        work->keys[i].version = 0;
        work->keys[i].busy = false;
        if (model != NULL)
            work->keys[i].newest = model->keys[i].newest;
    }
    for (uint32_t i = 0; model != NULL && i < POWER_SLOTS; i++)
        work->slot_versions[i] = model->slots[i].newest;
    memset(work->slots_found, 0, sizeof(work->slots_found));
}

const char *power_work_open(struct power_work *work, uint64_t capacity_bytes,
    enum kvl_disk_codec codec, const struct power_model *model) {
    struct kvl_errmsg msg = {""};
    struct kvl_disk_options options = {.path = work->root,
        .capacity_bytes = capacity_bytes,
        .persist_ms = 4,
        .codec_threads = 1,
        .codec = codec,
        .io = KVL_DISK_IO_POSIX,
        .log = work->log};
    begin_opening(work, model);
    work->capacity_bytes = capacity_bytes;
    power_record_event(POWER_OPENING, capacity_bytes, 0);
    kvl_err err = kvl_disk_tier_create(&options, &work->tier, &work->catalog, &msg);
    if (err != KVL_OK) {
        fail(work, "cannot be opened: %s (%s)", msg.text, kvl_err_name(err));
        work->tier = NULL;
        return failure_of(work);
    }
    work->tier->events = (struct kvl_tier_events){.arg = work,
        .found = on_found,
        .loaded = on_loaded,
        .keep = on_keep,
        .moved = on_moved,
        .lost = on_lost};
    work->catalog->found = on_catalog;
    work->catalog->found_arg = work;
    while (!work->loaded)
        poll_once(work, 20);
    work->model = NULL;
    check_usage(work, false);
    if (work->failure[0] != '\0')
        power_work_close(work, false);
    return failure_of(work);
}

const char *power_work_verify(
    struct power_work *work, const struct power_model *model, uint64_t *random, uint32_t rest) {
    for (uint32_t key = 0; key < POWER_KEYS; key++) {
        uint32_t version = work->keys[key].version;
        work->stored[key] = model->keys[key].durable;
        if (version != 0 &&
            (power_model_is_young(model, key, version) || random_below(random, rest) == 0)) {
            begin(work, key, version, KVL_IO_LOAD);
            work->loads++;
        }
    }
    wait_for(work, true);
    if (work->tier->ops->stats(work->tier).corrupt != 0 && !work->faults && !work->rebuild)
        fail(work, "a record was corrupt");
    return failure_of(work);
}

void power_work_flush(struct power_work *work) {
    begin_flush(work);
    wait_for(work, true);
}

const char *power_work_close(struct power_work *work, bool clean) {
    if (clean) {
        power_record_event(POWER_FLUSHING, ++work->flush_number, 0);
        kvl_err err = work->tier->ops->drain(work->tier);
        power_record_event(
            err == KVL_OK ? POWER_FLUSHED : POWER_FLUSH_FAILED, work->flush_number, 0);
        if (err != KVL_OK && err != KVL_ERR_NOSPC && !work->faults)
            fail(work, "drain says %s", kvl_err_name(err));
    }
    work->errors_counted = work->tier->ops->stats(work->tier).errors;
    work->tier->ops->deinit(work->tier);
    work->tier = NULL;
    check_usage(work, true);
    return failure_of(work);
}

bool power_work_is_open(const struct power_work *work) {
    return work->tier != NULL;
}

void power_work_errors(const struct power_work *work, uint64_t *seen, uint64_t *counted) {
    *seen = work->errors_seen;
    *counted = work->errors_counted;
}

uint64_t power_work_loads(const struct power_work *work) {
    return work->loads;
}

struct power_work *power_work_create(const char *root) {
    struct power_work *work = calloc(1, sizeof(*work));
    if (work == NULL)
        abort();
    snprintf(work->root, sizeof(work->root), "%s", root);
    work->log = kvl_log_create(KVL_LOG_INFO, on_log, work);
    work->value = malloc(KVL_CATALOG_VALUE_BYTES_MAX);
    for (uint32_t i = 0; i < IOS; i++) {
        work->ios[i].work = work;
        work->ios[i].io.buffer = aligned_alloc(KVL_PAGE_BYTES, POWER_SLOT_BYTES);
        if (work->ios[i].io.buffer == NULL || work->log == NULL || work->value == NULL)
            abort();
    }
    return work;
}

void power_work_destroy(struct power_work *work) {
    for (uint32_t i = 0; i < IOS; i++)
        free(work->ios[i].io.buffer);
    free(work->value);
    kvl_log_destroy(work->log);
    free(work);
}
