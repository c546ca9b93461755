"""`igc-nas search`: search a space for its Pareto front, or continue a search."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from igc_nas.cli.front import print_front
from igc_nas.cli.loading import architecture, code_notices, core_notices, load, load_torch
from igc_nas.cli.options import (
    COUNT,
    MS,
    RANGE,
    SECONDS,
    Choice,
    Grouped,
    as_json,
    data_dir_option,
    deterministic_option,
    device_option,
    image_size_option,
    latency_dtype_option,
    latency_forms_option,
    runtime_option,
    storage_option,
    studies_dir,
)
from igc_nas.cli.output import say
from igc_nas.errors import StudyError, UsageError
from igc_nas.io.units import exact_count, format_seconds

if TYPE_CHECKING:
    from igc_nas.cli.study_flags import ResolvedStudy, SearchRequest
    from igc_nas.data.packed import ImageSet
    from igc_nas.engine.search import Run
    from igc_nas.nn.device import Device
    from igc_nas.study.baselines import Skipped
    from igc_nas.study.spec import StudySpec
    from igc_nas.study.study import Study


PROMOTE = 0.4
"""The default share of the time for longer trainings."""
CLOSING_S = 2.5
"""The seconds of `--time` after the last trial: workers end, the front is ranked and printed."""
MOST_IMPORTING_S = 60.0
"""A process that is older than this began with something else."""


def _address_of_ray(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """The address; raises `UsageError` where it is given, not from the environment, to a search on no Ray cluster."""
    given = context.get_parameter_source("ray_address") is ParameterSource.COMMANDLINE
    if given and context.params["executor"] != "ray":
        raise UsageError("--ray-address is for a search on a Ray cluster", "add --executor ray")
    return value


@click.command(
    cls=Grouped,
    groups={
        "What is searched": ("space", "dataset", "image_size", "data_dir", "objectives", "goal", "enqueue"),
        "Limits": (
            "budget_params",
            "budget_macs",
            "budget_flops",
            "budget_latency",
            "min_params",
            "params",
            "macs",
        ),
        "How long": ("time", "promote", "trials", "timeout", "trial_timeout", "workers", "workers_per_gpu", "device"),
        "How it searches and trains": ("sampler", "seed", "recipe", "forms", "prune_below", "deterministic"),
        "How latency is measured": (
            "latency_runtime",
            "latency_forms",
            "latency_batch",
            "latency_dtype",
            "latency_command",
        ),
        "Where it is kept": ("study_name", "root", "storage"),
    },
)
@click.option("--space", help="A search space: a name (see `igc-nas space`) or a .toml file. [default: igc_cifar]")
@click.option("--study", "study_name", help="Name of the study. [default: from space, dataset, budgets and seed]")
@click.option("--dataset", help="auto, cifar10, cifar100, shapes, or a folder of images. [default: auto]")
@image_size_option
@click.option(
    "--objectives",
    help="Error alone, or two or three of error, params, macs, flops, latency, activations. "
    "[default: error,params,latency]",
)
@click.option(
    "--goal",
    type=Choice(["best-error", "front"]),
    help="The least error within the budget first, or all of the front. [default: best-error with a budget, "
    "unless --objectives names several]",
)
@click.option("--params", type=RANGE, metavar="RANGE", help="Limits on parameters, inclusive: 500k..2M, ..2M, 500k.. .")
@click.option("--macs", type=RANGE, metavar="RANGE", help="Limits on multiply-adds per image, inclusive: 10M..60M.")
@click.option("--budget-params", type=COUNT, help="Upper limit on parameters, inclusive: 500k, 2M.")
@click.option("--min-params", type=COUNT, help="Lower limit on parameters, inclusive: 500k.")
@click.option("--budget-macs", type=COUNT, help="Upper limit on multiply-adds per image, inclusive: 60M.")
@click.option("--budget-flops", type=COUNT, help="Upper limit on FLOPs (2 per MAC) per image, inclusive: 120M.")
@click.option("--budget-latency", type=MS, help="Upper limit on the latency of one batch, inclusive: 5ms.")
@click.option(
    "--sampler",
    type=Choice(
        ("known-cost", "stratified", "random", "tpe", "nsga2", "evolution", "brute-force"), {"all": "brute-force"}
    ),
    help="How architectures are chosen; brute-force: every one of a small space. [default: known-cost]",
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="[default: 0]")
@click.option("--recipe", "recipe", multiple=True, metavar="KEY=VALUE", help="Change the proxy training: epochs=3.")
@click.option(
    "--forms",
    type=Choice(["fastest", "factored"]),
    help="Train networks in the form that is fastest on the device, or in factored form. [default: fastest]",
)
@latency_forms_option
@runtime_option
@click.option(
    "--latency-batch",
    type=click.IntRange(1),
    help="Images of the pass that is timed; limits are on one pass. [default: 1]",
)
@latency_dtype_option
@click.option(
    "--latency-command",
    envvar="IGC_NAS_LATENCY_COMMAND",
    help="Measure elsewhere: a command that reads an architecture on stdin, 'ssh pi igc-nas measure --json -'.",
)
@click.option(
    "--enqueue", multiple=True, metavar="ARCH", help="Evaluate this architecture before any other (repeatable)."
)
@click.option(
    "--baselines",
    multiple=True,
    metavar="NAME,...",
    help="Compare the front with these networks: literature, igc, or any ARCH (repeatable). They are evaluated first, "
    "and are counted neither in --trials nor in --time.",
)
@click.option(
    "--prune-below",
    type=click.FloatRange(0, 1, max_open=True),
    help="Prune a trial at a rung if its probability of reaching the front is lower; 0: never. "
    "[default: 0.02, and 0 where there are longer trainings]",
)
@click.option("--trials", type=click.IntRange(1), help="Complete and pruned trials in total, earlier runs included.")
@click.option(
    "--time",
    type=SECONDS,
    help="Plan for this time, and end in it: 10m, 8h. Longer trainings and more trials. "
    "[default: 10m on a CPU, 2h on a GPU, unless --trials is given]",
)
@click.option(
    "--promote",
    type=click.FloatRange(0, 0.9),
    metavar="SHARE",
    help="Share of --time for longer trainings of the networks that promise most; the front is then of errors "
    "predicted at a longer length. 0: none. [default: 0.4 with the sampler known-cost]",
)
@click.option(
    "--trial-timeout",
    type=SECONDS,
    help="Fail a trial that is processed for longer; waiting for other trials is not counted. [default: none]",
)
@click.option("--workers", type=click.IntRange(1, 256), help="Worker processes. [default: cores, or two a GPU]")
@click.option(
    "--workers-per-gpu",
    type=click.IntRange(1, 16),
    help="The same, as a number for each GPU; on a Ray cluster they take a share of a GPU each. [default there: 1]",
)
@click.option(
    "--executor",
    type=Choice(["processes", "ray"]),
    default="processes",
    show_default=True,
    is_eager=True,  # --ray-address is checked by it
    help="Where workers run: as processes on this machine, or as actors on a Ray cluster.",
)
@click.option(
    "--ray-address",
    envvar="RAY_ADDRESS",
    callback=_address_of_ray,
    metavar="HOST:PORT",
    help="Address of the Ray cluster. [default: auto, the cluster of this machine]",
)
@device_option
@deterministic_option
@data_dir_option
@studies_dir
@storage_option
@click.option("--quiet", is_flag=True, help="Print the front only, no progress.")
@as_json
def search(**options: Any) -> None:
    """Search a space for its Pareto front, or continue a search.

    The same command continues a search that was interrupted, with the settings of its study.

    \b
    Examples:
      igc-nas search --budget-params 2M
      igc-nas search --budget-macs 60M --dataset cifar100 --time 2h
      igc-nas search --space my.toml --recipe epochs=4,train_size=10000
    """
    from igc_nas.cli.study_flags import SearchRequest

    request = SearchRequest(**options)
    study, end = searched(request, _command_began())
    print_front(study, study.spec.front_objectives, "json" if request.as_json else "table")
    if not request.quiet:
        _say_summary(study, end, request.dataset)


def searched(request: SearchRequest, command_began: float | None = None) -> tuple[Study, str]:
    """Run the search that is requested, with its progress: (the study, why it ended before its trials; else "").

    Its time begins at `command_began`, a time of `time.monotonic`; None: now.
    """
    from igc_nas.cli.study_flags import check_request

    check_request(request)
    if not request.quiet:
        load_torch()
    from igc_nas.engine.database import begun
    from igc_nas.engine.progress import SearchDisplay
    from igc_nas.engine.search import search as run_search

    spec, run = _prepared(request, time.monotonic() if command_began is None else command_began)
    began = time.monotonic()
    before = begun(run.folder, run.storage)
    ended = before.ended if before else 0
    with SearchDisplay(
        run.trials, run.time_s, quiet=request.quiet, ended=ended, baselines=len(run.baselines)
    ) as display:
        for _ in run_search(spec, run, on_event=display.show):
            pass
    study = load(run.folder, run.folder.parent)
    is_over = run.time_s is not None and time.monotonic() - began >= run.time_s
    return study, end_words(before, study, run.trials, is_over=is_over)


def end_words(before: Study | None, study: Study, trials: int | None, *, is_over: bool) -> str:
    """Why a search ended before its `trials`, or before any trial; empty where it did not.

    `before` is the study as it began (None: it was new), `is_over`: its time was over.
    """
    if is_over and (study.ended, len(study.longer)) == ((before.ended, len(before.longer)) if before else (0, 0)):
        return "its time was over before a trial ended (--time gives it more)"
    if trials is None or study.ended >= trials:
        return ""
    return f"ended with {study.ended} of {trials} trials{' because its time is over' if is_over else ''}"


def _say_summary(study: Study, end: str, dataset: str | None) -> None:
    """Say why the search ended, what was pruned, how accurate the surrogate is, and what to type next.

    `dataset` is `--dataset` as given.
    """
    from igc_nas.analysis.surrogate_quality import surrogate_quality
    from igc_nas.analysis.words import counted, plan_words
    from igc_nas.study.names import study_argument

    pruned = study.ended - len(study.candidates)
    if pruned:
        say(
            f"{pruned} of {study.ended} trials were pruned at a rung: their probability of reaching the front was "
            f"below {study.spec.prune_below:g}"
        )
    quality = surrogate_quality(study) if study.spec.sampler == "known-cost" else None
    if quality:
        say(f"surrogate: {quality.sentence()}")
    if plan := plan_words(study):
        say(f"plan: {plan}")
    if study.candidates:
        images = study.spec.target.images if study.expected and study.spec.target else study.spec.recipe.samples
        say(
            f"Errors {'predicted for' if study.expected else 'after'} {counted(images, 'image')} rank the networks; "
            "after a long training expect them far lower (finals, below)."
        )
    name = study_argument(study.folder, study.spec.name)
    noisy = sum(candidate.latency.noisy for candidate in study.candidates)
    if noisy and not any(member.latency.noisy for member in study.front()):  # else the front's notes say so
        of = counted(len(study.candidates), "latency is", "latencies are")
        say(f"{noisy} of {of} noisy; on a quieter machine: igc-nas measure --study {name} --keep")
    say("")
    if end:
        say(f"{end}; the same command continues")
    if study.candidates:
        say(*_next_commands(study, dataset))


def _prepared(request: SearchRequest, began: float) -> tuple[StudySpec, Run]:
    """The study that is requested, new or continued, and how to run its search; announces both on stderr.

    Its time began at `began`, a time of `time.monotonic`.
    """
    from igc_nas.cli.study_flags import latency_conditions, parse_recipe, resolve_study
    from igc_nas.data.datasets import auto_notice, data_dir
    from igc_nas.engine.search import Run
    from igc_nas.evaluation.runtimes import check_runtime
    from igc_nas.nn.device import exclusive_mode, extent_on, find_devices, survey_gpus
    from igc_nas.samplers.brute_force import BruteForce
    from igc_nas.study.baselines import baselines_of

    devices = find_devices(request.device)
    resolved = resolve_study(request, devices[0])
    extent = extent_on(devices)
    spec = latency_conditions(resolved.spec, request, new=not resolved.continued)
    enqueue = tuple(architecture(name, spec.classes, request.root) for name in request.enqueue)
    check_runtime(spec, enqueue)
    trials, time_s = request.trials, request.time
    baselines, skipped = baselines_of(request.baselines, spec, request.root) if request.baselines else ((), ())
    if spec.sampler == "brute-force":
        BruteForce(spec)  # raises for a space that is too large, before the study is written
        trials = trials or spec.feasible.count
    elif trials is None and time_s is None:
        time_s = _time_left(resolved, request.storage) or extent.time_s
    on_ray = request.executor == "ray"
    workers = _asked_workers(request, devices) or (_ray_workers(request, devices[0]) if on_ray else extent.workers)
    _check_promote(request, resolved, time_s)
    if time_s and not resolved.continued and spec.sampler != "brute-force":
        if not request.quiet:
            say("planning: timing trainings of three networks ...", "")
        share = _promote(request, spec)
        settings = (time_s, workers, trials, parse_recipe(request.recipe), share)
        spec = _planned(spec, resolved, devices[0], *settings, prunes=bool(request.prune_below))
    run = Run(
        folder=resolved.folder,
        trials=trials,
        time_s=time_s and max(1.0, time_s - CLOSING_S - (time.monotonic() - began)),
        trial_timeout_s=request.trial_timeout,
        workers=workers,
        executor=request.executor,
        ray_address=request.ray_address if on_ray else None,
        deterministic=request.deterministic,
        workers_per_gpu=request.workers_per_gpu or 1,
        devices=tuple(device.torch_name for device in devices),
        data_dir=request.data_dir,
        storage=request.storage,
        latency_command=request.latency_command if spec.latency.remote else None,
        enqueue=enqueue,
        baselines=baselines,
    )
    notice = auto_notice(resolved.info, data_dir(request.data_dir)) if resolved.dataset == "auto" else None
    notices = [*([notice] if notice else []), *code_notices(devices[0].kind)]
    notices += core_notices("workers", None if on_ray else request.workers)
    if not on_ray and workers > len(devices) and (mode := exclusive_mode(devices)):
        notices.append(f"{mode}: more than one worker on it needs NVIDIA's MPS, or --workers {len(devices)}")
    if request.device in ("auto", "cuda"):
        notices += [f"not used: {text}" for text in survey_gpus().notices]
    if request.quiet:
        say(*notices)
    else:
        _announce(spec, run, devices, notices, resolved, skipped)
    return spec, run


def _planned(spec: StudySpec, resolved: ResolvedStudy, device: Device, *settings: Any, prunes: bool) -> StudySpec:
    """The spec with a plan (`planned_spec`). A GPU is timed in a process of its own, which leaves it to the workers."""
    from functools import partial

    from igc_nas.engine.apart import call_apart
    from igc_nas.evaluation.speed import measure_speed, planned_spec

    measure = partial(call_apart, measure_speed) if device.kind == "cuda" else measure_speed
    return planned_spec(spec, resolved.info, device, *settings, prunes=prunes, measure=measure)


def _command_began() -> float:
    """The time of `time.monotonic` at which this process began: Python's start and imports are part of `--time`."""
    import psutil

    age_s = time.time() - psutil.Process().create_time()
    return time.monotonic() - (age_s if 0 <= age_s <= MOST_IMPORTING_S else 0.0)


