"""Generated C: a plan as one C file in which an interleave moves no data, for any compiler with vector extensions.

Order of work: `orders` (where a channel lies), `program` (row operations), `tiles`, `pack` (weights), `emit` (C),
`build` (compile, load), `target` (which vectors are fastest). Imported by `evaluation` and everything above it.
"""
