"""`igc-nas measure`: the latency of an architecture here, in all its forms, or of a study's candidates again."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from igc_nas.cli.loading import (
    architecture,
    code_notices,
    core_notices,
    engine_notices,
    load,
    load_torch,
    quiet_threads,
    read_architecture,
)
from igc_nas.cli.options import (
    COUNT,
    Choice,
    as_json,
    classes_option,
    device_option,
    latency_dtype_option,
    runtime_option,
    side_option,
    studies_dir,
)
from igc_nas.cli.output import put_json, put_text, say
from igc_nas.errors import StudyError, UsageError
from igc_nas.io.console import table_lines, terminal_width
from igc_nas.study.front_table import NOISY

if TYPE_CHECKING:
    from igc_nas.arch.config import ArchConfig
    from igc_nas.engine.remeasuring import Remeasured
    from igc_nas.nn.device import Device
    from igc_nas.study.records import Latency
    from igc_nas.study.spec import DtypeName, RuntimeName
    from igc_nas.study.study import Study

OF_ONE_ARCHITECTURE = (
    "classes", "image_size", "device", "batch", "latency_dtype", "threads", "latency_runtime", "forms", "budget_params",
    "cuda_graph", "cold_cache", "energy",
)  # fmt: skip
"""Options that `--study` excludes: the study has its own conditions."""


@dataclass(frozen=True)
class MeasureRequest:
    """The options of `igc-nas measure`, one field each. None: not given."""

    arch: str | ArchConfig | None
    study_name: str | None
    keep: bool
    classes: int | None
    image_size: int | None
    device: str
    batch: int
    latency_dtype: DtypeName | None
    threads: int
    latency_runtime: RuntimeName | None
    forms: Literal["any", "factored"] | None
    budget_params: int | None
    cuda_graph: bool
    cold_cache: bool
    energy: bool
    latency_command: str | None
    as_json: bool
    root: Path


@click.command()
@click.argument("arch", required=False)
@click.option("--study", "study_name", help="Measure the candidates of this study again, one after the other.")
@click.option("--keep", is_flag=True, help="With --study: measure noisy candidates; quiet new latencies are recorded.")
@classes_option
@side_option
@device_option
@click.option(
    "--batch",
    "--latency-batch",
    "batch",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Images per pass.",
)
@latency_dtype_option
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads, on a CPU.")
@runtime_option
@click.option("--forms", type=Choice(["any", "factored"]), help="Forms to run. [default: all of the runtime]")
@click.option("--budget-params", type=COUNT, help="Upper limit on a form's parameters, inclusive: 500k.")
@click.option("--cuda-graph/--no-cuda-graph", default=True, show_default=True, help="On a GPU, replay a CUDA graph.")
@click.option("--cold-cache", is_flag=True, help="On a GPU, empty its L2 cache before every pass.")
@click.option("--energy", is_flag=True, help="On a GPU, also measure the energy of one pass (3 s more).")
@click.option(
    "--latency-command",
    envvar="IGC_NAS_LATENCY_COMMAND",
    help="With --study: the command that measures, for a study of another machine's latencies.",
)
@as_json
@studies_dir
def measure(**options: Any) -> None:
    """Measure the latency of ARCH on this machine.

    On a CPU with a C compiler it is that of the factored network as generated C; with --runtime eager, compile,
    onnxruntime, tensorrt (GPU) or openvino the network runs in all its forms. Each round also times a fixed reference
    network. ARCH is a .toml file, - (TOML on stdin), a network's name or STUDY:N. With --study the candidates of a
    study are measured again under the study's conditions. With --keep only its noisy ones are, and each new latency
    that is not noisy replaces the recorded one (the next search rebuilds the study's database from trials.jsonl).

    \b
    Examples:
      igc-nas measure arch.toml --runtime onnxruntime
      igc-nas measure --study mine --keep
    """
    request = MeasureRequest(**options)
    context = click.get_current_context()
    typed = click.core.ParameterSource.COMMANDLINE
    check(request, {name for name in options if context.get_parameter_source(name) == typed})
    if request.study_name is not None:
        study = load(request.study_name, request.root)
        rows = measured_again(study, request)
        if request.as_json:
            put_json(_study_facts(study, rows))
        elif rows:
            put_text(*_study_lines(rows))
        return
    config, latency = measured(request)
    if request.as_json:
        put_json(_facts(latency, config))
    else:
        put_text(*latency_lines(latency, config, terminal_width()))


def check(request: MeasureRequest, given: Collection[str]) -> None:
    """Raise `UsageError` where the fields that are `given` exclude each other."""
    if request.keep and request.study_name is None:
        raise UsageError("--keep goes with --study")
    if (request.arch is None) == (request.study_name is None):
        raise UsageError("name an architecture or a --study, one of the two", "igc-nas measure igcv1-l24m2-d20")
    if request.study_name is not None and (wrong := [name for name in OF_ONE_ARCHITECTURE if name in given]):
        raise UsageError(f"--{wrong[0].replace('_', '-')} does not go with --study", "the study's own conditions hold")


def measured(request: MeasureRequest) -> tuple[ArchConfig, Latency]:
    """(the architecture that is requested, its latency here)."""
    assert request.arch is not None
    config = (
        read_architecture(sys.stdin.buffer, "stdin", request.classes, request.image_size)
        if request.arch == "-"
        else architecture(request.arch, request.classes, request.root, request.image_size)
    )
    say(*core_notices("threads", request.threads))
    quiet_threads(request.threads)
    return config, _measured(config, request)


def _measured(config: ArchConfig, request: MeasureRequest) -> Latency:
    """The architecture's latency on a device of this machine. Raises what `Measurer` raises."""
    load_torch()
    from igc_nas.engine.remeasuring import local_measurer
    from igc_nas.evaluation.runtimes import check_device, check_dtype, require
    from igc_nas.nn.device import find_devices
    from igc_nas.study.spec import WITH_OWN_STREAM, LatencySpec

    device = find_devices(request.device)[0]
    runtime = request.latency_runtime or _default_runtime(config, device, request)
    check_device(runtime, device.kind)
    require(runtime)
    say(*(code_notices("cpu") if runtime == "native" else engine_notices(runtime)))
    if runtime in WITH_OWN_STREAM and request.cold_cache:
        raise UsageError(f"--cold-cache does not go with the runtime {runtime}", "use eager or compile")
    dtype = request.latency_dtype or "float32"
    check_dtype(dtype, runtime, device.kind)
    spec = LatencySpec(
        device=device.name,
        batch=request.batch,
        dtype=dtype,
        threads=request.threads,
        runtime=runtime,
        forms="factored" if request.forms == "factored" else "within-budget" if request.budget_params else "any",
        input=config.input,
        cuda_graph=device.kind == "cuda" and request.cuda_graph and runtime not in WITH_OWN_STREAM,
        cold_cache=device.kind == "cuda" and request.cold_cache,
    )
    return local_measurer(spec, device, request.budget_params, energy=request.energy)(config)


def _default_runtime(config: ArchConfig, device: Device, request: MeasureRequest) -> RuntimeName:
    """Generated C on a CPU; says why where it is not."""
    from igc_nas.arch.plan import plan
    from igc_nas.evaluation.runtimes import default_runtime

    runtime, because = default_runtime(device, threads=request.threads, forms=request.forms, plans=(plan(config),))
    if because:
        say(f"runtime {runtime}: {because}")
    return runtime


def _facts(latency: Latency, config: ArchConfig) -> dict[str, Any]:
    """The record with the architecture's cost, for JSON; a search with `--latency-command` reads it."""
    from igc_nas.arch.cost import cost_of
    from igc_nas.evaluation.latency import REFERENCE

    cost = cost_of(config).as_dict()
    record = {**latency.model_dump(mode="json"), "n": latency.n, "per_image_ms": latency.per_image_ms}
    return {**record, "reference": REFERENCE, **cost, "arch": config.to_dict()}


FORM_COLUMNS = ("form", "median", "95 % interval", "MACs", "params", "GMAC/s", "speed-up")


def latency_lines(latency: Latency, config: ArchConfig, width: int | None = None) -> list[str]:
    """A measurement of `config` for people: median and interval, form by form, and the conditions."""
    from igc_nas.analysis.words import MIG, conditions_words, interval_words, noise_words
    from igc_nas.arch.cost import cost_of
    from igc_nas.evaluation.latency import REFERENCE
    from igc_nas.io.units import fixed_count

    cost, c = cost_of(config), latency.conditions
    lines = [
        f"{latency.median_ms:.3f} ms, raw  ({interval_words(latency.low_ms, latency.high_ms, latency.n)})",
        *([f"{noise_words(latency.noise)}; measure again when the machine is quiet"] if latency.noisy else []),
        *([f"{latency.per_image_ms:.4g} ms an image, {latency.batch} a pass"] if latency.batch > 1 else []),
        f"form {latency.form}; {cost.macs:,} MACs and {cost.params:,} parameters in the factored form",
        "",
    ]
    if latency.forms:
        written = latency.forms.get("factored")
        rows = []
        for name, form in latency.forms.items():
            timed_often = form.low_ms is not None and form.high_ms is not None
            rows.append(
                (
                    name,
                    f"{form.median_ms:.3f} ms",
                    f"{form.low_ms:.3f}-{form.high_ms:.3f}" if timed_often else "",
                    fixed_count(form.macs),
                    fixed_count(form.params),
                    f"{latency.batch * form.macs / form.median_ms / 1e6:.1f}",
                    f"{written.median_ms / form.median_ms:.2f}" if written else "",
                )
            )
        lines += [*table_lines(FORM_COLUMNS, rows, ("form",), width), ""]
    if latency.energy_mj is not None:
        lines.append(f"energy {latency.energy_mj:.3f} mJ above idle")
    state = [f"load {c.load}"] if c.load is not None else []
    state += [f"{c.clock_mhz:.0f} MHz"] if c.clock_mhz else []
    state += [f"{c.temperature_c:.0f} C"] if c.temperature_c else []
    state += [f"{c.power_w:.0f} W"] if c.power_w else []
    return [
        *lines,
        f"reference network {REFERENCE}: {latency.reference_ms:.3f} ms in the same rounds",
        f"{conditions_words(latency)}, torch {c.torch}" + "".join(f", {word}" for word in state),
        *([MIG] if c.mig else []),
    ]


def measured_again(study: Study, request: MeasureRequest) -> list[Remeasured]:
    """A study's candidates, measured again (with `--keep` the noisy ones, for the record)."""
    known = [*study.candidates, *(trial.candidate for trial in study.baselines if trial.candidate)]
    if not known:
        raise StudyError(f"{study.spec.name} has no completed trial yet")
    candidates = [c for c in known if c.latency.noisy or not request.keep]
    if not candidates:
        say(f"none of the {len(known)} latencies of {study.spec.name} is noisy")
        return []
    quiet_threads(study.spec.latency.threads)
    load_torch()
    from igc_nas.engine.remeasuring import remeasure, study_measurer

    measure_one = study_measurer(study.spec, request.latency_command)
    rows: list[Remeasured] = []
    for row in remeasure(study, candidates, measure_one, keep=request.keep):
        rows.append(row)
        say(
            f"{len(rows)}/{len(candidates)}  trial {row.candidate.trial}: {row.latency.normalised_ms:.3f} ms"
            f"{' noisy' if row.latency.noisy else ''}"
        )
    return rows


def _agreement(rows: Sequence[Remeasured]) -> tuple[float, float | None]:
    """(median relative difference, rank correlation) of the recorded and the new latencies."""
    from igc_nas.analysis.ranking import agreement

    return agreement([row.recorded_ms for row in rows], [row.latency.normalised_ms for row in rows])


def _study_facts(study: Study, rows: Sequence[Remeasured]) -> dict[str, Any]:
    difference, rank = _agreement(rows) if rows else (None, None)
    return {
        "study": study.spec.name,
        "median_difference": difference,
        "rank_correlation": rank,
        "rows": [
            {
                "trial": row.candidate.trial,
                "id": row.candidate.id,
                "recorded_ms": row.recorded_ms,
                **_brief(row.latency),
            }
            for row in rows
        ],
    }


def _study_lines(rows: Sequence[Remeasured]) -> list[str]:
    difference, rank = _agreement(rows)
    cells = [
        (
            str(row.candidate.trial),
            f"{row.recorded_ms:.3f} ms",
            f"{row.latency.normalised_ms:.3f} ms{NOISY if row.latency.noisy else ' '}",
            f"{100 * row.change:+.1f} %",
            row.latency.form,
        )
        for row in rows
    ]
    noisy = [f"{NOISY} trial {r.candidate.trial}: {'; '.join(r.latency.noise)}" for r in rows if r.latency.noisy]
    correlation = "" if rank is None else f"; rank correlation {rank:.3f}"
    return [
        *table_lines(("trial", "recorded", "again", "change", "form"), cells, ("form",), terminal_width()),
        *noisy,
        f"median difference {100 * difference:.1f} % over {len(rows)} candidates{correlation}",
    ]


def _brief(latency: Latency) -> dict[str, Any]:
    low, high = latency.normalised_interval_ms
    return {
        "normalised_ms": latency.normalised_ms,
        "normalised_low_ms": low,
        "normalised_high_ms": high,
        "median_ms": latency.median_ms,
        "noisy": latency.noisy,
        "noise": latency.noise,
        "form": latency.form,
        "deployed_params": latency.deployed_params,
        "deployed_macs": latency.deployed_macs,
        "weight_bytes": latency.weight_bytes,
    }
