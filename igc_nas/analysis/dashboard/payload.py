"""The data of the page's script: the views of each study in columns, with repeated values stored once.

A page with ten thousand trials must stay below 10 MB. Repeated texts, layers and blocks are stored once and referred
to by index (blocks are few, architectures many); the times of all forms and the training curves, which are long, are
stored for the front and an even sample of the other candidates. Control characters in texts are replaced.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import Field, asdict, fields
from functools import cached_property
from typing import Any

from igc_nas.analysis.baselines import baselines_sentence
from igc_nas.analysis.dashboard.sections import knee_of, numbers
from igc_nas.analysis.importance import ParameterImportance, parameter_importances
from igc_nas.analysis.views import (
    TrialsView,
    curves_view,
    forms_view,
    front_rows,
    hypervolume_view,
    limits,
    own_trials,
    papers_view,
    shortened,
    surrogate_view,
    trials_view,
)
from igc_nas.arch.config import LIMIT, ArchConfig, Head, Stem
from igc_nas.arch.layers import Branched, Layer, Residual
from igc_nas.arch.shapes import Shape
from igc_nas.arch.stages import StageConfig, describe_stage
from igc_nas.arch.units import end_layers, stage_layers, stem_layers
from igc_nas.io.text import visible
from igc_nas.study.finals import FinalsGroup, finals_groups
from igc_nas.study.front_table import legend
from igc_nas.study.lock import Running
from igc_nas.study.names import storage_option, study_argument
from igc_nas.study.objectives import OBJECTIVES
from igc_nas.study.records import Candidate, Latency, Trial
from igc_nas.study.spec import StudySpec
from igc_nas.study.status import Status
from igc_nas.study.study import Members, Study

MOST_DETAILED = 2_000
"""Most candidates for which form times and training curves are stored: the front, and an even sample of others."""
LONGEST_REASON = 200

Json = dict[str, Any]


class CachedStudy(Study):
    """A study that computes each front once, as several parts of a page need it."""

    @classmethod
    def of(cls, study: Study) -> CachedStudy:
        """The same study."""
        return cls(study.spec, study.trials, study.folder, storage=study.storage)

    @cached_property
    def _fronts(self) -> dict[tuple[str, ...], Members]:
        return {}

    def front(self, objectives: Sequence[str] | str | None = None) -> Members:
        """The candidates that no other one dominates, by the first objective ascending."""
        names = self._names(objectives)
        if names not in self._fronts:
            self._fronts[names] = super().front(names)
        return self._fronts[names]


class Interned:
    """Distinct values in the order of first use, converted by `convert`, and the index of each."""

    def __init__(self, convert: Callable[[Any], Any] = lambda value: value) -> None:
        self.values: list[Any] = []
        self._indices: dict[Hashable, int] = {}
        self._convert = convert

    def index(self, value: Hashable) -> int:
        """The index of `value` in `values`."""
        index = self._indices.setdefault(value, len(self._indices))
        if index == len(self.values):
            self.values.append(None)  # reserved: `convert` may intern further values (a block within a block)
            self.values[index] = self._convert(value)
        return index


def payload(studies: Sequence[Study]) -> Json:
    """The data of a page of `studies`, as JSON."""
    with _gc_paused():
        return _payload(studies, Plans())


@contextlib.contextmanager
def _gc_paused() -> Iterator[None]:
    """Pause the garbage collector: with the millions of objects of a large study it doubles the time of a page."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _payload(studies: Sequence[Study], plans: Plans) -> Json:
    return {
        "objectives": [[o.name, o.label, o.log] for o in OBJECTIVES.values()],
        "studies": [_study(study, plans) for study in studies],
        "plans": {name: getattr(plans, name).values for name in ("stages", "layers", "blocks", "tables")},
    }


