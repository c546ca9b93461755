"""Finals as rows for a terminal and a page: test accuracy with its interval over seeds, costs, the printed accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from igc_nas.analysis.words import counted, schedule_words
from igc_nas.arch.named import is_network, network
from igc_nas.data.datasets import cifar_of
from igc_nas.errors import ConfigError
from igc_nas.io.units import format_count, format_ms
from igc_nas.study.finals import Finalist, FinalsGroup

COLUMNS = ("", "network", "accuracy", "seeds", "params", "MACs", "latency", "printed")
MARK = "*"
LEGEND = (
    f"{MARK} on the front of these networks. accuracy: on the test set, the mean over seeds with its 95 % interval "
    "(Student's t; one deviation for all networks). "
    "latency: under the study's conditions (~: noisy). printed: what the literature prints, of another, mostly longer "
    "recipe: not comparable."
)


class FinalRow(NamedTuple):
    """A network as text, a field for each of `COLUMNS`."""

    mark: str
    name: str
    accuracy: str
    """`88.31 ± 0.42 %`, or the reason why there is none."""
    seeds: str
    params: str
    macs: str
    latency: str
    printed: str


def final_rows(group: FinalsGroup, objectives: Sequence[str]) -> list[FinalRow]:
    """The networks of one recipe, by test error ascending; failed ones last."""
    front = group.front(objectives)
    return [_row(finalist, group.dataset, finalist.one.id in front) for finalist in group.finalists]


def _row(finalist: Finalist, dataset: str, on_front: bool) -> FinalRow:
    one, latency = finalist.one, finalist.latency
    noisy = "~" if latency and latency.noisy else ""
    printed = printed_error(one.name, dataset)
    return FinalRow(
        mark=MARK if on_front else "",
        name=one.name,
        accuracy=accuracy_words(finalist),
        seeds=f"{len(finalist.errors)}" + (f" ({finalist.failed} failed)" if finalist.failed else ""),
        params=format_count(one.cost.params),
        macs=format_count(one.cost.macs),
        latency=f"{noisy}{format_ms(latency.normalised_ms)}" if latency else "",
        printed="" if printed is None else f"{100 * (1 - printed):.2f} %",
    )


def accuracy_words(finalist: Finalist) -> str:
    """`88.31 ± 0.42 %`; without an interval for one seed; `failed` where every training failed."""
    if finalist.error is None:
        failure = finalist.one.failure
        return f"failed: {failure.kind}" if failure else "failed"
    interval = "" if finalist.half_width is None else f" ± {100 * finalist.half_width:.2f}"
    return f"{100 * (1 - finalist.error):.2f}{interval} %"


def group_title(group: FinalsGroup) -> str:
    """What the trainings of a group have in common."""
    count = counted(len(group.finalists), "network")
    return f"{count} trained on all of {group.dataset}, tested once: {schedule_words(group.recipe)}"


def printed_error(name: str, dataset: str) -> float | None:
    """The test error that a paper prints for a network of that name on a dataset; None where it prints none."""
    cifar = cifar_of(dataset)
    if cifar is None or not is_network(name):
        return None
    try:
        return network(name).printed_error.get(cifar)
    except ConfigError:
        return None


def final_dict(finalist: Finalist, group: FinalsGroup, on_front: bool) -> dict[str, Any]:
    """A network as plain data, for `front --finals --json`."""
    one, latency = finalist.one, finalist.latency
    return {
        "name": one.name,
        "trial": one.trial,
        "id": one.id,
        "front": on_front,
        "test_error": finalist.error,
        "test_error_half_width": finalist.half_width,
        "test_errors": list(finalist.errors),
        "failed": finalist.failed,
        **one.cost.as_dict(),
        "latency_ms": latency and latency.normalised_ms,
        "latency_noisy": latency and latency.noisy,
        "printed_error": printed_error(one.name, group.dataset),
        "reasons": [final.reason for final in finalist.finals if final.reason],
        "summary": str(one.arch),
    }
