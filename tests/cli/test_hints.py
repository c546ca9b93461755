"""What a person types wrong is answered with what to type instead; the same command twice does no harm."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import igc_nas
from igc_nas.analysis.finalists import finalists
from igc_nas.cli.display import front_lines
from igc_nas.cli.loading import load
from igc_nas.cli.search import end_words, search
from igc_nas.cli.study_flags import SearchRequest, check_request, resolve_study
from igc_nas.engine.search import Run
from igc_nas.engine.search import search as run_search
from igc_nas.engine.store import Store
from igc_nas.errors import StudyError
from igc_nas.nn.device import Device
from igc_nas.study.names import dataset_option
from igc_nas.study.status import status_of
from igc_nas.study.study import Study, load_study
from tests.support.commands import Command, refused
from tests.support.searches import evaluate, latency, searched, spec

HERE = Device("cpu", "cpu", "a processor")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The study `made` of eight invented trials, in ./studies."""
    monkeypatch.chdir(tmp_path)
    searched(Path("studies/made"), 8, spec(name="made", sampler="random"))
    return load_study("made")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("export made -o x.tflite", ("ending of x.tflite", ".onnx")),
        ("export made -o model.pth", ("ending of model.pth",)),
        ("show made", ("'made' is a study", "made:", "--pick")),
        ("measure made", ("'made' is a study", "made:")),
        ("search --recipe foo=1", ("recipe: foo: unknown key", "epochs", "train_size", "resolution")),
        ("search --recipe epoch=1", ("unknown key", "did you mean epochs?")),
        ("search --epochs 5", ("--recipe epochs=VALUE",)),
        ("front made --limit 5", ("did you mean --top?",)),
        ("front made --srt params", ("Did you mean '--sort'?",)),
        ("fron made", ("'front'",)),
        ("front mad", ("did you mean made?",)),
        ("dashboard made --picture f.gif", ("does not end in .png or .svg or .pdf", "name it f.png")),
        ("cost stages.toml", ("stages: unknown key; did you mean stage?",)),
        ("export made --pick smalest", ("unknown pick 'smalest'", "did you mean smallest? use knee,", "under:params")),
        ("export made --pick trail:3", ("did you mean trial?",)),
        ("export made --pick under:parms=5k", ("did you mean params?",)),
        ("finals made --pick frnt", ("did you mean front? use front, knee",)),
        ("finals made --baselines literatur", ("did you mean literature?",)),
        ("search --baselines literatur", ("did you mean literature?",)),
        ("front made --sort Eror", ("is not one of 'error', 'params'", "did you mean error?")),
        ("search --sampler evo", ("did you mean evolution?",)),
        ("search --goal best", ("did you mean best-error?",)),
        ("search --recipe dtype=flot32 --dataset shapes --space tiny", ("did you mean float32?",)),
        ("search --device gpu --dataset shapes --space tiny", ("unknown device 'gpu'", "did you mean cuda?")),
        ("search --ray-address 1.2.3.4:6379", ("add --executor ray",)),
        ("search --storage sqllite:///x.db", ("did you mean sqlite?",)),
        ("measure made:0 --runtime onnxruntim", ("did you mean onnxruntime?",)),
        ("export made -o x.onx", ("did you mean onnx? use .toml, .py, .onnx",)),
        ("dashboard made --picture f.pgn", ("did you mean png?",)),
        ("bench sampler --samplers known-csot", ("did you mean known-cost?",)),
        ("space --budget-params 2M", ("none is named", "igc-nas space igc_cifar")),
        ("cost units.toml", ("unknown unit 'igvc2'", "did you mean igcv2?")),
    ],
)
def test_wrong_input_names_what_to_type(line: str, words: tuple[str, ...], made: Study, cli: Command) -> None:
    arch = made.candidates[0].arch.to_toml()
    Path("stages.toml").write_text(arch.replace("[[stage]]", "[[stages]]"))
    Path("units.toml").write_text(re.sub('unit = ".*"', 'unit = "igvc2"', arch))
    answer = cli(*line.split())
    refused(answer, answer.status, *words)
    assert answer.status in (2, 4)
    assert {path.name for path in Path().iterdir()} == {"studies", "stages.toml", "units.toml"}
    assert {path.name for path in Path("studies").iterdir()} == {"made"}
    assert not Path("studies/made/dashboard.html").exists()


