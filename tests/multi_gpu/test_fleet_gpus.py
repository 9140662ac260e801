"""Two GPUs tune several problems at once: real workers, one compile server."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading

import pytest
import torch

import gristmill as gm
from gristmill.cache.store import store
from gristmill.core.op import Workload
from gristmill.core.problem import Problem, TensorSpec
from gristmill.core.registry import load
from gristmill.core.target import device_target
from gristmill.ops.tune_many import Where, tune_workloads
from gristmill.tuning.budget import Budget
from gristmill.tuning.fleet import local
from gristmill.tuning.fleet.run import Wishes

pytestmark = [
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
    pytest.mark.usefixtures("fresh_store"),
]
DEVICES = ["0", "1"]


def _problem(rows, width=4096):
    x = TensorSpec.contiguous((rows, width), "bfloat16")
    weight = TensorSpec.contiguous((width,), "bfloat16")
    return Problem("rms_norm", (("x", x), ("weight", weight), ("eps", 1e-6)))


def _targets():
    return {device_target(torch.device("cuda", index)).key for index in range(2)}


def test_problems_are_shared_out_and_the_plans_serve_calls_on_both():
    problems = [_problem(rows) for rows in (64, 512, 2048, 8192)]
    ended = gm.tune_many(problems, devices=DEVICES, budget_s=20.0, trials=12)
    assert [e.why for e in ended] == [""] * len(problems) * len(_targets())
    assert {e.site for e in ended} == {"cuda:0", "cuda:1"}
    for one in ended:
        tried = [c for c in one.result.outcomes if c.implementation in ("row", "multi_row")]
        assert len(tried) > 1  # Triton configs, compiled by the one server
        assert one.result.plans["eager"].evidence.device_us > 0
    for index in range(2):
        values = tuple(
            v.empty(torch.device("cuda", index)).normal_() if isinstance(v, TensorSpec) else v
            for _, v in problems[0].args
        )
        assert gm.get_op("rms_norm", values, tune="never").plan.origin == "tuned"
        expected = load("rms_norm").reference(*(v.double() for v in values[:2]), values[2])
        out = gm.rms_norm(*values)
        torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=2e-2)


def test_both_devices_measure_at_the_same_time(monkeypatch):
    together, began = threading.Barrier(2), set()
    real = local.HeldSite.measurer

    def measurer(self, problem, seed):
        if self.name not in began:
            began.add(self.name)
            together.wait(60)  # neither waits for the other to end
        return real(self, problem, seed)

    monkeypatch.setattr(local.HeldSite, "measurer", measurer)
    problems = [_problem(rows) for rows in (128, 1024)]
    ended = gm.tune_many(problems, devices="all", budget_s=15.0, trials=4)
    assert {e.why for e in ended} == {""}
    assert began >= {"cuda:0", "cuda:1"}


def test_a_worker_that_is_killed_is_started_again_and_both_go_on(monkeypatch):
    killed = []
    real = local.HeldSite.measurer

    def measurer(self, problem, seed):
        made = real(self, problem, seed)
        measure = made.measure

        def once(candidate, best_us):
            if not killed:
                killed.append(candidate)
                made._child.start()
                os.kill(made._child._process.pid, signal.SIGKILL)
            return measure(candidate, best_us)

        made.measure = once
        return made

    monkeypatch.setattr(local.HeldSite, "measurer", measurer)
    problems = [_problem(rows) for rows in (128, 1024)]
    ended = gm.tune_many(problems, devices=DEVICES, budget_s=20.0, trials=6)
    assert {e.why for e in ended} == {""}
    assert killed
    assert all(e.result.plans for e in ended)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray")
def test_a_ray_cluster_of_this_machine_gives_each_actor_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    problems = [_problem(rows) for rows in (256, 4096)]
    ended = gm.tune_many(problems, ray="local", budget_s=20.0, trials=8)
    assert {e.why for e in ended} == {""}
    assert {e.site.rpartition("/")[2] for e in ended} == {"cuda:0", "cuda:1"}
    assert {e.job.target.key for e in ended} == _targets()
    for one in ended:
        tried = [o for c, o in one.result.outcomes.items() if c.implementation == "row"]
        assert any(o.ok and o.registers for o in tried)


def test_control_c_keeps_what_both_have_measured(monkeypatch):
    enough = threading.Barrier(2, action=lambda: os.kill(os.getpid(), signal.SIGINT))
    real = local.HeldSite.measurer

    def measurer(self, problem, seed):
        made = real(self, problem, seed)
        measure, count = made.measure, []

        def counted(candidate, best_us):
            outcome = measure(candidate, best_us)
            count.append(candidate)
            if len(count) == 4:
                enough.wait(60)
            return outcome

        made.measure = counted
        return made

    monkeypatch.setattr(local.HeldSite, "measurer", measurer)
    named = [Workload(f"rows-{rows}", _problem(rows)) for rows in (128, 1024)]
    wishes = Wishes(Budget(120.0), "random")
    result = tune_workloads(named, Where(DEVICES), wishes)
    assert result.interrupted
    target = device_target(torch.device("cuda", 0)).key
    for one in result.ended:
        bucket = one.job.op.bucket(one.job.problem).key
        rows = store().measurements("rms_norm", bucket, target)
        assert len(rows) >= 4
