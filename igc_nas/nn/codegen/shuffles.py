"""A pixel's channels in another order, by shuffles of two vectors: one load and one store a vector, none a float."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from igc_nas.nn.codegen.orders import PAD, Order, positions

SCALAR = 1.5
"""Vector instructions that moving one float alone costs about."""


@lru_cache(maxsize=65_536)
def permute_cost(source: Order, target: Order, lanes: int) -> float:
    """Vector instructions for a pixel: loads, shuffles, stores; or for each float where orders are no whole vectors."""
    if len(source) % lanes or len(target) % lanes:
        return SCALAR * len(target)
    where = positions(source)
    table = tuple(PAD if c == PAD else where[c] for c in target)
    shuffles = sum(max(0, len(_vectors(cut, lanes)) - 1) or 1 for cut in _cuts(table, lanes))
    return (len(source) + len(target)) / lanes + shuffles


def shuffled_text(table: Order, depth: int, width: int, lanes: int) -> str:
    """The kernel that writes for each pixel the floats at `table` of `depth`, PAD for 0; both are whole vectors."""
    cuts = _cuts(table, lanes)
    read = sorted({vector for cut in cuts for vector in _vectors(cut, lanes)} - {PAD})
    lines = [f"const vec v{n} = LOAD(in + x * {depth} + {n * lanes});" for n in read]
    for at, cut in enumerate(cuts):
        lines.append(f"STORE(out + x * {len(table)} + {at * lanes}, {_shuffled(cut, lanes)});")
    unused = "" if read else "    (void)in;\n"
    body = "\n".join(f"        {line}" for line in lines)
    return f"""\
static NOINLINE void KERNEL(const float *restrict in, float *restrict out)
{{
{unused}    for (int x = 0; x < {width}; ++x) {{
{body}
    }}
}}
"""


def _cuts(table: Order, lanes: int) -> list[Order]:
    return [table[at : at + lanes] for at in range(0, len(table), lanes)]


def _vectors(cut: Order, lanes: int) -> list[int]:
    """The vectors that a vector is made of, PAD for zeros."""
    return sorted({PAD if place == PAD else place // lanes for place in cut})


def _shuffled(cut: Order, lanes: int) -> str:
    first, *rest = _vectors(cut, lanes)
    text = _name(first)
    if not rest:
        if first == PAD or cut == tuple(range(first * lanes, (first + 1) * lanes)):
            return text
        return _call(text, text, (place % lanes for place in cut))
    done = {first}
    for vector in rest:
        places = []
        for lane, place in enumerate(cut):
            source = PAD if place == PAD else place // lanes
            within = 0 if place == PAD else place % lanes
            kept = within if len(done) == 1 else lane
            places.append(kept if source in done else lanes + within if source == vector else 0)
        text = _call(text, _name(vector), iter(places))
        done.add(vector)
    return text


def _name(vector: int) -> str:
    return "((vec){0})" if vector == PAD else f"v{vector}"


def _call(first: str, second: str, places: Iterator[int]) -> str:
    return f"SHUFFLE({first}, {second}, {', '.join(map(str, places))})"
