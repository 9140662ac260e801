"""layer_norm_backward: the gradients of `layer_norm` (Ba, Kiros and Hinton, 2016).

With `normed = (x - mean(x)) * r`, `r = 1 / sqrt(var(x) + eps)` of each row and
`gw = grad_out * weight`:

    grad_x = r * (gw - mean(gw) - normed * mean(gw * normed))
    grad_weight = sum over the rows of grad_out * normed
    grad_bias = sum over the rows of grad_out

The moments are computed again from `x`, which has to be read anyway: the forward saves nothing.
"""

from __future__ import annotations

import torch

from gristmill.core.op import Bounds, Cost, Op, Workload
from gristmill.core.problem import Problem, TensorSpec
from gristmill.core.registry import declare
from gristmill.specs._rows import check_like, normal, scale, sum_rows
from gristmill.specs.layer_norm import (
    SECOND_ORDER,
    VARIANTS,
    check_affine,
    normalised,
    sizes_of_terms,
    steps,
    vary,
)
from gristmill.specs.rms_norm import axes, rows

NAME = "layer_norm_backward"
Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def check(
    grad_out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    eps: float = 1e-5,
    weight_grad: bool = True,
    bias_grad: bool = True,
) -> None:
    """The contract beyond types and devices.

    Raises:
        InvalidInputError: a 0-D `x`, a last dimension that is not dense, a `grad_out` or `weight`
            that does not fit `x`, a bad `eps`.
    """
    del weight_grad, bias_grad
    check_affine(NAME, x, weight, None, eps)
    check_like(NAME, "grad_out", grad_out, x, tuple(x.shape), "the shape of `x`")


def reference(
    grad_out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    eps: float = 1e-5,
    weight_grad: bool = True,
    bias_grad: bool = True,
) -> Gradients:
    """float32 inside (float64 for float64), one rounding of each result, contiguous results.

    `grad_weight` has shape (0,) where there is no weight, or `weight_grad` is False; `grad_bias`
    where `bias_grad` is.
    """
    grad_x, *vectors = wide_gradients(grad_out, x, weight, eps, weight_grad, bias_grad)
    return grad_x.to(x.dtype).contiguous(), vectors[0], vectors[1]


def wide_gradients(
    grad_out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
    weight_grad: bool,
    bias_grad: bool,
) -> Gradients:
    """The reference before `grad_x` is rounded."""
    normed, rstd = normalised(x, eps)
    grad = grad_out.to(normed.dtype)
    scaled = grad if weight is None else grad * weight.to(normed.dtype)
    grad_x = rstd * (
        scaled - scaled.mean(-1, keepdim=True) - normed * (scaled * normed).mean(-1, keepdim=True)
    )
    grad_weight = grad_bias = x.new_zeros((0,))
    if weight is not None and weight_grad:
        grad_weight = sum_rows(grad * normed).to(x.dtype)
    if bias_grad:
        grad_bias = sum_rows(grad).to(x.dtype)
    return grad_x, grad_weight, grad_bias


def magnitude(
    grad_out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    eps: float = 1e-5,
    weight_grad: bool = True,
    bias_grad: bool = True,
) -> Gradients:
    """The sums of the terms' absolute values. Of a product of two normalised values one is off by
    its terms' rounding and the other is itself, or (of the second order) its terms' rounding."""
    normed, rstd = normalised(x, eps)
    terms = sizes_of_terms(x, rstd)
    itself = normed.abs() + SECOND_ORDER * terms
    grad, scaled = grad_out.abs(), (grad_out if weight is None else grad_out * weight).abs()
    grad_x = rstd * (
        scaled
        + scaled.mean(-1, keepdim=True)
        + terms * (scaled * itself).mean(-1, keepdim=True)
        + itself * (scaled * terms).mean(-1, keepdim=True)
    )
    grad_weight = grad_bias = x.new_zeros((0,))
    if weight is not None and weight_grad:
        grad_weight = sum_rows(grad * terms)
    if bias_grad:
        grad_bias = sum_rows(grad)
    return grad_x, grad_weight, grad_bias


def has_weight_grad(problem: Problem) -> bool:
    """Whether the weight's gradient is asked for."""
    return problem["weight"] is not None and problem["weight_grad"]


def sums(problem: Problem) -> int:
    """How many gradients are sums over the rows: the weight's, the bias's."""
    return has_weight_grad(problem) + problem["bias_grad"]


def outputs(problem: Problem) -> tuple[TensorSpec, ...]:
    x = problem["x"]
    wanted = has_weight_grad(problem), problem["bias_grad"]
    vectors = (TensorSpec.contiguous((x.shape[-1] if one else 0,), x.dtype) for one in wanted)
    return TensorSpec.contiguous(x.shape, x.dtype), *vectors


def cost(problem: Problem) -> Cost:
    x = problem["x"]
    weighted = problem["weight"] is not None
    vectors = weighted + sums(problem)
    per_element = 12 + weighted + 2 * has_weight_grad(problem) + problem["bias_grad"]
    return Cost(
        flops=per_element * x.numel,
        size_bytes=3 * x.size_bytes + vectors * x.shape[-1] * x.itemsize,
    )


