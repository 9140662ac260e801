"""Calls on a GPU: what changes between calls (alignment, shape, stream, gradient, capture) never
gives a wrong result."""

from __future__ import annotations

import pytest
import torch

import gristmill as gm
from gristmill.compile.bound import bind
from gristmill.compile.executor import EXECUTOR
from gristmill.core.registry import implementation, implementations, load
from gristmill.core.target import device_target
from gristmill.specs.matmul import problem_of
from gristmill.verify import compare, truth


def _right(name, values, output):
    op = load(name)
    references, magnitudes = truth(op, values)
    return compare((output,), references, magnitudes, op.bounds(op.problem(values)))


def _rms(cuda, rows, width, dtype=torch.bfloat16):
    return (
        torch.randn(rows, width, device=cuda, dtype=dtype),
        torch.randn(width, device=cuda, dtype=dtype),
        1e-6,
    )


@pytest.fixture
def rms_norm(cuda, fresh_store):
    return gm.get_op("rms_norm", _rms(cuda, 64, 4096)[:2], tune="never")


def test_the_untuned_plan_is_a_kernel_of_ours(rms_norm):
    assert rms_norm.plan.origin == "prior"
    assert rms_norm.implementation in ("row", "multi_row")


def test_alignment_may_change_between_calls(rms_norm, cuda):
    for offset in (0, 1, 0, 3, 8):
        base = torch.randn(64 * 4096 + 8, device=cuda, dtype=torch.bfloat16)
        x = base[offset : offset + 64 * 4096].view(64, 4096)
        _, weight, eps = _rms(cuda, 64, 4096)
        for call in (rms_norm, gm.rms_norm):
            output = call(x, weight)
            assert _right("rms_norm", (x, weight, eps), output).ok, offset


def test_shape_stride_weight_eps_may_change_between_calls(rms_norm, cuda):
    for rows, width in (
        (64, 4096),
        (1, 4096),
        (63, 4096),
        (64, 4095),
        (0, 4096),
        (7, 1),
        (64, 8192),
    ):
        x, weight, _ = _rms(cuda, rows, width)
        for values in ((x, weight, 1e-6), (x, None, 1e-5), (x.expand(2, rows, width), weight, 0.1)):
            output = rms_norm(*values)
            assert output.shape == values[0].shape
            assert _right("rms_norm", values, output).ok, values[0].shape


def test_matmul_takes_every_layout_after_being_bound_to_one(cuda, fresh_store):
    a, w = torch.randn(128, 256, device=cuda).half(), torch.randn(512, 256, device=cuda).half()
    matmul = gm.get_op("matmul", (a, w.t()), tune="never")
    b = torch.randn(256, 512, device=cuda).half()
    misaligned = torch.randn(128 * 256 + 1, device=cuda).half()[1:].view(128, 256)
    for left, right in (
        (a, w.t()),
        (a, b),
        (a.t().contiguous().t(), b),
        (misaligned, b),
        (a[1:], b[:, 3:]),
        (a[:0], b),
    ):
        assert _right("matmul", (left, right, False), matmul(left, right)).ok


@pytest.mark.parametrize(
    ("name", "sizes"), [("split_k", (16, 4096, 4096)), ("padded", (255, 1000, 1031))]
)
def test_calls_in_a_row_keep_out_of_each_others_workspace(cuda, name, sizes):
    """Each is of two launches, the second one set up under the first; the allocator gives the next
    call the workspace that this one has not read yet."""
    kernel = implementation("matmul", name)
    problem = problem_of(*sizes)
    values = [
        kernel.op.inputs(problem, torch.Generator(cuda).manual_seed(seed), "normal")
        for seed in range(4)
    ]
    config = kernel.config(None, problem, device_target(cuda))
    assert config["PDL"]
    call = bind(kernel, config, values[0])
    outputs = [call(*values[turn % 4]) for turn in range(40)]
    for turn, output in enumerate(outputs[-8:], start=32):
        assert _right("matmul", values[turn % 4], output).ok, turn
    assert all(torch.equal(outputs[turn], outputs[turn % 4]) for turn in range(40))


