"""The quality of a proxy: how well a study's short trainings rank architectures as longer ones and the papers do.

The ranking is compared with a reference: a longer training of the same architectures. A study's folder may hold related
studies, each in a folder of its own: the same architectures with a longer recipe, the same recipe with another seed, or
the papers' networks with the same recipe. Architectures are matched by canonical id. Every predictor is an error or
replaces one: params and MACs as -log, since larger networks tend to have lower errors.

A proxy is compared with predictors that need no training (params, MACs, chance), overall and inside bins of similar
params: under a parameter budget a search has to choose among networks of similar size. The statistics are in
`igc_nas.analysis.ranking`.
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
from igc_nas.analysis.target_quality import TargetQuality, target_quality
from igc_nas.analysis.words import counted
from igc_nas.arch.papers import figures
from igc_nas.errors import StudyError
from igc_nas.study.names import search_command
from igc_nas.study.records import Candidate
from igc_nas.study.study import STUDY_FILE, Study, load_study

MIN_SHARED = 5
"""Rankings of fewer architectures are not compared."""

Kind = Literal["rung", "end", "loss", "surrogate", "target", "longer", "seed", "params", "macs", "random"]
Versus = Literal["above", "overlaps", "below"]
ById = Mapping[str, float]
"""A value of each architecture, by canonical id."""


@dataclass(frozen=True, slots=True)
class StudySummary:
    """The conditions of a study: `completed` networks were trained with `samples` images each, `pruned` with fewer."""

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
    """How well one predictor ranks the architectures as the reference does: tau-b `overall` and `inside` bins.

    Of the kinds, `end` is the final error, `loss` the final held-out loss, `surrogate` the final error as predicted
    by the surrogate of the study's final errors, `target` the reference's error as predicted by the surrogate over
    the length of training from all other architectures (`igc_nas.analysis.target_quality`), `longer` the final error of
    a related study whose trainings are longer than the study's, and no longer than the reference's. `samples` is the
    number of training images that the predictor needs, None for none; `study` names the related study. `params` is
    the parameter count's tau on the same architectures, `over_params` the paired difference to it; `versus_params`
    says whether the interval lies above, overlaps or lies below the parameter count's. Recall is of the reference's
    best 10 and 25 %. For `random` the taus are expected values, and 95 % of random orders lie in their intervals.
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
        """Whether it comes from the study's own trainings."""
        return self.kind in ("rung", "end", "loss", "surrogate", "target")


@dataclass(frozen=True, slots=True)
class Repeat:
    """tau between the proxy's final errors with two seeds: how reproducible its ranking is.

    It is no strict upper bound of the tau with a reference, whose errors may have less noise than the proxy's.
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
    """A network of a figure: the printed accuracy, and the proxy's error (None: not trained), both from 0 to 1."""

    label: str
    printed_accuracy: float
    error: float | None
    params: int | None


@dataclass(frozen=True, slots=True)
class FigureAgreement:
    """A figure of the papers against the proxy.

    `trained` is the number of its networks that were trained in `study` (None: no study of this recipe has any).
    """

    figure: str
    paper: str
    note: str
    study: StudySummary | None
    trained: int
    points: tuple[FigurePoint, ...]
    taus: tuple[FigureTau, ...]


@dataclass(frozen=True, slots=True)
class ProxyReport:
    """A study against its reference. `own_end`: the reference is the study itself, that is its rungs' final errors.

    `shared` architectures are in both, in `bins` bins of similar params. `longer` is the ratio of the reference's
    training samples to the study's.
    """

    study: StudySummary
    reference: StudySummary
    own_end: bool
    shared: int
    bins: int
    longer: float
    predictors: tuple[Predictor, ...]
    repeats: tuple[Repeat, ...]
    figures: tuple[FigureAgreement, ...]
    promoted: int = 0
    """The study's own longer trainings (`StudySpec.target`): of networks that were singled out, so no reference."""
    target_within: tuple[float, float] | None = None
    """The shares of the reference's errors inside the 68 and 95 % intervals of the predictor `target`."""

    def of(self, kind: Kind) -> tuple[Predictor, ...]:
        """The predictors of a kind."""
        return tuple(p for p in self.predictors if p.kind == kind)


