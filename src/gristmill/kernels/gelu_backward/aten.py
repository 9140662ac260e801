"""ATen's `gelu_backward`: one kernel, of any strides."""

from __future__ import annotations

import torch

from gristmill.core.registry import register
from gristmill.specs.gelu_backward import OP


def _call(grad_out: torch.Tensor, x: torch.Tensor, approximate: str) -> torch.Tensor:
    return torch.ops.aten.gelu_backward(grad_out, x, approximate=approximate).contiguous()


gelu_backward = register(OP, "aten", _call, kind="vendor", native=True)
