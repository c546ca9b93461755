"""The page in a browser: it draws without console messages or requests, and its controls work.

Needs Chromium and its driver (Debian packages chromium and chromium-driver); else the tests are skipped.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from igc_nas.analysis.dashboard.document import write_dashboard
from igc_nas.arch.config import ArchConfig
from igc_nas.arch.cost import Cost
from igc_nas.io.files import append_line
from igc_nas.study.finals import FinalsLog
from igc_nas.study.objectives import OBJECTIVES
from igc_nas.study.records import Candidate, FormTime, Trial
from igc_nas.study.study import Study
from tests.study.test_finals import final
from tests.support.families import RECIPE, RUNGS, blurred, by_size, make, stop, write
from tests.support.studies import make_study, with_baselines

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (pip install -e '.[dev]')")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

PROGRAM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (PROGRAM and DRIVER), reason="needs Chromium (or Chrome) and chromedriver"),
]

TIMEOUT_S = 60
DRAWN = "return document.body.dataset.drawn === 'all'"
HOSTILE = "<img src=x onerror='window.hit=1'>\u202e<b>"


class Browser:
    """Headless Chromium, and the actions of a user."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, address: str, width: int = 1280, until: str = DRAWN) -> None:
        """Open a light page that is as wide as that, and wait until all is drawn."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.prefer("light")
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)
        self.driver.get(address)
        self.until(until)

    def prefer(self, scheme: str) -> None:
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        features = [{"name": "prefers-color-scheme", "value": scheme}, still]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, script: str) -> Any:
        return WebDriverWait(self.driver, TIMEOUT_S, 0.05).until(lambda _: self.run(script), script)

    def find(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText ?? e.textContent)"
        found: list[str] = self.run(script, selector)
        return [text.strip() for text in found]

    def choose(self, name: str, value: str) -> None:
        Select(self.find(f"#igc-{name}")).select_by_value(value)

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def click_on(self, trial: Trial | Candidate, x: str, y: str) -> None:
        """Click on the place of a trial in the plot of the front."""
        number = trial.trial if isinstance(trial, Candidate) else trial.number
        self.run("document.getElementById('igc-front').scrollIntoView({block: 'center'})")
        at = self.run(
            """const trial = studies[0].byNumber.get(arguments[0]), plot = document.getElementById("igc-front");
            const {left, top} = plot.getBoundingClientRect(), {xaxis, yaxis} = plot._fullLayout;
            return [left + xaxis._offset + xaxis.d2p(trial[arguments[1]]),
                    top + yaxis._offset + yaxis.d2p(trial[arguments[2]])];""",
            number, x, y,
        )  # fmt: skip
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            point = {"type": kind, "x": at[0], "y": at[1], "button": "left", "clickCount": kind != "mouseMoved"}
            self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", point | {"clickCount": int(kind != "mouseMoved")})

    @property
    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "ERROR")]

    @property
    def requested(self) -> list[str]:
        """The addresses that anything was asked of since the page was opened."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    options.binary_location = PROGRAM
    drawing = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
    profile = f"--user-data-dir={tmp_path_factory.mktemp('profile')}"
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", profile, *drawing):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


def several(name: str = "browsed", n: int = 40) -> Study:
    """A study with everything there is to draw: forms, rungs, pruned trainings, and trials in other states."""
    rungs = {at: blurred(by_size, 0.02, at) for at in RUNGS}
    question = {"recipe": RECIPE | {"rungs": RUNGS}, "prune_below": 0.05, "name": name}
    whole = stop(make(n, blurred(by_size, 0.01, 0), rungs, **question), n - 4)
    arch = whole.trials[-1].arch
    over = Trial(number=n, state="infeasible", params={}, arch=arch, reason="2,345,678 parameters")
    failed = Trial(number=n + 1, state="failed", params={}, arch=arch, reason="the loss is not finite")
    return Study(whole.spec, (*map(_timed, whole.trials), over, failed))


def _timed(trial: Trial) -> Trial:
    """The trial with two forms, of which the one with more MACs is faster and chosen."""
    if trial.candidate is None:
        return trial
    cost, latency = trial.candidate.cost, trial.candidate.latency
    forms = {
        form: FormTime(
            params=cost.params * times, macs=cost.macs * times, weight_bytes=4 * cost.params * times,
            median_ms=latency.median_ms / times, low_ms=latency.low_ms / times, high_ms=latency.high_ms / times,
        )
        for form, times in (("factored", 1), ("dense", 2))
    }  # fmt: skip
    update = {"latency": latency.model_copy(update={"forms": forms, "form": "dense"})}
    return trial.model_copy(update={"candidate": trial.candidate.model_copy(update=update)})


