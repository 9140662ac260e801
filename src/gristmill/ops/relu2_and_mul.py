"""The public `relu2_and_mul`."""

from __future__ import annotations

import torch

from gristmill.ops._dispatch import public


@public
def relu2_and_mul(x: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
    """The gate of a gated MLP: `max(gate, 0)**2 * up`.

    Uses the plan for this problem where there is one and the prior where not; never tunes
    (`gristmill.get_op` does).

    Args:
        x: `(*batch, 2N)`, gate and then up, where `up` is None; else the gate, `(*batch, N)`.
            float16, bfloat16 or float32; any strides with a unit stride in the last dimension.
        up: of the gate's shape and dtype, or None.

    Returns:
        A contiguous `(*batch, N)` of x's dtype. Computed in float32 and rounded once;
        deterministic.

    Raises:
        InvalidInputError: an odd number of columns without `up`, an `up` that is not like `x`, a
            wrong rank, dtype, device or stride.

    Differentiable; works under `torch.compile`, autocast, `torch.func` and in modes, as
    `torch.ops.gristmill.relu2_and_mul`. Source: So et al., "Primer: Searching for
    Efficient Transformers" (2021).
    """
    ...
