"""Generated C: a plan as one C file in which an interleave moves nothing, for a compiler and a device of any kind.

Torch-free. `orders` (where a channel lies), `program` (the plan as row operations), `emit` (C), `pack` (weights),
`build` (compile and load). Imported by `evaluation` and everything above it.
"""
