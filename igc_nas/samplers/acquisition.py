"""Expected hypervolume improvement (EHVI) in closed form, where one objective is uncertain and the others are known.

The front divides the space of the known objectives into boxes. Inside a box the lowest uncertain value on the front is
one number E. A new point improves a box by how far its uncertain value lies below E there; so with a normal
distribution of that value, EHVI is the sum over the boxes of (part of the box above the point's known objectives) x
(expected improvement on E). All objectives are minimised; the reference point is (1, ..., 1).

EHVI: Emmerich 2005. Expected improvement: Jones et al. 1998.
"""

from __future__ import annotations

import numpy as np

from igc_nas.samplers.features import Floats

MIN_STD = 1e-6
"""Lower standard deviations are raised to this."""


def expected_improvement(mean: Floats, deviation: Floats, level: Floats) -> Floats:
    """E[max(0, level - X)] for X ~ N(mean, deviation), elementwise."""
    from scipy.special import ndtr

    deviation = np.maximum(deviation, MIN_STD)
    z = (level - mean) / deviation
    found: Floats = deviation * (z * ndtr(z) + np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi))
    return np.maximum(found, 0.0)


def expected_hypervolume_improvement(mean: Floats, deviation: Floats, known: Floats, front: Floats) -> Floats:
    """(n,) the expected increase of the hypervolume below (1, ..., 1) by each of n points.

    `mean`, `deviation` (n,) describe the uncertain objective, `known` (n, 0 to 2) are the others; without any, this is
    the expected improvement. `front` (m, 1 to 3) holds the points so far, the uncertain objective first. Known values
    below 0 count as 0; a point with a value of 1 or more adds nothing.
    """
    inside = front[(front < 1).all(axis=1)] if len(front) else front.reshape(0, known.shape[1] + 1)
    missing = 2 - known.shape[1]
    if missing:
        known = np.concatenate([known, np.zeros((len(known), missing))], axis=1)
        inside = np.concatenate([inside, np.zeros((len(inside), missing))], axis=1)
    edges = [np.concatenate([[-np.inf], np.unique(inside[:, axis]), [1.0]]) for axis in (1, 2)]
    levels, at = np.unique(_best_in_boxes(inside, edges[0], edges[1]), return_inverse=True)
    widths, heights = (_lengths_above(known[:, axis], edges[axis]) for axis in (0, 1))
    gains = expected_improvement(mean[:, None], deviation[:, None], levels[None, :])
    at = at.reshape(len(edges[0]) - 1, len(edges[1]) - 1)
    total = np.zeros(len(mean))
    for row in range(at.shape[0]):  # one row of boxes at a time: an (n, boxes, boxes) array would be too large
        total += widths[:, row] * (heights * gains[:, at[row]]).sum(axis=1)
    return total


def _best_in_boxes(front: Floats, xs: Floats, ys: Floats) -> Floats:
    """(boxes along x, boxes along y) E: the lowest uncertain value of front members below each box's lower corner."""
    best = np.ones((len(xs) - 1, len(ys) - 1))
    for value, x, y in front:
        best[np.searchsorted(xs, x) :, np.searchsorted(ys, y) :] = np.minimum(
            best[np.searchsorted(xs, x) :, np.searchsorted(ys, y) :], value
        )
    return best


def _lengths_above(points: Floats, edges: Floats) -> Floats:
    """(n, boxes) the length of each box along an axis that lies above each point."""
    lower, upper = edges[:-1], edges[1:]
    found: Floats = np.maximum(0.0, upper[None, :] - np.maximum(points[:, None], np.maximum(lower, 0.0)[None, :]))
    return found
