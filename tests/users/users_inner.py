"""A constant that is two modules away from a kernel."""

from __future__ import annotations

import triton.language as tl

OFFSET = tl.constexpr(1.0)
