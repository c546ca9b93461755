"""Search spaces: what may be chosen, how many architectures there are, and draws within a budget.

Imported by `study` and everything above it; imports `arch` and `io`. Torch-free.
"""
