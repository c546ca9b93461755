"""`igc-nas finals`: train a study's best candidates and baselines to the end, and compare their test accuracies."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from igc_nas.cli.loading import code_notices, core_notices, load, load_torch, quiet_threads
from igc_nas.cli.options import (
    RecipeRequest,
    as_json,
    data_dir_option,
    deterministic_option,
    device_option,
    recipe_options,
    studies_dir,
)
from igc_nas.cli.output import put, put_json, put_text, say
from igc_nas.errors import StudyError, UsageError
from igc_nas.study.names import study_argument

if TYPE_CHECKING:
    from igc_nas.analysis.finalists import Pick
    from igc_nas.arch.config import ArchConfig
    from igc_nas.data.datasets import DatasetInfo
    from igc_nas.engine.finals import Entrant, Finals
    from igc_nas.nn.device import Device
    from igc_nas.study.finals import Final
    from igc_nas.study.study import Study


@dataclass(frozen=True)
class FinalsRequest(RecipeRequest):
    """The options of `igc-nas finals`, one field each. None: not given."""

    study: str
    pick: tuple[str, ...]
    top: int
    baselines: tuple[str, ...]
    seeds: int
    workers: int | None
    no_latency: bool
    retry_failed: bool
    dry_run: bool
    device: str
    deterministic: bool
    data_dir: Path | None
    root: Path
    as_json: bool


@click.command()
@click.argument("study")
@click.option(
    "--pick",
    multiple=True,
    metavar="RULE",
    help="Which candidates (repeatable): front, knee, best-error, smallest, trial:N, or under:params=500k (also "
    "latency=2ms): those within it that surrogate and proxy together rank best. [default: front]",
)
@click.option("--top", type=click.IntRange(1, 1000), default=8, show_default=True, help="Candidates per --pick.")
@click.option(
    "--baselines",
    multiple=True,
    metavar="ARCH,...",
    help="Networks beside them: names such as resnet20-a,mobilenetv2-x0.5 (see README), .toml files, STUDY:N; or the "
    "sets of `igc-nas search`, `literature` and `igc`, within the budget.",
)
@recipe_options
@click.option("--seeds", type=click.IntRange(1, 100), default=1, show_default=True, help="Trainings of each network.")
@click.option("--workers", type=click.IntRange(1, 256), help="Worker processes. [default: cores, or GPUs]")
@click.option("--no-latency", is_flag=True, help="Do not measure the latencies of baselines.")
@click.option("--retry-failed", is_flag=True, help="Train failed ones again, from the start.")
@click.option("--dry-run", is_flag=True, help="Show what would be trained, and end.")
@device_option
@deterministic_option
@data_dir_option
@studies_dir
@as_json
def finals(**options: Any) -> None:
    """Train STUDY's best candidates, and baselines, to the end.

    Every network is trained from scratch on all training images by one recipe, and tested once. The time that this
    takes is measured and printed first. The same command continues after any interruption. Results are in
    finals.jsonl in the study's folder, weights in its folder finals.

    \b
    Examples:
      igc-nas finals igc_cifar10_2m --pick under:params=200k --top 4 --dry-run
      igc-nas finals STUDY --baselines resnet20-a,mobilenetv2-x0.5 --seeds 3
    """
    request = FinalsRequest(**options)
    if request.dry_run and request.as_json:
        raise UsageError("--json prints results, and --dry-run has none", "leave out one of them")
    recipe = trained(request)
    if recipe is not None:
        print_finals(load(request.study, request.root), "json" if request.as_json else "table", recipe)


def trained(request: FinalsRequest) -> str | None:
    """Train the finals that are requested, with their progress: their recipe as JSON; None for a dry run."""
    from igc_nas.cli.study_flags import parse_recipe

    quiet_threads(1)
    study = load(request.study, request.root)
    parse_recipe(request.recipe)
    picks, baselines = _picks(study, request), _baselines(study, request.baselines, request.root)
    info, notice = _dataset(study, request.data_dir)
    load_torch()  # what is wrong with the request has been said
    from igc_nas.nn.device import extent_on, find_devices

    devices = find_devices(request.device)
    entrants = _entrants(study, picks, baselines)
    final = _finals(study, entrants, info, devices, request)
    say(*code_notices(devices[0].kind), *core_notices("workers", request.workers))
    _announce(study, final, notice, request)
    if request.dry_run:
        return None
    workers = request.workers or extent_on(devices).workers
    _train(final, tuple(device.torch_name for device in devices), workers, request.deterministic)
    return final.recipe.model_dump_json()


def _picks(study: Study, request: FinalsRequest) -> list[Pick]:
    from igc_nas.analysis.finalists import finalists

    return finalists(study, request.pick or ("front",), request.top)


def _entrants(study: Study, picks: list[Pick], baselines: list[tuple[str, ArchConfig]]) -> list[Entrant]:
    """The picks, then the baselines; a network that is both stays the trial."""
    from igc_nas.engine.finals import Entrant

    found = {}
    for pick in picks:
        c = pick.candidate
        after = f" after {study.spec.target.images:,} images" if study.expected and study.spec.target else ""
        expected = "" if pick.expected is None else f", expected{after} {100 * pick.expected:.1f} %"
        why = f"{pick.why}; proxy error {100 * c.score.error:.1f} %{expected}"
        found[c.id] = Entrant(f"trial {c.trial}", c.arch, why, c.trial, c.latency)
    known = {c.id: c for c in (*study.candidates, *(t.candidate for t in study.baselines if t.candidate))}
    for name, arch in baselines:
        entrant = Entrant(name, arch, "baseline")
        if entrant.id in known:
            entrant = Entrant(name, arch, "baseline", latency=known[entrant.id].latency)
        found.setdefault(entrant.id, entrant)
    side = study.spec.latency.input[1]
    for entrant in found.values():
        if entrant.arch.input != (3, side, side):
            size = " x ".join(map(str, entrant.arch.input))
            raise UsageError(f"{entrant.name} is for images of {size}; the study's are 3 x {side} x {side}")
    return list(found.values())


def _baselines(study: Study, texts: Sequence[str], root: Path) -> list[tuple[str, ArchConfig]]:
    """(name, architecture) of the networks in comma-separated texts. Raises `ConfigError`, `StudyError`, `UsageError`.

    A set, `literature` or `igc`, stands for its networks within the study's budget, as in `igc-nas search`.
    """
    from igc_nas.study.baselines import SETS, baseline_network, baselines_of, comma_separated

    found: dict[str, ArchConfig] = {}
    for name in comma_separated(texts):
        if name in SETS:
            admitted, _ = baselines_of((name,), study.spec, root)
            if not admitted:
                raise UsageError(f"no network of {name} is within the study's budget", "name baselines yourself")
            found |= {baseline.name: baseline.arch for baseline in admitted}
        else:
            short = Path(name).stem if name.endswith(".toml") else name
            found[short[:200]] = baseline_network(name, study.spec.classes, root)
    return list(found.items())


def _dataset(study: Study, folder: Path | None) -> tuple[DatasetInfo, str | None]:
    from igc_nas.data.datasets import relocate

    info = relocate(study.spec.dataset, study.spec.dataset_sha256, folder)
    if (info.label, info.sha256) != (study.spec.dataset, study.spec.dataset_sha256):
        raise StudyError(
            f"the dataset is {info.label}; the study is about {study.spec.dataset}", "give its folder with --data-dir"
        )
    return info, "SYNTHETIC shapes: these accuracies say nothing about photographs" if info.synthetic else None


def _finals(
    study: Study, entrants: list[Entrant], info: DatasetInfo, devices: Sequence[Device], request: FinalsRequest
) -> Finals:
    from igc_nas.cli.recipes import full_recipe_of
    from igc_nas.engine.finals import Finals
    from igc_nas.evaluation.retraining import RUN_FILE
    from igc_nas.study.finals import FINALS_FOLDER

    begun = study.folder.glob(f"{FINALS_FOLDER}/*/*/{RUN_FILE}") if study.folder else ()
    recipe = full_recipe_of(request, study.spec.latency.input[1], devices[0], 1, begun)
    here = not study.spec.latency.remote and study.spec.latency.device == devices[0].name
    return Finals(
        study,
        entrants,
        recipe,
        info,
        request.seeds,
        measure=here and not request.no_latency,
        retry_failed=request.retry_failed,
    )


def _announce(study: Study, final: Finals, notice: str | None, request: FinalsRequest) -> None:
    from igc_nas.analysis.words import counted, schedule_words
    from igc_nas.arch.cost import cost_of
    from igc_nas.io.console import table_lines, terminal_width
    from igc_nas.io.units import format_count

    without = [entrant.name for entrant in final.entrants if entrant.latency is None]
    why = "--no-latency" if request.no_latency else f"the study's are of {study.spec.latency.device}"
    say(
        *([notice, ""] if notice else []),
        f"finals of {study.spec.name}: {counted(len(final.entrants), 'network')}, {counted(final.seeds, 'seed')} each",
        f"data      all {final.info.train_count:,} training images of {final.info.label}; tested once, at the end",
        f"recipe    {schedule_words(final.recipe)}",
        *([f"latency   not measured for baselines: {why}"] if without and not final.measure else []),
        "stop      Ctrl-C; the same command continues",
    )
    rows = []
    for entrant in final.entrants:
        cost = cost_of(entrant.arch)
        rows.append((entrant.name, format_count(cost.params), format_count(cost.macs), entrant.why))
    say(*table_lines(("network", "params", "MACs", "why"), rows, ("network", "why"), terminal_width(sys.stderr)))


def _train(final: Finals, devices: tuple[str, ...], workers: int, deterministic: bool) -> None:
    """Train what has not ended yet, with the time said first."""
    from igc_nas.analysis.words import counted
    from igc_nas.engine.events import Event
    from igc_nas.engine.executor import TrialFailed
    from igc_nas.engine.training_display import TrainingDisplay, clock_in, time_left
    from igc_nas.engine.trainings import Trainings
    from igc_nas.io.units import format_seconds

    with final:
        total = len(final.entrants) * final.seeds
        if len(final.jobs) < total:
            say(f"{total - len(final.jobs)} of {counted(total, 'training')} have ended before")
        if not final.jobs:
            return
        workers = min(workers, len(final.jobs))
        names = {number: _name(entrant.name, job.seed, final.seeds) for number, (entrant, job) in final.jobs.items()}
        display = TrainingDisplay(names, workers=workers)

        def on_event(event: Event) -> None:
            final.started(event)
            display.show(event)

        images = final.recipe.epochs * final.info.train_count
        with display, Trainings(final.plan, devices, workers, 1, on_event, deterministic) as trainings:
            display.say(
                f"timing {counted(len({e.id for e, _ in final.jobs.values()}), 'network')}, to tell how long this takes"
            )
            speeds: dict[str, float] = {}
            for entrant, speed in final.images_per_s(trainings):
                if isinstance(speed, TrialFailed):
                    display.say(f"{entrant.name}: failed: {speed.reason}")
                else:
                    speeds[entrant.id] = speed
            display.timed({number: images / speeds[entrant.id] for number, (entrant, _) in final.jobs.items()})
            seconds = time_left(list(display.seconds.values()), workers)
            if seconds is not None:
                display.say(
                    f"time      about {format_seconds(seconds)}, until {clock_in(seconds)}, by "
                    f"{counted(workers, 'worker')}; {counted(len(final.jobs), 'training')} of {images:,} images, at "
                    f"{min(speeds.values()):,.0f} to {max(speeds.values()):,.0f} images a second"
                )
            for number, record in final.run(trainings):
                display.ended(number, _ended_line(names[number], record))


def _name(name: str, seed: int, seeds: int) -> str:
    return name if seeds == 1 else f"{name} s{seed}"


def _ended_line(name: str, final: Final) -> str:
    from igc_nas.io.units import format_seconds

    if final.trained is None:
        where = f" ({final.failure.kind}, {final.failure.where})" if final.failure else ""
        return f"{name}: failed: {final.reason}{where}"
    return (
        f"{name}: test accuracy {100 * (1 - final.trained.test.error):.2f} %, "
        f"{format_seconds(final.trained.train_s)}, {final.trained.images_per_s:,.0f} images/s"
    )


def print_finals(study: Study, output: str, recipe: str | None = None) -> None:
    """Print a study's finals, those of the newest recipe first; `recipe` (as JSON) prints one only."""
    from igc_nas.analysis.finals import COLUMNS, LEGEND, final_dict, final_rows, group_title
    from igc_nas.study.finals import finals_groups

    groups = [g for g in finals_groups(study.finals) if recipe in (None, g.recipe.model_dump_json())]
    objectives = study.spec.objectives
    if output == "json":
        put_json(
            [
                {
                    "study": study.spec.name,
                    "dataset": group.dataset,
                    "recipe": group.recipe.model_dump(mode="json"),
                    "networks": [final_dict(f, group, f.one.id in group.front(objectives)) for f in group.finalists],
                }
                for group in groups
            ]
        )
        return
    if not groups:
        say(f"{study.spec.name} has no finals yet", f"igc-nas finals {study_argument(study.folder, study.spec.name)}")
        return
    from igc_nas.io.console import table_lines, terminal_width
    from igc_nas.study.front_table import markdown_table

    for group in groups:
        put_text(f"{study.spec.name}: {group_title(group)}", "")
        if output == "markdown":
            alignments = [":--" if title in ("", "network") else "--:" for title in COLUMNS]
            put(*markdown_table(COLUMNS, [alignments, *final_rows(group, objectives)]), "")
            continue
        put(*table_lines(COLUMNS, final_rows(group, objectives), ("", "network"), terminal_width()), "")
        put_text(LEGEND)
