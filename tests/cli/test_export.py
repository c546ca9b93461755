"""igc-nas export as it is typed: a study's trial or an architecture, in every format; one error for what is wrong."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import igc_nas
from igc_nas.arch.config import ArchConfig, deployed_limit
from igc_nas.arch.plan import arch_id
from igc_nas.errors import UsageError
from igc_nas.evaluation.retraining import RESULT_FILE, RUN_FILE, WEIGHTS_FILE
from igc_nas.exports import folder
from igc_nas.exports import verify as proof
from igc_nas.exports.graph import Exporter, Graph
from igc_nas.nn.c_compiler import compiler
from igc_nas.nn.network import Network, build
from igc_nas.study.records import Trial
from igc_nas.study.study import Study, load_study
from tests.support.commands import Answer, Command, refused
from tests.support.families import by_size, make, stop, write
from tests.support.tensors import relative_error

ARCH = ArchConfig.parse(
    {
        "input": (3, 12, 12),
        "stem": {"width": 8},
        "stage": [{"unit": "igcv1", "L": 4, "M": 2, "blocks": 2, "residual": True}],
    }
)


@pytest.fixture(autouse=True)
def a_folder_with_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study with trials of all kinds, an architecture, a finished training of it, other files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IGC_NAS_STORAGE", raising=False)
    study = stop(make(5, by_size, {2000: by_size}, name="made"), at=4)
    failed = Trial(number=5, state="failed", params={}, arch=study.trial(0).arch, reason="the loss is not finite")
    bare = Trial(number=6, state="infeasible", params={}, reason="over the budget")
    write(tmp_path / "studies" / "made", Study(study.spec, (*study.trials, failed, bare)))
    Path("arch.toml").write_text(ARCH.to_toml())
    Path("other.toml").write_text(ArchConfig.parse(ARCH.to_dict() | {"stem": {"width": 16}}).to_toml())
    Path("strided.toml").write_text(ArchConfig.parse(ARCH.to_dict() | {"stem": {"width": 8, "stride": 2}}).to_toml())
    training = Path("models/mine")
    training.mkdir(parents=True)
    (training / "arch.toml").write_text(ARCH.to_toml())
    (training / RUN_FILE).write_text("")
    save_file(build(ARCH, 0).state_dict(), training / WEIGHTS_FILE)
    result = {"id": arch_id(ARCH), "test_error": 0.0621, "test_images": 10_000, "dataset": "cifar10", "epochs": 30}
    (training / RESULT_FILE).write_text(json.dumps(result))
    Path("pickle.pt").write_bytes(b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R\x94.")
    Path("cut.safetensors").write_bytes((training / WEIGHTS_FILE).read_bytes()[:-9])
    save_file({f"model.{k}": v for k, v in build(ARCH, 0).state_dict().items()}, "checkpoint.safetensors")
    Path("unfinished").mkdir()


@pytest.fixture
def unproved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the process that runs the stand-alone file."""
    for module in (folder, proof):
        monkeypatch.setattr(module, "verify_standalone", lambda *_: 0.0)


@pytest.fixture
def ungraphed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Without torch's exporters: (kind, form) of each graph that was requested."""
    requested: list[tuple[Any, ...]] = []

    def graph(_: Exporter, kind: str, network: Network, form: str, metadata: Mapping[str, str]) -> Graph:
        requested.append((kind, form))
        return Graph("onnx", b"a graph", form, 9_876, 765_432, 3e-7, None, 20)

    monkeypatch.setattr(Exporter, "__call__", graph)
    return requested


def wrote(answer: Answer) -> str:
    """What a command that wrote a file said on stderr."""
    assert (answer.status, answer.out) == (0, ""), answer
    return answer.err


# What can be exported, as a config.


@pytest.mark.parametrize(("shape", "trains"), [((3, 12, 12), True), ((3, 12, 10), False), ((1, 12, 12), False)])
def test_the_next_step_of_a_config_is_a_training_where_one_takes_its_images(
    shape: tuple[int, int, int], trains: bool, cli: Command, tmp_path: Path, unproved: None
) -> None:
    (tmp_path / "arch.toml").write_text(ArchConfig.parse(ARCH.to_dict() | {"input": list(shape)}).to_toml())
    answer = cli("export", tmp_path / "arch.toml", "-o", tmp_path / "copy.toml")
    assert (answer.status, "igc-nas train" in answer.err) == (0, trains)
    answer = cli("export", tmp_path / "arch.toml", "--format", "dir", "-o", tmp_path / "folder")
    assert (answer.status, "igc-nas train" in answer.err) == (0, trains)


