"""Graphs that Inductor compiles: they call an op as a plain function, whose call outlives changes
of plan, addresses and process, and keep the registered op where there is no Python to call."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch._inductor.utils import run_and_get_code

import gristmill as gm
from gristmill.core.registry import load
from gristmill.ops._dispatch import dispatcher, in_graph

pytestmark = pytest.mark.usefixtures("fresh_store")
RMS_NORM = load("rms_norm").reference
REGISTERED, PLACE = "= torch.ops.gristmill", "= gristmill_in_graph("


@pytest.fixture(autouse=True)
def _afresh():
    """Each test compiles for itself."""
    torch._dynamo.reset()
    with (
        torch._inductor.config.patch(fx_graph_cache=False),
        torch._functorch.config.patch(enable_autograd_cache=False),
    ):
        yield
    torch._dynamo.reset()


@pytest.fixture
def found(monkeypatch):
    """The calls that graphs found for `rms_norm`, each adding its number to the outputs."""
    dispatch, calls = dispatcher("rms_norm"), []

    def call_of(plan, values):
        number = len(calls)
        calls.append(values)
        return lambda *values: RMS_NORM(*values) + number

    monkeypatch.setattr(dispatch, "call_of", call_of)
    return calls


def compiled(function, **options):
    return torch.compile(function, fullgraph=True, **options)


def block(x, weight, b):
    return x + gm.matmul(gm.rms_norm(x, weight), b)


def test_no_dispatcher_in_the_code_of_a_training_step(x, weight):
    leaves = [t.requires_grad_() for t in (x, weight, torch.randn(32, 32))]
    upstream = torch.randn(6, 32)

    def step():
        out = compiled(block)(*leaves)
        return (out.detach(), *torch.autograd.grad(out, leaves, upstream))

    got, codes = run_and_get_code(step)
    out = x + RMS_NORM(x, weight) @ leaves[2]
    torch.testing.assert_close(got, (out, *torch.autograd.grad(out, leaves, upstream)))
    assert len(codes) == 2
    for code in codes:
        assert REGISTERED not in code
        assert "'torch.ops.gristmill" not in code  # no check of an output's layout
    assert [code.count(PLACE) for code in codes] == [2, 3]


def test_sizes_that_vary_are_looked_up_at_each_call(weight):
    call = compiled(lambda x: gm.rms_norm(x.sin(), weight) * 2, dynamic=True)
    (first, codes), seen = run_and_get_code(call, torch.ones(5, 32)), dispatcher("rms_norm").bound
    assert "gristmill_in_graph('rms_norm', False)" in codes[0]
    assert REGISTERED not in codes[0]
    torch.testing.assert_close(first, RMS_NORM(torch.ones(5, 32).sin(), weight) * 2)
    for rows in (9, 40, 9):
        x = torch.randn(rows, 32)
        torch.testing.assert_close(call(x), RMS_NORM(x.sin(), weight) * 2)
    assert len(seen) == 3


def test_a_graph_follows_plans_that_change(x, weight, found):
    call = compiled(gm.rms_norm)
    want = RMS_NORM(x, weight)
    for number in (0, 0, 1, 1):
        if number != len(found) - 1:
            dispatcher("rms_norm").forget()
        torch.testing.assert_close(call(x, weight), want + number)
    assert len(found) == 2


def test_a_plan_that_changes_during_a_first_call_is_not_missed(x, weight, monkeypatch):
    dispatch = dispatcher("rms_norm")
    call, calls = in_graph("rms_norm", True), []

    def call_of(plan, values):
        calls.append(plan)
        dispatch.forget()
        return RMS_NORM

    monkeypatch.setattr(dispatch, "call_of", call_of)
    for _ in range(3):
        torch.testing.assert_close(call(x, weight, 1e-6), RMS_NORM(x, weight))
    assert len(calls) == 3


def test_places_of_one_problem_share_what_is_bound_and_off_addresses_do_not(weight, found):
    one, other = in_graph("rms_norm", True), in_graph("rms_norm", True)
    memory = torch.randn(6 * 32 + 1)
    aligned, off = memory[:-1].view(6, 32), memory[1:].view(6, 32)
    for call in (one, other, one):
        torch.testing.assert_close(call(aligned, weight, 1e-6), RMS_NORM(aligned, weight))
    for _ in range(2):
        torch.testing.assert_close(one(off, weight, 1e-6), RMS_NORM(off, weight) + 1)
    assert [values[0].data_ptr() for values in found] == [aligned.data_ptr(), off.data_ptr()]


def test_an_implementation_that_breaks_the_declared_layout_is_refused(x, weight, monkeypatch):
    dispatch = dispatcher("rms_norm")
    monkeypatch.setattr(dispatch, "call_of", lambda *_: lambda x, *_: x.t().contiguous().t())
    call = compiled(gm.rms_norm)
    for _ in range(2):
        with pytest.raises(gm.GristmillError, match=r"rms_norm` returned `out` as .*declares"):
            call(x, weight)


def test_bad_arguments_are_refused_by_name(x, weight):
    with pytest.raises(gm.InvalidInputError, match=r"`weight` has shape \(31,\)"):
        in_graph("rms_norm", True)(x, weight[:31].clone(), 1e-6)


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events:UserWarning")
def test_a_profile_shows_the_op(x, weight):
    for dynamic in (False, True):
        torch._dynamo.reset()
        call = compiled(gm.rms_norm, dynamic=dynamic)
        call(x, weight)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            got = call(x, weight)
        torch.testing.assert_close(got, RMS_NORM(x, weight))
        assert "gristmill::_rms_norm" in {event.name for event in profile.events()}


def test_branches_of_a_graph(x, weight):
    def branches(x, weight):
        return torch.cond(
            x.sum() > 0,
            lambda x, w: gm.rms_norm(x, w) + 1,
            lambda x, w: gm.rms_norm(x, w, 0.5) - 1,
            (x, weight),
        )

    call, x = compiled(branches), x.abs()
    got, codes = run_and_get_code(call, x, weight)
    torch.testing.assert_close(got, RMS_NORM(x, weight) + 1)
    torch.testing.assert_close(call(-x, weight), RMS_NORM(-x, weight, 0.5) - 1)
    assert codes[0].count(PLACE) == 2


def test_autocast_and_transforms(x, weight):
    call = compiled(block)
    b = torch.randn(32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert call(x, weight, b).dtype is torch.float32
        torch.testing.assert_close(call(x, weight, b), block(x, weight, b))
    torch.testing.assert_close(call(x, weight, b), block(x, weight, b))
    gradient = torch.func.grad(lambda x: gm.rms_norm(x, weight).square().sum())
    torch.testing.assert_close(compiled(gradient)(x), gradient(x))


def test_no_input_is_written(x, weight):
    """Inductor writes into what it takes for a temporary."""
    kept = x.clone(), weight.clone()

    def chain(x, weight):
        y = gm.rms_norm(x, weight)
        z = gm.rms_norm(y + 1, weight)
        return y + 2, z * y, z + 3

    y = RMS_NORM(x, weight)
    z = RMS_NORM(y + 1, weight)
    call = compiled(chain)
    for _ in range(2):
        torch.testing.assert_close(call(x, weight), (y + 2, z * y, z + 3))
    torch.testing.assert_close((x, weight), kept, rtol=0, atol=0)


def test_inference_tensors_and_gradients_that_nobody_asks_for(x, weight):
    call = compiled(gm.rms_norm)
    want = RMS_NORM(x, weight)
    with torch.inference_mode():
        torch.testing.assert_close(call(x, weight), want)
    with torch.no_grad():
        assert not call(x.requires_grad_(), weight).requires_grad


def test_code_in_cpp_keeps_the_registered_op(x, weight):
    with torch._inductor.config.patch(cpp_wrapper=True):
        got, codes = run_and_get_code(compiled(gm.rms_norm), x, weight)
    torch.testing.assert_close(got, RMS_NORM(x, weight))
    assert "gristmill::_rms_norm" in codes[0]
    assert PLACE not in codes[0]


def test_a_new_process_takes_the_code_from_inductors_cache(tmp_path):
    code = """
import sys, torch
from torch._dynamo.utils import counters
import gristmill as gm
from gristmill.core.registry import load
x, w = torch.randn(6, 32, requires_grad=True), torch.randn(32, requires_grad=True)
y = torch.compile(gm.rms_norm, fullgraph=True)(x, w)
want = load("rms_norm").reference(x, w)
torch.testing.assert_close(y, want)
g = torch.randn_like(y)
torch.testing.assert_close(torch.autograd.grad(y, (x, w), g), torch.autograd.grad(want, (x, w), g))
hits = counters["aot_autograd"]["autograd_cache_hit"]
assert hits == int(sys.argv[1]), counters
from gristmill.ops._dispatch import dispatcher
for name in ("rms_norm", "rms_norm_backward"):
    sites = list(dispatcher(name)._sites)
    assert sites and all(site.call is not None for site in sites)
"""
    for hits in (0, 1):
        command = [sys.executable, "-W", "ignore", "-c", code, str(hits)]
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=280, env=environment
        )
        assert done.returncode == 0, done.stderr
