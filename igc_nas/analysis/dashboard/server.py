"""Serves the page while the search runs: on the loopback interface, read-only, two fixed paths, no access to files.

    GET /            the current page
    GET /data.json   {"tag": ..., "page": the page's data, "live": the running trials}

With `?have=TAG` the data is null if it still has that tag, and with `If-None-Match` an unchanged response is a 304
without a body, so a page can poll every two seconds. The Host header must be a name of the loopback interface: that
refuses other sites whose name resolves to this machine (DNS rebinding).
"""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self
from urllib.parse import parse_qs

from igc_nas.analysis.dashboard.document import as_json, data_element, document, policy, scripts
from igc_nas.analysis.dashboard.payload import CachedStudy, live_payload, payload
from igc_nas.errors import IgcNasError, UsageError
from igc_nas.io.text import visible
from igc_nas.study.status import status_of
from igc_nas.study.study import STUDY_FILE, TRIALS_FILE, Study, load_study, read_trials

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

HOST = "127.0.0.1"
NAMES = ("localhost", "127.0.0.1", "[::1]")
REBUILD_PAUSE = 4.0
"""Pause before the page is built again, as a multiple of the time that building it took: the search needs the CPU."""
DATABASE_EVERY_S = 10.0
"""Seconds between two reads of a study that exists only in a database."""

Stamp = tuple[tuple[int, int] | None, ...]


class WatchedStudy:
    """A study that is read again when its files change; without files, by `read` every `every_s` seconds."""

    def __init__(
        self, study: Study, read: Callable[[], Study] | None = None, every_s: float = DATABASE_EVERY_S
    ) -> None:
        self.study = study
        self._read = read
        self._every_s = every_s
        self._stamp = self._now()
        self._read_at = time.monotonic()

    def _now(self) -> Stamp:
        folder = self.study.folder
        return () if folder is None else tuple(_stamp(folder / name) for name in (STUDY_FILE, TRIALS_FILE))

    def refresh(self) -> bool:
        """Read the study again if it changed; whether it did. If that raises `IgcNasError`, the old study stays."""
        if self._read is not None:
            if time.monotonic() - self._read_at < self._every_s:
                return False
            self._read_at = time.monotonic()
            self.study = self._read()
            return True
        stamp, folder = self._now(), self.study.folder
        if stamp == self._stamp or folder is None:
            return False
        if stamp[0] == self._stamp[0]:  # the spec is unchanged: keep it, as its search space is counted already
            self.study = Study(self.study.spec, read_trials(folder / TRIALS_FILE), folder)
        else:
            self.study = load_study(folder)
        self._stamp = stamp
        return True


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


@dataclass(frozen=True)
class Snapshot:
    """The page's current data and live status as JSON, each with a tag (hash) of its content."""

    page: str
    tag: str
    live: str
    live_tag: str


class Page:
    """The page of watched studies, built again when they change. Thread-safe.

    After a build that took `t` seconds the next one waits `rebuild_pause * t` seconds.
    """

    def __init__(self, watched: Sequence[WatchedStudy], rebuild_pause: float = REBUILD_PAUSE) -> None:
        self._watched = watched
        self._rebuild_pause = rebuild_pause
        self._lock = threading.Lock()
        self._page = self._tag = ""
        self._built_at, self._build_s = 0.0, 0.0
        self._stale = True

    @property
    def studies(self) -> list[Study]:
        """The studies as they were last read."""
        return [CachedStudy.of(watched.study) for watched in self._watched]

    def snapshot(self) -> Snapshot:
        """The current data, rebuilt if a study changed."""
        with self._lock:
            problems = []
            changed = self._stale
            for watched in self._watched:
                try:
                    changed |= watched.refresh()
                except IgcNasError as error:
                    problems.append(visible(error.message))
            self._stale = changed
            if changed and time.monotonic() - self._built_at >= self._rebuild_pause * self._build_s:
                began = time.monotonic()
                self._page = as_json(payload(self.studies))
                self._tag = _tag(self._page)
                self._built_at = time.monotonic()
                self._build_s = self._built_at - began
                self._stale = False
            live = as_json(live_payload([status_of(study) for study in self.studies]) | {"problems": problems})
            return Snapshot(self._page, self._tag, live, _tag(live))

    def html(self) -> tuple[str, tuple[str, ...]]:
        """(the document, its scripts)."""
        snapshot = self.snapshot()
        with self._lock:
            page_scripts = scripts()
            return document(self.studies, data_element(snapshot.page), page_scripts, live=True), page_scripts


