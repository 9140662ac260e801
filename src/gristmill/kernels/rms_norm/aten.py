"""ATen's `rms_norm`: one fused kernel on a GPU, a few element-wise passes on a CPU."""

from __future__ import annotations

import torch

from gristmill.core.registry import register
from gristmill.specs.rms_norm import OP


def _call(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    return torch.rms_norm(
        x, x.shape[-1:], weight, eps
    ).contiguous()  # a strided x may give a strided result


rms_norm = register(OP, "aten", _call, kind="vendor", native=True)
