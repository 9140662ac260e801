"""The plan store as a folder of shards when a file is damaged, old, foreign, out of reach or too
much, and beside SQLite's file."""

from __future__ import annotations

import contextlib
import errno
import json
import subprocess
from pathlib import Path

import pytest
from store_cases import (
    FAMILY,
    FORKS,
    KEY,
    expire_shards,
    filled,
    in_child,
    measurement,
    merge_shards,
    plan,
    reachable_folder,
    shard_files,
    use,
    warns,
)

from gristmill import settings
from gristmill.cache import shard, shards, union
from gristmill.cache.database import FILE_NAME
from gristmill.cache.shards import FOLDER_NAME
from gristmill.cache.store import PlanStore
from gristmill.errors import CacheError

pytestmark = [FORKS, pytest.mark.usefixtures("shards_store")]


def test_a_merge_that_dies_before_it_deletes_counts_nothing_twice(tmp_path):
    for i in range(3):
        PlanStore(tmp_path).record([measurement(BLOCK=i)])
    before = {name: (tmp_path / FOLDER_NAME / name).read_bytes() for name in shard_files(tmp_path)}
    merge_shards(tmp_path)
    expire_shards(tmp_path)
    merge_shards(tmp_path)
    assert len(shard_files(tmp_path)) == 1
    for name, content in before.items():
        (tmp_path / FOLDER_NAME / name).write_bytes(content)
    assert PlanStore(tmp_path).summary().measurements == 3
    (
        tmp_path / FOLDER_NAME / shard_files(tmp_path, "merged-*")[0]
    ).unlink()  # nor was it ever written
    assert PlanStore(tmp_path).summary().measurements == 3


def test_an_old_listing_hides_nothing_for_long(tmp_path, monkeypatch):
    """A listing may name files that are gone and lack the one that has their rows now."""
    for i in range(3):
        PlanStore(tmp_path).record([measurement(BLOCK=i)])
    old = shard.names(tmp_path / FOLDER_NAME)
    PlanStore(tmp_path).prune(op="another")
    merge_shards(tmp_path)
    expire_shards(tmp_path)
    merge_shards(tmp_path)
    new = shard.names(tmp_path / FOLDER_NAME)
    assert not old & new
    listings = iter([old, old, new])
    monkeypatch.setattr(union.shard, "names", lambda folder: next(listings, new))
    assert len(PlanStore(tmp_path).measurements(*KEY)) == 3
    monkeypatch.setattr(union.shard, "names", lambda folder: old)  # and for ever: a miss
    assert PlanStore(tmp_path).measurements(*KEY) == []


def test_drafts_are_never_read_and_go_when_they_are_old(tmp_path):
    s = PlanStore(tmp_path)
    s.record([measurement()])
    (name,) = shard_files(tmp_path)
    folder = tmp_path / FOLDER_NAME
    whole = (folder / name).read_text().replace(name[:32], "another")
    (folder / ".draft-1").write_text(whole)
    (folder / ".draft-2.jsonl").write_text(whole)
    assert PlanStore(tmp_path).summary().measurements == 1
    merge_shards(tmp_path)
    assert len(shard_files(tmp_path, ".draft-*")) == 2
    expire_shards(tmp_path, by_s=2 * shards.DRAFT_S, pattern=".draft-*")
    merge_shards(tmp_path)
    assert not shard_files(tmp_path, ".draft-*")


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (lambda text: text[: len(text) // 2], 1),
        (lambda text: text.split("\n", 2)[0] + "\n", 0),
        (lambda text: "", 0),
        (lambda text: "\0" * len(text), 0),
        (lambda text: text.replace('"gristmill":1', '"gristmill":9'), 0),
        (lambda text: text.replace("{", "[", 2), 0),
    ],
)
def test_a_damaged_shard_is_used_as_far_as_it_goes_and_never_deleted(tmp_path, damage, left):
    s = PlanStore(tmp_path)
    s.record([measurement(BLOCK=i) for i in range(3)])
    (name,) = shard_files(tmp_path)
    path = tmp_path / FOLDER_NAME / name
    path.write_text(damage(path.read_text()))
    for i in range(3, 6):
        s.record([measurement(BLOCK=i)])
    with warns("corrupt"):
        assert len(PlanStore(tmp_path).measurements(*KEY)) == 3 + left
    merge_shards(tmp_path)
    expire_shards(tmp_path)
    merge_shards(tmp_path)
    assert path.exists()
    with warns("corrupt"):
        assert len(PlanStore(tmp_path).measurements(*KEY)) == 3 + left


def test_rows_of_another_version_are_misses_and_their_new_columns_do_no_harm(tmp_path):
    s = PlanStore(tmp_path)
    s.record([measurement(BLOCK=1), measurement(BLOCK=2)])
    (name,) = shard_files(tmp_path)
    path = tmp_path / FOLDER_NAME / name
    header, first, second = map(json.loads, path.read_text().splitlines())
    del first["outcome"]
    second["clocks"] = {"sm": 1980}
    path.write_text("\n".join(map(json.dumps, (header, first, second))))
    with warns("row"):
        assert [m.candidate for m in PlanStore(tmp_path).measurements(*KEY)] == [
            measurement(BLOCK=2).candidate
        ]


