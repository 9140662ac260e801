"""`tune="idle"`: when a process is at work, that nothing is measured beside its work, what its
queue does, and how plans are taken over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from store_cases import FORKS, fork

import gristmill as gm
from gristmill import settings, tuning
from gristmill.core.plan import Candidate, Outcome
from gristmill.core.registry import implementation, load
from gristmill.core.target import device_target
from gristmill.measure.isolation import Child
from gristmill.ops import _dispatch, get_op, idle
from gristmill.tuning import background, gate, yielding
from gristmill.tuning.background import QUIET_S, WORK_S, Activity, Background
from gristmill.tuning.gate import Flag, Gate, GaveWayError
from gristmill.tuning.yielding import YieldingMeasurer, idle_run

CPU = torch.device("cpu")
USERS = Path(__file__).parents[1] / "users"
ARGS = (torch.randn(16, 64), torch.ones(64))
PATIENCE_S = 100.0  # of a test, on a loaded machine


def eventually(what, message=""):
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, message
        time.sleep(0.01)


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


@pytest.fixture
def queue(monkeypatch):
    """A queue whose tuning process only answers, and whose user has nothing to do."""
    paths = [str(USERS), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    made = []

    class Idle:
        def busy(self):
            return False

    def make(allowed=lambda: True):
        one = Background(allowed, Idle())
        one.module = "idle_answers"
        made.append(one)
        return one

    yield make
    for one in made:
        one.stop()


def test_a_wish_is_done_once_at_the_least_priority_and_everyone_is_told(queue):
    one, told = queue(), []

    class Bound:
        def reselect(self):
            told.append("bound")

    bound, gone = Bound(), Bound()
    weak = weakref.WeakMethod(gone.reselect)

    def direct():
        told.append("direct")

    for adopt in (direct, direct, weakref.WeakMethod(bound.reselect), weak):
        one.want(("a",), {"problem": "tuned"}, lambda: told.append("refresh"), adopt)
    del gone
    eventually(lambda: "bound" in told)
    assert told == ["refresh", "direct", "bound"]
    (answer,) = one.answers
    assert answer["nice"] == 19
    assert answer["policy"] == os.SCHED_IDLE
    one.want(("a",), {"problem": "tuned"}, lambda: told.append("again"), direct)
    eventually(lambda: one._child is None)  # nothing is left to do: nothing is kept
    assert len(one.answers) == 1
    one.want(("b",), {"problem": "tuned"}, lambda: None, lambda: told.append("b"))
    eventually(lambda: "b" in told)


def test_what_fails_is_tried_again_after_the_others_and_then_left(queue):
    one, told = queue(), []
    for name in ("untuned", "dies", "tuned"):
        one.want((name,), {"problem": name}, lambda: None, lambda name=name: told.append(name))
    eventually(lambda: not one.waiting)
    assert told == ["tuned"]
    names = [answer["key"][0] for answer in one.answers]
    assert sorted(names) == ["dies"] * 3 + ["tuned"] + ["untuned"] * 3
    assert names[:3] == ["untuned", "dies", "tuned"]
    assert "exited with status 3" in next(a for a in one.answers if a["key"] == ("dies",))["error"]


def test_the_budgets_of_a_problem_and_of_the_process_are_kept(queue):
    with settings.override(budget_s=60.0, idle_budget_s=90.0):
        one = queue()
        request = {"problem": "untuned", "spends_s": 40.0}
        one.want(("a",), request, lambda: None, lambda: None)
        one.want(("b",), request, lambda: None, lambda: None)
        eventually(lambda: len(one.answers) == 3)
        asked = [(a["key"][0], a["budget_s"]) for a in one.answers]
        assert asked == [("a", 60.0), ("b", 50.0), ("a", 10.0)]
        one.want(("c",), request, lambda: None, lambda: None)
        eventually(lambda: one._child is None)
        assert len(one.answers) == 3


def test_what_is_frozen_meanwhile_is_not_tuned_and_goes_on_when_it_is_thawed(queue, tmp_path):
    frozen = threading.Event()
    one, told = queue(lambda: not frozen.is_set()), []
    thawed = tmp_path / "thawed"
    request = {"problem": "hangs", "unless": str(thawed)}
    one.want(("a",), request, lambda: None, lambda: told.append("a"))
    eventually(lambda: one._child is not None and one._child.alive)
    pid = one._child._process.pid
    frozen.set()
    eventually(lambda: not Path(f"/proc/{pid}").exists())
    thawed.touch()
    frozen.clear()
    eventually(lambda: told)


def test_stopping_ends_the_process_at_once(queue):
    one = queue()
    one.want(("a",), {"problem": "hangs", "unless": "/nowhere"}, lambda: None, lambda: None)
    eventually(lambda: one._child is not None and one._child.alive)
    pid, start = one._child._process.pid, time.monotonic()
    one.stop()
    assert time.monotonic() - start < 10.0
    assert not one._thread.is_alive()
    assert not Path(f"/proc/{pid}").exists()
    one.want(("b",), {"problem": "tuned"}, lambda: None, lambda: None)
    assert not one.answers[1:]


@pytest.fixture
def asked(monkeypatch, fresh_store):
    """What would be tuned in the background."""
    found = []

    class Noted:
        def want(self, key, request, refresh, adopt):
            found.append((key, request, refresh, adopt))

    monkeypatch.setattr(idle.tuning, "idle_tuner", lambda allowed: Noted(), raising=False)
    with settings.override(tune="idle"):
        yield found


def test_direct_and_bound_calls_without_a_measured_plan_ask_and_others_do_not(asked):
    bound = gm.get_op("rms_norm", ARGS)
    assert bound.plan.origin == "vendor"
    for _ in range(3):
        gm.rms_norm(*ARGS)  # the first of them takes the slow path
    assert len(asked) == 2
    (key, request, _, adopt), (again, _, _, forget) = asked
    assert key == again
    assert key[0] == "rms_norm"
    assert key[2] == device_target(CPU).key
    assert (request["device"], request["threads"]) == ("cpu", torch.get_num_threads())
    assert adopt() == bound.reselect
    assert forget == _dispatch.dispatcher("rms_norm").forget
    gm.tune("rms_norm", ARGS, budget_s=3.0, trials=1)
    gm.get_op("rms_norm", ARGS)
    gm.rms_norm(*ARGS)
    assert len(asked) == 2


@pytest.mark.parametrize("policy", ["now", "never"])
def test_other_policies_ask_for_nothing(asked, policy):
    with settings.override(tune=policy):
        gm.rms_norm(*ARGS)
        gm.get_op("rms_norm", ARGS, tune="never")
    assert not asked


def test_a_frozen_process_asks_for_nothing(asked, tmp_path):
    gm.rms_norm(*ARGS)
    asked.clear()
    gm.freeze(tmp_path / "lock.json")
    try:
        gm.rms_norm(*ARGS)
        gm.get_op("rms_norm", ARGS)
    finally:
        gm.thaw()
    assert not asked
    with settings.override(lock_file=tmp_path / "none.json"):
        assert not idle._allowed()


def test_a_bound_operator_takes_a_new_plan_at_its_next_call(faulty, fresh_store):
    x = torch.randn(64, 64)
    bound = gm.get_op("twice", (x,), tune="never").preload()
    other = "right" if bound.implementation != "right" else "garbage"
    op = load("twice")
    bucket = op.bucket(bound.problem)
    plan = replace(
        bound.plan,
        candidate=Candidate(other),
        origin="tuned",
        source_hash=implementation("twice", other).source_hash,
        evidence=Outcome("ok", device_us=1.0),
    )
    bound.reselect()
    assert type(bound) is not get_op._Changing  # nothing has changed
    fresh_store.save_plan(plan, bucket.family(op.axes(bound.problem)), dict(bucket.axes))
    key = bound._call_key
    bound.reselect()
    assert bound.implementation == other
    assert torch.equal(bound(x[:32]), x[:32] * 2)  # of another problem: it takes the direct path
    assert type(bound) is get_op._Changing
    first, second = bound(x), bound(x)
    assert torch.equal(first, second)
    assert type(bound) is not get_op._Changing
    assert bound._call_key == key
    with pytest.raises(gm.InvalidInputError):
        bound(3)


ALONE = """
import json, os, time, torch, gristmill as gm
from gristmill import tuning
from gristmill.ops import idle
x, weight = torch.randn(16, 64), torch.ones(64)
bound = gm.get_op("rms_norm", (x, weight))
expected = gm.rms_norm(x, weight)
before = bound.plan.origin
end = time.monotonic() + 100
while bound.plan.origin != "tuned" and time.monotonic() < end:
    time.sleep(0.25)
