"""`out = a @ b` for one row of `a`: every element of `b` read once, multiplied and summed in
float32.

A program sums a few columns of the result, walking K in wide blocks of 16-byte loads that leave L2
to `a` (`evict_first`, which only plain loads keep). Wins for one token at decode, where reading the
weight is all there is to do (docs/performance/matmul.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from gristmill.core.config import Config, Value
from gristmill.core.launch import Launch
from gristmill.core.problem import Problem
from gristmill.core.registry import register
from gristmill.core.space import Space, choice, pow2, require
from gristmill.core.target import Target
from gristmill.specs.matmul import OP, sizes

MAX_K = 2**31 - 2**14  # the end of the last block of K is an int32


@triton.jit
def _matmul_fwd_gemv_kernel(
    a_ptr, b_ptr, stride_bn, out_ptr, N, K,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVICT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    cols = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    col_mask = cols < N
    b_rows = b_ptr + cols[:, None] * stride_bn
    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        k_mask = ks < K - start
        mask = col_mask[:, None] & k_mask[None, :]
        b = tl.load(b_rows + (start + ks)[None, :], mask=mask, other=0.0, eviction_policy=EVICT)
        a = tl.load(a_ptr + start + ks, mask=k_mask, other=0.0, eviction_policy="evict_last")
        acc += b.to(tl.float32) * a.to(tl.float32)[None, :]
    out = tl.sum(acc, axis=1).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + cols, out, mask=col_mask)


def _per_thread(config: Mapping[str, Any], target: Target) -> float:
    return config["BLOCK_N"] * config["BLOCK_K"] / (config["num_warps"] * target.warp_size)


SPACE = Space(
    pow2("BLOCK_N", 1, 16),
    pow2("BLOCK_K", 256, 8192),
    choice("EVICT", "", "evict_first"),
    choice("STAGES", 1, 2, 3),
    pow2("num_warps", 1, 16),
    require(
        "a thread holds more than 64 sums",
        lambda c, p, t: _per_thread(c, t) <= 64,
    ),
    require(
        "a thread has less than two 16-byte loads in flight",
        lambda c, p, t: _per_thread(c, t) * p["b"].itemsize >= 32,
    ),
    require(
        "BLOCK_K is twice K or more",
        lambda c, p, t: c["BLOCK_K"] == 256 or c["BLOCK_K"] < 2 * p["a"].shape[1],
    ),
    require(
        "loads in flight need more shared memory than there is",
        lambda c, p, t: (
            c["STAGES"] == 1
            or not t.is_gpu
            or c["STAGES"] * (c["BLOCK_N"] + 1) * c["BLOCK_K"] * p["b"].itemsize
            <= t.shared_memory_bytes
        ),
    ),
)


def _prior(problem: Problem, target: Target) -> dict[str, Value]:
    """Four columns a program and 64 products a thread: enough loads in flight, no loop over
    stages."""
    _, _, k = sizes(problem)
    block = min(4096, max(256, triton.next_power_of_2(k)))
    warps = max(1, 4 * block // (64 * target.warp_size))
    return {"BLOCK_N": 4, "BLOCK_K": block, "EVICT": "evict_first", "STAGES": 1, "num_warps": warps}


def supports(problem: Problem, target: Target) -> str | None:
    del target
    m, _, k = sizes(problem)
    if m != 1:
        return f"`a` has {m} rows; this kernel takes one"
    if k > 1 and problem["a"].strides[1] != 1:
        return "`a` has no unit stride along K"
    if k > 1 and problem["b"].strides[0] != 1:
        return "`b` has no unit stride along K"
    if k > MAX_K:
        return f"K is {k}, past {MAX_K}"
    return None


def _launch(
    args: tuple[Any, ...],
    outputs: tuple[torch.Tensor, ...],
    workspace: tuple[torch.Tensor, ...],
    config: Config,
) -> tuple[Launch, ...]:
    del workspace
    a, b = args
    k, n = b.shape
    names = ("BLOCK_N", "BLOCK_K", "EVICT", "STAGES")
    return (
        Launch(
            kernel=_matmul_fwd_gemv_kernel,
            grid=(triton.cdiv(n, config["BLOCK_N"]),),
            args=(a, b, b.stride(1), outputs[0], n, k),
            constexprs={name: config[name] for name in names},
            options={"num_warps": config["num_warps"]},
        ),
    )


# Where nothing is measured cuBLAS goes before it, until it has been measured itself.
matmul = register(OP, "gemv", _launch, space=SPACE, prior=_prior, supports=supports)
