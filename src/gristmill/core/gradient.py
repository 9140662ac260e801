"""A gradient: which op computes the derivatives of another one, and from what."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from gristmill.record import record

GRAD, NEEDS, STRIDES, SHAPE = "grad_", "needs_", "strides_", "shape_"


@record(eq=False, slots=False)
class Gradient:
    """The gradients of some arguments of an op, as the outputs of one call of another op.

    Attributes:
        op: the name of the op that computes them.
        of: whose gradients its outputs are, in order.
        arguments: makes that op's arguments. What it needs are the names of its parameters: an
            argument or an output of the forward op (`out` where the schema names none),
            `grad_<output>`, `needs_<argument>`, a bool, or `strides_<argument>` or
            `shape_<argument>`, of a tensor that need not be kept itself. Nothing else is kept for
            the backward pass, so that a frozen weight does not keep its activations alive.
        result: makes the gradients of what that op returns, its first parameter; the others are
            named as those of `arguments` (default: its outputs are the gradients).
    """

    op: str
    of: tuple[str, ...]
    arguments: Callable[..., tuple[Any, ...]]
    result: Callable[..., Any] | None = None

    @cached_property
    def uses(self) -> tuple[str, ...]:
        """What `arguments` and `result` ask for."""
        return tuple(dict.fromkeys((*self._argument_uses, *self._result_uses)))

    @cached_property
    def _argument_uses(self) -> tuple[str, ...]:
        return _parameters(self.arguments)

    @cached_property
    def _result_uses(self) -> tuple[str, ...]:
        return _parameters(self.result)[1:] if self.result is not None else ()

    def wanted(self, needs: Collection[str]) -> bool:
        """Whether any argument that needs a gradient gets one here."""
        return any(name in needs for name in self.of)

    def compute(
        self,
        call: Callable[..., Any],
        known: Mapping[str, Any],
        needs: Collection[str],
    ) -> tuple[torch.Tensor, ...]:
        """The gradients, by `call`, the op: `known` has the forward's values, strides and the
        outputs' gradients."""

        def values(names: Sequence[str]) -> list[Any]:
            return [
                n.removeprefix(NEEDS) in needs if n.startswith(NEEDS) else known[n] for n in names
            ]

        made = call(*self.arguments(*values(_parameters(self.arguments))))
        if self.result is not None:
            made = self.result(made, *values(self._result_uses))
        return made if isinstance(made, tuple) else (made,)


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def saved_names(gradients: Sequence[Gradient], needs: Collection[str]) -> tuple[str, ...]:
    """The arguments and outputs that a backward pass for `needs` uses, and strides of them, each
    once."""
    wanted = (g.uses for g in gradients if g.wanted(needs))
    names = dict.fromkeys(name for uses in wanted for name in uses)
    return tuple(n for n in names if not n.startswith((GRAD, NEEDS)))


def dense(grad: torch.Tensor, dims: int = 1) -> torch.Tensor:
    """`grad` with a unit stride in one of its last `dims` dimensions. A sum's gradient is one value
    expanded, which no kernel takes: it is written out."""
    last = list(zip(grad.shape, grad.stride(), strict=True))[-dims:]
    # Sizes that depend on data are symbols, which cannot be compared; a unit stride is a number.
    numbers = [[v if isinstance(v, int) else 2 for v in pair] for pair in last]
    fits = any(stride == 1 or size <= 1 for size, stride in numbers)
    return grad if fits else grad.contiguous()
