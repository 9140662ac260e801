"""The plan store when the file is damaged, locked, read-only, full or of another version.

Where a permission must bite, a forked child gives up root first: root may write anywhere.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import shutil
import signal
import sqlite3
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import pytest
from test_store import FAMILY, KEY, measurement, plan

from gristmill.cache import database
from gristmill.cache.database import FILE_NAME
from gristmill.cache.faults import CacheWarning, fault_of
from gristmill.cache.store import PlanStore
from gristmill.errors import CacheError

# From Python 3.12 on, forking a process with threads warns; that the store survives is the test.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

MINE = "plans-v1.sqlite3"


@contextlib.contextmanager
def warns(*kinds):
    """Exactly one `CacheWarning` of each kind, in this order, and no other warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    texts = [str(w.message) for w in caught if issubclass(w.category, CacheWarning)]
    assert len(texts) == len(caught) == len(kinds), [str(w.message) for w in caught]
    for kind, text in zip(kinds, texts, strict=True):
        assert f"({kind})" in text


def use(s, *, saved):
    """Everything a caller does, twice; `saved`: whether it reached the file."""
    for _ in range(2):
        s.record([measurement()])
        s.save_plan(plan(), FAMILY, {"M": 16})
        assert s.plan(*KEY, "eager") == plan()
        s.forget()
        assert s.plan(*KEY, "eager") == plan()
        assert s.plan(*KEY, "graph") is None
        assert s.measurements(*KEY) == [measurement()]
        assert s.family(KEY[0], FAMILY, KEY[2], "eager") == [({"M": 16}, plan())]
        assert s.plans() == [plan()]
        with s.lease("a key") as mine, s.lease("a key") as too:
            assert mine
            assert not too
        s.close()
    assert (s.summary().unsaved == 0) is saved


