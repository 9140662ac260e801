"""`out = a @ b` with K split among programs, for few rows: the weight is read by enough processors.

A program sums one tile over its part of K; where there are parts, a second launch adds their
float32 sums in order (deterministic, no atomics), with PDL (programmatic dependent launch) set up
while the first one runs. SWAP computes `out.T = b.T @ a.T`, so that the
long N lies along the 64 rows of a Hopper product and few tokens along its short side. EVICT reads
the weight past L2, which only plain loads (one stage) keep. Made for 2 to 64 tokens at decode
(docs/performance/matmul.md).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from gristmill import settings
from gristmill.core.config import Config, Value
from gristmill.core.launch import Launch
from gristmill.core.problem import Problem, TensorSpec
from gristmill.core.registry import register
from gristmill.core.space import Space, choice, derive, flag, pow2, require, when
from gristmill.core.target import Target
from gristmill.kernels.device.tiles import (
    POINTER_RULES,
    add_products,
    fits,
    known_multiple,
    known_vectors,
    on_scalar_units,
    stage_bytes,
    vector,
)
from gristmill.specs.matmul import (
    OP,
    product,
    product_of,
    sizes,
    why_not_one_product,
)

MAX_SIZE = 2**31 - 2**14  # the end of the last block of a part is an int32 too
FEW_ROWS = 64
WAVES = 4  # of 64 x 64 tiles: from here on a split has nothing to fill
BLOCK_REDUCE = 1024


# Of `left @ right`, which are `a` and `b`, or `b.T` and `a.T` where IS_SWAPPED. Each part of K has
# an output of its own, one after the other.
@triton.jit(do_not_specialize=["M", "N"])
def _matmul_fwd_split_k_kernel(
    left_ptr, stride_lm, stride_lk,
    right_ptr, stride_rk, stride_rn,
    out_ptr, stride_om, stride_on, M, N, K,
    LEFT_ALONG_M: tl.constexpr, RIGHT_ALONG_N: tl.constexpr, IS_SWAPPED: tl.constexpr,
    COLUMNS_OF: tl.constexpr, VECTOR: tl.constexpr, EVEN_K: tl.constexpr,
    EVICT: tl.constexpr, PRECISION: tl.constexpr, OVERLAPS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    if OVERLAPS:  # the sum's programs are on their processors, waiting, when the last part is done
        tl.extra.cuda.gdc_launch_dependents()
    M, stride_lm, N, stride_rn, K, stride_lk, stride_rk = known_vectors(
        M, stride_lm, N, stride_rn, K, stride_lk, stride_rk, LEFT_ALONG_M, RIGHT_ALONG_N, VECTOR
    )
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    tiles = tiles_m * tiles_n
    part, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    parts = tl.num_programs(0) // tiles
    part_k = tl.cdiv(tl.cdiv(K, BLOCK_K), parts) * BLOCK_K
    # Tiles of the same piece of the weight are neighbours; of its columns the compiler hears here.
    if IS_SWAPPED:
        M = known_multiple(M, COLUMNS_OF)
        pid_m, pid_n = tile // tiles_n, tile % tiles_n
    else:
        N = known_multiple(N, COLUMNS_OF)
        pid_m, pid_n = tile % tiles_m, tile // tiles_m
    m = (pid_m * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = (pid_n * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    m_mask, n_mask = m < M, n < N
    rows = m if LEFT_ALONG_M else tl.where(m_mask, m, 0)
    cols = n if RIGHT_ALONG_N else tl.where(n_mask, n, 0)
    first = part * part_k
    last = first + part_k if EVEN_K else min(first + part_k, K)
    k = first + tl.arange(0, BLOCK_K).to(tl.int64)
    stride_lk, stride_rk = tl.cast(stride_lk, tl.int64), tl.cast(stride_rk, tl.int64)
    left = left_ptr + rows[:, None] * stride_lm + k[None, :] * stride_lk
    right = right_ptr + k[:, None] * stride_rk + cols[None, :] * stride_rn
    EVICT_LEFT: tl.constexpr = EVICT if IS_SWAPPED else ""
    EVICT_RIGHT: tl.constexpr = "" if IS_SWAPPED else EVICT
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    acc = add_products(
        acc, left, stride_lk, right, stride_rk, m_mask, n_mask, first, last,
        LEFT_ALONG_M, RIGHT_ALONG_N, EVEN_K, BLOCK_K, PRECISION, EVICT_LEFT, EVICT_RIGHT,
    )  # fmt: skip
    out = out_ptr + part.to(tl.int64) * M * N + m[:, None] * stride_om + n[None, :] * stride_on
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=m_mask[:, None] & n_mask[None, :])


@triton.jit
def _matmul_fwd_add_parts_kernel(
    parts_ptr, out_ptr, size, SPLIT_K: tl.constexpr, BLOCK: tl.constexpr, WAITS: tl.constexpr
):
    if WAITS:  # for the products, whose launch it may have overtaken
        tl.extra.cuda.gdc_wait()
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < size
    total = tl.zeros((BLOCK,), tl.float32)
    for part in tl.static_range(SPLIT_K):
        total += tl.load(parts_ptr + part * tl.cast(size, tl.int64) + index, mask=mask, other=0.0)
    tl.store(out_ptr + index, total.to(out_ptr.dtype.element_ty), mask=mask)


SPACE = Space(
    pow2("BLOCK_M", 16, 128),
    pow2("BLOCK_N", 16, 256),
    pow2("BLOCK_K", 16, 256),
    pow2("SPLIT_K", 1, 16),
    flag("SWAP"),
    pow2("num_warps", 1, 8),
    choice("num_stages", 1, 2, 3, 4, 5, 6),
    when(lambda c, p, t: c["num_stages"] == 1, choice("EVICT", "", "evict_first")),
    when(lambda c, p, t: c["SPLIT_K"] > 1 and t.capability >= 90, flag("PDL")),
    derive(
        "OVERLAPS",
        lambda c, p, t: c.get("PDL", False) and not settings.current().interpret,
    ),
    *POINTER_RULES,
    require(
        "a thread holds more than 64 accumulators",
        lambda c, p, t: c["ACCUMULATORS"] <= 64,
    ),
    require(
        "a thread holds more than 512 bytes of the blocks that it loads",
        lambda c, p, t: (
            c["num_stages"] > 1 or stage_bytes(c, p) <= 512 * c["num_warps"] * t.warp_size
        ),
    ),
    require(
        "a part of K is less than a block",
        lambda c, p, t: c["SPLIT_K"] == 1 or c["SPLIT_K"] * c["BLOCK_K"] <= sizes(p)[2],
    ),
)


def _prior(problem: Problem, target: Target) -> dict[str, Value]:
    """Tiles that were the fastest at M = 16 and 64 on an H200 (1.00-1.015x and .87-1.01x cuBLAS);
    K in as many parts as there are processors for."""
    m, n, k, _ = sizes(problem)
    narrow = on_scalar_units(problem) or vector(product(problem)) == 1
    block_m = min(64, max(16, triton.next_power_of_2(m)))
    block_n = 64 if m <= 32 or narrow else 128
    block_k = 32 if narrow else 256 // problem["a"].itemsize
    config: dict[str, Any] = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k}
    for name, size in zip(config, (m, n, k), strict=True):
        while not fits(config[name], size, 16):
            config[name] //= 2
    tiles = triton.cdiv(m, config["BLOCK_M"]) * triton.cdiv(n, config["BLOCK_N"])
    split = 1
    while split < 16 and 2 * split * tiles <= target.num_sms and 2 * split * config["BLOCK_K"] <= k:
        split *= 2
    area = config["BLOCK_M"] * config["BLOCK_N"]
    config["num_warps"] = 4 if area >= 1024 else max(1, area // 256)
    # 64 columns are the long side of a product of warpgroups.
    config["SWAP"] = target.capability >= 90 and m <= 32 and config["BLOCK_N"] >= 64
    overlaps = split > 1 and target.capability >= 90  # what a second launch costs, else
    config = {**config, "SPLIT_K": split, "num_stages": 4, "PDL": overlaps}
    while config["BLOCK_K"] > 16 and 2 * stage_bytes({**config, "num_stages": 1}, problem) > (
        target.shared_memory_bytes
    ):
        config["BLOCK_K"] //= 2
    while config["num_stages"] > 2 and stage_bytes(config, problem) > target.shared_memory_bytes:
        config["num_stages"] -= 1
    return config


def supports(problem: Problem, target: Target) -> str | None:
    m, n, k, _ = sizes(problem)
    longest = max(m, n, k)
    if longest > MAX_SIZE:
        return f"a dimension of {longest} is past {MAX_SIZE}"
    tiles = triton.cdiv(m, FEW_ROWS) * triton.cdiv(n, FEW_ROWS)
    if m > FEW_ROWS and tiles > WAVES * target.num_sms:
        return f"its {tiles} tiles fill the device without a split of K"
    return why_not_one_product(problem)


def _workspace(problem: Problem, config: Config) -> tuple[TensorSpec, ...]:
    m, n, _, _ = sizes(problem)
    parts = config["SPLIT_K"]
    return () if parts == 1 else (TensorSpec.contiguous((parts, m, n), "float32"),)


def _launch(
    args: tuple[Any, ...],
    outputs: tuple[torch.Tensor, ...],
    workspace: tuple[torch.Tensor, ...],
    config: Config,
) -> tuple[Launch, ...]:
    a, b, tf32 = args
    one = product_of(TensorSpec.of(a), TensorSpec.of(b))
    assert one is not None
    (m, k), n = one.a.shape, one.b.shape[1]
    if m == 0 or n == 0:
        return ()
    parts, swap = config["SPLIT_K"], config["SWAP"]
    sides = [
        (a, m, config["BLOCK_M"], one.a.strides),
        (b, n, config["BLOCK_N"], one.b.strides[::-1]),
    ]
    out_strides = (n, 1)
    if swap:
        sides, out_strides = sides[::-1], out_strides[::-1]
    (left, rows, block_m, left_strides), (right, cols, block_n, right_strides) = sides
    left_along_m = left_strides[0] == 1 != left_strides[1]
    right_along_n = right_strides[0] == 1 != right_strides[1]
    multiply = Launch(
        kernel=_matmul_fwd_split_k_kernel,
        grid=(triton.cdiv(rows, block_m) * triton.cdiv(cols, block_n) * parts,),
        args=(
            *(left, *left_strides, right, *right_strides[::-1]),
            *((workspace or outputs)[0], *out_strides, rows, cols, k),
        ),
        constexprs={
            "LEFT_ALONG_M": left_along_m,
            "RIGHT_ALONG_N": right_along_n,
            "IS_SWAPPED": swap,
            "COLUMNS_OF": 16 if n % 16 == 0 else 1,
            "VECTOR": vector(one),
            "EVEN_K": k % (config["BLOCK_K"] * parts) == 0,
            "EVICT": config.get("EVICT", ""),
            "PRECISION": "tf32" if tf32 else "ieee",
            "OVERLAPS": config["OVERLAPS"],
            "BLOCK_M": block_m,
            "BLOCK_N": block_n,
            "BLOCK_K": config["BLOCK_K"],
        },
        options={"num_warps": config["num_warps"], "num_stages": config["num_stages"]},
    )
    if parts == 1:
        return (multiply,)
    add = Launch(
        kernel=_matmul_fwd_add_parts_kernel,
        grid=(triton.cdiv(m * n, BLOCK_REDUCE),),
        args=(workspace[0], outputs[0], m * n),
        constexprs={"SPLIT_K": parts, "BLOCK": BLOCK_REDUCE, "WAITS": config["OVERLAPS"]},
        options={"num_warps": 4, **({"launch_pdl": True} if config["OVERLAPS"] else {})},
    )
    return multiply, add


matmul = register(
    OP, "split_k", _launch, space=SPACE, prior=_prior, supports=supports, workspace=_workspace
)
