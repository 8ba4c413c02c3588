/* journal_fuzz.c - the journal beside the segments, whole, cut or damaged, as a rebuild reads it:
 * what is malformed is left out, and nothing in it leads outside its bytes or the live map.
 *
 *   repeated: u8 flags | u16le payload bytes | payload: a frame with right checksums and the next
 *   sequence number; flags: 1 the bytes as they stand, no frame | 2 the number before | 4 a gap */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "disk/codec.h"
#include "disk/journal.h"
#include "disk/journal_private.h"
#include "little_endian.h"

#define FLAG_RAW 1u
#define FLAG_BEFORE 2u
#define FLAG_GAP 4u
#define FILE_BYTES_MAX (1u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes);

static volatile uint8_t sink; /* keeps the reads */

static void read_all(const uint8_t *bytes, uint64_t count) {
    for (uint64_t i = 0; i < count; i++)
        sink ^= bytes[i];
}

static void take_segment(struct kvl_live_map *map, const struct kvl_journal_entry *entry) {
    struct kvl_index_segment row;
    uint32_t end_page;
    if (!kvl_journal_read_segment(entry, &row, &end_page) || row.bytes > 64u << 20 ||
        !kvl_live_map_put(map, &row))
        return;
    struct kvl_live_segment *segment = kvl_live_map_find(map, row.id);
    if (segment == NULL || end_page > kvl_live_segment_pages(segment))
        abort();
    segment->end_page = end_page;
    memcpy(segment->bits, entry->value + KVL_JOURNAL_SEGMENT_BYTES,
        kvl_live_segment_bits_bytes(end_page));
    for (uint32_t page = 0; page < kvl_live_segment_pages(segment); page++)
        sink ^= kvl_live_segment_bit(segment, page);
}

static kvl_err visit(void *arg, const struct kvl_journal_entry *entry) {
    struct kvl_live_map *map = arg;
    const uint8_t *at = entry->value;
    read_all(entry->key, entry->key_bytes);
    read_all(entry->value, entry->value_bytes);
    if (entry->catalog_kind >= KVL_CATALOG_KINDS)
        abort();
    if (entry->kind == KVL_JOURNAL_SEGMENT)
        take_segment(map, entry);
    if (entry->kind == KVL_JOURNAL_REMOVED && entry->value_bytes == 4)
        kvl_live_map_remove(map, (uint32_t)kvl_le_get(&at, 4));
    for (uint32_t i = 0; entry->kind == KVL_JOURNAL_DEAD && i + 8 <= entry->value_bytes; i += 8)
        kvl_live_map_drop(map, kvl_le_get(&at, 8));
    return KVL_OK;
}

static uint64_t put_frame(
    uint8_t *out, const uint8_t *payload, uint32_t payload_bytes, uint64_t sequence) {
    uint64_t padded = kvl_journal_padded(payload_bytes);
    uint8_t *at = kvl_le_put(out, KVL_JOURNAL_MAGIC, 4);
    at = kvl_le_put(at, payload_bytes, 4);
    at = kvl_le_put(at, sequence, 8);
    at = kvl_le_put(at, kvl_bytes_hash(payload, payload_bytes), 8);
    at = kvl_le_put(at, kvl_bytes_hash(out, 24), 8);
    memset(at, 0, padded);
    memcpy(at, payload, payload_bytes);
    return KVL_JOURNAL_FRAME_BYTES + padded;
}

static uint64_t build(uint8_t *file, const uint8_t *data, size_t data_bytes) {
    uint64_t count = 0, sequence = 1;
    while (data_bytes > 3 && count < FILE_BYTES_MAX) {
        uint32_t flags = data[0], bytes = data[1] | data[2] * 256u;
        data += 3;
        data_bytes -= 3;
        bytes = bytes < data_bytes ? bytes : (uint32_t)data_bytes;
        sequence += (flags & FLAG_GAP) != 0 ? 2 : (flags & FLAG_BEFORE) != 0 ? 0 : 1;
        if ((flags & FLAG_RAW) != 0)
            memcpy(file + count, data, bytes);
        count += (flags & FLAG_RAW) != 0 ? bytes : put_frame(file + count, data, bytes, sequence);
        data += bytes;
        data_bytes -= bytes;
    }
    return count;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes) {
    static uint8_t file[FILE_BYTES_MAX + UINT16_MAX + 64];
    struct kvl_live_map map = {0};
    struct kvl_journal_found found;
    uint64_t count = build(file, data, data_bytes);
    uint8_t *exact = malloc(count + 1); /* so that a sanitizer sees one byte too far */
    if (exact == NULL)
        abort();
    memcpy(exact, file, count);
    kvl_err err = kvl_journal_parse(exact, count, visit, &map, &found);
    if (err != KVL_OK && err != KVL_ERR_VERSION)
        abort();
    kvl_live_map_deinit(&map);
    free(exact);
    return 0;
}
