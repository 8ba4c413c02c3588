/* disk_fixture.c - see disk_fixture.h. Fails by abort: no test here checks the fixture itself. */
#include "disk_fixture.h"

#include <ftw.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

void fixture_init(struct disk_fixture *fixture, uint64_t capacity_bytes, const char *at) {
    const char *tmp = at != NULL ? at : getenv("TMPDIR");
    memset(fixture, 0, sizeof(*fixture));
    snprintf(
        fixture->path, sizeof(fixture->path), "%s/kvloft-disk-XXXXXX", tmp != NULL ? tmp : "/tmp");
    REQUIRE(mkdtemp(fixture->path) != NULL);
    fixture->options = (struct kvl_disk_options){
        .path = fixture->path, .capacity_bytes = capacity_bytes, .persist_ms = 10};
}

const char *fixture_path(const struct disk_fixture *fixture, const char *name) {
    static char path[400];
    snprintf(path, sizeof(path), "%s/%s", fixture->path, name);
    return path;
}

void fixture_shell(const char *format, ...) {
    char command[1200];
    va_list args;
    va_start(args, format);
    vsnprintf(command, sizeof(command), format, args);
    va_end(args);
    REQUIRE(system(command) == 0);
}

void fixture_damage(struct disk_fixture *fixture, uint64_t number, uint32_t offset_bytes) {
    const struct disk_found_block *found = fixture_find(fixture, number);
    REQUIRE(found != NULL);
    fixture_shell(
        "printf XXXX | dd of=%s/segments/%08u.seg bs=1 seek=%llu conv=notrunc status=none",
        fixture->path, (unsigned)(found->location >> 32),
        (unsigned long long)(uint32_t)found->location * 4096 + offset_bytes);
}

uint32_t fixture_live_count(const struct disk_fixture *fixture) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < fixture->found_count; i++)
        count += fixture->found[i].live;
    return count;
}

void fixture_discard(struct disk_fixture *fixture, uint64_t number) {
    struct disk_found_block *found = fixture_find(fixture, number);
    REQUIRE(found != NULL);
    fixture->tier->ops->discard(fixture->tier, &found->record.key, found->location);
    found->live = false;
}

static void on_flushed(void *arg, kvl_err status) {
    *(kvl_err *)arg = status;
}

kvl_err fixture_flush(struct disk_fixture *fixture) {
    kvl_err status = KVL_ERR_BUSY;
    REQUIRE(fixture->catalog->ops->flush(fixture->catalog, on_flushed, &status) == KVL_OK);
    while (status == KVL_ERR_BUSY)
        fixture_poll(fixture);
    return status;
}

void fixture_put(struct disk_fixture *fixture, const char *name, const char *value) {
    REQUIRE(fixture->catalog->ops->put(fixture->catalog, KVL_CATALOG_SESSION, name,
                (uint32_t)strlen(name), value, (uint32_t)strlen(value)) == KVL_OK);
}

struct disk_found_block *fixture_find(struct disk_fixture *fixture, uint64_t number) {
    for (uint32_t i = 0; i < fixture->found_count; i++) {
        if (fixture->found[i].live && block_number_of(&fixture->found[i].record.key) == number)
            return &fixture->found[i];
    }
    return NULL;
}

static void on_found(void *arg, const struct kvl_block_record *record, uint64_t location,
    uint64_t stored_bytes, uint64_t last_use_wall_ns) {
    struct disk_fixture *fixture = arg;
    REQUIRE(!fixture->loaded && last_use_wall_ns > 0);
    REQUIRE(fixture->found_count < FIXTURE_BLOCKS_MAX);
    fixture->found[fixture->found_count++] =
        (struct disk_found_block){*record, location, stored_bytes, true};
}

static void on_loaded(void *arg, kvl_err status) {
    struct disk_fixture *fixture = arg;
    REQUIRE(!fixture->loaded);
    fixture->loaded = true;
    fixture->loaded_status = status;
}

static bool on_keep(void *arg, const struct kvl_key *key) {
    struct disk_fixture *fixture = arg;
    fixture->asked++;
    return block_number_of(key) < fixture->keep_below;
}

static void on_moved(void *arg, const struct kvl_key *key, uint64_t location) {
    struct disk_fixture *fixture = arg;
    struct disk_found_block *found = fixture_find(fixture, block_number_of(key));
    fixture->moved++;
    if (found != NULL)
        found->location = location;
}

static void on_lost(void *arg, const struct kvl_key *key, uint64_t location) {
    struct disk_fixture *fixture = arg;
    struct disk_found_block *found = fixture_find(fixture, block_number_of(key));
    fixture->lost++;
    if (found != NULL && found->location == location)
        found->live = false;
}

