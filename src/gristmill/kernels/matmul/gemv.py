"""`out = a @ b` for one row of `a`: every element of `b` read once, multiplied and summed in
float32.

A program sums a few columns of the result, walking K in wide blocks of 16-byte loads that leave L2
to `a` (`evict_first`, which only plain loads keep). FOLD adds the products of a load at once: an
eighth of the sums in registers, so that more programs share a processor. A batch is so many rows,
each with a matrix of its own. Made for one token at decode, where reading the weight is all there
is to do (docs/performance/matmul.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from gristmill.core.config import Config, Value
from gristmill.core.launch import Launch
from gristmill.core.problem import Problem, TensorSpec
from gristmill.core.registry import register
from gristmill.core.space import Space, choice, pow2, require
from gristmill.core.target import Target
from gristmill.kernels.device.tiles import fits, known_multiple, vector
from gristmill.specs.matmul import OP, product, product_of, sizes, why_not_merged

MAX_K = 2**31 - 2**14  # the end of the last block of K is an int32
MAX_COLUMNS = 2**31 - 2**7  # a program for each, and the end of the last block is an int32


@triton.jit
def _matmul_fwd_gemv_kernel(
    a_ptr, stride_ab, b_ptr, stride_bb, stride_bn, out_ptr, N, K,
    IS_BATCHED: tl.constexpr, EVEN_K: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, FOLD: tl.constexpr, EVICT: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    K, stride_bn = known_multiple(K, VECTOR), known_multiple(stride_bn, VECTOR)
    if IS_BATCHED:
        blocks_n = tl.cdiv(N, BLOCK_N)
        batch = (pid // blocks_n).to(tl.int64)
        pid = pid % blocks_n
        a_ptr += batch * known_multiple(stride_ab, VECTOR)
        b_ptr += batch * known_multiple(stride_bb, VECTOR)
        out_ptr += batch * N
    cols = pid * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    col_mask = cols < N
    # Past the last column the first one is read again: no load is predicated for it.
    b_rows = tl.where(col_mask, cols, 0).to(tl.int64)[:, None] * stride_bn
    # One step a block from here on: with the columns' offsets in the loop, ptxas puts sums between
    # the loads, and three to seven of eight are in flight.
    b_block, a_block = b_ptr + b_rows + ks[None, :], a_ptr + ks
    acc = tl.zeros((BLOCK_N, BLOCK_K // FOLD), tl.float32)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        if EVEN_K:
            b = tl.load(b_block + start, eviction_policy=EVICT)
            a = tl.load(a_block + start, eviction_policy="evict_last")
        else:
            k_mask = ks < K - start
            b = tl.load(b_block + start, mask=k_mask[None, :], other=0.0, eviction_policy=EVICT)
            a = tl.load(a_block + start, mask=k_mask, other=0.0, eviction_policy="evict_last")
        products = b.to(tl.float32) * a.to(tl.float32)[None, :]
        if FOLD == 1:
            acc += products
        else:  # a thread's neighbours, in its own registers
            acc += tl.sum(tl.reshape(products, (BLOCK_N, BLOCK_K // FOLD, FOLD)), axis=2)
    out = tl.sum(acc, axis=1).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + cols, out, mask=col_mask)


def _per_thread(config: Mapping[str, Any], target: Target) -> float:
    return config["BLOCK_N"] * config["BLOCK_K"] / (config["num_warps"] * target.warp_size)


SPACE = Space(
    pow2("BLOCK_N", 1, 64),
    pow2("BLOCK_K", 128, 8192),
    choice("FOLD", 1, 8),
    choice("EVICT", "", "evict_first"),
    choice("STAGES", 1, 2, 3),
    pow2("num_warps", 1, 16),
    require(
        "a thread holds more than 64 sums, or reads more than 128 values",
        lambda c, p, t: _per_thread(c, t) <= min(128, 64 * c["FOLD"]),
    ),
    require(
        "a thread has less than two 16-byte loads in flight",
        lambda c, p, t: _per_thread(c, t) * p["b"].itemsize >= 32,
    ),
    require(
        "BLOCK_K is twice K or more",
        lambda c, p, t: fits(c["BLOCK_K"], sizes(p)[2], 128),
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
    """Four columns of 4,096 or 2,048 products a program, 64 products a thread: the fastest on an
    H200 (1.02-1.08x cuBLAS). A block that divides K needs no masks."""
    k = sizes(problem)[2]
    smallest = max(128, triton.next_power_of_2(k))
    block = next((b for b in (4096, 2048, 1024, 512) if k % b == 0), 4096)
    block = min(block, smallest)
    columns = max(4, 2048 // block)
    warps = max(1, columns * block // (64 * target.warp_size))
    config = {"BLOCK_N": columns, "BLOCK_K": block, "num_warps": warps}
    return {**config, "FOLD": 1, "EVICT": "evict_first", "STAGES": 1}


def supports(problem: Problem, target: Target) -> str | None:
    del target
    one = product(problem)
    if one is None:
        return why_not_merged(problem)
    m, n, k, batch = sizes(problem)
    if m != 1:
        return f"`a` has {m} rows; this kernel takes one"
    if k > 1 and one.a.strides[1] != 1:
        return "`a` has no unit stride along K"
    if k > 1 and one.b.strides[0] != 1:
        return "`b` has no unit stride along K"
    if k > MAX_K:
        return f"K is {k}, past {MAX_K}"
    return f"{batch * n} columns are past {MAX_COLUMNS}" if batch * n > MAX_COLUMNS else None


def _launch(
    args: tuple[Any, ...],
    outputs: tuple[torch.Tensor, ...],
    workspace: tuple[torch.Tensor, ...],
    config: Config,
) -> tuple[Launch, ...]:
    del workspace
    a, b, _ = args  # a sum of products on scalar units is exact to float32, whatever is allowed
    one = product_of(TensorSpec.of(a), TensorSpec.of(b))
    assert one is not None
    k, n = one.b.shape
    names = ("BLOCK_N", "BLOCK_K", "FOLD", "EVICT", "STAGES")
    return (
        Launch(
            kernel=_matmul_fwd_gemv_kernel,
            grid=(one.batch * triton.cdiv(n, config["BLOCK_N"]),),
            args=(
                *(a, one.stride_ab, b, one.stride_bb, one.b.strides[1]),
                *(outputs[0], n, k),
            ),
            constexprs={
                "IS_BATCHED": one.batch > 1,
                "EVEN_K": k % config["BLOCK_K"] == 0,
                "VECTOR": vector(one),
                **{name: config[name] for name in names},
            },
            options={"num_warps": config["num_warps"]},
        ),
    )


# Untuned, it goes before cuBLAS: tuned it is 3 to 19% faster on Llama-3-8B's projections (H200).
matmul = register(OP, "gemv", _launch, space=SPACE, prior=_prior, supports=supports, preference=1)
