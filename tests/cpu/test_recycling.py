"""Processes that grow are replaced between trials with nothing lost; compilers that abort or
swallow memory are rows."""

from __future__ import annotations

import pytest
import torch

from gristmill import settings
from gristmill.core.plan import Candidate
from gristmill.core.registry import load
from gristmill.core.target import device_target
from gristmill.measure import memory
from gristmill.measure.memory import DEVICE, HOST, Growth, resident_bytes, too_large
from gristmill.tuning.compiler import CompilePool
from gristmill.tuning.measurer import Measurer, stop_workers

CPU = torch.device("cpu")


class LeakingMeasurer(Measurer):
    """Measures in the worker that leaks."""

    worker = "leaking_worker"


class FailingPool(CompilePool):
    """Compiles in the server that fails."""

    server = "failing_compiler"


@pytest.fixture
def problem(faulty, user_modules):
    stop_workers()
    yield load("twice").problem((torch.ones(64, 64),))
    stop_workers()


def test_a_worker_that_leaks_is_replaced_between_trials_and_nothing_is_lost(problem):
    with settings.override(growth_gb=0.1), LeakingMeasurer(problem, CPU) as measurer:
        outcomes = [measurer.measure(Candidate("right"), None) for _ in range(6)]
        child = measurer._child
        race, samples = measurer.race([Candidate("right"), Candidate("garbage")])
    assert all(outcome.ok for outcome in outcomes)
    assert child.started == 3  # the third answer of each is 128 MB more than its first
    assert [o.status for o in race] == ["ok", "wrong"]
    assert samples[0]["device"]
    assert measurer.conditions().anchors >= 6  # what was seen is not lost either


def test_a_worker_within_the_limit_is_kept(problem):
    with settings.override(growth_gb=1.0), LeakingMeasurer(problem, CPU) as measurer:
        for _ in range(4):
            assert measurer.measure(Candidate("right"), None).ok
        assert measurer._child.started == 1


def test_a_compiler_that_aborts_or_swallows_memory_is_a_row(problem):
    names = ["fine", "aborts", "swallows", "fine too"]
    with (
        settings.override(growth_gb=0.3),
        FailingPool(problem, device_target(CPU), jobs=2) as pool,
    ):
        for name in names:
            pool.submit(Candidate(name))
        done = {c.implementation: o for c, o in (pool.collect() for _ in names)}
        assert pool._child.started == 1
    assert done["fine"].ok
    assert done["fine too"].ok
    assert (done["aborts"].status, done["aborts"].reason) == (
        "crash",
        "the compiler was ended by SIGABRT",
    )
    assert done["swallows"].status == "crash"
    assert "the compiler came to hold" in done["swallows"].reason


def test_a_compile_server_that_leaks_is_replaced_when_it_has_answered_everything(problem):
    with (
        settings.override(growth_gb=0.1),
        FailingPool(problem, device_target(CPU), jobs=1) as pool,
    ):
        for name in ("leaks", "a"):
            pool.submit(Candidate(name))
        done = dict([pool.collect()])
        pool.submit(Candidate("b"))  # the server is full: this waits for another
        assert pool.pending == 2
        done |= dict(pool.collect() for _ in range(2))
        assert pool.pending == 0
        assert pool._child.started == 2
    served = {c.implementation: o.registers for c, o in done.items()}
    assert all(o.ok for o in done.values())
    assert served["leaks"] == served["a"] != served["b"]


def test_a_full_server_that_dies_loses_what_it_had_and_not_what_waits(problem):
    with (
        settings.override(growth_gb=0.1),
        FailingPool(problem, device_target(CPU), jobs=1) as pool,
    ):
        for name in ("leaks", "a"):
            pool.submit(Candidate(name))
        pool.collect()
        pool.submit(Candidate("b"))
        pool._child._process.kill()
        pool._child._process.wait()
        done = {c.implementation: o for c, o in (pool.collect() for _ in range(2))}
    assert done["b"].ok
    assert done["a"].status in ("ok", "crash")  # its answer may have been on its way


def test_growth_is_counted_from_the_first_time_and_of_the_work_at_hand(monkeypatch):
    held = {HOST: 5, DEVICE: 7}
    monkeypatch.setattr(memory, "resident_bytes", lambda: held[HOST])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: held[DEVICE])
    growth, first, second = Growth(), object(), object()
    assert growth.since(first) == {HOST: 0, DEVICE: 0}
    held.update({HOST: 6, DEVICE: 17})
    assert growth.since(first) == {HOST: 1, DEVICE: 10}
    assert growth.since(second) == {HOST: 1, DEVICE: 0}  # its arguments are no leak
    with settings.override(growth_gb=1.0):
        assert not too_large({HOST: 10**9, DEVICE: 0})
        assert too_large({HOST: 0, DEVICE: 2 * 10**9}) == (
            "it has grown by 2.0 GB of device memory (1 are allowed)"
        )


def test_the_memory_of_a_process_is_what_the_system_says():
    assert resident_bytes() > 1 << 20
    assert resident_bytes(2**22 + 1) == 0
