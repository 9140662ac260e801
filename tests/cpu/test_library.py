"""An op as a citizen of PyTorch: torch.library's own checks, gradients, torch.compile, autocast,
transforms, modes, subclasses. Each line of robustness.md that a CPU can show has a test here."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import ClassVar

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.checkpoint import checkpoint

import gristmill as gm
from gristmill.core.registry import load, op_names
from gristmill.ops._dispatch import registered

pytestmark = [
    pytest.mark.usefixtures("fresh_store"),
    # opcheck reads `.grad` of views that it made.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]
OPS = sorted(set(op_names()) - {"twice"})
SIZES = (5, 24, 16, 3)  # by axis, in order


def arguments(name, grad=False, dtype="float32", variant="normal"):
    """Small real arguments of an op."""
    op = load(name)
    axes = op.axis_names
    problem = op.sized(dict(zip(axes, SIZES, strict=False)), dtype)
    values = op.inputs(problem, torch.Generator().manual_seed(0), variant)
    return tuple(
        v.requires_grad_(grad) if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for v in values
    )


def tensors(values):
    return [v for v in values if isinstance(v, torch.Tensor)]


def wide(values):
    """The same values in float64."""
    return tuple(
        v.detach().double().requires_grad_(v.requires_grad) if isinstance(v, torch.Tensor) else v
        for v in values
    )


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", OPS)
def test_opcheck(name, grad):
    results = torch.library.opcheck(registered(load(name)), arguments(name, grad))
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", OPS)
def test_gradients_are_those_of_float64_autograd(name):
    values = arguments(name, grad=True)
    outputs = as_tuple(registered(load(name))(*values))
    truth = as_tuple(load(name).reference(*wide(values)))
    upstream = [torch.randn_like(out) for out in outputs]
    pairs = [(o, t, u) for o, t, u in zip(outputs, truth, upstream, strict=True) if t.requires_grad]
    got = torch.autograd.grad(
        [o for o, _, _ in pairs], tensors(values), [u for _, _, u in pairs], allow_unused=True
    )
    exact = wide(values)
    truth = [t for t in as_tuple(load(name).reference(*exact)) if t.requires_grad]
    want = torch.autograd.grad(
        truth, tensors(exact), [u.double() for _, _, u in pairs], allow_unused=True
    )
    for g, w in zip(got, want, strict=True):
        assert (g is None) == (w is None)
        if g is not None:
            torch.testing.assert_close(g.double(), w, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", OPS)
def test_second_derivatives(name):
    def second(function, values):
        outputs = [o for o in as_tuple(function(*values)) if o.requires_grad]
        first = torch.autograd.grad(
            [o.square().sum() for o in outputs], tensors(values), create_graph=True
        )
        return torch.autograd.grad(
            [g.square().sum() for g in first], tensors(values), allow_unused=True
        )

    values = arguments(name, grad=True)
    got, want = second(registered(load(name)), values), second(load(name).reference, wide(values))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g.double(), w, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", OPS)
def test_transforms(name):
    """grad, vmap, per-sample gradients and forward mode (in torch.func) give what the reference
    gives."""
    values, op = arguments(name), load(name)
    call, reference = registered(op), op.reference

    def loss(function):
        def total(x, *rest):
            return sum(out.square().sum() for out in as_tuple(function(x, *rest)))

        return total

    batched = tuple(torch.stack([v, v * 2]) if isinstance(v, torch.Tensor) else v for v in values)
    in_dims = tuple(0 if isinstance(v, torch.Tensor) else None for v in values)
    for transform in (
        lambda f: torch.func.grad(loss(f))(*values),
        lambda f: torch.func.vmap(f, in_dims=in_dims)(*batched),
        lambda f: torch.func.vmap(torch.func.grad(loss(f)), in_dims=in_dims)(*batched),
    ):
        torch.testing.assert_close(transform(call), transform(reference), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["matmul", "rms_norm"])
def test_forward_mode(name):
    values, op = arguments(name), load(name)
    public = getattr(gm, name)
    primal, tangent = (values[0],), (torch.randn_like(values[0]),)
    got = torch.func.jvp(lambda x: public(x, *values[1:]), primal, tangent)
    want = torch.func.jvp(lambda x: op.reference(x, *values[1:]), primal, tangent)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", OPS)
def test_compiled_fullgraph_with_dynamic_shapes(name):
    """One graph for every token count, with the op in it, and the reference's values."""
    values, op = arguments(name), load(name)
    call = registered(op)
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()  # ops are called by one function of Dynamo's, which it compiles 8 times
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=backend)
    axes = op.axis_names
    for rows in (5, 9, 40):
        problem = op.sized(dict(zip(axes, (rows, *SIZES[1:]), strict=False)), "float32")
        values = op.inputs(problem, torch.Generator().manual_seed(rows), "normal")
        torch.testing.assert_close(compiled(*values), op.reference(*values), rtol=1e-4, atol=1e-4)
    assert len(graphs) == 1
    assert any(node.target is call for node in graphs[0].graph.nodes)


