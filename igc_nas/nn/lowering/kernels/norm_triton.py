"""BN by the statistics of the batch, the activation and a permutation of the channels, in Triton.

An image is `pixels` rows of `channels` values (channels-last). Forward: `part_statistics`, `batch_statistics`,
`normalise`; backward: `part_gradients`, `batch_gradients`, `input_gradient`. The pixels are cut into at most
`MOST_PARTS` parts of `per_part`, whose results the second kernel of each way adds up; nothing is atomic, so results
are equal from run to run. Sums are in float32 for every dtype of the image.

`source[c]` is the parameter that belongs to the image's channel c, `target[c]` the output's channel that it goes to.
`kept` is (4, channels): mean, 1 / standard deviation, scale, bias; `slopes` is (2, channels), for the backward way.
Imported only where Triton is installed.
"""

import triton
import triton.language as tl

MOST_PARTS = 512
"""A power of 2: one program of the adding kernels reads this many parts at once, zeros for those that are not there."""
ADDED_CHANNELS = 16
"""Channels of one program of the adding kernels."""
COUNTS = ["pixels", "per_part", "parts"]
"""Not specialised: kernels that were compiled for the check of a network are those of its training."""


@triton.jit
def _activated(z, ACT: tl.constexpr):
    # Comparisons, not maxima: NaN stays NaN, so that a diverged training is seen.
    if ACT == "relu":
        z = tl.where(z < 0.0, 0.0, z)
    if ACT == "relu6":
        z = tl.where(z < 0.0, 0.0, tl.where(z > 6.0, 6.0, z))
    if ACT == "hswish":
        z = tl.where(z <= -3.0, 0.0, tl.where(z >= 3.0, z, z * (z + 3.0) / 6.0))
    return z


@triton.jit
def _through(grad, z, ACT: tl.constexpr):
    """The gradient of the activation's input."""
    if ACT == "relu":
        grad = tl.where(z <= 0.0, 0.0, grad)
    if ACT == "relu6":
        grad = tl.where((z <= 0.0) | (z >= 6.0), 0.0, grad)
    if ACT == "hswish":
        grad = tl.where(z <= -3.0, 0.0, tl.where(z >= 3.0, grad, grad * (z / 3.0 + 0.5)))
    return grad


@triton.jit
def _of_channels(table, row, c, channels):
    """A row of a (rows, channels) table at the channels `c`; 0 beyond the last."""
    return tl.load(table + row * channels + c, mask=c < channels, other=0)


@triton.jit
def _of_parts(sums, row, c, channels, parts, PARTS: tl.constexpr):
    """(PARTS, c) of row `row` of each part's (2, channels) sums; 0 for parts and channels that are not there."""
    part = tl.arange(0, PARTS)[:, None]
    there = (part < parts) & (c[None, :] < channels)
    return tl.load(sums + (2 * part + row) * channels + c[None, :], mask=there, other=0.0)


