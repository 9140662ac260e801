"""A launch as data: what a launcher returns and the one executor runs, binds or compiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

import torch

from gristmill.record import record


@record
class TensorMap:
    """A host-made TMA descriptor of a tensor: `block`-shaped tiles of the `shape`/`strides` view of
    its memory.

    The innermost stride is 1, the others and the base address are multiples of 16 bytes; loads
    outside `shape` give 0.
    """

    tensor: torch.Tensor
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    block: tuple[int, ...]


@record(eq=False)
class Launch:
    """One kernel launch.

    Attributes:
        kernel: a `@triton.jit` function.
        grid: up to three program counts; large dimensions first (y and z end at 65,535).
        args: run-time arguments in the kernel's order: op arguments, outputs or workspace (tensors,
            `TensorMap`s), ints, floats, or `None` for an absent tensor. Never a tensor made by the
            launcher.
        constexprs: compile-time arguments by name.
        options: compiler options (`num_warps`, `num_stages`, ...).
    """

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constexprs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Every tensor that the launch refers to."""
        return tuple(
            a.tensor if isinstance(a, TensorMap) else a
            for a in self.args
            if isinstance(a, (torch.Tensor, TensorMap))
        )
