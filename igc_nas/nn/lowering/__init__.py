"""Lowering: the same function in the form that the device runs fastest, in training and in deployment."""
