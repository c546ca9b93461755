"""A study's spec and results as HTML: the parts of the page that need no script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from igc_nas.analysis.expectations import expectation_words, with_expectations
from igc_nas.analysis.finals import COLUMNS as FINALS_COLUMNS
from igc_nas.analysis.finals import LEGEND as FINALS_LEGEND
from igc_nas.analysis.finals import final_rows, group_title
from igc_nas.analysis.views import disagreements, format_value
from igc_nas.analysis.words import (
    GOALS,
    LATENCY_FORMS,
    budget_words,
    candidate_words,
    conditions_words,
    front_end_words,
    recipe_words,
)
from igc_nas.data.datasets import is_synthetic
from igc_nas.io.text import plain
from igc_nas.study.finals import FinalsGroup, finals_groups
from igc_nas.study.front_table import legend
from igc_nas.study.names import search_command, storage_option, study_argument
from igc_nas.study.objectives import OBJECTIVES
from igc_nas.study.records import Candidate
from igc_nas.study.spec import LEAST_ERROR_SHARE
from igc_nas.study.study import Study

OFFICIAL = ("cifar10", "cifar100")


def banners(studies: Sequence[Study]) -> str:
    """Warnings about synthetic or unofficial data, at the top of the page; each once."""
    return "".join(dict.fromkeys(_banner(study) for study in studies))


def _banner(study: Study) -> str:
    if is_synthetic(study.spec.dataset):
        return (
            '<p class="banner" role="alert"><strong>SYNTHETIC shapes: these errors say nothing about CIFAR-10.'
            "</strong> igc-nas draws these images itself, so that it can be tried without a dataset.</p>\n"
        )
    if study.spec.dataset not in OFFICIAL and not study.spec.images:
        return (
            '<p class="banner quiet" role="note"><strong>UNOFFICIAL data: these files are not the published ones.'
            f"</strong> The dataset is recorded as <bdi>{plain(study.spec.dataset)}</bdi>.</p>\n"
        )
    return ""


def warnings(studies: Sequence[Study]) -> str:
    """What differs between the studies of one page."""
    found = disagreements([study.spec for study in studies])
    if not found:
        return ""
    lines = "".join(f"<li>{plain(line)}</li>" for line in found)
    return (
        f'<div class="warnings" role="note">\n<h2>Not everything here can be compared</h2>\n<ul>{lines}</ul>\n</div>\n'
    )


def heading(study: Study) -> str:
    """A study's name above its numbers, on a page of several studies."""
    return f'<h2><span class="dot" aria-hidden="true"></span><bdi>{plain(study.spec.name)}</bdi></h2>\n'


def cards(study: Study) -> str:
    """The key numbers at the top of the page, as HTML."""
    found = "".join(f"<li><strong>{value}</strong><span>{name}</span></li>\n" for name, value in numbers(study))
    end = front_end_words(study)
    return f'<ul class="cards">\n{found}</ul>\n' + (f"<p>{end}</p>\n" if end else "")


def numbers(study: Study) -> list[tuple[str, str]]:
    """The key numbers at the top of the page: (label, value); front and hypervolume are of the errors observed."""
    observed = f" after {study.spec.recipe.samples:,} images" if study.spec.target else ""  # others are predicted
    states = Counter(trial.state for trial in study.trials if not trial.is_aside)
    others = {state: count for state, count in states.items() if state != "complete"}
    found = [("completed trials", f"{len(study.candidates):,}")]
    if study.candidates:
        found.append((f"on the front{observed}", f"{len(study.front()):,}"))
        found.append(("least proxy error", format_value("error", min(c.score.error for c in study.candidates))))
        volume = study.hypervolume()
        found.append((f"hypervolume{observed}", "no scale yet" if volume is None else f"{volume:.4f}"))
    found += [(state, f"{count:,}") for state, count in sorted(others.items())]
    return [*found, *([("baselines", f"{len(study.baselines):,}")] if study.baselines else [])]