def _study(study: Study, plans: Plans) -> Json:
    spec, view = study.spec, trials_view(study)
    detailed = _detailed(study)
    surrogate = surrogate_view(study)
    return {
        "name": visible(spec.name),
        "argument": visible(study_argument(study.folder, spec.name)),
        "stored": visible(storage_option(study.folder, study.storage)),
        "in_database_only": study.is_in_database_only,
        "legend": legend(t.arch for t in study.trials if t.arch),
        "dataset": visible(spec.dataset),
        "objectives": spec.front_objectives,
        "limits": limits(study),
        "cards": numbers(study),
        "samples": spec.recipe.samples,
        "batch": spec.latency.batch,
        "trials": _trials(study, view, plans),
        "front": front_rows(study, spec.front_objectives),
        "against": visible(baselines_sentence(study) or ""),
        "knee": knee_of(study),
        "volume": _volume(study),
        "scale": [[name, *spec.scale_bounds(name)] for name in spec.front_objectives if name in spec.bounds],
        "forms": _forms(detailed),
        "detailed": len(detailed),
        "curves": _curves(study),
        "epochs": [_epochs(candidate) for candidate in detailed],
        "choices": [_choice(choice) for choice in parameter_importances(study)],
        "surrogate": None if surrogate is None else asdict(surrogate) | {"sentence": visible(surrogate.sentence)},
        "papers": asdict(papers_view(study)),
        "finals": [_finals(group) for group in finals_groups(study.finals)],
    }


def _trials(study: Study, view: TrialsView, plans: Plans) -> Json:
    """Every trial, as columns; a text column is {"of": texts, "at": index of each row's text}."""
    latencies, limit = [_latency(trial) for trial in own_trials(study)], study.spec.deployed_limit
    within = {candidate.trial for candidate in study.feasible_candidates}
    return {
        "trial": view.trial,
        "state": _texts(view.state),
        "baseline": _texts(view.baseline),
        "id": [visible(name) for name in view.id],
        "units": _texts(view.units),
        "error": view.columns["error"],
        "params": view.columns["params"],
        "macs": view.columns["macs"],
        "activations": view.columns["activations"],
        "latency": view.columns["latency"],
        "low": view.low_ms,
        "high": view.high_ms,
        "median": [latency and shortened(latency.median_ms) for latency in latencies],
        "expected": view.expected,
        "noisy": view.noisy,
        "over": [row for row in view.complete if view.trial[row] not in within],
        "form": _texts(latency.form if latency else "" for latency in latencies),
        "deployed_params": [latency and latency.deployed_params for latency in latencies],
        "deployed_macs": [latency and latency.deployed_macs for latency in latencies],
        "weight_bytes": [latency and latency.weight_bytes for latency in latencies],
        "noise": _texts("; ".join(latency.noise) if latency else "" for latency in latencies),
        "reason": _texts(trial.reason[:LONGEST_REASON] if trial.reason else "" for trial in own_trials(study)),
        "wall_s": [trial.wall_s and round(trial.wall_s, 1) for trial in own_trials(study)],
        "arch": [plans.of(trial.arch) if trial.arch else None for trial in own_trials(study)],
        "toml": [
            plans.toml_of(trial.arch, limit if limit and params and params <= limit else None) if trial.arch else None
            for trial, params in zip(own_trials(study), view.columns["params"], strict=True)
        ],
    }


def _finals(group: FinalsGroup) -> list[Json]:
    """The networks of one recipe that have a test error; `trial`: null for a baseline; `front`: by error and params."""
    members = group.front(("error", "params"))
    return [
        {
            "name": visible(finalist.one.name),
            "trial": finalist.one.trial,
            "error": shortened(finalist.error),
            "half": shortened(finalist.half_width or 0.0),
            "seeds": len(finalist.errors),
            "params": finalist.one.cost.params,
            "macs": finalist.one.cost.macs,
            "front": finalist.one.id in members,
        }
        for finalist in group.finalists
        if finalist.error is not None
    ]


