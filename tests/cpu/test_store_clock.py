"""The plan store under clocks that are set back or ahead: leases, and which row is the latest."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from store_cases import FAMILY, FORKS, KEY, fork, measurement, plan, warns

from gristmill import settings
from gristmill.cache import rows
from gristmill.cache.clock import Clock
from gristmill.cache.faults import StoreFault
from gristmill.cache.lease import LEASE_S
from gristmill.cache.store import PlanStore

YEAR_S = 365 * 86_400.0
pytestmark = FORKS


@pytest.fixture(params=["database", "shards"])
def folder(request, tmp_path):
    """A folder for a store of either kind."""
    with settings.override(store=request.param):
        yield tmp_path


@pytest.fixture
def clock(monkeypatch):
    """Sets the time of day ahead, or back."""
    real, ahead_s = time.time, [0.0]

    def jump(by_s):
        ahead_s[0] += by_s

    monkeypatch.setattr(time, "time", lambda: real() + ahead_s[0])
    return jump


def test_stamps_rise_whatever_the_clock_does(clock):
    one = Clock()
    stamps = [one.now() for _ in range(3)]
    clock(-YEAR_S)
    stamps += [one.now() for _ in range(3)]
    one.see(stamps[-1] + YEAR_S)
    one.see(float("nan"))
    one.see(float("inf"))
    stamps.append(one.now())
    clock(+5 * YEAR_S)
    stamps.append(one.now())
    assert stamps == sorted(set(stamps))
    assert abs(stamps[-1] - time.time()) < 60


@pytest.mark.parametrize("jump_s", [-YEAR_S, -1.0, 0.0, YEAR_S])
def test_the_latest_measurement_and_plan_are_so_though_a_clock_was_set_back(folder, clock, jump_s):
    for device_us in (9.0, 7.0, 5.0):
        s = PlanStore(folder)
        for bucket in (KEY[1], "b"):  # as a tuning run does first
            s.measurements(KEY[0], bucket, KEY[2]), s.plan(KEY[0], bucket, KEY[2], "eager")
        s.record([measurement(at=s.now(), device_us=device_us)])
        s.save_plan(plan(reason=f"{device_us} us"), FAMILY, {"M": 16})
        other = plan(reason=f"other versions, {device_us} us", provenance=f'{{"v":{device_us}}}')
        s.save_plan(replace(other, bucket="b"), FAMILY, {"M": 32})
        clock(jump_s)
    s = PlanStore(folder)
    assert [m.outcome.device_us for m in s.measurements(*KEY)] == [5.0]
    assert s.plan(*KEY, "eager").reason == "5.0 us"
    assert s.plan(KEY[0], "b", KEY[2], "eager").reason == "other versions, 5.0 us"


def test_the_lease_of_a_living_process_outlasts_every_clock(folder, clock):
    with PlanStore(folder).lease("key") as mine:
        assert mine
        for jump_s in (2 * LEASE_S, YEAR_S, -3 * YEAR_S):
            clock(jump_s)
            with PlanStore(folder).lease("key") as too:
                assert not too


@pytest.mark.parametrize("jump_s", [-YEAR_S, YEAR_S])
@pytest.mark.parametrize("reaped", [True, False])
def test_the_lease_of_a_killed_process_ends_with_it(folder, clock, jump_s, reaped):
    told, tell = os.pipe()

    def hold():
        with PlanStore(folder).lease("key"):
            os.write(tell, b"x")
            time.sleep(60)

    holder = fork(hold)
    assert os.read(told, 1)
    with PlanStore(folder).lease("key") as mine:
        assert not mine
    clock(jump_s)
    os.kill(holder, signal.SIGKILL)
    if reaped:
        os.waitpid(holder, 0)
    else:
        os.waitid(os.P_PID, holder, os.WEXITED | os.WNOWAIT)
    with PlanStore(folder).lease("key") as mine:
        assert mine
    if not reaped:
        os.waitpid(holder, 0)
    os.close(told)
    os.close(tell)


@pytest.mark.parametrize(
    ("jump_s", "free"), [(0.0, False), (2 * LEASE_S, True), (-LEASE_S / 2, False), (-YEAR_S, True)]
)
def test_a_lease_from_elsewhere_in_one_file(tmp_path, clock, jump_s, free):
    """Where it is seen by its end alone: an end that no lease can have says nothing."""
    with PlanStore(tmp_path).lease("key"):
        with sqlite3.connect(tmp_path / "plans.sqlite3") as connection:
            connection.execute("UPDATE leases SET host = 'elsewhere'")
        connection.close()
        clock(jump_s)
        with PlanStore(tmp_path).lease("key") as mine:
            assert mine is free


def test_a_lease_in_one_file_is_renewed_with_every_measurement(tmp_path, clock):
    s = PlanStore(tmp_path)
    with s.lease("key"):
        with sqlite3.connect(tmp_path / "plans.sqlite3") as connection:
            connection.execute("UPDATE leases SET host = 'elsewhere'")
        connection.close()
        for _ in range(5):
            clock(LEASE_S - 60)
            s.record([measurement()])
            with PlanStore(tmp_path).lease("key") as mine:
                assert not mine
    with PlanStore(tmp_path).lease("key") as mine:
        assert mine


@pytest.mark.parametrize("then", ["a write", "another lease"])
def test_a_lease_that_could_not_be_given_back_is_with_the_next_write(folder, monkeypatch, then):
    """Its process lives on, and nobody would take it."""

    def full(*args):
        raise StoreFault("full", "the disk is full")

    s = PlanStore(folder)
    with monkeypatch.context() as patch, warns("full"), s.lease("key") as mine:
        assert mine
        patch.setattr(s._database, "release", full)
    with PlanStore(folder).lease("key") as mine:
        assert not mine
    if then == "a write":
        s.record([measurement()])
    else:
        with s.lease("key") as mine:
            assert mine
    with PlanStore(folder).lease("key") as mine:
        assert mine


def test_rows_that_depend_on_what_there_is(folder, clock):
    """As an import adds them: a plan that is to take another's place does, however old it is."""
    s = PlanStore(folder)
    s.save_plan(plan(reason="kept"), FAMILY, {"M": 16})
    s.record([measurement(BLOCK=1)])

    def choose(read):
        assert [row["reason"] for row in read("SELECT * FROM plans")] == ["kept"]
        assert len(read("SELECT * FROM measurements")) == 1
        old = rows.plan_row(plan(reason="imported"), FAMILY, {"M": 16}, time.time() - YEAR_S)
        other = rows.plan_row(plan(bucket="new"), FAMILY, {"M": 32}, 1.0)
        return [rows.measurement_row(measurement(BLOCK=2))], [old, other]

    s._database.extend(choose)
    again = PlanStore(folder)
    assert again.plan(*KEY, "eager").reason == "imported"
    assert again.plan(KEY[0], "new", KEY[2], "eager") == plan(bucket="new")
    assert len(again.measurements(*KEY)) == 2


def test_a_process_with_one_file_does_not_import_the_shards(tmp_path):
    code = (
        "import sys; from gristmill.cache import store; store().plans(); "
        "assert not {'gristmill.cache.shards', 'gristmill.cache.union'} & set(sys.modules); "
        "from gristmill.cache import Shards"
    )
    environment = {**os.environ, "GRISTMILL_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_pruning_by_age_spares_what_comes_from_the_future(folder, clock):
    s = PlanStore(folder)
    s.record([measurement(at=time.time() + YEAR_S), measurement(BLOCK=1, at=time.time() - 100)])
    assert s.prune(older_than_s=50) == 1
