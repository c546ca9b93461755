"""The search as it runs: coordinator, store and database, workers in processes (`ray`: on a cluster).

Imported by `bench` and `cli`; imports `evaluation`, `samplers` and `study`.
"""
