"""The command line: one thin function per command.

stdout carries data, stderr progress and errors. Exit status: 0 ok, 1 the run failed, 2 usage, 3 nothing feasible,
4 study or store, 5 data, 130 and 143 after Ctrl-C and SIGTERM. Commands import what they need when they run, so that
`--help` answers at once and `cost`, `front`, `show` and `space` never load torch.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from igc_nas import __version__
from igc_nas.errors import IgcNasError, UsageError
from igc_nas.units import format_seconds, parse_count, parse_ms, parse_seconds, printable

if TYPE_CHECKING:
    from igc_nas.config import ArchConfig
    from igc_nas.device import Device
    from igc_nas.results import Study
    from igc_nas.spec import StudySpec
    from igc_nas.study import Run


class Quantity(click.ParamType[Any]):
    """A count, a latency or a duration with its unit."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse, or fail as click does."""
        try:
            return self._parse(value) if isinstance(value, str) else value
        except UsageError as error:
            self.fail(f"{error.message}: {error.hint}", param, ctx)


COUNT, MS, SECONDS = Quantity("count", parse_count), Quantity("time", parse_ms), Quantity("duration", parse_seconds)
FILE = click.Path(path_type=Path)

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
studies_dir = click.option(
    "--studies", "root", type=FILE, default=Path("studies"), show_default=True, help="Folder of your studies."
)
data_dir_option = click.option(
    "--data-dir", type=FILE, envvar="IGC_NAS_DATA", help="Folder of the datasets. [default: your cache folder]"
)
classes_option = click.option("--classes", type=click.IntRange(1, 1_000_000), help="Number of classes.")
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="igc-nas")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:  # `run` looks for --debug itself: it must know before a command fails to parse
    """Search for fast, small networks of interleaved group convolutions (IGCV1, IGCV2, IGCV3).

    Start with: igc-nas search --budget-params 2M
    """


# Searching.


@main.command()
@click.option("--space", help="A search space: a name (see `igc-nas space`) or a .toml file. [default: igc_cifar]")
@click.option("--study", "study_name", help="The study's name. [default: made of space, dataset, budgets and seed]")
@click.option("--dataset", type=click.Choice(["auto", "cifar10", "cifar100", "shapes"]), help="[default: auto]")
@click.option("--objectives", help="Two or three of error, params, macs, flops, latency, activations.")
@click.option("--budget-params", type=COUNT, help="At most so many parameters: 500k, 2M.")
@click.option("--budget-macs", type=COUNT, help="At most so many multiply-adds per image: 60M.")
@click.option("--budget-flops", type=COUNT, help="At most so many FLOPs (2 per MAC) per image: 120M.")
@click.option("--budget-latency", type=MS, help="At most so long per batch: 5ms.")
@click.option("--sampler", type=click.Choice(["random", "tpe", "nsga2"]), help="[default: tpe]")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="[default: 0]")
@click.option("--recipe", "recipe", multiple=True, metavar="KEY=VALUE", help="Change the proxy training: epochs=3.")
@click.option("--trials", type=click.IntRange(1), help="Completed trials in all, earlier runs included.")
@click.option("--timeout", type=SECONDS, help="Stop this run after: 90s, 10m, 2h.")
@click.option("--workers", type=click.IntRange(1, 256), help="Evaluating processes. [default: cores, or GPUs]")
@device_option
@data_dir_option
@studies_dir
@click.option("--storage", envvar="IGC_NAS_STORAGE", help="Another database: sqlite:///path. [default: study.db]")
@click.option("--quiet", is_flag=True, help="No progress, the front only.")
@as_json
def search(**flags: Any) -> None:
    """Search a space for its Pareto front; the same command continues a search that was stopped."""
    from igc_nas.display import SearchDisplay
    from igc_nas.study import search as run_search

    spec, run = _question(flags)
    quiet = flags["quiet"]
    with SearchDisplay(run.trials, run.timeout_s, quiet=quiet) as display:
        for _ in run_search(spec, run, on_event=display.show):
            pass
    study = _load(run.folder, run.folder.parent)
    _print_front(study, study.spec.objectives, "json" if flags["as_json"] else "table")
    if not quiet:
        short = run.trials is not None and len(study.candidates) < run.trials
        stop = f"stopped with {len(study.candidates)} of {run.trials} trials; the same command continues"
        _say("", *([stop] if short else []), *(_next_commands(study) if study.candidates else []))


