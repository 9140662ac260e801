"""`out = max(x, 0)**2`, a block of elements a program: one read, one write.

Wins over two calls of ATen, which read and write the square once more.
"""

from __future__ import annotations

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
from gristmill_squared_relu.spec import OP


# `n_elements` stays specialised: only where it is known to be a multiple of 16 can the mask go with
# 16-byte accesses.
@triton.jit
def _squared_relu_fwd_kernel(
    x_ptr, out_ptr, n_elements,
    BLOCK: tl.constexpr, EVICT: tl.constexpr, STREAM: tl.constexpr,
):  # fmt: skip
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n_elements
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0, eviction_policy=EVICT).to(tl.float32)
    y = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out_ptr + offsets, (y * y).to(out_ptr.dtype.element_ty), mask, cache_modifier=STREAM)


SPACE = Space(
    pow2("BLOCK", 256, 16384),
    choice("EVICT", "", "evict_first"),
    choice("STREAM", "", ".cs"),
    pow2("num_warps", 1, 16),
    require(
        "a thread has more than 64 elements, or less than one 16-byte access",
        lambda c, p, t: 16 // p["x"].itemsize <= c["BLOCK"] // (c["num_warps"] * t.warp_size) <= 64,
    ),
)


def _prior(problem: Problem, target: Target) -> dict[str, Value]:
    """Two 16-byte accesses a thread."""
    block = 4 * target.warp_size * 32 // problem["x"].itemsize
    return {"BLOCK": block, "EVICT": "", "STREAM": "", "num_warps": 4}


def _launch(
    args: tuple[Any, ...],
    outputs: tuple[torch.Tensor, ...],
    workspace: tuple[torch.Tensor, ...],
    config: Config,
) -> tuple[Launch, ...]:
    del workspace
    (x,) = args
    names = ("BLOCK", "EVICT", "STREAM")
    return (
        Launch(
            kernel=_squared_relu_fwd_kernel,
            grid=(triton.cdiv(x.numel(), config["BLOCK"]),),
            args=(x, outputs[0], x.numel()),
            constexprs={name: config[name] for name in names},
            options={"num_warps": config["num_warps"]},
        ),
    )


squared_relu = register(OP, "elementwise", _launch, space=SPACE, prior=_prior, preference=1)