def test_what_is_wrong_with_a_request_is_said_before_torch_is_loaded(made: Study) -> None:
    lines = [
        "search --space tiny --budget-params 10", "search --recipe foo=1", "search --space nosuch",
        "search --study a/b", "search --enqueue nosuch", "search --dataset nosuch", "search --objectives eror,params",
        "finals made --pick smalest", "finals made --recipe foo=1", "train nosuch", "train resnet20-a --recipe foo=1",
    ]  # fmt: skip
    code = f"""
import sys
from igc_nas.cli import main
for line in {lines!r}:
    print(main(line.split()), "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["3 False", *["2 False"] * (len(lines) - 1)]


def test_an_unknown_argument_in_python_names_the_nearest() -> None:
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'budget_param'; did you mean budget_params\?"):
        igc_nas.search(budget_param="2M")


def test_the_same_export_twice_is_no_error_another_one_is(made: Study, cli: Command) -> None:
    best, knee = made.pick("best-error"), made.pick("knee")
    for _ in range(2):
        assert cli("export", "made", "--pick", f"trial:{best.trial}", "-o", "arch.toml").status == 0
    other = next(c for c in (knee, *made.candidates) if c.arch != best.arch)
    refused(cli("export", "made", "--pick", f"trial:{other.trial}", "-o", "arch.toml"), 2, "arch.toml exists")


def test_a_limit_holds_what_is_deployed(made: Study) -> None:
    small = min(made.candidates, key=lambda c: c.cost.params)
    grown = {"form": "dense", "deployed_params": 10 * small.cost.params, "deployed_macs": small.cost.macs}
    changed = small.model_copy(update={"latency": small.latency.model_copy(update=grown)})
    trials = [t.model_copy(update={"candidate": changed}) if t.number == small.trial else t for t in made.trials]
    study = Study(made.spec, tuple(trials), made.folder)
    assert made.pick(f"under:params={small.cost.params}") == small
    rule = f"under:params={small.cost.params}"
    for pick in (study.pick, lambda rule: finalists(study, [rule], 1)):
        with pytest.raises(StudyError, match=r"(?s)is within that.*params "):
            pick(rule)


def name_of(**options: object) -> str:
    request = SearchRequest(space="tiny", dataset="shapes", **options)  # type: ignore[arg-type]
    return resolve_study(request, HERE).spec.name


def test_an_automatic_name_holds_what_distinguishes_a_study(made: Study) -> None:
    variations: list[dict[str, object]] = [
        {}, {"sampler": "tpe"}, {"latency_runtime": "eager"}, {"recipe": ("epochs=3",)}, {"recipe": ("epochs=4",)},
        {"objectives": "error,macs"}, {"sampler": "tpe", "recipe": ("epochs=3",)}, {"seed": 1}, {"budget_params": 3000},
    ]  # fmt: skip
    names = [name_of(**options) for options in variations]
    assert len(set(names)) == len(names)
    assert names == [name_of(**options) for options in variations]
    assert names[0] == "tiny-shapes-any-s0"
    assert names[1] == "tiny-shapes-any-s0-tpe"


def test_a_study_of_the_older_automatic_name_is_continued(made: Study) -> None:
    old = spec(name="tiny-shapes-any-s0", sampler="tpe")
    with Store(Path("studies/tiny-shapes-any-s0"), old):
        pass
    device = Device("cpu", "cpu", old.latency.device)
    request = SearchRequest(space="tiny", dataset="shapes", sampler="tpe")
    assert resolve_study(request, device).spec.name == "tiny-shapes-any-s0"


def test_a_study_in_a_folder_of_another_name_is_continued_by_what_is_proposed(
    made: Study, cli: Command, tmp_path: Path
) -> None:
    """Moved and renamed, with a blank in either name: each command that is proposed is one that works."""
    folder = tmp_path / "other studies" / "näme of its own"
    folder.parent.mkdir()
    (tmp_path / "studies/made").rename(folder)
    (command,) = (line for line in status_of(load_study(folder)).next_commands() if " search " in line)
    typed = shlex.split(command)[2:]
    with search.make_context("search", [*typed, "--dataset", "shapes"]) as context:
        request = SearchRequest(**context.params)
    check_request(request)
    assert resolve_study(request, Device("cpu", "cpu", "stub")).folder == folder
    proposed = cli("front", str(folder), "--finals").err.splitlines()[-1]
    assert cli(*shlex.split(proposed)[1:], "--dry-run", "--no-latency").status == 0
    empty = Path("some studies/empty")
    with Store(empty, spec(name="older")):
        pass
    for line in ("front", "export"):
        typed = shlex.split(cli(line, str(empty)).err.splitlines()[-1])
        assert typed == ["igc-nas", "search", "--studies-dir", "some studies", "--study", "empty"]


def test_commands_for_a_study_without_a_folder_name_its_database(
    made: Study, cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'of all.db'}"
    list(run_search(spec(name="far"), Run(tmp_path / "elsewhere/far", trials=3, storage=url), evaluate=evaluate))
    lines = cli("status", "far", "--json", "--storage", url).json["next"]
    assert [line.split()[1] for line in lines] == ["search", "front", "dashboard"]
    continued, *others = (shlex.split(line) for line in lines)
    with search.make_context("search", [*continued[2:], "--dataset", "shapes"]) as context:
        request = SearchRequest(**context.params)
    assert resolve_study(request, Device("cpu", "cpu", "stub")).continued
    for typed in others:
        assert cli(*typed[1:]).status == 0
    monkeypatch.setenv("IGC_NAS_STORAGE", url)
    assert not any("--storage" in line for line in cli("status", "far", "--json").json["next"])


def test_a_front_from_a_database_names_no_command_that_reads_folders_only(
    made: Study, cli: Command, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'all.db'}"
    list(run_search(spec(name="far"), Run(tmp_path / "elsewhere/far", trials=3, storage=url), evaluate=evaluate))
    for study, commands in ((made, 1), (load("far", Path("studies"), url), 0)):
        text = "\n".join(front_lines(study, study.front(), ("error", "params"), 80))
        assert text.count("igc-nas") == commands


@pytest.mark.parametrize(
    ("label", "option"),
    [
        ("cifar10", ""),
        ("cifar10 (unofficial, sha256:ac96d8242f2c)", ""),
        ("cifar100", " --dataset cifar100"),
        ("shapes", " --dataset shapes"),
        ("folder:flowers (32 px, sha256:ac96d8242f2c)", " --dataset FOLDER"),
    ],
)
def test_a_network_of_a_study_is_trained_on_the_images_of_the_study(
    label: str, option: str, made: Study, cli: Command
) -> None:
    text = Path("studies/made/study.toml").read_text()
    Path("studies/made/study.toml").write_text(text.replace('dataset = "shapes"', f'dataset = "{label}"'))
    assert cli("export", "made", "-o", "own.toml").err.endswith(f"igc-nas train own.toml{option}\n")


def test_a_search_of_ones_own_images_ends_with_the_command_that_trains_on_them(tmp_path: Path) -> None:
    (tmp_path / "my images").mkdir()
    label = "folder:my images (32 px, sha256:ac96d8242f2c)"
    assert dataset_option(label, str(tmp_path / "my images")) == f" --dataset '{tmp_path}/my images'"
    assert dataset_option(label, "auto") == " --dataset FOLDER"


def test_a_search_that_trained_for_longer_only_was_not_too_short(made: Study) -> None:
    again = made.trials[0].model_copy(update={"number": 8, "longer_of": 0})
    longer = Study(made.spec, (*made.trials, again))
    assert "before a trial ended" in end_words(made, made, None, is_over=True)
    assert "before a trial ended" in end_words(None, Study(made.spec, ()), 3, is_over=True)
    assert end_words(made, longer, None, is_over=True) == ""
    assert end_words(made, longer, 9, is_over=True) == "ended with 8 of 9 trials because its time is over"


def test_a_path_with_a_blank_is_quoted_where_it_is_proposed(made: Study, cli: Command) -> None:
    assert "igc-nas train 'my arch.toml'" in cli("export", "made", "-o", "my arch.toml").err
    assert "igc-nas search --space 'my space.toml'" in cli("space", "--new", "my space.toml").err
    Path("studies").rename("my studies")
    assert "igc-nas export 'my studies/made' --pick" in cli("show", "my studies/made").err


def test_a_noisy_front_ends_with_what_to_type(made: Study, cli: Command) -> None:
    noisy = {c.trial: latency(c.latency.normalised_ms, noisy=True, noise=("load 3",)) for c in made.front()}
    from igc_nas.engine.store import replace_latencies

    assert made.folder is not None
    replace_latencies(made.folder, noisy)
    assert "noisy latenc" in cli("front", "made").out
    assert "igc-nas measure --study made --keep" in cli("front", "made").out
