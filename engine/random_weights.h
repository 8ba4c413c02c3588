/* random_weights.h - the weights of a random model (model.h), one formula for every backend.
 *
 * A weight is a pure function of the seed, its tensor's number and its place, so any thread of any
 * device makes any of them:
 *
 *   mix(z)     splitmix64's output function (Steele, Lea, Flood: "Fast splittable pseudorandom
 *              number generators", 2014)
 *   key        mix(seed + GOLDEN * (number + 1))
 *   r          mix(key + GOLDEN * (element + 1)) >> 54, in 0 .. 1023
 *   a norm     1 + (r - 512) / 1024, in [0.5, 1.5)
 *   a matrix   (2 r - 1023) / 1024 * scale, symmetric around 0
 *
 * element = row * columns + column, as a GGUF file would hold it. scale is 1 for the embedding; for
 * other matrices the largest power of two with scale^2 * columns <= 3, so that a product of unit
 * variance in gives a variance in (1/4, 1] out and activations stay finite in any depth. All values
 * are exactly f16, whose rounding therefore never matters.
 *
 *   number  tensor
 *   0       token_embd           [vocab][width]
 *   1       output_norm          [width]
 *   2       output               [vocab][width]; where it is tied: tensor 0
 *   3 + 9 l of layer l, in the order of struct kvl_layer: attention_norm, q, k, v, attention_out,
 *           ffn_norm, ffn_gate, ffn_up, ffn_down */
#ifndef KVL_RANDOM_WEIGHTS_H
#define KVL_RANDOM_WEIGHTS_H

#include <stdint.h>

#ifdef __CUDACC__
#define KVL_RANDOM_FUNCTION static __host__ __device__ inline
#else
#define KVL_RANDOM_FUNCTION static inline
#endif

#define KVL_RANDOM_GOLDEN 0x9E3779B97F4A7C15u

enum {
    KVL_RANDOM_EMBEDDING = 0,
    KVL_RANDOM_OUTPUT_NORM = 1,
    KVL_RANDOM_OUTPUT = 2,
    KVL_RANDOM_LAYERS = 3,
    KVL_RANDOM_PER_LAYER = 9,
    KVL_RANDOM_ATTENTION_NORM = 0, /* within a layer */
    KVL_RANDOM_FFN_NORM = 5,
};

/* value = offset + (2 r - 1023) * step, both exact. */
struct kvl_random_tensor {
    uint64_t key;
    float offset, step;
};

KVL_RANDOM_FUNCTION uint64_t kvl_random_mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

KVL_RANDOM_FUNCTION int kvl_random_is_norm(uint32_t number) {
    if (number < KVL_RANDOM_LAYERS)
        return number == KVL_RANDOM_OUTPUT_NORM;
    const uint32_t in_layer = (number - KVL_RANDOM_LAYERS) % KVL_RANDOM_PER_LAYER;
    return in_layer == KVL_RANDOM_ATTENTION_NORM || in_layer == KVL_RANDOM_FFN_NORM;
}

/* columns: inputs of the matrix. */
KVL_RANDOM_FUNCTION struct kvl_random_tensor kvl_random_tensor_of(
    uint64_t seed, uint32_t number, uint32_t columns) {
    struct kvl_random_tensor tensor;
    tensor.key = kvl_random_mix(seed + KVL_RANDOM_GOLDEN * ((uint64_t)number + 1));
    tensor.offset = 0.0f;
    tensor.step = 1.0f / 1024;
    if (kvl_random_is_norm(number)) {
        tensor.offset = 1.0f - 1.0f / 2048; /* (2 r - 1023) / 2048 - 1 / 2048 = (r - 512) / 1024 */
        tensor.step = 1.0f / 2048;
    } else if (number != KVL_RANDOM_EMBEDDING) {
        for (uint64_t fits = 3; fits < columns; fits *= 4)
            tensor.step /= 2;
    }
    return tensor;
}

KVL_RANDOM_FUNCTION float kvl_random_value(struct kvl_random_tensor tensor, uint64_t element) {
    const uint64_t bits = kvl_random_mix(tensor.key + KVL_RANDOM_GOLDEN * (element + 1));
    return tensor.offset + (float)(2 * (int32_t)(bits >> 54) - 1023) * tensor.step;
}

#endif
