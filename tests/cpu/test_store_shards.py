"""The plan store as a folder of shards: what network file systems get in place of SQLite's file."""

from __future__ import annotations

import json
import os
import sqlite3
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from store_cases import (
    FAMILY,
    FORKS,
    KEY,
    expire_shards,
    fork,
    in_child,
    measurement,
    merge_shards,
    plan,
    shard_files,
    use,
    warns,
)

from gristmill import settings
from gristmill.cache import backend, shard, shards
from gristmill.cache.database import FILE_NAME
from gristmill.cache.shards import FOLDER_NAME
from gristmill.cache.store import PlanStore
from gristmill.errors import InvalidInputError

pytestmark = [FORKS, pytest.mark.usefixtures("shards_store")]


@pytest.mark.parametrize("kind", ["nfs4", "lustre", "fuse.sshfs", "9p", "virtiofs", "cifs"])
def test_a_network_file_system_gets_shards(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(backend, "file_system", lambda folder: kind)
    with settings.override(store="auto"), warns():
        use(PlanStore(tmp_path), saved=True)
        use(PlanStore(tmp_path), saved=True)
    assert not (tmp_path / FILE_NAME).exists()
    assert shard_files(tmp_path, "*.jsonl")


def test_a_machine_whose_own_disk_it_is_uses_the_shards_of_the_others(tmp_path):
    PlanStore(tmp_path).save_plan(plan(), FAMILY, {"M": 16})
    with settings.override(store="auto"):
        assert PlanStore(tmp_path).plan(*KEY, "eager") == plan()
    with settings.override(store="database"):
        assert PlanStore(tmp_path).plan(*KEY, "eager") is None


def test_the_setting_is_one_of_three(monkeypatch):
    monkeypatch.setenv("GRISTMILL_STORE", "shards")
    assert settings.Settings.from_environment().store == "shards"
    monkeypatch.setenv("GRISTMILL_STORE", "nfs")
    with pytest.raises(
        InvalidInputError, match="'nfs'; it can be 'auto' or 'database' or 'shards'"
    ):
        settings.Settings.from_environment()


def test_every_use_of_a_store_and_nothing_but_shards_stays(tmp_path):
    with warns():
        use(PlanStore(tmp_path), saved=True)
    assert shard_files(tmp_path) == shard_files(tmp_path, "*.jsonl")
    summary = PlanStore(tmp_path).summary()
    assert (summary.state, summary.plans, summary.measurements) == ("ok", 1, 2)
    assert summary.path == tmp_path / FOLDER_NAME
    assert summary.size_bytes > 0


def test_reading_creates_nothing(tmp_path):
    s = PlanStore(tmp_path / "none")
    assert s.plan(*KEY, "eager") is None
    assert s.measurements(*KEY) == []
    assert s.prune(everything=True) == 0
    assert s.summary().state == "ok"
    assert not (tmp_path / "none").exists()


def test_reading_is_incremental(tmp_path, monkeypatch):
    s = PlanStore(tmp_path)
    for i in range(3):
        s.record([measurement(BLOCK=i)])
    reader = PlanStore(tmp_path)
    assert len(reader.measurements(*KEY)) == 3
    read = []
    real = shard.read
    monkeypatch.setattr(shard, "read", lambda path: read.append(path) or real(path))
    s.record([measurement(BLOCK=3)])
    assert len(reader.measurements(*KEY)) == 4
    assert len(reader.measurements(*KEY)) == 4
    assert len(read) == 1


def test_the_later_plan_wins_whatever_the_order_of_the_files(tmp_path):
    for name in ("first", "second", "third"):
        s = PlanStore(tmp_path)
        s.plan(*KEY, "eager")
        s.save_plan(plan(reason=name), FAMILY, {"M": 16})
    assert PlanStore(tmp_path).plan(*KEY, "eager").reason == "third"
    assert len(PlanStore(tmp_path).plans()) == 1
    merge_shards(tmp_path)
    assert PlanStore(tmp_path).plan(*KEY, "eager").reason == "third"


def test_a_merge_loses_nothing_and_counts_nothing_twice(tmp_path):
    s = PlanStore(tmp_path)
    for i in range(5):
        s.record([measurement(BLOCK=i)])
    s.save_plan(plan(), FAMILY, {"M": 16})
    reader = PlanStore(tmp_path)
    assert len(reader.measurements(*KEY)) == 5
    merge_shards(tmp_path)
    s.record([measurement(BLOCK=5)])
    merge_shards(tmp_path)
    for seen_by in (reader, s, PlanStore(tmp_path)):
        seen_by.forget()
        assert len(seen_by.measurements(*KEY)) == 6
        assert seen_by.summary().measurements == 6
        assert seen_by.plan(*KEY, "eager") == plan()
    assert len(shard_files(tmp_path, "*.jsonl")) == 9  # an old listing may still name them
    expire_shards(tmp_path)
    merge_shards(tmp_path)
    assert len(shard_files(tmp_path)) == 1
    assert PlanStore(tmp_path).summary().measurements == 6


def test_a_store_merges_by_itself(tmp_path):
    s = PlanStore(tmp_path)
    for i in range(2 * shards.MANY):
        s.record([measurement(BLOCK=i)])
    assert shard_files(tmp_path, "merged-*")
    assert len(PlanStore(tmp_path).measurements(*KEY)) == 2 * shards.MANY


def test_what_is_written_during_a_merge_stays(tmp_path, monkeypatch):
    """A writer whose shard comes after the listing that the merge works from."""
    for i in range(3):
        PlanStore(tmp_path).record([measurement(BLOCK=i)])
    real = shard.publish

    def publish(folder, name, *rest):
        if name.startswith(shard.MERGED):
            monkeypatch.setattr(shard, "publish", real)
            PlanStore(tmp_path).record([measurement(BLOCK=3)])
        real(folder, name, *rest)

    monkeypatch.setattr(shard, "publish", publish)
    merge_shards(tmp_path)
    expire_shards(tmp_path)
    merge_shards(tmp_path)
    assert len(PlanStore(tmp_path).measurements(*KEY)) == 4


def test_pruned_rows_are_gone_for_those_who_have_read_them(tmp_path):
    s = PlanStore(tmp_path)
    s.record([measurement(BLOCK=1), measurement(BLOCK=2, source="s2")])
    s.save_plan(plan(), FAMILY, {"M": 16})
    reader = PlanStore(tmp_path)
    assert len(reader.measurements(*KEY)) == 2
    assert s.prune(keep_sources=["s2"]) == 2
    assert [m.source_hash for m in reader.measurements(*KEY)] == ["s2"]
    assert s.prune(everything=True) == 1
    reader.forget()
    assert reader.plan(*KEY, "eager") is None
    assert reader.measurements(*KEY) == []
    assert len(shard_files(tmp_path)) == 1


def test_sixteen_writers_lose_no_row_while_others_merge(tmp_path):
    def write(n):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            s = PlanStore(tmp_path)
            for i in range(12):
                s.record([measurement(process=n, i=i), measurement(process=n, i=-1 - i)])
                if i % 4 == n % 4:
                    s._database.merge()

    writers = [fork(lambda n=n: write(n)) for n in range(16)]
    assert [os.waitpid(pid, 0)[1] for pid in writers] == [0] * 16
    assert PlanStore(tmp_path).summary().measurements == 16 * 24
    merge_shards(tmp_path)
    expire_shards(tmp_path)
    merge_shards(tmp_path)
    assert PlanStore(tmp_path).summary().measurements == 16 * 24


def test_a_forked_child_has_the_rows_and_its_own_memory(tmp_path):
    s = PlanStore(tmp_path)
    s.record([measurement()])
    assert len(s.measurements(*KEY)) == 1

    def child():
        s.record([measurement(BLOCK=2)])
        return len(s.measurements(*KEY))

    assert in_child(child) == 2
    assert len(s.measurements(*KEY)) == 2


def test_a_copied_row_is_the_row(tmp_path):
    """Whatever SQLite would have kept comes back: infinities, large numbers, text of any kind."""
    odd = measurement(at=1e300, device_us=float("inf"), big=2**70, text="\ud800\0\n'")
    odd = replace(odd, problem="\udcff")
    s = PlanStore(tmp_path)
    s.record([odd])
    with settings.override(store="database"):
        file = PlanStore(tmp_path)
        file.record([odd])
        assert s.measurements(*KEY) == file.measurements(*KEY) != []
    assert sqlite3.sqlite_version_info >= (3, 24)  # upserts


def lease_file(folder) -> Path:
    (path,) = (folder / FOLDER_NAME).glob("lease-*")
    return path


@pytest.mark.parametrize(
    ("holder", "age_s", "free"),
    [
        ({"pid": 2147483646}, 0, True),  # no such process
        ({"started": "another boot:1"}, 0, True),  # the number belongs to a later process now
        ({"host": "elsewhere"}, 0, False),  # cannot be looked at
        ({"host": "elsewhere"}, 2 * shards.LEASE_S, True),
        ({"host": "elsewhere"}, -2 * shards.LEASE_S, False),
        ({}, 2 * shards.LEASE_S, False),  # a long trial, and here it can be looked at
        (None, 0, False),  # damaged: who knows
        (None, 2 * shards.LEASE_S, True),
    ],
)
def test_who_holds_a_lease_still(tmp_path, holder, age_s, free):
    s = PlanStore(tmp_path)
    with s.lease("key"):
        path = lease_file(tmp_path)
        host, pid, started = json.loads(path.read_text())
        said = {"host": host, "pid": pid, "started": started, **(holder or {})}
        path.write_text("damaged" if holder is None else json.dumps(list(said.values())))
        stamp = time.time() - age_s
        os.utime(path, (stamp, stamp))
        with PlanStore(tmp_path).lease("key") as mine:
            assert mine is free


def test_a_holder_elsewhere_gives_signs_of_life_with_its_measurements(tmp_path):
    s = PlanStore(tmp_path)
    with s.lease("key"):
        path = lease_file(tmp_path)
        path.write_text(json.dumps(["elsewhere", 1, ""]))
        os.utime(path, (1.0, 1.0))
        s.record([measurement()])
        assert path.stat().st_mtime > 1.0
        with PlanStore(tmp_path).lease("key") as mine:
            assert not mine


def test_who_comes_between_looking_and_asking_is_seen(tmp_path, monkeypatch):
    """Of two who both saw nobody, the second withdraws, and asks no more while the first works."""
    real, others = Path.rename, []

    def rename(self, target):
        if not others:
            others.append(PlanStore(tmp_path).lease("key"))
            assert others[0].__enter__()
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with PlanStore(tmp_path).lease("key") as mine:
        assert not mine
        assert len(list((tmp_path / FOLDER_NAME).glob("lease-*"))) == 1
    others[0].__exit__(None, None, None)
    with PlanStore(tmp_path).lease("key") as mine:
        assert mine


def test_of_two_who_ask_at_once_at_most_one_gets_it(tmp_path):
    """Everybody asks for the same key many times; holders note when they came and went."""
    log = tmp_path / "log"

    def ask(n):
        s = PlanStore(tmp_path)
        got = 0
        deadline = time.monotonic() + 20
        while got < 5 and time.monotonic() < deadline:
            with s.lease("key") as mine, log.open("a", buffering=1) as file:
                if mine:
                    got += 1
                    file.write(f"in {n}\n")
                    time.sleep(0.002)
                    file.write(f"out {n}\n")
        assert got == 5

    askers = [fork(lambda n=n: ask(n)) for n in range(4)]
    assert [os.waitpid(pid, 0)[1] for pid in askers] == [0] * 4
    lines = [line.split() for line in log.read_text().splitlines()]
    assert len(lines) == 40
    for (came, who), (went, whose) in zip(lines[::2], lines[1::2], strict=True):
        assert (came, went) == ("in", "out")
        assert who == whose
    assert not list((tmp_path / FOLDER_NAME).glob("lease-*"))
