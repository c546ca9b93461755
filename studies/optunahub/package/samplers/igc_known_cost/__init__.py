"""The known-cost sampler of igc-nas, `pip install igc-nas`."""

from igc_nas import KnownCostSampler, OptunaSpace, load_space

__all__ = ["KnownCostSampler", "OptunaSpace", "load_space"]
