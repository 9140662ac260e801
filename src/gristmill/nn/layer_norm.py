"""`LayerNorm` over `gristmill.layer_norm`."""

from __future__ import annotations

import torch

from gristmill.nn._rows import check_normalized, check_width
from gristmill.ops.layer_norm import layer_norm


class LayerNorm(torch.nn.LayerNorm):
    """`torch.nn.LayerNorm` by the fastest correct implementation: the same arguments and state
    dict.

    Args:
        normalized_shape: the size of the last dimension.
        eps: added to the variance.
        elementwise_affine: whether there is a learnable weight, of ones at first.
        bias: whether there is a learnable bias beside it, of zeros at first.
        device, dtype: of weight and bias. They have the input's dtype, or are cast to it under
            autocast.

    Raises:
        InvalidInputError: more than one dimension to normalise over, or an input that
            `gristmill.layer_norm` does not take.
    """

    def __init__(
        self,
        normalized_shape: int | list[int] | torch.Size,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            normalized_shape, eps, elementwise_affine, bias, device=device, dtype=dtype
        )
        check_normalized("LayerNorm", self.normalized_shape)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name for it
        """`(x - mean) / sqrt(var + eps) * weight + bias` over the last dimension of
        `(*batch, N)`."""
        check_width(input, self.normalized_shape)
        return layer_norm(input, self.weight, self.bias, self.eps)
