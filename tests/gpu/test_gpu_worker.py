"""Real kernels that trap, hang, overrun or compute garbage are rows; the user's process and CUDA
context live on."""

from __future__ import annotations

import pytest
import torch

from gristmill import settings
from gristmill.cache.store import PlanStore
from gristmill.core.plan import Candidate
from gristmill.core.registry import implementation, load
from gristmill.core.target import device_target
from gristmill.tuning.budget import Budget
from gristmill.tuning.measurer import Measurer
from gristmill.tuning.runner import TuningRun


def _candidate(name, problem, device):
    return Candidate(
        name, implementation("twice", name).config(None, problem, device_target(device))
    )


@pytest.mark.parametrize(
    ("name", "statuses", "reason"),
    [
        ("triton_none", {"ok"}, ""),
        ("triton_compile", {"compile_error"}, "it does not compile"),
        ("triton_trap", {"crash"}, ""),
        ("triton_hang", {"timeout"}, "no answer within"),
        ("triton_garbage", {"wrong"}, "output 0 is wrong"),
        ("triton_overrun", {"wrong"}, "wrote outside its output"),
        ("triton_partial", {"wrong"}, "output 0 is wrong in 1 of"),
    ],
)
def test_a_faulty_kernel_is_a_row(faulty, cuda, monkeypatch, name, statuses, reason):
    alive = torch.arange(8, device=cuda)
    problem = load("twice").problem((torch.ones(64, 64, device=cuda),))
    monkeypatch.setattr("gristmill.tuning.measurer.FIRST_TIMEOUT_S", 30.0)
    with settings.override(candidate_timeout_s=5.0), Measurer(problem, cuda) as measurer:
        if name == "triton_hang":
            assert measurer.measure(
                _candidate("triton_none", problem, cuda), None
            ).ok  # starts CUDA: short time-out next
        outcome = measurer.measure(_candidate(name, problem, cuda), None)
        assert outcome.status in statuses
        assert reason in outcome.reason
        assert measurer.measure(_candidate("triton_none", problem, cuda), None).ok
    assert int((alive * 2).sum()) == 56


def test_tuning_through_faulty_kernels_ends_with_the_right_one(faulty, cuda, tmp_path, monkeypatch):
    monkeypatch.setattr("gristmill.tuning.measurer.FIRST_TIMEOUT_S", 30.0)
    op = load("twice")
    problem = op.problem((torch.ones(64, 64, device=cuda),))
    store = PlanStore(tmp_path)
    with settings.override(candidate_timeout_s=10.0, cache_dir=tmp_path):
        result = TuningRun(op, problem, cuda, store, Budget(seconds=100.0, trials=9)).run()
    by_name: dict[str, set[str]] = {}
    for candidate, outcome in result.outcomes.items():
        by_name.setdefault(candidate.implementation, set()).add(outcome.status)
    assert by_name["triton_trap"] == {"crash"}
    assert by_name["triton_garbage"] == {"wrong"}
    assert by_name["traps"] == {"crash"}
    assert by_name["hangs"] == {"timeout"}
    assert result.plans["eager"].candidate.implementation in ("right", "triton_none")
