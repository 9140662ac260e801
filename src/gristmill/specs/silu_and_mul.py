"""silu_and_mul: `out = silu(gate) * up`, `silu(z) = z / (1 + exp(-z))`: the gate of a gated MLP
(Shazeer, 2020)."""

from __future__ import annotations

from collections.abc import Callable

from gristmill.core.op import Workload
from gristmill.core.problem import Problem
from gristmill.core.registry import declare
from gristmill.specs._activations import SILU, Choice
from gristmill.specs._gated import gated, gated_workloads, problems

CHOICE = Choice({"silu": SILU})
problem_of = problems("silu_and_mul", CHOICE)


def large_workloads(problem: Callable[..., Problem]) -> tuple[Workload, ...]:
    """The workloads of both directions, by the `problem_of` of one."""
    return (
        Workload("llama3-8b-m4096", problem((4096, 14336))),
        *gated_workloads(problem),
        Workload("qwen3-30b-expert-4096x768", problem((4096, 768))),
    )


OP = declare(
    gated(
        "silu_and_mul",
        CHOICE,
        workloads=(
            *(Workload(f"llama3-8b-m{m}", problem_of((m, 14336))) for m in (1, 16, 64, 512)),
            *large_workloads(problem_of),
        ),
    )
)
