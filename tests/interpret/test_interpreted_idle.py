"""A bound operator changes between a call of torch's own and a kernel: each has its own key."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import gristmill as gm
from gristmill.core.plan import Candidate, Outcome
from gristmill.core.registry import implementation, load
from gristmill.core.target import device_target
from gristmill.ops.bound_op import _Changing

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the interpreter's


def keep(store, bound, name):
    """Make an implementation's prior the measured plan."""
    op, impl = load("rms_norm"), implementation("rms_norm", name)
    bucket = op.bucket(bound.problem)
    config = impl.config(None, bound.problem, device_target(torch.device("cpu")))
    plan = replace(
        bound.plan,
        candidate=Candidate(name, config),
        fallback=None,
        origin="tuned",
        source_hash=impl.source_hash,
        evidence=Outcome("ok", device_us=1.0),
    )
    store.save_plan(plan, bucket.family(op.axes(bound.problem)), dict(bucket.axes))


def test_torchs_own_gives_way_to_a_kernel_and_comes_back(fresh_store):
    x, weight = torch.randn(4, 64), torch.ones(64)
    bound = gm.get_op("rms_norm", (x, weight), tune="never")
    keep(fresh_store, bound, "aten")
    bound.reselect()
    want = bound(x, weight)
    assert bound.implementation == "aten"
    bound(x, weight)
    shifted = torch.cat((torch.zeros(1), x.flatten()))[1:].view(4, 64)  # off 16 bytes
    for name in ("row", "aten", "row"):
        keep(fresh_store, bound, name)
        bound.reselect()
        assert bound.implementation == name
        assert isinstance(bound, _Changing)
        for _ in range(2):
            torch.testing.assert_close(bound(x, weight), want)
        assert not isinstance(bound, _Changing)
        torch.testing.assert_close(bound(shifted, weight), want)
        parameter = torch.nn.Parameter(weight.clone())
        bound(x, parameter).sum().backward()
        assert parameter.grad is not None
        assert not isinstance(bound, _Changing)
