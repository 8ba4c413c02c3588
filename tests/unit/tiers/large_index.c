/* large_index.c - see large_index.h. */
#include "large_index.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "disk/disk_dir.h"
#include "disk/index.h"
#include "disk/segment.h"

#define FIRST_SEGMENT 500u
#define RECORD_BYTES (2 * KVL_PAGE_BYTES)
#define PASSED_AT_ONCE 8u

#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* ---- the gate ----------------------------------------------------------------------------- */

static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t gate_moved = PTHREAD_COND_INITIALIZER;
static bool closed;
static uint32_t passes;

int posix_fadvise(int fd, off_t offset, off_t bytes, int advice) {
    (void)fd, (void)offset, (void)bytes, (void)advice;
    pthread_mutex_lock(&gate);
    while (closed && passes == 0)
        pthread_cond_wait(&gate_moved, &gate);
    passes -= passes > 0;
    pthread_mutex_unlock(&gate);
    return 0;
}

static void move_gate(bool to_closed, uint32_t to_passes) {
    pthread_mutex_lock(&gate);
    closed = to_closed;
    passes = to_passes;
    pthread_cond_broadcast(&gate_moved);
    pthread_mutex_unlock(&gate);
}

void large_gate_close(void) {
    move_gate(true, 0);
}

void large_gate_pass(void) {
    move_gate(true, PASSED_AT_ONCE);
}

void large_gate_open(void) {
    move_gate(false, 0);
}

/* ---- the rows ----------------------------------------------------------------------------- */

struct kvl_key large_key(uint32_t number) {
    struct kvl_key key = {{0}};
    uint32_t spread = number * 2654435761u; /* so that the walk does not go by number */
    memcpy(key.bytes, &spread, sizeof(spread));
    memcpy(key.bytes + 8, &number, sizeof(number));
    memcpy(key.bytes + 12, "large_index", 11);
    return key;
}

uint64_t large_content_hash(uint32_t number) {
    return 0xfeedc0dedec0de00u + number;
}

uint32_t large_number(const struct kvl_key *key) {
    uint32_t number;
    memcpy(&number, key->bytes + 8, sizeof(number));
    return memcmp(key->bytes + 12, "large_index", 11) == 0 ? number : UINT32_MAX;
}

static void row_of(
    const struct kvl_disk_plan *plan, uint32_t number, uint32_t space, struct kvl_index_op *op) {
    uint64_t per_segment = plan->segment_bytes / RECORD_BYTES;
    *op = (struct kvl_index_op){.kind = KVL_INDEX_PUT};
    op->block.record.key = large_key(number);
    op->block.record.namespace_id = space;
    op->block.record.generation = number + 1u;
    op->block.record.content_hash = large_content_hash(number);
    op->block.location = kvl_location_make(
        FIRST_SEGMENT + (uint32_t)(number / per_segment), number % per_segment * RECORD_BYTES);
    op->block.stored_bytes = RECORD_BYTES;
    op->block.last_use_wall_ns = 1000000000ull * (number + 1u);
    op->block.raw = true;
}

static void add_segment(
    struct kvl_index *index, const char *disk_path, uint32_t id, const struct kvl_disk_plan *plan) {
    char path[400];
    snprintf(path, sizeof(path), "%s/segments/%08u.seg", disk_path, id);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    REQUIRE(fd >= 0 && ftruncate(fd, (off_t)plan->segment_bytes) == 0);
    close(fd);
    struct kvl_index_op op = {.kind = KVL_INDEX_SEGMENT_PUT,
        .segment = {.id = id, .bytes = plan->segment_bytes, .generation = 1}};
    REQUIRE(kvl_index_commit(index, &op, 1) == KVL_OK);
}

void large_index_add(const char *disk_path, uint32_t rows, uint32_t namespace_id) {
    char folder[400];
    struct kvl_disk_plan plan;
    struct kvl_index *index = NULL;
    struct kvl_errmsg msg = {""};
    snprintf(folder, sizeof(folder), "%s/index", disk_path);
    REQUIRE(kvl_disk_plan_make(LARGE_CAPACITY, &plan, &msg) == KVL_OK);
    struct kvl_index_options options = {
        .directory = folder, .map_bytes = plan.map_bytes, .expected = true};
    REQUIRE(kvl_index_open(&options, &index, &msg) == KVL_OK);
    struct kvl_index_op *ops = malloc(rows * sizeof(*ops));
    REQUIRE(ops != NULL);
    for (uint32_t i = 0; i < rows; i++)
        row_of(&plan, i, namespace_id, &ops[i]);
    REQUIRE(kvl_index_commit(index, ops, rows) == KVL_OK);
    uint32_t last = kvl_location_segment(ops[rows - 1].block.location);
    for (uint32_t id = FIRST_SEGMENT; id <= last; id++)
        add_segment(index, disk_path, id, &plan);
    free(ops);
    kvl_index_close(index);
}

void large_index_damage(const char *disk_path, const void *bytes, uint64_t count) {
    char path[400];
    struct stat file;
    snprintf(path, sizeof(path), "%s/index/data.mdb", disk_path);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    REQUIRE(fd >= 0 && fstat(fd, &file) == 0);
    uint8_t *all = mmap(NULL, (size_t)file.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    REQUIRE(all != MAP_FAILED);
    uint8_t *at = all, *end = all + file.st_size;
    uint32_t changed = 0;
    while ((at = memmem(at, (size_t)(end - at), bytes, count)) != NULL) {
        *at++ ^= 0x40; /* older pages may have it, too */
        changed++;
    }
    REQUIRE(changed > 0);
    munmap(all, (size_t)file.st_size);
    close(fd);
}
