/* Vectors of LANES float32 (GCC's and Clang's, for any processor), and images of `element`: bfloat16 where BF16 is
   defined, else float32. Loads and stores by memcpy need no alignment. */

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));
typedef uint16_t halves_2 __attribute__((vector_size(4 * LANES)));

static inline vec LOAD(const float *at)
{
    vec value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline void STORE(float *at, vec value) { memcpy(at, &value, sizeof value); }

#ifdef BF16
typedef uint16_t element;

static inline float read_one(const element *at)
{
    const uint32_t bits = (uint32_t)*at << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline vec read(const element *at)
{
    halves raw;
    memcpy(&raw, at, sizeof raw);
    return (vec)(__builtin_convertvector(raw, words) << 16);
}

static inline void write(element *at, vec value)
{
#if defined(__AVX512BF16__) && defined(__AVX512VL__) && LANES == 8
    const __m128bh native = _mm256_cvtneps_pbh((__m256)value);
    memcpy(at, &native, sizeof native);
    return;
#elif defined(__AVX512BF16__) && LANES == 16
    const __m256bh native = _mm512_cvtneps_pbh((__m512)value);
    memcpy(at, &native, sizeof native);
    return;
#endif
    const words bits = (words)value;
    const words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16; /* to nearest, ties to even */
    const words is_nan = (words)(value != value);
    const halves raw = __builtin_convertvector((is_nan & 0x7fc0) | (~is_nan & rounded), halves);
    memcpy(at, &raw, sizeof raw);
}
#else
typedef float element;

static inline float read_one(const element *at) { return *at; }
static inline vec read(const element *at) { return LOAD(at); }
static inline void write(element *at, vec value) { STORE(at, value); }
#endif

/* Products of pairs of bfloat16 with a float32 sum, two in the time of one, where the processor has them. A pair lies in
   the place of one float. */
#if defined(BF16) && defined(__AVX512BF16__) && defined(__AVX512VL__) && defined(__AVX512BW__) && LANES == 8
#define PAIRS 1
static inline vec DOT(vec sum, vec a, vec b)
{
    return (vec)_mm256_dpbf16_ps((__m256)sum, (__m256bh)a, (__m256bh)b);
}

static inline vec paired(vec first, vec second)
{
    const halves_2 both = (halves_2)_mm256_cvtne2ps_pbh((__m256)second, (__m256)first);
    return (vec)__builtin_shuffle(both, (halves_2){0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15});
}
#elif defined(BF16) && defined(__AVX512BF16__) && defined(__AVX512BW__) && LANES == 16
#define PAIRS 1
static inline vec DOT(vec sum, vec a, vec b)
{
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

static inline vec paired(vec first, vec second)
{
    const halves_2 both = (halves_2)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    return (vec)__builtin_shuffle(both, (halves_2){0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                   8,  24, 9,  25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
}
#else
#define PAIRS 0
#endif

static inline int32_t pair_at(const float *at)
{
    int32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline vec spread(int32_t pair) { return (vec)((ints){0} + pair); }

typedef void (*conv_tile)(const float *in, long in_pixel, const int *offsets, int terms, const float *weights, float *out,
                          long out_pixel, const int *targets);

typedef struct {
    long in_image, out_image, images, in_row, out_row, height, in_pixel, out_pixel, width;
} pixels_at;

typedef void (*weight_tile)(const float *in, const int *offsets, const float *out, const int *targets,
                            const pixels_at *at, float *gradient);
