"""Datasets: CIFAR's files on disk, the synthetic set `shapes`, download and verification.

Imported by `study` and everything above it; imports `io` and `errors` only. Torch-free.
"""
