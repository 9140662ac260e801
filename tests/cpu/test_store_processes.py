"""The plan store between processes and threads: no row lost, nobody blocked by the dead, forks."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import pytest
from store_cases import FAMILY, FORKS, KEY, fork, in_child, measurement, plan

from gristmill import settings
from gristmill.cache import lease
from gristmill.cache.store import PlanStore, store

pytestmark = FORKS

PRELUDE = """
import sys
from pathlib import Path
from gristmill.cache.store import PlanStore
from gristmill.core.config import Config
from gristmill.core.plan import Candidate, Measurement, Outcome
def measurement(**knobs):
    row = Candidate("row", Config(knobs))
    return Measurement("op", row, "s1", "b", "t", "{}", Outcome("ok", device_us=1.0))
s = PlanStore(Path(sys.argv[1]))
"""


def start(folder, code, *args):
    """A Python process with the store in `folder` as `s`; warnings are errors there."""
    return subprocess.Popen(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            PRELUDE + textwrap.dedent(code),
            folder,
            *map(str, args),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )


def rows(folder):
    return PlanStore(folder).measurements("op", "b", "t")


def test_sixteen_writers_lose_no_row(tmp_path):
    """All begin with no file: creating it is part of the race."""
    gate, opened = os.pipe()

    def write(n):
        os.close(opened)
        os.read(gate, 1)  # until the parent closes its end
        s = PlanStore(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for i in range(25):
                s.record([measurement(process=n, i=i), measurement(process=n, i=-1 - i)])

    writers = [fork(lambda n=n: write(n)) for n in range(16)]
    os.close(gate)
    os.close(opened)
    assert [os.waitpid(pid, 0)[1] for pid in writers] == [0] * 16
    assert len(PlanStore(tmp_path).measurements(*KEY)) == 16 * 50
    assert PlanStore(tmp_path).summary().measurements == 16 * 50


def test_a_killed_writer_leaves_a_usable_store(tmp_path):
    code = """
    i = 0
    while True:
        s.record([measurement(i=i + k) for k in range(20)])
        i += 20
        print(i, flush=True)
    """
    for _ in range(3):
        process = start(tmp_path, code)
        assert process.stdout is not None
        for _ in range(5):
            done = int(process.stdout.readline())
        time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        found = rows(tmp_path)
        assert len(found) >= done
        assert len(found) % 20 == 0  # a batch is kept whole or not at all
        PlanStore(tmp_path).record([measurement()])
    assert PlanStore(tmp_path).summary().state == "ok"


HOLD = """
with s.lease("key") as mine:
    print(mine, flush=True)
    import time; time.sleep(60)
"""


def test_one_process_at_a_time_and_a_dead_holder_blocks_nobody(tmp_path):
    holder = start(tmp_path, HOLD)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "True\n"
    s = PlanStore(tmp_path)
    with s.lease("key") as mine:
        assert not mine
    with s.lease("another key") as mine:
        assert mine
    began = time.monotonic()
    with s.lease("key", timeout_s=0.3) as mine:
        assert not mine
    assert 0.25 < time.monotonic() - began < 5
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with s.lease("key") as mine:
        assert mine


def test_a_waiter_gets_its_turn_and_reads_anew(tmp_path):
    s = PlanStore(tmp_path)
    other = PlanStore(tmp_path)
    assert s.plan(*KEY, "eager") is None
    entered = threading.Event()

    def work():
        with other.lease("key") as mine:
            assert mine
            entered.set()
            time.sleep(0.2)
            other.save_plan(plan(), FAMILY, {"M": 16})

    thread = threading.Thread(target=work)
    thread.start()
    entered.wait()
    with s.lease("key", timeout_s=30) as mine:
        assert mine
        assert s.plan(*KEY, "eager") == plan()
    thread.join()


def test_a_lease_ends_with_its_block_and_after_an_error(tmp_path):
    s = PlanStore(tmp_path)
    for _ in range(2):
        with contextlib.suppress(KeyError), s.lease("key") as mine:
            assert mine
            raise KeyError
    with PlanStore(tmp_path).lease("key") as mine:
        assert mine


@pytest.mark.parametrize(
    ("change", "free"),
    [
        ("pid = 2147483646", True),  # no such process
        ("started = 'another boot:1'", True),  # the number belongs to a later process now
        ("host = 'elsewhere'", False),  # cannot be looked at
        ("host = 'elsewhere', expires_at = 1.0", True),
        ("key = key", False),
    ],
)
def test_who_holds_a_lease_still(tmp_path, change, free):
    s = PlanStore(tmp_path)
    with s.lease("key"):
        connection = sqlite3.connect(tmp_path / "plans.sqlite3")
        connection.execute(f"UPDATE leases SET {change}")
        connection.commit()
        connection.close()
        with PlanStore(tmp_path).lease("key") as mine:
            assert mine is free


def test_a_process_is_told_from_a_later_one_of_its_number():
    assert lease.started(os.getpid()) == lease.started(os.getpid()) != lease.started(1) != ""
    assert lease.started(2147483646) == ""


def test_threads_share_a_store(tmp_path):
    s = PlanStore(tmp_path)
    failures = []

    def work(n):
        try:
            for i in range(20):
                s.record([measurement(thread=n, i=i)])
                s.save_plan(plan(bucket=f"{n}.{i}"), FAMILY, {"M": i})
                assert s.plan(KEY[0], f"{n}.{i}", KEY[2], "eager") == plan(bucket=f"{n}.{i}")
                s.forget()
                assert s.plan(KEY[0], f"{n}.0", KEY[2], "eager") == plan(bucket=f"{n}.0")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures
    assert len(s.measurements(*KEY)) == len(s.plans()) == 80


def test_a_forked_child_reads_and_writes_and_its_parent_goes_on(tmp_path):
    s = PlanStore(tmp_path)
    s.save_plan(plan(), FAMILY, {"M": 16})

    def child():
        found = s.plan(*KEY, "eager")
        s.save_plan(plan(bucket="child"), FAMILY, {"M": 32})
        s.forget()
        return found, s.plan(KEY[0], "child", KEY[2], "eager")

    assert in_child(child) == (plan(), plan(bucket="child"))
    s.save_plan(plan(bucket="parent"), FAMILY, {"M": 64})
    assert {p.bucket for p in s.plans()} == {KEY[1], "child", "parent"}


def test_forks_while_threads_write(tmp_path):
    """A child that inherited an open file would find it locked for ever, or lose its rows."""
    s = PlanStore(tmp_path)
    stop = threading.Event()
    written = [0, 0]

    def work(n):
        while not stop.is_set():
            s.record([measurement(thread=n, i=written[n])])
            s.plans()
            written[n] += 1

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for t in threads:
        t.start()
    try:
        for i in range(20):
            assert in_child(lambda i=i: s.record([measurement(child=i)])) is None
    finally:
        stop.set()
        for t in threads:
            t.join()
    assert len(s.measurements(*KEY)) == sum(written) + 20
    assert s.summary().unsaved == 0


def test_a_child_does_not_end_its_parents_lease(tmp_path):
    s = PlanStore(tmp_path)
    with s.lease("key") as mine:
        assert mine

        def child():
            with s.lease("key") as too:
                s._release("key", "any token")
                return too

        assert in_child(child) is False
        with PlanStore(tmp_path).lease("key") as too:
            assert not too


def test_the_process_wide_store_survives_a_fork(tmp_path):
    with settings.override(cache_dir=tmp_path):
        s = store()
        s.save_plan(plan(), FAMILY, {"M": 16})
        assert in_child(lambda: store().plan(*KEY, "eager")) == plan()
        assert store() is s