static void on_lost_at(void *arg, const uint64_t *locations, uint64_t count) {
    struct disk_fixture *fixture = arg;
    for (uint64_t i = 0; i < count; i++) {
        REQUIRE(i == 0 || locations[i - 1] < locations[i]);
        fixture->lost++;
        for (uint32_t at = 0; at < fixture->found_count; at++)
            if (fixture->found[at].location == locations[i])
                fixture->found[at].live = false;
    }
}

static void on_catalog(void *arg, enum kvl_catalog_kind kind, const void *key, uint32_t key_bytes,
    const void *value, uint32_t value_bytes) {
    struct disk_fixture *fixture = arg;
    (void)kind;
    REQUIRE(fixture->found_count == 0 && key_bytes < sizeof(fixture->catalog_key));
    fixture->catalog_found++;
    memcpy(fixture->catalog_key, key, key_bytes);
    fixture->catalog_key[key_bytes] = '\0';
    fixture->catalog_value_bytes = value_bytes;
    if (value_bytes <= sizeof(fixture->catalog_value))
        memcpy(fixture->catalog_value, value, value_bytes);
}

kvl_err fixture_open(struct disk_fixture *fixture) {
    fixture->loaded = false;
    fixture->found_count = fixture->catalog_found = 0;
    fixture->lost = fixture->moved = fixture->asked = 0;
    kvl_err err =
        kvl_disk_tier_create(&fixture->options, &fixture->tier, &fixture->catalog, &fixture->msg);
    if (err != KVL_OK)
        return err;
    fixture->tier->events = (struct kvl_tier_events){.arg = fixture,
        .found = on_found,
        .loaded = on_loaded,
        .keep = on_keep,
        .moved = on_moved,
        .lost = on_lost,
        .lost_at = on_lost_at};
    fixture->catalog->found = on_catalog;
    fixture->catalog->found_arg = fixture;
    return KVL_OK;
}

void fixture_poll(struct disk_fixture *fixture) {
    struct pollfd wait = {.fd = fixture->tier->ops->fd(fixture->tier), .events = POLLIN};
    poll(&wait, 1, 50);
    fixture->tier->ops->poll(fixture->tier);
}

void fixture_wait_loaded(struct disk_fixture *fixture) {
    while (!fixture->loaded)
        fixture_poll(fixture);
}

void fixture_close(struct disk_fixture *fixture, bool drain) {
    if (drain)
        REQUIRE(fixture->tier->ops->drain(fixture->tier) == KVL_OK);
    fixture->tier->ops->deinit(fixture->tier);
    fixture->tier = NULL;
}

static int remove_entry(const char *path, const struct stat *stat, int type, struct FTW *ftw) {
    (void)stat, (void)type, (void)ftw;
    return remove(path);
}

