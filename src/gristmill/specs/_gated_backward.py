"""What the contracts of the gradients of gated activations share (see `_gated.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gristmill.core.op import Cost, Op, Workload
from gristmill.core.problem import Problem, TensorSpec
from gristmill.specs._activations import Choice
from gristmill.specs._gated import (
    BACKWARD,
    VARIANTS,
    axes,
    check_operands,
    forms,
    halves,
    operands,
    problems,
    sizes,
)
from gristmill.specs._rows import check_like, normal

Pair = tuple[torch.Tensor, torch.Tensor]


def _check(name: str, choice: Choice) -> Callable[..., None]:
    def check(
        grad_out: torch.Tensor, x: torch.Tensor, up: torch.Tensor | None = None, *given: str
    ) -> None:
        check_operands(name, x, up)
        width = x.shape[-1] if up is not None else x.shape[-1] // 2
        what = f"the shape of what `{name.removesuffix(BACKWARD)}` returns"
        check_like(name, "grad_out", grad_out, x, (*x.shape[:-1], width), what)
        choice.check(name, *given)

    return check


def _reference(choice: Choice) -> Callable[..., Pair]:
    def reference(
        grad_out: torch.Tensor, x: torch.Tensor, up: torch.Tensor | None = None, *given: str
    ) -> Pair:
        """float32 inside (float64 for float64), one rounding, contiguous results."""
        dtype, activation = torch.promote_types(x.dtype, torch.float32), choice.of(*given)
        gate, other = (half.to(dtype) for half in halves(x, up))
        grad = grad_out.to(dtype)
        grad_gate, grad_up = grad * other * activation.slope(gate), grad * activation.value(gate)
        if up is None:
            return torch.cat((grad_gate, grad_up), -1).to(x.dtype), x.new_zeros((0,))
        return grad_gate.to(x.dtype).contiguous(), grad_up.to(x.dtype).contiguous()

    return reference


def _magnitude(choice: Choice) -> Callable[..., Pair]:
    def magnitude(
        grad_out: torch.Tensor, x: torch.Tensor, up: torch.Tensor | None = None, *given: str
    ) -> Pair:
        gate, other = halves(x, up)
        activation = choice.of(*given)
        grad_gate = (grad_out * other).abs() * activation.slope_magnitude(gate)
        grad_up = grad_out.abs() * activation.value_magnitude(gate)
        if up is None:
            return torch.cat((grad_gate, grad_up), -1), x.new_zeros((0,))
        return grad_gate, grad_up

    return magnitude


def gated_backward(name: str, choice: Choice, workloads: tuple[Workload, ...]) -> Op:
    """The contract of the gradients of `gated`'s. Where `up` is None, `grad_x` has both gradients
    side by side and `grad_up` has shape (0,)."""

    def outputs(problem: Problem) -> tuple[TensorSpec, ...]:
        x = problem["x"]
        like = TensorSpec.contiguous(x.shape, x.dtype)
        return like, like if problem["up"] is not None else TensorSpec.contiguous((0,), x.dtype)

    def cost(problem: Problem) -> Cost:
        rows, width = sizes(problem)
        flops = sum(choice.in_problem(problem).flops) + 3
        return Cost(flops * rows * width, 5 * rows * width * problem["x"].itemsize)

    def inputs(problem: Problem, generator: torch.Generator, variant: str) -> tuple[Any, ...]:
        x, up = operands(problem, generator, variant)
        grad = problem["grad_out"].fill(normal(problem["grad_out"], generator))
        return (grad, x, up, *choice.given(problem))

    problem_of = problems(name, choice)
    return Op(
        schema=f"{name}(Tensor grad_out, Tensor x, Tensor? up=None{choice.schema}) "
        "-> (Tensor grad_x, Tensor grad_up)",
        check=_check(name, choice),
        reference=_reference(choice),
        magnitude=_magnitude(choice),
        inputs=inputs,
        variants=VARIANTS,
        outputs=outputs,
        axes=axes,
        cost=cost,
        bounds=lambda problem: choice.in_problem(problem).bounds(problem["x"], backward=True),
        workloads=workloads,
        sized=lambda s, dtype: problem_of((s["rows"], s["N"]), dtype),
        forms=forms(choice),
    )