@dataclass(frozen=True, slots=True)
class _StudyValues:
    """The values of a study's architectures; `rungs` by samples. Pruned architectures have no final error and loss."""

    params: ById
    macs: ById
    ends: ById
    losses: ById
    rungs: Mapping[int, ById]


@dataclass(frozen=True, slots=True)
class _Ranking:
    """The values by which a predictor ranks architectures; see `Predictor` for the other fields."""

    kind: Kind
    samples: int | None
    values: ById
    study: str | None = None


@dataclass(frozen=True, slots=True)
class _Target:
    """The ranking to predict: the reference's `errors` of the architectures `ids`, and their params for the bins."""

    ids: Sequence[str]
    errors: ById
    params: ById


def proxy_report(study: Study, reference: Study | None = None) -> ProxyReport:
    """Compare a study with `reference`, by default the longest training among itself and its related studies.

    Raises `StudyError` if they share fewer than `MIN_SHARED` architectures, or if a related study cannot be read.
    """
    others = related(study)
    reference = reference or longest(study, others)
    own_end = is_same(study, reference)
    own, ends = _values_of(study), _values_of(reference).ends
    target = _Target([id_ for id_ in own.params if id_ in ends], ends, own.params)
    if len(target.ids) < MIN_SHARED:
        raise _too_few(study, reference, len(target.ids), own_end)
    repeats = [other for other in others if is_repeat(study, other)]
    lengths = range(samples_of(study) + 1, samples_of(reference) + 1)
    longer = [other for other in others if samples_of(other) in lengths and not is_same(other, reference)]
    quality = None if own_end else target_quality(study, reference, longer)
    rankings = _rankings(study, own, own_end, quality)
    rankings += [_ranking_of("longer", study, other) for other in longer]
    rankings += [_ranking_of("seed", study, other) for other in repeats if not is_same(other, reference)]
    rankings += [_Ranking("params", None, _negative_log(own.params)), _Ranking("macs", None, _negative_log(own.macs))]
    sizes = [own.params[id_] for id_ in target.ids]
    return ProxyReport(
        study=summary(study, study.spec.name),
        reference=summary(reference, label(study, reference)),
        own_end=own_end,
        shared=len(target.ids),
        bins=len(set(quantile_bins(sizes).tolist())),
        longer=samples_of(reference) / samples_of(study),
        predictors=(*(_predictor(ranking, target) for ranking in rankings), _random(sizes)),
        repeats=tuple(_repeat(study, own, other) for other in repeats),
        figures=tuple(_figure_agreement(study, others, number) for number in range(len(figures()))),
        promoted=len(study.longer),
        target_within=(quality.within_68, quality.within_95) if quality else None,
    )


def _rankings(study: Study, own: _StudyValues, own_end: bool, quality: TargetQuality | None) -> list[_Ranking]:
    """The predictors by the study's own trainings. With `own_end` its final errors are what is to be predicted."""
    found = [_Ranking("rung", samples, errors) for samples, errors in own.rungs.items()]
    if own_end:
        return found
    samples = samples_of(study)
    found += [_Ranking("end", samples, own.ends), _Ranking("loss", samples, own.losses)]
    if predicted := predicted_errors(study):
        found.append(_Ranking("surrogate", samples, predicted))
    return [*found, _Ranking("target", samples, quality.errors)] if quality else found


def _ranking_of(kind: Kind, study: Study, other: Study) -> _Ranking:
    """By the final errors of a related study."""
    return _Ranking(kind, samples_of(other), _values_of(other).ends, label(study, other))


def samples_of(study: Study) -> int:
    """Images of one of its trainings."""
    return study.spec.recipe.samples


