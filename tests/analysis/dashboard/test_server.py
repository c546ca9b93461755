"""The served page: which requests are answered, with what, that it follows the study, and that polling is cheap."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from igc_nas.analysis.dashboard.payload import live_payload
from igc_nas.analysis.dashboard.server import Page, WatchedStudy, application
from igc_nas.io.files import append_line
from igc_nas.study.lock import OWNER_FILE, LockHolder, Running, now
from igc_nas.study.process import Process
from igc_nas.study.records import Trial
from igc_nas.study.spec import Target
from igc_nas.study.status import status_of
from igc_nas.study.study import Study, load_study
from tests.support.commands import Command, refused
from tests.support.families import write
from tests.support.studies import make_study

PORT = "8321"


class Client:
    """Asks an application without a socket."""

    def __init__(self, *watched: WatchedStudy, **pause: float) -> None:
        self.app = application(Page(watched, **pause))

    def ask(
        self, path: str = "/data.json", method: str = "GET", host: str | None = f"127.0.0.1:{PORT}", **more: str
    ) -> Any:
        place, _, query = path.partition("?")
        environ = {"REQUEST_METHOD": method, "PATH_INFO": place, "QUERY_STRING": query, "SERVER_PORT": PORT, **more}
        if host is not None:
            environ["HTTP_HOST"] = host
        told: list[Any] = []
        body = b"".join(self.app(environ, lambda status, headers, _=None: told.append((status, dict(headers)))))
        (status, headers) = told[0]
        return int(status[:3]), headers, body


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    whole = make_study(8, name="served")
    return write(tmp_path / "studies" / "served", Study(whole.spec, whole.trials[:6]))


@pytest.fixture
def client(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "/* plotly.js v0 */")
    return Client(WatchedStudy(load_study(folder)))


def data(client: Client, **more: str) -> Any:
    status, _, body = client.ask(**more)
    assert status == 200
    return json.loads(body)


# Who is answered.


@pytest.mark.parametrize("host", [f"127.0.0.1:{PORT}", f"localhost:{PORT}", f"LOCALHOST:{PORT}", f"[::1]:{PORT}"])
def test_a_name_of_the_loopback_is_answered(client: Client, host: str) -> None:
    for path in ("/", "/data.json"):
        assert client.ask(path, host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        None, "", "127.0.0.1", "localhost", f"evil.example:{PORT}", "127.0.0.1:80", f"127.0.0.1.evil.example:{PORT}",
        f"evil.example@127.0.0.1:{PORT}", f"127.0.0.1:{PORT}.evil.example", f"0.0.0.0:{PORT}", f"127.0.0.2:{PORT}",
        f" 127.0.0.1:{PORT}",
    ],
)  # fmt: skip
def test_another_name_is_refused(client: Client, host: str | None) -> None:
    for path in ("/", "/data.json", "/other"):
        status, _, body = client.ask(path, host=host)
        assert status == 421
        assert b"served" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "get"])
def test_only_reading_is_allowed(client: Client, method: str) -> None:
    for path in ("/", "/data.json"):
        status, headers, _ = client.ask(path, method)
        assert (status, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "path",
    ["", "/study.toml", "/trials.jsonl", "/../study.toml", "/%2e%2e/study.toml", "//", "/data.json/", "/page.js",
     "/favicon.ico", "/etc/passwd", "/data.json\x00"],
)  # fmt: skip
def test_nothing_else_is_there(client: Client, path: str) -> None:
    assert client.ask(path)[0] == 404


def test_every_response_has_security_headers(client: Client) -> None:
    asked = [client.ask("/"), client.ask(), client.ask("/no"), client.ask(method="POST"), client.ask(host="evil")]
    for _, headers, body in asked:
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; ")
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["Content-Length"] == str(len(body))
        assert not [name for name in headers if name.startswith("Access-Control-")]
    policy = asked[0][1]["Content-Security-Policy"]
    assert "connect-src 'self'" in policy
    assert "unsafe-eval" not in policy


def test_a_head_is_the_headers_of_a_get(client: Client) -> None:
    for path in ("/", "/data.json", "/no"):
        status, headers, body = client.ask(path, "HEAD")
        assert (status, headers, body) == (*client.ask(path)[:2], b"")


# What is answered.


def test_the_page_connects_to_its_server_only(client: Client) -> None:
    _, headers, body = client.ask("/")
    text = body.decode()
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert "<body data-live>" in text
    assert "connect-src 'self'" in text
    assert "test-study" not in text
    assert "served" in text


def test_polling_an_unchanged_page_has_no_body(client: Client) -> None:
    _, headers, body = client.ask()
    assert client.ask(HTTP_IF_NONE_MATCH=headers["ETag"])[::2] == (304, b"")
    assert client.ask(HTTP_IF_NONE_MATCH=f'"x", W/{headers["ETag"]}')[0] == 304
    assert client.ask(HTTP_IF_NONE_MATCH='"x"')[0] == 200
    known = json.loads(body)["tag"]
    again = json.loads(client.ask(f"/data.json?have={known}")[2])
    assert (again["page"], again["tag"]) == (None, known)
    assert json.loads(client.ask("/data.json?have=other")[2])["page"] is not None


def test_a_finished_trial_is_there_at_once(folder: Path) -> None:
    client = Client(WatchedStudy(load_study(folder)), rebuild_pause=0.0)
    before = data(client)
    trial = make_study(8, name="served").trials[6]
    line = trial.to_json()
    with (folder / "trials.jsonl").open("a") as file:
        file.write(line[:40])
        file.flush()
        assert len(data(client)["page"]["studies"][0]["trials"]["trial"]) == 6, "half a line is none"
        file.write(line[40:] + "\n")
    after = data(client)
    assert before["tag"] != after["tag"]
    assert after["page"]["studies"][0]["trials"]["trial"] == list(range(7))


def test_a_slow_page_is_not_rebuilt_at_once(folder: Path) -> None:
    patient, eager = (Page([WatchedStudy(load_study(folder))], pause) for pause in (1e9, 0.0))
    first = patient.snapshot()
    assert eager.snapshot() == first
    append_line(folder / "trials.jsonl", make_study(8).trials[6].to_json())
    assert patient.snapshot().tag == first.tag
    assert eager.snapshot().tag != first.tag


def test_a_study_that_becomes_unreadable_keeps_its_last_page(client: Client, folder: Path) -> None:
    before = data(client)
    (folder / "trials.jsonl").write_text("{}\nnonsense\n")
    after = data(client)
    assert after["page"] == before["page"]
    (problem,) = after["live"]["problems"]
    assert "trials.jsonl line 1" in problem
    whole = make_study(8, name="served")
    (folder / "trials.jsonl").write_text("".join(f"{t.to_json()}\n" for t in whole.trials))
    assert data(client)["live"]["problems"] == []


def test_running_trials_are_listed(client: Client, folder: Path) -> None:
    assert data(client)["live"]["studies"] == [{"owner": None, "since": None, "waiting": 0, "running": []}]
    here, arch = Process.here(), make_study(8).candidates[7].arch
    begun = Trial(number=6, state="running", params={}, arch=arch, started=now(), process=here)
    append_line(folder / "trials.jsonl", begun.to_json())
    running = Running(number=6, doing="training", since=now(), samples=1000, train_error=0.75)
    holder = LockHolder(process=here, since=now(), seen=now(), running=(running,))
    (folder / OWNER_FILE).write_text(holder.model_dump_json(exclude_none=True), encoding="utf-8")
    (state,) = data(client)["live"]["studies"]
    assert state["owner"] == str(here)
    (shown,) = state["running"]
    assert (shown["trial"], shown["doing"], shown["samples"], shown["train_error"]) == (
        6,
        "training",
        1000,
        0.75,
    )
    assert shown["arch"] == str(arch)


def test_a_longer_training_has_the_images_of_its_own_recipe() -> None:
    study = make_study(2)
    recipe = study.spec.recipe.model_copy(update={"train_size": 40_000})
    spec = study.spec.model_copy(update={"target": Target(images=200_000, recipe=recipe, share=0.4)})
    begun = Trial(number=2, state="running", params={}, arch=study.trials[0].arch, process=Process.here())
    trials = (*study.trials, begun, begun.model_copy(update={"number": 3, "longer_of": 1}))
    (state,) = live_payload([status_of(Study(spec, trials))])["studies"]
    assert [(t["trial"], t["longer_of"], t["of"]) for t in state["running"]] == [(2, None, 8000), (3, 1, 80_000)]


def test_a_page_begins_before_its_study_has_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "/* plotly.js v0 */")
    client = Client(WatchedStudy(load_study(write(tmp_path / "new", make_study(0, name="new")))))
    text = client.ask("/")[2].decode()
    assert "No completed trial yet" in text
    assert text.count("<script>") == 2


def test_a_database_is_read_only_every_so_many_seconds() -> None:
    seldom, always = (WatchedStudy(make_study(2), lambda: make_study(3), every_s) for every_s in (1e9, 0.0))
    assert seldom.refresh() is False
    assert len(seldom.study.trials) == 2
    assert always.refresh() is True
    assert len(always.study.trials) == 3


# The command.


@pytest.fixture
def served(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "igc_nas", "dashboard", str(folder), "--serve", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_served_until_it_is_stopped(served: tuple[subprocess.Popen[str], str], number: int, status: int) -> None:
    process, url = served
    assert url.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(url) as answer:  # noqa: S310
        assert answer.status == 200
        assert b"served" in answer.read()
        assert "waitress" not in str(answer.headers).lower()
    port = int(url.rpartition(":")[2].strip("/"))
    with pytest.raises(urllib.error.HTTPError, match="421"):
        urllib.request.urlopen(urllib.request.Request(url, headers={"Host": f"evil.example:{port}"}))  # noqa: S310
    addresses = [address for *_, (address, *_) in socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)]
    for address in {a for a in addresses if not a.startswith("127.")}:
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((address, port), timeout=2)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (status, "")
    assert "Traceback" not in err


def test_a_port_in_use_is_one_error(folder: Path, cli: Command) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(cli("dashboard", folder, "--serve", "--port", str(port)), 2, f"port {port} of 127.0.0.1", "--port 0")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--serve -o page.html", ("--serve writes no file",)),
        ("--serve --picture front.png", ("--serve writes no file",)),
        ("--port 80", ("add --serve",)),
        ("--serve --port 70000", ("70000",)),
    ],
)
def test_flags_that_do_not_go_together(folder: Path, cli: Command, flags: str, words: tuple[str, ...]) -> None:
    refused(cli("dashboard", folder, *flags.split()), 2, *words)


def test_several_studies_need_a_file_of_their_own(folder: Path, cli: Command, tmp_path: Path) -> None:
    os.chdir(tmp_path)
    refused(cli("dashboard", folder, folder), 2, "several studies", "-o")
    refused(cli("dashboard", folder, folder, "-o", "p.html", "--picture", "p.png"), 2, "a picture is of one study")
    assert cli("dashboard", folder, folder, "-o", "p.html").out == "p.html\n"
    assert (tmp_path / "p.html").is_file()
