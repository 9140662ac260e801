"""gelu_and_mul: `out = gelu(gate) * up`, by the error function or its tanh approximation: the gate
of Gemma's and T5's MLP, and of diffusion models' (Hendrycks & Gimpel, 2016; Shazeer, 2020)."""

from __future__ import annotations

from collections.abc import Callable

from gristmill.core.op import Workload
from gristmill.core.problem import Problem
from gristmill.core.registry import declare
from gristmill.specs._activations import GELUS
from gristmill.specs._gated import gated, gated_workloads, problems

CHOICE = GELUS
problem_of = problems("gelu_and_mul", CHOICE)


def gemma(problem: Callable[..., Problem], rows: int) -> Workload:
    """Gemma 2 9B's, which approximates."""
    return Workload(f"gemma2-9b-m{rows}", problem((rows, 14336), given=("tanh",)))


def large_workloads(problem: Callable[..., Problem]) -> tuple[Workload, ...]:
    """The workloads of both directions, by the `problem_of` of one."""
    return (
        gemma(problem, 4096),
        Workload("8192x8192-tanh", problem((8192, 8192), given=("tanh",))),
        *gated_workloads(problem),
    )


OP = declare(
    gated(
        "gelu_and_mul",
        CHOICE,
        workloads=(
            *(gemma(problem_of, rows) for rows in (1, 16, 64)),
            Workload("sdxl-2x4096x2560-fp16", problem_of((2, 4096, 2560), "float16")),
            *large_workloads(problem_of),
        ),
    )
)
