/* Depthwise convolutions of channels-last images, and the gradients of their weights; WIDTH divides the channels.

   An image is copied into a frame of zeros first, so that every window lies inside. Weights are (taps, channels) in
   float32. The gradient of the input is a convolution of the gradient, `spread` pixels apart, with the turned weights. */

#include <stdlib.h>

#include "vectors.h"

typedef struct {
    long height, width, channels; /* of the image */
    long kernel, stride;
} shape;

/* The image in a frame of `border` zeros, its pixels `spread` apart, in rows of `row` pixels. */
static void framed(const element *image, shape s, long border, long spread, long row, element *frame) {
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

/* One output image from its frame; `TAPS` rows and columns are known to the compiler. */
#define CONVOLVED(K)                                                                                                   \
    static void convolved_##K(const element *frame, long row, long channels, long stride, const float *weights,       \
                              long height, long width, element *out) {                                                \
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
    static void correlated_##K(const element *frame, long row, long channels, long stride, const element *grad,       \
                               long height, long width, float *sums) {                                                \
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
CONVOLVED(3)
CONVOLVED(5)

static element *frame_of(shape s, long border, long spread, long *row) {
    *row = (s.width - 1) * spread + 1 + 2 * border + spread; /* `spread` more: an even side's last window */
    return calloc(((s.height - 1) * spread + 1 + 2 * border + spread) * *row * s.channels, sizeof(element));
}

/* out = the convolution of every image; 1 where there is no memory. `spread` > 1 is the gradient of a strided one. */
int depthwise(const element *images, long count, long height, long width, long channels, long kernel, long stride,
              long spread, const float *weights, long out_height, long out_width, element *out) {
    shape s = {height, width, channels, kernel, stride};
    long row, size = height * width * channels, out_size = out_height * out_width * channels;
    element *frame = frame_of(s, kernel / 2, spread, &row);
    if (!frame) return 1;
    for (long n = 0; n < count; n++) {
        framed(images + n * size, s, kernel / 2, spread, row, frame);
        (kernel == 3 ? convolved_3 : convolved_5)(frame, row, channels, stride, weights, out_height, out_width,
                                                  out + n * out_size);
    }
    free(frame);
    return 0;
}

/* sums (taps, channels), zeros before, = the gradient of the weights; 1 where there is no memory. */
int depthwise_weights(const element *images, long count, long height, long width, long channels, long kernel,
                      long stride, const element *grad, long out_height, long out_width, float *sums) {
    shape s = {height, width, channels, kernel, stride};
    long row, size = height * width * channels, out_size = out_height * out_width * channels;
    element *frame = frame_of(s, kernel / 2, 1, &row);
    if (!frame) return 1;
    for (long n = 0; n < count; n++) {
        framed(images + n * size, s, kernel / 2, 1, row, frame);
        (kernel == 3 ? correlated_3 : correlated_5)(frame, row, channels, stride, grad + n * out_size, out_height,
                                                    out_width, sums);
    }
    free(frame);
    return 0;
}
