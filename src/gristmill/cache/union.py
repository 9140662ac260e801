"""All rows of a folder of shards, in a SQLite database in memory: asked as one file would be."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gristmill.cache import shard
from gristmill.cache.faults import Notify
from gristmill.cache.rows import MEASUREMENT_COLUMNS, PLAN_COLUMNS, SCHEMA, Row, insert
from gristmill.cache.shard import Shard

GONE = (errno.ENOENT, errno.ESTALE)
LOOKS = 5  # at a listing that names files which are gone; a network's may be old
PLAN_KEY = ("op", "bucket", "target", "objective", "provenance")
COLUMNS = {"measurements": MEASUREMENT_COLUMNS, "plans": PLAN_COLUMNS}
# Of plans for one key the later one; among equals the same one everywhere.
INSERT = {
    "measurements": insert("measurements", MEASUREMENT_COLUMNS),
    "plans": (
        insert("plans", PLAN_COLUMNS).replace(" OR REPLACE", "")
        + f" ON CONFLICT ({', '.join(PLAN_KEY)}) DO UPDATE SET "
        + ", ".join(f"{c} = excluded.{c}" for c in PLAN_COLUMNS if c not in PLAN_KEY)
        + " WHERE (excluded.created_at, excluded.config) >= (plans.created_at, plans.config)"
    ),
}


class Union:
    """The rows of the shards in a folder. Reads only the files that are new since the last look;
    after a merge, all over."""

    def __init__(self, folder: Path, notify: Notify) -> None:
        self.folder = folder
        self.damaged: set[str] = set()  # shards that hold less than they should
        self._notify = notify
        self._lock = threading.RLock()
        self._added: dict[str, tuple[dict[str, Any], ...]] = {}
        self._clear()

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[Row]:
        """What a query gives of every row that is there now."""
        with self._lock:
            self.refresh()
            return self._connection.execute(query, values).fetchall()

    def refresh(self) -> frozenset[str]:
        """Read what is new; returns the names of the shards that count now, and of those that were
        merged into them."""
        with self._lock:
            if self._process != os.getpid():  # a fork: SQLite's memory is the parent's
                self._clear()
            for look in range(LOOKS):
                new = shard.names(self.folder) - self._loaded - self._replaced
                if not new or self._read(new):
                    break
                time.sleep(0.01 * 2**look)
            return frozenset(self._loaded | self._replaced | self._added.keys())

    def add(self, rows: Sequence[dict[str, Any]], name: str) -> None:
        """Take rows in that are in no file."""
        with self._lock:
            self._added[name] = tuple(rows)
            self._insert(rows)

    def _clear(self) -> None:
        self._process = os.getpid()
        self._connection = sqlite3.connect(
            ":memory:", isolation_level=None, check_same_thread=False
        )
        self._connection.row_factory = sqlite3.Row
        self._connection.executescript(SCHEMA)
        self._loaded: set[str] = set()
        self._replaced: set[str] = set()
        self._ids: set[str] = set()
        for rows in self._added.values():
            self._insert(rows)

    def _read(self, new: set[str]) -> bool:
        """Take new files in; false where the listing has to be looked at again."""
        found: dict[str, Shard] = {}
        for name in sorted(new):
            try:
                found[name] = shard.read(self.folder / name)
            except OSError as error:
                if error.errno not in GONE:  # one file is out of reach, and may come back
                    self._notify("unavailable", f"{name} cannot be read: {error}")
                    new = new - {name}
        replaced = set().union(*(one.replaces for one in found.values()))
        if replaced & self._loaded:  # some of what was read may be kept no more: all over
            self._clear()
            return False
        self._replaced |= replaced
        for name, one in found.items():
            if one.damage:
                self._notify("corrupt", f"{name}: {one.damage}; the others are used")
                self.damaged.add(name)
            if name not in self._replaced:
                self._insert(one.rows)
                self._loaded.add(name)
        return len(found) == len(new)

    def _insert(self, rows: Iterable[dict[str, Any]]) -> None:
        self._connection.execute("BEGIN")
        try:
            for row in rows:
                try:
                    self._insert_one(row)
                except (KeyError, ValueError, OverflowError, sqlite3.Error) as error:
                    self._notify("row", f"a row is damaged and counts as missing ({error!r})")
        finally:
            self._connection.execute("COMMIT")

    def _insert_one(self, row: dict[str, Any]) -> None:
        table, identity = row["table"], str(row["id"])
        if identity not in self._ids:
            values = tuple(row[column] for column in COLUMNS[table])
            self._connection.execute(INSERT[table], values)
            self._ids.add(identity)
