"""ATen's matrix product: cuBLAS on NVIDIA, hipBLAS on AMD, oneDNN or MKL on CPU; hard to beat at
large, even sizes."""

from __future__ import annotations

import torch

from gristmill.core.problem import Problem
from gristmill.core.registry import register
from gristmill.core.target import Target
from gristmill.specs.matmul import OP


def supports(problem: Problem, target: Target) -> str | None:
    if target.is_gpu and problem["a"].dtype == "float32" and torch.backends.cuda.matmul.allow_tf32:
        return (
            "torch is set to compute float32 products in TF32 "
            "(torch.backends.cuda.matmul.allow_tf32)"
        )
    return None


def _call(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if not a.is_cuda or a.dtype is torch.float32:
        return torch.mm(a, b)
    # cuBLAS may add its partial sums in the output's dtype (38 times our bound at bf16 1023 x 1000
    # x 1031, on an H200). The setting is read and put back through torch's C functions: by
    # attribute it takes 2 us, and loses the second half of the pair.
    kind = "bf16" if a.dtype is torch.bfloat16 else "fp16"
    read, write = _SETTINGS[kind]
    before = read()
    pair = isinstance(before, tuple)  # (reduced precision, split-K) since torch 2.11
    if not (before[0] if pair else before):
        return torch.mm(a, b)
    write(*(False, *before[1:]) if pair else (False,))
    try:
        return torch.mm(a, b)
    finally:
        write(*before if pair else (before,))


_SETTINGS = {
    kind: tuple(
        getattr(torch._C, f"_{verb}_cublas_allow_{kind}_reduced_precision_reduction")  # noqa: SLF001
        for verb in ("get", "set")
    )
    for kind in ("bf16", "fp16")
}

matmul = register(OP, "aten", _call, kind="vendor", supports=supports)
