"""The network in torch: built from the plan, on a device, with weights; timing; other tools' FLOP counters.

Imported by `evaluation` and everything above it; imports `study` and below. `lowering` makes it fast.
"""
