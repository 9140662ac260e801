"""The op's reference compiled by Inductor (at large sizes, a call of cuBLAS)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gristmill.core.problem import Problem
from gristmill.core.registry import register
from gristmill.kernels.compiled import compile_reference
from gristmill.kernels.precision import precise
from gristmill.specs.matmul import OP, rounds_factors


def _build(problem: Problem) -> Callable[..., Any]:
    compiled = compile_reference(OP)
    if rounds_factors(problem):  # as far as torch's own setting allows it
        return compiled

    def call(a: torch.Tensor, b: torch.Tensor, tf32: bool) -> Any:
        del tf32  # of no effect on 16-bit types, else not asked for
        return precise(compiled, a, b)

    return call


matmul = register(OP, "inductor", _build, kind="compiled")
