"""Benchmarks: ratios against what a user would run instead, variants in turns in one process, fixed architectures.

Imported by `cli` only; may import everything below it.
"""
