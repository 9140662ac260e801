"""Two GPUs: tensors on the device that is not current, plans and bound operators of each, streams
of each."""

from __future__ import annotations

import pytest
import torch

import gristmill as gm
from gristmill import settings
from gristmill.core.registry import implementations, load
from gristmill.core.target import device_target
from gristmill.verify import compare, truth

pytestmark = [
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
    pytest.mark.usefixtures("fresh_store"),
]


def _values(name, device):
    def tensor(*shape):
        return torch.randn(*shape, device=device, dtype=torch.bfloat16)

    if name == "matmul":
        return tensor(256, 512), tensor(384, 512).t(), False
    return tensor(64, 4096), tensor(4096), 1e-6


def _right(name, values, output):
    op = load(name)
    references, magnitudes = truth(op, values)
    assert output.device == values[0].device
    verdict = compare((output,), references, magnitudes, op.bounds(op.problem(values)))
    return verdict.ok


@pytest.mark.parametrize("current", [0, 1])
@pytest.mark.parametrize("name", ["matmul", "rms_norm"])
def test_calls_go_to_the_tensors_device_whatever_the_current_one(name, current):
    with torch.cuda.device(current):
        for index in (1, 0, 1):
            values = _values(name, torch.device("cuda", index))
            bound = gm.get_op(name, values, tune="never")
            assert _right(name, values, bound(*values))
            assert _right(name, values, getattr(gm, name)(*values))
            other = _values(name, torch.device("cuda", 1 - index))
            assert _right(name, other, bound(*other))
            assert torch.cuda.current_device() == current


@pytest.mark.parametrize("name", ["matmul", "rms_norm"])
def test_every_kernel_by_hand_on_the_device_that_is_not_current(name):
    device = torch.device("cuda", 1)
    target, ran = device_target(device), set()
    one, *rest = _values(name, device)
    misaligned = one.new_empty(one.numel() + 1)[1:].view_as(one).copy_(one)
    with torch.cuda.device(0):
        for values in ((one, *rest), (one[:1], *rest), (misaligned, *rest)):
            problem = load(name).problem(values)
            for impl in implementations(name):
                if impl.kind == "triton" and impl.why_not(problem, target) is None:
                    assert _right(name, values, impl(*values))
                    ran.add(impl.name)
    assert ran == {impl.name for impl in implementations(name) if impl.kind == "triton"}


def test_mixed_devices_are_refused():
    x, weight, _ = _values("rms_norm", torch.device("cuda", 0))
    with pytest.raises(gm.InvalidInputError, match=r"`weight` is on cuda:1 and `x` on cuda:0"):
        gm.rms_norm(x, weight.to("cuda:1"))


def test_a_stream_of_the_other_device():
    device = torch.device("cuda", 1)
    values = _values("rms_norm", device)
    gm.rms_norm(*values)
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        x = values[0] * 2
        output = gm.rms_norm(x, *values[1:])
    torch.cuda.synchronize(device)
    assert _right("rms_norm", (x, *values[1:]), output)


def test_tuning_on_the_second_device_serves_both():
    values = _values("rms_norm", torch.device("cuda", 1))
    with torch.cuda.device(0), settings.override(tune="now"):
        bound = gm.get_op("rms_norm", values, budget_s=15.0, trials=4)
        assert torch.cuda.current_device() == 0
    assert bound.plan.origin == "tuned"
    assert _right("rms_norm", values, bound(*values))
    first = _values("rms_norm", torch.device("cuda", 0))
    assert gm.get_op("rms_norm", first, tune="never").plan.origin == "tuned"
    assert _right("rms_norm", first, gm.rms_norm(*first))
