"""In and out of a Ray cluster, without noise and within a time-out."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

from gristmill.errors import InvalidInputError, MissingExtraError, TuningError
from gristmill.measure.isolation import REASON_CHARS
from gristmill.settings import child_environment, default_environment

CONNECT_S = 10.0  # to reach the address
JOIN_S = 45.0  # for Ray to answer there
TRY = """import sys, ray
ray.init(address=sys.argv[1], logging_level=40, log_to_driver=False)
"""
LOCAL = "local"  # a cluster of this machine, for as long as it is used
ADVICE = "Start one with `ray start --head`, and name its address or 'auto'."


def ray_module() -> Any:
    """Ray.

    Raises:
        MissingExtraError: it is not installed.
    """
    # Read when it is imported: no reports to its makers.
    default_environment(RAY_USAGE_STATS_ENABLED="0")
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise MissingExtraError(
            "a fleet needs Ray, which is not installed. Run `pip install 'gristmill[ray]'`, here "
            "and on every machine of the cluster."
        ) from error
    return ray


@contextlib.contextmanager
def joined(address: str) -> Iterator[Any]:
    """Ray, connected to the cluster of this address until the block ends; a connection that the
    process has already is used, and left as it is.

    Raises:
        MissingExtraError: Ray is not installed.
        InvalidInputError: what is no address.
        TuningError: there is no cluster, or it does not answer in time, or is of other versions of
            Ray or Python.
    """
    ray = ray_module()
    _check(address)
    if ray.is_initialized():
        yield ray
        return
    before = _handler()
    try:
        _connect(ray, address)
        yield ray
    finally:
        ray.shutdown()
        if before is not None:  # Ray puts one of its own in its place
            signal.signal(signal.SIGTERM, before)


def _handler() -> Any:
    """The SIGTERM handler, where it can be set again."""
    main = threading.current_thread() is threading.main_thread()
    return signal.getsignal(signal.SIGTERM) if main else None


def _check(address: str) -> None:
    """That there is a cluster, found out where it costs nothing to wait no longer: `ray.init` tries
    an address for minutes, and cannot be told not to (Ray 2.60)."""
    host, colon, port = address.rpartition(":")
    fine = address in ("auto", LOCAL) or (host and colon and port.isdecimal() and "/" not in host)
    if not fine:
        raise InvalidInputError(
            f"`ray` is {address!r}; it needs the address of a cluster's head, 'HOST:PORT' (port "
            f"6379 if none was chosen), or 'auto' on a machine of the cluster. {ADVICE}"
        )
    if address == LOCAL:
        return
    if address != "auto":
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        except (OSError, OverflowError) as error:
            raise TuningError(
                f"`ray` is {address!r}; nothing answers there ({error}). Check that the cluster "
                "runs (`ray status` on its head) and that this machine may reach its ports."
            ) from error
    try:
        done = subprocess.run(
            [sys.executable, "-c", TRY, address],
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=JOIN_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TuningError(
            f"`ray` is {address!r}; no cluster answers there within {JOIN_S:.0f} s. Check that it "
            "runs (`ray status` on its head) and that this machine may reach its ports."
        ) from error
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise TuningError(
            f"`ray` is {address!r}; no cluster is joined: {''.join(last)[:REASON_CHARS]} {ADVICE}"
        )


def _connect(ray: Any, address: str) -> None:
    """Join, or start a cluster of this machine."""
    options = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        text = " ".join(str(error).split())[:REASON_CHARS]
        raise TuningError(f"`ray` is {address!r}; no cluster is joined: {text} {ADVICE}") from error
