"""rms_norm_backward: the gradients of `rms_norm` (Zhang and Sennrich, 2019).

With `r = 1 / sqrt(mean(x**2) + eps)` of each row and `gw = grad_out * weight`:

    grad_x = r * (gw - x * r**2 * mean(gw * x))
    grad_weight = sum over the rows of grad_out * x * r

`r` is computed again from `x`, which has to be read anyway: the forward saves nothing.
"""

from __future__ import annotations

import torch

from gristmill.core.op import Bounds, Cost, Op, Workload
from gristmill.core.problem import Axis, Problem, TensorSpec
from gristmill.core.registry import declare
from gristmill.specs._rows import (
    check_eps,
    check_like,
    check_rows,
    check_weight,
    normal,
    scale,
    sum_rows,
)
from gristmill.specs.rms_norm import rows, vary

NAME = "rms_norm_backward"


def check(
    grad_out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    weight_grad: bool = True,
) -> None:
    """The contract beyond types and devices.

    Raises:
        InvalidInputError: a 0-D `x`, a last dimension that is not dense, a `grad_out` or `weight`
            that does not fit `x`, a bad `eps`.
    """
    del weight_grad
    check_rows(NAME, "x", x)
    check_like(NAME, "grad_out", grad_out, x, tuple(x.shape), "the shape of `x`")
    if weight is not None:
        check_weight(NAME, weight, x)
    check_eps(NAME, eps)