def question(study: Study) -> str:
    """The study's spec, collapsed: a line of summary, then all its conditions."""
    facts = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>\n" for name, value in _question(study))
    spec = study.spec
    return (
        f"<details>\n<summary><b>Conditions:</b> {budget_words(spec.budget)}, over {', '.join(spec.front_objectives)}; "
        f"<bdi>{plain(spec.dataset)}</bdi>, <bdi>{plain(spec.latency.device)}</bdi></summary>\n"
        f"<p>Errors come from a short proxy training on <bdi>{plain(spec.dataset)}</bdi>"
        f"{' (synthetic)' if is_synthetic(spec.dataset) else ''}, measured on held-out training images.</p>\n"
        f"<dl>\n{facts}</dl>\n</details>\n"
    )


def _question(study: Study) -> list[tuple[str, str]]:
    """The study's conditions: (label, value as HTML)."""
    spec, recipe, latency = study.spec, study.spec.recipe, study.spec.latency
    size = "×".join(str(side) for side in latency.input)
    facts = [
        ("Space", f"<bdi>{plain(spec.space_name)}</bdi>"),
        ("Budget", budget_words(spec.budget)),
        ("Objectives", ", ".join(spec.objectives)),
        *([("Goal", GOALS[spec.goal])] if spec.goal else []),
        ("Data", f"<bdi>{plain(spec.dataset)}</bdi>, {spec.classes} classes"),
        ("Proxy training", recipe_words(recipe, held_out=True)),
        ("Latency", f"<bdi>{plain(conditions_words(latency))}</bdi>; images of {size}; {LATENCY_FORMS[latency.forms]}"),
    ]
    if recipe.rungs:
        facts.insert(5, ("Rungs", _rungs_text(study)))
    trained = sorted({c.score.conditions.device for c in study.candidates})
    if trained:
        more = f" and {len(trained) - 3} more" if len(trained) > 3 else ""
        facts.append(("Trained on", ", ".join(f"<bdi>{plain(device)}</bdi>" for device in trained[:3]) + more))
    facts.append(("Sampler", f"{spec.sampler}, seed {spec.seed}"))
    if scale := _scale_text(study):
        facts.append(("Hypervolume", scale))
    return facts


def _rungs_text(study: Study) -> str:
    """The rungs of the recipe, and how many trainings were pruned there."""
    recipe, threshold = study.spec.recipe, study.spec.prune_below
    *firsts, last = (f"{samples:,}" for samples in recipe.rungs)
    at = f"after {' and '.join(filter(None, (', '.join(firsts), last)))} images of {recipe.samples:,}"
    if not threshold:
        return f"{at}; no training is pruned"
    return (
        f"{at}; a training is pruned there if its probability of reaching the front is below {threshold:g}: "
        f"{study.ended - len(study.candidates):,} of {study.ended:,} were pruned"
    )


def _scale_text(study: Study) -> str:
    """Definition of the hypervolume: scale and reference point; empty before the study has bounds."""
    spec = study.spec
    if any(name not in spec.bounds for name in spec.front_objectives):
        return ""
    spans = "; ".join(
        f"{name} {format_value(name, low)} to {format_value(name, high)}{' (log)' if OBJECTIVES[name].log else ''}"
        for name, (low, high) in ((name, spec.scale_bounds(name)) for name in spec.front_objectives)
    )
    point = ", ".join(format_value(name, spec.scale_bounds(name)[1]) for name in spec.front_objectives)
    beyond = ""
    if spec.goal:
        share = f"{100 * LEAST_ERROR_SHARE[spec.goal]:.0f} %"
        beyond = f", for the costs on beyond the budget by {share} of the scale, which a lower least error counts"
    return (
        f"share of the unit box that the front dominates; each objective is scaled to [0, 1] by bounds fixed when the "
        f"study was created ({spans}{beyond}); the reference point is (1, …, 1), that is ({point})"
    )


def knee_of(study: Study) -> int | None:
    """The trial at the knee of the measured errors.

    None without a candidate, and where errors are predicted from longer trainings: `--pick knee` is of those.
    """
    if not study.candidates or (study.spec.target and study.longer):
        return None
    return study.pick("knee").trial


