"""silu_and_mul_backward: the gradients of `silu_and_mul` (Shazeer, 2020).

With `s = 1 / (1 + exp(-gate))`, of which `1 - s` is computed as the sigmoid of `-gate`:

    grad_gate = grad_out * up * s * (1 + gate * (1 - s))
    grad_up = grad_out * gate * s
"""

from __future__ import annotations

from gristmill.core.registry import declare
from gristmill.specs._gated import problems
from gristmill.specs._gated_backward import gated_backward
from gristmill.specs.silu_and_mul import CHOICE, large_workloads

NAME = "silu_and_mul_backward"
problem_of = problems(NAME, CHOICE)
OP = declare(gated_backward(NAME, CHOICE, large_workloads(problem_of)))
