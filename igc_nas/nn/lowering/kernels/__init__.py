"""Kernels of training: in C for a CPU (`igc_nas.nn.lowering.native`), in Triton for a GPU (`triton_norm`)."""
