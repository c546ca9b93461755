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
from igc_nas.nn.codegen.orders import PAD, Order
from igc_nas.nn.codegen.pack import Tensors, packed, packed_index, packed_scale
from igc_nas.nn.codegen.program import (
    ConvRow,
    ElementRow,
    FlattenOp,
    GatherRow,
    Image,
    JoinOp,
    PoolOp,
    Program,
    RowOp,
    ScaleRow,
    Segment,
    SelectRow,
    WindowOp,
)
from igc_nas.nn.codegen.shuffles import shuffled_text
from igc_nas.nn.codegen.tiles import Tiling, tiling

ALIGN = 16
"""Floats that buffers are aligned to: 64 bytes, a cache line."""
MOST_RUNS = 8
"""Runs of neighbouring channels that are copied by loops of their own; more of them by a table."""

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
#define MAX(a, b) {maximum}
#define MIN(a, b) {minimum}
#else
#define MAX(a, b) ((vec)(((ivec)(a) & ((a) > (b))) | ((ivec)(b) & ~((a) > (b)))))
#define MIN(a, b) ((vec)(((ivec)(a) & ((a) < (b))) | ((ivec)(b) & ~((a) < (b)))))
#endif
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){{__VA_ARGS__}})
#endif
/* Within one large function GCC keeps fewer sums in registers: some kernels then take half as long again. */
#define NOINLINE __attribute__((noinline))
/* Where one of two is NaN, MAX and MIN take the second: so NaN stays NaN, as in PyTorch; LARGER takes NaN. */
#define RELU(a) MAX((vec){{0}}, a)
#define RELU6(a) MIN(SIX, RELU(a))
#define IS_LARGER(a, b) ((ivec)((a) > (b)) | (ivec)((a) != (a)))
#define LARGER(a, b) ((vec)((IS_LARGER(a, b) & (ivec)(a)) | (~IS_LARGER(a, b) & (ivec)(b))))
#define HSIGMOID(a) (RELU6((a) + 3.0f) * (1.0f / 6.0f))
#define HSWISH(a) ((a) * HSIGMOID(a))
"""

SIGMOID = """\
/* 1 / (1 + exp(-x)) to a few units in the last place: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]. */
static float sigmoid(float x)
{
    if (x != x)
        return x;
    const float z = x > 87.0f ? -87.0f : x < -87.0f ? 87.0f : -x;
    const int n = (int)(z * 1.44269504f + (z < 0.0f ? -0.5f : 0.5f));
    const float r = (z - (float)n * 0.693359375f) + (float)n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const int bits = (n + 127) * 8388608;
    float power;
    memcpy(&power, &bits, sizeof power);
    return 1.0f / (1.0f + p * power);
}
"""
X86 = {
    4: ("__SSE__", "__builtin_ia32_{}ps(a, b)"),
    8: ("__AVX__", "__builtin_ia32_{}ps256(a, b)"),
    16: ("__AVX512F__", "__builtin_ia32_{}ps512_mask(a, b, (vec){{0}}, -1, 4)"),
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
                prologue(lanes),
                *([SIGMOID] if any("sigmoid(" in text for text in self.kernels) else []),
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
            yield from _frame_lines(self.program.images[step.target], places.images[step.target])
            match step:
                case PoolOp():
                    image, at = self.program.images[step.source], places.images[step.source]
                    yield from _pool_lines(image, at, places.images[step.target], self.program.lanes)
                case Segment():
                    yield from self._segment(step, places)
                case WindowOp():
                    yield from self._window(step, places)
                case JoinOp():
                    yield from self._join(step, places)
                case FlattenOp():
                    source, target = self.program.images[step.source], places.images[step.target]
                    floats = source.width * source.depth
                    yield f"for (int y = 0; y < {source.height}; ++y)"
                    row = _row(source, places.images[step.source])
                    yield f"    memcpy(arena + {target} + y * {floats}, {row}, {floats} * sizeof(float));"
        yield f"memcpy(logits, arena + {places.images[-1]}, {self.program.classes} * sizeof(float));"

    def _segment(self, step: Segment, places: _Arena) -> Iterator[str]:
        source, target = self.program.images[step.source], self.program.images[step.target]
        yield f"for (int y = 0; y < {target.height}; ++y) {{"
        first = step.ops[0]
        pad, stride = (first.conv.pad, first.conv.stride) if isinstance(first, ConvRow) else (0, 1)
        at = places.images[step.source] + source.start - pad * (source.stride + source.depth)
        read = f"arena + {at} + y * {stride * source.stride}"
        for number, op in enumerate(step.ops):
            write = f"arena + {places.rows[number % 2]}"
            if number == len(step.ops) - 1:
                write = _row(target, places.images[step.target])
            name, *more = self._row_op(op, target.width, source, places)
            yield f"    {name}({', '.join([read, write, *more])});"
            read = write
        yield "}"

    def _row_op(self, op: RowOp, width: int, source: Image, places: _Arena) -> tuple[str, ...]:
        """(the kernel of a row operation, its arguments behind the rows that it reads and writes)."""
        lanes = self.program.lanes
        match op:
            case GatherRow(depth, table, target):
                if depth % lanes or len(target) % lanes:
                    return (self._kernel(_copy_text(table, depth, len(target), width)),)
                return (self._kernel(shuffled_text(table, depth, width, lanes)),)
            case SelectRow():
                name = self._kernel(_select_text(len(op.source), len(op.target), width))
                return name, self._weights(packed_index(op, self.tensors))
            case ScaleRow():
                name = self._kernel(_scale_text(op, width, lanes))
                return (name, self._weights(packed_scale(op, self.tensors))) if op.norm or op.slope else (name,)
            case ElementRow(target, other, kind):
                image, at = self.program.images[other], places.images[other]
                row = _row(image, at) if kind == "add" else f"arena + {at + image.start}"
                return self._kernel(_element_text(op, width, lanes)), row
            case ConvRow():
                cut = tiling(op, width, lanes, self.registers)
                name = self._kernel(_conv_text(op, cut, width, source.stride))
                weights = self._weights(packed(op, cut, self.tensors))
                if op.add is None:
                    return name, weights
                return name, weights, _row(self.program.images[op.add], places.images[op.add])

    def _window(self, step: WindowOp, places: _Arena) -> Iterator[str]:
        source, target = self.program.images[step.source], self.program.images[step.target]
        name = self._kernel(_window_text(step, source, target.width, self.program.lanes))
        yield f"for (int y = 0; y < {target.height}; ++y)"
        start = places.images[step.source] + source.start
        yield f"    {name}(arena + {start}, {_row(target, places.images[step.target])}, y);"

    def _join(self, step: JoinOp, places: _Arena) -> Iterator[str]:
        target = self.program.images[step.target]
        yield f"for (int y = 0; y < {target.height}; ++y) {{"
        for piece in step.pieces:
            source = self.program.images[piece.source]
            name = self._kernel(_copy_text(piece.table, source.depth, target.depth, target.width, piece.adds))
            write = _row(target, places.images[step.target] + piece.at)
            yield f"    {name}({_row(source, places.images[piece.source])}, {write});"
        yield "}"

    def _weights(self, floats: NDArray[np.float32]) -> str:
        return f"weights + {self._place(floats)}"

    def _kernel(self, text: str) -> str:
        return self.kernels.setdefault(text, f"kernel{len(self.kernels) + 1}")

    def _place(self, floats: NDArray[np.float32]) -> int:
        at, rest = self.placed, -len(floats) % ALIGN
        self.weights.append(np.concatenate([floats, np.zeros(rest, np.float32)]))
        self.placed += len(floats) + rest
        return at


def prologue(lanes: int) -> str:
    """Types and macros for vectors of `lanes` floats."""
    processor, call = X86[lanes]
    names = {"processor": processor, "maximum": call.format("max"), "minimum": call.format("min")}
    return PROLOGUE.format(bytes=4 * lanes, sixes=", ".join(["6.0f"] * lanes), **names)


# What stands between the kernels.


def _input_lines(image: Image, at: int) -> Iterator[str]:
    """The image that is given, channels last, within its frame of zeros."""
    yield from _frame_lines(image, at)
    start = at + image.start
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
    start = source + image.start
    yield f"for (int c = 0; c < {image.depth}; c += {lanes}) {{"
    yield "    vec sum = {0};"
    yield f"    for (int y = 0; y < {image.height}; ++y)"
    yield f"        for (int x = 0; x < {image.width}; ++x)"
    yield f"            sum += LOAD(arena + {start} + y * {image.stride} + x * {image.depth} + c);"
    yield f"    STORE(arena + {target} + c, sum * {1 / (image.height * image.width)!r}f);"
    yield "}"


def _row(image: Image, at: int) -> str:
    """Row y of an image that begins at `at` in the arena, from the first pixel within the frame."""
    return f"arena + {at + image.start} + y * {image.stride}"


# Kernels.


def _copy_text(table: Order, depth: int, out_depth: int, width: int, adds: bool = False) -> str:
    """For each pixel the floats at `table`; runs of them where they lie so."""
    sign = "+=" if adds else "="
    runs = _runs(table)
    if len(runs) <= MOST_RUNS:
        lines = [
            f"        for (int c = 0; c < {count}; ++c)\n            out[x * {out_depth} + {at} + c] {sign} "
            + ("0.0f;" if start == PAD else f"in[x * {depth} + {start} + c];")
            for at, start, count in runs
        ]
        kept = ""
    else:
        value = ("from[c] < 0 ? 0.0f : " if PAD in table else "") + f"in[x * {depth} + from[c]]"
        kept = f"    static const int from[{len(table)}] = {{{', '.join(map(str, table))}}};\n"
        loop = f"        for (int c = 0; c < {len(table)}; ++c)\n"
        lines = [f"{loop}            out[x * {out_depth} + c] {sign} {value};"]
    unused = "" if any(start != PAD for _, start, _ in runs) else "    (void)in;\n"
    return f"""\
