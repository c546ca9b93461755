"""The commands as functions: their arguments are the commands' options, and what they return."""

import json
import pydoc
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch

import igc_nas
from igc_nas.api.export import ExportOptions
from igc_nas.api.finals import FinalsOptions
from igc_nas.api.measure import MeasureOptions
from igc_nas.api.options import parameters_of, request_of
from igc_nas.api.report import ReportOptions
from igc_nas.api.search import SearchOptions
from igc_nas.api.train import TrainOptions
from igc_nas.cli.export import export
from igc_nas.cli.finals import finals
from igc_nas.cli.measure import measure
from igc_nas.cli.report import report
from igc_nas.cli.search import search
from igc_nas.cli.study_flags import SearchRequest
from igc_nas.cli.train import train
from igc_nas.errors import ConfigError, StudyError, UsageError
from igc_nas.nn.device import find_devices
from igc_nas.study.study import Study, load_study
from tests.support.commands import Command
from tests.support.searches import evaluate, spec


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of studies with `made`, of six invented trials on this machine's CPU."""
    folder = tmp_path_factory.mktemp("studies")
    question = spec(name="made", budget=igc_nas.Budget(params=3000))
    latency = question.latency.model_copy(update={"device": find_devices("cpu")[0].name})
    question = question.model_copy(update={"latency": latency})
    run = igc_nas.Run(folder / "made", trials=6)
    assert len(list(igc_nas.search(question, run, evaluate=evaluate))) == 6
    return folder


@pytest.fixture(scope="module")
def made(root: Path) -> Study:
    return load_study("made", root)


# Arguments.

OF_PYTHON = {"json", "help"}
COMMANDS = [
    (search, SearchOptions, OF_PYTHON),
    (export, ExportOptions, {"what", "out", "o"}),
    (finals, FinalsOptions, {*OF_PYTHON, "study"}),
    (report, ReportOptions, {*OF_PYTHON, "study"}),
    (measure, MeasureOptions, {*OF_PYTHON, "arch", "study"}),
    (train, TrainOptions, {*OF_PYTHON, "arch"}),
]