def related(study: Study) -> tuple[Study, ...]:
    """The studies in the folders inside a study's folder, in order of the folders' names. Raises `StudyError`."""
    if study.folder is None:
        return ()
    return tuple(load_study(path.parent) for path in sorted(study.folder.glob(f"*/{STUDY_FILE}")))


def longest(study: Study, others: Sequence[Study]) -> Study:
    """The one of `others` with the most training samples, if more than the study's; else the study itself.

    One with too few architectures in common is chosen last, since it may be a long training of other networks.
    """
    own = _values_of(study).params.keys()

    def rank(other: Study) -> tuple[bool, int, int]:
        shared = len(own & _values_of(other).ends.keys())
        return shared >= MIN_SHARED, samples_of(other), shared

    longer = [other for other in others if samples_of(other) > samples_of(study)]
    return max(longer, key=rank, default=study)


def is_same(one: Study, other: Study) -> bool:
    """Whether two are the same study: by their folders if both have one."""
    if one.folder is None or other.folder is None:
        return one is other
    return one.folder.resolve() == other.folder.resolve()


def has_same_recipe(one: Study, other: Study) -> bool:
    """Whether two studies have the same recipe, apart from its rungs."""
    recipes = (study.spec.recipe.model_dump(exclude={"rungs"}) for study in (one, other))
    return next(recipes) == next(recipes)


def is_repeat(one: Study, other: Study) -> bool:
    """Whether two studies have the same recipe and data, and different seeds."""
    same_data = one.spec.dataset_sha256 == other.spec.dataset_sha256
    return same_data and one.spec.seed != other.spec.seed and has_same_recipe(one, other)


def label(study: Study, other: Study) -> str:
    """A name for another study: the path of its folder if that is inside the study's, else its own name."""
    if (
        study.folder is not None
        and other.folder is not None
        and other.folder.resolve().parent == study.folder.resolve()
    ):
        return f"{study.spec.name}/{other.folder.name}"
    return other.spec.name


