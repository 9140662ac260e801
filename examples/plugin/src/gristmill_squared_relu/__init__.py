"""`squared_relu`, an op of one's own for gristmill."""

from __future__ import annotations

import torch

from gristmill.ops import public
from gristmill_squared_relu import elementwise, in_torch  # noqa: F401 - they register

__all__ = ["squared_relu"]


@public
def squared_relu(x: torch.Tensor) -> torch.Tensor:
    """`max(x, 0)**2` element by element (So et al., "Primer", 2021).

    Args:
        x: contiguous, of any shape; float16, bfloat16 or float32.

    Returns:
        A tensor like `x`. Computed in float32, rounded once. Differentiable.

    Raises:
        gristmill.InvalidInputError: `x` is not contiguous, or has another dtype.
    """
    ...
