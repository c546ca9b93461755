"""Studies, plans and trials as tables and lines for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from igc_nas.analysis.baselines import Standing, baselines_sentence
from igc_nas.analysis.expectations import expectation_words, member_words
from igc_nas.analysis.words import conditions_words, counted, proxy_words
from igc_nas.arch.cost import Cost, LayerCost
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
from igc_nas.engine.progress import longer_words, trial_line
from igc_nas.exports.source import latency_lines
from igc_nas.io.console import table_lines as columns_lines
from igc_nas.io.text import printable, wrapped
from igc_nas.study.front_table import COLUMNS, NOISY, expected_columns, legend, legend_lines, table_lines
from igc_nas.study.lock import LockHolder, Running
from igc_nas.study.names import search_command, study_argument
from igc_nas.study.records import Candidate, Trial
from igc_nas.study.status import Status
from igc_nas.study.study import Study


def front_lines(
    study: Study, members: Sequence[Candidate], objectives: Sequence[str], width: int | None, *, wide: bool = False
) -> list[str]:
    """A front as lines of at most `width` characters: its study, data and conditions, a line a member, and notes.

    With `wide` every column is there, however long a line becomes; else the architectures only where all of them fit.
    `measure` and `show` read no database, and are not named for a study that is in one only.
    """
    spec, volume = study.spec, study.hypervolume(objectives)
    head = (
        f"{spec.name}: Pareto front of {len(study.front(objectives))} of {len(study.candidates)} candidates "
        f"by {', '.join(objectives)}" + ("" if volume is None else f"; hypervolume {volume:.4f}"),
        f"data: {data_label(spec.dataset)}; error after a proxy training of {proxy_words(spec.recipe)}",
        f"latency: normalised; {conditions_words(spec.latency)}",
        *([words] if (words := expectation_words(study)) else []),
    )
    more = expected_columns(study)
    table = table_lines(members, None if wide else width, more)
    name = study_argument(study.folder, spec.name)
    notes = ["deployed: parameters of the form that was measured"] if "deployed" in table[0] else []
    if more and spec.target:
        at_target, at_longer = more["predicted"].title, more["observed"].title
        notes.append(
            f"{at_target}: error predicted after {spec.target.images:,} images; {at_longer}: observed after "
            f"{spec.target.recipe.samples:,}; error: observed after {spec.recipe.samples:,}"
        )
    noisy = sum(member.latency.noisy for member in members)
    if noisy:
        of_all = sum(candidate.latency.noisy for candidate in study.candidates)
        notes.append(
            f"{NOISY} {counted(noisy, 'noisy latency', 'noisy latencies')}, {of_all:,} of all "
            f"{len(study.candidates):,} candidates"
            + ("" if study.is_in_database_only else f": igc-nas measure --study {name} --keep")
        )
    if "architecture" in table[0]:
        notes += legend_lines((member.arch for member in members), width or 200)
    else:
        notes.append(
            f"architectures: {'' if study.is_in_database_only else f'igc-nas show {name}:TRIAL, or '}front --wide"
        )
    return [*wrapped(map(printable, head), width), "", *table, "", *wrapped(map(printable, notes), width)]


MOST_DOMINATING = 3
"""The number of dominating trials that a line names."""
STANDING = ("baseline", "trial", "error", "params", "MACs", "latency", "dominated by")


def baseline_lines(standings: Sequence[Standing], width: int | None) -> list[str]:
    """The baselines beside a front as lines, each with the trials of the front that dominate it."""
    rows = list(map(_standing_cells, standings))
    return [*columns_lines(STANDING, rows, ("baseline", "dominated by"), width), ""]


def _standing_cells(standing: Standing) -> tuple[str, ...]:
    numbers = [COLUMNS[name].of(standing.candidate) for name in ("trial", "error", "params", "macs", "latency")]
    by = standing.dominated_by
    more = f" +{len(by) - MOST_DOMINATING}" if len(by) > MOST_DOMINATING else ""
    return (standing.name, *numbers, ", ".join(map(str, by[:MOST_DOMINATING])) + more or "-")


def data_label(dataset: str) -> str:
    """The dataset's label, with a warning if it is synthetic."""
    return f"{dataset} (SYNTHETIC: says nothing about CIFAR)" if is_synthetic(dataset) else dataset


def plan_lines(rows: Sequence[LayerCost], width: int | None) -> list[str]:
    """A plan layer by layer: output shape, parameters, MACs and the layer; then what each stage adds up to.

    On a narrow terminal a layer's words go on below, and the shapes are left out.
    """
    cells = [
        (
            row.block,
            "x".join(map(str, row.shape)),
            f"{row.cost.params:,}",
            f"{row.cost.macs:,}",
            (f"{row.branch}: " if row.branch else "") + layer_text(row.layer),
        )
        for row in rows
    ]
    stages: dict[str, list[Cost]] = {}
    for row in rows:
        stages.setdefault(row.block.partition(".")[0], []).append(row.cost)
    sums = [
        (name, "", f"{sum(cost.params for cost in costs):,}", f"{sum(cost.macs for cost in costs):,}", "in all")
        for name, costs in stages.items()
    ]
    table = [("block", "shape", "params", "MACs", "layer"), *cells, *sums]
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    if width is not None and sum(widths) + 3 + LEAST_FOR_LAYER > width:
        widths[1] = 0  # without the shapes
    numbers = [
        " ".join(text.ljust(n) if text is row[0] else text.rjust(n) for text, n in zip(row, widths, strict=False) if n)
        for row in table
    ]
    lines = [_with_words(head, row[4], width) for head, row in zip(numbers, table, strict=True)]
    lines.insert(1 + len(cells), [""])
    return [line for group in lines for line in group]


