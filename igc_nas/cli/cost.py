"""`igc-nas cost`: exact counts of an architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from igc_nas.cli.loading import architecture, load_torch
from igc_nas.cli.options import as_json, classes_option, side_option, studies_dir
from igc_nas.cli.output import put, put_json, put_text
from igc_nas.errors import IgcNasError

NAMES = {"params": "parameters", "macs": "MACs", "flops": "FLOPs", "activations": "activations"}
COUNTERS = {
    "torch_params": "torch, parameters",
    "torch_macs": "torch, MACs",
    "ptflops_macs": "ptflops, MACs",
}


@click.command()
@click.argument("arch")
@classes_option
@side_option
@click.option("--check", is_flag=True, help="Also count with torch and ptflops, and compare.")
@as_json
@studies_dir
def cost(arch: str, classes: int | None, image_size: int | None, check: bool, as_json: bool, root: Path) -> None:
    """Print exact counts of ARCH: parameters, MACs and FLOPs.

    MACs, FLOPs (2 per MAC) and activations are those of one image. For a network of a paper also what is printed.
    ARCH is a .toml file, a network's name (igcv3-d-cifar, mobilenetv2-x0.5, ...) or STUDY:N.

    \b
    Examples:
      igc-nas cost igcv3-d-cifar --check
      igc-nas cost arch.toml --classes 100 --json
    """
    from igc_nas.arch.cost import cost_of
    from igc_nas.arch.plan import arch_id

    config = architecture(arch, classes, root, image_size)
    found: dict[str, Any] = cost_of(config).as_dict()
    reference = _printed(arch, classes)
    checked: dict[str, Any] = {}
    if check:
        load_torch()
        from igc_nas.nn.flop_counters import count_by_others

        checked = count_by_others(config)
    if as_json:
        put_json(found | {"id": arch_id(config), "arch": config.to_dict()} | reference | checked)
    else:
        rows = [(NAMES[name], f"{value:,}") for name, value in found.items()]
        rows += [(f"counted by {COUNTERS[name]}", f"{checked[name]:,}") for name in COUNTERS if name in checked]
        width, digits = (max(len(row[column]) for row in rows) for column in range(2))
        put(*(f"{name:<{width}}  {value:>{digits}}" for name, value in rows))
        if checked:
            put("the counters agree" if checked["agree"] else "the counters DIFFER")
        if reference:
            errors = (f"{100 * error:.2f} % on {data}" for data, error in reference["printed_error"].items())
            put_text(f"printed error {', '.join(errors)} ({reference['printed_in']}; {reference['paper']})")
    if checked and not checked["agree"]:
        raise IgcNasError("the counters do not agree", "please report this with the architecture's file")


def _printed(arch: str, classes: int | None) -> dict[str, Any]:
    from igc_nas.arch.named import is_network, network

    found = network(arch, classes) if is_network(arch) else None
    if found is None or not found.printed_error:
        return {}
    return {"paper": found.paper, "printed_in": found.source, "printed_error": dict(found.printed_error)}
