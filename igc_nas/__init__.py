"""igc-nas: neural architecture search over interleaved group convolution networks (IGCV1, IGCV2, IGCV3)."""

from __future__ import annotations

__version__ = "0.1.0"
