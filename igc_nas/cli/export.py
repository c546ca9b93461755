"""`igc-nas export`: write an architecture, with weights or without, in formats that need no igc-nas."""

from __future__ import annotations

import shlex
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from igc_nas.arch.config import ArchConfig
from igc_nas.cli.loading import limit_of, load, load_torch, quiet_threads, with_side
from igc_nas.cli.options import COUNT, FILE, Choice, classes_option, side_option, storage_option, studies_dir
from igc_nas.cli.output import put, say
from igc_nas.errors import ConfigError, IgcNasError, InfeasibleError, UsageError
from igc_nas.exports.destination import FORMATS, FORMS, c_paths, check_destination
from igc_nas.io.text import nearest_and_all

if TYPE_CHECKING:
    from igc_nas.exports.c_source import CFiles
    from igc_nas.exports.graph import Exporter, Graph
    from igc_nas.exports.source import Source
    from igc_nas.nn.network import Network
    from igc_nas.study.spec import RuntimeName


@dataclass(frozen=True)
class ExportRequest:
    """The options of `igc-nas export`, one field each. None: not given."""

    what: str | ArchConfig
    pick: str | None
    budget_params: int | None
    kind: str | None
    weights: Path | None
    untrained: bool
    form: str | None
    weights_file: bool
    opset: int | None
    device: str
    runtime: RuntimeName | None
    seed: int
    classes: int | None
    image_size: int | None
    out: Path | None
    force: bool
    storage: str | None
    root: Path


@click.command()
@click.argument("what", metavar="STUDY|ARCH")
@click.option(
    "--pick",
    metavar="RULE",
    help="Which trial of a STUDY: knee, best-error, smallest, trial:N or under:params=500k (also "
    "under:params=500k,latency=2ms). [default: knee]",
)
@click.option(
    "--budget-params",
    type=COUNT,
    help="Most parameters that a file may hold: 500k. [default: those of --pick under:params, or of the study]",
)
@click.option(
    "--format",
    "kind",
    type=Choice(FORMATS),
    help="A config, one PyTorch file, ONNX, torch's exported program, C, or a folder of them. [default: by the "
    "suffix of -o, else toml]",
)
@click.option("--weights", type=FILE, help="A weights.safetensors file, or the folder of the training that wrote it.")
@click.option("--untrained", is_flag=True, help="Write ONNX, pt2 or C files with random weights.")
@click.option("--form", type=Choice(FORMS), help="Form of the network in ONNX and pt2 files. [default: the "
              "fastest, measured here, of those that the study allows]")  # fmt: skip
@click.option("--weights-file", is_flag=True, help="Of c: write the weights to NAME.bin instead of into NAME.c.")
@click.option("--opset", type=click.IntRange(7, 50), help="Of onnx: version of ONNX's operators. [default: torch's]")
@click.option("--device", default="cpu", show_default=True, help="Of onnx and pt2: where forms race, cpu or cuda.")
@click.option("--runtime", type=Choice(["onnxruntime", "tensorrt"]), help="Of onnx on a GPU: what runs the "
              "forms that race. [default: onnxruntime]")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of random weights.")
@classes_option
@side_option
@click.option("-o", "--out", type=FILE, help="File or folder to write. [default: stdout, for toml and py]")
@click.option("--force", is_flag=True, help="Overwrite the file, or the folder of an earlier export.")
@storage_option
@studies_dir
def export(**options: Any) -> None:
    """Write an architecture as files that need no igc-nas.

    It is one of STUDY (see --pick), or ARCH: a .toml file, a network's name, STUDY:N, or the folder of a training
    (its weights are then exported, too). Before anything is written it is read back and compared with the network.

    \b
    Examples:
      igc-nas export igc_cifar10_2m --pick under:params=200k -o arch.toml
      igc-nas export arch.toml --weights models/ID-cifar10 -o net.onnx
    """
    request = ExportRequest(**options)
    text, lines, dataset = exported(request)
    if request.out is None:
        put(text.rstrip("\n"))
        return
    from igc_nas.arch.cost import reads_square_colour
    from igc_nas.study.names import dataset_option

    say(*lines)
    is_toml = (request.kind or _format_by_suffix(request.out)) == "toml"
    if is_toml and reads_square_colour(ArchConfig.from_toml(text)):
        option = dataset_option(dataset) if dataset else ""
        say(f"igc-nas train {shlex.quote(str(request.out))}{option}")


