"""Leases: one process at a time does the work of a key, and a dead holder does not block the
others."""

from __future__ import annotations

import functools
import os
import platform
import sqlite3
import time
from pathlib import Path

from gristmill.cache.rows import insert

LEASE_S = (
    3600.0  # a holder whose process cannot be looked at (another host) counts as dead after this
)


def acquire(connection: sqlite3.Connection, key: str, token: str) -> bool:
    """Take the lease of `key` unless a live process holds it."""
    row = connection.execute(
        "SELECT host, pid, started, expires_at FROM leases WHERE key = ?", (key,)
    ).fetchone()
    if (
        row is not None
        and row["expires_at"] > time.time()
        and _lives(row["host"], row["pid"], row["started"])
    ):
        return False
    connection.execute(
        insert("leases", ("key", "token", "host", "pid", "started", "expires_at")),
        (key, token, _host(), os.getpid(), started(os.getpid()), time.time() + LEASE_S),
    )
    return True


def release(connection: sqlite3.Connection, key: str, token: str) -> None:
    """Give the lease back, if it was not taken over."""
    connection.execute("DELETE FROM leases WHERE key = ? AND token = ?", (key, token))


def started(pid: int) -> str:
    """What tells a process from a later one of the same number: its boot and start time; empty
    where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return f"{boot}:{after_name[19]}"  # field 22 of proc(5) stat


def _lives(host: str, pid: int, start: str) -> bool:
    if host != _host() or os.name != "posix":  # os.kill would end a process on Windows
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # someone else's process
        pass
    return started(pid) == start


@functools.lru_cache(maxsize=1)
def _host() -> str:
    """This machine and process-number space: two containers may share a name, but then not the
    space."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        space = ""
    return f"{platform.node()}:{space}"
