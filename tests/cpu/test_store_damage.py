"""The plan store when the file is damaged or of another version, as a whole or in one row."""

from __future__ import annotations

import contextlib
import os
import sqlite3

import pytest
from store_cases import FAMILY, KEY, change, filled, measurement, plan, use, warns

from gristmill.cache import database
from gristmill.cache.database import FILE_NAME
from gristmill.cache.store import PlanStore

MINE = "plans-v1.sqlite3"


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
