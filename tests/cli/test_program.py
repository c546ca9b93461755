"""The command line: stdout, stderr, exit statuses, and the files that commands leave."""

import contextlib
import csv
import io
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import psutil
import pytest

import igc_nas
from igc_nas.arch.papers import figures
from igc_nas.cli.program import program
from igc_nas.engine.search import Run, search
from igc_nas.engine.store import Store
from igc_nas.nn.device import cpu_name
from igc_nas.space.budget import Budget
from igc_nas.study.spec import Calibration
from igc_nas.study.study import load_study
from tests.support.commands import Answer, Command, refused
from tests.support.hostile import PATHS
from tests.support.searcher import await_
from tests.support.searches import evaluate_on_the_way, latency, searched, spec

PAPERS_NETWORK = "igcv1-l24m2-d62"
TINY = (
    "search", "--space", "tiny", "--budget-params", "2k", "--workers", "1",
    "--recipe", "epochs=1,train_size=500,held_out=200",
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("nothing_around")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A study `made` of six invented trials, on this machine's CPU, in `studies` of the working folder."""
    question = spec(name="made", budget=Budget(params=3000))
    question = question.model_copy(update={"latency": question.latency.model_copy(update={"device": cpu_name()})})
    return searched(tmp_path / "studies" / "made", 6, question)


def process(*arguments: str, cwd: Path) -> Answer:
    """Run a command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "igc_nas", *arguments], cwd=cwd, env=environment(cwd), capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    return Answer(done.returncode, done.stdout, done.stderr)


def environment(folder: Path) -> dict[str, str]:
    package = str(Path(igc_nas.__file__).parents[1])
    return os.environ | {
        "IGC_NAS_DATA": str(folder / "data"),
        "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }


# Help.


@pytest.mark.parametrize("command", sorted(program.commands))
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_help(command: str, flag: str, cli: Command) -> None:
    answer = cli(command, flag)
    assert (answer.status, answer.err) == (0, "")
    assert answer.out.startswith(f"Usage: igc-nas {command} ")
    assert "--help" in answer.out


@pytest.mark.parametrize("command", sorted(program.commands))
def test_help_fits_80_columns(command: str, cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    benches = [("bench", name) for name in program.commands["bench"].commands] if command == "bench" else []
    for names in ((command,), *benches):
        assert max(map(len, cli(*names, "--help").out.splitlines())) <= 80


def test_the_lists_of_commands_describe_each_in_full(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for arguments in (("--help",), ("bench", "--help")):
        listed = cli(*arguments).out.partition("Commands:")[2].splitlines()[1:]
        assert listed
        assert not [line for line in listed if line.endswith("...")]


def test_help_lists_the_commands_and_a_first_step(tmp_path: Path) -> None:
    answer = process("--help", cwd=tmp_path)
    assert (answer.status, answer.err) == (0, "")
    assert "igc-nas search --budget-params 2M" in answer.out
    for command in program.commands:
        assert f"\n  {command} " in answer.out


def test_the_version(cli: Command) -> None:
    assert cli("--version") == Answer(0, f"igc-nas, version {igc_nas.__version__}\n", "")


def test_reading_needs_neither_torch_nor_optuna_nor_plotly_nor_pandas(made: Path, tmp_path: Path) -> None:
    """`--help`, `cost`, `front`, `show`, `space` and `status` are fast because of this; only CSV needs pandas."""
    code = f"""
import sys
from igc_nas.cli import main
loaded = lambda: sorted({{"torch", "optuna", "plotly", "pandas"}} & sys.modules.keys())
print(loaded(), file=sys.stderr)
for arguments in (
    ["--help"], ["search", "--help"], ["cost", "{PAPERS_NETWORK}"], ["cost", "made:0", "--json"],
    ["show", "{PAPERS_NETWORK}"], ["show", "made:0", "--json"], ["space"], ["space", "tiny"],
    ["front", "made"], ["front", "made", "--json"], ["status", "made"], ["export", "made"], ["front", "made", "--csv"],
):
    print(main(arguments), loaded(), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stderr.splitlines() == ["[]"] + ["0 []"] * 12 + ["0 ['pandas']"]


# Architectures.


def test_the_cost_of_a_papers_network(tmp_path: Path) -> None:
    answer = process("cost", PAPERS_NETWORK, "--classes", "100", "--json", cwd=tmp_path)
    found = answer.json
    assert (found["params"], found["macs"], found["flops"]) == (549_652, 94_833_408, 2 * 94_833_408)
    assert answer.err == ""
    assert found["arch"]["classes"] == 100


def test_the_cost_as_text(cli: Command) -> None:
    answer = cli("cost", PAPERS_NETWORK, "--classes", "100")
    lines = dict(line.split(maxsplit=1) for line in answer.out.splitlines()[:4])
    assert lines["parameters"].strip() == "549,652"
    assert set(lines) == {"parameters", "MACs", "FLOPs", "activations"}
    assert "printed error 5.04 % on cifar10, 22.05 % on cifar100" in cli("cost", "igcv3-d-cifar").out


@pytest.mark.parametrize("network", ["igcv1-l16m32-d20", "igcv2-c416-k8-d20"])
def test_the_cost_includes_the_error_that_the_paper_prints(network: str, cli: Command) -> None:
    found = cli("cost", network, "--json").json
    assert found["paper"].startswith("arXiv ")
    assert found["printed_error"]


@pytest.mark.parametrize("network", ["igcv1-l24m2-d20-res", "igcv3-d-cifar"])
def test_other_counters_agree(network: str, cli: Command) -> None:
    found = cli("cost", network, "--check", "--json").json
    assert found["agree"] is True
    assert found["torch_params"] == found["params"]
    assert found["torch_macs"] == found["ptflops_macs"] == found["macs"]


@pytest.mark.parametrize("network", [PAPERS_NETWORK, "igcv1-l24m2-d20-res", "igcv3-d-cifar"])
def test_the_costs_of_the_layers_add_up(network: str, cli: Command) -> None:
    found = cli("show", network, "--json").json
    for metric in ("params", "macs"):
        assert sum(layer[metric] for layer in found["layers"]) == found[metric]
    table = cli("show", network)
    assert (table.status, table.err) == (0, "")
    assert f"{found['params']:,} parameters, {found['macs']:,} MACs" in table.out
    assert table.out.startswith(f"{network}  id {found['id']}\n")
    body = table.out.split("\n\n")[1].splitlines()[1:]
    rows = [[int(word.replace(",", "")) for word in line.split()[2:4]] for line in body]
    assert len(rows) == len(found["layers"])
    assert [sum(column) for column in zip(*rows, strict=True)] == [found["params"], found["macs"]]


def test_an_architecture_is_measured(made: Path, cli: Command) -> None:
    found = cli("measure", "made:0", "--device", "cpu", "--json").json
    assert 0 < found["low_ms"] <= found["median_ms"] <= found["high_ms"]
    assert len(found["samples_ms"]) == found["n"]
    assert (found["batch"], found["conditions"]["threads"]) == (1, 1)
    assert found["conditions"]["device"] == cpu_name()


# Spaces.


def test_the_spaces_are_listed(cli: Command) -> None:
    names = [line.split()[0] for line in cli("space").out.splitlines()]
    assert names == cli("space", "--json").json
    assert {"igc_cifar", "tiny"} <= set(names)


def test_a_space_shows_its_size_and_extreme_costs(cli: Command) -> None:
    found = cli("space", "tiny", "--json").json
    assert (found["space"], found["architectures"]) == ("tiny", 160)
    assert (found["smallest_params"], found["largest_params"]) == (706, 5090)
    text = cli("space", "tiny")
    assert (text.status, text.err) == (0, "")
    for words in ("160", "5,090", "stem      width 8", "stage 1   igcv1", "residual False|True", "L 4|8"):
        assert words in text.out


def test_classes_change_a_space(cli: Command) -> None:
    ten, hundred = (cli("space", "tiny", "--classes", n, "--json").json for n in ("10", "100"))
    assert hundred["smallest_params"] > ten["smallest_params"]


def test_a_space_within_a_budget(cli: Command) -> None:
    found = cli("space", "tiny", "--budget-params", "3k", "--json").json
    assert (found["architectures"], found["feasible"], found["share"]) == (160, 138, 138 / 160)
    assert (found["smallest_params"], found["largest_params"]) == (706, 2994)
    assert (found["smallest_macs"], found["largest_macs"]) == (111_696, 399_520)
    assert sum(part["architectures"] for part in found["bins"]) == 138
    assert (found["bins"][0]["from"], found["bins"][-1]["to"], found["binned_by"]) == (706, 3000, "params")
    assert {stage: sum(units.values()) for stage, units in found["units"].items()} == {"stage1": 138, "stage2": 138}
    assert "acceptance" not in found
    text = cli("space", "tiny", "--budget-params", "3k")
    assert (text.status, text.err) == (0, "")
    lines = [line.split() for line in text.out.splitlines()]
    for part in found["bins"]:
        counted = ["params", "to", f"{part['to']:,}", str(part["architectures"])]
        assert counted in lines
    for stage, units in found["units"].items():
        assert all([stage, unit, str(count)] in lines for unit, count in units.items())
    assert ["feasible", "138"] in lines
    assert ["share", "86.25", "%"] in lines


def test_a_space_within_two_budgets(cli: Command) -> None:
    both = ("space", "tiny", "--budget-params", "1500", "--budget-macs", "200k")
    found = cli(*both, "--json").json
    one = cli(
        "space",
        "tiny",
        f"--budget-{found['binned_by']}",
        {"params": "1500", "macs": "200k"}[found["binned_by"]],
        "--json",
    )
    assert 0 < found["feasible"] < one.json["feasible"]
    assert found["acceptance"] == found["feasible"] / one.json["feasible"]
    assert found["largest_params"] <= 1500
    assert found["largest_macs"] <= 200_000
    assert f"{100 * found['acceptance']:.4g} %" in cli(*both).out


def test_a_space_too_large_to_count_is_refused(cli: Command) -> None:
    stage = "[[stage]]\nblocks = 1\n[stage.conv]\nwidth = [8, 16, 24, 32, 40, 48, 56, 64]\nkernel = [1, 3, 5]\n"
    Path("wide.toml").write_text("[stem]\nwidth = 8\n" + 16 * stage)
    size = cli("space", "wide.toml", "--json").json["architectures"]
    assert size == 24**16
    answer = cli("space", "wide.toml", "--budget-params", "3M")
    refused(answer, 1, f"wide holds {size:,} architectures: too many to count", "leave out the budget")


def test_budgets_that_exclude_each_other_are_infeasible(cli: Command) -> None:
    Path("apart.toml").write_text(
        "[stem]\nwidth = 8\n[[stage]]\nblocks = 1\n"
        "[stage.conv]\nwidth = 8\nstride = 1\n"  # few parameters, many pixels
        "[stage.igcv1]\nL = 1\nM = 16\nstride = 4\n"  # the reverse
    )
    ends = cli("space", "apart.toml", "--json").json
    both = ("--budget-params", ends["smallest_params"], "--budget-macs", ends["smallest_macs"])
    refused(cli("space", "apart.toml", *map(str, both)), 3, "no architecture of apart is within both budgets")


def test_a_space_shows_its_complementary_condition(cli: Command) -> None:
    assert "complementary" not in cli("space", "tiny").out
    text = (Path(igc_nas.__file__).parents[1] / "search_spaces" / "tiny.toml").read_text()
    Path("loose.toml").write_text(text.replace("input =", 'complementary = "loose"\ninput ='))
    assert "every unit meets the loose complementary condition" in cli("space", "loose.toml").out


# Studies.


def test_a_front_as_json(made: Path, cli: Command) -> None:
    found = cli("front", "made", "--json").json
    study = load_study(made)
    assert {"study", "dataset", "objectives", "hypervolume", "reference_point", "candidates"} <= set(found)
    assert (found["study"], found["dataset"], found["completed"]) == ("made", "shapes", 6)
    assert found["objectives"] == ["error", "params", "latency"]
    assert found["reference_point"] == [1.0, 1.0, 1.0]
    assert found["hypervolume"] == study.hypervolume()
    assert [c["trial"] for c in found["candidates"]] == [c.trial for c in study.front()]
    for row, candidate in zip(found["candidates"], study.front(), strict=True):
        assert {"trial", "id", "error", "params", "macs", "latency_ms", "arch"} <= set(row)
        assert row["arch"] == candidate.arch.to_dict()
        assert (row["params"], row["error"]) == (candidate.cost.params, candidate.score.error)


@pytest.mark.parametrize("names", [("error", "macs"), ("error",)])
def test_a_front_by_other_objectives(made: Path, cli: Command, names: tuple[str, ...]) -> None:
    found = cli("front", "made", "--objectives", ",".join(names), "--json").json
    assert (found["objectives"], found["reference_point"]) == (list(names), [1.0] * len(names))
    assert [c["trial"] for c in found["candidates"]] == [c.trial for c in load_study(made).front(names)]
    assert found["hypervolume"] == pytest.approx(load_study(made).hypervolume_curve(names)[-1][1])


def test_a_front_as_csv_is_read_back(made: Path, cli: Command) -> None:
    answer = cli("front", "made", "--csv")
    rows = list(csv.DictReader(io.StringIO(answer.out)))
    wanted = cli("front", "made", "--json").json["candidates"]
    assert len(rows) == len(wanted)
    for row, candidate in zip(rows, wanted, strict=True):
        columns = {key: str(value) for key, value in candidate.items() if key != "arch"}
        assert row == columns | {"baseline": "", "dominated_by": ""}
        assert float(row["latency_ms"]) == candidate["latency_ms"]


def test_a_front_as_a_table(made: Path, cli: Command) -> None:
    answer = cli("front", "made")
    study = load_study(made)
    assert (answer.status, answer.err) == (0, "")
    assert f"Pareto front of {len(study.front())} of 6 candidates" in answer.out
    assert "SYNTHETIC" in answer.out
    for candidate in study.front():
        assert str(candidate.arch) in answer.out


def test_a_study_is_also_found_by_its_path(made: Path, cli: Command, tmp_path: Path) -> None:
    by_name = cli("front", "made", "--json").out
    moved = made.rename(tmp_path / "elsewhere")
    assert cli("front", f"{moved}/", "--json").out == by_name
    assert cli("front", "./elsewhere", "--json").out == by_name
    assert cli("front", "elsewhere", "--studies-dir", tmp_path, "--json").out == by_name


def test_a_study_without_trials_has_an_empty_front(cli: Command) -> None:
    Store(Path("studies/empty"), spec(name="empty")).close()
    assert cli("front", "empty", "--json").json["candidates"] == []
    answer = cli("front", "empty")
    assert (answer.status, answer.out) == (0, "")
    assert "no completed trial yet" in answer.err
    (header,) = cli("front", "empty", "--csv").out.splitlines()
    assert header.startswith("trial,id,error,params,")
    refused(cli("export", "empty"), 4, "no completed trial yet", "igc-nas search --study empty")


@pytest.mark.parametrize("pick", ["knee", "best-error", "trial:2", "under:params=3k", "under:params=3k,macs=10M"])
def test_an_exported_architecture_works_in_every_command(pick: str, made: Path, cli: Command, tmp_path: Path) -> None:
    answer = cli("export", "made", "--pick", pick, "-o", "arch.toml")
    assert (answer.status, answer.out) == (0, "")
    assert "wrote arch.toml" in answer.err
    candidate = load_study(made).pick(pick)
    found = cli("cost", "arch.toml", "--json").json
    assert (found["params"], found["macs"], found["id"]) == (candidate.cost.params, candidate.cost.macs, candidate.id)
    assert cli("show", "arch.toml", "--json").json["id"] == candidate.id
    assert cli("show", f"made:{candidate.trial}", "--json").json["id"] == candidate.id
    model = igc_nas.create_model("arch.toml")
    assert sum(p.numel() for p in model.parameters()) == candidate.cost.params
    assert cli("export", "made", "--pick", pick).out == (tmp_path / "arch.toml").read_text()


def test_a_file_that_exists_is_not_overwritten_unless_forced(made: Path, cli: Command) -> None:
    path = Path("arch.toml")
    path.write_text("mine")
    refused(cli("export", "made", "-o", path), 2, "arch.toml exists", "--force")
    assert path.read_text() == "mine"
    assert cli("export", "made", "-o", path, "--force").status == 0
    assert "[stem]" in path.read_text()


def test_a_dashboard_is_one_page(made: Path, cli: Command) -> None:
    answer = cli("dashboard", "made")
    assert answer == Answer(0, "studies/made/dashboard.html\n", "")
    assert (made / "dashboard.html").read_text(encoding="utf-8").lower().startswith("<!doctype html>")
    assert cli("dashboard", "made", "-o", "page.html").out == "page.html\n"
    assert Path("page.html").is_file()


# Wrong input.

CIFAR10_MISSING = ("cifar10 is not in", "igc-nas data cifar10")

WRONG: list[tuple[str, int, tuple[str, ...]]] = [
    ("frnt", 2, ("No such command",)),
    ("--nonsense", 2, ("No such option",)),
    ("search extra", 2, ("unexpected extra argument",)),
    ("search --space tinny", 2, ("unknown space 'tinny'", "did you mean tiny?")),
    ("search --space nowhere.toml", 2, ("no space file",)),
    ("search --space tiny --dataset mnist", 2, ("cifar100",)),
    ("search --space tiny --dataset cifar10", 5, CIFAR10_MISSING),
    ("search --space tiny --dataset cifar100", 5, ("cifar100 is not in",)),
    ("search --space tiny --objectives error,speed", 2, ("unknown objective 'speed'",)),
    ("search --space tiny --objectives error,param", 2, ("did you mean params?",)),
    ("search --space tiny --sampler cmaes", 2, ("random", "nsga2")),
    ("search --space tiny --seed -1", 2, ("--seed",)),
    ("search --space tiny --seed 9223372036854775808", 2, ("--seed",)),
    ("search --space tiny --trials 0", 2, ("--trials",)),
    ("search --space tiny --workers 0", 2, ("--workers",)),
    ("search --space tiny --device tpu", 2, ("unknown device 'tpu'", "auto, cpu, cuda")),
    ("search --space tiny --device cuda:999", 2, ("--device cpu",)),
    ("search --space tiny --recipe epochs", 2, ("is not KEY=VALUE",)),
    ("search --space tiny --recipe epoch=3", 2, ("recipe: epoch: unknown key",)),
    ("search --space tiny --recipe epochs=0", 2, ("recipe: epochs",)),
    ("search --space tiny --recipe epochs=3#4", 2, ("recipe: epochs",)),
    ("search --space tiny --storage mysql://me:sesame@host/db", 2, ("'mysql'", "sqlite:///")),
    ("search --budget-params 100", 3, ("the smallest architecture in igc_cifar has", "parameters")),
    ("search --budget-macs 100", 3, ("igc_cifar", "MACs")),
    ("front", 2, ("Missing argument",)),
    ("front nothing", 4, ("unknown study 'nothing'", "made")),
    ("front mad", 4, ("did you mean made?",)),
    ("front nowhere/made", 4, ("it has no study.toml",)),
    ("front made --objectives error,speed", 2, ("unknown objective",)),
    ("front made --json --csv", 2, ("--json and --csv exclude each other",)),
    ("show", 2, ("Missing argument",)),
    ("show nothing", 2, ("'nothing' is not an architecture", "igcv1-")),
    ("show nothing.toml", 2, ("nothing.toml",)),
    ("show file", 2, ("file",)),
    ("show made:99", 4, ("made has no trial 99; it has trials 0 to",)),
    ("show nothing:0", 4, ("unknown study",)),
    (f"show {PAPERS_NETWORK} --classes 0", 2, ("--classes",)),
    ("cost igcv1-l24m2-d21", 2, ("igcv1",)),
    ("cost igcv1-l0m2-d20", 2, ("igcv1",)),
    (f"cost {PAPERS_NETWORK} --classes 1e9", 2, ("--classes",)),
    ("cost .", 2, ("is not an architecture",)),
    ("space tinny", 2, ("unknown space 'tinny'", "did you mean tiny?")),
    ("space tiny --budget-params 100", 3, ("the smallest architecture in tiny has 706 parameters",)),
    ("space file.toml", 2, ("file.toml",)),
    ("measure nothing", 2, ("is not an architecture",)),
    (f"measure {PAPERS_NETWORK} --batch 0", 2, ("--batch",)),
    (f"measure {PAPERS_NETWORK} --device tpu", 2, ("unknown device",)),
    ("train nothing", 2, ("is not an architecture",)),
    ("train made:0 --dataset cifar10", 5, CIFAR10_MISSING),
    ("train made:0 --dataset shapes --epochs 0", 2, ("--epochs",)),
    ("train made:0 --dataset shapes --lr 0", 2, ("--lr",)),
    ("train made:0 --dataset shapes -o studies", 4, ("not empty and holds no training",)),
    ("train made:0 --dataset shapes -o file", 4, ("file",)),
    ("train made:0 --dataset shapes --device tpu", 2, ("unknown device",)),
    ("export nothing", 4, ("unknown study",)),
    ("export made --pick best", 2, ("unknown pick 'best'", "knee, best-error")),
    ("export made --pick trial:99", 4, ("has no trial 99",)),
    ("export made --pick trial:-1", 2, ("unknown pick",)),
    ("export made --pick under:params=1", 4, ("no completed trial", "the nearest is trial:")),
    ("export made --pick under:error=1", 2, ("is not a limit",)),
    ("export made -o nowhere/arch.toml", 1, ("cannot write nowhere/arch.toml",)),
    ("export made -o studies", 2, ("studies exists",)),
    ("dashboard nothing", 4, ("unknown study",)),
    ("dashboard made -o page.gif", 2, ("the page is HTML", "--picture")),
    ("dashboard made -o nowhere/page.html", 1, ("cannot write nowhere/page.html",)),
    ("data mnist", 2, ("cifar10",)),
    ("data shapes", 2, ("shapes is built in",)),
    ("data cifar10 --from nowhere", 5, ("nowhere",)),
    ("data cifar10 --from file", 5, ("file",)),
    ("data cifar10 --from studies", 5, ("holds no cifar10",)),
    ("data cifar10 --url file:///etc/passwd", 2, ("not an http or https address",)),
]


@pytest.mark.parametrize(("line", "status", "words"), WRONG, ids=[line for line, _, _ in WRONG])
def test_wrong_input_is_one_error_with_its_status(
    line: str, status: int, words: tuple[str, ...], made: Path, cli: Command
) -> None:
    Path("file").write_text("x")
    Path("file.toml").write_text("x")
    before = tree(Path())
    refused(cli(*line.split()), status, *words)
    assert tree(Path()) == before


def test_an_impossible_budget_is_refused_before_anything_is_timed(
    cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IGC_NAS_CACHE", "cache")
    refused(
        cli("search", "--space", "tiny", "--dataset", "shapes", "--budget-params", "100"), 3, "smallest architecture"
    )
    assert not Path("cache").exists()


def tree(folder: Path) -> set[Path]:
    """All paths in a folder, except the data folder, which any command may create."""
    return {path for path in folder.rglob("*") if path.parts[0] != "data"}


def test_studies_cannot_be_kept_in_a_file(cli: Command) -> None:
    Path("file").write_text("x")
    answer = cli("search", "--space", "tiny", "--trials", "1", "--studies-dir", "file")
    assert (answer.status, answer.out) == (4, "")
    assert answer.err.splitlines()[-1].startswith("igc-nas: file/tiny-shapes-any-s0")


def test_a_secret_in_a_storage_address_is_not_repeated(cli: Command) -> None:
    assert (
        "sesame"
        not in cli(
            "search", "--space", "tiny", "--trials", "1", "--storage", "postgresql://me:sesame@127.0.0.1:9/db"
        ).err
    )


def test_wrong_input_to_a_process(tmp_path: Path) -> None:
    refused(process("front", "nothing", cwd=tmp_path), 4, "unknown study 'nothing'")
    refused(process("space", "tiny", "--budget-params", "100", cwd=tmp_path), 3, "has 706 parameters")


def test_debug_shows_where_an_error_came_from(cli: Command, tmp_path: Path) -> None:
    with pytest.raises(igc_nas.IgcNasError):
        cli("front", "nothing", "--debug")
    assert "Traceback" in process("--debug", "front", "nothing", cwd=tmp_path).err


@pytest.mark.parametrize("flag", ["--budget-params", "--budget-macs", "--budget-flops"])
@pytest.mark.parametrize("text", ["0", "-1", "1.5", "2m", "2 MB", "1e-6", "", "2MM", "٣", "inf", "nan", "9" * 30])
def test_text_that_is_not_a_count_is_refused(flag: str, text: str, cli: Command) -> None:
    refused(cli("search", "--space", "tiny", flag, text), 2, flag, "is not a positive whole number")


@pytest.mark.parametrize(
    ("flag", "text"),
    [("--budget-latency", t) for t in ("5", "0ms", "-1ms", "5 hours", "", "nanms", "1e-3ms")]
    + [("--time", t) for t in ("0", "-1", "5ms", "2d", "", "inf", "1h30m")],
)
def test_text_that_is_not_a_time_is_refused(flag: str, text: str, cli: Command) -> None:
    refused(cli("search", "--space", "tiny", flag, text), 2, flag, "write it as")


@pytest.mark.parametrize(
    ("text", "value"), [("500", 500), ("1k", 1000), ("1.5k", 1500), ("0.7k", 700), ("2M", 2000000)]
)
def test_counts_have_suffixes(text: str, value: int, cli: Command) -> None:
    answer = cli("space", "tiny", "--budget-params", text)
    assert answer.status == (0 if value >= 706 else 3)


# Hostile names.


def test_there_are_many_hostile_names() -> None:
    assert len(set(PATHS)) == len(PATHS) >= 60


@pytest.mark.parametrize("name", PATHS, ids=ascii)
def test_a_hostile_study_name_is_refused_and_makes_nothing(name: str, cli: Command, tmp_path: Path) -> None:
    # Were the name taken, the budget would end the search with status 3.
    (tmp_path / "inner").mkdir()
    os.chdir(tmp_path / "inner")
    refused(cli("search", "--space", "tiny", "--budget-params", "1", "--study", name), 2)
    answer = cli("front", "--", name)
    refused(answer, answer.status)
    assert answer.status in (2, 4)
    for command in ("export", "dashboard"):
        assert cli(command, "--", name).status in (2, 4)
    assert list(tmp_path.rglob("*")) == [tmp_path / "inner"]


@pytest.mark.parametrize("name", PATHS, ids=ascii)
def test_a_hostile_name_of_a_network_or_a_space_is_refused(name: str, cli: Command, tmp_path: Path) -> None:
    for command in ("cost", "show", "space"):
        answer = cli(command, "--", name)
        refused(answer, answer.status)
        assert answer.status in (2, 4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("word", ["--\x1b]0;title\x07", "\x1b[2J", "-\x9b", "--seed=\x1b[2J", "--trials=\u202e1"])
def test_a_hostile_option_is_not_repeated_raw(word: str, cli: Command) -> None:
    for arguments in ((word,), ("search", word)):
        refused(cli(*arguments), 2)


@pytest.mark.parametrize("place", ["export made -o", "dashboard made -o", "train made:0 --dataset shapes -o"])
def test_a_file_name_that_is_too_long_is_an_error(place: str, made: Path, cli: Command) -> None:
    answer = cli(*place.split(), "a" * 300)
    refused(answer, answer.status)
    assert answer.status in (1, 2, 4)


@pytest.mark.parametrize("folder", ["made", "other"])
def test_a_hostile_file_cannot_write_on_the_terminal(folder: str, made: Path, cli: Command) -> None:
    """The author of a study.toml chooses the names of study and space, and the dataset."""
    evil = "\\u001b]0;title\\u0007\\u001b[2J\\u202e"
    text = (made / "study.toml").read_text()
    text = text.replace('name = "made"', f'name = "{evil}"').replace('space_name = "tiny"', f'space_name = "{evil}"')
    (made / "study.toml").write_text(text)
    made.rename(made.with_name(folder)) if folder != "made" else None
    assert tomllib.loads(text)["name"].startswith("\x1b")
    for line in ("front", "export -o a.toml", "dashboard", "front --json", "front --csv"):
        command, *rest = line.split()
        answer = cli(command, folder, *rest)
        assert answer.status == 0
        assert (answer.out + answer.err).replace("\n", "").isprintable(), line


def test_a_hostile_space_file_cannot_write_on_the_terminal(cli: Command) -> None:
    text = (Path(igc_nas.__file__).parents[1] / "search_spaces" / "tiny.toml").read_text()
    Path("evil.toml").write_text(text.replace('intent = "', 'intent = "\\u001b]0;title\\u0007\\u202e'))
    answer = cli("space", "evil.toml")
    assert answer.status == 0
    assert answer.out.replace("\n", "").isprintable()


# Continuing a study.


SAME = ["", "--space tiny", "--budget-params 3k", "--objectives error,params,latency", "--recipe epochs=2 --seed 0"]
OTHER = {
    "--space igc_cifar": "space_name: igc_cifar asked for, tiny in the study",
    "--objectives error,macs": "objectives: ",
    "--budget-params 2k": "budget.params: 2000 asked for, 3000 in the study",
    "--budget-params 3k --budget-latency 5ms": "budget.latency_ms: 5.0",
    "--seed 1": "seed: 1 asked for, 0 in the study",
    "--sampler random": "sampler: random asked for, known-cost in the study",
    "--recipe epochs=3": "recipe.epochs: 3 asked for, 2 in the study",
    "--dataset cifar10": "dataset: cifar10 asked for, shapes in the study",
}


@pytest.mark.parametrize("flags", SAME)
def test_the_same_search_again_ends_at_once_with_the_same_front(flags: str, made: Path, cli: Command) -> None:
    before = cli("front", "made", "--json").json
    answer = cli("search", "--study", "made", "--trials", "6", *flags.split(), "--json")
    assert answer.json == before
    assert "study     made (continued), in studies/made" in answer.err
    quiet = cli("search", "--study", "made", "--trials", "6", *flags.split(), "--json", "--quiet")
    assert quiet.json == before


@pytest.mark.parametrize(("flags", "difference"), OTHER.items(), ids=OTHER)
def test_a_search_with_other_settings_is_refused_naming_the_difference(
    flags: str, difference: str, made: Path, cli: Command
) -> None:
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    answer = cli("search", "--study", "made", "--trials", "6", *flags.split())
    refused(answer, 4, "made exists with other settings", difference, "--study NAME")
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before


def test_one_search_at_a_time_while_others_read(made: Path, cli: Command) -> None:
    before = cli("front", "made", "--json").out
    with Store(made, load_study(made).spec):
        answer = cli("search", "--study", "made", "--trials", "7")
        assert (answer.status, answer.out) == (4, "")
        assert f"being searched by pid {os.getpid()} on " in answer.err
        assert cli("front", "made", "--json").out == before


@pytest.mark.parametrize("damage", ["", "not a database", "SQLite format 3\x00" + "x" * 5000])
def test_a_damaged_database_is_an_error_that_names_the_next_step(damage: str, made: Path, cli: Command) -> None:
    (made / "study.db").write_text(damage)
    answer = cli("search", "--study", "made", "--trials", "6", "--json")
    assert "Traceback" not in answer.err
    if answer.status == 0:
        assert answer.json["completed"] == 6
    else:
        assert answer.status == 4
        assert "move study.db away" in answer.err
        (made / "study.db").unlink()
        assert cli("search", "--study", "made", "--trials", "6", "--json").json["completed"] == 6


@pytest.mark.parametrize("text", ["", "name = ", "schema = 99", "\x00", "[" * 5000, "name = 'x'", "\udcff"])
def test_a_damaged_study_file_is_an_error(text: str, made: Path, cli: Command) -> None:
    (made / "study.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(cli("front", "made"), 4, "study.toml")
    refused(cli("search", "--study", "made", "--trials", "6"), 4, "study.toml")


# Real searches: ten seconds each.


@pytest.mark.slow
def test_a_search_from_a_terminal(tmp_path: Path) -> None:
    command = (*TINY, "--study", "three", "--trials", "3", "--json")
    first = process(*command, cwd=tmp_path)
    found = first.json
    assert found["completed"] == 3
    assert 1 <= len(found["candidates"]) <= 3
    assert all(candidate["params"] <= 2000 for candidate in found["candidates"])
    assert "SYNTHETIC" in first.err
    assert len(re.findall(r"^trial +[0-9]+  error ", first.err, re.MULTILINE)) == 3
    assert "Ctrl-C; the same command continues" in first.err
    folder = tmp_path / "studies" / "three"
    assert {"study.toml", "study.db", "trials.jsonl"} <= {path.name for path in folder.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["studies"]

    evidence = (folder / "trials.jsonl").read_bytes()
    again = process(*command, cwd=tmp_path)
    assert again.json == found
    assert "(continued)" in again.err
    assert not re.findall(r"^trial +[0-9]+  error ", again.err, re.MULTILINE)
    assert (folder / "trials.jsonl").read_bytes() == evidence


@pytest.mark.parametrize(
    ("number", "status", "seen"),
    [(signal.SIGINT, 130, "trial    0  error "), (signal.SIGTERM, 143, "reference_ms")],
    ids=["Ctrl-C after a trial", "SIGTERM in the first trial"],
)
@pytest.mark.slow
def test_a_signal_ends_a_search_and_its_trials_wait(
    number: signal.Signals, status: int, seen: str, tmp_path: Path
) -> None:
    folder = tmp_path / "studies" / "stopped"
    with started(*TINY, "--study", "stopped", "--trials", "100", cwd=tmp_path) as child:
        await_text(seen, (tmp_path / "stderr", folder / "study.toml"), child)
        time.sleep(0.3)
        workers = psutil.Process(child.pid).children(recursive=True)
        assert workers
        child.send_signal(number)
        assert child.wait(10) == status
        _, alive = psutil.wait_procs(workers, timeout=5)
        assert alive == []
    err = (tmp_path / "stderr").read_text()
    assert "Traceback" not in err
    assert (tmp_path / "stdout").read_text() == ""
    trials = load_study(folder).trials
    assert [t.state for t in trials if t.state not in ("complete", "infeasible", "duplicate")] == ["waiting"]
    Store(folder, load_study(folder).spec).close()  # the study is free again


IMPORTING = """
import os, pathlib, time
try:
    pathlib.Path("reached").touch()
    time.sleep(0.5)
except BaseException:
    os.abort()
def DataFrame(*_, **__): time.sleep(60)
"""
CONVERTING = """
import pathlib, time
def DataFrame(*_, **__):
    try:
        pathlib.Path("reached").touch()
        time.sleep(60)
    except BaseException as error:
        raise ValueError(str(error)) from None
"""


@pytest.mark.parametrize(
    ("pandas", "numbers", "status", "said"),
    [
        (IMPORTING, [signal.SIGINT, signal.SIGINT], 130, "stopped; the same command continues"),
        (CONVERTING, [signal.SIGTERM], 143, ""),
    ],
    ids=["within an import", "made another exception of"],
)
def test_a_signal_passes_through_foreign_code(
    pandas: str, numbers: list[signal.Signals], status: int, said: str, made: Path, tmp_path: Path
) -> None:
    """Within an import torch's C++ code aborts the process, or a module's `except:` swallows the exception; Rust and
    C++ code that calls Python may make another exception of it."""
    (tmp_path / "pandas.py").write_text(pandas)
    with started("front", "made", "--csv", cwd=tmp_path) as child:
        await_(lambda: (tmp_path / "reached").exists() or child.poll() is not None)
        for number in numbers:
            child.send_signal(number)
        assert child.wait(10) == status
    assert (tmp_path / "stderr").read_text().strip() == said


@contextlib.contextmanager
def started(*arguments: str, cwd: Path) -> Any:
    """A command running beside the test. SIGINT reaches it even if a shell started the tests in its background."""
    with (cwd / "stdout").open("w") as out, (cwd / "stderr").open("w") as err:
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        child = subprocess.Popen(
            [sys.executable, "-m", "igc_nas", *arguments], cwd=cwd, env=environment(cwd), stdout=out, stderr=err,
            start_new_session=True,
        )  # fmt: skip
        signal.signal(signal.SIGINT, before)
        try:
            yield child
        finally:
            child.kill()
            child.wait()


def await_text(text: str, paths: tuple[Path, ...], child: subprocess.Popen[bytes]) -> None:
    """Wait until one of the files contains `text`."""
    end = time.monotonic() + 120
    while not any(path.is_file() and text in path.read_text() for path in paths):
        assert child.poll() is None, paths[0].read_text()
        assert time.monotonic() < end
        time.sleep(0.05)


# Enqueued architectures, pruning, brute force.


@pytest.fixture
def invented(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches of the command line run in this process, with invented errors and latencies."""

    def run_search(spec: Any, run: Run, **more: Any) -> Any:
        ends = Calibration(reference_ms=1.0, smallest=latency(0.1), largest=latency(1.0))
        scaled = spec if spec.bounds else spec.with_scale(ends)
        return search(scaled, run, evaluate=evaluate_on_the_way, **more)

    monkeypatch.setattr("igc_nas.engine.search.search", run_search)


@pytest.mark.usefixtures("invented")
def test_enqueued_networks_are_evaluated_first_and_once(cli: Command) -> None:
    command = (
        "search", "--space", "tiny", "--study", "s", "--dataset", "shapes", "--budget-params", "3k",
        "--enqueue", PAPERS_NETWORK, "--trials",
    )  # fmt: skip
    assert cli(*command, "2").status == 0
    assert cli(*command, "3", "--enqueue", "s:1").status == 0
    trials = load_study(Path("studies/s")).trials
    assert [t.enqueued for t in trials] == [True, None, None]
    assert trials[0].candidate.cost.params > 3000
    refused(cli(*command, "4", "--enqueue", "nothing"), 2, "is not an architecture")
    assert len(load_study(Path("studies/s")).trials) == 3


@pytest.mark.usefixtures("invented")
def test_prune_below_is_a_setting_of_the_study(cli: Command) -> None:
    command = ("search", "--space", "tiny", "--study", "s", "--dataset", "shapes", "--recipe", "rungs=[2000, 4000]")
    answer = cli(*command, "--prune-below", "0.5", "--trials", "26")
    assert answer.status == 0
    assert "after 2,000, 4,000 images of 6,000; a trial is pruned if its probability" in answer.err
    study = load_study(Path("studies/s"))
    count = study.ended - len(study.candidates)
    assert count > 0
    assert (
        f"{count} of 26 trials were pruned at a rung: their probability of reaching the front was below 0.5"
        in answer.err
    )
    assert cli("search", "--study", "s", "--trials", "26", "--prune-below", "0.5").status == 0
    refused(
        cli("search", "--study", "s", "--trials", "27", "--prune-below", "0.1"),
        4,
        "prune_below: 0.1 asked for, 0.5 in the study",
    )
    refused(
        cli("search", "--study", "s", "--trials", "27", "--recipe", "rungs=[2000]"), 4, "recipe.rungs: [2000] asked for"
    )
    refused(cli("search", "--study", "t", "--prune-below", "1"), 2, "--prune-below")
    refused(cli(*command[:3], "--study", "t", "--recipe", "rungs=[4000,2000]"), 2, "must ascend")


@pytest.mark.usefixtures("invented")
def test_brute_force_evaluates_all_of_a_small_space(cli: Command) -> None:
    command = ("search", "--space", "tiny", "--study", "s", "--dataset", "shapes", "--budget-params", "1k")
    answer = cli(*command, "--sampler", "brute-force", "--json")
    study = load_study(Path("studies/s"))
    assert answer.json["completed"] == len(study.candidates) == study.spec.feasible.count > 3
    assert "the same command continues" not in answer.err.partition("Ctrl-C; the same command continues")[2]
    refused(cli("search", "--study", "big", "--dataset", "shapes", "--sampler", "brute-force"), 2, "architectures")
    assert not Path("studies/big").exists()


@pytest.mark.usefixtures("invented")
def test_a_report_trains_the_figures_networks_first(made: Path, cli: Command) -> None:
    answer = cli("report", "made", "--figures", "--device", "cpu")
    assert answer.status == 0, answer.err
    papers = load_study(made / "papers")
    points = [point for figure in figures(10) for point in figure.points]
    assert {c.id for c in papers.candidates} == {point.id for point in points}
    assert all(t.enqueued for t in papers.trials)
    assert papers.spec.recipe == load_study(made).spec.recipe
    assert "none of its" not in answer.out
    before = (made / "papers" / "trials.jsonl").read_bytes()
    assert cli("report", "made", "--figures", "--device", "cpu", "--json").status == 0
    assert (made / "papers" / "trials.jsonl").read_bytes() == before
