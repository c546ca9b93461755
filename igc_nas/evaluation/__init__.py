"""Performance estimation: the proxy training, latency on every runtime, energy, retraining from scratch.

Imported by `engine`, `export`, `bench` and `cli`; imports `nn` and `study`.
"""
