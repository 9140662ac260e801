"""`Relu2AndMul` over `gristmill.relu2_and_mul`."""

from __future__ import annotations

import torch

from gristmill.ops.relu2_and_mul import relu2_and_mul


class Relu2AndMul(torch.nn.Module):
    """The gate of a gated MLP after one product with both weights: `max(gate, 0)**2 * up` of the
    halves.

    It has no parameters. An input that `gristmill.relu2_and_mul` does not take raises
    `InvalidInputError`.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(*batch, 2N)` to `(*batch, N)`."""
        return relu2_and_mul(x)
