"""The HTML document: its text, its data, and that names from a study stay text."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from igc_nas.analysis.dashboard.document import SCRIPTS, asset, dashboard, write_dashboard
from igc_nas.analysis.dashboard.payload import MOST_DETAILED, Plans, payload
from igc_nas.analysis.views import front_rows, surrogate_view
from igc_nas.arch.config import ArchConfig
from igc_nas.arch.layers import Conv, Interleave, Linear, Residual
from igc_nas.arch.literature import NAMES
from igc_nas.arch.named import network
from igc_nas.arch.papers import figures
from igc_nas.arch.plan import plan
from igc_nas.arch.stages import describe_stage
from igc_nas.study.baselines import SETS
from igc_nas.study.objectives import OBJECTIVES
from igc_nas.study.records import FormTime, Trial
from igc_nas.study.spec import Target
from igc_nas.study.study import Study
from tests.support.families import RECIPE, RUNGS, by_size, make, on_the_way, stop
from tests.support.hostile import MARKUP
from tests.support.pages import Page
from tests.support.studies import make_candidates, make_spec, make_study

TURNING = "[\x00-\x08\x0b-\x1f\u200e\u200f\u202a-\u202e\u2066-\u2069]"


@pytest.fixture(scope="module")
def study() -> Study:
    return make_study(60, others=["failed", "infeasible", "infeasible", "running"])


@pytest.fixture(scope="module")
def page(study: Study) -> Page:
    return Page(dashboard([study]))


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page without the 5 MB of plotly.js."""
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "/* plotly.js v0 */")


# The document.


def test_one_plotly_and_no_external_resources(page: Page) -> None:
    assert len(page.scripts) == 3
    assert sum("plotly.js v" in script[:200] for script in page.scripts) == 1
    for tag, attributes in page.elements:
        assert not {"src", "srcset", "action", "style"} & set(attributes), tag
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form")
        assert (attributes.get("href") or "#").startswith("#")
    assert "@import" not in asset("page.css")
    assert "url(" not in asset("page.css")


def test_only_the_pages_own_scripts_may_run(page: Page) -> None:
    (policy,) = (a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    assert allowed == [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in page.scripts[1:]]
    assert "unsafe-eval" not in policy
    assert "connect-src" not in policy
    assert "unsafe-inline" not in policy.partition("style-src")[0]


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_script_makes_no_html_of_text(name: str) -> None:
    script = asset(f"{name}.js")
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "DOMParser"):
        assert way not in script


def test_elements_are_named_once_and_controls_labelled(page: Page) -> None:
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for place, (tag, attributes) in enumerate(page.elements):
        if tag in ("select", "input"):
            assert page.elements[place - 1][0] == "label", attributes
        if tag == "section" and "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in ids
    links = {(a.get("href") or "").removeprefix("#") for tag, a in page.elements if tag == "a"}
    assert links == {"front", "trials", "volume", "choices", "forms", "trainings", "surrogate"}
    assert links <= set(ids)


def test_the_conditions_and_the_counts(page: Page) -> None:
    for expected in (
        "igc_cifar",
        "at most 2M parameters",
        "error, params, latency",
        "2 epochs of 4,000",
        "known-cost, seed 0",
    ):
        assert expected in page.text
    assert re.search(r"2\s+infeasible", page.text)
    assert re.search(r"60\s+completed", page.text)
    assert "not comparable" in page.text
    assert "in its fastest form" not in page.text  # this study's were all measured in factored form


@pytest.mark.usefixtures("_small")
def test_the_front_can_be_read_without_a_script(study: Study) -> None:
    text = dashboard([study])
    without = text[text.index("<noscript>") : text.index("</noscript>")]
    body = without[without.index("<tbody>") : without.index("</tbody>")]
    assert re.findall(r"<tr><td>(\d+)", body) == [str(c.trial) for c in study.front()]
    for candidate in study.front():
        assert f"<td>{candidate.cost.params:,}</td>" in body
        assert f"<code>{candidate.arch}</code>" in body
    assert f"igc-nas export test-study --pick trial:{study.pick('knee').trial} -o arch.toml" in without


