"""The backward contracts against float64 autograd of their forwards, and whether the bounds of the
ops on rows tell the usual mistakes from rounding."""

import pytest
import torch

from gristmill.core import registry
from gristmill.core.problem import TensorSpec
from gristmill.kernels.device.rows import collapse_rows, leading_arguments, why_not_rows
from gristmill.verify import compare, truth

FORWARD = {name: registry.load(name) for name in ("rms_norm", "silu_and_mul")}
BACKWARD = {name: registry.load(f"{name}_backward") for name in FORWARD}
DTYPES = ("float16", "bfloat16", "float32")


def randn(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", [(7,), (5, 12), (2, 3, 9), (4, 1), (0, 6)])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("eps", [1e-6, 0.3])
def test_rms_norm_backward_is_the_gradient_of_rms_norm(shape, weighted, eps):
    x, weight, upstream = randn(*shape), randn(shape[-1]) + 1, randn(*shape).flip(-1)
    inputs = [x.requires_grad_(), *([weight.requires_grad_()] if weighted else [])]
    out = FORWARD["rms_norm"].reference(x, weight if weighted else None, eps)
    expected = torch.autograd.grad(out, inputs, upstream)
    got = BACKWARD["rms_norm"].reference(upstream, x, weight if weighted else None, eps)
    torch.testing.assert_close(got[: len(expected)], expected, rtol=1e-11, atol=1e-12)
    frozen = BACKWARD["rms_norm"].reference(upstream, x, weight if weighted else None, eps, False)
    assert torch.equal(frozen[0], got[0])
    assert frozen[1].shape == (0,)
    assert got[1].shape == (shape[-1] if weighted else 0,)


@pytest.mark.parametrize("shape", [(8,), (5, 12), (2, 3, 10), (4, 2), (0, 6)])
def test_silu_and_mul_backward_is_the_gradient_of_silu_and_mul(shape):
    x, other = (8 * randn(*shape)).requires_grad_(), randn(*shape).flip(-1).requires_grad_()
    reference, gradient = FORWARD["silu_and_mul"].reference, BACKWARD["silu_and_mul"].reference
    out = reference(x, other)
    upstream = randn(*shape).roll(1, -1)
    expected = torch.autograd.grad(out, (x, other), upstream)
    torch.testing.assert_close(gradient(upstream, x, other), expected, rtol=1e-11, atol=1e-12)
    out = reference(x)
    upstream = randn(*out.shape).roll(1, -1)
    (expected,) = torch.autograd.grad(out, x, upstream)
    grad_x, grad_up = gradient(upstream, x)
    torch.testing.assert_close(grad_x, expected, rtol=1e-11, atol=1e-12)
    assert grad_up.shape == (0,)


def verdicts(op, values, mistakes):
    """Whether the truth, rounded, passes, and which mistakes do."""
    references, magnitudes = truth(op, values)
    bounds, dtype = op.bounds(op.problem(values)), values[0].dtype

    def passes(outputs):
        return compare([o.to(dtype) for o in outputs], references, magnitudes, bounds).ok

    wrong = {name: passes(outputs) for name, outputs in mistakes(references)}
    return passes(references), [name for name, ok in wrong.items() if ok]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [16, 1000])
def test_rms_norm_backward_bounds_see_the_usual_mistakes(dtype, rows):
    op = BACKWARD["rms_norm"]
    problem = op.sized({"rows": rows, "N": 1000}, dtype)
    values = op.inputs(problem, torch.Generator().manual_seed(0), "normal")
    g, x, w = (v.double() for v in values[:3])
    r = (x.square().mean(-1, keepdim=True) + values[3]).rsqrt()
    mean = (g * w * x).mean(-1, keepdim=True)

    def mistakes(references):
        dx, dw = references
        rounded = (x * r).to(values[0].dtype).double() if dtype != "float32" else (x * r).half()
        yield "no projection", (r * g * w, dw)
        yield "the block for N", (r * (g * w - x * r**2 * mean * 1000 / 1024), dw)
        yield (
            "the mean without the weight",
            (
                r * (g * w - x * r**2 * (g * x).mean(-1, keepdim=True)),
                dw,
            ),
        )
        yield "one factor r too few", (r * g * w - x * r**2 * mean, dw)
        yield "the row rounded first", (r * (g * w - rounded * r * mean), (g * rounded).sum(0))
        yield "a row lost", (dx, dw - (g * x * r)[-1])
        yield "a row twice", (dx, dw + (g * x * r)[0])
        yield "the weight in its own gradient", (dx, dw * w)
        yield "nothing normalised", (dx, (g * x).sum(0))

    assert verdicts(op, values, mistakes) == (True, [])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", ["normal", "tails"])
