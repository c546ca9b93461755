"""The options of a search as settings of a study, and whether an existing study has the same."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igc_nas.cli.search import search as search_command
from igc_nas.cli.study_flags import SearchRequest, check_request, given_settings, parse_recipe, resolve_study
from igc_nas.engine.search import Run, continued, search
from igc_nas.errors import ConfigError, DataError, InfeasibleError, StudyError, UsageError
from igc_nas.io.records import differences, restricted
from igc_nas.io.resources import shipped
from igc_nas.nn.c_compiler import compiler
from igc_nas.nn.device import Device, cpu_name, find_devices
from igc_nas.nn.lowering.fastest_dtype import fastest_dtype
from igc_nas.space.budget import Budget
from igc_nas.space.search_space import SpaceFile
from igc_nas.study.defaults import default_recipe
from igc_nas.study.plan import Plan, Speed
from igc_nas.study.spec import StudySpec, Target
from igc_nas.study.study import load_study
from tests.support.builders import one_line, taken
from tests.support.commands import Command, refused
from tests.support.searches import evaluate, spec

STUB = Device("cpu", "cpu", "stub")


def request(**given: Any) -> SearchRequest:
    """What the command line hands over if only `given` was typed."""
    return SearchRequest(**({"data_dir": Path("no-data")} | given))


def request_of_line(typed: str) -> SearchRequest:
    """The request of a command line that a hint proposes."""
    with search_command.make_context("search", shlex.split(typed)) as context:
        return SearchRequest(**context.params)


def made(root: Path, trials: int = 2, **changes: Any) -> StudySpec:
    """A study `made` under `root`, searched with invented numbers on the device `stub`."""
    question = spec(**({"name": "made", "budget": Budget(params=3000, macs=600_000)} | changes))
    list(search(question, Run(root / question.name, trials=trials), evaluate=evaluate))
    return load_study(root / question.name).spec


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of studies that holds `made`; no test here changes it."""
    root = tmp_path_factory.mktemp("studies")
    made(root)
    return root


# Options as settings.


def test_no_options_give_no_settings() -> None:
    assert given_settings(request()) == {}


def test_the_options_given_are_the_settings() -> None:
    settings = given_settings(
        request(sampler="nsga2", seed=0, objectives="params, error", budget_params=2000, recipe=("epochs=3", "lr=0.5"))
    )
    assert settings == {
        "sampler": "nsga2",
        "seed": 0,
        "objectives": ["params", "error"],
        "budget": {"params": 2000},
        "recipe": {"epochs": 3, "lr": 0.5},
    }


def test_a_space_is_given_by_the_contents_of_its_file() -> None:
    settings = given_settings(request(space="tiny"))
    assert settings["space_name"] == "tiny"
    assert settings["space"] == spec().space.choices()


@pytest.mark.parametrize(
    ("macs", "flops", "limit"),
    [(None, None, None), (60, None, 60), (None, 120, 60), (None, 121, 60), (50, 120, 50), (70, 120, 60)],
)
def test_flops_are_two_per_mac_and_the_tighter_limit_counts(macs: int, flops: int, limit: int) -> None:
    settings = given_settings(request(budget_macs=macs, budget_flops=flops))
    assert settings.get("budget", {}).get("macs") == limit


def test_a_budget_below_one_mac_is_refused() -> None:
    with pytest.raises(ConfigError, match="macs"):
        resolve_study(request(space="tiny", budget_flops=1), STUB)


# --recipe KEY=VALUE.


@pytest.mark.parametrize(
    ("typed", "recipe"),
    [
        ([], {}),
        (["epochs=3"], {"epochs": 3}),
        (["epochs=3,train_size=500"], {"epochs": 3, "train_size": 500}),
        (["epochs=3", "train_size=500"], {"epochs": 3, "train_size": 500}),
        ([" epochs = 3 , lr = 0.05 "], {"epochs": 3, "lr": 0.05}),
        (["train_size=10_000"], {"train_size": 10_000}),
        (["lr=1e-2"], {"lr": 0.01}),
        (["flip=false"], {"flip": False}),
        (["dtype=bfloat16"], {"dtype": "bfloat16"}),
        (['dtype="bfloat16"'], {"dtype": "bfloat16"}),
    ],
)
def test_recipe_changes_are_read(typed: list[str], recipe: dict[str, Any]) -> None:
    assert parse_recipe(typed) == recipe