def exported(request: ExportRequest) -> tuple[str, list[str], str | None]:
    """Write the files that are requested: (the text, of toml and py only; what was written; its dataset's label)."""
    from igc_nas.exports.source import unfinished_text
    from igc_nas.study.front_table import legend

    kind, out = request.kind or _format_by_suffix(request.out), request.out
    source, weights = _source(request)
    source = source.at(with_side(source.arch, request.image_size))
    source = replace(source, limit=_limit(source, request))
    weights = request.weights or (None if kind == "toml" else weights)
    _check_options(kind, weights, request)
    if out is not None and kind != "toml":
        _check_place(kind, out, request.force)
    if (unfinished := unfinished_text(source)) is not None:
        say(f"{source.name}: {unfinished}")
    _check_limit(source.cost.params, "factored", source.limit)
    text, lines = _write(kind, source, weights, request)
    dataset = source.study.spec.dataset if source.study else None
    return text, [f"{source.name}: {source.arch}", legend([source.arch]), *lines, f"wrote {out}"], dataset


def _format_by_suffix(out: Path | None) -> str:
    """The format that a file's ending names; a config where it has none. Raises `UsageError` for another ending."""
    suffix = out.suffix.lower().removeprefix(".") if out and out != Path("/dev/stdout") else ""
    known = ("toml", "py", "onnx", "pt2", "c")
    if suffix not in ("", *known):
        hint = nearest_and_all(suffix, known, "use .toml, .py, .onnx, .pt2 or .c; or name the --format")
        raise UsageError(f"no format is known for the ending of {out!s:.120}", hint)
    return suffix or "toml"


def _source(request: ExportRequest) -> tuple[Source, Path | None]:
    """(the architecture to export, the folder of its training if it is named by that)."""
    from igc_nas.exports.source import Source

    if isinstance(request.what, ArchConfig):
        arch = request.what if request.classes is None else request.what.with_classes(request.classes)
        return Source(arch, "an architecture"), None
    found = _architecture(request.what, request.classes, request.root, request.storage)
    if found is None:
        study = load(request.what, request.root, request.storage)
        return Source.of_trial(study, study.pick_trial(request.pick or "knee"), request.classes), None
    if request.pick is not None:
        raise UsageError(f"--pick goes with a study, and {request.what!r:.80} is one architecture")
    return found


def _architecture(what: str, classes: int | None, root: Path, storage: str | None) -> tuple[Source, Path | None] | None:
    """The architecture that `what` names, with the folder of its training; None if `what` can only be a study."""
    from igc_nas.arch.config import deployed_limit
    from igc_nas.exports.source import Source
    from igc_nas.io.files import is_file, user_path
    from igc_nas.study.lookup import is_named, load_architecture, named_trial

    folder = user_path(what)
    if is_file(folder / "run.toml") and not is_file(folder / "study.toml"):
        file = folder / "arch.toml"
        name = f"the training {folder.resolve().name}"
        return Source(load_architecture(file, classes), name, limit=deployed_limit(file)), folder
    if is_named(what):
        arch = load_architecture(what, classes, root)
        return Source(arch, Path(what).name, limit=limit_of(what, root)), None
    found = named_trial(what, root, lambda name, place: load(name, place, storage))
    if found is None:
        return None
    study, trial = found
    return Source.of_trial(study, study.pick_trial(f"trial:{trial.number}"), classes), None