@triton.jit(do_not_specialize=COUNTS)
def part_statistics(x, sums, pixels, channels, per_part, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
    """For each part and channel: the mean, and the sum of squared differences from it (Chan et al. 1979)."""
    part = tl.program_id(0)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mean = tl.zeros([CHANNELS], dtype=tl.float32)
    squares = tl.zeros([CHANNELS], dtype=tl.float32)
    seen = 0.0
    for start in range(0, per_part, PIXELS):
        p = part * per_part + start + tl.arange(0, PIXELS)
        inside = (p[:, None] < pixels) & (c[None, :] < channels)
        v = tl.load(x + p[:, None].to(tl.int64) * channels + c[None, :], mask=inside, other=0.0).to(tl.float32)
        count = tl.minimum(tl.maximum(pixels - part * per_part - start, 0), PIXELS).to(tl.float32)
        tile_mean = tl.sum(v, 0) / tl.maximum(count, 1.0)
        away = tl.where(inside, v - tile_mean[None, :], 0.0)
        apart = tile_mean - mean
        share = count / (seen + count)
        mean += apart * share
        squares += tl.sum(away * away, 0) + apart * apart * seen * share
        seen += count
    at = sums + part * 2 * channels + c
    tl.store(at, mean, mask=c < channels)
    tl.store(at + channels, squares, mask=c < channels)


@triton.jit(do_not_specialize=COUNTS)
def batch_statistics(
    sums, source, weight, bias, running_mean, running_var, momentum, eps, kept, pixels, channels, per_part, parts,
    PARTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The batch's mean and variance from its parts; `kept`; the running statistics, by the unbiased variance."""
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = c < channels
    part = tl.arange(0, PARTS)
    means = _of_parts(sums, 0, c, channels, parts, PARTS)
    squares = _of_parts(sums, 1, c, channels, parts, PARTS)
    counts = tl.minimum(tl.maximum(pixels - part * per_part, 0), per_part).to(tl.float32)
    counts = tl.where(part < parts, counts, 0.0)
    mean = tl.sum(means * (counts / pixels)[:, None], 0)
    away = tl.where((part < parts)[:, None] & inside[None, :], means - mean[None, :], 0.0)
    summed = tl.sum(squares + away * away * counts[:, None], 0)
    inverse = 1.0 / tl.sqrt(summed / pixels + eps)
    s = _of_channels(source, 0, c, channels)
    scale = tl.load(weight + s, mask=inside, other=0.0) * inverse
    tl.store(kept + c, mean, mask=inside)
    tl.store(kept + channels + c, inverse, mask=inside)
    tl.store(kept + 2 * channels + c, scale, mask=inside)
    tl.store(kept + 3 * channels + c, tl.load(bias + s, mask=inside, other=0.0), mask=inside)
    old_mean = tl.load(running_mean + s, mask=inside, other=0.0)
    old_var = tl.load(running_var + s, mask=inside, other=0.0)
    tl.store(running_mean + s, momentum * mean + (1.0 - momentum) * old_mean, mask=inside)
    tl.store(running_var + s, momentum * (summed / (pixels - 1)) + (1.0 - momentum) * old_var, mask=inside)


@triton.jit(do_not_specialize=COUNTS)
def normalise(
    x, y, kept, target, pixels, channels, ACT: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """The output: normalised, activated, each channel stored in its place."""
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (p[:, None] < pixels) & (c[None, :] < channels)
    rows = p[:, None].to(tl.int64) * channels
    mean = _of_channels(kept, 0, c, channels)[None, :]
    scale = _of_channels(kept, 2, c, channels)[None, :]
    bias = _of_channels(kept, 3, c, channels)[None, :]
    to = _of_channels(target, 0, c, channels)
    z = (tl.load(x + rows + c[None, :], mask=inside, other=0.0).to(tl.float32) - mean) * scale + bias
    tl.store(y + rows + to[None, :], _activated(z, ACT).to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=COUNTS)
def part_gradients(
    grad, x, kept, target, sums, pixels, channels, per_part,
    ACT: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """For each part and channel: the sums of BN's output gradient, and of it times (x - mean)."""
    part = tl.program_id(0)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mean = _of_channels(kept, 0, c, channels)[None, :]
    scale = _of_channels(kept, 2, c, channels)[None, :]
    bias = _of_channels(kept, 3, c, channels)[None, :]
    to = _of_channels(target, 0, c, channels)
    total = tl.zeros([CHANNELS], dtype=tl.float32)
    centred = tl.zeros([CHANNELS], dtype=tl.float32)
    for start in range(0, per_part, PIXELS):
        p = part * per_part + start + tl.arange(0, PIXELS)
        inside = (p[:, None] < pixels) & (c[None, :] < channels)
        rows = p[:, None].to(tl.int64) * channels
        away = tl.load(x + rows + c[None, :], mask=inside, other=0.0).to(tl.float32) - mean
        g = tl.load(grad + rows + to[None, :], mask=inside, other=0.0).to(tl.float32)
        g = tl.where(inside, _through(g, away * scale + bias, ACT), 0.0)
        total += tl.sum(g, 0)
        centred += tl.sum(g * away, 0)
    at = sums + part * 2 * channels + c
    tl.store(at, total, mask=c < channels)
    tl.store(at + channels, centred, mask=c < channels)


@triton.jit(do_not_specialize=COUNTS)
def batch_gradients(
    sums, source, kept, grad_weight, grad_bias, slopes, pixels, channels, parts,
    PARTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The gradients of weight and bias; `slopes`: what the statistics' own gradients take from each pixel's."""
    c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = c < channels
    total = tl.sum(_of_parts(sums, 0, c, channels, parts, PARTS), 0)
    centred = tl.sum(_of_parts(sums, 1, c, channels, parts, PARTS), 0)
    inverse = _of_channels(kept, 1, c, channels)
    s = _of_channels(source, 0, c, channels)
    tl.store(grad_bias + s, total, mask=inside)
    tl.store(grad_weight + s, centred * inverse, mask=inside)
    tl.store(slopes + c, total / pixels, mask=inside)
    tl.store(slopes + channels + c, centred * inverse * inverse / pixels, mask=inside)


@triton.jit(do_not_specialize=COUNTS)
def input_gradient(
    grad, x, kept, slopes, target, dx, pixels, channels,
    ACT: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The gradient of the image (Ioffe and Szegedy 2015, section 3)."""
    p = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (p[:, None] < pixels) & (c[None, :] < channels)
    rows = p[:, None].to(tl.int64) * channels
    mean = _of_channels(kept, 0, c, channels)[None, :]
    scale = _of_channels(kept, 2, c, channels)[None, :]
    bias = _of_channels(kept, 3, c, channels)[None, :]
    common = _of_channels(slopes, 0, c, channels)[None, :]
    slope = _of_channels(slopes, 1, c, channels)[None, :]
    to = _of_channels(target, 0, c, channels)
    away = tl.load(x + rows + c[None, :], mask=inside, other=0.0).to(tl.float32) - mean
    g = tl.load(grad + rows + to[None, :], mask=inside, other=0.0).to(tl.float32)
    g = _through(g, away * scale + bias, ACT)
    tl.store(dx + rows + c[None, :], (scale * (g - common - away * slope)).to(dx.dtype.element_ty), mask=inside)
