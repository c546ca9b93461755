"""igc-nas measure: what the MACs promise, what the device gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from igc_nas.cli.loading import architecture, architecture_on_stdin, load, quiet_threads
from igc_nas.cli.options import COUNT, as_json, classes_option, device_option, runtime_option, studies_dir
from igc_nas.cli.output import put, put_json, say
from igc_nas.errors import StudyError, UsageError

if TYPE_CHECKING:
    from igc_nas.arch.config import ArchConfig
    from igc_nas.study.records import Candidate, Latency
    from igc_nas.study.spec import RuntimeName
    from igc_nas.study.study import Study

KEEP_EVERY = 20
"""Measured candidates between two writes."""


@click.command()
@click.argument("arch", required=False)
@click.option("--study", "study_name", help="Measure the candidates of a study again, in one quiet pass.")
@click.option("--keep", is_flag=True, help="With --study: measure what is noisy, and record what no longer is.")
@classes_option
@device_option
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Images per pass.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads, on a CPU.")
@runtime_option
@click.option("--forms", type=click.Choice(["any", "factored"]), default="any", show_default=True, help="Forms to run.")
@click.option("--budget-params", type=COUNT, help="Only forms with at most so many parameters.")
@click.option("--cuda-graph/--no-cuda-graph", default=True, show_default=True, help="On a GPU, replay a graph.")
@click.option("--cold-cache", is_flag=True, help="On a GPU, empty its L2 cache before every pass.")
@click.option("--energy", is_flag=True, help="On a GPU, energy of one pass, too (takes 3 s more).")
@click.option("--latency-command", envvar="IGC_NAS_LATENCY_COMMAND", help="With --study: what measures elsewhere.")
@as_json
@studies_dir
def measure(arch: str | None, study_name: str | None, keep: bool, as_json: bool, root: Path, **flags: Any) -> None:
    """Measure the latency of ARCH here, in all its forms, beside a fixed reference network.

    ARCH is a .toml file, - (TOML on stdin), a paper's network or STUDY:N. With --study the candidates of a study are
    measured again under the study's conditions; with --keep those that were noisy, and a quiet new latency replaces
    the old one (the study's database is made anew from trials.jsonl by the next search).
    """
    if keep and study_name is None:
        raise UsageError("--keep goes with --study")
    if (arch is None) == (study_name is None):
        raise UsageError("name an architecture or a --study, one of the two", "igc-nas measure igcv1-l24m2-d20")
    if study_name is not None:
        _refuse_conditions()
        _measure_study(load(study_name, root), flags, keep, as_json)
        return
    assert arch is not None
    config = architecture_on_stdin(flags["classes"]) if arch == "-" else architecture(arch, flags["classes"], root)
    quiet_threads(flags["threads"])
    latency = _measurer(config, flags)(config)
    put_json(_facts(latency, config)) if as_json else put(*_lines(latency, config))


def _refuse_conditions() -> None:
    """A study's own conditions hold for its candidates: no flag may change them."""
    context = click.get_current_context()
    own = ("classes", "device", "batch", "threads", "latency_runtime", "forms", "budget_params", "cuda_graph")
    for name in (*own, "cold_cache", "energy"):
        if context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE:
            raise UsageError(f"--{name.replace('_', '-')} does not go with --study", "the study's own conditions hold")


def _measurer(config: ArchConfig, flags: dict[str, Any]) -> Callable[[ArchConfig], Latency]:
    from igc_nas.evaluation.latency import Measurer
    from igc_nas.evaluation.runtimes import require
    from igc_nas.nn.device import configure_torch, find_devices
    from igc_nas.nn.lowering.timing_cache import timing_cache_for
    from igc_nas.study.spec import LatencySpec

    device = find_devices(flags["device"])[0]
    runtime: RuntimeName = flags["latency_runtime"] or "eager"
    require(runtime)
    configure_torch(device, flags["threads"])
    limit = flags["budget_params"]
    spec = LatencySpec(
        device=device.name,
        batch=flags["batch"],
        threads=flags["threads"],
        runtime=runtime,
        forms="within-budget" if limit and flags["forms"] == "any" else flags["forms"],
        input=config.input,
        cuda_graph=device.kind == "cuda" and flags["cuda_graph"],
        cold_cache=device.kind == "cuda" and flags["cold_cache"],
    )
    measurer = Measurer(
        spec, device, limit, timing_cache_for(device.name, spec.threads, "deployment"), energy=flags["energy"]
    )

    def measured(arch: ArchConfig) -> Latency:
        with measurer.cache:
            return measurer(arch)

    return measured


def _facts(latency: Latency, config: ArchConfig) -> dict[str, Any]:
    """The record as JSON, with what the architecture costs: what another machine's search reads, too."""
    from igc_nas.arch.cost import cost_of
    from igc_nas.evaluation.latency import REFERENCE

    cost = cost_of(config).as_dict()
    return {**latency.model_dump(mode="json"), "n": latency.n, "reference": REFERENCE, **cost, "arch": config.to_dict()}


def _lines(latency: Latency, config: ArchConfig) -> list[str]:
    from igc_nas.analysis.words import conditions_words, interval_words, noise_words
    from igc_nas.arch.cost import cost_of
    from igc_nas.evaluation.latency import REFERENCE
    from igc_nas.io.units import format_count

    cost, c = cost_of(config), latency.conditions
    lines = [
        f"{latency.median_ms:.3f} ms  ({interval_words(latency.low_ms, latency.high_ms, latency.n)})",
        *([f"{noise_words(latency.noise)}; measure again when the machine is quiet"] if latency.noisy else []),
        f"form {latency.form}; {cost.macs:,} MACs and {cost.params:,} parameters as it is written",
        "",
    ]
    if latency.forms:
        lines.append(
            f"{'form':<10} {'median ms':>10} {'interval':>19} {'MACs':>8} {'params':>8} {'GMAC/s':>7} {'times':>6}"
        )
        written = latency.forms.get("factored")
        for name, form in latency.forms.items():
            timed_often = form.low_ms is not None and form.high_ms is not None
            interval = f"{form.low_ms:.3f} to {form.high_ms:.3f}" if timed_often else ""
            times = f"{written.median_ms / form.median_ms:6.2f}" if written else ""
            lines.append(
                f"{name:<10} {form.median_ms:>10.3f} {interval:>19} {format_count(form.macs):>8} "
                f"{format_count(form.params):>8} {latency.batch * form.macs / form.median_ms / 1e6:>7.1f} {times}"
            )
        lines.append("")
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
    ]


