"""ATen's `gelu`: one kernel, of any strides."""

from __future__ import annotations

import torch

from gristmill.core.registry import register
from gristmill.specs.gelu import OP


def _call(x: torch.Tensor, approximate: str) -> torch.Tensor:
    return torch.nn.functional.gelu(
        x, approximate=approximate
    ).contiguous()  # a transposed x gives a transposed result


gelu = register(OP, "aten", _call, kind="vendor", native=True)
