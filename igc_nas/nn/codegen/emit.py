"""The C text of a program: kernels of one output row each, shared by all layers of one shape, and the calls in order.

GCC's and Clang's vector extensions are all that is beyond C11, so one text compiles for AVX2, AVX-512, NEON, RISC-V V
and scalar code. Every size is a constant. A kernel keeps `outs` vectors x `pixels` pixels of sums in registers, in
variables that have names, because compilers keep arrays of that size in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from igc_nas.errors import ConfigError
from igc_nas.nn.codegen.orders import PAD, positions
from igc_nas.nn.codegen.pack import Tensors, packed
from igc_nas.nn.codegen.program import ConvRow, Image, PermuteRow, PoolOp, Program, Segment
from igc_nas.nn.codegen.tiles import Tiling, tiling

ALIGN = 16
"""Floats that buffers are aligned to: 64 bytes, a cache line."""

PROLOGUE = """\
#include <stddef.h>
#include <string.h>

typedef float vec __attribute__((vector_size({bytes}), may_alias));
typedef int ivec __attribute__((vector_size({bytes}), may_alias));

#define LOAD(p) (*(const vec *)(p))
#define STORE(p, v) (*(vec *)(p) = (v))
/* Macros: a function with vectors as arguments has another ABI where the processor has no such registers. */
#define SIX ((vec){{{sixes}}})
#if defined(__GNUC__) && !defined(__clang__) && defined({processor}) /* GCC finds no maximum in comparisons */
#define RELU(a) {maximum}
#define RELU6(a) {minimum}
#else
#define RELU(a) ((vec)((ivec)(a) & ((a) > (vec){{0}})))
#define RELU6(a) ((vec)(((ivec)RELU(a) & ((a) < SIX)) | ((ivec)SIX & ((a) >= SIX))))
#endif
"""
X86 = {
    4: ("__SSE__", "__builtin_ia32_{}ps({}, {})"),
    8: ("__AVX__", "__builtin_ia32_{}ps256({}, {})"),
    16: ("__AVX512F__", "__builtin_ia32_{}ps512_mask({}, {}, (vec){{0}}, -1, 4)"),
}
"""By lanes: the macro of processors with such vectors, the minimum and maximum of two in GCC."""


@dataclass(frozen=True)
class Source:
    """The function `forward(image, logits, weights, arena)` in C with all that it calls; sizes in floats.

    `image` is (channels, height, width); `weights` and `arena` begin at a multiple of 64 bytes.
    """

    text: str
    weights: NDArray[np.float32]
    arena: int
    image: tuple[int, int, int]
    classes: int


def source(program: Program, tensors: Tensors, registers: int = 16) -> Source:
    """The C of a program with the tensors of a network's state_dict, for a machine with `registers` vector registers.

    Raises `ConfigError` where the images of a network need more than 2^31 floats, which C's int cannot index.
    """
    return _Emitter(program, registers, tensors).source()


@dataclass
class _Emitter:
    program: Program
    registers: int
    tensors: Tensors
    kernels: dict[str, str] = field(default_factory=dict)
    """The name of each kernel, by its text without the name: layers of one shape share one."""
    weights: list[NDArray[np.float32]] = field(default_factory=list)
    placed: int = 0

    def source(self) -> Source:
        places = _Arena.of(self.program)
        image, lanes = self.program.images[0], self.program.lanes
        calls = list(self._calls(places))
        text = "\n".join(
            [
                _prologue(lanes),
                *(text.replace("KERNEL", name) for text, name in self.kernels.items()),
                "static void forward(const float *image, float *logits, const float *weights, float *arena)",
                "{",
                *("    " + line for line in calls),
                "}",
                "",
            ]
        )
        shape = (image.depth, image.height, image.width)
        return Source(text, np.concatenate(self.weights), places.floats, shape, self.program.classes)

    def _calls(self, places: _Arena) -> Iterator[str]:
        yield from _input_lines(self.program.images[0], places.images[0])
        for step in self.program.steps:
            if isinstance(step, PoolOp):
                image, at = self.program.images[step.source], places.images[step.source]
                yield from _pool_lines(image, at, places.images[step.target], self.program.lanes)
            else:
                yield from self._segment(step, places)
        yield f"memcpy(logits, arena + {places.images[-1]}, {self.program.classes} * sizeof(float));"

    def _segment(self, step: Segment, places: _Arena) -> Iterator[str]:
        source, target = self.program.images[step.source], self.program.images[step.target]
        yield from _frame_lines(target, places.images[step.target])
        yield f"for (int y = 0; y < {target.height}; ++y) {{"
        first = step.ops[0]
        pad, stride = (first.conv.kernel // 2, first.conv.stride) if isinstance(first, ConvRow) else (0, 1)
        at = places.images[step.source] + (source.frame - pad) * (source.stride + source.depth)
        read = f"arena + {at} + y * {stride * source.stride}"
        for number, op in enumerate(step.ops):
            write = f"arena + {places.rows[number % 2]}"
            if number == len(step.ops) - 1:
                write = _row(target, places.images[step.target])
            if isinstance(op, PermuteRow):
                yield f"    {self._kernel(_permute_text(op, target.width))}({read}, {write});"
            else:
                cut = tiling(op, target.width, self.program.lanes, self.registers)
                name = self._kernel(_conv_text(op, cut, target.width, source.stride))
                arguments = [read, write, f"weights + {self._place(packed(op, cut, self.tensors))}"]
                if op.add:
                    assert step.add is not None
                    arguments.append(_row(self.program.images[step.add], places.images[step.add]))
                yield f"    {name}({', '.join(arguments)});"
            read = write
        yield "}"

    def _kernel(self, text: str) -> str:
        return self.kernels.setdefault(text, f"kernel{len(self.kernels) + 1}")

    def _place(self, floats: NDArray[np.float32]) -> int:
        at, rest = self.placed, -len(floats) % ALIGN
        self.weights.append(np.concatenate([floats, np.zeros(rest, np.float32)]))
        self.placed += len(floats) + rest
        return at


def _prologue(lanes: int) -> str:
    processor, call = X86[lanes]
    maximum = call.format("max", "a", "(vec){0}")
    minimum = call.format("min", "RELU(a)", "SIX")
    sixes = ", ".join(["6.0f"] * lanes)
    return PROLOGUE.format(bytes=4 * lanes, sixes=sixes, processor=processor, maximum=maximum, minimum=minimum)


# What stands between the kernels.


def _input_lines(image: Image, at: int) -> Iterator[str]:
    """The image that is given, channels last, within its frame of zeros."""
    yield from _frame_lines(image, at)
    start = at + image.frame * (image.stride + image.depth)
    yield f"for (int y = 0; y < {image.height}; ++y)"
    yield f"    for (int x = 0; x < {image.width}; ++x)"
    yield f"        for (int c = 0; c < {image.depth}; ++c)"
    yield (
        f"            arena[{start} + y * {image.stride} + x * {image.depth} + c] = "
        f"image[(c * {image.height} + y) * {image.width} + x];"
    )


def _frame_lines(image: Image, at: int) -> Iterator[str]:
    """Zeros around an image; between two rows the right edge of one and the left edge of the next are neighbours."""
    if not image.frame:
        return
    edge = image.frame * image.depth
    start = at + image.frame * image.stride + edge + image.width * image.depth
    yield f"memset(arena + {at}, 0, {image.frame * image.stride + edge} * sizeof(float));"
    if image.height > 1:
        yield f"for (int y = 0; y < {image.height - 1}; ++y)"
        yield f"    memset(arena + {start} + y * {image.stride}, 0, {2 * edge} * sizeof(float));"
    tail = start + (image.height - 1) * image.stride
    yield f"memset(arena + {tail}, 0, {edge + image.frame * image.stride} * sizeof(float));"


def _pool_lines(image: Image, source: int, target: int, lanes: int) -> Iterator[str]:
    start = source + image.frame * (image.stride + image.depth)
    yield f"for (int c = 0; c < {image.depth}; c += {lanes}) {{"
    yield "    vec sum = {0};"
    yield f"    for (int y = 0; y < {image.height}; ++y)"
    yield f"        for (int x = 0; x < {image.width}; ++x)"
    yield f"            sum += LOAD(arena + {start} + y * {image.stride} + x * {image.depth} + c);"
    yield f"    STORE(arena + {target} + c, sum * {1 / (image.height * image.width)!r}f);"
    yield "}"


def _row(image: Image, at: int) -> str:
    """Row y of an image that begins at `at` in the arena, from the first pixel within the frame."""
    return f"arena + {at + image.frame * (image.stride + image.depth)} + y * {image.stride}"


# Kernels.


def _permute_text(op: PermuteRow, width: int) -> str:
    where = positions(op.source)
    table = ", ".join(str(PAD if c == PAD else where[c]) for c in op.target)
    n, m = len(op.target), len(op.source)
    return f"""\