def _question(flags: Mapping[str, Any]) -> tuple[StudySpec, Run]:
    """The study that the flags ask for, new or continued, and how to run it; says so on stderr."""
    from igc_nas.dataset import auto_notice, data_dir
    from igc_nas.defaults import default_extent
    from igc_nas.device import find_devices
    from igc_nas.question import ask
    from igc_nas.study import Run

    storage = _checked_storage(flags["storage"])
    devices = find_devices(flags["device"])
    question = ask(flags, devices[0])
    extent = default_extent(devices[0].kind, len(devices))
    run = Run(
        folder=question.folder,
        trials=flags["trials"] or (None if flags["timeout"] else extent.trials),
        timeout_s=flags["timeout"] or (None if flags["trials"] else extent.timeout_s),
        workers=flags["workers"] or extent.workers,
        devices=tuple(device.torch_name for device in devices),
        data_dir=flags["data_dir"],
        storage=storage,
    )
    notice = auto_notice(question.info, data_dir(flags["data_dir"])) if question.dataset_flag == "auto" else None
    _announce(question.spec, run, devices, notice, continued=question.continued)
    return question.spec, run


def _announce(spec: StudySpec, run: Run, devices: tuple[Device, ...], notice: str | None, *, continued: bool) -> None:
    """What a long command says first: what it does, where it writes, how to stop and to resume."""
    from igc_nas.display import data_label

    recipe = spec.recipe
    _say(*([notice, ""] if notice else []))
    _say(
        f"study     {spec.name} ({'continued' if continued else 'new'}), in {run.folder}",
        f"space     {spec.space_name}, {spec.search_space.size:,} architectures; budget {spec.budget}",
        f"data      {data_label(spec.dataset)}",
        f"goal      least {', '.join(spec.objectives)}; sampler {spec.sampler}, seed {spec.seed}",
        f"recipe    {recipe.epochs} epoch(s) of {recipe.train_size:,} images at {recipe.resolution} px, batch "
        f"{recipe.batch}, lr {recipe.lr:g}, {recipe.dtype}; scored on {recipe.held_out:,} held-out images",
        f"device    {devices[0].name}" + (f" x {len(devices)}" if len(devices) > 1 else ""),
        f"extent    {_extent(run)}; {run.workers} worker(s) of {run.threads} thread(s)",
        "stop      Ctrl-C; the same command continues",
        "",
    )


def _extent(run: Run) -> str:
    limits = [f"until {run.trials} trials are complete"] if run.trials else []
    limits += [f"at most {format_seconds(run.timeout_s)}"] if run.timeout_s else []
    return ", ".join(limits)


def _next_commands(study: Study) -> list[str]:
    assert study.folder is not None
    name = shlex.quote(study.spec.name if study.folder.parent == Path("studies") else str(study.folder))
    return [
        "next:",
        f"  igc-nas dashboard {name}",
        f"  igc-nas export {name} --pick knee -o arch.toml",
        "  igc-nas train arch.toml",
    ]


def _checked_storage(url: str | None) -> str | None:
    if url is None or url.startswith("sqlite:///"):
        return url
    scheme = url.partition("://")[0]
    raise UsageError(f"storage of kind {scheme!r:.40} is not supported", "use sqlite:///path/to/study.db")


# Reading.


@main.command()
@click.argument("study")
@click.option("--objectives", help="Another front than the study's own: two or three objectives.")
@as_json
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@studies_dir
def front(study: str, objectives: str | None, as_json: bool, as_csv: bool, root: Path) -> None:
    """Print the Pareto front of STUDY."""
    from igc_nas.objectives import parse_objectives

    if as_json and as_csv:
        raise UsageError("--json and --csv exclude each other")
    loaded = _load(study, root)
    names = parse_objectives(objectives) if objectives else loaded.spec.objectives
    _print_front(loaded, names, "json" if as_json else "csv" if as_csv else "table")


def _print_front(study: Study, objectives: tuple[str, ...], form: str) -> None:
    from igc_nas.record import candidate_row

    members = study.front(objectives)
    if form == "json":
        spec = study.spec
        _print_json(
            {
                "study": spec.name,
                "dataset": spec.dataset,
                "objectives": objectives,
                "hypervolume": study.hypervolume(objectives),
                "reference_point": [1.0] * len(objectives),
                "bounds": {name: spec.bounds.get(name) for name in objectives},
                "completed": len(study.candidates),
                "candidates": [candidate_row(c) for c in members],
            }
        )
    elif form == "csv":
        from igc_nas.tables import frame

        click.echo(frame(members).to_csv(index=False, lineterminator="\n"), nl=False)
    elif not members:
        _say(f"{study.spec.name} has no completed trial yet", f"igc-nas search --study {study.spec.name}")
    else:
        from igc_nas.display import console, front_table

        console().print(front_table(study, members, objectives))


