"""Tables and progress on a terminal: no text of a file moves the cursor, and the columns of a plan add up."""

import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from igc_nas.arch.cost import cost_of, rows
from igc_nas.arch.layers import Act, Conv, Interleave, Linear, Norm, Pool
from igc_nas.arch.papers import reference
from igc_nas.arch.plan import plan
from igc_nas.cli.display import (
    data_label,
    front_lines,
    layer_text,
    plan_lines,
    printable,
)
from igc_nas.engine.events import Ended, Exhausted, Job, LongerJob, Opened, Progress, Started
from igc_nas.engine.progress import SearchDisplay, StudyProgress, trial_line
from igc_nas.io.console import table_lines
from igc_nas.io.units import fixed_count
from igc_nas.study.expected import Expected
from igc_nas.study.front_table import expected_columns, html_table, latex_lines, low_quantile_ms, markdown_lines
from igc_nas.study.records import Epoch, Trial
from igc_nas.study.spec import Target
from igc_nas.study.study import Study
from tests.support.builders import architectures
from tests.support.searches import spec
from tests.support.shares import examples
from tests.support.studies import make_study

STUDY = make_study(8, others=["infeasible", "duplicate", "failed"])
HOSTILE = "\x1b[2J\x1b]0;title\x07\r\u202eevil\u2066[bold red]loud[/bold red]\x9b31m"


