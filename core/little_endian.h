/* little_endian.h - numbers in records and keys: little-endian, whatever the machine. Any thread.
 *
 * Both walk: put returns the place behind what it wrote, get moves the place it is given. */
#ifndef KVL_LITTLE_ENDIAN_H
#define KVL_LITTLE_ENDIAN_H

#include <stdint.h>

/* The lowest `bytes` bytes of the value; at most 8. */
static inline uint8_t *kvl_le_put(uint8_t *at, uint64_t value, unsigned bytes) {
    for (unsigned i = 0; i < bytes; i++)
        *at++ = (uint8_t)(value >> (8 * i));
    return at;
}

static inline uint64_t kvl_le_get(const uint8_t **at, unsigned bytes) {
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes; i++)
        value |= (uint64_t)(*at)[i] << (8 * i);
    *at += bytes;
    return value;
}

#endif