def test_public_functions_and_bound_operators_compile_in_a_new_process():
    """The first use of all may be under torch.compile, and training too."""
    code = """
import torch, gristmill as gm
from gristmill.core.registry import load
x, w = torch.randn(6, 32, requires_grad=True), torch.randn(32, requires_grad=True)
a = torch.randn(32, 8)
def block(x, w, a):
    return gm.matmul(gm.rms_norm(x, w), a)
y = torch.compile(block, fullgraph=True)(x, w, a)
want = load("rms_norm").reference(x, w) @ a
torch.testing.assert_close(y, want)
g = torch.randn_like(y)
torch.testing.assert_close(torch.autograd.grad(y, (x, w), g), torch.autograd.grad(want, (x, w), g))
bound = gm.get_op("matmul", (x.detach(), a), tune="never")
compiled = torch.compile(lambda x: bound(x, a) + 1, fullgraph=True)
torch.testing.assert_close(compiled(x.detach()), x.detach() @ a + 1)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr


def test_a_backward_pass_from_inductors_cache_finds_the_ops_that_it_calls():
    """In a new process none is traced: nothing else would have registered them."""
    code = """
import torch
from gristmill.core.registry import load
from gristmill.ops._dispatch import registered
assert not hasattr(torch.ops.gristmill, "rms_norm_backward")
registered(load("rms_norm"))
assert torch.ops.gristmill.rms_norm_backward.default is not None
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr


def test_autocast_casts_products_down_and_weights_to_their_input():
    x, weight = torch.randn(6, 32), torch.randn(32)
    with torch.autocast("cpu", torch.bfloat16):
        product = gm.matmul(x, x.t())
        normed = gm.rms_norm(product, torch.ones(6))
        kept = gm.rms_norm(x, weight.bfloat16())
    assert (product.dtype, normed.dtype, kept.dtype) == (
        torch.bfloat16,
        torch.bfloat16,
        torch.float32,
    )
    torch.testing.assert_close(product, x.bfloat16() @ x.t().bfloat16())
    leaf = torch.randn(6, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        gm.matmul(leaf, x).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype is torch.float32


@pytest.mark.parametrize("name", OPS)
def test_fake_and_meta_tensors(name):
    values, op = arguments(name), load(name)
    call = registered(op)
    want = as_tuple(call(*values))
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for v in values]
        faked = as_tuple(call(*fakes))
    metas = [v.to("meta") if isinstance(v, torch.Tensor) else v for v in values]
    for made in (faked, as_tuple(call(*metas))):
        for got, real in zip(made, want, strict=True):
            assert (got.shape, got.stride(), got.dtype) == (real.shape, real.stride(), real.dtype)
    assert all(f.device.type == "cpu" for f in faked)


def test_the_contract_holds_under_torch_compile_and_through_torch_ops():
    x = torch.randn(6, 32)
    with pytest.raises(gm.InvalidInputError, match="contiguous"):
        torch.ops.gristmill.rms_norm(x[:, ::2])
    with pytest.raises(Exception, match="stride 2"):
        torch.compile(gm.rms_norm, fullgraph=True, backend="eager")(x[:, ::2])


def test_inference_mode_no_grad_and_threads():
    x = torch.randn(6, 32, requires_grad=True)
    with torch.inference_mode():
        assert gm.rms_norm(x).is_inference()
    with torch.no_grad():
        assert not gm.rms_norm(x).requires_grad
    results = []

    def work():
        results.append(torch.autograd.grad(gm.rms_norm(x).sum(), x)[0])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(torch.equal(r, results[0]) for r in results)


def test_a_frozen_weight_keeps_no_activation():
    a, b = torch.randn(8, 4, requires_grad=True), torch.randn(4, 6)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        gm.matmul(a, b)
    assert kept == [b.shape]