def _check_options(kind: str, weights: Path | None, request: ExportRequest) -> None:
    """Raise `UsageError` for options that exclude each other, before anything is built."""
    if kind == "toml" and weights:
        raise UsageError("a config holds no weights: --weights does not go with toml", "add --format py, onnx or dir")
    if weights and request.untrained:
        raise UsageError("--weights and --untrained exclude each other")
    if kind in ("toml", "py") and request.untrained:
        raise UsageError(f"--untrained does not go with {kind}", "it goes with --format onnx, pt2, c or dir")
    if kind in ("toml", "py", "c") and request.form:
        raise UsageError(f"--form does not go with {kind}", "it goes with --format onnx, pt2 or dir")
    if kind != "c" and request.weights_file:
        raise UsageError(f"--weights-file does not go with {kind}", "it goes with --format c")
    if kind not in ("toml", "py") and request.out is None:
        suffix = "" if kind == "dir" else f".{kind}"
        raise UsageError(f"{kind} is not for stdout", f"name a file or folder: -o model{suffix}")
    if kind not in ("onnx", "dir") and request.opset:
        raise UsageError(f"--opset does not go with {kind}", "it goes with --format onnx or dir")
    if request.device != "cpu" and (kind not in ("onnx", "pt2", "dir") or request.form):
        raise UsageError("--device says where the forms of an ONNX or pt2 file race", "leave it out")
    if request.runtime and (kind not in ("onnx", "dir") or request.device == "cpu"):
        raise UsageError("--runtime is for the forms of an ONNX file on a GPU", "add --device cuda, or leave it out")
    if not weights and not request.untrained:
        if kind in ("onnx", "pt2", "c"):
            raise UsageError(
                f"{kind} holds weights, and there are none", "add --weights FILE, or --untrained for random ones"
            )
        if request.form:
            raise UsageError("--form is of model.onnx, which holds weights", "add --weights FILE, or --untrained")


def _limit(source: Source, request: ExportRequest) -> int | None:
    """The most parameters that a file may hold: --budget-params, else the least of those that are known.

    These are of --pick under:params, of the study, and of the architecture's file.
    """
    from igc_nas.study.study import parse_limits

    if request.budget_params is not None:
        return request.budget_params
    kind, _, limits = (request.pick or "").partition(":")
    picked = parse_limits(limits).get("params") if kind == "under" else None
    own = source.study.spec.deployed_limit if source.study else None
    if own is not None and source.cost.params > own:  # a network that was enqueued, or has more classes here
        own = None
    return min((int(limit) for limit in (picked, own, source.limit) if limit is not None), default=None)


def _check_limit(params: int, form: str, limit: int | None) -> None:
    """Raise `InfeasibleError` where a file would hold more parameters than the limit it was picked by."""
    if limit is not None and params > limit:
        raise InfeasibleError(
            f"the {form} network has {params:,} parameters; at most {limit:,} may be deployed",
            "pick a smaller one, or raise --budget-params" + ("" if form == "factored" else ", or leave out --form"),
        )


def _check_place(kind: str, out: Path, force: bool) -> None:
    if not out.parent.is_dir():  # known before forms race and a compiler runs
        raise IgcNasError(f"cannot write {out}: its folder is not there", f"mkdir -p {shlex.quote(str(out.parent))}")
    if kind == "dir":
        check_destination(out, force)
    elif kind == "c" and not force and (there := [path for path in c_paths(out) if path.exists()]):
        raise UsageError(f"{there[0]} exists", "choose another -o, or add --force")
    elif out.exists() and not force:
        raise UsageError(f"{out} exists", "choose another -o, or add --force")
    elif out.is_dir():
        raise UsageError(f"{out} is a folder", "choose another -o")