def _check_promote(request: SearchRequest, resolved: ResolvedStudy, time_s: float | None) -> None:
    """Raise for a `--promote` that a search cannot have, or that is not the share of the study that it continues."""
    spec = resolved.spec
    if request.promote is None:
        return
    if request.promote and not _predicts(spec):
        raise UsageError("--promote is for searches for the error by the sampler known-cost", "leave out --promote")
    if (spec.plan is None) if resolved.continued else not time_s:
        hint = "leave it out" if resolved.continued else "leave it out, or give --time"
        raise UsageError("--promote is a share of --time, for which a new study is planned", hint)
    if spec.target and spec.target.share != request.promote:  # without one, no longer training fitted into the share
        raise StudyError(
            f"study {spec.name} was planned with --promote {spec.target.share:g}, not {request.promote:g}",
            "leave out --promote to continue it, or start another with --study NAME",
        )


def _predicts(spec: StudySpec) -> bool:
    """Whether a search trains some networks for longer, and predicts the errors of the others."""
    return spec.sampler == "known-cost" and "error" in spec.objectives


def _promote(request: SearchRequest, spec: StudySpec) -> float:
    """The share of the time for longer trainings."""
    return (PROMOTE if request.promote is None else request.promote) if _predicts(spec) else 0.0


def _time_left(resolved: ResolvedStudy, storage: str | None) -> float | None:
    """The rest of the time that a study was planned for; None without a plan, or where it is over."""
    from igc_nas.engine.database import begun
    from igc_nas.study.plan import GRACE

    plan = resolved.spec.plan
    if plan is None or (study := begun(resolved.folder, storage)) is None:
        return None
    ended = [trial.wall_s or 0.0 for trial in study.trials if not trial.baseline]
    left = plan.time_s - sum(ended) / plan.workers
    return left if left > 2 * GRACE * plan.time_s else None


