from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from families import RECIPE, RUNGS, blurred, by_size, make, stop

from igc_nas.errors import StudyError, UsageError
from igc_nas.knowledge import knowledge_of
from igc_nas.objectives import OBJECTIVES, values
from igc_nas.page import asset, dashboard, write_dashboard
from igc_nas.pareto import dominates
from igc_nas.plots import (
    PAPERS,
    curves_figure,
    front_figure,
    front_picture,
    hypervolume_figure,
    knowledge_figure,
)
from igc_nas.results import Study
from igc_nas.views import (
    curves_view,
    front_rows,
    front_view,
    hypervolume_view,
    knowledge_view,
    papers_view,
    plain,
    points_view,
    unit_mix,
)
from studies import make_study

PAIRS = list(itertools.combinations(OBJECTIVES, 2))
HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onfocus=alert(1) autofocus='",
    "<!-- <script>",
    "&lt;b&gt; &amp;",
    "\u202egnp.exe\u2066 \u200f",
    "\x1b[31mred\x07\x00\ud800",
    "שלום עולם",
    "${alert(1)} %{x} {{7*7}}",
    "\u2028\u2029",
)


class Page(HTMLParser):
    """What a browser would take from a page: elements with their attributes, and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        else:
            self.words.append(data)

    @property
    def data(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.scripts[0])
        return loaded


@pytest.fixture(scope="module")
def study() -> Study:
    return make_study(60, others=["failed", "infeasible", "infeasible", "running"])


@pytest.fixture(scope="module")
def page(study: Study) -> Page:
    return Page(dashboard(study))


def on_the_way(n: int = 30, stopped: int = 6) -> Study:
    """A study with rungs, the last `stopped` of its trainings given up at one."""
    rungs = {at: blurred(by_size, 0.02, at) for at in RUNGS}
    study = make(n, blurred(by_size, 0.01, 0), rungs, recipe=RECIPE | {"rungs": RUNGS}, stop=0.05)
    return stop(study, n - stopped)


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page without the 5 MB of plotly.js."""
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "/* plotly.js v0 */")


# views


@pytest.mark.parametrize("names", [*PAIRS, ("error", "params", "latency"), ("latency", "error", "macs")])
def test_a_front_is_what_brute_force_finds(study: Study, names: tuple[str, ...]) -> None:
    view = front_view(study, names)
    points = [values(c, names) for c in study.candidates]
    expected = [i for i, p in enumerate(points) if not any(dominates(q, p) for q in points)]
    assert sorted(view.front) == sorted({points[i]: i for i in reversed(expected)}.values())
    assert list(view.front) == sorted(view.front, key=lambda i: points[i])


def test_columns_are_the_candidates(study: Study) -> None:
    points = points_view(study)
    assert set(points.columns) == set(OBJECTIVES)
    for row, candidate in enumerate(study.candidates):
        assert points.trial[row] == candidate.trial
        assert points.units[row] == unit_mix(candidate)
        for name, objective in OBJECTIVES.items():
            assert points.columns[name][row] == pytest.approx(objective.of(candidate), rel=1e-4)
        assert points.low_ms[row] <= points.columns["latency"][row] <= points.high_ms[row]
        assert (row in points.noisy) == candidate.latency.noisy
        assert f"trial {candidate.trial}<" in points.hover[row]
        assert candidate.id in points.hover[row]


def test_an_interval_is_brought_to_the_normalised_time(study: Study) -> None:
    latency = study.candidates[0].latency
    low, high = latency.normalised_interval_ms
    assert low / latency.low_ms == pytest.approx(latency.normalised_ms / latency.median_ms)
    assert high / low == pytest.approx(latency.high_ms / latency.low_ms)


def test_members_are_the_studys_own_front(study: Study) -> None:
    view = front_view(study, ("macs", "latency"))
    assert view.members == front_rows(study, study.spec.objectives)
    assert [study.candidates[row] for row in view.members] == list(study.front())