def _write(kind: str, source: Source, weights: Path | None, request: ExportRequest) -> tuple[str, list[str]]:
    """Write one format, after it was compared with the network: (its text, of toml and py; lines that describe it)."""
    out = request.out
    if kind == "toml":
        from igc_nas.exports.source import config_text

        text = _checked_config(source, config_text(source))
        if out is not None and not _has_text(out, text):  # the same command again changes nothing
            _check_place(kind, out, request.force)
        return _delivered(text, out), []
    threads = source.study.spec.latency.threads if source.study else 1
    quiet_threads(threads)
    load_torch()
    from igc_nas.exports.weights import loaded

    source, network = loaded(source, weights, request.seed)
    lines = [f"weights  {weights}" + (f": {source.trained}" if source.trained else "")] if weights else []
    if request.untrained:
        lines.append(f"weights  UNTRAINED: random, of seed {request.seed}; predictions are meaningless")
    if kind == "py":
        text, error = _write_standalone(source, network, out)
        return text, [*lines, f"checked  in a separate process against the network: {_error_text(error)}"]
    assert out is not None
    if kind == "dir":
        return "", [*lines, *_write_folder(source, network, bool(weights), out, request)]
    if kind == "c":
        return "", [*lines, *_write_c(source, network, out, request.weights_file)]
    from igc_nas.io.files import write_whole

    graph = _graph("onnx" if kind == "onnx" else "pt2", source, network, request)
    write_whole(out, graph.data)
    return "", [*lines, *graph.lines(source.cost.params)]


def _checked_config(source: Source, text: str) -> str:
    from igc_nas.arch.config import ArchConfig

    if ArchConfig.from_toml(text) != source.arch:
        raise ConfigError("the config reads back as another architecture")
    return text


def _write_standalone(source: Source, network: Network, out: Path | None) -> tuple[str, float]:
    from igc_nas.exports.standalone import standalone_text
    from igc_nas.exports.verify import verify_standalone

    text = standalone_text(source)
    with tempfile.TemporaryDirectory(prefix="igc-nas-") as folder:
        place = Path(folder) / "model.py"
        place.write_text(text, encoding="utf-8")
        error = verify_standalone(place, network)
    return _delivered(text, out), error


def _write_folder(source: Source, network: Network, trained: bool, out: Path, request: ExportRequest) -> list[str]:
    from igc_nas.arch.cost import reads_square_colour
    from igc_nas.exports.folder import write_folder

    graph, no_onnx = None, "it would hold weights, and there are none"
    if trained or request.untrained:
        from igc_nas.evaluation.runtimes import require

        try:
            require("onnxruntime", "an ONNX file")
        except UsageError as error:
            no_onnx = f"{error.message} ({error.hint})"
        else:
            graph, no_onnx = _graph("onnx", source, network, request), ""
    c, no_c = _folder_c(source, network, trained or request.untrained)
    write_folder(out, source, network, trained, graph, no_onnx, c=c, no_c=no_c)
    without_weights, trains = not trained and not request.untrained, reads_square_colour(source.arch)
    return [
        *([f"weights  none: {'igc-nas train makes them, ' * trains}--weights adds them"] if without_weights else []),
        *([f"no model.onnx: {no_onnx}"] if graph is None else graph.lines(source.cost.params)),
        f"no model.c: {no_c}" if c is None else _c_line(c[1], "model.c"),
    ]


def _folder_c(source: Source, network: Network, with_weights: bool) -> tuple[tuple[CFiles, float] | None, str]:
    """(the C files of a folder with their error, or None; why there are none)."""
    from igc_nas.nn.c_compiler import CompilerError
    from igc_nas.nn.codegen.program import UnsupportedLayerError

    if not with_weights:
        return None, "it would hold weights, and there are none"
    try:
        return _checked_c("model", source, network, weights_file=False), ""
    except (UsageError, CompilerError, UnsupportedLayerError) as error:
        return None, f"{error.message} ({error.hint})"


def _write_c(source: Source, network: Network, out: Path, weights_file: bool) -> list[str]:
    """Write the C files of a network beside `out`, which is NAME.c."""
    files, error = _checked_c(out.stem, source, network, weights_file)
    files.write(out.parent)
    names = ", ".join([*files.texts, *([f"{out.stem}.bin"] if weights_file else [])])
    return [f"files    {names}", _c_line(error)]