@main.command()
@click.argument("arch")
@classes_option
@as_json
@studies_dir
def show(arch: str, classes: int | None, as_json: bool, root: Path) -> None:
    """Print the plan of ARCH as a table: every layer with its shape, parameters and MACs.

    ARCH is a .toml file, a paper's network (igcv1-l24m2-d20, igcv3-d-cifar, ...) or STUDY:N, trial N of a study.
    """
    from igc_nas.cost import cost_of, rows
    from igc_nas.plan import arch_id, plan

    config = _architecture(arch, classes, root)
    cost = cost_of(config)
    listed = list(rows(plan(config)))
    if as_json:
        layers = [
            {"block": r.block, "layer": type(r.layer).__name__, "name": getattr(r.layer, "name", None)}
            | {"shape": r.shape, "params": r.cost.params, "macs": r.cost.macs, "in_shortcut": r.in_shortcut}
            for r in listed
        ]
        _print_json({"id": arch_id(config), **cost.as_dict(), "arch": config.to_dict(), "layers": layers})
        return
    from igc_nas.display import console, plan_table

    title = f"{arch}  id {arch_id(config)}\n{config}\n{cost.params:,} parameters, {cost.macs:,} MACs"
    console().print(plan_table(title, listed))


@main.command()
@click.argument("arch")
@classes_option
@click.option("--check", is_flag=True, help="Build it and compare with torch's and ptflops' counters.")
@as_json
@studies_dir
def cost(arch: str, classes: int | None, check: bool, as_json: bool, root: Path) -> None:
    """Print what ARCH costs: parameters, MACs, FLOPs (2 per MAC) and activations of one image, exactly."""
    from igc_nas.cost import cost_of
    from igc_nas.plan import arch_id

    config = _architecture(arch, classes, root)
    found: dict[str, Any] = cost_of(config).as_dict()
    reference = _printed(arch, classes)
    checked: dict[str, Any] = {}
    if check:
        from igc_nas.check import count_by_others

        checked = count_by_others(config)
    if as_json:
        _print_json(found | {"id": arch_id(config), "arch": config.to_dict()} | reference | checked)
    else:
        width = max(map(len, found))
        _print(*(f"{name:<{width}}  {value:>16,}" for name, value in found.items()))
        _print(*(f"{name}: {value}" for name, value in (reference | checked).items()))
    if checked and not checked["agree"]:
        raise IgcNasError("the counters do not agree", "please report this with the architecture's file")


def _printed(arch: str, classes: int | None) -> dict[str, Any]:
    from igc_nas.reference import is_reference, reference

    found = reference(arch, classes) if is_reference(arch) else None
    if found is None or not found.printed_error:
        return {}
    return {"paper": found.paper, "printed_in": found.source, "printed_error": dict(found.printed_error)}


@main.command()
@click.argument("name", required=False)
@click.option("--classes", type=click.IntRange(1, 1_000_000), default=10, show_default=True, help="Classes.")
@click.option("--budget-params", type=COUNT, help="A budget to hold the space against.")
@click.option("--budget-macs", type=COUNT, help="A budget to hold the space against.")
@as_json
def space(name: str | None, classes: int, budget_params: int | None, budget_macs: int | None, as_json: bool) -> None:
    """Print a search space, its choices, its exact size, its smallest and largest costs; without NAME list them."""
    from igc_nas.resources import space_names

    if name is None:
        _print_json(space_names()) if as_json else _print(*space_names())
        return
    from igc_nas.cost import cost_of
    from igc_nas.feasible import Feasible
    from igc_nas.space import METRICS, SearchSpace

    found = SearchSpace.load(name, classes)
    Feasible(found, budget_params, budget_macs)
    facts: dict[str, Any] = {"architectures": found.size}
    for metric in METRICS:
        facts[f"smallest_{metric}"] = getattr(cost_of(found.smallest(metric)), metric)
        facts[f"largest_{metric}"] = getattr(cost_of(found.largest(metric)), metric)
    if as_json:
        _print_json({"space": found.name, "classes": classes, **facts, "file": found.file.to_dict()})
        return
    _print(f"{found.name}: {found.file.intent}", found.file.paper, "")
    width = max(map(len, facts))
    _print(*(f"{key:<{width}}  {value:>20,}" for key, value in facts.items()), "")
    _print(f"stem      {_choices(found.file.stem)}")
    for stage in found.stages:
        for unit, choices in stage.choices.items():
            _print(f"stage {stage.number}   {unit}  {_choices(choices)}")


