"""The register tiles of the kernels in C: products whose sums stay in registers, one function for each shape.

A convolution's tile holds `vectors` of outputs x `pixels`; for each term (input and tap) it loads the weights once and
each pixel's input once. A weight gradient's tile holds `terms` x `vectors` sums and walks over the pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

KINDS = ("vector", "broadcast", "pair_vector", "pair_broadcast")
"""What is multiplied: vectors of weights by vectors or by one broadcast float; the same for pairs of bfloat16."""
MOST_VECTORS, MOST_PIXELS, MOST_TERMS = 4, 8, 9
REGISTERS = 32
"""Of AVX-512 and NEON. With the 16 of AVX2 large tiles spill: correct, and slower."""


def fits(vectors: int, others: int) -> bool:
    """Whether the sums of a tile, one factor and its vectors fit into the registers."""
    return vectors * others + vectors + 1 <= REGISTERS


def tiles_text() -> str:
    """All tiles as C, and the tables by which `step.c` finds them."""
    parts: list[str] = []
    for kind in KINDS:
        parts += ["#if PAIRS"] * kind.startswith("pair")
        for vectors in range(1, MOST_VECTORS + 1):
            parts += [_conv_tile(vectors, n, kind) for n in range(1, most_pixels(vectors) + 1)]
            parts += [_weight_tile(vectors, n, kind) for n in range(1, most_terms(vectors) + 1)]
        parts += ["#endif"] * kind.startswith("pair")
    most = ", ".join(str(most_terms(v)) for v in range(1, MOST_VECTORS + 1))
    parts.append(f"static const int most_terms[] = {{0, {most}}};\n")
    for pairs in (False, True):
        parts += ["#if PAIRS" if pairs else "#if !PAIRS"]
        parts.append(_table("conv_tile", "conv_tiles", "conv", MOST_PIXELS, most_pixels, pairs))
        parts.append(_table("weight_tile", "weight_tiles", "weight", MOST_TERMS, most_terms, pairs))
        parts.append("#endif\n")
    return "\n".join(parts)


def most_pixels(vectors: int) -> int:
    """Pixels of the largest tile with so many vectors of outputs."""
    return max(n for n in range(1, MOST_PIXELS + 1) if fits(vectors, n))


def most_terms(vectors: int) -> int:
    """Terms of the largest tile of a weight gradient with so many vectors of outputs."""
    return max(n for n in range(1, MOST_TERMS + 1) if fits(vectors, n))


def _conv_tile(vectors: int, pixels: int, kind: str) -> str:
    outs, width = range(vectors), range(pixels)
    sums = ", ".join(f"a{o}_{p} = {{0}}" for o in outs for p in width)
    lines = [
        f"static void conv_{vectors}_{pixels}_{kind}(const float *in, long in_pixel, const int *offsets,",
        "    int terms, const float *weights, float *out, long out_pixel, const int *targets)",
        "{",
        f"    vec {sums};",
        "    for (int t = 0; t < terms; t++) {",
        "        const float *at = in + offsets[t];",
        *(f"        const vec w{o} = LOAD(weights + {o} * LANES);" for o in outs),
        f"        weights += {vectors} * LANES;",
    ]
    for p in width:
        sums = " ".join(_multiplied(f"a{o}_{p}", f"w{o}", kind) for o in outs)
        lines.append(f"        {{ const {_loaded(f'at + {p} * in_pixel', kind)}; {sums} }}")
    lines.append("    }")
    lines += [f"    STORE(out + {p} * out_pixel + targets[{o}], a{o}_{p});" for o in outs for p in width]
    return "\n".join([*lines, "}", ""])


def _weight_tile(vectors: int, terms: int, kind: str) -> str:
    outs, inputs = range(vectors), range(terms)
    sums = ", ".join(f"a{i}_{o} = {{0}}" for i in inputs for o in outs)
    lines = [
        f"static void weight_{vectors}_{terms}_{kind}(const float *in, const int *offsets, const float *out,",
        "    const int *targets, const pixels_at *at, float *gradient)",
        "{",
        f"    vec {sums};",
        f"    const long {', '.join(f'f{i} = offsets[{i}]' for i in inputs)};",
        f"    const long {', '.join(f't{o} = targets[{o}]' for o in outs)};",
        "    for (long n = 0; n < at->images; n++)",
        "        for (long y = 0; y < at->height; y++) {",
        "            const float *x = in + n * at->in_image + y * at->in_row;",
        "            const float *g = out + n * at->out_image + y * at->out_row;",
        "            for (long k = at->width; k; k--, x += at->in_pixel, g += at->out_pixel) {",
        *(f"                const vec g{o} = LOAD(g + t{o});" for o in outs),
    ]
    for i in inputs:
        sums = " ".join(_multiplied(f"a{i}_{o}", f"g{o}", kind) for o in outs)
        lines.append(f"                {{ const {_loaded(f'x + f{i}', kind)}; {sums} }}")
    lines += ["            }", "        }"]
    for i in inputs:
        for o in outs:
            place = f"gradient + {i * vectors + o} * LANES"
            lines.append(f"    STORE({place}, LOAD({place}) + a{i}_{o});")
    return "\n".join([*lines, "}", ""])


def _loaded(place: str, kind: str) -> str:
    """The declaration of v, the input at a place."""
    match kind:
        case "broadcast":
            return f"float v = *({place})"
        case "pair_broadcast":
            return f"vec v = spread(pair_at({place}))"
        case _:
            return f"vec v = LOAD({place})"


def _multiplied(into: str, factor: str, kind: str) -> str:
    """v times a factor, added to a sum."""
    return f"{into} = DOT({into}, {factor}, v);" if kind.startswith("pair") else f"{into} += {factor} * v;"


def _table(function: str, name: str, prefix: str, most: int, limit: Callable[[int], int], pairs: bool) -> str:
    def entries(vectors: int, kind: str) -> Iterator[str]:
        for n in range(most + 1):
            there = vectors and 1 <= n <= limit(vectors) and (pairs or not kind.startswith("pair"))
            yield f"{prefix}_{vectors}_{n}_{kind}" if there else "0"

    rows = ("{" + ", ".join("{" + ", ".join(entries(v, k)) + "}" for k in KINDS) + "}" for v in range(MOST_VECTORS + 1))
    return (
        f"static const {function} {name}[{MOST_VECTORS + 1}][{len(KINDS)}][{most + 1}] = {{\n    "
        + ",\n    ".join(rows)
        + "};\n"
    )
