"""`GeluAndMul` over `gristmill.gelu_and_mul`."""

from __future__ import annotations

import torch

from gristmill.ops.gelu_and_mul import gelu_and_mul


class GeluAndMul(torch.nn.Module):
    """The gate of a gated MLP after one product with both weights: `gelu(gate) * up` of the halves.

    It has no parameters. An input or an `approximate` that `gristmill.gelu_and_mul` does not take
    raises `InvalidInputError` when it is called.

    Args:
        approximate: `"none"` for the error function, `"tanh"` for its approximation.
    """

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        self.approximate = approximate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(*batch, 2N)` to `(*batch, N)`."""
        return gelu_and_mul(x, None, self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"
