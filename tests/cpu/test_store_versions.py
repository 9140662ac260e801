"""Two versions of the library on one store, at once: each keeps to its own rows."""

from __future__ import annotations

import os
import warnings

import pytest
from store_cases import FAMILY, FORKS, KEY, fork, measurement, plan

from gristmill import settings
from gristmill.cache import backend, database, rows, shard, shards
from gristmill.cache.faults import CacheWarning
from gristmill.cache.shards import FOLDER_NAME
from gristmill.cache.store import PlanStore

pytestmark = FORKS

ROUNDS = 30


def become_the_next_version():
    """Of this process: its schema has a column more."""
    later = rows.SCHEMA.replace("provenance TEXT", "clocks TEXT NOT NULL, provenance TEXT")
    later = later.replace(f"user_version = {rows.SCHEMA_VERSION}", "user_version = 99")
    database.SCHEMA = later
    database.SCHEMA_VERSION = shard.SCHEMA_VERSION = rows.SCHEMA_VERSION = 99
    shards.FOLDER_NAME = backend.FOLDER_NAME = "shards-v99"
    columns = (*rows.MEASUREMENT_COLUMNS, "clocks")
    database.MEASUREMENT_COLUMNS = shards.COLUMNS["measurements"] = columns
    database.PLAN_COLUMNS = shards.COLUMNS["plans"] = (*rows.PLAN_COLUMNS, "clocks")
    for name in ("measurement_row", "plan_row"):
        old = getattr(rows, name)
        setattr(rows, name, lambda *args, old=old: (*old(*args), "1980 MHz"))


def work(folder, name):
    """Writes and reads in turns: every row of its own is there. Returns whose rows it sees."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", r"plan store .* \(foreign\)", CacheWarning)
        s = PlanStore(folder)
        for i in range(ROUNDS):
            s.record([measurement(process=name, i=i)])
            s.save_plan(plan(bucket=name), FAMILY, {"M": i})
            knobs = [m.candidate.config.knobs for m in PlanStore(folder).measurements(*KEY)]
            mine = [k["i"] for k in knobs if k["process"] == name]
            assert sorted(mine) == list(range(i + 1))
        return {k["process"] for k in knobs}


@pytest.mark.parametrize("first", ["this version", "the next", "both at once"])
def test_two_versions_write_to_one_folder_at_once(tmp_path, first):
    def next_version(name):
        become_the_next_version()
        assert work(tmp_path, name) <= {"next, alone", "next"}

    if first == "the next":
        assert os.waitpid(fork(lambda: next_version("next, alone")), 0)[1] == 0
    elif first == "this version":
        work(tmp_path, "this, alone")
    child = fork(lambda: next_version("next"))
    assert work(tmp_path, "this") <= {"this, alone", "this"}
    assert os.waitpid(child, 0)[1] == 0
    files = sorted(path.name for path in tmp_path.glob("*plans*"))
    assert len(files) == 2  # none was moved aside
    assert "plans.sqlite3" in files


def test_two_versions_of_shards_have_a_folder_each(tmp_path):
    with settings.override(store="shards"):

        def next_version():
            become_the_next_version()
            s = PlanStore(tmp_path)
            for i in range(ROUNDS):
                s._database.append([(*rows.measurement_row(measurement(i=i)),)], [])
            s._database.merge()

        child = fork(next_version)
        assert work(tmp_path, "this") == {"this"}
        assert os.waitpid(child, 0)[1] == 0
        assert len(PlanStore(tmp_path).measurements(*KEY)) == ROUNDS
    later = [shard.read(path) for path in (tmp_path / "shards-v99").glob("*.jsonl")]
    assert {one.damage for one in later} == {"it has no header of this version"}
    assert {one.damage for one in map(shard.read, (tmp_path / FOLDER_NAME).glob("*"))} == {""}
