"""What a proxy's errors are worth: how far their order is that of a longer training, and of the papers' figures.

A study's folder may hold related studies, each in a folder of its own: the same architectures by a longer recipe, by
the same recipe from another seed, or the papers' networks by the same recipe. Architectures are matched by canonical
id. Every predictor is an error, or stands for one: more parameters or MACs promise less error, so theirs are -log.

A proxy is judged beside what costs nothing (params, MACs, chance) and inside bins of like params, because under a
parameter budget that is where a search has to choose (see `igc_nas.analysis.ranking` for the numbers).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from igc_nas.analysis.ranking import (
    Tau,
    chance_tau,
    quantile_bins,
    share_of,
    tau,
    tau_difference,
    top_recall,
    within_bins,
)
from igc_nas.analysis.surrogate_quality import predicted_errors
from igc_nas.arch.papers import Figure, figures
from igc_nas.errors import StudyError
from igc_nas.study.records import Candidate
from igc_nas.study.study import STUDY_FILE, Study, load_study

FEWEST = 5
"""Fewer architectures than these are not ranked."""

Kind = Literal["rung", "end", "loss", "belief", "seed", "params", "macs", "random"]
Versus = Literal["above", "overlaps", "below"]
By = Mapping[str, float]  # a value by canonical id


@dataclass(frozen=True, slots=True)
class Trained:
    """A study as what it trained: `samples` images for each of `completed` networks; `stopped` ones have no end."""

    name: str
    dataset: str
    dataset_sha256: str
    classes: int
    seed: int
    samples: int
    held_out: int
    completed: int
    pruned: int
    recipe: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Predictor:
    """How well one predictor orders the architectures as the truth does.

    `end` is the error at the end, `loss` the held-out loss there, `belief` the error that a surrogate of all the
    study's ends believes of it. `samples` are the images that it costs, None where it costs none; `study` names the
    study of another seed. `params` is the parameter count's tau on the same architectures, `over_params` the
    difference to it, paired; `versus_params` says whether the interval lies above, overlaps or lies below the parameter
    count's. Recall is of the truth's best 10 and 25 %. For `random` the taus are expected values, their intervals where
    95 % of random orders lie.
    """

    kind: Kind
    samples: int | None
    study: str | None
    overall: Tau
    inside: Tau
    recall_10: float | None
    recall_25: float | None
    over_params: Tau | None = None
    params: Tau | None = None
    versus_params: Versus | None = None

    @property
    def is_proxy(self) -> bool:
        """Whether it is the study's own training, at a rung or at the end."""
        return self.kind in ("rung", "end", "loss", "belief")


@dataclass(frozen=True, slots=True)
class Repeat:
    """The ends of the proxy from two seeds: what the noise of the seed leaves of its order.

    Not a strict limit: a truth with less noise than the proxy's may be agreed with somewhat better than that.
    """

    study: str
    seed: int
    overall: Tau
    inside: Tau


@dataclass(frozen=True, slots=True)
class FigureTau:
    """tau between a predictor and 1 - the printed accuracy, over the points of a figure that were trained."""

    kind: Kind
    samples: int | None
    overall: Tau


@dataclass(frozen=True, slots=True)
class FigurePoint:
    """A figure's network as printed and as the proxy found it (None: not trained). All from 0 to 1."""

    label: str
    printed_accuracy: float
    error: float | None
    params: int | None


@dataclass(frozen=True, slots=True)
class FigureAgreement:
    """A figure of the papers against the proxy, trained in `study` (None: in no study of this recipe)."""

    figure: str
    paper: str
    note: str
    study: Trained | None
    trained: int
    points: tuple[FigurePoint, ...]
    taus: tuple[FigureTau, ...]


