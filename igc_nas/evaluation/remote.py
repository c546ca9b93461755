"""Latency by a command, usually on another machine: it reads an architecture and prints a measurement.

The command gets the architecture as TOML on stdin and prints the record of `igc-nas measure --json`; an example is
`ssh pi igc-nas measure --json -`. It comes from a flag or the environment at each run, never from a study's file, and
is started without a shell.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from dataclasses import dataclass
from typing import Any

from igc_nas.arch.config import ArchConfig
from igc_nas.errors import ConfigError, IgcNasError, UsageError
from igc_nas.io.processes import finished
from igc_nas.io.text import printable
from igc_nas.study.records import Latency
from igc_nas.study.spec import LatencySpec

TIMEOUT_S = 600.0
HINT = "it must print what igc-nas measure --json prints"
CONDITIONS = ("batch", "threads", "runtime", "dtype", "memory_format", "cuda_graph", "cold_cache", "device")


@dataclass(frozen=True)
class CommandMeasurer:
    """Measures architectures by a command; with a `spec`, refuses a record whose conditions differ from it."""

    command: str
    spec: LatencySpec | None = None
    most_params: int | None = None
    timeout_s: float = TIMEOUT_S

    def __call__(self, arch: ArchConfig, reference_ms: float | None = None) -> Latency:
        """Run the command for an architecture; `reference_ms` as in `igc_nas.evaluation.latency.Measurer`.

        Raises `UsageError` if the command cannot be started, `IgcNasError` if it fails, prints no measurement, takes
        longer than `timeout_s`, or measures under other conditions.
        """
        latency = self._record(self._run(arch.to_toml()))
        if latency.input != arch.input:
            raise IgcNasError(f"the latency command measured images of {latency.input}, not of {arch.input}")
        if self.spec is not None:
            self._check(self.spec, latency)
        return latency if reference_ms is None else _in_units_of(latency, reference_ms)

    def _run(self, text: str) -> str:
        try:
            arguments = shlex.split(self.command)
        except ValueError as error:
            raise UsageError(f"the latency command cannot be read: {error}") from None
        if not arguments:
            raise UsageError("the latency command is empty", 'e.g. --latency-command "ssh pi igc-nas measure --json -"')
        status, out, err = self._finished(arguments, text)
        if status:
            said = printable(err.decode(errors="replace").strip(), lines=False)[-200:] or "nothing on stderr"
            raise IgcNasError(f"the latency command failed with status {status}: {said}")
        if not out.strip():
            raise IgcNasError("the latency command printed nothing", HINT)
        try:
            return out.decode()
        except UnicodeDecodeError:
            raise IgcNasError("the latency command printed something that is not text", HINT) from None

    def _finished(self, arguments: list[str], text: str) -> tuple[int, bytes, bytes]:
        """(exit status, stdout, stderr) of the command."""
        try:
            return finished(arguments, self.timeout_s, given=text.encode())
        except OSError as error:
            raise UsageError(f"the latency command cannot be started: {error.strerror}: {arguments[0]:.80}") from None
        except subprocess.TimeoutExpired:
            raise IgcNasError(f"the latency command took longer than {self.timeout_s:g} s") from None

    @staticmethod
    def _record(text: str) -> Latency:
        try:
            found: Any = json.loads(text)
        except (ValueError, RecursionError):
            raise IgcNasError("the latency command printed something that is not JSON", HINT) from None
        if not isinstance(found, dict):
            raise IgcNasError("the latency command printed JSON that is not a record", HINT)
        try:
            return Latency.parse({key: value for key, value in found.items() if key in Latency.model_fields})
        except ConfigError as error:
            raise IgcNasError(f"the latency command printed no measurement: {error.message}", HINT) from None

    def _check(self, spec: LatencySpec, latency: Latency) -> None:
        has = {**latency.model_dump(), "threads": latency.conditions.threads, "device": latency.conditions.device}
        for name in CONDITIONS:
            if has[name] != (wanted := getattr(spec, name)):
                found = printable(str(has[name]), lines=False)[:80]
                hint = f"add --runtime {wanted} to it" if name == "runtime" else None
                raise IgcNasError(f"the latency command measured with {name} {found}; the study's is {wanted}", hint)
        if spec.forms == "factored" and latency.form != "factored":
            raise IgcNasError(
                "the latency command measured another form than the factored one", "add --forms factored to it"
            )
        limit = self.most_params if spec.forms == "within-budget" else None
        if limit is not None and (latency.deployed_params or 0) > limit:
            raise IgcNasError(
                f"the latency command measured a form of {latency.deployed_params:,} parameters, over {limit:,}",
                f"add --budget-params {limit} to it",
            )


def remote_spec(latency: Latency, spec: LatencySpec) -> LatencySpec:
    """`spec` with the conditions of the command's measurement. Raises `IgcNasError` if they are invalid."""
    found = {
        "remote": True,
        "device": latency.conditions.device,
        "threads": latency.conditions.threads,
        "batch": latency.batch,
        "runtime": latency.runtime,
        "memory_format": latency.memory_format,
        "dtype": latency.dtype,
        "cuda_graph": latency.cuda_graph,
        "cold_cache": latency.cold_cache,
    } | ({"forms": "factored"} if latency.runtime == "native" else {})
    try:
        return LatencySpec.parse(spec.model_dump(mode="json") | found)
    except ConfigError as error:
        raise IgcNasError(f"the latency command printed no measurement: {error.message}", HINT) from None


def _in_units_of(latency: Latency, reference_ms: float) -> Latency:
    """The record normalised to the study's reference time instead of its own."""
    factor = reference_ms / latency.reference_ms
    low, high = latency.normalised_interval_ms
    return latency.model_copy(
        update={
            "normalised_ms": latency.normalised_ms * factor,
            "normalised_low_ms": low * factor,
            "normalised_high_ms": high * factor,
        }
    )
