"""Users' kernels that the tests of the ahead-of-time compiler compile."""

from __future__ import annotations

import os
import signal

import triton
import triton.language as tl


@triton.jit
def scalars(out, h, g, f, d, b, n, m, BLOCK: tl.constexpr, KIND: tl.constexpr = None):
    """Every type of scalar."""
    value = h.to(tl.float32) + g.to(tl.float32) + f + d.to(tl.float32) + n + m
    if b:
        value += 1
    if KIND is not None:
        value = value.to(KIND)
    offsets = tl.arange(0, BLOCK)
    tl.store(out + offsets, tl.full((BLOCK,), 0, tl.float32) + value)


@triton.jit(do_not_specialize=["seed"])
def declared(x, bias, out, n: tl.int64, seed, scale: tl.float32, BLOCK: tl.constexpr):
    """Annotations, a pointer that may be null, an argument that is not to be specialised."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + offsets, mask=offsets < n) * scale + seed
    if bias is not None:
        value += tl.load(bias + offsets, mask=offsets < n)
    tl.store(out + offsets, value, mask=offsets < n)


@triton.jit
def copy_tile(source, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A tile through a descriptor that the host made."""
    tile = source.load([0, 0])
    rows = tl.arange(0, ROWS)[:, None]
    tl.store(out + rows * COLUMNS + tl.arange(0, COLUMNS)[None, :], tile)


@tl.core.builtin
def misbehave(fault, _semantic=None):
    """Kill or stop the compiler that comes to this, or kill the server that it was forked from."""
    victim = os.getppid() if fault.value == 4 else os.getpid()
    os.kill(victim, signal.SIGSTOP if fault.value == 3 else signal.SIGKILL)


@triton.jit
def faulty(out, n, FAULT: tl.constexpr):
    """Compiles for 0; 1 is refused, 2 kills the compiler, 3 hangs it, 4 kills its server."""
    tl.static_assert(FAULT != 1, "fault one")
    if FAULT > 1:
        misbehave(FAULT)
    tl.store(out + n, FAULT)


@triton.jit
def narrow(out, n):
    """Does not compile where `n` has 64 bits."""
    total = 0
    while total < 10:
        total = total + n
    tl.store(out, total)


@triton.jit
def _axpy_kernel(x_ptr, y_ptr, out_ptr, n, alpha, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < n)
    y = tl.load(y_ptr + at, mask=at < n)
    tl.store(out_ptr + at, x * alpha + y, mask=at < n)
