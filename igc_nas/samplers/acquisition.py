"""Expected hypervolume improvement in closed form, where one coordinate is uncertain and the others are known.

The front cuts the space of the known coordinates into boxes; in each box the best uncertain value that the front
reaches is one number E. A point adds to a box what it lies below E there, so with a Gaussian belief about its uncertain
coordinate the expectation is a sum over boxes of (part of the box above the point's known coordinates) x (expected
improvement on E). Everything is minimised; the reference point is (1, ..., 1). (Emmerich 2005; Jones et al. 1998.)
"""

from __future__ import annotations

import numpy as np

from igc_nas.samplers.features import Floats

SURE = 1e-6
"""Standard deviations below this are taken for it."""


def expected_improvement(mean: Floats, deviation: Floats, level: Floats) -> Floats:
    """E[max(0, level - X)] for X ~ N(mean, deviation), elementwise."""
    from scipy.special import ndtr

    deviation = np.maximum(deviation, SURE)
    z = (level - mean) / deviation
    found: Floats = deviation * (z * ndtr(z) + np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi))
    return np.maximum(found, 0.0)


def expected_hypervolume_improvement(mean: Floats, deviation: Floats, known: Floats, front: Floats) -> Floats:
    """(n,) expected growth of the hypervolume below (1, ..., 1) by each of n points.

    `mean`, `deviation` (n,) are of the uncertain coordinate, `known` (n, 1 or 2) the others. `front` (m, 2 or 3) holds
    the points so far, the uncertain coordinate first; points outside the unit box are cut to it or add nothing.
    """
    inside = front[(front < 1).all(axis=1)] if len(front) else front.reshape(0, known.shape[1] + 1)
    if known.shape[1] == 1:
        known = np.concatenate([known, np.zeros((len(known), 1))], axis=1)
        inside = np.concatenate([inside, np.zeros((len(inside), 1))], axis=1)
    edges = [np.concatenate([[-np.inf], np.unique(inside[:, axis]), [1.0]]) for axis in (1, 2)]
    levels, at = np.unique(_best_in_boxes(inside, edges[0], edges[1]), return_inverse=True)
    widths, heights = (_parts(known[:, axis], edges[axis]) for axis in (0, 1))
    gains = expected_improvement(mean[:, None], deviation[:, None], levels[None, :])
    at = at.reshape(len(edges[0]) - 1, len(edges[1]) - 1)
    total = np.zeros(len(mean))
    for row in range(at.shape[0]):  # a slab of boxes at a time: no (n, boxes, boxes) array
        total += widths[:, row] * (heights * gains[:, at[row]]).sum(axis=1)
    return total


def _best_in_boxes(front: Floats, xs: Floats, ys: Floats) -> Floats:
    """(boxes along x, boxes along y) the least uncertain value of front members at or below each box's lower corner."""
    best = np.ones((len(xs) - 1, len(ys) - 1))
    for value, x, y in front:
        best[np.searchsorted(xs, x) :, np.searchsorted(ys, y) :] = np.minimum(
            best[np.searchsorted(xs, x) :, np.searchsorted(ys, y) :], value
        )
    return best


def _parts(points: Floats, edges: Floats) -> Floats:
    """(n, boxes) how much of each box along an axis lies above each point."""
    lower, upper = edges[:-1], edges[1:]
    found: Floats = np.maximum(0.0, upper[None, :] - np.maximum(points[:, None], np.maximum(lower, 0.0)[None, :]))
    return found
