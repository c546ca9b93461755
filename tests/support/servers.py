"""A PostgreSQL server of our own for a test run: its own folder, loopback, a password."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PASSWORD = "open sesame/1"  # noqa: S105 - of a server that lives as long as the test


@dataclass(frozen=True)
class Server:
    """`url` is of the database `studies`, password and all."""

    url: str
    control: tuple[str, ...]
    user: str | None

    def stop(self) -> None:
        _as(self.user, *self.control, "stop", "-m", "immediate")

    def start(self) -> None:
        _as(self.user, *self.control, "start", "-w")


def why_no_server() -> str | None:
    """Why none can be started here; None where one can."""
    if _programs() is None:
        return "PostgreSQL's server is not installed (apt install postgresql)"
    if os.geteuid() == 0 and _other_user() is None:
        return "PostgreSQL does not run as root, and there is no other user to run it"
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed (pip install 'igc-nas[postgres]')"
    return None


@contextmanager
def postgres() -> Iterator[Server]:
    """A server that is there until the end of the block."""
    programs, user = _programs(), _other_user()
    assert programs is not None
    folder = Path(tempfile.mkdtemp(prefix="igc-nas-postgres-"))
    port = _free_port()
    try:
        secret = folder / "password"
        secret.write_text(PASSWORD)
        if user:
            for path in (folder, secret):
                shutil.chown(path, user)
        data = folder / "data"
        _as(user, str(programs / "initdb"), "-D", str(data), "-A", "scram-sha-256", "-U", "igc", f"--pwfile={secret}")
        options = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -c fsync=off"
        control = (str(programs / "pg_ctl"), "-D", str(data), "-o", options, "-l", str(folder / "log"))
        server = Server(f"postgresql://igc:open%20sesame%2F1@127.0.0.1:{port}/postgres", control, user)
        server.start()
        try:
            yield server
        finally:
            with suppress(RuntimeError):  # a test may have stopped it
                server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path | None:
    """Debian keeps each version's programs in a folder of its own, which is not on the path."""
    found = shutil.which("pg_ctl")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders and (folders[-1] / "initdb").exists() else None


def _other_user() -> str | None:
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in names), None)


def _as(user: str | None, *command: str) -> None:
    done = subprocess.run(command, user=user, cwd="/", capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stdout}{done.stderr}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
