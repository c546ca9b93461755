"""Lowering: the same network in the form that a device runs fastest, in training and in deployment.

Chains of linear layers are multiplied out or kept apart by measuring. Imported by `evaluation` and everything above it.
"""
