"""What a user has without this package: two calls of ATen, and the reference under Inductor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gristmill.core.problem import Problem
from gristmill.core.registry import register
from gristmill.kernels.compiled import compile_reference
from gristmill_squared_relu.spec import OP


def _call(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x).square()


def _build(problem: Problem) -> Callable[..., Any]:
    del problem  # the first call's arguments say the same
    return compile_reference(OP)


aten = register(OP, "aten", _call, kind="vendor", native=True, doc="Two calls of ATen.")
inductor = register(OP, "inductor", _build, kind="compiled", doc="The reference under Inductor.")