LEAST_FOR_LAYER = 14
"""Characters for a layer's words, at the least."""


def _with_words(numbers: str, words: str, width: int | None) -> list[str]:
    """A layer's numbers with its words behind them, on several lines if they need more room, or else below."""
    if width is None:
        return [f"{numbers}  {words}"]
    room, indent = width - len(numbers) - 2, " " * (len(numbers) + 2)
    if room < LEAST_FOR_LAYER:
        room, indent = width - 4, "    "
    first, *rest = textwrap.wrap(words, room, subsequent_indent="  ", break_long_words=False)
    head = f"{numbers}  {first}" if indent != "    " else f"{numbers}\n    {first}"
    return [*head.split("\n"), *(indent + more for more in rest)]


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
            return f"{name}: SE {channels}->{squeeze}->{channels} {gate}" + (" with bias" if bias else "")
        case MaxPool(kernel, stride) | AvgPool(kernel, stride):
            return f"{'max' if isinstance(layer, MaxPool) else 'average'} pool {kernel}x{kernel} stride {stride}"
        case Subsample(stride, before, after):
            return f"subsample by {stride}, {before}+{after} zero channels"
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
    if study.spec.target:
        longer = f"{len(study.longer)} trained for {study.spec.target.recipe.samples:,} images"
        head.append(f"longer    {longer}; errors are predicted for {study.spec.target.images:,}")
    if status.baseline_counts:
        counts = ", ".join(f"{count} {state}" for state, count in sorted(status.baseline_counts.items()))
        head.append(f"baselines {counts}" + (f"; {sentence}" if sentence else ""))
    running = [f"running   {_running_words(trial, progress)}" for trial, progress in status.running]
    waiting = [
        f"{'waiting   ' if trial.enqueued else 'interrupted  '}trial {trial.number}  {longer_words(trial)}{trial.arch}"
        for trial in status.interrupted
    ]
    failed = [f"failed    {failure_words(trial)}" for trial in status.failed]
    notices = [f"notice    {text} (from trial {first} on)" for text, first in status.notices.items()]
    archs = [trial.arch for trial in (*(trial for trial, _ in status.running), *status.interrupted) if trial.arch]
    notes = [legend(archs)] if archs else []
    commands = [f"  {command}" for command in status.next_commands()]
    return [*head, *running, *waiting, *failed, *notices, *notes, *(["", "next:", *commands] if commands else [])]


def _holder_words(holder: LockHolder | None) -> str:
    if holder is None:
        return "not running"
    alive = holder.process.is_alive()  # on this machine; a process on another one cannot be looked up
    seen = "" if alive else f", last seen {holder.seen} (on another machine)"
    return f"running in {holder.process}, since {holder.since}{seen}"


def _running_words(trial: Trial, progress: Running | None) -> str:
    doing = progress.doing if progress else "running"
    if progress and progress.samples is not None and progress.train_error is not None:
        doing += f", {progress.samples:,} images, training error {100 * progress.train_error:.0f} %"
    return (
        f"trial {trial.number}  {longer_words(trial)}{doing}; by {trial.process}, since {trial.started}  {trial.arch}"
    )


def trial_lines(study: Study, trial: Trial) -> list[str]:
    """The outcome of a trial; for a failed one also the command that tries it again."""
    wall = "" if trial.wall_s is None else f", {trial.wall_s:.1f} s"
    name = f"baseline {trial.baseline}, " if trial.baseline else ""
    name += f"longer training of trial {trial.longer_of}, " if trial.longer_of is not None else ""
    started = f", started {trial.started}{wall}" if trial.started else ""
    lines = [f"{name}{trial.state} in {study.spec.name}{started}"]
    if trial.state == "failed" and trial.longer_of is not None:
        return [*lines, failure_words(trial)]
    if trial.state == "failed":
        argument = study_argument(study.folder, study.spec.name)
        option = "--baselines" if trial.baseline else "--enqueue"
        again = f"{search_command(study.folder, study.spec.name)} {option} {argument}:{trial.number}"
        return [*lines, failure_words(trial), f"to try it again: {again}"]
    measured = trial.candidate or trial.pruned
    expected = member_words(study, trial.candidate) if trial.candidate else []
    return [*lines, _outcome(trial), *expected, *(latency_lines(measured) if measured else [])]


def _outcome(trial: Trial) -> str:
    if trial.candidate is None:
        return trial_line(trial)
    score = trial.candidate.score
    return f"error {100 * score.error:.2f} % on {score.held_out:,} held-out images, after {score.samples:,} images"


def failure_words(trial: Trial) -> str:
    """A failed trial's number, kind of failure, place and reason."""
    failure = "" if trial.failure is None else f"{trial.failure.kind}, {trial.failure.where}: "
    name = f"baseline {trial.baseline}: " if trial.baseline else longer_words(trial)
    return f"trial {trial.number}  {name}{failure}{trial.reason or 'no reason is recorded'}"
