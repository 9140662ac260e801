"""The plan store when the file is locked, read-only, full, out of reach or without WAL.

Where a permission must bite, a forked child gives up root first: root may write anywhere.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sqlite3
import time
import warnings

import pytest
from store_cases import (
    FAMILY,
    FORKS,
    KEY,
    filled,
    in_child,
    measurement,
    plan,
    reachable_folder,
    use,
    warns,
)

from gristmill import settings
from gristmill.cache import database
from gristmill.cache.database import FILE_NAME
from gristmill.cache.faults import CacheWarning, fault_of
from gristmill.cache.shards import FOLDER_NAME
from gristmill.cache.store import PlanStore
from gristmill.errors import CacheError

pytestmark = FORKS


@pytest.fixture
def open_folder():
    with reachable_folder() as folder:
        yield folder


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(database, "WRITE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(database, "READ_TIMEOUT_S", 0.1)


@pytest.mark.usefixtures("impatient")
def test_a_locked_file_blocks_writes_for_the_time_out_only_and_reads_not_at_all(
    tmp_path, monkeypatch
):
    path = filled(tmp_path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        s = PlanStore(tmp_path)
        assert s.plan(*KEY, "eager") == plan()
        with warns("locked"):
            start = time.monotonic()
            s.save_plan(plan(reason="newer"), FAMILY, {"M": 16})
            assert 0.15 < time.monotonic() - start < 2
            start = time.monotonic()
            use(s, saved=False)  # left alone now: no second wait
            assert time.monotonic() - start < 0.15
            summary = s.summary()
        assert summary.state == "unavailable"
        assert summary.unsaved
        other.execute("ROLLBACK")
    monkeypatch.setattr(s._database, "_rest_until", 0.0)
    s.record([measurement(BLOCK=2)])  # what had to wait goes with the next write
    assert s.summary().unsaved == 0
    assert PlanStore(tmp_path).plan(*KEY, "eager") == plan()
    assert len(PlanStore(tmp_path).measurements(*KEY)) == 2


@pytest.mark.usefixtures("impatient")
def test_a_file_locked_for_reading_too_is_a_miss_that_is_not_remembered(tmp_path, monkeypatch):
    path = filled(tmp_path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        s = PlanStore(tmp_path)
        with warns("locked"):
            assert s.plan(*KEY, "eager") is None
            assert s.measurements(*KEY) == []
        with pytest.raises(CacheError, match="cannot be pruned"):
            s.prune(everything=True)
    monkeypatch.setattr(s._database, "_rest_until", 0.0)
    assert s.plan(*KEY, "eager") == plan()


def test_a_read_only_file_and_folder_are_read_and_not_written(open_folder):
    path = filled(open_folder)
    for file in open_folder.iterdir():
        file.chmod(0o444)
    open_folder.chmod(0o555)

    def child():
        s = PlanStore(open_folder)
        with warns():
            found = s.plan(*KEY, "eager")
        with warns("read-only"):
            use(s, saved=False)
        with pytest.raises(CacheError, match="writable"):
            s.prune(everything=True)
        return found, s.summary().state

    before = path.read_bytes()
    assert in_child(child, ordinary_user=True) == (plan(), "read-only")
    assert path.read_bytes() == before


def test_a_read_only_file_in_a_writable_folder(open_folder):
    path = filled(open_folder)
    for file in open_folder.iterdir():
        file.chmod(0o444)
    open_folder.chmod(0o777)

    def child():
        s = PlanStore(open_folder)
        with warns("read-only"):
            use(s, saved=False)
        return s.summary().state

    before = path.read_bytes()
    assert in_child(child, ordinary_user=True) == "read-only"
    assert path.read_bytes() == before


def test_a_damaged_file_in_a_read_only_folder_stays(open_folder):
    filled(open_folder).write_bytes(b"no database at all" * 1000)
    for file in open_folder.iterdir():
        file.chmod(0o444)
    open_folder.chmod(0o555)

    def child():
        s = PlanStore(open_folder)
        with warns("corrupt"):
            use(s, saved=False)
        return s.summary().state

    assert in_child(child, ordinary_user=True) == "corrupt"


def test_a_folder_that_cannot_be_entered(open_folder):
    filled(open_folder)
    open_folder.chmod(0o700)

    def child():
        s = PlanStore(open_folder)
        with warns("unavailable"):
            use(s, saved=False)
        return s.summary().state

    if os.getuid() != 0:
        open_folder.chmod(0)
    assert in_child(child, ordinary_user=True) == "unavailable"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    s = PlanStore(tmp_path / "file" / "cache")
    with warns("unavailable"):
        use(s, saved=False)
    with warns("unavailable"):
        use(PlanStore(tmp_path / "file"), saved=False)


def test_a_directory_in_place_of_the_file(tmp_path):
    (tmp_path / FILE_NAME).mkdir()
    s = PlanStore(tmp_path)
    with warns("unavailable"):
        use(s, saved=False)
    assert s.summary().state == "unavailable"
    with pytest.raises(CacheError, match="cannot be pruned"):
        s.prune(everything=True)


def test_a_full_disk_keeps_everything_in_memory_until_there_is_room(tmp_path, monkeypatch):
    """SQLite's own error for a full disk, from a limit on the file's pages."""
    path = filled(tmp_path)
    connect = database.connect
    pages = path.stat().st_size // 4096

    def limited(*args):
        connection = connect(*args)
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    monkeypatch.setattr(database, "connect", limited)
    s = PlanStore(tmp_path)
    many = [measurement(BLOCK=i) for i in range(500)]
    with warns("full"):
        s.record(many)
        s.save_plan(plan(reason="newer"), FAMILY, {"M": 16})
        assert len(s.measurements(*KEY)) == 501
        assert s.plan(*KEY, "eager").reason == "newer"
        assert s.summary().state == "unavailable"
    monkeypatch.setattr(database, "connect", connect)
    s.close()
    assert s.summary().state == "ok"
    assert len(PlanStore(tmp_path).measurements(*KEY)) == 501
    assert PlanStore(tmp_path).plan(*KEY, "eager").reason == "newer"


@pytest.mark.parametrize("existing", [True, False])
def test_a_file_that_cannot_grow_takes_nobody_down(tmp_path, existing):
    """The operating system's error: a limit on the size of the files that a child writes."""
    if existing:
        filled(tmp_path)

    def child():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        s = PlanStore(tmp_path)
        many = [measurement(BLOCK=i) for i in range(500)]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            s.record(many)
            s.record(many)
        return [w.category for w in caught], len(s.measurements(*KEY)), s.summary().state

    categories, count, state = in_child(child)
    assert categories == [CacheWarning]
    assert count == 500 + existing
    assert state == "unavailable"
    assert not list(tmp_path.glob(".plans*"))
    use(PlanStore(tmp_path), saved=True)