@pytest.mark.parametrize("what", ["arch.toml", "models/mine", "igcv1-l4m8-d8", "made:0", "made", "studies/made"])
def test_an_architecture_or_a_study_is_exported(what: str, cli: Command) -> None:
    answer = cli("export", what)
    assert answer.status == 0
    config = ArchConfig.from_toml(answer.out)
    if what in ("arch.toml", "models/mine"):
        assert config == ARCH
    elif "made" not in what or ":" in what:
        assert config == igc_nas.load_architecture(what)
    assert "wrote" in wrote(cli("export", what, "-o", "out.toml"))
    assert igc_nas.load_architecture("out.toml") == config


def test_other_classes(cli: Command) -> None:
    assert ArchConfig.from_toml(cli("export", "arch.toml", "--classes", "33").out).classes == 33
    assert ArchConfig.from_toml(cli("export", "made:0", "--classes", "33").out).classes == 33


@pytest.mark.parametrize(("number", "words"), [(4, "pruned, no final error"), (5, "is failed: the loss is not")])
def test_a_trial_that_did_not_end_well_is_exported_and_called_so(number: int, words: str, cli: Command) -> None:
    for command in (("made", "--pick", f"trial:{number}"), (f"made:{number}",)):
        answer = cli("export", *command)
        assert answer.status == 0
        assert words in answer.err
        assert words in answer.out
        assert ArchConfig.from_toml(answer.out) == igc_nas.load_architecture(f"made:{number}")