def shown(what: RenderableType, width: int = 200) -> str:
    """The text that a console without colours prints."""
    console = Console(width=width, highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(what)
    return capture.get()


def harmless(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text)


@given(st.text())
def test_printable_text_has_no_control_and_no_direction_characters(text: str) -> None:
    assert harmless(printable(text))
    assert len(printable(text)) == len(text)
    assert printable(printable(text)) == printable(text)
    if harmless(text):
        assert printable(text) == text


def test_printable_keeps_what_people_write() -> None:
    for text in ("naïve 研究 ☃ é", "two\nlines", "error 12.3 %"):
        assert printable(text) == text
    assert "\x1b" not in printable(HOSTILE)
    assert "\u202e" not in printable(HOSTILE)


@given(st.lists(st.lists(st.text(max_size=20), min_size=2, max_size=2), min_size=1, max_size=3), st.integers(5, 60))
def test_a_table_of_any_text_is_harmless_and_whole(cells: Sequence[Sequence[str]], width: int) -> None:
    for limit in (None, width):
        text = "\n".join(table_lines(("one", "two"), cells, left=("one",), width=limit))
        assert harmless(text)
        assert all(printable(cell, lines=False).strip() in text for row in cells for cell in row)


def test_a_table_is_aligned_or_has_a_block_for_each_row() -> None:
    rows = [["rung", "0.28 [0.01, 0.54]", "33 %"], ["end", "0.68 [0.47, 0.85]", ""]]
    columns = ("predictor", "tau-b", "found")
    assert table_lines(columns, rows, ("predictor",), 80)[1] == "rung       0.28 [0.01, 0.54]   33 %"
    narrow = table_lines(columns, rows, ("predictor",), 30)
    assert narrow == ["rung", "  tau-b 0.28 [0.01, 0.54]", "  found 33 %", "end", "  tau-b 0.68 [0.47, 0.85]"]


# Plans.


def test_every_kind_of_layer_has_a_text() -> None:
    assert layer_text(Conv("stem", 3, 8, 3, 2, 1)) == "stem: conv 3x3 3->8 stride 2"
    assert layer_text(Conv("primary", 8, 8, 3, 1, 4)) == "primary: conv 3x3 8->8 groups 4"
    assert layer_text(Interleave(8, 4)) == "interleave(4)"
    assert layer_text(Interleave(8, 1)) == "interleave(1) = identity"
    assert layer_text(Norm("bn", 8)) == "bn: batch norm"
    assert layer_text(Act("relu6")) == "relu6"
    assert layer_text(Pool()) == "global average pool"
    assert layer_text(Linear("classifier", 8, 10)) == "classifier: linear 8->10 with bias"


@examples(40)
@given(architectures())
def test_the_columns_of_a_plan_add_up_to_the_cost(arch) -> None:
    lines = plan_lines(list(rows(plan(arch))), None)
    layers, stages = lines[1 : lines.index("")], lines[lines.index("") + 1 :]
    assert _sums(layers, 2) == _sums(stages, 1) == (cost_of(arch).params, cost_of(arch).macs)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_a_plan_on_a_narrow_terminal_keeps_every_number(width: int) -> None:
    listed = list(rows(plan(reference("igcv3-d-cifar").arch)))
    lines = plan_lines(listed, width)
    assert all(len(line) <= width for line in lines)
    text = " ".join("\n".join(lines).split())
    for row in listed:
        assert f" {row.cost.params:,} {row.cost.macs:,} " in text
        assert layer_text(row.layer) in text


def test_a_plan_shows_every_layer() -> None:
    listed = list(rows(plan(reference("igcv1-l24m2-d20-res").arch)))
    lines = plan_lines(listed, None)
    assert lines.index("") == len(listed) + 1
    assert any("shortcut: " in line for line in lines)


def _sums(lines: Sequence[str], first: int) -> tuple[int, int]:
    """The sums of the two columns of numbers from word `first` on."""
    numbers = [[int(word.replace(",", "")) for word in line.split()[first : first + 2]] for line in lines]
    return sum(one for one, _ in numbers), sum(two for _, two in numbers)


# Studies.


def front_of(study: Study, width: int | None = None, **options: bool) -> list[str]:
    return front_lines(study, study.front(), study.spec.objectives, width, **options)


def test_a_front_is_titled_with_its_study_and_conditions() -> None:
    front, text = STUDY.front(), "\n".join(front_of(STUDY))
    assert f"test-study: Pareto front of {len(front)} of 8 candidates by error, params, latency" in text
    assert "data: cifar10; error after a proxy training of " in text
    assert f"hypervolume {STUDY.hypervolume():.4f}" in text
    assert "latency: normalised; eager, batch 1, 1 thread, float32, channels_last, on Test CPU" in text
    for candidate in front:
        assert str(candidate.arch) in text
    assert "L primary partitions of M channels" in text


@pytest.mark.parametrize("width", [40, 60, 72, 80, 100, 160, 300])
def test_a_member_is_one_line_at_any_width(width: int) -> None:
    front, lines = STUDY.front(), front_of(STUDY, width)
    assert all(len(line) <= width for line in lines if "igc-nas" not in line)
    start = next(number for number, line in enumerate(lines) if line.split()[:2] == ["trial", "error"])
    for candidate, line in zip(front, lines[start + 1 :], strict=False):
        trial, error, unit, params, macs, latency, *_ = line.split()
        assert (int(trial), error, unit) == (candidate.trial, f"{100 * candidate.score.error:.2f}", "%")
        assert (params, macs) == (fixed_count(candidate.cost.params), fixed_count(candidate.cost.macs))
        assert float(latency) == round(candidate.latency.normalised_ms, 3)
        assert (" ms*" in line) == candidate.latency.noisy
    assert ("architecture" in lines[start]) == (width >= 160)
    assert ("id" in lines[start].split()) == (width >= 60)
    assert "deployed" not in lines[start], "all were measured as they are"
    assert any("igc-nas show" in line or line.startswith("architecture:") for line in lines)


def test_noisy_latencies_say_what_to_type() -> None:
    quiet, noisy = STUDY.trials[:1], STUDY.trials[1:2]
    assert quiet[0].candidate is not None
    assert noisy[0].candidate is not None
    marked = noisy[0].candidate.latency.model_copy(update={"noisy": True, "noise": ("load 3",)})
    candidate = noisy[0].candidate.model_copy(update={"latency": marked})
    study = Study(STUDY.spec, (*quiet, noisy[0].model_copy(update={"candidate": candidate})))
    text = " ".join(" ".join(front_of(study, 80)).split())
    note = "* 1 noisy latency, 1 of all 2 candidates: igc-nas measure --study test-study --keep"
    assert (note in text) == (candidate in study.front())


def test_a_low_quantile_is_below_the_median() -> None:
    latency = STUDY.candidates[0].latency
    spread = latency.model_copy(
        update={"samples_ms": (2.0, 2.1, 2.2, 5.0, 9.0), "median_ms": 2.2, "normalised_ms": 1.1}
    )
    assert low_quantile_ms(spread) == pytest.approx((2.0 + 0.2 * 0.1) / 2)


def test_a_front_for_papers_and_pages() -> None:
    markdown, latex, page = (f(STUDY.front()) for f in (markdown_lines, latex_lines, html_table))
    assert len(markdown) == 2 + len(STUDY.front())
    assert len({line.count("|") for line in markdown}) == 1
    assert latex[0].startswith(r"\begin{tabular}{")
    assert sum(line.endswith(r" \\") for line in latex) == 1 + len(STUDY.front())
    assert r"\%" in latex[4]
    assert page.count("<tr>") == 1 + len(STUDY.front())


def test_baselines_stand_by_name_below_a_front_for_papers() -> None:
    (one, *_) = STUDY.candidates
    for lines, begin in ((markdown_lines, "| a_b | "), (latex_lines, r"a\_b & ")):
        (added,) = set(lines(STUDY.front(), {"a_b": one})) - set(lines(STUDY.front()))
        assert added.startswith(begin)
        assert one.id in added


def test_predicted_errors_stand_in_a_front_for_papers() -> None:
    (one, *_) = STUDY.candidates
    target = Target(images=480_000, recipe=STUDY.spec.recipe, share=0.4)
    spec = STUDY.spec.model_copy(update={"target": target})
    more = expected_columns(replace(STUDY, spec=spec, expected={one.trial: Expected(0.1234, 0.1, 0.2)}))
    assert markdown_lines([one], {}, more)[0].startswith("| trial | id | at 480.00k | at ")
    assert f"| {one.trial} | {one.id} | 12.34 % | - | " in markdown_lines([one], {}, more)[-1]
    assert rf"{one.id} & 12.34 \%" in "".join(latex_lines([one], {}, more))


def test_a_front_of_a_hostile_study_is_harmless() -> None:
    hostile = Study(STUDY.spec.model_copy(update={"name": HOSTILE, "dataset": HOSTILE}), STUDY.trials)
    text = "\n".join(front_of(hostile))
    assert harmless(text)
    assert "[bold red]loud" in text


def test_synthetic_data_are_called_so() -> None:
    assert "SYNTHETIC" in data_label("shapes")
    assert data_label("cifar10") == "cifar10"


def test_a_trial_is_one_line() -> None:
    for trial in STUDY.trials:
        line = trial_line(trial)
        assert "\n" not in line
        assert line.startswith(f"trial {trial.number:>4}  {'error' if trial.candidate else trial.state}")
        assert (trial.reason or str(trial.arch)) in line
        assert len(trial_line(trial, 80)) <= 80


def test_a_trial_line_has_the_numbers_with_their_units() -> None:
    trial = STUDY.trials[0]
    candidate = trial.candidate
    line = trial_line(trial, 80)
    assert f"error {100 * candidate.score.error:5.2f} %" in line
    assert " ms" in line
    assert "60.0 s" in line
    noisy = candidate.model_copy(update={"latency": candidate.latency.model_copy(update={"noisy": True})})
    assert " noisy " in trial_line(trial.model_copy(update={"candidate": noisy}), 80)


# The progress of a search, through a pipe.


def test_a_pipe_gets_a_line_for_each_trial_that_was_run(capsys: pytest.CaptureFixture[str]) -> None:
    with SearchDisplay(8, 60.0) as display:
        for trial in STUDY.trials:
            if trial.arch:
                display.show(Started(Job(trial.number, trial.arch, 0)))
            display.show(Ended(trial))
        display.show(Exhausted("all 160 are known"))
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split()[:3] for line in err.splitlines()[:-1]] == [
        ["trial", str(t.number), "error" if t.candidate else "failed:"]
        for t in STUDY.trials
        if t.state in ("complete", "failed")
    ]
    assert err.splitlines()[-1] == "nothing new to try: all 160 are known"


