"""The public `layer_norm`."""

from __future__ import annotations

import torch

from gristmill.ops._dispatch import public


@public
def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Layer normalisation over the last dimension:
    `(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`.

    Uses the plan for this problem where there is one and the prior where not; never tunes
    (`gristmill.get_op` does).

    Args:
        x: `(*batch, N)`, float16, bfloat16 or float32; any strides with a unit stride in the last
            dimension.
        weight: `(N,)` of the same dtype, or `None` for ones.
        bias: `(N,)` of the same dtype, or `None` for zeros.
        eps: added to the variance, which divides by N.

    Returns:
        A contiguous tensor of x's shape and dtype. Computed in float32 and rounded once; the mean
        comes off before anything is squared, so that a large mean does not drown the variance.
        Deterministic for a given plan.

    Raises:
        InvalidInputError: a wrong rank, width, dtype, device or stride.

    Differentiable; works under `torch.compile`, autocast, `torch.func` and in modes, as
    `torch.ops.gristmill.layer_norm`. Source: Ba, Kiros and Hinton, "Layer Normalization" (2016).
    """
    ...
