"""`GELU` over `gristmill.gelu`."""

from __future__ import annotations

import torch

from gristmill.ops.gelu import gelu


class GELU(torch.nn.GELU):
    """`torch.nn.GELU` by the fastest correct implementation: the same argument, no parameters.

    An input or an `approximate` that `gristmill.gelu` does not take raises `InvalidInputError` when
    it is called.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name for it
        """Element by element, of any shape."""
        return gelu(input, self.approximate)
