"""`out=` of bound operators: what it writes, what it refuses, and that nothing is written then."""

from __future__ import annotations

import pytest
import torch

import gristmill as gm
from gristmill.errors import InvalidInputError
from gristmill.native.calls import calls

pytestmark = pytest.mark.usefixtures("fresh_store")
X, W = torch.randn(6, 64), torch.randn(64)


@pytest.fixture
def norm():
    return gm.get_op("rms_norm", (X, W), tune="never")


def test_the_result_is_written_there_and_given_back(norm):
    out = torch.full_like(X, float("nan"))
    assert norm(X, W, out=out) is out
    torch.testing.assert_close(out, norm(X, W))
    other = torch.full((3, 64), float("nan"))
    assert norm(X[:3], W, out=other) is other  # of another problem
    torch.testing.assert_close(other, norm(X[:3], W))
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(X, W, out=out) is out


def test_several_outputs_are_a_tuple():
    grad = torch.randn(6, 64)
    backward = gm.get_op("rms_norm_backward", (grad, X, W, 1e-6, True), tune="never")
    expected = backward(grad, X, W, 1e-6, True)
    outs = tuple(torch.full_like(t, float("nan")) for t in expected)
    assert backward(grad, X, W, 1e-6, True, out=outs) is outs
    for got, wanted in zip(outs, expected, strict=True):
        torch.testing.assert_close(got, wanted)
    with pytest.raises(InvalidInputError, match="a tuple of 2 tensors"):
        backward(grad, X, W, 1e-6, True, out=outs[0])
    with pytest.raises(InvalidInputError, match="shares memory"):
        backward(grad, X, W, 1e-6, True, out=(outs[0], outs[0].view(-1)[:64]))


STORAGE = torch.randn(6 * 64 * 2 + 8)
WRONG = {
    "shape": (torch.empty(5, 64), r"shape \(5, 64\)"),
    "dtype": (torch.empty(6, 64, dtype=torch.float16), "dtype torch.float16"),
    "device": (torch.empty(6, 64, device="meta"), "is on meta"),
    "strides": (torch.empty(64, 6).t(), r"strides \(1, 6\)"),
    "alignment": (STORAGE[1 : 1 + 6 * 64].view(6, 64), "4 bytes past"),
    "type": ([1.0], "is list"),
    "subclass": (torch.empty(6, 64).as_subclass(type("Mine", (torch.Tensor,), {})), "is Mine"),
    "several": ((torch.empty(6, 64), torch.empty(6, 64)), "is Tensor, Tensor"),
    "itself": (X, "shares memory"),
}


@pytest.mark.parametrize(("out", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused_and_left_alone(norm, out, message):
    before = out.clone() if isinstance(out, torch.Tensor) else None
    for _ in range(2):
        with pytest.raises(InvalidInputError, match=message):
            norm(X, W, out=out)
    if before is not None and before.device.type == "cpu":
        assert torch.equal(before.nan_to_num(), torch.as_tensor(out).nan_to_num())


def test_memory_that_meets_an_argument_s_is_refused(norm):
    x = STORAGE[: 6 * 64].view(6, 64)
    with pytest.raises(InvalidInputError, match="shares memory"):
        norm(x, W, out=STORAGE[4 : 4 + 6 * 64].view(6, 64))
    behind = STORAGE[6 * 64 : 2 * 6 * 64].view(6, 64)
    torch.testing.assert_close(norm(x, W, out=behind), norm(x, W))


def test_a_gradient_is_refused(norm):
    x = X.clone().requires_grad_()
    out = torch.empty_like(X)
    with pytest.raises(InvalidInputError, match="records no gradient"):
        norm(x, W, out=out)
    with torch.no_grad():
        assert norm(x, W, out=out) is out


def test_in_a_compiled_function(norm):
    out = torch.empty_like(X)
    compiled = torch.compile(lambda x: norm(x, W, out=out) + 1, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(X), norm(X, W) + 1)
    torch.testing.assert_close(out, norm(X, W))


def test_autograd_is_told_what_was_overwritten(norm):
    out = torch.empty_like(X)
    w = torch.randn(6, 64, requires_grad=True)
    norm(X, W, out=out)
    if calls() is not None:
        norm._outs.add((X, W, 1e-6, out), lambda *given: given[-1])
    for written in (lambda: norm(X[:6], W, out=out), lambda: norm(X + 0, W, out=out)):
        before = out._version
        loss = (out * w).sum()
        written()
        assert out._version > before
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    with torch.inference_mode():
        inference = torch.empty(6, 64)
        assert norm(X, W, out=inference) is inference


@pytest.mark.skipif(calls() is None, reason="needs a C compiler")
def test_a_program_takes_it_in_c(norm):
    out, seen = torch.empty_like(X), []
    norm._outs.add((X, W, 1e-6, out), lambda *given: seen.append(given) or given[-1])
    assert norm(X, W, out=out) is out
    assert len(seen) == 1