def test_budgets_are_lines_on_their_axes() -> None:
    view = front_view(make_study(3, budget={"params": 10**6, "macs": 10**8, "latency_ms": 5.0}), ("params", "latency"))
    assert view.limits == {"params": 10**6, "macs": 10**8, "flops": 2 * 10**8, "latency": 5.0}
    across, up = front_figure(view).layout.shapes
    assert (across.xref, across.x0, across.x1, across.yref) == ("x", 10**6, 10**6, "paper")
    assert (up.yref, up.y0, up.y1, up.xref) == ("y", 5.0, 5.0, "paper")


@pytest.mark.parametrize(
    ("dataset", "count"), [("cifar10", 5), ("cifar100", 25), ("cifar10 (unofficial, sha256:0)", 5), ("shapes", 0)]
)
def test_papers_by_dataset(dataset: str, count: int) -> None:
    papers = papers_view(make_study(0, dataset=dataset))
    assert len(papers.name) == count
    assert "latency" not in papers.columns
    assert all(len(column) == count for column in papers.columns.values())


def test_the_papers_numbers(study: Study) -> None:
    papers = papers_view(study)
    row = papers.name.index("igcv3-d-cifar")
    assert papers.columns["error"][row] == 0.0504
    assert papers.columns["params"][row] == 2_223_498
    assert "not comparable" in papers.hover[row]


def test_hypervolume_never_falls(study: Study) -> None:
    view = hypervolume_view(study)
    assert view.trials == tuple(range(1, 61))
    assert all(a <= b for a, b in itertools.pairwise(view.volumes))
    assert view.volumes[-1] == pytest.approx(study.hypervolume())
    assert view.reference == (0.9, 2_000_000, 60.0)


@pytest.mark.usefixtures("_small")
def test_hypervolume_without_a_scale() -> None:
    view = hypervolume_view(make_study(3, bounds={}))
    assert (view.trials, view.volumes, view.reference) == ((), (), ())
    assert "no scale yet" in dashboard(make_study(3, bounds={}))


def test_curves_are_the_rungs_and_the_end() -> None:
    study = on_the_way()
    view = curves_view(study)
    assert view.trial == tuple(range(30))
    assert view.stopped == tuple(range(24, 30))
    assert [view.trial[row] for row in view.members] == sorted(c.trial for c in study.front())
    for row, trial in enumerate(study.trials):
        if trial.candidate:
            score = trial.candidate.score
            assert view.samples[row] == (*RUNGS, score.samples)
            assert view.errors[row] == pytest.approx([*(rung.error for rung in score.rungs), score.error], rel=1e-4)
        else:
            assert view.samples[row] == RUNGS


def test_curves_leave_out_what_has_no_rungs(study: Study) -> None:
    assert curves_view(study).trial == ()
    mixed = on_the_way(4, 0)
    candidate = mixed.candidates[2]
    bare = candidate.model_copy(update={"score": candidate.score.model_copy(update={"rungs": ()})})
    trials = list(mixed.trials)
    trials[2] = trials[2].model_copy(update={"candidate": bare})
    assert curves_view(Study(mixed.spec, tuple(trials))).trial == (0, 1, 3)


def test_what_is_known_is_what_knowledge_says(study: Study) -> None:
    view, known = knowledge_view(study), knowledge_of(study)
    assert view
    assert known
    assert view.trial == known.trials == points_view(study).trial
    assert view.observed == points_view(study).columns["error"]
    assert view.expected == pytest.approx(known.expected, rel=1e-4)
    assert view.deviation == pytest.approx(known.deviation, rel=1e-4)
    assert view.sentence == known.sentence()


def test_little_is_known_of_few_trials() -> None:
    assert knowledge_view(make_study(15)) is None


# figures


def test_every_training_is_drawn_once() -> None:
    study = on_the_way()
    view = curves_view(study)
    drawn = {(trace.name, trace.mode): trace for trace in curves_figure(view).data}
    front = f"front over {', '.join(study.spec.objectives)}"
    assert set(drawn) == {
        ("complete", "lines"), ("stopped", "lines"), ("stopped", "markers"), (front, "lines+markers")
    }  # fmt: skip
    lines = [trace for trace in drawn.values() if "lines" in trace.mode]
    rows = [
        (trial, x, y)
        for trace in lines
        for trial, x, y in zip(trace.customdata, trace.x, trace.y, strict=True)
        if x is not None
    ]
    assert sorted(rows) == [
        (view.trial[row], *point)
        for row in range(len(view.trial))
        for point in zip(view.samples[row], view.errors[row], strict=True)
    ]
    crosses = drawn["stopped", "markers"]
    assert [x for x in crosses.x if x is not None] == [RUNGS[-1]] * 6
    assert crosses.marker.symbol == "x-thin"
    gaps = sum(x is None for trace in lines for x in trace.x)
    assert gaps == 30 - len(lines), "a gap between two trainings"


