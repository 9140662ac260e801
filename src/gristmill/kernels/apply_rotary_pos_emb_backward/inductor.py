"""The op's reference compiled by Inductor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gristmill.core.problem import Problem
from gristmill.core.registry import register
from gristmill.kernels.compiled import compile_reference
from gristmill.specs.apply_rotary_pos_emb_backward import OP


def _build(problem: Problem) -> Callable[..., Any]:
    del problem  # the first call's arguments say the same
    return compile_reference(OP)


apply_rotary_pos_emb_backward = register(OP, "inductor", _build, kind="compiled")