static void KERNEL(const float *restrict in, float *restrict out)
{{
    static const int from[{n}] = {{{table}}};
    for (int x = 0; x < {width}; ++x)
        for (int c = 0; c < {n}; ++c)
            out[x * {n} + c] = from[c] < 0 ? 0.0f : in[x * {m} + from[c]];
}}
"""


def _conv_text(op: ConvRow, cut: Tiling, width: int, row_stride: int) -> str:
    conv = op.conv
    per_tile = conv.kernel**2 * cut.inputs * cut.outs * cut.lanes
    count = len(cut.tiles)
    add = ", const float *restrict add" if op.add else ""
    lines = [
        f"static void KERNEL(const float *restrict in, float *restrict out, const float *restrict w{add})",
        "{",
        *_tables(cut),
        f"    for (int t = 0; t < {count}; ++t) {{",
        f"        const float *wt = w + t * {per_tile}, *bias = w + {count * per_tile} + t * {cut.outs * cut.lanes};",
        f"        const float *it = in + {_offset('source', cut)};",
        f"        float *ot = out + {_offset('target', cut)};",
    ]
    if op.add:
        lines.append(f"        const float *at = add + {_offset('target', cut)};")
    whole, rest = divmod(width, cut.pixels)
    lines.append(f"        for (int x = 0; x < {whole * cut.pixels}; x += {cut.pixels}) {{")
    lines += ["            " + line for line in _tile_lines(op, cut, cut.pixels, row_stride)]
    lines.append("        }")
    if rest:
        lines += ["        {", f"            const int x = {whole * cut.pixels};"]
        lines += ["            " + line for line in _tile_lines(op, cut, rest, row_stride)]
        lines.append("        }")
    return "\n".join([*lines, "    }", "}", ""])


def _tables(cut: Tiling) -> Iterator[str]:
    """Where tiles and inputs lie that lie in no regular steps."""
    for what in ("source", "target"):
        if _step(what, cut) is None:
            values = ", ".join(str(getattr(tile, what)) for tile in cut.tiles)
            yield f"    static const int {what}[{len(cut.tiles)}] = {{{values}}};"
    if cut.offsets is not None:
        rows = ", ".join("{" + ", ".join(map(str, row)) + "}" for row in cut.offsets)
        yield f"    static const int from[{len(cut.tiles)}][{len(cut.offsets[0])}] = {{{rows}}};"


def _step(what: str, cut: Tiling) -> int | None:
    values = [getattr(tile, what) for tile in cut.tiles]
    step = values[1] if len(values) > 1 else 0
    return step if all(value == n * step for n, value in enumerate(values)) else None


def _offset(what: str, cut: Tiling) -> str:
    step = _step(what, cut)
    return f"{what}[t]" if step is None else f"t * {step}"


def _tile_lines(op: ConvRow, cut: Tiling, pixels: int, row_stride: int) -> Iterator[str]:
    """One register tile: the biases, the products over taps and inputs, the epilogue."""
    outs, width = range(cut.outs), range(pixels)
    for o in outs:
        yield f"vec {', '.join(f'a{o}_{p} = LOAD(bias + {o * cut.lanes})' for p in width)};"
    yield from _product_lines(op, cut, pixels, row_stride)
    for o in outs:
        for p in width:
            place = f"(x + {p}) * {len(op.target)} + {o * cut.out_step}"
            if op.add:
                yield f"a{o}_{p} += LOAD(at + {place});"
            value = f"{op.act.upper()}(a{o}_{p})" if op.act else f"a{o}_{p}"
            yield f"STORE(ot + {place}, {value});"


def _product_lines(op: ConvRow, cut: Tiling, pixels: int, row_stride: int) -> Iterator[str]:
    if cut.window:
        yield from _window_lines(op, cut, pixels, row_stride)
        return
    pixel = len(op.source) * op.conv.stride
    loops = [("ky", op.conv.kernel, f"ky * {row_stride}"), ("kx", op.conv.kernel, f"kx * {len(op.source)}")]
    if cut.offsets is None:
        loops += [(f"i{n}", count, f"i{n} * {step}") for n, (count, step) in enumerate(cut.terms)]
    else:
        loops.append(("i", len(cut.offsets[0]), "from[t][i]"))
    loops = [loop for loop in loops if loop[1] > 1]
    yield "const float *wp = wt;"
    indent = ""
    for name, count, _ in loops:
        yield f"{indent}for (int {name} = 0; {name} < {count}; ++{name})"
        indent += "    "
    yield f"{indent}{{"
    yield f"{indent}    const float *ip = {' + '.join([f'it + x * {pixel}', *(offset for _, _, offset in loops)])};"
    for o in range(cut.outs):
        yield f"{indent}    const vec w{o} = LOAD(wp + {o * cut.lanes});"
    yield f"{indent}    wp += {cut.outs * cut.lanes};"
    for p in range(pixels):
        value = f"float v = ip[{p * pixel}]" if cut.broadcast else f"vec v = LOAD(ip + {p * pixel})"
        sums = " ".join(f"a{o}_{p} += w{o} * v;" for o in range(cut.outs))
        yield f"{indent}    {{ const {value}; {sums} }}"
    yield f"{indent}}}"


def _window_lines(op: ConvRow, cut: Tiling, pixels: int, row_stride: int) -> Iterator[str]:
    """The products of a tile where each input of a row is loaded once, for all taps that it is under."""
    kernel, stride, depth = op.conv.kernel, op.conv.stride, len(op.source)
    ((inputs, step),) = cut.terms
    yield f"for (int ky = 0; ky < {kernel}; ++ky)"
    if inputs > 1:
        yield f"    for (int i = 0; i < {inputs}; ++i)"
    term = cut.outs * cut.lanes
    yield "    {"
    yield f"        const float *ip = it + x * {depth * stride} + ky * {row_stride}" + (
        f" + i * {step};" if inputs > 1 else ";"
    )
    yield f"        const float *wp = wt + ky * {kernel * inputs * term}" + (f" + i * {term};" if inputs > 1 else ";")
    for kx in range(kernel):
        for o in range(cut.outs):
            yield f"        const vec w{kx}_{o} = LOAD(wp + {kx * inputs * term + o * cut.lanes});"
    for place in range((pixels - 1) * stride + kernel):
        under = [(kx, (place - kx) // stride) for kx in range(kernel) if (place - kx) % stride == 0]
        sums = " ".join(f"a{o}_{p} += w{kx}_{o} * v;" for kx, p in under if 0 <= p < pixels for o in range(cut.outs))
        yield f"        {{ const vec v = LOAD(ip + {place * depth}); {sums} }}"
    yield "    }"


# Memory.


@dataclass(frozen=True)
class _Arena:
    """Where each image and the two row buffers lie, in floats: images that are never needed together share a place."""

    images: tuple[int, ...]
    rows: tuple[int, int]
    floats: int

    @classmethod
    def of(cls, program: Program) -> _Arena:
        lives = _lives(program)
        placed: list[tuple[int, int]] = []
        for number, image in enumerate(program.images):
            born, dies = lives[number]
            rivals = [place for place, (b, d) in zip(placed, lives, strict=False) if not (d < born or dies < b)]
            placed.append(_first_gap(image.floats + -image.floats % ALIGN, rivals))
        end = max(high for _, high in placed)
        row = max((_row_floats(step, program) for step in program.steps if isinstance(step, Segment)), default=0)
        if end + 2 * row >= 2**31:
            raise ConfigError(f"the images of this network need {end:,} floats; generated C indexes at most 2^31")
        return cls(tuple(low for low, _ in placed), (end, end + row), end + 2 * row)


def _lives(program: Program) -> list[tuple[int, int]]:
    """For each image the steps that write it and that read it last."""
    born, dies = [-1] * len(program.images), [-1] * len(program.images)
    for at, step in enumerate(program.steps):
        born[step.target] = dies[step.target] = at
        dies[step.source] = at
        if isinstance(step, Segment) and step.add is not None:
            dies[step.add] = at
    return list(zip(born, dies, strict=True))


def _first_gap(size: int, taken: Iterable[tuple[int, int]]) -> tuple[int, int]:
    at = 0
    for low, high in sorted(taken):
        if at + size <= low:
            break
        at = max(at, high)
    return at, at + size


def _row_floats(step: Segment, program: Program) -> int:
    rows: Sequence[int] = [len(op.target) * program.images[step.target].width for op in step.ops[:-1]]
    longest = max(rows, default=0)
    return longest + -longest % ALIGN
