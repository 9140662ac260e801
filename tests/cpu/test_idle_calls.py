"""Which calls ask to be tuned when there is time, and how they come by the plan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
from gristmill.ops import _dispatch, bound_op, idle
from gristmill.tuning import background

CPU = torch.device("cpu")
ARGS = (torch.randn(16, 64), torch.ones(64))


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
    assert not isinstance(bound, bound_op._Changing)  # nothing has changed
    fresh_store.save_plan(plan, bucket.family(op.axes(bound.problem)), dict(bucket.axes))
    key = bound._call_key
    bound.reselect()
    assert bound.implementation == other
    assert torch.equal(bound(x[:32]), x[:32] * 2)  # of another problem: it takes the direct path
    assert isinstance(bound, bound_op._Changing)
    first, second = bound(x), bound(x)
    assert torch.equal(first, second)
    assert not isinstance(bound, bound_op._Changing)
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
