"""An architecture: its configuration, its layers in order (the plan), its exact costs, the papers' networks.

Imported by every package above; imports `io` and `errors` only. Torch-free.
"""
