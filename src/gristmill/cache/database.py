"""The SQLite file of a store: opening, creating, versions, and moving a damaged file aside.

No connection outlives one operation: nothing is open when a process forks (SQLite's lock table does
not survive that), and a file that someone deletes or replaces is simply the next one opened.
Opening and closing costs 0.3-2 ms.

The file is created elsewhere and renamed into place, so it never exists half-made. It is in WAL
mode (16 writers lost no row of 1,600). Network file systems, whose hosts do not share WAL's memory
map, have `shards` instead.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from gristmill.cache import lease
from gristmill.cache.faults import Notify, StoreFault, fault_of
from gristmill.cache.rows import (
    APPLICATION_ID,
    MEASUREMENT_COLUMNS,
    PLAN_COLUMNS,
    SCHEMA,
    SCHEMA_VERSION,
    Choose,
    Chosen,
    Row,
    Values,
    insert,
    touch,
)

try:
    import fcntl
except ImportError:  # Windows: two processes may then both move a damaged file aside
    fcntl = None

FILE_NAME = "plans.sqlite3"
WRITE_TIMEOUT_S = 30.0
READ_TIMEOUT_S = 2.0  # in WAL mode readers wait for nobody; a call must not hang where they do
REST_S = 60.0  # a store that stayed locked is left alone for so long

T = TypeVar("T")


class Database:
    """One store's file; every method either does what it says or raises `StoreFault`."""

    def __init__(self, folder: Path, notify: Notify) -> None:
        self.folder = folder
        self.path = folder / FILE_NAME
        self._notify = notify
        self.foreign = ""  # why the usual file is not the one in use
        self._rest_until = 0.0

    def exists(self) -> bool:
        """Whether there is a file to open, as far as can be seen."""
        return _inode(self.path) is not None

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[Row]:
        """What a query gives; of a store that does not exist yet, nothing."""
        return self._attempt(lambda: self._read(query, values))

    def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in one transaction, creating the file where there is none."""
        return self._attempt(lambda: self._write(work))

    def append(
        self, measurements: Sequence[Values], plans: Sequence[Values], tokens: Sequence[str] = ()
    ) -> None:
        """Keep rows, all or none of them; a sign of life for leases with them."""

        def work(connection: sqlite3.Connection) -> None:
            _insert(connection, measurements, plans)
            lease.renew(connection, tokens)

        self.write(work)

    def extend(self, choose: Choose) -> None:
        """Keep the rows that `choose` gives for what there is; nobody writes meanwhile."""

        def work(connection: sqlite3.Connection) -> None:
            _insert(connection, *choose(lambda query: connection.execute(query).fetchall()))

        self.write(work)

    def remove(self, chosen: Chosen) -> int:
        """Remove the rows that are chosen, and give their space back; how many there were."""

        def work(connection: sqlite3.Connection) -> int:
            removed = 0
            for table, made_at in (("measurements", "measured_at"), ("plans", "created_at")):
                found = connection.execute(
                    f"SELECT rowid, op, source_hash, {made_at} FROM {table}"
                ).fetchall()
                gone = [(number,) for number, *what in found if chosen(*what)]
                connection.executemany(f"DELETE FROM {table} WHERE rowid = ?", gone)
                removed += len(gone)
            return removed

        removed = self.write(work) if self.exists() else 0
        if removed:
            self._vacuum()
        return removed

    def touch(self) -> None:
        """Write what is there already: fails where nothing can be written."""
        self.write(touch)

    def acquire(self, key: str, token: str) -> bool:
        """Take the lease of `key` unless a live process holds it."""
        return self.write(lambda connection: lease.acquire(connection, key, token))

    def release(self, key: str, token: str) -> None:
        """Give the lease back, if it was not taken over."""
        self.write(lambda connection: lease.release(connection, key, token))

    def _vacuum(self) -> None:
        with (
            contextlib.suppress(sqlite3.Error),
            self._open(READ_TIMEOUT_S) as connection,
        ):  # only space is at stake
            connection.execute("VACUUM")

    def size_bytes(self) -> int:
        """Bytes on disk, the write-ahead log included."""
        total = 0
        for path in _files(self.path):
            with contextlib.suppress(OSError):
                total += path.stat().st_size
        return total

    def _attempt(self, action: Callable[[], T]) -> T:
        """`action`, again after a damaged file was moved aside or a foreign one stepped around."""
        if time.monotonic() < self._rest_until:
            raise StoreFault("locked", f"it was locked; it is tried again every {REST_S:.0f} s")
        for last in (False, False, True):
            path, inode = self.path, _inode(self.path)
            try:
                return action()
            except (sqlite3.Error, OSError) as error:
                fault = fault_of(error)
                if fault.kind == "unavailable" and _is_full(self.folder):
                    fault = StoreFault("full", f"{fault.message}: the disk is full")
            except StoreFault as error:
                fault = error
            if fault.kind == "locked":
                self._rest_until = time.monotonic() + REST_S
            if last or fault.kind not in ("corrupt", "foreign"):
                raise fault
            if fault.kind == "corrupt":
                self._move_aside(path, inode, fault)
            else:
                self._step_around(path, fault)
        raise AssertionError("unreachable")

    def _read(self, query: str, values: Sequence[Any]) -> list[Row]:
        try:
            with self._open(READ_TIMEOUT_S) as connection:
                return connection.execute(query, values).fetchall()
        except sqlite3.OperationalError as error:
            if not self.path.exists():
                return []
            kind, log = fault_of(error).kind, _files(self.path)[1]
            if kind not in ("unavailable", "read-only") or _size(log):
                raise
        # A folder that cannot be written has no room for WAL's memory map; without a log to apply,
        # none is needed.
        with self._open(READ_TIMEOUT_S, "mode=ro&immutable=1") as connection:
            return connection.execute(query, values).fetchall()

    def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if not self.path.exists():
            self._create()
        with self._open(WRITE_TIMEOUT_S) as connection:
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a full disk has rolled back already
                    connection.execute("ROLLBACK")
                raise
            return result

    @contextlib.contextmanager
    def _open(self, timeout_s: float, mode: str = "mode=rw") -> Iterator[sqlite3.Connection]:
        with contextlib.closing(connect(self.path, mode, timeout_s)) as connection:
            self._check_version(connection)
            yield connection

    def _check_version(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        maker = connection.execute("PRAGMA application_id").fetchone()[0]
        if (version, maker) == (SCHEMA_VERSION, APPLICATION_ID):
            return
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version == maker == tables == 0:
            raise StoreFault("corrupt", "the file is empty")
        raise StoreFault("foreign", f"its schema version is {version}, not {SCHEMA_VERSION}")

    def _create(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.folder / f".{self.path.name}.{uuid.uuid4().hex[:12]}"
        try:
            with contextlib.closing(connect(draft, "mode=rwc", WRITE_TIMEOUT_S)) as connection:
                connection.execute("PRAGMA synchronous = OFF")  # a draft has nothing to lose
                connection.executescript(SCHEMA)
                self._set_journal(connection)
            with _exclusive(self.folder / ".lock"):
                if self.path.exists():
                    return  # another process was first
                for log in _files(self.path)[
                    1:
                ]:  # of a file that someone deleted: not for this one
                    log.unlink(missing_ok=True)
                draft.rename(self.path)
        finally:
            for path in _files(draft):
                path.unlink(missing_ok=True)

    def _set_journal(self, connection: sqlite3.Connection) -> None:
        """WAL where it works; the mode stays with the file."""
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            # The mode is only a wish until the memory map is made.
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            reason = "" if mode == "wal" else f"the journal mode stayed {mode!r}"
        except sqlite3.OperationalError as error:
            if fault_of(error).kind == "full" or _is_full(self.folder):
                raise  # no reason to do without WAL once there is room
            reason = str(error)
        if reason:
            connection.execute("PRAGMA journal_mode = DELETE")
            self._notify(
                "journal", f"{reason}, so it keeps a rollback journal in place of a write-ahead log"
            )

    def _move_aside(self, path: Path, inode: int | None, fault: StoreFault) -> None:
        """Rename a damaged file and its log, unless another process did so since it was opened."""
        aside = path.with_name(
            f"{path.name}.corrupt-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        )
        try:
            with _exclusive(self.folder / ".lock"):
                if _inode(path) != inode:
                    return
                # The log first: a new file must not find an old log beside it.
                for file, target in reversed(list(zip(_files(path), _files(aside), strict=True))):
                    with contextlib.suppress(FileNotFoundError):
                        file.rename(target)
        except OSError as error:
            message = f"{fault.message}, and it cannot be moved aside: {error}"
            raise StoreFault("corrupt", message) from error
        self._notify("corrupt", f"{fault.message}; it was moved aside to {aside.name}")

    def _step_around(self, path: Path, fault: StoreFault) -> None:
        """Leave a file of another version as it is, and use one that is named by our version."""
        own = self.folder / f"plans-v{SCHEMA_VERSION}.sqlite3"
        if path == own:
            raise fault
        if self.path == own:  # another thread was first
            return
        self.foreign = f"{path.name}: {fault.message}; it is left alone and {own.name} is used"
        self.path = own
        self._notify("foreign", self.foreign)


def _insert(
    connection: sqlite3.Connection, measurements: Sequence[Values], plans: Sequence[Values]
) -> None:
    connection.executemany(insert("measurements", MEASUREMENT_COLUMNS), measurements)
    connection.executemany(insert("plans", PLAN_COLUMNS), plans)


def connect(path: Path, mode: str, timeout_s: float) -> sqlite3.Connection:
    """A connection in autocommit mode whose rows are read by column name."""
    uri = f"{path.absolute().as_uri()}?{mode}"
    connection = sqlite3.connect(uri, uri=True, timeout=timeout_s, isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.text_factory = lambda text: text.decode("utf-8", "replace")  # bad bytes: one bad row
    return connection


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold a lock between processes that a dead holder does not keep."""
    with path.open("w") as file:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _files(path: Path) -> tuple[Path, Path, Path]:
    return path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")


def _is_full(folder: Path) -> bool:
    """Whether not even WAL's memory map has room: SQLite calls that an I/O error."""
    try:
        found = os.statvfs(folder)
    except (OSError, AttributeError):  # Windows has none
        return False
    return found.f_bavail * found.f_frsize < 1 << 16


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
