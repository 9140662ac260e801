"""`tune="idle"`: when a process is at work, that nothing is measured beside its work, what its
queue does, and how plans are taken over."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import gristmill as gm
from gristmill import tuning
from gristmill.core.plan import Candidate, Outcome
from gristmill.core.registry import load
from gristmill.measure.isolation import Child
from gristmill.tuning import gate, yielding
from gristmill.tuning.background import QUIET_S, WORK_S, Activity
from gristmill.tuning.gate import Flag, Gate, GaveWayError
from gristmill.tuning.yielding import YieldingMeasurer, idle_run
from waiting import eventually

CPU = torch.device("cpu")
ARGS = (torch.randn(16, 64), torch.ones(64))


class Times:
    """A clock, and the processor time of a process, both set by hand."""

    def __init__(self):
        self.now = self.used = 0.0

    def after(self, seconds, work=0.0):
        self.now += seconds
        self.used += work


def test_a_process_is_at_work_by_its_processor_time():
    t = Times()
    activity = Activity(lambda: t.now, lambda: t.used)
    assert activity.busy()  # whoever has just begun is not idle
    t.after(QUIET_S / 2)
    assert activity.busy()
    t.after(QUIET_S)
    assert not activity.busy()
    t.after(0.02, work=2 * WORK_S)
    assert activity.busy()
    t.after(QUIET_S / 2)
    assert activity.busy()
    t.after(QUIET_S)
    assert not activity.busy()
    t.after(0.02, work=WORK_S / 2)  # a thread that wakes now and then
    assert not activity.busy()
    t.after(1.0, work=2 * WORK_S)  # the same, looked at less often
    assert not activity.busy()


def test_work_of_other_threads_counts_and_of_the_asking_one_does_not():
    def burn(seconds):
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass

    activity = Activity(clock=lambda: 0.0)
    activity._last = -1e9
    burn(0.05)
    assert not activity.busy()
    other = threading.Thread(target=burn, args=(0.05,))
    other.start()
    other.join()
    assert activity.busy()


def test_the_gate_waits_while_the_flag_is_up_and_gives_up_in_the_end(monkeypatch):
    flag = Flag()
    one = Gate(flag.path)
    assert one.busy  # until it is known better
    monkeypatch.setattr(gate.time, "sleep", lambda s: flag.set(busy=False))
    assert one.wait() > 0.0
    assert one.wait() == 0.0
    assert [event for _, event in one.log] == ["wait", "go"]
    turns = one.turns
    flag.set(busy=True)
    flag.set(busy=True)
    assert one.turns == turns + 1
    now = iter(range(0, 10_000, 7))
    late = Gate(flag.path, clock=lambda: float(next(now)))
    monkeypatch.setattr(gate.time, "sleep", lambda s: None)
    with pytest.raises(GaveWayError, match="at work for 30 s"):
        late.wait()
    assert late.waited_s > gate.GIVE_WAY_S


class FakeChild:
    """A worker that takes a few looks for an answer; `during` is called at each."""

    alive = False

    def __init__(self, during):
        self.during, self.events, self.started, self.asked = during, [], 1, 0

    def start(self): ...

    def pause(self):
        self.events.append("pause")

    def resume(self):
        self.events.append("resume")

    def stop(self):
        self.events.append("stop")

    def ask(self, message, timeout_s, meanwhile):
        self.asked += 1
        for look in range(3):
            self.during(self.asked, look)
            meanwhile()
        self.events.append("answer")
        outcome = Outcome("ok", device_us=float(self.asked)).to_json()
        return {"outcome": outcome, "seen": {"anchors_us": [1.0]}}


def yielding_measurer(during, flag):
    problem = load("rms_norm").problem((*ARGS, 1e-6))
    measurer = YieldingMeasurer(Gate(flag.path), problem, CPU, 0)
    measurer._child = FakeChild(during)
    return measurer


def test_a_trial_beside_work_is_stopped_thrown_away_and_made_again(monkeypatch):
    flag = Flag()
    flag.set(busy=False)
    monkeypatch.setattr(gate.time, "sleep", lambda s: flag.set(busy=False))

    def work(asked, look):
        if (asked, look) == (1, 1):
            flag.set(busy=True)

    measurer = yielding_measurer(work, flag)
    outcome = measurer.measure(Candidate("aten"), None)
    assert outcome.device_us == 2.0  # of the second trial
    assert measurer._child.events == ["pause", "resume", "answer", "answer"]
    events = [event for _, event in measurer._gate.log]
    assert events == ["trial", "stop", "wait", "go", "cont", "disturbed", "trial", "kept"]
    assert measurer.conditions().anchors == 1


def test_work_too_short_to_stop_for_disturbs_a_trial_all_the_same():
    flag = Flag()
    flag.set(busy=False)

    def blink(asked, look):
        if asked == 1 and look == 2:
            flag.set(busy=True)
            flag.set(busy=False)

    measurer = yielding_measurer(blink, flag)
    assert measurer.measure(Candidate("aten"), None).device_us == 2.0
    assert "pause" not in measurer._child.events


def test_a_run_that_is_always_disturbed_gives_way():
    flag = Flag()
    flag.set(busy=False)

    def blink(asked, look):
        flag.set(busy=True)
        flag.set(busy=False)

    measurer = yielding_measurer(blink, flag)
    with pytest.raises(GaveWayError, match="disturbed 5 times"):
        measurer.measure(Candidate("aten"), None)
    assert measurer._child.asked == yielding.ATTEMPTS


def test_no_call_of_the_user_is_made_beside_a_measurement(faulty):
    """The proof: a real worker, a user who is at work again and again, and the log of both. That a
    call begins once the worker is known to stand still is what the flag's delay (20 ms) is for."""
    flag, calls = Flag(), []
    flag.set(busy=False)
    problem = load("twice").problem((torch.ones(512, 512),))
    measurer = YieldingMeasurer(Gate(flag.path), problem, CPU, 0)
    outcomes, done = [], threading.Event()

    def tune():
        try:
            with measurer:
                outcomes.extend(measurer.measure(Candidate("right"), None) for _ in range(12))
        finally:
            done.set()

    tuner = threading.Thread(target=tune)
    tuner.start()
    log = measurer._gate.log
    states = set()
    while not done.is_set():
        before = len(log)
        flag.set(busy=True)
        eventually(lambda: done.is_set() or {"wait"} & {e for _, e in log[before:]})  # noqa: B023
        if not done.is_set():
            if "stop" in {e for _, e in log[before:]}:
                states.add(state(measurer._child._process.pid))
            for _ in range(20):
                calls.append(time.monotonic())
                gm.rms_norm(*ARGS)
            assert log[-1][1] == "wait"  # nothing else has happened meanwhile
        flag.set(busy=False)
        eventually(lambda: done.is_set() or "kept" in {e for _, e in log[before:]})  # noqa: B023
    tuner.join()
    assert len(outcomes) == 12
    assert all(outcome.ok for outcome in outcomes)
    assert len(calls) >= 20
    assert sum(measured_at(log, call) for call in calls) == 0
    assert states <= {"T"}