def _asked_workers(request: SearchRequest, devices: tuple[Device, ...]) -> int | None:
    """The number of workers that the options name; None: the default. Raises `UsageError`."""
    if request.workers_per_gpu is None:
        return request.workers
    if request.workers is not None or devices[0].kind != "cuda":
        raise UsageError("--workers-per-gpu is for GPUs, and stands for --workers", "give --workers")
    return None if request.executor == "ray" else request.workers_per_gpu * len(devices)


def _ray_workers(request: SearchRequest, device: Device) -> int:
    """How many workers the Ray cluster has resources for."""
    from igc_nas.engine.ray.nodes import needs_of, places
    from igc_nas.engine.search import Run

    return places(request.ray_address, needs_of(device.torch_name, Run.threads, request.workers_per_gpu or 1))


def _announce(
    spec: StudySpec,
    run: Run,
    devices: tuple[Device, ...],
    notices: Sequence[str],
    resolved: ResolvedStudy,
    skipped: Sequence[Skipped],
) -> None:
    """Say what is searched and how, where it is written, how to stop and to continue."""
    from igc_nas.analysis.proxy_worth import worth_words
    from igc_nas.analysis.words import LATENCY_FORMS, budget_words, conditions_words, counted, recipe_words
    from igc_nas.cli.display import data_label
    from igc_nas.cli.space import left_out_words
    from igc_nas.engine.database import masked, parse_url
    from igc_nas.study.front_table import units_legend

    recipe = spec.recipe
    units = [unit for stage in spec.search_space.stages for unit in stage.choices]
    say(*([*notices, ""] if notices else []))
    say(
        f"study     {spec.name} ({'continued' if resolved.continued else 'new'}), in {run.folder}"
        + (f" and {masked(parse_url(run.storage))}" if run.storage else ""),
        f"space     {spec.space_name}, {spec.search_space.size:,} architectures; {budget_words(spec.budget)}",
        f"          a network is written: {units_legend(units)}",
        *([f"          left out: {left_out_words(spec.search_space)}"] if spec.search_space.left_out else []),
        f"data      {data_label(spec.dataset)}",
        *([f"          {_images_words(spec.images)}"] if spec.images else []),
        f"goal      {_goal(spec)}; sampler {spec.sampler}, seed {spec.seed}",
        f"recipe    {recipe_words(recipe, held_out=True)}",
        *([f"          {resolved.dtype}"] if resolved.dtype and resolved.dtype.step_ms else []),
        *([f"worth     {worth_words(spec)}"] if "error" in spec.objectives else []),
        *([f"rungs     {_rungs(spec)}"] if recipe.rungs else []),
        f"device    {devices[0].name}" + _devices_in_words(run, devices),
        f"latency   {conditions_words(spec.latency)}" + (", by a command" if spec.latency.remote else ""),
        f"          {LATENCY_FORMS[spec.latency.forms]}",
        *([f"          {resolved.eager_because}"] if resolved.eager_because else []),
        *_baseline_lines(run, skipped),
        f"limits    {_extent(run)}; {counted(run.workers, 'worker')} of {counted(run.threads, 'thread')}",
        *_plan_lines(spec, run),
        "stop      Ctrl-C; the same command continues",
        "",
    )