def _volume(study: Study) -> Json:
    """The hypervolume at its first and last trial and wherever it changes."""
    view = hypervolume_view(study)
    last = len(view.trials) - 1
    kept = [i for i in range(last + 1) if i in (0, last) or view.volumes[i] != view.volumes[i - 1]]
    return {
        "trials": [view.trials[i] for i in kept],
        "volumes": [shortened(view.volumes[i]) for i in kept],
        "busy_s": [view.busy_s[i] for i in kept],
    }


def _latency(trial: Trial) -> Latency | None:
    if trial.candidate and trial.state == "complete":
        return trial.candidate.latency
    return trial.pruned.latency if trial.pruned and trial.state == "pruned" else None


def _detailed(study: Study) -> list[Candidate]:
    """The candidates whose form times and training curves are stored, and the baselines."""
    members = study.front()
    front = {candidate.trial for candidate in members}
    others = [candidate for candidate in study.candidates if candidate.trial not in front]
    room = max(0, MOST_DETAILED - len(members))
    kept = others if len(others) <= room else [others[i * len(others) // room] for i in range(room)]
    beside = [trial.candidate for trial in study.baselines if trial.candidate]
    return sorted([*members, *kept, *beside], key=lambda candidate: candidate.trial)


def _forms(detailed: Iterable[Candidate]) -> Json:
    view = forms_view(detailed)
    return asdict(view) | {"form": _texts(view.form)}


def _curves(study: Study) -> Json | None:
    """The learning curves of held-out error, with each distinct list of rungs stored once; None without rungs."""
    view = curves_view(study)
    if not view.trial:
        return None
    samples = Interned()
    at = [samples.index(row) for row in view.samples]
    return {"trial": view.trial, "samples": {"of": samples.values, "at": at}, "errors": view.errors}


def _epochs(candidate: Candidate) -> list[float]:
    """The training error of each epoch, flat: samples, error, samples, error, ..."""
    return [number for epoch in candidate.score.curve for number in (epoch.samples, shortened(epoch.train_error))]


def _choice(choice: ParameterImportance) -> Json:
    found = {
        "name": choice.name,
        "evaluated": choice.evaluated,
        "front": choice.front,
        "shares": [[share.value, share.evaluated, share.front, shortened(share.p)] for share in choice.shares],
    }
    for name in ("error", "latency"):
        effect = getattr(choice, name)
        found[name] = None if effect is None else [shortened(effect.share), shortened(effect.p)]
    return found


def _texts(column: Iterable[str]) -> Json:
    interned = Interned(visible)
    at = [interned.index(text) for text in column]
    return {"of": interned.values, "at": at}


class Plans:
    """Architectures as indices of stage texts and blocks, from which the page's table and diagram are drawn.

    An architecture is [side, stem, (text, first, further, count) of each stage, ..., text, end]: the side of its
    images, then indices of texts (the last one is the head's, empty without one) and blocks. A block is a list of
    indices of layers; a layer with branches is [body, shortcut] if it is residual, else [kind, channels or 0, branch,
    ...]. A layer is its kind, then its fields, up to the last one that differs from its default.
    """

    def __init__(self) -> None:
        self.stages = Interned()
        self.layers = Interned(_layer_fields)
        self.blocks = Interned(self._layer_indices)
        self.tables = Interned(_table)
        self._cache: dict[Hashable, tuple[int, ...]] = {}

    def of(self, arch: ArchConfig) -> list[int]:
        """An architecture as indices."""
        encoded = [arch.input[1], *self._cached(arch.stem, arch.input[0], self._stem)]
        for _, stage, in_width in arch.with_input_widths():
            encoded += self._cached(stage, in_width, self._stage)
        return [*encoded, *self._cached(arch.head, (self._end_shape(arch), arch.classes), self._end)]

    def toml_of(self, arch: ArchConfig, limit: int | None = None) -> list[int]:
        """An architecture as indices of `tables`, which make its TOML file when they are joined by line ends.

        `limit` is the most parameters that may be deployed.
        """
        parts: list[tuple[str, Any]] = [("", (arch.input, arch.classes, limit)), ("stem", arch.stem)]
        parts += [*(("stage", stage) for stage in arch.stages), *([("head", arch.head)] if arch.head else [])]
        return [self.tables.index(part) for part in parts]

    def _cached(self, part: Any, context: Any, encode: Callable[[Any, Any], tuple[int, ...]]) -> tuple[int, ...]:
        key = (part, context)
        if key not in self._cache:
            self._cache[key] = encode(part, context)
        return self._cache[key]

    def _stem(self, stem: Stem, in_channels: int) -> tuple[int, ...]:
        return (self.blocks.index(stem_layers(stem, in_channels)),)

    def _stage(self, stage: StageConfig, in_width: int) -> tuple[int, ...]:
        first, further = stage_layers(stage, in_width)
        return (
            self.stages.index(describe_stage(stage)),
            self.blocks.index(first),
            self.blocks.index(further),
            stage.blocks,
        )

    def _end_shape(self, arch: ArchConfig) -> Shape:
        """The shape that the head reads; without its sides where they do not matter, so that equal ends are one."""
        reads_map = arch.head is not None and arch.head.reads_map
        return (arch.features, *(arch.map_sides if reads_map else (0, 0)))

    def _end(self, head: Head | None, shape_and_classes: tuple[Shape, int]) -> tuple[int, ...]:
        shape, classes = shape_and_classes
        layers = (layer for _, block in end_layers(shape, head, classes) for layer in block)
        return self.stages.index(str(head or "")), self.blocks.index(tuple(layers))

    def _layer_indices(self, layers: tuple[Layer, ...]) -> list[Any]:
        return [self._branches(layer) if isinstance(layer, Branched) else self.layers.index(layer) for layer in layers]

    def _branches(self, layer: Branched) -> list[Any]:
        branches = [self._layer_indices(branch) for branch in layer.branches]
        if isinstance(layer, Residual):
            return branches
        return [type(layer).__name__, getattr(layer, "channels", 0), *branches]


def _table(part: tuple[str, Any]) -> str:
    """A table of an architecture's TOML file: stem, one stage or head; without a name the keys above the tables."""
    import tomli_w

    name, value = part
    if not name:
        keys = dict(zip(("input", "classes", LIMIT), value, strict=True))
        return tomli_w.dumps({key: found for key, found in keys.items() if found is not None})
    text = tomli_w.dumps({name: value.model_dump(mode="json", by_alias=True, exclude_none=True)})
    return text.replace("[stage]", "[[stage]]", 1)


_ALWAYS = ("stride", "groups")
"""Fields that the page's script reads from every layer that has them."""


def _layer_fields(layer: Layer) -> list[Any]:
    named = fields(layer)
    count = next((i for i in range(len(named), 0, -1) if _is_said(layer, named[i - 1])), 0)
    return [type(layer).__name__, *(getattr(layer, field.name) for field in named[:count])]


def _is_said(layer: Layer, field: Field[Any]) -> bool:
    return field.name in _ALWAYS or getattr(layer, field.name) != field.default


def live_payload(statuses: Sequence[Status]) -> Json:
    """The process that searches each study, and its running trials, each with the images `of` its whole training."""
    return {"studies": [_live(status) for status in statuses]}


def _live(status: Status) -> Json:
    owner = status.owner
    return {
        "owner": None if owner is None else visible(owner.process),
        "since": None if owner is None else visible(owner.since),
        "waiting": len(status.interrupted),
        "running": [_running(status.study.spec, trial, progress) for trial, progress in status.running],
    }


def _running(spec: StudySpec, trial: Trial, progress: Running | None) -> Json:
    return {
        "trial": trial.number,
        "longer_of": trial.longer_of,
        "of": spec.recipe_of(longer=trial.longer_of is not None).samples,
        "doing": visible(progress.doing) if progress else "running",
        "samples": progress.samples if progress else None,
        "train_error": progress.train_error if progress else None,
        "since": visible(trial.started or ""),
        "by": visible(trial.process or ""),
        "arch": visible(trial.arch or ""),
    }