def bounds(problem: Problem) -> tuple[Bounds, Bounds, Bounds]:
    x, n_rows = problem["x"], rows(problem)
    width = x.shape[-1]
    info = torch.finfo(x.torch_dtype)
    atol = info.smallest_normal * info.eps
    flushed = torch.finfo(torch.float32).smallest_normal
    over_rows = f"one rounding to {x.dtype}; a float32 sum over {n_rows} rows by at least 64 "
    return (
        Bounds(
            rtol=info.eps / 2,
            gamma=(2 * steps(width) + width / 64 + 10) * 2.0**-24,
            atol=atol + 4 * flushed,
            reason=f"one rounding to {x.dtype}; float32 means of {width} values, squares and "
            "products by at least 64 lanes, an approximate reciprocal root of one of them in the "
            "third power; six products and differences; the terms cancel",
        ),
        Bounds(
            rtol=info.eps / 2,
            gamma=(steps(width) + 2 + n_rows / 64) * 2.0**-24,
            atol=atol + (1 + n_rows) * flushed,
            reason=over_rows + "accumulators a column; in each term a normalised value (see "
            "`layer_norm`) and a product; float32 below 2^-126 may be flushed",
        ),
        Bounds(
            rtol=info.eps / 2,
            gamma=(4 + n_rows / 64) * 2.0**-24,
            atol=atol + flushed,
            reason=over_rows + "accumulators a column",
        ),
    )


def inputs(
    problem: Problem, generator: torch.Generator, variant: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, float, bool, bool]:
    """Rows of the problem's layout, and normal upstream gradients. Variants: those of `layer_norm`
    for `x`; `parallel` (`grad_out * weight` along the row: all of `grad_x` cancels)."""
    eps = problem["eps"]
    x = normal(problem["x"], generator)
    grad_out = normal(problem["grad_out"], generator)
    weight = scale(problem["weight"], generator)
    if x.numel():
        x = vary(x, variant, max(eps, 1e-12))
        if variant == "parallel":
            grad_out = x if weight is None else x / weight
    values = problem["grad_out"].fill(grad_out), problem["x"].fill(x)
    return (*values, weight, eps, problem["weight_grad"], problem["bias_grad"])


def problem_of(
    shape: tuple[int, ...],
    dtype: str = "bfloat16",
    weight: bool = True,
    weight_grad: bool = True,
    bias_grad: bool = True,
    eps: float = 1e-5,
) -> Problem:
    """The problem of a contiguous `x` of this shape and as contiguous a gradient."""
    x = TensorSpec.contiguous(shape, dtype)
    args = {
        "grad_out": x,
        "x": x,
        "weight": TensorSpec.contiguous(shape[-1:], dtype) if weight else None,
        "eps": eps,
        "weight_grad": weight_grad,
        "bias_grad": bias_grad,
    }
    return Problem(NAME, tuple(args.items()))


def forms(problem: Problem) -> dict[str, Problem]:
    """With the bias frozen, and all but `x`."""

    def with_flags(**flags: bool) -> Problem:
        return Problem(problem.op, tuple({**dict(problem.args), **flags}.items()))

    return {
        "no-bias": with_flags(bias_grad=False),
        "frozen": with_flags(weight_grad=False, bias_grad=False),
    }


WORKLOADS = (
    Workload("gpt3-6.7b-m4096", problem_of((4096, 4096))),
    *(
        Workload(f"{m}x{n}", problem_of((m, n)))
        for m, n in ((16384, 4096), (8192, 8192), (32768, 1024), (2048, 16384))
    ),
    Workload("16384x4096-fp16", problem_of((16384, 4096), "float16")),
    Workload("16384x4096-fp32", problem_of((16384, 4096), "float32")),
    Workload("16384x4096-no-bias", problem_of((16384, 4096), bias_grad=False)),
    Workload("16384x4096-frozen", problem_of((16384, 4096), weight_grad=False, bias_grad=False)),
    Workload("vit-l-256x197x1024", problem_of((256, 197, 1024))),
    Workload("bert-base-32x512x768", problem_of((32, 512, 768))),
    Workload("odd-1023x4097", problem_of((1023, 4097))),
)

OP = declare(
    Op(
        schema="layer_norm_backward(Tensor grad_out, Tensor x, Tensor? weight=None, "
        "float eps=1e-05, bool weight_grad=True, bool bias_grad=True) -> (Tensor grad_x, "
        "Tensor grad_weight, Tensor grad_bias)",
        check=check,
        reference=reference,
        magnitude=magnitude,
        inputs=inputs,
        variants=(*VARIANTS[:-1], "parallel", "nonfinite"),
        outputs=outputs,
        axes=axes,
        cost=cost,
        bounds=bounds,
        workloads=WORKLOADS,
        sized=lambda s, dtype: problem_of((s["rows"], s["N"]), dtype),
        forms=forms,
    )
)