static NOINLINE void KERNEL(const float *restrict in, float *restrict out)
{{
{kept}{unused}    for (int x = 0; x < {width}; ++x) {{
{chr(10).join(lines)}
    }}
}}
"""


def _runs(table: Order) -> list[tuple[int, int, int]]:
    """(first position, what it reads, count) of neighbours that read neighbours; of padding (.., PAD, ..)."""
    found: list[tuple[int, int, int]] = []
    for at, reads in enumerate(table):
        if found:
            first, start, count = found[-1]
            if reads == (PAD if start == PAD else start + count):
                found[-1] = first, start, count + 1
                continue
        found.append((at, reads, 1))
    return found


def _select_text(depth: int, out_depth: int, width: int) -> str:
    return f"""\
static NOINLINE void KERNEL(const float *restrict in, float *restrict out, const float *restrict from)
{{
    for (int x = 0; x < {width}; ++x)
        for (int c = 0; c < {out_depth}; ++c)
            out[x * {out_depth} + c] = from[c] < 0.0f ? 0.0f : in[x * {depth} + (int)from[c]];
}}
"""


def _scale_text(op: ScaleRow, width: int, lanes: int) -> str:
    n = len(op.target)
    if op.act == "sigmoid":
        assert op.norm is None
        assert op.slope is None
        return f"""\