def _images_words(images: ImageSet) -> str:
    sizes = f"{images.train:,} training and {images.test:,} test images of {len(images.classes):,} classes"
    return f"{sizes}, {images.size} x {images.size} pixels"


def _baseline_lines(run: Run, skipped: Sequence[Skipped]) -> list[str]:
    """Which baselines are evaluated, and which are not and why."""
    if not (run.baselines or skipped):
        return []
    count = f"{len(run.baselines)} of {len(run.baselines) + len(skipped)}" if skipped else f"{len(run.baselines)}"
    names = ", ".join(baseline.name for baseline in run.baselines)
    return [
        f"baselines {count}, evaluated first; they count neither as trials nor in the time"
        + (f": {names}" if names else ""),
        *(f"          without {each.name}: {each.reason}" for each in skipped),
    ]


def _goal(spec: StudySpec) -> str:
    from igc_nas.analysis.words import GOALS

    if len(spec.objectives) == 1:
        return "the least error within the budget"
    over = f"over {', '.join(spec.objectives)}"
    return f"{GOALS[spec.goal]}, {over}" if spec.goal else f"the front {over}"


def _plan_lines(spec: StudySpec, run: Run) -> list[str]:
    """What the time is planned for, and what trials of three sizes take."""
    import datetime

    if not run.time_s:
        return []
    ends = datetime.datetime.now() + datetime.timedelta(seconds=run.time_s)
    end = f"{ends:%H:%M}" if run.time_s < 12 * 3600 else f"{ends:%Y-%m-%d %H:%M}"
    if spec.plan is None:
        return [f"plan      ends at {end}"]
    from igc_nas.analysis.words import counted
    from igc_nas.study.plan import Sizes

    archs = (spec.feasible.lightest(), spec.feasible.heaviest())
    least, most = spec.plan.speed.trials_s(Sizes.of(archs), spec.recipe, spec.space.input[1])
    return [
        f"plan      about {counted(spec.plan.trials, 'trial')} of {spec.recipe.samples:,} images{_longer(spec)}; "
        f"ends at {end}",
        *_target_lines(spec),
        f"          a trial takes {format_seconds(spec.plan.mean_s)} on average, {format_seconds(float(least))} the "
        f"lightest, {format_seconds(float(most))} the heaviest",
    ]


