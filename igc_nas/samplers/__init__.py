"""The search strategy: what is tried next, the surrogate and acquisition behind it, and when a training is pruned.

Imported by `engine`, `analysis` and `bench`; imports `study` and `space`. No torch.
"""
