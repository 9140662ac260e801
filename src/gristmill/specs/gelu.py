"""gelu: `out = x * Phi(x)`, Phi the normal distribution's, or its tanh approximation (Hendrycks &
Gimpel, 2016)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gristmill.core.gradient import Gradient
from gristmill.core.op import Bounds, Cost, Op, Workload
from gristmill.core.problem import Problem
from gristmill.core.registry import declare
from gristmill.specs import _elementwise
from gristmill.specs._activations import GELUS

CHOICE = GELUS


def check(x: torch.Tensor, approximate: str = "none") -> None:
    """The contract beyond types and devices: any strided tensor.

    Raises:
        InvalidInputError: an unknown `approximate`.
    """
    del x
    CHOICE.check("gelu", approximate)


def reference(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """float32 inside (float64 for float64), one rounding, a contiguous result."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return CHOICE.of(approximate).value(wide).to(x.dtype).contiguous()


def magnitude(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    return CHOICE.of(approximate).value_magnitude(x)


def cost(problem: Problem) -> Cost:
    x = problem["x"]
    return Cost(CHOICE.in_problem(problem).flops[0] * x.numel, 2 * x.size_bytes)


def bounds(problem: Problem) -> Bounds:
    return CHOICE.in_problem(problem).bounds(problem["x"], backward=False)


def inputs(problem: Problem, generator: torch.Generator, variant: str) -> tuple[object, ...]:
    return _elementwise.inputs(CHOICE, problem, generator, variant)


def problem_of(
    shape: tuple[int, ...], dtype: str = "bfloat16", given: tuple[str, ...] = ()
) -> Problem:
    """The problem of a contiguous tensor of this shape."""
    return _elementwise.problem_of("gelu", CHOICE, shape, dtype, given)


def large_workloads(problem: Callable[..., Problem]) -> tuple[Workload, ...]:
    """The workloads of both directions, by the `problem_of` of one."""
    return (
        Workload("whisper-large-8x1500x5120-fp16", problem((8, 1500, 5120), "float16")),
        Workload("8192x8192", problem((8192, 8192))),
        Workload("8192x8192-tanh", problem((8192, 8192), given=("tanh",))),
        Workload("8192x14336", problem((8192, 14336))),
        Workload("8192x8192-fp32", problem((8192, 8192), "float32")),
        Workload("odd-1023x4097", problem((1023, 4097))),
    )


OP = declare(
    Op(
        schema=f"gelu(Tensor x{CHOICE.schema}) -> Tensor",
        check=check,
        reference=reference,
        magnitude=magnitude,
        inputs=inputs,
        variants=_elementwise.VARIANTS,
        outputs=_elementwise.outputs,
        axes=_elementwise.axes,
        cost=cost,
        bounds=bounds,
        workloads=(
            *(Workload(f"gpt2-xl-m{m}", problem_of((m, 6400), given=("tanh",))) for m in (1, 64)),
            *large_workloads(problem_of),
        ),
        sized=lambda s, dtype: problem_of((s["rows"], s["N"]), dtype),
        forms=CHOICE.others,
        gradients=(
            Gradient(
                "gelu_backward",
                ("x",),
                lambda grad_out, x, approximate: (grad_out, x, approximate),
            ),
        ),
    )
)
