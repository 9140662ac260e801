"""silu_and_mul_backward: the gradients of `silu_and_mul` (Shazeer, 2020).

With `s = 1 / (1 + exp(-gate))`, of which `1 - s` is computed as the sigmoid of `-gate`:

    grad_gate = grad_out * up * s * (1 + gate * (1 - s))
    grad_up = grad_out * gate * s
"""

from __future__ import annotations

import torch

from gristmill.core.op import Bounds, Cost, Op
from gristmill.core.problem import Problem, TensorSpec
from gristmill.core.registry import declare
from gristmill.specs._rows import check_like, normal
from gristmill.specs.silu_and_mul import (
    FLOOR,
    VARIANTS,
    axes,
    check_operands,
    halves,
    large_workloads,
    operands,
    rounding,
    sensitivity,
    silu_magnitude,
    sizes,
)

NAME = "silu_and_mul_backward"
ROUNDINGS = 16  # those of `silu_and_mul`, and four more products and sums


def check(grad_out: torch.Tensor, x: torch.Tensor, up: torch.Tensor | None = None) -> None:
    """The contract beyond types and devices.

    Raises:
        InvalidInputError: a 0-D `x`, a last dimension that is not dense, or of odd size without
            `up`; an `up` or a `grad_out` that does not fit `x`.
    """
    check_operands(NAME, x, up)
    width = x.shape[-1] if up is not None else x.shape[-1] // 2
    what = "the shape of what `silu_and_mul` returns"
    check_like(NAME, "grad_out", grad_out, x, (*x.shape[:-1], width), what)


def reference(
    grad_out: torch.Tensor, x: torch.Tensor, up: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 inside (float64 for float64), one rounding, contiguous results.

    Where `up` is None, `grad_x` has both gradients side by side and `grad_up` has shape (0,).
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    gate, other = (half.to(dtype) for half in halves(x, up))
    grad, sigmoid = grad_out.to(dtype), torch.sigmoid(gate)
    grad_gate = grad * other * (sigmoid * (1 + gate * torch.sigmoid(-gate)))
    grad_up = grad * (gate * sigmoid)
    if up is None:
        return torch.cat((grad_gate, grad_up), -1).to(x.dtype), x.new_zeros((0,))
    return grad_gate.to(x.dtype).contiguous(), grad_up.to(x.dtype).contiguous()


def magnitude(
    grad_out: torch.Tensor, x: torch.Tensor, up: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums of the terms' absolute values, times their sensitivity to the gate."""
    gate, other = halves(x, up)
    terms = torch.sigmoid(gate) * sensitivity(gate) ** 2 + FLOOR * (1 + gate.abs())
    grad_gate, grad_up = (grad_out * other).abs() * terms, grad_out.abs() * silu_magnitude(gate)
    if up is None:
        return torch.cat((grad_gate, grad_up), -1), x.new_zeros((0,))
    return grad_gate, grad_up


def outputs(problem: Problem) -> tuple[TensorSpec, ...]:
    x = problem["x"]
    like = TensorSpec.contiguous(x.shape, x.dtype)
    return like, like if problem["up"] is not None else TensorSpec.contiguous((0,), x.dtype)


def cost(problem: Problem) -> Cost:
    rows, width = sizes(problem)
    return Cost(flops=11 * rows * width, size_bytes=5 * rows * width * problem["x"].itemsize)


def bounds(problem: Problem) -> Bounds:
    return rounding(problem, ROUNDINGS, "the gate's two terms cancel around -1.28; ")


def inputs(
    problem: Problem, generator: torch.Generator, variant: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Operands of a variant of `silu_and_mul`, and normal upstream gradients."""
    x, up = operands(problem, generator, variant)
    return problem["grad_out"].fill(normal(problem["grad_out"], generator)), x, up


def two_tensors(problem: Problem) -> dict[str, Problem]:
    """The same sizes with `up` in a tensor of its own."""
    half = problem["grad_out"]
    args = (("grad_out", half), ("x", half), ("up", half))
    return {"two-tensors": Problem(NAME, args)}


def problem_of(shape: tuple[int, ...], dtype: str = "bfloat16", packed: bool = True) -> Problem:
    """The problem of contiguous gates of this shape and as contiguous a gradient."""
    half = TensorSpec.contiguous(shape, dtype)
    x = TensorSpec.contiguous((*shape[:-1], 2 * shape[-1]), dtype)
    problem = Problem(NAME, (("grad_out", half), ("x", x), ("up", None)))
    return problem if packed else two_tensors(problem)["two-tensors"]


OP = declare(
    Op(
        schema="silu_and_mul_backward(Tensor grad_out, Tensor x, Tensor? up=None) "
        "-> (Tensor grad_x, Tensor grad_up)",
        check=check,
        reference=reference,
        magnitude=magnitude,
        inputs=inputs,
        variants=VARIANTS,
        outputs=outputs,
        axes=axes,
        cost=cost,
        bounds=bounds,
        workloads=large_workloads(problem_of),
        sized=lambda s, dtype: problem_of((s["rows"], s["N"]), dtype),
        forms=two_tensors,
    )
)