def fork(function):
    """The number of a child process that runs `function`."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def in_child(function, *, ordinary_user=False):
    """What `function` returns in a forked child, which may give up root."""
    read, write = os.pipe()

    def child():
        if ordinary_user and os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        with os.fdopen(write, "wb") as pipe:
            pipe.write(pickle.dumps(function()))

    pid = fork(child)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0
    return pickle.loads(data)


@pytest.fixture
def open_folder():
    """A folder that an ordinary user can reach (`tmp_path` is root's alone)."""
    path = Path(tempfile.mkdtemp(prefix="gristmill-test-"))
    path.chmod(0o755)
    yield path
    for entry in (path, *path.iterdir()):
        entry.chmod(0o755)
    shutil.rmtree(path)


def filled(folder):
    s = PlanStore(folder)
    s.save_plan(plan(), FAMILY, {"M": 16})
    s.record([measurement()])
    return folder / FILE_NAME


def change(path, *statements):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def overwrite(path, position, data):
    with path.open("r+b") as file:
        file.seek(position)
        file.write(data)


DAMAGE = {
    "garbage": lambda path: path.write_bytes(b"no database at all" * 1000),
    "emptied": lambda path: path.write_bytes(b""),
    "one byte": lambda path: path.write_bytes(b"S"),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "header": lambda path: overwrite(path, 16, b"\xff" * 80),
    "pages": lambda path: overwrite(path, 4096, os.urandom(path.stat().st_size - 4096)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_moved_aside_and_kept(tmp_path, damage):
    path = filled(tmp_path)
    DAMAGE[damage](path)
    content = path.read_bytes()
    s = PlanStore(tmp_path)
    with warns("corrupt"):
        assert s.plan(*KEY, "eager") is None
        use(s, saved=True)
    (aside,) = tmp_path.glob(f"{FILE_NAME}.corrupt-*")
    assert aside.read_bytes() == content
    assert s.summary().state == "ok"
    assert PlanStore(tmp_path).plan(*KEY, "eager") == plan()


def test_a_damaged_file_met_by_a_write_is_moved_aside_too(tmp_path):
    filled(tmp_path).write_bytes(b"no database at all" * 1000)
    s = PlanStore(tmp_path)
    with warns("corrupt"):
        s.record([measurement(BLOCK=2)])
    assert PlanStore(tmp_path).measurements(*KEY) == [measurement(BLOCK=2)]


def test_a_damaged_file_that_was_replaced_meanwhile_is_not_moved(tmp_path, monkeypatch):
    path = filled(tmp_path)
    good = path.read_bytes()
    path.write_bytes(b"no database at all" * 1000)
    move_aside = database.Database._move_aside

    def late(self, *args):
        path.unlink()
        path.write_bytes(good)
        (tmp_path / "spare").touch()  # so that no inode number is used twice
        move_aside(self, args[0], -1, args[2])

    monkeypatch.setattr(database.Database, "_move_aside", late)
    with warns():
        assert PlanStore(tmp_path).plan(*KEY, "eager") == plan()
    assert not list(tmp_path.glob("*.corrupt-*"))


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


def test_a_stale_log_beside_no_file_is_not_applied(tmp_path):
    path = filled(tmp_path)
    keeper = sqlite3.connect(path)  # keeps the log from being folded in
    keeper.execute("SELECT * FROM plans").fetchall()
    PlanStore(tmp_path).record([measurement(BLOCK=2)])
    log = path.with_name(FILE_NAME + "-wal")
    stale = log.read_bytes()
    keeper.close()
    path.unlink()
    log.write_bytes(stale)
    with warns():
        use(PlanStore(tmp_path), saved=True)


@pytest.mark.parametrize(
    "statements",
    [
        ["PRAGMA user_version = 99"],
        ["PRAGMA application_id = 1"],
        ["PRAGMA user_version = 0", "PRAGMA application_id = 0"],
        ["ALTER TABLE plans DROP COLUMN axes", "ALTER TABLE measurements DROP COLUMN outcome"],
        ["DROP TABLE plans", "DROP TABLE measurements", "DROP TABLE leases"],
    ],
    ids=["version", "not ours", "no version", "columns", "tables"],
)
def test_a_foreign_file_is_left_alone_and_stepped_around(tmp_path, statements):
    path = filled(tmp_path)
    change(path, *statements)
    before = path.read_bytes()
    s = PlanStore(tmp_path)
    with warns("foreign"):
        use(s, saved=True)
    assert path.read_bytes() == before
    summary = s.summary()
    assert (summary.state, summary.path, summary.plans) == ("foreign", tmp_path / MINE, 1)
    assert "left alone" in summary.reason
    with warns("foreign"):
        use(PlanStore(tmp_path), saved=True)


def test_columns_that_we_do_not_know_do_no_harm(tmp_path):
    path = filled(tmp_path)
    change(
        path, "ALTER TABLE plans ADD COLUMN colour TEXT", "ALTER TABLE measurements ADD COLUMN n"
    )
    with warns():
        use(PlanStore(tmp_path), saved=True)


BAD_VALUES = [
    ("plans", "config", "{not json"),
    ("plans", "config", "[1]"),
    ("plans", "config", '{"BLOCK": [1]}'),
    ("plans", "config", None),
    ("plans", "implementation", b"row"),
    ("plans", "fallback_config", None),
    ("plans", "evidence", '{"status": "ok", "device_us": "fast"}'),
    ("plans", "evidence", '{"status": "ok", "a field of tomorrow": 1}'),
    ("plans", "evidence", '{"status": "excellent"}'),
    ("plans", "origin", "dreamt"),
    ("plans", "reason", b"\xff\xfe"),
    ("measurements", "outcome", "{}"),
    ("measurements", "outcome", "[" * 100_000),
    ("measurements", "config", "null"),
    ("measurements", "measured_at", "yesterday"),
]


@pytest.mark.parametrize(("table", "column", "value"), BAD_VALUES)
def test_a_damaged_row_is_a_miss_and_the_others_are_not(tmp_path, table, column, value):
    path = filled(tmp_path)
    PlanStore(tmp_path).save_plan(plan(bucket="good"), FAMILY, {"M": 32})
    PlanStore(tmp_path).record([measurement("good")])
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        schema = "replace(sql, ' NOT NULL', '')"
        connection.execute(f"UPDATE sqlite_master SET sql = {schema} WHERE type = 'table'")
        connection.commit()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        which = "bucket != 'good'" if table == "plans" else "implementation != 'good'"
        connection.execute(f"UPDATE {table} SET {column} = ? WHERE {which}", (value,))
        connection.commit()
    s = PlanStore(tmp_path)
    with warns("row"):
        for _ in range(2):
            s.forget()
            plans, measurements = s.plans(), s.measurements(*KEY)
            assert s.plan(KEY[0], "good", KEY[2], "eager") == plan(bucket="good")
            assert measurement("good") in measurements
            assert (s.plan(*KEY, "eager") is None) is (table == "plans")
            assert (len(plans), len(measurements)) == ((1, 2) if table == "plans" else (2, 1))
    assert s.summary().state == "ok"


def test_damaged_axes_hide_a_plan_from_its_family_only(tmp_path):
    path = filled(tmp_path)
    change(path, """UPDATE plans SET axes = '{"M": "wide"}'""")
    s = PlanStore(tmp_path)
    with warns("row"):
        assert s.family(KEY[0], FAMILY, KEY[2], "eager") == []
        assert s.plan(*KEY, "eager") == plan()


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


def test_a_network_file_system_gets_a_rollback_journal(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "file_system", lambda folder: "nfs4")
    s = PlanStore(tmp_path)
    with warns("journal"):
        use(s, saved=True)
    with warns():
        use(PlanStore(tmp_path), saved=True)
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)


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


def test_warnings_as_errors_lose_nothing(tmp_path):
    (tmp_path / FILE_NAME).mkdir()
    s = PlanStore(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CacheWarning):
            s.save_plan(plan(), FAMILY, {"M": 16})
        assert s.plan(*KEY, "eager") == plan()
        s.record([measurement()])
    (tmp_path / FILE_NAME).rmdir()
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
