"""The GPU check: its table has a line a part, what was found or why nothing was."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from igc_nas.cli.program import program
from igc_nas.engine.search import Run, search
from tests.gpu import summary
from tests.support.searches import spec
from tests.support.stubs import slow_stub


def test_the_table_has_a_line_a_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    list(search(spec(), Run(tmp_path / "studies" / "gpu2", trials=3, workers=2), evaluator=slow_stub))
    trials = tmp_path / "studies" / "gpu2" / "trials.jsonl"
    spent = {"prepare_s": 1.0, "measure_s": 0.5, "choose_s": 0.25, "train_s": 4.0, "wait_s": 0.0}
    told = [json.loads(line) | {"spent": spent} for line in trials.read_text().splitlines()]
    trials.write_text("".join(json.dumps(trial) + "\n" for trial in told))
    rows = [{"ratio": 1.01}, {"ratio": 1.05}]
    outputs = {
        "doctor": {
            "findings": [{"topic": "cuda:0", "value": "NVIDIA H200"}],
            "checks": [{"name": "trial", "passed": False, "result": "no kernel image"}],
        },
        "train": {"geomean": 1.5, "min": 1.1, "rows": rows},
        "latency": {"rows": rows},
    }
    for part, found in outputs.items():
        (tmp_path / f"{part}.out").write_text(json.dumps(found))
    (tmp_path / "tests.out").write_text("....\n5 passed in 60.00s\n")
    (tmp_path / "search3.err").write_text("igc-nas: no CUDA device is visible to torch\n")
    for part in ("doctor", "tests", "train", "latency", "search2", "search3"):
        (tmp_path / f"{part}.status").write_text("2 12\n" if part == "search3" else "0 12\n")
    assert summary.main(tmp_path) == 1, "a part failed"
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert next(iter(lines)) == "part"
    assert "NVIDIA H200; trial FAILED: no kernel image" in lines["doctor"]
    assert "geomean 1.50, min 1.10 over 2 networks" in lines["train"]
    assert "3.0 % (median), 5.0 % (most)" in lines["latency"]
    assert "5 passed" in lines["tests"]
    assert "3 trials" in lines["search2"]
    assert "choose 0.2, train 4.0" in lines["search2"]
    assert "FAILED" in lines["search3"]
    assert "no CUDA device is visible" in lines["search3"]
    (tmp_path / "search3.status").write_text("0 12\n")
    assert summary.main(tmp_path) == 0


def test_the_script_runs_every_test_of_a_gpu() -> None:
    """Without collecting the files that have none, which takes half of the time that the part has."""
    text = Path(__file__).with_name("check.sh").read_text()
    (look_up,) = re.findall(r"-m pytest -m gpu .*\$\((.*)\)", text)
    root = Path(__file__).parents[2]
    found = subprocess.check_output(["/bin/bash", "-c", look_up], cwd=root, text=True).split()
    marked = {str(file.relative_to(root)) for file in root.glob("tests/**/*.py") if "mark.gpu" in file.read_text()}
    assert set(found) == marked - {str(Path(__file__).relative_to(root))} != set()


def test_the_script_knows_the_commands(tmp_path: Path) -> None:
    """Each command of it parses here, by its own options; it ends within 8 minutes, and at once without a GPU."""
    script = Path(__file__).with_name("check.sh")
    text = script.read_text()
    lines = re.sub(r"\\\n *", "", text).splitlines()
    limits = [int(found[1]) for line in lines if (found := re.search(r"^ *(?:\[.*\|\| )?part ([0-9]+) ", line))]
    commands = [shlex.split(line.split("$nas ")[1]) for line in lines if "$nas " in line and " part " in f" {line}"]
    assert len(commands) == 4
    assert sum(limits) + 2 * limits[-1] <= 8 * 60 - 30, "the search runs three times"
    for command in commands:
        found: click.Command = program
        while isinstance(found, click.Group):
            found = found.commands[command.pop(0)]
        given = ["3" if word == "$workers" else word for word in command]
        found.make_context(found.name, given, resilient_parsing=False)
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable}
    done = subprocess.run([str(script), str(tmp_path)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nothing was checked" in done.stdout
    assert "no CUDA device is visible to torch" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    (tmp_path / "studies").mkdir()
    done = subprocess.run([str(script), str(tmp_path), "cpu"], capture_output=True, text=True, check=False)
    assert (done.returncode, "give another FOLDER" in done.stdout) == (1, True), "studies would be continued"
