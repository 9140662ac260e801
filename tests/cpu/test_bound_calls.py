"""Calls of bound operators by the vectorcall protocol: what makes no Python frame, and that every
other call is the one that the class has in Python."""

from __future__ import annotations

import gc
import sys
import threading
import weakref

import pytest
import torch
from torch.autograd import forward_ad

import gristmill as gm
from gristmill.native.calls import calls
from gristmill.ops import bound_op

pytestmark = [
    pytest.mark.usefixtures("fresh_store"),
    pytest.mark.skipif(calls() is None, reason="needs a C compiler"),
]
X, W = torch.randn(6, 64), torch.randn(64)


@pytest.fixture
def norm():
    op = gm.get_op("rms_norm", (X, W), tune="never")
    op(X, W)
    return op


def frames(call):
    """The functions in Python that a call enters."""
    seen = []
    sys.setprofile(lambda frame, event, arg: seen.append(frame.f_code.co_name)
                   if event == "call" else None)  # fmt: skip
    try:
        call()
    finally:
        sys.setprofile(None)
    return [name for name in seen if name != "call"]


def test_a_call_that_is_known_makes_no_frame(norm):
    out = torch.empty_like(X)
    norm._table.add((X, W, 1e-6), max_of)
    norm._outs.add((X, W, 1e-6, out), max_of)

    def call():
        norm(X, W, 1e-6)
        norm(X, W)  # eps is filled in
        norm(X, W, out=None)
        assert norm(X, W, out=out) is out
        norm(X, W, 1e-6, out=out)

    assert frames(call) == ["max_of"] * 5


def max_of(*values):
    return values[-1]


def test_any_other_is_the_call_in_python(norm):
    expected = torch.rms_norm(X, (64,), W, 1e-6)
    for given in (
        norm(x=X, weight=W),
        norm(X, eps=1e-6, weight=W),
        norm.__call__(X, W),
        type(norm).__call__(norm, X, W),
        norm(torch.cat([X, X]), W)[:6],
        norm(X.as_subclass(type("Mine", (torch.Tensor,), {})), W).as_subclass(torch.Tensor),
    ):
        torch.testing.assert_close(given, expected)
    with pytest.raises(TypeError, match="unexpected keyword argument 'wieght'"):
        norm(X, wieght=W)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        norm()
    with pytest.raises(TypeError, match="positional arguments but"):
        norm(*range(40))
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        norm(X, W, **{f"name_{i}": i for i in range(40)})
    with pytest.raises(gm.GristmillError, match="`x` is str"):
        norm("x")


def test_tangents_and_modes_are_not_lost(norm):
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(X, torch.ones_like(X))
        assert forward_ad.unpack_dual(norm(dual, W)).tangent is not None
        assert norm(X, W).shape == X.shape
    traced = torch.fx.experimental.proxy_tensor.make_fx(lambda x: norm(x, W) + 1)(X)
    torch.testing.assert_close(traced(X + 1), norm(X + 1, W) + 1)  # a constant would not follow
    exported = torch.export.export(Holder(norm), (X,), strict=False)
    torch.testing.assert_close(exported.module()(X + 1), norm(X + 1, W))
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(X, W).shape == X.shape
    x = X.clone().requires_grad_()
    norm(x, W).sum().backward()
    assert x.grad is not None
    batched = torch.func.vmap(lambda x: norm(x, W))(X.expand(3, 6, 64))
    torch.testing.assert_close(batched[0], norm(X, W))


class Holder(torch.nn.Module):
    def __init__(self, op):
        super().__init__()
        self.op = op

    def forward(self, x):
        return self.op(x, W)


def test_an_error_of_what_runs_is_the_call_s(norm):
    def fail(*values):
        raise KeyError("mine")

    norm._table.add((X, W, 1e-6), fail)
    with pytest.raises(KeyError, match="mine"):
        norm(X, W)


def test_an_operator_that_was_given_another_table_meanwhile(norm):
    def change(*values):
        norm._table = calls().Table()
        gc.collect()
        return values[0]

    norm._table.add((X, W, 1e-6), change)
    assert norm(X, W) is X
    torch.testing.assert_close(norm(X, W), torch.rms_norm(X, (64,), W, 1e-6))


def test_a_plan_that_changes_while_threads_call(norm):
    expected, stop, wrong = torch.rms_norm(X, (64,), W, 1e-6), threading.Event(), []

    def work():
        while not stop.is_set():
            if not torch.allclose(norm(X, W), expected, atol=1e-5):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    hastened = type(norm)
    for _ in range(50):
        norm.__class__ = bound_op._changing_class()
        norm(X, W)
        assert type(norm) is hastened
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_operators_and_what_they_keep_are_let_go():
    op = gm.get_op("rms_norm", (X, W), tune="never")
    op(X, W)
    kept = type("Kept", (), {"__call__": lambda self, *values: values[0]})()
    kept.op, gone = op, (weakref.ref(kept), weakref.ref(op))
    op._table.add((X, W, 1e-6), kept)
    del op, kept
    gc.collect()
    assert [one() for one in gone] == [None, None]


def test_only_classes_of_bound_operators_are_hastened():
    for other in (dict, int, 3, None):
        with pytest.raises(TypeError, match="no class of bound operators"):
            calls().hasten(other)
