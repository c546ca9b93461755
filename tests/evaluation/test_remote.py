"""Latency by a command: no shell, no child left behind; a record under other conditions than the study's is refused."""

import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import igc_nas
from igc_nas.arch.config import ArchConfig
from igc_nas.arch.papers import reference
from igc_nas.errors import IgcNasError, UsageError
from igc_nas.evaluation.remote import CommandMeasurer, remote_spec
from igc_nas.study.records import FormTime, Latency
from igc_nas.study.spec import LatencySpec
from tests.support.builders import one_line
from tests.support.caches import own_cache
from tests.support.commands import ends
from tests.support.searches import CONDITIONS, latency

ARCH = ArchConfig.parse({"stem": {"width": 8, "stride": 4}, "stage": [{"unit": "conv", "width": 8, "blocks": 1}]})
SPEC = LatencySpec(device="stub", forms="any")
FORMS = {
    name: FormTime(params=p, macs=9 * p, weight_bytes=4 * p, median_ms=ms, low_ms=ms, high_ms=ms)
    for name, p, ms in (("factored", 1000, 2.1), ("dense", 9000, 1.9))
}
RECORD = latency(
    1.9,
    normalised_low_ms=1.85,
    normalised_high_ms=1.9 + 1 / 7,
    noisy=True,
    noise=("its processor was shared",),
    form="dense",
    deployed_params=9000,
    deployed_macs=81000,
    weight_bytes=36000,
    forms=FORMS,
)

Script = Callable[..., str]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """A Python program as a command line."""

    def write(code: str, name: str = "measure.py") -> str:
        path = tmp_path / name
        path.write_text(code, encoding="utf-8")
        return shlex.join([sys.executable, "-SE", str(path)])

    return write


def printing(text: str, before: str = "") -> str:
    """A program that reads its input and prints `text`."""
    return f"import sys\ngiven = sys.stdin.read()\n{before}\nprint({text!r})\n"


def saying(record: Latency, before: str = "", **more: Any) -> str:
    return printing(json.dumps({**record.model_dump(mode="json"), **more}), before)


# What a command measures.


def test_a_record_is_returned_unchanged(script: Script) -> None:
    assert CommandMeasurer(script(saying(RECORD)))(ARCH) == RECORD
    assert CommandMeasurer(script(saying(RECORD)), SPEC, 10)(ARCH) == RECORD, "any form, whatever the budget"


def test_keys_that_are_not_the_records_are_ignored(script: Script) -> None:
    code = saying(RECORD, n=3, reference="regconv-w16-d8", params=5, arch=ARCH.to_dict(), later_key=[1])
    assert CommandMeasurer(script(code))(ARCH) == RECORD


def test_times_are_normalised_to_the_studys_reference(script: Script) -> None:
    record = RECORD.model_copy(update={"reference_ms": 4.0})
    found = CommandMeasurer(script(saying(record)), SPEC)(ARCH, reference_ms=6.0)
    assert found.normalised_ms == pytest.approx(1.5 * record.normalised_ms)
    assert found.normalised_interval_ms == pytest.approx(tuple(1.5 * ms for ms in record.normalised_interval_ms))
    changed = {"normalised_ms", "normalised_low_ms", "normalised_high_ms"}
    assert found.model_dump(exclude=changed) == record.model_dump(exclude=changed)


def test_a_record_without_a_normalised_interval_gets_one(script: Script) -> None:
    record = latency(2.0, reference_ms=4.0, normalised_ms=3.0)
    found = CommandMeasurer(script(saying(record)))(ARCH, reference_ms=2.0)
    assert found.normalised_ms == pytest.approx(1.5)
    assert (found.normalised_low_ms, found.normalised_high_ms) == pytest.approx((1.5 * 0.99, 1.5 * 1.01))


@pytest.mark.parametrize("name", ["igcv1-l24m2-d20-res", "igcv2-c64-k8-d20", "igcv3-d-cifar", "regconv-w16-d8"])
def test_the_command_reads_the_architecture_as_toml(name: str, script: Script, tmp_path: Path) -> None:
    arch = reference(name).arch
    kept = tmp_path / "stdin.toml"
    command = script(saying(RECORD, before=f"open({str(kept)!r}, 'w').write(given)"))
    CommandMeasurer(command)(arch)
    assert ArchConfig.from_toml(kept.read_text(), "stdin") == arch


