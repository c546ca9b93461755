"""Weights in the order in which the generated C reads them, batch norm folded in (in float64), one array of floats.

For each convolution: per tile of `outs` vectors the taps' weights [ky][kx][term][out][lane], then per tile the biases
[out][lane]. Padding lanes have weight and bias 0, so they stay 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from igc_nas.nn.codegen.orders import PAD, positions
from igc_nas.nn.codegen.program import ConvRow, ScaleRow, SelectRow
from igc_nas.nn.codegen.tiles import Tiling

Floats = NDArray[np.float64]
Tensors = Mapping[str, Floats]
"""By name in the network's state_dict."""
EPS = 1e-5
"""torch's default of `BatchNorm2d`."""


def packed(row: ConvRow, tiling: Tiling, tensors: Tensors) -> NDArray[np.float32]:
    """The weights and biases of one convolution."""
    weight, bias = _folded(row, tensors)
    conv = row.conv
    size_in, size_out = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    taps = conv.kernel**2
    merged_out = conv.out_channels // len(tiling.sorted_inputs) if tiling.sorted_inputs else size_out
    sorted_inputs = [np.array(inputs) for inputs in tiling.sorted_inputs or ()]
    whole = np.zeros((len(tiling.tiles), taps, tiling.inputs, tiling.outs, tiling.lanes))
    biases = np.zeros((len(tiling.tiles), tiling.outs, tiling.lanes))
    for number, tile in enumerate(tiling.tiles):
        for out in range(tiling.outs):
            for lane in range(tiling.lanes):
                position = tile.target + out * tiling.out_step + lane
                channel = row.target[position]
                if channel == PAD:
                    continue
                first = channel // size_out * size_in
                read = sorted_inputs[channel // merged_out] if tiling.sorted_inputs else None
                if read is None:
                    whole[number, :, :, out, lane] = weight[position].T
                else:
                    index = read - first
                    own = (index >= 0) & (index < size_in)  # else an input of a group that is merged with this one
                    whole[number][:, own, out, lane] = weight[position][index[own]].T
                biases[number, out, lane] = bias[position]
    return np.concatenate([whole.ravel(), biases.ravel()]).astype(np.float32)


def packed_scale(row: ScaleRow, tensors: Tensors) -> NDArray[np.float32]:
    """Factors, then shifts, of a batch norm; or the slopes of PReLU; a value for each position."""
    here = np.array(row.target) != PAD
    channels = np.array([max(c, 0) for c in row.target])
    if row.slope:
        slopes: Floats = tensors[f"{row.slope}.weight"][channels] * here
        return slopes.astype(np.float32)
    factor, shift = _scale(str(row.norm), channels, tensors)
    return np.concatenate([factor * here, shift * here]).astype(np.float32)


def packed_index(row: SelectRow, tensors: Tensors) -> NDArray[np.float32]:
    """For each position of the output the position that it reads, -1 for padding: whole numbers, exact in a float."""
    index, where = tensors[f"{row.name}.index"].astype(np.int64), positions(row.source)
    return np.array([PAD if c == PAD else where[index[c]] for c in row.target], np.float32)


def _scale(norm: str, channels: NDArray[np.int64], tensors: Tensors) -> tuple[Floats, Floats]:
    """(factor, shift) of a batch norm for these channels."""
    gamma, beta, mean, var = (
        tensors[f"{norm}.{name}"][channels] for name in ("weight", "bias", "running_mean", "running_var")
    )
    factor = gamma / np.sqrt(var + EPS)
    return factor, beta - mean * factor


def _folded(row: ConvRow, tensors: Tensors) -> tuple[Floats, Floats]:
    """(positions, inputs, taps) weights and (positions,) biases, in the order of the output's positions."""
    channels = np.array([max(c, 0) for c in row.target])
    weight = tensors[f"{row.name}.weight"].reshape(row.conv.out_channels, -1, row.conv.kernel**2)[channels]
    bias = np.zeros(len(channels))
    if row.bias:
        bias = tensors[f"{row.name}.bias"][channels]
    if row.norm:
        known = np.array([max(c, 0) for c in row.norm_order])
        factor, shift = _scale(row.norm, known, tensors)
        weight, bias = weight * factor[:, None, None], bias * factor + shift
    return weight, bias
