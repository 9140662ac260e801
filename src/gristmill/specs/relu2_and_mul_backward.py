"""relu2_and_mul_backward: the gradients of `relu2_and_mul` (So et al., 2021).

With `r = max(gate, 0)`:

    grad_gate = grad_out * up * 2r
    grad_up = grad_out * r**2
"""

from __future__ import annotations

from gristmill.core.registry import declare
from gristmill.specs._gated import problems
from gristmill.specs._gated_backward import gated_backward
from gristmill.specs.relu2_and_mul import CHOICE, large_workloads

NAME = "relu2_and_mul_backward"
problem_of = problems(NAME, CHOICE)
OP = declare(gated_backward(NAME, CHOICE, large_workloads(problem_of)))
