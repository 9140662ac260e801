"""The op's reference compiled by Inductor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gristmill.core.problem import Problem
from gristmill.core.registry import register
from gristmill.kernels.compiled import compile_reference
from gristmill.specs.partial_rotary_emb import OP


def _build(problem: Problem) -> Callable[..., Any]:
    del problem  # the first call's arguments say the same
    return compile_reference(OP)


partial_rotary_emb = register(OP, "inductor", _build, kind="compiled")