@pytest.mark.parametrize(
    "typed",
    [
        "", " ", ",", "=", "epochs", "epochs=", "epochs= ", "=3", " =3", "epochs=3,", ",epochs=3", "epochs=3,,lr=1",
        "3epochs=3", "ep ochs=3", "train-size=5", "epochs:3", "recipe.epochs=3", "--epochs=3", "\x1b[31m=3", "<b>=3",
        "\u202eepochs\u202c=3", "'epochs'=3",
    ],
)  # fmt: skip
def test_text_that_is_not_key_and_value_is_refused(typed: str) -> None:
    with pytest.raises(UsageError, match="is not KEY=VALUE") as raised:
        parse_recipe([typed])
    assert "epochs=3" in raised.value.hint
    one_line(raised)


@pytest.mark.parametrize(
    "typed",
    [
        "epochs=0", "epochs=-1", "epochs=1.5", "epochs=1e3", "epochs=true", "epochs='3'", "epochs=three",
        "epochs=10001", "epochs=[3]", "epochs={}", "epochs=2020-01-01", "epochs=3;lr=2", "epochs==3", "epochs=3\nlr=2",
        "epochs=3 # x",
        "train_size=0", "held_out=0", "resolution=3", "resolution=2000", "batch=0", "batch=65537", "lr=0", "lr=-1",
        "lr=nan", "lr=inf", "lr=101", "momentum=1", "warmup=0", "crop=65", "flip=1", "flip=yes", "dtype=float16",
        "dtype=float32\x1b[31m", "epoch=3", "optimizer=adam", "samples=3", "epochs=" + "9" * 5000,
        "epochs=" + "[" * 5000, "epochs=9223372036854775808",
    ],
)  # fmt: skip
def test_an_invalid_recipe_is_refused_before_anything_runs(typed: str) -> None:
    with pytest.raises(ConfigError, match=r"^recipe: ") as raised:
        default_recipe("cpu", **parse_recipe([typed]))
    one_line(raised)


@given(st.text(max_size=60))
def test_any_text_is_a_recipe_or_an_error_on_one_line(text: str) -> None:
    taken(lambda: default_recipe("cpu", **parse_recipe([text])))


# A new study.


def default_latency(tmp_path: Path, device: Device = STUB, **given: Any) -> tuple[str, str, str]:
    """(runtime, forms, why it is not native) of a new study."""
    found = resolve_study(request(root=tmp_path, space="tiny", **given), device)
    return found.spec.latency.runtime, found.spec.latency.forms, found.eager_because


@pytest.mark.skipif(compiler() is None, reason="no C compiler")
def test_latency_is_that_of_native_c_unless_something_else_is_asked_for(tmp_path: Path) -> None:
    assert default_latency(tmp_path) == ("native", "factored", "")
    assert default_latency(tmp_path, latency_runtime="eager") == ("eager", "within-budget", "")
    assert default_latency(tmp_path, forms="factored")[:2] == ("native", "factored")
    assert default_latency(tmp_path, latency_forms="any") == ("eager", "any", "native C runs factored networks only")
    assert default_latency(tmp_path, latency_command="ssh pi") == ("eager", "within-budget", "")
    with pytest.raises(ConfigError, match="factored networks only"):
        default_latency(tmp_path, latency_runtime="native", latency_forms="any")


def test_without_a_compiler_latency_is_eager_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    runtime, forms, because = default_latency(tmp_path)
    assert (runtime, forms) == ("eager", "within-budget")
    assert "no C compiler" in because
    assert "install gcc or clang" in because
    assert Device("cuda", "cuda:0", "a GPU").deployment_runtime == "eager"


