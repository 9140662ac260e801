"""A third party's op, `twice(x)`, with implementations that fail in every way that a candidate can.

Found by the entry point beside this file, in the test's process and in the worker. The vendor
implementations fail on any device, the Triton ones on a GPU.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch
import triton
import triton.language as tl

from gristmill.bench import provider
from gristmill.core.config import Config
from gristmill.core.launch import Launch
from gristmill.core.op import Bounds, Cost, Op, Workload
from gristmill.core.problem import Axis, Problem, TensorSpec
from gristmill.core.registry import declare, register
from gristmill.core.space import Space, choice, flag, require


def _reference(x: torch.Tensor) -> torch.Tensor:
    if x.shape[-1] == 13:
        raise RuntimeError("thirteen is unlucky")
    return x * 2


def _inputs(problem: Problem, generator: torch.Generator, variant: str) -> tuple[Any, ...]:
    x = torch.randn(problem["x"].shape, generator=generator, device=generator.device)
    return (problem["x"].fill(x * 1000 if variant == "large" else x),)


OP = declare(
    Op(
        schema="twice(Tensor x) -> Tensor",
        check=lambda x: None,
        reference=_reference,
        magnitude=lambda x: (x * 2).abs(),
        inputs=_inputs,
        variants=("normal", "large"),
        outputs=lambda problem: (TensorSpec.contiguous(problem["x"].shape, problem["x"].dtype),),
        axes=lambda problem: (Axis("rows", problem["x"].shape[0], exact=False),),
        cost=lambda problem: Cost(problem["x"].numel, 2 * problem["x"].size_bytes),
        bounds=lambda problem: Bounds(0.0, 0.0, 0.0, "doubling is exact"),
        workloads=(
            Workload(
                "small", Problem("twice", (("x", TensorSpec.contiguous((64, 64), "float32")),))
            ),
        ),
        dtypes=(torch.float32,),
    )
)


def right(x: torch.Tensor) -> torch.Tensor:
    return x + x


def sly(x: torch.Tensor) -> torch.Tensor:
    """Right on usual values, wrong on large ones."""
    return torch.where(x.abs() < 100, x + x, 0)


def traps(x: torch.Tensor) -> torch.Tensor:
    os.kill(os.getpid(), signal.SIGSEGV)
    return x


def hangs(x: torch.Tensor) -> torch.Tensor:
    time.sleep(3600)
    return x


def garbage(x: torch.Tensor) -> torch.Tensor:
    return x * 3


def unwritten(x: torch.Tensor) -> torch.Tensor:
    return torch.full_like(x, torch.nan)


def misshapen(x: torch.Tensor) -> torch.Tensor:
    return (x * 2)[1:]


def raises(x: torch.Tensor) -> torch.Tensor:
    raise ValueError("it does not feel like it")


def mistyped(x: torch.Tensor) -> torch.Tensor:
    return x.double() * 2


def mutates(x: torch.Tensor) -> torch.Tensor:
    out = x * 2
    x.zero_()
    return out


def strided(x: torch.Tensor) -> torch.Tensor:
    return (x * 2).t().contiguous().t()


def in_place(x: torch.Tensor) -> torch.Tensor:
    return x.mul_(2)


for function in (
    *(right, sly, traps, hangs, garbage, unwritten, misshapen, raises),
    *(mistyped, mutates, strided, in_place),
):
    register(OP, function.__name__, function, kind="vendor")


@provider("twice", "peer")
def peer(x: torch.Tensor) -> torch.Tensor:
    return x + x


@triton.jit
def _twice_kernel(x_ptr, y_ptr, N, LIMIT, FAULT: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < N
    x = tl.load(x_ptr + offsets, mask=mask)
    if FAULT == "compile":
        tl.static_assert(BLOCK < 0, "it does not compile")
    if FAULT == "trap":
        tl.store(y_ptr + (offsets.to(tl.int64) + (1 << 45)), x)
    if FAULT == "hang":
        while tl.load(x_ptr, volatile=True) != LIMIT:
            tl.debug_barrier()
    if FAULT == "garbage":
        x = x * 1.5
    if FAULT == "overrun":
        tl.store(y_ptr + N + offsets, x, mask=offsets < 8)
    if FAULT == "partial":
        mask = offsets < N - 1
    tl.store(y_ptr + offsets, x * 2, mask=mask)


def _launcher(fault: str) -> Any:
    def launcher(args: Any, outputs: Any, workspace: Any, config: Config) -> tuple[Launch, ...]:
        (x,), (y,) = args, outputs
        if fault == "stall":
            time.sleep(3600)
        block = config["BLOCK"]
        grid = (triton.cdiv(x.numel(), block),)
        constexprs = {"FAULT": fault, "BLOCK": block}
        return (Launch(_twice_kernel, grid, (x, y, x.numel(), 1e30), constexprs, {"num_warps": 4}),)

    return launcher


SPACE = Space(
    choice("BLOCK", 256, 512, 1024),
    flag("ODD"),
    require("odd ones are not allowed", lambda c, p, t: not c["ODD"]),
)

for fault in ("none", "compile", "trap", "hang", "garbage", "overrun", "partial", "stall"):
    register(
        OP,
        f"triton_{fault}",
        _launcher(fault),
        module=__name__,
        space=SPACE,
        prior=lambda p, t: {"BLOCK": 256, "ODD": False},
    )
