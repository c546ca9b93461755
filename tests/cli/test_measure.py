"""The commands `measure` and `bench`, and the option `--latency-command`."""

import io
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import igc_nas
from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
from igc_nas.cli import main
from igc_nas.cli.loading import read_architecture
from igc_nas.cli.measure import latency_lines
from igc_nas.cli.program import program
from igc_nas.cli.study_flags import SearchRequest, latency_conditions
from igc_nas.engine.search import Run, search
from igc_nas.engine.store import Store, replace_latencies
from igc_nas.errors import ConfigError, UsageError
from igc_nas.evaluation import latency as latency_module
from igc_nas.nn.device import cpu_name
from igc_nas.nn.lowering import variants
from igc_nas.space.budget import Budget
from igc_nas.study.defaults import usable_cores
from igc_nas.study.spec import StudySpec
from igc_nas.study.study import load_study
from tests.support.builders import one_line
from tests.support.caches import own_cache
from tests.support.commands import Command, refused
from tests.support.searches import evaluate, latency, searched, spec

NETWORK = "igcv1-l8m2-d8"
ALL_FORMS = ("factored", "folded", "semidense", "dense", "mixed")
MARK = "no-such-word-elsewhere"
STUB = """
import json, sys
from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import cost_of
arch = ArchConfig.from_toml(sys.stdin.read(), "stdin")
ms = cost_of(arch).macs / 5e5
print(json.dumps({
    "median_ms": ms, "low_ms": ms, "high_ms": ms, "normalised_ms": ms, "reference_ms": 1.0, "noisy": False,
    "samples_ms": [ms] * 3, "reference_samples_ms": [1.0] * 3, "runtime": "eager", "batch": 1, "dtype": "float32",
    "memory_format": "channels_last", "input": arch.input,
    "conditions": {"device": "a small board", "threads": 2, "torch": "0", "igc_nas": "0"},
} | json.loads(sys.argv[2] if len(sys.argv) > 2 else "{}")))
"""
"""Stands for `igc-nas measure --json -` on another machine: prints a latency proportional to the MACs."""
EAGER = ("--device", "cpu", "--runtime", "eager")
SEARCH = (
    "search", "--space", "tiny", "--dataset", "shapes", "--workers", "1", "--device", "cpu", "--quiet",
    "--forms", "factored", "--latency-runtime", "eager",
    "--recipe", "epochs=1,train_size=200,held_out=100,resolution=8",
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("times_of_the_module", "nothing_around", "few_rounds")


@pytest.fixture
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Few rounds; torch's threads as before."""
    package = str(Path(igc_nas.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))))
    monkeypatch.setattr(latency_module, "MOST_ROUNDS", latency_module.LEAST_ROUNDS)
    monkeypatch.setattr(variants, "CAP_S", 0.001)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# One architecture.


