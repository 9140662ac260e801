"""ATen's matrix product: cuBLAS on NVIDIA, hipBLAS on AMD, oneDNN or MKL on CPU; hard to beat at large, even sizes."""

from __future__ import annotations

import torch

from gristmill.core.problem import Problem
from gristmill.core.registry import register
from gristmill.core.target import Target
from gristmill.specs.matmul import OP


def supports(problem: Problem, target: Target) -> str | None:
    if target.is_gpu and problem["a"].dtype == "float32" and torch.backends.cuda.matmul.allow_tf32:
        return "torch is set to compute float32 products in TF32 (torch.backends.cuda.matmul.allow_tf32)"
    return None


def _call(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.mm(a, b)


matmul = register(OP, "aten", _call, kind="vendor", supports=supports)