def _choices(choices: Mapping[str, Any]) -> str:
    def values(value: Any) -> str:
        return "|".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

    return "  ".join(f"{key} {values(value)}" for key, value in choices.items())


# Using an architecture.


@main.command()
@click.argument("arch")
@classes_option
@device_option
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Images per pass.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads, on a CPU.")
@as_json
@studies_dir
def measure(arch: str, classes: int | None, device: str, batch: int, threads: int, as_json: bool, root: Path) -> None:
    """Measure the latency of ARCH here: median and 95 % interval, beside a fixed reference network."""
    config = _architecture(arch, classes, root)
    _quiet_threads(threads)
    from igc_nas.cost import cost_of
    from igc_nas.device import find_devices, prepare
    from igc_nas.latency import REFERENCE, measure_latency
    from igc_nas.spec import LatencySpec

    found = find_devices(device)[0]
    prepare(found, threads)
    spec = LatencySpec(device=found.name, batch=batch, threads=threads, input=config.input)
    latency = measure_latency(config, spec, found)
    of_a_study = {"normalised_ms", "normalised_low_ms", "normalised_high_ms"}
    facts = latency.model_dump(mode="json", exclude={"samples_ms", "reference_samples_ms", *of_a_study})
    facts |= {"n": latency.n, "reference": REFERENCE, **cost_of(config).as_dict()}
    if as_json:
        _print_json(facts | {"samples_ms": latency.samples_ms, "arch": config.to_dict()})
        return
    noisy = "  NOISY: the machine was shared or the interval is wide; measure again when it is quiet"
    _print(
        f"{latency.median_ms:.3f} ms  (95 % interval {latency.low_ms:.3f} to {latency.high_ms:.3f}, "
        f"n = {latency.n}){noisy if latency.noisy else ''}",
        f"reference network {REFERENCE}: {latency.reference_ms:.3f} ms in the same rounds",
        f"{facts['macs']:,} MACs, {facts['params']:,} parameters; {facts['macs'] / latency.median_ms / 1e6:.2f} GMAC/s",
        f"{spec.runtime}, batch {batch}, {threads} thread(s), {spec.dtype}, {spec.memory_format}, on {found.name}, "
        f"torch {latency.conditions.torch}, load {latency.conditions.load}",
    )