def test_a_new_study_takes_defaults_for_options_not_given(tmp_path: Path) -> None:
    study = resolve_study(request(root=tmp_path, space="tiny", budget_params=2000, recipe=("epochs=1",)), STUB)
    found = study.spec
    assert (study.continued, study.dataset, study.folder) == (False, "auto", tmp_path / found.name)
    assert (found.objectives, found.sampler, found.seed) == (("error", "params", "latency"), "known-cost", 0)
    assert found.goal == "best-error"
    assert (found.dataset, found.classes, found.latency.device) == ("shapes", 10, "stub")
    assert found.recipe == default_recipe("cpu", epochs=1, dtype=fastest_dtype(STUB).dtype, held_out=2000)
    assert (found.recipe.forms, found.latency.runtime) == ("fastest", STUB.deployment_runtime)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "igc_cifar-shapes-any-s0"),
        ({"space": "tiny"}, "tiny-shapes-any-s0"),
        ({"space": "tiny", "seed": 7}, "tiny-shapes-any-s7"),
        ({"space": "tiny", "budget_params": 2000}, "tiny-shapes-params2k-s0"),
        ({"space": "tiny", "budget_params": 2345}, "tiny-shapes-params2345-s0"),
        (
            {"space": "tiny", "budget_params": 2000, "budget_macs": 1_500_000, "budget_latency": 2.5},
            "tiny-shapes-params2k-macs1.5M-latency2.5ms-s0",
        ),
        ({"space": "tiny", "study_name": "mine"}, "mine"),
    ],
)
def test_a_study_is_named_after_its_settings(given: dict[str, Any], name: str, tmp_path: Path) -> None:
    assert resolve_study(request(root=tmp_path, **given), STUB).spec.name == name


@pytest.mark.parametrize("stem", ["a b", "a" * 240, "\x1b[31mred", "..", "naïve", "-x", "a\nb"])
def test_a_space_file_whose_name_cannot_name_a_study_needs_the_option(stem: str, tmp_path: Path) -> None:
    path = tmp_path / f"{stem}.toml"
    path.write_text(Path(__file__).parents[2].joinpath("search_spaces", "tiny.toml").read_text())
    with pytest.raises(UsageError, match="cannot be the name of a study") as raised:
        resolve_study(request(root=tmp_path, space=str(path)), STUB)
    one_line(raised)
    assert resolve_study(request(root=tmp_path, space=str(path), study_name="named"), STUB).spec.name == "named"


@pytest.mark.parametrize("name", ["", " ", ".", "..", "../up", "a/b", "a.", "~", "-", "\u202eabc", "a" * 101])
def test_a_study_name_that_cannot_name_a_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a study") as raised:
        resolve_study(request(root=tmp_path, space="tiny", study_name=name), STUB)
    one_line(raised)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"space": "tinny"}, ConfigError),
        ({"space": "nowhere.toml"}, ConfigError),
        ({"objectives": "params"}, UsageError),
        ({"objectives": "error", "goal": "front"}, ConfigError),
        ({"objectives": "params,macs", "goal": "best-error"}, ConfigError),
        ({"params": (3000, 3000)}, InfeasibleError),
        ({"min_params": 3000, "budget_params": 2000}, ConfigError),
        ({"objectives": "error,error"}, UsageError),
        ({"objectives": "error,speed"}, UsageError),
        ({"recipe": ("epochs",)}, UsageError),
        ({"recipe": ("epoch=3",)}, ConfigError),
        ({"budget_params": 5}, InfeasibleError),
        ({"budget_macs": 5}, InfeasibleError),
        ({"dataset": "cifar10"}, DataError),
    ],
)
def test_an_invalid_request_is_refused_and_leaves_no_file(
    given: dict[str, Any], error: type[Exception], tmp_path: Path
) -> None:
    with pytest.raises(error) as raised:
        resolve_study(
            request(root=tmp_path / "studies", data_dir=tmp_path / "data", **({"space": "tiny"} | given)), STUB
        )
    one_line(raised)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "goal", "front"),
    [
        ({}, "front", ("error", "params", "latency")),
        ({"budget_macs": 600_000}, "best-error", ("error", "params", "latency")),
        ({"min_params": 1000}, "front", ("error", "params", "latency")),
        ({"budget_params": 2000, "objectives": "error,params"}, "front", ("error", "params")),
        ({"objectives": "error"}, "best-error", ("error", "params")),
        ({"objectives": "params,macs"}, None, ("params", "macs")),
        ({"budget_params": 2000, "goal": "front"}, "front", ("error", "params", "latency")),
    ],
)
def test_a_budget_asks_for_the_least_error_within_it(
    given: dict[str, Any], goal: str | None, front: tuple[str, ...], tmp_path: Path
) -> None:
    found = resolve_study(request(root=tmp_path, space="tiny", **given), STUB).spec
    assert (found.goal, found.front_objectives) == (goal, front)


