"""Lowering: running the same function in the form that is fastest on the device, in training and in deployment.

`chain` and `parts` find what can be multiplied out, `compose` multiplies it out, `convolution` and `native` are the
kernels of training. `training` and `deployment` run a network in given forms; `chain_tuner`, `network_tuner` and
`variants` find the fastest forms by timing, which `timing_cache` and `pinned_forms` keep.
"""