@pytest.mark.parametrize(("command", "options", "others"), COMMANDS, ids=[str(c[0].name) for c in COMMANDS])
def test_each_option_of_a_command_is_an_argument(command: click.Command, options: type, others: set[str]) -> None:
    names = parameters_of(command)
    assert options.__annotations__.keys() <= names.keys()
    covered = {names[name].name for name in options.__annotations__} | {
        names[name].name for name in names.keys() & others
    }
    assert covered == {parameter.name for parameter in command.params}
    shown = getattr(igc_nas, str(command.name)).__signature__
    assert options.__annotations__.keys() <= shown.parameters.keys()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, ""),
        ({"budget_params": 2_000_000, "trials": 24, "dataset": "c"}, "--budget-params 2M --trials 24 --dataset c"),
        (
            {"budget_params": 2e6, "budget_latency": 1.5, "time": 90.0},
            "--budget-params 2M --budget-latency 1.5ms --time 90",
        ),
        ({"budget_macs": np.int64(60_000_000), "seed": np.int64(3)}, "--budget-macs 60M --seed 3"),
        ({"params": (None, "2M"), "macs": (1e6, 10_000_000)}, "--params ..2M --macs 1M..10M"),
        ({"objectives": ("error", "macs")}, "--objectives error,macs"),
        ({"recipe": {"epochs": 3, "rungs": [9, 20]}}, "--recipe epochs=3 --recipe 'rungs=[9, 20]'"),
        (
            {"recipe": {"epochs": np.int64(3), "rungs": np.array([9, 20]), "lr": np.float64(0.5)}},
            "--recipe epochs=3 --recipe 'rungs=[9, 20]' --recipe lr=0.5",
        ),
        ({"recipe": {"dtype": "bfloat16", "flip": False}}, """--recipe 'dtype="bfloat16"' --recipe flip=false"""),
        ({"recipe": "epochs=3", "baselines": ["igc", "a"]}, "--recipe epochs=3 --baselines igc --baselines a"),
        ({"studies_dir": Path("-x y"), "quiet": True, "goal": None}, "'--studies-dir=-x y' --quiet"),
    ],
)
def test_arguments_are_read_as_the_command_line_reads_them(given: dict[str, Any], words: str) -> None:
    asked = request_of(search, SearchRequest, given)
    assert asdict(asked) == search.make_context("search", shlex.split(words)).params


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"budget_params": -3}, UsageError, "not a positive whole number"),
        ({"budget_params": "two"}, UsageError, "not a positive whole number"),
        ({"time": float("nan")}, UsageError, "not a duration"),
        ({"sampler": "best"}, UsageError, "known-cost"),
        ({"trials": 0}, UsageError, "trials"),
        ({"ray_address": "127.0.0.1:6379"}, UsageError, "for a search on a Ray cluster"),
        ({"recipe": {"epoch": 3}}, ConfigError, "did you mean epochs"),
        ({"recipe": {"epochs": Path("3")}}, UsageError, "is no value of a recipe"),
        ({"enqueue": igc_nas.load_architecture("igcv3-d-cifar")}, UsageError, "enqueue takes names .* no ArchConfig"),
        ({"baselines": [igc_nas.load_architecture("igcv3-d-cifar")]}, UsageError, "baselines takes names"),
        ({"deterministic": "no"}, UsageError, "deterministic: 'no' is text"),
        ({"budget": "2M"}, TypeError, "unexpected keyword argument 'budget'"),
    ],
)
def test_a_wrong_argument_is_named(given: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        igc_nas.search(space="tiny", dataset="shapes", **given)


def test_numbers_of_numpy_are_numbers() -> None:
    classes, side = np.int64(7), np.uint16(64)
    assert igc_nas.cost("igcv3-d-cifar", classes=classes, image_size=side) == igc_nas.cost(
        "igcv3-d-cifar", classes=7, image_size=64
    )
    space = igc_nas.load_space("tiny", classes=classes, image_size=side, budget_params=np.int64(3000))
    assert space.feasible.lightest() == igc_nas.load_space("tiny", classes=7, image_size=64).feasible.lightest()
    assert igc_nas.space_facts("tiny", classes=classes, image_size=side) == igc_nas.space_facts(
        "tiny", classes=7, image_size=64
    )
    json.dumps(igc_nas.space_facts("tiny", classes=classes, image_size=side))


# What they return.


def test_a_search_that_is_complete_is_returned_as_a_study(root: Path, made: Study) -> None:
    torch.set_num_threads(2)
    try:
        found = igc_nas.search(study="made", studies_dir=root, trials=6, dataset="shapes", quiet=True)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert found.front() == made.front()
    with pytest.raises(StudyError, match="exists with other settings"):
        igc_nas.search(study="made", studies_dir=root, trials=6, budget_params="2M", quiet=True)


def test_options_of_a_search_have_names() -> None:
    with pytest.raises(UsageError, match="'tiny' is no StudySpec"):
        igc_nas.search("tiny")


def test_a_study_as_a_table_a_figure_and_its_best(made: Study) -> None:
    table = made.frame()
    assert list(table["front"]) == [c in made.front() for c in made.candidates]
    assert made.best() == made.pick("best-error")
    limit = sorted(c.cost.params for c in made.candidates)[2]
    assert made.best(params=None) == made.best()
    assert made.best(params=limit) == made.best(params=str(limit)) == made.pick(f"under:params={limit}")
    assert made.best(latency=100) == made.best(latency="100ms")
    with pytest.raises(UsageError, match="not a limit"):
        made.best(accuracy=0.9)
    figure = made.plot("macs", "error")
    assert sorted(figure.data[0].x) == sorted(c.cost.macs for c in made.candidates)
    with pytest.raises(UsageError, match="unknown objective"):
        made.plot("size")


def test_export_returns_text_or_the_path(made: Study, root: Path, tmp_path: Path) -> None:
    best = made.best()
    assert igc_nas.ArchConfig.from_toml(str(made.export(pick="best-error"))) == best.arch
    path = made.export(tmp_path / "arch.toml", pick="best-error")
    assert path == tmp_path / "arch.toml"
    for what in (path, best, best.arch, f"{root / 'made'}:{best.trial}"):
        assert igc_nas.load_architecture(tmp_path / "arch.toml") == igc_nas.ArchConfig.from_toml(
            str(igc_nas.export(what))
        )
    assert "class Network" in str(igc_nas.export(best, format="py"))
    for wrong, words in (({"format": "onnx"}, "--untrained"), ({"pick": "best"}, "unknown pick")):
        with pytest.raises(UsageError, match=words):
            made.export(tmp_path / "x.toml", **wrong)  # type: ignore[arg-type]


def test_cost_and_measure_take_whatever_names_an_architecture(made: Study, root: Path) -> None:
    best = made.best()
    for what in (best, best.arch, f"{root / 'made'}:{best.trial}"):
        assert igc_nas.cost(what) == best.cost
    assert igc_nas.cost("igcv1-l4m8-d8", classes=100, check=True).params > igc_nas.cost("igcv1-l4m8-d8").params
    latency = igc_nas.measure(best, runtime="eager", forms="factored")
    assert (latency.runtime, latency.form, latency.batch) == ("eager", "factored", 1)
    with pytest.raises(UsageError, match="--batch does not go with --study"):
        igc_nas.measure(study=made, batch=3)
    with pytest.raises(UsageError, match="one of the two"):
        igc_nas.measure()  # type: ignore[call-overload]


def test_a_dry_run_of_finals_trains_nothing(made: Study, capsys: pytest.CaptureFixture[str]) -> None:
    assert igc_nas.finals(made, top=2, dtype="float32", dry_run=True) is None
    assert "2 networks" in capsys.readouterr().err
    assert made.finals == ()


SCRIPT = """
import igc_nas
study = igc_nas.search(space="tiny", dataset="shapes", trials=2, workers=1, studies_dir="s", forms="factored",
                       latency_runtime="eager", recipe={"epochs": 1, "train_size": 320, "held_out": 100})
print(len(study.candidates), study.export(study.folder / "arch.toml").name)
"""


@pytest.mark.slow
def test_a_script_without_a_guard_searches(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "2 arch.toml\n"), done.stderr
    assert "trial    1" in done.stderr


# What is read: a study's status, report and page, a space's counts.


def test_status_report_page_and_counts_are_those_of_the_commands(
    made: Study, root: Path, cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for study in (made, "made"):
        assert igc_nas.status(study, studies_dir=root).to_dict() == cli("status", root / "made", "--json").json
    found = json.loads(json.dumps(igc_nas.report("igc_cifar10_2m")))
    assert found == cli("report", "igc_cifar10_2m", "--json").json
    page = igc_nas.dashboard(made, "igc_table", out="page.html", studies_dir=root)
    assert page == Path("page.html")
    assert "made" in page.read_text(encoding="utf-8")
    with pytest.raises(UsageError, match="page of several studies"):
        igc_nas.dashboard(made, made)
    with pytest.raises(UsageError, match="no study"):
        igc_nas.dashboard()
    facts = json.loads(json.dumps(igc_nas.space_facts("tiny", budget_params=3_000)))
    assert facts == cli("space", "tiny", "--budget-params", "3k", "--json").json
    with pytest.raises(ConfigError, match="nosuch"):
        igc_nas.space_facts("nosuch")


def test_a_page_is_served_while_python_goes_on(made: Study, root: Path) -> None:
    with igc_nas.dashboard("made", serve=True, port=0, studies_dir=root) as server:
        with urllib.request.urlopen(f"{server.url}data.json") as answer:  # noqa: S310
            assert json.load(answer)["page"]["studies"][0]["name"] == "made"
        assert server.url in repr(server)
        assert server.url in server._repr_html_()
        port = int(server.url.rstrip("/").rpartition(":")[2])
        with pytest.raises(UsageError, match=f"port {port} of 127.0.0.1 is not available"):
            igc_nas.dashboard(made, serve=True, port=port)
    server.close()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(server.url)  # noqa: S310
    with pytest.raises(UsageError, match="serve=True writes no file"):
        igc_nas.dashboard(made, serve=True, out="page.html")  # type: ignore[call-overload]


@pytest.mark.parametrize("name", ["Budget", "StudySpec", "ArchConfig", "Candidate", "Recipe"])
def test_pydoc_shows_a_records_own_names_and_keys(name: str) -> None:
    text = pydoc.plain(pydoc.render_doc(getattr(igc_nas, name)))
    assert "pydantic_" not in text
    assert "model_" not in text
    assert "FieldInfo" not in text
    signature = text.splitlines()[3]
    assert all(f"{field.alias or key}: " in signature for key, field in getattr(igc_nas, name).model_fields.items())
    assert len(text.splitlines()) < 100
