"""Tiles of a matrix product: which fit it and how they are read (host), the order in which programs
walk them and the loop over K (device)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton
import triton.language as tl

from gristmill.core.problem import ALIGNMENT_BYTES, Problem
from gristmill.core.space import derive, require
from gristmill.specs.matmul import Product, product, rounds_factors, sizes


def fits(block: int, size: int, smallest: int) -> bool:
    """No block of twice the size or more, past the smallest."""
    return block == smallest or block < 2 * max(1, size)


def vector(one: Product | None) -> int:
    """How many values along K (or along its other dimension, where an operand is contiguous there)
    are 16 aligned bytes in both operands; 1 where they are not."""
    if one is None or not (one.a.aligned and one.b.aligned):
        return 1
    values = ALIGNMENT_BYTES // one.a.itemsize
    steps = [one.stride_ab, one.stride_bb]
    for spec, along_k in ((one.a, 1), (one.b, 0)):
        contiguous = along_k if spec.strides[along_k] == 1 else 1 - along_k
        if spec.strides[contiguous] != 1:
            return 1
        steps.append(spec.shape[contiguous])
        if spec.shape[1 - contiguous] != 1:
            steps.append(spec.strides[1 - contiguous])
    return values if all(step % values == 0 for step in steps) else 1


def on_scalar_units(problem: Problem) -> bool:
    """Whether its products are IEEE float32's, which no matrix unit computes."""
    return problem["a"].dtype == "float32" and not rounds_factors(problem)


def stage_bytes(config: Mapping[str, Any], problem: Problem) -> int:
    """Shared memory of the blocks in flight."""
    tile = (config["BLOCK_M"] + config["BLOCK_N"]) * config["BLOCK_K"] * problem["a"].itemsize
    return tile * config["num_stages"]


# Of every GEMM that reads its blocks through pointers.
POINTER_RULES = (
    derive(
        "ACCUMULATORS",
        lambda c, p, t: c["BLOCK_M"] * c["BLOCK_N"] // (c["num_warps"] * t.warp_size),
    ),
    require(
        "the stages need more shared memory than there is",
        lambda c, p, t: not t.is_gpu or stage_bytes(c, p) <= t.shared_memory_bytes,
    ),
    require(
        "float32 products run on scalar units: at most 32 accumulators a thread and BLOCK_K 64",
        lambda c, p, t: not on_scalar_units(p) or (c["ACCUMULATORS"] <= 32 and c["BLOCK_K"] <= 64),
    ),
    # What is not wide goes through registers, an address each.
    require(
        "a thread reads more than 64 values of a block one by one",
        lambda c, p, t: (
            (c["BLOCK_M"] + c["BLOCK_N"]) * c["BLOCK_K"] <= 64 * c["num_warps"] * t.warp_size
            or vector(product(p)) > 1
        ),
    ),
    require(
        "a warp has less than one 16 x 16 tile",
        lambda c, p, t: c["BLOCK_M"] * c["BLOCK_N"] >= 256 * c["num_warps"],
    ),
    require("BLOCK_M is twice M or more", lambda c, p, t: fits(c["BLOCK_M"], sizes(p)[0], 16)),
    require("BLOCK_N is twice N or more", lambda c, p, t: fits(c["BLOCK_N"], sizes(p)[1], 16)),
    require("BLOCK_K is twice K or more", lambda c, p, t: fits(c["BLOCK_K"], sizes(p)[2], 16)),
)


@triton.jit
def known_multiple(x, OF: tl.constexpr):
    """`x`, a multiple of OF, so that the compiler sees it. It knows of multiples of 16 only; and of
    an argument that is not specialised nothing: there `tl.multiple_of` has no effect (3.6)."""
    return x // OF * OF if OF > 1 else x


@triton.jit
def known_vectors(
    M, stride_am, N, stride_bn, K, stride_ak, stride_bk,
    A_ALONG_M: tl.constexpr, B_ALONG_N: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """The arguments, with what `vector` found made known: loads take 16 bytes at a time."""
    if A_ALONG_M:
        M, stride_ak = known_multiple(M, VECTOR), known_multiple(stride_ak, VECTOR)
    else:
        stride_am = known_multiple(stride_am, VECTOR)
    if B_ALONG_N:
        N, stride_bk = known_multiple(N, VECTOR), known_multiple(stride_bk, VECTOR)
    else:
        stride_bn = known_multiple(stride_bn, VECTOR)
    if not (A_ALONG_M and B_ALONG_N):
        K = known_multiple(K, VECTOR)
    return M, stride_am, N, stride_bn, K, stride_ak, stride_bk


@triton.jit
def grouped_tile(tile, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """Row and column of a tile: `GROUP_M` rows of tiles are walked column by column, so that L2
    keeps both operands."""
    group = tile // (GROUP_M * tiles_n)
    first_m = group * GROUP_M
    rows = min(tiles_m - first_m, GROUP_M)
    within = tile % (GROUP_M * tiles_n)
    return first_m + within % rows, within // rows


@triton.jit
def add_products(
    acc, a, stride_ak, b, stride_bk, m_mask, n_mask, first, last,
    A_ALONG_M: tl.constexpr, B_ALONG_N: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, EVICT_A: tl.constexpr, EVICT_B: tl.constexpr,
):  # fmt: skip
    """`acc + a @ b` over columns `first` to `last` of `a`; `a` and `b` point at the first block.

    An operand contiguous along K has no mask of its own: past its last row it points at a row that
    it has. `EVEN_K`: `last - first` is a multiple of BLOCK_K.
    """
    k = tl.arange(0, BLOCK_K)
    for start in range(first, last, BLOCK_K):
        if A_ALONG_M:
            mask = m_mask[:, None] & (k[None, :] < last - start)
            x = tl.load(a, mask=mask, other=0.0, eviction_policy=EVICT_A)
        elif EVEN_K:
            x = tl.load(a, eviction_policy=EVICT_A)
        else:
            x = tl.load(a, mask=k[None, :] < last - start, other=0.0, eviction_policy=EVICT_A)
        if B_ALONG_N:
            mask = n_mask[None, :] & (k[:, None] < last - start)
            y = tl.load(b, mask=mask, other=0.0, eviction_policy=EVICT_B)
        elif EVEN_K:
            y = tl.load(b, eviction_policy=EVICT_B)
        else:
            y = tl.load(b, mask=k[:, None] < last - start, other=0.0, eviction_policy=EVICT_B)
        acc = tl.dot(x, y, acc, input_precision=PRECISION)
        a += BLOCK_K * stride_ak
        b += BLOCK_K * stride_bk
    return acc
