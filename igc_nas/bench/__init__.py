"""Benchmarks: ratios of two ways to do one thing, taken in turns in one process, over fixed architectures."""
