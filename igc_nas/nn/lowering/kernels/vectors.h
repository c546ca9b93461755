/* Vectors of WIDTH channels in float32, and how to load and store images of bfloat16 (BF16 defined) or float32. Vectors
   are those of GCC and Clang, so that the same source serves x86 and ARM. Loads and stores by memcpy need no alignment. */

#ifndef VECTORS_H
#define VECTORS_H

#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define WIDTH 16

/* Loop over the vectors of a row. */
#define FOR_VECTORS(c, wide) for (long c = 0; c < (wide); c += WIDTH)

typedef float vector __attribute__((vector_size(4 * WIDTH)));
typedef int32_t integers __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t words __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t halves __attribute__((vector_size(2 * WIDTH)));

#ifdef BF16
typedef uint16_t element;

static inline vector load(const element *at) {
#ifdef __AVX512F__ /* from the portable code below, GCC makes two half vectors */
    return (vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)at)), 16);
#endif
    halves raw;
    memcpy(&raw, at, sizeof raw);
    words wide = __builtin_convertvector(raw, words) << 16;
    return (vector)wide;
}

static inline void store(element *at, vector value) {
    words bits = (words)value;
    words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16; /* round to nearest, ties to even */
    words is_nan = (words)(value != value);
    words chosen = (is_nan & 0x7fc0) | (~is_nan & rounded);
    halves raw = __builtin_convertvector(chosen, halves);
    memcpy(at, &raw, sizeof raw);
}
#else
typedef float element;

static inline vector load(const element *at) {
    vector value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline void store(element *at, vector value) { memcpy(at, &value, sizeof value); }
#endif

static inline vector broadcast(float value) { return value - (vector){0}; }

static inline vector floats(const float *at) {
    vector value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline void put(float *at, vector value) { memcpy(at, &value, sizeof value); }

#endif
