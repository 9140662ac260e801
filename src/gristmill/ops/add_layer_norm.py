"""The public `add_layer_norm`."""

from __future__ import annotations

import torch

from gristmill.ops._dispatch import public


@public
def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A residual connection and the normalisation behind it: `new_residual = x + residual` and
    `out = layer_norm(new_residual, weight, bias)`, in one pass.

    Uses the plan for this problem where there is one and the prior where not; never tunes
    (`gristmill.get_op` does).

    Args:
        x: `(*batch, N)`, float16, bfloat16 or float32; any strides with a unit stride in the last
            dimension.
        residual: of x's shape and dtype.
        weight: `(N,)` of the same dtype, or `None` for ones.
        bias: `(N,)` of the same dtype, or `None` for zeros.
        eps: added to the variance, which divides by N.

    Returns:
        `(out, new_residual)`, contiguous tensors of x's shape and dtype. The sum is rounded to the
        dtype, and `out` is the norm of the rounded sum, computed in float32 as in `layer_norm`;
        deterministic for a given plan.

    Raises:
        InvalidInputError: a wrong rank, shape, width, dtype, device or stride.

    Differentiable: `x` and `residual` get one tensor as their gradient. Works under
    `torch.compile`, autocast, `torch.func` and in modes, as `torch.ops.gristmill.add_layer_norm`.
    Source: Ba, Kiros and Hinton, "Layer Normalization" (2016).
    """
    ...
