"""The sum of what many programs have each summed: the second half of a deterministic reduction.

It may be launched while the kernel before it ends (programmatic dependent launch, sm_90): that one
says `gdc_launch_dependents` when its loop is over, and this one waits until all of it has ended and
is visible.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from gristmill.core.launch import Launch
from gristmill.core.target import Target

TILE = 4096  # values that a program asks for at once: 32 a thread, eight 16-byte loads
NUM_WARPS = 4
STAGES = 3  # so two tiles on their way before the first is added


@triton.jit(do_not_specialize=["n_partials"])
def _sum_partials_kernel(
    partial_ptr, out_ptr, other_ptr, n_partials, N, stride,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    if OVERLAP:
        gdc_wait()  # before the loop: inside, loads would be moved past it
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    col_mask = cols < stride  # past N are zeros, so that accesses are whole
    total = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    for start in tl.range(0, n_partials, BLOCK_P, num_stages=STAGES):
        rows = start + tl.arange(0, BLOCK_P)
        mask = (rows < n_partials)[:, None] & col_mask[None, :]
        offset = (rows.to(tl.int64) * stride)[:, None] + cols[None, :]
        total += tl.load(partial_ptr + offset, mask=mask, other=0.0)
    out = tl.sum(total, axis=0).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + cols, out, mask=cols < N)
    if other_ptr is not None:
        behind = cols - stride // 2
        tl.store(other_ptr + behind, out, mask=(behind >= 0) & (behind < N))


@triton.jit
def padded_width(N):
    """The width of a program's sums with zeros up to whole accesses, such that Triton knows it."""
    return (N + 15) // 16 * 16


@triton.jit
def zero_past(partial_ptr, N, width):
    """Zeros behind a program's `N` sums, up to their padded width."""
    past = N + tl.arange(0, 16)
    tl.store(partial_ptr + past, tl.zeros((16,), tl.float32), mask=past < width)


def share_width(width: int) -> int:
    """`padded_width` on the host."""
    return triton.cdiv(width, 16) * 16


def sum_block(width: int, target: Target) -> int:
    """Columns of a program, so few that every processor has some, and at least 32 bytes of each
    row."""
    block = 64
    while block > 8 and triton.cdiv(width, block) < target.num_sms:
        block //= 2
    return block


def can_overlap(target: Target) -> bool:
    """Whether a target can start a launch while the one before it ends."""
    return target.capability >= 90


def overlaps(config: Mapping[str, Any]) -> bool:
    """Whether the last launch of a config overlaps the one before it; the interpreter has one after
    the other."""
    interpreted = type(_sum_partials_kernel).__name__ == "InterpretedFunction"
    return config.get("OVERLAP", False) and not interpreted


def sum_partials(
    partials: torch.Tensor,
    out: torch.Tensor,
    block_n: int,
    overlap: bool = False,
    other: torch.Tensor | None = None,
) -> Launch:
    """`out[n] = sum over p of partials[p, n]`, always in the same order; `partials` is a contiguous
    float32 (P, N), or (P, `share_width(N)`) with zeros past N; with `other`, as wide as `out`,
    (P, 2 * `share_width(N)`): the second half's sums."""
    n_partials, stride = partials.shape
    width = out.shape[0]
    args: tuple[Any, ...] = (partials, out, other, n_partials, width, stride)
    return Launch(
        kernel=_sum_partials_kernel,
        grid=(triton.cdiv(width if other is None else stride, block_n),),
        args=args,
        constexprs={
            "BLOCK_P": TILE // block_n,
            "BLOCK_N": block_n,
            "STAGES": STAGES,
            "OVERLAP": overlap,
        },
        # An option of CUDA alone: where it is not asked for, it is not named.
        options={"num_warps": NUM_WARPS, **({"launch_pdl": True} if overlap else {})},
    )