static NOINLINE void KERNEL(const float *restrict in, float *restrict out)
{{
    for (int c = 0; c < {width * n}; ++c)
        out[c] = sigmoid(in[c]);
}}
"""
    lines = ["vec v = LOAD(in + x + c);"]
    if op.norm:
        lines.append(f"v = v * LOAD(w + c) + LOAD(w + {n} + c);")
    if op.slope:
        lines.append("v = RELU(v) + LOAD(w + c) * (v - RELU(v));")
    return _vector_loops(lines, _activated(op.act, "v"), n, width, lanes, "w" if op.norm or op.slope else "")


def _element_text(op: ElementRow, width: int, lanes: int) -> str:
    other, sign = ("other + x + c", "+") if op.kind == "add" else ("other + c", "*")
    lines = [f"const vec v = LOAD(in + x + c) {sign} LOAD({other});"]
    return _vector_loops(lines, _activated(op.act, "v"), len(op.target), width, lanes, "other")


def _activated(act: str | None, value: str) -> str:
    return f"{act.upper()}({value})" if act else value


def _vector_loops(lines: list[str], result: str, depth: int, width: int, lanes: int, argument: str) -> str:
    """A kernel that computes `result` for each vector of a row; x counts floats of pixels, c those within one."""
    more = f", const float *restrict {argument}" if argument else ""
    body = "\n".join(f"            {line}" for line in [*lines, f"STORE(out + x + c, {result});"])
    return f"""\