@dataclass(frozen=True, slots=True)
class ProxyReport:
    """A study against its truth. `own_end`: the truth is the study's own end, of the same trainings.

    `shared` architectures are in both, in `bins` bins of like params. `longer` is the samples of truth / those of the
    study.
    """

    study: Trained
    truth: Trained
    own_end: bool
    shared: int
    bins: int
    longer: float
    predictors: tuple[Predictor, ...]
    repeats: tuple[Repeat, ...]
    figures: tuple[FigureAgreement, ...]

    def of(self, kind: Kind) -> tuple[Predictor, ...]:
        """The predictors of a kind."""
        return tuple(p for p in self.predictors if p.kind == kind)


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What a study knows of its architectures, each by canonical id. `rungs` by samples; stopped ones have no end."""

    params: By
    macs: By
    ends: By
    losses: By
    rungs: Mapping[int, By]


def proxy_report(study: Study, truth: Study | None = None) -> ProxyReport:
    """Hold a study against `truth`, else against the longest training among it and its related studies.

    Raises `StudyError` where they share fewer than `FEWEST` architectures, or where a related study cannot be read.
    """
    others = related(study)
    against = truth or longest(study, others)
    own_end = is_same(study, against)
    own, ends = _evidence(study), _evidence(against).ends
    shared = [name for name in own.params if name in ends]
    if len(shared) < FEWEST:
        raise _too_few(study, against, len(shared), own_end)
    repeats = [other for other in others if is_repeat(study, other)]
    values: list[tuple[Kind, int | None, str | None, By]] = [("rung", at, None, by) for at, by in own.rungs.items()]
    if not own_end:
        samples = study.spec.recipe.samples
        values += [("end", samples, None, own.ends), ("loss", samples, None, own.losses)]
        values += [("belief", samples, None, found)] if (found := predicted_errors(study)) else []
    values += [
        ("seed", other.spec.recipe.samples, label(study, other), _evidence(other).ends)
        for other in repeats
        if not is_same(other, against)
    ]
    values += [("params", None, None, _promise(own.params)), ("macs", None, None, _promise(own.macs))]
    bins = quantile_bins([own.params[name] for name in shared])
    return ProxyReport(
        study=trained(study, study.spec.name),
        truth=trained(against, label(study, against)),
        own_end=own_end,
        shared=len(shared),
        bins=len(set(bins.tolist())),
        longer=against.spec.recipe.samples / study.spec.recipe.samples,
        predictors=(
            *(_predictor(*value, ends, shared, own.params) for value in values),
            _random([own.params[name] for name in shared]),
        ),
        repeats=tuple(_repeat(study, own, other) for other in repeats),
        figures=tuple(_agreement(study, others, number) for number in range(len(figures()))),
    )


def related(study: Study) -> tuple[Study, ...]:
    """The studies in the folders inside a study's folder, by name. Raises `StudyError`."""
    if study.folder is None:
        return ()
    return tuple(load_study(path.parent) for path in sorted(study.folder.glob(f"*/{STUDY_FILE}")))


def longest(study: Study, others: Sequence[Study]) -> Study:
    """Of `others` that see more images than the study the one that sees the most; the study where none does.

    Those with too few architectures in common come last, so that a long training of other networks is not taken.
    """
    own = _evidence(study).params.keys()

    def rank(other: Study) -> tuple[bool, int, int]:
        shared = len(own & _evidence(other).ends.keys())
        return shared >= FEWEST, other.spec.recipe.samples, shared

    longer = [other for other in others if other.spec.recipe.samples > study.spec.recipe.samples]
    return max(longer, key=rank, default=study)


def is_same(one: Study, other: Study) -> bool:
    """Whether two are one study: by their folders where they have any."""
    if one.folder is None or other.folder is None:
        return one is other
    return one.folder.resolve() == other.folder.resolve()


def is_alike(one: Study, other: Study) -> bool:
    """Whether two studies train by one recipe; where it is scored on the way does not count."""
    recipes = (study.spec.recipe.model_dump(exclude={"rungs"}) for study in (one, other))
    return next(recipes) == next(recipes)


def is_repeat(one: Study, other: Study) -> bool:
    """Whether two studies train alike, on the same data, from different seeds."""
    same_data = one.spec.dataset_sha256 == other.spec.dataset_sha256
    return same_data and one.spec.seed != other.spec.seed and is_alike(one, other)


def label(study: Study, other: Study) -> str:
    """What to call another study: by its folder where that is inside the study's, else by its name."""
    if (
        study.folder is not None
        and other.folder is not None
        and other.folder.resolve().parent == study.folder.resolve()
    ):
        return f"{study.spec.name}/{other.folder.name}"
    return other.spec.name


def trained(study: Study, name: str) -> Trained:
    """A study's conditions."""
    spec = study.spec
    return Trained(
        name=name,
        dataset=spec.dataset,
        dataset_sha256=spec.dataset_sha256,
        classes=spec.classes,
        seed=spec.seed,
        samples=spec.recipe.samples,
        held_out=spec.recipe.held_out,
        completed=len(study.candidates),
        pruned=sum(trial.pruned is not None for trial in study.trials),
        recipe=spec.recipe.model_dump(mode="json"),
    )


def _evidence(study: Study) -> _Evidence:
    params: dict[str, float] = {}
    macs: dict[str, float] = {}
    ends: dict[str, float] = {}
    losses: dict[str, float] = {}
    rungs: dict[int, dict[str, float]] = {}
    for trial in study.trials:
        known = trial.candidate or trial.pruned
        if known is None or known.id in params:
            continue
        params[known.id], macs[known.id] = known.cost.params, known.cost.macs
        if isinstance(known, Candidate):
            ends[known.id], losses[known.id] = known.score.error, known.score.loss
        for rung in known.score.rungs if isinstance(known, Candidate) else known.training.rungs:
            rungs.setdefault(rung.samples, {})[known.id] = rung.error
    return _Evidence(params, macs, ends, losses, dict(sorted(rungs.items())))


def _promise(counts: By) -> By:
    return {name: -math.log(count) for name, count in counts.items()}


