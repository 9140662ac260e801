"""ATen's matrix product: cuBLAS on NVIDIA, hipBLAS on AMD, oneDNN or MKL on CPU; hard to beat at
large, even sizes."""

from __future__ import annotations

import torch

from gristmill.core.registry import register
from gristmill.kernels.precision import precise
from gristmill.specs.matmul import OP


def _call(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return precise(torch.mm, a, b)


matmul = register(OP, "aten", _call, kind="vendor", native=True)
