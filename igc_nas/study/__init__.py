"""A study: its spec (the question), its trials (the evidence), objectives, Pareto front, and reading all of it.

Imported by samplers, evaluation, engine, analysis, export and cli; imports `space`, `arch`, `data`, `io`. Torch-free.
"""
