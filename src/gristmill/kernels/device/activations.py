"""Activation functions on float32 values."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoids(z):
    """The sigmoids of `z` and of `-z` (which is one minus the first, without the cancellation); the
    exponential does not overflow."""
    small = tl.exp(-tl.abs(z))
    larger = 1.0 / (1.0 + small)
    smaller = small * larger
    return tl.where(z >= 0, larger, smaller), tl.where(z >= 0, smaller, larger)
