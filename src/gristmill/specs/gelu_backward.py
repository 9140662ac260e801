"""gelu_backward: the gradient of `gelu` (Hendrycks & Gimpel, 2016).

`grad_x = grad_out * (Phi(x) + x * phi(x))` of the normal distribution; of the approximation
`s = sigmoid(2u)`, `grad_out * (s + x * s * (1 - s) * 2u')`.
"""

from __future__ import annotations

import torch

from gristmill.core.op import Bounds, Cost, Op
from gristmill.core.problem import Problem
from gristmill.core.registry import declare
from gristmill.specs import _elementwise
from gristmill.specs._rows import check_dtype, check_shape
from gristmill.specs.gelu import CHOICE, large_workloads

NAME = "gelu_backward"


def check(grad_out: torch.Tensor, x: torch.Tensor, approximate: str = "none") -> None:
    """The contract beyond types and devices: strided tensors of one shape.

    Raises:
        InvalidInputError: a `grad_out` of another shape or dtype than `x`, an unknown
            `approximate`.
    """
    check_shape(NAME, "grad_out", grad_out, tuple(x.shape), "the shape of `x`")
    check_dtype(NAME, "grad_out", grad_out, x)
    CHOICE.check(NAME, approximate)


def reference(grad_out: torch.Tensor, x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """float32 inside (float64 for float64), one rounding, a contiguous result."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    slope = CHOICE.of(approximate).slope(x.to(dtype))
    return (grad_out.to(dtype) * slope).to(x.dtype).contiguous()


def magnitude(grad_out: torch.Tensor, x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    return grad_out.abs() * CHOICE.of(approximate).slope_magnitude(x)


def cost(problem: Problem) -> Cost:
    x = problem["x"]
    return Cost((sum(CHOICE.in_problem(problem).flops) + 1) * x.numel, 3 * x.size_bytes)


def bounds(problem: Problem) -> Bounds:
    return CHOICE.in_problem(problem).bounds(problem["x"], backward=True)


def inputs(problem: Problem, generator: torch.Generator, variant: str) -> tuple[object, ...]:
    return _elementwise.inputs(CHOICE, problem, generator, variant)


def problem_of(
    shape: tuple[int, ...], dtype: str = "bfloat16", given: tuple[str, ...] = ()
) -> Problem:
    """The problem of a contiguous tensor of this shape and as contiguous a gradient."""
    return _elementwise.problem_of(NAME, CHOICE, shape, dtype, given)


OP = declare(
    Op(
        schema=f"{NAME}(Tensor grad_out, Tensor x{CHOICE.schema}) -> Tensor",
        check=check,
        reference=reference,
        magnitude=magnitude,
        inputs=inputs,
        variants=_elementwise.VARIANTS,
        outputs=_elementwise.outputs,
        axes=_elementwise.axes,
        cost=cost,
        bounds=bounds,
        workloads=large_workloads(problem_of),
        sized=lambda s, dtype: problem_of((s["rows"], s["N"]), dtype),
        forms=CHOICE.others,
    )
)
