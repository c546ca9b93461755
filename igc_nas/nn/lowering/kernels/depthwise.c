/* Depthwise convolutions of channels-last images, and the gradients of their weights. WIDTH divides the channels.

   Each image is first copied into a zero-padded one (the frame), so that the inner loops need no test for the border.
   Weights are (taps, channels) in float32. The gradient of the input is computed as the convolution of the gradient of
   the output, its pixels `spread` (= the stride) apart, with the rotated weights. */

#include <stdlib.h>

#include "vectors.h"

typedef struct {
    long height, width, channels; /* of the image */
    long kernel, stride;
} shape;

/* Copy an image into a frame of zeros: `border` pixels of padding, rows of `row` pixels, pixels `spread` apart. */
static void pad(const element *image, shape s, long border, long spread, long row, element *frame) {
    for (long y = 0; y < s.height; y++) {
        element *line = frame + ((border + y * spread) * row + border) * s.channels;
        const element *from = image + y * s.width * s.channels;
        if (spread == 1)
            memcpy(line, from, s.width * s.channels * sizeof *line);
        else
            for (long x = 0; x < s.width; x++)
                memcpy(line + x * spread * s.channels, from + x * s.channels, s.channels * sizeof *line);
    }
}

/* convolve_K: one output image from its frame. correlate_K: add one image to the gradient of the weights.
   Macros, so that K is a constant and the compiler can unroll the loops over taps. */
#define CONVOLVE(K)                                                                                                    \
    static void convolve_##K(const element *frame, long row, long channels, long stride, const float *weights,         \
                              long height, long width, element *out) {                                                 \
        for (long y = 0; y < height; y++)                                                                              \
            for (long c = 0; c < channels; c += WIDTH) {                                                               \
                vector w[K * K];                                                                                       \
                for (int t = 0; t < K * K; t++) w[t] = floats(weights + t * channels + c);                             \
                for (long x = 0; x < width; x++) {                                                                     \
                    const element *at = frame + (y * stride * row + x * stride) * channels + c;                        \
                    vector sum = {0};                                                                                  \
                    for (int i = 0; i < K; i++)                                                                        \
                        for (int j = 0; j < K; j++) sum += load(at + (i * row + j) * channels) * w[i * K + j];         \
                    store(out + (y * width + x) * channels + c, sum);                                                  \
                }                                                                                                      \
            }                                                                                                          \
    }                                                                                                                  \
    static void correlate_##K(const element *frame, long row, long channels, long stride, const element *grad,         \
                               long height, long width, float *sums) {                                                 \
        for (long c = 0; c < channels; c += WIDTH) {                                                                   \
            vector s[K * K] = {{0}};                                                                                   \
            for (long y = 0; y < height; y++)                                                                          \
                for (long x = 0; x < width; x++) {                                                                     \
                    const element *at = frame + (y * stride * row + x * stride) * channels + c;                        \
                    vector g = load(grad + (y * width + x) * channels + c);                                            \
                    for (int i = 0; i < K; i++)                                                                        \
                        for (int j = 0; j < K; j++) s[i * K + j] += g * load(at + (i * row + j) * channels);           \
                }                                                                                                      \
            for (int t = 0; t < K * K; t++) put(sums + t * channels + c, floats(sums + t * channels + c) + s[t]);      \
        }                                                                                                              \
    }
CONVOLVE(3)
CONVOLVE(5)

static element *frame_of(shape s, long border, long spread, long *row) {
    /* + spread: an input of even size is longer than its gradient with pixels 2 apart */
    *row = (s.width - 1) * spread + 1 + 2 * border + spread;
    return calloc(((s.height - 1) * spread + 1 + 2 * border + spread) * *row * s.channels, sizeof(element));
}

/* out = the convolution of each image. With `spread` > 1: the gradient of the input of a strided convolution.
   Returns 1 if there is no memory for the frame, else 0. */
int depthwise(const element *images, long count, long height, long width, long channels, long kernel, long stride,
              long spread, const float *weights, long out_height, long out_width, element *out) {
    shape s = {height, width, channels, kernel, stride};
    long row, size = height * width * channels, out_size = out_height * out_width * channels;
    element *frame = frame_of(s, kernel / 2, spread, &row);
    if (!frame) return 1;
    for (long n = 0; n < count; n++) {
        pad(images + n * size, s, kernel / 2, spread, row, frame);
        (kernel == 3 ? convolve_3 : convolve_5)(frame, row, channels, stride, weights, out_height, out_width,
                                                  out + n * out_size);
    }
    free(frame);
    return 0;
}

/* Add the gradient of the weights to `sums` (taps, channels). Returns 1 if there is no memory for the frame, else 0. */
int depthwise_weights(const element *images, long count, long height, long width, long channels, long kernel,
                      long stride, const element *grad, long out_height, long out_width, float *sums) {
    shape s = {height, width, channels, kernel, stride};
    long row, size = height * width * channels, out_size = out_height * out_width * channels;
    element *frame = frame_of(s, kernel / 2, 1, &row);
    if (!frame) return 1;
    for (long n = 0; n < count; n++) {
        pad(images + n * size, s, kernel / 2, 1, row, frame);
        (kernel == 3 ? correlate_3 : correlate_5)(frame, row, channels, stride, grad + n * out_size, out_height,
                                                    out_width, sums);
    }
    free(frame);
    return 0;
}
