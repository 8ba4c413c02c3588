/* half.h - 16-bit floats in plain C, bit-equal to what F16C does in hardware.
 *
 * f16: IEEE 754 binary16. bf16: the upper half of a binary32. Both round to nearest even; a NaN
 * stays a (quiet) NaN. */
#ifndef KVL_CPU_HALF_H
#define KVL_CPU_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t kvl_bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float kvl_float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float kvl_f16_to_f32(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16;
    const uint32_t magnitude = half & 0x7FFF;
    if (magnitude >= 0x7C00) { /* infinity, NaN */
        const uint32_t quiet = magnitude > 0x7C00 ? 0x400000 : 0;
        return kvl_float_of(sign | 0x7F800000 | (magnitude & 0x3FF) << 13 | quiet);
    }
    if (magnitude < 0x400) { /* zero, subnormal: a multiple of 2^-24 */
        return kvl_float_of(sign | kvl_bits_of((float)magnitude * 0x1p-24f));
    }
    return kvl_float_of(sign | ((magnitude << 13) + 0x38000000));
}

static inline uint16_t kvl_f32_to_f16(float value) {
    const uint32_t bits = kvl_bits_of(value);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    const uint32_t magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) {
        return (uint16_t)(sign | 0x7E00 | (magnitude >> 13 & 0x3FF));
    }
    if (magnitude >= 0x477FF000) { /* rounds to 65536 or more */
        return sign | 0x7C00;
    }
    if (magnitude < 0x38800000) { /* below 2^-14: adding 0.5 makes the hardware round at 2^-24 */
        const float shifted = kvl_float_of(magnitude) + 0.5f;
        return (uint16_t)(sign | (kvl_bits_of(shifted) - 0x3F000000));
    }
    const uint32_t rounded = magnitude + 0xFFF + (magnitude >> 13 & 1);
    return (uint16_t)(sign | (rounded - 0x38000000) >> 13);
}

static inline float kvl_bf16_to_f32(uint16_t value) {
    return kvl_float_of((uint32_t)value << 16);
}

static inline uint16_t kvl_f32_to_bf16(float value) {
    const uint32_t bits = kvl_bits_of(value);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) {
        return (uint16_t)(bits >> 16 | 0x40);
    }
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

#endif
