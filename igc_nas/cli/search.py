"""igc-nas search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from igc_nas.cli.front import print_front
from igc_nas.cli.loading import architecture, load
from igc_nas.cli.options import (
    COUNT,
    MS,
    SECONDS,
    as_json,
    data_dir_option,
    device_option,
    latency_forms_option,
    runtime_option,
    storage_option,
    studies_dir,
)
from igc_nas.cli.output import say
from igc_nas.cli.renamed import RenamedChoice
from igc_nas.errors import StudyError, UsageError
from igc_nas.io.units import format_seconds

if TYPE_CHECKING:
    from igc_nas.engine.search import Run
    from igc_nas.nn.device import Device
    from igc_nas.study.spec import StudySpec
    from igc_nas.study.study import Study


@click.command()
@click.option("--space", help="A search space: a name (see `igc-nas space`) or a .toml file. [default: igc_cifar]")
@click.option("--study", "study_name", help="The study's name. [default: made of space, dataset, budgets and seed]")
@click.option("--dataset", type=click.Choice(["auto", "cifar10", "cifar100", "shapes"]), help="[default: auto]")
@click.option("--objectives", help="Two or three of error, params, macs, flops, latency, activations.")
@click.option("--budget-params", type=COUNT, help="At most so many parameters: 500k, 2M.")
@click.option("--budget-macs", type=COUNT, help="At most so many multiply-adds per image: 60M.")
@click.option("--budget-flops", type=COUNT, help="At most so many FLOPs (2 per MAC) per image: 120M.")
@click.option("--budget-latency", type=MS, help="At most so long per batch: 5ms.")
@click.option(
    "--sampler",
    type=RenamedChoice(
        ("known-cost", "stratified", "random", "tpe", "nsga2", "evolution", "brute-force"), {"all": "brute-force"}
    ),
    help="What is tried next; brute-force: every architecture of a small space. [default: known-cost]",
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="[default: 0]")
@click.option("--recipe", "recipe", multiple=True, metavar="KEY=VALUE", help="Change the proxy training: epochs=3.")
@click.option(
    "--forms",
    type=click.Choice(["fastest", "factored"]),
    help="Run networks in the form that the device runs fastest, or factored as written. [default: fastest]",
)
@latency_forms_option
@runtime_option
@click.option(
    "--latency-command",
    envvar="IGC_NAS_LATENCY_COMMAND",
    help="Measure elsewhere: a command that reads an architecture on stdin, 'ssh pi igc-nas measure --json -'.",
)
@click.option(
    "--enqueue", multiple=True, metavar="ARCH", help="Evaluate this architecture before any other (repeatable)."
)
@click.option(
    "--prune-below",
    type=click.FloatRange(0, 1, max_open=True),
    help="Prune a training at a rung where its chance to end on the front is below this; 0: never. [default: 0.02]",
)
@click.option("--trials", type=click.IntRange(1), help="Trials complete or pruned in all, earlier runs included.")
@click.option("--timeout", type=SECONDS, help="Stop this run after: 90s, 10m, 2h.")
@click.option(
    "--trial-timeout",
    type=SECONDS,
    help="A trial that is worked on for longer has failed; waiting for others is not counted. [default: none]",
)
@click.option("--workers", type=click.IntRange(1, 256), help="Evaluating processes. [default: cores, or GPUs]")
@click.option(
    "--executor",
    type=click.Choice(["processes", "ray"]),
    default="processes",
    show_default=True,
    help="Where evaluators work: in processes here, or as actors on a Ray cluster.",
)
@click.option(
    "--ray-address",
    envvar="RAY_ADDRESS",
    metavar="HOST:PORT",
    help="The cluster's. [default: auto, the one that this machine belongs to]",
)
@device_option
@data_dir_option
@studies_dir
@storage_option
@click.option("--quiet", is_flag=True, help="No progress, the front only.")
@as_json
def search(**flags: Any) -> None:
    """Search a space for its Pareto front; the same command continues a search that was stopped."""
    from igc_nas.engine.progress import SearchDisplay
    from igc_nas.engine.search import search as run_search

    spec, run = _question(flags)
    quiet = flags["quiet"]
    with SearchDisplay(run.trials, run.timeout_s, quiet=quiet) as display:
        for _ in run_search(spec, run, on_event=display.show):
            pass
    study = load(run.folder, run.folder.parent)
    print_front(study, study.spec.objectives, "json" if flags["as_json"] else "table")
    if not quiet:
        _say_what_is_known(study)
        short = run.trials is not None and study.ended < run.trials
        stop = f"ended with {study.ended} of {run.trials} trials; the same command continues"
        say("", *([stop] if short else []), *(_next_commands(study) if study.candidates else []))


def _say_what_is_known(study: Study) -> None:
    """How many trainings were stopped, and how well the sampler's surrogate knows."""
    from igc_nas.analysis.surrogate_quality import surrogate_quality

    stopped = study.ended - len(study.candidates)
    if stopped:
        say(
            f"{stopped} of {study.ended} trainings were pruned at a rung, with a chance below "
            f"{study.spec.prune_below:g}"
        )
    knowledge = surrogate_quality(study) if study.spec.sampler == "known-cost" else None
    if knowledge:
        say(f"surrogate: {knowledge.sentence()}")


