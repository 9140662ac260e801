"""An op as a citizen of PyTorch, on a GPU: torch.library's checks, gradients, Inductor, CUDA
graphs, autocast, streams."""

from __future__ import annotations

import pytest
import torch
from triton import knobs

import gristmill as gm
from gristmill.core.registry import load, op_names
from gristmill.ops._dispatch import registered

pytestmark = [
    pytest.mark.usefixtures("fresh_store"),
    # opcheck reads `.grad` of views that it made.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]
OPS = sorted(set(op_names()) - {"twice"})
SIZES = (24, 136, 80, 3)  # by axis, in order


def arguments(name, device, dtype="bfloat16", grad=False, sizes=SIZES):
    op = load(name)
    axes = op.axis_names
    problem = op.sized(dict(zip(axes, sizes, strict=False)), dtype)
    values = op.inputs(problem, torch.Generator(device).manual_seed(0), "normal")
    return tuple(v.requires_grad_(grad) if isinstance(v, torch.Tensor) else v for v in values)


def tensors(values):
    return [v for v in values if isinstance(v, torch.Tensor)]


def gradients(function, values):
    outputs = function(*values)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    outputs = [o for o in outputs if o.requires_grad]
    generator = torch.Generator(outputs[0].device).manual_seed(1)
    upstream = [
        torch.randn(o.shape, generator=generator, device=o.device).to(o.dtype) for o in outputs
    ]
    return torch.autograd.grad(outputs, tensors(values), upstream, allow_unused=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", OPS)
def test_opcheck(name, grad, dtype, cuda):
    results = torch.library.opcheck(registered(load(name)), arguments(name, cuda, dtype, grad))
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", OPS)
def test_gradients_are_those_of_float64_autograd(name, cuda):
    values = arguments(name, cuda, "float32", grad=True)
    exact = tuple(
        v.detach().double().requires_grad_() if isinstance(v, torch.Tensor) else v for v in values
    )
    got = gradients(registered(load(name)), values)
    want = gradients(load(name).reference, exact)
    for g, w in zip(got, want, strict=True):
        assert (g is None) == (w is None)
        if g is not None:
            torch.testing.assert_close(g.double(), w, rtol=1e-4, atol=1e-4)


# Inductor starts its graphs' memory pool with an empty graph and drops torch's warning of it, which
# as an error it cannot.
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty:UserWarning")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("name", OPS)
def test_inductor_calls_the_op_with_and_without_cuda_graphs(name, mode, cuda):
    call = registered(load(name))
    torch._dynamo.reset()  # ops are called by one function of Dynamo's, which it compiles 8 times
    compiled = torch.compile(call, fullgraph=True, mode=mode)
    for grad in (False, True):
        values = arguments(name, cuda, grad=grad)
        want = call(*values)
        for _ in range(4):  # warm up, record, replay, replay
            torch.compiler.cudagraph_mark_step_begin()
            torch.testing.assert_close(compiled(*values), want)
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        # As vectors: of a sum, Inductor keeps in float32 what eager operations round term by term,
        # and where terms cancel a value of it has no digit in common.
        for g, w in zip(gradients(compiled, values), gradients(call, values), strict=True):
            assert (g is None) == (w is None)
            if g is not None:
                assert (g - w).norm() <= 1e-2 * w.norm()


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty:UserWarning")
def test_a_graph_cut_into_cuda_graphs_calls_the_op_in_each(cuda):
    """Inductor cuts where an op says that no CUDA graph can hold it."""

    def parts(x, weight):
        x = gm.rms_norm(x.sin(), weight)
        return gm.rms_norm(torch.ops.gristmill_tests.cut(x).cos(), weight, 0.5)

    x, weight, _ = arguments("rms_norm", cuda, "float32")
    with torch.library._scoped_library("gristmill_tests", "FRAGMENT") as library:
        library.define("cut(Tensor x) -> Tensor", tags=(torch.Tag.cudagraph_unsafe,))
        library.impl("cut", lambda x: x + 1, "CUDA")
        library.impl("cut", torch.empty_like, "Meta")
        compiled = torch.compile(parts, fullgraph=True, mode="reduce-overhead")
        for _ in range(4):
            torch.compiler.cudagraph_mark_step_begin()
            torch.testing.assert_close(compiled(x, weight), parts(x, weight))


def test_compiled_calls_follow_addresses_and_plans(cuda):
    """The graph's call is bound for aligned tensors; others, and new plans, find their own."""
    compiled = torch.compile(gm.rms_norm, fullgraph=True, dynamic=False)
    memory = torch.randn(24 * 136 + 1, device=cuda, dtype=torch.bfloat16)
    weight = torch.randn(136, device=cuda, dtype=torch.bfloat16)
    aligned, off = memory[:-1].view(24, 136), memory[1:].view(24, 136)
    for x in (aligned, aligned, off, aligned.clone(), off):
        torch.testing.assert_close(compiled(x, weight), gm.rms_norm(x, weight))
    gm.get_op("rms_norm", (aligned, weight), tune="now", trials=2, budget_s=20.0)
    for x in (aligned, off):
        torch.testing.assert_close(compiled(x, weight), gm.rms_norm(x, weight))


def test_a_call_allocates_on_the_tensors_device_whichever_is_current(cuda):
    """The bound call's allocator takes the current device's memory."""
    x = torch.randn(24, 136, device=cuda, dtype=torch.bfloat16)
    for _ in range(2):
        assert gm.rms_norm(x).device == x.device
        with torch.cuda.device(torch.cuda.device_count() - 1):
            assert gm.rms_norm(x).device == x.device
    with torch.inference_mode():
        assert gm.rms_norm(x.clone()).is_inference()
    assert not gm.rms_norm(x).is_inference()


def test_a_new_token_count_compiles_no_kernel(cuda):
    weight = torch.randn(4096, device=cuda, dtype=torch.bfloat16)
    w = torch.randn(512, 4096, device=cuda, dtype=torch.bfloat16)

    def calls(tokens):
        x = torch.randn(tokens, 4096, device=cuda, dtype=torch.bfloat16)
        return gm.matmul(gm.rms_norm(x, weight), w.t())

    calls(512)
    compiled = []
    hook = knobs.runtime.jit_post_compile_hook
    knobs.runtime.jit_post_compile_hook = lambda *a, **k: compiled.append(k)
    try:
        for tokens in (511, 300, 64, 17, 2):
            calls(tokens)
    finally:
        knobs.runtime.jit_post_compile_hook = hook
    assert not compiled


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype, cuda):
    module = gm.nn.RMSNorm(64, device=cuda)
    x, w = torch.randn(8, 64, device=cuda), torch.randn(32, 64, device=cuda, requires_grad=True)
    with torch.autocast("cuda", dtype):
        product = gm.matmul(module(x), w.t())
        again = gm.nn.RMSNorm(32, device=cuda)(product)
    assert (product.dtype, again.dtype) == (dtype, dtype)
    again.float().sum().backward()
    assert w.grad is not None
    assert w.grad.dtype is torch.float32


# torch's warm-up keeps its last graph, made on another stream than that of the capture.
@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream:UserWarning")
def test_a_training_step_is_captured(cuda):
    module = gm.nn.RMSNorm(256, device=cuda, dtype=torch.bfloat16)
    x = torch.randn(16, 256, device=cuda, dtype=torch.bfloat16, requires_grad=True)
    graphed = torch.cuda.make_graphed_callables(module, (x,))
    fresh = torch.randn_like(x).requires_grad_()
    upstream = torch.randn_like(x)
    got = torch.autograd.grad(graphed(fresh), fresh, upstream)[0].clone()
    want = torch.autograd.grad(
        torch.rms_norm(fresh.double(), (256,), eps=torch.finfo(x.dtype).eps),
        fresh,
        upstream.double(),
    )[0]
    torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)


def test_the_backward_pass_runs_on_the_streams_of_the_forward_pass(cuda):
    values = arguments("rms_norm", cuda, grad=True, sizes=(4096, 4096))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        got = gradients(gm.rms_norm, values)
    torch.cuda.synchronize()
    torch.testing.assert_close(got, gradients(gm.rms_norm, values))
