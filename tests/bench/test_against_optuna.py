"""bench against-optuna: courses over time, who is faster, the figure, and both sides run for a few seconds."""

import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import pytest

from igc_nas.bench.against_optuna import AgainstOptuna, Course, Pair, against_optuna_figure, ended_trials
from igc_nas.bench.report import Report
from igc_nas.cli import main
from igc_nas.space.budget import Budget
from igc_nas.study.pareto import hypervolume
from igc_nas.study.study import load_study
from tests.support.searches import spec

STUDY = spec(space="igc_cifar", budget=Budget(params=2_000_000), objectives=("error", "params"))


def pair(plain: list[tuple[float, float]], ours: list[tuple[float, float]], time_s: float = 100.0) -> Pair:
    """Runs of (seconds, hypervolume)."""
    one, other = (Course(*(tuple(column) for column in zip(*run, strict=True))) for run in (plain, ours))
    return Pair(0, time_s, one, other, {})


def test_a_course_has_the_trials_that_ended_in_time_in_their_order() -> None:
    trials = [(40.0, 0.5, 1e5), (10.0, 0.6, 2e4), (101.0, 0.1, 1e4)]
    found = Course.of(trials, STUDY, 100.0)
    assert found.seconds == (10.0, 40.0)
    points = [STUDY.scaled({"error": error, "params": params}) for _, error, params in trials[:2]]
    assert found.final == pytest.approx(hypervolume(points, (1.0, 1.0)), abs=1e-6)
    assert [found.at(at) for at in (9.9, 10.0, 39.0, 40.0, 99.0)] == [
        0.0,
        *found.volumes[:1] * 2,
        *found.volumes[1:] * 2,
    ]
    assert Course.of([], STUDY, 100.0).final == 0.0


def test_every_complete_trial_of_a_search_counts_at_its_end() -> None:
    study = load_study("igc_cifar10_2m")
    first = min(datetime.fromisoformat(trial.started).timestamp() for trial in study.trials if trial.started)
    found = Course.of(ended_trials(study, first), STUDY, 3600.0)
    assert len(found.volumes) == len(study.candidates)
    assert found.seconds[0] > 1
    points = [STUDY.scaled({"error": c.score.error, "params": c.cost.params}) for c in study.candidates]
    assert found.final == pytest.approx(hypervolume(points, (1.0, 1.0)), abs=1e-6)


def test_the_ratio_is_that_of_the_times_to_the_same_hypervolume() -> None:
    sooner = pair([(50, 0.1), (90, 0.3)], [(10, 0.2), (25, 0.3), (80, 0.4)])
    assert (sooner.reached_s, sooner.ratio) == (25, 4.0)
    later = pair([(20, 0.1), (50, 0.35), (90, 0.4)], [(60, 0.3)])
    assert (later.reached_s, later.ratio) == (None, 0.5), "plain has the search's end after half of the time"
    row = sooner.row()
    assert [row[f"igc_nas_{share}"] for share in ("25%", "50%", "100%")] == [0.3, 0.3, 0.4]
    assert (row["plain_trials"], row["igc_nas_trials"]) == (2, 3)


def test_the_figure_draws_each_run_and_the_means() -> None:
    pairs = (pair([(50, 0.1)], [(10, 0.2)]), pair([(60, 0.3)], [(20, 0.4)]))
    result = AgainstOptuna(pairs, Report("made", tuple(each.row() for each in pairs), {}))
    figure = against_optuna_figure(result)
    means = {trace.name: list(trace.y) for trace in figure.data if trace.showlegend is None}
    assert means["plain Optuna (TPE)"][-1] == pytest.approx(0.2)
    assert means["igc-nas search"][-1] == pytest.approx(0.3)
    assert len(figure.data) == 6
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["runs"][0]["plain"]["volumes"] == [0.1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--html", "figure.pdf"), "does not end in .html\n  name it figure.html"),
        (("--png", "figure.gif"), "does not end in .png or .svg\n  name it figure.png"),
        (("--time", "soon"), "'soon'"),
        (("--seeds", "0"), "--seeds"),
        (("--dataset", "nowhere"), "nowhere"),
    ],
)
def test_wrong_input_is_refused_before_anything_runs(
    more: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "against-optuna", *more]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "line 1 of runs.jsonl is no run of bench against-optuna name another file with -o"),
        (
            f"{json.dumps(asdict(pair([(50, 0.1)], [(10, 0.2)])))}\n\n{{",
            "line 3 of runs.jsonl is no run of bench against-optuna name another file with -o, or remove that line",
        ),
        (f"\n{json.dumps(asdict(pair([(50, 0.1)], [(10, 0.2)])))}\n\n", "runs of other conditions: device: "),
        (json.dumps(asdict(pair([(50, 0.1)], [(10, 0.2)]))), "runs of other conditions: device: "),
    ],
)
def test_a_file_of_something_else_or_of_other_conditions_is_refused(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "runs.jsonl"
    file.write_text(content)
    assert main(["bench", "against-optuna", "--dataset", "shapes", "--device", "cpu", "-o", str(file)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert file.read_text() == content


@pytest.mark.slow
def test_a_run_that_finds_nothing_is_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs.jsonl"
    typed = ["bench", "against-optuna", "--time", "1s", "--dataset", "shapes", "--device", "cpu", "-o", str(runs)]
    assert main(typed) == 1
    assert "the search ended with no trial after 1 s\n  give both more with --time" in capsys.readouterr().err
    assert not runs.exists()


@pytest.mark.slow
def test_both_sides_run_once_and_are_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = ["bench", "against-optuna", "--time", "100s", "--seeds", "1", "--dataset", "shapes", "--device", "cpu"]
    typed += ["--budget-params", "1M", "--json", "-o", str(tmp_path / "runs.jsonl")]
    assert main([*typed, "--html", str(tmp_path / "figure.html")]) == 0
    first = capsys.readouterr().out
    (run,) = json.loads(first)["runs"]
    assert run["plain"]["volumes"]
    assert run["igc_nas"]["volumes"]
    assert (tmp_path / "figure.html").stat().st_size > 1_000_000
    assert main(typed) == 0
    assert capsys.readouterr().out == first