def test_ranges_and_limits_on_one_cost_are_all_kept() -> None:
    given = request(params=(1000, 3000), budget_params=2000, min_params=500, macs=(None, 50), budget_flops=200)
    assert given_settings(given) == {"budget": {"params": 2000, "min_params": 1000, "macs": 50}}


# An existing study.


SAME: dict[str, dict[str, Any]] = {
    "nothing else": {},
    "space": {"space": "tiny"},
    "dataset": {"dataset": "shapes"},
    "auto": {"dataset": "auto"},
    "objectives": {"objectives": "error,params,latency"},
    "budget": {"budget_params": 3000, "budget_macs": 600_000},
    "budget in FLOPs": {"budget_params": 3000, "budget_flops": 1_200_000},
    "sampler and seed": {"sampler": "known-cost", "seed": 0},
    "recipe": {"recipe": ("epochs=2", "lr=0.1")},
}

OTHER: dict[str, tuple[dict[str, Any], str]] = {
    "space": ({"space": "igc_cifar"}, "space_name: igc_cifar asked for, tiny in the study"),
    "dataset": ({"dataset": "cifar10"}, "dataset: cifar10 asked for, shapes in the study"),
    "objectives": ({"objectives": "error,macs"}, "objectives: "),
    "order of objectives": ({"objectives": "params,error,latency"}, "objectives: "),
    "params": ({"budget_params": 2000}, "budget.params: 2000 asked for, 3000 in the study"),
    "params only": ({"budget_params": 3000}, "budget.macs: none asked for, 600000 in the study"),
    "macs": ({"budget_params": 3000, "budget_macs": 1}, "budget.macs: 1 asked for, 600000 in the study"),
    "latency": (
        {"budget_params": 3000, "budget_macs": 600_000, "budget_latency": 5.0},
        "budget.latency_ms: 5.0 asked for, none in the study",
    ),
    "sampler": ({"sampler": "random"}, "sampler: random asked for, known-cost in the study"),
    "seed": ({"seed": 1}, "seed: 1 asked for, 0 in the study"),
    "recipe": ({"recipe": ("epochs=3",)}, "recipe.epochs: 3 asked for, 2 in the study"),
}


@pytest.mark.parametrize("given", SAME.values(), ids=SAME)
def test_the_same_settings_continue_a_study(given: dict[str, Any], there: Path) -> None:
    study = resolve_study(request(root=there, study_name="made", **given), STUB)
    assert (study.continued, study.folder) == (True, there / "made")
    assert study.spec == load_study(there / "made").spec


def test_a_space_whose_texts_were_corrected_continues_its_studies(there: Path, tmp_path: Path) -> None:
    text = (shipped("search_spaces") / "tiny.toml").read_text()
    corrected = re.sub(r'(?m)^(paper|intent) = ".*"$', r'\1 = "corrected"', text)
    (tmp_path / "tiny.toml").write_text(corrected)
    given = request(root=there, study_name="made", space=str(tmp_path / "tiny.toml"))
    before = load_study(there / "made").spec
    assert resolve_study(given, STUB).spec == before  # as it is stored, with its own texts
    (tmp_path / "tiny.toml").write_text(corrected.replace("blocks = 1", "blocks = [1, 2]", 1))
    with pytest.raises(StudyError, match="made exists with other settings: space"):
        resolve_study(given, STUB)
    changed = before.model_copy(update={"space": SpaceFile.load(tmp_path / "tiny.toml")})
    assert changed.identity() != before.identity()
    said = before.model_copy(update={"space": before.space.model_copy(update={"intent": "corrected"})})
    assert said.identity() == before.identity()
    assert continued(said, Run(there / "made")) == before


