"""An architecture on its way out: a config, a PyTorch file that needs nothing of ours, ONNX, pt2, a folder with a card.

Imported by `bench` and `cli`; imports `evaluation`, `analysis`, `nn` and `study`. What it writes is read back first.
"""
