"""The public `gelu`."""

from __future__ import annotations

import torch

from gristmill.ops._dispatch import public


@public
def gelu(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """The Gaussian error linear unit, element by element.

    Uses the plan for this problem where there is one and the prior where not; never tunes
    (`gristmill.get_op` does).

    Args:
        x: of any shape and strides. float16, bfloat16 or float32.
        approximate: `"none"`, `x * Phi(x)` by the error function; or `"tanh"`,
            `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x**3)))`.

    Returns:
        A contiguous tensor of x's shape and dtype. Computed in float32 and rounded once;
        deterministic. NaN at minus infinity, as torch.

    Raises:
        InvalidInputError: an unknown `approximate`, a wrong dtype or layout.

    Differentiable; works under `torch.compile`, autocast, `torch.func` and in modes, as
    `torch.ops.gristmill.gelu`. Source: Hendrycks and Gimpel,
    "Gaussian Error Linear Units" (2016).
    """
    ...
