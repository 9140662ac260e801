"""The activations' contracts: gradients against float64 autograd, and whether their bounds tell the
usual mistakes from rounding."""

import pytest
import torch

from gristmill.core import registry
from gristmill.core.problem import Problem
from gristmill.verify import compare, truth

functional = torch.nn.functional
GATES = {
    ("gelu_and_mul", "none"): functional.gelu,
    ("gelu_and_mul", "tanh"): lambda z: functional.gelu(z, approximate="tanh"),
    ("relu2_and_mul",): lambda z: torch.relu(z).square(),
    ("silu_and_mul",): functional.silu,
}
DTYPES = ("float16", "bfloat16", "float32")


def randn(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("gate", GATES, ids="-".join)
@pytest.mark.parametrize("shape", [(8,), (5, 12), (2, 3, 10), (0, 6)])
def test_gates_and_their_gradients_are_torchs(gate, shape):
    (name, *given), activation = gate, GATES[gate]
    forward, backward = registry.load(name), registry.load(f"{name}_backward")
    x, up = (4 * randn(*shape)).requires_grad_(), randn(*shape).flip(-1).requires_grad_()
    upstream = randn(*shape).roll(1, -1)
    want = activation(x) * up
    close = {"rtol": 1e-11, "atol": 1e-12}
    torch.testing.assert_close(forward.reference(x, up, *given), want, **close)
    gradients = torch.autograd.grad(want, (x, up), upstream)
    torch.testing.assert_close(backward.reference(upstream, x, up, *given), gradients, **close)
    packed = torch.cat((x, up), -1)
    torch.testing.assert_close(forward.reference(packed, None, *given), want, **close)
    both, none = backward.reference(upstream, packed, None, *given)
    torch.testing.assert_close(both, torch.cat(gradients, -1), **close)
    assert none.shape == (0,)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_and_its_gradient_are_torchs(approximate):
    x, upstream = (4 * randn(5, 40)).requires_grad_(), randn(5, 40).roll(1)
    want = functional.gelu(x, approximate=approximate)
    (gradient,) = torch.autograd.grad(want, x, upstream)
    close = {"rtol": 1e-11, "atol": 1e-12}
    torch.testing.assert_close(registry.load("gelu").reference(x, approximate), want, **close)
    got = registry.load("gelu_backward").reference(upstream, x, approximate)
    torch.testing.assert_close(got, gradient, **close)


def passes(op, values, output):
    references, magnitudes = truth(op, values)
    bounds, dtype = op.bounds(op.problem(values)), values[0].dtype
    outputs = [o.to(dtype) for o in (output(references[0]), *references[1:])]
    return compare(outputs, references, magnitudes, bounds).ok


def problem(op, approximate, dtype):
    base = op.sized({"rows": 16, "N": 1000}, dtype)
    return base if approximate == "none" else op.forms(base)["tanh"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("name", ["gelu", "gelu_and_mul"])
def test_gelu_bounds_see_the_usual_mistakes(name, approximate, dtype):
    op = registry.load(name)
    values = op.inputs(problem(op, approximate, dtype), torch.Generator().manual_seed(0), "normal")
    x = values[0].double()
    gate, up = (x, 1.0) if name == "gelu" else x.chunk(2, -1)
    narrow = torch.float16 if dtype == "float32" else values[0].dtype
    other = {"none": "tanh", "tanh": "none"}[approximate]
    assert passes(op, values, lambda ref: ref)
    wrong = {
        "the other form": functional.gelu(gate, approximate=other) * up,
        "silu": functional.silu(gate) * up,
        "the quick form": gate * torch.sigmoid(1.702 * gate) * up,
        "1.6 for sqrt(8 / pi)": gate * torch.sigmoid(1.6 * (gate + 0.044715 * gate**3)) * up,
    }
    if name == "gelu_and_mul":
        rounded = functional.gelu(gate, approximate=approximate).to(narrow).double()
        wrong["two roundings"] = rounded * up
    assert [w for w, made in wrong.items() if passes(op, values, lambda _, m=made: m)] == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_backward_bounds_see_the_usual_mistakes(approximate, dtype):
    op = registry.load("gelu_backward")
    values = op.inputs(problem(op, approximate, dtype), torch.Generator().manual_seed(0), "normal")
    grad, x = values[0].double(), values[1].double()
    cdf = torch.special.ndtr(x)
    other = {"none": "tanh", "tanh": "none"}[approximate]
    wrong = {
        "Phi alone": grad * cdf,
        "the other form": torch.ops.aten.gelu_backward(grad, x, approximate=other),
        "no upstream gradient": torch.ops.aten.gelu_backward(
            torch.ones_like(x), x, approximate=approximate
        ),
    }
    assert passes(op, values, lambda ref: ref)
    assert [w for w, made in wrong.items() if passes(op, values, lambda _, m=made: m)] == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_relu2_bounds_see_the_usual_mistakes(dtype):
    op, back = registry.load("relu2_and_mul"), registry.load("relu2_and_mul_backward")
    generator = torch.Generator().manual_seed(0)
    values = op.inputs(problem(op, "none", dtype), generator, "normal")
    gate, up = values[0].double().chunk(2, -1)
    narrow = torch.float16 if dtype == "float32" else values[0].dtype
    rounded = torch.relu(gate).square().to(narrow).double()
    wrong = {"no square": torch.relu(gate) * up, "two roundings": rounded * up}
    wrong["the square of both signs"] = gate.square() * up
    assert passes(op, values, lambda ref: ref)
    assert [w for w, made in wrong.items() if passes(op, values, lambda _, m=made: m)] == []
    values = back.inputs(problem(back, "none", dtype), generator, "normal")
    assert passes(back, values, lambda ref: ref)
    assert not passes(back, values, lambda ref: ref / 2)


def test_workloads_of_models_ask_for_their_form():
    op = registry.load("gelu_and_mul")
    assert op.workload("gemma2-9b-m16").problem["approximate"] == "tanh"
    assert op.workload("8192x8192").problem["approximate"] == "none"
    assert isinstance(op.forms(op.workload("8192x8192").problem)["tanh"], Problem)