def test_silu_and_mul_bounds_see_the_usual_mistakes(dtype, variant):
    op = FORWARD["silu_and_mul"]
    problem = op.sized({"rows": 16, "N": 1000}, dtype)
    values = op.inputs(problem, torch.Generator().manual_seed(0), variant)
    gate, up = values[0].double().chunk(2, -1)

    def mistakes(references):
        narrow = values[0].dtype if dtype != "float32" else torch.float16
        rounded = torch.nn.functional.silu(gate).to(narrow).double()
        yield "two roundings", (rounded * up,)
        yield "the halves swapped", (torch.nn.functional.silu(up) * gate,)
        yield "tanh for the sigmoid", (gate * torch.tanh(gate) * up,)
        yield "gelu", (torch.nn.functional.gelu(gate) * up,)
        yield "a hard sigmoid", (torch.nn.functional.hardswish(gate) * up,)

    assert verdicts(op, values, mistakes) == (True, [])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", ["normal", "tails"])
def test_silu_and_mul_backward_bounds_see_the_usual_mistakes(dtype, variant):
    op = BACKWARD["silu_and_mul"]
    problem = op.forms(op.sized({"rows": 16, "N": 1000}, dtype))["two-tensors"]
    values = op.inputs(problem, torch.Generator().manual_seed(0), variant)
    g, gate, up = (v.double() for v in values)
    s = torch.sigmoid(gate)

    def mistakes(references):
        dgate, dup = references
        narrow = values[0].dtype if dtype != "float32" else torch.float16
        yield "the sigmoid for its derivative", (g * up * s, dup)
        yield "no upstream gradient", (dgate, gate * s)
        yield "the outputs swapped", (dup, dgate)
        yield "an intermediate rounded", ((g * up).to(narrow).double() * (dgate / (g * up)), dup)
        yield "silu rounded", (dgate, g * (gate * s).to(narrow).double())
        yield "s * (1 - s) alone", (g * up * s * (1 - s), dup)

    assert verdicts(op, values, mistakes) == (True, [])


def test_rows_of_several_tensors_merge_where_all_of_them_do():
    dense = TensorSpec.contiguous((4, 3, 5, 8), "float16")
    padded = TensorSpec((4, 3, 5, 8), (3 * 5 * 16, 5 * 16, 16, 1), "float16")
    broadcast = TensorSpec((4, 3, 5, 8), (0, 0, 0, 1), "float16")
    swapped = TensorSpec((4, 3, 5, 8), (40, 160, 8, 1), "float16")
    assert collapse_rows(dense) == ((60, 8),)
    assert collapse_rows(dense, padded, broadcast) == ((60, 8, 16, 0),)
    assert collapse_rows(dense, swapped) == ((5, 8, 8), (3, 40, 160), (4, 120, 40))
    assert leading_arguments(dense, padded) == (60, 1, 8, 0, 0, 16, 0, 0)
    assert leading_arguments(swapped) == (5, 3, 8, 160, 40)
    far = TensorSpec((2, 2, 2, 2, 8), (512, 200, 70, 16, 1), "float16")
    assert why_not_rows(dense, swapped) is None
    assert "4 dimensions" in why_not_rows(far)
    assert collapse_rows(*[TensorSpec.contiguous((8,), "float16")] * 2) == ((1, 0, 0),)
