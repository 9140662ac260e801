"""`out = a @ b`, one program per output tile, operands read through pointers.

Tiles are walked in groups of rows so that L2 keeps both operands; float32 is IEEE. Takes every
layout, alignment and size, so it is the fallback of the family; wins for odd sizes, small problems
and devices without TMA.
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
from gristmill.core.space import Space, choice, derive, pow2, require
from gristmill.core.target import Target
from gristmill.kernels.device.tiles import grouped_tile
from gristmill.specs.matmul import OP, sizes

INT32_ELEMENTS = 2**31
MAX_SIZE = INT32_ELEMENTS - 1024  # the end of the last block of a dimension is an int32 too


@triton.jit(do_not_specialize=["M"])
def _matmul_fwd_tiled_kernel(
    a_ptr, stride_am, stride_ak,
    b_ptr, stride_bk, stride_bn,
    out_ptr, M, N, K,
    A_ALONG_M: tl.constexpr, B_ALONG_N: tl.constexpr,
    EVEN_K: tl.constexpr, M_IS_16X: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    if (
        M_IS_16X
    ):  # M is not specialised (tokens): only operands contiguous along M gain from knowing
        M = tl.multiple_of(M, 16)
    pid_m, pid_n = grouped_tile(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP_M)
    m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    m_mask, n_mask = m < M, n < N
    # An operand contiguous along K reads row 0 again past its end instead of masking: its loads
    # stay unpredicated.
    a_rows = m if A_ALONG_M else tl.where(m_mask, m, 0)
    b_cols = n if B_ALONG_N else tl.where(n_mask, n, 0)
    if WIDE:
        a_rows, b_cols = a_rows.to(tl.int64), b_cols.to(tl.int64)
        m, n = m.to(tl.int64), n.to(tl.int64)
        k_wide = k.to(tl.int64)
        stride_ak, stride_bk = tl.cast(stride_ak, tl.int64), tl.cast(stride_bk, tl.int64)
    else:
        k_wide = k
    a = a_ptr + a_rows[:, None] * stride_am + k_wide[None, :] * stride_ak
    b = b_ptr + k_wide[:, None] * stride_bk + b_cols[None, :] * stride_bn
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        if A_ALONG_M:
            x = tl.load(a, mask=m_mask[:, None] & (k[None, :] < K - start), other=0.0)
        elif EVEN_K:
            x = tl.load(a)
        else:
            x = tl.load(a, mask=k[None, :] < K - start, other=0.0)
        if B_ALONG_N:
            y = tl.load(b, mask=n_mask[None, :] & (k[:, None] < K - start), other=0.0)
        elif EVEN_K:
            y = tl.load(b)
        else:
            y = tl.load(b, mask=k[:, None] < K - start, other=0.0)
        acc = tl.dot(x, y, acc, input_precision="ieee")
        a += BLOCK_K * stride_ak
        b += BLOCK_K * stride_bk
    out = out_ptr + m[:, None] * N + n[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=m_mask[:, None] & n_mask[None, :])


def _is_float32(problem: Problem) -> bool:
    return problem["a"].dtype == "float32"


def _shared_bytes(config: Mapping[str, Any], problem: Problem) -> int:
    tile = (config["BLOCK_M"] + config["BLOCK_N"]) * config["BLOCK_K"] * problem["a"].itemsize
    return tile * max(1, config["num_stages"])


def _fits_problem(block: int, size: int, smallest: int) -> bool:
    """No block of twice the size or more, past the smallest."""
    return block == smallest or block < 2 * max(1, size)


SPACE = Space(
    pow2("BLOCK_M", 16, 256),
    pow2("BLOCK_N", 16, 256),
    pow2("BLOCK_K", 16, 256),
    choice("GROUP_M", 1, 4, 8, 16),
    pow2("num_warps", 1, 8),
    choice("num_stages", 1, 2, 3, 4, 5),
    derive(
        "ACCUMULATORS",
        lambda c, p, t: c["BLOCK_M"] * c["BLOCK_N"] // (c["num_warps"] * t.warp_size),
    ),
    require(
        "the stages need more shared memory than there is",
        lambda c, p, t: not t.is_gpu or _shared_bytes(c, p) <= t.shared_memory_bytes,
    ),
    require(
        "a thread holds more than 128 accumulators",
        lambda c, p, t: c["ACCUMULATORS"] <= 128,
    ),
    require(
        "float32 products run on scalar units: at most 32 accumulators a thread and BLOCK_K 64",
        lambda c, p, t: not _is_float32(p) or (c["ACCUMULATORS"] <= 32 and c["BLOCK_K"] <= 64),
    ),
    require(
        "a warp has less than one 16 x 16 tile",
        lambda c, p, t: c["BLOCK_M"] * c["BLOCK_N"] >= 256 * c["num_warps"],
    ),
    require(
        "BLOCK_M is twice M or more",
        lambda c, p, t: _fits_problem(c["BLOCK_M"], p["a"].shape[0], 16),
    ),
    require(
        "BLOCK_N is twice N or more",
        lambda c, p, t: _fits_problem(c["BLOCK_N"], p["b"].shape[1], 16),
    ),
    require(
        "BLOCK_K is twice K or more",
        lambda c, p, t: _fits_problem(c["BLOCK_K"], p["a"].shape[1], 16),
    ),
)

# (BLOCK_M, BLOCK_N, num_warps), widest first: the prior takes the first that fills the device.
_TILES = ((128, 256, 8), (128, 128, 8), (128, 64, 4), (64, 64, 4), (64, 32, 4), (32, 32, 2))
_TILES_NARROW_LOADS = ((128, 64, 8), (64, 64, 8), (32, 32, 4))
_TILES_FLOAT32 = ((128, 64, 8), (64, 64, 8), (64, 32, 4), (32, 32, 4), (16, 32, 2))


def _vectorises(problem: Problem) -> bool:
    """Whether Triton widens the loads: it knows of multiples of 16 elements only. Else a tile is
    read value by value, through registers."""
    strides = (
        stride
        for spec in problem.tensors.values()
        for size, stride in zip(spec.shape, spec.strides, strict=True)
        if size > 1 and stride != 1
    )
    aligned = all(spec.aligned for spec in problem.tensors.values())
    return aligned and sizes(problem)[2] % 16 == 0 and all(s % 16 == 0 for s in strides)


def _prior(problem: Problem, target: Target) -> dict[str, Value]:
    """The widest tile that keeps seven in ten processors busy; for few rows, deep tiles (as fast as
    cuBLAS at M = 16)."""
    m, n, k = sizes(problem)
    narrow = _is_float32(problem) or not _vectorises(problem)
    tiles = _TILES if target.capability >= 90 else _TILES[1:]  # 128 x 256 fills sm_80's registers
    if narrow:
        tiles = _TILES_FLOAT32 if _is_float32(problem) else _TILES_NARROW_LOADS
    fitting = [t for t in tiles if _fits_problem(t[0], m, 16) and _fits_problem(t[1], n, 16)]
    fitting = fitting or [(16, 32, 2) if n > 16 else (16, 16, 1)]
    enough = 0.7 * target.num_sms
    block_m, block_n, warps = next(
        (t for t in fitting if triton.cdiv(m, t[0]) * triton.cdiv(n, t[1]) >= enough),
        fitting[-1],
    )
    config = {"BLOCK_M": block_m, "BLOCK_N": block_n, "GROUP_M": 8, "num_warps": warps}
    deep = {16: 256, 32: 128, 64: 128}
    config["BLOCK_K"] = 32 if narrow else deep.get(block_m, 64)
    while not _fits_problem(config["BLOCK_K"], k, 16):
        config["BLOCK_K"] //= 2
    config["num_stages"] = 5 if block_m <= 64 else 4
    while config["num_stages"] > 1 and _shared_bytes(config, problem) > target.shared_memory_bytes:
        config["num_stages"] -= 1
    return dict(config)


def supports(problem: Problem, target: Target) -> str | None:
    del target
    longest = max(sizes(problem))
    return f"a dimension of {longest} is past {MAX_SIZE}" if longest > MAX_SIZE else None


def _launch(
    args: tuple[Any, ...],
    outputs: tuple[torch.Tensor, ...],
    workspace: tuple[torch.Tensor, ...],
    config: Config,
) -> tuple[Launch, ...]:
    del workspace
    a, b = args
    (m, k), n = a.shape, b.shape[1]
    if m == 0 or n == 0:
        return ()
    a_along_m, b_along_n = a.stride(0) == 1 != a.stride(1), b.stride(1) == 1 != b.stride(0)
    extents = (TensorSpec.of(a).extent, TensorSpec.of(b).extent, m * n)
    return (
        Launch(
            kernel=_matmul_fwd_tiled_kernel,
            grid=(triton.cdiv(m, config["BLOCK_M"]) * triton.cdiv(n, config["BLOCK_N"]),),
            args=(a, *a.stride(), b, *b.stride(), outputs[0], m, n, k),
            constexprs={
                "A_ALONG_M": a_along_m,
                "B_ALONG_N": b_along_n,
                "EVEN_K": k % config["BLOCK_K"] == 0,
                "M_IS_16X": a_along_m and m % 16 == 0,
                "WIDE": max(extents) >= INT32_ELEMENTS,
                **{name: config[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M")},
            },
            options={"num_warps": config["num_warps"], "num_stages": config["num_stages"]},
        ),
    )


matmul = register(OP, "tiled", _launch, space=SPACE, prior=_prior, supports=supports)