@pytest.mark.usefixtures("_small")
def test_a_study_with_predicted_errors_says_that_its_figures_are_of_the_observed_ones(study: Study) -> None:
    target = Target(images=200_000, recipe=study.spec.recipe, share=0.4)
    aimed = Study(study.spec.model_copy(update={"target": target}), study.trials)
    cards = ([label for label, _ in Page(dashboard([one])).data["studies"][0]["cards"]] for one in (study, aimed))
    plain, observed = (set(labels) for labels in cards)
    assert {"on the front", "hypervolume"} <= plain
    assert {"on the front after 8,000 images", "hypervolume after 8,000 images"} <= observed


@pytest.mark.usefixtures("_small")
def test_commands_for_a_study_in_a_database_name_it(study: Study) -> None:
    url = "sqlite:////all/of.db"
    text, far = (dashboard([replace(one, storage=url)]) for one in (study, Study(study.spec, ())))
    assert f"-o arch.toml --storage {url}</code>" in text[text.index("<noscript>") :]
    (shown,) = Page(text).data["studies"]
    assert (shown["stored"], shown["in_database_only"]) == (f" --storage {url}", True)
    assert f"igc-nas search --study test-study --storage {url}</code>" in far


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("hostile", MARKUP)
def test_hostile_names_stay_text(hostile: str) -> None:
    """All texts of a study's files: its name, data, space, devices, forms, ids, reasons."""
    shown = make_study(2, name="x", space_name="x", latency={"device": "x"}, others=["failed"])
    spec = shown.spec.model_copy(
        update={
            "name": hostile,
            "dataset": hostile,
            "space_name": hostile,
            "latency": shown.spec.latency.model_copy(update={"device": hostile}),
        }
    )
    text = dashboard([Study(spec, tuple(map(_hostile(hostile), shown.trials)))])
    text.encode()
    usual = Page(dashboard([make_study(2, dataset="other", others=["failed"])]))
    found = Page(text)
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in usual.elements]
    assert [set(a) for _, a in found.elements] == [set(a) for _, a in usual.elements]
    assert found.scripts[1:] == usual.scripts[1:]
    assert not re.search(TURNING, text.replace(found.scripts[1], "").replace(found.scripts[2], ""))
    assert not re.search(TURNING, json.dumps(found.data, ensure_ascii=False))


def _hostile(name: str) -> Any:
    def named(trial: Trial) -> Trial:
        if trial.candidate is None:
            return trial.model_copy(update={"reason": name})
        latency = trial.candidate.latency
        form = FormTime(params=1, macs=1, weight_bytes=1, median_ms=1.0, low_ms=1.0, high_ms=1.0)
        changes = {"form": name, "forms": {name: form}, "noise": (name,)}
        update = {"id": name, "latency": latency.model_copy(update=changes)}
        return trial.model_copy(update={"candidate": trial.candidate.model_copy(update=update)})

    return named


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("shapes", "SYNTHETIC shapes: these errors say nothing about CIFAR-10."),
        ("cifar10 (unofficial, sha256:0123)", "UNOFFICIAL data"),
    ],
)
def test_a_banner_comes_first(dataset: str, expected: str) -> None:
    for count in (0, 2):
        text = dashboard([make_study(count, dataset=dataset)])
        main = text[text.index("<main>") :].removeprefix("<main>").lstrip()
        assert main.startswith('<p class="banner')
        assert expected in main[:300]


def test_official_data_has_no_banner(page: Page) -> None:
    assert not any((a.get("class") or "").startswith("banner") for _, a in page.elements)


def test_a_study_without_a_trial_names_the_command() -> None:
    text = dashboard([make_study(0, others=["failed"])])
    assert "No completed trial yet" in text
    assert "igc-nas search --study test-study" in text
    assert "<script" not in text
    assert "script-src 'none'" in text


@pytest.mark.usefixtures("_small")
def test_rungs_and_pruned_trainings_are_stated() -> None:
    text = Page(dashboard([on_the_way()])).text
    assert (
        "after 2,000 and 4,000 images of 8,000; a training is pruned there if its probability of reaching the front "
        "is below 0.05: 6 of 30 were pruned"
    ) in text
    assert "6 pruned" in text
    assert "24 completed trials" in text
    nothing = dashboard([make(2, by_size, {2000: by_size}, recipe=RECIPE | {"rungs": [2000]})])
    assert "after 2,000 images of 8,000; no training is pruned" in nothing
    assert "Rungs" not in dashboard([make_study(3)])


