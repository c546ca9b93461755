"""`igc-nas report`: how well the errors of a study's short trainings rank architectures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from igc_nas.cli.loading import load
from igc_nas.cli.options import as_json, data_dir_option, device_option, studies_dir
from igc_nas.cli.output import put, put_json, put_text, say

if TYPE_CHECKING:
    from igc_nas.analysis.proxy import FigureAgreement, FigureTau, Predictor, ProxyReport, StudySummary
    from igc_nas.analysis.ranking import Tau
    from igc_nas.analysis.surrogate_quality import SurrogateQuality
    from igc_nas.engine.search import Run
    from igc_nas.study.spec import StudySpec
    from igc_nas.study.study import Study


@click.command()
@click.argument("study")
@click.option(
    "--reference", metavar="STUDY2", help="Compare it with this study. [default: the longest training in STUDY/*]"
)
@click.option(
    "--figures", "train_figures", is_flag=True, help="First train the networks of the papers' figures, as STUDY/papers."
)
@click.option(
    "--confirm",
    type=click.IntRange(8, 1000),
    metavar="N",
    help="On a GPU, first train N candidates five times as long, as STUDY/long, and from another seed, as STUDY/seed1.",
)
@data_dir_option
@device_option
@as_json
@studies_dir
def report(**options: Any) -> None:
    """Print how well STUDY's short trainings rank architectures.

    They are compared with longer trainings of the same architectures and with the papers' figures: Kendall's tau-b
    with its 95 % interval for each rung, beside parameters, MACs and a random order as predictors; over all, and
    inside bins of similar parameters; recall of the best. The comparison includes the studies in STUDY's folder: a
    longer recipe (STUDY/long), another seed (STUDY/seed1), the papers' networks (STUDY/papers).

    \b
    Examples:
      igc-nas report igc_table
      igc-nas report mine --reference longer
      igc-nas report mine --confirm 40
    """
    request = ReportRequest(**options)
    found = reported(request)
    if request.as_json:
        put_json(found.to_dict())
        return
    _print(found.proxy)
    if found.surrogate:
        put_text("", f"surrogate  {found.surrogate.sentence()}")
    if found.plan:
        put_text("", f"plan       {found.plan}")


@dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """The options of `report`; None is what is not given."""

    study: str
    reference: str | None
    train_figures: bool
    confirm: int | None
    data_dir: Path | None
    device: str
    as_json: bool
    root: Path


@dataclass(frozen=True)
class Reported:
    """How the short trainings rank, how good the surrogate is, and what was done with the plan."""

    proxy: ProxyReport
    surrogate: SurrogateQuality | None
    plan: str | None

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        quality = asdict(self.surrogate.validation) if self.surrogate else None
        return asdict(self.proxy) | {"surrogate": quality, "plan": self.plan}


def reported(request: ReportRequest) -> Reported:
    """The report that is requested, after the trainings that it asks for."""
    from igc_nas.analysis.proxy import proxy_report
    from igc_nas.analysis.surrogate_quality import surrogate_quality
    from igc_nas.analysis.words import plan_words

    loaded = load(request.study, request.root)
    if request.train_figures:
        _train_figures(loaded, request.data_dir, request.device)
    if request.confirm is not None:
        _confirm(loaded, request.confirm, request.data_dir, request.device)
    reference = load(request.reference, request.root) if request.reference is not None else None
    return Reported(proxy_report(loaded, reference), surrogate_quality(loaded), plan_words(loaded))


def _train_figures(study: Study, data_dir: Path | None, device: str) -> None:
    """Train the networks of the papers' figures by the study's recipe; those already trained are kept."""
    from igc_nas.engine.related import paper_networks_search
    from igc_nas.nn.device import find_devices

    _search(*paper_networks_search(study, find_devices(device), data_dir))


def _confirm(study: Study, count: int, data_dir: Path | None, device: str) -> None:
    """Train candidates longer and from another seed; those already trained are kept. Raises `UsageError` on a CPU."""
    from igc_nas.engine.related import confirmation_searches
    from igc_nas.nn.device import find_devices

    for spec, run in confirmation_searches(study, find_devices(device), count, data_dir):
        say(f"{spec.name}: {run.trials} networks, {spec.recipe.samples:,} images each, in {run.folder}")
        _search(spec, run)


def _search(spec: StudySpec, run: Run) -> None:
    from igc_nas.engine.progress import SearchDisplay
    from igc_nas.engine.search import search

    with SearchDisplay(run.trials, None) as display:
        for _ in search(spec, run, on_event=display.show):
            pass


def _print(found: ProxyReport) -> None:
    from igc_nas.io.console import table_lines, terminal_width

    width = terminal_width()
    put_text(*_compared(found), "")
    put(*table_lines(PREDICTOR_COLUMNS, map(_cells, found.predictors), ("predictor",), width), "")
    put_text(*_verdicts(found), "", *_about_figures(found))
    rows = [_figure_cells(figure, row) for figure in found.figures if figure.study for row in figure.taus]
    if rows:
        put("", *table_lines(FIGURE_COLUMNS, rows, ("figure", "predictor"), width))


PREDICTOR_COLUMNS = (
    "predictor", "images", "n", "tau-b (95 %)", "inside bins (95 %)", "best 10 % found", "best 25 % found",
    "tau less params' (95 %)",
)  # fmt: skip
FIGURE_COLUMNS = ("figure", "predictor", "images", "n", "tau-b (95 %)")


def _cells(row: Predictor) -> list[str]:
    return [
        f"{NAMES[row.kind]} of {row.study}" if row.study else NAMES[row.kind],
        f"{row.samples:,}" if row.samples else "",
        str(row.overall.n),
        _text(row.overall),
        _text(row.inside),
        _share(row.recall_10),
        _share(row.recall_25),
        _text(row.over_params, "+") if row.over_params else "",
    ]


NAMES = {
    "rung": "rung", "end": "end", "loss": "loss at the end", "surrogate": "surrogate of the ends",
    "target": "surrogate at the reference's length", "longer": "end", "seed": "seed", "params": "params",
    "macs": "MACs", "random": "random (expected)",
}  # fmt: skip


def _figure_cells(figure: FigureAgreement, row: FigureTau) -> list[str]:
    images = f"{row.samples:,}" if row.samples else ""
    return [figure.figure, NAMES[row.kind], images, str(row.overall.n), _text(row.overall)]


def _share(recall: float | None) -> str:
    return "-" if recall is None else f"{100 * recall:.0f} %"


def _text(found: Tau, sign: str = "-") -> str:
    """`0.61 [0.52, 0.70]`; with `sign` "+" the signs of differences are written out."""
    if found.tau is None:
        return "-"
    if found.low is None or found.high is None:
        return f"{found.tau:{sign}.2f}"
    return f"{found.tau:{sign}.2f} [{found.low:{sign}.2f}, {found.high:{sign}.2f}]"


def _compared(found: ProxyReport) -> Iterator[str]:
    """What is compared with what, and how that limits the conclusions."""
    from igc_nas.analysis.words import counted

    study, reference = found.study, found.reference
    against = "its own end" if found.own_end else reference.name
    yield f"{study.name} against {against}: {found.shared} architectures" + ("" if found.own_end else " in both")
    yield f"proxy  {_conditions(study)}"
    if found.own_end:
        rungs = (
            ". The rungs are of the same trainings (same seed, same held-out images), so they agree with it more than "
            "with an independent training"
        )
        yield f"reference  its own end: no study in its folder trains longer{rungs if found.of('rung') else ''}"
        if found.promoted:
            yield (
                f"       not compared with its {counted(found.promoted, 'longer training')} of networks that were "
                "singled out: no sample to rank by"
            )
        if study.pruned:
            yield (
                f"       {study.pruned} trainings were pruned at a rung and have no end: what is ranked here are "
                f"those that looked better"
            )
        return
    yield f"reference  {_conditions(reference)}"
    yield f"       {found.longer:.3g} times the images of the proxy" + ("" if found.longer > 1 else ": NOT longer")
    if study.dataset_sha256 != reference.dataset_sha256:
        yield "       the two are on DIFFERENT DATA"
    elif study.seed == reference.seed:
        yield "       both have the same seed, so they are not independent"
    if study.pruned:
        yield f"       {study.pruned} trainings were pruned at a rung: they count there, and not at the end"


def _conditions(study: StudySummary) -> str:
    from igc_nas.analysis.words import recipe_words
    from igc_nas.cli.display import data_label
    from igc_nas.study.spec import Recipe

    pruned = f" and {study.pruned} pruned" if study.pruned else ""
    return (
        f"{study.name}: {data_label(study.dataset)}; {study.samples:,} images: "
        f"{recipe_words(Recipe.model_validate(study.recipe), held_out=True)}; seed {study.seed}; "
        f"{study.completed} trained{pruned}"
    )


def _verdicts(found: ProxyReport) -> Iterator[str]:
    """How each rung ranks beside the parameter count; then how much two seeds differ."""
    yield (
        f"tau-b: 1 is the reference's order, 0 none, -1 the reverse; inside bins ({found.bins}, of like parameters) "
        "only pairs of one bin count; 95 % bootstrap intervals over architectures (random: where 95 % of random orders "
        "lie)"
    )
    proxies = [row for row in found.predictors if row.is_proxy]
    for row in proxies:
        yield from _verdict(row)
    if not proxies:
        yield "The study has no rungs, and no study in its folder trains longer: only params and MACs can be judged."
    if found.target_within:
        within_68, within_95 = found.target_within
        yield (
            "The surrogate at the reference's length predicts each architecture from all others, whose longer "
            f"trainings it knows; its 68 % intervals hold {100 * within_68:.0f} % of the reference's errors, its 95 % "
            f"intervals {100 * within_95:.0f} %."
        )
    for repeat in found.repeats:
        yield (
            f"Two seeds of the proxy ({found.study.seed}, and {repeat.seed} in {repeat.study}), {repeat.overall.n} "
            f"architectures: tau {_text(repeat.overall)}, inside bins {_text(repeat.inside)}: what the seed's noise "
            "leaves of its order"
        )
    if not found.repeats:
        yield f"What the seed alone does to the order is not known: {found.study.name}/* has no study of another seed."


def _verdict(row: Predictor) -> Iterator[str]:
    at = f"The {NAMES[row.kind]} ({row.samples:,} images)"
    if row.overall.tau is None or row.params is None:
        yield f"{at}: {row.overall.n} architectures in common, or all tied: not ranked."
        return
    told = row.over_params
    paired = "" if told is None or told.low is None else f"; paired, the difference is {_text(told, '+')}"
    beside = f"tau {_text(row.overall)}, the parameter count's {_text(row.params)}"
    if row.versus_params == "above":
        yield f"{at} ranks better than the parameter count: {beside}; the intervals exclude each other{paired}."
    elif row.versus_params == "below":
        worse = "is no better than the parameter count; it is worse"
        yield f"{at} {worse}: {beside}; the intervals exclude each other{paired}."
    elif row.versus_params == "overlaps" and told is not None and told.low is not None and told.low > 0:
        yield f"{at} ranks better than the parameter count, architecture by architecture: {beside}{paired}."
    elif row.versus_params == "overlaps":
        yield f"{at} is no better than the parameter count by these intervals: {beside}; they overlap{paired}."
    else:
        yield f"{at}: {beside}: there is no interval to compare by."
    yield f"    Inside bins of like parameters: {_inside(row.inside)}."


def _inside(found: Tau) -> str:
    if found.tau is None or found.low is None or found.high is None:
        return f"tau {_text(found)}, no interval"
    if found.low > 0:
        return f"tau {_text(found)}, better than chance"
    if found.high < 0:
        return f"tau {_text(found)}, WORSE than chance"
    return f"tau {_text(found)}, not told from chance"


def _about_figures(found: ProxyReport) -> Iterator[str]:
    """The papers' figures: how many of their networks were trained, and on which data."""
    from igc_nas.cli.display import data_label

    yield (
        "The papers' figures, by printed accuracy (CIFAR-100, long trainings), against this recipe's errors "
        "(intervals over so few points are rough):"
    )
    for figure in found.figures:
        if figure.study is None:
            yield (
                f"  {figure.figure}: none of its {len(figure.points)} networks is trained by this recipe in "
                f"{found.study.name} or {found.study.name}/*"
            )
            continue
        few = "" if any(row.overall.tau is not None for row in figure.taus) else ": too few to rank"
        yield (
            f"  {figure.figure} ({figure.paper}; {figure.note}): {figure.trained} of {len(figure.points)} networks in "
            f"{figure.study.name}, on {data_label(figure.study.dataset)}{few}"
        )