@pytest.mark.parametrize(("given", "difference"), OTHER.values(), ids=OTHER)
def test_other_settings_are_refused_naming_the_difference(given: dict[str, Any], difference: str, there: Path) -> None:
    before = {path: path.read_bytes() for path in (there / "made").iterdir()}
    with pytest.raises(StudyError, match="made exists with other settings") as raised:
        resolve_study(request(root=there, study_name="made", **given), STUB)
    assert difference in raised.value.message
    assert raised.value.message.isprintable()
    assert {path: path.read_bytes() for path in (there / "made").iterdir()} == before


def test_a_study_belongs_to_one_device(there: Path) -> None:
    with pytest.raises(StudyError, match="of stub; those of another are not comparable") as raised:
        resolve_study(request(root=there, study_name="made"), Device("cpu", "cpu", "another"))
    words, _, typed = str(raised.value.hint).partition("igc-nas search ")
    assert "with the options of this one" in words
    asked = request_of_line(typed)
    assert len(asked.enqueue) == min(3, len(load_study(there / "made").front()))
    check_request(asked)  # its networks are found
    with pytest.raises(StudyError, match=r"other settings: seed: 1 asked for"):
        resolve_study(request(root=there, study_name="made", seed=1), Device("cpu", "cpu", "another"))


def test_a_study_of_the_cpu_is_continued_with_that_device_beside_a_gpu(tmp_path: Path) -> None:
    question = spec(name="made")
    latency = question.latency.model_copy(update={"device": cpu_name()})
    list(search(question.model_copy(update={"latency": latency}), Run(tmp_path / "made", trials=1), evaluate=evaluate))
    with pytest.raises(StudyError, match="those of a GPU are not comparable") as raised:
        resolve_study(request(root=tmp_path, study_name="made"), Device("cuda", "cuda:0", "a GPU"))
    assert raised.value.hint == "add --device cpu"
    assert resolve_study(request(root=tmp_path, study_name="made"), find_devices("cpu")[0]).continued


def test_the_default_name_finds_the_study_too(tmp_path: Path) -> None:
    first = resolve_study(request(root=tmp_path, space="tiny", budget_params=2000), STUB)
    made(tmp_path, name=first.spec.name, budget=Budget(params=2000))
    again = resolve_study(request(root=tmp_path, space="tiny", budget_params=2000), STUB)
    assert (again.continued, again.spec.name) == (True, "tiny-shapes-params2k-s0")
    other = resolve_study(request(root=tmp_path, space="tiny", budget_params=2000, sampler="random"), STUB)
    assert not other.continued
    assert other.spec.name != again.spec.name


