"""What a study asked and found, in words: the parts of the page that need no script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from igc_nas.analysis.views import budget_text, disagreements, format_value, latency_text
from igc_nas.data.datasets import is_synthetic
from igc_nas.io.text import plain
from igc_nas.io.units import format_count
from igc_nas.study.names import search_command, study_argument
from igc_nas.study.objectives import OBJECTIVES
from igc_nas.study.records import Candidate, deployed_text
from igc_nas.study.study import Study

OFFICIAL = ("cifar10", "cifar100")


def banners(studies: Sequence[Study]) -> str:
    """What must be known of the data before anything is read; each dataset once."""
    return "".join(dict.fromkeys(_banner(study) for study in studies))


def _banner(study: Study) -> str:
    if is_synthetic(study.spec.dataset):
        return (
            '<p class="banner" role="alert"><strong>SYNTHETIC shapes: these errors say nothing about CIFAR-10.'
            "</strong> The images are drawn by igc-nas itself, for trying things out.</p>\n"
        )
    if study.spec.dataset not in OFFICIAL:
        return (
            '<p class="banner quiet" role="note"><strong>UNOFFICIAL data: these files are not the published ones.'
            f"</strong> The dataset is recorded as <bdi>{plain(study.spec.dataset)}</bdi>.</p>\n"
        )
    return ""


def warnings(studies: Sequence[Study]) -> str:
    """What the studies of one page do not share."""
    found = disagreements([study.spec for study in studies])
    if not found:
        return ""
    lines = "".join(f"<li>{plain(line)}</li>" for line in found)
    return (
        f'<div class="warnings" role="note">\n<h2>Not everything here can be compared</h2>\n<ul>{lines}</ul>\n</div>\n'
    )


def heading(study: Study) -> str:
    """A study's name over its numbers, where there are several."""
    return f'<h2><span class="dot" aria-hidden="true"></span><bdi>{plain(study.spec.name)}</bdi></h2>\n'


def cards(study: Study) -> str:
    """The numbers on top."""
    found = "".join(f"<li><strong>{value}</strong><span>{name}</span></li>\n" for name, value in numbers(study))
    return f'<ul class="cards">\n{found}</ul>\n'


def numbers(study: Study) -> list[tuple[str, str]]:
    """The numbers on top: (what, value)."""
    states = Counter(trial.state for trial in study.trials)
    others = {state: count for state, count in states.items() if state != "complete"}
    found = [("completed trials", f"{len(study.candidates):,}")]
    if study.candidates:
        found.append(("on the front", f"{len(study.front()):,}"))
        found.append(("least error", format_value("error", min(c.score.error for c in study.candidates))))
        volume = study.hypervolume()
        found.append(("hypervolume", "no scale yet" if volume is None else f"{volume:.4f}"))
    return found + [(state, f"{count:,}") for state, count in sorted(others.items())]


def question(study: Study) -> str:
    """What the study asks, to unfold: one line, then all its conditions."""
    facts = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>\n" for name, value in _question(study))
    spec = study.spec
    return (
        f"<details>\n<summary><b>The question:</b> {budget_text(study)}, over {', '.join(spec.objectives)}; "
        f"<bdi>{plain(spec.dataset)}</bdi>, <bdi>{plain(spec.latency.device)}</bdi></summary>\n"
        f"<p>Errors are those of a short proxy training on <bdi>{plain(spec.dataset)}</bdi>"
        f"{' (synthetic)' if is_synthetic(spec.dataset) else ''}, on held-out training images.</p>\n"
        f"<dl>\n{facts}</dl>\n</details>\n"
    )


