"""The gradients of `relu2_and_mul`, a program a tile of rows and columns (see
`device/gated_tiles.py`). For every size."""

from __future__ import annotations

from gristmill.core.config import Value
from gristmill.core.problem import Problem
from gristmill.core.registry import register
from gristmill.core.target import Target
from gristmill.kernels.device.gated_tiles import GATED_TILES, gated_launcher
from gristmill.kernels.device.row_blocks import on_16_bytes
from gristmill.specs.relu2_and_mul import CHOICE
from gristmill.specs.relu2_and_mul_backward import OP


def _prior(problem: Problem, target: Target) -> dict[str, Value]:
    """8 values a thread where rows are read value by value: 16 spill (Triton 3.6, sm_90)."""
    prior = GATED_TILES["prior"](problem, target)
    held = prior["BLOCK_M"] * prior["BLOCK_N"] // (prior["num_warps"] * target.warp_size)
    if held == 16 and not on_16_bytes(problem["x"]):
        prior["num_warps"] *= 2
    return prior


_launch = gated_launcher(OP, CHOICE)

relu2_and_mul_backward = register(
    OP, "tiles", _launch, module=__name__, **{**GATED_TILES, "prior": _prior}
)