static NOINLINE void KERNEL(const float *restrict in, float *restrict out{more})
{{
    for (int x = 0; x < {width * depth}; x += {depth})
        for (int c = 0; c < {depth}; c += {lanes}) {{
{body}
        }}
}}
"""


def _window_text(step: WindowOp, image: Image, width: int, lanes: int) -> str:
    """The maximum takes only pixels of the image, the mean divides by all of the window's."""
    k, s, p = step.kernel, step.stride, step.padding
    value = "LOAD(in + v * ROW + u * DEPTH + c)".replace("ROW", str(image.stride)).replace("DEPTH", str(image.depth))
    join = f"found = LARGER({value}, found);" if step.kind == "max" else f"found += {value};"
    first = value.replace("v *", "top *").replace("u *", "left *") if step.kind == "max" else "{0}"
    result = "found" if step.kind == "max" else f"found * {1 / (k * k)!r}f"
    return f"""\
static NOINLINE void KERNEL(const float *restrict in, float *restrict out, int y)
{{
    const int above = y * {s} - {p}, top = above < 0 ? 0 : above;
    const int bottom = above + {k} < {image.height} ? above + {k} : {image.height};
    for (int x = 0; x < {width}; ++x) {{
        const int before = x * {s} - {p}, left = before < 0 ? 0 : before;
        const int right = before + {k} < {image.width} ? before + {k} : {image.width};
        for (int c = 0; c < {image.depth}; c += {lanes}) {{
            vec found = {first};
            for (int v = top; v < bottom; ++v)
                for (int u = left; u < right; ++u)
                    {join}
            STORE(out + x * {image.depth} + c, {result});
        }}
    }}
}}
"""


def _conv_text(op: ConvRow, cut: Tiling, width: int, row_stride: int) -> str:
    conv = op.conv
    per_tile = conv.kernel**2 * cut.inputs * cut.outs * cut.lanes
    count = len(cut.tiles)
    add = ", const float *restrict add" if op.add is not None else ""
    lines = [
        f"/* {conv.kernel}x{conv.kernel} convolution, tiles: {cut.outs * cut.lanes} channels x {cut.pixels} pixels */",
        f"static NOINLINE void KERNEL(const float *restrict in, float *restrict out, const float *restrict w{add})",
        "{",
        *_tables(cut),
        f"    for (int t = 0; t < {count}; ++t) {{",
        f"        const float *wt = w + t * {per_tile}, *bias = w + {count * per_tile} + t * {cut.outs * cut.lanes};",
        f"        const float *it = in + {_offset('source', cut)};",
        f"        float *ot = out + {_offset('target', cut)};",
    ]
    if op.add is not None:
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
            if op.add is not None:
                yield f"a{o}_{p} += LOAD(at + {place});"
            yield f"STORE(ot + {place}, {_activated(op.act, f'a{o}_{p}')});"


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
        for image in step.reads:
            dies[image] = at
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