def _question(flags: Mapping[str, Any]) -> tuple[StudySpec, Run]:
    """The study that the flags ask for, new or continued, and how to run it; says so on stderr."""
    from igc_nas.cli.study_flags import resolve_study
    from igc_nas.data.datasets import auto_notice, data_dir
    from igc_nas.engine.search import Run
    from igc_nas.nn.device import find_devices
    from igc_nas.samplers.brute_force import BruteForce
    from igc_nas.study.defaults import default_extent

    devices = find_devices(flags["device"])
    question = resolve_study(flags, devices[0])
    extent = default_extent(devices[0].kind, len(devices))
    spec = _measured_elsewhere(question.spec, flags, new=not question.continued)
    if spec.sampler == "brute-force":
        BruteForce(spec)  # refused before anything is measured, where they are too many
    trials = spec.feasible.count if spec.sampler == "brute-force" else None if flags["timeout"] else extent.trials
    run = Run(
        folder=question.folder,
        trials=flags["trials"] or trials,
        timeout_s=flags["timeout"] or (None if flags["trials"] or spec.sampler == "brute-force" else extent.timeout_s),
        trial_timeout_s=flags["trial_timeout"],
        workers=flags["workers"] or _room_for(flags, devices[0]) or extent.workers,
        executor=flags["executor"],
        ray_address=flags["ray_address"] if flags["executor"] == "ray" else None,
        devices=tuple(device.torch_name for device in devices),
        data_dir=flags["data_dir"],
        storage=flags["storage"],
        latency_command=flags["latency_command"] if spec.latency.remote else None,
        enqueue=tuple(architecture(name, spec.classes, flags["root"]) for name in flags["enqueue"]),
    )
    notice = auto_notice(question.info, data_dir(flags["data_dir"])) if question.dataset_flag == "auto" else None
    _announce(spec, run, devices, notice, continued=question.continued)
    return spec, run


def _room_for(flags: Mapping[str, Any], device: Device) -> int | None:
    """How many evaluators find a place on the cluster; None where there is no talk of one."""
    if flags["executor"] != "ray":
        return None
    from igc_nas.engine.ray.nodes import places
    from igc_nas.engine.search import Run

    return places(flags["ray_address"], device.torch_name, Run.threads)


def _measured_elsewhere(spec: StudySpec, flags: Mapping[str, Any], *, new: bool) -> StudySpec:
    """A new study with the conditions under which the latency command measures; a study that is there, checked."""
    command = flags["latency_command"]
    if not new and spec.latency.remote != (command is not None):
        raise StudyError(
            f"the latencies of study {spec.name} are "
            + ("another machine's" if spec.latency.remote else "this machine's"),
            "give --latency-command" if spec.latency.remote else "leave --latency-command away",
        )
    if command is None or not new:
        if spec.latency.runtime != "eager" and not spec.latency.remote:
            from igc_nas.evaluation.runtimes import require

            require(spec.latency.runtime)
        return spec
    from igc_nas.evaluation.remote import CommandMeasurer, remote_spec

    first = CommandMeasurer(command)(spec.feasible.lightest())
    if flags["latency_runtime"] not in (None, first.runtime):
        raise UsageError(
            f"the latency command measures with {first.runtime}", f"add --runtime {flags['latency_runtime']} to it"
        )
    return spec.model_copy(update={"latency": remote_spec(first, spec.latency)})


def _announce(spec: StudySpec, run: Run, devices: tuple[Device, ...], notice: str | None, *, continued: bool) -> None:
    """What a long command says first: what it does, where it writes, how to stop and to resume."""
    from igc_nas.analysis.words import LATENCY_FORMS, conditions_words, recipe_words
    from igc_nas.cli.display import data_label
    from igc_nas.engine.database import masked, parse_url

    recipe = spec.recipe
    say(*([notice, ""] if notice else []))
    say(
        f"study     {spec.name} ({'continued' if continued else 'new'}), in {run.folder}"
        + (f" and {masked(parse_url(run.storage))}" if run.storage else ""),
        f"space     {spec.space_name}, {spec.search_space.size:,} architectures; budget {spec.budget}",
        f"data      {data_label(spec.dataset)}",
        f"goal      least {', '.join(spec.objectives)}; sampler {spec.sampler}, seed {spec.seed}",
        f"recipe    {recipe_words(recipe, held_out=True)}",
        *([f"rungs     {_rungs(spec)}"] if recipe.rungs else []),
        f"device    {devices[0].name}" + _devices_in_words(run, devices),
        f"latency   {LATENCY_FORMS[spec.latency.forms]}, {conditions_words(spec.latency)}"
        + (", by a command" if spec.latency.remote else ""),
        f"extent    {_extent(run)}; {run.workers} worker(s) of {run.threads} thread(s)",
        "stop      Ctrl-C; the same command continues",
        "",
    )


def _devices_in_words(run: Run, devices: tuple[Device, ...]) -> str:
    if run.executor == "ray":
        return ", on the nodes of a Ray cluster that have it"
    return f" x {len(devices)}" if len(devices) > 1 else ""


def _rungs(spec: StudySpec) -> str:
    at = f"after {', '.join(f'{samples:,}' for samples in spec.recipe.rungs)} images of {spec.recipe.samples:,}"
    if not spec.prune_below:
        return f"{at}; none is pruned there"
    return f"{at}; one is pruned there where its chance to end on the front is below {spec.prune_below:g}"


def _extent(run: Run) -> str:
    limits = [f"until {run.trials} trials are complete"] if run.trials else []
    limits += [f"at most {format_seconds(run.timeout_s)}"] if run.timeout_s else []
    limits += [f"at most {format_seconds(run.trial_timeout_s)} a trial"] if run.trial_timeout_s else []
    return ", ".join(limits)


def _next_commands(study: Study) -> list[str]:
    from igc_nas.study.names import study_argument

    name = study_argument(study.folder, study.spec.name)
    return [
        "next:",
        f"  igc-nas dashboard {name}",
        f"  igc-nas export {name} --pick knee -o arch.toml",
        "  igc-nas train arch.toml",
    ]
