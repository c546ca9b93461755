"""`igc-nas show`: the layers of an architecture, and the outcome of a trial."""

from __future__ import annotations

from pathlib import Path

import click

from igc_nas.cli.loading import architecture
from igc_nas.cli.options import as_json, classes_option, side_option, studies_dir
from igc_nas.cli.output import put, put_json, put_text


@click.command()
@click.argument("arch")
@classes_option
@side_option
@as_json
@studies_dir
def show(arch: str, classes: int | None, image_size: int | None, as_json: bool, root: Path) -> None:
    """Print every layer of ARCH, and the outcome of a trial.

    A layer has its output shape, parameters and MACs; a failed trial its reason and place.

    ARCH is a .toml file, a network's name (igcv1-l24m2-d20, mobilenetv2-x0.5, ...) or STUDY:N, trial N of a study.

    \b
    Examples:
      igc-nas show igcv3-d-cifar
      igc-nas show igc_cifar10_2m:43
    """
    from igc_nas.arch.cost import cost_of, rows
    from igc_nas.arch.plan import arch_id, plan
    from igc_nas.study.lookup import named_trial

    config = architecture(arch, classes, root, image_size)
    found = named_trial(arch, root)
    cost = cost_of(config)
    listed = list(rows(plan(config)))
    if as_json:
        layers = [
            {"block": r.block, "layer": type(r.layer).__name__, "name": getattr(r.layer, "name", None)}
            | {"shape": r.shape, "params": r.cost.params, "macs": r.cost.macs}
            | {"in_shortcut": r.branch == "shortcut", "branch": r.branch}
            for r in listed
        ]
        trial = {} if found is None else {"trial": found[1].model_dump(mode="json", by_alias=True, exclude_none=True)}
        put_json({"id": arch_id(config), **cost.as_dict(), "arch": config.to_dict(), "layers": layers, **trial})
        return
    from igc_nas.analysis.expectations import with_expectations
    from igc_nas.cli.display import plan_lines, trial_lines
    from igc_nas.io.console import terminal_width
    from igc_nas.io.text import wrapped
    from igc_nas.study.front_table import legend_lines

    width = terminal_width()
    put(*wrapped([f"{arch}  id {arch_id(config)}", str(config)], width), *legend_lines([config], width or 120), "")
    put(*plan_lines(listed, width))
    put_text(f"total: {cost.params:,} parameters, {cost.macs:,} MACs, {cost.activations:,} activations")
    if found is not None:
        put("", *wrapped(trial_lines(with_expectations(found[0]), found[1]), width))