def _predictor(
    kind: Kind, samples: int | None, study: str | None, by: By, ends: By, shared: Sequence[str], params: By
) -> Predictor:
    names = [name for name in shared if name in by]
    if len(names) < FEWEST:
        few = Tau(len(names))
        return Predictor(kind, samples, study, few, few, None, None)
    values, truth = [by[name] for name in names], [ends[name] for name in names]
    sizes = [params[name] for name in names]
    small = [-math.log(size) for size in sizes]
    overall, beside = tau(values, truth), tau(small, truth)
    return Predictor(
        kind=kind,
        samples=samples,
        study=study,
        overall=overall,
        inside=within_bins(values, truth, sizes),
        recall_10=top_recall(values, truth, share_of(len(names), 0.10)),
        recall_25=top_recall(values, truth, share_of(len(names), 0.25)),
        over_params=None if kind == "params" else tau_difference(values, small, truth),
        params=None if kind == "params" else beside,
        versus_params=None if kind == "params" else versus(overall, beside),
    )


def versus(one: Tau, other: Tau) -> Versus | None:
    """Where one interval lies to another; None where either has none."""
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return None
    return "above" if one.low > other.high else "below" if one.high < other.low else "overlaps"


def _random(params: Sequence[float]) -> Predictor:
    n = len(params)
    return Predictor(
        kind="random",
        samples=None,
        study=None,
        overall=chance_tau(n),
        inside=chance_tau(n, quantile_bins(params)),
        recall_10=share_of(n, 0.10) / n,
        recall_25=share_of(n, 0.25) / n,
    )


def _repeat(study: Study, own: _Evidence, other: Study) -> Repeat:
    theirs = _evidence(other).ends
    names = [name for name in own.ends if name in theirs]
    if len(names) < FEWEST:
        few = Tau(len(names))
        return Repeat(label(study, other), other.spec.seed, few, few)
    one, two = [own.ends[name] for name in names], [theirs[name] for name in names]
    inside = within_bins(one, two, [own.params[name] for name in names])
    return Repeat(label(study, other), other.spec.seed, tau(one, two), inside)


def _agreement(study: Study, others: Sequence[Study], number: int) -> FigureAgreement:
    """Figure `number` against the study of this recipe, on whatever data, that trained the most of its networks."""
    alike = [study, *(other for other in others if is_alike(study, other))]
    held = [(one, _evidence(one), figures(one.spec.classes)[number]) for one in alike]
    best, evidence, figure = max(held, key=lambda found: len(_ids(found[2]).keys() & found[1].ends.keys()))
    by_id = _ids(figure)
    names = [name for name in by_id if name in evidence.ends]
    printed = {name: 1 - figure.points[at].accuracy for name, at in by_id.items()}
    rows: list[tuple[Kind, int | None, By]] = [("rung", at, by) for at, by in evidence.rungs.items()]
    rows += [("end", study.spec.recipe.samples, evidence.ends)]
    rows += [("params", None, _promise(evidence.params)), ("macs", None, _promise(evidence.macs))]
    return FigureAgreement(
        figure=figure.name,
        paper=figure.paper,
        note=figure.note,
        study=trained(best, label(study, best)) if names else None,
        trained=len(names),
        points=tuple(
            FigurePoint(
                point.label,
                point.accuracy,
                evidence.ends.get(name),
                int(evidence.params[name]) if name in evidence.params else None,
            )
            for name, point in zip(by_id, figure.points, strict=True)
        ),
        taus=tuple(FigureTau(kind, samples, _tau_of(by, printed, names)) for kind, samples, by in rows),
    )


def _ids(figure: Figure) -> dict[str, int]:
    return {point.id: at for at, point in enumerate(figure.points)}


def _tau_of(by: By, truth: By, among: Sequence[str]) -> Tau:
    names = [name for name in among if name in by]
    if len(names) < FEWEST:
        return Tau(len(names))
    return tau([by[name] for name in names], [truth[name] for name in names])


def _too_few(study: Study, truth: Study, shared: int, own_end: bool) -> StudyError:
    name = study.spec.name
    if own_end:
        return StudyError(
            f"{name} has {shared} completed trials; ranks are compared from {FEWEST} architectures on",
            f"igc-nas search {_place(study)} --trials {FEWEST}",
        )
    other = label(study, truth)
    if study.spec.classes != truth.spec.classes:
        why = f"{name} has {study.spec.classes} classes and {other} {truth.spec.classes}: no network is the same"
        hint = f"{why}; name another study with --truth"
    else:
        hint = f"train more of them: igc-nas search {_place(truth)}; or name another study with --truth"
    return StudyError(
        f"{name} and {other} have {shared} architectures in common; ranks are compared from {FEWEST} on", hint
    )


def _place(study: Study) -> str:
    if study.folder is None:
        return f"--study {study.spec.name}"
    return f"--studies-dir {study.folder.parent} --study {study.folder.name}"
