"""The public `rms_norm`."""

from __future__ import annotations

import torch

from gristmill.ops._dispatch import public


@public
def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None = None, eps: float = 1e-6
) -> torch.Tensor:
    """Root-mean-square normalisation over the last dimension: `x / sqrt(mean(x^2) + eps) * weight`.

    Uses the plan for this problem where there is one and the prior where not; never tunes
    (`gristmill.get_op` does).

    Args:
        x: `(*batch, N)`, float16, bfloat16 or float32; any strides with a unit stride in the last
            dimension.
        weight: `(N,)` of the same dtype, or `None` for ones.
        eps: added to the mean of squares.

    Returns:
        A contiguous tensor of x's shape and dtype. Computed in float32 and rounded once;
        deterministic for a given plan.

    Raises:
        InvalidInputError: a wrong rank, width, dtype, device or stride.

    Differentiable; works under `torch.compile`, autocast, `torch.func` and in modes, as
    `torch.ops.gristmill.rms_norm`. Source: Zhang and Sennrich, "Root Mean Square
    Layer Normalization" (2019).
    """
    ...
