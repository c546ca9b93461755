"""Recipes, measurement conditions and candidates as text, for the terminal, the page and exported files alike.

Names from a study's files are not escaped here; the caller does that for its medium (`igc_nas.io.text`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from igc_nas.io.units import exact_count, format_count, format_ms, format_seconds
from igc_nas.space.budget import Budget
from igc_nas.study.plan import Sizes
from igc_nas.study.records import Candidate, Latency, Pruned
from igc_nas.study.spec import Goal, LatencyForms, LatencySpec, Recipe, Schedule
from igc_nas.study.study import Study

GOALS: dict[Goal, str] = {
    "best-error": "the least error within the budget first, and the front that leads there",
    "front": "the front",
}
"""What a search is for, by `StudySpec.goal`."""
FAR_BELOW = 0.5
"""A front whose largest member has less than this share of the budget ends far below it."""

LATENCY_FORMS: dict[LatencyForms, str] = {
    "within-budget": "each network in its fastest form within the parameter budget",
    "any": "each network in its fastest form",
    "factored": "networks in factored form",
}
"""The form in which networks are timed, by `LatencySpec.forms`."""


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """`1 epoch`, `3,000 images`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def proxy_words(recipe: Recipe) -> str:
    """A proxy training in brief: `2 epochs of 3,000 images at 16 x 16 pixels`."""
    size = f"{recipe.resolution} x {recipe.resolution} pixels"
    return f"{counted(recipe.epochs, 'epoch')} of {counted(recipe.train_size, 'image')} at {size}"


def budget_words(budget: Budget) -> str:
    """The limits of a study: `at most 2M parameters, 10M..60M MACs, at most 5 ms`; `no budget`."""
    ranges = ((budget.min_params, budget.params, " parameters"), (budget.min_macs, budget.macs, " MACs"))
    words = [_range_words(low, high, noun) for low, high, noun in ranges if low or high]
    words += [f"at most {budget.latency_ms:g} ms"] if budget.latency_ms else []
    return ", ".join(words) or "no budget"


def _range_words(low: int | None, high: int | None, noun: str) -> str:
    if low and high:
        return f"{exact_count(low)}..{exact_count(high)}{noun}"
    return f"at most {exact_count(high)}{noun}" if high else f"at least {exact_count(low or 0)}{noun}"


def front_end_words(study: Study, objectives: Sequence[str] | None = None) -> str | None:
    """Why no member of a front comes near the budget on parameters, or on MACs; None where one does.

    The front is that over `objectives` (by default the study's), one of which is the error.

    `The front ends at 177.2k parameters, 9 % of the budget. ...`
    """
    names = tuple(objectives or study.spec.front_objectives)
    front = study.front(names)
    for metric, noun, limit in (
        ("params", "parameters", study.spec.budget.params),
        ("macs", "MACs", study.spec.budget.macs),
    ):
        end = max((getattr(member.cost, metric) for member in front), default=None)
        if "error" not in names or limit is None or end is None or end >= FAR_BELOW * limit:
            continue
        share = f"{100 * end / limit:.2g} % of the budget"
        pruned = [trial.pruned for trial in study.trials if trial.pruned and not trial.is_aside]
        tried = [of.cost for of in study.feasible_candidates] + [of.cost for of in pruned]
        larger = [size for cost in tried if end < (size := getattr(cost, metric)) <= limit]
        if not larger:
            return f"The front ends at {format_count(end)} {noun}, {share}: no network beyond that was tried."
        several, images = len(larger) > 1, study.spec.recipe.samples
        were = f"{len(larger)} networks beyond that were" if several else "One network beyond that was"
        none = "none of them had" if several else "it did not have"
        if study.expected and study.spec.target:
            images = study.spec.target.images
            none = "none of them is expected to have" if several else "it is not expected to have"
        return (
            f"The front ends at {format_count(end)} {noun}, {share}. {were} tried (up to "
            f"{format_count(max(larger))}); after {images:,} images {none} a lower error. "
            "Longer trainings favour larger networks: search with more --time."
        )
    return None


def plan_words(study: Study) -> str | None:
    """What a study did with the time that it was planned for; None without a plan, or without a complete trial.

    `planned 24 trials in 10 min by 2 workers; 21 ended and 6 for longer, in 9 min 12 s of each. A trial took 1.08 times
    what was predicted (80 % of them 0.7 to 1.4 times).`
    """
    plan, spec = study.spec.plan, study.spec
    short = [trial for trial in study.trials if not trial.is_aside]
    took = [(c.arch, trial.wall_s) for trial in short if (c := trial.candidate) and trial.wall_s]
    if plan is None or not took:
        return None
    archs, seconds = zip(*took, strict=True)
    predicted = plan.speed.trials_s(Sizes.of(archs), spec.recipe, spec.space.input[1])
    ratios = sorted(float(s / p) for s, p in zip(seconds, predicted, strict=True))
    low, middle, high = (ratios[round(share * (len(ratios) - 1))] for share in (0.1, 0.5, 0.9))
    spent = sum(trial.wall_s or 0.0 for trial in study.trials if not trial.baseline) / plan.workers
    longer = f" and {len(study.longer)} for longer" if study.longer else ""
    return (
        f"planned {counted(plan.trials, 'trial')} in {format_seconds(plan.time_s)} by "
        f"{counted(plan.workers, 'worker')}; {study.ended} ended{longer}, in {format_seconds(spent)} of each. A trial "
        f"took {middle:.2f} times what was predicted (80 % of them {low:.2f} to {high:.2f} times)."
    )