def test_an_edited_space_is_refused(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    text = Path(__file__).parents[2].joinpath("search_spaces", "tiny.toml").read_text()
    mine.write_text(text)
    made(tmp_path, space=str(mine))
    assert resolve_study(request(root=tmp_path, study_name="made", space=str(mine)), STUB).continued
    mine.write_text(text.replace("expand = [2, 4]", "expand = [2, 6]"))
    with pytest.raises(StudyError, match=r"space\.stage"):
        resolve_study(request(root=tmp_path, study_name="made", space=str(mine)), STUB)


def test_differences_are_named_by_their_path() -> None:
    has = {"seed": 0, "recipe": {"epochs": 2, "lr": 0.1}, "budget": {}}
    assert list(differences(has, has)) == []
    assert list(differences({"seed": 1, "recipe": {"epochs": 3}, "budget": {}, "name": "x"}, has)) == [
        "seed: 1 asked for, 0 in the study",
        "recipe.epochs: 3 asked for, 2 in the study",
        "recipe.lr: none asked for, 0.1 in the study",
        "name: x asked for, none in the study",
    ]


def test_restricted_keeps_only_the_given_keys() -> None:
    has = {"seed": 0, "recipe": {"epochs": 2, "lr": 0.1}, "budget": {}}
    assert restricted(has, {"seed": 5, "recipe": {"lr": 3}, "name": "x"}) == {
        "seed": 0,
        "recipe": {"lr": 0.1},
        "name": None,
    }


def test_the_batch_and_the_dtype_of_latencies_are_the_study_s(there: Path) -> None:
    """A study keeps them; old ones have one image in float32, and are continued without the options."""
    asked = request(root=there, space="tiny", dataset="shapes", latency_batch=16)
    resolved = resolve_study(asked, STUB)
    assert resolved.spec.latency.batch == 16
    assert resolved.spec.latency.dtype == "float32"
    assert resolved.folder != resolve_study(request(root=there, space="tiny", dataset="shapes"), STUB).folder
    with pytest.raises(StudyError, match=r"latency.batch: 16 asked for, 1 in the study"):
        resolve_study(request(root=there, study_name="made", latency_batch=16), STUB)
    with pytest.raises(UsageError, match="latencies in float16 are measured on a GPU only"):
        resolve_study(request(root=there, space="tiny", dataset="shapes", latency_dtype="float16"), STUB)
    gpu = Device("cuda", "cuda:0", "a GPU")
    on_gpu = request(root=there, space="tiny", dataset="shapes", latency_dtype="bfloat16", recipe=("dtype=bfloat16",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Device, "memory", 8 << 30)
        spec = resolve_study(on_gpu, gpu).spec
    assert spec.latency.dtype == "bfloat16"
    assert (spec.recipe.batch, spec.recipe.lr) == (250, 0.2), "a step of 500 images may not fit into 8 GiB"
    assert StudySpec.from_toml(spec.to_toml()) == spec


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--trials", "2", "--promote", "0.3"), "--promote is a share of --time"),
        (("--time", "1m", "--promote", "0.3", "--sampler", "random"), "--promote is for searches for the error"),
        (("--time", "1m", "--promote", "0.3", "--sampler", "brute-force"), "--promote is for searches for the error"),
        (("--time", "1m", "--promote", "2"), "--promote"),
    ],
)
def test_a_share_for_longer_trainings_that_cannot_be(options: tuple[str, ...], message: str, cli: Command) -> None:
    found = cli("search", "--space", "tiny", "--dataset", "shapes", "--device", "cpu", *options)
    assert found.status == 2
    assert message in found.err


def test_the_share_for_longer_trainings_is_the_study_s(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command continues; another share is refused."""
    monkeypatch.chdir(tmp_path)
    speed = Speed(step_s=0.01, convolution_s=1e-3, mac_s=2e-10, activation_s=2e-8, trial_s=4.0)
    plan = Plan(time_s=60, workers=1, trials=2, mean_s=20, speed=speed)
    asked = spec(name="made", goal="front")
    changes = {"plan": plan, "target": Target(images=1000, recipe=asked.recipe, share=0.3)}
    changes["latency"] = asked.latency.model_copy(update={"device": cpu_name()})
    list(search(asked.model_copy(update=changes), Run(Path("studies/made"), trials=1), evaluate=evaluate))
    again = ("search", "--study", "made", "--device", "cpu", "--trials", "1", "--time", "1m", "--quiet", "--promote")
    assert cli(*again, "0.3").status == 0
    refused(cli(*again, "0.4"), 4, "planned with --promote 0.3, not 0.4", "leave out --promote")
    url = f"sqlite:///{tmp_path}/elsewhere.db"
    list(search(asked.model_copy(update=changes), Run(Path("studies/made"), 2, storage=url), evaluate=evaluate))
    shutil.rmtree("studies/made")
    refused(cli("search", "--study", "made", "--storage", url, "--promote", "0.4"), 4, "planned with --promote 0.3")
    unplanned = asked.model_copy(update={"name": "other", "latency": changes["latency"]})
    list(search(unplanned, Run(Path("studies/other"), trials=1), evaluate=evaluate))
    refused(
        cli("search", "--study", "other", "--time", "1m", "--promote", "0.3"), 2, "for which a new study is planned"
    )