def alone(study: Study) -> Candidate:
    """The member of the front of error and parameters that is farthest from all other trials."""

    def distance(one: Candidate) -> float:
        others = (c for c in study.candidates if c.trial != one.trial)
        return min(
            abs(math.log10(one.cost.params / c.cost.params)) + 5 * abs(one.score.error - c.score.error) for c in others
        )

    return max(study.front(("error", "params")), key=distance)


@pytest.fixture(scope="module")
def study() -> Study:
    return several()


@pytest.fixture(scope="module")
def address(study: Study, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_dashboard([study], path)
    return path.as_uri()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Browser]:
    browser.open(address)
    yield browser
    assert browser.complaints == []


def test_it_opens_without_errors_and_requests(page: Browser, address: str) -> None:
    assert [url for url in page.requested if not url.startswith("data:")] == [address]
    assert page.run("return performance.getEntriesByType('resource').length") == 0
    for name in ("front", "volume", "forms", "curves", "surrogate-plot"):
        assert page.run("return document.querySelectorAll(`#igc-${arguments[0]} .trace`).length", name) > 0, name
        assert len(page.find(f"#igc-{name}").get_attribute("aria-label")) > 20
    assert len(page.texts("#igc-choices table")) == 4
    assert "36 of 36" in page.find("#igc-forms-text").text


def test_its_fronts_are_those_of_the_study(page: Browser, study: Study) -> None:
    names = [*itertools.combinations(OBJECTIVES, 2), ("error", "params", "latency"), ("latency", "macs", "error")]
    for axes in names:
        found = page.run("return frontOf(studies[0].trials, arguments[0]).map(trial => trial.trial)", list(axes))
        assert found == [candidate.trial for candidate in study.front(axes)], axes


def test_axes_are_chosen(page: Browser) -> None:
    titles = "#igc-front :is(.xtitle, .ytitle)"
    assert page.texts(titles) == ["parameters", "held-out error"]
    page.choose("x", "latency")
    assert page.texts(titles) == ["latency (ms)", "held-out error"]
    page.choose("y", "latency")  # what stands across already changes places with what was up
    assert page.texts(titles) == ["held-out error", "latency (ms)"]
    page.choose("colour", "macs")
    assert (
        page.run("return document.querySelectorAll('#igc-front .cbaxis, #igc-front .infolayer .colorbar').length") > 0
    )
    page.choose("z", "params")
    page.until("return document.querySelector('#igc-front canvas') && !document.querySelector('#igc-front .xtitle')")
    page.choose("z", "")
    page.until("return document.querySelectorAll('#igc-front .xtitle').length === 1")


def test_trials_with_unknown_values_are_drawn_at_the_end_of_the_axis(page: Browser) -> None:
    drawn = "return document.getElementById('igc-front').data.map(t => [t.name, t.yaxis ?? 'y', t.x.length])"
    shown = page.run(drawn)
    assert ["pruned", "y", 4] in shown
    assert ["infeasible", "y2", 1] in shown
    assert ["failed", "y2", 1] in shown
    page.find("#igc-unfinished").click()
    assert not {"pruned", "infeasible", "failed"} & {name for name, *_ in page.run(drawn)}
    page.find("#igc-papers").click()
    assert any("papers" in name for name, *_ in page.run(drawn))


def test_a_legend_entry_switches_its_traces(page: Browser) -> None:
    button = page.find("#front .legend button")
    name = button.text
    visible = (
        "return document.getElementById('igc-front').data.filter(t => t.name === arguments[0]).map(t => t.visible)"
    )
    assert set(page.run(visible, name)) == {True}
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert set(page.run(visible, name)) == {"legendonly"}
    page.choose("x", "macs")
    assert set(page.run(visible, name)) == {"legendonly"}


