"""What can go wrong with a store on disk, as values: a fault is caught inside the store and becomes
one warning."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable
from typing import Literal

State = Literal["ok", "read-only", "corrupt", "foreign", "unavailable"]
Kind = Literal["read-only", "corrupt", "foreign", "locked", "full", "unavailable", "row", "journal"]

Notify = Callable[[Kind, str], None]


class CacheWarning(UserWarning):
    """The plan store could not read or keep something; gristmill goes on with what is in memory."""


class StoreFault(Exception):
    """A store on disk that does not do what was asked. Never leaves `gristmill.cache`."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind: Kind = kind
        self.message = message

    @property
    def state(self) -> State:
        """The kind as a state of the whole store."""
        if self.kind in ("read-only", "corrupt", "foreign"):
            return self.kind
        return "unavailable"


# SQLite's own messages (sqlite3ErrStr); Python 3.10 does not expose the error codes.
_MESSAGES: tuple[tuple[str, Kind], ...] = (
    ("readonly", "read-only"),
    ("not a database", "corrupt"),
    ("malformed", "corrupt"),
    ("is locked", "locked"),
    ("disk is full", "full"),
    ("no such table", "foreign"),
    ("no such column", "foreign"),
    ("has no column", "foreign"),
    ("constraint failed", "foreign"),  # a column of another version that must not be null
)


def fault_of(error: sqlite3.Error | OSError) -> StoreFault:
    """The fault behind an exception of SQLite or the file system."""
    text = str(error)
    if isinstance(error, OSError):
        kinds: dict[int | None, Kind] = {
            errno.ENOSPC: "full",
            errno.EDQUOT: "full",
            errno.EROFS: "read-only",
        }
        return StoreFault(kinds.get(error.errno, "unavailable"), text)
    for part, kind in _MESSAGES:
        if part in text:
            return StoreFault(kind, text)
    return StoreFault("unavailable", text)