def test_an_sqlite_file_is_taken_over_once_and_left_as_it_is(tmp_path):
    """Of the version that kept a rollback journal there; another may go on to use it."""
    with settings.override(store="database"):
        path = filled(tmp_path)
        old = PlanStore(tmp_path)
        old.record([measurement(), measurement(BLOCK=2)])
    content = path.read_bytes()
    with warns():
        for _ in range(2):
            s = PlanStore(tmp_path)
            assert s.plan(*KEY, "eager") == plan()
            assert s.summary().measurements == 2  # equal rows are one
    assert path.read_bytes() == content
    assert len(shard_files(tmp_path, "database-*")) == 1
    s.record([measurement(BLOCK=3)])
    assert s.prune(op=KEY[0]) == 4
    assert PlanStore(tmp_path).plans() == []  # not taken over again
    with settings.override(store="database"):
        old.record([measurement(BLOCK=4)])
    assert measurement(BLOCK=4) in PlanStore(tmp_path).measurements(*KEY)


def test_an_sqlite_file_that_is_damaged_is_one_warning(tmp_path):
    (tmp_path / FILE_NAME).write_bytes(b"not a database" * 100)
    with warns("corrupt"):
        s = PlanStore(tmp_path)
        s.save_plan(plan(), FAMILY, {"M": 16})
        assert PlanStore(tmp_path).plan(*KEY, "eager") == plan()


def test_a_read_only_folder_is_read(tmp_path):
    with reachable_folder() as folder:
        filled_shards = PlanStore(folder)
        filled_shards.save_plan(plan(), FAMILY, {"M": 16})
        filled_shards.record([measurement()])
        (folder / FOLDER_NAME).chmod(0o555)
        folder.chmod(0o555)

        def child():
            with settings.override(store="shards"), warns("unavailable"):
                use(PlanStore(folder), saved=False)
                with pytest.raises(CacheError, match="cannot be pruned"):
                    PlanStore(folder).prune(everything=True)

        in_child(child, ordinary_user=True)
        (folder / FOLDER_NAME).chmod(0o755)
        assert shard_files(folder) == shard_files(folder, "*.jsonl")


def test_an_sqlite_file_in_a_read_only_folder_is_read_too(tmp_path):
    with reachable_folder() as folder:
        with settings.override(store="database"):
            filled(folder)
        folder.chmod(0o555)

        def child():
            with settings.override(store="shards"):
                s = PlanStore(folder)
                return s.plan(*KEY, "eager"), len(s.measurements(*KEY))

        assert in_child(child, ordinary_user=True) == (plan(), 1)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "gristmill-test", folder]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a file system of a test's own needs the right to mount one")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("mode", ["shards", "database"])
def test_a_full_disk_is_said_once_and_loses_and_damages_nothing(small_disk, mode):
    with settings.override(store=mode):
        s = PlanStore(small_disk)
        s.record([measurement(BLOCK=0)])
        ballast = small_disk / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"x" * 4096):
                pass
        with warns("full"):
            for i in range(1, 40):
                s.record([measurement(BLOCK=i)])
                assert len(s.measurements(*KEY)) == i + 1
            with s.lease("key") as mine:
                assert mine
            s.save_plan(plan(), FAMILY, {"M": 16})
            assert s.plan(*KEY, "eager") == plan()
        with warns():
            assert measurement(BLOCK=0) in PlanStore(small_disk).measurements(*KEY)
        ballast.unlink()
        s.close()
        assert not list(small_disk.glob("**/.draft-*"))
        with warns():
            assert len(PlanStore(small_disk).measurements(*KEY)) == 40
            assert PlanStore(small_disk).plan(*KEY, "eager") == plan()


def test_a_file_out_of_reach_for_a_while_hides_its_own_rows_only(tmp_path, monkeypatch):
    s = PlanStore(tmp_path)
    s.record([measurement(BLOCK=1)])
    (first,) = shard_files(tmp_path)
    s.record([measurement(BLOCK=2)])
    real = shard.read

    def read(path):
        if path.name == first:
            raise OSError(errno.EIO, "Input/output error")
        return real(path)

    reader = PlanStore(tmp_path)
    with warns("unavailable"), monkeypatch.context() as patch:
        patch.setattr(shard, "read", read)
        assert len(reader.measurements(*KEY)) == 1
        assert len(reader.measurements(*KEY)) == 1
    assert len(reader.measurements(*KEY)) == 2


def test_a_rename_whose_answer_got_lost_was_done(tmp_path, monkeypatch):
    real = Path.rename

    def rename(self, target):
        real(self, target)
        if str(target).endswith(shard.SUFFIX):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(Path, "rename", rename)
    with warns():
        use(PlanStore(tmp_path), saved=True)