@pytest.mark.usefixtures("_small")
def test_a_study_without_a_scale_says_so() -> None:
    found = Page(dashboard([make_study(3, bounds={})]))
    assert "no scale yet" in found.text
    assert found.data["studies"][0]["volume"] == {"trials": [], "volumes": [], "busy_s": []}


def test_the_page_is_written_atomically(study: Study, tmp_path: Path) -> None:
    write_dashboard([study], tmp_path / "page.html")
    assert (tmp_path / "page.html").read_bytes() == dashboard([study]).encode()
    assert len(list(tmp_path.iterdir())) == 1


def test_importing_is_light() -> None:
    code = (
        "import sys, igc_nas.analysis.dashboard.document, igc_nas.analysis.dashboard.server; "
        "print([m for m in ('plotly', 'torch', 'optuna', 'pandas', 'waitress') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Several studies.


@pytest.mark.usefixtures("_small")
def test_differences_between_studies_are_stated() -> None:
    one, other = make_study(4, name="one"), make_study(3, name="other", dataset="shapes", latency={"device": "GPU"})
    found = Page(dashboard([one, other]))
    assert "Not everything here can be compared" in found.text
    assert "The datasets differ (cifar10; shapes): errors cannot be compared." in found.text
    assert "The latency devices differ (Test CPU; GPU): times cannot be compared." in found.text
    assert "SYNTHETIC" in found.text
    assert [s["name"] for s in found.data["studies"]] == ["one", "other"]
    alike = Page(dashboard([one, make_study(3, seed=1, name="other")]))
    assert "Not everything" not in alike.text


@pytest.mark.usefixtures("_small")
def test_a_study_without_trials_beside_one_with() -> None:
    found = Page(dashboard([make_study(3, name="one"), make_study(0, name="other")]))
    assert "igc-nas search --study other" in found.text
    assert len(found.data["studies"][1]["trials"]["trial"]) == 0


# The payload.


def test_every_trial_is_there_with_its_known_values(study: Study, page: Page) -> None:
    (found,) = page.data["studies"]
    columns = found["trials"]
    states = [columns["state"]["of"][at] for at in columns["state"]["at"]]
    assert states == [trial.state for trial in study.trials]
    assert columns["params"][:60] == [c.cost.params for c in study.candidates]
    assert columns["params"][60:] == [None] * 4
    assert found["front"] == list(front_rows(study, study.spec.objectives))
    assert [row[0] for row in page.data["objectives"]] == list(OBJECTIVES)


@pytest.mark.usefixtures("_small")
def test_curves_have_their_rungs() -> None:
    study = on_the_way()
    (found,) = Page(dashboard([study])).data["studies"]
    curves = found["curves"]
    for number, at, errors in zip(curves["trial"], curves["samples"]["at"], curves["errors"], strict=True):
        trial = study.trials[number]
        samples = curves["samples"]["of"][at]
        assert samples == ([*RUNGS, trial.candidate.score.samples] if trial.candidate else list(RUNGS))
        assert len(errors) == len(samples)
    known = surrogate_view(study)
    assert known
    assert found["surrogate"]["sentence"] == known.sentence


def test_an_architecture_is_its_plan() -> None:
    """What the diagram is drawn from leads back to the layers of the plan, and to the words of `str`."""
    rng = np.random.default_rng(0)
    archs = [c.arch for c in make_candidates(make_spec(), 20, rng)]
    archs += [point.arch for figure in figures(10) for point in figure.points]
    plans = Plans()
    for arch in archs:
        side, *numbers = plans.of(arch)
        assert side == arch.input[1]
        assert _walked(plans, numbers, arch) == [
            _plain(layer) for block in plan(arch).blocks for layer in _open(block.layers)
        ]
        texts = [plans.stages.values[n] for n in numbers[1:-2:4]]
        head = plans.stages.values[numbers[-2]]
        assert texts == [describe_stage(stage) for stage in arch.stages]
        assert " | ".join([str(arch.stem.width), *texts, *([head] if head else [])]) == str(arch)
        assert ArchConfig.from_toml("\n".join(plans.tables.values[table] for table in plans.toml_of(arch))) == arch
    kept = [json.dumps(block) for block in plans.blocks.values]
    assert len(set(kept)) == len(kept), "a block is kept once"


def _walked(plans: Plans, numbers: list[int], arch: ArchConfig) -> list[list[Any]]:
    stem, *stages, _, end = numbers
    blocks = [stem]
    for _, first, further, count in zip(*[iter(stages)] * 4, strict=True):
        blocks += [first, *[further] * (count - 1)]
    return [layer for block in [*blocks, end] for layer in _layers(plans, plans.blocks.values[block])]


def _layers(plans: Plans, numbers: list[Any]) -> list[list[Any]]:
    found = []
    for number in numbers:
        if isinstance(number, list):
            found += [layer for part in number for layer in _layers(plans, part)]
        else:
            found.append(plans.layers.values[number])
    return found


def test_networks_of_the_literature_are_drawn_from_plain_data() -> None:
    plans = Plans()
    for name in NAMES:
        arch = network(name).arch
        json.dumps(plans.of(arch))
        assert ArchConfig.from_toml("\n".join(plans.tables.values[table] for table in plans.toml_of(arch))) == arch
    blocks = json.dumps([plans.layers.values, plans.blocks.values])
    assert all(f'"{kind}"' in blocks for kind in ("Concat", "Split", "DualPath", "SqueezeExcite", "Subsample"))


def _open(layers: Any) -> Any:
    for layer in layers:
        yield from (*_open(layer.body), *_open(layer.shortcut)) if isinstance(layer, Residual) else (layer,)


def _plain(layer: Any) -> list[Any]:
    if isinstance(layer, Conv):
        shape = [layer.in_channels, layer.out_channels, layer.kernel, layer.stride, layer.groups]
        return ["Conv", layer.name, *shape]
    if isinstance(layer, Interleave):
        return ["Interleave", layer.channels, layer.groups]
    if isinstance(layer, Linear):
        return ["Linear", layer.name, layer.in_features, layer.out_features]
    return [type(layer).__name__, *(getattr(layer, name) for name in layer.__slots__)]


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("names", [["error", "macs"], ["latency", "error"], ["macs", "params", "activations"]])
def test_other_objectives(names: list[str]) -> None:
    (found,) = Page(dashboard([make_study(4, objectives=names)])).data["studies"]
    assert found["objectives"] == names


@pytest.mark.usefixtures("_small")
def test_one_trial_and_equal_trials() -> None:
    assert Page(dashboard([make_study(1)])).data["studies"][0]["front"] == [0]
    first = make_study(1)
    again = first.trials[0].model_copy(update={"number": 1, "candidate": first.candidates[0].model_copy()})
    assert dashboard([Study(first.spec, (first.trials[0], again))])


@pytest.mark.slow
def test_ten_thousand_trials_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Study, "hypervolume_curve", lambda self, _=None: [(i, i / 1e5) for i in range(1, 7_001)])
    study = make(10_000, by_size, dict.fromkeys(RUNGS, by_size), recipe=RECIPE | {"rungs": RUNGS}, prune_below=0.05)
    text = dashboard([stop(study, 7_000)])
    assert len(text.encode()) <= 10_000_000
    (found,) = Page(text).data["studies"]
    assert len(found["trials"]["error"]) == 10_000
    assert len(found["curves"]["trial"]) == 10_000
    assert found["detailed"] == len(found["epochs"]) == MOST_DETAILED
    assert len(found["surrogate"]["trial"]) == 400


def test_the_detailed_candidates_include_the_front() -> None:
    study = make_study(60)
    found = payload([study])["studies"][0]
    kept = set(found["forms"]["trial"])
    assert {c.trial for c in study.front()} <= kept
    assert found["detailed"] == 60
    assert list(itertools.chain.from_iterable(found["epochs"])) == [8000, 0.4] * 60


@pytest.mark.parametrize("name", SETS["literature"])
def test_every_baseline_can_be_drawn(name: str) -> None:
    plans = Plans()
    encoded = plans.of(network(name).arch)
    json.dumps([encoded, plans.stages.values, plans.layers.values, plans.blocks.values])
