"""A training step on a CPU in C, in a fixed physical order of channels: an interleave moves nothing."""
