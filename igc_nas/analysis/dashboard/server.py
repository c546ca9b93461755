"""The page on this machine while the search runs: loopback only, read-only, two addresses, nothing by a file's name.

    GET /            the page as it is now
    GET /data.json   {"tag": ..., "page": all that it draws, "live": what runs}

With `?have=TAG` the page is left out where it is still that one, and with `If-None-Match` an answer that says nothing
new is a 304 without a body, so asking every two seconds costs little. Whoever asks must call us by a name of this
machine's loopback: another site's page that had its own name point here (DNS rebinding) is refused.
"""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import parse_qs

from igc_nas.analysis.dashboard.document import as_json, data_element, document, policy, scripts
from igc_nas.analysis.dashboard.payload import Shown, live_payload, payload
from igc_nas.errors import IgcNasError, UsageError
from igc_nas.io.text import visible
from igc_nas.study.status import status_of
from igc_nas.study.study import STUDY_FILE, TRIALS_FILE, Study, load_study, read_trials

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

HOST = "127.0.0.1"
NAMES = ("localhost", "127.0.0.1", "[::1]")
REST = 4.0
"""A page that took a second to make is not made again for so many seconds: the search needs its cores."""
DATABASE_EVERY_S = 10.0
"""How often a study without files is read from its database."""

Stamp = tuple[tuple[int, int] | None, ...]


class Watched:
    """A study, read again when its files have changed; by `read` every `DATABASE_EVERY_S` where it has none."""

    def __init__(self, study: Study, read: Callable[[], Study] | None = None) -> None:
        self.study = study
        self._read = read
        self._stamp = self._now()
        self._read_at = time.monotonic()

    def _now(self) -> Stamp:
        folder = self.study.folder
        return () if folder is None else tuple(_stamp(folder / name) for name in (STUDY_FILE, TRIALS_FILE))

    def refresh(self) -> bool:
        """Read what has changed; whether anything had. Raises `IgcNasError`, and keeps what was there."""
        if self._read is not None:
            if time.monotonic() - self._read_at < DATABASE_EVERY_S:
                return False
            self._read_at = time.monotonic()
            self.study = self._read()
            return True
        stamp, folder = self._now(), self.study.folder
        if stamp == self._stamp or folder is None:
            return False
        if stamp[0] == self._stamp[0]:  # the question is the same: its space, counted already, is kept
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
class News:
    """What the page draws now, each part with a tag of its content."""

    page: str
    tag: str
    live: str
    live_tag: str


class Page:
    """The page of watched studies, made anew where they have changed. Several threads may ask at once."""

    def __init__(self, watched: Sequence[Watched]) -> None:
        self._watched = watched
        self._lock = threading.Lock()
        self._page = self._tag = ""
        self._made_at, self._took_s = 0.0, 0.0
        self._stale = True

    @property
    def studies(self) -> list[Study]:
        """The studies as they were last read."""
        return [Shown.of(watched.study) for watched in self._watched]

    def news(self) -> News:
        """What there is to draw now."""
        with self._lock:
            problems = []
            changed = self._stale
            for watched in self._watched:
                try:
                    changed |= watched.refresh()
                except IgcNasError as error:
                    problems.append(visible(error.message))
            self._stale = changed
            if changed and time.monotonic() - self._made_at >= REST * self._took_s:
                began = time.monotonic()
                self._page = as_json(payload(self.studies))
                self._tag = _tag(self._page)
                self._made_at = time.monotonic()
                self._took_s = self._made_at - began
                self._stale = False
            live = as_json(live_payload([status_of(study) for study in self.studies]) | {"problems": problems})
            return News(self._page, self._tag, live, _tag(live))

    def html(self) -> tuple[str, tuple[str, ...]]:
        """(the document, its scripts)."""
        news = self.news()
        with self._lock:
            own = scripts()
            return document(self.studies, data_element(news.page), own, live=True), own


def _tag(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


Answer = tuple[str, list[tuple[str, str]], bytes]
"""Status, headers, body."""

EVERYWHERE = [
    ("Cache-Control", "no-store"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
]
SILENT = "default-src 'none'; frame-ancestors 'none'"


def application(page: Page) -> Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]:
    """The page as a WSGI application."""

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        status, headers, body = answer(page, environ)
        if status[:3] != "304":
            headers = [*headers, ("Content-Length", str(len(body)))]
        start_response(status, [*EVERYWHERE, *headers])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    return app


def answer(page: Page, environ: WSGIEnvironment) -> Answer:
    """What a request gets."""
    if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
        return _words("405 Method Not Allowed", "this page is only to be read", ("Allow", "GET, HEAD"))
    if environ.get("HTTP_HOST", "").lower() not in {f"{name}:{environ['SERVER_PORT']}" for name in NAMES}:
        return _words("421 Misdirected Request", f"ask for http://{HOST}:{environ['SERVER_PORT']}/")
    match environ.get("PATH_INFO", ""):
        case "/":
            text, own = page.html()
            safe = f"{policy(own, live=True)}; frame-ancestors 'none'"
            return "200 OK", [("Content-Type", "text/html; charset=utf-8"), _policy(safe)], text.encode()
        case "/data.json":
            return _data(page, environ)
    return _words("404 Not Found", "there are / and /data.json")


def _data(page: Page, environ: WSGIEnvironment) -> Answer:
    news = page.news()
    etag = f'"{news.tag}.{news.live_tag}"'
    known = {part.strip().removeprefix("W/") for part in environ.get("HTTP_IF_NONE_MATCH", "").split(",")}
    headers = [("ETag", etag), _policy(SILENT)]
    if etag in known:
        return "304 Not Modified", headers, b""
    has_page = parse_qs(environ.get("QUERY_STRING", "")).get("have") == [news.tag]
    body = f'{{"tag":"{news.tag}","page":{"null" if has_page else news.page},"live":{news.live}}}'
    return "200 OK", [("Content-Type", "application/json"), *headers], body.encode()


def _words(status: str, text: str, *headers: tuple[str, str]) -> Answer:
    typed = ("Content-Type", "text/plain; charset=utf-8")
    return status, [typed, _policy(SILENT), *headers], f"{text}\n".encode()


def _policy(rules: str) -> tuple[str, str]:
    return "Content-Security-Policy", rules


class Server:
    """A page listening on the loopback at `port` (0: a free one) from when it is made.

    Raises `UsageError` where the port cannot be had.
    """

    def __init__(self, page: Page, port: int) -> None:
        try:
            self._socket = socket.create_server((HOST, port))
        except OSError as error:
            raise UsageError(
                f"port {port} of {HOST} cannot be had: {error.strerror or error}", "--port 0 takes a free one"
            ) from None
        self.url = f"http://{HOST}:{self._socket.getsockname()[1]}/"
        self._page = page

    def run(self) -> NoReturn:
        """Answer until an exception, such as Ctrl-C, ends it."""
        from waitress import create_server

        server = create_server(
            application(self._page), sockets=[self._socket], threads=4, ident=None, connection_limit=64,
            max_request_header_size=16_384, max_request_body_size=1024,
        )  # fmt: skip
        # In a thread: signals come to this one, and no handler of waitress's gets to see what they raise.
        threading.Thread(target=server.run, daemon=True).start()
        while True:
            threading.Event().wait()
