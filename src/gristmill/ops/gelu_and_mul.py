"""The public `gelu_and_mul`."""

from __future__ import annotations

import torch

from gristmill.ops._dispatch import public


@public
def gelu_and_mul(
    x: torch.Tensor, up: torch.Tensor | None = None, approximate: str = "none"
) -> torch.Tensor:
    """The gate of a gated MLP: `gelu(gate) * up`.

    Uses the plan for this problem where there is one and the prior where not; never tunes
    (`gristmill.get_op` does).

    Args:
        x: `(*batch, 2N)`, gate and then up, where `up` is None; else the gate, `(*batch, N)`.
            float16, bfloat16 or float32; any strides with a unit stride in the last dimension.
        up: of the gate's shape and dtype, or None.
        approximate: `"none"`, `z * Phi(z)` by the error function; or `"tanh"`,
            `z / 2 * (1 + tanh(sqrt(2 / pi) * (z + 0.044715 z**3)))`.

    Returns:
        A contiguous `(*batch, N)` of x's dtype. Computed in float32 and rounded once (torch's
        `gelu(gate) * up` rounds twice); deterministic. NaN for a gate of minus infinity, as torch.

    Raises:
        InvalidInputError: an odd number of columns without `up`, an `up` that is not like `x`, an
            unknown `approximate`, a wrong rank, dtype, device or stride.

    Differentiable; works under `torch.compile`, autocast, `torch.func` and in modes, as
    `torch.ops.gristmill.gelu_and_mul`. Source: Hendrycks and Gimpel,
    "Gaussian Error Linear Units" (2016); Shazeer, "GLU Variants Improve Transformer" (2020).
    """
    ...
