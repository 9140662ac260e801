"""The op's reference compiled by Inductor (at large sizes, a call of cuBLAS)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from gristmill.core.problem import Problem
from gristmill.core.registry import register
from gristmill.kernels.compiled import compile_reference
from gristmill.kernels.precision import precise
from gristmill.specs.matmul import OP


def _build(problem: Problem) -> Callable[..., Any]:
    del problem  # the first call's arguments say the same
    return functools.partial(precise, compile_reference(OP))


matmul = register(OP, "inductor", _build, kind="compiled")