def test_a_saved_tensor_changed_in_place_is_refused_by_autograd():
    a, b = torch.randn(8, 4), torch.randn(4, 6, requires_grad=True)
    y = gm.matmul(a, b)
    a.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant):
    x, weight = torch.randn(6, 32, requires_grad=True), torch.randn(32, requires_grad=True)
    want = torch.autograd.grad(gm.rms_norm(x, weight).square().sum(), (x, weight))
    y = checkpoint(gm.rms_norm, x, weight, use_reentrant=reentrant)
    y.square().sum().backward()
    torch.testing.assert_close((x.grad, weight.grad), want)


@pytest.mark.parametrize("shape", [(0, 32), (3, 0, 32)])
def test_an_empty_batch_keeps_shape_dtype_and_history(shape):
    x, weight = torch.randn(shape, requires_grad=True), torch.randn(32, requires_grad=True)
    y = gm.rms_norm(x, weight)
    assert (y.shape, y.dtype, y.requires_grad) == (x.shape, x.dtype, True)
    grads = torch.autograd.grad(y.sum(), (x, weight))
    assert grads[0].shape == x.shape
    torch.testing.assert_close(grads[1], torch.zeros(32))


class Logged(torch.Tensor):
    """A subclass with a meaning of its own: it counts the functions that reach it."""

    seen: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(str(func))
        return super().__torch_function__(func, types, args, kwargs or {})


def test_tensor_subclasses_work_or_refuse_clearly():
    x = torch.randn(6, 32)
    logged = x.as_subclass(Logged)
    y = gm.rms_norm(logged)
    assert isinstance(y, Logged)
    assert any("gristmill" in name for name in Logged.seen)
    parameter = torch.nn.Parameter(x)
    with torch.no_grad():
        torch.testing.assert_close(gm.rms_norm(parameter), torch.rms_norm(x, (32,), eps=1e-6))
    both = gm.rms_norm(TwoTensor(x, x * 3))
    torch.testing.assert_close(both.a, gm.rms_norm(x))
    torch.testing.assert_close(both.b, gm.rms_norm(x * 3))


def test_exported_programs_contain_the_op():
    class Model(torch.nn.Module):
        def forward(self, x, w):
            return gm.rms_norm(x, w) * 2

    values = (torch.randn(6, 32), torch.randn(32))
    program = torch.export.export(Model(), values)
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert torch.ops.gristmill.rms_norm.default in targets
    torch.testing.assert_close(program.module()(*values), gm.rms_norm(*values) * 2)


def test_a_saved_program_is_loaded_in_a_new_process(tmp_path):
    class Model(torch.nn.Module):
        def forward(self, x):
            return gm.rms_norm(x) * 2

    x = torch.randn(6, 32)
    torch.export.save(torch.export.export(Model(), (x,)), tmp_path / "model.pt2")
    torch.save((x, Model()(x)), tmp_path / "values.pt")
    code = """
import sys, torch, gristmill as gm
assert "rms_norm" in gm.register_ops()
x, want = torch.load(sys.argv[2])
torch.testing.assert_close(torch.export.load(sys.argv[1]).module()(x), want)
"""
    command = [sys.executable, "-c", code, tmp_path / "model.pt2", tmp_path / "values.pt"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("grad", [False, True])
def test_graphs_below_autograd_call_the_op_without_its_autograd_kernel(grad):
    seen = []

    def collect(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=collect)
    compiled = torch.compile(gm.rms_norm, backend=backend, fullgraph=True)
    x, weight = torch.randn(3, 8, requires_grad=grad), torch.randn(8)
    out = compiled(x, weight)
    torch.testing.assert_close(out, gm.rms_norm(x, weight))
    if grad:
        out.sum().backward()
    ours = {name for name in seen if name.startswith("gristmill")}
    assert "gristmill._rms_norm.default" in ours
    assert grad == ("gristmill._rms_norm_backward.default" in ours)
    assert all(name.startswith("gristmill._") for name in ours)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own copy of a program
def test_graphs_that_may_be_differentiated_yet_call_the_op_itself():
    class Model(torch.nn.Module):
        def forward(self, x, w):
            return gm.rms_norm(x, w) * 2

    values = (torch.randn(6, 32), torch.randn(32))
    exported = torch.export.export(Model(), values).run_decompositions()
    for graph in (make_fx(Model())(*values).graph, exported.graph):
        targets = [str(node.target) for node in graph.nodes if node.op == "call_function"]
        assert "gristmill.rms_norm.default" in targets
        assert not any(target.startswith("gristmill._") for target in targets)
