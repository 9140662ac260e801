"""What a device reaches, measured in the same run: a large copy, and a large matmul by dtype."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from gristmill.measure.statistics import median
from gristmill.measure.timing import timer
from gristmill.settings import L2State

COPY_BYTES = {"cuda": 2 << 30, "cpu": 64 << 20}  # read and written by the large copy_
MATRIX_SIZE = {"cuda": 8192, "cpu": 1024}
REPEATS = 15


@dataclass
class Ceilings:
    """What the device reaches here and now: a large `copy_`, and a large torch matmul of each
    dtype.

    Attributes:
        copy_bytes_per_s: bytes read and written by a large `copy_`, per second.
        flops_per_s: of a large square `torch.mm`, by dtype name, or of float32 with TF32 allowed
            (`tf32`); measured when first asked for.
    """

    device: torch.device
    copy_bytes_per_s: float = 0.0
    flops_per_s: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.copy_bytes_per_s:
            size_bytes = COPY_BYTES[self.device.type]
            copy_us = time_us(copy_call(size_bytes, self.device), self.device)
            self.copy_bytes_per_s = size_bytes / copy_us * 1e6

    def matrix(self, arithmetic: str) -> float:
        """Floating-point operations per second of a large matmul in this dtype, or in `tf32`."""
        if arithmetic not in self.flops_per_s:
            self.flops_per_s[arithmetic] = matrix_rate(self.device, arithmetic)
        return self.flops_per_s[arithmetic]

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        return {**data, "device": str(self.device)}


def matrix_rate(device: torch.device, arithmetic: str) -> float:
    """Floating-point operations per second of a large square `torch.mm` in this dtype, or of
    float32 with TF32 allowed (`tf32`)."""
    n, tf32 = MATRIX_SIZE[device.type], arithmetic == "tf32"
    dtype = torch.float32 if tf32 else getattr(torch, arithmetic)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        return 2 * n**3 / time_us(lambda: torch.mm(a, b), device) * 1e6
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def time_us(call: Callable[[], Any], device: torch.device, l2: L2State = "cold") -> float:
    """Device time of a call, the median of a few."""
    clock = timer(device, l2)
    call()
    clock.device_us([call], 3)
    return median(clock.device_us([call], REPEATS)[0])


def copy_call(size_bytes: int, device: torch.device) -> Callable[[], torch.Tensor]:
    """A `copy_` that reads half of `size_bytes` and writes the other half."""
    source = torch.randn(max(1, size_bytes // 8), device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)
