"""Run by `test_triton_norm.py` in a process of its own: Triton compiles every kernel for GPUs that are not there."""

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from igc_nas.nn.lowering.kernels import norm_triton

KERNELS = (
    "part_statistics", "batch_statistics", "normalise", "part_gradients", "batch_gradients", "input_gradient",
)  # fmt: skip
IMAGES = ("x", "y", "grad", "dx")
TYPES = dict.fromkeys(("pixels", "channels", "per_part", "parts"), "i32")
TYPES |= {"momentum": "fp32", "eps": "fp32", "source": "*i32", "target": "*i32"}
"""Types of arguments by their names; of others a pointer to float32, of `IMAGES` to the dtype."""
LEAST_SHARED = 48 << 10
"""Bytes of shared memory that a block of threads has on every GPU."""


def compiled(name: str, capability: int, dtype: str, act: str | None) -> Any:
    """A kernel in machine code."""
    kernel = getattr(norm_triton, name)
    tile = norm_triton.ADDED_CHANNELS if name.startswith("batch") else 64
    constants = {"ACT": act, "PIXELS": 64, "CHANNELS": tile, "PARTS": norm_triton.MOST_PARTS}
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    signature = {
        key: "constexpr" if key in constants else TYPES.get(key, f"*{dtype if key in IMAGES else 'fp32'}")
        for key in kernel.arg_names
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32))


if __name__ == "__main__":
    for capability, dtype, act in (
        (75, "fp16", "relu6"),
        (80, "bf16", "hswish"),
        (90, "bf16", "relu"),
        (90, "fp32", None),
    ):
        for name in KERNELS:
            made = compiled(name, capability, dtype, act)
            assert made.asm["cubin"]
            assert made.metadata.shared <= LEAST_SHARED
            assert "st.local" not in made.asm["ptx"], f"{name} has too many registers for sm_{capability}"