def recipe_words(recipe: Recipe, *, held_out: bool = False) -> str:
    """A proxy training: `2 epochs of 3,000 images at 16 x 16 pixels, batch 128, lr 0.2, float32, fastest forms`.

    `held_out` adds the number of images that it is scored on.
    """
    scored = f"; scored on {counted(recipe.held_out, 'held-out image')}" if held_out else ""
    how = f"batch {recipe.batch}, lr {recipe.lr:g}, {recipe.dtype}, {recipe.forms} forms"
    return f"{proxy_words(recipe)}, {how}{scored}"


def schedule_words(recipe: Schedule) -> str:
    """A recipe of a training to the end: `10 epochs, batch 128, SGD lr 0.2, cosine, ..., float32, fastest forms`."""
    extras = [
        f"label smoothing {recipe.label_smoothing:g}" if recipe.label_smoothing else "",
        f"crop {recipe.crop}" if recipe.crop else "",
        "alternating flip" if recipe.flip == "alternating" else "flip" if recipe.flip else "",
        "augmented once an epoch" if recipe.augment == "epoch" else "",
        f"cutout {recipe.cutout}" if recipe.cutout else "",
        f"mixup {recipe.mixup:g}" if recipe.mixup else "",
        f"weight average {recipe.average:g}" if recipe.average else "",
    ]
    decay = f"weight decay {recipe.weight_decay:g}" + ("" if recipe.decay_norms else " (not on norms)")
    return (
        f"{counted(recipe.epochs, 'epoch')}, batch {recipe.batch}, SGD with lr {recipe.lr:g} (warm-up "
        f"{100 * recipe.warmup:g} %, cosine), {decay}, {', '.join(filter(None, [*extras, recipe.dtype]))}, "
        f"{recipe.forms} forms"
    )


def runtime_words(runtime: str, batch: int, threads: int, device: str, *, layout: str = "") -> str:
    """Runtime and machine of a forward pass: `native C, batch 1, 1 thread, on Intel Xeon`; `layout` before `on`."""
    name = "native C" if runtime == "native" else runtime
    return f"{name}, batch {batch}, {counted(threads, 'thread')}, {f'{layout}, ' if layout else ''}on {device}"


MIG = (
    "a MIG instance: clocks, temperature, power and energy are its whole card's; what computes on the card's other "
    "instances is not seen"
)


def conditions_words(of: Latency | LatencySpec) -> str:
    """The conditions of a latency: `eager, batch 1, 1 thread, float32, channels_last, on Intel Xeon`."""
    machine = of.conditions if isinstance(of, Latency) else of
    layout = f"{of.dtype}, {of.memory_format}"
    return runtime_words(of.runtime, of.batch, machine.threads, machine.device, layout=layout)


def interval_words(low_ms: float, high_ms: float, n: int) -> str:
    """The interval of a median of `n` rounds, in ms: `95 % interval 1.441 to 1.493, n = 31`."""
    return f"95 % interval {low_ms:.3f} to {high_ms:.3f}, n = {n}"


def noise_words(noise: tuple[str, ...]) -> str:
    """The reasons why a latency is noisy: `NOISY: load 2.1; the processor throttled`."""
    return f"NOISY: {'; '.join(noise) or 'no reason recorded'}"


def form_words(measured: Candidate | Pruned, *, whole: bool = False) -> str:
    """The form whose latency was measured, its parameters, MACs and weights: `mixed 237.2k 35.64M 0.95 MB`.

    With `whole` a sentence: `mixed, as deployed 237.2k parameters, 35.64M MACs, 0.95 MB of weights`.
    """
    latency = measured.latency
    if latency.deployed_params is None or latency.deployed_macs is None or latency.weight_bytes is None:
        return latency.form
    params, macs = format_count(latency.deployed_params), format_count(latency.deployed_macs)
    weights = f"{latency.weight_bytes / 1e6:.2f} MB"
    if whole:
        return f"{latency.form}, as deployed {params} parameters, {macs} MACs, {weights} of weights"
    return f"{latency.form} {params} {macs} {weights}"


class CandidateWords(NamedTuple):
    """A candidate as text, a field for each column of a table."""

    trial: str
    id: str
    error: str
    """`12.50 %`"""
    params: str
    macs: str
    latency: str
    """The normalised latency: `1.46 ms`."""
    interval: str
    """Its 95 % interval, in ms: `1.44-1.49`."""
    noisy: str
    """`noisy`, or empty."""
    form: str
    """As `form_words` has it."""
    architecture: str


def candidate_words(candidate: Candidate) -> CandidateWords:
    """A candidate's numbers with their units, for a row of a table or a line of a log."""
    latency = candidate.latency
    low, high = (format_ms(bound).removesuffix(" ms") for bound in latency.normalised_interval_ms)
    return CandidateWords(
        trial=str(candidate.trial),
        id=candidate.id,
        error=f"{100 * candidate.score.error:.2f} %",
        params=format_count(candidate.cost.params),
        macs=format_count(candidate.cost.macs),
        latency=format_ms(latency.normalised_ms),
        interval=f"{low}-{high}",
        noisy="noisy" if latency.noisy else "",
        form=form_words(candidate),
        architecture=str(candidate.arch),
    )