def test_a_program_need_not_read_its_input(script: Script) -> None:
    assert CommandMeasurer(script(f"print({RECORD.model_dump_json()!r})"))(ARCH) == RECORD


@pytest.mark.parametrize(
    "words",
    [
        "; touch marker",
        "$(touch marker)",
        "`touch marker`",
        "| touch marker",
        "&& touch marker",
        "> marker",
        "& touch marker",
        "$HOME ~ * ?",
        "\n touch marker",
    ],
)
def test_no_shell_reads_the_command(
    words: str, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kept = tmp_path / "arguments.json"
    before = f"import json\njson.dump(sys.argv[1:], open({str(kept)!r}, 'w'))"
    assert CommandMeasurer(script(saying(RECORD, before)) + " " + words)(ARCH) == RECORD
    assert json.loads(kept.read_text()) == words.split()
    assert not (tmp_path / "marker").exists()


def test_quotes_keep_words_together(script: Script, tmp_path: Path) -> None:
    kept = tmp_path / "arguments.json"
    before = f"import json\njson.dump(sys.argv[1:], open({str(kept)!r}, 'w'))"
    CommandMeasurer(script(saying(RECORD, before), "a name; with $pace.py") + " 'one two' \"three\"")(ARCH)
    assert json.loads(kept.read_text()) == ["one two", "three"]


# What is no measurement.

PLAIN = RECORD.model_dump(mode="json")
NO_RECORD = {
    "silence": (printing(""), "printed nothing"),
    "blanks": (printing(" \n\t\n"), "printed nothing"),
    "words": (printing("1.9 ms"), "not JSON"),
    "a banner first": (printing("Welcome to pi!\n" + json.dumps(PLAIN)), "not JSON"),
    "a list": (printing(json.dumps([PLAIN])), "not a record"),
    "a number": (printing("1.9"), "not a record"),
    "null": (printing("null"), "not a record"),
    "no fields": (printing("{}"), "median_ms: Field required"),
    "a field too few": (printing(json.dumps(PLAIN | {"conditions": None})), "conditions"),
    "NaN": (printing(json.dumps(PLAIN | {"median_ms": float("nan")})), "median_ms"),
    "infinity": (printing(json.dumps(PLAIN | {"normalised_ms": float("inf")})), "normalised_ms"),
    "overflow": (printing(json.dumps(PLAIN).replace('"low_ms": 1.881', '"low_ms": 1e999')), "low_ms"),
    "negative": (printing(json.dumps(PLAIN | {"reference_ms": -1.0})), "reference_ms"),
    "zero": (printing(json.dumps(PLAIN | {"median_ms": 0.0})), "median_ms"),
    "a text for a number": (printing(json.dumps(PLAIN | {"median_ms": "1.9"})), "median_ms"),
    "a sample below zero": (printing(json.dumps(PLAIN | {"samples_ms": [1.0, -1.0]})), "samples_ms"),
    "a form without counts": (printing(json.dumps(PLAIN | {"forms": {"dense": {}}})), "forms.dense"),
    "deep": (printing("[" * 100_000), "not JSON"),
    "digits": (printing('{"median_ms": ' + "9" * 5000 + "}"), "not JSON"),
    "bytes": ("import sys\nsys.stdout.buffer.write(b'\\xff\\xfe{}')", "not text"),
    "another image": (saying(RECORD.model_copy(update={"input": (3, 64, 64)})), "measured images of (3, 64, 64)"),
    "status 3": ("import sys\nsys.exit(3)", "status 3: nothing on stderr"),
    "status 3 with a record": (saying(RECORD) + "sys.exit(3)", "status 3"),
    "killed": ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "status -9"),
}


@pytest.mark.parametrize("what", NO_RECORD)
def test_other_output_is_an_error_of_one_line(what: str, script: Script) -> None:
    code, words = NO_RECORD[what]
    with pytest.raises(IgcNasError) as raised:
        CommandMeasurer(script(code))(ARCH)
    assert words in one_line(raised)
    assert "latency command" in raised.value.message


