"""The command `igc-nas report`."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from igc_nas.study.study import Study
from tests.support.commands import Command, refused
from tests.support.families import LONG, RECIPE, RUNGS, blurred, by_quality, by_size, make, make_papers, stop, write

N = 40

pytestmark = pytest.mark.usefixtures("nothing_around")


def seeded(study: Study, seed: int) -> Study:
    return Study(study.spec.model_copy(update={"seed": seed}), study.trials)


@pytest.fixture
def short(tmp_path: Path) -> Path:
    """`studies/short` with a longer training, another seed and the papers' networks in its folder."""
    folder = tmp_path / "studies" / "short"
    rungs = {at: blurred(by_quality, noise, at) for at, noise in zip(RUNGS, (0.6, 0.25), strict=True)}
    write(folder, make(N, blurred(by_quality, 0.1, 0), rungs))
    write(folder / "long", make(N, by_quality, recipe=LONG))
    write(folder / "seed1", seeded(make(N, blurred(by_quality, 0.1, 1)), 1))
    write(folder / "papers", make_papers(lambda accuracy: 1 - accuracy))
    return folder


def test_a_report_names_what_it_compares_and_the_results(short: Path, cli: Command) -> None:
    said = cli("report", "short").text
    for words in (
        "short against short/long: 40 architectures in both",
        "8,000 images: 2 epochs of 4,000 images at 32 x 32 pixels, batch 64, lr 0.1, float32",
        "80,000 images: 20 epochs of 4,000 images",
        "10 times the images of the proxy",
        "both have the same seed, so they are not independent",
        "The rung (2,000 images)",
        "The end (8,000 images) ranks better than the parameter count",
        "the intervals exclude each other; paired, the difference is +",
        "better than chance",
        "random (expected)",
        "Two seeds of the proxy (0, and 1 in short/seed1), 40 architectures: tau 0.",
        "IGCV1 Figure 3 (i) (arXiv 1707.02725; mean of 5 runs;",
        "9 of 9 networks in short/papers, on cifar10",
    ):
        assert words in said
    for row in ("rung 2,000 40 ", "end 8,000 40 ", "seed of short/seed1 8,000 40 ", "params 40 ", "MACs 40 "):
        assert row in said


def test_the_same_as_json(short: Path, cli: Command) -> None:
    found = cli("report", "short", "--json").json
    assert (found["study"]["name"], found["reference"]["name"], found["shared"]) == ("short", "short/long", N)
    kinds = [row["kind"] for row in found["predictors"]]
    assert kinds == ["rung", "rung", "end", "loss", "surrogate", "target", "seed", "params", "macs", "random"]
    end = found["predictors"][2]
    assert end["overall"]["low"] < end["overall"]["tau"] < end["overall"]["high"]
    assert end["versus_params"] == "above"
    assert {figure["figure"]: figure["trained"] for figure in found["figures"]} == {
        "IGCV1 Figure 3 (i)": 9, "IGCV1 Figure 3 (ii)": 11, "IGCV2 Figure 3": 6,
    }  # fmt: skip
    assert found["repeats"][0]["study"] == "short/seed1"


def test_a_proxy_no_better_than_the_parameter_count_is_called_so(tmp_path: Path, cli: Command) -> None:
    write(tmp_path / "studies" / "short", make(N, by_size))
    write(tmp_path / "studies" / "same", make(N, blurred(by_size, 0.02, 0), recipe=LONG, name="same"))
    write(tmp_path / "studies" / "other", make(N, by_quality, name="other"))
    said = cli("report", "short", "--reference", "same").text
    assert "The end (8,000 images) is no better than the parameter count by these intervals: tau 0." in said
    assert "paired, the difference is +0.00 [+0.00, +0.00]" in said
    said = cli("report", "other", "--reference", "same").text
    assert "The end (8,000 images) is no better than the parameter count; it is worse: tau " in said
    assert "Inside bins of like parameters: tau" in said