def test_a_quiet_search_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with SearchDisplay(8, 60.0, quiet=True) as display:
        display.show(Ended(STUDY.trials[0]))
        display.show(Exhausted("reason"))
    assert capsys.readouterr() == ("", "")


def test_a_reason_cannot_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    with SearchDisplay(8, 60.0) as display:
        display.show(Ended(Trial(number=0, state="failed", params={}, reason=HOSTILE)))
    err = capsys.readouterr().err
    assert harmless(err)
    assert "[bold red]loud" in err


@pytest.mark.parametrize("target", [None, 8])
@pytest.mark.parametrize("timeout", [None, 60.0])
def test_the_live_view_of_any_study_can_be_drawn(target: int | None, timeout: float | None) -> None:
    for study in (STUDY, Study(spec(), ())):
        display = SearchDisplay(target, timeout)
        assert "starting" in shown(display, width=80)
        display.show(Opened(study))
        display.show(Started(Job(30, STUDY.trials[0].arch, 0)))
        text = shown(display, width=80)
        assert f"trials {len(study.candidates)}" in text
        assert "trial   30" in text
        assert f"hypervolume {study.hypervolume():.4f}" in text


def test_the_live_view_has_the_best_error_in_each_tenth_of_the_budget() -> None:
    limit = max(c.cost.params for c in STUDY.candidates)
    budget = STUDY.spec.budget.model_copy(update={"params": limit})
    display = SearchDisplay(8, None, ended=8)
    assert "trials 8/8" in shown(display, width=80)
    display.show(Opened(Study(STUDY.spec.model_copy(update={"budget": budget}), STUDY.trials)))
    (best,) = [line for line in shown(display, width=80).splitlines() if line.startswith("best %")]
    errors = [float(word) for word in best.split()[2:] if word != "-"]
    assert len(best.split()) == 12
    assert min(errors) == round(100 * min(c.score.error for c in STUDY.candidates), 1)