def test_stderr_of_a_failing_command_is_quoted_without_escapes(script: Script) -> None:
    code = r"import sys; sys.stderr.write('\x1b[31mno such\nhost\x1b[2J \x07\u202e' + 'x' * 9); sys.exit(3)"
    with pytest.raises(IgcNasError) as raised:
        CommandMeasurer(script(code))(ARCH)
    message = one_line(raised)
    assert message.startswith("the latency command failed with status 3: ")
    assert "no such" in message
    assert message.endswith("xxxxxxxxx")
    assert not set(message) & {"\x1b", "\x07", "\n", "\u202e"}


def test_stderr_that_is_not_text_is_quoted_as_far_as_it_is(script: Script) -> None:
    code = r"import sys; sys.stderr.buffer.write(b'no \xff\xfe host'); sys.exit(3)"
    with pytest.raises(IgcNasError) as raised:
        CommandMeasurer(script(code))(ARCH)
    assert re.fullmatch(r"the latency command failed with status 3: no \S+ host", one_line(raised))


def test_only_the_end_of_a_long_stderr_is_quoted(script: Script) -> None:
    with pytest.raises(IgcNasError) as raised:
        CommandMeasurer(script("import sys; sys.stderr.write('a' * 100_000 + 'the end'); sys.exit(1)"))(ARCH)
    assert one_line(raised).endswith("athe end")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", "is empty"),
        ("  \n ", "is empty"),
        ("# only a comment", "cannot be started"),
        ("measure 'unbalanced", "cannot be read: No closing quotation"),
        ('measure "unbalanced', "cannot be read"),
        ("measure \\", "cannot be read: No escaped character"),
        ("igc-no-such-program --json -", "cannot be started: No such file or directory: igc-no-such-program"),
        ("./nothing/here", "cannot be started"),
        ("''", "cannot be started"),
        ("'ssh pi igc-nas measure --json -'", "cannot be started"),
        ("x" * 5000, "cannot be started"),
    ],
)
def test_a_command_that_cannot_be_started_is_a_usage_error(command: str, words: str) -> None:
    with pytest.raises(UsageError) as raised:
        CommandMeasurer(command)(ARCH)
    assert words in one_line(raised)


def test_a_folder_or_a_text_file_cannot_be_started(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("hello")
    for path in (tmp_path, text):
        with pytest.raises(UsageError) as raised:
            CommandMeasurer(shlex.quote(str(path)))(ARCH)
        assert "Permission denied" in one_line(raised)


def test_a_command_that_hangs_is_killed(script: Script) -> None:
    before = psutil.Process().children(recursive=True)
    with pytest.raises(IgcNasError) as raised:
        CommandMeasurer(script("import time\nwhile True: time.sleep(60)"), timeout_s=0.5)(ARCH)
    assert one_line(raised) == "the latency command took longer than 0.5 s"
    assert psutil.Process().children(recursive=True) == before


def test_a_command_that_prints_and_then_hangs_is_killed(script: Script) -> None:
    code = saying(RECORD) + "sys.stdout.flush()\nimport time\ntime.sleep(600)"
    with pytest.raises(IgcNasError, match=r"took longer than 0\.5 s"):
        CommandMeasurer(script(code), timeout_s=0.5)(ARCH)


def test_children_of_a_hanging_command_are_killed_too(script: Script, tmp_path: Path) -> None:
    kept = tmp_path / "pid"
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-SE', '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(kept)!r}, 'w').write(str(child.pid))\nchild.wait()"
    )
    with pytest.raises(IgcNasError, match="took longer"):
        CommandMeasurer(script(code), timeout_s=1.5)(ARCH)
    assert ends(int(kept.read_text()))


# What was measured under other conditions than the study's.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch": 2}, "batch 2; the study's is 1"),
        ({"runtime": "onnxruntime"}, "runtime onnxruntime; the study's is eager"),
        ({"dtype": "float16"}, "dtype float16; the study's is float32"),
        ({"memory_format": "contiguous"}, "memory_format contiguous; the study's is channels_last"),
        ({"cuda_graph": True}, "cuda_graph True; the study's is False"),
        ({"cold_cache": True}, "cold_cache True; the study's is False"),
        ({"conditions": CONDITIONS.model_copy(update={"threads": 4})}, "threads 4; the study's is 1"),
        ({"conditions": CONDITIONS.model_copy(update={"device": "pi"})}, "device pi; the study's is stub"),
    ],
)
def test_other_conditions_than_the_studys_are_refused(changes: dict[str, Any], words: str, script: Script) -> None:
    command = script(saying(RECORD.model_copy(update=changes)))
    with pytest.raises(IgcNasError) as raised:
        CommandMeasurer(command, SPEC)(ARCH)
    assert words in one_line(raised)
    spec = remote_spec(CommandMeasurer(command)(ARCH), SPEC)
    assert spec.remote
    assert CommandMeasurer(command, spec)(ARCH).median_ms == RECORD.median_ms, "a study made of it takes it"


