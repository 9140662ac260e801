"""layer_norm's contracts: gradients against float64 autograd of torch's own, and whether the bounds
tell the usual mistakes from rounding."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

import gristmill as gm
from gristmill.core.op import each_bounds
from gristmill.core.registry import load
from gristmill.verify import compare, truth

FORWARD, BACKWARD = load("layer_norm"), load("layer_norm_backward")
DTYPES = ("float16", "bfloat16", "float32")


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, dtype=dtype, generator=generator)


def torchs(x, weight, bias, eps):
    return functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


@pytest.mark.parametrize("shape", [(7,), (5, 12), (2, 3, 9), (4, 1), (0, 6)])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_the_references_are_torchs_and_its_gradients(shape, weighted, eps):
    x, bias = randn(*shape).requires_grad_(), randn(shape[-1]).requires_grad_()
    weight = (2 + randn(1, shape[-1])[0]).requires_grad_() if weighted else None
    want = torchs(x, weight, bias, eps)
    torch.testing.assert_close(FORWARD.reference(x, weight, bias, eps), want)
    upstream = randn(*shape, 1)[..., 0]
    leaves = [leaf for leaf in (x, weight, bias) if leaf is not None]
    expected = list(torch.autograd.grad(want, leaves, upstream))
    if weight is None:
        expected.insert(1, torch.zeros(0))
    got = BACKWARD.reference(upstream, x, weight, eps)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other.to(one.dtype), rtol=1e-9, atol=1e-9)
    frozen = BACKWARD.reference(upstream, x, weight, eps, False, False)
    assert torch.equal(frozen[0], got[0])
    assert frozen[1].shape == frozen[2].shape == (0,)


@pytest.mark.usefixtures("fresh_store")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wanted", ["x", "weight", "bias", "x weight bias"])
def test_autograd_gives_the_gradients_that_are_asked_for(dtype, wanted):
    """Random weights and upstream gradients, against float64 on the same values."""
    values = {"x": randn(6, 24), "weight": randn(24), "bias": randn(1, 24)[0]}
    narrow = {k: v.to(dtype).requires_grad_(k in wanted.split()) for k, v in values.items()}
    wide = {k: v.detach().double().requires_grad_(v.requires_grad) for k, v in narrow.items()}
    upstream = randn(24, 6).t().to(dtype)
    got, want = (
        torch.autograd.grad(out, [v for v in given.values() if v.requires_grad], grad)
        for out, given, grad in (
            (gm.layer_norm(*narrow.values()), narrow, upstream),
            (torchs(*wide.values(), 1e-5), wide, upstream.double()),
        )
    )
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("fresh_store")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wanted", ["x", "residual weight", "x residual weight bias"])
@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)])
def test_add_layer_norm_sends_the_gradients_of_both_results_back(dtype, wanted, used):
    values = {
        "x": randn(6, 24),
        "residual": randn(6, 24, 1)[..., 0],
        "weight": randn(24),
        "bias": randn(1, 24)[0],
    }
    narrow = {k: v.to(dtype).requires_grad_(k in wanted.split()) for k, v in values.items()}
    wide = {k: v.detach().double().requires_grad_(v.requires_grad) for k, v in narrow.items()}
    total = wide["x"] + wide["residual"]
    ours = gm.add_layer_norm(*narrow.values())
    theirs = torchs(total, wide["weight"], wide["bias"], 1e-5), total
    upstream = [randn(24, 6 + i).t()[:6].to(dtype) for i in used]

    def gradients(given, results, grads):
        leaves = [v for v in given.values() if v.requires_grad]
        return torch.autograd.grad([results[i] for i in used], leaves, grads, allow_unused=True)

    got = gradients(narrow, ours, upstream)
    want = gradients(wide, theirs, [u.double() for u in upstream])
    tolerance = 1e-5 if dtype == torch.float32 else 4e-2
    for one, other in zip(got, want, strict=True):
        if other is None:  # of the sum alone, weight and bias
            assert one is None or not one.any()
        else:
            torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance)


def passing(op, values, made):
    """Which of these outputs the bounds let pass."""
    references, magnitudes = truth(op, values)
    bounds, dtype = op.bounds(op.problem(values)), values[0].dtype

    def passes(outputs):
        narrow = [o.to(dtype) for o in outputs]
        return compare(narrow, references, magnitudes, each_bounds(bounds, len(narrow))).ok

    assert passes(references)
    return [name for name, outputs in made(*references) if passes(outputs)]


def moments(x, eps):
    centred = x - x.mean(-1, keepdim=True)
    return centred, (centred.square().mean(-1, keepdim=True) + eps).rsqrt()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", ["normal", "small"])
def test_bounds_see_the_usual_mistakes(dtype, variant):
    problem = FORWARD.sized({"rows": 16, "N": 1000}, dtype)
    values = FORWARD.inputs(problem, torch.Generator().manual_seed(0), variant)
    x, w, b = (v.double() for v in values[:3])
    centred, rstd = moments(x, values[3])
    var = centred.square().mean(-1, keepdim=True)
    narrow = values[0].dtype if dtype != "float32" else torch.float16

    def mistakes(out):
        if variant == "small":
            yield "eps outside the root", (centred / (var.sqrt() + values[3]) * w + b,)
            yield "no eps", (centred / var.sqrt() * w + b,)
            return
        yield "rms_norm", (x * (x.square().mean(-1, keepdim=True) + values[3]).rsqrt() * w + b,)
        yield "the block for N", (centred * (var * 1000 / 1024 + values[3]).rsqrt() * w + b,)
        yield "no bias", (out - b,)
        yield "the bias before the weight", ((centred * rstd + b) * w,)
        yield "two roundings", ((centred * rstd).to(narrow).double() * w + b,)
        if dtype == "float32":
            yield "Bessel's correction", (centred * (var * 1000 / 999 + values[3]).rsqrt() * w + b,)

    assert passing(FORWARD, values, mistakes) == []


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_bounds_see_a_variance_that_cancels(dtype):
    """The difference of two float32 means, of the squares and of the value, squared."""
    problem = FORWARD.sized({"rows": 16, "N": 1000}, dtype)
    values = FORWARD.inputs(problem, torch.Generator().manual_seed(0), "offset")
    x, w, b = (v.float() for v in values[:3])
    mean = x.mean(-1, keepdim=True)
    var = x.square().mean(-1, keepdim=True) - mean.square()
    wrong = (x - mean) * (var.clamp_min(0) + values[3]).rsqrt() * w + b
    plain = torchs(x, w, b, values[3])
    assert passing(FORWARD, values, lambda _: [("cancels", (wrong,)), ("torch", (plain,))]) == [
        "torch"
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_backward_bounds_see_the_usual_mistakes(dtype):
    problem = BACKWARD.sized({"rows": 16, "N": 1000}, dtype)
    values = BACKWARD.inputs(problem, torch.Generator().manual_seed(0), "normal")
    g, x, w = (v.double() for v in values[:3])
    centred, r = moments(x, values[3])
    normed, gw = centred * r, g * w
    mean, product = gw.mean(-1, keepdim=True), (gw * normed).mean(-1, keepdim=True)

    def mistakes(dx, dw, db):
        yield "rms_norm's", (r * (gw - normed * product), dw, db)
        yield "no projection", (r * (gw - mean), dw, db)
        yield "the block for N", (r * (gw - (mean + normed * product) * 1000 / 1024), dw, db)
        yield "no weight in the mean", (r * (gw - g.mean(-1, True) - normed * product), dw, db)
        yield "a row lost", (dx, dw - (g * normed)[-1], db)
        yield "a row lost of the bias", (dx, dw, db - g[-1])
        yield "the weight in its own gradient", (dx, dw * w, db)
        yield "the weight in the bias's", (dx, dw, db * w)
        yield "the vectors swapped", (dx, db, dw)
        yield "not centred", (dx, (g * x * r).sum(0), db)

    assert passing(BACKWARD, values, mistakes) == []