def reference(
    grad_out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    weight_grad: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 inside (float64 for float64), one rounding of each result, contiguous results.

    `grad_weight` has shape (0,) where there is no weight, or `weight_grad` is False.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    grad, wide = grad_out.to(dtype), x.to(dtype)
    rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    normed = wide * rstd
    scaled = grad if weight is None else grad * weight.to(dtype)
    grad_x = rstd * (scaled - normed * (scaled * normed).mean(-1, keepdim=True))
    grad_weight = x.new_zeros((0,))
    if weight is not None and weight_grad:
        grad_weight = sum_rows(grad * normed).to(weight.dtype)
    return grad_x.to(x.dtype).contiguous(), grad_weight


def magnitude(
    grad_out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    weight_grad: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums of the terms' absolute values."""
    rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    normed = (x * rstd).abs()
    scaled = (grad_out if weight is None else grad_out * weight).abs()
    grad_x = rstd * (scaled + normed * (scaled * normed).mean(-1, keepdim=True))
    if weight is None or not weight_grad:
        return grad_x, x.new_zeros((0,))
    return grad_x, sum_rows(grad_out.abs() * normed)


def has_weight_grad(problem: Problem) -> bool:
    """Whether the weight's gradient is asked for."""
    return problem["weight"] is not None and problem["weight_grad"]


def outputs(problem: Problem) -> tuple[TensorSpec, ...]:
    x = problem["x"]
    width = x.shape[-1] if has_weight_grad(problem) else 0
    return TensorSpec.contiguous(x.shape, x.dtype), TensorSpec.contiguous((width,), x.dtype)


def axes(problem: Problem) -> tuple[Axis, ...]:
    return (Axis("rows", rows(problem), exact=False), Axis("N", problem["x"].shape[-1]))


def cost(problem: Problem) -> Cost:
    x, weight = problem["x"], problem["weight"]
    weights = 0 if weight is None else 1 + has_weight_grad(problem)
    per_element = 8 + (weight is not None) + 2 * has_weight_grad(problem)
    return Cost(
        flops=per_element * x.numel,
        size_bytes=3 * x.size_bytes + weights * x.shape[-1] * x.itemsize,
    )


def bounds(problem: Problem) -> tuple[Bounds, Bounds]:
    x, n_rows = problem["x"], rows(problem)
    width = x.shape[-1]
    info = torch.finfo(x.torch_dtype)
    # One operation of float32 is off by 2^-24. A mean of a row's N products: N / 64 + 4 of them in
    # a chain (see `rms_norm`); the reciprocal root of one: half of that, and 4 of its own.
    mean = width / 64 + 4
    rstd = mean / 2 + 4
    atol = info.smallest_normal * info.eps
    flushed = torch.finfo(torch.float32).smallest_normal
    return (
        Bounds(
            rtol=info.eps / 2,
            gamma=(3 * rstd + mean + 6) * 2.0**-24,
            atol=atol + 4 * flushed,
            reason=f"one rounding to {x.dtype}; two float32 sums of {width} products by at least "
            "64 lanes, one of them in the cube of an approximate reciprocal root; six products and "
            "differences; the terms cancel",
        ),
        Bounds(
            rtol=info.eps / 2,
            gamma=(rstd + 4 + n_rows / 64) * 2.0**-24,
            atol=atol + (1 + n_rows) * flushed,
            reason=f"one rounding to {x.dtype}; a float32 sum over {n_rows} rows by at least 64 "
            f"accumulators a column; in each term an approximate reciprocal root of a float32 sum "
            f"of {width} squares, and two products; float32 below 2^-126 may be flushed",
        ),
    )


def inputs(
    problem: Problem, generator: torch.Generator, variant: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, float, bool]:
    """Rows of the problem's layout, and normal upstream gradients. Variants: those of `rms_norm`
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
    return (*values, weight, eps, problem["weight_grad"])


def problem_of(
    shape: tuple[int, ...],
    dtype: str = "bfloat16",
    weight: bool = True,
    weight_grad: bool = True,
    eps: float = 1e-6,
) -> Problem:
    """The problem of a contiguous `x` of this shape and as contiguous a gradient."""
    x = TensorSpec.contiguous(shape, dtype)
    args = {
        "grad_out": x,
        "x": x,
        "weight": TensorSpec.contiguous(shape[-1:], dtype) if weight else None,
        "eps": eps,
        "weight_grad": weight_grad,
    }
    return Problem(NAME, tuple(args.items()))


def forms(problem: Problem) -> dict[str, Problem]:
    """With the weight frozen."""
    args = tuple((n, False if n == "weight_grad" else v) for n, v in problem.args)
    return {"frozen": Problem(NAME, args)}


WORKLOADS = (
    Workload("llama3-8b-m4096", problem_of((4096, 4096))),
    *(
        Workload(f"{m}x{n}", problem_of((m, n)))
        for m, n in ((16384, 4096), (8192, 8192), (32768, 1024), (2048, 16384))
    ),
    Workload("16384x4096-fp16", problem_of((16384, 4096), "float16")),
    Workload("16384x4096-fp32", problem_of((16384, 4096), "float32")),
    Workload("16384x4096-no-weight", problem_of((16384, 4096), weight=False)),
    Workload("16384x4096-frozen", problem_of((16384, 4096), weight_grad=False)),
    Workload("qk-norm-4096x40x128", problem_of((4096, 40, 128))),
    Workload("llama2-13b-m16384", problem_of((16384, 5120))),
    Workload("odd-1023x4097", problem_of((1023, 4097))),
    Workload("wide-1024x65536", problem_of((1024, 65536))),
)

OP = declare(
    Op(
        schema="rms_norm_backward(Tensor grad_out, Tensor x, Tensor? weight=None, float eps=1e-06, "
        "bool weight_grad=True) -> (Tensor grad_x, Tensor grad_weight)",
        check=check,
        reference=reference,
        magnitude=magnitude,
        inputs=inputs,
        variants=("normal", "small", "offset", "large", "equal", "zeros", "parallel", "nonfinite"),
        outputs=outputs,
        axes=axes,
        cost=cost,
        bounds=bounds,
        workloads=WORKLOADS,
        sized=lambda s, dtype: problem_of((s["rows"], s["N"]), dtype),
        forms=forms,
    )
)
