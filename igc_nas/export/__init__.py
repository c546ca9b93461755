"""An architecture on its way out: as a config, as a PyTorch file that needs nothing of ours, as ONNX, as a folder."""
