"""The options of `igc-nas search`, and the study that they name: a new one, or an existing one with the same spec."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from igc_nas.cli.loading import architecture, packing_bar, say_unusable
from igc_nas.data.cifar import LAYOUTS
from igc_nas.data.datasets import NAMES, SIDE, DatasetInfo, data_dir, is_folder, locate, relocate
from igc_nas.engine.database import begun
from igc_nas.errors import ConfigError, StudyError, UsageError
from igc_nas.io.files import is_file
from igc_nas.io.records import differences, parse_toml, restricted
from igc_nas.io.text import nearest
from igc_nas.space.budget import Budget
from igc_nas.space.feasible import feasible
from igc_nas.space.search_space import SearchSpace, SpaceFile, find_space, search_space
from igc_nas.study.baselines import baseline_network, named_baselines
from igc_nas.study.defaults import PRUNE_BELOW, fitting_batch, new_spec
from igc_nas.study.names import check_study_name, folder_of_study, study_argument
from igc_nas.study.objectives import parse_objectives
from igc_nas.study.spec import Recipe, StudySpec, default_name
from igc_nas.study.study import STUDY_FILE, Study

if TYPE_CHECKING:
    from igc_nas.engine.executor import ExecutorName
    from igc_nas.nn.device import Device
    from igc_nas.nn.lowering.fastest_dtype import FastestDtype
    from igc_nas.study.spec import DtypeName, Goal, LatencyForms, RuntimeName, SamplerName


MOST_ENQUEUED = 3
"""Networks of a study that a hint has the next one begin with."""


@dataclass(frozen=True)
class SearchRequest:
    """The options of `igc-nas search`, one field each. None: not given."""

    space: str | None = None
    study_name: str | None = None
    dataset: str | None = None
    image_size: int | None = None
    """Pixels of a side; the default is the space's input for a folder of images."""
    objectives: str | None = None
    goal: Goal | None = None
    params: tuple[int | None, int | None] | None = None
    """Lower and upper limit, as `macs`; None: no limit."""
    macs: tuple[int | None, int | None] | None = None
    min_params: int | None = None
    budget_params: int | None = None
    budget_macs: int | None = None
    budget_flops: int | None = None
    budget_latency: float | None = None
    """Milliseconds."""
    sampler: SamplerName | None = None
    seed: int | None = None
    recipe: tuple[str, ...] = ()
    """`KEY=VALUE` texts, see `parse_recipe`."""
    forms: Literal["fastest", "factored"] | None = None
    latency_forms: LatencyForms | None = None
    latency_runtime: RuntimeName | None = None
    latency_batch: int | None = None
    latency_dtype: DtypeName | None = None
    latency_command: str | None = None
    enqueue: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    """Comma-separated names, see `igc_nas.study.baselines`."""
    prune_below: float | None = None
    trials: int | None = None
    time: float | None = None
    """Seconds, as `trial_timeout`."""
    promote: float | None = None
    """The share of the time for longer trainings."""
    trial_timeout: float | None = None
    workers: int | None = None
    workers_per_gpu: int | None = None
    executor: ExecutorName = "processes"
    ray_address: str | None = None
    device: str = "auto"
    deterministic: bool = False
    data_dir: Path | None = None
    root: Path = Path("studies")
    storage: str | None = None
    quiet: bool = False
    as_json: bool = False


@dataclass(frozen=True)
class ResolvedStudy:
    """The spec of a study, its folder and dataset; whether it is continued, and `--dataset` as given (or "auto")."""

    spec: StudySpec
    folder: Path
    info: DatasetInfo
    continued: bool
    dataset: str
    eager_because: str = ""
    """Why the latencies of a new study of a CPU are not those of generated C, where no runtime is asked for."""
    dtype: FastestDtype | None = None
    """The recipe's dtype in a new study that names none, with the times by which it was chosen."""