def summary(study: Study, name: str) -> StudySummary:
    """A study's conditions, under this name."""
    spec = study.spec
    return StudySummary(
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


def _values_of(study: Study) -> _StudyValues:
    """The values of a study; of an architecture with several trials those of the first one."""
    params: dict[str, float] = {}
    macs: dict[str, float] = {}
    ends: dict[str, float] = {}
    losses: dict[str, float] = {}
    rungs: dict[int, dict[str, float]] = {}
    for trial in study.trials:
        known = trial.candidate or trial.pruned
        if trial.is_aside or known is None or known.id in params:
            continue
        params[known.id], macs[known.id] = known.cost.params, known.cost.macs
        if isinstance(known, Candidate):
            ends[known.id], losses[known.id] = known.score.error, known.score.loss
        for rung in known.score.rungs if isinstance(known, Candidate) else known.training.rungs:
            rungs.setdefault(rung.samples, {})[known.id] = rung.error
    return _StudyValues(params, macs, ends, losses, dict(sorted(rungs.items())))


def _negative_log(counts: ById) -> ById:
    return {id_: -math.log(count) for id_, count in counts.items()}


def _predictor(ranking: _Ranking, target: _Target) -> Predictor:
    """The statistics of a ranking on the architectures that it has values of."""
    kind, samples, study = ranking.kind, ranking.samples, ranking.study
    ids = [id_ for id_ in target.ids if id_ in ranking.values]
    if len(ids) < MIN_SHARED:
        few = Tau(len(ids))
        return Predictor(kind, samples, study, few, few, None, None)
    values, errors = [ranking.values[id_] for id_ in ids], [target.errors[id_] for id_ in ids]
    sizes = [target.params[id_] for id_ in ids]
    by_params = [-math.log(size) for size in sizes]
    overall, tau_of_params = tau(values, errors), tau(by_params, errors)
    return Predictor(
        kind=kind,
        samples=samples,
        study=study,
        overall=overall,
        inside=within_bins(values, errors, sizes),
        recall_10=top_recall(values, errors, share_of(len(ids), 0.10)),
        recall_25=top_recall(values, errors, share_of(len(ids), 0.25)),
        over_params=None if kind == "params" else tau_difference(values, by_params, errors),
        params=None if kind == "params" else tau_of_params,
        versus_params=None if kind == "params" else versus(overall, tau_of_params),
    )


def versus(one: Tau, other: Tau) -> Versus | None:
    """Where one interval lies relative to another; None if either has no interval."""
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


def _repeat(study: Study, own: _StudyValues, other: Study) -> Repeat:
    ends = _values_of(other).ends
    ids = [id_ for id_ in own.ends if id_ in ends]
    if len(ids) < MIN_SHARED:
        few = Tau(len(ids))
        return Repeat(label(study, other), other.spec.seed, few, few)
    one, two = [own.ends[id_] for id_ in ids], [ends[id_] for id_ in ids]
    inside = within_bins(one, two, [own.params[id_] for id_ in ids])
    return Repeat(label(study, other), other.spec.seed, tau(one, two), inside)


def _figure_agreement(study: Study, others: Sequence[Study], number: int) -> FigureAgreement:
    """Figure `number` against the study of this recipe, on any dataset, that trained the most of its networks."""
    with_recipe = [study, *(other for other in others if has_same_recipe(study, other))]
    found = [(one, _values_of(one), figures(one.spec.classes)[number]) for one in with_recipe]
    best, known, figure = max(found, key=lambda item: len({point.id for point in item[2].points} & item[1].ends.keys()))
    points = {point.id: point for point in figure.points}
    trained = [id_ for id_ in points if id_ in known.ends]
    printed = {id_: 1 - point.accuracy for id_, point in points.items()}
    rankings = [
        *(_Ranking("rung", samples, errors) for samples, errors in known.rungs.items()),
        _Ranking("end", samples_of(study), known.ends),
        _Ranking("params", None, _negative_log(known.params)),
        _Ranking("macs", None, _negative_log(known.macs)),
    ]
    return FigureAgreement(
        figure=figure.name,
        paper=figure.paper,
        note=figure.note,
        study=summary(best, label(study, best)) if trained else None,
        trained=len(trained),
        points=tuple(
            FigurePoint(
                point.label,
                point.accuracy,
                known.ends.get(id_),
                int(known.params[id_]) if id_ in known.params else None,
            )
            for id_, point in points.items()
        ),
        taus=tuple(_figure_tau(ranking, printed, trained) for ranking in rankings),
    )


def _figure_tau(ranking: _Ranking, printed: ById, trained: Sequence[str]) -> FigureTau:
    ids = [id_ for id_ in trained if id_ in ranking.values]
    overall = Tau(len(ids))
    if len(ids) >= MIN_SHARED:
        overall = tau([ranking.values[id_] for id_ in ids], [printed[id_] for id_ in ids])
    return FigureTau(ranking.kind, ranking.samples, overall)


def _too_few(study: Study, reference: Study, shared: int, own_end: bool) -> StudyError:
    name = study.spec.name
    if own_end:
        trials = study.ended + MIN_SHARED - shared  # pruned trials count in --trials, and rank nothing
        return StudyError(
            f"{name} has {counted(shared, 'completed trial')}; rankings need at least {MIN_SHARED} architectures",
            f"{search_command(study.folder, name)} --trials {trials}",
        )
    other = label(study, reference)
    if study.spec.classes != reference.spec.classes:
        why = f"{name} has {study.spec.classes} classes and {other} {reference.spec.classes}: no network is the same"
        hint = f"{why}; name another study with --reference"
    else:
        more = search_command(reference.folder, reference.spec.name)
        hint = f"name another study with --reference, or train more of them: {more}"
    return StudyError(
        f"{name} and {other} have {shared} architectures in common; rankings need at least {MIN_SHARED}", hint
    )
