"""The command that writes a network for others: export."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from igc_nas.cli.loading import load, quiet_threads
from igc_nas.cli.options import FILE, classes_option, storage_option, studies_dir
from igc_nas.cli.output import put, say
from igc_nas.errors import ConfigError, UsageError
from igc_nas.export.destination import FORMATS, FORMS, check_destination

if TYPE_CHECKING:
    from igc_nas.export.graph import Exporter, Graph
    from igc_nas.export.source import Source
    from igc_nas.nn.network import Network


@click.command()
@click.argument("what", metavar="STUDY|ARCH")
@click.option("--pick", help="Of a study: knee, best-error, trial:N or under:params=500k. [default: knee]")
@click.option(
    "--format",
    "kind",
    type=click.Choice(FORMATS),
    help="A config, one PyTorch file, ONNX, torch's exported program, or a folder of them. [default: by the ending "
    "of -o, else toml]",
)
@click.option("--weights", type=FILE, help="A weights.safetensors, or the folder of the training that wrote it.")
@click.option("--untrained", is_flag=True, help="Write onnx, pt2 or a folder's ONNX file with random weights.")
@click.option("--form", type=click.Choice(FORMS), help="Of onnx and pt2: which chains are multiplied out. [default: "
              "the fastest, measured here, of those that the study allows]")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Of random weights.")
@classes_option
@click.option("-o", "--out", type=FILE, help="File or folder to write. [default: stdout, for toml and py]")
@click.option("--force", is_flag=True, help="Overwrite the file, or the folder of an earlier export.")
@storage_option
@studies_dir
def export(
    what: str, pick: str | None, out: Path | None, force: bool, storage: str | None, root: Path, **flags: Any
) -> None:
    """Write an architecture of STUDY, or ARCH, as a file or a folder that others can use.

    ARCH is a .toml file, a paper's network, STUDY:N, or the folder of a training (its weights then go with it). What
    is written is read back and compared with the network first.
    """
    from igc_nas.export.source import unfinished_text

    kind = flags["kind"] or _format_by_name(out)
    source, weights = _source(what, pick, flags["classes"], root, storage)
    weights = flags["weights"] or (None if kind == "toml" else weights)
    _check_flags(kind, weights, out, flags)
    if out is not None:
        _check_place(kind, out, force)
    if (unfinished := unfinished_text(source)) is not None:
        say(f"{source.name}: {unfinished}")
    lines = _write(kind, source, weights, out, flags)
    if out is not None:
        say(f"{source.name}: {source.arch}", *lines, f"wrote {out}")
        if kind == "toml":
            say(f"igc-nas train {out}")


def _format_by_name(out: Path | None) -> str:
    ending = out.suffix.lower().removeprefix(".") if out else ""
    return ending if ending in ("py", "onnx", "pt2") else "toml"


def _source(
    what: str, pick: str | None, classes: int | None, root: Path, storage: str | None
) -> tuple[Source, Path | None]:
    """(what is exported, the weights that go with it)."""
    from igc_nas.export.source import Source

    one = _one(what, classes, root, storage)
    if one is None:
        study = load(what, root, storage)
        return Source.of_trial(study, study.pick_trial(pick or "knee"), classes), None
    if pick is not None:
        raise UsageError(f"--pick goes with a study, and {what!r:.80} is one architecture")
    return one


def _one(what: str, classes: int | None, root: Path, storage: str | None) -> tuple[Source, Path | None] | None:
    """The one architecture that `what` names, with the weights that go with it; None where it can only be a study."""
    from igc_nas.export.source import Source
    from igc_nas.io.files import is_file
    from igc_nas.study.lookup import is_named, load_architecture, named_trial

    folder = Path(what)
    if is_file(folder / "run.toml") and not is_file(folder / "study.toml"):
        arch = load_architecture(folder / "arch.toml", classes)
        return Source(arch, f"the training {folder.resolve().name}"), folder
    if is_named(what):
        return Source(load_architecture(what, classes, root), Path(what).name), None
    found = named_trial(what, root, lambda name, place: load(name, place, storage))
    if found is None:
        return None
    study, trial = found
    return Source.of_trial(study, study.pick_trial(f"trial:{trial.number}"), classes), None


def _check_flags(kind: str, weights: Path | None, out: Path | None, flags: dict[str, Any]) -> None:
    """Refuse what does not go together, before anything is built."""
    if kind == "toml" and weights:
        raise UsageError("a config holds no weights: --weights does not go with toml", "add --format py, onnx or dir")
    if weights and flags["untrained"]:
        raise UsageError("--weights and --untrained exclude each other")
    if kind in ("toml", "py"):
        for name in ("untrained", "form"):
            if flags[name]:
                raise UsageError(f"--{name} does not go with {kind}", "it goes with --format onnx, pt2 or dir")
    elif out is None:
        ending = "" if kind == "dir" else f".{kind}"
        raise UsageError(f"{kind} is not for stdout", f"say where: -o model{ending}")
    if not weights and not flags["untrained"]:
        if kind in ("onnx", "pt2"):
            raise UsageError(
                f"{kind} holds weights, and there are none", "add --weights FILE, or --untrained for random ones"
            )
        if flags["form"]:
            raise UsageError("--form is of model.onnx, which holds weights", "add --weights FILE, or --untrained")


def _check_place(kind: str, out: Path, force: bool) -> None:
    if kind == "dir":
        check_destination(out, force)
    elif out.exists() and not force:
        raise UsageError(f"{out} exists", "choose another -o, or add --force")
    elif out.is_dir():
        raise UsageError(f"{out} is a folder", "choose another -o")


def _write(kind: str, source: Source, weights: Path | None, out: Path | None, flags: dict[str, Any]) -> list[str]:
    """Write one format, once it is known to be right; what to say of it."""
    if kind == "toml":
        from igc_nas.export.source import config_text

        _deliver(_checked_config(source, config_text(source)), out)
        return []
    threads = source.study.spec.latency.threads if source.study else 1
    quiet_threads(threads)
    from igc_nas.export.weights import loaded

    source, network = loaded(source, weights, flags["seed"])
    lines = [f"weights  {weights}" + (f": {source.trained}" if source.trained else "")] if weights else []
    if flags["untrained"]:
        lines.append(f"weights  UNTRAINED: random, of seed {flags['seed']}; this network classifies nothing")
    if kind == "py":
        error = _write_standalone(source, network, out)
        return [*lines, f"checked  in a process of its own, against the network: {_error_text(error)}"]
    assert out is not None
    if kind == "dir":
        return [*lines, *_write_folder(source, network, bool(weights), out, flags)]
    from igc_nas.io.files import write_whole

    graph = _graph("onnx" if kind == "onnx" else "pt2", source, network, flags["form"])
    write_whole(out, graph.data)
    return [*lines, *graph.lines(source.cost.params)]


def _checked_config(source: Source, text: str) -> str:
    from igc_nas.arch.config import ArchConfig

    if ArchConfig.from_toml(text) != source.arch:
        raise ConfigError("the config reads back as another architecture")
    return text


def _write_standalone(source: Source, network: Network, out: Path | None) -> float:
    from igc_nas.export.standalone import standalone_text
    from igc_nas.export.verify import verify_standalone

    text = standalone_text(source)
    with tempfile.TemporaryDirectory(prefix="igc-nas-") as folder:
        place = Path(folder) / "model.py"
        place.write_text(text, encoding="utf-8")
        error = verify_standalone(place, network)
    _deliver(text, out)
    return error


def _write_folder(source: Source, network: Network, trained: bool, out: Path, flags: dict[str, Any]) -> list[str]:
    from igc_nas.export.folder import write_folder

    graph, no_onnx = None, "it would hold weights, and there are none"
    if trained or flags["untrained"]:
        from igc_nas.evaluation.runtimes import require

        try:
            require("onnxruntime", "an ONNX file")
        except UsageError as error:
            no_onnx = f"{error.message} ({error.hint})"
        else:
            graph, no_onnx = _graph("onnx", source, network, flags["form"]), ""
    write_folder(out, source, network, trained, graph, no_onnx)
    lines = [] if trained else ["weights  none: igc-nas train makes them, --weights takes them along"]
    if graph is None:
        return [*(lines if not flags["untrained"] else []), f"no model.onnx: {no_onnx}"]
    return graph.lines(source.cost.params)


def _graph(kind: Any, source: Source, network: Network, form: str | None) -> Graph:
    if kind == "onnx":
        from igc_nas.evaluation.runtimes import require

        require("onnxruntime", "an ONNX file")
    return _exporter(source)(kind, network, form or "fastest", source.metadata)


def _exporter(source: Source) -> Exporter:
    """Forms are chosen as the study's latencies are, but on this machine's CPU; without a study any form will do."""
    from igc_nas.export.graph import Exporter
    from igc_nas.nn.device import configure_torch, find_devices
    from igc_nas.nn.lowering.timing_cache import timing_cache_for
    from igc_nas.study.spec import LatencySpec

    device = find_devices("cpu")[0]
    own = {"device": device.name, "runtime": "onnxruntime", "input": source.arch.input, "memory_format": "contiguous"}
    away = {"remote": False, "cuda_graph": False, "cold_cache": False}
    question = source.study.spec if source.study else None
    spec = question.latency.model_copy(update=own | away) if question else LatencySpec(**own, forms="any")  # type: ignore[arg-type]
    configure_torch(device, spec.threads)
    limit = question.budget.params if question else None
    return Exporter(spec, device, limit, timing_cache_for(device.name, spec.threads, "deployment"), say)


def _error_text(error: float) -> str:
    return "equal" if error == 0 else f"relative error {error:.1e}"


def _deliver(text: str, out: Path | None) -> None:
    if out is None:
        put(text.rstrip("\n"))
        return
    from igc_nas.io.files import write_whole

    write_whole(out, text)