def test_another_form_than_the_studys_is_refused(script: Script) -> None:
    factored = SPEC.model_copy(update={"forms": "factored"})
    with pytest.raises(IgcNasError) as raised:
        CommandMeasurer(script(saying(RECORD)), factored)(ARCH)
    assert "another form than the factored" in one_line(raised)
    assert raised.value.hint == "add --forms factored to it"
    assert CommandMeasurer(script(saying(latency(1.0))), factored)(ARCH) == latency(1.0)


def test_a_form_over_the_budget_is_refused(script: Script) -> None:
    spec = SPEC.model_copy(update={"forms": "within-budget"})
    command = script(saying(RECORD))
    with pytest.raises(IgcNasError) as raised:
        CommandMeasurer(command, spec, most_params=8999)(ARCH)
    assert "a form of 9,000 parameters, over 8,999" in one_line(raised)
    assert raised.value.hint == "add --budget-params 8999 to it"
    assert CommandMeasurer(command, spec, most_params=9000)(ARCH) == RECORD
    assert CommandMeasurer(command, spec)(ARCH) == RECORD, "no budget, no limit"


def test_a_devices_name_is_quoted_without_escapes(script: Script) -> None:
    record = RECORD.model_copy(update={"conditions": CONDITIONS.model_copy(update={"device": "\x1b[31mpi\n" * 200})})
    with pytest.raises(IgcNasError) as raised:
        CommandMeasurer(script(saying(record)), SPEC)(ARCH)
    one_line(raised)


@pytest.mark.parametrize(
    "changes", [{"runtime": "tflite"}, {"memory_format": "blocked"}, {"batch": 0}, {"dtype": "float64"}, {"dtype": ""}]
)
def test_invalid_conditions_are_refused_when_the_study_is_made(changes: dict[str, Any]) -> None:
    with pytest.raises(IgcNasError) as raised:
        remote_spec(RECORD.model_copy(update=changes), SPEC)
    assert next(iter(changes)) in one_line(raised)


def test_a_new_study_takes_its_conditions_from_the_command() -> None:
    record = RECORD.model_copy(
        update={
            "batch": 8,
            "runtime": "openvino",
            "memory_format": "contiguous",
            "conditions": CONDITIONS.model_copy(update={"threads": 3, "device": "pi"}),
        }
    )
    spec = remote_spec(record, SPEC)
    assert (spec.batch, spec.runtime, spec.memory_format, spec.dtype) == (8, "openvino", "contiguous", "float32")
    assert (spec.threads, spec.device, spec.remote, spec.forms) == (3, "pi", True, SPEC.forms)
    assert LatencySpec.parse(spec.model_dump()) == spec


# The program itself is such a command.


def test_igc_nas_measure_works_as_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = str(Path(igc_nas.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))))
    own_cache(tmp_path / "cache", monkeypatch)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = shlex.join(
        [sys.executable, "-m", "igc_nas", "measure", "--device", "cpu", "--runtime", "eager", "--json", "-"]
    )
    found = CommandMeasurer(command)(ARCH, reference_ms=7.0)
    assert (found.batch, found.runtime, found.input, found.conditions.threads) == (1, "eager", ARCH.input, 1)
    assert found.form in found.forms
    assert found.n == len(found.reference_samples_ms) >= 31
    low, high = found.normalised_interval_ms
    assert 0 < low <= found.normalised_ms <= high
    assert list((tmp_path / "cache").rglob("*.json")), "chain times are kept where IGC_NAS_CACHE says"
    spec = remote_spec(found, SPEC)
    assert (spec.device, spec.threads, spec.remote) == (found.conditions.device, 1, True)