def test_a_line_for_each_form(cli: Command) -> None:
    answer = cli("measure", NETWORK, *EAGER)
    assert (answer.status, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert re.match(r"[\d.]+ ms, raw  \(95 % interval [\d.]+ to [\d.]+, n = \d+\)$", lines[0])
    header = next(i for i, line in enumerate(lines) if line.startswith("form  "))
    for word in ("median", "interval", "MACs", "params"):
        assert word in lines[header]
    rows = [line.split() for line in lines[header + 1 : header + 6]]
    assert [row[0] for row in rows] == [*ALL_FORMS]
    for row in rows:
        assert float(row[1]) > 0
        assert re.fullmatch(r"ms( [\d.]+-[\d.]+)?", " ".join(row[2:-4])), "a dropped form has no interval"
        assert re.fullmatch(r"[\d.]+[kMG]?", row[-4])
    assert rows[0][-1] == "1.00", "times as fast as the factored"
    cost = cost_of(igc_nas.load_architecture(NETWORK))
    assert f"{cost.macs:,} MACs and {cost.params:,} parameters in the factored form" in answer.out
    assert f"on {cpu_name()}" in answer.out
    assert re.search(r"^form (factored|folded|semidense|dense|mixed); ", answer.out, re.MULTILINE)


def test_noise_is_shown_with_its_reason() -> None:
    arch = igc_nas.load_architecture(NETWORK)
    noisy = latency(1.5, noisy=True, noise=("other processes kept 1.3 cores busy",), input=arch.input)
    lines = latency_lines(noisy, arch)
    assert lines[1].startswith("NOISY: other processes kept 1.3 cores busy")
    assert lines[1].endswith("; measure again when the machine is quiet")


def test_the_record_as_json(cli: Command) -> None:
    found = cli("measure", NETWORK, *EAGER, "--json").json
    assert 0 < found["low_ms"] <= found["median_ms"] <= found["high_ms"]
    assert isinstance(found["noisy"], bool)
    assert found["noisy"] is bool(found["noise"])
    assert (found["runtime"], found["batch"], found["dtype"]) == ("eager", 1, "float32")
    assert tuple(found["forms"]) == ALL_FORMS
    assert found["form"] in found["forms"]
    for form in found["forms"].values():
        assert set(form) == {"params", "macs", "weight_bytes", "median_ms", "low_ms", "high_ms"}
        if form["low_ms"] is not None:
            assert 0 < form["low_ms"] <= form["median_ms"] <= form["high_ms"]
    chosen = found["forms"][found["form"]]
    assert found["deployed_params"] == chosen["params"]
    assert found["deployed_macs"] == chosen["macs"]
    assert found["weight_bytes"] == chosen["weight_bytes"]
    assert found["median_ms"] == pytest.approx(statistics.median(found["samples_ms"]), abs=1e-5), "of fresh samples"
    cost = cost_of(ArchConfig.parse(found["arch"]))
    assert (found["params"], found["macs"], found["activations"]) == (cost.params, cost.macs, cost.activations)
    assert found["conditions"]["device"] == cpu_name()
    assert found["n"] == len(found["samples_ms"]) == len(found["reference_samples_ms"])


def test_only_the_factored_form(cli: Command) -> None:
    found = cli("measure", NETWORK, *EAGER, "--forms", "factored", "--json").json
    assert (found["form"], found["forms"]) == ("factored", {})
    assert found["deployed_params"] == found["params"]
    text = cli("measure", NETWORK, *EAGER, "--forms", "factored").out
    assert "form factored" in text
    assert "median ms" not in text


def test_only_forms_within_a_budget(cli: Command) -> None:
    every = cli("measure", NETWORK, *EAGER, "--json").json
    assert max(form["params"] for form in every["forms"].values()) > 30_000 > every["params"]
    found = cli("measure", NETWORK, *EAGER, "--budget-params", "30k", "--json").json
    assert {"factored", "folded"} <= set(found["forms"])
    assert "dense" not in found["forms"]
    assert all(form["params"] <= 30_000 for form in found["forms"].values())
    assert found["deployed_params"] <= 30_000


def test_batch_threads_and_classes(cli: Command) -> None:
    flags = ("--batch", "3", "--threads", "2", "--classes", "100", "--forms", "factored", "--device", "cpu")
    found = cli("measure", NETWORK, *flags, "--json").json
    assert (found["batch"], found["conditions"]["threads"], found["arch"]["classes"]) == (3, 2, 100)


@pytest.mark.parametrize(
    "line",
    ["measure {} --threads {} --latency-runtime native --cold-cache", "train {} --threads {} --dataset cifar10"],
)
def test_more_threads_than_cores_are_named(line: str, cli: Command) -> None:
    answer = cli(*line.format(NETWORK, usable_cores() + 1).split())
    assert f"--threads {usable_cores()} is as fast" in " ".join(answer.err.split())
    assert answer.status  # what is wrong with the rest of the line comes after that


def test_another_runtime(cli: Command) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    flags = ("--device", "cpu", "--forms", "factored", "--json")
    assert cli("measure", NETWORK, "--runtime", "onnxruntime", *flags).json["runtime"] == "onnxruntime"


def test_an_architecture_on_stdin(tmp_path: Path) -> None:
    """Whatever the terminal's encoding is."""
    arch = igc_nas.load_architecture(NETWORK, classes=7)
    command = [sys.executable, "-m", "igc_nas", "measure", "-", "--device", "cpu", "--forms", "factored", "--json"]
    done = subprocess.run(
        command, input=arch.to_toml().encode(), capture_output=True, check=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert ArchConfig.parse(json.loads(done.stdout)["arch"]) == arch
    done = subprocess.run(command, input=b"\xff\xfe\x00", capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"igc-nas: stdin is not UTF-8 text\n")


@pytest.mark.parametrize(
    "data", [b"", b"nonsense", b"a = [1", b"stem = 3", b"\0", b"[stem]\nwidth = 1e99", b"[[" * 20_000, b"\xff\xfe"]
)
def test_an_open_file_that_holds_no_architecture(data: bytes) -> None:
    with pytest.raises(ConfigError, match="stdin") as raised:
        read_architecture(io.BytesIO(data), "stdin", None)
    one_line(raised)


def test_measuring_saves_the_timing_cache(cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_cache(tmp_path / "cache", monkeypatch)
    cli("measure", NETWORK, *EAGER, "--json")
    (table,) = (tmp_path / "cache").rglob("*.json")
    assert json.loads(table.read_text())["times"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("measure",), ("name an architecture or a --study",)),
        (("measure", NETWORK, "--study", "made"), ("one of the two", "igc-nas measure igcv1-l24m2-d20")),
        (("measure", NETWORK, "--keep"), ("--keep goes with --study",)),
        (("measure", NETWORK, "--runtime", "nonsense"), ("--runtime", "onnxruntime")),
        (("measure", NETWORK, "--forms", "dense"), ("--forms",)),
        (("measure", NETWORK, "--budget-params", "0"), ("--budget-params",)),
        (("measure", NETWORK, "--budget-params", "few"), ("--budget-params",)),
        (("measure", NETWORK, "--threads", "0"), ("--threads",)),
        (("measure", "nothing"), ("is not an architecture",)),
        (("bench", "latency", "--count", "2"), ("--count",)),
        (("bench", "deploy", "--runtime", "nonsense"), ("--runtime",)),
        (("bench", "deploy", "--batch", "0"), ("--batch",)),
        (("bench", "train", "--resolution", "7"), ("--resolution",)),
        (("bench", "train", "--network", "igcv1-l24"), ("not a network of the benchmark", "igcv1-l24m2")),
        (("bench", "deploy", "--rank", "9", "--network", "igcv1-l24m2"), ("does not go with --network",)),
        (("bench", "search", "--trials", "1"), ("--trials",)),
        (("bench", "deploy", "--rank", "2"), ("--rank",)),
        (("bench", "deploy", "--runtime", "eager", "--multiplied-out"), ("--runtime native",)),
        (("bench", "search", "--device", "tpu"), ("unknown device",)),
        (("bench", "workers", "--trials", "1"), ("--trials",)),
        (("bench", "workers", "--dataset", "mnist"), ("--dataset",)),
        (("bench", "engine", "--workers", "0"), ("--workers",)),
        (("bench", "engine", "--trials", "1"), ("--trials",)),
        (("bench", "nothing"), ("No such command",)),
    ],
)
def test_wrong_options_are_refused(arguments: tuple[str, ...], words: tuple[str, ...], cli: Command) -> None:
    refused(cli(*arguments), 2, *words)


@pytest.mark.parametrize("command", [("measure", NETWORK), ("bench", "deploy")])
def test_a_runtime_that_is_not_installed(
    command: tuple[str, ...], cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused(cli(*command, "--device", "cpu", "--runtime", "onnxruntime"), 2, "pip install 'igc-nas[onnx]'")


def test_a_budget_that_no_form_is_within(cli: Command) -> None:
    answer = cli("measure", NETWORK, *EAGER, "--budget-params", "10")
    refused(answer, 3, "no form of the network has at most 10 parameters", "the smallest has")


# A study's candidates.


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A study `made` of four invented trials, on this machine's CPU, in `studies` of the working folder."""
    question = spec(name="made", budget=Budget(params=3000))
    latency = question.latency.model_copy(update={"device": cpu_name()})
    return searched(tmp_path / "studies" / "made", 4, question.model_copy(update={"latency": latency}))


def test_a_study_is_measured_again(made: Path, cli: Command) -> None:
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    answer = cli("measure", "--study", "made", "--json")
    found, study = answer.json, load_study(made)
    assert found["study"] == "made"
    assert [row["trial"] for row in found["rows"]] == [c.trial for c in study.candidates]
    for row, candidate in zip(found["rows"], study.candidates, strict=True):
        assert (row["id"], row["recorded_ms"]) == (candidate.id, candidate.latency.normalised_ms)
        assert 0 < row["normalised_low_ms"] <= row["normalised_ms"] <= row["normalised_high_ms"]
        assert row["deployed_params"] > 0
        assert row["noisy"] is bool(row["noise"])
        assert row["form"] in ALL_FORMS
    assert found["median_difference"] >= 0
    assert -1 <= found["rank_correlation"] <= 1
    assert [line.split()[0] for line in answer.err.splitlines()] == ["1/4", "2/4", "3/4", "4/4"]
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before, "a study is not changed by it"


def test_a_study_measured_again_as_a_table(made: Path, cli: Command) -> None:
    lines = cli("measure", "--study", "made").out.splitlines()
    assert lines[0].split() == ["trial", "recorded", "again", "change", "form"]
    for line, candidate in zip(lines[1:5], load_study(made).candidates, strict=True):
        assert line.split()[:2] == [str(candidate.trial), f"{candidate.latency.normalised_ms:.3f}"]
    assert re.fullmatch(r"median difference [\d.]+ % over 4 candidates; rank correlation -?[\d.]+", lines[-1])


def test_the_noise_of_a_study_measured_again(remote: Path, cli: Command, tmp_path: Path) -> None:
    noise = json.dumps({"noisy": True, "noise": ["the processor throttled"]})
    answer = cli("measure", "--study", "remote", "--latency-command", command_in(tmp_path, noise))
    assert [line.endswith(" ms noisy") for line in answer.err.splitlines()] == [True, True]
    assert [line for line in answer.out.splitlines() if "throttled" in line] == [
        f"* trial {number}: the processor throttled" for number in (0, 1)
    ]


def test_a_study_is_measured_under_its_own_budget(made: Path, cli: Command) -> None:
    rows = cli("measure", "--study", "made", "--json").json["rows"]
    every = cli("measure", "made:0", *EAGER, "--json").json["forms"]
    assert max(form["params"] for form in every.values()) > load_study(made).spec.budget.params
    assert all(row["deployed_params"] <= 3000 for row in rows)


def test_keep_records_latencies_that_are_no_longer_noisy(remote: Path, cli: Command, tmp_path: Path) -> None:
    first, second = load_study(remote).candidates
    replace_latencies(remote, {second.trial: second.latency.model_copy(update={"noisy": True})})
    command = command_in(tmp_path, json.dumps({"reference_ms": 2.0}))
    answer = cli("measure", "--study", "remote", "--keep", "--json", "--latency-command", command)
    (row,) = answer.json["rows"]
    assert row["trial"] == second.trial, "the first was quiet and is not measured"
    kept = load_study(remote).candidates
    assert kept[0].latency == first.latency
    assert (kept[1].latency.noisy, kept[1].latency.normalised_ms) == (False, row["normalised_ms"])


def test_keep_measures_nothing_if_no_candidate_is_noisy(made: Path, cli: Command) -> None:
    answer = cli("measure", "--study", "made", "--keep")
    assert (answer.status, answer.out) == (0, "")
    assert "none of the 4 latencies of made is noisy" in answer.err
    assert cli("measure", "--study", "made", "--keep", "--json").json["rows"] == []


def test_a_study_without_candidates_has_nothing_to_measure(cli: Command) -> None:
    Store(Path("studies/empty"), spec(name="empty")).close()
    refused(cli("measure", "--study", "empty"), 4, "empty has no completed trial yet")


def test_a_study_of_another_device_is_not_measured_here(cli: Command) -> None:
    list(search(spec(name="elsewhere"), Run(Path("studies/elsewhere"), trials=1), evaluate=evaluate))
    refused(cli("measure", "--study", "elsewhere"), 4, "the study's latencies are of stub")


def test_an_unknown_study_is_not_measured(cli: Command) -> None:
    refused(cli("measure", "--study", "nothing"), 4, "unknown study")


# Latency by a command.


def command_in(folder: Path, *words: str) -> str:
    path = folder / f"{MARK}.py"
    path.write_text(STUB, encoding="utf-8")
    return shlex.join([sys.executable, str(path), MARK, *words])


@pytest.fixture(scope="module")
def remote_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study `remote` of two trials whose latencies a command has measured, by real workers."""
    folder = tmp_path_factory.mktemp("remote")
    patch = pytest.MonkeyPatch()
    package = str(Path(igc_nas.__file__).parents[1])
    patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))))
    patch.setenv("IGC_NAS_DATA", str(folder / "data"))
    flags = ("--study", "remote", "--studies-dir", str(folder / "studies"), "--trials", "2")
    try:
        status = main([*SEARCH, "--latency-forms", "any", *flags, "--latency-command", command_in(folder)])
    finally:
        patch.undo()
    assert status == 0
    return folder / "studies" / "remote"


@pytest.fixture
def remote(remote_once: Path, tmp_path: Path) -> Path:
    """The same in `studies/remote` of the working folder."""
    return Path(shutil.copytree(remote_once, tmp_path / "studies" / "remote"))


def test_a_search_takes_its_latencies_from_the_command(remote: Path) -> None:
    study = load_study(remote)
    latency = study.spec.latency
    assert (latency.remote, latency.device, latency.threads) == (True, "a small board", 2)
    assert study.spec.reference_ms == 1.0
    assert len(study.candidates) == 2
    for candidate in study.candidates:
        assert candidate.latency.normalised_ms == candidate.cost.macs / 5e5
        assert candidate.latency.conditions.device == "a small board"
        assert candidate.score.conditions.device == cpu_name()
    ends = [cost_of(arch).macs / 5e5 for arch in (study.spec.feasible.lightest(), study.spec.feasible.heaviest())]
    assert study.spec.bounds["latency"] == tuple(ends)


def test_no_file_of_a_study_names_the_command(remote_once: Path) -> None:
    assert "remote = true" in (remote_once / "study.toml").read_text()
    files = [path for path in remote_once.rglob("*") if path.is_file()]
    assert {"study.toml", "study.db", "trials.jsonl"} <= {path.name for path in files}
    for path in files:
        data = path.read_bytes()
        for word in (MARK, sys.executable, "latency_command", "latency-command"):
            assert word.encode() not in data, path
            assert word.encode("utf-16-le") not in data, path


def test_a_remote_study_is_not_continued_without_the_command(remote: Path, cli: Command) -> None:
    before = (remote / "trials.jsonl").read_bytes()
    refused(cli("search", "--study", "remote", "--trials", "3"), 4, "another machine's", "give --latency-command")
    refused(cli("measure", "--study", "remote"), 4, "measured by a command", "--latency-command")
    assert (remote / "trials.jsonl").read_bytes() == before


def test_a_remote_study_is_continued_with_the_command(
    remote: Path, cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The study has enough trials already, so the command is not started."""
    flags = (*SEARCH, "--latency-forms", "any", "--study", "remote", "--trials", "2")
    found = cli(*flags, "--latency-command", "never started", "--json").json
    assert found["completed"] == 2
    monkeypatch.setenv("IGC_NAS_LATENCY_COMMAND", "never started")
    assert cli(*flags, "--json").json == found
    assert cli("search", "--study", "remote", "--trials", "2", "--json").json == found


def test_a_remote_study_is_measured_again_by_the_command(
    remote: Path, cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = command_in(tmp_path, json.dumps({"reference_ms": 2.0}))
    found = cli("measure", "--study", "remote", "--json", "--latency-command", command).json
    for row in found["rows"]:
        assert row["normalised_ms"] == pytest.approx(row["recorded_ms"] / 2), "in the study's milliseconds"
    assert found["rank_correlation"] is None, "two candidates have no rank correlation"
    monkeypatch.setenv("IGC_NAS_LATENCY_COMMAND", command)
    assert cli("measure", "--study", "remote", "--json").json == found
    wrong = command_in(tmp_path, json.dumps({"batch": 2}))
    refused(cli("measure", "--study", "remote", "--latency-command", wrong), 1, "batch 2; the study's is 1")


def test_a_study_of_this_machine_is_not_continued_by_a_command(
    made: Path, cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (made / "trials.jsonl").read_bytes()
    flags = ("search", "--study", "made", "--trials", "5")
    words = ("made are this machine's", "leave out --latency-command")
    refused(cli(*flags, "--latency-command", command_in(tmp_path)), 4, *words)
    monkeypatch.setenv("IGC_NAS_LATENCY_COMMAND", command_in(tmp_path))
    refused(cli(*flags), 4, *words)
    assert (made / "trials.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        ("igc-no-such-program", 2, "cannot be started"),
        ("''", 2, "cannot be started"),
        (" ", 2, "is empty"),
        ("'open", 2, "No closing quotation"),
        (shlex.join([sys.executable, "-SE", "-c", "raise SystemExit(3)"]), 1, "status 3"),
        (shlex.join([sys.executable, "-SE", "-c", "print('{}')"]), 1, "no measurement"),
    ],
)
@pytest.mark.parametrize("by", ["flag", "environment"])
def test_a_command_that_fails_leaves_no_study(
    command: str, status: int, words: str, by: str, cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (*SEARCH, "--study", "s", "--trials", "1")
    if by == "flag":
        answer = cli(*flags, "--latency-command", command)
    else:
        monkeypatch.setenv("IGC_NAS_LATENCY_COMMAND", command)
        answer = cli(*flags)
    refused(answer, status, words)
    assert not Path("studies").exists()


def test_the_command_must_measure_with_the_requested_runtime(cli: Command, tmp_path: Path) -> None:
    """Refused if the command measures with another runtime."""

    def measured(requested: str | None, **printed: str) -> StudySpec:
        command = command_in(tmp_path, json.dumps(printed))
        new_study = spec(name="s", latency={"runtime": requested or "eager"})
        request = SearchRequest(latency_command=command, latency_runtime=requested)
        return latency_conditions(new_study, request, new=True)

    with pytest.raises(UsageError, match="the latency command measures with eager") as raised:
        measured("onnxruntime")
    assert raised.value.hint == "add --runtime onnxruntime to it"
    assert measured("onnxruntime", runtime="onnxruntime").latency.runtime == "onnxruntime"
    assert measured(None, runtime="onnxruntime").latency.runtime == "onnxruntime", "no other runtime was requested"
    flags = ("--latency-runtime", "onnxruntime", "--latency-command", command_in(tmp_path))
    answer = cli(*SEARCH, "--study", "s", "--trials", "1", *flags)
    refused(answer, 2, "measures with eager", "--runtime onnxruntime")
    assert not Path("studies").exists()


# Benchmarks.


@pytest.mark.parametrize("command", ["train", "deploy", "latency", "search", "sampler", "workers", "engine"])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_bench_has_help(command: str, flag: str, cli: Command) -> None:
    answer = cli("bench", command, flag)
    assert (answer.status, answer.err) == (0, "")
    assert answer.out.startswith(f"Usage: igc-nas bench {command} ")
    assert "--json" in answer.out
    assert command in cli("bench", "--help").out


def test_the_benches_are_these() -> None:
    named = ["against-optuna", "deploy", "engine", "latency", "sampler", "search", "train", "workers"]
    assert sorted(program.commands["bench"].commands) == named


@pytest.mark.parametrize("as_json", [True, False])
def test_a_bench_prints_its_report(as_json: bool, cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from igc_nas.bench import deployment

    arch = ArchConfig.parse(
        {"stem": {"width": 8, "stride": 4}, "stage": [{"unit": "igcv1", "L": 4, "M": 2, "blocks": 1}]}
    )
    monkeypatch.setattr(deployment, "architectures", lambda: {"tiny": arch})
    monkeypatch.setattr(deployment, "CAP_S", 0.1)
    line = ["bench", "deploy", "--runtime", "eager", "--batch", "2", "--device", "cpu"]
    answer = cli(*line, *(["--json"] if as_json else []))
    assert answer.status == 0
    assert answer.err.startswith("tiny batch 2: ")
    if as_json:
        assert {"bench", "geomean", "min", "groups", "rows", "conditions"} <= set(answer.json)
        assert [row["name"] for row in answer.json["rows"]] == ["tiny"]
    else:
        assert "geometric mean" in answer.out
        assert f"device {cpu_name()}" in answer.out
