"""`out = a @ b`, one program per output tile, operands read through pointers.

Tiles are walked in groups of rows so that L2 keeps both operands; float32 is IEEE. Takes every
layout, alignment and size, so it is the fallback of the family; wins for odd sizes, small problems
and devices without TMA.
"""

from __future__ import annotations

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
from gristmill.kernels.device.tiles import (
    POINTER_RULES,
    add_products,
    fits,
    grouped_tile,
    known_multiple,
    known_vectors,
    on_scalar_units,
    stage_bytes,
    vector,
)
from gristmill.specs.matmul import OP, product, product_of, sizes, why_not_merged

INT32_ELEMENTS = 2**31
MAX_SIZE = INT32_ELEMENTS - 1024  # the end of the last block of a dimension is an int32 too


@triton.jit(do_not_specialize=["M"])
def _matmul_fwd_tiled_kernel(
    a_ptr, stride_ab, stride_am, stride_ak,
    b_ptr, stride_bb, stride_bk, stride_bn,
    out_ptr, M, N, K,
    IS_BATCHED: tl.constexpr, A_ALONG_M: tl.constexpr, B_ALONG_N: tl.constexpr,
    EVEN_K: tl.constexpr, VECTOR: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    M, stride_am, N, stride_bn, K, stride_ak, stride_bk = known_vectors(
        M, stride_am, N, stride_bn, K, stride_ak, stride_bk, A_ALONG_M, B_ALONG_N, VECTOR
    )
    tile, tiles_m, tiles_n = tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    if IS_BATCHED:
        batch = (tile // (tiles_m * tiles_n)).to(tl.int64)
        tile = tile % (tiles_m * tiles_n)
        a_ptr += batch * known_multiple(stride_ab, VECTOR)
        b_ptr += batch * known_multiple(stride_bb, VECTOR)
        out_ptr += batch * M * N
    pid_m, pid_n = grouped_tile(tile, tiles_m, tiles_n, GROUP_M)
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
        k = k.to(tl.int64)
        stride_ak, stride_bk = tl.cast(stride_ak, tl.int64), tl.cast(stride_bk, tl.int64)
    a = a_ptr + a_rows[:, None] * stride_am + k[None, :] * stride_ak
    b = b_ptr + k[:, None] * stride_bk + b_cols[None, :] * stride_bn
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    acc = add_products(
        acc, a, stride_ak, b, stride_bk, m_mask, n_mask, 0, K,
        A_ALONG_M, B_ALONG_N, EVEN_K, BLOCK_K, PRECISION, "", "",
    )  # fmt: skip
    out = out_ptr + m[:, None] * N + n[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=m_mask[:, None] & n_mask[None, :])


SPACE = Space(
    pow2("BLOCK_M", 16, 256),
    pow2("BLOCK_N", 16, 256),
    pow2("BLOCK_K", 16, 256),
    choice("GROUP_M", 1, 4, 8, 16),
    pow2("num_warps", 1, 8),
    choice("num_stages", 1, 2, 3, 4, 5),
    *POINTER_RULES,
    require(
        "a thread holds more than 128 accumulators",
        lambda c, p, t: c["ACCUMULATORS"] <= 128,
    ),
)

# (BLOCK_M, BLOCK_N, num_warps), widest first: the prior takes the first that fills the device.
_TILES = ((128, 256, 8), (128, 128, 8), (128, 64, 4), (64, 64, 4), (64, 32, 4), (32, 32, 2))
# Where a 16-bit `b` lies along K, ptxas waits after each of Hopper's products of 256 columns read
# through pointers ("serialized", C7515: .70x cuBLAS at 4096^3; the other layout took .97x).
_TILES_SHORT_COLUMNS = ((256, 128, 8), *_TILES[1:])
_TILES_NARROW_LOADS = ((128, 64, 8), (64, 64, 8), (32, 32, 4))
_TILES_FLOAT32 = ((128, 64, 8), (64, 64, 8), (64, 32, 4), (32, 32, 4), (16, 32, 2))


def _prior(problem: Problem, target: Target) -> dict[str, Value]:
    """The widest tile that keeps seven in ten processors busy; for few rows, deep tiles (as fast as
    cuBLAS at M = 16)."""
    m, n, k, batch = sizes(problem)
    narrow = on_scalar_units(problem) or vector(product(problem)) == 1
    tiles = _TILES if target.capability >= 90 else _TILES[1:]  # 128 x 256 fills sm_80's registers
    b = problem["b"]
    if target.capability // 10 == 9 and b.strides[-2] == 1 and b.itemsize == 2:
        tiles = _TILES_SHORT_COLUMNS
    if narrow:
        tiles = _TILES_FLOAT32 if on_scalar_units(problem) else _TILES_NARROW_LOADS
    fitting = [t for t in tiles if fits(t[0], m, 16) and fits(t[1], n, 16)]
    fitting = fitting or [(16, 32, 2) if n > 16 else (16, 16, 1)]
    enough = 0.7 * target.num_sms
    block_m, block_n, warps = next(
        (t for t in fitting if batch * triton.cdiv(m, t[0]) * triton.cdiv(n, t[1]) >= enough),
        fitting[-1],
    )
    config = {"BLOCK_M": block_m, "BLOCK_N": block_n, "GROUP_M": 8, "num_warps": warps}
    deep = {16: 256, 32: 128, 64: 128}
    config["BLOCK_K"] = 32 if narrow else deep.get(block_m, 64) * 2 // problem["a"].itemsize
    while not fits(config["BLOCK_K"], k, 16):
        config["BLOCK_K"] //= 2
    config["num_stages"] = 5 if block_m <= 64 else 4
    while config["num_stages"] > 1 and stage_bytes(config, problem) > target.shared_memory_bytes:
        config["num_stages"] -= 1
    return dict(config)


def supports(problem: Problem, target: Target) -> str | None:
    del target
    m, n, k, batch = sizes(problem)
    longest = max(m, n, k)
    if longest > MAX_SIZE:
        return f"a dimension of {longest} is past {MAX_SIZE}"
    tiles = batch * triton.cdiv(m, 16) * triton.cdiv(n, 16)
    if batch > 1 and tiles > MAX_SIZE:
        return f"{tiles} tiles are more than {MAX_SIZE}"
    return why_not_merged(problem)


def _launch(
    args: tuple[Any, ...],
    outputs: tuple[torch.Tensor, ...],
    workspace: tuple[torch.Tensor, ...],
    config: Config,
) -> tuple[Launch, ...]:
    del workspace
    a, b, tf32 = args
    merged = product_of(TensorSpec.of(a), TensorSpec.of(b))
    assert merged is not None
    (m, k), n = merged.a.shape, merged.b.shape[1]
    (stride_am, stride_ak), (stride_bk, stride_bn) = merged.a.strides, merged.b.strides
    a_along_m, b_along_n = stride_am == 1 != stride_ak, stride_bn == 1 != stride_bk
    tiles = triton.cdiv(m, config["BLOCK_M"]) * triton.cdiv(n, config["BLOCK_N"])
    if merged.batch * tiles == 0:
        return ()
    # A batch is walked by 64-bit offsets; what is within a product may need them too.
    extents = (merged.a.extent, merged.b.extent, m * n)
    return (
        Launch(
            kernel=_matmul_fwd_tiled_kernel,
            grid=(merged.batch * tiles,),
            args=(
                *(a, merged.stride_ab, stride_am, stride_ak),
                *(b, merged.stride_bb, stride_bk, stride_bn),
                *(outputs[0], m, n, k),
            ),
            constexprs={
                "IS_BATCHED": merged.batch > 1,
                "A_ALONG_M": a_along_m,
                "B_ALONG_N": b_along_n,
                "EVEN_K": k % config["BLOCK_K"] == 0,
                "VECTOR": vector(merged),
                "WIDE": max(extents) >= INT32_ELEMENTS,
                "PRECISION": "tf32" if tf32 else "ieee",
                **{name: config[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M")},
            },
            options={"num_warps": config["num_warps"], "num_stages": config["num_stages"]},
        ),
    )


matmul = register(OP, "tiled", _launch, space=SPACE, prior=_prior, supports=supports)
