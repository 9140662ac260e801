"""ATen's matrix product: cuBLAS on NVIDIA, hipBLAS on AMD, oneDNN or MKL on CPU; hard to beat at
large, even sizes. TF32, where it is allowed, is used where torch's own setting allows it too."""

from __future__ import annotations

import torch

from gristmill.core.registry import register
from gristmill.kernels.precision import precise
from gristmill.specs.matmul import OP


def _call(a: torch.Tensor, b: torch.Tensor, tf32: bool = False) -> torch.Tensor:
    multiply = torch.mm if a.dim() == 2 else torch.matmul
    if tf32 and a.dtype is torch.float32:
        return multiply(a, b)
    return precise(multiply, a, b)


matmul = register(OP, "aten", _call, kind="vendor", native=True)