def test_another_stream(rms_norm, cuda):
    x, weight, eps = _rms(cuda, 64, 4096)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        y = x * 2
        output = rms_norm(y, weight)
    stream.synchronize()
    assert _right("rms_norm", (x * 2, weight, eps), output).ok


@pytest.mark.parametrize("name", ["row", "multi_row", "aten"])
def test_capture_of_a_bound_call_replays_on_new_values(cuda, fresh_store, name):
    values = _rms(cuda, 64, 1024)
    impl = implementation("rms_norm", name)
    call = bind(impl, impl.config(None, impl.op.problem(values), device_target(cuda)), values)
    call(*values)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call(*values)
    values[0].copy_(torch.randn_like(values[0]))
    graph.replay()
    torch.cuda.synchronize()
    assert _right("rms_norm", values, output).ok


def test_tuning_is_refused_during_capture(cuda, fresh_store):
    x, weight, _ = _rms(cuda, 64, 4096)
    gm.rms_norm(x, weight)
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        torch.zeros(1, device=cuda)  # an empty graph warns
        with pytest.raises(gm.TuningError, match="during CUDA-graph capture"):
            gm.tune("rms_norm", (x, weight))
        bound = gm.get_op("rms_norm", (x, weight))
        assert bound.plan.origin == "prior"


def test_a_preloaded_operator_may_be_called_first_under_capture(cuda, fresh_store):
    values = x, weight, _ = _rms(cuda, 64, 2048)
    bound = gm.get_op("rms_norm", (x, weight), tune="never").preload()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = bound(x, weight)
    graph.replay()
    torch.cuda.synchronize()
    assert _right("rms_norm", values, output).ok


def test_a_bound_launch_keeps_no_tensor_alive(cuda, fresh_store):
    x, weight, _ = _rms(cuda, 1024, 4096)
    bound = gm.get_op("rms_norm", (x, weight), tune="never")
    bound(x, weight), gm.rms_norm(x, weight)
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    del x
    assert held - torch.cuda.memory_allocated() >= 1024 * 4096 * 2


def test_gradients_flow_and_agree_with_float64(cuda, fresh_store):
    x, weight, _ = _rms(cuda, 32, 512, torch.float32)
    x.requires_grad_(), weight.requires_grad_()
    upstream = torch.randn_like(x)
    got = torch.autograd.grad(gm.rms_norm(x, weight), (x, weight), upstream)
    xd, wd = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    want = torch.autograd.grad(load("rms_norm").reference(xd, wd), (xd, wd), upstream.double())
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g.double(), w, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert not gm.rms_norm(x, weight).requires_grad


def test_a_tuned_plan_is_remembered_and_used_by_direct_calls(cuda, fresh_store):
    values = _rms(cuda, 512, 1024)
    bound = gm.get_op("rms_norm", values[:2], budget_s=20.0, trials=6)
    assert bound.plan.origin == "tuned"
    assert _right("rms_norm", values, bound(*values[:2])).ok
    again = gm.get_op("rms_norm", values[:2])
    assert again.plan.candidate == bound.plan.candidate
    near = gm.get_op("rms_norm", (values[0][:100], values[1]), tune="never")
    assert near.plan.origin == "neighbour"
    text = str(gm.explain("rms_norm", values[:2]))
    assert bound.implementation in text
    assert "error/bound" in text


@pytest.mark.parametrize("name", ["rms_norm", "matmul"])
def test_the_compile_server_and_the_jit_make_one_binary(cuda, name):
    op = load(name)
    problem = op.workload("llama3-8b-m16" if name == "rms_norm" else "llama3-8b-o-m16").problem
    target = device_target(cuda)
    for impl in implementations(name):
        if impl.kind == "triton" and impl.why_not(problem, target) is None:
            config = impl.config(None, problem, target)
            hashes = []
            for device in ("meta", cuda):
                values = tuple(
                    v.empty(device) if hasattr(v, "empty") else v for _, v in problem.args
                )
                outputs, workspace = impl.allocate(values, config)
                launches = impl.launches(values, outputs, workspace, config)
                if device == "meta":
                    hashes.append([EXECUTOR.compile(one, target).kernel.hash for one in launches])
                else:
                    hashes.append([EXECUTOR.loaded(one).hash for one in launches])
            assert hashes[0] == hashes[1], impl.id
