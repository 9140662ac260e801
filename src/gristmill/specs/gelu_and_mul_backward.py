"""gelu_and_mul_backward: the gradients of `gelu_and_mul` (Hendrycks & Gimpel, 2016; Shazeer, 2020).

    grad_gate = grad_out * up * gelu'(gate)
    grad_up = grad_out * gelu(gate)

`gelu'(z) = Phi(z) + z * phi(z)` of the normal distribution; of the approximation `s = sigmoid(2u)`,
`s + z * s * (1 - s) * 2u'`.
"""

from __future__ import annotations

from gristmill.core.registry import declare
from gristmill.specs._gated import problems
from gristmill.specs._gated_backward import gated_backward
from gristmill.specs.gelu_and_mul import CHOICE, large_workloads

NAME = "gelu_and_mul_backward"
problem_of = problems(NAME, CHOICE)
OP = declare(gated_backward(NAME, CHOICE, large_workloads(problem_of)))