def test_left_out_predictions_are_drawn_with_their_intervals(study: Study) -> None:
    view = knowledge_view(study)
    assert view
    points, diagonal = knowledge_figure(view).data
    assert (points.x, points.y) == (view.observed, view.expected)
    assert list(points.error_y.array) == pytest.approx([1.96 * d for d in view.deviation], rel=1e-4)
    assert diagonal.x == diagonal.y == (min(view.observed + view.expected), max(view.observed + view.expected))


def test_every_completed_trial_is_one_point(study: Study) -> None:
    view = front_view(study, ("params", "error"))
    figure = front_figure(view)
    drawn = [(x, y) for t in figure.data if t.meta["role"] == "points" for x, y in zip(t.x, t.y, strict=True)]
    assert sorted(drawn) == sorted(zip(view.points.columns["params"], view.points.columns["error"], strict=True))
    line = next(t for t in figure.data if t.meta["role"] == "front")
    assert list(line.x) == [view.points.columns["params"][row] for row in view.front]


@pytest.mark.parametrize(("names", "drawn"), [(("params", "error"), False), (("macs", "latency"), True)])
def test_what_latency_brings(study: Study, names: tuple[str, str], drawn: bool) -> None:
    figure = front_figure(front_view(study, names))
    by_role = {trace.meta["role"]: trace for trace in figure.data}
    assert bool(by_role["noisy"].x) == drawn
    assert (by_role["points"].error_y.array is not None) == drawn
    assert bool(by_role["papers"].y) != drawn


def test_colour_by_an_objective(study: Study) -> None:
    figure = front_figure(front_view(study, ("params", "error")), "latency")
    bar = figure.layout.coloraxis.colorbar
    assert bar.ticktext[0].endswith(" ms")
    assert len(bar.tickvals) == len(bar.ticktext) == 5


def test_three_dimensions(study: Study) -> None:
    figure = front_figure(front_view(study))
    assert {trace.type for trace in figure.data} == {"scatter3d"}
    assert figure.layout.scene.xaxis.type == "linear"
    assert figure.layout.scene.yaxis.type == "log"


def test_the_hypervolumes_line_keeps_its_steps(study: Study) -> None:
    view = hypervolume_view(study)
    (line,) = hypervolume_figure(view).data
    drawn = dict(zip(line.x, line.y, strict=True))
    height = 0.0
    for trial, volume in zip(view.trials, view.volumes, strict=True):
        height = drawn.get(trial, height)
        assert height == pytest.approx(volume, rel=1e-4)
    assert len(drawn) < 60


# the page


def test_one_plotly_and_nothing_from_outside(page: Page) -> None:
    assert len(page.scripts) == 3
    assert sum("plotly.js v" in script[:200] for script in page.scripts) == 1
    for tag, attributes in page.elements:
        assert not {"src", "href", "srcset", "action", "style"} & set(attributes), tag
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
    assert "@import" not in asset("page.css")
    assert "url(" not in asset("page.css")