def front_html(study: Study) -> str:
    """The front as an HTML table, for browsers without JavaScript."""
    knee = knee_of(study)
    pick = "knee" if knee is None else f"trial:{knee}"
    rows = (_cells(candidate, candidate.trial == knee) for candidate in study.front())
    heads = ("trial", "id", "error", "parameters", "MACs", "latency, normalised [95 %]", "runs as", "architecture")
    name = plain(study_argument(study.folder, study.spec.name))
    stored = plain(storage_option(study.folder, study.storage))
    return (
        f"<h2>The front of <bdi>{plain(study.spec.name)}</bdi></h2>\n"
        f"<pre><code>igc-nas export {name} --pick {pick} -o arch.toml{stored}</code></pre>\n"
        f"{_table(heads, rows)}"
        f'<p class="note">{plain(legend(member.arch for member in study.front()))}</p>\n'
    )


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]], attributes: str = "") -> str:
    """A table of texts that are HTML already."""
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    return (
        f'<div class="table"{attributes}>\n<table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody>\n</table>\n</div>\n"
    )


def _cells(candidate: Candidate, is_knee: bool) -> tuple[str, ...]:
    words = candidate_words(candidate)
    noisy = f' <span class="tag">{words.noisy}</span>' if words.noisy else ""
    return (
        f"{words.trial}{_knee_tag(is_knee)}",
        f"<code>{plain(words.id)}</code>",
        words.error,
        f"{candidate.cost.params:,}",
        words.macs,
        f"{words.latency} [{words.interval}]{noisy}",
        plain(words.form),
        f"<code>{plain(words.architecture)}</code>",
    )


def _knee_tag(is_knee: bool) -> str:
    return ' <span class="tag">knee</span>' if is_knee else ""


def expected_html(study: Study) -> str:
    """The front by the errors that are predicted at the target length; empty for a study without a target."""
    study = with_expectations(Study(study.spec, study.trials, study.folder))
    words, target = expectation_words(study), study.spec.target
    if words is None or target is None:
        return ""
    title = f"<h2>Predicted after {target.images:,} images</h2>\n<p>{plain(words)}</p>\n"
    if not study.expected:
        return title
    heads = (
        "trial",
        f"predicted, {target.images:,} images [95 %]",
        f"observed, {target.recipe.samples:,} images",
        f"observed, {study.spec.recipe.samples:,} images",
        "parameters",
        "architecture",
    )
    knee = study.pick("knee").trial
    table = _table(heads, (_expected_cells(study, member, member.trial == knee) for member in study.front()))
    note = f"The figures below are of the errors observed after {study.spec.recipe.samples:,} images."
    return f'{title}{table}<p class="note">{note}</p>\n'


def _expected_cells(study: Study, member: Candidate, is_knee: bool) -> tuple[str, ...]:
    expected, longer = study.expected[member.trial], study.longer.get(member.trial)
    return (
        f"{member.trial}{_knee_tag(is_knee)}",
        f"{100 * expected.error:.2f} % [{100 * expected.low:.1f}-{100 * expected.high:.1f}]",
        f"{100 * longer.score.error:.2f} %" if longer else "",
        f"{100 * member.score.error:.2f} %",
        f"{member.cost.params:,}",
        f"<code>{plain(str(member.arch))}</code>",
    )


def finals_html(study: Study) -> str:
    """The networks that were trained to the end, a table for each recipe; empty if there are none."""
    groups = finals_groups(study.finals)
    return "".join(_finals_table(study, group, number) for number, group in enumerate(groups))


def _finals_table(study: Study, group: FinalsGroup, number: int) -> str:
    """Title, conditions and table of one recipe; `data-finals` is where the script draws its plot."""
    rows = (map(plain, row) for row in final_rows(group, study.spec.objectives))
    numbered = f' data-finals="{number}"'
    return (
        f"<h2>Finals of <bdi>{plain(study.spec.name)}</bdi>: test accuracy after a training to the end</h2>\n"
        f"<p>{plain(group_title(group))}</p>\n"
        f"{_table(FINALS_COLUMNS, rows, numbered)}"
        f'<p class="note">{plain(FINALS_LEGEND)}</p>\n'
    )


def nothing_yet(study: Study) -> str:
    """What the page shows of a study without a completed trial."""
    return (
        '<div class="empty">\n<h2>No completed trial yet</h2>\n'
        "<p>There is nothing to draw yet. A search that does not run is started, or continued, with</p>\n"
        f"<pre><code>{plain(search_command(study.folder, study.spec.name, study.storage))}</code></pre>\n</div>\n"
    )