def _question(study: Study) -> list[tuple[str, str]]:
    """The question in brief: (what, value as HTML)."""
    spec, recipe, latency = study.spec, study.spec.recipe, study.spec.latency
    size = "×".join(str(side) for side in latency.input)
    threads = f"{latency.threads} thread{'s' * (latency.threads != 1)}"
    facts = [
        ("Space", f"<bdi>{plain(spec.space_name)}</bdi>"),
        ("Budget", budget_text(study)),
        ("Objectives", ", ".join(spec.objectives)),
        ("Data", f"<bdi>{plain(spec.dataset)}</bdi>, {spec.classes} classes"),
        (
            "Proxy training",
            f"{recipe.epochs} epoch{'s' * (recipe.epochs != 1)} of {recipe.train_size:,} images at {recipe.resolution}×"
            f"{recipe.resolution}, batch {recipe.batch}, lr {recipe.lr:g} (one cycle), {recipe.dtype}; scored on "
            f"{recipe.held_out:,} held-out images",
        ),
        (
            "Latency",
            f"batch {latency.batch}, {threads}, {size}, {latency.runtime}, {latency.dtype}, "
            f"{latency.memory_format.replace('_', ' ')}; {FORMS[latency.forms]}",
        ),
        ("Latency device", f"<bdi>{plain(latency.device)}</bdi>"),
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


FORMS = {
    "within-budget": "each network in its fastest form whose parameters obey the budget",
    "any": "each network in its fastest form",
    "factored": "networks factored, as they are written",
}


def _rungs_text(study: Study) -> str:
    """Where trainings are looked at on their way, and how many were stopped there."""
    recipe, stop = study.spec.recipe, study.spec.prune_below
    *firsts, last = (f"{samples:,}" for samples in recipe.rungs)
    at = f"after {' and '.join(filter(None, (', '.join(firsts), last)))} images of {recipe.samples:,}"
    if not stop:
        return f"{at}; nothing is stopped there"
    return (
        f"{at}; a training is stopped there where its chance to end on the front is below {stop:g}: "
        f"{study.ended - len(study.candidates):,} of {study.ended:,} were"
    )


def _scale_text(study: Study) -> str:
    """What the hypervolume is of."""
    spec = study.spec
    if any(name not in spec.bounds for name in spec.objectives):
        return ""
    spans = "; ".join(
        f"{name} {format_value(name, low)} to {format_value(name, high)}{' (log)' if OBJECTIVES[name].log else ''}"
        for name, (low, high) in ((name, spec.bounds[name]) for name in spec.objectives)
    )
    point = ", ".join(format_value(name, spec.bounds[name][1]) for name in spec.objectives)
    return (
        f"the share of the scaled box that the front dominates; each objective is scaled to [0, 1] by bounds that were "
        f"fixed when the study was made ({spans}); the reference point is (1, …, 1), that is ({point})"
    )


def front_table(study: Study) -> str:
    """The front as a table, for a page without its script."""
    pick = study.pick("knee")
    rows = "".join(_table_row(candidate, candidate.trial == pick.trial) for candidate in study.front())
    heads = ("trial", "id", "error", "parameters", "MACs", "latency [95 %]", "runs as", "architecture")
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    name = plain(study_argument(study.folder, study.spec.name))
    return (
        f"<h2>The front of <bdi>{plain(study.spec.name)}</bdi></h2>\n"
        f"<pre><code>igc-nas export {name} --pick trial:{pick.trial} -o arch.toml</code></pre>\n"
        f'<div class="table">\n<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n'
    )


def _table_row(candidate: Candidate, is_knee: bool) -> str:
    knee = ' <span class="tag">knee</span>' if is_knee else ""
    noisy = ' <span class="tag">noisy</span>' if candidate.latency.noisy else ""
    cells = (
        f"{candidate.trial}{knee}",
        f"<code>{plain(candidate.id)}</code>",
        format_value("error", candidate.score.error),
        f"{candidate.cost.params:,}",
        format_count(candidate.cost.macs),
        latency_text(candidate) + noisy,
        plain(deployed_text(candidate)),
        f"<code>{plain(candidate.arch)}</code>",
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n"


def nothing_yet(study: Study) -> str:
    """What a study without a completed trial has to show."""
    return (
        '<div class="empty">\n<h2>No completed trial yet</h2>\n'
        "<p>There is nothing to draw. Start or continue the search with</p>\n"
        f"<pre><code>{plain(search_command(study.folder, study.spec.name))}</code></pre>\n</div>\n"
    )
