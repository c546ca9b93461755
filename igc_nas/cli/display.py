"""Studies, plans and trials as tables and lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from igc_nas.analysis.baselines import Standing, baselines_sentence
from igc_nas.analysis.words import candidate_words, conditions_words
from igc_nas.arch.cost import LayerCost
from igc_nas.arch.layers import (
    Act,
    AvgPool,
    Concat,
    Conv,
    DualPath,
    Flatten,
    Interleave,
    Layer,
    Linear,
    MaxPool,
    Norm,
    Pool,
    PRelu,
    Residual,
    Select,
    Split,
    SqueezeExcite,
    Subsample,
)
from igc_nas.data.datasets import is_synthetic
from igc_nas.engine.progress import trial_line
from igc_nas.io.console import table
from igc_nas.io.text import printable
from igc_nas.study.lock import LockHolder, Running
from igc_nas.study.names import search_command, study_argument
from igc_nas.study.records import Candidate, Trial
from igc_nas.study.status import Status
from igc_nas.study.study import Study


def candidate_cells(candidate: Candidate) -> list[str]:
    """A candidate as the cells of `CANDIDATE_COLUMNS`."""
    words = candidate_words(candidate)
    error, latency = words.error.removesuffix(" %"), words.latency.removesuffix(" ms")
    noisy = f" {words.noisy}" if words.noisy else ""
    return [
        *(words.trial, error, words.params, words.macs),
        *(latency + noisy, words.interval, words.form, words.architecture),
    ]


MOST_DOMINATING = 3
"""The number of dominating trials that a row names."""
CANDIDATE_COLUMNS = (
    "trial",
    "error %",
    "params",
    "MACs",
    "latency ms",
    "95 %",
    "runs as",
    "architecture",
)


def front_table(study: Study, front: Sequence[Candidate], objectives: Sequence[str]) -> Group:
    """A front as a table, titled with its study, data and latency conditions."""
    spec = study.spec
    volume = study.hypervolume(objectives)
    title = (
        f"{spec.name}: front of {len(front)} of {len(study.candidates)} candidates by {', '.join(objectives)}"
        f"; data: {data_label(spec.dataset)}"
        + ("" if volume is None else f"; hypervolume {volume:.4f}")
        + f"\nlatency: {conditions_words(spec.latency)}; runs as: form, its parameters, MACs and weights"
    )
    cells = map(candidate_cells, front)
    return Group(Text(printable(title)), table(CANDIDATE_COLUMNS, cells, left=("runs as", "architecture")))


BASELINE_COLUMNS = ("baseline", "trial", "error %", "params", "MACs", "latency ms", "dominated by")


def baselines_table(standings: Sequence[Standing]) -> Table:
    """The baselines beside a front, each with the trials of the front that dominate it."""
    return table(BASELINE_COLUMNS, map(_standing_cells, standings), left=("baseline", "dominated by"))


def _standing_cells(standing: Standing) -> list[str]:
    trial, error, params, macs, latency, *_ = candidate_cells(standing.candidate)
    by = standing.dominated_by
    more = f" and {len(by) - MOST_DOMINATING} more" if len(by) > MOST_DOMINATING else ""
    numbers = ", ".join(map(str, by[:MOST_DOMINATING]))
    words = f"trial{'s' * (len(by) > 1)} {numbers}{more}" if by else "not dominated"
    return [standing.name, trial, error, params, macs, latency, words]


def data_label(dataset: str) -> str:
    """The dataset's label, with a warning if it is synthetic."""
    return f"{dataset} (SYNTHETIC: says nothing about CIFAR)" if is_synthetic(dataset) else dataset


def plan_table(title: str, rows: Iterable[LayerCost]) -> Group:
    """A plan layer by layer: the layer, its output shape, parameters and MACs."""
    columns = ("block", "layer", "shape", "params", "MACs")
    cells = (
        (
            row.block,
            (f"{row.branch}: " if row.branch else "") + layer_text(row.layer),
            " x ".join(map(str, row.shape)),
            f"{row.cost.params:,}",
            f"{row.cost.macs:,}",
        )
        for row in rows
    )
    return Group(Text(printable(title)), table(columns, cells, left=("block", "layer")))


