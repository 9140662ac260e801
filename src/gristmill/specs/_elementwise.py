"""What the contracts of element-wise activations share: `out = activation(x)` of any strided
tensor, and `grad_x = grad_out * slope(x)`."""

from __future__ import annotations

import math
from typing import Any

import torch

from gristmill.core.problem import Axis, Problem, TensorSpec
from gristmill.specs._activations import Choice
from gristmill.specs._rows import normal

VARIANTS = ("normal", "tails", "large", "zeros", "nonfinite")


def sizes(problem: Problem) -> tuple[int, int]:
    """Rows and columns; a 0-D tensor is one row of one."""
    shape = problem["x"].shape or (1,)
    return math.prod(shape[:-1]), shape[-1]


def axes(problem: Problem) -> tuple[Axis, ...]:
    rows, width = sizes(problem)
    return (Axis("rows", rows, exact=False), Axis("N", width))


def outputs(problem: Problem) -> tuple[TensorSpec, ...]:
    return (TensorSpec.contiguous(problem["x"].shape, problem["x"].dtype),)


def values(problem: Problem, generator: torch.Generator, variant: str) -> torch.Tensor:
    """`x` of a variant: `normal`; `tails` (-100 to 100); `large` (2^40, float16: 2^12); `zeros` (a
    third); `nonfinite` (minus infinity, NaN; at plus infinity ATen has NaN on a CPU in
    float32)."""
    x = normal(problem["x"], generator)
    flat = x.view(-1)
    if variant == "tails":
        flat.copy_(torch.linspace(-100, 100, flat.numel(), device=x.device))
    elif variant == "large":
        x.mul_(2.0**12 if x.dtype == torch.float16 else 2.0**40)
    elif variant == "zeros":
        flat[::3] = 0
    elif variant == "nonfinite":
        flat[::7] = -torch.inf
        flat[3::11] = torch.nan
    return problem["x"].fill(x)


def problem_of(
    op: str, choice: Choice, shape: tuple[int, ...], dtype: str, given: tuple[str, ...]
) -> Problem:
    """The problem of contiguous tensors of this shape; `given` for the choice's argument."""
    x = TensorSpec.contiguous(shape, dtype)
    grad = (("grad_out", x),) if op.endswith("_backward") else ()
    rest = ((choice.argument, given[0]),) if given else choice.default
    return Problem(op, (*grad, ("x", x), *rest))


def inputs(
    choice: Choice, problem: Problem, generator: torch.Generator, variant: str
) -> tuple[Any, ...]:
    """The arguments of a problem; upstream gradients are normal values."""
    x = values(problem, generator, variant)
    if "grad_out" not in problem.tensors:
        return (x, *choice.given(problem))
    grad = problem["grad_out"].fill(normal(problem["grad_out"], generator))
    return (grad, x, *choice.given(problem))
