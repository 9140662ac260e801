"""What users' kernels take out of another module of theirs."""

from __future__ import annotations

import triton
import triton.language as tl
import users_inner as inner

SCALE = tl.constexpr(2.0)


@triton.jit
def scaled(x):
    """`x + 1`, with the 1 of a third module."""
    return x + inner.OFFSET