def check_request(request: SearchRequest) -> None:
    """Raise for what is wrong with a request in itself, before torch is imported, which takes seconds.

    That is every unknown name and key, and a budget that nothing in the space of a new study keeps within. Raises
    `ConfigError`, `UsageError`, `StudyError` and `InfeasibleError`.
    """
    settings, dataset = given_settings(request), request.dataset or "auto"
    budget = Budget.parse(settings.get("budget", {}))
    for name in request.enqueue:
        architecture(name, None, request.root)
    for name in named_baselines(request.baselines):
        baseline_network(name, None, request.root)
    if request.study_name is not None:
        folder = folder_of_study(request.study_name, request.root)
        if request.storage or is_file(folder / STUDY_FILE):
            return  # its own space, data and budget are compared with what is given
    path = find_space(request.space or "igc_cifar")
    if is_folder(dataset):
        return  # its classes are counted later
    if dataset not in ("auto", *NAMES):
        locate(dataset)  # raises
    classes = LAYOUTS.get(dataset, LAYOUTS["cifar10"]).classes  # `shapes` has as many
    feasible(search_space(SpaceFile.load(path), classes, path.stem), budget).lightest()


def resolve_study(request: SearchRequest, device: Device) -> ResolvedStudy:
    """Find or specify the study that a request names. Options not given come from the study, else are defaults.

    Raises `StudyError` if the study exists with other settings, naming the differences; `DataError` for missing data;
    `ConfigError`, `UsageError` and `InfeasibleError` for a request that is invalid.
    """
    from igc_nas.evaluation.runtimes import check_dtype
    from igc_nas.nn.lowering.fastest_dtype import fastest_dtype

    settings = given_settings(request)
    name = request.study_name
    if name is not None:
        if study := begun(folder_of_study(name, request.root), request.storage):
            return _continued(study, settings, request, device)
        check_study_name(name)
    dataset = request.dataset or "auto"
    space = request.space or "igc_cifar"
    info = _located(dataset, request, space)
    budget = Budget.parse(settings.get("budget", {}))
    seed = request.seed or 0
    if name is None:
        name = _automatic_name(default_name(find_space(space).stem, info.name, budget, seed), settings, request)
    folder = request.root / name
    if study := begun(folder, request.storage):
        return _continued(study, settings, request, device)
    recipe = settings.get("recipe", {})
    if device.memory is not None and "batch" not in recipe:
        recipe = fitting_batch(device.memory) | recipe
    path = find_space(space)
    choices = search_space(SpaceFile.load(path, info.side if info.images else None), info.classes, path.stem)
    feasible(choices, budget).lightest()  # raises where nothing fits, before networks are compiled and timed
    runtime, eager_because = _default_runtime(request, device, choices)
    if request.latency_command is None:
        check_dtype(request.latency_dtype or "float32", request.latency_runtime or runtime, device.kind)
    dtype = None if "dtype" in recipe else fastest_dtype(device, recipe.get("forms", "fastest"))
    spec = new_spec(
        info,
        device.name,
        device.kind,
        space=space,
        name=name,
        budget=budget,
        objectives=tuple(settings["objectives"]) if "objectives" in settings else None,
        goal=request.goal,
        sampler=request.sampler or "known-cost",
        seed=seed,
        prune_below=PRUNE_BELOW if request.prune_below is None else request.prune_below,
        recipe=recipe if dtype is None else {"dtype": dtype.dtype, **recipe},
        latency={"runtime": runtime} | settings.get("latency", {}),
    )
    return ResolvedStudy(spec, folder, info, continued=False, dataset=dataset, eager_because=eager_because, dtype=dtype)


def _default_runtime(request: SearchRequest, device: Device, space: SearchSpace) -> tuple[RuntimeName, str]:
    """The runtime of a new study's latencies where none is asked for, see `default_runtime`; a command has its own."""
    from igc_nas.evaluation.runtimes import default_runtime, unit_plans

    if request.latency_command is not None or request.latency_runtime is not None:
        return "eager", ""
    return default_runtime(device, forms=request.latency_forms, plans=unit_plans(space))


def _located(dataset: str, request: SearchRequest, space: str) -> DatasetInfo:
    """The dataset of a new study. A folder of images is packed, with a progress bar, at the side that is searched."""
    size = request.image_size
    if is_folder(dataset) and size is None:
        size = SpaceFile.load(find_space(space)).input[1]
    with packing_bar() as progress:
        info = locate(dataset, data_dir(request.data_dir), image_size=size, progress=progress)
    say_unusable(info)
    return info


DISTINGUISHING = ("objectives", "goal", "sampler", "prune_below", "recipe", "latency")