@pytest.mark.parametrize("how", ["refused", "raises"])
def test_where_wal_fails_there_is_a_rollback_journal(tmp_path, monkeypatch, how):
    class Connection(sqlite3.Connection):
        def execute(self, statement, *args):
            if statement != "PRAGMA journal_mode = WAL":
                return super().execute(statement, *args)
            if how == "raises":
                raise sqlite3.OperationalError("locking protocol")
            return super().execute("PRAGMA journal_mode")

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=Connection))
    with warns("journal"):
        use(PlanStore(tmp_path), saved=True)


def test_a_disk_that_is_full_when_wal_is_set_up_leaves_no_rollback_journal(tmp_path, monkeypatch):
    class Connection(sqlite3.Connection):
        def execute(self, statement, *args):
            if statement == "PRAGMA journal_mode = WAL" and full:
                raise sqlite3.OperationalError("database or disk is full")
            return super().execute(statement, *args)

    connect, full = sqlite3.connect, True
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=Connection))
    one = PlanStore(tmp_path)
    with warns("full"):
        one.record([measurement()])
    assert not list(tmp_path.glob("plans*"))
    full = False
    one.record([measurement(BLOCK=2)])
    one.close()
    with connect(tmp_path / FILE_NAME) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("SELECT count(*) FROM measurements").fetchone() == (2,)


@pytest.mark.parametrize(("mode", "name"), [("database", FILE_NAME), ("shards", FOLDER_NAME)])
def test_warnings_as_errors_lose_nothing(tmp_path, mode, name):
    """With what it needs in the way: a folder for the file, a file for the folder."""
    obstacle = tmp_path / name
    obstacle.mkdir() if mode == "database" else obstacle.touch()
    with settings.override(store=mode):
        s = PlanStore(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(CacheWarning):
                s.save_plan(plan(), FAMILY, {"M": 16})
            assert s.plan(*KEY, "eager") == plan()
            s.record([measurement()])
        obstacle.rmdir() if mode == "database" else obstacle.unlink()
        s.close()
        assert PlanStore(tmp_path).plans() == [plan()]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (sqlite3.OperationalError("disk I/O error"), "unavailable"),
        (sqlite3.OperationalError("attempt to write a readonly database"), "read-only"),
        (sqlite3.DatabaseError("database disk image is malformed"), "corrupt"),
        (OSError(28, "No space left on device"), "full"),
        (OSError(30, "Read-only file system"), "read-only"),
        (PermissionError(13, "Permission denied"), "unavailable"),
    ],
)
def test_errors_have_a_kind(error, kind):
    assert fault_of(error).kind == kind
