"""relu2_and_mul: `out = max(gate, 0)**2 * up`: the squared ReLU (So et al., 2021) as a gate, as in
BitNet b1.58 2B4T."""

from __future__ import annotations

from collections.abc import Callable

from gristmill.core.op import Workload
from gristmill.core.problem import Problem
from gristmill.core.registry import declare
from gristmill.specs._activations import RELU2, Choice
from gristmill.specs._gated import gated, gated_workloads, problems

CHOICE = Choice({"relu2": RELU2})
problem_of = problems("relu2_and_mul", CHOICE)


def large_workloads(problem: Callable[..., Problem]) -> tuple[Workload, ...]:
    """The workloads of both directions, by the `problem_of` of one."""
    return (Workload("bitnet-2b-m4096", problem((4096, 6912))), *gated_workloads(problem))


OP = declare(
    gated(
        "relu2_and_mul",
        CHOICE,
        workloads=(
            *(Workload(f"bitnet-2b-m{m}", problem_of((m, 6912))) for m in (1, 16, 64)),
            *large_workloads(problem_of),
        ),
    )
)