def _automatic_name(base: str, settings: Mapping[str, Any], request: SearchRequest) -> str:
    """The name of a study that is given none: `base`, its sampler and runtime, and a hash of all else that is given.

    So each variation of a command has a study of its own. A study of the name `base` with these settings, as version
    0.1 made it, is continued. Raises `UsageError` for a name that is too long.
    """
    given = {key: settings[key] for key in DISTINGUISHING if key in settings}
    if not given:
        return check_study_name(base)
    before = begun(request.root / base, request.storage)
    if before and not list(differences(given, restricted(before.spec.to_dict(), given))):
        return check_study_name(base)
    words = [given.pop("sampler", ""), request.latency_runtime or ""]
    if request.latency_runtime and given.get("latency") == {"runtime": request.latency_runtime}:
        del given["latency"]
    if given:
        words.append(hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:6])
    return check_study_name("-".join([base, *filter(None, words)]))


def given_settings(request: SearchRequest) -> dict[str, Any]:
    """The settings of a study that the request gives, keyed as in study.toml; those not given are left out."""
    scalars = {
        "goal": request.goal,
        "sampler": request.sampler,
        "seed": request.seed,
        "prune_below": request.prune_below,
    }
    settings: dict[str, Any] = _without_none(scalars)
    if request.objectives is not None:
        settings["objectives"] = list(parse_objectives(request.objectives))
    if limits := given_limits(request):
        settings["budget"] = limits
    if request.recipe:
        settings["recipe"] = parse_recipe(request.recipe)
    if request.forms is not None:
        settings["recipe"] = {"forms": request.forms} | settings.get("recipe", {})
    # Who trains in the factored form wants its latency, too, unless --latency-forms says otherwise.
    latency_forms = request.latency_forms or ("factored" if request.forms == "factored" else None)
    conditions = {"batch": request.latency_batch, "dtype": request.latency_dtype}
    if latency := _without_none({"runtime": request.latency_runtime, "forms": latency_forms} | conditions):
        settings["latency"] = latency
    if request.space is not None:
        path = find_space(request.space)
        settings |= {"space_name": path.stem, "space": SpaceFile.load(path).choices()}
    return settings