void fixture_remove(struct disk_fixture *fixture) {
    nftw(fixture->path, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

static uint64_t usage_bytes; /* nftw has no argument */

static int add_usage(const char *path, const struct stat *stat, int type, struct FTW *ftw) {
    (void)path, (void)type, (void)ftw;
    usage_bytes += (uint64_t)stat->st_blocks * 512;
    return 0;
}

uint64_t fixture_disk_usage(const struct disk_fixture *fixture) {
    usage_bytes = 0;
    nftw(fixture->path, add_usage, 8, FTW_PHYS);
    return usage_bytes;
}

static uint64_t next_random(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Sum of uniforms: normal enough. The f16 bits come from the float's, rounding toward zero. */
static uint16_t normal_f16(uint64_t *state, float scale) {
    uint64_t bits = next_random(state);
    float sum = 0;
    for (int i = 0; i < 4; i++)
        sum += (float)(bits >> (16 * i) & 0xffff) / 32768.0f - 1.0f;
    float value = sum * scale;
    uint32_t word;
    memcpy(&word, &value, sizeof(word));
    int exponent = (int)(word >> 23 & 0xff) - 112;
    if (exponent <= 0)
        return (uint16_t)(word >> 16 & 0x8000);
    return (uint16_t)((word >> 16 & 0x8000) | (uint32_t)exponent << 10 | (word >> 13 & 0x3ff));
}

static void fill(struct disk_block *block) {
    uint64_t state = block->number * 1000003 + block->layout.payload_bytes;
    uint64_t payload = block->layout.payload_bytes;
    memset(block->bytes, 0, block->layout.slot_bytes);
    if (block->layout.element_bytes == 1) {
        for (uint64_t i = 0; i < payload; i++)
            block->bytes[i] = (uint8_t)(i % 64 == 0 ? next_random(&state) : i / 7);
        return;
    }
    for (uint64_t i = 0; i + 1 < payload; i += 2) {
        uint64_t channel = i / 2 % 64;
        uint16_t value = normal_f16(&state, 0.05f * (float)(channel * channel % 37 + 1));
        memcpy(block->bytes + i, &value, sizeof(value));
    }
}

static void finish_init(struct disk_block *block, struct disk_fixture *fixture, uint64_t number) {
    block->fixture = fixture;
    block->number = number;
    block->bytes = aligned_alloc(KVL_PAGE_BYTES, block->layout.slot_bytes);
    REQUIRE(block->bytes != NULL);
    fill(block);
    block->io.layout = &block->layout;
    block->io.buffer = block->bytes;
    block->io.priority = KVL_IO_BEHIND;
    memcpy(block->io.record.key.bytes, &number, sizeof(number));
    block->io.record.key.bytes[31] = 0x5a;
    block->io.record.generation = number + 1;
    block->io.record.token_count = 64;
    block->io.record.namespace_id = 3;
    block->io.record.content_hash = kvl_content_hash(&block->layout, block->bytes, NULL);
}

void block_init_kv(struct disk_block *block, struct disk_fixture *fixture, uint64_t number,
    uint32_t layers, uint32_t kv_heads) {
    struct kvl_geometry geometry = {
        .layers = layers, .kv_heads = kv_heads, .k_dim = 64, .v_dim = 64, .block_tokens = 64};
    memset(block, 0, sizeof(*block));
    REQUIRE(kvl_layout_of_geometry(&geometry, KVL_DTYPE_F16, &block->layout) == KVL_OK);
    finish_init(block, fixture, number);
}

void block_init_bytes(
    struct disk_block *block, struct disk_fixture *fixture, uint64_t number, uint64_t bytes) {
    memset(block, 0, sizeof(*block));
    REQUIRE(kvl_layout_of_bytes(bytes, &block->layout) == KVL_OK);
    finish_init(block, fixture, number);
}

void block_free(struct disk_block *block) {
    free(block->bytes);
    block->bytes = NULL;
}

uint64_t block_number_of(const struct kvl_key *key) {
    uint64_t number;
    memcpy(&number, key->bytes, sizeof(number));
    return number;
}

static void remember_location(struct disk_block *block) {
    struct disk_fixture *fixture = block->fixture;
    struct disk_found_block *found = fixture_find(fixture, block->number);
    if (found == NULL) {
        for (uint32_t i = 0; i < fixture->found_count && found == NULL; i++)
            found = fixture->found[i].live ? NULL : &fixture->found[i];
        if (found == NULL) {
            REQUIRE(fixture->found_count < FIXTURE_BLOCKS_MAX);
            found = &fixture->found[fixture->found_count++];
        }
    }
    *found = (struct disk_found_block){
        block->io.record, block->io.location, block->io.stored_bytes, true};
}

static void on_complete(struct kvl_io *io) {
    struct disk_block *block = kvl_container_of(io, struct disk_block, io);
    block->busy = false;
    block->status = io->status;
    if (io->op == KVL_IO_STORE && io->status == KVL_OK)
        remember_location(block);
}

static void on_frames(struct kvl_io *io, uint32_t frames) {
    struct disk_block *block = kvl_container_of(io, struct disk_block, io);
    REQUIRE(frames > block->frames && frames <= block->layout.frame_count);
    block->frames = frames;
}

void block_begin(struct disk_block *block, enum kvl_io_op op) {
    struct disk_fixture *fixture = block->fixture;
    kvl_err err;
    block->io.op = op;
    block->io.complete = on_complete;
    block->io.frame_ready = on_frames;
    block->busy = true;
    block->frames = 0;
    while ((err = fixture->tier->ops->submit(fixture->tier, &block->io)) == KVL_ERR_AGAIN)
        fixture_poll(fixture);
    if (err != KVL_OK) {
        block->busy = false;
        block->status = err;
    }
}

kvl_err block_end(struct disk_block *block) {
    while (block->busy)
        fixture_poll(block->fixture);
    return block->status;
}

kvl_err block_do(struct disk_block *block, enum kvl_io_op op) {
    block_begin(block, op);
    return block_end(block);
}

bool block_load_same(struct disk_block *block, kvl_err *status) {
    memset(block->bytes, 0xee, block->layout.slot_bytes);
    kvl_err err = block_do(block, KVL_IO_LOAD);
    if (status != NULL)
        *status = err;
    if (err != KVL_OK) {
        fill(block);
        return false;
    }
    uint8_t *loaded = malloc(block->layout.payload_bytes);
    REQUIRE(loaded != NULL);
    memcpy(loaded, block->bytes, block->layout.payload_bytes);
    fill(block);
    bool same = memcmp(loaded, block->bytes, block->layout.payload_bytes) == 0;
    free(loaded);
    return same && block->frames == block->layout.frame_count;
}
