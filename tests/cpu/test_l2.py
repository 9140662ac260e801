"""What a call finds in L2, cold or warm, is measured for itself and never mixed up: in timers, the
store, selection, packs, lock files and on the command line."""

from __future__ import annotations

import warnings

import pytest
import torch
from typer.testing import CliRunner

import gristmill as gm
from gristmill import settings
from gristmill.cache import packs
from gristmill.cache.exchange import bring, collect
from gristmill.cache.store import PlanStore, store
from gristmill.cli.app import app
from gristmill.core.registry import load
from gristmill.core.target import device_name, device_target, named_target
from gristmill.errors import InvalidInputError
from gristmill.measure import timing
from gristmill.measure.timing import CpuTimer, CudaTimer
from gristmill.tuning.measurer import Measurer
from gristmill.tuning.timed import Timed

CPU = torch.device("cpu")
ARGS = (torch.randn(16, 64), torch.ones(64))


@pytest.fixture
def warm():
    with settings.override(l2="warm"):
        yield


def tune():
    return gm.tune("rms_norm", ARGS, budget_s=5.0, trials=1)


@pytest.mark.parametrize(
    ("l2", "expected"), [("cold", "prepare call"), ("warm", "prepare call prepare call")]
)
def test_a_cpu_call_runs_once_untimed_where_its_operands_are_to_be_warm(l2, expected, monkeypatch):
    seen = []
    clock = iter(range(100))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: seen.append("clock") or next(clock))
    timer = CpuTimer(l2)
    timer.prepare = lambda: seen.append("prepare")
    timer.device_us([lambda: seen.append("call")], 1)
    assert [s for s in seen if s != "clock"] == expected.split()
    assert seen[-3:] == ["clock", "call", "clock"]  # one call alone is timed


def cuda_timer(l2, seen, monkeypatch):
    """A timer as on a GPU, whose flushes and events are written down."""

    class Event:
        def __init__(self, **kwargs): ...

        def record(self):
            seen.append("event")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    timer = object.__new__(CudaTimer)
    timer.device, timer._warm, timer._flush_us = CPU, l2 == "warm", 100.0
    timer.flush = lambda: seen.append("flush")
    return timer


@pytest.mark.parametrize(
    ("l2", "expected"),
    [
        ("cold", "prepare flush event call event"),
        ("warm", "prepare flush call prepare event call event"),
    ],
)
def test_a_gpu_call_is_timed_after_a_flush_or_after_itself(l2, expected, monkeypatch):
    seen = []
    timer = cuda_timer(l2, seen, monkeypatch)
    timer.prepare = lambda: seen.append("prepare")
    timer._round([lambda: seen.append("call")], 1)
    assert seen == expected.split()


@pytest.mark.parametrize(("l2", "flushes"), [("cold", 2), ("warm", 3)])
def test_the_flush_gives_the_host_time_to_issue_both_calls(l2, flushes, monkeypatch):
    timer = cuda_timer(l2, [], monkeypatch)
    asked = []
    monkeypatch.setattr(timer, "_round", lambda calls, count: asked.append(count) or [])
    timer.synchronize = lambda: None
    timer.device_us([], 1, host_us=100.0)
    assert asked == [flushes]


def test_the_setting_reaches_the_timer_and_the_worker(warm):
    problem = load("rms_norm").problem((*ARGS, 1e-6))
    assert Timed(CPU).timer._warm
    assert Measurer(problem, CPU)._base["l2"] == "warm"
    with settings.override(l2="cold"):
        assert not Timed(CPU).timer._warm


def test_a_wrong_setting_is_refused(monkeypatch):
    monkeypatch.setenv("GRISTMILL_L2", "hot")
    with pytest.raises(
        InvalidInputError, match="GRISTMILL_L2 is 'hot'; it can be 'cold' or 'warm'"
    ):
        settings.Settings.from_environment()


def test_a_cold_target_is_called_what_it_always_was(warm):
    assert named_target("sm_90").key == "cuda:sm_90:132:NVIDIA H200"
    key = device_target(CPU).key
    with settings.override(l2="cold"):
        assert key == f"{device_target(CPU).key}, warm L2"
    assert device_name(key).endswith(", warm L2")


def test_cold_and_warm_plans_are_kept_apart_and_a_cold_one_says_that_it_is(fresh_store):
    tune()
    cold = gm.get_op("rms_norm", ARGS, tune="never").plan
    assert cold.origin == "tuned"
    with settings.override(l2="warm"):
        lent = gm.get_op("rms_norm", ARGS, tune="never").plan
        assert (lent.origin, lent.candidate) == ("neighbour", cold.candidate)
        assert lent.reason.endswith("; measured with a cold L2")
        assert "warm L2" in str(gm.explain("rms_norm", ARGS)).splitlines()[0]
        assert not any(row.status == "ok" for row in gm.explain("rms_norm", ARGS).rows)
        tune()
        mine = gm.get_op("rms_norm", ARGS, tune="never").plan
        assert (mine.origin, mine.target) == ("tuned", device_target(CPU).key)
    store().forget()
    assert gm.get_op("rms_norm", ARGS, tune="never").plan == cold
    assert {p.target for p in store().plans()} == {cold.target, mine.target}


def test_a_warm_plan_is_never_lent_to_a_cold_call(fresh_store, warm):
    tune()
    with settings.override(l2="cold"):
        assert gm.get_op("rms_norm", ARGS, tune="never").plan.origin in ("prior", "vendor")


def test_a_pack_carries_both_and_keeps_them_apart(fresh_store, tmp_path, warm):
    tune()
    with settings.override(l2="cold"):
        tune()
    pack = collect(fresh_store).pack
    assert len(pack.targets) == 2
    file = tmp_path / "pack.jsonl"
    pack.write(file)
    other = PlanStore(tmp_path / "other")
    bring(other, packs.read(file))
    assert {p.target for p in other.plans()} == set(pack.targets)


def test_a_lent_plan_can_be_frozen_and_is_found_again(fresh_store, tmp_path):
    tune()
    with settings.override(l2="warm"), warnings.catch_warnings():
        warnings.simplefilter("error")
        before = gm.rms_norm(*ARGS)
        gm.freeze(tmp_path / "lock.json", strict=True)
        try:
            assert torch.equal(gm.rms_norm(*ARGS), before)
        finally:
            gm.thaw()


def test_the_command_line_tunes_explains_and_benchmarks_either(fresh_store):
    problem = ["rms_norm", "-s", "x=16x64", "-s", "weight=64", "--dtype", "float32"]
    run = CliRunner()
    done = run.invoke(
        app, ["tune", *problem, "--device", "cpu", "--l2", "warm", "--budget", "5", "--trials", "1"]
    )
    assert done.exit_code == 0, done.output
    assert {p.target for p in store().plans()} == {f"{device_target(CPU).key}, warm L2"}
    assert settings.current().l2 == "cold"  # the option holds for its command
    told = run.invoke(app, ["explain", *problem, "--device", "cpu", "--l2", "warm"])
    assert "warm L2" in told.output
    assert "why: tuned" in told.output
    bench = [
        "bench",
        *problem,
        "--device",
        "cpu",
        "--l2",
        "warm",
        "--pairs",
        "2",
        "-p",
        "gristmill",
    ]
    assert "warm L2" in run.invoke(app, bench).output
    wrong = run.invoke(app, ["explain", *problem, "--l2", "hot"])
    assert wrong.exit_code == 2
    assert "`--l2` is 'hot'; it can be cold or warm" in " ".join(wrong.output.split())