def given_limits(request: SearchRequest) -> dict[str, Any]:
    """The fields of the budget that the request gives; of two upper or lower limits on one cost the tighter."""
    (least_params, most_params), (least_macs, most_macs) = request.params or (None, None), request.macs or (None, None)
    most = {
        "params": (request.budget_params, most_params),
        "macs": (request.budget_macs, request.budget_flops and request.budget_flops // 2, most_macs),
    }
    least = {"min_params": (request.min_params, least_params), "min_macs": (least_macs,)}
    limits = {name: min((m for m in given if m is not None), default=None) for name, given in most.items()}
    limits |= {name: max((m for m in given if m is not None), default=None) for name, given in least.items()}
    return _without_none(limits | {"latency_ms": request.budget_latency})


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def parse_recipe(changes: Iterable[str]) -> dict[str, Any]:
    """Parse `["epochs=3,dtype=bfloat16", "rungs=[2000, 4000]"]` to keys and TOML values. Raises `UsageError`."""
    recipe: dict[str, Any] = {}
    for change in changes:
        for part in _parts(change):
            key, equals, value = part.partition("=")
            if not equals or not key.strip().isidentifier() or not value.strip():
                raise UsageError(f"{part!r:.60} is not KEY=VALUE", "e.g. --recipe epochs=3,train_size=10000")
            if key.strip() not in Recipe.model_fields:
                keys = f"its keys are {', '.join(Recipe.model_fields)}"
                raise ConfigError(
                    f"recipe: {key.strip():.40}: unknown key", nearest(key.strip(), Recipe.model_fields, keys)
                )
            recipe[key.strip()] = _scalar(value.strip())
    return recipe


def _parts(text: str) -> Iterator[str]:
    """Split `text` at its commas, except those inside brackets."""
    start = depth = 0
    for at, letter in enumerate(text):
        depth = max(0, depth + (letter == "[") - (letter == "]"))
        if letter == "," and not depth:
            yield text[start:at]
            start = at + 1
    yield text[start:]


def _scalar(text: str) -> Any:
    """The TOML value that `text` is, or `text` itself where it is none (a string without quotes)."""
    try:
        match parse_toml(f"values = [{text}]", "recipe"):
            case {"values": [value], **rest} if not rest:
                return value
    except ConfigError:
        pass
    return text


def _continued(study: Study, settings: dict[str, Any], request: SearchRequest, device: Device) -> ResolvedStudy:
    """The study as it is. Raises `StudyError` if the settings given, the device or the data differ from its own."""
    spec = study.spec
    info = _relocated(spec, request)
    has = spec.identity()
    settings = settings | {"dataset": info.label, "dataset_sha256": info.sha256}
    if info.images and "space" in settings:
        settings["space"] = SpaceFile.parse(settings["space"], "space").with_side(info.side).choices()
    if request.dataset not in (None, "auto", info.name) and not is_folder(request.dataset):
        settings["dataset"] = request.dataset
    if "budget" in settings:  # one limit given means: this limit alone
        limits = dict.fromkeys(Budget.model_fields)
        settings["budget"] = limits | settings["budget"]
        has["budget"] = limits | has["budget"]
    compared = restricted(has, settings) | {key: has[key] for key in ("space",) if key in settings}
    different = list(differences(settings, compared))
    if different:
        raise StudyError(
            f"study {spec.name} exists with other settings: {'; '.join(different[:4])}",
            "start another with --study NAME, or leave out these options to continue this one",
        )
    _check_device(study, device)
    assert study.folder is not None
    return ResolvedStudy(spec, study.folder, info, continued=True, dataset=request.dataset or "auto")


def _check_device(study: Study, device: Device) -> None:
    """Raise `StudyError` where a study's latencies are of another device than this one."""
    from igc_nas.engine.search import devices_here

    latency = study.spec.latency
    if latency.remote or latency.device == device.name:
        return
    named = next((torch_name for torch_name, model in devices_here().items() if model == latency.device), None)
    raise StudyError(
        f"the latencies of study {study.spec.name} are of {latency.device}; those of {device.name} are not comparable",
        f"add --device {named}" if named else _another_study_words(study),
    )


def _another_study_words(study: Study) -> str:
    """How to start another study from the best networks of this one."""
    assert study.folder is not None
    best = study.front()[:MOST_ENQUEUED] if is_file(study.folder / STUDY_FILE) else ()
    if not best:
        return "start another with --study NAME"
    name = study_argument(study.folder, study.spec.name)
    networks = " ".join(f"--enqueue {name}:{candidate.trial}" for candidate in best)
    return f"start another from its networks, with the options of this one: igc-nas search --study NAME {networks}"


def _relocated(spec: StudySpec, request: SearchRequest) -> DatasetInfo:
    """The dataset of an existing study, from `--dataset FOLDER` if that is given. Its label is as the study has it."""
    dataset, side = request.dataset, spec.images.size if spec.images else SIDE
    if request.image_size not in (None, side):
        raise StudyError(
            f"the images of study {spec.name} have {side} x {side} pixels, not {request.image_size}",
            "start another with --study NAME, or leave out --image-size",
        )
    if dataset is None or not is_folder(dataset):
        return relocate(spec.dataset, spec.dataset_sha256, request.data_dir)
    with packing_bar() as progress:
        info = locate(dataset, data_dir(request.data_dir), image_size=side, progress=progress)
    return replace(info, label=spec.dataset) if info.sha256 == spec.dataset_sha256 else info


def latency_conditions(spec: StudySpec, request: SearchRequest, *, new: bool) -> StudySpec:
    """The spec with the conditions under which its latencies are measured, here or by `--latency-command`.

    For a new study with a command, the command measures one network, and the conditions that it prints become the
    spec's. Raises `StudyError` if an existing study's latencies are of the other kind (a command's, this machine's);
    `UsageError` for a runtime that is not the command's.
    """
    command = request.latency_command
    if not new and spec.latency.remote != (command is not None):
        raise StudyError(
            f"the latencies of study {spec.name} are "
            + ("another machine's" if spec.latency.remote else "this machine's"),
            "give --latency-command" if spec.latency.remote else "leave out --latency-command",
        )
    if command is None or not new:
        return spec
    from igc_nas.evaluation.remote import CommandMeasurer, remote_spec

    measured = CommandMeasurer(command)(spec.feasible.lightest())
    for name in ("runtime", "batch", "dtype"):
        wanted, found = getattr(request, f"latency_{name}"), getattr(measured, name)
        if wanted not in (None, found):
            with_ = found if name == "runtime" else f"{name} {found}"
            option = "--latency-dtype" if name == "dtype" else f"--{name}"
            raise UsageError(f"the latency command measures with {with_}", f"add {option} {wanted} to it")
    return spec.model_copy(update={"latency": remote_spec(measured, spec.latency)})