def test_a_config_is_exported_without_torch() -> None:
    code = """
import sys
from igc_nas.cli import main
assert main(["export", "made", "-o", "a.toml"]) == 0
assert main(["export", "arch.toml", "--format", "dir", "-o", "models"]) == 2
print(sorted({"torch", "optuna", "plotly", "pandas"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# In other formats.


def test_a_file_of_pytorch(cli: Command, tmp_path: Path) -> None:
    said = wrote(cli("export", "made:2", "-o", "model.py"))
    assert re.search(
        r"checked  in a separate process against the network: (equal|relative error [0-9.]+e-0[6-9])", said
    )
    done = subprocess.run([sys.executable, "-I", "model.py"], capture_output=True, text=True, check=True)
    assert f"{igc_nas.cost_of(igc_nas.load_architecture('made:2')).params:,} parameters" in done.stdout


def test_a_file_of_pytorch_on_stdout(cli: Command, unproved: None) -> None:
    answer = cli("export", "models/mine", "--format", "py")
    assert answer.status == 0
    assert "weights: test error 6.21 % on 10,000 images of cifar10" in answer.out
    assert "class Network(nn.Module):" in answer.out
    compile(answer.out, "model.py", "exec")


def test_a_folder_with_everything(cli: Command) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    out = Path("out")
    said = wrote(cli("export", "models/mine", "--format", "dir", "--form", "dense", "-o", out))
    assert "weights  models/mine: test error 6.21 % on 10,000 images of cifar10" in said
    assert "form     dense: " in said
    assert "checked  against PyTorch on random images" in said
    c_files = {"model.c", "model.h", "model_main.c"} if compiler() else set()
    assert {p.name for p in out.iterdir()} == c_files | {
        "README.md", "config.json", "config.toml", "model.onnx", "model.py", "model.safetensors",
    }  # fmt: skip
    assert ("checked  model.c, compiled and run" in said) == bool(c_files)
    if c_files:
        card = (out / "README.md").read_text()
        (command,) = [line for line in card.splitlines() if line.startswith("cc ")]
        subprocess.run(shlex.split(command), cwd=out, check=True)
        assert "`model.c` relative error" in card
    model = igc_nas.create_model(out / "config.toml", weights=out / "model.safetensors").eval()
    import onnxruntime

    x = torch.randn(3, 3, 12, 12)
    session = onnxruntime.InferenceSession(out / "model.onnx")
    found = torch.from_numpy(session.run(None, {"image": x.numpy()})[0])
    assert relative_error(found, model(x)) < 1e-4
    refused(cli("export", "models/mine", "--format", "dir", "-o", out), 2, "out exists", "--force")


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """No C compiler."""
    monkeypatch.setenv("CC", "no-such-compiler")


@pytest.mark.usefixtures("without_compiler")
def test_a_folder_with_weights_by_name(cli: Command, unproved: None, ungraphed: list[tuple[Any, ...]]) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    for weights in ("models/mine", f"models/mine/{WEIGHTS_FILE}"):
        said = wrote(cli("export", "arch.toml", "--weights", weights, "--format", "dir", "-o", "out", "--force"))
        assert "test error 6.21 %" in said
        assert "no model.c: the check of a C file needs a C compiler (install gcc or clang" in said
    assert "There is no `model.c`: the check of a C file needs a C compiler" in Path("out/README.md").read_text()
    assert ungraphed == [("onnx", "fastest")] * 2
    assert "6.21 %" in Path("out/README.md").read_text()
    assert str(Path.cwd()) not in Path("out/README.md").read_text() + Path("out/model.py").read_text()


@pytest.mark.usefixtures("without_compiler")
def test_a_folder_without_weights(cli: Command, unproved: None, ungraphed: list[tuple[Any, ...]]) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    said = wrote(cli("export", "made", "--format", "dir", "-o", "out"))
    assert "weights  none" in said
    assert "no model.onnx" in said
    assert "no model.c: it would hold weights, and there are none" in said
    assert {p.name for p in Path("out").iterdir()} == {"README.md", "config.json", "config.toml", "model.py"}
    said = wrote(cli("export", "made", "--format", "dir", "-o", "out", "--force", "--untrained", "--form", "semidense"))
    assert "UNTRAINED" in said
    assert {p.name for p in Path("out").iterdir()} == {
        "README.md", "config.json", "config.toml", "model.py", "model.onnx",
    }  # fmt: skip
    assert "UNTRAINED" in Path("out/README.md").read_text()
    assert ungraphed == [("onnx", "semidense")]


@pytest.mark.usefixtures("without_compiler")
def test_a_folder_without_the_extra_installed(cli: Command, unproved: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    said = wrote(cli("export", "models/mine", "--format", "dir", "-o", "out"))
    assert "no model.onnx: an ONNX file needs the package onnxruntime (pip install 'igc-nas[onnx]')" in said
    assert {p.name for p in Path("out").iterdir()} == {
        "README.md", "config.json", "config.toml", "model.py", "model.safetensors",
    }  # fmt: skip
    assert "needs the package onnxruntime" in Path("out/README.md").read_text()
    refused(
        cli("export", "models/mine", "-o", "model.onnx"),
        2,
        "needs the package onnxruntime",
        "pip install 'igc-nas[onnx]'",
    )
    assert not Path("model.onnx").exists()


def test_an_exported_program(cli: Command) -> None:
    said = wrote(
        cli("export", "arch.toml", "--format", "pt2", "--untrained", "--seed", "3", "--form", "folded", "-o", "m")
    )
    assert "UNTRAINED: random, of seed 3; predictions are meaningless" in said
    module = torch.export.load("m").module()
    x = torch.randn(2, 3, 12, 12)
    with torch.inference_mode():
        assert relative_error(module(x), build(ARCH, 3).eval()(x)) < 1e-4


@pytest.mark.parametrize(("name", "kind"), [("m.onnx", "onnx"), ("m.pt2", "pt2"), ("m.ONNX", "onnx")])
def test_the_suffix_selects_the_format(name: str, kind: str, cli: Command, ungraphed: list[tuple[Any, ...]]) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    assert "the training mine: " in wrote(cli("export", "models/mine", "-o", name))
    assert ungraphed == [(kind, "fastest")]
    assert Path(name).read_bytes() == b"a graph"


def test_a_file_holds_at_most_what_it_was_picked_by(cli: Command, ungraphed: list[tuple[Any, ...]]) -> None:
    params = igc_nas.cost_of(ARCH).params
    wrote(cli("export", "arch.toml", "-o", "fits.toml", "--budget-params", str(params)))
    refused(cli("export", "arch.toml", "-o", "big.toml", "--budget-params", str(params - 1)), 3, "may be deployed")
    most = ("--untrained", "--budget-params", "9875")  # the stub's graph has 9,876
    refused(cli("export", "arch.toml", *most, "-o", "big.onnx"), 3, "9,876 parameters", "at most 9,875")
    assert not Path("big.toml").exists()
    assert not Path("big.onnx").exists()


@pytest.mark.slow
def test_an_exported_config_keeps_the_limit_it_was_picked_by(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    smallest = min(load_study("made").candidates, key=lambda candidate: candidate.cost.params)
    limit = smallest.cost.params
    graph = Graph("onnx", b"a graph", "dense", limit + 1, 765_432, 3e-7, None, 20)
    monkeypatch.setattr(Exporter, "__call__", lambda *_: graph)
    wrote(cli("export", "made", "--pick", f"under:params={limit:,}", "-o", "picked.toml"))
    assert deployed_limit(Path("picked.toml")) == limit
    assert ArchConfig.load(Path("picked.toml")) == smallest.arch
    (Path("models/mine") / "arch.toml").write_text(ARCH.to_toml(limit))
    for what in ("picked.toml", "models/mine"):
        words = ("export", what, "-o", "net.onnx", *(["--untrained"] if what == "picked.toml" else []))
        refused(cli(*words), 3, f"{limit + 1:,} parameters; at most {limit:,} may be deployed")
        assert not Path("net.onnx").exists()
        wrote(cli(*words, "--budget-params", str(limit + 1), "--force"))
        Path("net.onnx").unlink()
    wrote(cli("export", "picked.toml", "-o", "again.toml"))
    assert deployed_limit(Path("again.toml")) == limit
    Path("picked.toml").write_text(ARCH.to_toml(limit).replace(str(limit), '"9k"'))
    refused(cli("cost", "picked.toml"), 2, "picked.toml: budget_params: '9k' is not a positive whole number")


def test_the_fastest_form_as_onnx(cli: Command) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    said = wrote(cli("export", "models/mine", "-o", "model.onnx"))
    assert "exporting the form folded ..." in said
    assert "in ONNX Runtime" in said


# One error each.

BAD: list[tuple[str, int, tuple[str, ...]]] = [
    ("export nothing", 4, ("unknown study 'nothing'",)),
    ("export nothing.toml", 2, ("nothing.toml",)),
    ("export igcv1-l4m8-d9", 2, ("the depth is",)),
    ("export nothing:3", 4, ("unknown study",)),
    ("export made:99", 4, ("has no trial 99", "0 to 6")),
    ("export made:6", 4, ("infeasible and has no architecture (over the budget)", "the nearest that is complete")),
    ("export made --pick trial:6", 4, ("has no architecture", "trial:3")),
    ("export made --pick under:params=1", 4, ("no completed trial", "the nearest is trial:")),
    ("export made:0 --pick knee", 2, ("--pick goes with a study", "'made:0' is one architecture")),
    ("export arch.toml --pick knee", 2, ("--pick goes with a study",)),
    ("export arch.toml --format zip", 2, ("zip",)),
    ("export arch.toml --weights models/mine", 2, ("a config holds no weights", "--format py")),
    ("export arch.toml --untrained", 2, ("--untrained does not go with toml",)),
    ("export arch.toml --format py --form dense", 2, ("--form does not go with py",)),
    ("export arch.toml --format py --untrained", 2, ("--untrained does not go with py",)),
    ("export arch.toml --format onnx", 2, ("onnx is not for stdout", "-o model.onnx")),
    ("export arch.toml --format dir", 2, ("dir is not for stdout",)),
    ("export arch.toml -o m.onnx", 2, ("onnx holds weights, and there are none", "--untrained")),
    ("export arch.toml -o m.pt2 --weights models/mine --untrained", 2, ("exclude each other",)),
    ("export arch.toml --format dir -o out --form dense", 2, ("--form is of model.onnx",)),
    ("export arch.toml -o m.pt2 --untrained --form fast", 2, ("fast",)),
    ("export arch.toml --format dir -o models", 2, ("models exists", "--force")),
    ("export arch.toml --format dir -o models --force", 2, ("'mine', which igc-nas export does not write",)),
    ("export arch.toml --format dir -o unfinished --force", 2, ("not a folder of igc-nas export",)),
    ("export arch.toml --format dir -o arch.toml --force", 2, ("arch.toml is not a folder",)),
    ("export arch.toml -o models --force", 2, ("models is a folder",)),
    ("export models/mine --format dir -o nowhere/out", 1, ("cannot write nowhere/out",)),
    ("export other.toml --format py --weights models/mine", 2, (
        "weights.safetensors holds weights of another architecture: stem.conv.weight is (8, 3, 3, 3), "
        "the network has (16, 3, 3, 3)",)),
    ("export strided.toml --format py --weights models/mine", 2, ("same shapes, but it computes another function",)),
    ("export arch.toml --classes 5 --format py --weights models/mine", 2, (
        "classifier.linear.weight is (10, 8), the network has (5, 8)", "of 10 classes")),
    ("export arch.toml --format py --weights pickle.pt", 2, ("pickle.pt is not a readable safetensors file",)),
    ("export arch.toml --format py --weights cut.safetensors", 2, ("cut.safetensors is not a readable safetensors",)),
    ("export arch.toml --format py --weights checkpoint.safetensors", 2, (
        "stem.conv.weight is nothing", "looks like a checkpoint")),
    ("export arch.toml --format py --weights nothing.safetensors", 2, ("nothing.safetensors",)),
    ("export arch.toml --format py --weights unfinished", 4, ("unfinished has no weights.safetensors", "continues it")),
]  # fmt: skip


@pytest.mark.parametrize(("line", "status", "words"), BAD, ids=[line for line, _, _ in BAD])
def test_wrong_input_is_one_error_and_nothing_is_written(
    line: str, status: int, words: tuple[str, ...], cli: Command, unproved: None, ungraphed: list[tuple[Any, ...]],
    tmp_path: Path,
) -> None:  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    answer = cli(*line.split())
    refused(answer, status, *words) if "zip" not in line and "--form fast" not in line else None
    assert answer.status == status
    assert sorted(tmp_path.rglob("*")) == before
    assert ungraphed == [], "it is said before anything is exported"


def test_a_file_that_fails_its_check_is_not_written(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object) -> float:
        raise UsageError("the stand-alone file does not run by itself")

    for module in (folder, proof):
        monkeypatch.setattr(module, "verify_standalone", wrong)
    Path("old.py").write_text("mine")
    refused(cli("export", "arch.toml", "-o", "old.py", "--force"), 2, "does not run by itself")
    assert Path("old.py").read_text() == "mine"
    refused(cli("export", "arch.toml", "--format", "dir", "-o", "out"), 2, "does not run by itself")
    assert not Path("out").exists()


# C.


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.skipif(compiler() is None, reason="no C compiler")
def test_c_is_three_files_beside_each_other(cli: Command, empty: Path) -> None:
    small = (empty.parent / "arch.toml", "--untrained")
    answer = cli("export", *small, "-o", empty / "net.c")
    assert answer.status == 0, answer.err
    assert {path.name for path in empty.iterdir()} == {"net.c", "net.h", "net_main.c"}
    assert "relative error" in answer.err
    refused(cli("export", *small, "-o", empty / "net.c"), 2, "net.c exists")
    (empty / "net.c").unlink()
    refused(cli("export", *small, "-o", empty / "net.c"), 2, "net.h exists")
    again = cli("export", *small, "--weights-file", "--force", "-o", empty / "net.c")
    assert again.status == 0, again.err
    assert (empty / "net.bin").stat().st_size % 64 == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-o", "net.c"), "c holds weights"),
        (("--untrained", "--format", "c"), "not for stdout"),
        (("--untrained", "--form", "dense", "-o", "net.c"), "--form does not go with c"),
        (("--untrained", "--weights-file", "-o", "net.onnx"), "--weights-file does not go with onnx"),
        (("--untrained", "-o", "my-net.c"), "cannot be the name of a C function"),
    ],
)
def test_wrong_input_for_c(words: tuple[str, ...], said: str, cli: Command, empty: Path) -> None:
    refused(cli("export", "igcv1-l8m2-d8", *words), 2, said)
    assert list(empty.iterdir()) == []


def test_c_needs_a_compiler(cli: Command, monkeypatch: pytest.MonkeyPatch, empty: Path) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    answer = cli("export", "igcv1-l8m2-d8", "--untrained", "-o", empty / "net.c")
    refused(answer, 2, "the check of a C file needs a C compiler")


def test_an_architecture_is_written_for_images_of_another_size(cli: Command) -> None:
    assert cli("export", "made", "--image-size", "48", "-o", "large.toml").status == 0
    text = Path("large.toml").read_text()
    assert ArchConfig.from_toml(text).input == (3, 48, 48)
    assert "at 48 pixels" in text
    assert "latency" not in text  # what the trial measured was of 32 pixels
    refused(cli("export", "made", "--image-size", "1", "-o", "small.toml"), 2, "the strides multiply to")
