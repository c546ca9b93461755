/* Batch normalisation by the statistics of the batch, its activation, and their gradients, on channels-last images.

   A batch is a sequence of pixels of `channels` values, bfloat16 or float32. `period` adjacent pixels are read as one
   row of `wide` = period * channels values, so that WIDTH divides a row also if it does not divide the channels; column
   j belongs to channel j % channels. Sums are accumulated in float32 within a block of rows, for speed, and in double
   over blocks, for accuracy. Forward and backward read the batch twice each, in memory order. Backward computes the mask
   of the activation from x again, so that the output need not be kept.

   Compiled by igc_nas/nn/lowering/native.py, once with BF16 defined and once without. */

#include <math.h>

#include "vectors.h"

#define BLOCK 128

/* The activation `act`: 0 none, 1 ReLU, 2 ReLU6. By masks, because NaN must stay NaN, as in PyTorch. */
static inline vector activate(vector value, int act) {
    vector zero = {0}, six = broadcast(6);
    if (act) {
        integers below = value < zero;
        value = (vector)(~below & (integers)value);
    }
    if (act == 2) {
        integers above = value > six;
        value = (vector)((above & (integers)six) | (~above & (integers)value));
    }
    return value;
}

/* The gradient before the activation: `grad` where the derivative at `before` is 1, else 0. */
static inline vector masked(vector grad, vector before, int act) {
    vector zero = {0}, six = broadcast(6);
    if (act == 0) return grad;
    integers open = before > zero;
    if (act == 2) open &= before < six;
    return (vector)(open & (integers)grad);
}

/* Add the sums over rows of d = x - shift to `sum`, and those of d * d to `square`. Without the shift, the variance of
   values far from 0 would be lost in cancellation (Chan, Golub and LeVeque 1983). `s`, `q`: work space of one row. */
static void moments(const element *x, long rows, long wide, const float *shift, float *s, float *q, double *sum,
                    double *square) {
    for (long first = 0; first < rows; first += BLOCK) {
        long last = first + BLOCK < rows ? first + BLOCK : rows, row = first;
        memset(s, 0, wide * sizeof *s);
        memset(q, 0, wide * sizeof *q);
        for (; row + 4 <= last; row += 4)
            FOR_VECTORS(c, wide) {
                const element *at = x + row * wide + c;
                vector k = floats(shift + c), d0 = load(at) - k, d1 = load(at + wide) - k;
                vector d2 = load(at + 2 * wide) - k, d3 = load(at + 3 * wide) - k;
                put(s + c, floats(s + c) + ((d0 + d1) + (d2 + d3)));
                put(q + c, floats(q + c) + ((d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)));
            }
        for (; row < last; row++)
            FOR_VECTORS(c, wide) {
                vector d = load(x + row * wide + c) - floats(shift + c);
                put(s + c, floats(s + c) + d);
                put(q + c, floats(q + c) + d * d);
            }
        for (long c = 0; c < wide; c++) {
            sum[c] += s[c];
            square[c] += q[c];
        }
    }
}

/* y = act(x * scale + offset). */
static void apply(const element *x, long rows, long wide, const float *scale, const float *offset, int act, element *y) {
    for (long row = 0; row < rows; row++)
        FOR_VECTORS(c, wide) {
            long at = row * wide + c;
            store(y + at, activate(load(x + at) * floats(scale + c) + floats(offset + c), act));
        }
}

/* Add the sums over rows of g to `sum`, and those of g * (x - mean) to `product`; g is the gradient before the
   activation. `s`, `p`: work space of one row. */
static void products(const element *grad, const element *x, long rows, long wide, const float *scale,
                     const float *offset, const float *mean, int act, float *s, float *p, double *sum,
                     double *product) {
    for (long first = 0; first < rows; first += BLOCK) {
        long last = first + BLOCK < rows ? first + BLOCK : rows, row = first;
        memset(s, 0, wide * sizeof *s);
        memset(p, 0, wide * sizeof *p);
        for (; row + 2 <= last; row += 2)
            FOR_VECTORS(c, wide) {
                long at = row * wide + c, next = at + wide;
                vector a = floats(scale + c), b = floats(offset + c), m = floats(mean + c);
                vector x0 = load(x + at), x1 = load(x + next);
                vector g0 = masked(load(grad + at), x0 * a + b, act), g1 = masked(load(grad + next), x1 * a + b, act);
                put(s + c, floats(s + c) + (g0 + g1));
                put(p + c, floats(p + c) + (g0 * (x0 - m) + g1 * (x1 - m)));
            }
        for (; row < last; row++)
            FOR_VECTORS(c, wide) {
                long at = row * wide + c;
                vector value = load(x + at);
                vector g = masked(load(grad + at), value * floats(scale + c) + floats(offset + c), act);
                put(s + c, floats(s + c) + g);
                put(p + c, floats(p + c) + g * (value - floats(mean + c)));
            }
        for (long c = 0; c < wide; c++) {
            sum[c] += s[c];
            product[c] += p[c];
        }
    }
}