def test_only_the_pages_own_scripts_may_run(page: Page) -> None:
    (policy,) = (a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    assert allowed == [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in page.scripts[1:]]
    assert "unsafe-eval" not in policy
    assert "unsafe-inline" not in policy.partition("style-src")[0]


def test_elements_are_named_once_and_controls_labelled(page: Page) -> None:
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    labelled = {a["for"] for tag, a in page.elements if tag == "label"}
    assert labelled == {a["id"] for tag, a in page.elements if tag == "select"} == {"igc-x", "igc-y", "igc-colour"}
    assert {"igc-flat", "igc-solid", "igc-volume", "igc-data"} <= set(ids)


def test_every_two_axes_have_their_front(study: Study, page: Page) -> None:
    pairs = page.data["pairs"]
    assert set(pairs) == {",".join(pair) for pair in itertools.permutations(OBJECTIVES, 2)}
    for pair in itertools.permutations(OBJECTIVES, 2):
        front = pairs[",".join(pair)]["front"]
        assert sorted(front) == sorted(front_rows(study, sorted(pair, key=list(OBJECTIVES).index)))
        across = [page.data["points"][pair[0]][row] for row in front]
        assert across == sorted(across)
        assert pairs[",".join(pair)]["layout"]["xaxis"]["title"]["text"] == OBJECTIVES[pair[0]].label


@pytest.mark.usefixtures("_small")
def test_the_table_is_the_front(study: Study) -> None:
    text = dashboard(study)
    body = text[text.index("<tbody>") : text.index("</tbody>")]
    assert re.findall(r"<tr><td>(\d+)", body) == [str(c.trial) for c in study.front()]
    for candidate in study.front():
        assert f"<td>{candidate.cost.params:,}</td>" in body
        assert f"<code>{candidate.arch}</code>" in body
    assert f"igc-nas export test-study --pick trial:{study.pick('knee').trial} -o arch.toml" in text


def test_the_question_and_the_counts(page: Page) -> None:
    words = " ".join(page.words)
    for expected in (
        "igc_cifar",
        "at most 2M parameters",
        "error, params, latency",
        "2 epochs of 4,000",
        "known-cost, seed 0",
    ):
        assert expected in words
    assert re.search(r"2\s+infeasible", words)
    assert re.search(r"60\s+completed", words)
    assert "not comparable" in PAPERS


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_names_stay_text(hostile: str) -> None:
    shown = make_study(2, name="x", space_name="x", latency={"device": "x"})
    spec = shown.spec.model_copy(
        update={
            "name": hostile,
            "dataset": hostile,
            "space_name": hostile,
            "latency": shown.spec.latency.model_copy(update={"device": hostile}),
        }
    )
    trials = [
        t.model_copy(update={"candidate": t.candidate.model_copy(update={"id": hostile})})
        for t in shown.trials
        if t.candidate
    ]
    text = dashboard(Study(spec, tuple(trials)))
    text.encode()
    usual = Page(dashboard(make_study(2, dataset="other")))
    found = Page(text)
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in usual.elements]
    assert [set(a) for _, a in found.elements] == [set(a) for _, a in usual.elements]
    assert found.scripts[1:] == usual.scripts[1:]
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\u200e\u200f\u202a-\u202e\u2066-\u2069]", text.replace(found.scripts[1], "")
    )
    front_figure(front_view(Study(spec, tuple(trials)))).to_json()


@pytest.mark.usefixtures("_small")
def test_the_page_shows_the_trainings_and_what_is_known() -> None:
    study = on_the_way()
    found = Page(dashboard(study))
    words = " ".join(" ".join(found.words).split())
    assert {"igc-curves", "igc-knowledge"} <= {a.get("id") for _, a in found.elements}
    assert set(found.data["figures"]) == {"volume", "curves", "knowledge"}
    known = knowledge_view(study)
    assert known
    assert known.sentence in words
    assert "6 stopped" in words
    assert "24 completed trials" in words
    assert (
        "after 2,000 and 4,000 images of 8,000; a training is stopped there where its chance to end on the front is "
        "below 0.05: 6 of 30 were"
    ) in words
    assert "ends in a cross" in words


@pytest.mark.usefixtures("_small")
def test_the_page_of_a_study_without_rungs_has_no_curves() -> None:
    found = Page(dashboard(make_study(3)))
    assert "igc-curves" not in {a.get("id") for _, a in found.elements}
    assert set(found.data["figures"]) == {"volume"}
    words = " ".join(" ".join(found.words).split())
    assert "3 completed trials: too few to tell how well the errors can be predicted." in words
    assert "Rungs" not in words


@pytest.mark.usefixtures("_small")
def test_rungs_at_which_nothing_is_stopped() -> None:
    study = make(2, by_size, {2000: by_size}, recipe=RECIPE | {"rungs": [2000]})
    text = dashboard(study)
    assert "after 2,000 images of 8,000; nothing is stopped there" in text
    assert "ends in a cross" not in text