def test_a_point_shows_its_architecture(page: Browser, study: Study) -> None:
    candidate = alone(study)
    page.click_on(candidate, "params", "error")
    page.until("return document.getElementById('igc-detail').open")
    detail = page.find("#igc-detail").text
    assert f"Trial {candidate.trial}" in detail
    assert page.texts("#igc-front .annotation") == [f"trial {candidate.trial}"]
    assert str(candidate.arch) in detail
    assert f"{candidate.cost.macs:,}" in detail
    assert f"igc-nas export browsed --pick trial:{candidate.trial} -o arch.toml" in detail
    assert len(page.texts("#igc-detail .diagram li")) == 2 + len(candidate.arch.stages)
    assert page.texts("#igc-detail .forms tbody th")[0].startswith("dense")
    assert page.run("return document.querySelectorAll('#igc-detail svg.curve circle.held').length") == len(RUNGS) + 1
    page.find("#igc-detail .command button").click()
    page.until("return /^(Copied|Selected)/.test(document.querySelector('#igc-detail .command + .note').textContent)")
    page.find("#igc-detail .close").click()
    assert not page.run("return document.getElementById('igc-detail').open")
    page.until("return !document.querySelector('#igc-front .annotation')")


def test_the_table_is_sorted_and_searched(page: Browser, study: Study) -> None:
    numbers = "#igc-table tbody td:first-child"
    by_error = sorted(study.candidates, key=lambda c: (c.score.error, c.trial))
    assert page.texts(numbers) == [str(c.trial) for c in by_error]
    header = "#igc-table th button[data-sort=params]"
    page.find(header).click()
    ascending = [str(c.trial) for c in sorted(study.candidates, key=lambda c: (c.cost.params, c.trial))]
    assert page.texts(numbers) == ascending
    assert page.find("#igc-table th[aria-sort]").get_attribute("aria-sort") == "ascending"
    page.find(header).click()
    assert page.texts(numbers)[0] == ascending[-1]
    page.find("#igc-find").send_keys("igcv1 k5")
    wanted = [c for c in study.candidates if "igcv1" in str(c.arch) and "k5" in str(c.arch)]
    assert sorted(page.texts(numbers)) == sorted(str(c.trial) for c in wanted)
    assert page.find("#igc-count").text.endswith(f"{len(wanted)} trial{'s' * (len(wanted) != 1)}")
    page.find("#igc-find").send_keys(" nothing")
    assert page.texts(numbers) == []
    page.run("document.getElementById('igc-find').value = ''")
    page.choose("state", "pruned")
    assert sorted(page.texts(numbers)) == ["36", "37", "38", "39"]


KEEP_SAVED = (
    "const make = URL.createObjectURL.bind(URL);"
    "URL.createObjectURL = blob => { window.saved = blob; return make(blob); }"
)


def test_an_architecture_is_saved_as_toml(page: Browser, study: Study) -> None:
    page.run(KEEP_SAVED)
    member = study.front()[1]
    page.run("showDetail(studies[0].byNumber.get(arguments[0]))", member.trial)
    page.find("#igc-detail .toml").click()
    text = page.run("return window.saved.text()")
    assert ArchConfig.from_toml(text) == member.arch
    assert text.startswith(f"# {study.spec.name}, trial {member.trial}, id {member.id}\n")


def test_the_rows_that_are_found_are_saved_as_csv(page: Browser, study: Study) -> None:
    page.run(KEEP_SAVED)
    page.choose("state", "front")
    page.find("#igc-csv").click()
    rows = list(csv.DictReader(io.StringIO(page.run("return window.saved.text()"))))
    found = {(int(row["trial"]), int(row["params"]), row["arch"]) for row in rows}
    assert found == {(c.trial, c.cost.params, str(c.arch)) for c in study.front()}
    assert [float(row["error"]) for row in rows] == pytest.approx([c.score.error for c in study.front()], abs=1e-4)


def test_it_works_with_the_keyboard_alone(page: Browser) -> None:
    page.run("document.querySelector('#igc-table tbody tr').focus()")
    page.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_UP)
    row = "return document.activeElement.sectionRowIndex"
    assert page.run(row) == 1
    number = page.run("return document.activeElement.cells[0].textContent")
    page.press(Keys.ENTER)
    assert page.texts("#igc-detail h2") == [f"Trial {number}"]
    assert page.run("return document.activeElement.id") == "igc-detail-title"
    page.press(Keys.ESCAPE)
    assert not page.run("return document.getElementById('igc-detail').open")
    assert page.run(row) == 1
    page.press(Keys.END)
    assert page.run(row) == 35
    page.run("document.querySelector('nav a').focus()")
    assert page.run("return document.activeElement.matches(':focus-visible')")


