"""Bound calls through the C module on a GPU: the same bits as Python's own way, on any stream, in a
capture, beside hooks and threads."""

from __future__ import annotations

import threading

import pytest
import torch
from triton import knobs

import gristmill as gm
from gristmill.compile.bound import bind
from gristmill.compile.programs import ready
from gristmill.core.op import as_tuple
from gristmill.core.registry import implementations, op_names
from gristmill.core.target import device_target
from gristmill.native.calls import calls, why_not


def test_it_is_there_and_has_a_driver(cuda):
    assert calls() is not None, why_not()
    assert ready() is not None


CASES = [
    pytest.param(i, w.problem, id=f"{i.id}-{w.name}")
    for op in op_names()
    for i in implementations(op)
    if i.kind == "triton"
    for w in i.op.workloads
    if sum(t.numel for t in w.problem.tensors.values()) < 1 << 26
]


@pytest.mark.parametrize(("implementation", "problem"), CASES)
def test_a_program_gives_the_bits_that_python_s_way_gives(implementation, problem, cuda):
    target = device_target(cuda)
    if implementation.why_not(problem, target) is not None:
        return  # conformance holds which may refuse what
    generator = torch.Generator(cuda).manual_seed(0)
    values = implementation.op.inputs(problem, generator, "normal")
    call = bind(implementation, implementation.config(None, problem, target), values)
    expected = as_tuple(call(*values))
    assert call.program is not None
    table = calls().Table()
    assert table.add(values, call.program)
    for _ in range(2):
        for tensor in expected:  # what is allocated next has held something else
            torch.full_like(tensor, float("nan"))
        for got, wanted in zip(as_tuple(table(*values)), expected, strict=True):
            assert torch.equal(got, wanted)


@pytest.fixture
def bound(cuda, fresh_store):
    x = torch.randn(64, 4096, device=cuda, dtype=torch.bfloat16)
    w = torch.randn(4096, device=cuda, dtype=torch.bfloat16)
    op = gm.get_op("rms_norm", (x, w), tune="never").preload()
    assert op._table(x, w, 1e-6) is not calls().MISS
    return op, x, w


def test_an_output_that_is_given_is_written_by_the_kernel(bound):
    op, x, w = bound
    expected, out = op(x, w), torch.full_like(x, float("nan"))
    assert op(x, w, out=out) is out
    assert torch.equal(out, expected)
    assert op._outs.knows((x, w, 1e-6, out))
    again = torch.full_like(x, float("nan"))
    assert op._outs(x, w, 1e-6, again) is again
    assert torch.equal(again, expected)
    assert op._outs(x, w, 1e-6, x) is calls().MISS


def test_the_current_stream_is_taken(bound, cuda):
    op, x, w = bound
    expected = op(x, w)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        kept = [x * 2, op._table(x, w, 1e-6)]  # the allocator has what the calls below ask for
        stream.synchronize()
        del kept
        torch.cuda._sleep(200_000_000)
        x2 = x * 2  # after the sleep, on this stream alone
        out = op._table(x2, w, 1e-6)
        assert not stream.query()  # nobody waited
    stream.synchronize()
    torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2)


def test_it_is_captured(bound):
    op, x, w = bound
    expected = op(x, w)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = op._table(x, w, 1e-6)
    assert out is not calls().MISS
    out.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, expected)


def test_hooks_see_every_launch(bound):
    op, x, w = bound
    seen = []
    knobs.runtime.launch_enter_hook.add(seen.append)
    try:
        assert op._table(x, w, 1e-6) is calls().MISS
        op(x, w)
    finally:
        knobs.runtime.launch_enter_hook.remove(seen.append)
    assert len(seen) == 1
    assert op._table(x, w, 1e-6) is not calls().MISS


def test_threads_launch_side_by_side(bound, cuda):
    op, x, w = bound
    expected = op(x, w)
    faults = []

    def work():
        stream = torch.cuda.Stream()
        with torch.no_grad(), torch.cuda.stream(stream):
            stream.wait_stream(torch.cuda.default_stream())
            outs = [op(x, w) for _ in range(200)]
            stream.synchronize()
        faults.extend(1 for out in outs if not torch.equal(out, expected))

    torch.cuda.synchronize()
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_a_launch_that_fails_says_what_the_driver_says(cuda):
    x = torch.randn(4, device=cuda)
    launch = (0, (1, 1, 1), 32, 0, 1, False, False, bytes(8), (0,), (), ())
    program = calls().Program(1, 1, ((torch.empty_like, (None,), None, 0),), (launch,), None)
    table = calls().Table()
    table.add((x,), program)
    with pytest.raises(RuntimeError, match="cuLaunchKernelEx failed: CUDA_ERROR_INVALID"):
        table(x)
    torch.testing.assert_close(x + 1, x.cpu().add(1).to(cuda))  # the context lives on