/* dx = g * scale - x * slope - constant. */
static void input_gradient(const element *grad, const element *x, long rows, long wide, const float *scale,
                   const float *offset, const float *slope, const float *constant, int act, element *dx) {
    for (long row = 0; row < rows; row++)
        FOR_VECTORS(c, wide) {
            long at = row * wide + c;
            vector value = load(x + at), a = floats(scale + c);
            vector g = masked(load(grad + at), value * a + floats(offset + c), act);
            store(dx + at, g * a - value * floats(slope + c) - floats(constant + c));
        }
}

/* Add the sums of all columns of a channel, into the first `channels` entries. */
static void fold(double *sums, long channels, long wide) {
    for (long c = channels; c < wide; c++) sums[c % channels] += sums[c];
}

/* Copy the values of the channels, the first `channels` entries, to all columns. */
static void repeat(float *values, long channels, long wide) {
    for (long c = channels; c < wide; c++) values[c] = values[c - channels];
}

/* y = act(BN(x)); updates the running statistics by `momentum`. Writes four rows to `kept` for `backward`: mean,
   1 / standard deviation, scale and offset. `work` must be four rows of zeros, in double. */
void forward(const element *x, long pixels, long channels, long period, const float *weight, const float *bias,
             float *running_mean, float *running_var, double momentum, double eps, int act, element *y, float *kept,
             double *work) {
    long wide = channels * period, rows = pixels / period;
    float *mean = kept, *inverse = mean + wide, *scale = inverse + wide, *offset = scale + wide;
    double *sum = work, *square = work + wide;
    float *s = (float *)(work + 2 * wide), *q = s + wide;
    FOR_VECTORS(c, wide) put(mean + c, load(x + c)); /* the shift: the first pixel, which costs no pass to find */
    repeat(mean, channels, wide);
    moments(x, rows, wide, mean, s, q, sum, square);
    fold(sum, channels, wide);
    fold(square, channels, wide);
    double unbiased = pixels > 1 ? (double)pixels / (pixels - 1) : 1;
    for (long c = 0; c < channels; c++) {
        double d = sum[c] / pixels, m = mean[c] + d, v = square[c] / pixels - d * d;
        v = v < 0 ? 0 : v;
        running_mean[c] += momentum * (m - running_mean[c]);
        running_var[c] += momentum * (v * unbiased - running_var[c]);
        double i = 1 / sqrt(v + eps);
        mean[c] = m;
        inverse[c] = i;
        scale[c] = weight[c] * i;
        offset[c] = bias[c] - m * weight[c] * i;
    }
    repeat(mean, channels, wide);
    repeat(scale, channels, wide);
    repeat(offset, channels, wide);
    apply(x, rows, wide, scale, offset, act, y);
}

/* The gradients of x, weight and bias, from what `forward` wrote to `kept`. `work` must be four rows of zeros, in
   double. */
void backward(const element *grad, const element *x, long pixels, long channels, long period, const float *kept,
              int act, element *dx, float *dweight, float *dbias, double *work) {
    long wide = channels * period, rows = pixels / period;
    const float *mean = kept, *inverse = mean + wide, *scale = inverse + wide, *offset = scale + wide;
    double *sum = work, *product = work + wide;
    float *slope = (float *)(work + 2 * wide), *constant = slope + wide, *s = constant + wide, *p = s + wide;
    products(grad, x, rows, wide, scale, offset, mean, act, s, p, sum, product);
    fold(sum, channels, wide);
    fold(product, channels, wide);
    for (long c = 0; c < channels; c++) {
        double k = (double)scale[c] * product[c] * inverse[c] * inverse[c] / pixels;
        dweight[c] = product[c] * inverse[c];
        dbias[c] = sum[c];
        slope[c] = k;
        constant[c] = scale[c] * sum[c] / pixels - k * mean[c];
    }
    repeat(slope, channels, wide);
    repeat(constant, channels, wide);
    input_gradient(grad, x, rows, wide, scale, offset, slope, constant, act, dx);
}