@main.command()
@click.argument("arch")
@click.option("--dataset", type=click.Choice(["auto", "cifar10", "cifar100", "shapes"]), default="auto")
@click.option("--epochs", type=click.IntRange(1, 10_000), default=30, show_default=True, help="Epochs in all.")
@click.option("--batch", type=click.IntRange(1, 65_536), default=128, show_default=True, help="Images per step.")
@click.option("--lr", type=click.FloatRange(0, 100, min_open=True), default=0.2, show_default=True, help="Peak rate.")
@click.option("--label-smoothing", type=click.FloatRange(0, 1, max_open=True), default=0.0, show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Threads, on a CPU. [default: all cores]")
@click.option("-o", "--out", type=FILE, help="Folder of checkpoints and weights. [default: models/ID-DATASET]")
@device_option
@data_dir_option
@studies_dir
@as_json
def train(arch: str, threads: int | None, root: Path, **flags: Any) -> None:
    """Train ARCH on the whole training set; a checkpoint per epoch, the same command continues.

    At the end the test set is opened, once, and the weights are written as safetensors.
    """
    from igc_nas.defaults import usable_cores

    threads = threads or usable_cores()
    _quiet_threads(threads)
    from igc_nas.longrun import LongRun

    config = _architecture(arch, None, root)
    run = LongRun.prepare(config, threads=threads, **{k: v for k, v in flags.items() if k != "as_json"})
    _say(*run.introduction())
    result = run.train(say=lambda line: _say(line))
    if flags["as_json"]:
        _print_json(result)
    else:
        _print(
            f"test error {100 * result['test_error']:.2f} % on {result['test_images']:,} images of {result['dataset']}",
            f"weights   {result['weights']}",
        )


@main.command()
@click.argument("study")
@click.option("--pick", default="knee", show_default=True, help="knee, best-error, trial:N or under:params=500k.")
@click.option("-o", "--out", type=FILE, help="File to write. [default: stdout]")
@click.option("--force", is_flag=True, help="Overwrite the file.")
@studies_dir
def export(study: str, pick: str, out: Path | None, force: bool, root: Path) -> None:
    """Write an architecture of STUDY as a config that show, cost, measure, train and Python accept."""
    from igc_nas.export import config_text

    loaded = _load(study, root)
    candidate = loaded.pick(pick)
    text = config_text(loaded, candidate)
    if out is None:
        _print(text.rstrip("\n"))
        return
    from igc_nas.files import write_whole

    if out.exists() and not force:
        raise UsageError(f"{out} exists", "choose another -o, or add --force")
    write_whole(out, text)
    _say(f"trial {candidate.trial} of {loaded.spec.name}: {candidate.arch}", f"wrote {out}", f"igc-nas train {out}")


@main.command()
@click.argument("study")
@click.option("-o", "--out", type=FILE, help="File to write. [default: dashboard.html in the study's folder]")
@click.option("--picture", type=FILE, help="Write the front as a .png or .svg picture, too (needs igc-nas[png]).")
@studies_dir
def dashboard(study: str, out: Path | None, picture: Path | None, root: Path) -> None:
    """Write STUDY as one self-contained page: fronts, all trials, hypervolume, the papers' networks."""
    from igc_nas.page import write_dashboard
    from igc_nas.plots import front_picture
    from igc_nas.results import PAGE_FILE

    loaded = _load(study, root)
    assert loaded.folder is not None
    page = out or loaded.folder / PAGE_FILE
    write_dashboard(loaded, page)
    _print(str(page))
    if picture:
        front_picture(loaded, picture)
        _print(str(picture))


@main.command()
@click.argument("name", type=click.Choice(["cifar10", "cifar100", "shapes"]))
@click.option("--from", "source", type=FILE, help="An archive or folder that you have: binary or python layout.")
@click.option("--url", help="Another place to download the official archive from.")
@data_dir_option
@as_json
def data(name: str, source: Path | None, url: str | None, data_dir: Path | None, as_json: bool) -> None:
    """Fetch a dataset, verify it, and put it where searches look; a download that was cut goes on."""
    from igc_nas.dataset import data_dir as resolve
    from igc_nas.fetch import fetch

    folder = resolve(data_dir)
    with _download_bar() as progress:
        info = fetch(name, folder, source=source, url=url, progress=progress)
    facts = {"dataset": info.label, "folder": str(info.folder), "classes": info.classes, "sha256": info.sha256}
    _print_json(facts) if as_json else _print(f"{info.label} is in {info.folder}")


@contextlib.contextmanager
def _download_bar() -> Iterator[Callable[[int, int], None]]:
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    from igc_nas.display import console

    screen = console(stderr=True)
    bars = Bars(
        BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
        console=screen, disable=not screen.is_terminal,
    )  # fmt: skip
    with bars:
        task = bars.add_task("download", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


# Shared by the commands.


def _load(name: str | Path, root: Path) -> Study:
    from igc_nas.results import load_study

    return load_study(name, root)


def _architecture(name: str, classes: int | None, root: Path) -> ArchConfig:
    from igc_nas.architecture import load_architecture

    return load_architecture(name, classes, root)


def _quiet_threads(threads: int) -> None:
    """Before torch is imported: threads that sleep when they have nothing to do."""
    import os

    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _print(*lines: str) -> None:
    for line in lines:
        click.echo(printable(line))


def _say(*lines: str) -> None:
    for line in lines:
        click.echo(printable(line), err=True)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, allow_nan=False))


class Terminated(BaseException):
    """SIGTERM or SIGHUP, raised where the program is, so that everything is closed on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _terminate(number: int, _: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise Terminated(number)


def run() -> None:
    """The entry point: every way out has its exit status and, where it is an error, one line and a hint."""
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _terminate)
    sys.exit(_status(sys.argv[1:]))


def _status(arguments: list[str]) -> int:
    debug = "--debug" in arguments
    try:
        status = main.main([a for a in arguments if a != "--debug"], prog_name="igc-nas", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return 2
    except (KeyboardInterrupt, click.Abort):
        _say("stopped; the same command continues")
        return 130
    except Terminated as signal_:
        return 128 + signal_.number
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except IgcNasError as error:
        if debug:
            raise
        _say(
            f"igc-nas: {printable(error.message, lines=False)}",
            *([f"  {printable(error.hint, lines=False)}"] if error.hint else []),
        )
        return error.exit_code
    except OSError as error:  # a name, a permission, a disk: what the system refuses, in its words
        if debug:
            raise
        place = f"{error.filename!s:.200}: " if error.filename else ""
        _say(f"igc-nas: {place}{error.strerror or error}", "  --debug shows where")
        return 1
    except Exception as error:
        if debug:
            raise
        _say(
            f"igc-nas: internal error: {type(error).__name__}: {printable(str(error), lines=False)[:300]}",
            "  --debug shows where",
        )
        return 1
    return status if isinstance(status, int) else 0  # --help and --version return theirs