def _target_lines(spec: StudySpec) -> list[str]:
    """What errors are predicted for."""
    if spec.target is None:
        return []
    return [
        f"          errors are predicted for trainings of {spec.target.images:,} images; the front is of predictions"
    ]


def _longer(spec: StudySpec) -> str:
    """The longer trainings of a plan: `, and 8 of 40,000 (40 % of the time)`; empty without any."""
    from igc_nas.study.plan import Sizes

    if spec.plan is None or spec.target is None:
        return ""
    from igc_nas.evaluation.speed import typical

    seconds = spec.plan.speed.trials_s(Sizes.of(typical(spec)), spec.target.recipe, spec.space.input[1])
    count = max(1, round(spec.target.share * spec.plan.time_s * spec.plan.workers / float(seconds.mean())))
    return f", and {count} of {spec.target.recipe.samples:,} ({100 * spec.target.share:.0f} % of the time)"


def _devices_in_words(run: Run, devices: tuple[Device, ...]) -> str:
    if run.executor == "ray":
        return ", on the nodes of a Ray cluster that have it"
    return f" x {len(devices)}" if len(devices) > 1 else ""


def _rungs(spec: StudySpec) -> str:
    at = f"after {', '.join(f'{samples:,}' for samples in spec.recipe.rungs)} images of {spec.recipe.samples:,}"
    if not spec.prune_below:
        return f"{at}; no trial is pruned"
    return f"{at}; a trial is pruned if its probability of reaching the front is below {spec.prune_below:g}"


def _extent(run: Run) -> str:
    from igc_nas.analysis.words import counted

    limits = [f"until {counted(run.trials, 'complete trial')}"] if run.trials else []
    limits += [f"{format_seconds(run.time_s)}"] if run.time_s else []
    limits += [f"at most {format_seconds(run.trial_timeout_s)} a trial"] if run.trial_timeout_s else []
    return ", ".join(limits)


def _next_commands(study: Study, dataset: str | None) -> list[str]:
    from igc_nas.study.names import dataset_option, study_argument

    name = study_argument(study.folder, study.spec.name)
    most = study.spec.budget.params
    pick = f" --pick under:params={exact_count(most)}" if most else ""
    return [
        "next:",
        f"  igc-nas dashboard {name}",
        f"  igc-nas export {name} --pick knee -o arch.toml",
        f"  igc-nas train arch.toml{dataset_option(study.spec.dataset, dataset)}",
        "the accuracies that are reached, by training to the end:",
        f"  igc-nas finals {name}{pick}",
    ]
