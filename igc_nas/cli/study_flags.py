"""Which study a person asks for: a new one, or one that is there and must be the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igc_nas.data.datasets import DatasetInfo, data_dir, locate
from igc_nas.engine.search import begun
from igc_nas.errors import ConfigError, StudyError, UsageError
from igc_nas.io.records import differences, parse_toml, restricted
from igc_nas.nn.device import Device
from igc_nas.space.budget import Budget
from igc_nas.space.search_space import SpaceFile, find_space
from igc_nas.study.defaults import PRUNE_BELOW, new_spec
from igc_nas.study.names import check_study_name
from igc_nas.study.objectives import parse_objectives
from igc_nas.study.spec import StudySpec, default_name
from igc_nas.study.study import Study


@dataclass(frozen=True)
class StudyRequest:
    """The spec of the study, its folder, its dataset, and whether it was there before."""

    spec: StudySpec
    folder: Path
    info: DatasetInfo
    continued: bool
    dataset_flag: str


def resolve_study(flags: Mapping[str, Any], device: Device) -> StudyRequest:
    """The study that the flags of `igc-nas search` name. A flag that is None is taken from the study, else a default.

    Raises `StudyError` where the study is there with another question, naming the difference; `DataError` for missing
    data; `ConfigError` and `InfeasibleError` for a question that cannot be asked.
    """
    asked = explicit(flags)
    root: Path = flags["root"]
    name: str | None = flags["study_name"]
    storage: str | None = flags["storage"]
    if name is not None and (study := begun(root / check_study_name(name), storage)):
        return _continued(study, asked, flags, device)
    dataset = flags["dataset"] or "auto"
    info = locate(dataset, data_dir(flags["data_dir"]))
    budget = Budget.parse(asked.get("budget", {}))
    space = flags["space"] or "igc_cifar"
    if name is None:
        name = check_study_name(default_name(find_space(space).stem, info.name, budget, asked.get("seed", 0)))
    folder = root / name
    if study := begun(folder, storage):
        return _continued(study, asked, flags, device)
    spec = new_spec(
        info,
        device.name,
        device.kind,
        space=space,
        name=name,
        budget=budget,
        objectives=tuple(asked.get("objectives", ("error", "params", "latency"))),
        sampler=asked.get("sampler", "known-cost"),
        seed=asked.get("seed", 0),
        prune_below=asked.get("prune_below", PRUNE_BELOW),
        recipe=_with_dtype(asked.get("recipe", {}), device),
        latency=asked.get("latency"),
    )
    return StudyRequest(spec, folder, info, continued=False, dataset_flag=dataset)


def _with_dtype(recipe: Mapping[str, Any], device: Device) -> dict[str, Any]:
    """What is asked of the recipe, and the dtype that suits its forms where none is asked for."""
    return {"dtype": device.dtype_for(recipe.get("forms", "fastest")), **recipe}


def explicit(flags: Mapping[str, Any]) -> dict[str, Any]:
    """What the flags say of the question itself, in the form of a study.toml."""
    asked: dict[str, Any] = {key: flags[key] for key in ("sampler", "seed", "prune_below") if flags[key] is not None}
    if flags["objectives"] is not None:
        asked["objectives"] = list(parse_objectives(flags["objectives"]))
    macs = [flags["budget_macs"], flags["budget_flops"] and flags["budget_flops"] // 2]
    budget = {
        "params": flags["budget_params"],
        "macs": min((m for m in macs if m is not None), default=None),
        "latency_ms": flags["budget_latency"],
    }
    if any(value is not None for value in budget.values()):
        asked["budget"] = {key: value for key, value in budget.items() if value is not None}
    if flags["recipe"]:
        asked["recipe"] = parse_recipe(flags["recipe"])
    if flags["forms"] is not None:
        asked["recipe"] = {"forms": flags["forms"]} | asked.get("recipe", {})
    latency = {"runtime": flags["latency_runtime"], "forms": flags["latency_forms"]}
    if flags["forms"] == "factored" and latency["forms"] is None:
        latency["forms"] = "factored"
    if any(latency.values()):
        asked["latency"] = {key: value for key, value in latency.items() if value}
    if flags["space"] is not None:
        path = find_space(flags["space"])
        asked |= {"space_name": path.stem, "space": SpaceFile.load(path).to_dict()}
    return asked


def parse_recipe(changes: Iterable[str]) -> dict[str, Any]:
    """`["epochs=3,dtype=bfloat16", "rungs=[2000, 4000]"]` as a table of keys and values. Raises `UsageError`."""
    recipe: dict[str, Any] = {}
    for change in changes:
        for part in _parts(change):
            key, equals, value = part.partition("=")
            if not equals or not key.strip().isidentifier() or not value.strip():
                raise UsageError(f"{part!r:.60} is no KEY=VALUE", "e.g. --recipe epochs=3,train_size=10000")
            recipe[key.strip()] = _scalar(value.strip())
    return recipe


def _parts(text: str) -> Iterator[str]:
    """`text` between its commas, but for those within [...], which are the list's."""
    start = depth = 0
    for at, letter in enumerate(text):
        depth = max(0, depth + (letter == "[") - (letter == "]"))
        if letter == "," and not depth:
            yield text[start:at]
            start = at + 1
    yield text[start:]


def _scalar(text: str) -> Any:
    """A value as TOML writes it in one place; any other text is itself."""
    try:
        match parse_toml(f"values = [{text}]", "recipe"):
            case {"values": [value], **rest} if not rest:
                return value
    except ConfigError:
        pass
    return text


def _continued(study: Study, asked: dict[str, Any], flags: Mapping[str, Any], device: Device) -> StudyRequest:
    spec = study.spec
    info = locate(spec.dataset.split(" ")[0], data_dir(flags["data_dir"]))
    has = spec.to_dict()
    here = {} if spec.latency.remote else {"device": device.name}
    asked = asked | {"dataset": info.label, "dataset_sha256": info.sha256}
    asked["latency"] = here | asked.get("latency", {})
    if flags["dataset"] not in (None, "auto", info.name):
        asked["dataset"] = flags["dataset"]
    if "budget" in asked:
        asked["budget"] = dict.fromkeys(("params", "macs", "latency_ms")) | asked["budget"]
        has["budget"] = dict.fromkeys(("params", "macs", "latency_ms")) | has["budget"]
    there = restricted(has, asked) | {key: has[key] for key in ("space",) if key in asked}
    different = list(differences(asked, there))
    if different:
        raise StudyError(
            f"study {spec.name} is there and asks another question: {'; '.join(different[:4])}",
            "start another with --study NAME, or leave those flags away to continue this one",
        )
    assert study.folder is not None
    return StudyRequest(spec, study.folder, info, continued=True, dataset_flag=flags["dataset"] or "auto")
