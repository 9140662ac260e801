"""`SiluAndMul` over `gristmill.silu_and_mul`."""

from __future__ import annotations

import torch

from gristmill.ops.silu_and_mul import silu_and_mul


class SiluAndMul(torch.nn.Module):
    """The gate of a gated MLP after one product with both weights: `silu(gate) * up` of the halves.

    It has no parameters. An input that `gristmill.silu_and_mul` does not take raises
    `InvalidInputError`.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(*batch, 2N)` to `(*batch, N)`."""
        return silu_and_mul(x)