def _measure_study(study: Study, flags: dict[str, Any], keep: bool, as_json: bool) -> None:
    """Measure every candidate again, or the noisy ones to keep what is quiet, and hold it against its record."""
    if not study.candidates:
        raise StudyError(f"{study.spec.name} has no completed trial yet")
    candidates = [c for c in study.candidates if c.latency.noisy or not keep]
    if not candidates:
        say(f"none of the {len(study.candidates)} latencies of {study.spec.name} is noisy")
        return
    quiet_threads(study.spec.latency.threads)
    measurer = _of_study(study, flags)
    rows: list[tuple[Candidate, Latency]] = []
    for done, candidate in enumerate(candidates, start=1):
        latency = measurer(candidate.arch)
        rows.append((candidate, latency))
        say(
            f"{done}/{len(candidates)}  trial {candidate.trial}: {latency.normalised_ms:.3f} ms"
            f"{' noisy' if latency.noisy else ''}"
        )
        if keep and (done % KEEP_EVERY == 0 or done == len(candidates)):
            _keep(study, rows)
    from igc_nas.analysis.ranking import agreement

    recorded = [candidate.latency.normalised_ms for candidate, _ in rows]
    again = [latency.normalised_ms for _, latency in rows]
    difference, rank = agreement(recorded, again)
    if as_json:
        put_json(
            {
                "study": study.spec.name,
                "median_difference": difference,
                "rank_correlation": rank,
                "rows": [
                    {"trial": c.trial, "id": c.id, "recorded_ms": c.latency.normalised_ms, **_brief(latency)}
                    for c, latency in rows
                ],
            }
        )
        return
    put(f"{'trial':>5} {'recorded ms':>12} {'again ms':>10} {'change':>8}  form")
    for candidate, latency in rows:
        change = latency.normalised_ms / candidate.latency.normalised_ms - 1
        noisy = f"  noisy: {'; '.join(latency.noise)}" if latency.noisy else ""
        put(
            f"{candidate.trial:>5} {candidate.latency.normalised_ms:>12.3f} {latency.normalised_ms:>10.3f} "
            f"{100 * change:>+7.1f}%  {latency.form}{noisy}"
        )
    correlation = "" if rank is None else f"; rank correlation {rank:.3f}"
    put(f"median difference {100 * difference:.1f} % over {len(rows)} candidates{correlation}")


def _keep(study: Study, rows: list[tuple[Candidate, Latency]]) -> None:
    from igc_nas.engine.store import replace_latencies

    assert study.folder is not None
    replace_latencies(study.folder, {c.trial: latency for c, latency in rows if not latency.noisy})


def _of_study(study: Study, flags: dict[str, Any]) -> Callable[[ArchConfig], Latency]:
    spec, command = study.spec, flags["latency_command"]
    if spec.latency.remote:
        from igc_nas.evaluation.remote import CommandMeasurer

        if command is None:
            raise StudyError("the study's latencies were measured by a command", "give it with --latency-command")
        remote = CommandMeasurer(command, spec.latency, spec.budget.params)
        return lambda arch: remote(arch, spec.reference_ms)
    from igc_nas.engine.search import matching_devices
    from igc_nas.evaluation.latency import Measurer
    from igc_nas.nn.device import configure_torch, find_devices
    from igc_nas.nn.lowering.timing_cache import timing_cache_for

    device = find_devices(matching_devices(spec.latency)[0])[0]
    configure_torch(device, spec.latency.threads)
    table = timing_cache_for(device.name, spec.latency.threads, "deployment")
    measurer = Measurer(spec.latency, device, spec.budget.params, table)

    def measured(arch: ArchConfig) -> Latency:
        with table:
            return measurer(arch, spec.reference_ms)

    return measured


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