def test_a_study_alone_is_compared_with_its_own_end(tmp_path: Path, cli: Command) -> None:
    write(tmp_path / "studies" / "short", stop(make(N, by_quality, {2000: blurred(by_quality, 0.3, 0)}), at=30))
    said = cli("report", "short").text
    for words in (
        "short against its own end: 30 architectures",
        "no study in its folder trains longer",
        "10 trainings were pruned at a rung and have no end",
        "The rung (2,000 images)",
        "short/* has no study of another seed",
        "IGCV2 Figure 3: none of its 6 networks is trained by this recipe",
    ):
        assert words in said
    write(tmp_path / "studies" / "short" / "long", make(N, by_quality, recipe=LONG))
    assert "10 trainings were pruned at a rung: they count there, and not at the end" in cli("report", "short").text
    bare = make(N, by_quality, name="bare")
    longer = bare.trials[0].model_copy(update={"number": N, "longer_of": 0})
    for study, promoted in (
        (bare, ""),
        (
            Study(bare.spec, (*bare.trials, longer)),
            "not compared with its 1 longer training of networks that were singled out",
        ),
    ):
        shutil.rmtree(tmp_path / "studies" / "bare", ignore_errors=True)
        write(tmp_path / "studies" / "bare", study)
        said = cli("report", "bare").text
        assert "no rungs, and no study in its folder trains longer: only params and MACs can be judged" in said
        assert "The rungs are of the same trainings" not in said
        assert ("longer training" in said, promoted in said) == (bool(promoted), True)


def test_differences_of_data_and_length_are_named(short: Path, cli: Command) -> None:
    other = make(N, by_quality, recipe=RECIPE | {"epochs": 1}, name="brief", dataset_sha256="1" * 64, dataset="shapes")
    write(short.parent / "brief", other)
    said = cli("report", "short", "--reference", "brief").text
    assert "0.5 times the images of the proxy: NOT longer" in said
    assert "DIFFERENT DATA" in said
    assert "SYNTHETIC" in said


def test_few_points_of_a_figure_are_not_ranked(short: Path, cli: Command) -> None:
    papers = make_papers(lambda accuracy: 1 - accuracy)
    lines = [trial.to_json() for trial in papers.trials[:3]]
    (short / "papers" / "trials.jsonl").write_text("\n".join(lines) + "\n")
    said = cli("report", "short").text
    assert "3 of 9 networks in short/papers, on cifar10: too few to rank" in said


def test_a_hostile_name_cannot_write_on_the_terminal(short: Path, cli: Command) -> None:
    text = (short / "study.toml").read_text()
    (short / "study.toml").write_text(text.replace('name = "short"', 'name = "\\u001b]0;title\\u0007\\u202e\\n"'))
    for flags in ((), ("--json",)):
        answer = cli("report", "short", *flags)
        assert answer.status == 0
        assert answer.out.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        ("report", 2, ("Missing argument",)),
        ("report nothing", 4, ("unknown study 'nothing'",)),
        ("report shrt", 4, ("did you mean short?",)),
        ("report short --reference nothing", 4, ("unknown study 'nothing'",)),
        ("report short --reference nowhere/long", 4, ("it has no study.toml",)),
        ("report short --reference", 2, ("--reference",)),
        ("report short extra", 2, ("unexpected extra argument",)),
        ("report short --studies-dir nowhere", 4, ("unknown study",)),
        ("report few", 4, ("few has 4 completed trials", "igc-nas search --study few --trials 5")),
        ("report short --reference few", 4, ("short and few have 4 architectures in common", "--study few")),
        ("report short --reference studies/short/papers", 4, ("0 architectures in common",)),
        ("report broken", 4, ("study.toml",)),
    ],
)
def test_wrong_input_is_one_error(line: str, status: int, words: tuple[str, ...], short: Path, cli: Command) -> None:
    write(short.parent / "few", make(4, by_quality, name="few"))
    write(short.parent / "broken", make(6, by_quality, name="broken"))
    write(short.parent / "broken" / "long", make(6, by_quality, name="broken"))
    (short.parent / "broken" / "long" / "study.toml").write_text("[")
    refused(cli(*line.split()), status, *words)


def test_a_report_loads_neither_torch_nor_optuna_nor_plotly_nor_pandas(short: Path) -> None:
    code = """
import sys
from igc_nas.cli import main
for arguments in (["report", "short"], ["report", "short", "--json"]):
    loaded = sorted({"torch", "optuna", "plotly", "pandas"} & sys.modules.keys())
    print(main(arguments), loaded, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["0 []"] * 2
