"""The nodes of a Ray cluster: the connection to it, and how many evaluators each node has room for.

Ray is an optional dependency, so it is imported only when a function needs it.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from igc_nas.errors import IgcNasError, UsageError

REACH_S = 5.0
"""Timeout for the answer of a cluster, in seconds."""
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
HINT = "start one with `ray start --head`, or name another with --ray-address HOST:PORT"


@dataclass(frozen=True)
class Node:
    """A node of the cluster."""

    id: str
    host: str
    capacity: int
    """The number of evaluators that the node can hold when it runs nothing else."""


def places(address: str | None, needs: Mapping[str, float]) -> int:
    """The number of evaluators that a cluster can hold when it runs nothing else. Raises what `connected` raises."""
    with connected(address) as ray:
        count = sum(node.capacity for node in nodes_of(ray, needs))
        if not count:
            raise no_room(ray, needs)
        return count


def needs_of(device: str, threads: int, per_gpu: int = 1) -> Mapping[str, float]:
    """The resources that one of `per_gpu` evaluators on a GPU, or one on a CPU, needs, by Ray's names.

    Ray counts in 10,000ths, and rounds up what does not divide: a share of 1/6 would leave room for five.
    """
    return {"CPU": threads} if device == "cpu" else {"CPU": threads, "GPU": 10_000 // per_gpu / 10_000}


def nodes_of(ray: Any, needs: Mapping[str, float]) -> list[Node]:
    """The nodes that are alive, each with its capacity for evaluators with these needs."""
    return [
        Node(
            node["NodeID"],
            node["NodeManagerHostname"],
            min(_fit(node.get("Resources", {}).get(name, 0), name, least) for name, least in needs.items()),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def _fit(there: float, name: str, least: float) -> int:
    """How many evaluators have room; a share of a GPU is of one GPU."""
    return int(there) * int(1 / least) if name == "GPU" else int(there // least)


def no_room(ray: Any, needs: Mapping[str, float]) -> IgcNasError:
    """The error for a cluster none of whose nodes can hold an evaluator."""
    takes = " and ".join(f"{count:g} {name}" for name, count in needs.items())
    has = [
        ", ".join(f"{node['Resources'].get(name, 0):g} {name}" for name in ("CPU", "GPU"))
        for node in ray.nodes()
        if node["Alive"]
    ]
    return IgcNasError(f"an evaluator takes {takes}; the nodes of the Ray cluster have {'; '.join(has[:8])}")


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """The module `ray`, connected to a cluster. A connection that the process already has is used and stays open.

    Raises `UsageError` if Ray is not installed or the address is invalid, `IgcNasError` if no cluster answers.
    """
    ray = _ray()
    if ray.is_initialized():
        yield ray
        return
    where = _answering(address or "auto")
    with _silent():
        try:
            with _own_signals():
                ray.init(address=where, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:
            raise IgcNasError(f"the Ray cluster at {where} cannot be used: {_line(error)}", HINT) from None
        try:
            yield ray
        finally:
            ray.shutdown()


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise UsageError("the executor ray needs the package ray", "pip install 'igc-nas[ray]'") from None


def _answering(address: str) -> str:
    """Resolve an address to HOST:PORT, and check that a cluster answers there.

    `ray.init` does not report it in time: Ray 2.60 retries for more than 120 s if nothing listens at the address.
    """
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or _found()
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UsageError(f"{address!r:.80} is not an address of a Ray cluster", "use auto, or HOST:PORT")
    try:
        is_http2 = _speaks_http2(host.strip("[]"), int(port))
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise IgcNasError(f"no Ray cluster answers at {address:.80}: {reason}", HINT) from None
    if not is_http2:
        raise IgcNasError(f"what answers at {address:.80} is not a Ray cluster", HINT)
    return address


def _speaks_http2(host: str, port: int) -> bool:
    """Whether a server answers with a SETTINGS frame of HTTP/2 (RFC 9113, section 3.4), as Ray's does without TLS."""
    with socket.create_connection((host, port), timeout=REACH_S) as connection:
        if os.environ.get("RAY_USE_TLS", "0") != "0":
            return True
        connection.sendall(HTTP2_PREFACE)
        return connection.recv(9)[3:4] == b"\x04"


def _found() -> str:
    """The address of the cluster that this machine belongs to. Ray has no public function for it but `ray.init`."""
    services = importlib.import_module("ray._private.services")
    try:
        found: str = services.canonicalize_bootstrap_address_or_die("auto")
    except (ConnectionError, ValueError, OSError):
        raise IgcNasError("no Ray cluster runs on this machine", HINT) from None
    return found


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Restore our SIGTERM handler, which Ray replaces."""
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if in_main else None
    try:
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep Ray from printing messages about lost actors to stdout, which it does even with `log_to_driver=False`."""
    driver: Any = importlib.import_module("ray._private.worker")
    printer = getattr(driver, "print_to_stdstream", None)
    driver.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        driver.print_to_stdstream = printer


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
