"""Leases: one process at a time does the work of a key, and a dead holder does not block the
others.

Whether a holder lives is asked of its process where it can be looked at (the same machine and
process-number space): no clock is read, so none can be wrong, and a run may take days. Of a holder
elsewhere only signs of life are seen: it renews its lease with every measurement that it keeps.
"""

from __future__ import annotations

import functools
import os
import platform
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from gristmill.cache.rows import insert

LEASE_S = 600.0  # without a sign of life a holder elsewhere counts as dead: its longest trial


def acquire(connection: sqlite3.Connection, key: str, token: str) -> bool:
    """Take the lease of `key` unless a live process holds it."""
    row = connection.execute(
        "SELECT host, pid, started, expires_at FROM leases WHERE key = ?", (key,)
    ).fetchone()
    if row is not None:
        alive = lives(row["host"], row["pid"], row["started"])
        if alive or (alive is None and _runs(row["expires_at"])):
            return False
    connection.execute(
        insert("leases", ("key", "token", "host", "pid", "started", "expires_at")),
        (key, token, *holder(), time.time() + LEASE_S),
    )
    return True


def release(connection: sqlite3.Connection, key: str, token: str) -> None:
    """Give the lease back, if it was not taken over."""
    connection.execute("DELETE FROM leases WHERE key = ? AND token = ?", (key, token))


def renew(connection: sqlite3.Connection, tokens: Sequence[str]) -> None:
    """Give a sign of life for the leases that are still held."""
    until = time.time() + LEASE_S
    connection.executemany(
        "UPDATE leases SET expires_at = ? WHERE token = ?", [(until, token) for token in tokens]
    )


def holder() -> tuple[str, int, str]:
    """This process as a holder: its machine, its number and what tells it from a later one."""
    return _host(), os.getpid(), started(os.getpid())


def lives(host: str, pid: int, start: str) -> bool | None:
    """Whether a holder's process is there; `None` where that cannot be seen from here."""
    if host != _host() or os.name != "posix":  # os.kill would end a process on Windows
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # someone else's process
        pass
    found = started(pid)
    return None if not found and start else found == start


def started(pid: int) -> str:
    """What tells a process from a later one of the same number: its boot and start time; empty
    where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    if after_name[0] in "ZX":  # killed, and its parent has not asked after it yet
        return f"{boot}:ended"
    return f"{boot}:{after_name[19]}"  # field 22 of proc(5) stat


def _runs(expires_at: float) -> bool:
    """Whether a lease of a holder elsewhere still counts. An end farther off than any lease lasts
    says that the clock was set back since: then it says nothing."""
    return time.time() < expires_at <= time.time() + 2 * LEASE_S


@functools.lru_cache(maxsize=1)
def _host() -> str:
    """This machine and process-number space: two containers may share a name, but then not the
    space."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        space = ""
    return f"{platform.node()}:{space}"