def test_plain_text() -> None:
    assert plain("a<b>&\"'") == "a&lt;b&gt;&amp;&#34;&#39;"
    assert plain("a\u202eb\x00c") == "a\ufffdb\ufffdc"
    assert plain("größer 你好 שלום") == "größer 你好 שלום"


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
        text = dashboard(make_study(count, dataset=dataset))
        main = text[text.index("<main>") :].removeprefix("<main>").lstrip()
        assert main.startswith('<p class="banner"')
        assert expected in main[:300]


def test_official_data_has_no_banner(page: Page) -> None:
    assert not any(a.get("class") == "banner" for _, a in page.elements)


def test_a_study_without_a_trial_names_the_command() -> None:
    text = dashboard(make_study(0, others=["failed"]))
    assert "No completed trial yet" in text
    assert "igc-nas search --study test-study" in text
    assert "<script" not in text
    assert "script-src 'none'" in text


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("names", [["error", "macs"], ["latency", "error"], ["macs", "params", "activations"]])
def test_other_objectives(names: list[str]) -> None:
    found = Page(dashboard(make_study(4, objectives=names))).data
    assert found["solid"]["axes"] == (names if len(names) == 3 else ["error", "params", "latency"])


@pytest.mark.usefixtures("_small")
def test_one_trial_and_equal_trials() -> None:
    assert Page(dashboard(make_study(1))).data["pairs"]["params,error"]["front"] == [0]
    first = make_study(1)
    again = first.trials[0].model_copy(update={"number": 1, "candidate": first.candidates[0].model_copy()})
    assert dashboard(Study(first.spec, (first.trials[0], again)))


def test_written_whole(study: Study, tmp_path: Path) -> None:
    write_dashboard(study, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_bytes() == dashboard(study).encode()
    assert len(list(tmp_path.iterdir())) == 1


def test_ten_thousand_trials_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Study, "hypervolume_curve", lambda self: [(i, i / 1e5) for i in range(1, 10_001)])
    study = make(10_000, by_size, dict.fromkeys(RUNGS, by_size), recipe=RECIPE | {"rungs": RUNGS}, stop=0.05)
    text = dashboard(stop(study, 7_000))
    assert len(text.encode()) <= 10_000_000
    data = Page(text).data
    assert len(data["points"]["error"]) == 7_000
    assert sum(len(trace["x"]) for trace in data["figures"]["curves"]["data"]) > 30_000
    assert len(data["figures"]["knowledge"]["data"][0]["x"]) == 400


def test_importing_is_light() -> None:
    code = "import sys, igc_nas.page; print([m for m in ('plotly', 'torch', 'optuna', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# the picture


def test_a_picture_needs_its_extra(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError) as caught:
        front_picture(study, tmp_path / "front.png")
    assert caught.value.hint == "pip install 'igc-nas[png]'"


@pytest.mark.parametrize("name", ["front.PNG", "front.svg"])
def test_a_picture_is_titled(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("igc_nas.plots._image", lambda figure, kind: drawn.append(figure) or kind.encode())
    front_picture(study, tmp_path / name)
    title = drawn[0].layout.title.text
    for expected in ("cifar10", "at most 2M parameters", "60 trials", "Test CPU"):
        assert expected in title
    assert (tmp_path / name).read_text() == name[-3:].lower()


def test_a_missing_browser_is_one_line(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> bytes:
        raise RuntimeError("Kaleido requires Google Chrome to be installed.\nSee ...")

    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    monkeypatch.setattr("plotly.basedatatypes.BaseFigure.to_image", fail)
    with pytest.raises(UsageError, match="requires Google Chrome to be installed") as caught:
        front_picture(study, tmp_path / "front.png")
    assert "\n" not in caught.value.message


def test_a_picture_of_nothing_and_of_another_kind(study: Study, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no completed trial"):
        front_picture(make_study(0), tmp_path / "front.png")
    with pytest.raises(UsageError, match="neither"):
        front_picture(study, tmp_path / "front.gif")