direct = gm.rms_norm(x, weight)
gm.silu_and_mul(torch.randn(16, 64))  # there is something left to do at the end
while tuning.idle_tuner(idle._allowed)._child is None and time.monotonic() < end:
    time.sleep(0.05)
child = tuning.idle_tuner(idle._allowed)._child
pid = None if child is None or child._process is None else child._process.pid
close = lambda a, b: bool(torch.allclose(a, b, atol=1e-5))
right = close(direct, expected) and close(bound(x, weight), expected)
print(json.dumps({"before": before, "after": bound.plan.origin, "right": right, "pid": pid}))
"""


def test_a_process_with_nothing_to_do_tunes_and_leaves_nothing_behind(tmp_path):
    environment = {
        **os.environ,
        "GRISTMILL_TUNE": "idle",
        "GRISTMILL_BUDGET_S": "4",
        "GRISTMILL_CACHE_DIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert (told["before"], told["after"], told["right"]) == ("vendor", "tuned", True)
    assert told["pid"] is None or not Path(f"/proc/{told['pid']}").exists()


@FORKS
def test_a_fork_has_a_queue_of_its_own():
    tuning.idle_tuner(lambda: True)
    before = background._background

    def child():
        assert background._background is None
        assert tuning.idle_tuner(lambda: True) is not before
        tuning.stop_idle_tuner()

    try:
        assert os.waitpid(fork(child), 0)[1] == 0
        assert background._background is before
    finally:
        tuning.stop_idle_tuner()
