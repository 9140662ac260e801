"""`out = a @ b` by persistent programs that read and write tiles through host-made TMA descriptors.

One loop over output tiles per processor, so that the next tile's loads run under this tile's
epilogue; the epilogue stores the tile in pieces, so that its shared memory stays small. TMA clips
the ragged edges. Wins for large 16-bit problems on Hopper and newer (1.02x cuBLAS at 8192^3 on an
H200).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from gristmill.core.config import Config, Value
from gristmill.core.launch import Launch, TensorMap
from gristmill.core.problem import Problem, TensorSpec
from gristmill.core.registry import register
from gristmill.core.space import Space, choice, derive, flag, pow2, require
from gristmill.core.target import Target
from gristmill.kernels.device.tiles import grouped_tile
from gristmill.specs.matmul import OP, outputs, sizes


@triton.jit
def _halves(tile, ROWS: tl.constexpr, COLS: tl.constexpr):
    """The left and the right half of a tile."""
    return tl.split(tl.permute(tl.reshape(tile, (ROWS, 2, COLS // 2)), (0, 2, 1)))


@triton.jit(do_not_specialize=["M"])
def _matmul_fwd_persistent_tma_kernel(
    a_map, b_map, out_map, M, N, K,
    A_ALONG_M: tl.constexpr, B_ALONG_N: tl.constexpr, FLATTEN: tl.constexpr, PIECES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    tiles_m, tiles_n, tiles_k = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), tl.cdiv(K, BLOCK_K)
    # The epilogue counts tiles by itself: in a flattened loop the other count would stay live
    # through the products.
    stored = tl.program_id(0) - tl.num_programs(0)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=FLATTEN):
        pid_m, pid_n = grouped_tile(tile, tiles_m, tiles_n, GROUP_M)
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(tiles_k):
            if A_ALONG_M:
                x = a_map.load([k * BLOCK_K, pid_m * BLOCK_M]).T
            else:
                x = a_map.load([pid_m * BLOCK_M, k * BLOCK_K])
            if B_ALONG_N:
                y = b_map.load([k * BLOCK_K, pid_n * BLOCK_N])
            else:
                y = b_map.load([pid_n * BLOCK_N, k * BLOCK_K]).T
            acc = tl.dot(x, y, acc)
        stored += tl.num_programs(0)
        out_m, out_n = grouped_tile(stored, tiles_m, tiles_n, GROUP_M)
        row, col = out_m * BLOCK_M, out_n * BLOCK_N
        if PIECES == 1:
            out_map.store([row, col], acc.to(out_map.dtype))
        else:
            left, right = _halves(acc, BLOCK_M, BLOCK_N)
            if PIECES == 2:
                out_map.store([row, col], left.to(out_map.dtype))
                out_map.store([row, col + BLOCK_N // 2], right.to(out_map.dtype))
            else:
                PIECE: tl.constexpr = BLOCK_N // 4
                first, second = _halves(left, BLOCK_M, BLOCK_N // 2)
                out_map.store([row, col], first.to(out_map.dtype))
                out_map.store([row, col + PIECE], second.to(out_map.dtype))
                third, fourth = _halves(right, BLOCK_M, BLOCK_N // 2)
                out_map.store([row, col + 2 * PIECE], third.to(out_map.dtype))
                out_map.store([row, col + 3 * PIECE], fourth.to(out_map.dtype))


def _shared_bytes(config: Mapping[str, Any], problem: Problem) -> int:
    """Of one program: the stages, and a piece of the output; 1 KiB for barriers and alignment."""
    m, n, k = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
    stages = config["num_stages"] * (m + n) * k
    return (stages + m * n // config["PIECES"]) * problem["a"].itemsize + 1024


SPACE = Space(
    pow2("BLOCK_M", 64, 256),
    pow2("BLOCK_N", 16, 256),
    pow2("BLOCK_K", 32, 128),
    choice("GROUP_M", 1, 4, 8, 16),
    choice("PIECES", 1, 2, 4),
    flag("FLATTEN"),
    choice("num_warps", 4, 8),
    choice("num_stages", 2, 3, 4, 5, 6),
    choice("PROGRAMS_PER_SM", 1, 2),
    derive("NUM_PROGRAMS", lambda c, p, t: c["PROGRAMS_PER_SM"] * t.num_sms),
    derive(
        "ACCUMULATORS",
        lambda c, p, t: c["BLOCK_M"] * c["BLOCK_N"] // (c["num_warps"] * t.warp_size),
    ),
    require(
        "the stages and the epilogue need more shared memory than there is",
        lambda c, p, t: (
            not t.is_gpu or _shared_bytes(c, p) * c["PROGRAMS_PER_SM"] <= t.shared_memory_bytes
        ),
    ),
    require(
        "a thread holds more than 128 accumulators",
        lambda c, p, t: c["ACCUMULATORS"] <= 128,
    ),
    require(
        "two programs a processor need more registers than there are",
        lambda c, p, t: (
            c["PROGRAMS_PER_SM"] == 1
            or c["num_warps"] * t.warp_size * (c["ACCUMULATORS"] + 64) * 2 <= 65_536
        ),
    ),
    require(
        "a warpgroup has less than one 64 x 16 product",
        lambda c, p, t: c["BLOCK_M"] * c["BLOCK_N"] >= 64 * 16 * (c["num_warps"] // 4),
    ),
    require(
        "a piece of the epilogue is narrower than 32 columns",
        lambda c, p, t: c["PIECES"] == 1 or c["BLOCK_N"] // c["PIECES"] >= 32,
    ),
    require(
        "BLOCK_M is twice M or more",
        lambda c, p, t: c["BLOCK_M"] == 64 or c["BLOCK_M"] < 2 * p["a"].shape[0],
    ),
    require(
        "BLOCK_N is twice N or more",
        lambda c, p, t: c["BLOCK_N"] == 16 or c["BLOCK_N"] < 2 * p["b"].shape[1],
    ),
    require(
        "BLOCK_K is twice K or more",
        lambda c, p, t: c["BLOCK_K"] == 32 or c["BLOCK_K"] < 2 * p["a"].shape[1],
    ),
)

# Widest first; the first three were measured on an H200 (1.02x cuBLAS at 8192^3, .98x and 1.0x at M
# = 512 and 64).
_TILE = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "num_warps", "num_stages", "PIECES", "GROUP_M")
_TILES = (
    (128, 256, 64, 8, 3, 2, 16),
    (128, 128, 64, 8, 6, 1, 8),
    (64, 64, 128, 8, 6, 1, 8),
    (64, 32, 128, 4, 6, 1, 8),
    (64, 16, 128, 4, 6, 1, 8),
)


def _prior(problem: Problem, target: Target) -> dict[str, Value]:
    """The widest tile that keeps seven in ten processors busy."""
    m, n, k = sizes(problem)
    fitting = [t for t in _TILES if (t[0] == 64 or t[0] < 2 * m) and (t[1] == 16 or t[1] < 2 * n)]
    enough = 0.7 * target.num_sms
    best = next(
        (t for t in fitting if triton.cdiv(m, t[0]) * triton.cdiv(n, t[1]) >= enough),
        fitting[-1],
    )
    config = dict(zip(_TILE, best, strict=True))
    while config["BLOCK_K"] > 32 and config["BLOCK_K"] >= 2 * k:
        config["BLOCK_K"] //= 2
    return {**config, "FLATTEN": True, "PROGRAMS_PER_SM": 1}


def supports(problem: Problem, target: Target) -> str | None:
    if not target.has_tma and target.is_gpu:
        return f"{target.arch} has no TMA (NVIDIA sm_90 and newer have)"
    if problem["a"].dtype == "float32":
        return "IEEE float32 products do not run on matrix units"
    for name, spec in (*problem.tensors.items(), ("the output", outputs(problem)[0])):
        if spec.numel == 0:
            return f"{name} is empty"
        if spec.tma_dim is None:
            return (
                f"{name} with strides {spec.strides} has a start or a row that is not on 16 bytes"
            )
    return None


def _tensor_map(tensor: torch.Tensor, rows: int, cols: int) -> tuple[TensorMap, bool]:
    """The descriptor of an operand in (rows, cols) tiles, its dimensions swapped where the first
    one is contiguous."""
    swapped = TensorSpec.of(tensor).tma_dim == 0
    shape, strides = tuple(tensor.shape), tuple(tensor.stride())
    if swapped:
        return TensorMap(tensor, shape[::-1], strides[::-1], (cols, rows)), True
    return TensorMap(tensor, shape, strides, (rows, cols)), False


def _launch(
    args: tuple[Any, ...],
    outputs: tuple[torch.Tensor, ...],
    workspace: tuple[torch.Tensor, ...],
    config: Config,
) -> tuple[Launch, ...]:
    del workspace
    a, b = args
    (m, k), n, out = a.shape, b.shape[1], outputs[0]
    block_m, block_n, block_k = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
    a_map, a_along_m = _tensor_map(a, block_m, block_k)
    b_map, b_along_k = _tensor_map(b, block_k, block_n)
    out_map = TensorMap(out, (m, n), (n, 1), (block_m, block_n // config["PIECES"]))
    n_tiles = triton.cdiv(m, block_m) * triton.cdiv(n, block_n)
    constants = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M", "PIECES", "FLATTEN")
    return (
        Launch(
            kernel=_matmul_fwd_persistent_tma_kernel,
            grid=(min(n_tiles, config["NUM_PROGRAMS"]),),
            args=(a_map, b_map, out_map, m, n, k),
            constexprs={
                "A_ALONG_M": a_along_m,
                "B_ALONG_N": not b_along_k,
                **{name: config[name] for name in constants},
            },
            options={"num_warps": config["num_warps"], "num_stages": config["num_stages"]},
        ),
    )


matmul = register(OP, "persistent_tma", _launch, space=SPACE, prior=_prior, supports=supports)
