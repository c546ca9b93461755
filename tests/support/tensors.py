"""How far two tensors are apart."""

from __future__ import annotations

import torch
from numpy.typing import NDArray
from torch import Tensor


def relative_error(found: Tensor | NDArray, wanted: Tensor | NDArray) -> float:
    """Norm of the difference, relative to that of what is wanted: an entry near 0 has the rounding of the others."""
    one, other = torch.as_tensor(found), torch.as_tensor(wanted)
    assert (one.shape, one.dtype) == (other.shape, other.dtype)
    one, other = one.detach().double(), other.detach().double()
    return float((one - other).norm() / other.norm().clamp(min=torch.finfo(torch.float32).tiny))