def layer_text(layer: Layer) -> str:
    """One layer in words, those with branches without their branches."""
    match layer:
        case Conv(name, c_in, c_out, kernel, stride, groups):
            text = f"{name}: conv {kernel}x{kernel} {c_in}->{c_out}"
            text += f" groups {groups}" if groups > 1 else ""
            text += f" stride {stride}" if stride > 1 else ""
            text += f" padding {layer.pad}" if layer.pad != kernel // 2 else ""
            return text + (" with bias" if layer.bias else "")
        case Interleave(_, groups):
            return f"interleave({groups})" + (" = identity" if layer.is_identity else "")
        case Select(name, c_in, c_out):
            return f"{name}: {c_out} of {c_in} channels by index"
        case Norm(name, _):
            return f"{name}: batch norm"
        case Act(kind):
            return kind
        case PRelu(name, _):
            return f"{name}: prelu"
        case SqueezeExcite(name, channels, squeeze, gate, bias):
            return f"{name}: squeeze-excite {channels}->{squeeze}->{channels} {gate}" + (" with bias" if bias else "")
        case MaxPool(kernel, stride) | AvgPool(kernel, stride):
            return f"{'max' if isinstance(layer, MaxPool) else 'average'} pool {kernel}x{kernel} stride {stride}"
        case Subsample(stride, before, after):
            return f"every {stride}th pixel, {before}+{after} zero channels"
        case Pool():
            return "global average pool"
        case Flatten():
            return "flatten"
        case Linear(name, features, classes, bias):
            return f"{name}: linear {features}->{classes}" + (" with bias" if bias else "")
        case Concat(branches):
            parts = [f"branch {number}" if part else "the input" for number, part in enumerate(branches, 1)]
            return f"concat of {' and '.join(parts)}"
        case Split(channels):
            return f"split at channel {channels}, joined"
        case DualPath(channels):
            return f"dual path: {channels} channels summed, the rest concatenated"
        case Residual():
            return "sum"


def status_lines(status: Status) -> list[str]:
    """The status of a study, and the commands to type next."""
    study = status.study
    volume = study.hypervolume()
    ran = ", ".join(f"{count} {state}" for state, count in sorted(status.counts.items()))
    sentence = baselines_sentence(study)
    front = f"{len(study.front())} of {len(study.candidates)} candidates"
    head = [
        f"study     {study.spec.name}" + (f", in {study.folder}" if study.folder else ""),
        f"data      {data_label(study.spec.dataset)}",
        f"search    {_holder_words(status.owner)}",
        f"trials    {ran or 'none yet'}",
        f"front     {front}" + ("" if volume is None else f"; hypervolume {volume:.4f}"),
    ]
    if status.baseline_counts:
        counts = ", ".join(f"{count} {state}" for state, count in sorted(status.baseline_counts.items()))
        head.append(f"baselines {counts}" + (f"; {sentence}" if sentence else ""))
    running = [f"running   {_running_words(trial, progress)}" for trial, progress in status.running]
    waiting = [f"waiting     trial {trial.number}  {trial.arch}" for trial in status.interrupted]
    failed = [f"failed    {failure_words(trial)}" for trial in status.failed]
    commands = [f"  {command}" for command in status.next_commands()]
    return [*head, *running, *waiting, *failed, *(["", "next:", *commands] if commands else [])]


def _holder_words(holder: LockHolder | None) -> str:
    if holder is None:
        return "not running"
    alive = holder.process.is_alive()  # on this machine; a process on another one cannot be looked up
    seen = "" if alive else f", last seen {holder.seen} (on another machine)"
    return f"running in {holder.process}, since {holder.since}{seen}"


def _running_words(trial: Trial, progress: Running | None) -> str:
    doing = progress.doing if progress else "running"
    if progress and progress.samples is not None and progress.train_error is not None:
        doing += f", {progress.samples:,} images, accuracy {1 - progress.train_error:.0%}"
    return f"trial {trial.number}  {doing}; by {trial.process}, since {trial.started}  {trial.arch}"


def trial_lines(study: Study, trial: Trial) -> list[str]:
    """The outcome of a trial; for a failed one also the command that tries it again."""
    wall = "" if trial.wall_s is None else f", {trial.wall_s:.1f} s"
    name = f"baseline {trial.baseline}, " if trial.baseline else ""
    started = f", started {trial.started}{wall}" if trial.started else ""
    lines = [f"{name}{trial.state} in {study.spec.name}{started}"]
    if trial.state == "failed":
        argument = study_argument(study.folder, study.spec.name)
        option = "--baselines" if trial.baseline else "--enqueue"
        again = f"{search_command(study.folder, study.spec.name)} {option} {argument}:{trial.number}"
        return [*lines, failure_words(trial), f"to try it again: {again}"]
    return [*lines, trial_line(trial)]


def failure_words(trial: Trial) -> str:
    """A failed trial's number, kind of failure, place and reason."""
    failure = "" if trial.failure is None else f"{trial.failure.kind}, {trial.failure.where}: "
    name = f"baseline {trial.baseline}: " if trial.baseline else ""
    return f"trial {trial.number}  {name}{failure}{trial.reason or 'no reason is recorded'}"