def _checked_c(name: str, source: Source, network: Network, weights_file: bool) -> tuple[CFiles, float]:
    """The C files of a network for the vectors that are fastest here, and their error as compiled and run."""
    from igc_nas.evaluation.runtimes import require
    from igc_nas.exports.c_source import c_files, verify_c
    from igc_nas.nn.codegen.target import target_here

    require("native", "the check of a C file")
    files = c_files(name, source, network, weights_file=weights_file, target=target_here())
    return files, verify_c(files, network)


def _c_line(error: float, name: str = "") -> str:
    return f"checked  {f'{name}, ' if name else ''}compiled and run, with sanitizers and without: {_error_text(error)}"


def _graph(kind: Any, source: Source, network: Network, request: ExportRequest) -> Graph:
    if kind == "onnx":
        from igc_nas.evaluation.runtimes import require

        require("onnxruntime", "an ONNX file")
    exporter = _exporter(source, request.opset)
    if request.device != "cpu":
        exporter = _racing_on_gpu(exporter, kind, source, request)
    graph = exporter(kind, network, request.form or "fastest", source.metadata)
    _check_limit(graph.params, graph.form, source.limit)
    return graph


def _exporter(source: Source, opset: int | None) -> Exporter:
    """Exports in a form within the limit that the study's spec allows, measured on this machine's CPU."""
    from igc_nas.exports.graph import Exporter
    from igc_nas.nn.device import configure_torch, find_devices
    from igc_nas.nn.lowering.timing_cache import timing_cache_for
    from igc_nas.study.spec import LatencySpec

    device = find_devices("cpu")[0]
    study_spec = source.study.spec.latency if source.study else None
    only_factored = study_spec and study_spec.forms == "factored" and study_spec.runtime != "native"
    own = {"device": device.name, "runtime": "onnxruntime", "input": source.arch.input, "memory_format": "contiguous"}
    own["forms"] = "factored" if only_factored else "within-budget"  # native C runs factored networks, whatever it says
    away = {"remote": False, "cuda_graph": False, "cold_cache": False}
    spec = study_spec.model_copy(update=own | away) if study_spec else LatencySpec(**own)  # type: ignore[arg-type]
    configure_torch(device, spec.threads)
    cache = timing_cache_for(device.name, spec.threads, "deployment")
    return Exporter(spec, device, source.limit, cache, say, opset=opset)


def _racing_on_gpu(exporter: Exporter, kind: str, source: Source, request: ExportRequest) -> Exporter:
    """The exporter whose fastest form is that on a GPU. Raises `UsageError` where the runtime is not there."""
    from functools import partial

    from igc_nas.cli.loading import engine_notices
    from igc_nas.evaluation.runtimes import check_device, require
    from igc_nas.exports.graph import fastest_on_gpu
    from igc_nas.nn.device import configure_torch, find_devices
    from igc_nas.nn.lowering.timing_cache import timing_cache_for

    device = find_devices(request.device)[0]
    if device.kind == "cpu":
        return exporter
    runtime: RuntimeName = "eager" if kind == "pt2" else request.runtime or "onnxruntime"
    check_device(runtime, device.kind)
    require(runtime)
    say(*engine_notices(runtime), f"timing forms by {runtime} on {device.name} ...")
    as_the_file = {"dtype": "float32", "device": device.name, "runtime": runtime, "cuda_graph": kind == "pt2"}
    spec = exporter.spec.model_copy(update=as_the_file)
    configure_torch(device, spec.threads)
    cache = timing_cache_for(device.name, spec.threads, "deployment")
    return replace(exporter, fastest=partial(fastest_on_gpu, source.arch, spec, device, exporter.most_params, cache))


def _error_text(error: float) -> str:
    return "equal" if error == 0 else f"relative error {error:.1e}"


def _has_text(out: Path, text: str) -> bool:
    from igc_nas.io.files import read_text

    try:
        return read_text(out) == text
    except ConfigError:
        return False


def _delivered(text: str, out: Path | None) -> str:
    """The text, written to `out` if that is a file."""
    if out is not None:
        from igc_nas.io.files import write_whole

        write_whole(out, text)
    return text
