"""Kernels as a user of `gristmill.autotune` has them: in a module of theirs, some of them faulty.

Imported by tests of the interpreter and of the GPU, and by the worker, which finds it by its name.
"""

from __future__ import annotations

import os
import signal
import time

import torch
import triton
import triton.language as tl

FACTOR = tl.constexpr(2.0)
FAULTS = ("none", "garbage", "overrun", "partial", "raise", "trap", "hang")


@triton.jit
def times(x, y):
    return x * y


@triton.jit
def double(x_ptr, y_ptr, n, FAULT: tl.constexpr, BLOCK: tl.constexpr):
    """`y = 2 x`, unless it is faulty."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0)
    if FAULT == "raise":
        tl.static_assert(BLOCK < 0, "it does not compile")
    if FAULT == "trap":
        tl.store(y_ptr + (offsets.to(tl.int64) + (1 << 45)), x)
    if FAULT == "hang":
        while tl.load(y_ptr, volatile=True) != 12345.0:
            tl.debug_barrier()
    if FAULT == "garbage":
        x = x * 1.5
    if FAULT == "overrun":
        tl.store(y_ptr + n + offsets, x, mask=offsets < 8)
    if FAULT == "partial":
        mask = offsets < n - 1
    tl.store(y_ptr + offsets, times(x, FACTOR), mask=mask)


@triton.jit
def add_one(x_ptr, n, BLOCK: tl.constexpr):
    """`x += 1`, in place: every launch shows."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    tl.store(x_ptr + offsets, tl.load(x_ptr + offsets, mask=mask) + 1, mask=mask)


@triton.jit
def count(x_ptr, total_ptr, n, BLOCK: tl.constexpr):
    """`total += sum(x)`: right where the total starts at zero."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < n, other=0)
    tl.atomic_add(total_ptr, tl.sum(x, axis=0))


@triton.jit
def double_tiles(x_desc, y_desc, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """`y = 2 x`, through descriptors made on the host."""
    row, col = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    y_desc.store([row, col], x_desc.load([row, col]) * 2)


@triton.jit
def gather(x_ptr, index_ptr, y_ptr, n, BLOCK: tl.constexpr):
    """`y = x[index]`: traps on made-up indices."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    index = tl.load(index_ptr + offsets, mask=mask, other=0)
    tl.store(y_ptr + offsets, tl.load(x_ptr + index, mask=mask), mask=mask)


def doubled(x: torch.Tensor, BLOCK: int = 128) -> torch.Tensor:
    """A function that launches `double`; its config comes as keywords."""
    y = torch.empty_like(x)
    double[(triton.cdiv(x.numel(), BLOCK),)](x, y, x.numel(), "none", BLOCK=BLOCK)
    return y


def plain(x: torch.Tensor, scale: float = 1.0, fault: str = "none") -> torch.Tensor:
    """A function that launches nothing of Triton's: for a machine with no GPU."""
    if fault == "raise":
        raise ValueError("it does not feel like it")
    if fault == "trap":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault == "hang":
        time.sleep(3600)
    if fault == "change":
        return torch.add(x, x.clone(), out=x).clone()
    return x * scale * (3 if fault == "garbage" else 2)
