"""The schema version of a study's files, and the conversion of older records.

    1    the spec's `stop` and the sampler `all`; trials that were `stopped` (with `chance` and `deviation`) or `given`;
         the oldest have host and pid in the trial itself
    2    `prune_below`, `brute-force`, `pruned` (with `p_front` and `std`), `enqueued`, `process`

A line of trials.jsonl has no version; its keys show which it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SCHEMA = 2

_TRIAL = {"stopped": "pruned", "given": "enqueued"}
_PRUNED = {"chance": "p_front", "deviation": "std"}


def current_spec(data: Mapping[str, Any]) -> dict[str, Any]:
    """A spec of any version up to `SCHEMA`, as the newest has it."""
    if data.get("schema", SCHEMA) != 1 or data["schema"] is True:  # True equals 1, and is refused by the spec
        return dict(data)
    spec = _renamed(data, {"stop": "prune_below"}) | {"schema": SCHEMA}
    return spec | ({"sampler": "brute-force"} if spec.get("sampler") == "all" else {})


def current_trial(data: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's record of any version up to `SCHEMA`, converted to the newest."""
    trial = _renamed(data, _TRIAL)
    if trial.get("state") == "stopped":
        trial["state"] = "pruned"
    if isinstance(trial.get("pruned"), dict):
        trial["pruned"] = _renamed(trial["pruned"], _PRUNED)
    if "host" in trial or "pid" in trial:
        process = {"host": trial.pop("host", None), "pid": trial.pop("pid", None)}
        if all(process.values()):
            trial["process"] = process
    return trial


def _renamed(record: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The record with its keys renamed. If it has the new key too, the old one stays, and parsing refuses it."""
    return {names[key] if key in names and names[key] not in record else key: value for key, value in record.items()}