def test_baselines_are_named_points_that_are_on_no_front(browser: Browser, study: Study, tmp_path: Path) -> None:
    found = with_baselines(study, "resnet20-a", "mobilenetv2-x0.25", "<b>mine</b>", failed=("dpn92",))
    write_dashboard([found], tmp_path / "page.html")
    browser.open((tmp_path / "page.html").as_uri())
    names = (
        "return [...document.querySelectorAll('#igc-front .textpoint text')].map(e => e.textContent).filter(Boolean)"
    )
    assert set(browser.run(names)) <= {"resnet20-a", "mobilenetv2-x0.25", "<b>mine</b>"}
    assert len(browser.run(names)) >= 2
    assert browser.run("return studies[0].baselines.length") == 3
    front = "return frontOf(studies[0].trials, ['error', 'params']).map(trial => trial.trial)"
    assert browser.run(front) == [candidate.trial for candidate in study.front(("error", "params"))]
    assert "3 baselines" in browser.find("#igc-front-note").text
    browser.find("#igc-baselines").click()
    assert browser.run(names) == []
    browser.choose("state", "baseline")
    assert sorted(browser.texts("#igc-table tbody tr td:nth-child(2)")) == sorted(
        ["baseline resnet20-a", "baseline mobilenetv2-x0.25", "baseline <b>mine</b>", "baseline dpn92, failed"]
    )
    assert browser.complaints == []


def test_finals_are_drawn_above_their_table(browser: Browser, study: Study, tmp_path: Path) -> None:
    log = FinalsLog(tmp_path)
    networks = [(0.2, 8, HOSTILE, None), (0.3, 12, "trial 3", 3), (0.1, 16, "trial 4", 4)]
    for error, side, name, trial in networks:
        for seed in (0, 1):
            cost = Cost(params=1000 * side, macs=10**6, activations=10**4)
            log.add(final(error + seed / 100, side, seed=seed, name=name, trial=trial, cost=cost))
    path = tmp_path / "page.html"
    write_dashboard([Study(study.spec, study.trials, tmp_path)], path)
    browser.open(path.as_uri())
    drawn = browser.run(
        "return document.getElementById('igc-finals-0-0').data.map(t => [t.name, t.y, t.error_y?.array])"
    )
    (_, front, _), (_, own, _), (_, beside, bars) = drawn
    assert (front, own, beside) == ([0.205, 0.105], [0.105, 0.305], [0.205])  # the table: by error
    assert bars == [pytest.approx(3.1824 * 0.005, rel=1e-4)]  # one deviation for all: Student's t, three degrees
    assert browser.run("return window.hit") is None
    assert browser.complaints == []


def test_a_narrow_axis_has_ticks_and_each_line_of_speed_its_label(browser: Browser, tmp_path: Path) -> None:
    whole = make_study(40)
    near = sorted(whole.candidates, key=lambda c: c.cost.macs)[20:25]
    assert near[-1].cost.macs < 1.5 * near[0].cost.macs
    numbers = {candidate.trial for candidate in near}
    study = Study(whole.spec, tuple(trial for trial in whole.trials if trial.number in numbers))
    for one, name in ((study, "narrow.html"), (whole, "wide.html")):
        write_dashboard([one], tmp_path / name)
        browser.open((tmp_path / name).as_uri())
        assert len([text for text in browser.texts("#igc-forms .xtick text") if text]) >= 3
    lines = browser.run("return document.getElementById('igc-forms').data.filter(t => t.mode === 'lines').length")
    assert lines >= 2
    assert len(browser.texts("#igc-forms .annotation-text")) == lines


def test_light_and_dark(page: Browser) -> None:
    ground = "return getComputedStyle(document.body).backgroundColor"
    ink = "document.getElementById('igc-front').layout.font.color"
    assert (page.run(ground), page.run(f"return {ink}")) == ("rgb(245, 246, 248)", "#1f2937")
    page.prefer("dark")
    page.until(f"return {ink} === '#e5e7eb'")
    assert page.run(ground) == "rgb(17, 20, 26)"


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(browser: Browser, address: str, width: int) -> None:
    browser.open(address, width)
    fits = "return innerWidth === arguments[0] && document.documentElement.scrollWidth <= innerWidth"
    assert browser.run(fits, width)
    browser.run("for (const details of document.querySelectorAll('details')) details.open = true")
    browser.run("document.querySelector('#igc-table tbody tr').click()")
    assert browser.run(fits, width)
    assert browser.run("const d = document.getElementById('igc-detail'); return d.scrollWidth <= d.clientWidth")
    browser.press(Keys.ESCAPE)
    assert not browser.run("return document.getElementById('igc-detail').open")
    assert browser.complaints == []