def test_the_live_view_has_the_images_of_a_longer_training() -> None:
    recipe = STUDY.spec.recipe.model_copy(update={"train_size": 40_000})
    target = Target(images=200_000, recipe=recipe, share=0.4)
    display, arch = SearchDisplay(8, None), STUDY.trials[0].arch
    display.show(Opened(Study(STUDY.spec.model_copy(update={"target": target}), ())))
    display.show(Started(Job(30, arch, 0)))
    display.show(Started(LongerJob(31, arch, 0, latency=STUDY.candidates[0].latency)))
    for number in (30, 31):
        display.show(Progress(number, "training", Epoch(samples=4000, loss=1.0, train_error=0.5)))
    text = shown(display, width=160)
    assert "trial   30  training: 4,000 of 8,000 images" in text
    assert "trial   31  training: 4,000 of 80,000 images" in text


def test_the_live_view_counts_what_ends() -> None:
    display = SearchDisplay(8, None)
    display.show(Opened(Study(STUDY.spec, ())))
    for count, trial in enumerate(STUDY.trials[:8], start=1):
        display.show(Ended(trial))
        assert f"trials {count}/8" in shown(display)
    assert f"hypervolume {STUDY.hypervolume():.4f}" in shown(display)
    display.show(Ended(STUDY.trials[8]))
    assert "1 suggestions not built" in shown(display)


def joined_of_the_last_ten(study: Study) -> int:
    """How many of the last ten feasible candidates were on the front when they ended."""
    found = [trial for trial in study.trials if trial.candidate in study.feasible_candidates]
    return sum(trial.candidate in Study(study.spec, tuple(found[: place + 1])).front()
               for place, trial in enumerate(found) if place >= len(found) - 10)  # fmt: skip


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_the_live_view_fits_its_terminal_and_says_when_it_ends(width: int) -> None:
    limit = max(c.cost.params for c in STUDY.candidates)
    budget = STUDY.spec.budget.model_copy(update={"params": limit})
    display = SearchDisplay(20, 3600.0)
    display.show(Opened(Study(STUDY.spec.model_copy(update={"budget": budget}), ())))
    for trial in STUDY.trials[:8]:
        display.show(Started(Job(trial.number, trial.arch, 0)))
        display.show(Ended(trial))
    text = shown(display, width=width)
    assert max(map(len, text.splitlines())) <= width
    best = [line for line in text.splitlines() if line.startswith("best %")]
    assert [len(line.split()) - 2 for line in best] == {40: [], 60: [5]}.get(width, [10])
    if width >= 80:
        assert re.search(r"trials 8/20   [\d,]+ trials/h   about .* left, ends (\w{3} )?\d\d:\d\d", text)


@pytest.mark.parametrize("known", [0, 5, 13])
def test_progress_one_by_one_equals_that_of_the_whole_study(known: int) -> None:
    """The search starts with `known` trials."""
    whole = make_study(30, others=["infeasible", "failed"])
    limit = sorted(c.cost.params for c in whole.candidates)[20]
    budget = whole.spec.budget.model_copy(update={"params": limit})
    question = whole.spec.model_copy(update={"budget": budget})
    progress = StudyProgress(Study(question, whole.trials[:known]))
    for count, trial in enumerate(whole.trials[known:], start=known + 1):
        progress.add(trial)
        study = Study(question, whole.trials[:count])
        assert progress.ended == study.ended
        front, volume = progress.facts
        assert front.partition(" (")[0] == f"front {len(study.front())}"
        assert volume == f"hypervolume {study.hypervolume():.4f}"
        if " (" in front:
            assert f"({joined_of_the_last_ten(study)} of the last 10 joined it)" in front


def test_without_a_scale_only_the_front_is_counted() -> None:
    unscaled = Study(STUDY.spec.model_copy(update={"bounds": {}}), STUDY.trials)
    assert StudyProgress(unscaled).facts == [f"front {len(unscaled.front())}"]