def state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def measured_at(log, moment):
    """Whether the worker was measuring then: within a trial, and not stopped."""
    running = False
    for at, event in log:
        if at > moment:
            break
        running = event in ("trial", "cont")
    return running


def test_a_child_that_is_paused_stands_still():
    with Child("gristmill.tuning.worker") as child:
        child.start()
        pid = child._process.pid
        child.pause()
        eventually(lambda: state(pid) == "T")
        child.resume()
        eventually(lambda: state(pid) != "T")
        child.pause()
    assert not Path(f"/proc/{pid}").exists()  # what stands still can be ended too


ORPHAN = """
import os, torch
from gristmill.core.plan import Candidate
from gristmill.core.registry import load
from gristmill.tuning.gate import Flag, Gate
from gristmill.tuning.yielding import YieldingMeasurer
flag = Flag()
flag.set(busy=False)
problem = load("rms_norm").problem((torch.ones(4, 8), torch.ones(8), 1e-6))
with YieldingMeasurer(Gate(flag.path), problem, torch.device("cpu"), 0) as measurer:
    assert measurer.measure(Candidate("aten"), None).ok
    measurer._child.pause()
    print(measurer._child._process.pid, flush=True)
    os.kill(os.getpid(), 9)
"""


def test_a_worker_that_stands_still_ends_with_the_process_that_stopped_it():
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN], capture_output=True, text=True, check=False
    )
    assert done.returncode == -9, done.stderr
    pid = done.stdout.strip()
    eventually(lambda: not Path(f"/proc/{pid}").exists() or state(pid) in "ZX")


def test_time_at_the_gate_is_no_part_of_a_runs_budget(fresh_store):
    flag = Flag()
    op = load("rms_norm")
    one = Gate(flag.path)
    problem = op.problem((*ARGS, 1e-6))
    run = idle_run(one)(op, problem, CPU, fresh_store, tuning.Budget(10.0))
    run._start = time.monotonic() - 100.0
    one.waited_s = 95.0
    assert 4.0 < run._elapsed_s < 10.0
    assert run._searching