def _tag(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


Response = tuple[str, list[tuple[str, str]], bytes]
"""(status, headers, body)."""

COMMON_HEADERS = [
    ("Cache-Control", "no-store"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
]
NO_CONTENT_POLICY = "default-src 'none'; frame-ancestors 'none'"


def application(page: Page) -> Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]:
    """The page as a WSGI application."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        status, headers, body = respond(page, environ)
        if status[:3] != "304":
            headers = [*headers, ("Content-Length", str(len(body)))]
        start_response(status, [*COMMON_HEADERS, *headers])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    return app


def respond(page: Page, environ: WSGIEnvironment) -> Response:
    """The response to a request."""
    if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
        return _text_response("405 Method Not Allowed", "this page is read-only", ("Allow", "GET, HEAD"))
    if environ.get("HTTP_HOST", "").lower() not in {f"{name}:{environ['SERVER_PORT']}" for name in NAMES}:
        return _text_response("421 Misdirected Request", f"use http://{HOST}:{environ['SERVER_PORT']}/")
    match environ.get("PATH_INFO", ""):
        case "/":
            text, page_scripts = page.html()
            rules = f"{policy(page_scripts, live=True)}; frame-ancestors 'none'"
            return "200 OK", [("Content-Type", "text/html; charset=utf-8"), _policy(rules)], text.encode()
        case "/data.json":
            return _data(page, environ)
    return _text_response("404 Not Found", "the paths are / and /data.json")


def _data(page: Page, environ: WSGIEnvironment) -> Response:
    snapshot = page.snapshot()
    etag = f'"{snapshot.tag}.{snapshot.live_tag}"'
    known = {part.strip().removeprefix("W/") for part in environ.get("HTTP_IF_NONE_MATCH", "").split(",")}
    headers = [("ETag", etag), _policy(NO_CONTENT_POLICY)]
    if etag in known:
        return "304 Not Modified", headers, b""
    has_page = parse_qs(environ.get("QUERY_STRING", "")).get("have") == [snapshot.tag]
    body = f'{{"tag":"{snapshot.tag}","page":{"null" if has_page else snapshot.page},"live":{snapshot.live}}}'
    return "200 OK", [("Content-Type", "application/json"), *headers], body.encode()


def _text_response(status: str, text: str, *headers: tuple[str, str]) -> Response:
    content_type = ("Content-Type", "text/plain; charset=utf-8")
    return status, [content_type, _policy(NO_CONTENT_POLICY), *headers], f"{text}\n".encode()


def _policy(rules: str) -> tuple[str, str]:
    return "Content-Security-Policy", rules


class Server:
    """An HTTP server of a page, in a thread of its own; it answers at `url`, on `port` of the loopback interface.

    `port` 0 is a free one. `close()` or the end of a `with` block stops it, and so does the end of the process;
    `wait()` serves until Ctrl-C. Raises `UsageError` if the port is not available.
    """

    def __init__(self, page: Page, port: int) -> None:
        from waitress import create_server

        try:
            self._socket = socket.create_server((HOST, port))
        except OSError as error:
            raise UsageError(
                f"port {port} of {HOST} is not available: {error.strerror or error}", "--port 0 takes a free one"
            ) from None
        self.url = f"http://{HOST}:{self._socket.getsockname()[1]}/"
        self._sockets: dict[int, Any] = {}
        self._server = create_server(
            application(page), map=self._sockets, sockets=[self._socket], threads=4, ident=None, connection_limit=64,
            max_request_header_size=16_384, max_request_body_size=1024,
        )  # fmt: skip
        # In another thread: signals arrive in this one, where waitress cannot catch what their handlers raise.
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()

    def wait(self) -> NoReturn:
        """Return never; an exception, such as `KeyboardInterrupt`, ends it."""
        while True:
            threading.Event().wait()

    def close(self) -> None:
        """Stop serving, and free the port."""
        from waitress.wasyncore import close_all

        if self._thread.is_alive():
            # By waitress's own thread, whose `select` must not find its files closed.
            self._server.trigger.pull_trigger(lambda: close_all(self._sockets))
            self._thread.join()
            self._server.task_dispatcher.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{self.url}{'' if self._thread.is_alive() else ', closed'}>"

    def _repr_html_(self) -> str:
        return f'<a href="{self.url}" target="_blank">{self.url}</a>'
