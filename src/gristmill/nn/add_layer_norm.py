"""`AddLayerNorm` over `gristmill.add_layer_norm`."""

from __future__ import annotations

import torch

from gristmill.nn._rows import check_width
from gristmill.nn.layer_norm import LayerNorm
from gristmill.ops.add_layer_norm import add_layer_norm


class AddLayerNorm(LayerNorm):
    """A residual connection and the `LayerNorm` behind it, by the fastest correct implementation:
    the arguments and state dict of `torch.nn.LayerNorm`.

    An input that `gristmill.add_layer_norm` does not take raises `InvalidInputError`.
    """

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride] - two terms, two results
        self, x: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`(*batch, N)` twice to the normalised sum and the sum, which is the next residual."""
        check_width(x, self.normalized_shape)
        return add_layer_norm(x, residual, self.weight, self.bias, self.eps)
