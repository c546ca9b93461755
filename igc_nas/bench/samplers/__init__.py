"""Benchmarks of samplers: replays on a tabular benchmark and on synthetic landscapes, and what they show.

Imported by `cli`; imports `samplers`, `study` and `space`.
"""