def test_ten_thousand_trials_are_drawn(browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Study, "hypervolume_curve", lambda self, _=None: [(n, n / 1e5) for n in range(1, 9_997)])
    write_dashboard([several(n=10_000)], tmp_path / "page.html")
    browser.open((tmp_path / "page.html").as_uri())
    assert browser.find("#igc-count").text == "1–50 of 9,996 trials"
    points = browser.run("return document.querySelectorAll('#igc-front .points path').length")
    assert 3000 < points < 5000
    assert "an even sample of 3,000 of the others" in browser.find("#igc-front-note").text
    assert "stored for 2,000 of 9,996 candidates" in browser.find("#igc-forms-note").text
    assert browser.complaints == []


def test_names_are_only_text(browser: Browser, tmp_path: Path) -> None:
    study = several()

    def named(trial: Trial) -> Trial:
        if trial.candidate is None:
            return trial.model_copy(update={"reason": HOSTILE})
        latency = trial.candidate.latency
        forms = {HOSTILE: latency.forms["dense"], "factored": latency.forms["factored"]}
        changes = {"form": HOSTILE, "forms": forms, "noise": (HOSTILE,)}
        update = {"id": HOSTILE, "latency": latency.model_copy(update=changes)}
        return trial.model_copy(update={"candidate": trial.candidate.model_copy(update=update)})

    spec = study.spec.model_copy(update={"name": HOSTILE, "dataset": HOSTILE})
    hostile = Study(spec, tuple(map(named, study.trials)))
    other = replace(hostile, spec=spec.model_copy(update={"name": f"{HOSTILE}2"}))
    write_dashboard([hostile, other], tmp_path / "page.html")
    browser.open((tmp_path / "page.html").as_uri())
    browser.choose("state", "all")
    browser.click_on(alone(study), "params", "error")
    browser.until("return document.getElementById('igc-detail').open")
    assert HOSTILE.replace("\u202e", "\ufffd") in browser.find("#igc-detail").text
    assert browser.run("return [window.hit ?? null, document.images.length]") == [None, 0]
    assert browser.run("return document.querySelectorAll('b').length") == 2, "the word before each study's question"
    assert "\u202e" not in browser.run("return document.body.innerText + document.title")
    assert browser.complaints == []


def test_studies_side_by_side(browser: Browser, tmp_path: Path) -> None:
    studies = [several("one", 30), make_study(20, seed=1, name="other")]
    write_dashboard(studies, tmp_path / "page.html")
    browser.open((tmp_path / "page.html").as_uri())
    assert "study" in browser.texts("#igc-table th")[0]
    assert set(browser.texts("#igc-table tbody td:first-child")) == {"one", "other"}
    names = browser.run("return document.getElementById('igc-volume').data.map(trace => trace.name)")
    assert names == ["one", "other"]
    assert not browser.run("return document.getElementById('trainings').hidden")
    browser.choose("study", "1")
    browser.until("return document.getElementById('trainings').hidden")
    assert "recipes differ" in browser.find(".warnings").text
    assert browser.complaints == []


def test_a_served_page_follows_the_study(browser: Browser, tmp_path: Path) -> None:
    whole = make_study(8, name="served")
    folder = write(tmp_path / "served", Study(whole.spec, ()))
    command = [sys.executable, "-m", "igc_nas", "dashboard", str(folder), "--serve", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout
        browser.open(server.stdout.readline().strip(), until="return document.getElementById('igc-live').textContent")
        assert "No search is running" in browser.find("#igc-live").text
        assert browser.find(".empty").is_displayed()
        browser.run("window.same = true")
        for before, count in ((0, 5), (5, 8)):
            for trial in whole.trials[before:count]:
                append_line(folder / "trials.jsonl", trial.to_json())
            browser.until(f"return document.querySelector('.cards strong').textContent === '{count}'")
            browser.until(DRAWN)
        assert not browser.find(".empty").is_displayed()
        assert len(browser.texts("#igc-table tbody tr")) == 8
        assert browser.run("return window.same"), "the page was not loaded again"
        assert {url.split("?")[0].rpartition("/")[2] for url in browser.requested if url.startswith("http")} <= {
            "",
            "data.json",
        }
        assert browser.complaints == []
    finally:
        server.kill()
        server.communicate()
        browser.driver.get("about:blank")
