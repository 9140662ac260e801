"""What tests of the plan store share: a measurement, a plan, every use of a store, forks."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import sqlite3
import tempfile
import traceback
import warnings
from pathlib import Path

import pytest

from gristmill.cache import shards
from gristmill.cache.database import FILE_NAME
from gristmill.cache.faults import CacheWarning
from gristmill.cache.shards import FOLDER_NAME
from gristmill.cache.store import PlanStore
from gristmill.core.config import Config
from gristmill.core.plan import Candidate, Measurement, Outcome, Plan
from gristmill.core.provenance import provenance

# From Python 3.12 on, forking a process with threads warns; that the store survives is the test.
FORKS = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
KEY = ("op", "M=16,N=4096|x:bfloat16:r", "cuda:sm_90:132:H200")
FAMILY = "M=*,N=4096|x:bfloat16:r"


def measurement(implementation="row", source="s1", at=1.0, device_us=5.0, **knobs):
    return Measurement(
        op=KEY[0],
        candidate=Candidate(implementation, Config(knobs)),
        source_hash=source,
        bucket=KEY[1],
        target=KEY[2],
        problem='{"op": "op"}',
        outcome=Outcome("ok", device_us=device_us, repeats=3),
        provenance=provenance(),
        measured_at=at,
    )


def plan(bucket=KEY[1], objective="eager", **fields):
    defaults = {
        "candidate": Candidate("row", Config({"BLOCK": 64})),
        "origin": "tuned",
        "source_hash": "s1",
        "fallback": Candidate("aten"),
        "evidence": Outcome("ok", device_us=3.0),
        "reason": "the fastest",
        "provenance": provenance(),
    }
    return Plan(
        op=KEY[0], bucket=bucket, target=KEY[2], objective=objective, **{**defaults, **fields}
    )


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


@contextlib.contextmanager
def reachable_folder():
    """A folder that an ordinary user can reach (pytest's `tmp_path` is root's alone)."""
    path = Path(tempfile.mkdtemp(prefix="gristmill-test-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        path.chmod(0o755)
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


def shard_files(folder, pattern="*"):
    """The names in a store's folder of shards."""
    return sorted(path.name for path in (folder / FOLDER_NAME).glob(pattern))


def merge_shards(folder):
    """What a writer does when there are many."""
    PlanStore(folder)._database.merge()


def expire_shards(folder, *, by_s=2 * shards.GRACE_S, pattern="*"):
    """Let time pass for the files in a folder."""
    for path in (folder / FOLDER_NAME).glob(pattern):
        stamp = path.stat().st_mtime - by_s
        os.utime(path, (stamp, stamp))
