"""`RMSNorm` over `gristmill.rms_norm`."""

from __future__ import annotations

import torch

from gristmill.nn._rows import check_normalized, check_width
from gristmill.ops.rms_norm import rms_norm


class RMSNorm(torch.nn.RMSNorm):
    """`torch.nn.RMSNorm` by the fastest correct implementation: the same arguments and state dict.

    Args:
        normalized_shape: the size of the last dimension.
        eps: added to the mean of squares; `None` for the machine epsilon of the input's dtype.
        elementwise_affine: whether there is a learnable weight, of ones at first.
        device, dtype: of the weight. It has the input's dtype, or is cast to it under autocast.

    Raises:
        InvalidInputError: more than one dimension to normalise over, or an input that
            `gristmill.rms_norm` does not take.
    """

    def __init__(
        self,
        normalized_shape: int | list[int] | torch.Size,
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, device=device, dtype=dtype)
        check_normalized("RMSNorm", self.normalized_shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x / sqrt(mean(x**2) + eps) * weight` over the last dimension of `(*batch, N)`."""
        check_width(x, self.normalized_shape)
        eps = self.eps
        if eps is None:  # an integer has none; the op refuses it
            eps = torch.finfo(x.dtype).eps if x.is_floating_point() else 0.0
        return rms_norm(x, self.weight, eps)
